"""RawBoost: a replica of the published formulas, and the laws of a pair."""

import numpy as np
import pytest
import torch
from scipy import signal

from specsegdiff.data.rawboost import RawBoost, RawBoostConfig
from specsegdiff.errors import ConfigError, ShapeError


def speech(length: int = 8_000, *, seed: int = 0, peak: float = 0.5) -> torch.Tensor:
    """Harmonics of 120 Hz under a syllabic envelope, with a little noise."""
    t = torch.arange(length) / 16_000
    wave = sum(torch.sin(2 * torch.pi * 120 * k * t + k) / k for k in range(1, 30))
    wave = wave * (0.2 + torch.sin(2 * torch.pi * 4 * t) ** 2)
    wave = wave + 0.01 * torch.randn(length, generator=torch.Generator().manual_seed(seed))
    return wave / wave.abs().max() * peak


@pytest.fixture(scope="module")
def pair() -> torch.Tensor:
    return torch.stack((speech(), speech(seed=1, peak=0.9).roll(5)))


# --- the published code (one recording at a time), from the formulas, with a generator passed in


def published_fir(rng, low, high):
    b = np.ones(1)
    for _ in range(5):
        fc, bw, c = rng.uniform(20, 8000), rng.uniform(100, 1000), int(rng.uniform(10, 100))
        c = c + 1 if c % 2 == 0 else c
        f1, f2 = fc - bw / 2, fc + bw / 2
        f1, f2 = (1 / 1000 if f1 <= 0 else f1), (8000 - 1 / 1000 if f2 >= 8000 else f2)
        b = np.convolve(signal.firwin(c, [f1, f2], window="hamming", fs=16_000), b)
    gain = low + (high - low) * rng.random()
    _, h = signal.freqz(b, 1, fs=16_000)
    return 10 ** (gain / 20) * b / np.amax(np.abs(h))


def published_filter(x, b):
    n = b.shape[0] + 1
    y = signal.lfilter(b, 1, np.pad(x, (0, n), "constant"))
    return y[int(n / 2) : int(y.shape[0] - n / 2)]


def published_norm(x):
    return x / np.amax(np.abs(x)) if np.amax(np.abs(x)) > 1 else x


def published_lnl(x, rng):
    y = np.zeros_like(x)
    for i in range(5):
        low, high = (0, 0) if i == 0 else (-5, -20)
        y = y + published_filter(np.power(x, i + 1), published_fir(rng, low, high))
    return published_norm(y - np.mean(y))


def published_isd(x, rng):
    beta = rng.uniform(0, 10)
    n = int(len(x) * (beta / 100))
    p = rng.permutation(len(x))[:n]
    f_r = (2 * rng.random(n) - 1) * (2 * rng.random(n) - 1)
    y = x.copy()
    y[p] = x[p] + 2 * x[p] * f_r
    return published_norm(y)


def published_ssi(x, rng):
    noise = rng.standard_normal(len(x))
    noise = published_filter(noise, published_fir(rng, 0, 0))
    noise = noise / np.amax(np.abs(noise))
    snr = rng.uniform(10, 40)
    return x + noise / np.linalg.norm(noise) * np.linalg.norm(x) / 10 ** (0.05 * snr)


PUBLISHED = {
    1: published_lnl,
    2: published_isd,
    3: published_ssi,
    4: lambda x, rng: published_ssi(published_isd(published_lnl(x, rng), rng), rng),
    5: lambda x, rng: published_isd(published_lnl(x, rng), rng),
    6: lambda x, rng: published_ssi(published_lnl(x, rng), rng),
    7: lambda x, rng: published_ssi(published_isd(x, rng), rng),
    8: lambda x, rng: published_norm(published_lnl(x, rng) + published_isd(x, rng)),
}


@pytest.mark.parametrize("algo", PUBLISHED)
@pytest.mark.parametrize("peak", [0.3, 0.99])
def test_a_single_recording_equals_the_published_formulas(algo, peak):
    wave = speech(peak=peak).double()
    expected = PUBLISHED[algo](wave.numpy(), np.random.default_rng(7))
    boosted = RawBoost(RawBoostConfig(algo=algo))(wave[None], seed=7)[0].numpy()
    # Both in float64; ours filters by FFT, the replica in the time domain.
    np.testing.assert_allclose(boosted, expected, atol=1e-10)


# --- the laws of a pair


@pytest.mark.parametrize("algo", range(1, 9))
def test_equal_members_stay_equal_and_seeds_decide(algo, pair):
    boost = RawBoost(RawBoostConfig(algo=algo))
    twins = torch.stack((pair[0], pair[0]))
    first, second = boost(twins, seed=3)
    assert torch.equal(first, second)
    assert torch.equal(boost(pair, seed=3), boost(pair, seed=3))
    assert not torch.allclose(boost(pair, seed=3), boost(pair, seed=4), atol=1e-4)


@pytest.mark.parametrize("algo", range(1, 9))
def test_output_keeps_shape_type_and_is_finite(algo, pair):
    boosted = RawBoost(RawBoostConfig(algo=algo))(pair, seed=0)
    assert boosted.shape == pair.shape
    assert boosted.dtype == pair.dtype
    assert torch.isfinite(boosted).all()
    assert not torch.allclose(boosted, pair, atol=1e-4)


@pytest.mark.parametrize("algo", [1, 2, 5, 8])
def test_peaks_are_limited_by_one_factor_for_all(algo):
    loud = torch.stack((speech(peak=1.0), speech(peak=0.5)))
    boost = RawBoost(RawBoostConfig(algo=algo, gain_db=(12.0, 12.0), impulse_gain=8.0))
    boosted = boost(loud.double(), seed=1)
    assert float(boosted.abs().max()) == pytest.approx(1.0)
    if algo == 2:  # linear in the signal, so the level of one to the other must not move
        torch.testing.assert_close(boosted[0], 2 * boosted[1], atol=1e-12, rtol=1e-6)


def test_stationary_noise_is_the_same_for_both_at_the_drawn_ratio(pair):
    pair = pair.double()
    config = RawBoostConfig(algo=3, snr_db=(20.0, 20.0))
    noise = RawBoost(config)(pair, seed=5) - pair
    torch.testing.assert_close(noise[0], noise[1], atol=1e-12, rtol=0)
    ratio = pair.square().sum(-1).mean() / noise[0].square().sum()
    assert 10 * float(ratio.log10()) == pytest.approx(20.0, abs=1e-6)


def test_impulses_hit_the_same_few_samples_of_both(pair):
    boosted = RawBoost(RawBoostConfig(algo=2, impulse_gain=0.1))(pair, seed=2)
    hit = boosted != pair
    assert 0 < int(hit.sum(-1).max()) <= 800  # ten percent of 8 000
    either = hit.any(0)
    factor = boosted.double() / pair.double() - 1
    usable = either & (pair.abs() > 0.02).all(0)
    # float32 samples of at least 0.02 carry a ratio to about 1e-5
    torch.testing.assert_close(factor[0, usable], factor[1, usable], atol=1e-4, rtol=0)


def test_first_order_convolution_is_a_filter_of_gain_one():
    wave = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)).double() * 0.01
    boosted = RawBoost(RawBoostConfig(algo=1, n_orders=1))(wave, seed=0)
    transfer = (
        signal.csd(wave[0], boosted[0], nperseg=2048)[1] / signal.welch(wave[0], nperseg=2048)[1]
    )
    # 1 on the response's own grid; the estimate from 15 segments scatters a few percent
    assert np.abs(transfer).max() == pytest.approx(1.0, abs=0.1)
    assert np.abs(transfer).min() < 0.5


def test_the_global_random_state_is_left_alone(pair):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    RawBoost(RawBoostConfig(algo=4))(pair, seed=0)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize("algo", range(1, 9))
@pytest.mark.parametrize("length", [1, 7, 300])
def test_silence_and_short_input_stay_finite(algo, length):
    boosted = RawBoost(RawBoostConfig(algo=algo))(torch.zeros(2, length), seed=0)
    assert torch.equal(boosted, torch.zeros(2, length))


@pytest.mark.parametrize(
    "waves",
    [torch.zeros(5), torch.zeros(1, 2, 5), torch.zeros(0, 5), torch.full((2, 5), torch.nan)],
)
def test_other_shapes_and_nan_are_refused(waves):
    with pytest.raises(ShapeError, match="stack them" if waves.numel() else "n >= 1"):
        RawBoost()(waves, seed=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"algo": 0},
        {"algo": 9},
        {"freq_hz": (500.0, 20.0)},
        {"sample_rate": 8_000},
        {"n_bands": 0},
        {"max_percent": 101.0},
        {"impulse_gain": -1.0},
    ],
)
def test_settings_outside_their_domain_are_refused(setting):
    with pytest.raises(ConfigError):
        RawBoostConfig(**setting)


def test_a_negative_seed_is_refused(pair):
    with pytest.raises(ConfigError, match="seed"):
        RawBoost()(pair, seed=-1)
