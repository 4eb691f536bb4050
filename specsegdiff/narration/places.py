"""What a place of a recording holds: its concepts on every axis, and the numbers behind them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from specsegdiff.cells import Box
from specsegdiff.frontend import Axes
from specsegdiff.narration.concepts import ConceptTree, speech_concepts
from specsegdiff.narration.fields import (
    SHORTEST_S,
    Fields,
    Frames,
    fields_from_phones,
    fields_from_sound,
    frames_of,
)
from specsegdiff.narration.kinds import Judgement, Reference, judge
from specsegdiff.narration.measurements import measure, measure_pair, place_of
from specsegdiff.narration.phones import Alphabet, PhoneInterval, phone_class
from specsegdiff.narration.rules import evidence
from specsegdiff.narration.schema import FieldName
from specsegdiff.storage import MapStore

AXIS_OF: dict[FieldName, str] = {
    "time": "when",
    "frequency": "band",
    "phone": "phone",
    "kind": "kind",
}
"Axis of the concept tree that a field of `specsegdiff.narration.schema` is the top of."


CELL_S = 1.65
"Seconds of the median cell that the bounds of kinds come from; of `reference.json`'s split."


@dataclass(frozen=True)
class Sight:
    """What was found at a place."""

    concepts: dict[str, str]
    "Concept by axis; a root where nothing can be said."
    uncertain: tuple[str, ...]
    "Axes that are a guess."
    numbers: dict[str, float]
    "Measurements by name; the unit ends the name."
    finding: str
    "The kind of artifact and its number in words, as `specsegdiff.narration.rules.evidence`."


@dataclass(frozen=True, eq=False)
class Listener:
    """Looks at any box of one recording, which it listens through once.

    Where a genuine twin is given, when and phone are read from the twin, since that is what was
    said, and the kind from what changed against it. The bounds of kinds come from cells, a quarter
    of the band by a quarter of a clip, and numbers such as the unevenness of a spectrum depend on
    how much of it there is: a smaller box is measured together with what is around it, and says so.
    """

    wave: Tensor | MapStore
    "The recording ``(n,)``."
    axes: Axes
    "Its axes."
    genuine: Tensor | MapStore | None = None
    "Genuine twin ``(n,)``, matched in level and time."
    phones: Sequence[PhoneInterval] | None = None
    "Aligned phones of the whole recording; None reads when and phone from the sound."
    alphabet: Alphabet = "arpabet"
    "How these phones are written; classes of consonants are known in ARPAbet."
    reference: Reference | None = None
    "What measurements usually are; None takes the numbers that ship with the package."

    def look(self, box: Box) -> Sight:
        """Find the concepts of a box.

        A band is named where it holds more than half of the box, and when and phone where the box
        is as long as the shortest phone; a kind where all three are. Raises `ShapeError` where the
        box holds no bin.
        """
        _, span = place_of(self.axes, box)
        frames = (span.stop - span.start) * self.axes.seconds_per_frame
        seconds = min(frames, box.t1 - box.t0) if self.phones is not None else frames
        if self.phones is None:
            fields = fields_from_sound(box, self._frames)
        else:
            fields = fields_from_phones(box, self.phones, self.axes, alphabet=self.alphabet)
        around = self._around(box)
        if self.genuine is None:
            measured = measure(self.wave, self.axes, around)
        else:
            measured = measure_pair(self.wave, self.genuine, self.axes, around)
        tree = speech_concepts()
        concepts = {axis: tree.root(axis) for axis in tree.axes}
        if narrow := _share(box, *self._third(fields)) > 0.5:
            concepts["band"] = _special(tree, fields.frequency, box)
        if heard := seconds >= SHORTEST_S - 1e-9:
            concepts["when"] = self._when(fields, box, span, seconds)
            concepts["phone"] = self._phone(fields, box, tree)
        numbers = fields.numbers | measured
        if around != box:
            numbers |= {f"around_{name}": value for name, value in edges(around).items()}
        uncertain = [AXIS_OF[name] for name in fields.uncertain if heard]
        if not (narrow and heard):
            size = "wide a band" if heard else "short a moment"
            return Sight(concepts, tuple(uncertain), numbers, f"too {size} to name one kind")
        judgement = judge(measured, fields, reference=self.reference)
        concepts["kind"] = _kind(judgement, tree)
        said, used = evidence(measured, fields, judgement)
        if judgement.kind and self.genuine is None:
            uncertain.append("kind")
        kind, mark, rest = said.partition(": ")[2].removesuffix(".").partition("; ")
        if mark and around != box:
            rest = f"around it, at {around}, {rest}"
        return Sight(concepts, tuple(uncertain), numbers | used, kind + mark + rest)

    @functools.cached_property
    def _frames(self) -> Frames:
        return frames_of(self.wave if self.genuine is None else self.genuine, self.axes)

    def _around(self, box: Box) -> Box:
        """The box, or one of a cell's size around it."""
        end, top = self.axes.duration, self.axes.config.sample_rate / 2
        t0, t1 = _grown(box.t0, box.t1, least=min(CELL_S, end / 4), end=end)
        f0, f1 = _grown(box.f0, box.f1, least=top / 4, end=top)
        return Box(t0, t1, f0, f1)

    def _third(self, fields: Fields) -> tuple[float, float]:
        place = ("low", "mid", "high").index(fields.frequency)
        step = self.axes.config.sample_rate / 6
        return place * step, (place + 1) * step

    def _when(self, fields: Fields, box: Box, span: slice, seconds: float) -> str:
        """Within speech, at an edge of it, before, between or after; coarse where it is a guess."""
        if "time" in fields.uncertain:
            return fields.time
        if fields.time == "speech":
            whole = fields.numbers["speech_s"] >= seconds - 1e-9
            return "running speech" if whole else "speech edge"
        if self.phones is None:
            spoken = np.flatnonzero(self._frames.margin_db > 0)
            before, after = bool((spoken < span.start).any()), bool((spoken >= span.stop).any())
        else:
            real = [p for p in self.phones if phone_class(p.label, alphabet=self.alphabet)]
            before, after = any(p.t0 < box.t0 for p in real), any(p.t1 > box.t1 for p in real)
        if before and after:
            return "pause"
        return "trailing silence" if before else "leading silence" if after else fields.time

    def _phone(self, fields: Fields, box: Box, tree: ConceptTree) -> str:
        """P, or the class of the phone with the largest overlap where its label tells."""
        overlaps = [
            (min(phone.t1, box.t1) - max(phone.t0, box.t0), -place, phone.label)
            for place, phone in enumerate(self.phones or ())
            if phone_class(phone.label, alphabet=self.alphabet) == fields.phone
        ]
        if not overlaps or self.alphabet != "arpabet" or "phone" in fields.uncertain:
            return fields.phone
        label = max(overlaps)[2].strip().upper().rstrip("0123456789")
        found = tree.by_label(label)
        return found.name if found else fields.phone


def edges(box: Box) -> dict[str, float]:
    """Edges of a box as numbers by name.

    >>> edges(Box(0.0, 0.5, 0.0, 2000.0))
    {'t0_s': 0.0, 't1_s': 0.5, 'f0_hz': 0.0, 'f1_hz': 2000.0}
    """
    return {"t0_s": box.t0, "t1_s": box.t1, "f0_hz": box.f0, "f1_hz": box.f1}


def _grown(low: float, high: float, *, least: float, end: float) -> tuple[float, float]:
    # a cell has a cell's size, but for the last bit
    if high - low >= least * (1 - 1e-9):
        return low, high
    low = min(max(0.0, (low + high - least) / 2), end - least)
    return low, min(end, low + least)


def _share(box: Box, low: float, high: float) -> float:
    """Share of a box's height that lies in a band."""
    return max(0.0, min(box.f1, high) - max(box.f0, low)) / (box.f1 - box.f0)


def _special(tree: ConceptTree, name: str, box: Box) -> str:
    """Band below a third that holds more than half of the box, or the third."""
    for child in tree.children(name):
        edges = tree.concept(child).hertz
        if edges and _share(box, *edges) > 0.5:
            return child
    return name


def _kind(judgement: Judgement, tree: ConceptTree) -> str:
    if judgement.kind:
        return judgement.kind
    return "nothing unusual" if judgement.strongest else tree.root("kind")
