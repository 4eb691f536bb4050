"""Training of a detector end to end on a toy corpus, its losses, and the stretches it sees."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import noise
from toy import N, write_corpus

from specsegdiff.data.manifest import read_manifest, write_manifest
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.models.detector import fit_temperature
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

pytest.importorskip("lightning", reason="training needs the extra 'train'")

from specsegdiff.train import detector
from specsegdiff.train.detector import (
    DetectorConfig,
    DetectorModule,
    TwinCrops,
    Twins,
    middle_spectrum,
    read_config,
    read_twins,
    recordings,
    train,
    verdict_loss,
)

# Lightning's advice on workers, folders and intervals
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two pairs to train on, two to validate: one alone would be told apart, and not calibrated."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), ("train", "train", "val", "val"))


def config_of(corpus, **changes):
    small = DetectorConfig(
        preset="tiny",
        pairs=str(corpus),
        local_pairs=None,
        steps=4,
        batch=2,
        learning_rate=1e-3,
        warmup=1,
        validate_every=2,
        precision="32-true",
        bands=8,
    )
    return replace(small, **changes)


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


# a few steps may classify all of val, or none of it, and then there is no temperature to fit
@pytest.fixture(scope="module")
def uncalibrated():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "fit_temperature", lambda *args, **options: 2.0)
        yield


@pytest.fixture(scope="module")
def finished(corpus, uncalibrated, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, train(config_of(corpus), out, accelerator="cpu")


def test_a_run_leaves_a_calibrated_model_a_log_and_its_configuration(corpus, finished):
    out, model = finished
    loaded = Wav2Vec2AASIST.from_pretrained(out / "model")
    assert loaded.config == model.config
    assert loaded.config.temperature == 2
    assert not model.training
    written = json.loads((out / "config.json").read_text())
    assert written == json.loads(json.dumps(asdict(config_of(corpus))))
    with (out / "log" / "version_0" / "metrics.csv").open() as file:
        rates = [float(row["val_eer"]) for row in csv.DictReader(file) if row.get("val_eer")]
    assert len(rates) == 2
    assert all(0 <= rate <= 100 for rate in rates)


def test_training_changes_every_tensor(finished):
    torch.manual_seed(0)
    start = Wav2Vec2AASIST.from_preset("tiny").state_dict()
    for name, value in finished[1].state_dict().items():
        assert not torch.equal(value, start[name]), name


class Interrupted(Exception):
    pass


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    corpus, finished, uncalibrated, tmp_path, monkeypatch
):
    compute, count = detector.verdict_loss, 0

    def fail(*args):
        nonlocal count
        count += 1
        # five readings a step: of the whole, and of four layers
        if count == 5 * 3 + 1:
            raise Interrupted
        return compute(*args)

    monkeypatch.setattr(detector, "verdict_loss", fail)
    with pytest.raises(Interrupted):
        train(config_of(corpus), tmp_path, accelerator="cpu")
    monkeypatch.setattr(detector, "verdict_loss", compute)
    resumed = train(config_of(corpus), tmp_path, resume=True, accelerator="cpu")
    assert float((weights(resumed) - weights(finished[1])).abs().max()) <= 1e-5


def test_the_temperature_is_the_one_that_val_asks_for(corpus, monkeypatch):
    # the fixture above may have replaced it
    monkeypatch.setattr(detector, "fit_temperature", fit_temperature)
    module = DetectorModule(config_of(corpus), read_manifest(corpus))
    # bona fide first; one of each class is on the wrong side
    margins = torch.tensor([-3.0, -3.0, -3.0, 1.0, 3.0, 3.0, 3.0, -1.0])
    assert module.is_spoof.tolist() == [False] * 4 + [True] * 4
    rows = iter(torch.stack([margins, torch.zeros(8)], dim=1))
    monkeypatch.setattr(module.model, "forward", lambda wave: next(rows)[None])
    module.calibrate()
    expected = fit_temperature(torch.stack([margins, torch.zeros(8)], dim=1), module.is_spoof)
    assert module.model.config.temperature == pytest.approx(expected)
    assert expected != 1


def test_recordings_name_each_real_one_once(corpus):
    pairs = read_manifest(corpus)
    twice = [*pairs, replace(pairs[0], id="again", gain_db=20.0)]
    found = recordings(twice)
    assert [spoof for *_, spoof in found] == [False] * 4 + [True] * 5
    assert found[-1][1] == pytest.approx(0.1)


# ------------------------------------------------------------------ losses


def test_the_verdict_is_cross_entropy_and_a_ranking():
    score = torch.tensor([-1.0, 2.0, 0.5, 0.2])

    def lost(margin):
        return np.log(1 + np.exp(-margin))

    alone = (lost(1.0) + lost(2.0) + lost(-0.5) + lost(0.2)) / 4
    ranking = (lost(3.0) + lost(-0.3)) / 2
    assert float(verdict_loss(score, 0.0)) == pytest.approx(alone, rel=1e-6)
    assert float(verdict_loss(score, 0.7)) == pytest.approx(alone + 0.7 * ranking, rel=1e-6)


def test_the_spectrum_is_that_of_the_middle_of_a_frame():
    wave = noise(1, 400, seed=1, scale=1.0)
    found = middle_spectrum(wave, hop=50, reach=100, bands=8, taps=64)
    assert found.shape == (1, 7, 8)
    scaled = wave[0] / wave.std()
    segment = scaled[100 + 18 : 100 + 18 + 64] * torch.hann_window(64)
    power = torch.fft.rfft(segment).abs().square()[1:] / torch.hann_window(64).square().sum()
    expected = ((power.reshape(8, 4).mean(1) + 1e-6).log() + 7) / 4
    assert torch.allclose(found[0, 2], expected, atol=1e-4)
    with pytest.raises(ShapeError, match="no more bands"):
        middle_spectrum(wave, hop=50, reach=100, bands=60)


# ------------------------------------------------------------------ stretches


def test_a_stretch_depends_on_seed_and_index_only(corpus):
    twins = read_twins(read_manifest(corpus))
    crops = TwinCrops(twins, config_of(corpus, rawboost_share=1.0), length=4_000)
    assert len(crops) == 8
    assert torch.equal(crops[3], crops[3])
    assert crops[3].shape == (2, 4_000)
    assert not torch.equal(crops[3], crops[4])
    other = TwinCrops(twins, config_of(corpus, rawboost_share=1.0, seed=1), length=4_000)
    assert not torch.equal(crops[3], other[3])


def test_both_members_are_cut_at_one_place_and_short_ones_repeat():
    ramp = torch.arange(100, dtype=torch.int16)
    twins = [Twins("a", False, torch.stack([ramp, ramp]))]
    config = config_of("", rawboost_share=0.0)
    crop = TwinCrops(twins, config, length=30)[0]
    assert torch.equal(crop[0], crop[1])
    assert torch.allclose(crop[0].diff(), torch.full((29,), 1 / 32767))
    long = TwinCrops(twins, config, length=250)[0]
    assert torch.equal(long[:, :50], long[:, 200:])


def test_noise_is_the_same_for_both_members():
    ramp = (1000 * torch.randn(2_000, generator=torch.Generator().manual_seed(0))).short()
    crops = TwinCrops(
        [Twins("a", False, torch.stack([ramp, ramp]))],
        config_of("", rawboost_share=1.0),
        length=1_000,
    )
    clean = replace(crops.config, rawboost_share=0.0)
    for index in range(4):
        boosted = crops[index]
        assert torch.equal(boosted[0], boosted[1])
    plain = TwinCrops(crops.twins, clean, length=1_000)
    assert any(not torch.allclose(crops[i], plain[i], atol=1e-3) for i in range(4))


def test_local_pairs_get_their_share():
    wave = torch.ones(2, 1_000, dtype=torch.int16)
    twins = [Twins("a", False, wave)] * 3 + [Twins("b", True, 3 * wave)] * 5
    config = config_of("", rawboost_share=0.0, local_share=0.25, steps=1000)
    crops = TwinCrops(twins, config, length=10)
    local = np.mean([float(crops[i].max()) > 2 / 32767 for i in range(1_000)])
    # three standard deviations of a mean of 1000 coins
    assert abs(local - 0.25) < 3 * (0.25 * 0.75 / 1000) ** 0.5


def test_an_unreadable_pair_is_skipped_and_told_and_none_is_an_error(corpus, tmp_path, capsys):
    pairs = read_manifest(corpus)
    broken = replace(pairs[0], id="broken", fake=Path("nowhere.flac"))
    twins = read_twins([broken, pairs[1]])
    assert [t.samples.shape for t in twins] == [(2, N)]
    assert "broken" in capsys.readouterr().out
    only_val = tmp_path / "pairs.csv"
    write_manifest([p for p in pairs if p.split == "val"], only_val)
    with pytest.raises(ConfigError, match="no readable pair"):
        train(config_of(only_val), tmp_path / "run", accelerator="cpu")


# ------------------------------------------------------------------ configuration


CONFIGS = sorted((ROOT / "configs" / "detector").glob("wav2vec2-*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_the_shipped_configurations_are_valid(path):
    assert isinstance(read_config(path), DetectorConfig)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preset": "huge"}, "preset"),
        ({"local_share": 1.5}, "local_share"),
        ({"deep": -1.0}, "weights >= 0"),
        ({"steps": 0}, "steps"),
    ],
)
def test_a_wrong_setting_is_named(corpus, changes, says):
    with pytest.raises(ConfigError, match=says):
        config_of(corpus, **changes)
