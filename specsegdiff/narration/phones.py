"""Phone intervals: read from TextGrid and CTM files, or aligned to a model's emissions."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from specsegdiff.errors import ConfigError, CorpusError, DependencyError, ShapeError

Alphabet: TypeAlias = Literal["arpabet", "ipa"]
"""How phones are written: MFA's and TIMIT's letters in either case, or the phonetic alphabet."""

SILENCES = frozenset({"", "sil", "sp", "spn", "nsn", "pau", "epi", "h#", "#h", "<eps>", "<sil>"})
"""Labels of what is no phone: those of GRIDEX's public code, and of TIMIT and Kaldi."""

_VOWELS = "AA AE AH AO AW AX AXR AX-H AY EH ER EY IH IX IY OW OY UH UW UX"

ARPABET_VOWELS = frozenset(_VOWELS.split())
"Vowels without their stress digits; every other label is a consonant."

IPA_VOWELS = frozenset("aeiouyæøœɐɑɒɔəɘɚɛɜɝɞɤɨɪɯɵɶʉʊʌʏ")
"Letters that a vowel's name begins with."


@dataclass(frozen=True)
class PhoneInterval:
    """A phone and when it is spoken."""

    t0: float
    "Start in seconds."
    t1: float
    "End in seconds."
    label: str
    "Name in the alphabet of its source; a silence has one of `SILENCES`."

    def __post_init__(self) -> None:
        if not 0 <= self.t0 <= self.t1 < math.inf:
            raise ConfigError(f"expected a phone with 0 <= t0 <= t1, got {self!r}")


def phone_class(
    label: str, *, alphabet: Alphabet = "arpabet"
) -> Literal["vowel", "consonant"] | None:
    """Kind of a phone; None for a silence.

    >>> [phone_class(label) for label in ("AE1", "hh", "sil")]
    ['vowel', 'consonant', None]
    >>> phone_class("ˈɔː", alphabet="ipa")
    'vowel'
    """
    name = label.strip()
    if name.lower() in SILENCES:
        return None
    if alphabet == "arpabet":
        return "vowel" if name.upper().rstrip("0123456789") in ARPABET_VOWELS else "consonant"
    if alphabet == "ipa":
        return "vowel" if name.lstrip("ˈˌ'")[:1] in IPA_VOWELS else "consonant"
    raise ConfigError(f"alphabet must be 'arpabet' or 'ipa', got {alphabet!r}")


def read_textgrid(path: str | Path, *, tier: str = "phones") -> list[PhoneInterval]:
    """Read an interval tier of a Praat TextGrid, long or short format, UTF-8 or UTF-16.

    Of several speakers' tiers, MFA's names end in the tier's: ``tier`` is found there too, where it
    is the only one. Raises `CorpusError` where the file is no TextGrid or has no such tier.
    """
    path = Path(path)
    content = _read(path)
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is neither UTF-8 nor UTF-16 ({error}); convert it") from error
    # the long format names its values: without names and comments it is the short one. A quote
    # within a text is doubled
    found = re.findall(
        r'"((?:[^"]|"")*)"|(?<![\w.\[])(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.\]])', text
    )
    values = [word.replace('""', '"') if not number else float(number) for word, number in found]
    tiers: dict[str, list[PhoneInterval]] = {}
    if values[:2] != ["ooTextFile", "TextGrid"]:
        raise CorpusError(f"{path} is no TextGrid: its head is {values[:2]}; export one")
    try:
        place = 5  # head, whole stretch, number of tiers
        for _ in range(int(values[4])):
            kind, name, count = values[place], str(values[place + 1]), int(values[place + 4])
            place += 5
            width = 3 if kind == "IntervalTier" else 2
            rows = [values[i : i + width] for i in range(place, place + width * count, width)]
            place += width * count
            if kind == "IntervalTier":
                tiers[name] = [PhoneInterval(float(a), float(b), str(c)) for a, b, c in rows]
    except (IndexError, ValueError, TypeError) as error:
        raise CorpusError(f"{path} ends early or is damaged ({error}); export it again") from error
    names = [tier] if tier in tiers else [name for name in tiers if name.endswith(f" - {tier}")]
    if len(names) != 1:
        raise CorpusError(
            f"{path} has {len(names)} interval tiers {tier!r}; it has {', '.join(tiers) or 'none'}"
        )
    return tiers[names[0]]


def read_ctm(
    path: str | Path, *, utterance: str | None = None, channel: str | None = None
) -> list[PhoneInterval]:
    """Read a CTM file: lines of utterance, channel, start and duration in seconds, and label.

    A further column, the confidence, and comments after ``;;`` are left out. ``utterance`` and
    ``channel`` keep one of each. Raises `CorpusError` on other lines, where the file holds several
    utterances or channels and none is named, and where the one named is not there.
    """
    path = Path(path)
    try:
        text = _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error}); convert it") from error
    found: dict[tuple[str, str], list[PhoneInterval]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split(";;")[0].split()
        if not cells:
            continue
        try:
            name, side, start, duration, label = cells[:5]
            t0 = float(start)
            phone = PhoneInterval(t0, t0 + float(duration), label)
        except ValueError as error:
            raise CorpusError(
                f"{path}, line {number}: expected utterance, channel, start, duration and label, "
                f"got {line!r} ({error})"
            ) from error
        if utterance in (None, name) and channel in (None, side):
            found.setdefault((name, side), []).append(phone)
    if len(found) != 1:
        names = ", ".join("/".join(key) for key in found) or "none"
        raise CorpusError(
            f"{path}: expected the phones of one utterance and channel, got {names}; "
            "name them with utterance= and channel="
        )
    return sorted(next(iter(found.values())), key=lambda phone: (phone.t0, phone.t1))


def align_phones(
    emissions: Float[Tensor, "t c"],
    phones: Sequence[str],
    *,
    labels: Sequence[str],
    seconds_per_frame: float,
    blank: int = 0,
) -> list[PhoneInterval]:
    """Align a known sequence of phones to the log-probabilities ``(t, c)`` of a CTC phone model.

    ``labels[c]`` names class ``c``; ``blank`` is the CTC blank, which becomes no interval: a phone
    ends with its last frame. The model is yours: none is downloaded. Raises `ConfigError` on a
    phone that is no label, `ShapeError` where the classes do not fit or the frames do not suffice,
    `DependencyError` without torchaudio. Source: Graves et al. 2006, through
    ``torchaudio.functional.forced_align``.
    """
    if emissions.ndim != 2 or emissions.shape[1] != len(labels):
        raise ShapeError(
            f"expected emissions (t, {len(labels)}) for {len(labels)} labels, "
            f"got {tuple(emissions.shape)}"
        )
    if not (seconds_per_frame > 0 and math.isfinite(seconds_per_frame)):
        raise ConfigError(f"seconds_per_frame must be positive, got {seconds_per_frame!r}")
    places = {label: place for place, label in enumerate(labels) if place != blank}
    if unknown := [phone for phone in phones if phone not in places]:
        raise ConfigError(f"the model has no phone {unknown[0]!r}; its labels are {sorted(places)}")
    if not phones:
        return []
    # a blank parts two phones of one name
    needed = len(phones) + sum(a == b for a, b in itertools.pairwise(phones))
    if len(emissions) < needed:
        raise ShapeError(
            f"{len(phones)} phones need at least {needed} frames, got {len(emissions)}; "
            "check that the transcript is that of the recording"
        )
    try:
        from torchaudio.functional import forced_align, merge_tokens
    except ImportError as error:
        raise DependencyError(
            "align_phones needs torchaudio beside this torch: pip install 'torchaudio>=2.11,<2.12',"
            " or align elsewhere and read a TextGrid or CTM file"
        ) from error
    import torch

    targets = torch.tensor([[places[phone] for phone in phones]], dtype=torch.int32)
    path, scores = forced_align(emissions.detach().float().cpu()[None], targets, blank=blank)
    return [
        PhoneInterval(
            span.start * seconds_per_frame, span.end * seconds_per_frame, labels[span.token]
        )
        for span in merge_tokens(path[0], scores[0], blank=blank)
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {path} ({error}); pass an alignment file") from error
