"""How well a mask or a heatmap finds the true bins: ``(b, f, t)`` to one score per item, ``(b,)``.

Each item is scored alone, so a batch gives the numbers its items give. All functions take
``valid``, the bins that count (such as the band that both members of a pair carry), and raise
`ShapeError` on unequal shapes, masks that are not bool, scores that are not finite, or an item
without a valid bin.

Two masks that are both empty agree: they score 1. Any other division by zero scores 0. A ranking of
items that are all of one kind is undefined: it scores NaN, since 0 would read as a bad map.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import Map, Mask, check_map, check_same_shape, is_finite

Score: TypeAlias = Float[Tensor, "b"]
"""One value per item of a batch, in [0, 1] or NaN."""

Weight: TypeAlias = Literal["square", "simple", "linear"]
"""Class weights of the generalised Dice score: 1 / size^2, 1 / size, or 1."""


class _Counts(NamedTuple):
    hits: Int[Tensor, "b"]
    predicted: Int[Tensor, "b"]
    true: Int[Tensor, "b"]
    bins: Int[Tensor, "b"]


def generalized_dice(
    prediction: Mask,
    truth: Mask,
    *,
    weight: Weight = "square",
    include_background: bool = True,
    valid: Mask | None = None,
) -> Score:
    """Generalised Dice (GDice) of foreground and background, masks ``(b, f, t)`` to ``(b,)``.

    ``2 sum_c w_c |P_c & T_c| / sum_c w_c (|P_c| + |T_c|)`` with ``w_c = 1 / |T_c|^2`` of the item
    itself. A class absent from the item's truth takes the largest finite weight of that item, as in
    MONAI. Without background one class is left, its weight cancels, and the score is
    `foreground_dice`. With 5 % foreground in truth and prediction, chance is 0.0950 and the score
    is ``0.9526 * foreground_dice + 0.0474``.

    Raises `ConfigError` on an unknown weight. Source: Sudre et al. 2017, arXiv 1707.03237.

    >>> truth = torch.zeros(1, 10, 10, dtype=torch.bool)
    >>> truth[:, 0, :5] = True
    >>> generalized_dice(truth, truth), generalized_dice(torch.zeros_like(truth), truth)
    (tensor([1.]), tensor([0.0950]))
    """
    powers = {"square": 2, "simple": 1, "linear": 0}
    if weight not in powers:
        raise ConfigError(f"weight must be 'square', 'simple' or 'linear', got {weight!r}")
    if not include_background:
        return foreground_dice(prediction, truth, valid=valid)
    hits, predicted, true, bins = _counts(prediction, truth, valid)
    overlap = torch.stack([hits, bins - predicted - true + hits], dim=1)
    size = torch.stack([true, bins - true], dim=1)
    total = size + torch.stack([predicted, bins - predicted], dim=1)
    # Sizes are taken relative to the item: the scale cancels, and float32 holds the squares.
    rarity = (bins[:, None] / size.clamp(min=1)) ** powers[weight]
    rarity = torch.where(size > 0, rarity, torch.zeros_like(rarity))
    rarity = torch.where(size > 0, rarity, rarity.amax(dim=1, keepdim=True))
    return 2 * (rarity * overlap).sum(1) / (rarity * total).sum(1)


def foreground_dice(prediction: Mask, truth: Mask, *, valid: Mask | None = None) -> Score:
    """Dice (F1) of the foreground, ``2 |P & T| / (|P| + |T|)``; two empty masks score 1.

    >>> foreground_dice(torch.tensor([[[True, True]]]), torch.tensor([[[True, False]]]))
    tensor([0.6667])
    """
    counts = _counts(prediction, truth, valid)
    return _ratio(2 * counts.hits, counts.predicted + counts.true, counts)


def iou(prediction: Mask, truth: Mask, *, valid: Mask | None = None) -> Score:
    """Intersection over union of the foreground, ``|P & T| / |P | T|``; two empty masks score 1."""
    counts = _counts(prediction, truth, valid)
    return _ratio(counts.hits, counts.predicted + counts.true - counts.hits, counts)


def precision(prediction: Mask, truth: Mask, *, valid: Mask | None = None) -> Score:
    """Share of the predicted bins that are true; 0 where only ``prediction`` is empty."""
    counts = _counts(prediction, truth, valid)
    return _ratio(counts.hits, counts.predicted, counts)


def recall(prediction: Mask, truth: Mask, *, valid: Mask | None = None) -> Score:
    """Share of the true bins that are predicted; 0 where only ``truth`` is empty."""
    counts = _counts(prediction, truth, valid)
    return _ratio(counts.hits, counts.true, counts)


def average_precision(scores: Map, truth: Mask, *, valid: Mask | None = None) -> Score:
    """Area under the precision-recall steps, ``sum_k (R_k - R_{k-1}) P_k`` over distinct scores.

    Tied bins enter together, as in scikit-learn; an item without a true bin scores NaN.

    >>> truth = torch.tensor([[[True, True], [False, False]]])
    >>> average_precision(torch.tensor([[[0.9, 0.5], [0.5, 0.1]]]), truth)
    tensor([0.8333])
    """
    rows = []
    for found, seen in _levels(scores, truth, valid):
        hits = found.diff(prepend=found.new_zeros(1))
        rows.append((hits * (found / seen)).sum() / found[-1])
    return torch.stack(rows)


def roc_auc(scores: Map, truth: Mask, *, valid: Mask | None = None) -> Score:
    """Chance that a true bin outscores another one, ties counting one half (Mann-Whitney U).

    With a spread as ``scores`` and the wrong bins as ``truth``, it tells whether the spread
    predicts the error. An item whose bins are all true or all not true scores NaN.

    >>> truth = torch.tensor([[[True, True], [False, False]]])
    >>> roc_auc(torch.tensor([[[0.9, 0.5], [0.5, 0.1]]]), truth)
    tensor([0.8750])
    """
    rows = []
    for found, seen in _levels(scores, truth, valid):
        passed = seen - found
        hits, misses = (count.diff(prepend=count.new_zeros(1)) for count in (found, passed))
        wins_twice = (hits * (2 * (passed[-1] - passed) + misses)).sum()
        rows.append(wins_twice / (2 * found[-1] * passed[-1]))
    return torch.stack(rows)


def evaluate(
    heatmap: Map,
    truth: Mask,
    *,
    own_top: Mask,
    threshold: float = 0.5,
    valid: Mask | None = None,
) -> dict[str, Score]:
    """All scores of a heatmap ``(b, f, t)``, each ``(b,)``.

    ``own_top`` is the map's own top share, `specsegdiff.masks.top_share` of the same ``valid``.
    Each score of a mask comes as ``<name>_top`` for it, and as ``<name>_threshold`` for the bins
    strictly above ``threshold``, which is SegDiff's rounding at 0.5; `average_precision` and
    `roc_auc` need no mask.
    """
    results = {
        "average_precision": average_precision(heatmap, truth, valid=valid),
        "roc_auc": roc_auc(heatmap, truth, valid=valid),
    }
    for suffix, mask in (("top", own_top), ("threshold", heatmap > threshold)):
        for score in (generalized_dice, foreground_dice, iou, precision, recall):
            results[f"{score.__name__}_{suffix}"] = score(mask, truth, valid=valid)
    return results


def _check(value: Tensor, truth: Tensor, valid: Tensor | None, *, name: str) -> None:
    others = {"truth": truth} if valid is None else {"truth": truth, "valid": valid}
    for label, tensor in ({name: value} | others).items():
        check_map(tensor, name=label)
        if label != "scores" and tensor.dtype != torch.bool:
            raise ShapeError(
                f"expected {label} as a bool mask, got {tensor.dtype}; compare it with a "
                "threshold, or take specsegdiff.masks.top_share"
            )
    if value.ndim != 3:
        raise ShapeError(
            f"expected {name} as (b, f, t), got shape {tuple(value.shape)}; "
            "give one item a batch axis with [None]"
        )
    for label, tensor in others.items():
        check_same_shape(value, tensor, names=(name, label))
    if valid is not None:
        empty = (~valid.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise ShapeError(
                f"valid has no bin in items {empty}; leave them out, they have no score"
            )


def _counts(prediction: Mask, truth: Mask, valid: Mask | None) -> _Counts:
    _check(prediction, truth, valid, name="prediction")
    keep = torch.ones_like(truth) if valid is None else valid
    sets = (prediction & truth & keep, prediction & keep, truth & keep, keep)
    return _Counts(*(bins.flatten(1).sum(1) for bins in sets))


def _ratio(part: Tensor, whole: Tensor, counts: _Counts) -> Score:
    both_empty = counts.predicted + counts.true == 0
    value = part / whole.clamp(min=1)
    return torch.where(both_empty, torch.ones_like(value), value)


def _levels(scores: Map, truth: Mask, valid: Mask | None) -> Iterator[tuple[Tensor, Tensor]]:
    """For each item: true bins, and all bins, at or above each distinct score, highest first."""
    _check(scores, truth, valid, name="scores")
    if not scores.is_floating_point() or not is_finite(scores):
        broken = int((~torch.isfinite(scores)).sum())
        raise ShapeError(
            f"expected scores as a finite floating map, got {scores.dtype} with {broken} values "
            "that are not finite; repair the map first"
        )
    # Item by item: a sum over a batch may add up in another order than a sum over one item.
    for item, (row, true) in enumerate(zip(scores, truth, strict=True)):
        keep = torch.ones_like(true) if valid is None else valid[item]
        ranked, order = row[keep].sort(descending=True)
        last = torch.cat([ranked[1:] != ranked[:-1], keep.new_ones(1)])
        yield true[keep][order].cumsum(0)[last], last.nonzero().squeeze(1) + 1
