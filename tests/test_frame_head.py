"""The frame scorer: transformers' last layer, windows, the map's frames, and its folder."""

from dataclasses import replace

import pytest
import torch
from models import ENCODER, noise

from specsegdiff.errors import CheckpointError, ConfigError, ShapeError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.models.encoder import BackboneConfig
from specsegdiff.models.frame_head import FrameScorer, FrameScorerConfig
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

pytest.importorskip("transformers")

CONFIG = FrameScorerConfig(backbone=ENCODER, normalise=False, n_samples=4_000)
"Frames of 165 samples at a distance of 320, 12 of them in a window."


def make(config=CONFIG, *, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = FrameScorer(config).eval()
        with torch.no_grad():
            scorer.head.bias.fill_(0.2)
    return scorer


@pytest.fixture(scope="module")
def scorer():
    return make()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("stable", [True, False], ids=["large", "base"])
def test_the_head_reads_what_transformers_returns(stable):
    changes = {} if stable else {"do_stable_layer_norm": False, "feat_extract_norm": "group"}
    scorer = make(replace(CONFIG, backbone=replace(ENCODER, **changes)))
    wave = noise(2, 3_900)
    last = scorer.backbone(wave).last_hidden_state
    expected = last @ scorer.head.weight[0] + 0.2
    assert expected.shape == (2, scorer.config.backbone.n_frames(3_900))
    assert torch.allclose(scorer.logits(wave), expected, atol=1e-5)
    assert torch.allclose(scorer.p_spoof(wave), 1 / (1 + (-expected).exp()), atol=1e-6)


def test_a_new_head_is_xavier_uniform():
    weights = torch.cat([make(seed=s).head.weight.flatten() for s in range(30)])
    bound = (6 / (32 + 1)) ** 0.5
    assert weights.abs().max() <= bound
    # a uniform draw's deviation, to four standard errors
    expected = bound / 3**0.5
    assert abs(weights.std() - expected) < 4 * expected / len(weights) ** 0.5


def test_windows_start_on_frames_and_their_logits_are_averaged(scorer):
    backbone = ENCODER
    frames = 30
    wave = noise(1, (frames - 1) * backbone.hop + backbone.reach + 17)
    window = 12  # frames of 4,000 samples; three windows, at 0, 9 and 18
    total, seen = torch.zeros(frames), torch.zeros(frames)
    for start in (0, 9, 18):
        first = start * backbone.hop
        part = wave[:, first : first + (window - 1) * backbone.hop + backbone.reach]
        total[start : start + window] += scorer.logits(part)[0]
        seen[start : start + window] += 1
    assert torch.allclose(scorer.logits(wave)[0], total / seen, atol=1e-6)


@pytest.mark.parametrize("n", [1, 165, 484, 485, 4_000, 4_005, 9_000])
def test_any_length_has_its_frames(scorer, n):
    wave = noise(2, n)
    assert scorer.logits(wave).shape == (2, ENCODER.n_frames(n))
    heat = scorer(wave)
    assert heat.shape == (2, *Stft().axes(n).shape)
    assert heat.isfinite().all()
    assert ((heat >= 0) & (heat <= 1)).all()


def test_items_do_not_depend_on_each_other(scorer):
    wave = noise(3, 5_000)
    assert torch.allclose(scorer(wave)[1:2], scorer(wave[1:2]), atol=1e-6)


def test_the_map_is_constant_over_frequency_and_interpolates_between_centres(monkeypatch):
    scorer = make(replace(CONFIG, stft=StftConfig(n_fft=64, hop=20)))
    n = 3_000
    level = torch.rand(1, ENCODER.n_frames(n), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(scorer, "logits", lambda wave: level.logit())
    heat = scorer(noise(1, n))
    assert heat.shape == (1, 33, 151)
    assert torch.equal(heat, heat[:, :1].expand_as(heat))
    centres = [320 * k + 165 // 2 for k in range(level.shape[1])]
    for frame in range(151):
        at = 20 * frame
        if at <= centres[0]:
            expected = level[0, 0]
        elif at >= centres[-1]:
            expected = level[0, -1]
        else:
            k = max(k for k, c in enumerate(centres) if c <= at)
            share = (at - centres[k]) / 320
            expected = (1 - share) * level[0, k] + share * level[0, k + 1]
        assert float(heat[0, 0, frame]) == pytest.approx(float(expected), abs=1e-5), frame


def test_a_scorer_shares_the_encoder_of_its_detector():
    detector = Wav2Vec2AASIST.from_preset("tiny").eval()
    scorer = FrameScorer.from_detector(detector).eval()
    assert scorer.backbone is detector.backbone
    assert scorer.config.backbone == detector.config.backbone
    assert scorer.config.n_samples == detector.config.n_samples
    assert FrameScorer.from_detector(detector, n_samples=4_000).config.n_samples == 4_000
    assert scorer.config.normalise == detector.config.normalise
    assert scorer.logits(noise(1, 2_000)).isfinite().all()


def test_normalised_windows_have_lost_gain_and_offset():
    scorer, wave = make(replace(CONFIG, normalise=True)), noise(1, 4_000)
    assert torch.allclose(scorer.logits(wave), scorer.logits(20 * wave + 0.3), atol=1e-3)
    assert not torch.allclose(make().logits(wave), make().logits(20 * wave), atol=1e-3)


def test_what_is_saved_is_what_is_loaded(scorer, tmp_path):
    scorer.save_pretrained(tmp_path / "frames")
    loaded, wave = FrameScorer.from_pretrained(tmp_path / "frames"), noise(1, 5_000)
    assert loaded.config == scorer.config
    assert not loaded.training
    assert torch.equal(loaded(wave), scorer(wave))
    Wav2Vec2AASIST.from_preset("tiny").save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="expected 'FrameScorer'"):
        FrameScorer.from_pretrained(tmp_path / "other")


def test_wrong_input_is_named(scorer):
    with pytest.raises(ShapeError, match=r"\(b, n\)"):
        scorer.logits(torch.zeros(400))
    with pytest.raises(ShapeError, match="floating"):
        scorer(torch.zeros(1, 400, dtype=torch.int16))
    with pytest.raises(ConfigError, match="shorter than a frame"):
        FrameScorerConfig(backbone=BackboneConfig(), n_samples=399)
