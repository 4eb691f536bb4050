"""Maps against true masks: a method is a callable, and none is known here by name."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from specsegdiff.data.alignment import dtw_align
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.errors import ShapeError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.masks import MaskConfig, ground_truth, shared_band, top_share
from specsegdiff.metrics import (
    average_precision,
    bootstrap_interval,
    foreground_dice,
    generalized_dice,
    iou,
)
from specsegdiff.shapes import Map, Mask, Wave

SCORES = ("gdice", "foreground_dice", "iou", "average_precision")
"Scores of every row, in percent."

Method: TypeAlias = Callable[[Pair, Wave], Map]
"From a pair and its level-matched fake ``(n,)`` to a map ``(f, t)``; most need the fake alone."

Row: TypeAlias = dict[str, Any]
"Plain data for JSON: what the pair is, and what the map scored on it."


def score_maps(
    predict: Method | Mapping[str, Method],
    pairs: Sequence[Pair],
    *,
    masks: MaskConfig | None = None,
    stft: StftConfig | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Row]:
    """Score the map of each pair at its own top share against the true mask: one row a pair.

    Several methods, by name, are scored on each pair in turn: one row a pair and method, with the
    name in its field ``method``. A row holds id, vocoder, family, split, source_group (the id where
    a pair has none), vocoder_seen, and `SCORES` in percent; average_precision ranks all bins and is
    None where the truth is empty. Only the band that both members carry counts; a ``'dtw'`` pair is
    aligned first. ``progress`` is called with (pairs done, all). Raises `ShapeError` where a map
    does not lie on the fake's axes, and as `load_pair`.
    """
    masks, frontend = masks or MaskConfig(), Stft(stft)
    rows = []
    for done, pair in enumerate(pairs, start=1):
        waves = load_pair(pair, config=frontend.config)
        real, fake = (frontend.magnitude(wave) for wave in waves)
        if pair.align == "dtw":
            real = dtw_align(real, fake)
        valid = None
        if pair.band_hz is not None:
            hertz = frontend.config.sample_rate / frontend.config.n_fft
            valid = shared_band(fake, band_hz=pair.band_hz, hertz_per_bin=hertz)[None]
        truth = ground_truth(real[None], fake[None], masks, valid=valid)
        methods = predict if isinstance(predict, Mapping) else {"": predict}
        for name, method in methods.items():
            heat = method(pair, waves[1])
            if heat.shape != fake.shape:
                raise ShapeError(
                    f"pair {pair.id}: expected a map {tuple(fake.shape)} on the fake's axes, "
                    f"got {tuple(heat.shape)}; compute it with the same StftConfig"
                )
            named = {"method": name} if name else {}
            rows.append(named | _row(pair, heat[None].float().cpu(), truth, valid, masks.share))
        if progress is not None:
            progress(done, len(pairs))
    return rows


def summarise(
    rows: Sequence[Row], *, by: str | None = None, resamples: int = 2000
) -> dict[str, dict[str, Any]]:
    """Mean scores of the rows with one value of the field ``by``, or of ``all`` of them.

    Each summary counts pairs and groups, and gives every score as [mean, low, high], a 95 %
    bootstrap interval by source group, or as [mean] alone where there is one group.
    ``by='vocoder_seen'`` names its groups seen, unseen and unknown.

    >>> row = {"source_group": "g1", "family": "gan"} | dict.fromkeys(SCORES, 30.0)
    >>> summarise([row, row], by="family")["gan"]["gdice"]
    [30.0]
    """
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts["all" if by is None else _label(row[by])].append(row)
    return {name: _summary(part, resamples) for name, part in sorted(parts.items())}


def _row(pair: Pair, heat: Map, truth: Mask, valid: Mask | None, share: float) -> dict[str, Any]:
    own = top_share(heat, share=share, valid=valid)
    ranking = 100 * float(average_precision(heat, truth, valid=valid))
    return {
        "id": pair.id,
        "vocoder": pair.vocoder,
        "family": pair.family,
        "split": pair.split,
        "source_group": pair.source_group or pair.id,
        "vocoder_seen": pair.vocoder_seen,
        "gdice": 100 * float(generalized_dice(own, truth, valid=valid)),
        "foreground_dice": 100 * float(foreground_dice(own, truth, valid=valid)),
        "iou": 100 * float(iou(own, truth, valid=valid)),
        # JSON has no NaN
        "average_precision": None if math.isnan(ranking) else ranking,
    }


def _label(value: object) -> str:
    names: Mapping[object, str] = {True: "seen", False: "unseen", None: "unknown", "": "unknown"}
    return value if isinstance(value, str) and value else names[value]


def _summary(rows: Sequence[Row], resamples: int) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "pairs": len(rows),
        "groups": len({row["source_group"] for row in rows}),
    }
    for name in SCORES:
        kept = [row for row in rows if row[name] is not None]
        if not kept:
            continue
        values = torch.tensor([row[name] for row in kept], dtype=torch.float64)
        groups = [row["source_group"] for row in kept]
        bounds: Sequence[float] = ()
        if len(set(groups)) > 1:
            bounds = bootstrap_interval(values, groups, resamples=resamples)
        summary[name] = [float(values.mean()), *bounds]
    return summary
