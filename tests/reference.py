"""Slow, obvious formulas that the fast ones are held against: python loops over numpy arrays."""

from itertools import product

import numpy as np


def generalized_dice(prediction, truth, *, weight="square"):
    numerator = denominator = 0.0
    weights = []
    for kind in (True, False):
        size = sum(value == kind for value in truth.flat)
        power = {"square": 2, "simple": 1, "linear": 0}[weight]
        weights.append(1 / size**power if size else None)
    largest = max(value for value in weights if value is not None)
    for kind, own in zip((True, False), weights, strict=True):
        both = sum(
            p == kind and t == kind for p, t in zip(prediction.flat, truth.flat, strict=True)
        )
        total = sum(p == kind for p in prediction.flat) + sum(t == kind for t in truth.flat)
        factor = largest if own is None else own
        numerator += 2 * factor * both
        denominator += factor * total
    return numerator / denominator


def confusion(prediction, truth):
    """Hits, false alarms and misses."""
    pairs = list(zip(prediction.flat, truth.flat, strict=True))
    return (
        sum(p and t for p, t in pairs),
        sum(p and not t for p, t in pairs),
        sum(t and not p for p, t in pairs),
    )


def foreground_dice(prediction, truth):
    hits, alarms, misses = confusion(prediction, truth)
    return 1.0 if hits + alarms + misses == 0 else 2 * hits / (2 * hits + alarms + misses)


def iou(prediction, truth):
    hits, alarms, misses = confusion(prediction, truth)
    return 1.0 if hits + alarms + misses == 0 else hits / (hits + alarms + misses)


def precision(prediction, truth):
    hits, alarms, misses = confusion(prediction, truth)
    if hits + alarms == 0:
        return 1.0 if misses == 0 else 0.0
    return hits / (hits + alarms)


def recall(prediction, truth):
    hits, alarms, misses = confusion(prediction, truth)
    if hits + misses == 0:
        return 1.0 if alarms == 0 else 0.0
    return hits / (hits + misses)


def average_precision(scores, truth):
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores.flat), reverse=True):
        chosen = scores >= threshold
        hits = (chosen & truth).sum()
        area += (hits / truth.sum() - before) * hits / chosen.sum()
        before = hits / truth.sum()
    return area


def roc_auc(scores, truth):
    wins = 0.0
    for high in scores[truth]:
        for low in scores[~truth]:
            wins += 1.0 if high > low else 0.5 if high == low else 0.0
    return wins / (truth.sum() * (~truth).sum())


def bootstrap_interval(values, groups, *, level):
    """Quantiles over every possible draw of as many groups as there are, all equally likely."""
    names = sorted(set(groups))
    members = {n: [v for v, g in zip(values, groups, strict=True) if g == n] for n in names}
    means = [
        np.mean([value for name in draw for value in members[name]])
        for draw in product(names, repeat=len(names))
    ]
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
