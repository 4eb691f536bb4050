"""Scoring loops: a perfect method scores 100, chance scores chance, and groups stay apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specsegdiff.benchmark import SCORES, score_maps, summarise
from specsegdiff.data.audio import write_audio
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.errors import ShapeError
from specsegdiff.frontend import Stft
from specsegdiff.masks import MaskConfig, difference
from specsegdiff.metrics import bootstrap_interval

RATE = 16_000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(0)
    real = 0.1 * torch.randn(RATE, generator=generator)
    fake = real + 0.05 * torch.randn(RATE, generator=generator)
    for name, wave in (("real", real), ("fake", 0.5 * fake)):
        write_audio(folder / f"{name}.flac", wave, sample_rate=RATE)
    gain = 20 * torch.log10(torch.tensor(0.5)).item()
    files = folder / "real.flac", folder / "fake.flac"
    return Pair("p0", *files, gain_db=gain, vocoder="v", family="gan", vocoder_seen=False)


def oracle(pair: Pair, fake: torch.Tensor) -> torch.Tensor:
    real, _ = load_pair(pair)
    return difference(*(Stft().magnitude(wave) for wave in (real, fake)))


def test_the_difference_itself_scores_100(pair: Pair) -> None:
    calls = []
    rows = score_maps(oracle, [pair], progress=lambda *done: calls.append(done))
    assert calls == [(1, 1)]
    assert rows[0]["id"] == "p0"
    # a pair without a source group stands for itself
    assert rows[0]["source_group"] == "p0"
    assert [rows[0][name] for name in SCORES] == [100.0] * 4


def test_a_constant_map_takes_ties_and_scores_its_overlap(pair: Pair) -> None:
    row = score_maps(lambda pair, fake: torch.zeros(513, 63), [pair])[0]
    # dice and iou of the same two sets of equal size; AP of one big tie is the share of the truth
    dice = row["foreground_dice"] / 100
    assert row["iou"] / 100 == pytest.approx(dice / (2 - dice))
    assert row["average_precision"] == pytest.approx(5, abs=0.01)
    assert row["gdice"] < 30


def test_only_the_shared_band_counts(pair: Pair) -> None:
    narrow = replace(pair, band_hz=4_000.0)
    heat = torch.rand(513, 63, generator=torch.Generator().manual_seed(1))
    loud_above = heat.clone()
    loud_above[257:] += 10
    rows = [score_maps(lambda *_, m=m: m, [narrow])[0] for m in (heat, loud_above)]
    assert rows[0] == rows[1]


def test_a_dtw_pair_of_unequal_lengths_is_scored(pair: Pair, tmp_path: Path) -> None:
    real, _ = load_pair(pair)
    write_audio(tmp_path / "late.flac", torch.cat([torch.zeros(4_096), real]), sample_rate=RATE)
    late = replace(pair, fake=tmp_path / "late.flac", gain_db=0.0, align="dtw")
    row = score_maps(lambda pair, fake: Stft().magnitude(fake), [late])[0]
    assert all(0 <= row[name] <= 100 for name in SCORES)


def test_a_map_on_other_axes_is_an_error(pair: Pair) -> None:
    with pytest.raises(ShapeError, match="p0"):
        score_maps(lambda pair, fake: torch.zeros(513, 62), [pair])


def rows_of(values: list[float], groups: str, field: object) -> list[dict[str, object]]:
    scores = [dict.fromkeys(SCORES, value) for value in values]
    return [
        {"source_group": g, "vocoder_seen": field, "family": "gan"} | s
        for g, s in zip(groups, scores, strict=True)
    ]


def test_summaries_count_pairs_and_groups_and_bound_the_mean() -> None:
    rows = rows_of([10.0, 20.0, 60.0], "aab", True) + rows_of([40.0], "c", False)
    seen = summarise(rows, by="vocoder_seen")["seen"]
    assert (seen["pairs"], seen["groups"]) == (3, 2)
    values = torch.tensor([10.0, 20.0, 60.0], dtype=torch.float64)
    assert seen["iou"] == [30.0, *bootstrap_interval(values, list("aab"))]
    # one group has no spread to draw from
    assert summarise(rows, by="vocoder_seen")["unseen"]["iou"] == [40.0]
    assert summarise(rows)["all"]["gdice"][0] == 32.5


def test_undefined_scores_and_labels_are_left_out() -> None:
    rows = rows_of([10.0], "a", None)
    rows[0]["average_precision"] = None
    rows[0]["family"] = ""
    assert "average_precision" not in summarise(rows, by="vocoder_seen")["unknown"]
    assert list(summarise(rows, by="family")) == ["unknown"]


def test_the_mask_recipe_is_passed_on(pair: Pair) -> None:
    half = score_maps(
        lambda pair, fake: torch.zeros(513, 63), [pair], masks=MaskConfig(quantile=0.5)
    )
    assert half[0]["average_precision"] == pytest.approx(50, abs=0.01)
    # no bin is true: a ranking of them is undefined, and JSON has no NaN
    none = score_maps(
        lambda pair, fake: torch.zeros(513, 63), [pair], masks=MaskConfig(quantile=0.999999)
    )
    assert none[0]["average_precision"] is None
