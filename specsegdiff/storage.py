"""Arrays that grow along time: in memory for a clip, in a file for an hour, with the same values.

Those are float32 (masks bool) in both places, so that no number depends on a recording's length.
float16 would halve the file, 231 MB for half an hour at the default axes, but a heatmap near 1 has
steps of 5e-4 there: its top 5 % would be decided by ties.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from specsegdiff.errors import CheckpointError, OutputError, ShapeError
from specsegdiff.frontend import Stft
from specsegdiff.shapes import Spec

BLOCK_FRAMES = 2048
"Frames that streaming functions hold at once: half a minute, 4 MB of float32, at the default axes."

BLOCK_SAMPLES = 1 << 19
"Samples that streaming functions hold at once: half a minute at 16 kHz."

IN_MEMORY_VALUES = 4_000_000
"Arrays up to this size (two minutes of a map, four of a waveform) stay in memory."

_NO_SPACE = (
    "a long recording needs a temporary file, which cannot be written; "
    "set TMPDIR to a folder on a disk with space"
)

DTYPES = {torch.float32: np.dtype("<f4"), torch.bool: np.dtype("?")}


class MapStore:
    """An array ``(f, t)``, float32 or bool, read in windows of frames; a waveform is ``(1, n)``.

    Held as a tensor, or as a file of ``(t, f)`` values that is mapped only where it is read. The
    file closes, and if temporary vanishes, with the store and the last view of it.
    """

    def __init__(
        self,
        values: Tensor | BinaryIO,
        *,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        offset: int = 0,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._values = values
        self._offset = offset
        if not isinstance(values, Tensor):
            weakref.finalize(self, values.close)

    @classmethod
    def of(cls, values: "Tensor | MapStore") -> "MapStore":
        """Wrap a tensor ``(f, t)`` or ``(n,)``; a store is returned as it is.

        Raises `ShapeError` on another number of axes, an empty tensor, complex or integer values.

        >>> MapStore.of(torch.zeros(16_000)).shape
        (1, 16000)
        """
        if isinstance(values, MapStore):
            return values
        if values.ndim not in (1, 2) or values.numel() == 0:
            raise ShapeError(
                f"expected one recording's map (f, t) or waveform (n,), got {tuple(values.shape)}; "
                "pass the items of a batch one at a time"
            )
        if not (values.is_floating_point() or values.dtype is torch.bool):
            raise ShapeError(
                f"expected float or bool values, got {values.dtype}; convert them first"
            )
        dtype = torch.bool if values.dtype is torch.bool else torch.float32
        rows = values if values.ndim == 2 else values[None]
        return cls(
            rows.detach().to("cpu", dtype), shape=(rows.shape[0], rows.shape[1]), dtype=dtype
        )

    @property
    def array(self) -> Tensor:
        """All of it, ``(f, t)``: a view, mapped copy-on-write where the values lie in a file."""
        return self.window(0, self.shape[1])

    def window(self, start: int, stop: int) -> Tensor:
        """Frames ``start`` to ``stop``, ``(f, stop - start)``, as a view; `ShapeError` outside."""
        rows, columns = self.shape
        if not 0 <= start < stop <= columns:
            raise ShapeError(
                f"window [{start}, {stop}) does not lie in the {columns} frames of this map"
            )
        if isinstance(self._values, Tensor):
            return self._values[:, start:stop]
        kind = DTYPES[self.dtype]
        mapped = np.memmap(
            self._values,
            dtype=kind,
            mode="c",
            offset=self._offset + start * rows * kind.itemsize,
            shape=(stop - start, rows),
        )
        return torch.from_numpy(mapped).T

    def blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Walk through all frames: pairs of a first frame and a view ``(f, at most size)``."""
        for start in range(0, self.shape[1], size):
            yield start, self.window(start, min(start + size, self.shape[1]))


class MapWriter:
    """Collects blocks ``(f, any)`` along time into a `MapStore`, a long one in a temporary file.

    The file lies where `tempfile` puts it (``TMPDIR``). Raises `OutputError` where it cannot grow.

    >>> writer = MapWriter(513, 3)
    >>> writer.append(torch.zeros(513, 2)); writer.append(torch.ones(513, 1))
    >>> writer.finish().array[0]
    tensor([0., 0., 1.])
    """

    def __init__(
        self,
        n_freqs: int,
        n_frames: int,
        *,
        in_memory: bool | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare for ``n_frames`` frames; ``in_memory`` None decides by size."""
        if n_freqs < 1 or n_frames < 1:
            raise ShapeError(
                f"a map needs at least one bin and one frame, got ({n_freqs}, {n_frames})"
            )
        self.shape = (n_freqs, n_frames)
        self.dtype = dtype
        self.n_written = 0
        if in_memory is None:
            in_memory = n_freqs * n_frames <= IN_MEMORY_VALUES
        self._values: Tensor | BinaryIO
        if in_memory:
            self._values = torch.empty(self.shape, dtype=dtype)
        else:
            self._values = _temporary_file()
            # an abandoned writer closes its file too; closing twice does nothing
            weakref.finalize(self, self._values.close)

    def append(self, block: Tensor) -> None:
        """Add the next frames ``(f, any)``; raises `ShapeError` where they do not fit."""
        rows, columns = self.shape
        if block.ndim != 2 or block.shape[0] != rows or self.n_written + block.shape[1] > columns:
            raise ShapeError(
                f"expected the next frames ({rows}, at most {columns - self.n_written}), "
                f"got {tuple(block.shape)}"
            )
        stop = self.n_written + block.shape[1]
        if isinstance(self._values, Tensor):
            self._values[:, self.n_written : stop] = block.detach()
        else:
            try:
                self._values.write(_frame_bytes(block, self.dtype))
            except OSError as error:
                raise OutputError(f"{_NO_SPACE} ({error})") from error
        self.n_written = stop

    def finish(self) -> MapStore:
        """Return the store; raises `ShapeError` while frames are missing."""
        if self.n_written != self.shape[1]:
            raise ShapeError(
                f"expected {self.shape[1]} frames, got {self.n_written}; append the rest first"
            )
        if isinstance(self._values, Tensor):
            return MapStore(self._values, shape=self.shape, dtype=self.dtype)
        try:
            self._values.flush()
            # the writer's finalizer closes its own handle; the store reads through this one
            file = os.fdopen(os.dup(self._values.fileno()), "rb")
        except OSError as error:
            raise OutputError(f"{_NO_SPACE} ({error})") from error
        return MapStore(file, shape=self.shape, dtype=self.dtype)


def save_store(store: MapStore, path: Path) -> None:
    """Write ``(f, t)`` as a NumPy file that `numpy.load` reads, block by block."""
    with path.open("wb") as file:
        header = {"shape": store.shape, "fortran_order": True, "descr": DTYPES[store.dtype].str}
        np.lib.format.write_array_header_1_0(file, header)
        for _, block in store.blocks(max(1, BLOCK_FRAMES * 513 // store.shape[0])):
            file.write(_frame_bytes(block, store.dtype))


def load_store(path: Path, *, shape: tuple[int, int], dtype: torch.dtype) -> MapStore:
    """Open a file of `save_store`; a long one is read where it lies, when it is looked at.

    Raises `CheckpointError` where it is missing, is no such file, or holds another shape or type.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(
            f"cannot open {path} ({error}); save the explanation again"
        ) from error
    try:
        version = np.lib.format.read_magic(file)
        came = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else version
    except ValueError as error:
        file.close()
        raise CheckpointError(
            f"{path} is no NumPy file ({error}); save the explanation again"
        ) from error
    offset = file.tell()
    size = offset + shape[0] * shape[1] * DTYPES[dtype].itemsize
    found = path.stat().st_size
    if came != (shape, True, DTYPES[dtype]) or found != size:
        file.close()
        raise CheckpointError(
            f"expected {path} to hold {shape} {dtype} in {size} bytes, "
            f"got {came} in {found} bytes; save the explanation again"
        )
    store = MapStore(file, shape=shape, dtype=dtype, offset=offset)
    if shape[0] * shape[1] > IN_MEMORY_VALUES:
        return store
    # cloned, so that a clip's folder may be moved or deleted once it is loaded
    return MapStore(store.array.clone(), shape=shape, dtype=dtype)


def spectrum_window(wave: MapStore, stft: Stft, start: int, stop: int) -> Spec:
    """Frames ``start`` to ``stop`` of the spectrum ``(f, t)`` of a long waveform ``(1, n)``.

    Equal to those frames of the whole transform up to rounding: each frame sees all its samples.
    """
    hop, reach = stft.config.hop, stft.config.n_fft // 2
    first = max(0, start - -(-reach // hop))
    last = min(wave.shape[1], (stop - 1) * hop + reach)
    spec = stft(wave.window(first * hop, last)[0])
    return spec[:, start - first : stop - first]


def _frame_bytes(block: Tensor, dtype: torch.dtype) -> bytes:
    return np.ascontiguousarray(block.detach().cpu().numpy().T, dtype=DTYPES[dtype]).tobytes()


def _temporary_file() -> BinaryIO:
    try:
        return tempfile.TemporaryFile(prefix="specsegdiff-")
    except OSError as error:
        raise OutputError(f"{_NO_SPACE} ({error})") from error
