"""Samples at their own rate: rates, values and channel axes are checked here for all sources."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.errors import AudioError
from specsegdiff.shapes import check_wave

SAMPLE_RATE = 16_000
"Hz at which pairs are counted, vocoded and made."

RATES = (1_000, 384_000)
"""Lowest and highest sample rate in Hz that is taken for audio."""

PEAK_LIMIT = 16.0
"""Floats beyond this (+24 dB over full scale) are integer samples in disguise, and refused."""

Samples: TypeAlias = NDArray[np.float64]
"""Mono ``(n,)`` or, as blocks of a file, ``(n, channels)``."""


@dataclass(frozen=True)
class Opened:
    """A checked mono recording; ``read(start, stop)`` gives float64 of exactly that length."""

    name: str
    rate: int
    n: int
    read: Callable[[int, int], Samples]


def check_rate(value: object, *, what: str = "sample_rate") -> int:
    """Return ``value`` as int; raise `AudioError` unless it is a whole number within `RATES`."""
    try:
        whole = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        is_whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
        whole = int(value) if is_whole else 0  # type: ignore[call-overload]
    if not RATES[0] <= whole <= RATES[1]:
        raise AudioError(
            f"{what} must be a whole number of Hz within {RATES[0]}..{RATES[1]}, got {value!r}; "
            "pass the rate at which the samples were recorded"
        )
    return whole


def check_values(blocks: Iterable[NDArray[Any]], name: str) -> None:
    """Raise `AudioError` for non-finite values and peaks that cannot be full-scale audio."""
    at = bad = first = 0
    peak = 0.0
    for block in blocks:
        finite = np.isfinite(block)
        if not finite.all():
            rows = np.flatnonzero(~finite.reshape(len(block), -1).all(axis=1))
            first = first if bad else at + int(rows[0])
            bad += int(block.size - np.count_nonzero(finite))
        peak = max(
            peak, *(float(abs(end(block, where=finite, initial=0))) for end in (np.min, np.max))
        )
        at += len(block)
    if bad:
        raise AudioError(
            f"{name} holds {bad} NaN or infinite values, the first at sample {first} of {at}; "
            "repair or cut these samples first"
        )
    if peak > PEAK_LIMIT:
        raise AudioError(
            f"{name} has floats up to {peak:g}, expected about [-1, 1]; "
            "if they are integer samples, divide by the type's range (32768 for 16 bits)"
        )


def check_mono(wave: Tensor) -> Tensor:
    """Return one finite waveform ``(n,)`` as float32 on the CPU.

    Raises `AudioError` for several waveforms and values that are not finite, `ShapeError` for what
    is no waveform.
    """
    check_wave(wave)
    if wave.ndim != 1 or not bool(torch.isfinite(wave).all()):
        raise AudioError(
            f"expected one finite waveform (n,), got shape {tuple(wave.shape)}; "
            "load it with specsegdiff.data.audio.load_audio"
        )
    return wave.detach().float().cpu()


def from_decoder(decoder: Any, name: str) -> Opened:
    """Read a torchcodec decoder, whose samples are ``(channels, n)``; they stay in memory."""
    try:
        samples = decoder.get_all_samples()
        data, rate = samples.data.mean(dim=0), samples.sample_rate
    except Exception as error:  # whatever the native library raises means the same here
        raise AudioError(
            f"torchcodec cannot decode {name}: {error}; check that the file plays"
        ) from error
    return from_array(data, rate, name)


def from_array(source: object, sample_rate: int | None, name: str) -> Opened:
    """Check samples by the rules of `specsegdiff.data.audio.open_audio`; average the channels."""
    array = _as_numpy(source, name)
    if array.dtype.kind not in "iuf":
        raise AudioError(
            f"{name} has type {array.dtype}, expected real floats or integers; "
            "pass the samples themselves, for instance as a float32 array"
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        raise AudioError(
            f"{name} has 64-bit integers, whose full scale is unknown; "
            "give the samples the type they were recorded in, for instance "
            "numpy.asarray(samples, dtype=numpy.int16)"
        )
    if array.ndim not in (1, 2) or array.size == 0:
        raise AudioError(
            f"{name} has shape {array.shape}, expected (n,), (channels, n) or (n, channels) "
            "with n >= 1; pass one non-empty recording"
        )
    if array.ndim == 2 and array.shape[0] == array.shape[1] > 1:
        raise AudioError(
            f"{name} has shape {array.shape}, so the channel axis is unclear; "
            "average the channels yourself and pass (n,)"
        )
    if sample_rate is None:
        raise AudioError(
            f"{name} came without a sample rate, which samples need; pass sample_rate=..."
        )
    rate = check_rate(sample_rate, what=f"sample_rate of {name}")
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large a long double is an infinity, refused below
            array = array.astype(np.float64, copy=False)
        check_values([array], name)
    else:
        half = 2.0 ** (8 * array.dtype.itemsize - 1)
        array = (array - half if array.dtype.kind == "u" else array.astype(np.float64)) / half
    mono = array.astype(np.float32) if array.ndim == 1 else array.mean(axis=1).astype(np.float32)
    return Opened(name, rate, len(mono), lambda start, stop: mono[start:stop].astype(np.float64))


def _as_numpy(source: object, name: str) -> NDArray[Any]:
    try:
        if isinstance(source, Tensor):
            tensor = source.detach().cpu().resolve_conj().resolve_neg()
            # numpy has no bfloat16
            return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return np.asarray(source)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise AudioError(
            f"cannot read {name} ({type(source).__name__}) as samples: {error}; "
            "pass a dense, rectangular array of numbers, or a path, bytes or file object"
        ) from error
