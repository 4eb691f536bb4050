"""Answers of models: what was written is read, and nothing else is ever taken for a region."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specsegdiff.errors import ConfigError
from specsegdiff.narration.parsing import (
    Finding,
    parse_cells,
    parse_findings,
    write_cells,
    write_findings,
)
from specsegdiff.narration.schema import FREQUENCIES, PHONES, TIMES

IDS = tuple(str(number) for number in range(1, 17))
THREE = ("15", "14", "11")

quick = settings(max_examples=60, deadline=None)


def finding(id="15", evidence="The harmonics are smeared.", **words):
    fields = {"time": "speech", "frequency": "low", "phone": "vowel"} | words
    return Finding(id, **fields, evidence=evidence)


findings = st.builds(
    Finding,
    st.sampled_from(IDS),
    st.sampled_from(TIMES),
    st.sampled_from(FREQUENCIES),
    st.sampled_from(PHONES),
    st.text(min_size=1, max_size=80).filter(str.strip),
)

# pieces of real answers, so that random texts come near to one
PIECES = [
    '(15, T=speech, F=low, P=vowel, En="',
    '(T1=speech, F1=low, P1=vowel, En1="',
    "[15, 14, 11]",
    "[",
    "]",
    '")',
    '"',
    "“",
    "”",
    "(",
    ")",
    ", ",
    "; ",
    "\n",
    "\\",
    "\\u003c",
    "\\ud800",
    "<|image_pad|>",
    "<image>",
    "15",
    "3 regions",
    "T=",
    "F=low",
    "En=",
    "1" * 5000,
    " " * 200,
    "\x00",
    "é",
]
answers = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=10)), max_size=14).map(
    "".join
)


# ------------------------------------------------------------------ laws


@given(st.lists(st.sampled_from(IDS), min_size=1, max_size=5, unique=True), st.booleans())
@quick
def test_ids_come_back_as_they_were_written(ids, strict):
    found = parse_cells(write_cells(ids), count=16, k=len(ids), strict=strict)
    assert (found.ids, found.unparsed) == (tuple(ids), "")


@given(st.lists(findings, min_size=1, max_size=4, unique_by=lambda f: f.id), st.booleans())
@example([finding(evidence='a"); (14, T=speech, F=low, P=vowel, En="b")')], False)
@example([finding(evidence="a (14, T=speech, F=low, P=vowel, En=“b”)\n")], False)
@example([finding(evidence="<|image_pad|></s><image>")], True)
@example([finding(evidence="[IMG][/INST]\\[UNK] [a] [B")], True)
@example([finding(evidence="line\u2028break\x85\r\n\\")], True)
@quick
def test_findings_come_back_as_they_were_written(written, strict):
    text = write_findings(written)
    found = parse_findings(text, ids=[f.id for f in written], strict=strict)
    assert (found.findings, found.unparsed) == (tuple(written), "")
    # what a model is trained to write holds no image token
    assert "<" not in text


@given(answers)
@quick
def test_no_text_crashes_the_readers_or_makes_a_region_up(text):
    for strict in (True, False):
        cells = parse_cells(text, count=16, k=3, strict=strict)
        assert set(cells.ids) <= set(IDS)
        assert len(set(cells.ids)) == len(cells.ids) <= 3
        # every region that is read stands in the text
        assert all(id in text for id in cells.ids)
        told = parse_findings(text, ids=THREE, strict=strict)
        ids = [found.id for found in told.findings]
        assert set(ids) <= set(THREE)
        assert len(set(ids)) == len(ids)
        if not cells.ids:
            assert cells.unparsed == text
        if strict and not told.findings:
            assert told.unparsed == text
        if text.strip(" \t\r\n;,"):
            assert told.findings or told.unparsed


@given(answers)
@quick
def test_what_the_strict_reader_takes_the_lenient_one_takes_alike(text):
    strict = parse_cells(text, count=16, k=3, strict=True)
    if strict.ids:
        assert parse_cells(text, count=16, k=3) == strict
    told = parse_findings(text, ids=THREE, strict=True)
    if told.findings:
        assert parse_findings(text, ids=THREE) == told


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10_000,
        "1" * 10_000,
        "(" * 10_000,
        "[" * 10_000,
        "[" + "1," * 5_000,
        "[1" + " " * 10_000,
        "(" + " " * 10_000,
        "(" + "15 " * 3_000,
        '"' * 10_000,
        '") ' * 3_000,
        "\\" * 10_000,
        " " * 10_000,
        "\n" * 10_000,
        "and " * 2_500,
        "1 " * 5_000 + "x",
        "region " * 1_500,
        "(T=" * 3_000,
        '(15, T=speech, F=low, P=vowel, En="' * 250,
        '(15, T=speech, F=low, P=vowel, En="' + 'a"x) ' * 2_000,
        "(15, T=speech, F=low, P=vowel, En=“" * 250,
        "<" * 10_000,
        "Answer" + ":" * 10_000 + "a [15]",
        "Answer: " + "`" * 10_000 + "a [15] b",
        "[15]" * 2_500 + "a",
        "no [15, 14, 11] kHz " * 500,
        "bbox" + " " * 10_000 + "[15, 14, 11]",
        "bbox" * 2_500 + " a size [15]",
        '(15, T=speech, F=low, P=vowel, En="' + '")' * 4_999 + "x",
        '(15, T=speech, F=low, P=vowel, En="' + '"),,,,,,,,' * 1_000 + "x",
        '(15, T=speech, F=low, P=vowel, En="' + "(T=En=“" * 1_400 + '\n")',
    ],
    ids=lambda text: f"{text[:8]}...{text[-3:]}",
)
def test_ten_thousand_characters_of_anything_are_read_at_once(text):
    for times, limit in ((1, 0.5), (20, 2.0)):
        start = time.process_time()
        for strict in (True, False):
            found = parse_cells(times * text, count=16, k=3, strict=strict)
            told = parse_findings(times * text, ids=THREE, strict=strict)
            if times == 1:
                assert found.ids == ()
                assert not any(finding.complete for finding in told.findings)
        # linear: about a millisecond; squares would take seconds, and of 20 times that minutes
        assert time.process_time() - start < limit


# ------------------------------------------------------------------ query 1


@pytest.mark.parametrize(
    ("text", "ids", "unparsed"),
    [
        ("The answer: [15, 14, 11]<|im_end|>", THREE, ""),
        ('["15", "14", "11"]', THREE, ""),
        ("```json\n[15,14,11]\n```", THREE, ""),
        ("[15, 14, 11] ... so [15, 14, 11]", THREE, ""),
        ("15, 14, 11", THREE, ""),
        ("Regions 15, 14 and 11.", THREE, ""),
        ("cell 15, cell 14 and cell 11", THREE, ""),
        ("[15, 15, 14]", ("15", "14"), "15"),
        ("[15, 0, 17]", ("15",), "0, 17"),
        ("[15, 14, 11, 3]", THREE, "3"),
        ("[015, 14]", ("14",), "015"),
        ("Region 15.", ("15",), ""),
        ("Regions 15 and 15", ("15",), "15"),
        ("Answer: [15, 14, 11]", THREE, ""),
        ("The regions are [15, 14, 11].", THREE, ""),
        ("I choose [15, 14, 99] here.", ("15", "14"), "99"),
        ("Answer: [15]", ("15",), ""),
        ("**The regions are:**\n[15, 14]", ("15", "14"), ""),
        ('{"regions": [15]}<|im_end|>', ("15",), ""),
        ("```json\n[15]\n```", ("15",), ""),
        ("I'm not sure, but [15, 14, 11]", THREE, ""),
        ("I can't say more. [15, 14, 11] show no harmonics.", THREE, ""),
        ("[IMG]<0x0A>[15]", ("15",), ""),
        ("The final answer is: [15]", ("15",), ""),
    ],
)
def test_a_list_is_found_among_words(text, ids, unparsed):
    found = parse_cells(text, count=16, k=3)
    assert (found.ids, found.unparsed) == (ids, unparsed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I see 3 regions.",
        "3 regions",
        "0.5",
        "at 1.5 kHz",
        "1:30",
        "5 %",
        "[15, 14",
        "[15, <|image_pad|>, 11]",
        "[15.0, 14.0, 11.0]",
        "[-1, -2, -3]",
        "[0, 17, 99]",
        "[1, 2, 3] or rather [4, 5, 6]",
        "[]",
        "[fifteen]",
        "[١٥, ١٤]",
        "[" + "9" * 5000 + "]",
        "and",
        "regions",
        "I cannot see the picture [1].",
        "There are [3] regions.",
        "See [2] for details.",
        "The grid is [4, 4].",
        "The grid is [4, 4, 4].",
        "The band is [2, 4] kHz.",
        "It has levels [0, 12, 90].",
        "No picture: [1]",
        "Regions cannot be seen in this picture: [1]",
        "Answer: none, see [1]",
        "Answer: [1] in a footnote",
        "No regions: [3]",
        "Number of regions: [3]",
        "All regions except: [1]",
        "Wrong answer: [1]",
        "1,500",
        "10,500",
        "The bands at [1, 2, 3] kHz are smeared.",
        "[1, 2, 3] %",
        "levels of [10, 12, 15] dB",
        "It lasts [1, 2, 3] s",
        "None of the regions [15, 14, 11] is synthetic.",
        "I don't choose [15, 14, 11].",
        "Regions other than [15, 14, 11].",
        '{"bbox_2d": [1, 2, 3], "label": "smear"}',
        '{"point_2d": [1, 2, 3]}',
        "The size is [1, 2, 3]",
        "1. 15\n2. 14\n3. 11",
        "[15; 14; 11]",
        "[1-3]",
        "[15, 14, 11, ...]",
        "15²",
        "½",
        "15, -14",
        "3 of 16",
        "region 15, 14 dB",
        "[1, 2, 3]/[4]",
    ],
)
def test_what_is_no_list_of_regions_is_said_and_not_read(text):
    found = parse_cells(text, count=16, k=3)
    assert (found.ids, found.unparsed) == ((), text)


@pytest.mark.parametrize(
    "text", ["[15, 14]", "[15, 14, 14]", "[15, 14, 17]", "15, 14, 11", "[15, 14, 11].", "[1,2,3,4]"]
)
def test_the_strict_reader_takes_only_the_whole_form(text):
    assert parse_cells(text, count=16, k=3, strict=True).ids == ()
    assert parse_cells(" [15,14,  11]\n", count=16, k=3, strict=True).ids == THREE


# ------------------------------------------------------------------ query 2


@pytest.mark.parametrize(
    "text",
    [
        '(15, T=speech, F=low, P=vowel, En="Say "ah", (twice), then; stop.")',
        '(15, T=speech, F=low, P=vowel, En=“Say "ah", (twice), then; stop.”)',
        'Here you are: ( ID: 15; t=Speech; f=Low; p=Vowel; en="Say "ah", (twice), then; stop.")',
        '(cell 15, T="speech", F="low", P="vowel", En="Say "ah", (twice), then; stop." );',
        '(T1=speech, F1=low, P1=vowel, En1="Say "ah", (twice), then; stop.")',
    ],
)
def test_spellings_of_models_are_understood(text):
    (found,) = parse_findings(text, ids=THREE).findings
    assert found == finding(evidence='Say "ah", (twice), then; stop.')
    assert parse_findings(text, ids=["15"], strict=True).findings == ()


def test_the_indexed_form_names_regions_by_their_place():
    text = "; ".join(f'(T{i}=non speech, F{i}=middle, P{i}=none, En{i}="silence")' for i in (1, 3))
    found = parse_findings(text, ids=THREE)
    silence = {"time": "non-speech", "frequency": "mid", "phone": "unvoiced"}
    assert found.findings == tuple(finding(id, "silence", **silence) for id in ("15", "11"))
    assert found.unparsed == ""


def test_a_word_outside_the_vocabulary_leaves_its_field_empty():
    (found,) = parse_findings('(15, T=music, F=low, P=, En="")', ids=THREE).findings
    assert found == finding(time=None, phone=None, evidence="")
    assert not found.complete
    assert finding().complete
    with pytest.raises(ConfigError, match="complete"):
        write_findings([found])


GOOD = write_findings([finding("14")])


@pytest.mark.parametrize(
    "bad",
    [
        '(15, T=speech, F=low, P=vowel, En="half',
        "(15, T=speech, F=low",
        "(15, T=speech, F=low, P=vowel)",
        '(9, T=speech, F=low, P=vowel, En="not asked about")',
        '(99, T=speech, F=low, P=vowel, En="no such region")',
        '(T=speech, F=low, P=vowel, En="no region")',
        '(T9=speech, F9=low, P9=vowel, En9="no such place")',
        '(T1=speech, F2=low, P1=vowel, En1="two places")',
        '(15, T=speech, F=low, P=vowel, En="<|image_pad|>")',
        '(15, T=speech, F=low, P=vowel, En="</s>")',
        '(15, T=speech, F=low, P=vowel, En="<0x0A>")',
        '(15, T=speech, F=low, P=vowel, En="[IMG]")',
        '(15, T=speech, F=low, P=vowel, En="[/INST]")',
        '(15, T=speech, F=low, P=vowel, En="<\uff5cimage\uff5c>")',
        '(15, T=speech, F=low, P=vowel, En="half a pair \ud800")',
        '(15, T=speech, F=low, P=vowel, En="half\n14: En="whole")',
        '(15, T=speech, F=low, P=vowel, En="half\n(14, T=speech, En="whole")',
        '(15, T=speech, F=low, P=vowel, En="half\n(14, T=speech, En=")',
        '(T1=speech, F1=low, P1=vowel, En1="half\n(T2=speech, En2="whole")',
        '(15, T=speech, F=low, P=vowel, En="a", En="b")',
        "(15, T='speech', F='low', P='vowel', En='single')",
        '(15, T=speech, T=non-speech, F=low, P=vowel, En="twice")',
        '(15, T1=speech, F2=low, P3=vowel, En1="three places")',
        '(15, 14, T=speech, F=low, P=vowel, En="two names")',
        '(-15, T=speech, F=low, P=vowel, En="no name")',
        '(15.5, T=speech, F=low, P=vowel, En="no name")',
        '(not 15, T=speech, F=low, P=vowel, En="no name")',
        '[15, T=speech, F=low, P=vowel, En="no bracket"]',
        f'(15, T=speech, F=low, P=vowel, En="{"a" * 2001}")',
        "Region 15 is smeared.",
    ],
)
def test_halves_strangers_and_markers_are_said_and_swallow_no_neighbour(bad):
    alone = parse_findings(bad, ids=THREE)
    assert (alone.findings, alone.unparsed) == ((), bad)
    beside = parse_findings(f"{bad}\n{GOOD}", ids=THREE)
    assert (beside.findings, beside.unparsed) == ((finding("14"),), bad)


def test_quotes_and_commas_inside_a_text_end_it_nowhere():
    for said in (
        'he says "ah"), then (stop',
        'the "o", "a", and "e"',
        '("ah")',
        'a "b") c "d"); e',
    ):
        raw = f'(15, T=speech, F=low, P=vowel, En="{said}")'
        for text in (raw, f"{raw}; {GOOD}", f"[{raw}]", f"{raw}\nSo it is."):
            found = parse_findings(text, ids=THREE)
            assert found.findings[0] == finding(evidence=said)
    broken = '(15, T=speech, F=low, P=vowel, En="line\nbreak \\"o\\"")'
    assert parse_findings(broken, ids=THREE).findings == (finding(evidence='line\nbreak "o"'),)


def test_the_first_word_on_a_region_counts():
    text = write_findings([finding("14"), finding("14", "Something else.")])
    found = parse_findings(text, ids=THREE)
    assert found.findings == (finding("14"),)
    assert "Something else." in found.unparsed


def test_the_strict_reader_wants_every_region_in_order():
    three = [finding(id) for id in THREE]
    assert parse_findings(write_findings(three), ids=THREE, strict=True).findings == tuple(three)
    for wrong in (three[:2], three[::-1], [*three, finding("3")]):
        text = write_findings(wrong)
        assert parse_findings(text, ids=THREE, strict=True).unparsed == text
    half_a_pair = '(15, T=speech, F=low, P=vowel, En="\\ud800")'
    assert parse_findings(half_a_pair, ids=["15"], strict=True).findings == ()
