"""What an answer is, and how places of an explanation are looked at and written about."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeAlias

from torch import Tensor

from specsegdiff.cells import Box, RegionGrid, pool, top_k, whole_plane
from specsegdiff.errors import ConfigError
from specsegdiff.explanation import Explanation
from specsegdiff.hub import from_dict, without_format
from specsegdiff.narration.concepts import speech_concepts
from specsegdiff.narration.kinds import Reference
from specsegdiff.narration.measurements import place_of
from specsegdiff.narration.phones import Alphabet, PhoneInterval
from specsegdiff.narration.places import Listener, edges
from specsegdiff.narration.references import GroundedText, written
from specsegdiff.storage import BLOCK_FRAMES, MapStore

FORMAT = "specsegdiff answer 1"

WHOLE = "recording"
"Id of the whole recording in an answer."

Said: TypeAlias = tuple[str, tuple[str, ...], str]
"""A phrase, the places that it points at, and how its sentence goes on."""

STANDS_OUT, FAINT = 2.0, 0.5
"Times the recording's share of marked bins at which a place stands out, and at which it is faint."


@dataclass(frozen=True)
class Place:
    """A region that an answer speaks of.

    Raises `ConfigError` unless it has a concept of the tree for speech on every axis, and its
    numbers are finite.
    """

    id: str
    "'7' for a cell, 'R3' for a region of the mask, 'box' for a drawn box, or 'recording'."
    box: Box
    "Seconds and Hz; the smallest box around a region of the mask."
    concepts: dict[str, str]
    "Concept by axis of the tree for speech; a root where nothing is known."
    uncertain: tuple[str, ...]
    "Axes that are a guess."
    numbers: dict[str, float]
    "Heat and measurements by name; the unit ends the name."
    finding: str = ""
    "What is wrong there, in words; empty where nobody listened."

    def __post_init__(self) -> None:
        tree = speech_concepts()
        if set(self.concepts) != set(tree.axes):
            raise ConfigError(
                f"place {self.id!r}: expected a concept of each of {tree.axes}, "
                f"got {tuple(self.concepts)}"
            )
        for axis, name in self.concepts.items():
            if tree.concept(name).axis != axis:
                raise ConfigError(f"place {self.id!r}: {name!r} is no concept of axis {axis!r}")
        for name, value in self.numbers.items():
            if not math.isfinite(value):
                raise ConfigError(f"place {self.id!r}: {name} must be finite, got {value!r}")


@dataclass(frozen=True)
class Answer:
    """What is said of some places, in words that point at them, and as data."""

    question: str
    "What was asked."
    places: tuple[Place, ...]
    "Where the answer looks, the most suspicious first; none where a phrase names no place."
    text: GroundedText
    "The answer: phrases with references, and all else in between."
    provenance: dict[str, str]
    "Recording, model, and what the words depend on."
    numbers: dict[str, float] = field(default_factory=dict)
    "Numbers in the text that belong to no single place, unrounded."

    def __str__(self) -> str:
        return str(self.text)

    def _repr_html_(self) -> str:
        # ids are global in a notebook, and it may show several answers
        prefix = hashlib.sha256(self.to_json().encode()).hexdigest()[:8]
        anchors = {place.id: f"{prefix}-{row}" for row, place in enumerate(self.places)}
        said = ""
        for span in self.text.spans:
            links = [
                f"<a href='#{anchors[id]}'>{escape(id)}</a>" if id in anchors else escape(id)
                for id in span.regions
            ]
            phrase = f"<b>{escape(span.text)}</b>" if links else escape(span.text)
            said += phrase + (f"<sup>{' '.join(links)}</sup>" if links else "")
        axes = speech_concepts().axes
        head = "".join(f"<th>{name}</th>" for name in ("", "seconds", "Hz", *axes))
        rows = "".join(_row(place, anchors[place.id], axes) for place in self.places)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<div><p>{escape(self.question)}</p><p>{said}</p>{table if rows else ''}</div>"

    def place(self, id: str) -> Place:
        """Return a place by its id; raises `ConfigError` where there is none."""
        for place in self.places:
            if place.id == id:
                return place
        ids = ", ".join(place.id for place in self.places)
        raise ConfigError(f"this answer has no place {id!r}; its places are {ids or 'none'}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, that `from_dict` reads."""
        values = dataclasses.asdict(self) | {"text": self.text.to_dict()}
        return {"format": FORMAT} | values

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "answer") -> "Answer":
        """Build what `to_dict` wrote; raises `ConfigError` on anything else."""
        rest = without_format(values, FORMAT, where=where)
        text = GroundedText.from_dict(rest.pop("text", None), where=f"{where}: text")
        card = from_dict(_Card, rest, where=where)
        return cls(text=text, **vars(card))


@dataclass(frozen=True, eq=False)
class Room:
    """What all answers on one explanation share."""

    explanation: Explanation
    "What is asked about."
    phones: Sequence[PhoneInterval] | None = None
    "As in `Listener`, and so are the rest."
    alphabet: Alphabet = "arpabet"
    genuine: Tensor | MapStore | None = None
    reference: Reference | None = None

    @functools.cached_property
    def grid(self) -> RegionGrid:
        """The 4 x 4 cells; raises `ConfigError` where the recording is too short for them."""
        return RegionGrid(self.explanation.axes)

    @functools.cached_property
    def listener(self) -> Listener:
        """What looks at its places."""
        wave, axes = self.explanation.layers.wave, self.explanation.axes
        return Listener(wave, axes, self.genuine, self.phones, self.alphabet, self.reference)

    @functools.cached_property
    def marked(self) -> int:
        """Bins of the whole mask."""
        blocks = self.explanation.layers.mask.blocks(BLOCK_FRAMES)
        return sum(int(block.sum()) for _, block in blocks)

    def place(self, id: str, box: Box, *, listen: bool = True) -> Place:
        """A box with its heat, and its concepts where it is listened to."""
        tree = speech_concepts()
        concepts, uncertain = {axis: tree.root(axis) for axis in tree.axes}, ()
        numbers = self._heat(box)
        if not listen:
            return Place(id, box, concepts, uncertain, numbers)
        sight = self.listener.look(box)
        return Place(
            id, box, sight.concepts, sight.uncertain, numbers | sight.numbers, sight.finding
        )

    def region(self, id: str, *, listen: bool = True) -> Place:
        """A region of the mask, by the smallest box around it."""
        known = {region.id: region for region in self.explanation.regions}
        if id not in known:
            raise ConfigError(
                f"this explanation has no region {id!r}; it has {', '.join(known) or 'none'}, and "
                f"cells '1' to '{self.grid.count}'"
            )
        found = known[id]
        place = self.place(id, Box(found.t0, found.t1, found.f0, found.f1), listen=listen)
        own = {"region_heat": found.score, "region_percent": 100 * found.share}
        return dataclasses.replace(place, numbers=place.numbers | own)

    def hottest(self, k: int) -> list[Place]:
        """The ``k`` cells with the highest mean heat; raises `ConfigError` as `top_k`."""
        heat = pool(self.explanation.layers.heatmap, self.grid)
        return [self.place(id, self.grid.box(id)) for id in top_k(heat, k)]

    def drawn(self, edges: Mapping[str, float | None]) -> Box:
        """A box of which some edges were given; it must lie in the recording."""
        whole = dataclasses.asdict(whole_plane(self.explanation.axes))
        for name, edge in edges.items():
            if edge is not None and (isinstance(edge, bool) or not isinstance(edge, int | float)):
                raise ConfigError(f"expected {name} as a number, got {edge!r}")
        given = {name: float(edge) for name, edge in edges.items() if edge is not None}
        box = Box(**(whole | given))
        if box.t1 > whole["t1"] or box.f1 > whole["f1"]:
            raise ConfigError(
                f"the box {box} reaches beyond the recording, which ends at {whole['t1']:.3f} s "
                f"and {whole['f1']:.0f} Hz; draw it inside"
            )
        return box

    def verdict(self) -> tuple[list[Said], dict[str, float]]:
        """What the detector says of the whole, or nothing."""
        verdict = self.explanation.verdict
        if verdict is None:
            return [], {}
        side = "synthetic than genuine" if verdict.p_spoof >= 0.5 else "genuine than synthetic"
        rest = f" is rather {side}: p(spoof) {verdict.p_spoof:.2f} by {verdict.detector}."
        return [("The whole recording", (WHOLE,), rest)], {"p_spoof": verdict.p_spoof}

    def sentences(self, place: Place) -> list[Said]:
        """What a place is and how much of the mask it has, and what is wrong with it."""
        n = place.numbers
        times = n["covered_percent"] / n["whole_percent"] if n["whole_percent"] else 0.0
        verdict = (
            "stands out" if times >= STANDS_OUT else "is faint" if times <= FAINT else "is usual"
        )
        first = (
            f", {place.box}, {verdict}: {n['covered_percent']:.1f} % of it is marked, of all "
            f"{n['whole_percent']:.1f} %; mean heat {n['heat']:.2f} with a spread of "
            f"{n['spread']:.2f}."
        )
        kind, mark, rest = place.finding.partition("; ")
        return [
            (_head(place), (place.id,), first),
            (kind[:1].upper() + kind[1:], (place.id,), f"{mark}{rest}."),
        ]

    def answer(
        self,
        question: str,
        places: Sequence[Place],
        said: Iterable[Said] | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> Answer:
        """Write an answer; of one place, where nothing else is said, its own sentences."""
        made, whole = self.explanation.provenance, whole_plane(self.explanation.axes)
        if said is None:
            said = [sentence for place in places for sentence in self.sentences(place)]
        sentences = list(said) or [("The mask", (WHOLE,), " has no region that is large enough.")]
        boxes = {WHOLE: whole} | {place.id: place.box for place in places}
        return Answer(
            question,
            tuple(places),
            GroundedText(written(sentences), boxes),
            {
                "source": made.source,
                "samples_sha256": made.samples_sha256,
                "model": made.model,
                "weights_sha256": made.weights_sha256,
                "version": made.version,
                "fields": "sound" if self.phones is None else "phones",
                "twin": "no" if self.genuine is None else "yes",
            },
            {name: float(value) for name, value in (numbers or {}).items()},
        )

    def _heat(self, box: Box) -> dict[str, float]:
        """Heat and mask of a box, read in blocks."""
        layers = self.explanation.layers
        bins, span = place_of(self.explanation.axes, box)
        heat = spread = 0.0
        marked = 0
        for start in range(span.start, span.stop, BLOCK_FRAMES):
            stop = min(start + BLOCK_FRAMES, span.stop)
            heat += float(layers.heatmap.window(start, stop)[bins].double().sum())
            spread += float(layers.spread.window(start, stop)[bins].double().sum())
            marked += int(layers.mask.window(start, stop)[bins].sum())
        size = (bins.stop - bins.start) * (span.stop - span.start)
        return edges(box) | {
            "heat": heat / size,
            "spread": spread / size,
            "covered_percent": 100 * marked / size,
            "whole_percent": 100 * self.marked / math.prod(self.explanation.axes.shape),
            "mask_percent": 100 * marked / max(1, self.marked),
        }


@dataclass(frozen=True)
class _Card:
    """An answer without its text."""

    question: str
    places: tuple[Place, ...]
    provenance: dict[str, str]
    numbers: dict[str, float]


def _row(place: Place, anchor: str, axes: Sequence[str]) -> str:
    box = place.box
    words = [f"{place.concepts[axis]}{'?' if axis in place.uncertain else ''}" for axis in axes]
    values = (place.id, f"{box.t0:.2f}-{box.t1:.2f}", f"{box.f0:.0f}-{box.f1:.0f}", *words)
    return f"<tr id='{anchor}'>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"


def _head(place: Place) -> str:
    """Concepts of a place in words, a guess being called one; roots say nothing."""
    tree, words = speech_concepts(), []
    for axis in ("when", "phone", "band"):
        name = place.concepts[axis]
        if name == tree.root(axis):
            continue
        if axis == "phone" and name != "unvoiced":
            article = "an" if name[0] in "aeiou" else "a"
            name = f"{'probably' if axis in place.uncertain else 'mostly'} {article} {name}"
        elif axis == "when" and axis in place.uncertain:
            name = f"probably {name}"
        elif axis == "band" and tree.concept(name).hertz is None:
            name = f"{name} band"
        words.append(name)
    said = ", ".join(words) or "this place"
    return said[:1].upper() + said[1:]
