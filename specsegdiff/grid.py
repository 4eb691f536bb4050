"""Parts of the time-frequency plane: the bins with the most heat, and the regions they form."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Axes
from specsegdiff.storage import BLOCK_FRAMES, MapStore, MapWriter

Ints: TypeAlias = NDArray[np.int64]

HEAT_UNIT = 2.0**-30
"Heat is summed in whole multiples of this, so that no sum depends on where blocks were cut."


@dataclass(frozen=True)
class Region:
    """A connected part of a mask, with the smallest box around it."""

    id: str
    "R1 for the region with the most heat in all, R2 for the next."
    t0: float
    "Start in seconds: the outer edge of the first frame."
    t1: float
    "End in seconds."
    f0: float
    "Lower edge in Hz."
    f1: float
    "Upper edge in Hz."
    score: float
    "Mean heat of its bins, in [0, 1]."
    share: float
    "Its bins over all bins of the mask."
    bins: int
    "Number of its bins; the box may hold many more."

    def __post_init__(self) -> None:
        numbers = [getattr(self, name) for name in ("t0", "t1", "f0", "f1", "score", "share")]
        if (
            not isinstance(self.id, str)
            or not all(isinstance(x, int | float) and np.isfinite(x) for x in numbers)
            or not isinstance(self.bins, int)
            or self.bins < 1
            or not (0 <= self.t0 < self.t1 and 0 <= self.f0 < self.f1)
            or not (0 <= self.score <= 1 and 0 < self.share <= 1)
        ):
            raise ConfigError(
                "expected a region with 0 <= t0 < t1, 0 <= f0 < f1, score and share in [0, 1], "
                f"got {self!r}; explain the recording again"
            )

    def __str__(self) -> str:
        return (
            f"{self.id:3} {f'{self.t0:.2f}-{self.t1:.2f}':>15} s, "
            f"{f'{self.f0:.0f}-{self.f1:.0f}':>9} Hz, "
            f"heat {self.score:.2f}, {100 * self.share:5.1f} % of the mask"
        )


def find_regions(
    mask: Tensor | MapStore,
    heatmap: Tensor | MapStore,
    axes: Axes,
    *,
    max_regions: int = 20,
    min_bins: int = 12,
    reach: tuple[int, int] = (9, 2),
    block_frames: int = BLOCK_FRAMES,
) -> list[Region]:
    """Regions of a mask ``(f, t)``, those with the largest sum of heat first, then the earlier one.

    Two bins belong to one region where a chain of mask bins joins them, each step at most ``reach``
    (bins, frames); (1, 1) is plain 8-connectivity. The default, 140 Hz and 32 ms, joins the
    harmonics of many voices: true masks of the paired corpus fall into hundreds of specks a clip
    without it, and run together across the picture from 13 bins on. Parts below ``min_bins``, a
    third of the ground truth's smoothing kernel, are dropped.

    Works in blocks of frames, in memory that does not grow with the recording; where the blocks are
    cut changes nothing. Raises `ShapeError` where shapes do not fit or heat lies outside [0, 1].

    >>> from specsegdiff.frontend import StftConfig
    >>> mask = torch.zeros(513, 63, dtype=torch.bool); mask[64:128, 10:20] = True
    >>> print(*find_regions(mask, 0.5 * mask, Axes(StftConfig(), n_samples=16_000)))
    R1        0.15-0.31 s,  992-1992 Hz, heat 0.50, 100.0 % of the mask
    """
    mask, heatmap = MapStore.of(mask), MapStore.of(heatmap)
    if mask.shape != axes.shape or heatmap.shape != axes.shape or mask.dtype is not torch.bool:
        raise ShapeError(
            f"expected a bool mask and a heatmap of shape {axes.shape}, "
            f"got {mask.shape} {mask.dtype} and {heatmap.shape}; compute both on these axes"
        )
    if min(max_regions, min_bins, *reach, block_frames) < 1:
        raise ConfigError(
            f"max_regions, min_bins, reach and block_frames must be at least 1, "
            f"got {max_regions}, {min_bins}, {reach}, {block_frames}"
        )
    in_mask = 0
    finished, growing = np.empty((0, 6), np.int64), np.empty((0, 6), np.int64)
    edge = np.zeros(mask.shape[0], np.int64)
    tail = np.zeros((mask.shape[0], reach[1] - 1), bool)
    for start, block in mask.blocks(block_frames):
        bins = block.numpy()
        in_mask += int(bins.sum())
        heat = heatmap.window(start, start + bins.shape[1]).numpy()
        labels = _label(bins, tail, reach)
        parts = np.concatenate([growing, _measure(bins, heat, labels, start)])
        group = _join(edge, labels[:, 0], n_before=len(growing), n_parts=len(parts))
        parts = _merge(parts, group)
        # row 0 stands for the background, number -1 + 1
        number = np.concatenate([[-1], group[len(growing) :]]) + 1
        edge = number[labels[:, -1]]
        # only what touches the last frame can grow; the rest is ranked now, and mostly forgotten
        open_parts, edge = _renumber(edge)
        closed = np.ones(len(parts), bool)
        closed[open_parts] = False
        finished = _strongest(np.concatenate([finished, parts[closed]]), max_regions, min_bins)
        growing = parts[open_parts]
        tail = np.concatenate([tail, bins], axis=1)[:, bins.shape[1] :]
    ranked = _strongest(np.concatenate([finished, growing]), max_regions, min_bins)
    return [_region(row, rank, in_mask, axes) for rank, row in enumerate(ranked.tolist(), start=1)]


def top_share_mask(value: Tensor | MapStore, *, share: float = 0.05) -> MapStore:
    """Mask of the ``share`` of bins ``(f, t)`` with the highest value: ``round(share * f * t)``.

    The same bins as `specsegdiff.masks.top_share`, ties to the lower index in ``(f, t)`` order
    included, in memory that does not grow with the recording: the order of floats is that of their
    bits, so that two histograms of 16 bits each give the exact threshold.
    Raises `ShapeError` on NaN.
    """
    value = MapStore.of(value)
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in [0, 1], got {share!r}")
    rows, columns = value.shape
    count = round(share * rows * columns)
    threshold, quota = _threshold(value, count)
    per_row = np.zeros(rows, np.int64)
    for _, block in value.blocks(BLOCK_FRAMES):
        per_row += (_order(block) == threshold).sum(axis=1)
    allowed = np.clip(quota - (per_row.cumsum() - per_row), 0, per_row)
    writer = MapWriter(rows, columns, dtype=torch.bool)
    seen = np.zeros(rows, np.int64)
    for _, block in value.blocks(BLOCK_FRAMES):
        order = _order(block)
        tie = order == threshold
        rank = tie.cumsum(axis=1) + seen[:, None]
        writer.append(torch.from_numpy((order > threshold) | (tie & (rank <= allowed[:, None]))))
        seen += tie.sum(axis=1)
    return writer.finish()


def _label(bins: NDArray[np.bool_], tail: NDArray[np.bool_], reach: tuple[int, int]) -> Ints:
    """Number the regions of a block from 1, after growing each bin by a box of ``reach``.

    Boxes of a x b at two bins touch where these lie at most a bins and b frames apart. They reach
    forward only, so that the frames before the block, its ``tail``, are all it must know.
    """
    from scipy.ndimage import label

    tall = bins_before = np.concatenate([tail, bins], axis=1)
    for step in range(1, reach[0]):
        tall = tall | np.pad(bins_before, ((step, 0), (0, 0)))[:-step]
    grown = tall
    for step in range(1, reach[1]):
        grown = grown | np.pad(tall, ((0, 0), (step, 0)))[:, :-step]
    return label(grown[:, tail.shape[1] :], structure=np.ones((3, 3)))[0].astype(np.int64)


def _measure(bins: NDArray[np.bool_], heat: NDArray[np.float32], labels: Ints, start: int) -> Ints:
    """Table of a block's parts: bins, heat, first and last frame, first and last bin."""
    f, t = bins.nonzero()
    hot = heat[f, t]
    # written so that NaN is caught too
    if not ((hot >= 0) & (hot <= 1)).all():
        raise ShapeError("a heatmap lies in [0, 1]; scale an attribution to that first")
    row = labels[f, t] - 1
    parts = _empty_parts(int(labels.max()))
    np.add.at(parts[:, 0], row, 1)
    np.add.at(parts[:, 1], row, np.rint(hot.astype(np.float64) / HEAT_UNIT).astype(np.int64))
    for column, place in ((2, t + start), (4, f)):
        np.minimum.at(parts[:, column], row, place)
        np.maximum.at(parts[:, column + 1], row, place)
    return parts


def _empty_parts(count: int) -> Ints:
    parts = np.zeros((count, 6), np.int64)
    parts[:, 2::2] = np.iinfo(np.int64).max
    parts[:, 3::2] = -1
    return parts


def _join(edge: Ints, first: Ints, *, n_before: int, n_parts: int) -> Ints:
    """Group of each part, first those from before a border: parts that touch across it are one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = []
    # level, one bin down, one bin up
    for left, right in ((edge, first), (edge[1:], first[:-1]), (edge[:-1], first[1:])):
        touch = (left > 0) & (right > 0)
        pairs.append(np.stack([left[touch] - 1, right[touch] - 1 + n_before]))
    i, j = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(i)), (i, j)), shape=(n_parts, n_parts))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _merge(parts: Ints, group: Ints) -> Ints:
    merged = _empty_parts(int(group.max(initial=-1)) + 1)
    np.add.at(merged[:, 0], group, parts[:, 0])
    np.add.at(merged[:, 1], group, parts[:, 1])
    for column in (2, 4):
        np.minimum.at(merged[:, column], group, parts[:, column])
        np.maximum.at(merged[:, column + 1], group, parts[:, column + 1])
    return merged


def _renumber(edge: Ints) -> tuple[Ints, Ints]:
    """Rows of the parts on the border, and the border numbered by them from 1."""
    rows = np.unique(edge[edge > 0])
    return rows - 1, np.where(edge > 0, np.searchsorted(rows, edge) + 1, 0)


def _strongest(parts: Ints, count: int, min_bins: int) -> Ints:
    parts = parts[parts[:, 0] >= min_bins]
    return parts[np.lexsort((parts[:, 4], parts[:, 2], -parts[:, 1]))][:count]


def _region(row: list[int], rank: int, in_mask: int, axes: Axes) -> Region:
    bins, heat, t0, t1, f0, f1 = row
    dt, df = axes.seconds_per_frame, axes.hertz_per_bin
    return Region(
        id=f"R{rank}",
        t0=max(0.0, (t0 - 0.5) * dt),
        t1=min(axes.duration, (t1 + 0.5) * dt),
        f0=max(0.0, (f0 - 0.5) * df),
        f1=min(axes.config.sample_rate / 2, (f1 + 0.5) * df),
        score=heat * HEAT_UNIT / bins,
        share=bins / in_mask,
        bins=bins,
    )


def _order(block: Tensor) -> NDArray[np.uint32]:
    """Unsigned integers in the order of the floats (Herf, "Radix tricks", 2001); -0 counts as 0."""
    bits = (block.numpy() + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _threshold(value: MapStore, count: int) -> tuple[int, int]:
    """Order of the ``count``-th highest value, and how many bins of that value the top holds."""
    high = np.zeros(1 << 16, np.int64)
    for _, block in value.blocks(BLOCK_FRAMES):
        if bool(block.isnan().any()):
            raise ShapeError("value holds NaN; a share of the highest bins is not defined there")
        high += np.bincount((_order(block) >> 16).ravel(), minlength=1 << 16)
    upper, count = _step_down(high, count)
    low = np.zeros(1 << 16, np.int64)
    for _, block in value.blocks(BLOCK_FRAMES):
        order = _order(block)
        low += np.bincount(order[order >> 16 == upper] & 0xFFFF, minlength=1 << 16)
    lower, count = _step_down(low, count)
    return (upper << 16) | lower, count


def _step_down(histogram: Ints, count: int) -> tuple[int, int]:
    """Bar of a histogram that holds the ``count``-th highest item, and its rank within that bar."""
    from_top = histogram[::-1].cumsum()
    bar = int(np.searchsorted(from_top, count))
    return len(histogram) - 1 - bar, count - int(from_top[bar - 1] if bar else 0)
