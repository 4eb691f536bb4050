"""Laws of the transform: an exact inverse at every length, and axes that say Hz and seconds."""

import math

import numpy as np
import pytest
import torch
from models import STFT, noise

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Axes, Stft, StftConfig, log_magnitude

# the contract of the issue; rounding of float32 is 1e-6 here
EXACT = {"atol": 1e-5, "rtol": 0}


@pytest.mark.usefixtures("unchecked")  # the checks cost more than the transforms
@pytest.mark.parametrize("hop", [1, 16, 21, 28])
def test_inverse_is_exact_at_every_length(hop):
    stft = Stft(StftConfig(sample_rate=1000, n_fft=64, hop=hop))
    for n in range(1, 201):
        wave = noise(2, n, seed=n, scale=1.0)
        spec = stft(wave)
        assert spec.shape == (2, 33, n // hop + 1) == (2, *stft.axes(n).shape)
        assert torch.allclose(stft.inverse(spec, length=n), wave, **EXACT), n


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 511, 512, 1023, 1024, 1025, 5_003, 64_600])
def test_inverse_is_exact_at_the_default_axes(n):
    stft, wave = Stft(), noise(n, seed=n, scale=1.0)
    assert torch.allclose(stft.inverse(stft(wave), length=n), wave, **EXACT)


def test_the_paper_sees_513_by_253():
    # of 64,600 samples, as the only public re-implementation has it
    assert Stft().axes(64_600).shape == (513, 253)


def test_frames_are_centred_windows_of_the_signal_and_zeros():
    n, stft = 301, Stft(STFT)
    wave = noise(n)
    padded = np.pad(wave.double().numpy(), 32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    slow = np.stack([np.fft.rfft(window * padded[i : i + 64]) for i in range(0, n + 1, 16)], axis=1)
    assert np.allclose(stft(wave).numpy(), slow, atol=1e-5)


@pytest.mark.parametrize("hertz", [125.0, 1000.0, 7500.0])
@pytest.mark.parametrize("second", [0.21, 0.5])
def test_a_tone_burst_peaks_at_its_frequency_and_time(hertz, second):
    stft, rate, n = Stft(), 16_000, 12_000
    time = torch.arange(n) / rate
    burst = torch.exp(-(((time - second) / 0.01) ** 2)) * torch.cos(2 * math.pi * hertz * time)
    magnitude, axes = stft.magnitude(burst), stft.axes(n)
    place = int(magnitude.argmax())
    found_hertz = float(axes.freqs[place // axes.shape[1]])
    found_second = float(axes.times[place % axes.shape[1]])
    assert abs(found_hertz - hertz) <= axes.hertz_per_bin / 2
    assert abs(found_second - second) <= axes.seconds_per_frame / 2


def test_axes_span_the_recording():
    axes = Axes(STFT, n_samples=1000)
    assert (len(axes.freqs), len(axes.times)) == axes.shape == (33, 63)
    assert axes.duration == 1.0
    assert float(axes.freqs[-1]) == 500.0
    assert float(axes.times[-1]) == pytest.approx(0.992)
    assert axes.times.diff().allclose(torch.tensor(axes.seconds_per_frame, dtype=torch.float64))
    t0, t1, f0, f1 = axes.extent
    # every bin is a rectangle around its centre
    assert (t1 - t0, f1 - f0) == pytest.approx((63 * 0.016, 33 * 1000 / 64))
    assert (t0 + t1) / 2 == pytest.approx(float(axes.times.mean()))
    assert (f0 + f1) / 2 == pytest.approx(float(axes.freqs.mean()))


def test_leading_axes_and_precision_are_kept():
    stft, waves = Stft(STFT), noise(2, 3, 200).double()
    spec = stft(waves)
    assert (spec.shape, spec.dtype) == ((2, 3, 33, 13), torch.complex128)
    assert torch.equal(spec[1, 2], stft(waves[1, 2]))
    back = stft.inverse(spec, length=200)
    assert back.dtype is torch.float64
    # 16 digits instead of 7
    assert torch.allclose(back, waves, atol=1e-12)


def test_the_transform_is_linear_and_has_gradients():
    stft, a, b = Stft(STFT), noise(100, seed=1), noise(100, seed=2)
    assert torch.allclose(stft(2 * a - b), 2 * stft(a) - stft(b), atol=1e-5)
    wave = a.clone().requires_grad_()
    # the inverse undoes the transform, so the gradient of the sum of the samples is 1
    stft.inverse(stft(wave), length=100).sum().backward()
    assert torch.allclose(wave.grad, torch.ones(100), **EXACT)


def test_log_magnitude_is_finite_on_silence_and_exact_above_the_floor():
    assert torch.equal(log_magnitude(torch.zeros(3)), torch.full((3,), 1e-5).log())
    loud = torch.tensor([1e-5, 0.3, 40.0])
    assert torch.equal(log_magnitude(loud), loud.log())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wave",
    [
        torch.zeros(0),
        torch.zeros(3, 0),
        torch.zeros(0, 3),
        torch.tensor(1.0),
        torch.zeros(5, dtype=torch.float16),
        torch.zeros(5, dtype=torch.bfloat16),
        torch.zeros(5, dtype=torch.int16),
        torch.zeros(5, dtype=torch.complex64),
        [0.0, 1.0],
        None,
    ],
)
def test_what_is_no_waveform_is_refused(wave):
    with pytest.raises(ShapeError, match=r"expected a .*waveform"):
        Stft()(wave)


@pytest.mark.usefixtures("unchecked")
def test_a_spectrum_of_another_length_is_refused():
    stft = Stft(STFT)
    spec = stft(noise(100))
    for wrong, length in ((spec, 200), (spec[:-1], 100), (spec.abs(), 100), (spec, 0)):
        with pytest.raises(ShapeError, match="complex spectrum"):
            stft.inverse(wrong, length=length)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "fields",
    [
        {"sample_rate": 0},
        {"sample_rate": 16e3},
        {"n_fft": "1024"},
        {"n_fft": 1023},
        {"hop": True},
        {"hop": -1},
        # the inverse is exact to 5e-3 only: the last samples lie under a window's foot
        {"n_fft": 1024, "hop": 512},
    ],
)
def test_axes_without_an_inverse_are_refused(fields):
    with pytest.raises(ConfigError, match="StftConfig"):
        StftConfig(**fields)
