"""Axis letters and array kinds that the whole library shares.

One letter per axis, everywhere: ``b`` item of a batch, ``n`` sample, ``f`` frequency bin, ``t``
frame, ``d`` draw, ``c`` channel, ``k`` class.
"""

from typing import TypeAlias

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from specsegdiff.errors import ShapeError

Wave: TypeAlias = Float[Tensor, "*b n"]
"""Mono audio at the library's rate (16 kHz by default), float32, about [-1, 1]."""

Spec: TypeAlias = Complex[Tensor, "*b f t"]
"""Complex short-time spectrum."""

Map: TypeAlias = Float[Tensor, "*b f t"]
"""A real value per bin: magnitude, heatmap in [0, 1], signed attribution."""

Mask: TypeAlias = Bool[Tensor, "*b f t"]
"""A set of bins."""


def check_wave(wave: Tensor) -> None:
    """Raise `ShapeError` unless ``wave`` is a non-empty, real floating tensor ``(..., n)``."""
    if not isinstance(wave, Tensor):
        raise ShapeError(
            f"expected a waveform tensor (..., n), got {type(wave).__name__}; "
            "convert it with torch.as_tensor, or load it with specsegdiff.data.audio.load_audio"
        )
    if not wave.is_floating_point():
        raise ShapeError(
            f"expected a floating waveform, got {wave.dtype}; "
            "load it with specsegdiff.data.audio.load_audio, which scales integers to [-1, 1]"
        )
    if wave.ndim == 0 or wave.numel() == 0:
        raise ShapeError(
            f"expected a waveform (..., n) with n >= 1, got shape {tuple(wave.shape)}; "
            "pass at least one sample"
        )


def check_map(value: Tensor, *, name: str) -> None:
    """Raise `ShapeError` unless ``value`` is a non-empty real tensor ``(..., f, t)``."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.numel() == 0 or value.is_complex():
        came = (
            f"{tuple(value.shape)} {value.dtype}"
            if isinstance(value, Tensor)
            else type(value).__name__
        )
        raise ShapeError(f"expected {name} as a non-empty real tensor (..., f, t), got {came}")


def check_same_shape(first: Tensor, second: Tensor, *, names: tuple[str, str]) -> None:
    """Raise `ShapeError` unless both tensors have one shape; nothing is cropped or broadcast."""
    if first.shape != second.shape:
        raise ShapeError(
            f"{names[0]} has shape {tuple(first.shape)} and {names[1]} has {tuple(second.shape)}; "
            "compute both on the same recording with the same StftConfig"
        )


def is_finite(value: Tensor) -> bool:
    """Tell whether every element is finite."""
    return bool(torch.isfinite(value).all())
