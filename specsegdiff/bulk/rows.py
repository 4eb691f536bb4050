"""One row a recording: what is kept of an explanation, and how to get it back.

What a minute of audio takes at the default axes, 513 bins and 62.5 frames a second:

- ``mask``, a bit a bin and each frame filled up to whole bytes: 243,750 bytes, 24,000 in the file;
- ``heatmap``, float16, on request only: 3,847,500 bytes, 3,350,000 in the file;
- all else, whatever the length: 3,700 bytes in the file, most of it the ``thumbnail`` of 4,096,
  then up to 20 regions of 70.

In the file means compressed, measured on 16 vocoded recordings of 5 s with the embedded model
(``benchmarks/corpus.py``).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from specsegdiff.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from specsegdiff.explanation import Explanation
    from specsegdiff.storage import MapStore

Row: TypeAlias = dict[str, Any]

SIDE = 64
"Rows and columns of a thumbnail."

BLOCK_FRAMES = 2048
"Frames that are packed at once."

LARGEST = 2**31 - 1
"Bytes that one cell of a parquet file can hold."

ERROR_LENGTH = 1000
"Characters that are kept of an error's text."


def schema() -> Any:
    """Columns of a part; all but id and path are null in the row of a bad file, and the errors are
    null in that of a good one."""
    import pyarrow as pa

    number = pa.float64()
    region = pa.struct(
        [
            ("id", pa.string()),
            *((name, number) for name in ("t0", "t1", "f0", "f1", "score", "share")),
            ("bins", pa.int64()),
        ]
    )
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            ("error_type", pa.string()),
            ("error", pa.string()),
            ("duration", number),
            ("n_samples", pa.int64()),
            ("samples_sha256", pa.string()),
            ("p_spoof", number),
            ("regions", pa.list_(region)),
            ("bins", pa.int32()),
            ("frames", pa.int32()),
            ("mask", pa.large_binary()),
            ("thumbnail", pa.binary(SIDE * SIDE)),
            ("heatmap", pa.large_binary()),
        ]
    )


def row_of(explanation: "Explanation", *, full_maps: bool = False) -> Row:
    """What is kept of an explanation; ``full_maps`` keeps its heatmap too, as float16.

    ``duration`` is in seconds and ``n_samples`` counts samples as explained, at the model's rate.
    Raises `AudioError` where a map is too long for one cell, nine hours of a full map.
    """
    import dataclasses

    axes, layers = explanation.axes, explanation.layers
    bins, frames = axes.shape
    if full_maps and 2 * bins * frames > LARGEST:
        raise AudioError(
            f"a full map of {axes.duration:.0f} s takes {2 * bins * frames} bytes, a cell holds "
            f"{LARGEST}; cut the recording, or leave full maps out"
        )
    return {
        "duration": axes.duration,
        "n_samples": axes.n_samples,
        "samples_sha256": explanation.provenance.samples_sha256,
        "p_spoof": explanation.p_spoof,
        "regions": [dataclasses.asdict(region) for region in explanation.regions],
        "bins": bins,
        "frames": frames,
        "mask": b"".join(pack_mask(block.numpy()) for _, block in layers.mask.blocks(BLOCK_FRAMES)),
        "thumbnail": _thumbnail(layers.heatmap).tobytes(),
        "heatmap": _full_map(layers.heatmap) if full_maps else None,
    }


def error_row(error: BaseException) -> Row:
    """What is kept of a recording that could not be explained: the error's type and text."""
    text = " ".join(str(error).split())
    return {"error_type": type(error).__name__, "error": text[:ERROR_LENGTH]}


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Bits of a mask ``(f, t)``, frame after frame, each filled up to whole bytes.

    >>> pack_mask(np.ones((9, 2), bool)).hex()
    'ff80ff80'
    """
    return np.packbits(mask.T, axis=1).tobytes()


def mask_of(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Mask ``(f, t)`` of a row, equal to `Explanation.mask`.

    Raises `ConfigError` for the row of a bad file, which has none.

    >>> mask_of({"id": "a", "bins": 9, "frames": 2, "mask": bytes.fromhex("ff80ff80")}).shape
    (9, 2)
    """
    bits = np.frombuffer(_cell(row, "mask"), np.uint8).reshape(row["frames"], -1)
    return np.unpackbits(bits, axis=1, count=row["bins"]).astype(bool).T


def thumbnail_of(row: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Picture ``(64, 64)`` of a row's heatmap, low frequencies first: mean heat, of 255.

    Cells overlap by a part of a bin where a map does not divide by 64. Raises `ConfigError` for the
    row of a bad file.
    """
    return np.frombuffer(_cell(row, "thumbnail"), np.uint8).reshape(SIDE, SIDE)


def heatmap_of(row: Mapping[str, Any]) -> NDArray[np.float16]:
    """Heatmap ``(f, t)`` of a row, `Explanation.heatmap` to half precision.

    Raises `ConfigError` where the row has none: full maps are kept on request.
    """
    values = np.frombuffer(_cell(row, "heatmap"), np.dtype("<f2"))
    return values.reshape(row["frames"], row["bins"]).T


def _cell(row: Mapping[str, Any], name: str) -> bytes:
    value = row.get(name)
    if value is None:
        why = row.get("error") or "it was not kept, or that column was not read"
        raise ConfigError(f"the row {row.get('id')!r} has no {name}: {why}")
    return value


def _thumbnail(heat: "MapStore") -> NDArray[np.uint8]:
    bins, frames = heat.shape
    columns = []
    for start, stop in zip(*_edges(frames), strict=True):
        columns.append(heat.window(int(start), int(stop)).numpy().mean(axis=1, dtype=np.float64))
    total = np.concatenate([np.zeros((1, SIDE)), np.cumsum(np.stack(columns, axis=1), axis=0)])
    low, high = _edges(bins)
    mean = (total[high] - total[low]) / (high - low)[:, None]
    return np.rint(255 * mean.clip(0, 1)).astype(np.uint8)


def _edges(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last + 1 of the bins in each of 64 cells, none empty: adaptive average pooling."""
    place = np.arange(SIDE)
    return place * n // SIDE, -(-(place + 1) * n // SIDE)


def _full_map(heat: "MapStore") -> bytes:
    blocks = (block.numpy().T.astype("<f2") for _, block in heat.blocks(BLOCK_FRAMES))
    return b"".join(block.tobytes() for block in blocks)
