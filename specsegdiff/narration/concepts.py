"""Trees of concepts: what can be said of a region, from the general to the special, axis by axis.

Two trees ship with the package as data, ``speech_concepts.json`` and ``face_concepts.json``. The
top levels of the one for speech are GRIDEX's T, F and P and the kinds of artifact, by the names of
`specsegdiff.narration.schema`; the levels below are ours. That FiFa (arXiv 2510.20531) has 112
concepts is published, which ones is not: the tree for faces is ours as well, with the labels of
CelebAMask-HQ, which face parsers give.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from specsegdiff.errors import ConfigError
from specsegdiff.hub import without_format

FORMAT = "specsegdiff concepts 1"

_NODE_KEYS = {"name", "words", "labels", "hertz", "children"}


@dataclass(frozen=True)
class Concept:
    """One node of a tree."""

    name: str
    "What it is called; unique in its tree."
    axis: str
    "The question that it answers, such as 'when'."
    parent: str | None
    "Name of the more general concept; None for the root of an axis, which says nothing."
    words: tuple[str, ...] = ()
    "Other phrases for it."
    labels: tuple[str, ...] = ()
    "What an aligner or a parser calls it, such as 'AA' or 'l_eye'."
    hertz: tuple[float, float] | None = None
    "Edges, where it is a band of fixed frequencies."


@dataclass(frozen=True)
class ConceptTree:
    """Concepts by axis; on each axis one root, and every other concept below one more general.

    Raises `ConfigError` where two concepts share a name, a phrase or a label, or a parent is
    missing.

    >>> tree = speech_concepts()
    >>> tree.path("fricative")
    ('any sound', 'consonant', 'fricative')
    >>> tree.distance("fricative", "vowel"), tree.distance("fricative", "consonant")
    (3, 1)
    >>> tree.parse("high-frequency vowels")
    {'band': 'high', 'phone': 'vowel'}
    """

    name: str
    "What it is about."
    concepts: tuple[Concept, ...]
    "Every node, a parent before its children."
    fillers: tuple[str, ...] = ()
    "Words that a phrase may hold and that say nothing."

    def __post_init__(self) -> None:
        seen: dict[str, Concept] = {}
        labels: set[str] = set()
        for concept in self.concepts:
            if concept.name in seen:
                raise ConfigError(f"tree {self.name!r}: {concept.name!r} stands twice; rename one")
            parent = seen.get(concept.parent) if concept.parent is not None else None
            if concept.parent is not None and (parent is None or parent.axis != concept.axis):
                raise ConfigError(
                    f"tree {self.name!r}: the parent {concept.parent!r} of {concept.name!r} must "
                    f"stand before it on the axis {concept.axis!r}"
                )
            if parent is None and concept.axis in {other.axis for other in seen.values()}:
                raise ConfigError(
                    f"tree {self.name!r}: the axis {concept.axis!r} has a second root, "
                    f"{concept.name!r}; give it a parent"
                )
            if twice := labels & set(concept.labels):
                raise ConfigError(
                    f"tree {self.name!r}: the label {min(twice)!r} stands twice; keep one"
                )
            if concept.hertz is not None and not 0 <= concept.hertz[0] < concept.hertz[1]:
                raise ConfigError(
                    f"tree {self.name!r}: expected hertz 0 <= low < high of {concept.name!r}, "
                    f"got {concept.hertz}"
                )
            labels |= set(concept.labels)
            seen[concept.name] = concept
        if not seen:
            raise ConfigError(f"tree {self.name!r} holds no concept; give it at least one axis")
        # builds the table of phrases, which must be unique
        _ = self._phrases

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes, in their order."""
        return tuple(dict.fromkeys(concept.axis for concept in self.concepts))

    def concept(self, name: str) -> Concept:
        """Return a concept by its name; raises `ConfigError` where there is none."""
        found = self._by_name.get(name)
        if found is None:
            raise ConfigError(
                f"the tree {self.name!r} has no concept {name!r}; its names are "
                f"{', '.join(self._by_name)}"
            )
        return found

    def root(self, axis: str) -> str:
        """Name of the most general concept of an axis; raises `ConfigError` on another axis."""
        for concept in self.concepts:
            if concept.axis == axis:
                return concept.name
        raise ConfigError(f"the tree {self.name!r} has no axis {axis!r}; it has {self.axes}")

    def children(self, name: str) -> tuple[str, ...]:
        """Names of the concepts right below one; none for a leaf."""
        self.concept(name)
        return tuple(concept.name for concept in self.concepts if concept.parent == name)

    def path(self, name: str) -> tuple[str, ...]:
        """Names from the root of the axis down to a concept: its ancestors, then itself."""
        concept, names = self.concept(name), [name]
        while concept.parent is not None:
            concept = self.concept(concept.parent)
            names.append(concept.name)
        return tuple(reversed(names))

    def holds(self, general: str, special: str) -> bool:
        """Whether a concept is another one or an ancestor of it."""
        self.concept(general)
        return general in self.path(special)

    def common(self, first: str, second: str) -> str:
        """Deepest concept that holds both; raises `ConfigError` on different axes."""
        one, other = self.path(first), self.path(second)
        if one[0] != other[0]:
            raise ConfigError(
                f"{first!r} and {second!r} lie on different axes of the tree {self.name!r}; "
                "compare concepts of one axis"
            )
        return [a for a, b in zip(one, other, strict=False) if a == b][-1]

    def distance(self, first: str, second: str) -> int:
        """Edges between two concepts of an axis, through the deepest one that holds both."""
        depth = len(self.path(self.common(first, second)))
        return len(self.path(first)) + len(self.path(second)) - 2 * depth

    def by_label(self, label: str) -> Concept | None:
        """Concept that an aligner's or parser's label names; None where it names none.

        >>> speech_concepts().by_label("JH").name
        'affricate'
        """
        return next((concept for concept in self.concepts if label in concept.labels), None)

    def read(self, text: str) -> dict[str, str]:
        """Concept that a text speaks of on each axis; the root where it speaks of none.

        Of several on one path the deepest counts. Of several that contradict each other, such as
        low and high, what they have in common does: a text that names everything says nothing. It
        is a lexicon, and understands no negation but the phrases that it holds.

        >>> speech_concepts().read("In the vowel, no artifact stands out.")["kind"]
        'nothing unusual'
        """
        said = {axis: self.root(axis) for axis in self.axes}
        spoken: dict[str, list[str]] = {axis: [] for axis in self.axes}
        for mention in self._mentions(_tokens(text)):
            if mention.concept is not None:
                spoken[self.concept(mention.concept).axis].append(mention.concept)
        for axis, names in spoken.items():
            if names:
                deepest = max(names, key=lambda name: len(self.path(name)))
                agree = all(self.holds(name, deepest) for name in names)
                said[axis] = deepest if agree else functools.reduce(self.common, names)
        return said

    def parse(self, phrase: str) -> dict[str, str]:
        """Concepts that a phrase asks for, by axis; an axis that it does not name is left out.

        Raises `ConfigError` on a word that is neither a concept nor a filler, on concepts of one
        axis that contradict each other, and where nothing is asked for.
        """
        tokens = _tokens(phrase)
        asked: dict[str, str] = {}
        ignored = {_token(word) for word in self.fillers}
        for start, stop, name in self._mentions(tokens):
            if name is None:
                if tokens[start] not in ignored:
                    raise ConfigError(
                        f"the word {tokens[start]!r} of {phrase!r} names no concept of the tree "
                        f"{self.name!r}; it knows {', '.join(self._by_name)}"
                    )
                continue
            axis = self.concept(name).axis
            before = asked.setdefault(axis, name)
            if self.holds(before, name):
                asked[axis] = name
            elif not self.holds(name, before):
                said = " ".join(tokens[start:stop])
                raise ConfigError(
                    f"{phrase!r} asks for {before!r} and for {said!r}, which exclude each other; "
                    "ask for one"
                )
        if not asked:
            raise ConfigError(
                f"{phrase!r} names no concept of the tree {self.name!r}; it knows "
                f"{', '.join(self._by_name)}"
            )
        return asked

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, that `from_dict` reads."""
        axes = {axis: self._node(self.root(axis)) for axis in self.axes}
        return {"format": FORMAT, "name": self.name, "fillers": list(self.fillers), "axes": axes}

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "concepts") -> "ConceptTree":
        """Build a tree of nested nodes, as in ``speech_concepts.json``.

        Raises `ConfigError` on missing, unknown or impossible fields; ``where`` names the source
        there.
        """
        values, keys = without_format(values, FORMAT, where=where), {"name", "fillers", "axes"}
        if set(values) != keys:
            raise ConfigError(f"{where}: expected an object with the fields {sorted(keys)}")
        if not isinstance(values["axes"], dict) or not values["axes"]:
            raise ConfigError(f"{where}: expected the root of each axis by the name of the axis")
        concepts = tuple(
            concept
            for axis, node in values["axes"].items()
            for concept in _concepts(node, axis, None, where=f"{where}: {axis}")
        )
        name, fillers = values["name"], _texts(values["fillers"], where=f"{where}: fillers")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{where}: expected a name, got {name!r}")
        return cls(name, concepts, fillers)

    @functools.cached_property
    def _by_name(self) -> dict[str, Concept]:
        return {concept.name: concept for concept in self.concepts}

    @functools.cached_property
    def _phrases(self) -> Mapping[tuple[str, ...], str]:
        """Concept by the words of each of its phrases."""
        phrases: dict[tuple[str, ...], str] = {}
        for concept in self.concepts:
            for phrase in (concept.name, *concept.words):
                words = _tokens(phrase)
                if not words or phrases.get(words, concept.name) != concept.name:
                    raise ConfigError(
                        f"tree {self.name!r}: the phrase {phrase!r} of {concept.name!r} is empty "
                        f"or stands for {phrases.get(words)!r} too; keep one"
                    )
                phrases[words] = concept.name
        return phrases

    def _mentions(self, tokens: Sequence[str]) -> "Iterator[_Mention]":
        """Concepts in the order of the text, the longest phrase first, and the words between."""
        longest, start = max(map(len, self._phrases)), 0
        while start < len(tokens):
            stop = next(
                (
                    stop
                    for stop in range(min(start + longest, len(tokens)), start, -1)
                    if tuple(tokens[start:stop]) in self._phrases
                ),
                None,
            )
            name = None if stop is None else self._phrases[tuple(tokens[start:stop])]
            yield _Mention(start, stop or start + 1, name)
            start = stop or start + 1

    def _node(self, name: str) -> dict[str, Any]:
        concept, below = self.concept(name), [self._node(child) for child in self.children(name)]
        node: dict[str, Any] = {"name": name}
        for key, value in (
            ("words", list(concept.words)),
            ("labels", list(concept.labels)),
            ("hertz", list(concept.hertz or ())),
            ("children", below),
        ):
            if value:
                node[key] = value
        return node


class _Mention(NamedTuple):
    start: int
    stop: int
    concept: str | None


@cache
def speech_concepts() -> ConceptTree:
    """Tree of when, band, phone and kind that ships with the package."""
    return _shipped("speech_concepts.json")


@cache
def face_concepts() -> ConceptTree:
    """Tree of the parts of a face and what may be wrong with them, that ships with the package."""
    return _shipped("face_concepts.json")


def _shipped(name: str) -> ConceptTree:
    text = (files("specsegdiff") / "narration" / name).read_text(encoding="utf-8")
    return ConceptTree.from_dict(json.loads(text), where=f"narration/{name}")


def _concepts(node: Any, axis: str, parent: str | None, *, where: str) -> Iterator[Concept]:
    if not isinstance(node, dict) or "name" not in node or not set(node) <= _NODE_KEYS:
        raise ConfigError(
            f"{where}: expected a node with a name and some of {sorted(_NODE_KEYS)}, got {node!r}"
        )
    name, children = node["name"], node.get("children", [])
    if not isinstance(name, str) or not isinstance(children, list):
        raise ConfigError(f"{where}: expected a name and a list of children, got {node!r}")
    where = f"{where}: {name}"
    edges = node.get("hertz")
    if edges is not None and not (
        isinstance(edges, list)
        and len(edges) == 2
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in edges)
    ):
        raise ConfigError(f"{where}: expected hertz as two numbers, got {edges!r}")
    yield Concept(
        name,
        axis,
        parent,
        words=_texts(node.get("words", []), where=f"{where}: words"),
        labels=_texts(node.get("labels", []), where=f"{where}: labels"),
        hertz=None if edges is None else (float(edges[0]), float(edges[1])),
    )
    for child in children:
        yield from _concepts(child, axis, name, where=where)


def _texts(values: Any, *, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise ConfigError(f"{where}: expected a list of texts, got {values!r}")
    return tuple(values)


def _tokens(text: str) -> tuple[str, ...]:
    """Words of a text in lower case and the singular; a hyphen parts two of them.

    >>> _tokens("Over-smoothed vowels, irregularities")
    ('over', 'smoothed', 'vowel', 'irregularity')
    """
    return tuple(_token(word) for word in re.findall(r"[^\W_]+", text.lower()))


def _token(word: str) -> str:
    word = word.lower()
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    # not that of loss or of this
    return word[:-1] if len(word) > 3 and re.search(r"[^siu]s$", word) else word
