"""The short-time Fourier transform, its exact inverse, the axes that every picture and mask share,
and a wrapper that lets a detector of waveforms be asked about bins."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import Spec, Wave, check_same_shape, check_wave

Scale: TypeAlias = Literal["linear", "log"]
"""What the value of a bin is: its magnitude, or the logarithm of it."""


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
        """Transform ``(..., n)`` to ``(..., f, t)``; raises `ShapeError` on an empty input, and on
        anything but float32 and float64, which transforms are exact in."""
        check_wave(wave)
        if wave.dtype not in (torch.float32, torch.float64):
            raise ShapeError(
                f"expected a waveform in float32 or float64, got {wave.dtype}; convert it with "
                "wave.float()"
            )
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


def check_stft(stft: object) -> None:
    """Raise `ConfigError` unless ``stft`` is an `Stft`, or None for the default."""
    if stft is not None and not isinstance(stft, Stft):
        raise ConfigError(
            f"stft must be an Stft, or None for the default, got {type(stft).__name__}; "
            "make one of its settings with Stft(StftConfig(...))"
        )


def log_magnitude(magnitude: Tensor, *, floor: float = 1e-5) -> Tensor:
    """Natural logarithm of a linear magnitude, floored: ``log(max(magnitude, floor))``.

    1e-5 lies at the level of 16-bit quantisation noise in a 1024-point spectrum of a [-1, 1] signal
    divided by a hundred, so silence stays finite and speech is untouched.
    """
    return magnitude.clamp_min(floor).log()


class RawWrapper(nn.Module):
    """A detector of waveforms on spectrograms: value and phase in, inverse transform, logits out.

    ``wrapper(*wrapper.split(wave))`` is ``detector(wave)`` to rounding at every length: within 1e-5
    for most detectors, 6e-5 for the embedded one, which magnifies that of float32 (2e-14 in
    float64). It has gradients in value and phase. An attribution depends on what the value is, so
    ``scale`` is always named:

    - ``'linear'``: the magnitude ``|Y|``. Gradient times value is then the sum over real and
      imaginary part that DFT-LRP takes. A value below 0 turns the phase by half a turn.
    - ``'log'``: ``log(|Y| + floor)``, logarithmic above ``floor`` and linear below it. Its inverse,
      ``exp(value) - floor``, is exact on both sides: `log_magnitude`, which clamps, would bring
      every bin below the floor back at the floor, and digital silence back as a click a frame.
      Its gradient is that of the linear scale times ``|Y| + floor``.

    The value of no sound is `silence`. It is not 0 on the log scale, where 0 is magnitude 1: a
    baseline of zeros there is a loud one.

    ``detector`` is any callable from waves ``(b, n)`` to logits ``(b, classes)``, or to an object
    that holds them as ``.logits``, as audio classifiers of Hugging Face do; those that want
    standardised waves need that step inside. It is called as it is: neither mode nor weights
    change. Raises `ConfigError` on an unknown scale or a floor that is not positive.

    >>> def detector(wave):
    ...     return torch.stack([wave.mean(1), wave.square().mean(1)], dim=1)
    >>> wrapper, wave = RawWrapper(detector, scale="log"), torch.randn(2, 5_000)
    >>> value, phase, length = wrapper.split(wave)
    >>> tuple(value.shape), phase.dtype, length
    ((2, 513, 20), torch.complex64, 5000)
    >>> torch.allclose(wrapper(value, phase, length), detector(wave), atol=1e-5)
    True
    """

    def __init__(
        self,
        detector: Callable[..., Any],
        stft: Stft | None = None,
        *,
        scale: Scale,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if scale not in ("linear", "log"):
            raise ConfigError(f"scale must be 'linear' or 'log', got {scale!r}")
        if not (floor > 0 and math.isfinite(floor)):
            raise ConfigError(f"floor must be positive and finite, got {floor!r}")
        check_stft(stft)
        self.detector = detector
        self.stft = stft or Stft()
        self.scale = scale
        self.floor = floor
        # a fresh module says it trains, even around a detector that does not
        self.training = getattr(detector, "training", False)

    @property
    def silence(self) -> float:
        """Value of a bin without sound: 0, or ``log(floor)``."""
        return 0.0 if self.scale == "linear" else math.log(self.floor)

    def split(
        self, wave: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b f t"], Complex[Tensor, "b f t"], int]:
        """Return value ``(b, f, t)``, phase as complex numbers of length 1, and the length ``n``.

        A bin without sound (below 1e-19) has no phase; it gets ``1 + 0j``, and passes a gradient of
        0 back to the wave. Raises `ShapeError` on anything but waves ``(b, n)``.
        """
        check_wave(wave)
        if wave.ndim != 2:
            raise ShapeError(
                f"expected waves (b, n), got shape {tuple(wave.shape)}; "
                "give one recording a batch axis with [None]"
            )
        spec = self.stft(wave)
        # below 1e-19 the square of a float32 vanishes, and with it magnitude and gradient
        limit = torch.finfo(wave.dtype).tiny ** 0.5
        silent = torch.view_as_real(spec).abs().amax(-1) < limit
        spec = torch.where(silent, 1.0, spec)
        magnitude = spec.abs()
        value = self.to_value(torch.where(silent, 0.0, magnitude))
        return value, spec / magnitude, wave.shape[-1]

    def to_value(self, magnitude: Tensor) -> Tensor:
        """Linear magnitude on the wrapper's scale, any shape."""
        if self.scale == "linear":
            return magnitude
        # where there is no sound, exactly `silence`: logarithms differ by a bit between devices
        return torch.where(magnitude > 0, (magnitude + self.floor).log(), self.silence)

    def to_magnitude(self, value: Tensor) -> Tensor:
        """Linear magnitude of values, any shape; on the log scale, 0 at and below `silence`."""
        if self.scale == "linear":
            return value
        silence = value.new_tensor(self.silence)
        # at silence, 0 to the last bit, with the slope of the logarithm's inverse
        slope = self.floor * (value - silence)
        return torch.where(value > silence, value.exp() - self.floor, slope).clamp_min(0)

    def forward(
        self, value: Float[Tensor, "b f t"], phase: Complex[Tensor, "b f t"], length: int
    ) -> Float[Tensor, "b c"]:
        """Logits ``(b, classes)`` of the waves of ``length`` samples with these values and phases.

        Raises `ShapeError` where value and phase differ in shape, the phase is not complex, the
        length is another recording's, or the detector returns no logits ``(b, classes)``.
        """
        check_same_shape(value, phase, names=("value", "phase"))
        if not phase.is_complex():
            raise ShapeError(
                f"expected the phase as complex numbers of length 1, got {phase.dtype}; "
                "turn angles into them with torch.polar(torch.ones_like(angle), angle)"
            )
        wave = self.stft.inverse(self.to_magnitude(value) * phase, length=length)
        output = self.detector(wave)
        logits = getattr(output, "logits", output)
        if not (isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(wave)):
            came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(
                f"expected the detector to return logits ({len(wave)}, classes), or an object "
                f"with them as .logits, got {came}; wrap it in a function that returns the logits"
            )
        return logits
