"""The linear maps of DeepLIFT: how the change of a result follows from the change of an operand.

Plain functions of tensors at two ends, ``a`` at the item and ``r`` at the reference. Each gives a
map that is linear in the change Δ and exact: put ``Δ = a - r`` in, and ``f(a) - f(r)`` comes out.
DeepLIFT's rescale rule (Shrikumar et al. 2017, arXiv 1704.02685, section 3.5.1) is the one for
element-wise functions; where the paper has none, the map is stated with its function.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Dims = int | Sequence[int] | None

# ------------------------------------------------------------------ slopes, element by element


def secant(
    function: Callable[[Tensor], Tensor], a: Tensor, r: Tensor, *, rise: Tensor | None = None
) -> Tensor:
    """``(f(a) - f(r)) / (a - r)``, and f' where both are equal, for piecewise linear functions.

    Differences of their results carry no more rounding than those of their operands. ``rise`` is
    ``f(a) - f(r)``, where it is known.
    """
    gap = a - r
    same = gap == 0
    rise = function(a) - function(r) if rise is None else rise
    return torch.where(same, derivative(function, a), rise / torch.where(same, 1, gap))


def smooth_secant(
    function: Callable[[Tensor], Tensor],
    a: Tensor,
    r: Tensor,
    *,
    kinks: Sequence[float] = (),
    rise: Tensor | None = None,
) -> Tensor:
    """``(f(a) - f(r)) / (a - r)`` of a function that is smooth on the scale of 1, save ``kinks``.

    Over a small gap h, a difference of rounded values errs by ε / h, and the derivative at the
    midpoint by h² f''' / 24. They meet near the cube root of ε, the machine precision; below it the
    midpoint is taken, unless a kink lies between both ends. ``rise`` is as in `secant`.
    """
    gap = a - r
    near = gap.abs() < torch.finfo(a.dtype).eps ** (1 / 3)
    for kink in kinks:
        near = near & ((a - kink) * (r - kink) > 0)
    near = near | (gap == 0)
    rise = function(a) - function(r) if rise is None else rise
    slope = rise / torch.where(near, 1, gap)
    return torch.where(near, derivative(function, (a + r) / 2), slope)


def derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """f' of an element-wise function, by autograd."""
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        result = function(point)
        if not result.requires_grad:
            return torch.zeros_like(at)
        (slope,) = torch.autograd.grad(result.sum(), point)
    return slope


def exp_slope(a: Tensor, r: Tensor) -> Tensor:
    """``(exp a - exp r) / (a - r)``: the logarithmic mean of both exponentials.

    0 where an end is minus infinity.
    """
    low, gap = torch.minimum(a, r), (a - r).abs()
    near = low.exp() * torch.where(gap > 0, torch.expm1(gap.clamp_max(1)) / gap, 1)
    far = (a.exp() - r.exp()).abs() / gap
    slope = torch.where(gap < 1, near, far)
    return torch.where(torch.isinf(low), 0, slope)


def log_slope(a: Tensor, r: Tensor) -> Tensor:
    """``(log a - log r) / (a - r)``, one over the logarithmic mean."""
    low, gap = torch.minimum(a, r), (a - r).abs()
    return torch.where(gap > 0, torch.log1p(gap / low) / gap, 1 / low)


def sqrt_slope(a: Tensor, r: Tensor) -> Tensor:
    """``(√a - √r) / (a - r) = 1 / (√a + √r)``; 0 where both are 0."""
    total = a.sqrt() + r.sqrt()
    return torch.where(total > 0, 1 / total, 0)


def rsqrt_slope(a: Tensor, r: Tensor) -> Tensor:
    """``(1/√a - 1/√r) / (a - r) = -1 / (√a √r (√a + √r))``."""
    roots = a.sqrt(), r.sqrt()
    return -1 / (roots[0] * roots[1] * (roots[0] + roots[1]))


def reciprocal_slope(a: Tensor, r: Tensor) -> Tensor:
    """``(1/a - 1/r) / (a - r) = -1 / (a r)``."""
    return -1 / (a * r)


def power_slope(a: Tensor, r: Tensor, exponent: float) -> Tensor:
    """``(a^p - r^p) / (a - r)``."""
    if exponent == int(exponent) and 0 <= exponent <= 16:
        count = int(exponent)
        terms = [a**k * r ** (count - 1 - k) for k in range(count)]
        return torch.stack(terms).sum(0) if terms else torch.zeros_like(a)
    closed = {0.5: sqrt_slope, -0.5: rsqrt_slope, -1.0: reciprocal_slope}
    if exponent in closed:
        return closed[exponent](a, r)
    gap, middle = a - r, (a + r) / 2
    # as in `smooth_secant`, on the scale of the operands
    near = gap.abs() <= torch.finfo(a.dtype).eps ** (1 / 3) * middle.abs()
    far = (a**exponent - r**exponent) / torch.where(near, 1, gap)
    slope = torch.where(near, exponent * middle ** (exponent - 1), far)
    return torch.where((a == 0) & (r == 0), 0, slope)


def abs_change(change: Tensor, a: Tensor, r: Tensor) -> Tensor:
    """Change of ``|z|``, real or complex: ``Re(conj(a + r) Δ) / (|a| + |r|)``; 0 where both are
    0."""
    total = a.abs() + r.abs()
    if not a.is_complex():
        return change * torch.where(total > 0, (a + r) / total, 0)
    change = ((a + r).conj() * change).real
    return change * torch.where(total > 0, 1 / total, 0)


# ------------------------------------------------------------------ softmax and its kind


def logsumexp_change(change: Tensor, a: Tensor, r: Tensor, dims: Dims, *, keepdim: bool) -> Tensor:
    """Change of ``L = log Σ exp x``: ``Σ ρ Δ / Σ ρ``, ρ the logarithmic mean of both softmaxes.

    Both softmaxes sum to one, so their differences ``ρ (Δ - ΔL)`` sum to zero. (Index numbers are
    taken apart by the same mean, without a rest: Ang 2004, Energy Policy 32.)
    """
    weights = log_mean_softmax(a, r, dims)
    return (weights * change).sum(_listed(a, dims), keepdim=keepdim) / (
        weights.sum(_listed(a, dims), keepdim=keepdim).clamp_min(torch.finfo(a.dtype).tiny)
    )


def log_softmax_change(change: Tensor, a: Tensor, r: Tensor, dim: int) -> Tensor:
    """Change of the log-softmax: ``Δ - ΔL``."""
    return change - logsumexp_change(change, a, r, dim, keepdim=True)


def softmax_change(change: Tensor, a: Tensor, r: Tensor, dim: int) -> Tensor:
    """Change of the softmax: ``ρ (Δ - ΔL)``, its Jacobian at the logarithmic mean of both."""
    return log_mean_softmax(a, r, dim) * log_softmax_change(change, a, r, dim)


def log_mean_softmax(a: Tensor, r: Tensor, dims: Dims) -> Tensor:
    """Logarithmic mean of both softmaxes, 0 where an end is masked with minus infinity."""
    logs = [x - x.logsumexp(_listed(x, dims), keepdim=True) for x in (a, r)]
    return exp_slope(*(x.nan_to_num(nan=-math.inf, neginf=-math.inf) for x in logs))


# ------------------------------------------------------------------ choices


def winner_change(
    change: Tensor, a: Tensor, r: Tensor, *, dim: int, first: Tensor, second: Tensor
) -> Tensor:
    """Change of a maximum along ``dim`` whose winners are ``first`` at a and ``second`` at r.

    The whole change goes to the winner of the end with the larger maximum, as in captum and shap.
    The other end's value there is at most its own maximum, so the winner changes by at least as
    much as the maximum, and the share lies in [0, 1].
    """
    highest = a.gather(dim, first), r.gather(dim, second)
    winner = torch.where(highest[0] >= highest[1], first, second)
    gap = (a - r).gather(dim, winner)
    share = torch.where(gap == 0, 1, (highest[0] - highest[1]) / gap)
    return change.gather(dim, winner) * share


def chosen_change(
    change: Tensor, a: Tensor, r: Tensor, *, dim: int, first: Tensor, second: Tensor
) -> Tensor:
    """Change of entries chosen along ``dim``, those at ``first`` in a and at ``second`` in r.

    The mean of what both choices bring, plus what the change of choice adds, ``((a + r)[first] -
    (a + r)[second]) / 2``. A choice jumps, and no map of the chosen entries alone is both linear
    and bounded; so the jump is spread over all entries of its line in proportion to ``(a - r)²``,
    which is the least change of the map that completes the sum (Broyden's update).
    """
    kept = (change.gather(dim, first) + change.gather(dim, second)) / 2
    total = a + r
    jump = (total.gather(dim, first) - total.gather(dim, second)) / 2
    # lines beyond the indices are not chosen from
    part = tuple(
        slice(None) if axis == dim % a.ndim else slice(size) for axis, size in enumerate(jump.shape)
    )
    return kept + jump * _share_of_line((a - r)[part], change[part], dim)


def switched_change(
    changes: tuple[Tensor, Tensor],
    ends: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    first: Tensor,
    second: Tensor,
) -> Tensor:
    """Change of ``where(condition, x, y)`` whose condition is ``first`` at a and ``second`` at r,
    with the two operands in ``changes`` and their ends in ``ends``: as `chosen_change`."""
    shape = torch.broadcast_shapes(first.shape, *(change.shape for change in changes))
    stacked = [
        torch.stack([part.expand(shape) for part in pair])
        for pair in (changes, *zip(*ends, strict=True))
    ]
    choices = [(~condition).long().expand(shape)[None] for condition in (first, second)]
    return chosen_change(*stacked, dim=0, first=choices[0], second=choices[1])[0]


def _share_of_line(gap: Tensor, change: Tensor, dim: int) -> Tensor:
    power = gap.square().sum(dim, keepdim=True)
    return (gap * change).sum(dim, keepdim=True) * torch.where(power > 0, 1 / power, 0)


# ------------------------------------------------------------------ operations in terms of others


def normalised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """``x`` less its mean, over its standard deviation, along ``dims``."""
    centred = x - x.mean(dims, keepdim=True)
    return centred * ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, None, None]:
    """LayerNorm; no change for the mean and deviation that the kernel returns beside it."""
    y = normalised(x, list(range(-len(shape), 0)), eps)
    return _affine(y, weight, bias, channels_at=None), None, None


def rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, None]:
    """RMSNorm, with its kernel's second result."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * ((x * x).mean(list(range(-len(shape), 0)), keepdim=True) + eps).rsqrt()
    return _affine(y, weight, None, channels_at=None), None


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    channels: int,
    size: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, None, None]:
    """GroupNorm, with its kernel's arguments."""
    y = normalised(x.reshape(n, groups, -1), [2], eps).reshape(x.shape)
    return _affine(y, weight, bias, channels_at=1), None, None


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, None, None]:
    """Batch norm; with ``training`` by its own statistics, as InstanceNorm calls it."""
    if training or mean is None or variance is None:
        y = normalised(x, [axis for axis in range(x.ndim) if axis != 1], eps)
    else:
        shape = (-1, *(1,) * (x.ndim - 2))
        y = (x - mean.reshape(shape)) * (variance.reshape(shape) + eps).rsqrt()
    return _affine(y, weight, bias, channels_at=1), None, None


def variance(
    x: Tensor, dims: Dims = None, *, correction: float | None = 1, keepdim: bool = False
) -> Tensor:
    """Variance along ``dims``."""
    axes = _listed(x, dims)
    centred = x - x.mean(axes, keepdim=True)
    count = math.prod(x.shape[axis] for axis in axes)
    correction = 1 if correction is None else correction
    return (centred * centred).sum(axes, keepdim=keepdim) / (count - correction)


def deviation(
    x: Tensor, dims: Dims = None, *, correction: float | None = 1, keepdim: bool = False
) -> Tensor:
    """Standard deviation along ``dims``."""
    return variance(x, dims, correction=correction, keepdim=keepdim).sqrt()


def variance_and_mean(x: Tensor, dims: Dims = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Variance and mean along ``dims``."""
    mean = x.mean(_listed(x, dims), keepdim=options.get("keepdim", False))
    return variance(x, dims, **options), mean


def deviation_and_mean(x: Tensor, dims: Dims = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean along ``dims``."""
    spread, mean = variance_and_mean(x, dims, **options)
    return spread.sqrt(), mean


def vector_norm(
    x: Tensor,
    order: float | None = 2,
    dims: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Norm along ``dims``, of any order."""
    size, axes = x.abs(), _listed(x, dims)
    if order == math.inf:
        return size.amax(axes, keepdim=keepdim)
    if order == -math.inf:
        return size.amin(axes, keepdim=keepdim)
    if order == 1:
        return size.sum(axes, keepdim=keepdim)
    order = 2 if order is None else order
    if order == 2:
        return (size * size).sum(axes, keepdim=keepdim).sqrt()
    return (size**order).sum(axes, keepdim=keepdim) ** (1 / order)


def gated_linear(x: Tensor, dim: int = -1) -> Tensor:
    """GLU: one half of the channels times the sigmoid of the other."""
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()


def quotient(x: Tensor, y: Tensor) -> Tensor:
    """``x / y`` as a product with a reciprocal."""
    return x * y.reciprocal()


def plus_quotient(x: Tensor, y: Tensor, z: Tensor, *, value: float = 1) -> Tensor:
    """``x + value * y / z``."""
    return x + value * quotient(y, z)


def largest(x: Tensor, y: Tensor) -> Tensor:
    """Element-wise maximum as a maximum along an axis."""
    return torch.stack(torch.broadcast_tensors(x, y)).amax(0)


def smallest(x: Tensor, y: Tensor) -> Tensor:
    """Element-wise minimum."""
    return -largest(-x, -y)


def least(x: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    """Minimum along several axes."""
    return -(-x).amax(_listed(x, dim), keepdim=keepdim)


def lowest(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Minimum of all elements, or along one axis, where the kernel returns places too."""
    return least(x) if dim is None else (least(x, dim, keepdim), None)


def product(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Product along ``dim``, one factor after the other."""
    factors = x.unbind(dim)
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result.unsqueeze(dim) if keepdim else result


def _affine(
    y: Tensor, weight: Tensor | None, bias: Tensor | None, *, channels_at: int | None
) -> Tensor:
    shape = (-1, *(1,) * (y.ndim - channels_at - 1)) if channels_at is not None else None
    if weight is not None:
        y = y * (weight if shape is None else weight.reshape(shape))
    if bias is not None:
        y = y + (bias if shape is None else bias.reshape(shape))
    return y


def _listed(x: Tensor, dims: Dims) -> list[int]:
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return list(range(x.ndim))
    return [dims] if isinstance(dims, int) else list(dims)
