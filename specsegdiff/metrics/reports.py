"""How right the words of a report are: fields against the truth, texts against fields and texts.

A text is read with a lexicon, as in GRIDEX's public code (arXiv 2606.18738), whose published scores
have a language model read it instead: ours need none, and anybody can repeat them. The lexicon is
easily pleased (a text that says formant says vowel), so no score from it stands alone.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specsegdiff.errors import ConfigError, ShapeError


class Fields(NamedTuple):
    """T, F and P of a region; None where nothing legal was said."""

    time: str | None
    "speech or non-speech."
    frequency: str | None
    "low, mid or high."
    phone: str | None
    "vowel, consonant or unvoiced."


@dataclass(frozen=True)
class Told:
    """What a report says of one region: the row that the scores count."""

    region: str
    "Name of the region."
    fields: Fields
    "T, F and P as declared."
    evidence: str
    "En."


LEXICON: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "time": {
        "speech": ("speech", "voiced", "spoken"),
        "non-speech": (
            "silence",
            "pause",
            "non-speech",
            "background",
            "noise-only",
            "unvoiced",
        ),
    },
    "frequency": {"low": ("low",), "mid": ("mid", "middle"), "high": ("high",)},
    "phone": {
        "vowel": ("vowel", "formant"),
        "consonant": ("consonant", "stop", "fricative"),
        "unvoiced": ("unvoiced", "voiceless", "aspiration", "burst"),
    },
}
"""Words that speak for a label, by field: those of GRIDEX's public code, plurals as well."""


def read_fields(text: str) -> Fields:
    """T, F and P that a text speaks of: the label with most words, ties to the earliest; or None.

    >>> read_fields("In the mid band the vowel's formants fade; the speech sounds muffled.")
    Fields(time='speech', frequency='mid', phone='vowel')
    >>> read_fields("A pause, and non-speech.")
    Fields(time='non-speech', frequency=None, phone=None)
    """
    return Fields(*(_label(text.lower(), name) for name in Fields._fields))


def coverage(texts: Sequence[str]) -> dict[str, float]:
    """Share of the texts from which each field can be read, and CovAvg, their mean, as ``average``.

    No text gives NaN.

    >>> coverage(["low hum", "vowel"])
    {'time': 0.0, 'frequency': 0.5, 'phone': 0.5, 'average': 0.3333333333333333}
    """
    return _shares([[label is not None for label in read_fields(text)] for text in texts])


def field_accuracy(said: Sequence[Fields], truth: Sequence[Fields]) -> dict[str, float]:
    """Share of right words for each field, and FieldAcc, their mean, as ``average``.

    A field that was not said is wrong. Raises `ShapeError` on unequal lengths; no row gives NaN.

    >>> field_accuracy([Fields("speech", "low", None)], [Fields("speech", "mid", "vowel")])
    {'time': 1.0, 'frequency': 0.0, 'phone': 0.0, 'average': 0.3333333333333333}
    """
    if len(said) != len(truth):
        raise ShapeError(f"expected one truth for each row, got {len(said)} and {len(truth)}")
    return _shares(
        [
            [a is not None and a == b for a, b in zip(row, true, strict=True)]
            for row, true in zip(said, truth, strict=True)
        ]
    )


def consistency(fields: Fields, evidence: str) -> float:
    """Share of the three fields that the text can be read to say: C of reward R2, in [0, 1].

    >>> consistency(Fields("speech", "low", "vowel"), "The formants of the low band are blurred.")
    0.6666666666666666
    """
    return field_accuracy([read_fields(evidence)], [fields])["average"]


def rouge_l(candidate: str, reference: str, *, beta: float = 1.0) -> float:
    """ROUGE-L: F measure of the longest common subsequence of tokens, in [0, 1].

    Tokens are words and single marks, in lower case. ``beta`` weighs recall: 1 in GRIDEX's reward,
    1.2 in pycocoevalcap, which splits at blanks only. A text without tokens scores 0. Source: Lin
    2004, "ROUGE: a package for automatic evaluation of summaries", Eq. 2 to 4.

    >>> rouge_l("The vowel is smeared.", "The low vowel is blurred.")
    0.7272727272727272
    """
    if not beta > 0:
        raise ConfigError(f"beta must be positive, got {beta!r}")
    said, true = (re.findall(r"\w+|[^\w\s]", text.lower()) for text in (candidate, reference))
    common = _common(said, true)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(true)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def evaluate_reports(
    told: Sequence[Sequence[Told]], truth: Sequence[Mapping[str, Told]], *, asked: int
) -> dict[str, float]:
    """All scores of many reports, over rows: what one report says of one region.

    ``truth`` holds the true regions of each recording by id, and ``asked`` is the number of regions
    that a full report has. Rows whose region is a true one are hits, and only they can be compared
    with the truth. ``field_accuracy``, ``field_accuracy_from_text`` (read out of the text) and
    ``rouge_l`` are means over hits; with ``_end_to_end`` they are multiplied by the hit rate, as
    GRIDEX publishes them. ``coverage`` and ``consistency`` are means over all rows. ``hit_rate``
    is hits over ``asked`` rows a recording, so that a report gains nothing by silence; where all
    are full it is GRIDEX's share of the predicted rows.

    Raises `ShapeError` on unequal lengths, `ConfigError` on a report with a region twice or more
    than ``asked``.
    """
    if len(told) != len(truth):
        raise ShapeError(
            f"expected the truth of each report, got {len(told)} reports and {len(truth)} truths"
        )
    for rows in told:
        names = [row.region for row in rows]
        if len(set(names)) < len(names) or len(names) > asked:
            raise ConfigError(
                f"expected at most {asked} different regions in a report, got {names}"
            )
    every = [row for rows in told for row in rows]
    hits = [
        (row, true[row.region])
        for rows, true in zip(told, truth, strict=True)
        for row in rows
        if row.region in true
    ]
    truths = [true.fields for _, true in hits]
    from_text = [read_fields(row.evidence) for row, _ in hits]
    hit_rate = len(hits) / (asked * len(told)) if told else math.nan
    on_hits = {
        "field_accuracy": field_accuracy([row.fields for row, _ in hits], truths)["average"],
        "field_accuracy_from_text": field_accuracy(from_text, truths)["average"],
        "rouge_l": _mean([rouge_l(row.evidence, true.evidence) for row, true in hits]),
    }
    # no hit: nothing is right end to end, though accuracy on hits is undefined
    end_to_end = {
        f"{name}_end_to_end": value * hit_rate if hits else 0.0 * hit_rate
        for name, value in on_hits.items()
    }
    return {
        "rows": float(len(every)),
        "hit_rate": hit_rate,
        **on_hits,
        **end_to_end,
        "coverage": coverage([row.evidence for row in every])["average"],
        "consistency": _mean([consistency(row.fields, row.evidence) for row in every]),
    }


def _patterns(labels: Mapping[str, tuple[str, ...]]) -> tuple[re.Pattern[str], dict[str, str]]:
    label_of = {word: label for label, words in labels.items() for word in words}
    # longer words first: the speech in non-speech is none
    words = "|".join(re.escape(word) for word in sorted(label_of, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{words})(?=s?(?!\w))"), label_of


_READERS = {name: _patterns(labels) for name, labels in LEXICON.items()}


def _label(text: str, field: str) -> str | None:
    pattern, label_of = _READERS[field]
    found = [label_of[match.group()] for match in pattern.finditer(text)]
    # max takes the first of equals, and found is in order of appearance
    return max(found, key=found.count, default=None)


def _shares(rows: Sequence[Sequence[bool]]) -> dict[str, float]:
    shares = {
        name: _mean([float(row[place]) for row in rows])
        for place, name in enumerate(Fields._fields)
    }
    return shares | {"average": _mean(list(shares.values()))}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for a in first:
        corner = 0
        for place, b in enumerate(second, start=1):
            above = row[place]
            row[place] = corner + 1 if a == b else max(above, row[place - 1])
            corner = above
    return row[-1]
