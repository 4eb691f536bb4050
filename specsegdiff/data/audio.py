"""Recordings in and out: any source, rate and channel count becomes mono float32 at one rate."""

import io
import math
import os
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import soundfile as sf
import torch

from specsegdiff.data.decoding import from_bytes, from_file
from specsegdiff.data.samples import (
    Opened,
    Samples,
    check_rate,
    check_values,
    from_array,
    from_decoder,
)
from specsegdiff.errors import AudioError, OutputError, ShapeError
from specsegdiff.shapes import Wave, check_wave

AudioSource: TypeAlias = object
"""What `load_audio` and `open_audio` take; see `open_audio` for the list."""

_BLOCK = 2**18
_ENCODED = (str, os.PathLike, bytes, bytearray, memoryview)


class AudioStream:
    """A recording that is read window by window at ``target_rate``; made by `open_audio`.

    ``n_samples`` counts samples at ``target_rate``, ``source_rate`` is the recording's own rate in
    Hz, ``name`` says where it came from. Close it, or use it as a context manager.
    """

    def __init__(self, opened: Opened, *, target_rate: int, cleanup: ExitStack) -> None:
        divisor = math.gcd(opened.rate, target_rate)
        self._up, self._down = target_rate // divisor, opened.rate // divisor
        self._opened, self._cleanup, self._closed = opened, cleanup, False
        self.name = opened.name
        self.source_rate = opened.rate
        self.target_rate = target_rate
        self.n_samples = -(-opened.n * self._up // self._down)

    def read(self, start: int, stop: int) -> Wave:
        """Return samples ``start..stop`` as float32 ``(stop - start,)``.

        Any window equals the same slice of `load_audio`, for the resampler's state is its input
        alone. Raises `AudioError` for a window outside ``0..n_samples``, a closed stream or a
        damaged file.
        """
        if self._closed:
            raise AudioError(f"{self.name} is closed; open it again with open_audio")
        if not 0 <= start <= stop <= self.n_samples:
            raise AudioError(
                f"cannot read samples {start}..{stop} of {self.name}, which has {self.n_samples}; "
                "ask for 0 <= start <= stop <= n_samples"
            )
        try:
            out = np.empty(stop - start, np.float32)
            for at in range(start, stop, _BLOCK):
                end = min(at + _BLOCK, stop)
                out[at - start : end - start] = self._window(at, end)
        except MemoryError as error:
            raise AudioError(
                f"{stop - start} samples of {self.name}, from {self.source_rate} Hz, do not fit "
                "into memory; read shorter windows with open_audio"
            ) from error
        return torch.from_numpy(out)

    def _window(self, start: int, stop: int) -> Samples:
        up, down = self._up, self._down
        if up == down:
            return self._opened.read(start, stop)
        from scipy.signal import upfirdn

        taps, reach, delay = _filter(up, down)
        # The window begins at a multiple of `down`, where the two sample grids meet.
        first = max(0, (start * down - reach) // up) // down * down
        last = min(self._opened.n, (stop * down + reach) // up + 1)
        shift = delay - first // down * up
        filtered: Samples = upfirdn(taps, self._opened.read(first, last), up, down)
        return filtered[start + shift : stop + shift]

    def close(self) -> None:
        """Close the file and remove what was decoded to disk; a second call does nothing."""
        self._closed = True
        self._cleanup.close()

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the stream."""
        self.close()


def load_audio(
    source: AudioSource, sample_rate: int | None = None, *, target_rate: int = 16_000
) -> Wave:
    """Load a whole recording as mono float32 ``(n,)`` at ``target_rate``.

    ``n = ceil(source samples * target_rate / source rate)``. Sources, rules and errors are those of
    `open_audio`.

    >>> load_audio(np.zeros((2, 44_100), np.int16), 44_100).shape
    torch.Size([16000])
    """
    with open_audio(source, sample_rate, target_rate=target_rate) as stream:
        return stream.read(0, stream.n_samples)


def open_audio(
    source: AudioSource, sample_rate: int | None = None, *, target_rate: int = 16_000
) -> AudioStream:
    """Open a recording for reading in windows, in memory that does not grow with a file's length.

    ``source`` is one of

    - a path; the file is read by soundfile, else torchcodec, else the ``ffmpeg`` program. Formats
      that cannot be addressed by sample (MP3, Ogg, all of ffmpeg's) are decoded once into a
      temporary file, removed when the stream is closed; what torchcodec decodes stays in memory;
    - ``bytes`` of an audio file, or a binary file object, read from its current position;
    - an array, list or tensor with its ``sample_rate``: ``(n,)``, or two axes of which the shorter
      is the channels. Integers are divided by their type's range (unsigned ones are centred first);
      64-bit integers, and Python's, have no such range and are refused. Floats stay as they are,
      also beyond [-1, 1], but a peak over 16 is refused as integer samples in disguise;
    - a Hugging Face audio dict (``array`` and ``sampling_rate``, or ``bytes`` or ``path``) or
      torchcodec decoder.

    Channels are averaged. ``sample_rate`` of a file may be left out and must otherwise be the
    file's. Silence and a single sample are audio. So is a cut that leaves no trace, as
    docs/decisions/0013 lists them: an Ogg file cut between two packets and pages, an MP3 between
    two frames, unless its header states the length.

    Raises `AudioError` for a source that is missing, unreadable, empty, truncated or damaged; that
    packs more than `specsegdiff.data.decoding.LONGEST` into fewer bytes than samples; that
    holds NaN or infinities; that is complex, boolean or not numeric; whose axes are none, more than
    two or of equal length; or whose rate is missing or outside `specsegdiff.data.samples.RATES`.
    """
    target_rate = check_rate(target_rate, what="target_rate")
    name = ""
    if isinstance(source, Mapping):
        source, sample_rate, name = _unpack(source, sample_rate)
    if hasattr(source, "get_all_samples"):
        opened = from_decoder(source, name or "<decoder>")
    elif isinstance(source, _ENCODED) or hasattr(source, "read"):
        with ExitStack() as cleanup:
            if isinstance(source, (str, os.PathLike)):
                opened = from_file(Path(source), name or str(source), cleanup)
            else:
                name = name or str(getattr(source, "name", "<bytes>"))
                opened = from_bytes(source, name, cleanup)
            if sample_rate is not None and check_rate(sample_rate) != opened.rate:
                raise AudioError(
                    f"{opened.name} is at {opened.rate} Hz, but sample_rate={sample_rate} "
                    "was given; leave sample_rate out for files"
                )
            return AudioStream(opened, target_rate=target_rate, cleanup=cleanup.pop_all())
    else:
        opened = from_array(source, sample_rate, name or "<array>")
    return AudioStream(opened, target_rate=target_rate, cleanup=ExitStack())


def write_audio(path: str | os.PathLike[str], wave: Wave, *, sample_rate: int) -> None:
    """Write mono ``wave`` ``(n,)`` as 16-bit WAV or FLAC, by the suffix of ``path``.

    Samples are rounded to steps of 1/32768; those beyond [-1, 1 - 1/32768] are clipped, so scale
    louder audio first. The file appears complete or not at all. Raises `ShapeError` for another
    shape, `AudioError` for NaN, infinities, a peak over 16 or a bad rate, and `OutputError` where
    the file cannot be written.
    """
    check_wave(wave)
    path = Path(path)
    rate = check_rate(sample_rate)
    if wave.ndim != 1:
        raise ShapeError(
            f"expected a mono waveform (n,), got shape {tuple(wave.shape)}; write one file per item"
        )
    samples = wave.detach().to("cpu", torch.float64).numpy()
    check_values([samples], f"the waveform for {path}")
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("wav", "flac"):
        raise OutputError(f"cannot write {path}: the suffix must be .wav or .flac")
    pcm = np.clip(np.rint(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    # Encoded in memory, because libsndfile does not report a full disk reliably.
    encoded = io.BytesIO()
    sf.write(encoded, pcm, rate, format=kind, subtype="PCM_16")
    part = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        part.write_bytes(encoded.getbuffer())
        part.replace(path)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"cannot write {path}: {error}; choose an existing, writable folder with free space"
        ) from error
    finally:
        with suppress(OSError, ValueError):
            part.unlink(missing_ok=True)


@lru_cache(maxsize=2)
def _filter(up: int, down: int) -> tuple[Samples, int, int]:
    """Return the low-pass taps, half their length, and the delay they cause in output samples.

    A Kaiser-windowed sinc of 64 zero crossings a side: 80 dB down from the lower Nyquist frequency
    on, flat to 0.92 of it. Rates with hardly a common factor get fewer, to bound the table.
    """
    from scipy.signal import firwin

    longest = max(up, down)
    reach = max(10, min(64, 2**20 // longest)) * longest
    taps = firwin(2 * reach + 1, 0.961 / longest, window=("kaiser", 7.86)) * up
    pad = -reach % down  # puts the filter's centre on the output grid
    return np.concatenate([np.zeros(pad), taps]), reach, (reach + pad) // down


def _unpack(source: Mapping[Any, Any], rate: int | None) -> tuple[object, int | None, str]:
    """Return the payload, rate and name of a Hugging Face audio dict."""
    name = str(source.get("path") or "")
    if source.get("array") is not None:
        own = source.get("sampling_rate")
        if None not in (own, rate) and check_rate(own) != check_rate(rate):
            raise AudioError(
                f"the audio dict says sampling_rate={own}, but sample_rate={rate} was given; "
                "leave sample_rate out"
            )
        return source["array"], rate if own is None else own, name
    for key in ("bytes", "path"):
        if isinstance(source.get(key), (str, bytes, os.PathLike)):
            return source[key], rate, name
    raise AudioError(
        f"expected an audio dict with 'array' and 'sampling_rate', 'bytes' or 'path', "
        f"got keys {[str(key) for key in source][:8]}; pass the 'audio' entry of a data set's row"
    )
