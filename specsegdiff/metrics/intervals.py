"""How far a mean would move with other recordings: bootstrap over groups of items."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import is_finite


def bootstrap_interval(
    values: Float[Tensor, "n"],
    groups: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` ``(n,)`` when whole ``groups`` are drawn anew.

    Items of one source recording stand or fall together, so whole groups are drawn, each with all
    its items; resampling single items would claim too narrow an interval. The order of the items
    does not matter.

    Raises `ShapeError` where lengths differ, a value is not finite, or fewer than two groups leave
    nothing to draw from; `ConfigError` on a level outside (0, 1) or no resamples. Source: the
    cluster bootstrap, Davison and Hinkley 1997, section 3.8.

    >>> low, high = bootstrap_interval(torch.tensor([0.2, 0.4, 0.6]), ["a", "a", "b"])
    >>> round(low, 2), round(high, 2)
    (0.3, 0.6)
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, got {level!r}")
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, got {resamples!r}")
    if values.ndim != 1 or len(values) != len(groups):
        raise ShapeError(
            f"expected one value and one group per item, got values of shape {tuple(values.shape)} "
            f"and {len(groups)} groups"
        )
    if not values.is_floating_point() or not is_finite(values):
        raise ShapeError(
            "expected finite floating values; leave undefined items out, with their groups"
        )
    names = sorted(set(groups))
    if len(names) < 2:
        raise ShapeError(
            f"expected at least two groups, got {names}; one group has no spread to draw from"
        )
    place = {name: index for index, name in enumerate(names)}
    member = torch.tensor([place[name] for name in groups])
    exact = values.detach().cpu().double()
    totals = torch.zeros(len(names), dtype=torch.float64).index_add_(0, member, exact)
    sizes = torch.bincount(member, minlength=len(names))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(names), (resamples, len(names)), generator=generator)
    means = totals[drawn].sum(1) / sizes[drawn].sum(1)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
