"""Maps against true masks: a method is a callable, and none is known here by name."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from specsegdiff.data.alignment import aligned_difference
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.masks import MaskConfig, top_share
from specsegdiff.metrics import (
    average_precision,
    bootstrap_interval,
    foreground_dice,
    generalized_dice,
    iou,
)
from specsegdiff.shapes import Map, Mask, Wave

SCORES = ("gdice", "foreground_dice", "iou", "average_precision")
"Scores of a map against the true mask, in percent."

Method: TypeAlias = Callable[[Pair, Wave], Map]
"From a pair and its level-matched fake ``(n,)`` to a map ``(f, t)``; most need the fake alone."

Row: TypeAlias = dict[str, Any]
"Plain data for JSON: what the pair is, and what the map scored on it."


@dataclass(frozen=True, eq=False)
class Case:
    """A pair on the time-frequency plane: the fake, and what synthesis changed in it."""

    pair: Pair
    "Where it comes from."
    fake: Wave
    "The fake at the real recording's level, ``(n,)``."
    changed: Map
    "How much synthesis changed each bin, ``(f, t)``; the truth is its top share."
    truth: Mask
    "The true mask, ``(f, t)``."
    valid: Mask | None
    "The band that both members carry, ``(f, t)``; None for all bins."
    share: float
    "Share of the valid bins that the truth marks, and that every map marks."

    def top(self, heat: Map) -> Mask:
        """The top share of a map ``(f, t)``, as many bins as the truth has."""
        return top_share(heat[None], share=self.share, valid=self._valid)[0]

    def scores(self, heat: Map) -> dict[str, float | None]:
        """`SCORES` of a map ``(f, t)``, in percent; None where the truth is empty and so no ranking
        of the bins is right."""
        own, truth, valid = self.top(heat)[None], self.truth[None], self._valid
        ranking = 100 * float(average_precision(heat[None], truth, valid=valid))
        return {
            "gdice": 100 * float(generalized_dice(own, truth, valid=valid)),
            "foreground_dice": 100 * float(foreground_dice(own, truth, valid=valid)),
            "iou": 100 * float(iou(own, truth, valid=valid)),
            # JSON has no NaN
            "average_precision": None if math.isnan(ranking) else ranking,
        }

    def check(self, heat: Map, *, name: str = "") -> Map:
        """Return a map of this pair as ``(f, t)`` float32 on the CPU; raises `ShapeError`."""
        if heat.shape != self.truth.shape or not bool(heat.isfinite().all()):
            by = f" by {name}" if name else ""
            raise ShapeError(
                f"pair {self.pair.id}: expected a finite map{by} {tuple(self.truth.shape)} on the "
                f"fake's axes, got {tuple(heat.shape)} with {int((~heat.isfinite()).sum())} values "
                "that are not finite; compute it with the same StftConfig"
            )
        return heat.detach().float().cpu()

    @property
    def _valid(self) -> Mask | None:
        return None if self.valid is None else self.valid[None]


def load_case(pair: Pair, *, masks: MaskConfig, stft: Stft) -> Case:
    """Read a pair and make its true mask; a ``'dtw'`` pair is aligned first. Raises as
    `load_pair`."""
    waves = load_pair(pair, config=stft.config)
    real, fake = (stft.magnitude(wave) for wave in waves)
    changed, valid = aligned_difference(
        real,
        fake,
        masks,
        align=pair.align,
        band_hz=pair.band_hz,
        hertz_per_bin=stft.config.sample_rate / stft.config.n_fft,
    )
    truth = top_share(
        changed[None], share=masks.share, valid=None if valid is None else valid[None]
    )
    return Case(pair, waves[1], changed, truth[0], valid, masks.share)


def score_maps(
    predict: Method | Mapping[str, Method],
    pairs: Sequence[Pair],
    *,
    masks: MaskConfig | None = None,
    stft: Stft | StftConfig | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Row]:
    """Score the map of each pair at its own top share against the true mask: one row a pair.

    Several methods, by name, are scored on each pair in turn: one row a pair and method, with the
    name in its field ``method``. A row holds id, vocoder, family, split, source_group (the id where
    a pair has none), vocoder_seen, and `SCORES` in percent; average_precision ranks all bins and is
    None where the truth is empty. Only the band that both members carry counts. ``progress`` is
    called with (pairs done, all). Raises `ShapeError` where a map does not lie on the fake's axes,
    `ConfigError` on a ``stft`` of another type, and as `load_pair`.
    """
    masks, frontend = masks or MaskConfig(), transform(stft)
    methods = predict if isinstance(predict, Mapping) else {"": predict}
    rows = []
    for done, pair in enumerate(pairs, start=1):
        case = load_case(pair, masks=masks, stft=frontend)
        for name, method in methods.items():
            heat = case.check(method(pair, case.fake), name=name)
            named = {"method": name} if name else {}
            rows.append(named | identify(pair) | case.scores(heat))
        if progress is not None:
            progress(done, len(pairs))
    return rows


def transform(stft: Stft | StftConfig | None) -> Stft:
    """The transform itself, of its settings, or the default; raises `ConfigError` on others."""
    if isinstance(stft, Stft):
        return stft
    if stft is not None and not isinstance(stft, StftConfig):
        raise ConfigError(
            f"stft must be an StftConfig, an Stft or None, got {type(stft).__name__}; "
            "pass StftConfig(n_fft=..., hop=...)"
        )
    return Stft(stft)


def identify(pair: Pair) -> Row:
    """The fields of a row that say what the pair is."""
    return {
        "id": pair.id,
        "vocoder": pair.vocoder,
        "family": pair.family,
        "split": pair.split,
        "source_group": pair.source_group or pair.id,
        "vocoder_seen": pair.vocoder_seen,
    }


def summarise(
    rows: Sequence[Row],
    *,
    by: str | None = None,
    scores: Sequence[str] = SCORES,
    resamples: int = 2000,
) -> dict[str, dict[str, Any]]:
    """Mean ``scores`` of the rows with one value of the field ``by``, or of ``all`` of them.

    Each summary counts pairs and groups, and gives every score as [mean, low, high], a 95 %
    bootstrap interval by source group, or as [mean] alone where there is one group. Rows without a
    score are left out of its mean. ``by='vocoder_seen'`` names its groups seen, unseen and unknown.

    >>> row = {"source_group": "g1", "family": "gan"} | dict.fromkeys(SCORES, 30.0)
    >>> summarise([row, row], by="family")["gan"]["gdice"]
    [30.0]
    """
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts["all" if by is None else _label(row[by])].append(row)
    return {name: _summary(part, scores, resamples) for name, part in sorted(parts.items())}


def _label(value: object) -> str:
    names: Mapping[object, str] = {True: "seen", False: "unseen", None: "unknown", "": "unknown"}
    return value if isinstance(value, str) and value else names[value]


def _summary(rows: Sequence[Row], scores: Sequence[str], resamples: int) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "pairs": len(rows),
        "groups": len({row["source_group"] for row in rows}),
    }
    for name in scores:
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
