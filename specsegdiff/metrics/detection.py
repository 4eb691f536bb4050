"""How well scores tell spoofed from bona fide recordings: the equal error rate, and ASVspoof's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
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
    spoofed = _check(scores, is_spoof)
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


# ------------------------------------------------------------------ as the official scripts count

P_SPOOF = 0.05
"Prior of a spoofed trial in ASVspoof 2019 and 2021."
P_TARGET, P_NONTARGET = (1 - P_SPOOF) * 0.99, (1 - P_SPOOF) * 0.01
"Priors of the claimed speaker and of another one."
COST_MISS, COST_ALARM = 1.0, 10.0
"Cost of a refused target; of an accepted other speaker, or spoof."


@dataclass(frozen=True)
class ASVErrors:
    """What the speaker verification behind a detector does wrong, at its threshold; in [0, 1]."""

    miss: float
    "Share of targets that it refuses."
    alarm: float
    "Share of other speakers that it accepts."
    alarm_spoof: float
    "Share of spoofed trials that it accepts."

    def __post_init__(self) -> None:
        for name in ("miss", "alarm", "alarm_spoof"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"ASVErrors.{name} must lie in [0, 1], got {getattr(self, name)!r}; "
                    "divide percent by 100"
                )


def asv_errors(
    target: Float[Tensor, "n"], nontarget: Float[Tensor, "m"], spoof: Float[Tensor, "k"]
) -> ASVErrors:
    """Errors at the threshold where `asvspoof_eer` of targets and other speakers is, from the
    verification's scores, higher for the target: such as those that the organisers published.

    As there, the score at the threshold is the last one refused in the equal error rate, and
    accepted here.

    >>> asv_errors(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.5]))
    ASVErrors(miss=0.0, alarm=0.5, alarm_spoof=0.5)
    """
    for name, scores in (("target", target), ("nontarget", nontarget), ("spoof", spoof)):
        if scores.ndim != 1 or len(scores) == 0 or not is_finite(scores):
            raise ShapeError(f"expected finite {name} scores (n,), got {tuple(scores.shape)}")
    miss, alarm, thresholds = _det_curve(target, nontarget)
    threshold = thresholds[int((miss - alarm).abs().argmin())]
    share = [float((scores.double() >= threshold).double().mean()) for scores in (nontarget, spoof)]
    return ASVErrors(float((target.double() < threshold).double().mean()), *share)


def asvspoof_eer(scores: Float[Tensor, "n"], is_spoof: Bool[Tensor, "n"]) -> float:
    """Equal error rate as ASVspoof's scripts give it: the mean of both error rates at the threshold
    where they are nearest, in [0, 1]; scores are higher for spoof.

    Tied items cross the threshold one by one, bona fide ones first, and nothing lies between two
    thresholds: `eer` is symmetric in the classes, this one is comparable with published tables.

    >>> truth = torch.tensor([True, True, False, False, False])
    >>> round(asvspoof_eer(torch.tensor([0.9, 0.4, 0.6, 0.2, 0.1]), truth), 4)
    0.4167
    """
    _check(scores, is_spoof)
    miss, alarm, _ = _det_curve(-scores[~is_spoof], -scores[is_spoof])
    place = int((miss - alarm).abs().argmin())
    return float((miss[place] + alarm[place]) / 2)


def min_tdcf(
    scores: Float[Tensor, "n"],
    is_spoof: Bool[Tensor, "n"],
    asv: ASVErrors,
    *,
    edition: Literal[2019, 2021],
) -> float:
    """Smallest normalised tandem detection cost over all thresholds; scores are higher for spoof.

    2019: ``(C1 miss + C2 alarm) / min(C1, C2)``, Kinnunen et al. 2018 (arXiv 1804.09618) with one
    verification for all. 2021: ``(C0 + C1 miss + C2 alarm) / (C0 + min(C1, C2))``, Kinnunen et al.
    2020 (arXiv 2007.05979), Eqs. 10 and 11; C0 is the cost with a perfect detector, and 1 means
    that the detector is of no use. Raises `ConfigError` where the verification errs so often that
    the cost means nothing.

    >>> truth, asv = torch.tensor([True, True, False, False]), ASVErrors(0.05, 0.05, 0.6)
    >>> min_tdcf(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth, asv, edition=2019)
    0.0
    >>> round(min_tdcf(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth, asv, edition=2021), 4)
    0.1472
    """
    _check(scores, is_spoof)
    if edition not in (2019, 2021):
        raise ConfigError(f"edition must be 2019 or 2021, got {edition!r}")
    if len(scores.unique()) < 3:
        raise ShapeError("expected soft scores, got at most two values; pass scores, no decisions")
    always = P_TARGET * COST_MISS * asv.miss + P_NONTARGET * COST_ALARM * asv.alarm
    c0 = always if edition == 2021 else 0.0
    c1 = P_TARGET * COST_MISS - always
    c2 = P_SPOOF * COST_ALARM * asv.alarm_spoof
    if c1 < 0 or not c0 + min(c1, c2) > 0:
        raise ConfigError(
            f"{asv} leaves a detector nothing to save (C1 = {c1:.4f}, C2 = {c2:.4f}); "
            "check the scores of the verification"
        )
    miss, alarm, _ = _det_curve(-scores[~is_spoof], -scores[is_spoof])
    return float((c0 + c1 * miss + c2 * alarm).min() / (c0 + min(c1, c2)))


def _check(scores: Tensor, is_spoof: Tensor) -> int:
    """Number of spoofed items."""
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
    return spoofed


def _det_curve(
    accept: Float[Tensor, "n"], refuse: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "t"], Float[Tensor, "t"], Float[Tensor, "t"]]:
    """Misses of what is to be accepted, false alarms, and the score at or below which items are
    refused: from none on, item by item, tied ones in the order given."""
    ranked, order = torch.cat([accept, refuse]).detach().double().sort(stable=True)
    good = (order < len(accept)).double()
    start = ranked.new_zeros(1)
    miss = torch.cat([start, good.cumsum(0) / len(accept)])
    # whole numbers until the division, so that equal rates are equal
    alarm = (len(refuse) - torch.cat([start, (1 - good).cumsum(0)])) / len(refuse)
    return miss, alarm, torch.cat([ranked[:1] - 0.001, ranked])
