"""Pictures of maps: functions from arrays to a matplotlib `Figure`, without pyplot's state."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.errors import ShapeError
from specsegdiff.frontend import Axes, Stft
from specsegdiff.grid import Region
from specsegdiff.storage import BLOCK_FRAMES, MapStore, spectrum_window

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

MAX_COLUMNS = 2000
"Columns of a picture; longer maps are max-pooled in time, so that a short artifact stays visible."

MAX_LABELS = 10
"Regions named in the picture, the strongest; more names would hide what they name."

RANGE_DB = 80.0
"Decibels below the loudest bin that the spectrogram shows."


def explanation_figure(
    wave: Tensor | MapStore,
    heatmap: Tensor | MapStore,
    spread: Tensor | MapStore,
    mask: Tensor | MapStore,
    axes: Axes,
    *,
    regions: Sequence[Region] = (),
    title: str = "",
) -> "Figure":
    """Draw waveform ``(n,)``, spectrogram with heat and mask, heatmap, spread ``(f, t)``.

    All share one time axis, the whole recording, in the same memory at any length. The
    spectrogram is grey, dark where it is loud; heat is laid over it in orange, and the mask's
    outline is black on white, so that the picture also reads in grey print. Raises `ShapeError`
    where a map does not lie on ``axes``.
    """
    wave = MapStore.of(wave)
    if wave.shape != (1, axes.n_samples):
        raise ShapeError(f"expected a waveform of {axes.n_samples} samples, got {wave.shape[1]}")
    hot, unsure, inside = (_pooled(value, axes) for value in (heatmap, spread, mask))
    stft = Stft(axes.config)
    loud = pool_columns(lambda a, b: spectrum_window(wave, stft, a, b).abs(), axes.shape[1])
    level = 20 * np.log10(np.maximum(loud, 1e-12) / max(loud.max(), 1e-12))

    figure, panels, bars = _panels(heights=(0.5, 2, 1.3, 1.3), width=11, height=9)
    _draw_wave(panels[0], wave, axes)
    picture = _show(panels[1], level, axes, cmap="gray_r", vmin=-RANGE_DB, vmax=0)
    _bar(figure, picture, bars[1], "level (dB)")
    # transparent where there is little heat, so that the speech below stays readable
    _show(panels[1], np.ones_like(hot), axes, cmap="autumn", vmin=0, vmax=2.5, alpha=0.8 * hot**2)
    _outline(panels[1], inside, axes)
    for region in regions[:MAX_LABELS]:
        _label(panels[1], region, axes)
    _bar(figure, _show(panels[2], hot, axes, cmap="magma", vmin=0, vmax=1), bars[2], "heat")
    top = max(float(unsure.max()), 1e-6)
    _bar(
        figure, _show(panels[3], unsure, axes, cmap="cividis", vmin=0, vmax=top), bars[3], "spread"
    )
    names = ("spectrogram, heat, mask", "heatmap", "spread")
    for panel, name in zip(panels[1:], names, strict=True):
        panel.set_ylabel(f"{name}\nfrequency (Hz)", fontsize="small")
    _finish(panels, axes, title)
    return figure


def compare(
    maps: Mapping[str, Tensor | MapStore],
    axes: Axes,
    *,
    mask: Tensor | MapStore | None = None,
    title: str = "",
) -> "Figure":
    """Draw several maps ``(f, t)`` of one recording below each other, each on its own scale.

    A map without negative values is drawn from 0 up in magma, a signed attribution around 0 in
    purple and orange; ``mask``, such as the ground truth, is outlined in all. Raises `ShapeError`
    where there is no map or one does not lie on ``axes``.
    """
    if not maps:
        raise ShapeError("compare needs at least one map, got none; pass {'name': map}")
    heights = [1.0] * len(maps)
    figure, panels, bars = _panels(heights=heights, width=10, height=1 + 2 * len(maps))
    inside = None if mask is None else _pooled(mask, axes)
    for (name, value), panel, bar in zip(maps.items(), panels, bars, strict=True):
        drawn = _pooled(value, axes)
        top = max(float(np.abs(drawn).max()), 1e-12)
        _bar(figure, _show(panel, drawn, axes, **_colours(drawn, top)), bar, "")
        if inside is not None:
            _outline(panel, inside, axes)
        panel.set_title(name, loc="left", fontsize="medium", parse_math=False)
        panel.set_ylabel("frequency (Hz)", fontsize="small")
    _finish(panels, axes, title)
    return figure


def vocoder_figure(
    maps: Mapping[str, Mapping[str, Tensor | MapStore]],
    axes: Axes,
    *,
    masks: Mapping[str, Tensor | MapStore] | None = None,
    title: str = "",
) -> "Figure":
    """Draw the maps ``(f, t)`` of several methods for one recording under several vocoders.

    ``maps`` are ``{method: {vocoder: map}}``, every method with the same vocoders: a row a method,
    a column a vocoder, all on the same axes. ``masks``, such as the true ones, are outlined, one a
    vocoder. Colours are those of `compare`, and run to each map's own 99.5 % quantile of absolute
    values: scores rank the bins of a map, and one bin that outshines the others would hide them.
    Raises `ShapeError` where a map is missing or does not lie on ``axes``.
    """
    from matplotlib.figure import Figure

    names = list(next(iter(maps.values()), {}))
    if not names or any(list(row) != names for row in maps.values()):
        there = {method: list(row) for method, row in maps.items()}
        raise ShapeError(f"expected maps of the same vocoders for every method, got {there}")
    if masks is not None and masks.keys() != set(names):
        raise ShapeError(f"expected a mask for each of {names}, got {list(masks)}")
    figure = Figure(figsize=(1 + 2.6 * len(names), 0.8 + 1.6 * len(maps)), layout="constrained")
    panels = figure.subplots(len(maps), len(names), sharex=True, sharey=True, squeeze=False)
    outlines = {name: _pooled(mask, axes) for name, mask in (masks or {}).items()}
    for row, (method, drawn) in zip(panels, maps.items(), strict=True):
        for panel, (vocoder, value) in zip(row, drawn.items(), strict=True):
            heat = _pooled(value, axes)
            top = max(float(np.quantile(np.abs(heat), 0.995)), 1e-12)
            _show(panel, heat, axes, **_colours(heat, top))
            if vocoder in outlines:
                _outline(panel, outlines[vocoder], axes)
        row[0].set_ylabel(method, fontsize="small", parse_math=False)
    for panel, name in zip(panels[0], names, strict=True):
        panel.set_title(name, fontsize="medium", parse_math=False)
    panels[0, 0].set_xlim(axes.extent[0], axes.extent[1])
    figure.supxlabel("time (s)", fontsize="small")
    figure.supylabel("frequency (Hz)", fontsize="small")
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def pool_columns(window: Callable[[int, int], Tensor], n_frames: int) -> NDArray[np.float32]:
    """Max-pool the frames that ``window(a, b)`` reads to at most `MAX_COLUMNS`: ``(f, columns)``.

    Of a signed map, each cell keeps the value farthest from 0. Every column pools equally many
    frames; the last one may pool fewer.

    >>> import torch
    >>> pool_columns(lambda a, b: torch.arange(a, b)[None].float(), 6000).tolist()[0][:3]
    [2.0, 5.0, 8.0]
    """
    step = -(-n_frames // MAX_COLUMNS)
    size = max(1, BLOCK_FRAMES // step) * step
    pooled = []
    for start in range(0, n_frames, size):
        block = window(start, min(start + size, n_frames)).float().numpy()
        edges = np.arange(0, block.shape[1], step)
        high = np.maximum.reduceat(block, edges, axis=1)
        low = np.minimum.reduceat(block, edges, axis=1)
        pooled.append(np.where(high >= -low, high, low))
    return np.concatenate(pooled, axis=1)


def _colours(value: NDArray[np.float32], top: float) -> dict[str, Any]:
    """Colours up to ``top`` that tell signs apart where there are any, safe for colour-blind
    eyes."""
    if value.min() < 0:
        return {"cmap": "PuOr_r", "vmin": -top, "vmax": top}
    return {"cmap": "magma", "vmin": 0.0, "vmax": top}


def _pooled(value: Tensor | MapStore, axes: Axes) -> NDArray[np.float32]:
    store = MapStore.of(value)
    if store.shape != axes.shape:
        raise ShapeError(
            f"expected a map of shape {axes.shape} on these axes, got {store.shape}; "
            "draw it with the axes of the recording it was computed on"
        )
    return pool_columns(store.window, axes.shape[1])


def _panels(
    *, heights: Sequence[float], width: float, height: float
) -> tuple["Figure", list["Panel"], list["SubplotSpec"]]:
    """Panels over one time axis, and the places of their colour bars in a column of their own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    cells = figure.add_gridspec(len(heights), 2, width_ratios=(60, 1), height_ratios=heights)
    panels: list[Panel] = []
    for row in range(len(heights)):
        panels.append(figure.add_subplot(cells[row, 0], sharex=panels[0] if panels else None))
    return figure, panels, [cells[row, 1] for row in range(len(heights))]


def _extent(columns: int, axes: Axes) -> tuple[float, float, float, float]:
    """Edges of a pooled picture; its last column may reach beyond the map, and is cut off there."""
    t0, _, f0, f1 = axes.extent
    step = -(-axes.shape[1] // MAX_COLUMNS)
    return t0, t0 + columns * step * axes.seconds_per_frame, f0, f1


def _show(panel: "Panel", value: NDArray[np.float32], axes: Axes, **options: Any) -> Any:
    extent = _extent(value.shape[1], axes)
    return panel.imshow(
        value, origin="lower", aspect="auto", interpolation="nearest", extent=extent, **options
    )


def _outline(panel: "Panel", inside: NDArray[np.float32], axes: Axes) -> None:
    if not 0 < inside.mean() < 1:
        return
    # padded with background, so that a part at the picture's border is closed too
    inside = np.pad(inside, 1)
    t0, t1, f0, f1 = _extent(inside.shape[1] - 2, axes)
    half_column = (t1 - t0) / (inside.shape[1] - 2) / 2
    half_bin = axes.hertz_per_bin / 2
    times = np.linspace(t0 - half_column, t1 + half_column, inside.shape[1])
    freqs = np.linspace(f0 - half_bin, f1 + half_bin, inside.shape[0])
    for colour, width in (("white", 1.8), ("black", 0.7)):
        panel.contour(times, freqs, inside, levels=[0.5], colors=colour, linewidths=width)


def _label(panel: "Panel", region: Region, axes: Axes) -> None:
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0}
    # above the region, or as high as the panel allows
    place = ((region.t0 + region.t1) / 2, min(region.f1, 0.93 * axes.extent[3]))
    panel.annotate(region.id, place, fontsize="x-small", ha="center", va="bottom", bbox=box)


def _draw_wave(panel: "Panel", wave: MapStore, axes: Axes) -> None:
    n, rate = wave.shape[1], axes.config.sample_rate
    step = -(-n // MAX_COLUMNS)
    tops, bottoms = [], []
    for _, block in wave.blocks(step * 256):
        samples, edges = block[0].numpy(), np.arange(0, block.shape[1], step)
        tops.append(np.maximum.reduceat(samples, edges))
        bottoms.append(np.minimum.reduceat(samples, edges))
    high, low = np.concatenate(tops), np.concatenate(bottoms)
    times = np.arange(len(high)) * step / rate
    if step == 1:
        panel.plot(times, high, color="black", linewidth=0.6)
    else:
        panel.fill_between(times, low, high, step="post", color="black", linewidth=0.3)
    panel.set_ylabel("waveform", fontsize="small")


def _bar(figure: "Figure", picture: Any, place: "SubplotSpec", name: str) -> None:
    figure.colorbar(picture, cax=figure.add_subplot(place), label=name)


def _finish(panels: Sequence["Panel"], axes: Axes, title: str) -> None:
    panels[0].set_xlim(axes.extent[0], axes.extent[1])
    for panel in panels[:-1]:
        panel.tick_params(labelbottom=False)
    panels[-1].set_xlabel("time (s)")
    if title:
        panels[0].set_title(title, parse_math=False)
