"""How well scores tell spoofed recordings from real ones, and how far that would move with others:
area under the ROC curve with a bootstrap over groups."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import is_finite


def auc_interval(
    scores: Float[Tensor, "n"],
    is_spoof: Bool[Tensor, "n"],
    groups: Sequence[str],
    *,
    against: Float[Tensor, "n"] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Area under the ROC curve of ``scores`` ``(n,)``, higher for spoof, and its percentile
    interval when whole ``groups`` are drawn anew.

    The area is the share of pairs of a spoofed and a real item that the scores order, ties counting
    half. With ``against``, scores of the same items by another method, it is the difference of the
    two areas, on the same draws. Draws without both classes are left out.

    Raises `ShapeError` where lengths differ, a score is not finite, a class is missing, or no draw
    has both; `ConfigError` on a level outside (0, 1) or no resamples. Source: the cluster
    bootstrap, Davison and Hinkley 1997, section 3.8, of the Mann-Whitney statistic.

    >>> truth = torch.tensor([True, False, True, False])
    >>> auc_interval(torch.tensor([3.0, 1.0, 2.0, 0.0]), truth, ["a", "a", "b", "b"])
    (1.0, 1.0, 1.0)
    """
    if not 0 < level < 1 or resamples < 1:
        raise ConfigError(
            f"expected a level in (0, 1) and one resample or more, got {level!r}, {resamples!r}"
        )
    names = sorted(set(groups))
    place = {name: index for index, name in enumerate(names)}
    member = torch.tensor([place[name] for name in groups], dtype=torch.long)
    _check(scores, is_spoof, member)
    wins = _wins(scores, is_spoof, member, len(names))
    if against is not None:
        _check(against, is_spoof, member)
        wins = wins - _wins(against, is_spoof, member, len(names))
    spoofed = torch.bincount(member[is_spoof], minlength=len(names)).double()
    real = torch.bincount(member[~is_spoof], minlength=len(names)).double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(names), (resamples, len(names)), generator=generator)
    times = torch.zeros(resamples, len(names), dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    pairs = (times @ spoofed) * (times @ real)
    areas = ((times @ wins) * times).sum(1)[pairs > 0] / pairs[pairs > 0]
    if len(areas) == 0:
        raise ShapeError("no draw of the groups has both classes; pass more recordings")
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = areas.quantile(tail).tolist()
    return float(wins.sum() / (spoofed.sum() * real.sum())), low, high


def _wins(scores: Tensor, is_spoof: Tensor, member: Tensor, count: int) -> Float[Tensor, "g g"]:
    """Ordered pairs between the spoofed items of each group and the real ones of each."""
    spoof, real = scores[is_spoof].double(), scores[~is_spoof].double()
    won = (spoof[:, None] > real).double() + 0.5 * (spoof[:, None] == real)
    rows = torch.zeros(count, len(real), dtype=torch.float64)
    rows.index_add_(0, member[is_spoof], won)
    found = torch.zeros(count, count, dtype=torch.float64)
    return found.index_add_(1, member[~is_spoof], rows)


def _check(scores: Tensor, is_spoof: Tensor, member: Tensor) -> None:
    if scores.ndim != 1 or scores.shape != is_spoof.shape or len(member) != len(scores):
        raise ShapeError(
            f"expected one score, class and group per item, got {tuple(scores.shape)}, "
            f"{tuple(is_spoof.shape)} and {len(member)}"
        )
    if is_spoof.dtype != torch.bool or not scores.is_floating_point() or not is_finite(scores):
        raise ShapeError("expected finite floating scores and bools; leave out items without one")
    if bool(is_spoof.all()) or not bool(is_spoof.any()):
        raise ShapeError(
            f"expected both classes, got {int(is_spoof.sum())} spoofed of {len(scores)} items"
        )
