"""AttnLRP for every function that a network calls: its gradient is replaced by its rule.

Layer-wise relevance propagation hands an output down to the input, function by function (Bach et
al. 2015, PLoS ONE 10(7)). AttnLRP (Achtibat et al. 2024, arXiv 2402.05602) has the rules for
transformers; equations and propositions are numbered as there. All of them stand here in the form
of its authors' library lxt: what flows back is relevance over activation, R / x. Linear functions
then keep their gradient, and the relevance of any tensor is activation times gradient.

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
So does the softmax, whose expansion has a rest. `flows` says what each function absorbed.

Functions are seen through ``__torch_function__`` while the network runs. Nothing of the network or
of torch is patched, so there is nothing to put back, and functional calls have rules like modules.
Functions of torch that are written in Python are opened until a rule is found. One without a rule
is an error, never a gradient in disguise.

LRP is patented. The authors of lxt state that it may be used free of charge for personal and
scientific purposes; check this before any other use. zennit is under the LGPL and stays an
optional package of its own.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from baselines.contrast import RuleError
from specsegdiff.errors import ConfigError, DependencyError

SMALLEST = 1e-10
"Activations below it in size pass no relevance through element-wise functions, as in lxt."


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


@dataclass(frozen=True)
class Flow:
    """The relevance that one call of a function got from above and handed down."""

    function: str
    "Name of the function in torch, such as ``conv1d``."
    module: str
    "Path of the innermost module that calls it, and its class."
    received: float
    "Relevance of its results."
    passed: float
    "Relevance of its operands, as far as it comes through this call."

    @property
    def absorbed(self) -> float:
        """What it kept: the share of constants, of ε, and of the softmax's rest."""
        return self.received - self.passed


def propagate(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules | None = None,
    root: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Relevance of ``value``, in its shape, for the sum of ``score(value)``, and this score.

    ``score`` runs a network in evaluation mode; ``root`` is that network, for the names in errors.
    Raises `RuleError` that names all functions without a rule, and `DependencyError` where a γ rule
    is asked for and zennit is missing.

    >>> weight, x = torch.tensor([[1.0, -2.0]]), torch.tensor([3.0, 1.0])
    >>> linear = lambda x: torch.relu(torch.nn.functional.linear(x, weight))
    >>> relevance, score = propagate(linear, x, rules=LRPRules(gamma_linear=0, epsilon=0))
    >>> relevance, score
    (tensor([ 3., -2.]), tensor([1.]))
    """
    relevance, scores, _ = _run(score, value, rules=rules or LRPRules(), root=root, watch=False)
    return relevance, scores


def flows(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules | None = None,
    root: nn.Module | None = None,
) -> list[Flow]:
    """What every call of a function received and passed on, in order of the forward pass.

    The score is the relevance of ``value`` plus all that is absorbed, to rounding. Functions that
    change a tensor in place are not listed. Takes more memory than `propagate`.
    """
    _, _, meters = _run(score, value, rules=rules or LRPRules(), root=root, watch=True)
    return [Flow(m.function, m.module, m.received, m.passed) for m in meters]


def gaps(score: Callable[[Tensor], Tensor], value: Tensor, *, root: nn.Module | None) -> list[str]:
    """Functions without a rule that a forward pass meets, as ``function in module``; empty is a
    clean bill."""
    rules = LRPRules(gamma_conv=0, gamma_linear=0)
    return _forward(score, value, rules=rules, root=root, watch=False)[2].missing(root)


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


def _run(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules,
    root: nn.Module | None,
    watch: bool,
) -> tuple[Tensor, Tensor, "list[_Meter]"]:
    check_zennit(rules)
    with torch.inference_mode(False), torch.enable_grad():
        leaf, scores, run = _forward(score, value, rules=rules, root=root, watch=watch)
        missing = run.missing(root)
        if missing:
            raise RuleError(
                f"AttnLRP has no rule for {len(missing)} function(s): {', '.join(missing)}; "
                "replace them by functions that have one (baselines.lrp_rules lists them)"
            )
        (gradient,) = (
            torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
            if scores.requires_grad
            else (None,)
        )
    if gradient is None:
        raise RuleError(
            "the score does not depend on the input: the network runs under no_grad, or detaches; "
            "let gradients through"
        )
    return (leaf * gradient).detach(), scores.detach(), run.meters or []


def _forward(
    score: Callable[[Tensor], Tensor],
    value: Tensor,
    *,
    rules: LRPRules,
    root: nn.Module | None,
    watch: bool,
) -> "tuple[Tensor, Tensor, _Propagation]":
    with torch.inference_mode(False), torch.enable_grad():
        leaf = value.detach().clone().requires_grad_()
        run = _Propagation(rules, names=_paths(root), watch=watch)
        # a copy, since a network may change its input in place, and autograd refuses that to leaves
        start = leaf.clone()
        with run:
            scores = score(start)
    run.graph = scores
    return leaf, scores, run


# ------------------------------------------------------------------ seeing every function


class _Propagation(TorchFunctionMode):
    """While it is entered, functions of tensors record their rule in place of their gradient."""

    def __init__(self, rules: LRPRules, *, names: Mapping[int, str], watch: bool) -> None:
        super().__init__()
        self.rules = rules
        self.names = names
        self.open: list[Any] = []
        self.unknown: list[str] = []
        self.meters: list[_Meter] | None = [] if watch else None
        self.meter: _Meter | None = None
        self.graph: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function under its rule."""
        args, kwargs = _mapped(_without_weights, (tuple(args), kwargs or {}))
        if not torch.is_grad_enabled() or not _active_in((args, kwargs)):
            return func(*args, **kwargs)
        body = _opened(func)
        # a method of Tensor that calls the kernel of its own name comes back under this name
        if body is not None and func not in self.open:
            self.open.append(func)
            try:
                with self:
                    return body(*args, **kwargs)
            finally:
                self.open.pop()
        name, in_place = _name_of(func)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        call = _Call(self, func, name, args, kwargs, in_place)
        rule = _rule_of(name)
        if rule is None:
            return self.without_rule(call)
        if self.meters is None or in_place or rule in _TAKEN_APART:
            return rule(call)
        meter = _Meter(name, _caller(self.names))
        self.meters.append(meter)
        return self._metered(rule, call, meter)

    def without_rule(self, call: "_Call") -> Any:
        """Run a function plainly, and note it where relevance would flow through."""
        result = call.plain()
        if _active_in(result):
            place = f"{call.name} in {_caller(self.names)}"
            if place not in self.unknown:
                self.unknown.append(place)
        return result

    def missing(self, root: nn.Module | None) -> list[str]:
        """Everything that has no rule, or that cannot be seen."""
        modules = [] if root is None else root.named_modules()
        compiled = [
            f"all functions in {_described(path, module)}, which is compiled; pass the original"
            for path, module in modules
            if isinstance(module, torch.jit.ScriptModule)
            or type(module).__name__ == "OptimizedModule"
        ]
        return [*compiled, *self.unknown, *_foreign_functions(self.graph)]

    def _metered(self, rule: "Callable[[_Call], Any]", call: "_Call", meter: "_Meter") -> Any:
        call.args = _mapped(meter.on_operand, call.args)
        call.kwargs = _mapped(meter.on_operand, call.kwargs)
        outer, self.meter = self.meter, meter
        try:
            result = rule(call)
        finally:
            self.meter = outer
        _mapped(meter.on_result, result)
        return result


@dataclass
class _Call:
    """One function with its operands, at least one of them an activation."""

    run: _Propagation
    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool

    @property
    def rules(self) -> LRPRules:
        return self.run.rules

    def plain(self) -> Any:
        """Result with its own gradient."""
        return self.func(*self.args, **self.kwargs)

    def bound(self, *names: str) -> dict[str, Any]:
        """Operands by name, those given by place under ``names``."""
        return dict(zip(names, self.args, strict=False)) | self.kwargs

    def activations(self, *operands: Any) -> int:
        """How many of the operands are activations; all of the call's by default."""
        return _count_active(operands or (self.args, self.kwargs))

    def scaled(self, result: Tensor, factor: Tensor | float) -> Tensor:
        """The result, with its gradient times ``factor``."""
        if result.requires_grad:
            if self.run.meter is not None:
                self.run.meter.on_result(result)
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


class _Meter:
    """Sums of activation times gradient at both sides of one call."""

    def __init__(self, function: str, module: str) -> None:
        self.function = function
        self.module = module
        self.received = 0.0
        self.passed = 0.0
        self._seen: set[int] = set()

    def on_operand(self, x: Tensor) -> Tensor:
        """A view of an operand that counts what comes back through it."""
        if not x.requires_grad:
            return x
        view, value = x.view_as(x), x.detach()

        def count(gradient: Tensor) -> None:
            self.passed += _relevance(value, gradient)

        view.register_hook(count)
        return view

    def on_result(self, x: Tensor) -> Tensor:
        """The same tensor, counted before its rule changes the gradient."""
        if x.requires_grad and id(x) not in self._seen:
            self._seen.add(id(x))
            value = x.detach()

            def count(gradient: Tensor) -> None:
                self.received += _relevance(value, gradient)

            x.register_hook(count)
        return x


def _relevance(value: Tensor, gradient: Tensor) -> float:
    product = (gradient.conj() * value).real if value.is_complex() else gradient * value
    # a masked score is minus infinity, and gets no gradient
    return float(torch.where(gradient == 0, 0, product).double().sum())


# ------------------------------------------------------------------ rules


class _Identity(torch.autograd.Function):
    """Identity rule (Eq. 9): the gradient is output over input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        y = function(x)
        ctx.save_for_backward(_ratio(y, x))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return gradients[0] * ratio, None


class _Grafted(torch.autograd.Function):
    """The gradient of one tensor with the value of another."""

    @staticmethod
    def forward(ctx: Any, other: Tensor, value: Callable[[], Tensor]) -> Tensor:
        return value()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gamma(torch.autograd.Function):
    """zennit's generalised γ rule, between relevance and relevance over activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "_Layer", gamma: float, epsilon: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.gamma, ctx.epsilon = layer, gamma, epsilon
        return layer.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        from zennit.rules import Gamma

        (x,) = ctx.saved_tensors
        # without an ε, zennit divides 0 by 0 where nothing has the output's sign
        rule = Gamma(gamma=ctx.gamma, stabilizer=max(ctx.epsilon, 1e-3 * SMALLEST))
        rule.stored_tensors["input"] = (x,)
        received = gradients[0] * ctx.layer.forward(x)
        (relevance,) = rule.backward(ctx.layer, (x,), (received,))
        return _ratio(relevance, x, smallest=0.0), None, None, None


class _Layer(nn.Module):
    """A functional linear layer as the module that zennit wants; the network's own is not used, so
    normalised weights and functional calls are layers too."""

    def __init__(
        self, function: Callable[..., Tensor], weight: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to ``x``, weight and bias."""
        return self.function(x, self.weight, self.bias)


def _ratio(y: Tensor, x: Tensor, *, smallest: float = SMALLEST) -> Tensor:
    """``y / x``, and 0 where x is 0 or below ``smallest`` in size."""
    tiny = x.abs() <= smallest
    return torch.where(tiny, 0, y / torch.where(tiny, 1, x))


def _gradient(call: _Call) -> Any:
    return call.plain()


def _element_wise(call: _Call) -> Any:
    x, *others = call.args
    if call.activations(others, call.kwargs) or x.is_complex():
        # such as clamping with an activation as bound
        return call.run.without_rule(call)

    def function(x: Tensor) -> Tensor:
        return call.func(x.clone() if call.in_place else x, *others, **call.kwargs)

    y = _Identity.apply(x, function)
    return x.copy_(y) if call.in_place else y


def _power(call: _Call) -> Any:
    base, exponent = call.args
    if call.activations(base) or call.in_place:
        return _element_wise(call)
    return _Identity.apply(exponent, lambda exponent: call.func(base, exponent))


def _softmax(call: _Call) -> Any:
    return call.plain().detach() if call.rules.attention == "constant" else call.plain()


def _sigmoid(call: _Call) -> Any:
    return call.plain().detach() if call.rules.attention == "constant" else _element_wise(call)


def _sum(call: _Call) -> Any:
    return call.shared(call.plain(), 1) if call.activations() > 1 else call.plain()


def _product(call: _Call) -> Any:
    count = call.activations()
    return call.scaled(call.plain(), 1 / count) if count > 1 else call.plain()


def _matrix_product(call: _Call) -> Any:
    return call.shared(call.plain(), call.activations())


def _quotient(call: _Call) -> Any:
    bound = call.bound("input", "other")
    x, divisor = bound.pop("input"), bound.pop("other")
    return call.func(x, divisor.detach() if isinstance(divisor, Tensor) else divisor, **bound)


def _divisor(call: _Call) -> Any:
    return call.plain().detach()


def _square_like(call: _Call) -> Any:
    """Functions of degree 2, f(a x) = a² f(x): half of the gradient conserves."""
    return call.scaled(call.plain(), 0.5)


def _convolution(call: _Call) -> Any:
    return _weighted(call, call.rules.gamma_conv)


def _linear(call: _Call) -> Any:
    return _weighted(call, call.rules.gamma_linear)


def _weighted(call: _Call, gamma: float) -> Any:
    bound = call.bound("input", "weight", "bias")
    x, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
    if gamma == 0 or call.activations(weight, bias) or not x.requires_grad:
        return call.shared(call.plain(), max(call.activations(x, weight), 1))
    rest = call.args[3:]

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return call.func(x, weight, bias, *rest, **bound)

    return _Gamma.apply(x, _Layer(function, weight, bias), gamma, call.rules.epsilon)


def _layer_norm(call: _Call) -> Any:
    bound = call.bound("input", "normalized_shape", "weight", "bias", "eps")
    axes = tuple(range(-len(bound["normalized_shape"]), 0))
    y = _over_deviation(bound["input"], axes, bound.get("eps", 1e-5), centred=True)
    return _grafted(call, y, bound.get("weight"))


def _rms_norm(call: _Call) -> Any:
    bound = call.bound("input", "normalized_shape", "weight", "eps")
    x, eps = bound["input"], bound.get("eps")
    axes = tuple(range(-len(bound["normalized_shape"]), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = _over_deviation(x, axes, eps, centred=False)
    return _grafted(call, y, bound.get("weight"))


def _group_norm(call: _Call) -> Any:
    bound = call.bound("input", "num_groups", "weight", "bias", "eps")
    return _over_groups(call, bound, bound["num_groups"])


def _instance_norm(call: _Call) -> Any:
    bound = call.bound(*_STATISTICS, "use_input_stats", "momentum", "eps")
    if not bound["use_input_stats"]:
        return call.plain()
    return _over_groups(call, bound, bound["input"].shape[1])


def _batch_norm(call: _Call) -> Any:
    bound = call.bound(*_STATISTICS, "training")
    # statistics of the batch would tie its items together
    return call.run.without_rule(call) if bound["training"] else call.plain()


_STATISTICS = ("input", "weight", "bias", "running_mean", "running_var")


def _over_groups(call: _Call, bound: dict[str, Any], groups: int) -> Tensor:
    x, weight = bound["input"], bound.get("weight")
    rows = x.reshape(len(x), groups, -1)
    y = _over_deviation(rows, (-1,), bound.get("eps", 1e-5), centred=True).reshape(x.shape)
    if weight is not None:
        weight = weight.reshape(-1, *(1,) * (x.ndim - 2))
    return _grafted(call, y, weight)


def _over_deviation(x: Tensor, axes: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
    y = x - x.mean(axes, keepdim=True) if centred else x
    return y * (y.detach().square().mean(axes, keepdim=True) + eps).rsqrt()


def _grafted(call: _Call, y: Tensor, weight: Tensor | None) -> Tensor:
    """The call's own value, with the gradient of ``y * weight``; the bias has none."""
    return _Grafted.apply(y if weight is None else y * weight, call.plain)


def _gated_linear(call: _Call) -> Any:
    bound = call.bound("input", "dim")
    with call.run:
        value, gate = bound["input"].chunk(2, bound.get("dim", -1))
        return value * gate.sigmoid()


def _matrix_sum(call: _Call) -> Any:
    """``beta * input + alpha * (first @ second)``, function by function."""
    bound = call.bound("input", "first", "second")
    names = {"mat1", "batch1", "mat", "mat2", "batch2", "vec"} & bound.keys()
    if names or "out" in bound or call.in_place:
        return call.run.without_rule(call)
    beta, alpha = bound.get("beta", 1), bound.get("alpha", 1)
    with call.run:
        product = alpha * torch.matmul(bound["first"], bound["second"])
        return product if beta == 0 else product + beta * bound["input"]


def _attention(call: _Call) -> Any:
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

_RULES: dict[str, Callable[[_Call], Any]] = {
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

_TAKEN_APART = (_gated_linear, _matrix_sum, _attention)
"Rules that call other functions, which have their own."

_FAMILIES = ("upsample_", "_upsample_", "fft_")
"Names of linear functions begin so."

_SYNONYMS = {
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


def _rule_of(name: str) -> Callable[[_Call], Any] | None:
    return _gradient if name.startswith(_FAMILIES) else _RULES.get(name)


# ------------------------------------------------------------------ names, places, parts


def _name_of(func: Any) -> tuple[str, bool]:
    """Name of a function without underscores, and whether it changes its first operand."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__", "__delete__"):
        # an attribute, such as x.T or x.real
        return getattr(func.__self__, "__name__", name), False
    if name.startswith("__") and name.endswith("__"):
        short = name[2:-2]
        if short[0] == "i" and short[1:] in _OPERATORS:
            return _SYNONYMS.get(short[1:], short[1:]), True
        if short[0] == "r" and short[1:] in _OPERATORS[:4]:
            short = short[1:]
        return _SYNONYMS.get(short, short), short == "setitem"
    short = name if name == "requires_grad_" else name.rstrip("_")
    return _SYNONYMS.get(short, short), short != name


_OPERATORS = ("add", "sub", "mul", "matmul", "truediv", "pow")
"Also with an i in front, for in place; the first four also with an r, for swapped operands."

_GUARDS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _opened(func: Any) -> Callable[..., Any] | None:
    """The body of a function of torch that is written in Python, None for any other.

    Such a function first asks whether its operands take over. The body here is told that they
    don't, so that the functions it calls are seen instead.
    """
    if isinstance(func, FunctionType) and set(_GUARDS) & set(func.__code__.co_names):
        return _unguarded(func)
    return None


@cache
def _unguarded(func: FunctionType) -> FunctionType:
    names = func.__globals__ | dict.fromkeys(_GUARDS, lambda *operands: False)
    body = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _paths(root: nn.Module | None) -> dict[int, str]:
    if root is None:
        return {}
    return {id(module): _described(path, module) for path, module in root.named_modules()}


def _described(path: str, module: nn.Module) -> str:
    return f"{path} ({type(module).__name__})" if path else type(module).__name__


def _caller(names: Mapping[int, str]) -> str:
    """The innermost module whose method is running."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return names.get(id(module), type(module).__name__)
        frame = frame.f_back
    return "no module"


def _foreign_functions(result: Tensor | None) -> list[str]:
    """Functions with a gradient of their own in Python, which no rule has seen."""
    todo: list[Any] = [] if result is None or result.grad_fn is None else [result.grad_fn]
    seen, found = set(todo), []
    while todo:
        node = todo.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            kind = type(node)._forward_cls
            name = f"the autograd function {kind.__name__}"
            if kind not in (_Identity, _Grafted, _Gamma) and name not in found:
                found.append(name)
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                todo.append(before)
    return found


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with its tensors changed, in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(change, part) for name, part in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(_mapped(change, part) for part in value)
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        # named results, such as those of max: looked at, not rebuilt
        for part in value:
            _mapped(change, part)
    return value


def _without_weights(x: Tensor) -> Tensor:
    """The tensor; a constant where it is a leaf, so a weight of the network."""
    return x.detach() if x.requires_grad and x.is_leaf else x


def _active(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list) or isinstance(value, torch.Size):
        return []
    return [x for part in value for x in _active(part)]


def _active_in(value: Any) -> bool:
    return bool(_active(value))


def _count_active(value: Any) -> int:
    return len(_active(value))
