"""The rule of every operation: how the change of its result follows from those of its operands.

Each is a linear map of the changes, and exact (`baselines.deeplift_maps` has the formulas).

========================  ========================================================================
operation                 map of the changes Δ, with a and r for the two ends
========================  ========================================================================
linear, views             the operation itself, without its constant part
element-wise f            rescale rule: ``Δ (f(a) - f(r)) / (a - r)``
product, matmul, conv     ``Δx mean(y) + mean(x) Δy``: the mean of both orders of change
quotient                  a product with the reciprocal, whose slope is ``-1 / (a r)``
softmax                   ``ρ (Δ - ΔL)``, ρ the logarithmic mean of both softmaxes
logsumexp L, log-softmax  ``ΔL = Σ ρ Δ / Σ ρ``, and ``Δ - ΔL``
LayerNorm and its kind    as sums, products and ``1 / √``; batch norm in evaluation is linear
maximum, max-pool         all to the winner of the end with the larger maximum
top-k, gather, where      mean of both choices; what the change of choice adds is spread over the
                          line that is chosen from, in proportion to ``(a - r)²``
========================  ========================================================================
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from baselines import deeplift_maps as maps
from baselines.contrast import (
    Call,
    Contrast,
    Rule,
    actual_of,
    change_of,
    depends,
    mean_of,
    name_of,
    reference_of,
    rule_error,
)

aten = torch.ops.aten

# ------------------------------------------------------------------ kinds of rules


def _linear(*places: int) -> Rule:
    """Of an operation that is linear in its operands at ``places`` together."""

    def change(call: Call) -> Any:
        return call.rerun({p: change_of(call[p], call.func) for p in places if p < len(call.args)})

    return Rule(change, is_linear=lambda call: True)


def _bilinear(first: int, second: int, *offsets: int) -> Rule:
    """Of a product of two operands, plus further operands that are added.

    ``x y - x' y' = (x - x') (y + y') / 2 + (x + x') / 2 (y - y')``: the mean of what both orders of
    change give, which is the Shapley value of two players.
    """

    def change(call: Call) -> Any:
        x, y = call[first], call[second]
        added = {p: change_of(call[p], call.func) for p in offsets if p < len(call.args)}
        absent = {p: None if z is None else torch.zeros_like(z) for p, z in added.items()}
        parts = []
        if depends(x):
            parts.append({first: change_of(x, call.func), second: mean_of(y)})
        if depends(y):
            parts.append({first: mean_of(x), second: change_of(y, call.func)})
        if not parts:
            parts.append({first: torch.zeros_like(x)})
        result = call.rerun(parts[0] | added)
        return result + call.rerun(parts[1] | absent) if len(parts) > 1 else result

    def is_linear(call: Call) -> bool:
        return not (depends(call[first]) and depends(call[second]))

    return Rule(change, is_linear)


def _elementwise(slope: Callable[[Call, Tensor, Tensor], Tensor], *, results: int = 1) -> Rule:
    """Of a function of each element of the first operand, by its slope between both ends."""

    def change(call: Call) -> Any:
        x = call[0]
        if not isinstance(x, Contrast):
            raise rule_error(call.func, "an operand that it takes as constant depends on the input")
        change = change_of(x, call.func) * slope(call, x.actual, x.reference)
        return change if results == 1 else (change, *(None,) * (results - 1))

    return Rule(change)


def _as_function(call: Call) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        result = call.rerun({0: x})
        return result[0] if isinstance(result, tuple) else result

    return function


def _rise(call: Call) -> Tensor:
    ends = call.actual, call.reference
    actual, reference = (end[0] if isinstance(end, tuple) else end for end in ends)
    return actual - reference


def _piecewise(call: Call, a: Tensor, r: Tensor) -> Tensor:
    return maps.secant(_as_function(call), a, r, rise=_rise(call))


def _smooth(*kinks: float) -> Callable[[Call, Tensor, Tensor], Tensor]:
    def slope(call: Call, a: Tensor, r: Tensor) -> Tensor:
        return maps.smooth_secant(_as_function(call), a, r, kinks=kinks, rise=_rise(call))

    return slope


def _closed(slope: Callable[[Tensor, Tensor], Tensor], factor: float = 1.0) -> Rule:
    return _elementwise(lambda call, a, r: factor * slope(a, r))


def _spelled(formula: Callable[..., Any]) -> Rule:
    """Of an operation that is spelled out in others."""

    def change(call: Call) -> Any:
        result = formula(*call.args, **call.kwargs)
        return tree_map(lambda part: None if part is None else change_of(part, call.func), result)

    return Rule(change)


# ------------------------------------------------------------------ rules of single operations


def _quotient_change(call: Call) -> Any:
    if call.kwargs.get("rounding_mode") is not None:
        raise rule_error(call.func, "it rounds")
    if not depends(call[1]):
        return call.rerun({0: change_of(call[0], call.func)})
    return change_of(maps.quotient(*call.args), call.func)


def _copy_change(call: Call) -> Any:
    # aten.copy has no derivative
    target, source = call[0], change_of(call[1], call.func)
    return source.to(target.dtype).expand(target.shape).clone()


def _strided_change(call: Call) -> Any:
    x, change = call[0], change_of(call[0], call.func)
    if (change.stride(), change.storage_offset()) != (x.actual.stride(), x.actual.storage_offset()):
        raise rule_error(call.func, "its operand is laid out otherwise than its change")
    return call.rerun({0: change})


def _softmax_change(call: Call) -> Any:
    x = call[0]
    return maps.softmax_change(change_of(x, call.func), x.actual, x.reference, call[1])


def _log_softmax_change(call: Call) -> Any:
    x = call[0]
    return maps.log_softmax_change(change_of(x, call.func), x.actual, x.reference, call[1])


def _logsumexp_change(call: Call) -> Any:
    x, keepdim = call[0], call.option("keepdim", 2, False)
    change = change_of(x, call.func)
    return maps.logsumexp_change(change, x.actual, x.reference, call[1], keepdim=keepdim)


def _abs_change(call: Call) -> Any:
    x = call[0]
    return maps.abs_change(change_of(x, call.func), x.actual, x.reference)


def _amax_change(call: Call) -> Any:
    x, dims = call[0], call.option("dim", 1, [])
    keepdim = call.option("keepdim", 2, False)
    axes = sorted(axis % x.ndim for axis in (dims or range(x.ndim)))
    lines = [_lines(part, axes) for part in (change_of(x, call.func), x.actual, x.reference)]
    picks = [line.argmax(-1, keepdim=True) for line in lines[1:]]
    change = maps.winner_change(*lines, dim=-1, first=picks[0], second=picks[1])[..., 0]
    if keepdim:
        for axis in axes:
            change = change.unsqueeze(axis)
    return change


def _lines(x: Tensor, axes: list[int]) -> Tensor:
    """``x`` with ``axes`` moved to the end as one."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    return x.permute(*kept, *axes).flatten(len(kept)) if x.ndim else x[None]


def _max_change(call: Call) -> Any:
    if len(call.args) == 1:
        return _amax_change(call)
    x, dim, keepdim = call[0], call[1], call.option("keepdim", 2, False)
    picks = [
        ends[1] if keepdim else ends[1].unsqueeze(dim) for ends in (call.actual, call.reference)
    ]
    change = maps.winner_change(
        change_of(x, call.func), x.actual, x.reference, dim=dim, first=picks[0], second=picks[1]
    )
    return change if keepdim else change.squeeze(dim), None


def _pool_change(axes: int) -> Callable[[Call], Any]:
    """Max-pooling over the last ``axes`` axes; its indices count along them as one."""

    def change(call: Call) -> Any:
        x, shape = call[0], call.actual[0].shape
        flat = [part.flatten(-axes) for part in (change_of(x, call.func), x.actual, x.reference)]
        picks = [ends[1].flatten(-axes) for ends in (call.actual, call.reference)]
        change = maps.winner_change(*flat, dim=-1, first=picks[0], second=picks[1])
        return change.reshape(shape), None

    return change


def _chosen(call: Call, dim: int, first: Tensor, second: Tensor) -> Tensor:
    x = call[0]
    change = change_of(x, call.func)
    return maps.chosen_change(change, x.actual, x.reference, dim=dim, first=first, second=second)


def _gather_change(call: Call) -> Any:
    if not depends(call[2]):
        return call.rerun({0: change_of(call[0], call.func)})
    if not depends(call[0]):
        raise rule_error(call.func, "a hard decision chooses among constants")
    return _chosen(call, call[1], call[2].actual, call[2].reference)


def _sorted_change(call: Call) -> Any:
    # topk(x, k, dim), sort(x, dim), sort.stable(x, *, stable, dim)
    place = 2 if "topk" in name_of(call.func) else 1
    return _chosen(call, call.option("dim", place, -1), call.actual[1], call.reference[1]), None


def _where_change(call: Call) -> Any:
    condition, *operands = call.args
    if not depends(condition):
        return call.rerun({p: change_of(call[p], call.func) for p in (1, 2)})
    changes = tuple(change_of(operand, call.func) for operand in operands)
    ends = tuple((actual_of(operand), reference_of(operand)) for operand in operands)
    return maps.switched_change(
        changes,  # type: ignore[arg-type]
        ends,  # type: ignore[arg-type]
        first=condition.actual,
        second=condition.reference,
    )


def _operands_linear(*places: int) -> Callable[[Call], bool]:
    return lambda call: not any(depends(call[place]) for place in places)


def _power_change(call: Call) -> Any:
    base, exponent = call.args
    if depends(base) and not isinstance(exponent, Tensor):
        slope = maps.power_slope(base.actual, base.reference, float(exponent))
        return change_of(base, call.func) * slope
    if depends(exponent) and not isinstance(base, Tensor):
        rate = math.log(base)
        slope = rate * maps.exp_slope(rate * exponent.actual, rate * exponent.reference)
        return change_of(exponent, call.func) * slope
    raise rule_error(call.func, "both its base and its exponent are tensors")


def _is_affine(call: Call) -> bool:
    """Tell whether a batch norm uses stored statistics: the flag ``training`` is off."""
    return not call[5]


# ------------------------------------------------------------------ which operation has which rule


def _table(groups: Mapping[str, Rule]) -> dict[Any, Rule]:
    """Rules by operation, from names separated by blanks; those that this torch lacks are left
    out."""
    return {
        getattr(aten, name): rule
        for names, rule in groups.items()
        for name in names.split()
        if hasattr(aten, name)
    }


RULES = _table(
    {
        # linear in their first operand, whatever the others are
        "view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze expand "
        "select slice narrow split split_with_sizes unsafe_split unsafe_split_with_sizes "
        "unsafe_chunk chunk unbind unfold diagonal alias clone flip roll repeat "
        "view_as_real view_as_complex real imag _conj _conj_physical conj_physical resolve_conj "
        "_neg_view resolve_neg neg sum mean cumsum trace tril triu diag_embed lift_fresh "
        "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d im2col col2im "
        "upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d "
        "upsample_bicubic2d pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d "
        "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d channel_shuffle "
        "unfold_backward _fft_r2c _fft_c2r _fft_c2c index_select index take cat stack zero polar "
        "_to_copy": _linear(0),
        # the gradient passes where the network stops it for its training
        "detach": Rule(lambda call: aten.alias(change_of(call[0], call.func)), lambda call: True),
        # and linear in further ones
        "add sub rsub lerp complex fill slice_scatter select_scatter": _linear(0, 1),
        "constant_pad_nd masked_fill masked_scatter index_put": _linear(0, 2),
        "scatter scatter_add index_add index_copy index_fill": _linear(0, 3),
        "copy": Rule(_copy_change, is_linear=lambda call: True),
        "as_strided": Rule(_strided_change, is_linear=lambda call: True),
        # products
        "mul mm bmm mv dot vdot": _bilinear(0, 1),
        "linear convolution _convolution conv2d": _bilinear(0, 1, 2),
        "addmm baddbmm addmv addbmm addr addcmul": _bilinear(1, 2, 0),
        "div": Rule(_quotient_change, _operands_linear(1)),
        "addcdiv": _spelled(maps.plus_quotient),
        # element-wise, straight between kinks
        "relu leaky_relu hardtanh relu6 clamp clamp_min clamp_max threshold _prelu_kernel "
        "hardsigmoid softshrink hardshrink sign floor ceil round trunc frac nan_to_num": (
            _elementwise(_piecewise)
        ),
        # element-wise, smooth
        "gelu silu mish sigmoid tanh softplus erf erfc sin cos tan asinh atan sinh cosh expm1 "
        "log1p exp2 softsign sinc": _elementwise(_smooth()),
        "log_sigmoid_forward": _elementwise(_smooth(), results=2),
        "elu celu": _elementwise(_smooth(0.0)),
        "hardswish": _elementwise(_smooth(-3.0, 3.0)),
        # element-wise, in closed form
        "exp": _closed(maps.exp_slope),
        "log": _closed(maps.log_slope),
        "log2": _closed(maps.log_slope, 1.4426950408889634),
        "log10": _closed(maps.log_slope, 0.4342944819032518),
        "sqrt": _closed(maps.sqrt_slope),
        "rsqrt": _closed(maps.rsqrt_slope),
        "reciprocal": _closed(maps.reciprocal_slope),
        "square": _closed(lambda a, r: a + r),
        "abs": Rule(_abs_change),
        "pow": Rule(_power_change),
        # softmax and its kind
        "_softmax _safe_softmax": Rule(_softmax_change),
        "_log_softmax": Rule(_log_softmax_change),
        "logsumexp": Rule(_logsumexp_change),
        # norms of activations
        "native_layer_norm": _spelled(maps.layer_norm),
        "_fused_rms_norm": _spelled(maps.rms_norm),
        "native_group_norm": _spelled(maps.group_norm),
        "native_batch_norm": Rule(_spelled(maps.batch_norm).change, _is_affine),
        "cudnn_batch_norm": Rule(
            lambda call: (*_spelled(maps.batch_norm).change(call), None), _is_affine
        ),
        "var": _spelled(maps.variance),
        "std": _spelled(maps.deviation),
        "var_mean": _spelled(maps.variance_and_mean),
        "std_mean": _spelled(maps.deviation_and_mean),
        "linalg_vector_norm": _spelled(maps.vector_norm),
        "glu": _spelled(maps.gated_linear),
        "prod": _spelled(maps.product),
        # choices
        "amax": Rule(_amax_change),
        "amin": _spelled(maps.least),
        "max": Rule(_max_change),
        "min": _spelled(maps.lowest),
        "maximum": _spelled(maps.largest),
        "minimum": _spelled(maps.smallest),
        "max_pool2d_with_indices adaptive_max_pool2d": Rule(_pool_change(2)),
        "max_pool3d_with_indices adaptive_max_pool3d": Rule(_pool_change(3)),
        "topk sort": Rule(_sorted_change),
        "gather": Rule(_gather_change, _operands_linear(2)),
        "where": Rule(_where_change, _operands_linear(0)),
    }
)
