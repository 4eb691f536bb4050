"""The spectrogram in front of a small backbone: what it computes, and what a frame sees."""

import math
from dataclasses import replace

import pytest
import torch
from models import awake, noise

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.models.graph import GraphConfig
from specsegdiff.models.spectral import FLOOR, LOG_MEAN, LOG_SCALE, SpectralFront, fourier_filters
from specsegdiff.models.wav2vec2_aasist import BackboneConfig, Wav2Vec2AASIST, Wav2Vec2AASISTConfig

BACKBONE = BackboneConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(15, 4, 6),
    conv_kernel=(32, 3, 3),
    conv_stride=(20, 1, 2),
    spectrogram=True,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=4,
)


def front():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SpectralFront(BACKBONE.conv_dim, BACKBONE.conv_kernel, BACKBONE.conv_stride)
    return awake(made)


def test_the_filters_are_a_fourier_transform_under_a_window_of_unit_energy():
    wave = noise(64, seed=1, scale=1.0)
    window = torch.hann_window(64)
    spectrum = torch.fft.rfft(wave * window)[1:21] / window.norm()
    cosine, sine = (fourier_filters(20, 64)[:, 0] @ wave).chunk(2)
    assert torch.allclose(cosine, spectrum.real, atol=1e-5)
    assert torch.allclose(sine, -spectrum.imag, atol=1e-5)


def test_features_are_the_convolutions_of_the_log_power():
    model, wave = front(), noise(1, 1, 232, seed=2, scale=1.0)
    window = torch.hann_window(32)
    frames = wave[0, 0].unfold(0, 32, 20) * window / window.norm()
    power = torch.fft.rfft(frames)[:, 1:16].abs().square().T
    x = (((power + FLOOR).log() - LOG_MEAN) / LOG_SCALE)[None, None]
    first, second = model.convolutions
    x = torch.nn.functional.gelu(first(x) + model.place)
    x = torch.nn.functional.gelu(second(x))
    assert x.shape == (1, 6, 4, 4)
    assert torch.allclose(model(wave), x.reshape(1, 24, 4), atol=1e-5)
    assert model.width == 24


def test_a_frame_sees_its_reach_and_nothing_else():
    model = front()
    frames = BACKBONE.n_frames(600)
    wave = noise(1, 1, 600, seed=3, scale=1.0)
    whole = model(wave)
    assert whole.shape[-1] == frames
    assert (BACKBONE.reach, BACKBONE.hop) == (32 + 20 * 4, 40)
    for frame in (0, frames // 2, frames - 1):
        first = BACKBONE.hop * frame
        inside = wave[..., first : first + BACKBONE.reach]
        alone = torch.zeros_like(wave)
        alone[..., first : first + BACKBONE.reach] = inside
        assert torch.allclose(model(alone)[..., frame], whole[..., frame], atol=1e-6)
        # the Hann window starts at zero, so the outermost samples count little
        for edge in (first + 3, first + BACKBONE.reach - 3):
            changed = wave.clone()
            changed[..., edge] += 5
            assert not torch.allclose(model(changed)[..., frame], whole[..., frame], atol=1e-4)


def test_maps_are_those_of_the_convolutions_at_the_frames_that_the_configuration_tells():
    config = Wav2Vec2AASISTConfig(
        backbone=BACKBONE, n_samples=2000, rows=12, channels=(4,), graph=GraphConfig(dims=(8, 8))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = awake(Wav2Vec2AASIST(config)).eval()
    wave = noise(1, 600, seed=3, scale=1.0)
    with torch.no_grad():
        first, last = (model.front_map(wave, layer) for layer in (0, 1))
        whole = model.backbone.feature_extractor.conv_layers[0](wave[:, None])
        assert torch.equal(last.flatten(1, 2), whole)
        assert first.shape[1:3] == (4, 8)
        assert BACKBONE.front_frames(1) == (BACKBONE.hop, BACKBONE.reach)
        hop, reach = BACKBONE.front_frames(0)
        assert (hop, reach) == (20, 32 + 20 * 2)
        inside = torch.zeros_like(wave)
        inside[:, 3 * hop : 3 * hop + reach] = wave[:, 3 * hop : 3 * hop + reach]
        assert torch.allclose(model.front_map(inside, 0)[..., 3], first[..., 3], atol=1e-6)
        # shorter than a frame of the last: one frame of it
        assert model.front_map(wave[:, :5], 1).shape[-1] == 1
        brought = Wav2Vec2AASIST(replace(config, normalise=True)).eval()
        brought.load_state_dict(model.state_dict())
        assert torch.allclose(
            brought.front_map(3 * wave + 1, 0), brought.front_map(wave, 0), atol=1e-4
        )
    for asked in (-1, 2):
        with pytest.raises(ConfigError, match="has 2 convolutions over time and frequency"):
            model.front_map(wave, asked)
    with pytest.raises(ConfigError, match="has 0 convolutions"):
        Wav2Vec2AASIST.from_preset("tiny").front_map(wave, 0)
    with pytest.raises(ShapeError, match=r"\(b, n\)"):
        model.front_map(wave[0], 0)


def test_levels_of_silence_are_finite_and_gradients_flow_to_the_samples():
    wave = torch.zeros(1, 1, 232, requires_grad=True)
    level = (math.log(FLOOR) - LOG_MEAN) / LOG_SCALE
    assert math.isfinite(level)
    front()(wave).sum().backward()
    assert torch.isfinite(wave.grad).all()
    loud = noise(1, 1, 232, seed=4, scale=1.0).requires_grad_()
    front()(loud).sum().backward()
    assert float(loud.grad.abs().max()) > 0


def test_the_small_preset_is_a_wav2vec2_behind_a_spectrogram():
    with torch.random.fork_rng(devices=[]):
        model = Wav2Vec2AASIST.from_preset("small").eval()
    config = model.config.backbone
    # 20 ms apart as in wav2vec 2.0
    assert config.hop == 320
    states = model.features(noise(1, 16_000, seed=5), (0, 5))
    assert [tuple(s.shape) for s in states] == [(1, config.n_frames(16_000), 192)] * 2
    assert tuple(model(noise(1, 50_000, seed=6)).shape) == (1, 2)


def test_a_spectrum_without_a_convolution_is_refused():
    with pytest.raises(ConfigError, match="one convolution or more after the spectrum"):
        BackboneConfig(conv_dim=(16,), conv_kernel=(32,), conv_stride=(20,), spectrogram=True)
