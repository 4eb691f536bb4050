"""How well a text and the regions that it points at belong together.

Three questions: do the regions lie where the true ones do (`evaluate_regions`), are the concepts
right (`concept_accuracy`), and does the text fit the very region that it points at, better than it
would fit any other (`agreement`)? FiFa (arXiv 2510.20531) answers the first; its reviewers missed
the last. A text on "the vowel, in the low band" is true of half of all regions: only what goes
beyond the same texts shuffled across the regions is worth anything.

What is compared must be able to differ. The text is written from the suspicious recording alone;
the truth has to come from elsewhere, such as a genuine twin. What follows from the place of the
region, its band for one, agrees by construction.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.cells import Box
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.metrics.intervals import bootstrap_interval
from specsegdiff.metrics.segmentation import generalized_dice


@dataclass(frozen=True)
class Agreement:
    """How far texts fit their own regions, beside the same texts on shuffled regions."""

    items: int
    "Texts that could be shuffled: those with another one in their stratum."
    observed: float
    "Mean score of a text on its own region."
    null: float
    "The same, expected of texts that are shuffled within their strata."
    above: float
    "The difference."
    low: float
    "Lower end of the interval of the difference."
    high: float
    "Upper end."
    p_value: float | None
    """Chance that shuffled texts fit as well, at least ``1 / (permutations + 1)``; None where a
    stratum joins groups, since what depends on each other cannot be shuffled apart."""


def agreement(
    said: Sequence[str],
    truth: Sequence[str],
    *,
    groups: Sequence[str],
    strata: Sequence[str],
    score: Callable[[str, str], float] | None = None,
    permutations: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Compare what each text says of its region, ``said[i]``, with the truth of it, ``truth[i]``.

    ``score(said, true)`` is 1 where they are equal, unless another is given. Texts are shuffled
    within ``strata``: with the recording as stratum the null keeps what a text knows of its
    recording, with the place of the region as stratum it keeps what the place alone tells. A text
    that is alone in its stratum cannot be shuffled and does not count. The null is exact: the mean
    score of each text over all regions of its stratum. The interval is a bootstrap over ``groups``,
    which must hold all that depends on each other, of the first-order share of each item in the
    difference (the influence function of a V-statistic). The p-value is one-sided, by Monte Carlo,
    with the observed order counted in (Phipson and Smyth 2010, Eq. 2); strata of one group and
    length are shuffled alike, by their order, so that ten copies of a recording count as one: give
    the regions of each in the same order.

    Raises `ShapeError` on unequal lengths, where no text can be shuffled, and where all texts that
    can are of one group; `ConfigError` on fewer than one permutation.

    >>> words, recordings = ["vowel", "consonant"] * 5, [f"r{i // 2}" for i in range(10)]
    >>> found = agreement(words, words, groups=recordings, strata=recordings)
    >>> found.observed, found.null, found.above
    (1.0, 0.5, 0.5)
    """
    if not len(said) == len(truth) == len(groups) == len(strata):
        raise ShapeError(
            f"expected one truth, group and stratum for each text, got {len(said)} texts, "
            f"{len(truth)}, {len(groups)} and {len(strata)}"
        )
    if permutations < 1:
        raise ConfigError(f"permutations must be at least 1, got {permutations}")
    fits = score or (lambda one, other: float(one == other))
    members: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(strata):
        members[name].append(place)
    rng = np.random.default_rng(seed)
    shuffled, observed, null = np.zeros(permutations), 0.0, 0.0
    gains: dict[int, float] = {}
    orders: dict[tuple[str, int], NDArray[np.int64]] = {}
    within = True
    for places in members.values():
        if len(places) < 2:
            continue
        table = _table([said[i] for i in places], [truth[i] for i in places], fits)
        own, rows, columns = np.diag(table), table.mean(1), table.mean(0)
        # first-order share of each item in the difference: what suits every text, or every region,
        # is no news and widens no interval
        gains |= dict(zip(places, own - rows - columns + table.mean(), strict=True))
        observed, null = observed + float(own.sum()), null + float(rows.sum())
        within = within and len({groups[i] for i in places}) == 1
        if within:
            alike = groups[places[0]], len(places)
            if alike not in orders:
                start = np.tile(np.arange(len(places)), (permutations, 1))
                orders[alike] = rng.permuted(start, axis=1)
            shuffled += table[np.arange(len(places)), orders[alike]].sum(1)
    if not gains:
        raise ShapeError(
            "no text can be shuffled: each is alone in its stratum; take coarser strata"
        )
    places = sorted(gains)
    # sums of the same scores in another order differ in the last bits
    reached = int((shuffled >= observed - 1e-9 * max(1.0, abs(observed))).sum())
    above = torch.tensor([gains[place] for place in places], dtype=torch.float64)
    low, high = bootstrap_interval(above, [groups[place] for place in places], level=level)
    return Agreement(
        items=len(places),
        observed=observed / len(places),
        null=null / len(places),
        above=float(above.mean()),
        low=low,
        high=high,
        p_value=(1 + reached) / (1 + permutations) if within else None,
    )


def concept_accuracy(
    said: Sequence[Mapping[str, str]],
    truth: Sequence[Mapping[str, str]],
    *,
    distance: Callable[[str, str], int],
) -> dict[str, dict[str, float]]:
    """Share of right concepts and mean distance to the true one in the tree, by axis.

    ``exact`` is the share of equal names, ``distance`` the mean number of edges between the two
    (`specsegdiff.narration.concepts.ConceptTree.distance`), and ``near`` the share within one edge:
    the parent, a child. Says what is right, not that it is worth saying: see `agreement`. Raises
    `ShapeError` on unequal lengths or none, `ConfigError` where the axes of two rows differ.

    >>> from specsegdiff.narration.concepts import speech_concepts
    >>> concept_accuracy([{"phone": "stop"}], [{"phone": "consonant"}],
    ...                  distance=speech_concepts().distance)
    {'phone': {'exact': 0.0, 'near': 1.0, 'distance': 1.0}}
    """
    if len(said) != len(truth) or not said:
        raise ShapeError(f"expected one truth for each row, got {len(said)} and {len(truth)}")
    axes = list(truth[0])
    if strange := [row for row in (*said, *truth) if set(row) != set(axes)]:
        raise ConfigError(f"expected the axes {axes} in every row, got {list(strange[0])}")
    scores = {}
    for axis in axes:
        edges = [distance(s[axis], t[axis]) for s, t in zip(said, truth, strict=True)]
        scores[axis] = {
            "exact": sum(edge == 0 for edge in edges) / len(edges),
            "near": sum(edge <= 1 for edge in edges) / len(edges),
            "distance": sum(edges) / len(edges),
        }
    return scores


def match(overlap: Float[Tensor, "n m"]) -> list[tuple[int, int]]:
    """Pair rows and columns so that the sum of their overlaps is highest, ``min(n, m)`` pairs.

    Pairs that do not overlap at all are left out. Source: the assignment problem (Kuhn 1955),
    through `scipy.optimize.linear_sum_assignment`. Raises `ShapeError` on overlaps that are not
    finite.

    >>> match(torch.tensor([[0.5, 0.4], [0.4, 0.0]]))
    [(0, 1), (1, 0)]
    """
    from scipy.optimize import linear_sum_assignment

    if overlap.ndim != 2 or not bool(overlap.isfinite().all()):
        raise ShapeError(f"expected finite overlaps (n, m), got shape {tuple(overlap.shape)}")
    rows, columns = linear_sum_assignment(overlap.double().numpy(), maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if overlap[row, column] > 0]


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, by area: seconds times Hz.

    >>> round(box_iou(Box(0.0, 1.0, 0.0, 1000.0), Box(0.5, 1.5, 0.0, 1000.0)), 4)
    0.3333
    """
    wide = min(first.t1, second.t1) - max(first.t0, second.t0)
    tall = min(first.f1, second.f1) - max(first.f0, second.f0)
    shared = max(0.0, wide) * max(0.0, tall)
    sizes = [(box.t1 - box.t0) * (box.f1 - box.f0) for box in (first, second)]
    return shared / (sum(sizes) - shared)


def evaluate_boxes(predicted: Sequence[Box], truth: Sequence[Box]) -> dict[str, float]:
    """Scores of boxes against true ones after the best matching, as `evaluate_regions` has them,
    but for GDice, which counts bins."""
    overlap = torch.tensor(
        [[box_iou(p, t) for t in truth] for p in predicted], dtype=torch.float64
    ).reshape(len(predicted), len(truth))
    return _scores(overlap, match(overlap))


def evaluate_regions(
    predicted: Bool[Tensor, "n f t"], truth: Bool[Tensor, "m f t"]
) -> dict[str, float]:
    """Scores of regions, a mask each, against the true ones after the best matching by IoU.

    ``iou`` and ``gdice`` are sums over matched pairs, divided by the larger number of regions: a
    region that is missing or too many scores 0. (`specsegdiff.metrics.generalized_dice` would give
    0.095 there, for its background.) ``precision``, ``recall`` and ``f1`` count pairs of an IoU of
    at least 0.5. Two empty lists agree: 1. Raises `ShapeError` where the masks do not fit, are not
    bool, or a region holds no bin.

    >>> mask = torch.zeros(2, 10, 10, dtype=torch.bool)
    >>> mask[0, :2], mask[1, 5:] = True, True
    >>> evaluate_regions(mask, mask[1:])["iou"], evaluate_regions(mask, mask[1:])["recall"]
    (0.5, 1.0)
    """
    for name, masks in (("predicted", predicted), ("truth", truth)):
        if masks.ndim != 3 or masks.dtype is not torch.bool:
            raise ShapeError(
                f"expected {name} as bool masks (n, f, t), got {tuple(masks.shape)} {masks.dtype}"
            )
        if not bool(masks.flatten(1).any(1).all()):
            raise ShapeError(f"a region of {name} holds no bin; leave it out")
    if predicted.shape[1:] != truth.shape[1:]:
        raise ShapeError(
            f"expected masks on one plane, got {tuple(predicted.shape)} and {tuple(truth.shape)}"
        )
    # counts of bins are exact in float64
    rows, columns = predicted.flatten(1).double(), truth.flatten(1).double()
    shared = rows @ columns.T
    overlap = shared / (rows.sum(1)[:, None] + columns.sum(1) - shared)
    pairs = match(overlap)
    gdice = [float(generalized_dice(predicted[i][None], truth[j][None])) for i, j in pairs]
    most = max(len(predicted), len(truth))
    return _scores(overlap, pairs) | {"gdice": sum(gdice) / most if most else 1.0}


def _scores(overlap: Tensor, pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    count, wanted = overlap.shape
    found = [float(overlap[pair]) for pair in pairs]
    hits = sum(value >= 0.5 for value in found)
    most = max(count, wanted)
    if not most:
        return dict.fromkeys(("iou", "precision", "recall", "f1"), 1.0)
    return {
        "iou": sum(found) / most,
        "precision": hits / count if count else 0.0,
        "recall": hits / wanted if wanted else 0.0,
        "f1": 2 * hits / (count + wanted),
    }


def _table(
    said: Sequence[str], truth: Sequence[str], score: Callable[[str, str], float]
) -> NDArray[np.float64]:
    """Score of every text of a stratum on every region of it; each pair of words is asked once."""
    table = {(one, other): score(one, other) for one in set(said) for other in set(truth)}
    if strange := [pair for pair, value in table.items() if not math.isfinite(value)]:
        raise ShapeError(f"the score of {strange[0]} is not finite; leave such items out")
    return np.array([[table[one, other] for other in truth] for one in said])
