"""How well scores tell spoofed from bona fide recordings: the equal error rate."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specsegdiff.errors import ShapeError
from specsegdiff.shapes import is_finite


def eer(scores: Float[Tensor, "n"], is_spoof: Bool[Tensor, "n"]) -> float:
    """Equal error rate of ``scores`` ``(n,)``, higher for spoof, in [0, 1].

    An item is called spoof at or above a threshold. From above the highest score to the lowest, the
    false alarms (bona fide called spoof) rise from 0 to 1 and the misses (spoof not called) fall
    from 1 to 0; the rate is where both are equal. Tied items cross the threshold together, and
    between neighbouring thresholds both rates go along a straight line, as a coin toss between the
    two would: the line meets the diagonal at one point, so the rate is unique, and symmetric in
    the classes. Constant scores have 0.5.

    Raises `ShapeError` where either class is missing or a score is not finite. Source: the
    trapezoidal ROC, Fawcett 2006, doi 10.1016/j.patrec.2005.10.010; the lower convex hull of
    the BOSARIS toolkit gives values that are equal or smaller.

    >>> truth = torch.tensor([True, True, False, False])
    >>> eer(torch.tensor([0.9, 0.4, 0.6, 0.1]), truth), eer(torch.zeros(4), truth)
    (0.5, 0.5)
    """
    if scores.ndim != 1 or scores.shape != is_spoof.shape or is_spoof.dtype != torch.bool:
        raise ShapeError(
            "expected one score and one bool per item, got "
            f"{tuple(scores.shape)} and {tuple(is_spoof.shape)} {is_spoof.dtype}"
        )
    if not scores.is_floating_point() or not is_finite(scores):
        raise ShapeError("expected finite floating scores; leave out items without a score")
    spoofed = int(is_spoof.sum())
    if spoofed in (0, len(scores)):
        raise ShapeError(
            f"expected both classes, got {spoofed} spoofed of {len(scores)} items; "
            "an error rate needs real recordings and fakes"
        )
    ranked, order = scores.detach().sort(descending=True)
    last = torch.cat([ranked[1:] != ranked[:-1], is_spoof.new_ones(1)])
    called = is_spoof[order].double()
    start = called.new_zeros(1)
    hits = torch.cat([start, called.cumsum(0)[last]]) / spoofed
    alarms = torch.cat([start, (1 - called).cumsum(0)[last]]) / (len(scores) - spoofed)
    gap = alarms - (1 - hits)  # rises strictly from -1 to 1
    after = int((gap >= 0).int().argmax())
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(alarms[after - 1] + share * (alarms[after] - alarms[after - 1]))


def eer_by_group(
    scores: Float[Tensor, "n"], is_spoof: Bool[Tensor, "n"], groups: Sequence[str]
) -> dict[str, float]:
    """`eer` of each group of spoofed items, such as a vocoder family, against all bona fide ones.

    ``groups`` names each item's group; the entries of bona fide items are not read, since every
    group is measured against the same recordings. Groups come in alphabetical order.

    >>> truth = torch.tensor([True, True, False])
    >>> eer_by_group(torch.tensor([0.9, 0.1, 0.5]), truth, ["gan", "dsp", ""])
    {'dsp': 1.0, 'gan': 0.0}
    """
    if len(groups) != len(scores):
        raise ShapeError(f"expected one group per item, got {len(groups)} for {len(scores)} scores")
    eer(scores, is_spoof)  # the whole set must be sound before any part of it
    found = sorted({group for group, spoof in zip(groups, is_spoof.tolist(), strict=True) if spoof})
    rates = {}
    for name in found:
        inside = torch.tensor([group == name for group in groups], device=is_spoof.device)
        keep = inside | ~is_spoof
        rates[name] = eer(scores[keep], is_spoof[keep])
    return rates
