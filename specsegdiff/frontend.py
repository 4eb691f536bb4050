"""The short-time Fourier transform, its exact inverse, and the axes that every picture and mask
share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import Spec, Wave, check_wave


@dataclass(frozen=True)
class StftConfig:
    """Settings of the short-time Fourier transform.

    The paper (arXiv 2506.03425) does not state them; the defaults are those of the only public
    re-implementation: 16 kHz, 1024/256, Hann, centred frames.
    """

    sample_rate: int = 16_000
    "Hz of every waveform that enters the library's models."
    n_fft: int = 1024
    "Samples a frame; gives n_fft // 2 + 1 frequency bins."
    hop: int = 256
    "Samples between frame centres."

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "hop"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"StftConfig.{name} must be a positive integer, got {value!r}")
        # the last samples lie under one window's slope; at half a window it is 0 in float32
        if self.n_fft % 2 or 16 * self.hop > 7 * self.n_fft:
            raise ConfigError(
                "StftConfig needs an even n_fft and hop <= 7/16 n_fft for an exact inverse, "
                f"got n_fft={self.n_fft}, hop={self.hop}"
            )

    @property
    def n_freqs(self) -> int:
        """Number of frequency bins."""
        return self.n_fft // 2 + 1

    def n_frames(self, n_samples: int) -> int:
        """Number of centred frames of a waveform of ``n_samples``."""
        return n_samples // self.hop + 1


@dataclass(frozen=True)
class Axes:
    """The time and frequency axes of a map: frame ``i`` is centred on ``times[i]`` s, bin ``k`` on
    ``freqs[k]`` Hz.

    >>> axes = Axes(StftConfig(), n_samples=16_000)
    >>> axes.shape, round(float(axes.times[-1]), 3), float(axes.freqs[-1])
    ((513, 63), 0.992, 8000.0)
    """

    config: StftConfig
    n_samples: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(f, t)`` of every map on these axes."""
        return self.config.n_freqs, self.config.n_frames(self.n_samples)

    @property
    def times(self) -> Tensor:
        """Frame centres in seconds, ``(t,)``."""
        return torch.arange(self.shape[1], dtype=torch.float64) * self.seconds_per_frame

    @property
    def freqs(self) -> Tensor:
        """Bin centres in Hz, ``(f,)``."""
        return torch.arange(self.shape[0], dtype=torch.float64) * self.hertz_per_bin

    @property
    def seconds_per_frame(self) -> float:
        """Distance of frame centres in seconds."""
        return self.config.hop / self.config.sample_rate

    @property
    def hertz_per_bin(self) -> float:
        """Distance of bin centres in Hz."""
        return self.config.sample_rate / self.config.n_fft

    @property
    def duration(self) -> float:
        """Length of the recording in seconds."""
        return self.n_samples / self.config.sample_rate

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Outer edges ``(t0, t1, f0, f1)`` in s and Hz, as matplotlib's ``imshow`` wants them."""
        bins, frames = self.shape
        half_frame, half_bin = self.seconds_per_frame / 2, self.hertz_per_bin / 2
        return (
            -half_frame,
            frames * self.seconds_per_frame - half_frame,
            -half_bin,
            bins * self.hertz_per_bin - half_bin,
        )


class Stft:
    """Complex spectrum of a waveform, with an inverse that is exact at every length.

    Frames are centred and the signal is padded with zeros, not mirrored: mirroring fails on signals
    shorter than half a window, and zeros need no special case there.

    >>> stft = Stft(StftConfig())
    >>> wave = torch.randn(2, 5_000)
    >>> spec = stft(wave)
    >>> tuple(spec.shape)
    (2, 513, 20)
    >>> torch.allclose(stft.inverse(spec, length=5_000), wave, atol=1e-5)
    True
    """

    def __init__(self, config: StftConfig | None = None) -> None:
        self.config = config or StftConfig()

    def __call__(self, wave: Wave) -> Spec:
        """Transform ``(..., n)`` to ``(..., f, t)``; raises `ShapeError` on an empty or non-float
        input."""
        check_wave(wave)
        flat = wave.reshape(-1, wave.shape[-1])
        spec = torch.stft(
            flat,
            self.config.n_fft,
            hop_length=self.config.hop,
            window=self._window(wave),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spec.reshape(*wave.shape[:-1], *spec.shape[-2:])

    def inverse(self, spec: Spec, *, length: int) -> Wave:
        """Return the waveform of ``length`` samples whose transform is ``spec``.

        Raises `ShapeError` where ``spec`` does not have the bins and frames of that length.
        """
        expected = Axes(self.config, length).shape
        if spec.shape[-2:] != expected or not spec.is_complex():
            raise ShapeError(
                f"a waveform of {length} samples has a complex spectrum (..., {expected[0]}, "
                f"{expected[1]}), got {tuple(spec.shape)} {spec.dtype}; "
                "pass the length that the spectrum was made from"
            )
        flat = spec.reshape(-1, *expected)
        wave = torch.istft(
            flat,
            self.config.n_fft,
            hop_length=self.config.hop,
            window=self._window(spec.real),
            center=True,
            length=length,
        )
        return wave.reshape(*spec.shape[:-2], length)

    def magnitude(self, wave: Wave) -> Tensor:
        """Linear magnitude ``(..., f, t)``."""
        return self(wave).abs()

    def axes(self, n_samples: int) -> Axes:
        """Axes of the spectrum of ``n_samples``."""
        return Axes(self.config, n_samples)

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.config.n_fft, dtype=like.dtype, device=like.device)


def log_magnitude(magnitude: Tensor, *, floor: float = 1e-5) -> Tensor:
    """Natural logarithm of a linear magnitude, floored: ``log(max(magnitude, floor))``.

    1e-5 lies at the level of 16-bit quantisation noise in a 1024-point spectrum of a [-1, 1] signal
    divided by a hundred, so silence stays finite and speech is untouched.
    """
    return magnitude.clamp_min(floor).log()
