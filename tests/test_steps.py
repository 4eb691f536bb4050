"""The steps benchmark: what it counts, whom it compares, and which way it calls the cheapest."""

import json
import sys
from pathlib import Path

import pytest
import torch
from models import STFT, make_model, noise

from specsegdiff.benchmark.scoring import load_case
from specsegdiff.data.audio import write_audio
from specsegdiff.data.pairs import Pair
from specsegdiff.frontend import Stft

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import steps


def row(method, pair, gdice, *, passes=1, ap=10.0):
    sampler, count = method.split()
    return {
        "method": method,
        "sampler": sampler,
        "steps": int(count),
        "id": pair,
        "source_group": pair,
        "passes": passes,
        "seconds": 2.0 * passes,
        "seconds_over_pass": float(passes),
        "gdice": gdice,
        "average_precision": ap,
    }


ROWS = [
    *(row("ddim 1", pair, gdice) for pair, gdice in (("a", 30.0), ("b", 20.0))),
    *(row("ddim 2", pair, gdice, passes=9) for pair, gdice in (("a", 31.0), ("b", 19.6))),
    *(row("ddpm 100", pair, gdice, passes=99) for pair, gdice in (("a", 33.0), ("b", 21.0))),
]


def test_ways_are_compared_with_the_reference_on_the_same_pairs():
    one, two, many = steps.summary(ROWS, "ddpm 100")
    assert one["gdice"][0] == pytest.approx(25)
    assert one["over_reference"]["gdice"][0] == pytest.approx(-2)
    # on each pair by itself: an interval of differences, not of scores
    assert one["over_reference"]["gdice"][1:] == pytest.approx([-3, -1])
    assert two["over_reference"]["gdice"][0] == pytest.approx(-1.7)
    assert many["over_reference"]["gdice"] == pytest.approx([0, 0, 0])
    # a pair that the reference has not yet seen is left out
    assert steps.summary([*ROWS, row("ddim 1", "c", 90.0)], "ddpm 100")[0]["over_reference"][
        "gdice"
    ][0] == pytest.approx(-2)


def test_the_cheapest_way_may_lose_half_a_point_and_no_more():
    entries = steps.summary(ROWS, "ddpm 100")
    assert steps.cheapest(entries) == "ddpm 100"
    assert steps.cheapest(entries[:2]) == "ddim 1"  # 25 against 25.3
    assert steps.cheapest(entries[:2], loss=0.2) == "ddim 2"


def test_the_front_holds_what_nothing_cheaper_beats():
    entries = steps.summary([*ROWS, row("unipc 5", "a", 1.0, passes=50)], "ddpm 100")
    kept = [entry["method"] for entry in steps.front(entries, "gdice")]
    assert kept == ["ddim 1", "ddim 2", "ddpm 100"]


def test_the_figure_has_a_line_a_sampler_and_a_point_a_way():
    meta = {"draws": 32, "pairs": 2, "split": "val"}
    drawn = steps.figure({"meta": meta, "rows": steps.summary(ROWS, "ddpm 100")})
    for panel in drawn.axes:
        assert {text.get_text().strip() for text in panel.texts} == {"1", "2", "100"}
    labels = {text.get_text() for text in drawn.axes[-1].get_legend().get_texts()}
    assert labels == {"ddim", "ddpm", "nothing cheaper is better"}


def test_a_way_is_scored_and_its_passes_counted(tmp_path):
    model = make_model()
    real, fake = (noise(600, seed=seed) for seed in (0, 1))
    for name, wave in (("real", real), ("fake", fake)):
        write_audio(tmp_path / f"{name}.wav", wave, sample_rate=1_000)
    pair = Pair("p", tmp_path / "real.wav", tmp_path / "fake.wav")
    case = load_case(pair, masks=steps.MASKS, stft=Stft(STFT))
    one_pass = steps.seconds_of_a_pass(model, case)
    assert 0 < one_pass < 10
    found = steps.score(model, case, "unipc", 3, draws=4, one_pass=one_pass)
    assert found["passes"] == 1 + 4 * 2  # the first step sees nothing of the draw
    assert found["seconds_over_pass"] == pytest.approx(found["seconds"] / one_pass)
    assert 0 <= found["gdice"] <= 100
    assert not model.unet._forward_hooks
    again = steps.score(model, case, "unipc", 3, draws=4, one_pass=one_pass)
    assert again["gdice"] == found["gdice"]
    json.dumps(found, allow_nan=False)
    assert torch.is_grad_enabled()
