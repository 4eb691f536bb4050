"""The picture that a vision-language model looks at: a spectrogram in numbered regions.

Pixels, axes and region ids all come from one `Axes`: seconds along the bottom run to the true end
of the recording, and the frequency scale is that of the regions, linear or mel.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.cells import Regions, hertz_to_mel, mel_to_hertz
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Stft
from specsegdiff.plots import MAX_COLUMNS, RANGE_DB, pool_columns
from specsegdiff.storage import MapStore, spectrum_window

if TYPE_CHECKING:
    from PIL.Image import Image

LEFT, BOTTOM = 56, 28
"Pixels for the numbers of the axes: multiples of 28, the patches of Qwen2.5-VL."


@dataclass(frozen=True)
class PictureConfig:
    """What is drawn; the defaults are for large models, with sides that are multiples of 28."""

    width: int = 448
    "Pixels of the spectrogram along time."
    height: int = 448
    "Pixels along frequency."
    axes: bool = True
    "Whether seconds and kHz stand beside it; a small model cannot read them."
    ids: bool = True
    "Whether regions are outlined and numbered."
    heat: bool = False
    "Whether the heatmap stands to the right of the spectrogram, divided alike."

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 8:
            raise ConfigError(
                f"a picture needs at least 8 x 8 pixels, got {self.width} x {self.height}"
            )


SMALL_PICTURE = PictureConfig(width=64, height=128, axes=False, ids=False, heat=True)
"""What our small model looks at: 128 x 128 pixels, the spectrogram in the left half and the heatmap
in the right one. Cells of a 4 x 4 grid are 16 pixels wide and 32 high: two patches each."""


def draw_regions(
    wave: Tensor | MapStore,
    regions: Regions,
    *,
    heatmap: Tensor | MapStore | None = None,
    config: PictureConfig | None = None,
) -> "Image":
    """Draw the spectrogram of a recording ``(n,)`` with its regions, as an RGB picture.

    80 dB below the loudest bin are black. Every pixel shows the loudest of its bins, so that a
    short trace stays visible at any length; ``heatmap`` ``(f, t)`` in [0, 1] is drawn where the
    configuration says so. Raises `ShapeError` where the wave does not lie on the regions' axes, or
    a heatmap is wanted and missing.

    >>> import torch
    >>> from specsegdiff.cells import RegionGrid
    >>> from specsegdiff.frontend import Axes, StftConfig
    >>> draw_regions(torch.rand(16_000), RegionGrid(Axes(StftConfig(), 16_000))).size
    (504, 476)
    """
    from PIL import Image

    config = config or PictureConfig()
    axes, store = regions.axes, MapStore.of(wave)
    if store.shape != (1, axes.n_samples):
        raise ShapeError(
            f"expected a waveform of {axes.n_samples} samples on the regions' axes, got "
            f"{store.shape}; divide the recording along its own axes"
        )
    stft = Stft(axes.config)
    frames, bins = _edges(regions, config)
    n_frames = axes.shape[1]
    loud = pool_columns(lambda a, b: spectrum_window(store, stft, a, b).abs(), n_frames)
    level = 20 * np.log10(np.maximum(loud, 1e-12) / max(float(loud.max()), 1e-12))
    shade = 1 + np.maximum(level, -RANGE_DB) / RANGE_DB
    panels = [_colour(_pixels(shade, frames, bins, n_frames))]
    if config.heat:
        if heatmap is None or MapStore.of(heatmap).shape != axes.shape:
            raise ShapeError(
                f"this picture shows a heatmap; pass one of shape {axes.shape}, "
                f"got {None if heatmap is None else MapStore.of(heatmap).shape}"
            )
        hot = pool_columns(MapStore.of(heatmap).window, n_frames)
        panels.append(_colour(_pixels(hot, frames, bins, n_frames)))
    label = _labels(regions, frames, bins)
    if config.ids:
        panels = [_outlined(panel, label) for panel in panels]
    picture = Image.fromarray(np.concatenate(panels, axis=1))
    if config.ids:
        for place in range(len(panels)):
            _write_ids(picture, label, place * config.width)
    return _with_axes(picture, regions, config) if config.axes else picture


def _edges(regions: Regions, config: PictureConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First frame of each pixel from the left, and first bin of each pixel from the bottom."""
    axes = regions.axes
    seconds = np.arange(config.width) / config.width * axes.duration
    top = axes.config.sample_rate / 2
    share = np.arange(config.height) / config.height
    if regions.scale == "mel":
        hertz = np.array([mel_to_hertz(value) for value in share * hertz_to_mel(top)])
    else:
        hertz = share * top
    # a bin belongs where its centre lies, as in RegionGrid; rounding must not move an exact edge
    frames = np.ceil(seconds / axes.seconds_per_frame - 1e-9).astype(np.int64)
    bins = np.ceil(hertz / axes.hertz_per_bin - 1e-9).astype(np.int64)
    return np.minimum(frames, axes.shape[1] - 1), np.minimum(bins, axes.shape[0] - 1)


def _pixels(
    value: NDArray[np.float32], frames: NDArray[np.int64], bins: NDArray[np.int64], n_frames: int
) -> NDArray[np.float32]:
    """Largest value of the bins of every pixel, the top row first; ``value`` is pooled in time."""
    step = -(-n_frames // MAX_COLUMNS)
    wide = np.maximum.reduceat(value, frames // step, axis=1)
    return np.maximum.reduceat(wide, bins, axis=0)[::-1]


def _colour(value: NDArray[np.float32]) -> NDArray[np.uint8]:
    from matplotlib import colormaps

    return (colormaps["magma"](value)[..., :3] * 255).round().astype(np.uint8)


def _labels(
    regions: Regions, frames: NDArray[np.int64], bins: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number of the region of every pixel, the top row first."""
    columns = [regions.label_window(a, a + 1)[:, 0].numpy()[bins] for a in frames.tolist()]
    return np.stack(columns, axis=1)[::-1]


def _outlined(panel: NDArray[np.uint8], label: NDArray[np.int64]) -> NDArray[np.uint8]:
    """White where the next pixel, below or to the right, belongs to another region."""
    drawn = panel.copy()
    drawn[:-1][label[:-1] != label[1:]] = 255
    drawn[:, :-1][label[:, :-1] != label[:, 1:]] = 255
    return drawn


def _write_ids(picture: "Image", label: NDArray[np.int64], left: int) -> None:
    """Write each region's id on a dark ground, at the pixel of the region nearest to its middle."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    for number in np.unique(label):
        rows, columns = (label == number).nonzero()
        far = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
        nearest = int(far.argmin())
        place, text = (left + int(columns[nearest]), int(rows[nearest])), str(int(number) + 1)
        draw.rectangle(draw.textbbox(place, text, anchor="mm"), fill=(64, 64, 64))
        draw.text(place, text, fill="white", anchor="mm")


def _with_axes(picture: "Image", regions: Regions, config: PictureConfig) -> "Image":
    """The picture with seconds below every panel and kHz to the left, at five true places."""
    from PIL import Image, ImageDraw

    axes = regions.axes
    whole = Image.new("RGB", (LEFT + picture.width, picture.height + BOTTOM), "white")
    whole.paste(picture, (LEFT, 0))
    draw = ImageDraw.Draw(whole)
    top = axes.config.sample_rate / 2
    for quarter in range(5):
        share = quarter / 4
        hertz = mel_to_hertz(share * hertz_to_mel(top)) if regions.scale == "mel" else share * top
        y = round((1 - share) * (config.height - 1))
        draw.line((LEFT - 4, y, LEFT, y), fill="black")
        anchor = {0: "rs", 4: "rt"}.get(quarter, "rm")
        draw.text((LEFT - 6, y), f"{hertz / 1000:.2f} kHz", fill="black", anchor=anchor)
        for panel in range(picture.width // config.width):
            x = LEFT + panel * config.width + round(share * (config.width - 1))
            draw.line((x, config.height, x, config.height + 4), fill="black")
            anchor = {0: "lt", 4: "rt"}.get(quarter, "mt")
            text = f"{share * axes.duration:.2f} s"
            draw.text((x, config.height + 7), text, fill="black", anchor=anchor)
    return whole
