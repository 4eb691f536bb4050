"""Answers: about the place that was asked for, and saying no more than its numbers."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from models import noise
from speech import speech
from test_rules import make

from specsegdiff import storage
from specsegdiff.cells import Box, RegionGrid, pool, top_k, whole_plane
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.explanation import Explanation, Verdict
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.narration.answers import ask, classify, detect, ground, localise
from specsegdiff.narration.concepts import speech_concepts
from specsegdiff.narration.phones import PhoneInterval
from specsegdiff.narration.places import Listener
from specsegdiff.narration.references import parse
from specsegdiff.narration.replies import WHOLE, Answer, Place
from specsegdiff.narration.rules import RuleNarrator
from specsegdiff.narration.schema import KINDS, unsupported_numbers

TREE = speech_concepts()
N = 24_000
VERDICT = Verdict(0.93, "judge", "ab")


@pytest.fixture(scope="module")
def explanation():
    return make()


@pytest.fixture(scope="module")
def answers(explanation):
    judged = replace(explanation, verdict=VERDICT)
    return {
        "recording": ask(judged),
        "cell": ask(explanation, "7"),
        "region": ask(explanation, "R2"),
        "box": ask(explanation, t0=0.25, t1=0.9, f0=900.0, f1=2100.0),
        "phrase": ask(explanation, "low-frequency vowels"),
        "nothing": ask(explanation, "high-frequency splice boundaries"),
        "twin": ask(explanation, "15", genuine=0.9 * speech(n_samples=N) + noise(N, scale=0.01)),
        "detection": detect(judged),
        "classification": classify(explanation),
        "localisation": localise(explanation),
        "localisation in a box": localise(explanation, t0=0.2, t1=0.9, f0=1000.0, f1=3000.0),
        "grounded": ground(judged),
    }


NAMES = ("recording", "cell", "region", "box", "phrase", "nothing", "twin")
TASKS = pytest.mark.parametrize(
    "task",
    [*NAMES, "detection", "classification", "localisation", "localisation in a box", "grounded"],
)


# ------------------------------------------------------------------ laws of every answer


@TASKS
def test_every_number_of_the_text_is_in_the_answer(answers, task):
    answer = answers[task]
    assert re.search(r"\d", str(answer))
    for id in answer.text.places:
        known = dict(answer.numbers)
        for place in answer.places:
            # a phrase on several places is followed by a number on all of them
            known |= place.numbers if place.id == id else {}
        assert unsupported_numbers(answer.text.of(id), known) == ()
    # and none of it is there by luck
    moved = {name: 1.5 * value + 7000.3 for name, value in answer.numbers.items()}
    for place in answer.places:
        moved |= {f"{place.id} {name}": 1.5 * n + 7000.3 for name, n in place.numbers.items()}
    found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)", str(answer))
    assert len(unsupported_numbers(str(answer), moved)) == len(found)


@TASKS
def test_an_answer_is_saved_and_read(answers, task):
    answer = answers[task]
    assert Answer.from_dict(json.loads(answer.to_json())) == answer
    assert parse(answer.text.markup, answer.text.places) == answer.text
    assert str(answer) == str(answer.text)


@TASKS
def test_the_words_on_a_place_name_its_concepts(answers, task):
    answer = answers[task]
    for place in answer.places:
        said = answer.text.of(place.id)
        if "mean heat" in said:
            assert TREE.read(said) == place.concepts
    if not task.startswith(("nothing", "detection", "classification", "localisation")):
        assert "mean heat" in str(answer)
    # every sentence points somewhere
    assert answer.text.spans[0].regions
    assert {id for span in answer.text.spans for id in span.regions} <= set(answer.text.places)


@TASKS
def test_a_notebook_shows_phrases_that_lead_to_their_places(answers, task):
    page = answers[task]._repr_html_()
    rows = re.findall(r"<tr id='([^']+)'><td>([^<]+)</td>", page)
    assert [id for _, id in rows] == [place.id for place in answers[task].places]
    links = re.findall(r"<a href='#([^']+)'>([^<]+)</a>", page)
    assert set(links) <= set(rows)
    pointed = [id for span in answers[task].text.spans for id in span.regions]
    assert [id for _, id in links] == [id for id in pointed if id != WHOLE or len(rows) == 1]


def test_nothing_in_a_notebook_is_unescaped(explanation):
    page = detect(replace(explanation, verdict=Verdict(0.5, "<script>&", "")))._repr_html_()
    assert "&lt;script&gt;&amp;" in page
    assert "<script" not in page


def test_a_saved_explanation_gives_the_same_answers(explanation, tmp_path, monkeypatch):
    explanation.save(tmp_path / "ex")
    monkeypatch.setattr(storage, "IN_MEMORY_VALUES", 0)
    again = Explanation.load(tmp_path / "ex")
    assert ask(again, "R1") == ask(explanation, "R1")
    assert localise(again) == localise(explanation)


# ------------------------------------------------------------------ the place that was asked for


def test_a_cell_is_measured_as_the_rule_narrator_measures_it(explanation):
    report, answer = RuleNarrator()(explanation), ask(explanation)
    assert [place.id for place in answer.places] == [cell.id for cell in report.cells]
    for place, cell in zip(answer.places, report.cells, strict=True):
        assert place.box == cell.box
        fields = (cell.time, cell.frequency, cell.phone)
        tops = tuple(TREE.path(place.concepts[axis])[1] for axis in ("when", "band", "phone"))
        assert tops == fields
        assert place.concepts["kind"] == (cell.kind or "nothing unusual")
        shared = place.numbers.keys() & cell.numbers.keys()
        assert {"heat", "spread", "mask_percent", "level_db", "bound"} < shared
        assert {n: place.numbers[n] for n in shared} == pytest.approx(
            {n: cell.numbers[n] for n in shared}, rel=1e-6
        )


def test_a_box_holds_the_heat_of_its_bins(explanation):
    axes, box = explanation.axes, Box(0.2, 0.7, 1000.0, 3000.0)
    bins, frames = (
        (axes.freqs >= 1000) & (axes.freqs < 3000),
        (axes.times >= 0.2) & (axes.times < 0.7),
    )
    inside = bins[:, None] & frames
    place = ask(explanation, box).place("box")
    assert place.box == box
    assert place.numbers["heat"] == pytest.approx(float(explanation.heatmap[inside].mean()))
    mask = explanation.mask
    assert place.numbers["covered_percent"] == pytest.approx(
        100 * float(mask[inside].float().mean())
    )
    assert place.numbers["mask_percent"] == pytest.approx(
        100 * int(mask[inside].sum()) / int(mask.sum())
    )


def test_an_edge_that_is_left_out_is_the_recordings(explanation):
    place = ask(explanation, t0=0.5).place("box")
    assert place.box == replace(whole_plane(explanation.axes), t0=0.5)
    whole = ask(explanation, whole_plane(explanation.axes)).place("box")
    assert whole.concepts["band"] == "full band"
    assert whole.concepts["kind"] == TREE.root("kind")
    assert "too wide" in ask(explanation, f0=0).text.of("box").lower()
    assert whole.numbers["mask_percent"] == 100


def test_ids_of_cells_and_of_regions_are_two_things(explanation):
    grid = RegionGrid(explanation.axes)
    for name in ("2", "cell 2", " Cell 2 "):
        assert ask(explanation, name).place("2").box == grid.box("2")
    found, region = ask(explanation, "R2").place("R2"), explanation.regions[1]
    assert (found.box.t0, found.box.f1) == (region.t0, region.f1)
    assert found.numbers["region_percent"] == 100 * region.share


def test_a_phrase_asks_for_every_cell_of_that_description(explanation):
    answer = ask(explanation, "low-frequency vowels", k=1)
    grid, heat = (
        RegionGrid(explanation.axes),
        pool(explanation.heatmap, RegionGrid(explanation.axes)),
    )
    expected = []
    for id in top_k(heat, 16):
        concepts = ask(explanation, id).places[0].concepts
        if concepts["phone"] == "vowel" and TREE.holds("low", concepts["band"]):
            expected.append(id)
    assert 0 < len(expected) < 16
    assert [place.id for place in answer.places] == expected
    assert answer.text.spans[0].regions == tuple(expected)
    assert answer.numbers == {"cells": grid.count, "matching": len(expected)}
    # one is described
    assert sum("mean heat" in answer.text.of(id) for id in expected) == 1
    nothing = ask(explanation, "high-frequency splice boundaries")
    assert nothing.places == ()
    assert nothing.text.markup.startswith("<p>0 of 16 cells</p>[recording]")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ({"t1": 99.0}, "beyond the recording, which ends at 1.500 s"),
        ({"f1": 8000.1}, "beyond the recording"),
        ({"t0": -0.1}, "0 <= t0 < t1"),
        ({"t0": 1.0, "t1": 1.0}, "0 <= t0 < t1"),
        ({"f0": 3000.0, "f1": 2000.0}, "0 <= f0 < f1"),
        ({"t0": math.nan}, "0 <= t0 < t1"),
        ({"t0": 5.0}, "0 <= t0 < t1"),
        ({"t0": "1"}, "t0 as a number"),
        ({"t0": True}, "t0 as a number"),
        ({"question": "7", "t0": 1.0}, "one question"),
        ({"question": "17"}, "'1' to '16', got '17'"),
        ({"question": "0"}, "'1' to '16', got '0'"),
        ({"question": "R99"}, "no region 'R99'; it has R1"),
        ({"question": "R1 vowels"}, "'r1' .* names no concept"),
        ({"question": "vowals"}, "'vowal'"),
        ({"question": ""}, "names no concept"),
        ({"question": 7}, "expected a box, the id"),
        ({"question": Box(0.0, 2.0, 0.0, 100.0)}, "beyond the recording"),
        ({"k": 0}, "k must be"),
        ({"question": "vowels", "k": 0}, "k must be"),
    ],
)
def test_impossible_questions_are_refused(explanation, box, words):
    with pytest.raises(ConfigError, match=words):
        ask(explanation, **box)


def test_a_box_between_bins_is_refused(explanation):
    with pytest.raises(ShapeError, match="no bin lies in"):
        ask(explanation, t0=1.001, t1=1.002)
    with pytest.raises(ShapeError, match="24000 samples"):
        ask(explanation, "7", genuine=torch.zeros(100))


# ------------------------------------------------------------------ concepts of a place


def listener(**how):
    wave = torch.cat([torch.zeros(8_000), speech(n_samples=16_000), torch.zeros(8_000)])
    wave = wave + 1e-4 * noise(len(wave))
    return Listener(wave, Axes(StftConfig(), len(wave)), **how)


PHONES = [
    PhoneInterval(0.5, 0.8, "AY1"),
    PhoneInterval(0.8, 0.9, "sil"),
    PhoneInterval(0.9, 1.2, "S"),
    PhoneInterval(1.2, 1.5, "??"),
]


def test_silence_lies_before_between_or_after():
    for ears in (listener(), listener(phones=PHONES)):
        assert ears.look(Box(0.0, 0.4, 0.0, 2000.0)).concepts["when"] == "leading silence"
        assert ears.look(Box(1.6, 2.0, 0.0, 2000.0)).concepts["when"] == "trailing silence"
    ears = listener(phones=PHONES)
    assert ears.look(Box(0.81, 0.89, 0.0, 2000.0)).concepts["when"] == "pause"
    assert ears.look(Box(0.55, 0.75, 0.0, 2000.0)).concepts["when"] == "running speech"
    assert ears.look(Box(0.4, 0.6, 0.0, 2000.0)).concepts["when"] == "speech edge"
    silent = Listener(torch.zeros(16_000), Axes(StftConfig(), 16_000))
    assert silent.look(Box(0.2, 0.8, 0.0, 2000.0)).concepts["when"] == "non-speech"


def test_an_alignment_tells_classes_of_phones():
    def phone(t0, t1, **how):
        return listener(phones=PHONES, **how).look(Box(t0, t1, 0.0, 2000.0)).concepts["phone"]

    assert phone(0.5, 1.0) == "diphthong"
    assert phone(0.7, 1.2) == "fricative"
    assert phone(1.25, 1.5) == "consonant"  # a label that the tree does not have
    assert phone(0.81, 0.89) == "unvoiced"
    assert phone(0.9, 1.1, alphabet="ipa") == "consonant"


def test_bands_go_to_the_deepest_that_holds_most():
    def band(f0, f1):
        return listener().look(Box(0.6, 1.0, f0, f1)).concepts["band"]

    assert band(0.0, 8000.0) == "full band"
    assert band(0.0, 2000.0) == "low"
    assert band(400.0, 900.0) == "first formant"
    assert band(2000.0, 4000.0) == "upper formants"
    assert band(5400.0, 6900.0) == "sibilance band"
    # where a third is named, it is that of the middle
    for f0, f1 in ((100, 4100), (1300, 5200), (2600, 7900), (2600, 2800), (5200, 5600)):
        middle = ("low", "mid", "high")[int((f0 + f1) / 2 // (8000 / 3))]
        assert TREE.path(band(float(f0), float(f1)))[1:2] in ((), (middle,))


def test_what_is_too_short_is_not_named():
    sight = listener().look(Box(0.7, 0.712, 0.0, 2000.0))
    assert sight.concepts["when"] == TREE.root("when")
    assert sight.concepts["phone"] == TREE.root("phone")
    assert sight.concepts["kind"] == TREE.root("kind")
    assert "too short" in sight.finding


def test_a_small_box_is_judged_with_what_is_around_it():
    ears = listener()
    small, cell = ears.look(Box(0.6, 0.7, 400.0, 900.0)), ears.look(Box(0.5, 1.0, 0.0, 2000.0))
    assert "around it, at 0.40-0.90 s, 0-2000 Hz, " in small.finding
    assert small.numbers["around_t0_s"] == pytest.approx(0.4)
    assert "around" not in cell.finding
    assert not any(name.startswith("around") for name in cell.numbers)
    # the last corner: the surroundings stay within the recording
    corner = ears.look(Box(1.95, 2.0, 7900.0, 8000.0))
    assert corner.numbers["around_t1_s"] <= 2.0
    assert corner.numbers["around_f1_hz"] == 8000


def test_a_kind_without_a_twin_is_a_guess_and_a_twin_is_listened_to():
    axes, box = listener().axes, Box(0.5, 1.0, 0.0, 2000.0)
    clean = listener().wave
    noisy = clean + noise(len(clean), seed=1, scale=0.05)
    alone, beside = Listener(noisy, axes).look(box), Listener(noisy, axes, genuine=clean).look(box)
    assert beside.concepts["kind"] in KINDS
    assert "kind" not in beside.uncertain
    assert "genuine twin" in beside.finding
    # fields are those of the twin, whatever the copy sounds like
    hiss = Listener(noise(len(clean), scale=0.3), axes, genuine=clean)
    silence = Box(0.0, 0.4, 0.0, 2000.0)
    assert hiss.look(silence).concepts["when"] == "leading silence"
    assert Listener(hiss.wave, axes).look(silence).concepts["when"] != "leading silence"
    assert ("kind" in alone.uncertain) == (alone.concepts["kind"] in KINDS)


# ------------------------------------------------------------------ tasks


def test_detection_is_the_detectors(explanation):
    answer = detect(replace(explanation, verdict=VERDICT))
    assert answer.text.markup == (
        "<p>The whole recording</p>[recording] is rather synthetic than genuine: p(spoof) 0.93 by "
        "judge."
    )
    assert "genuine than synthetic" in str(
        detect(replace(explanation, verdict=Verdict(0.2, "j", "")))
    )
    with pytest.raises(ConfigError, match="no verdict"):
        detect(explanation)
    assert "p(spoof)" not in str(ask(explanation))


def test_families_share_the_mask_of_the_cells(explanation):
    answer = classify(explanation, k=16)
    assert sum(answer.numbers.values()) == pytest.approx(100)
    spoken = [span for span in answer.text.spans if span.regions]
    assert sorted(int(id) for span in spoken for id in span.regions) == list(range(1, 17))
    families = {"nothing unusual", TREE.root("kind"), *TREE.children("artifact")}
    assert len(spoken) > 1
    for span in spoken:
        assert span.text.lower() in families
        for id in span.regions:
            assert TREE.holds(span.text.lower(), answer.place(id).concepts["kind"])


def test_localisation_has_every_region_and_grounding_the_strongest(explanation):
    where, why = localise(explanation), ground(explanation, k=2)
    assert [place.id for place in where.places] == [region.id for region in explanation.regions]
    assert [place.id for place in why.places] == ["R1", "R2"]
    assert all(f"[{place.id}]" in where.text.markup for place in where.places)
    bare = replace(explanation, regions=())
    assert localise(bare).text.markup.startswith("<p>The mask</p>[recording]")
    assert ground(bare).places == ()
    with pytest.raises(ConfigError, match="k must be"):
        ground(explanation, k=0)
    with pytest.raises(ConfigError, match="no region 'R1'; it has none"):
        ask(bare, "R1")


def test_localisation_in_a_place_has_the_regions_that_reach_into_it(explanation):
    box = Box(0.2, 0.9, 1000.0, 3000.0)
    inside = [
        r.id
        for r in explanation.regions
        if r.t0 < box.t1 and r.t1 > box.t0 and r.f0 < box.f1 and r.f1 > box.f0
    ]
    answer = localise(explanation, box)
    assert 1 < len(inside) < len(explanation.regions)
    assert [place.id for place in answer.places] == inside
    assert answer.question == str(box)
    assert str(answer).startswith(f"{len(inside)} regions reach into {box}.")
    assert [p.id for p in localise(explanation, "R2").places] == ["R2"]
    assert str(localise(explanation, "R2")).startswith("1 region reaches into 1.06-1.21 s")
    assert localise(explanation, "cell 7").question == "cell 7"
    cells = {place.id for place in ask(explanation, "low-frequency vowels").places}
    grid = RegionGrid(explanation.axes)
    for place in localise(explanation, "low-frequency vowels").places:
        assert any(grid.box(id).f0 < place.box.f1 for id in cells)
    empty = localise(explanation, t0=0.0, t1=0.05)
    assert empty.text.markup == "<p>0 regions reach</p>[recording] into 0.00-0.05 s, 0-8000 Hz."
    with pytest.raises(ConfigError, match="beyond the recording"):
        localise(explanation, t1=99.0)


def test_short_and_silent_recordings_are_answered():
    for wave in (noise(1024), noise(16_000, scale=1e-6), torch.zeros(16_000) + 1e-9):
        ex = make(wave)
        for answer in (ask(ex), ask(ex, "unvoiced"), ground(ex), classify(ex)):
            assert Answer.from_dict(json.loads(answer.to_json())) == answer


def test_damaged_answers_are_refused(answers):
    good = answers["cell"].to_dict()
    for change, words in (
        ({"format": "2"}, "expected format"),
        ({"text": {}}, "text"),
        ({"places": 7}, "places"),
        ({"extra": 1}, "no field 'extra'"),
    ):
        with pytest.raises(ConfigError, match=words):
            Answer.from_dict(good | change)
    place = asdict(answers["cell"].places[0])
    for change, words in (
        ({"concepts": place["concepts"] | {"when": "vowel"}}, "no concept of axis 'when'"),
        ({"concepts": place["concepts"] | {"when": "hum"}}, "no concept 'hum'"),
        ({"concepts": {"when": "speech"}}, "a concept of each of"),
        ({"numbers": {"heat": math.inf}}, "must be finite"),
    ):
        with pytest.raises(ConfigError, match=words):
            Place(**(place | {"box": Box(0, 1, 0, 1)} | change))
    with pytest.raises(ConfigError, match="no place 'R1'; its places are 7"):
        answers["cell"].place("R1")
    assert WHOLE in answers["cell"].text.places
