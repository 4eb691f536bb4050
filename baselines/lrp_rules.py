"""AttnLRP's rule for every function of torch: what stands in place of its gradient.

AttnLRP (Achtibat et al. 2024, arXiv 2402.05602) has the rules for transformers; equations and
propositions are numbered as there. All of them stand here in the form of its authors' library lxt:
what flows back is relevance over activation, R / x. Linear functions then keep their gradient, and
the relevance of any tensor is activation times gradient.

==============================  ==================================================================
function                        rule
==============================  ==================================================================
linear, convolution             ε rule (Eq. 8); γ rule where γ > 0, through zennit
sum of two activations          ε rule (Eq. 8)
matrix product of activations   uniform and ε rule (Prop. 3.3)
product of two activations      uniform rule (Eq. 7, Prop. 3.2)
quotient                        the divisor is a constant (identity rule on 1 / σ, Prop. 3.4)
softmax                         Taylor expansion at the scores (Prop. 3.1), which is the gradient
element-wise f                  identity rule (Eq. 9): relevance passes unchanged
Layer-, Group-, RMSNorm         identity rule on 1 / σ (Prop. 3.4); the mean is subtracted
batch norm in evaluation        the same: its statistics are constants, so it is affine
views, sums, maxima, |x|, ‖x‖   the gradient
==============================  ==================================================================

A constant that is added absorbs relevance: biases, position embeddings, the shift of a batch norm.
So does the softmax, whose expansion has a rest. `baselines.lrp.flows` says what each function
absorbed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from baselines.lrp_gradients import GammaGradient, GraftedGradient, IdentityGradient, Layer
from specsegdiff.errors import ConfigError, DependencyError


@dataclass(frozen=True)
class LRPRules:
    """The choices that AttnLRP leaves open; the defaults are those that the public attempt at arXiv
    2506.03425 reports as the paper's."""

    epsilon: float = 1e-6
    """Added to the size of what relevance is divided by, in linear functions, sums and matrix
    products; 0 conserves most and is least stable."""
    gamma_conv: float = 10.0
    """Extra weight, in convolutions, of contributions that have the output's sign; 0 is the ε rule,
    which needs no zennit."""
    gamma_linear: float = 0.1
    "The same in linear layers."
    attention: Literal["uniform", "constant"] = "uniform"
    """'uniform' is AttnLRP: weights (softmax and sigmoid) get half of the relevance of their
    products. 'constant' gives them none, as CP-LRP does (Ali et al. 2022, arXiv 2202.07304); lxt
    does so where it uses γ."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "gamma_conv", "gamma_linear"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ConfigError(f"LRPRules.{name} must be finite and not negative, got {value!r}")
        if self.attention not in ("uniform", "constant"):
            raise ConfigError(
                f"LRPRules.attention must be 'uniform' or 'constant', got {self.attention!r}"
            )

    @property
    def needs_zennit(self) -> bool:
        """Whether a γ rule is asked for."""
        return self.gamma_conv > 0 or self.gamma_linear > 0


def check_zennit(rules: LRPRules) -> None:
    """Raise `DependencyError` where the rules need zennit and it is not installed."""
    if not rules.needs_zennit:
        return
    try:
        import zennit.rules  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "the gamma rule needs zennit (LGPL-3.0-or-later); install it, or use "
            "LRPRules(gamma_conv=0, gamma_linear=0) for the epsilon rule"
        ) from error


class Run(Protocol):
    """What a rule needs to know of the pass that it belongs to (`baselines.lrp`)."""

    rules: LRPRules

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> Any: ...

    def without_rule(self, call: "Call") -> Any:
        """Run a function plainly, and note it where relevance would flow through."""

    def before_rule(self, result: Tensor) -> None:
        """Take note of a result whose gradient a rule is about to change."""


@dataclass
class Call:
    """One function with its operands, at least one of them an activation."""

    run: Run
    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool

    @property
    def rules(self) -> LRPRules:
        """The choices of its pass."""
        return self.run.rules

    def plain(self) -> Any:
        """Result with its own gradient."""
        return self.func(*self.args, **self.kwargs)

    def bound(self, *names: str) -> dict[str, Any]:
        """Operands by name, those given by place under ``names``."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    def activations(self, *operands: Any) -> int:
        """How many of the operands are activations; all of the call's by default."""
        return count_active(operands or (self.args, self.kwargs))

    def scaled(self, result: Tensor, factor: Tensor | float) -> Tensor:
        """The result, with its gradient times ``factor``."""
        if result.requires_grad:
            self.run.before_rule(result)
            result.register_hook(lambda gradient: gradient * factor)
        return result

    def shared(self, result: Tensor, parts: int) -> Tensor:
        """The result z with its gradient times ``z / (parts * z + ε sign(z))``: each of ``parts``
        factors gets the same share, less that of ε."""
        epsilon = self.rules.epsilon
        if epsilon == 0:
            return result if parts == 1 else self.scaled(result, 1 / parts)
        # scores that are masked with minus infinity keep their gradient, which is 0
        size = result.detach().abs().clamp_max(torch.finfo(result.dtype).max / 8)
        return self.scaled(result, size / (parts * size + epsilon))


# ------------------------------------------------------------------ rules


def _gradient(call: Call) -> Any:
    return call.plain()


def _element_wise(call: Call) -> Any:
    x, *others = call.args
    if call.activations(others, call.kwargs) or x.is_complex():
        # such as clamping with an activation as bound
        return call.run.without_rule(call)

    def function(x: Tensor) -> Tensor:
        return call.func(x.clone() if call.in_place else x, *others, **call.kwargs)

    y = IdentityGradient.apply(x, function)
    return x.copy_(y) if call.in_place else y


def _power(call: Call) -> Any:
    base, exponent = call.args
    if call.activations(base) or call.in_place:
        return _element_wise(call)
    return IdentityGradient.apply(exponent, lambda exponent: call.func(base, exponent))


def _softmax(call: Call) -> Any:
    return call.plain().detach() if call.rules.attention == "constant" else call.plain()


def _sigmoid(call: Call) -> Any:
    return call.plain().detach() if call.rules.attention == "constant" else _element_wise(call)


def _sum(call: Call) -> Any:
    return call.shared(call.plain(), 1) if call.activations() > 1 else call.plain()


def _product(call: Call) -> Any:
    count = call.activations()
    return call.scaled(call.plain(), 1 / count) if count > 1 else call.plain()


def _matrix_product(call: Call) -> Any:
    return call.shared(call.plain(), call.activations())


def _quotient(call: Call) -> Any:
    bound = call.bound("input", "other")
    x, divisor = bound.pop("input"), bound.pop("other")
    return call.func(x, divisor.detach() if isinstance(divisor, Tensor) else divisor, **bound)


def _divisor(call: Call) -> Any:
    return call.plain().detach()


def _square_like(call: Call) -> Any:
    """Functions of degree 2, f(a x) = a² f(x): half of the gradient conserves."""
    return call.scaled(call.plain(), 0.5)


def _convolution(call: Call) -> Any:
    return _weighted(call, call.rules.gamma_conv)


def _linear(call: Call) -> Any:
    return _weighted(call, call.rules.gamma_linear)


def _weighted(call: Call, gamma: float) -> Any:
    bound = call.bound("input", "weight", "bias")
    x, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
    if gamma == 0 or call.activations(weight, bias) or not x.requires_grad:
        return call.shared(call.plain(), max(call.activations(x, weight), 1))
    rest = call.args[3:]

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return call.func(x, weight, bias, *rest, **bound)

    return GammaGradient.apply(x, Layer(function, weight, bias), gamma, call.rules.epsilon)


def _layer_norm(call: Call) -> Any:
    bound = call.bound("input", "normalized_shape", "weight", "bias", "eps")
    axes = tuple(range(-len(bound["normalized_shape"]), 0))
    y = _over_deviation(bound["input"], axes, bound.get("eps", 1e-5), centred=True)
    return _grafted(call, y, bound.get("weight"))


def _rms_norm(call: Call) -> Any:
    bound = call.bound("input", "normalized_shape", "weight", "eps")
    x, eps = bound["input"], bound.get("eps")
    axes = tuple(range(-len(bound["normalized_shape"]), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = _over_deviation(x, axes, eps, centred=False)
    return _grafted(call, y, bound.get("weight"))


def _group_norm(call: Call) -> Any:
    bound = call.bound("input", "num_groups", "weight", "bias", "eps")
    return _over_groups(call, bound, bound["num_groups"])


def _instance_norm(call: Call) -> Any:
    bound = call.bound(*_STATISTICS, "use_input_stats", "momentum", "eps")
    if not bound["use_input_stats"]:
        return call.plain()
    return _over_groups(call, bound, bound["input"].shape[1])


def _batch_norm(call: Call) -> Any:
    bound = call.bound(*_STATISTICS, "training")
    # statistics of the batch would tie its items together
    return call.run.without_rule(call) if bound["training"] else call.plain()


_STATISTICS = ("input", "weight", "bias", "running_mean", "running_var")


def _over_groups(call: Call, bound: dict[str, Any], groups: int) -> Tensor:
    x, weight = bound["input"], bound.get("weight")
    rows = x.reshape(len(x), groups, -1)
    y = _over_deviation(rows, (-1,), bound.get("eps", 1e-5), centred=True).reshape(x.shape)
    if weight is not None:
        weight = weight.reshape(-1, *(1,) * (x.ndim - 2))
    return _grafted(call, y, weight)


def _over_deviation(x: Tensor, axes: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
    y = x - x.mean(axes, keepdim=True) if centred else x
    return y * (y.detach().square().mean(axes, keepdim=True) + eps).rsqrt()


def _grafted(call: Call, y: Tensor, weight: Tensor | None) -> Tensor:
    """The call's own value, with the gradient of ``y * weight``; the bias has none."""
    return GraftedGradient.apply(y if weight is None else y * weight, call.plain)


def _gated_linear(call: Call) -> Any:
    bound = call.bound("input", "dim")
    with call.run:
        value, gate = bound["input"].chunk(2, bound.get("dim", -1))
        return value * gate.sigmoid()


def _matrix_sum(call: Call) -> Any:
    """``beta * input + alpha * (first @ second)``, function by function."""
    bound = call.bound("input", "first", "second")
    names = {"mat1", "batch1", "mat", "mat2", "batch2", "vec"} & bound.keys()
    if names or "out" in bound or call.in_place:
        return call.run.without_rule(call)
    beta, alpha = bound.get("beta", 1), bound.get("alpha", 1)
    with call.run:
        product = alpha * torch.matmul(bound["first"], bound["second"])
        return product if beta == 0 else product + beta * bound["input"]


def _attention(call: Call) -> Any:
    """Scaled dot-product attention, function by function."""
    bound = call.bound("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    query, key, value = bound["query"], bound["key"], bound["value"]
    mask, scale = bound.get("attn_mask"), bound.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if bound.get("dropout_p", 0.0) > 0:
        return call.run.without_rule(call)
    with call.run:
        if bound.get("enable_gqa", False):
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(repeats, dim=-3) for x in (key, value))
        scores = (query * scale) @ key.transpose(-2, -1)
        if bound.get("is_causal", False):
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = scores + mask
        return scores.softmax(dim=-1) @ value


def _words(text: str) -> list[str]:
    return text.split()


_GRADIENT = _words("""
    T mT H mH real imag alias as_strided atleast_1d atleast_2d atleast_3d bfloat16 broadcast_tensors
    broadcast_to cat channel_shuffle chunk clone complex concat concatenate conj constant_pad_nd
    contiguous copy cpu cuda diag diagonal double dstack expand expand_as fill flatten flip fliplr
    flipud float gather getitem half hstack im2col col2im index_add index_copy index_select
    masked_fill masked_select moveaxis movedim nan_to_num narrow pad permute pixel_shuffle
    pixel_unshuffle repeat repeat_interleave requires_grad_ reshape reshape_as resolve_conj
    resolve_neg roll rot90 scatter scatter_add select select_scatter setitem slice_scatter split
    split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor_split tile to
    transpose tril triu type type_as unbind unflatten unfold unsqueeze view view_as view_as_complex
    view_as_real vstack where zero

    cumsum diff mean nanmean nansum neg positive sum istft stft
    dropout alpha_dropout feature_dropout feature_alpha_dropout
    avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d

    abs linalg_norm linalg_vector_norm norm std
    amax amin cummax cummin fmax fmin kthvalue max maximum median min minimum msort sort topk
    max_pool1d max_pool2d max_pool3d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
""")
"Views, linear functions, and others of degree 1, f(a x) = a f(x) for a > 0."

_ELEMENT_WISE = _words("""
    relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign tanh hardtanh
    tanhshrink log_sigmoid hardsigmoid hardswish exp expm1 exp2 log log1p log2 log10 sqrt square
    sin cos sinh cosh erf atan asinh clamp clamp_min clamp_max clip threshold softshrink hardshrink
""")

_MATRIX_PRODUCTS = ("matmul", "mm", "bmm", "mv", "dot", "inner", "outer", "einsum")

RULES: dict[str, Callable[[Call], Any]] = {
    **dict.fromkeys(_GRADIENT, _gradient),
    **dict.fromkeys(_ELEMENT_WISE, _element_wise),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(_MATRIX_PRODUCTS, _matrix_product),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _matrix_sum),
    **dict.fromkeys(("rsqrt", "reciprocal"), _divisor),
    **{f"conv{kind}{n}d": _convolution for kind in ("", "_transpose") for n in (1, 2, 3)},
    "linear": _linear,
    "mul": _product,
    "div": _quotient,
    "pow": _power,
    "var": _square_like,
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "glu": _gated_linear,
    "scaled_dot_product_attention": _attention,
}

TAKEN_APART = (_gated_linear, _matrix_sum, _attention)
"Rules that call other functions, which have their own."

_FAMILIES = ("upsample_", "_upsample_", "fft_")
"Names of linear functions begin so."

SYNONYMS = {
    "true_divide": "div",
    "truediv": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "rsub": "sub",
    "absolute": "abs",
    "negative": "neg",
    "special_expit": "sigmoid",
}


def rule_of(name: str) -> Callable[[Call], Any] | None:
    """Rule of the function with this name (`baselines.lrp`), None where there is none."""
    return _gradient if name.startswith(_FAMILIES) else RULES.get(name)


def _active(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list) or isinstance(value, torch.Size):
        return []
    return [x for part in value for x in _active(part)]


def count_active(value: Any) -> int:
    """Number of activations, tensors with a gradient, in a tensor or a nest of them."""
    return len(_active(value))
