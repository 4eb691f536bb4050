"""Text whose phrases point at regions: ``<p>smeared harmonics</p>[R15]``, and its twin in JSON.

The markup is that of GLaMM, on which FiFa (arXiv 2510.20531) builds, with the name of a region
where they have a token for a mask: a phrase, and right behind it the regions that it is about,
``<p>both</p>[R1][R2]``. In text and phrases ``&``, ``<``, ``>``, ``[`` and ``]`` are written as
``&amp;``, ``&lt;``, ``&gt;``, ``&#91;`` and ``&#93;``. The parser takes what the writer writes and
no more, so that one text has one markup.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from specsegdiff.cells import Box
from specsegdiff.errors import ConfigError
from specsegdiff.hub import from_dict, without_format
from specsegdiff.narration.schema import Report

FORMAT = "specsegdiff grounded text 1"

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "[": "&#91;", "]": "&#93;"}
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_TOKEN = re.compile(
    rf"(?P<open><p>)|(?P<close></p>)|\[(?P<region>{_NAME})\]"
    r"|(?P<entity>&(?:amp|lt|gt|#91|#93);)|(?P<text>[^&<>\[\]]+)"
)


@dataclass(frozen=True)
class Span:
    """A stretch of text, or a phrase that points at regions."""

    text: str
    "As it is read, without markup; not empty."
    regions: tuple[str, ...] = ()
    "Ids of the regions that it is about; none for plain text."

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise ConfigError(f"expected a stretch of text, got {self.text!r}; leave it out")
        if len(set(self.regions)) < len(self.regions):
            raise ConfigError(f"the phrase {self.text!r} names a region twice: {self.regions}")


@dataclass(frozen=True)
class GroundedText:
    """Text and references, with the place of every region that may be referred to.

    Raises `ConfigError` on a reference to another region, a region whose name no markup can hold,
    and two plain stretches in a row, which are one.

    >>> places = {"R1": Box(0.0, 0.5, 0.0, 2000.0)}
    >>> text = GroundedText((Span("a vowel", ("R1",)), Span(" is smeared.")), places)
    >>> text.markup
    '<p>a vowel</p>[R1] is smeared.'
    >>> str(text)
    'a vowel is smeared.'
    """

    spans: tuple[Span, ...]
    "Plain text and phrases, in order."
    places: dict[str, Box]
    "Seconds and Hz of the regions, by id."

    def __post_init__(self) -> None:
        for id in self.places:
            if not isinstance(id, str) or not re.fullmatch(_NAME, id):
                raise ConfigError(
                    f"a region's name is of letters, digits, '_', '.' and '-', got {id!r}"
                )
        plain = False
        for span in self.spans:
            if unknown := [id for id in span.regions if id not in self.places]:
                raise ConfigError(
                    f"the phrase {span.text!r} points at {unknown[0]!r}, which is no region; known "
                    f"are {', '.join(self.places) or 'none'}"
                )
            if plain and not span.regions:
                raise ConfigError(f"plain text ends before {span.text!r} and goes on; join the two")
            plain = not span.regions

    def __str__(self) -> str:
        return "".join(span.text for span in self.spans)

    @property
    def markup(self) -> str:
        """``<p>phrase</p>[R15]`` and text, that `parse` reads."""
        return "".join(
            f"<p>{_escape(span.text)}</p>" + "".join(f"[{id}]" for id in span.regions)
            if span.regions
            else _escape(span.text)
            for span in self.spans
        )

    def of(self, id: str) -> str:
        """What is said of a region: its phrases and the text that follows each, up to the next.

        Empty where no phrase points at it; raises `ConfigError` on an unknown region.

        >>> places = {"1": Box(0.0, 0.5, 0.0, 2000.0), "2": Box(0.5, 1.0, 0.0, 2000.0)}
        >>> parse("<p>a</p>[1] b <p>c</p>[2] d", places).of("1")
        'a b '
        """
        if id not in self.places:
            raise ConfigError(f"no region {id!r}; known are {', '.join(self.places) or 'none'}")
        said, about = [], False
        for span in self.spans:
            about = id in span.regions if span.regions else about
            said += [span.text] if about else []
        return "".join(said)

    def to_dict(self) -> dict[str, Any]:
        """The twin for JSON: plain text, references by their characters in it, and places."""
        references, start = [], 0
        for span in self.spans:
            end = start + len(span.text)
            if span.regions:
                references.append({"start": start, "end": end, "regions": list(span.regions)})
            start = end
        places = {id: asdict(box) for id, box in self.places.items()}
        return {"format": FORMAT, "text": str(self), "references": references, "places": places}

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "grounded text") -> "GroundedText":
        """Build what `to_dict` wrote.

        Raises `ConfigError` on missing, unknown or impossible fields, and on references that are
        empty, overlap, stand in another order, or reach beyond the text.
        """
        twin = from_dict(_Twin, without_format(values, FORMAT, where=where), where=where)
        spans: list[Span] = []
        end = 0
        for said in twin.references:
            if not (end <= said.start < said.end <= len(twin.text) and said.regions):
                raise ConfigError(
                    f"{where}: expected references with regions, in order and within the "
                    f"{len(twin.text)} characters of the text, got {said}"
                )
            spans += _some(twin.text[end : said.start])
            spans.append(Span(twin.text[said.start : said.end], said.regions))
            end = said.end
        spans += _some(twin.text[end:])
        return cls(tuple(spans), twin.places)


def parse(markup: str, places: Mapping[str, Box]) -> GroundedText:
    """Read markup whose references are among some places.

    Raises `ConfigError`, with the character, on a mark that is not closed or not open, on marks
    within a phrase, a phrase without a region, a region without a phrase or that is not known, and
    on characters that stand for themselves and have to be escaped.
    """
    spans: list[Span] = []
    said = ""
    phrase: str | None = None  # a closed phrase, whose regions are being read
    regions: list[str] = []
    opened, at = -1, 0

    def refuse(why: str) -> NoReturn:
        raise ConfigError(f"character {at} of the markup, {markup[at : at + 20]!r}: {why}")

    def finish() -> None:
        nonlocal phrase
        if phrase is not None:
            if not regions:
                refuse(f"the phrase {phrase!r} has no region; write [id] right behind </p>")
            spans.append(Span(phrase, tuple(regions)))
            regions.clear()
            phrase = None

    while at < len(markup):
        match = _TOKEN.match(markup, at)
        if match is None:
            refuse(f"a bare {markup[at]!r}; write it as {_ENTITIES[markup[at]]}")
        kind = match.lastgroup
        if kind == "region":
            if phrase is None:
                refuse("a region that is not right behind a phrase; write <p>phrase</p>[id]")
            if (id := match["region"]) not in places:
                refuse(f"no region {id!r}; known are {', '.join(places) or 'none'}")
            if id in regions:
                refuse(f"the region {id!r} stands twice behind one phrase")
            regions.append(id)
        elif kind in ("text", "entity"):
            finish()
            said += _unescape(match.group())
        elif kind == "open":
            finish()
            if opened >= 0:
                refuse(f"a phrase within the one that begins at {opened}; close that first")
            spans += _some(said)
            said, opened = "", at
        else:
            if opened < 0:
                refuse("no phrase is open; write <p> before it")
            if not said:
                refuse("the phrase is empty; leave it out")
            phrase, said, opened = said, "", -1
        at = match.end()
    finish()
    if opened >= 0:
        refuse(f"the phrase that begins at {opened} is not closed; write </p> behind it")
    spans += _some(said)
    return GroundedText(tuple(spans), dict(places))


def grounded(report: Report) -> GroundedText:
    """Sentences of a report as phrases that point at their regions.

    Raises `ConfigError` where a cell has no box, as in a report that was parsed without axes.
    """
    places = {}
    for cell in report.cells:
        if cell.box is None:
            raise ConfigError(f"cell {cell.id!r} of the report has no box; report with axes")
        places[cell.id] = cell.box
    return GroundedText(
        written((said.text, (said.region,), "") for said in report.sentences), places
    )


def written(said: Iterable[tuple[str, tuple[str, ...], str]]) -> tuple[Span, ...]:
    """Spans of sentences: a phrase, the regions that it points at, and how the sentence goes on.

    >>> [span.text for span in written([("A", ("1",), " hums."), ("B", ("2",), ""), ("C", (), "")])]
    ['A', ' hums. ', 'B', ' C']
    """
    result: list[Span] = []
    for place, (phrase, regions, rest) in enumerate(said):
        for span in (*_some(" " if place else ""), Span(phrase, regions), *_some(rest)):
            if result and not result[-1].regions and not span.regions:
                result[-1] = Span(result[-1].text + span.text)
            else:
                result.append(span)
    return tuple(result)


@dataclass(frozen=True)
class _Reference:
    start: int
    end: int
    regions: tuple[str, ...]


@dataclass(frozen=True)
class _Twin:
    text: str
    references: tuple[_Reference, ...]
    places: dict[str, Box]


def _some(text: str) -> tuple[Span, ...]:
    return (Span(text),) if text else ()


def _escape(text: str) -> str:
    return re.sub(r"[&<>\[\]]", lambda match: _ENTITIES[match.group()], text)


def _unescape(text: str) -> str:
    plain = {written: mark for mark, written in _ENTITIES.items()}
    return plain.get(text, text)
