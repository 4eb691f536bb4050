"""Answers about a recording, or about any part of it, that point at the places they speak of.

The tasks of FiFa (arXiv 2510.20531) as far as they have a meaning for sound: `detect` (is it
synthetic?), `classify` (what kind of damage?), `ask` (text on the recording, a cell, a region, a
box, or whatever a phrase names), `localise` (where?), and `ground` (text and regions in one). All
give an `Answer`. A mask is the hottest twentieth of every recording, a genuine one as well: it says
where, and never whether.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from specsegdiff.cells import Box, whole_plane
from specsegdiff.errors import ConfigError
from specsegdiff.explanation import Explanation
from specsegdiff.narration.concepts import speech_concepts
from specsegdiff.narration.kinds import Reference
from specsegdiff.narration.phones import Alphabet, PhoneInterval
from specsegdiff.narration.places import edges
from specsegdiff.narration.replies import WHOLE, Answer, Place, Room, Said
from specsegdiff.storage import MapStore

DRAWN = "box"
"Id of a box that was drawn."


def ask(
    explanation: Explanation,
    question: str | Box | None = None,
    *,
    t0: float | None = None,
    t1: float | None = None,
    f0: float | None = None,
    f1: float | None = None,
    k: int = 3,
    phones: Sequence[PhoneInterval] | None = None,
    alphabet: Alphabet = "arpabet",
    genuine: Tensor | MapStore | None = None,
    reference: Reference | None = None,
) -> Answer:
    """Answer on a part of a recording.

    ``question`` is a box, the id of a cell of the 4 x 4 grid ('7', 'cell 7'), that of a region of
    `Explanation.regions` ('R3'), or a phrase such as 'high-frequency vowels', which means every
    cell of that description. ``t0``, ``t1`` (s), ``f0`` and ``f1`` (Hz) draw a box; an edge that is
    left out is the recording's. Without any of it the ``k`` hottest cells answer for the whole; of
    the cells of a phrase, the ``k`` hottest are described. ``phones``, ``genuine`` and
    ``reference`` are those of `specsegdiff.narration.places.Listener`.

    Raises `ConfigError` on a box that reaches beyond the recording, an id that it does not have, a
    phrase with an unknown word, and two questions at once; `ShapeError` on a box between bins.
    """
    room = Room(explanation, phones, alphabet, genuine, reference)
    found = _place(room, question, {"t0": t0, "t1": t1, "f0": f0, "f1": f1})
    if isinstance(found, Place):
        return room.answer(_name(found), [found])
    return _on_recording(room, k) if found is None else _on_phrase(room, found, k)


def detect(explanation: Explanation) -> Answer:
    """Answer whether a recording is synthetic, as far as its detector knows.

    Raises `ConfigError` where no detector was asked.
    """
    room = Room(explanation)
    said, numbers = room.verdict()
    if not said:
        raise ConfigError(
            "this explanation has no verdict; explain with detector=True, or pass a detector"
        )
    place = room.place(WHOLE, whole_plane(explanation.axes), listen=False)
    return room.answer("is it synthetic?", [place], said, numbers)


def classify(
    explanation: Explanation,
    *,
    k: int = 3,
    phones: Sequence[PhoneInterval] | None = None,
    genuine: Tensor | MapStore | None = None,
) -> Answer:
    """Answer what family of damage the ``k`` hottest cells show, each with its share of the mask.

    Families are those of the concept tree: loss of grain, loss of shape, added structure, or
    nothing unusual. Which system made a recording is not answered: nothing here is known to tell
    one kind of vocoder from another (``docs/decisions/0011-grounded-answers.md``).
    """
    room, tree = Room(explanation, phones, genuine=genuine), speech_concepts()
    places = room.hottest(k)
    families: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        # any finding > artifact > loss of grain > over-smoothing: the third, or the last there is
        families[tree.path(place.concepts["kind"])[:3][-1]].append(place)
    shares = {
        family: sum(place.numbers["mask_percent"] for place in members)
        for family, members in families.items()
    }
    said = [
        (
            family.capitalize(),
            tuple(place.id for place in families[family]),
            f": {shares[family]:.1f} % of the mask lie there.",
        )
        for family in sorted(shares, key=lambda name: -shares[name])
    ]
    numbers = {f"{name.replace(' ', '_')}_percent": share for name, share in shares.items()}
    return room.answer("what kind of damage?", places, said, numbers)


def localise(
    explanation: Explanation,
    question: str | Box | None = None,
    *,
    t0: float | None = None,
    t1: float | None = None,
    f0: float | None = None,
    f1: float | None = None,
) -> Answer:
    """Answer where the mask lies: the regions of `Explanation.regions`, strongest first.

    With a question, a box or a phrase, as in `ask`: those of them that reach into that place, by
    the boxes around them. Raises as `ask` does.
    """
    room = Room(explanation)
    found = _place(room, question, {"t0": t0, "t1": t1, "f0": f0, "f1": f1}, listen=False)
    places = [room.region(region.id, listen=False) for region in explanation.regions]
    said: list[Said] = []
    numbers: dict[str, float] = {}
    name = "where is it?"
    if found is not None:
        asked = [found] if isinstance(found, Place) else _matching(room, found)
        name = _name(found) if isinstance(found, Place) else found
        where = str(found.box) if isinstance(found, Place) else found
        places = [p for p in places if any(_overlap(p.box, place.box) for place in asked)]
        ids = tuple(place.id for place in places) or (WHOLE,)
        regions = "1 region reaches" if len(places) == 1 else f"{len(places)} regions reach"
        said, numbers = [(regions, ids, f" into {where}.")], {"regions": len(places)}
        if isinstance(found, Place):
            numbers |= {f"asked_{name}": value for name, value in edges(found.box).items()}
    said += [
        (str(p.box), (p.id,), f" holds {p.numbers['region_percent']:.1f} % of the mask.")
        for p in places
    ]
    return room.answer(name, places, said, numbers)


def ground(
    explanation: Explanation,
    *,
    k: int = 3,
    phones: Sequence[PhoneInterval] | None = None,
    genuine: Tensor | MapStore | None = None,
) -> Answer:
    """Explain a recording by the ``k`` strongest regions of its mask, text and places in one.

    The detector's sentence comes first, where one was asked. Raises `ConfigError` on ``k`` below 1.
    """
    room = Room(explanation, phones, genuine=genuine)
    places = [room.region(region.id) for region in explanation.regions[: _positive(k)]]
    said, numbers = room.verdict()
    said += [sentence for place in places for sentence in room.sentences(place)]
    return room.answer("what speaks for it?", places, said, numbers)


def _on_recording(room: Room, k: int) -> Answer:
    places = room.hottest(k)
    said, numbers = room.verdict()
    said += [sentence for place in places for sentence in room.sentences(place)]
    return room.answer("the whole recording", places, said, numbers)


def _on_phrase(room: Room, phrase: str, k: int) -> Answer:
    places, count = _matching(room, phrase), room.grid.count
    found = tuple(place.id for place in places) or (WHOLE,)
    asked = ", ".join(speech_concepts().parse(phrase).values())
    said = [(f"{len(places)} of {count} cells", found, f" answer to: {asked}.")]
    said += [sentence for place in places[: _positive(k)] for sentence in room.sentences(place)]
    return room.answer(phrase, places, said, {"cells": count, "matching": len(places)})


def _matching(room: Room, phrase: str) -> list[Place]:
    """Cells that a phrase describes, hottest first."""
    tree = speech_concepts()
    asked = tree.parse(phrase)
    return [
        place
        for place in room.hottest(room.grid.count)
        if all(tree.holds(name, place.concepts[axis]) for axis, name in asked.items())
    ]


def _place(
    room: Room,
    question: str | Box | None,
    drawn: Mapping[str, float | None],
    *,
    listen: bool = True,
) -> Place | str | None:
    """The place that is asked about, the phrase where it is one, None for the whole recording."""
    given = any(edge is not None for edge in drawn.values())
    if question is not None and given:
        raise ConfigError(f"expected one question, got {question!r} and a box; leave one out")
    if isinstance(question, str):
        name = question.strip()
        if cell := re.fullmatch(r"(?:cell\s*)?(\d+)", name, re.IGNORECASE):
            return room.place(cell[1], room.grid.box(cell[1]), listen=listen)
        return room.region(name, listen=listen) if re.fullmatch(r"R\d+", name) else name
    if isinstance(question, Box):
        drawn = dataclasses.asdict(question)
    elif question is not None:
        raise ConfigError(
            f"expected a box, the id of a cell or region, or a phrase, got {question!r}"
        )
    elif not given:
        return None
    return room.place(DRAWN, room.drawn(drawn), listen=listen)


def _name(place: Place) -> str:
    """What was asked for, in words."""
    if place.id == DRAWN:
        return str(place.box)
    return f"region {place.id}" if place.id.startswith("R") else f"cell {place.id}"


def _overlap(first: Box, second: Box) -> bool:
    shared = min(first.t1, second.t1) > max(first.t0, second.t0)
    return shared and min(first.f1, second.f1) > max(first.f0, second.f0)


def _positive(k: int) -> int:
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    return k
