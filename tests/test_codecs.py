"""Codecs of ffmpeg: their band, their delay, and what they say when they fail."""

import shutil
import subprocess

import pytest
import torch
from speech import speech
from torch import Tensor

from specsegdiff.data import codecs
from specsegdiff.data.alignment import align
from specsegdiff.data.codecs import Codec, installed_codecs
from specsegdiff.data.copies import make_pair
from specsegdiff.errors import AudioError, DependencyError
from specsegdiff.frontend import Stft

CODECS = installed_codecs()
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="codecs need the program ffmpeg, which is not installed"
)


@pytest.fixture(scope="module")
def wave() -> Tensor:
    return speech()


@needs_ffmpeg
@pytest.mark.parametrize(
    "codec", [c for c in CODECS if c.band_hz is not None], ids=lambda codec: codec.name
)
def test_a_codec_keeps_its_band_and_nothing_far_above(codec):
    noise = 0.1 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    power = Stft().magnitude(make_pair(noise, codec, min_logmel_corr=-1.0).fake).square().mean(-1)
    freqs = torch.linspace(0, 8_000, 513)
    inside, outside = (
        power[(freqs > 300) & (freqs < codec.band_hz)],
        power[freqs > codec.band_hz + 900],
    )
    assert float(10 * (outside.mean() / inside.mean()).log10()) < -20


@needs_ffmpeg
@pytest.mark.parametrize("name", ["mp3-16k", "aac-16k", "opus-16k", "gsm"])
def test_known_codec_delays_are_taken_off(name, wave):
    codec = next((c for c in CODECS if c.name == name), None)
    if codec is None:
        pytest.skip(f"this ffmpeg has no encoder for {name}")
    assert abs(align(wave, codec(wave))[1]) <= 2


@needs_ffmpeg
def test_a_failing_codec_says_what_ffmpeg_said(wave):
    with pytest.raises(AudioError, match="status"):
        Codec("bad", "pcm_alaw", container="no-such-format")(wave)


def test_a_missing_encoder_says_what_to_install(wave, monkeypatch):
    with pytest.raises(DependencyError, match="no-such-encoder"):
        Codec("bad", "no-such-encoder")(wave)
    monkeypatch.setattr(codecs.shutil, "which", lambda name: None)
    codecs.encoders.cache_clear()
    try:
        assert installed_codecs() == []
        with pytest.raises(DependencyError, match="ffmpeg"):
            Codec("alaw", "pcm_alaw", container="alaw")(wave)
    finally:
        codecs.encoders.cache_clear()


@needs_ffmpeg
def test_ffmpeg_is_asked_once(monkeypatch):
    codecs.encoders.cache_clear()
    calls = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    installed_codecs()
    installed_codecs()
    assert len(calls) == 1
