"""Cells of the time-frequency plane with ids, a regular grid or superpixels, and what maps say of
them.

A report speaks of cells, and so do the metrics of GRIDEX (arXiv 2606.18738). Mask, heatmap and
picture are all divided along the axes they share: its public code divides masks along linear
frequency and pictures along mel, so that a cell's id means two things.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.errors import ConfigError, DependencyError, ShapeError
from specsegdiff.frontend import Axes
from specsegdiff.shapes import check_map, is_finite
from specsegdiff.storage import BLOCK_FRAMES, IN_MEMORY_VALUES, MapStore

RowScale: TypeAlias = Literal["linear", "mel"]
"""What rows divide equally: Hz, or mel."""

Reduce: TypeAlias = Literal["mean", "sum", "max"]
"""How the values of a region become one score."""


@dataclass(frozen=True)
class Box:
    """A stretch of time and a band of frequencies."""

    t0: float
    "Start in seconds."
    t1: float
    "End in seconds."
    f0: float
    "Lower edge in Hz."
    f1: float
    "Upper edge in Hz."

    def __post_init__(self) -> None:
        if not (0 <= self.t0 < self.t1 < math.inf and 0 <= self.f0 < self.f1 < math.inf):
            raise ConfigError(f"expected a box with 0 <= t0 < t1 and 0 <= f0 < f1, got {self!r}")

    def __str__(self) -> str:
        return f"{self.t0:.2f}-{self.t1:.2f} s, {self.f0:.0f}-{self.f1:.0f} Hz"


class Regions(Protocol):
    """A division of the plane into regions with the ids "1", "2", ..., from the top left."""

    @property
    def axes(self) -> Axes:
        """Axes of the maps that are divided."""

    @property
    def scale(self) -> RowScale:
        """Frequency scale of the picture that the regions are drawn on."""

    @property
    def count(self) -> int:
        """Number of regions."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Their names; region ``i`` of `labels` and of `pool` is ``ids[i]``."""

    @property
    def labels(self) -> Int[Tensor, "f t"]:
        """Number of the region of every bin, from 0; 8 bytes a bin, so for clips."""

    def label_window(self, start: int, stop: int) -> Int[Tensor, "f t"]:
        """Read `labels` of the frames ``start`` to ``stop``."""

    def box(self, id: str) -> Box:
        """Smallest box around a region; raises `ConfigError` on another id."""


@dataclass(frozen=True)
class RegionGrid:
    """Rows and columns over the whole recording, numbered row by row from the top left.

    Columns share the duration equally. Rows share the band equally: in Hz, or in mel as Slaney
    (1998) and librosa define it. A bin belongs to the cell that its centre lies in; on an edge, to
    the later column or the higher row. Raises `ConfigError` where a row or column would hold no
    bin.

    >>> from specsegdiff.frontend import StftConfig
    >>> grid = RegionGrid(Axes(StftConfig(), n_samples=32_000))
    >>> grid.count, str(grid.box("1")), str(grid.box("16"))
    (16, '0.00-0.50 s, 6000-8000 Hz', '1.50-2.00 s, 0-2000 Hz')
    """

    axes: Axes
    "Axes of the maps that are divided."
    rows: int = 4
    "Bands; the first row is the highest."
    columns: int = 4
    "Stretches of time."
    scale: RowScale = "linear"
    "Whether rows are equally high in Hz or in mel."

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"RegionGrid.{name} must be a positive integer, got {value!r}")
        if self.scale not in get_args(RowScale):
            raise ConfigError(f"RegionGrid.scale must be 'linear' or 'mel', got {self.scale!r}")
        for name, place, count in (
            ("row", self._row_of_bin, self.rows),
            ("column", self._column_of_frame, self.columns),
        ):
            if len(np.unique(place)) < count:
                raise ConfigError(
                    f"a {self.scale} grid of {self.rows} x {self.columns} on {self.axes.shape[0]} "
                    f"bins and {self.axes.shape[1]} frames has a {name} without a bin; "
                    f"ask for fewer {name}s"
                )

    @property
    def count(self) -> int:
        """Number of cells."""
        return self.rows * self.columns

    @property
    def ids(self) -> tuple[str, ...]:
        """'1' at the top left to ``str(count)`` at the bottom right."""
        return _ids(self.count)

    @property
    def labels(self) -> Int[Tensor, "f t"]:
        """Number of the cell of every bin, from 0; 8 bytes a bin, so for clips."""
        return self.label_window(0, self.axes.shape[1])

    def label_window(self, start: int, stop: int) -> Int[Tensor, "f t"]:
        """Read `labels` of the frames ``start`` to ``stop``."""
        column = self._column_of_frame[start:stop]
        return torch.from_numpy(self._row_of_bin[:, None] * self.columns + column)

    def box(self, id: str) -> Box:
        """Edges of a cell; raises `ConfigError` on another id."""
        row, column = divmod(_index(id, self.count), self.columns)
        step, high = self.axes.duration / self.columns, self._row_edges
        return Box(column * step, (column + 1) * step, float(high[row + 1]), float(high[row]))

    @functools.cached_property
    def _row_edges(self) -> NDArray[np.float64]:
        """Edges of the rows in Hz, from the Nyquist frequency down to 0, ``(rows + 1,)``."""
        top = self.axes.config.sample_rate / 2
        share = np.arange(self.rows, -1, -1) / self.rows
        if self.scale == "linear":
            return share * top
        edges = np.array([mel_to_hertz(value) for value in share * hertz_to_mel(top)])
        # there and back is exact but for the last bit, and the edges of the band are known
        edges[0], edges[-1] = top, 0.0
        return edges

    @functools.cached_property
    def _row_of_bin(self) -> NDArray[np.int64]:
        freqs = self.axes.freqs.numpy()
        below = np.searchsorted(self._row_edges[1:-1][::-1], freqs, side="right")
        return self.rows - 1 - below.astype(np.int64)

    @functools.cached_property
    def _column_of_frame(self) -> NDArray[np.int64]:
        # whole numbers: frame * hop / n_samples of the duration, without rounding
        frame = np.arange(self.axes.shape[1], dtype=np.int64)
        column = frame * self.axes.config.hop * self.columns // self.axes.n_samples
        return np.minimum(column, self.columns - 1)


@dataclass(frozen=True, eq=False)
class SlicRegions:
    """Superpixels of a picture; make them with `slic_regions`.

    `pool` takes a region's own bins. `box` is more than they are where a region is no rectangle,
    and it is the box that narrators name, measure and listen to.

    >>> from specsegdiff.frontend import StftConfig
    >>> axes = Axes(StftConfig(), n_samples=16_000)
    >>> halves = torch.zeros(axes.shape, dtype=torch.int64); halves[:256] = 1
    >>> SlicRegions(axes, halves).box("2").f1
    3992.1875
    """

    axes: Axes
    "Axes of the maps that are divided."
    labels: Int[Tensor, "f t"]
    "Number of the region of every bin, from 0 and without gaps."

    def __post_init__(self) -> None:
        labels = self.labels
        if tuple(labels.shape) != self.axes.shape or labels.dtype is not torch.int64:
            raise ShapeError(
                f"expected int64 labels of shape {self.axes.shape}, got {tuple(labels.shape)} "
                f"{labels.dtype}; number the regions on these axes"
            )
        if not torch.equal(labels.unique(), torch.arange(int(labels.max()) + 1)):
            raise ShapeError("labels must number regions 0, 1, 2, ... without gaps")

    @property
    def scale(self) -> RowScale:
        """Linear: the picture has the axes of the map."""
        return "linear"

    @property
    def count(self) -> int:
        """Number of regions."""
        return int(self.labels.max()) + 1

    @property
    def ids(self) -> tuple[str, ...]:
        """'1' to ``str(count)``."""
        return _ids(self.count)

    def label_window(self, start: int, stop: int) -> Int[Tensor, "f t"]:
        """Read `labels` of the frames ``start`` to ``stop``."""
        return self.labels[:, start:stop]

    def box(self, id: str) -> Box:
        """Smallest box around a region; raises `ConfigError` on another id."""
        f, t = (self.labels == _index(id, self.count)).nonzero(as_tuple=True)
        dt, df = self.axes.seconds_per_frame, self.axes.hertz_per_bin
        return Box(
            t0=max(0.0, (int(t.min()) - 0.5) * dt),
            t1=min(self.axes.duration, (int(t.max()) + 0.5) * dt),
            f0=max(0.0, (int(f.min()) - 0.5) * df),
            f1=min(self.axes.config.sample_rate / 2, (int(f.max()) + 0.5) * df),
        )


def slic_regions(
    picture: Float[Tensor, "f t"], axes: Axes, *, segments: int = 60, compactness: float = 0.2
) -> SlicRegions:
    """Divide a picture ``(f, t)``, such as a spectrogram in dB, into about ``segments`` superpixels
    (Achanta et al. 2012), numbered by their first bin, row by row from the top left.

    The picture is scaled to [0, 1] and counts as a square, whatever its bins and frames. The
    defaults are those of GRIDEX's public code: its compactness of 20 is for lightness in [0, 100].
    All lies in memory: a recording of more than two minutes is refused. Raises `ShapeError` where
    the picture does not lie on ``axes``, is too long or not finite, `DependencyError` without
    scikit-image.
    """
    check_map(picture, name="picture")
    if tuple(picture.shape) != axes.shape or not is_finite(picture):
        raise ShapeError(
            f"expected a finite picture of shape {axes.shape} on these axes, "
            f"got {tuple(picture.shape)}; draw it with the axes of its recording"
        )
    if picture.numel() > IN_MEMORY_VALUES:
        raise ShapeError(
            f"superpixels hold the whole picture in memory, at most {IN_MEMORY_VALUES} bins, got "
            f"{picture.numel()}; cut the recording, or use a RegionGrid"
        )
    if segments < 1 or not compactness > 0:
        raise ConfigError(
            f"segments and compactness must be positive, got {segments} and {compactness}"
        )
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise DependencyError(
            "superpixels need scikit-image: pip install 'specsegdiff[superpixels]', "
            "or use a RegionGrid, which needs nothing"
        ) from error
    # the first row of a picture is its top
    value = picture.flip(0).double().numpy()
    span = value.max() - value.min()
    bins, frames = value.shape
    side = max(bins, frames)
    found = slic(
        (value - value.min()) / (span if span > 0 else 1.0),
        n_segments=segments,
        compactness=compactness,
        spacing=(side / bins, side / frames),
        channel_axis=None,
        start_label=0,
    )
    _, first, place = np.unique(found, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[first.argsort()] = np.arange(len(first))
    return SlicRegions(axes, torch.from_numpy(number[place].reshape(value.shape)).flip(0))


def pool(
    value: Tensor | MapStore, regions: Regions, *, reduce: Reduce = "mean"
) -> Float[Tensor, " count"]:
    """Score every region by the values of a map ``(f, t)`` in it: float64, ``(count,)``.

    Any map will do: a heatmap, an attribution, whose sign is kept, or a mask, whose mean is the
    coverage of the region. Read in blocks, in memory that does not grow with the recording. Raises
    `ShapeError` where the map does not lie on the regions' axes or holds a value that is not
    finite.

    >>> from specsegdiff.frontend import StftConfig
    >>> grid = RegionGrid(Axes(StftConfig(), n_samples=16_000), rows=2, columns=1)
    >>> ramp = torch.arange(513.0)[:, None].expand(513, 63)
    >>> pool(ramp, grid).tolist()
    [384.0, 127.5]
    """
    if reduce not in get_args(Reduce):
        raise ConfigError(f"reduce must be 'mean', 'sum' or 'max', got {reduce!r}")
    store = MapStore.of(value)
    if store.shape != regions.axes.shape:
        raise ShapeError(
            f"expected a map of shape {regions.axes.shape} on the regions' axes, got {store.shape};"
            " divide it along its own axes"
        )
    count = regions.count
    total, bins = np.zeros(count), np.zeros(count)
    highest = np.full(count, -np.inf)
    for start, block in store.blocks(BLOCK_FRAMES):
        label = regions.label_window(start, start + block.shape[1]).numpy().ravel()
        flat = block.numpy().astype(np.float64).ravel()
        if not np.isfinite(flat).all():
            raise ShapeError("the map holds NaN or infinity; no region has a score there")
        total += np.bincount(label, weights=flat, minlength=count)
        bins += np.bincount(label, minlength=count)
        if reduce == "max":
            np.maximum.at(highest, label, flat)
    scores = {"mean": total / bins, "sum": total, "max": highest}
    return torch.from_numpy(scores[reduce])


def top_k(scores: Sequence[float] | Tensor, k: int) -> tuple[str, ...]:
    """Ids of the ``k`` regions with the highest scores ``(count,)``, best first; ties go to the
    smaller id.

    Raises `ConfigError` unless ``1 <= k <= count``, and on scores that are NaN.

    >>> top_k([0.1, 0.7, 0.7, 0.2], 3)
    ('2', '3', '4')
    """
    values = [float(score) for score in scores]
    if not 1 <= k <= len(values):
        raise ConfigError(f"k must be 1 to {len(values)}, the number of regions, got {k}")
    if any(math.isnan(value) for value in values):
        raise ConfigError("a score is NaN, so the regions have no order; pool a finite map")
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))
    return tuple(str(place + 1) for place in order[:k])


def truth_cells(mask: Tensor | MapStore, regions: Regions, *, k: int = 3) -> tuple[str, ...]:
    """Ids of the ``k`` regions that a true mask ``(f, t)`` covers most, ties to the smaller id.

    The share of its bins counts, as in GRIDEX, so that a small superpixel may win. A region that
    the mask does not touch is never among them: there may be fewer than ``k``.
    """
    coverage = pool(_mask(mask), regions)
    ids = top_k(coverage, k)
    return tuple(id for id in ids if coverage[int(id) - 1] > 0)


def covered_share(mask: Tensor | MapStore, regions: Regions, ids: Iterable[str]) -> float:
    """Share of a mask's bins ``(f, t)`` that lie in some regions, in [0, 1]; 0 for an empty mask.

    What the top K explain of the whole; GRIDEX's public code keeps a clip where it is at least 0.5.
    """
    bins = pool(_mask(mask), regions, reduce="sum")
    inside = sum(float(bins[_index(id, regions.count)]) for id in set(ids))
    whole = float(bins.sum())
    return inside / whole if whole else 0.0


def whole_plane(axes: Axes) -> Box:
    """Box of a whole recording: from 0 to its end, and from 0 Hz to the Nyquist frequency."""
    return Box(0.0, axes.duration, 0.0, axes.config.sample_rate / 2)


def hertz_to_mel(hertz: float) -> float:
    """Slaney's mel: 15 up to 1 kHz, linear, and logarithmic above (Auditory Toolbox, 1998).

    >>> hertz_to_mel(1000.0), round(hertz_to_mel(6400.0), 9)
    (15.0, 42.0)
    """
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def mel_to_hertz(mel: float) -> float:
    """Inverse of `hertz_to_mel`.

    >>> mel_to_hertz(15.0), round(mel_to_hertz(42.0), 9)
    (1000.0, 6400.0)
    """
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def _ids(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, count + 1))


def _index(id: str, count: int) -> int:
    if id not in _ids(count):
        raise ConfigError(f"expected the id of a region, '1' to '{count}', got {id!r}")
    return int(id) - 1


def _mask(mask: Tensor | MapStore) -> MapStore:
    store = MapStore.of(mask)
    if store.dtype is not torch.bool:
        raise ShapeError(f"expected a bool mask, got {store.dtype}; compare the map with a level")
    return store
