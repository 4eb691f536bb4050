"""Frames and patches of speech lie in the regions that they are said to lie in."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from models import noise

from specsegdiff.data.voice import PHONES
from specsegdiff.errors import AudioError, ConfigError, ShapeError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.models.encoder import Family
from specsegdiff.models.wav2vec2_aasist import PRESETS, Wav2Vec2AASIST
from specsegdiff.narration.phones import ARPABET_VOWELS, PhoneInterval
from specsegdiff.probes.audio import (
    BANDS_HZ,
    DIVISIONS,
    LOCAL,
    MANNERS,
    by_band,
    frame_tokens,
    manner_of,
    phone_labels,
    sound_labels,
    spectral_patches,
)
from specsegdiff.probes.core import ProbeConfig, RegionProbes
from specsegdiff.probes.pooling import pool_regions

SECOND = 16_000


@pytest.fixture(scope="module")
def detector():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Wav2Vec2AASIST.from_preset("tiny").eval()


def vowel(n, f0=118.0):
    """A voice through formants at 500, 1500 and 2500 Hz."""
    t = np.arange(n) / SECOND
    wave = np.zeros(n)
    for k in range(1, int(4000 / f0)):
        near = sum(1 / (1 + ((k * f0 - f) / 100) ** 2) for f in (500, 1500, 2500))
        wave += near * np.cos(2 * np.pi * k * f0 * t + k * k)
    return torch.from_numpy(0.1 * wave).float()


def hum(n, f0=118.0):
    """A voice that has its power below 300 Hz, as that of a closed mouth."""
    t = torch.arange(n) / SECOND
    return 0.3 * torch.cos(2 * torch.pi * f0 * t) + 0.2 * torch.cos(4 * torch.pi * f0 * t)


def utterance():
    """Half a second each of pause, vowel, hiss, hum and pause, over a faint noise."""
    n = SECOND // 2
    hiss = torch.diff(noise(n + 1, scale=0.05, seed=1))
    parts = [torch.zeros(n), vowel(n), hiss, hum(n), torch.zeros(n)]
    return torch.cat(parts) + noise(5 * n, scale=1e-4)


# ------------------------------------------------------------------ frames


def test_a_frame_is_centred_on_the_samples_it_is_made_of(detector):
    wave = noise(4000, seed=2)
    tokens, times = frame_tokens(detector, wave, layers=[0, 3])
    backbone = detector.config.backbone
    assert [tuple(t.shape) for t in tokens] == [(1, backbone.n_frames(4000), 32)] * 2
    assert len(times) == backbone.n_frames(4000)
    assert torch.equal(tokens[1], detector.features(wave[None], [3])[0].detach())
    assert not tokens[0].requires_grad
    # XLS-R: frame k is centred on sample 320 k + 200
    assert times.tolist() == pytest.approx([(320 * k + 200) / SECOND for k in range(len(times))])
    with pytest.raises(ConfigError, match="layers 0 to 3"):
        frame_tokens(detector, wave, layers=[4])


@pytest.mark.parametrize("family", get_args(Family))
def test_a_local_frame_hears_its_own_samples_and_a_layer_hears_all(family):
    backbone = replace(PRESETS["tiny"].backbone, family=family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Wav2Vec2AASIST.from_preset("tiny", backbone=backbone).eval()
    wave = noise(4000, seed=2)
    (local, deep), times = frame_tokens(detector, wave, layers=[LOCAL, 0])
    changed, middle = wave.clone(), round(float(times[4]) * SECOND)
    changed[: middle - 200] += 1
    changed[middle + 200 :] += 1
    (near, far), _ = frame_tokens(detector, changed, layers=[LOCAL, 0])
    assert torch.equal(near[0, 4], local[0, 4])
    assert not torch.equal(near[0, 5], local[0, 5])
    assert not torch.equal(far[0, 4], deep[0, 4])
    # the model is left as it was found, also after an error
    with pytest.raises(ConfigError):
        frame_tokens(detector, wave, layers=[LOCAL, 9])
    assert not detector.backbone.feature_projection._forward_hooks
    only, _ = frame_tokens(detector, wave, layers=[LOCAL])
    assert torch.equal(only[0], local)


@pytest.mark.parametrize("gain", [0.01, 1.0])
def test_known_sounds_have_known_labels(gain):
    times = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.25], dtype=torch.float64)
    wave = gain * utterance()
    sounds = [DIVISIONS["sound"][i] for i in sound_labels(wave, times)]
    assert sounds == ["pause", "vowel", "voiceless consonant", "voiced consonant", "pause"]
    voicing = [DIVISIONS["voicing"][i] for i in sound_labels(wave, times, division="voicing")]
    assert voicing == ["pause", "voiced", "voiceless", "voiced", "pause"]


def test_both_divisions_agree_and_every_frame_has_a_label():
    wave = utterance()
    times = torch.arange(0, 2.6, 0.02, dtype=torch.float64)  # some lie after the end
    sounds, voicing = (sound_labels(wave, times, division=d) for d in ("sound", "voicing"))
    assert sounds.min() >= 0
    assert torch.equal(voicing == 0, sounds <= 1)
    assert torch.equal(voicing == 2, sounds == 3)


@pytest.mark.parametrize(
    ("wave", "error"),
    [
        (torch.full((8000,), torch.nan), AudioError),
        (torch.zeros(2, 8000), ShapeError),
        (torch.zeros(8000, dtype=torch.int16), ShapeError),
        (torch.zeros(0), ShapeError),
    ],
)
def test_waves_that_are_none_are_refused(wave, error, detector):
    times = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(error):
        sound_labels(wave, times)
    with pytest.raises(error):
        spectral_patches(wave)
    with pytest.raises(error):
        frame_tokens(detector, wave, layers=[0])


def test_another_division_is_refused():
    with pytest.raises(ConfigError, match="division"):
        sound_labels(utterance(), torch.zeros(1), division="mood")


# ------------------------------------------------------------------ phones


def test_every_phone_has_a_manner():
    assert {manner_of(name) for name in ARPABET_VOWELS} == {"vowel"}
    # those of the voice that the package speaks with
    spoken = {name: manner_of(name if name != "_" else "sil") for name in PHONES if name != "h"}
    assert {n for n, manner in spoken.items() if manner == "nasal"} == {"m", "n"}
    assert {n for n, manner in spoken.items() if manner == "stop"} == set("pbtdkg")
    assert {n for n, m in spoken.items() if m == "fricative"} == {*"fvsz", "th", "dh", "sh"}
    assert set(spoken.values()) == {*MANNERS} - {"affricate"}
    pairs = {"tʃ": "affricate", "t": "stop", "ʃ": "fricative", "ŋ": "nasal", "ɹ": "approximant"}
    for name, manner in (pairs | {"iː": "vowel", "dʲ": "stop", "sp": "pause"}).items():
        assert manner_of(name, alphabet="ipa") == manner
    with pytest.raises(ConfigError, match="'XX'"):
        manner_of("XX")
    with pytest.raises(ConfigError, match="alphabet"):
        manner_of("AA", alphabet="sampa")


def test_a_phone_holds_its_start_and_not_its_end():
    phones = [PhoneInterval(0.3, 0.4, "T"), PhoneInterval(0.1, 0.3, "AA1")]
    times = torch.tensor([0.0, 0.1, 0.2999, 0.3, 0.4, 9.0], dtype=torch.float64)
    labels = [MANNERS[i] for i in phone_labels(phones, times)]
    assert labels == ["pause", "vowel", "vowel", "stop", "pause", "pause"]
    # also where they overlap: the later counts
    later = [PhoneInterval(0.0, 0.3, "AA1"), PhoneInterval(0.2, 0.3, "NG")]
    assert [MANNERS[i] for i in phone_labels(later, times)][1:3] == ["vowel", "nasal"]
    assert set(phone_labels([], times).tolist()) == {MANNERS.index("pause")}


# ------------------------------------------------------------------ patches


def test_a_tone_lies_in_its_band_and_part():
    t = torch.arange(SECOND) / SECOND
    for hertz, band, part in ((100.0, 0, 3), (1500.0, 1, 5), (7900.0, 2, 31)):
        patches, times = spectral_patches(torch.cos(2 * torch.pi * hertz * t))
        assert patches.shape == (len(times), 3, 64)
        levels = patches[len(times) // 2, :, :32]
        assert divmod(int(levels.argmax()), 32) == (band, part)
        # a steady tone does not change
        assert float(patches[10:-10, band, 32 + part].max()) < 0.01


def test_level_is_no_feature_and_roughness_is():
    wave = noise(SECOND, scale=0.01, seed=4)
    patches, _ = spectral_patches(wave)
    torch.testing.assert_close(spectral_patches(100 * wave)[0], patches, rtol=1e-4, atol=1e-4)
    levels, change = patches[..., :32], patches[..., 32:]
    torch.testing.assert_close(change[:-1], levels.diff(dim=0).abs())
    assert not change[-1].any()


def test_every_bin_counts_once():
    wave = noise(4000, seed=5)
    patches, _ = spectral_patches(wave, bands_hz=(0.0, 4000.0, 8000.0), rows=1)
    magnitude = Stft().magnitude(wave / wave.square().mean().sqrt())
    expected = torch.stack([magnitude[:256].mean(0), magnitude[256:].mean(0)], dim=1)
    torch.testing.assert_close(patches[..., 0].exp(), expected, rtol=1e-4, atol=1e-4)
    # below the first band and above the last, none does
    inner, _ = spectral_patches(wave, bands_hz=(1000.0, 2000.0), rows=1)
    torch.testing.assert_close(inner[:, 0, 0].exp(), magnitude[64:129].mean(0), rtol=1e-4, atol=0)


def test_tokens_by_band_keep_their_values():
    patches, _ = spectral_patches(noise(4000, seed=6))
    tokens, labels = by_band(patches)
    pooled = pool_regions(tokens, labels, count=3)
    torch.testing.assert_close(pooled.values[0], patches.mean(0))


def test_patches_that_cannot_be_are_refused():
    with pytest.raises(AudioError, match="silence"):
        spectral_patches(torch.zeros(4000))
    for bands in ((0.0,), (0.0, 0.0), (1000.0, 0.0)):
        with pytest.raises(ConfigError, match="rising"):
            spectral_patches(noise(4000), bands_hz=bands)
    with pytest.raises(ConfigError, match="without a bin"):
        spectral_patches(noise(4000), rows=200)
    with pytest.raises(ConfigError, match="without a bin"):
        spectral_patches(noise(4000), bands_hz=(0.0, 9000.0))
    with pytest.raises(ConfigError, match="without a bin"):
        spectral_patches(noise(4000), stft=Stft(StftConfig(n_fft=64, hop=16)))
    assert BANDS_HZ[-1] == 8000


# ------------------------------------------------------------------ together


def test_a_band_that_was_tampered_with_is_the_one_a_decision_rests_on():
    def recording(seed, spoofed):
        wave = noise(8000, seed=seed)
        spectrum = torch.fft.rfft(wave)
        hertz = torch.fft.rfftfreq(8000, 1 / SECOND)
        spectrum[(hertz > 5000) & (hertz < 6000)] *= 0.5 if spoofed else 1.0
        return by_band(spectral_patches(torch.fft.irfft(spectrum))[0])

    spoof = torch.arange(32) % 2 == 0
    made = [recording(seed, bool(spoof[seed])) for seed in range(32)]
    tokens, labels = (torch.cat(parts) for parts in zip(*made, strict=True))
    config = ProbeConfig(("low", "mid", "high"), size=64, penalty=10.0)
    train, held = (pool_regions(tokens[k], labels[k], count=3) for k in (slice(16), slice(16, 24)))
    probes = RegionProbes.fit(train, spoof[:16], config).weighed(held, spoof[16:24])
    decisions = probes.decide(tokens[24:], labels[24:])
    assert [d.is_spoof for d in decisions] == spoof[24:].tolist()
    assert {d.rests_on[0] for d in decisions} == {"high"}
