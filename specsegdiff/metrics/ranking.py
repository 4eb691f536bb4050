"""How well a ranked list of regions finds the true ones: lists of ids to one score per item.

``predicted`` is ranked, best first, and holds no id twice; ``truth`` holds the true regions, most
covered first. A list that is shorter than ``k`` has misses at its end, so silence gains nothing. An
item without a true region has no score: NaN. The formulas are those of GRIDEX's public evaluation
(arXiv 2606.18738), whose K and number of true regions are both 3.

For scores of all regions, rank them first with `specsegdiff.cells.top_k`: only their order counts,
so a map of negative values has the scores of the same map moved above zero. (The retrieval metrics
of torchmetrics pass over what scores 0 or less.)
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError

Ids: TypeAlias = Sequence[str]
"""Names of regions, best first."""


def recall_at_k(predicted: Ids, truth: Ids, *, k: int = 3) -> float:
    """R@K: share of the true regions among the first ``k`` predicted ones.

    >>> round(recall_at_k(["15", "2", "11", "14"], ["11", "14", "15"]), 4)
    0.6667
    """
    _check(predicted, truth, k)
    return len(set(predicted[:k]) & set(truth)) / len(truth) if truth else math.nan


def ndcg_binary(predicted: Ids, truth: Ids, *, k: int = 3) -> float:
    """nDCG@K where every true region is worth 1: GRIDEX's evaluation.

    The sum of ``1 / log2(place + 1)`` over hits, over that of the best possible list.

    >>> round(ndcg_binary(["2", "15", "11"], ["11", "14", "15"]), 4)
    0.5307
    """
    return _ndcg(predicted, truth, [1] * len(truth), k)


def ndcg_graded(predicted: Ids, truth: Ids, *, k: int = 3) -> float:
    """nDCG@K where the order of the truth counts: GRIDEX's reward, not its evaluation.

    The i-th of n true regions has relevance ``n + 1 - i`` and gain ``2^relevance - 1``: 7, 3 and 1
    for three.

    >>> round(ndcg_graded(["2", "15", "11"], ["11", "14", "15"]), 4)
    0.4398
    """
    return _ndcg(predicted, truth, [2 ** (len(truth) - i) - 1 for i in range(len(truth))], k)


def ranked_average_precision(predicted: Ids, truth: Ids) -> float:
    """Average precision of the whole list: sum of the precision at each hit, over all true regions.

    Its mean over items is mAP. Of a list of K it is at most ``K / len(truth)``.

    >>> round(ranked_average_precision(["2", "15", "11"], ["11", "14", "15"]), 4)
    0.3889
    """
    _check(predicted, truth, 1)
    if not truth:
        return math.nan
    hits = 0
    total = 0.0
    for place, id in enumerate(predicted, start=1):
        if id in truth:
            hits += 1
            total += hits / place
    return total / len(truth)


def evaluate_ranking(
    predicted: Iterable[Ids], truth: Iterable[Ids], *, k: int = 3
) -> dict[str, Float[Tensor, "b"]]:
    """All scores of many lists, each ``(b,)`` in float64, for `bootstrap_interval` and means.

    Raises `ShapeError` unless there is one truth for each prediction, `ConfigError` on an id that
    stands twice in a list.
    """
    lists, truths = list(predicted), list(truth)
    if len(lists) != len(truths):
        raise ShapeError(
            f"expected one list of true regions for each prediction, got {len(lists)} predictions "
            f"and {len(truths)} truths"
        )
    pairs = list(zip(lists, truths, strict=True))
    scores = {
        f"recall_at_{k}": [recall_at_k(p, t, k=k) for p, t in pairs],
        f"ndcg_binary_at_{k}": [ndcg_binary(p, t, k=k) for p, t in pairs],
        f"ndcg_graded_at_{k}": [ndcg_graded(p, t, k=k) for p, t in pairs],
        "average_precision": [ranked_average_precision(p, t) for p, t in pairs],
    }
    return {name: torch.tensor(rows, dtype=torch.float64) for name, rows in scores.items()}


def _ndcg(predicted: Ids, truth: Ids, gains: Sequence[float], k: int) -> float:
    _check(predicted, truth, k)
    if not truth:
        return math.nan
    gain_of = dict(zip(truth, gains, strict=True))
    found = [gain_of.get(id, 0) for id in predicted[:k]]
    return _discounted(found) / _discounted(sorted(gains, reverse=True)[:k])


def _discounted(gains: Iterable[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, start=1))


def _check(predicted: Ids, truth: Ids, k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    for name, ids in (("predicted", predicted), ("truth", truth)):
        if isinstance(ids, str) or len(set(ids)) < len(ids):
            raise ConfigError(f"expected {name} as a list of different ids, got {ids!r}")
