"""RawBoost augmentation (Tak et al., ICASSP 2022) with the same noise for all members of a pair."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.data.seeds import check_seed
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import check_wave

Waves: TypeAlias = NDArray[np.float64]
"""``(m, n)``: the m members of a pair, sample by sample."""


@dataclass(frozen=True)
class RawBoostConfig:
    """Settings of RawBoost; the defaults are those of the published code."""

    algo: int = 5
    """1 linear and non-linear convolutive noise (LnL), 2 impulsive signal-dependent noise (ISD), 3
    stationary signal-independent noise (SSI), 4 = 1+2+3 in a row, 5 = 1+2, 6 = 1+3, 7 = 2+3, 8 = 1
    and 2 side by side, summed."""
    sample_rate: int = 16_000
    "Hz of the waveforms."
    n_bands: int = 5
    "Notches of each filter."
    freq_hz: tuple[float, float] = (20.0, 8_000.0)
    "Lowest and highest centre of a notch."
    width_hz: tuple[float, float] = (100.0, 1_000.0)
    "Narrowest and widest notch."
    taps: tuple[int, int] = (10, 100)
    "Fewest and most taps of a notch."
    gain_db: tuple[float, float] = (0.0, 0.0)
    "Range of the peak gain of the filters."
    bias_db: tuple[float, float] = (5.0, 20.0)
    "What the ends of that range lose for the powers x^2 and above."
    n_orders: int = 5
    "LnL: powers of the signal that are filtered and summed."
    max_percent: float = 10.0
    "ISD: highest share of samples that an impulse hits."
    impulse_gain: float = 2.0
    "ISD: gain of the impulses relative to the sample that they hit, called g_sd in the paper."
    snr_db: tuple[float, float] = (10.0, 40.0)
    "SSI: lowest and highest ratio of signal to noise."

    def __post_init__(self) -> None:
        if self.algo not in _CHAINS:
            raise ConfigError(f"RawBoostConfig.algo must lie in 1..8, got {self.algo!r}")
        for name in ("freq_hz", "width_hz", "taps", "gain_db", "snr_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ConfigError(f"RawBoostConfig.{name} must be (low, high), got ({low}, {high})")
        if self.freq_hz[0] < 0 or self.freq_hz[1] > self.sample_rate / 2:
            raise ConfigError(
                f"RawBoostConfig.freq_hz must lie in 0..{self.sample_rate / 2} Hz, half the sample "
                f"rate, got {self.freq_hz}"
            )
        if self.width_hz[0] < 1 or self.taps[0] < 1 or self.n_bands < 1 or self.n_orders < 1:
            raise ConfigError(
                "RawBoostConfig needs width_hz, taps, n_bands and n_orders of at least 1, got "
                f"{self.width_hz}, {self.taps}, {self.n_bands}, {self.n_orders}"
            )
        if not 0 <= self.max_percent <= 100 or self.impulse_gain < 0:
            raise ConfigError(
                "RawBoostConfig needs max_percent in 0..100 and impulse_gain >= 0, got "
                f"{self.max_percent}, {self.impulse_gain}"
            )


class RawBoost:
    """Augment the members of a pair alike: one set of filters, positions and noise for all of them.

    What separates real from vocoded speech must stay the only difference of a pair, therefore two
    departures from the published code, which sees one recording at a time and equals ours there:
    peaks above 1 are divided out by the highest peak of all members, and SSI scales its noise by
    the mean power of all members, so that the very same noise is added to each.

    >>> pair = torch.rand(2, 16_000) - 0.5
    >>> boosted = RawBoost(RawBoostConfig(algo=3))(pair, seed=0)
    >>> noise = boosted - pair
    >>> torch.allclose(noise[0], noise[1], atol=1e-6)
    True
    """

    def __init__(self, config: RawBoostConfig | None = None) -> None:
        self.config = config or RawBoostConfig()

    def __call__(self, waves: Tensor, *, seed: int) -> Tensor:
        """Augment ``(m, n)`` to ``(m, n)`` of the same type and device.

        Equal seeds give equal parameters and noise. Raises `ShapeError` on another shape or values
        that are not finite, `ConfigError` on a negative seed.
        """
        check_wave(waves)
        if waves.ndim != 2 or not bool(torch.isfinite(waves).all()):
            raise ShapeError(
                f"RawBoost takes the finite members of a pair as (m, n), got {tuple(waves.shape)}; "
                "stack them with torch.stack((real, fake))"
            )
        rng = np.random.default_rng(check_seed(seed))
        boosted = _CHAINS[self.config.algo](
            waves.detach().cpu().double().numpy(), config=self.config, rng=rng
        )
        return torch.from_numpy(boosted).to(waves)


def _lnl(waves: Waves, *, config: RawBoostConfig, rng: Generator) -> Waves:
    """Sum of filtered powers of the signal (Eq. 1)."""
    total = np.zeros_like(waves)
    for order in range(1, config.n_orders + 1):
        low, high = config.gain_db
        if order > 1:
            low, high = low - config.bias_db[0], high - config.bias_db[1]
        total += _filtered(waves**order, _notches(config, rng, gain_db=(low, high)))
    return _limited(total - total.mean(-1, keepdims=True))


def _isd(waves: Waves, *, config: RawBoostConfig, rng: Generator) -> Waves:
    """Impulses at random samples, as strong as the samples (Eq. 2-3)."""
    length = waves.shape[-1]
    count = int(length * rng.uniform(0, config.max_percent) / 100)
    at = rng.permutation(length)[:count]
    factor = (2 * rng.random(count) - 1) * (2 * rng.random(count) - 1)
    result = waves.copy()
    result[:, at] += config.impulse_gain * waves[:, at] * factor
    return _limited(result)


def _ssi(waves: Waves, *, config: RawBoostConfig, rng: Generator) -> Waves:
    """Stationary coloured noise (Eq. 4)."""
    white = rng.standard_normal((1, waves.shape[-1]))
    noise = _filtered(white, _notches(config, rng, gain_db=config.gain_db))
    snr_db = rng.uniform(*config.snr_db)
    level = np.sqrt(np.mean(np.sum(waves**2, axis=-1)))
    return waves + noise / np.linalg.norm(noise) * level / 10 ** (snr_db / 20)


def _in_a_row(*stages: "Stage") -> "Stage":
    def chain(waves: Waves, *, config: RawBoostConfig, rng: Generator) -> Waves:
        for stage in stages:
            waves = stage(waves, config=config, rng=rng)
        return waves

    return chain


def _side_by_side(waves: Waves, *, config: RawBoostConfig, rng: Generator) -> Waves:
    first = _lnl(waves, config=config, rng=rng)
    return _limited(first + _isd(waves, config=config, rng=rng))


Stage: TypeAlias = Callable[..., Waves]
_CHAINS: dict[int, Stage] = {
    1: _lnl,
    2: _isd,
    3: _ssi,
    4: _in_a_row(_lnl, _isd, _ssi),
    5: _in_a_row(_lnl, _isd),
    6: _in_a_row(_lnl, _ssi),
    7: _in_a_row(_isd, _ssi),
    8: _side_by_side,
}


def _limited(waves: Waves) -> Waves:
    # A factor for each member, as published, would put a level difference into the pair.
    return waves / max(1.0, float(np.abs(waves).max()))


def _notches(
    config: RawBoostConfig, rng: Generator, *, gain_db: tuple[float, float]
) -> NDArray[np.float64]:
    """Cascade of random band-stop filters as one response ``(k,)``, peak gain in ``gain_db``."""
    from scipy.signal import firwin, freqz

    response = np.ones(1)
    for _ in range(config.n_bands):
        # Scalars: int() of the one-element arrays of the published code fails on NumPy >= 2.4.
        centre, width = rng.uniform(*config.freq_hz), rng.uniform(*config.width_hz)
        taps = int(rng.uniform(*config.taps)) | 1
        edges = (
            max(centre - width / 2, 1e-3),
            min(centre + width / 2, config.sample_rate / 2 - 1e-3),
        )
        notch = firwin(taps, edges, window="hamming", fs=config.sample_rate)
        response = np.convolve(notch, response)
    low, high = gain_db
    gain = low + (high - low) * rng.random()
    peak = np.abs(freqz(response, 1, fs=config.sample_rate)[1]).max()
    return response * 10 ** (gain / 20) / peak


def _filtered(waves: Waves, response: NDArray[np.float64]) -> Waves:
    from scipy.signal import fftconvolve

    # The published code cuts one sample more than the filter's delay; kept, both members alike.
    start, length = (len(response) + 1) // 2, waves.shape[-1]
    full = fftconvolve(np.pad(waves, ((0, 0), (0, 1))), response[None], axes=-1)
    return full[:, start : start + length]
