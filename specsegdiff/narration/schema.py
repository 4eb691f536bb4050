"""What a narrator returns: cells with their fields, and sentences that each belong to a region."""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

from specsegdiff.cells import Box
from specsegdiff.errors import CheckpointError, ConfigError, OutputError
from specsegdiff.explanation import Explanation
from specsegdiff.hub import from_dict, without_format, write_atomic

FORMAT = "specsegdiff report 1"

Time: TypeAlias = Literal["speech", "non-speech"]
"""T: whether somebody speaks there."""

Frequency: TypeAlias = Literal["low", "mid", "high"]
"""F: the third of the picture's height that the middle of the region lies in."""

Phone: TypeAlias = Literal["vowel", "consonant", "unvoiced"]
"""P: the kind of sound; ``unvoiced`` means that there is no phone, as in GRIDEX."""

Kind: TypeAlias = Literal[
    "noise flattening",
    "formant fading",
    "periodic repetition",
    "harmonic degradation",
    "transient degradation",
    "over-smoothing",
    "spectral irregularity",
    "splice boundary",
]
"""What an artifact looks like: GRIDEX's seven kinds, and the join of a spliced recording."""

TIMES: tuple[Time, ...] = get_args(Time)
FREQUENCIES: tuple[Frequency, ...] = get_args(Frequency)
PHONES: tuple[Phone, ...] = get_args(Phone)
KINDS: tuple[Kind, ...] = get_args(Kind)

FieldName: TypeAlias = Literal["time", "frequency", "phone", "kind"]
"""A field of a cell that may be uncertain."""

# fractions, Roman numerals, raised, lowered and circled digits
_SIGN = "¼-¾⅐-↉²³¹⁰⁴-⁹₀-₉①-⒛⓪-⓿❶-➓"
# a unit may touch it; no dot of "v1.2.3" begins one, and the hyphen of a range is no minus
_NUMBER = re.compile(
    r"(?<!\w)(?<!\d\.)[-+]?(?!\d+(?:st|nd|rd|th|x\d+)\b)"
    rf"(?:(?:\d[\d_]*(?:\.\d[\d_]*)?|\.\d[\d_]*)(?:e[-+]?\d+)?[{_SIGN}]*|[{_SIGN}]+)",
    flags=re.I,
)


# line breaks and other controls, what turns the direction of writing, halves of surrogate pairs
_UNSHOWN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


@dataclass(frozen=True)
class CellReport:
    """What is known about one region: T, F, P, the kind of artifact, and the evidence for it.

    Raises `ConfigError` on words outside the vocabularies and on numbers that are not finite.
    """

    id: str
    "Name of the region: '1' to '16', row by row from the top left, on a 4x4 grid."
    time: Time
    "T."
    frequency: Frequency
    "F."
    phone: Phone
    "P."
    kind: Kind | None
    "Kind of artifact; None where nobody says, or the measurements speak for none."
    evidence: str
    "En: what is seen there and how it sounds, in words that do not name the region."
    numbers: dict[str, float]
    "Measurements by name; the unit ends the name, as in 'harmonicity_db'."
    box: Box | None = None
    "Seconds and Hz of the region; None where it is not known."
    uncertain: tuple[FieldName, ...] = ()
    "Fields that are a guess."

    def __post_init__(self) -> None:
        for name, words in (
            ("time", TIMES),
            ("frequency", FREQUENCIES),
            ("phone", PHONES),
            ("kind", (*KINDS, None)),
        ):
            if getattr(self, name) not in words:
                raise ConfigError(
                    f"cell {self.id!r}: {name} must be one of {words}, got {getattr(self, name)!r}"
                )
        if unknown := set(self.uncertain) - set(get_args(FieldName)):
            raise ConfigError(
                f"cell {self.id!r}: uncertain names fields, got {sorted(unknown)}; "
                f"expected some of {get_args(FieldName)}"
            )
        _check_name(self.id)
        _check_numbers(self.numbers, where=f"cell {self.id!r}")


@dataclass(frozen=True)
class Sentence:
    """A sentence about one region, with the exact values of the numbers in it.

    >>> said = Sentence("Cell 6: 3.2 dB, where 9 dB are usual.", "6", {"harmonicity_db": 3.21})
    >>> said.unsupported()
    ('9',)
    """

    text: str
    "As it is printed; numbers are rounded there."
    region: str
    "Id of the region it is about."
    numbers: dict[str, float] = field(default_factory=dict)
    "What its numbers are, by name, unrounded."

    def __post_init__(self) -> None:
        _check_name(self.region)
        _check_numbers(self.numbers, where=f"the sentence about region {self.region!r}")
        if not self.text.strip():
            raise ConfigError(
                f"the sentence about region {self.region!r} is empty; leave it out instead"
            )

    def unsupported(self) -> tuple[str, ...]:
        """Numbers in the text that are no value of `numbers`, rounded as printed; see
        `unsupported_numbers`."""
        names = rf"\b(?:cell|region) {re.escape(self.region)}\b"
        return unsupported_numbers(re.sub(names, "", self.text, flags=re.I), self.numbers)


@dataclass(frozen=True)
class Report:
    """An explanation in words: cells, most suspicious first, and sentences that can be checked.

    Raises `ConfigError` where two cells have one id, or a sentence is about a region that is no
    cell of the report.
    """

    cells: tuple[CellReport, ...]
    "The regions, most suspicious first."
    sentences: tuple[Sentence, ...]
    "What is said of them."
    summary: str
    "The whole in one line."
    provenance: dict[str, str]
    "Narrator, recording, model, and whatever else the words depend on."
    extent: Box | None = None
    "Seconds and Hz of the whole picture that the regions lie in."
    numbers: dict[str, float] = field(default_factory=dict)
    "What the numbers of the summary are, unrounded."
    unparsed: str = ""
    "What a model wrote that could not be read, as it came; shown as `in_one_line` has it."

    def __post_init__(self) -> None:
        ids = [cell.id for cell in self.cells]
        if len(set(ids)) < len(ids):
            raise ConfigError(f"a report names each region once, got {ids}")
        if strange := [said.region for said in self.sentences if said.region not in ids]:
            raise ConfigError(
                f"a sentence is about region {strange[0]!r}, which is no cell of this report "
                f"({', '.join(ids) or 'it has none'}); every sentence belongs to one"
            )
        _check_numbers(self.numbers, where="the summary")

    def cell(self, id: str) -> CellReport:
        """Return the cell of an id; raises `ConfigError` where there is none."""
        for cell in self.cells:
            if cell.id == id:
                return cell
        ids = ", ".join(cell.id for cell in self.cells)
        raise ConfigError(f"this report has no cell {id!r}; its cells are {ids or 'none'}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, that `from_dict` reads."""
        return {"format": FORMAT} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "report") -> "Report":
        """Build what `to_dict` wrote.

        Raises `ConfigError` on missing, unknown or impossible fields; ``where`` names the source
        there.
        """
        return from_dict(cls, without_format(values, FORMAT, where=where), where=where)

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        # UTF-8 has no half of a surrogate pair, and JSON has the same escape for it
        return text.encode(errors="backslashreplace").decode()

    @classmethod
    def from_json(cls, text: str, *, where: str = "report") -> "Report":
        """Read `to_json`; raises `ConfigError` on anything else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{where} is no JSON ({error}); save the report again") from error
        return cls.from_dict(values, where=where)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file; raises `OutputError` where it cannot be written."""
        try:
            write_atomic(Path(path), self.to_json().encode() + b"\n")
        except OSError as error:
            raise OutputError(
                f"cannot write a report to {path}: {error}; choose a writable folder"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read what `save` wrote; raises `CheckpointError` where the file cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"cannot read the report {path} ({error}); pass a file that Report.save wrote"
            ) from error
        return cls.from_json(text, where=str(path))

    def __str__(self) -> str:
        said = [f"- {sentence.text}" for sentence in self.sentences]
        rest = [f"not understood: {self.unparsed}"] if self.unparsed else []
        return "\n".join(map(in_one_line, [self.summary, *said, *rest]))

    def _repr_html_(self) -> str:
        # ids are global in a notebook, and it may show several reports
        prefix = hashlib.sha256(self.to_json().encode()).hexdigest()[:8]
        anchors = {cell.id: f"{prefix}-{place}" for place, cell in enumerate(self.cells)}
        said = "".join(
            f"<li><a href='#{anchors[s.region]}'>{_html(s.region)}</a> {_html(s.text)}</li>"
            for s in self.sentences
        )
        head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
        rows = "".join(_row(cell, anchors[cell.id]) for cell in self.cells)
        rest = ""
        if self.unparsed:
            wrapped = f"<code style='overflow-wrap:anywhere'>{_html(self.unparsed)}</code>"
            rest = f"<p>not understood: {wrapped}</p>"
        return (
            f"<div><p>{_html(self.summary)}</p>{_picture(self, anchors)}<ol>{said}</ol>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}</div>"
        )


class Narrator(Protocol):
    """What puts an explanation into words: rules, or a vision-language model."""

    def __call__(self, explanation: Explanation) -> Report:
        """Report on an explanation; the same one gives the same report."""


def unsupported_numbers(text: str, numbers: dict[str, float]) -> tuple[str, ...]:
    """Numbers of a text that are no value of ``numbers`` when rounded to as many decimals.

    A unit may touch its number, as in 5kHz. Powers and signs, such as 1e3 and ½, are values of
    nothing. No numbers are names that begin with a letter (F0, v1.2), grids (4x4), ordinals (2nd)
    and number words (seven); the hyphen of a range is no minus.

    >>> unsupported_numbers("0.50-1.00 s, -3.1 dB, 7 times", {"t0": 0.5, "t1": 1, "db": -3.08})
    ('7',)
    >>> unsupported_numbers("F0 rises by 5kHz within .5 s", {"t0": 0.5})
    ('5',)
    """
    found = (match.group() for match in _NUMBER.finditer(text))
    return tuple(token for token in found if not _is_one_of(token, numbers))


def in_one_line(text: str) -> str:
    """Text with its line breaks and other controls written as escapes, to show what a model wrote.

    A line of it cannot pass for one of the report, nor does it steer a terminal.

    >>> in_one_line("(15, T=\\n- Region 3")
    '(15, T=\\\\n- Region 3'
    """
    return _UNSHOWN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _html(text: str) -> str:
    return escape(in_one_line(text))


def _is_one_of(token: str, numbers: dict[str, float]) -> bool:
    decimals = len(token.replace("_", "").partition(".")[2])
    plain = re.sub(r"(?<!\d)\.", "0.", token.lstrip("+").replace("_", ""))
    # text decides: 2.675 is printed as 2.67 or 2.68, and only Python knows which
    return any(f"{value:.{decimals}f}" == plain for value in numbers.values())


_COLUMNS = ("", "time (s)", "frequency (Hz)", "T", "F", "P", "kind")


def _row(cell: CellReport, anchor: str) -> str:
    box = cell.box
    words = [
        f"{getattr(cell, name)}{'?' if name in cell.uncertain else ''}"
        for name in ("time", "frequency", "phone", "kind")
    ]
    values = (
        cell.id,
        f"{box.t0:.2f}-{box.t1:.2f}" if box else "",
        f"{box.f0:.0f}-{box.f1:.0f}" if box else "",
        *words[:3],
        words[3] if cell.kind else "undecided",
    )
    return f"<tr id='{anchor}'>{''.join(f'<td>{_html(value)}</td>' for value in values)}</tr>"


def _picture(report: Report, anchors: dict[str, str]) -> str:
    """The regions as boxes in the plane, high frequencies on top; each leads to its row."""
    whole = report.extent
    if whole is None:
        return ""
    boxes = []
    for cell in report.cells:
        if cell.box is None:
            continue
        x, wide = ((v - whole.t0) / (whole.t1 - whole.t0) for v in (cell.box.t0, cell.box.t1))
        top, low = ((whole.f1 - v) / (whole.f1 - whole.f0) for v in (cell.box.f1, cell.box.f0))
        boxes.append(
            f"<a href='#{anchors[cell.id]}'><rect x='{400 * x:.1f}' y='{160 * top:.1f}' "
            f"width='{400 * (wide - x):.1f}' height='{160 * (low - top):.1f}' "
            f"fill='orange' fill-opacity='0.4' stroke='black'/>"
            f"<text x='{400 * x + 4:.1f}' y='{160 * top + 14:.1f}' font-size='12'>"
            f"{_html(cell.id)}</text></a>"
        )
    return (
        "<svg width='400' height='160' role='img' aria-label='regions over time and frequency'>"
        "<rect width='400' height='160' fill='none' stroke='grey'/>" + "".join(boxes) + "</svg>"
    )


def _check_name(id: str) -> None:
    if not isinstance(id, str) or not id:
        raise ConfigError(f"expected the id of a region as text, got {id!r}; no words without one")


def _check_numbers(numbers: dict[str, float], *, where: str) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{where}: {name} must be a finite number, got {value!r}")
