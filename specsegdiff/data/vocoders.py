"""Vocoders without weights: they make copies of any speech at 16 kHz."""

import importlib
import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from specsegdiff.data.codecs import installed_codecs
from specsegdiff.data.mel import mel_bank
from specsegdiff.data.samples import SAMPLE_RATE, check_mono
from specsegdiff.data.seeds import check_seed
from specsegdiff.errors import ConfigError, DependencyError
from specsegdiff.frontend import Stft, StftConfig


@runtime_checkable
class Vocoder(Protocol):
    """A callable that copies speech ``(n,)``, float32 at 16 kHz, and leaves traces of synthesis.

    Equal input gives equal output; the length may differ by a delay, which
    `specsegdiff.data.alignment.align` removes.
    """

    @property
    def name(self) -> str:
        """Label of the setting: folder name and manifest entry."""

    @property
    def family(self) -> str:
        """Kind of method: ``dsp``, ``source-filter`` or ``codec``."""

    @property
    def band_hz(self) -> float | None:
        """Highest frequency that it keeps; None where it keeps all."""

    def __call__(self, wave: Tensor, /) -> Tensor:
        """Copy ``wave``."""


@dataclass(frozen=True)
class GriffinLim:
    """Mel spectrogram, inverted by least squares and given a phase by fast Griffin-Lim.

    Griffin & Lim 1984, with the momentum of Perraudin et al. 2013 (Eq. 9-11).
    """

    name: str = "gl-mel80"
    "Label of the setting."
    n_mels: int = 80
    "Mel bands between 0 and 8 kHz."
    iterations: int = 32
    "Rounds of phase estimation; few of them leave more phase artifacts."
    inverse: Literal["pinv", "nnls"] = "pinv"
    "Mel to linear: clipped pseudo-inverse, or non-negative least squares (smoother)."
    momentum: float = 0.99
    "Momentum of the phase estimate, in [0, 1)."
    seed: int = 0
    "Seed of the first phases."
    family: Literal["dsp"] = "dsp"
    band_hz: None = None

    def __post_init__(self) -> None:
        if self.n_mels < 1 or self.iterations < 0 or not 0 <= self.momentum < 1:
            raise ConfigError(
                "GriffinLim needs n_mels >= 1, iterations >= 0 and momentum in [0, 1), got "
                f"{self.n_mels}, {self.iterations}, {self.momentum}"
            )
        check_seed(self.seed, bits=32)
        if self.inverse not in ("pinv", "nnls"):
            raise ConfigError(f"GriffinLim.inverse must be 'pinv' or 'nnls', got {self.inverse!r}")

    def __call__(self, wave: Tensor) -> Tensor:
        """Copy ``wave`` ``(n,)``; the result has its length."""
        wave = check_mono(wave)
        stft, length = Stft(StftConfig()), wave.shape[-1]
        bank = mel_bank(self.n_mels, n_fft=1024).T  # (m, f)
        mel = bank @ stft.magnitude(wave)
        magnitude = (torch.linalg.pinv(bank) @ mel).clamp_min(0)
        if self.inverse == "nnls":
            # Multiplicative updates (Lee & Seung 2001) stay positive without a projection.
            magnitude, gram = bank.T @ mel, bank.T @ bank
            for _ in range(50):
                magnitude = magnitude * (bank.T @ mel) / (gram @ magnitude).clamp_min(1e-12)
        noise = _noise(magnitude.numel(), wave, seed=self.seed, uniform=True)
        angles = torch.polar(torch.ones_like(magnitude), 2 * math.pi * noise.view_as(magnitude))
        previous = torch.zeros_like(angles)
        for _ in range(self.iterations):
            rebuilt = stft(stft.inverse(magnitude * angles, length=length))
            angles = torch.sgn(rebuilt - self.momentum / (1 + self.momentum) * previous)
            previous = rebuilt
        return stft.inverse(magnitude * angles, length=length)


@dataclass(frozen=True)
class World:
    """WORLD with Harvest, CheapTrick and D4C (Morise et al. 2016); needs ``pyworld``."""

    name: str = "world"
    "Label of the setting."
    frame_ms: float = 5.0
    "Frame period in milliseconds."
    n_coded: int | None = None
    "Mel-cepstral coefficients that carry the envelope; None keeps it whole."
    semitones: float = 0.0
    "Step of the pitch grid in semitones; 0 keeps the pitch."
    family: Literal["dsp"] = "dsp"
    band_hz: None = None

    def __post_init__(self) -> None:
        if (
            self.frame_ms <= 0
            or self.semitones < 0
            or (self.n_coded is not None and self.n_coded < 2)
        ):
            raise ConfigError(
                "World needs frame_ms > 0, semitones >= 0 and n_coded >= 2 or None, got "
                f"{self.frame_ms}, {self.semitones}, {self.n_coded}"
            )

    def __call__(self, wave: Tensor) -> Tensor:
        """Copy ``wave`` ``(n,)``; the result is longer by one frame at most.

        Raises `DependencyError` where pyworld is missing.
        """
        world = _pyworld()
        signal = check_mono(wave).double().numpy()
        rate, period = SAMPLE_RATE, self.frame_ms
        f0, times = world.harvest(signal, rate, frame_period=period)
        envelope = world.cheaptrick(signal, f0, times, rate)
        aperiodicity = world.d4c(signal, f0, times, rate)
        if self.semitones:
            voiced = f0 > 0
            f0[voiced] = 55 * 2 ** (
                np.round(12 * np.log2(f0[voiced] / 55) / self.semitones) * self.semitones / 12
            )
        if self.n_coded is not None:
            size = world.get_cheaptrick_fft_size(rate)
            coded = world.code_spectral_envelope(envelope, rate, self.n_coded)
            envelope = world.decode_spectral_envelope(coded, rate, size)
            coded = world.code_aperiodicity(aperiodicity, rate)
            aperiodicity = world.decode_aperiodicity(coded, rate, size)
        return torch.from_numpy(world.synthesize(f0, envelope, aperiodicity, rate, period)).float()


@dataclass(frozen=True)
class Lpc:
    """Linear prediction with an artificial excitation (Atal & Hanauer 1971)."""

    name: str = "lpc-pulse"
    "Label of the setting."
    order: int = 18
    "Prediction order."
    excitation: Literal["pulse", "noise", "residual"] = "pulse"
    "Pulses where voiced and noise elsewhere; noise only (a whisper); the sign of the residual."
    hop: int = 160
    "Samples between frames of three hops."
    seed: int = 0
    "Seed of the noise."
    family: Literal["source-filter"] = "source-filter"
    band_hz: None = None

    def __post_init__(self) -> None:
        if self.order < 1 or self.hop < self.order:
            raise ConfigError(
                f"Lpc needs 1 <= order <= hop, got order={self.order}, hop={self.hop}"
            )
        check_seed(self.seed, bits=32)
        if self.excitation not in ("pulse", "noise", "residual"):
            raise ConfigError(
                f"Lpc.excitation must be 'pulse', 'noise' or 'residual', got {self.excitation!r}"
            )

    def __call__(self, wave: Tensor) -> Tensor:
        """Copy ``wave`` ``(n,)``; the result has its length."""
        from scipy.linalg import solve_toeplitz
        from scipy.signal import lfilter

        wave = check_mono(wave)
        length, size = wave.shape[-1], 3 * self.hop
        window = np.hanning(size + 1)[:-1]

        def framed(signal: np.ndarray) -> np.ndarray:
            padded = np.pad(signal, (size, size))
            return np.lib.stride_tricks.sliding_window_view(padded, size)[:: self.hop] * window

        def overlapped(frames: Sequence[np.ndarray]) -> np.ndarray:
            total = np.zeros(length + 2 * size + max(map(len, frames)))
            for i, frame in enumerate(frames):
                total[i * self.hop : i * self.hop + len(frame)] += frame
            # Hann windows a third of their length apart add up to 1.5.
            return total[size : size + length] / 1.5

        frames = framed(wave.double().numpy())
        spectra = np.abs(np.fft.rfft(frames, 2 * size)) ** 2
        correlation = np.fft.irfft(spectra)[:, : self.order + 1]
        correlation[:, 0] = correlation[:, 0] * (1 + 1e-6) + 1e-9  # white-noise correction
        filters = [np.append(1.0, -solve_toeplitz(row[:-1], row[1:])) for row in correlation]
        energy = np.array([a @ row for a, row in zip(filters, correlation, strict=True)])
        gains = np.sqrt(np.maximum(energy, 0) / (window @ window))
        if self.excitation == "residual":
            whitened = [lfilter(a, [1.0], x) for a, x in zip(filters, frames, strict=True)]
            excitation = np.sign(overlapped(whitened))
        else:
            excitation = _noise(length, wave, seed=self.seed).double().numpy()
        if self.excitation == "pulse":
            excitation = _pulses(wave.double().numpy(), excitation, hop=self.hop)
        # The filters ring on after a frame: 512 samples hold the decay of speech formants.
        driven = np.pad(framed(excitation), ((0, 0), (0, 512)))
        parts = [lfilter([g], a, x) for g, a, x in zip(gains, filters, driven, strict=True)]
        return torch.from_numpy(overlapped(parts)).float()


def vocoder_bank() -> list[Vocoder]:
    """Return a varied bank of all vocoders that this machine can run.

    Griffin-Lim and LPC always; WORLD with ``pyworld``; codecs as far as ``ffmpeg`` has encoders.
    """
    bank: list[Vocoder] = [
        GriffinLim(),
        GriffinLim("gl-mel40", n_mels=40),
        GriffinLim("gl-mel80-nnls-i4", iterations=4, inverse="nnls"),
        Lpc(),
        Lpc("lpc-noise", excitation="noise"),
        Lpc("lpc-residual", excitation="residual"),
    ]
    try:
        _pyworld()
    except DependencyError:
        pass
    else:
        bank += [World(), World("world-coarse", frame_ms=10.0, n_coded=24, semitones=1.0)]
    return bank + installed_codecs()


def _noise(size: int, wave: Tensor, *, seed: int, uniform: bool = False) -> Tensor:
    # The recording seeds too: a bank must not put one and the same noise on a whole corpus.
    # One 32-bit number of both, since torch's CPU generator ignores all higher bits of a seed.
    generator = torch.Generator().manual_seed(zlib.crc32(wave.numpy().tobytes(), seed))
    return (torch.rand if uniform else torch.randn)(size, generator=generator)


def _pulses(signal: np.ndarray, noise: np.ndarray, *, hop: int) -> np.ndarray:
    """Unit-power pulses at the pitch where ``signal (n,)`` is voiced, ``noise`` elsewhere."""
    size, low, high = 4 * hop, SAMPLE_RATE // 400, SAMPLE_RATE // 60
    padded = np.pad(signal, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * size)) ** 2)
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 2 * size)) ** 2)
    # The window's own correlation is divided out, and the cost of an octave breaks the tie between
    # a period and its multiples (Boersma 1993, there 0.01, too little for these short frames).
    ratio = correlation / (correlation[:, :1] + 1e-9) * (window[0] / window[: 2 * size])
    lags = np.arange(low, high)
    periods = lags[(ratio[:, low:high] - 0.05 * np.log2(lags / low)).argmax(1)]
    voiced = np.take_along_axis(ratio, periods[:, None], 1)[:, 0] > 0.5
    result, position = noise.copy(), 0
    while position < len(signal):
        frame = position // hop
        if voiced[frame]:
            period = int(periods[frame])
            result[position : position + period] = 0
            result[position] = math.sqrt(period)
            position += period
        else:
            position = (frame + 1) * hop
    return result


def _pyworld() -> Any:
    try:
        with warnings.catch_warnings():
            # pyworld asks for pkg_resources, which warns of its own end.
            warnings.simplefilter("ignore")
            return importlib.import_module("pyworld")
    except ImportError as error:
        raise DependencyError(
            "WORLD needs pyworld, and pyworld needs pkg_resources; "
            "install them with: pip install 'specsegdiff[vocoders]'"
        ) from error
