"""Phone intervals from TextGrid and CTM files, and from a model's emissions."""

import sys

import pytest
import torch

from specsegdiff.errors import ConfigError, CorpusError, DependencyError, ShapeError
from specsegdiff.narration.phones import (
    PhoneInterval,
    align_phones,
    phone_class,
    read_ctm,
    read_textgrid,
)

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "say ""5"" 3.2"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 1e-01
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.75
            text = "S"
        intervals [3]:
            xmin = 0.75
            xmax = 1.5
            text = "EY1"
"""

SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
1
"IntervalTier"
"speaker one - phones"
0
1.5
2
0
0.75
"s"
0.75
1.5
"ey"
"""


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_long_textgrid_is_read(tmp_path, encoding):
    path = write(tmp_path / "a.TextGrid", LONG, encoding)
    assert read_textgrid(path) == [
        PhoneInterval(0, 0.1, ""),
        PhoneInterval(0.1, 0.75, "S"),
        PhoneInterval(0.75, 1.5, "EY1"),
    ]
    assert read_textgrid(path, tier="words") == [PhoneInterval(0, 1.5, 'say "5" 3.2')]


def test_a_short_textgrid_is_read(tmp_path):
    path = write(tmp_path / "a.TextGrid", SHORT)
    expected = [PhoneInterval(0, 0.75, "s"), PhoneInterval(0.75, 1.5, "ey")]
    assert read_textgrid(path) == expected
    assert read_textgrid(path, tier="speaker one - phones") == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no TextGrid"),
        (LONG.replace("TextGrid", "Pitch"), "no TextGrid"),
        (LONG[:300], "damaged"),
        (LONG.replace("xmax = 0.75", "xmax = 0.05"), "damaged"),
        (LONG.replace('"phones"', '"segments"'), "words, segments"),
        (LONG.replace('"words"', '"a - phones"').replace('"phones"', '"b - phones"'), "has 2"),
    ],
)
def test_other_textgrids_are_refused(tmp_path, text, match):
    with pytest.raises(CorpusError, match=match):
        read_textgrid(write(tmp_path / "a.TextGrid", text))


def test_unreadable_files_are_named(tmp_path):
    for read in (read_textgrid, read_ctm):
        with pytest.raises(CorpusError, match="cannot read"):
            read(tmp_path / "none")
        (tmp_path / "bytes").write_bytes(b"\x80\x81 1 2 3 4")
        with pytest.raises(CorpusError, match="UTF-8"):
            read(tmp_path / "bytes")


CTM = """;; phones
u1 1 0.50 0.25 EY1 0.9
u1 1 0.10 0.40 S

u2 1 0.00 1.00 AA
"""


def test_a_ctm_is_read(tmp_path):
    path = write(tmp_path / "a.ctm", CTM)
    phones = read_ctm(path, utterance="u1")
    assert phones == [PhoneInterval(0.1, 0.5, "S"), PhoneInterval(0.5, 0.75, "EY1")]
    with pytest.raises(CorpusError, match="u1/1, u2/1"):
        read_ctm(path)
    with pytest.raises(CorpusError, match="none"):
        read_ctm(path, utterance="u1", channel="2")
    for line in ("u1 1 x 1 AA", "u1 1 0.1", "u1 1 0.1 -1 AA", "u1 1 nan 1 AA"):
        with pytest.raises(CorpusError, match="line 1"):
            read_ctm(write(tmp_path / "b.ctm", line))


@pytest.mark.parametrize(
    ("label", "alphabet", "kind"),
    [
        ("AA0", "arpabet", "vowel"),
        ("ax-h", "arpabet", "vowel"),
        ("ER1", "arpabet", "vowel"),
        ("Y", "arpabet", "consonant"),
        ("ZH", "arpabet", "consonant"),
        ("y", "ipa", "vowel"),
        ("ˌɛ", "ipa", "vowel"),
        ("tʃ", "ipa", "consonant"),
        ("<eps>", "arpabet", None),
        ("SIL", "arpabet", None),
        (" ", "ipa", None),
    ],
)
def test_phones_have_a_class(label, alphabet, kind):
    assert phone_class(label, alphabet=alphabet) == kind


def test_an_unknown_alphabet_is_refused():
    with pytest.raises(ConfigError, match="'ipa'"):
        phone_class("a", alphabet="sampa")


# ------------------------------------------------------------------ alignment

LABELS = ["-", "S", "EY"]


def emissions(path):
    """Log-probabilities that speak for one path of classes."""
    return torch.eye(3)[path].mul(8).log_softmax(1)


def test_phones_are_aligned_to_their_frames():
    pytest.importorskip("torchaudio")
    path = [0, 0, 1, 1, 1, 0, 2, 2, 0, 2]
    found = align_phones(emissions(path), ["S", "EY", "EY"], labels=LABELS, seconds_per_frame=0.125)
    assert found == [
        PhoneInterval(0.25, 0.625, "S"),
        PhoneInterval(0.75, 1.0, "EY"),
        PhoneInterval(1.125, 1.25, "EY"),
    ]
    assert align_phones(emissions(path), [], labels=LABELS, seconds_per_frame=0.125) == []


def test_impossible_alignments_are_refused(monkeypatch):
    options = {"labels": LABELS, "seconds_per_frame": 0.02}
    with pytest.raises(ConfigError, match="no phone 'T'"):
        align_phones(emissions([0, 1]), ["T"], **options)
    with pytest.raises(ConfigError, match="no phone '-'"):
        align_phones(emissions([0, 1]), ["-"], **options)
    with pytest.raises(ShapeError, match="at least 3 frames"):
        align_phones(emissions([1, 1]), ["S", "S"], **options)
    with pytest.raises(ShapeError, match="2 labels"):
        align_phones(emissions([1]), ["S"], labels=["-", "S"], seconds_per_frame=0.02)
    with pytest.raises(ConfigError, match="seconds_per_frame"):
        align_phones(emissions([1]), ["S"], labels=LABELS, seconds_per_frame=0)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    with pytest.raises(DependencyError, match="torchaudio"):
        align_phones(emissions([1]), ["S"], **options)
