"""The narrator that needs no model: sentences from computed fields and measurements."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from specsegdiff.cells import Box, RegionGrid, RowScale, pool, top_k, whole_plane
from specsegdiff.errors import ConfigError
from specsegdiff.explanation import Explanation
from specsegdiff.narration.division import Division, divided
from specsegdiff.narration.fields import (
    Fields,
    Frames,
    fields_from_phones,
    fields_from_sound,
    frames_of,
)
from specsegdiff.narration.kinds import (
    SIGNS,
    Judgement,
    Reference,
    default_reference,
    judge,
    number_of,
)
from specsegdiff.narration.measurements import measure, measure_pair
from specsegdiff.narration.phones import Alphabet, PhoneInterval
from specsegdiff.narration.schema import CellReport, FieldName, Kind, Report, Sentence
from specsegdiff.storage import BLOCK_SAMPLES, MapStore


class _Words(NamedTuple):
    """How a kind is put into words."""

    measured: str
    "What its number is the number of."
    heard: str
    "How it may sound."
    unit: str = " dB"
    "Unit, with its space."
    decimals: int = 1
    "Digits after the point that are worth printing."


_WORDS: dict[Kind, _Words] = {
    "noise flattening": _Words("the grain of the noise", "hiss may sound smooth and dull"),
    "formant fading": _Words(
        "the span of the envelope from valley to peak", "the colour of the voice may fade"
    ),
    "periodic repetition": _Words(
        "the correlation of the pattern with its repetition",
        "it may sound looped or buzzing",
        unit="",
        decimals=2,
    ),
    "harmonic degradation": _Words(
        "the level of the harmonics over the rest", "the voice may sound hoarse"
    ),
    "transient degradation": _Words("the steepest onset", "attacks may sound blurred"),
    "over-smoothing": _Words("the grain of the picture", "it may sound muffled"),
    "spectral irregularity": _Words(
        "the unevenness of the mean spectrum", "it may ring or sound metallic"
    ),
    "splice boundary": _Words(
        "the largest click over its surroundings", "the recording may jump there"
    ),
}

_STEP = "the largest step of the distance to the genuine twin"


@dataclass(frozen=True, eq=False)
class RuleNarrator:
    """Puts an explanation into words by rule: the same one, saved and loaded, gives the same words.

    The ``k`` regions with the highest mean heat are described, hottest first: a sentence on the
    heat of each, and one on what is measured there. Every number comes from the explanation, and
    from the alignment and the genuine twin where these are given. Memory does not grow with the
    recording, but for 24 bytes a frame, 5 MB an hour; superpixels hold it all.

    Heat, spread and share of the mask are those of a region's own bins. T, F, P, the kind and the
    measurements behind it are those of the smallest box around it, which each sentence names: a
    pitch, a repetition or an envelope needs whole frames of a band, and what is usual was measured
    in boxes. For a cell of a grid the two are one; a superpixel may fill little of its box.

    >>> from specsegdiff.api import asset, explain
    >>> print(RuleNarrator()(explain(asset("example.flac"))))  # doctest: +SKIP
    """

    k: int = 3
    "Regions to describe."
    rows: int = 4
    "Rows of the grid."
    columns: int = 4
    "Columns of the grid."
    scale: RowScale = "linear"
    "What the rows of the grid divide equally: Hz, or mel."
    divide: Division | None = None
    """Other regions than the grid, such as `specsegdiff.cells.slic_regions` of a spectrogram, or
    what makes them of an explanation."""
    phones: Sequence[PhoneInterval] | None = None
    "Aligned phones of the whole recording; None reads T and P from the sound."
    alphabet: Alphabet = "arpabet"
    "How these phones are written."
    genuine: Tensor | MapStore | None = None
    "Genuine twin ``(n,)`` of the recording, matched in level and time: kinds are changes then."
    reference: Reference | None = None
    "What measurements usually are; None takes the numbers that ship with the package."

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"RuleNarrator.k must be at least 1, got {self.k}")

    def __call__(self, explanation: Explanation) -> Report:
        """Report on an explanation.

        Raises `ConfigError` where it has fewer regions than ``k``, or too few bins for the grid,
        and `ShapeError` where the twin has another length, or ``divide`` other axes.
        """
        axes, layers = explanation.axes, explanation.layers
        division = self.divide or RegionGrid(axes, self.rows, self.columns, self.scale)
        regions = divided(explanation, division)
        heat, spread = pool(layers.heatmap, regions), pool(layers.spread, regions)
        bins = pool(layers.mask, regions, reduce="sum")
        percent = 100 * bins / bins.sum().clamp_min(1)
        frames = frames_of(layers.wave, axes) if self.phones is None else None
        cells, sentences = [], []
        for id in top_k(heat, self.k):
            box, place = regions.box(id), regions.ids.index(id)
            shown = _edges(box) | {
                "heat": float(heat[place]),
                "spread": float(spread[place]),
                "mask_percent": float(percent[place]),
            }
            cell, used = self._describe(explanation, id, box, shown, frames, regions.scale)
            cells.append(cell)
            name = f"Cell {id}, {box}: "
            sentences.append(Sentence(name + _heat(shown), id, shown))
            sentences.append(Sentence(name + cell.evidence, id, _edges(box) | used))
        held = sum(cell.numbers["mask_percent"] for cell in cells)
        return Report(
            cells=tuple(cells),
            sentences=tuple(sentences),
            summary=(
                f"The {self.k} hottest of {regions.count} regions hold {held:.1f} % of the mask."
            ),
            provenance=self._provenance(explanation),
            extent=whole_plane(axes),
            numbers={"k": self.k, "regions": regions.count, "mask_percent": held},
        )

    def _describe(
        self,
        explanation: Explanation,
        id: str,
        box: Box,
        shown: dict[str, float],
        frames: Frames | None,
        scale: RowScale,
    ) -> tuple[CellReport, dict[str, float]]:
        """Cell, and those of its numbers that its evidence names."""
        axes, wave = explanation.axes, explanation.layers.wave
        if frames is not None:
            fields = fields_from_sound(box, frames, scale=scale)
        else:
            fields = fields_from_phones(
                box, self.phones or (), axes, alphabet=self.alphabet, scale=scale
            )
        if self.genuine is None:
            measured = measure(wave, axes, box)
        else:
            measured = measure_pair(wave, self.genuine, axes, box)
        judgement = judge(measured, fields, reference=self.reference)
        said, used = evidence(measured, fields, judgement)
        # without a twin a kind is a guess
        guess: tuple[FieldName, ...] = ("kind",) if judgement.kind and self.genuine is None else ()
        cell = CellReport(
            id=id,
            time=fields.time,
            frequency=fields.frequency,
            phone=fields.phone,
            kind=judgement.kind,
            evidence=said,
            numbers=shown | fields.numbers | measured | used,
            box=box,
            uncertain=fields.uncertain + guess,
        )
        return cell, used

    def _provenance(self, explanation: Explanation) -> dict[str, str]:
        made = explanation.provenance
        regions = "other" if self.divide else f"{self.rows}x{self.columns} {self.scale}"
        twin = "" if self.genuine is None else _sha256(MapStore.of(self.genuine))
        return {
            "narrator": "rules",
            "source": made.source,
            "samples_sha256": made.samples_sha256,
            "model": made.model,
            "weights_sha256": made.weights_sha256,
            "version": made.version,
            "regions": regions,
            "fields": "sound" if self.phones is None else "phones",
            "usual": (self.reference or default_reference()).source,
            "twin_sha256": twin,
        }


def evidence(
    numbers: Mapping[str, float], fields: Fields, judgement: Judgement
) -> tuple[str, dict[str, float]]:
    """Say what a region is and what its measurements speak for, and give the numbers in it.

    The words name T, F and P, and no region, as GRIDEX's En does. The numbers are the decisive one
    by its name, and ``usual`` and ``bound``, which it is compared with.
    """
    head = f"{_place(fields)}: "
    kind = judgement.strongest
    if kind is None:
        return f"{head}nothing can be measured there.", {}
    paired = "difference_db" in numbers
    words, usual, sign = _WORDS[kind], judgement.usual[kind], SIGNS[kind]
    name = number_of(kind, paired=paired)
    value = numbers[name]
    rare = "one in a hundred" if sign.with_twin else "one in four" if paired else "one in twenty"
    side = "above" if sign.direction > 0 else "below"
    signed = "+" if paired and not sign.with_twin else ""

    def shown(number: float) -> str:
        return f"{number:{signed}.{words.decimals}f}{words.unit}"

    limit = f"{rare} is {side} {shown(usual.bound)}"
    if signed:
        said = f"{words.measured} changes by {shown(value)} against the genuine twin"
        said += f"; of vocoded recordings, {limit}"
    elif paired:
        said = f"{_STEP} is {shown(value)}; of vocoded recordings without a splice, {limit}"
    else:
        said = f"{words.measured} is {shown(value)}"
        said += f"; genuine recordings have {shown(usual.middle)}, and {limit}"
    used = {name: value, "bound": usual.bound} | ({} if paired else {"usual": usual.middle})
    if judgement.kind is None:
        return f"{head}no artifact stands out; {said}.", used
    # without a twin a kind is a guess, and called one, as `_place` does
    guess = "" if paired else "perhaps "
    return f"{head}{guess}{kind}; {said}. By ear, {words.heard}.", used


def _place(fields: Fields) -> str:
    """T, P and F in words, a guess being called one."""
    time, most = fields.time.capitalize(), "mostly"
    if "time" in fields.uncertain:
        time = f"Probably {fields.time}"
    elif "phone" in fields.uncertain:
        most = "probably"
    phone = "unvoiced" if fields.phone == "unvoiced" else f"{most} a {fields.phone}"
    return f"{time}, {phone}, {fields.frequency} band"


def _heat(shown: Mapping[str, float]) -> str:
    return (
        f"mean heat {shown['heat']:.2f} with a spread of {shown['spread']:.2f}, and "
        f"{shown['mask_percent']:.1f} % of the mask."
    )


def _edges(box: Box) -> dict[str, float]:
    return {"t0_s": box.t0, "t1_s": box.t1, "f0_hz": box.f0, "f1_hz": box.f1}


def _sha256(wave: MapStore) -> str:
    digest = hashlib.sha256()
    for _, block in wave.blocks(BLOCK_SAMPLES):
        digest.update(block.contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()
