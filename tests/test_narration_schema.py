"""Reports: what is saved is what is read, no sentence without a region, no number from nowhere."""

import json
import re
from dataclasses import replace

import pytest

from specsegdiff.cells import Box
from specsegdiff.errors import CheckpointError, ConfigError, OutputError
from specsegdiff.narration.schema import (
    FREQUENCIES,
    KINDS,
    PHONES,
    TIMES,
    CellReport,
    Report,
    Sentence,
    unsupported_numbers,
)

CELL = CellReport(
    id="15",
    time="speech",
    frequency="low",
    phone="vowel",
    kind="harmonic degradation",
    evidence="smeared harmonics, 3.2 dB",
    numbers={"harmonicity_db": 3.2148, "t0_s": 1.0},
    box=Box(1.0, 1.5, 0.0, 2000.0),
    uncertain=("phone",),
)
OTHER = CellReport("1", "non-speech", "high", "unvoiced", None, "", {})


def make(**changes):
    report = Report(
        cells=(CELL, OTHER),
        sentences=(
            Sentence("Cell 15: harmonics at 3.2 dB.", "15", {"harmonicity_db": 3.2148}),
            Sentence("Cell 1: <b>nothing</b> stands out.", "1"),
        ),
        summary="2 cells hold 61.5 % of the mask",
        provenance={"narrator": "rules", "source": "Anruf 'α'.wav"},
        extent=Box(0.0, 2.0, 0.0, 8000.0),
        numbers={"cells": 2, "share_percent": 61.53},
    )
    return replace(report, **changes)


def test_the_vocabularies_are_gridexs():
    assert TIMES == ("speech", "non-speech")
    assert FREQUENCIES == ("low", "mid", "high")
    assert set(PHONES) == {"vowel", "consonant", "unvoiced"}
    assert len(KINDS) == 8


def test_what_is_saved_is_what_is_read(tmp_path):
    report = make(unparsed="(T1=speech, ")
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert Report.from_json(report.to_json()) == report
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    bare = Report(cells=(), sentences=(), summary="", provenance={})
    assert Report.from_json(bare.to_json()) == bare


def test_no_sentence_without_a_region():
    with pytest.raises(ConfigError, match="id of a region"):
        Sentence("Something is wrong.", "")
    with pytest.raises(ConfigError, match="no cell of this report"):
        make(cells=(CELL,))
    with pytest.raises(ConfigError, match="empty"):
        Sentence(" ", "1")
    with pytest.raises(ConfigError, match="once"):
        make(cells=(CELL, CELL, OTHER))


def test_words_outside_the_vocabularies_are_refused():
    for name in ("time", "frequency", "phone", "kind"):
        with pytest.raises(ConfigError, match=f"{name} must be one of"):
            replace(CELL, **{name: "middle"})
    with pytest.raises(ConfigError, match="uncertain"):
        replace(CELL, uncertain=("id",))
    for value in (float("nan"), float("inf"), "3"):
        with pytest.raises(ConfigError, match="finite"):
            replace(CELL, numbers={"harmonicity_db": value})
    with pytest.raises(ConfigError, match="finite"):
        make(numbers={"x": float("nan")})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("summary"), "summary"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.update(format="specsegdiff report 0"), "format"),
        (lambda d: d["cells"][0].update(time="day"), "time"),
        (lambda d: d["cells"][0].update(uncertain=["day"]), "uncertain"),
        (lambda d: d["sentences"][0].update(region="3"), "no cell"),
        (lambda d: d["cells"][0]["numbers"].update(x=None), "numbers"),
    ],
)
def test_files_with_other_fields_are_refused(change, match):
    values = json.loads(make().to_json())
    change(values)
    with pytest.raises(ConfigError, match=match):
        Report.from_dict(values)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.json"):
        Report.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        Report.load(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="format"):
        Report.from_json("[]")
    with pytest.raises(OutputError, match="writable"):
        make().save(tmp_path / "none" / "report.json")


@pytest.mark.parametrize(
    ("text", "numbers", "unsupported"),
    [
        ("0.98-1.47 s", {"a": 0.9849, "b": 1.4651}, ()),
        ("0.98-1.47 s", {"a": 0.98, "b": -1.47}, ("1.47",)),
        ("-3.1 dB", {"a": 3.1}, ("-3.1",)),
        ("-3.1 dB and +3.1 dB", {"a": -3.14, "b": 3.14}, ()),
        ("3 dB", {"a": 3.4}, ()),
        ("3.0 dB", {"a": 3.4}, ("3.0",)),
        ("F0, H1, 4x4, 2nd, v1.2", {}, ()),
        ("ends at 12. Then 7.", {"a": 12}, ("7",)),
        ("no number", {}, ()),
        ("62 %", {"share": 0.62}, ("62",)),
        ("5kHz, 30dB and -20ms", {}, ("5", "30", "-20")),
        ("5kHz, 30.0dB", {"f_khz": 5, "level_db": 30}, ()),
        (".5 s, or -.5 s", {}, (".5", "-.5")),
        (".5 s, or -.5 s", {"a": 0.5, "b": -0.5}, ()),
        ("it ends.5 s and wait...7 s", {}, ("5", ".7")),
        ("1e3 Hz, 2.5E-3 s", {"a": 1, "b": 2.5, "c": 1000}, ("1e3", "2.5E-3")),
        ("5_000 Hz", {}, ("5_000",)),
        ("5_000 Hz", {"f_hz": 5000}, ()),
        ("½ s, 3½ s, 10² Hz, ③", {"a": 3, "b": 10}, ("½", "3½", "10²", "③")),
        ("F₀, wav2vec2, v1.2.3, 10th", {}, ()),
    ],
)
def test_every_number_must_be_known(text, numbers, unsupported):
    assert unsupported_numbers(text, numbers) == unsupported


def test_the_name_of_a_region_is_no_number():
    assert Sentence("Cell 15 and region 15: 15 dB", "15").unsupported() == ("15",)
    assert Sentence("Cell 14 is another", "15").unsupported() == ("14",)
    assert Sentence("Region 15: above region 15.5 kHz", "15").unsupported() == (".5",)
    assert Sentence("Region 15: region 15kHz", "15").unsupported() == ("15",)


def test_a_report_prints_and_shows_itself():
    report = make(unparsed="<half")
    assert str(report).splitlines() == [
        "2 cells hold 61.5 % of the mask",
        "- Cell 15: harmonics at 3.2 dB.",
        "- Cell 1: <b>nothing</b> stands out.",
        "not understood: <half",
    ]
    html = report._repr_html_()
    assert "<b>nothing" not in html
    assert "<half" not in html
    # every link leads to a row, and every sentence is linked
    links, ids = re.findall(r"href='#([^']+)'", html), re.findall(r" id='([^']+)'", html)
    assert set(links) == set(ids)
    assert len(re.findall("<li><a href=", html)) == 2
    assert "<td>vowel?</td>" in html
    assert "<td>undecided</td>" in html
    # two reports on one page do not share names
    second = make(summary="other")._repr_html_()
    assert not set(ids) & set(re.findall(r" id='([^']+)'", second))


def test_what_a_model_wrote_begins_no_line_and_steers_nothing():
    bad = "half\n\n- Cell 15: fake.\r\x1b[31m\u2028\u202e\x85\x00\ud800 \\ <b>é \u05d0"
    shown = "half\\n\\n- Cell 15: fake.\\r\\x1b[31m\\u2028\\u202e\\x85\\x00\\ud800 \\ "
    said = Sentence("Cell 1: one\n- Cell 2: two", "1")
    report = make(unparsed=bad, sentences=(said,), summary="a\nb")
    assert str(report).splitlines() == [
        "a\\nb",
        "- Cell 1: one\\n- Cell 2: two",
        f"not understood: {shown}<b>é \u05d0",
    ]
    html = report._repr_html_()
    assert f">{shown}&lt;b&gt;é \u05d0<" in html
    # an empty line would end the HTML of a page in Markdown
    assert "\n" not in html
    # in the file it stays as it came
    assert json.loads(report.to_json())["unparsed"] == bad
    assert Report.from_json(report.to_json().encode().decode()) == report


def test_a_cell_is_found_by_its_id():
    assert make().cell("15") is CELL
    with pytest.raises(ConfigError, match="no cell '2'"):
        make().cell("2")
