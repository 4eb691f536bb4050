"""Which kind of artifact a region's measurements speak for.

Every kind shows itself in one measurement, which it moves one way. Without a genuine twin, the
number is compared with genuine speech of that band and kind of sound: a kind is named where 95 of
100 genuine cells are moved less. Beside a twin its change is compared with those that vocoders
make: a kind is named where three of four vocoded cells are moved less. Of several, that counts
which goes furthest beyond. No cell of those was spliced, so a splice must go beyond 99 of 100.
`specsegdiff.narration.calibration` takes these bounds from the paired corpus's val split.

A name is a reading of one number, no proof. On that same split, without the twin, a kind is named
in 21 % of the vocoded cells, and in 18 % of the genuine ones; where one is named beside the twin
too, it is the same in 38 % of the cells, which by chance it would be in 16 %.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from specsegdiff.errors import ConfigError
from specsegdiff.hub import from_dict
from specsegdiff.narration.fields import Fields
from specsegdiff.narration.measurements import change_name
from specsegdiff.narration.schema import KINDS, Kind

FORMAT = "specsegdiff usual measurements 1"

NOISY_DB = 0.0
"Harmonicity below which a region is noise: less than half of its power is periodic."

SOUNDLESS_DB = -115.0
"Level of a region below which it holds no sound; quantisation noise of 16 bits has -123."


@dataclass(frozen=True)
class Sign:
    """How a kind of artifact shows itself."""

    measurement: str
    "What it moves, a name of `specsegdiff.narration.measurements.MEASUREMENTS`."
    direction: Literal[-1, 1]
    "Whether it raises the number or lowers it."
    with_twin: str = ""
    "What is looked at beside a genuine twin, where that is not the change of `measurement`."

    @property
    def paired(self) -> str:
        """Name of the number that counts beside a genuine twin."""
        return self.with_twin or change_name(self.measurement)


SIGNS: dict[Kind, Sign] = {
    "noise flattening": Sign("detail_db", -1),
    "formant fading": Sign("contrast_db", -1),
    "periodic repetition": Sign("repetition", +1),
    "harmonic degradation": Sign("harmonicity_db", -1),
    "transient degradation": Sign("onset_db", -1),
    "over-smoothing": Sign("detail_db", -1),
    "spectral irregularity": Sign("irregularity_db", +1),
    "splice boundary": Sign("click_db", +1, with_twin="step_db"),
}
"""What each kind moves. Noise flattening and over-smoothing are one loss, of grain: the first where
there is noise, the second where there is not."""


@dataclass(frozen=True)
class Usual:
    """What a number usually is, and how far it usually goes the way that a kind moves it."""

    middle: float
    "The median; 0 for a change."
    bound: float
    "What is rarely passed, above the median where the kind raises the number."

    def __post_init__(self) -> None:
        if self.middle == self.bound:
            raise ConfigError(f"a bound must differ from the median, got {self.bound!r} for both")

    def strength(self, value: float) -> float:
        """0 at the median, 1 at the bound.

        >>> Usual(middle=6.0, bound=2.0).strength(0.0)
        1.5
        """
        return (value - self.middle) / (self.bound - self.middle)


@dataclass(frozen=True)
class Reference:
    """What measurements usually are in genuine speech, and how vocoders usually change them."""

    format: str
    "Version of this file's layout."
    source: str
    "Corpus, split and counts that the numbers come from."
    genuine: dict[str, dict[str, Usual]]
    "By ``'<band> <phone>'``, and by name of measurement."
    changes: dict[str, Usual]
    "By the name of the change, or of the number that counts beside a twin."

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ConfigError(f"expected format {FORMAT!r}, got {self.format!r}")


@dataclass(frozen=True)
class Judgement:
    """The kind that a region's measurements speak for, and how strongly they do for each."""

    kind: Kind | None
    "The strongest, or None where none passes its bound."
    strongest: Kind | None
    "The strongest all the same; None where nothing could be judged."
    strengths: dict[Kind, float]
    "0 at the usual, 1 at the bound, for the kinds that could be judged."
    usual: dict[Kind, Usual]
    "What that was compared with."


def judge(
    numbers: Mapping[str, float], fields: Fields, *, reference: Reference | None = None
) -> Judgement:
    """Decide on a kind from the numbers of `measure`, or those of `measure_pair`.

    Beside a twin (``difference_db`` is among the numbers) changes count, otherwise the numbers
    themselves. Noise flattening is judged in noise only, over-smoothing outside it; formants fade
    and harmonics degrade in vowels, formants below the high band, harmonics where the twin has
    them, or genuine speech of that band; transients degrade in speech. A kind whose measurement is
    missing is not judged, nor is a region without sound, such as the band above that of a
    telephone. Of equal strengths the first in `KINDS` counts.
    """
    reference = reference or default_reference()
    paired = "difference_db" in numbers
    level = numbers.get("level_db", 0.0)
    if max(level, level - numbers.get("level_change_db", 0.0)) < SOUNDLESS_DB:
        return Judgement(None, None, {}, {})
    group = reference.genuine.get(f"{fields.frequency} {fields.phone}", {})
    table = reference.changes if paired else group
    usual = {
        kind: table[name]
        for kind in KINDS
        if (name := number_of(kind, paired=paired)) in numbers
        and name in table
        and _applies(kind, numbers, fields, group, paired=paired)
    }
    strengths = {
        kind: found.strength(numbers[number_of(kind, paired=paired)])
        for kind, found in usual.items()
    }
    if not strengths:
        return Judgement(None, None, {}, {})
    strongest = max(strengths, key=lambda kind: strengths[kind])
    kind = strongest if strengths[strongest] >= 1 else None
    return Judgement(kind, strongest, strengths, usual)


def number_of(kind: Kind, *, paired: bool) -> str:
    """Name of the number that a kind is judged by, without a genuine twin or beside one."""
    return SIGNS[kind].paired if paired else SIGNS[kind].measurement


@cache
def default_reference() -> Reference:
    """Read the numbers that ship with the package; ``reference.json`` beside this file."""
    text = (files("specsegdiff") / "narration" / "reference.json").read_text(encoding="utf-8")
    values: Any = json.loads(text)
    return from_dict(Reference, values, where="narration/reference.json")


def _applies(
    kind: Kind,
    numbers: Mapping[str, float],
    fields: Fields,
    genuine: Mapping[str, Usual],
    *,
    paired: bool,
) -> bool:
    # beside a twin, what was there before counts
    harmonicity = numbers.get("harmonicity_db", NOISY_DB - 1)
    if paired:
        harmonicity -= numbers.get("harmonicity_change_db", 0.0)
    noisy = harmonicity < NOISY_DB
    if kind == "noise flattening":
        return noisy
    if kind == "over-smoothing":
        return not noisy
    if kind == "formant fading":
        return fields.phone == "vowel" and fields.frequency != "high"
    if kind == "harmonic degradation":
        usual = genuine.get("harmonicity_db")
        expected = not noisy if paired else usual is not None and usual.middle >= NOISY_DB
        return fields.phone == "vowel" and expected
    if kind == "transient degradation":
        return fields.time == "speech"
    return True
