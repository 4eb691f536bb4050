"""What a model wrote, to regions and words; what cannot be read is said, and nothing is made up.

Two answers have a form. Query 1 is a list of ids, ``[15, 14, 11]``. Query 2 is a line per id,
``(15, T=speech, F=low, P=vowel, En="...")``, where the text is a JSON string: quotes, brackets and
line breaks in it are escaped. The strict readers take what the writers write, and no more. The
lenient ones take what language models make of it: other words around it, other spelling, quotes
that are not escaped, and the indexed form ``(T1=..., F1=..., P1=..., En1="...")`` of GRIDEX's
public code. Both take any text in time linear in its length; regions that were not asked about,
halves of a line and the model's own markers, such as an image token, count as not understood.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from specsegdiff.errors import ConfigError
from specsegdiff.narration.schema import (
    FREQUENCIES,
    PHONES,
    TIMES,
    Frequency,
    Phone,
    Time,
)

LONGEST = 2000
"Characters of a text that the lenient reader still takes for evidence."

SYNONYMS: dict[str, dict[str, str]] = {
    "time": {"nonspeech": "non-speech", "non speech": "non-speech", "non_speech": "non-speech"},
    "frequency": {"middle": "mid"},
    "phone": {"voiceless": "unvoiced", "none": "unvoiced"},
}
"Other spellings that the lenient reader takes, by field."


@dataclass(frozen=True)
class Finding:
    """What a model says of one region; a field is None where it is missing or no legal word."""

    id: str
    "Name of the region."
    time: Time | None
    "T."
    frequency: Frequency | None
    "F."
    phone: Phone | None
    "P."
    evidence: str
    "En; empty where it is missing."

    @property
    def complete(self) -> bool:
        """Whether all fields are there."""
        return None not in (self.time, self.frequency, self.phone) and bool(self.evidence.strip())


@dataclass(frozen=True)
class ParsedCells:
    """Ids that a model chose, best first, and what of its answer was not understood."""

    ids: tuple[str, ...]
    "Distinct ids of regions that exist."
    unparsed: str = ""
    "The rest; empty where all was understood."


@dataclass(frozen=True)
class ParsedFindings:
    """What a model says of the regions it was asked about, and what was not understood."""

    findings: tuple[Finding, ...]
    "At most one for each region, in the order of the answer."
    unparsed: str = ""
    "The rest; empty where all was understood."


# ------------------------------------------------------------------ query 1


def write_cells(ids: Iterable[str]) -> str:
    """Write ids as the answer to Query 1.

    >>> write_cells(["15", "14", "11"])
    '[15, 14, 11]'
    """
    return f"[{', '.join(ids)}]"


def parse_cells(text: str, *, count: int, k: int, strict: bool = False) -> ParsedCells:
    """Read the ids of at most ``k`` regions out of ``count``; Query 1.

    Strict: exactly ``k`` different ids in brackets, and nothing else. Lenient: the one list in
    brackets that the text holds, or a text of nothing but numbers and the words cell, region and
    and; two lists that differ are no answer, and a number in a sentence is no region. Within other
    words a list counts only where it holds ``k`` different numbers and at least two regions, no
    negation leads to it and no unit follows, or where it ends the text after a label such as
    ``Answer:``; code fences and markers are no words. Ids that do not exist, repetitions and ids
    beyond ``k`` are left out and reported.

    >>> parse_cells("I choose [15, 14, 99].", count=16, k=3)
    ParsedCells(ids=('15', '14'), unparsed='99')
    >>> parse_cells("I cannot see the picture [1].", count=16, k=3)
    ParsedCells(ids=(), unparsed='I cannot see the picture [1].')
    >>> parse_cells("There are 3 regions.", count=16, k=3)
    ParsedCells(ids=(), unparsed='There are 3 regions.')
    """
    known = {str(number) for number in range(1, count + 1)}
    if strict:
        listed = _STRICT_LIST.fullmatch(text.strip())
        ids = tuple(_NUMBER.findall(text)) if listed else ()
        good = len(ids) == k and len(set(ids)) == k and known.issuperset(ids)
        return ParsedCells(ids) if good else ParsedCells((), text)
    lists = {tuple(_NUMBER.findall(match.group())) for match in _LIST.finditer(text)}
    bare = not lists and _BARE.fullmatch(text.strip())
    # 1,500 is one number, unless there are regions of three digits
    if bare and not (count < 100 and _THOUSANDS.search(text)):
        lists = {tuple(_NUMBER.findall(text))}
    if len(lists) != 1:
        return ParsedCells((), text)
    tokens = lists.pop()
    plain = len(set(tokens)) == len(tokens) == k and len(known.intersection(tokens)) > 1
    if not (bare or ((plain or _alone(text)) and not _of_something_else(text))):
        return ParsedCells((), text)
    kept: list[str] = []
    rest: list[str] = []
    for token in tokens:
        taken = token in known and token not in kept and len(kept) < k
        (kept if taken else rest).append(token)
    return ParsedCells(tuple(kept), ", ".join(rest)) if kept else ParsedCells((), text)


_NUMBER = re.compile(r"[0-9]+")
# the length of a number is bounded: Python refuses to read one of 4300 digits, and no id has five
_STRICT_LIST = re.compile(r"\[\s*[0-9]{1,4}(?:\s*,\s*[0-9]{1,4})*\s*\]")
_ITEM = r"\s*[\"']?[0-9]{1,4}[\"']?\s*"
_LIST = re.compile(rf"\[{_ITEM}(?:,{_ITEM})*\]")
_FENCE = re.compile(r"```[a-z0-9]*", flags=re.I)
_WORD = re.compile(r"\w+")
_LABELS = frozenset({"answer", "output", "cell", "cells", "region", "regions", "id", "ids"})
_BESIDE_LABELS = frozenset({"the", "my", "is", "are", "final", "top", "best", "chosen", "selected"})
_CLAUSE = re.compile(r"[.;!?,\n]")
_NEGATION = re.compile(
    r"\b(?:no|not|none|neither|never|cannot|except|excluding|without|than)\b|n['\u2019]t\b",
    flags=re.I,
)
_UNIT = re.compile(r"\s*+(?:(?:[km]?hz|m?s|sec(?:ond)?s?|db|px|pixels?)\b|%)", flags=re.I)
_COORDINATES = re.compile(
    r"\b(?:bbox\w*+|(?:box|point)_2d|coordinates|rgb|shape|size)(?: (?:is|are|of))?\W*+\Z",
    flags=re.I,
)
_THOUSANDS = re.compile(r"[0-9],[0-9]{3}(?![0-9])")
# a unit may follow a number, so a word must come before it: "3 regions" names none, nor does "0.5"
_BARE = re.compile(
    r"(?:(?:\band\b)?\s*+(?:\b(?:cells?|regions?|ids?)\b:?)?\s*+#?\b[0-9]{1,4}\b[\s,;]*+)++\.?",
    flags=re.I,
)


def _alone(text: str) -> bool:
    """Whether no words are beside the lists of a text, or a label of at most four before them.

    In "Number of regions: [3]" the label is of something else.
    """
    outside = _LIST.split(_MARKER.sub(" ", _FENCE.sub(" ", text)))
    words = [word.lower() for word in _WORD.findall(outside[0])]
    colon = ":" in _WORD.split(outside[0])[-1]
    known = not _LABELS.isdisjoint(words) and _LABELS.union(_BESIDE_LABELS).issuperset(words)
    label = colon and len(words) <= 4 and known
    return (not words or label) and not any(_WORD.search(part) for part in outside[1:])


def _of_something_else(text: str) -> bool:
    """Whether words say that a list is no answer: "none of [1, 2, 3]", "[1, 2, 3] kHz"."""
    outside = _LIST.split(text)
    lead = [_CLAUSE.split(part)[-1] for part in outside[:-1]]
    refused = any(_NEGATION.search(part) or _COORDINATES.search(part) for part in lead)
    return refused or any(_UNIT.match(part) for part in outside[1:])


# ------------------------------------------------------------------ query 2


def write_findings(findings: Iterable[Finding]) -> str:
    """Write findings as the answer to Query 2, a line each.

    Raises `ConfigError` where a field is missing. Whatever the evidence holds, the text holds no
    marker of a model: ``<``, and ``[`` before a capital, are written as escapes.

    >>> print(write_findings([Finding("15", "speech", "low", "vowel", 'The "o" is smeared.')]))
    (15, T=speech, F=low, P=vowel, En="The \\"o\\" is smeared.")
    """
    return "\n".join(_write(finding) for finding in findings)


def parse_findings(text: str, *, ids: Sequence[str], strict: bool = False) -> ParsedFindings:
    """Read what a text says of the regions ``ids``; Query 2.

    Strict: one complete line for each id, in this order, and nothing else. Lenient: every closed
    bracket that names one of the ids (by itself, or by its place in ``ids`` as T1, F1, P1), with
    None for a word outside the vocabulary. A region that was not asked about, or again, is left out
    and reported, and so is a text of more than 2,000 characters. A half takes no words from the
    entry after it: a text in which another begins counts only where it is a JSON string.

    >>> parse_findings('(15, T=speech, F=low, P=?, En="smeared")(9, T=', ids=["15"])
    ... # doctest: +NORMALIZE_WHITESPACE
    ParsedFindings(findings=(Finding(id='15', time='speech', frequency='low', phone=None,
        evidence='smeared'),), unparsed='(9, T=')
    """
    if strict:
        found = [_read_line(line) for line in text.strip().split("\n")]
        whole = [finding for finding in found if finding is not None and finding.complete]
        good = len(whole) == len(found) and [f.id for f in whole] == list(ids)
        return ParsedFindings(tuple(whole)) if good else ParsedFindings((), text)
    kept: dict[str, Finding] = {}
    rest: list[str] = []
    start = end = 0
    while head := _HEAD.search(text, end):
        finding, end = _read_entry(text, head, ids)
        if finding is not None and finding.id not in kept:
            kept[finding.id] = finding
            rest.append(text[start : head.start()])
            start = end
    rest.append(text[start:])
    # what stands between the lines
    unparsed = " ".join(part for piece in rest if (part := piece.strip(" \t\r\n;,")))
    return ParsedFindings(tuple(kept.values()), unparsed)


_WORDS = {"time": TIMES, "frequency": FREQUENCIES, "phone": PHONES}
_STRICT = re.compile(
    r"\((?P<id>[0-9]{1,4}), T=(?P<time>[a-z-]+), F=(?P<frequency>[a-z]+), P=(?P<phone>[a-z]+), "
    r'En=(?P<evidence>".*")\)'
)
# Up to the quote that opens the text. Runs of blanks are possessive: nothing is tried twice.
_VALUE = r"\s*+[=:]\s*+\"?([^,;()\"=:]{0,30})\"?\s*+[,;]\s*+"
_HEAD = re.compile(
    r"\(\s*+(?:(?:cell|region|id|c)?+\s*+[=:]?+\s*+([0-9]{1,4})\s*+[,;:]\s*+)?+"
    rf"T([0-9]?){_VALUE}F([0-9]?){_VALUE}P([0-9]?){_VALUE}En([0-9]?)\s*+[=:]\s*+(?=[\"“])",
    flags=re.I,
)
_JSON_TAIL = re.compile(r'"((?:[^"\\]|\\.)*+)"\s*+\)', flags=re.S)
# at the end of a line, or of the stretch that is searched
_TAIL = re.compile(r"[\"”]\s*+\)(?=[ \t\r;,.\]]*+$)", flags=re.M)
# an entry, whole or not, or a second text
_BEGIN = re.compile(
    r"\(\s*+(?:(?:cell|region|id|c)?+\s*+[=:]?+\s*+[0-9]{1,4}\s*+[,;:]\s*+)?+T[0-9]?\s*+[=:]"
    r"|\bEn[0-9]?\s*+[=:]\s*+[\"“]",
    flags=re.I,
)
# <image>, <|im_end|>, <0x0A>, [INST], and the wide bars of some
_MARKER = re.compile(r"</?[A-Za-z|\uff5c0][^<>\s]{0,60}>|\[/?[A-Z][A-Z_]{2,30}\]")


def _write(finding: Finding) -> str:
    if not finding.complete:
        raise ConfigError(f"only a complete finding can be written, got {finding!r}")
    text = json.dumps(finding.evidence, ensure_ascii=False).replace("<", r"\u003c")
    text = re.sub(r"\[(?=/?[A-Z])", r"\\u005b", text)
    return f"({finding.id}, T={finding.time}, F={finding.frequency}, P={finding.phone}, En={text})"


def _read_line(line: str) -> Finding | None:
    match = _STRICT.fullmatch(line)
    if match is None or holds_marker(line):
        return None
    evidence = _unescape(match["evidence"])
    if evidence is None:
        return None
    words = {name: match[name] for name in _WORDS}
    legal = all(word in _WORDS[name] for name, word in words.items())
    return _finding(match["id"], words, evidence) if legal else None


def _read_entry(text: str, head: re.Match[str], ids: Sequence[str]) -> tuple[Finding | None, int]:
    """Read the entry that begins with ``head``, and tell where it ends."""
    proper = _JSON_TAIL.match(text, head.end())
    if proper and (_unescape(f'"{proper[1]}"') is not None or not _BEGIN.search(proper[1])):
        raw, after = proper[1], proper.end()
    else:
        # quotes inside; an entry ends before the next begins, so that a half swallows none
        following = _BEGIN.search(text, head.end())
        limit = following.start() if following else len(text)
        tail = _TAIL.search(text, head.end() + 1, limit)
        if tail is None:
            return None, limit
        raw, after = text[head.end() + 1 : tail.start()], tail.end()
    named, t_place, time, f_place, frequency, p_place, phone, e_place = head.groups()
    places = {t_place, f_place, p_place, e_place}
    id = named if len(places - {""}) <= 1 else None
    if named is None and len(places) == 1 and (place := places.pop()):
        id = ids[int(place) - 1] if 1 <= int(place) <= len(ids) else None
    marked = _MARKER.search(text, head.start(), after)
    if id is None or id not in ids or len(raw) > LONGEST or marked or _HALF_PAIR.search(raw):
        return None, after
    # line breaks that are not escaped are the least of its faults
    evidence = _unescape(f'"{raw}"', strict=False)
    words = {"time": time, "frequency": frequency, "phone": phone}
    return _finding(id, words, raw if evidence is None else evidence), after


def _finding(id: str, words: dict[str, str], evidence: str) -> Finding:
    legal: dict[str, Any] = {}
    for name, word in words.items():
        plain = " ".join(word.lower().split())
        plain = SYNONYMS[name].get(plain, plain)
        legal[name] = plain if plain in _WORDS[name] else None
    return Finding(id, legal["time"], legal["frequency"], legal["phone"], evidence)


def holds_marker(text: str) -> bool:
    """Whether a text holds a marker of a model, such as ``<image>`` or ``[INST]``."""
    return _MARKER.search(text) is not None


def _unescape(quoted: str, *, strict: bool = True) -> str | None:
    try:
        text: str = json.loads(quoted, strict=strict)
    except ValueError:
        return None
    return None if _HALF_PAIR.search(text) else text


# of a surrogate pair; no file could hold it
_HALF_PAIR = re.compile(r"[\ud800-\udfff]")
