"""Occlusion on the time-frequency plane: what the logit loses when a patch falls silent."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baselines.plane import Item, Plane, Scale, check_count
from baselines.rows import each_row
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import Stft
from specsegdiff.shapes import Map, Wave


class Occlusion:
    """Drop of the logit when a patch of the spectrogram is silenced (Zeiler & Fergus 2014, arXiv
    1311.2901, section 4.2), as the mean over all patches that cover a bin.

    Patches of ``patch`` (bins, frames) start at every multiple of ``stride``, which is the patch's
    own size by default; the last ones are cut at the border. Silence is magnitude 0. A map has no
    sum that it must reach. The default, 27 bins (420 Hz) by 16 frames (256 ms) on the default
    `Stft`, takes about 300 passes for 4 s. ``chunk`` patches pass the network at once, as many as
    the memory holds by default. Raises `ConfigError` on other settings, and `ShapeError` on waves
    that are not ``(b, n)`` and finite.
    """

    signed = True
    "A map's sign says for or against (`specsegdiff.benchmark.rank`)."

    def __init__(
        self,
        detector: Callable[..., Any],
        *,
        target: str | int = "spoof",
        stft: Stft | None = None,
        scale: Scale = "linear",
        patch: tuple[int, int] = (27, 16),
        stride: tuple[int, int] | None = None,
        chunk: int | None = None,
    ) -> None:
        stride = patch if stride is None else stride
        for name, pair in (("patch", patch), ("stride", stride)):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ConfigError(f"{name} must be a pair (bins, frames), got {pair!r}")
            for value in pair:
                check_count(value, name=name)
        if any(step > size for step, size in zip(stride, patch, strict=True)):
            raise ConfigError(
                f"stride {stride} is wider than the patch {patch}, and would leave bins out; "
                "choose it at most as wide"
            )
        self.plane = Plane(detector, target=target, stft=stft, scale=scale, chunk=chunk)
        self.patch = patch
        self.stride = stride

    def __call__(self, wave: Wave) -> Map:
        """Attribution ``(b, f, t)`` of waves ``(b, n)``, on the axes of `Stft`."""
        return self.plane.maps(wave, self._explain)

    def _explain(self, item: Item) -> Map:
        patches = _patches(item.value.shape[1:], self.patch, self.stride)
        silence = self.plane.baseline(item, None)[0]
        with torch.no_grad():
            whole = self.plane.score(item.value, item.phase, item.length)

        def rows(chosen: range) -> Tensor:
            masked = item.value.repeat(len(chosen), 1, 1)
            for row, index in zip(masked, chosen, strict=True):
                row[patches[index]] = silence[patches[index]]
            with torch.no_grad():
                return whole - self.plane.score(masked, item.phase, item.length)

        drops = each_row(rows, len(patches), chunk=self.plane.chunk, device=self.plane.device)
        total, count = torch.zeros(2, *silence.shape, dtype=torch.float64)
        for drop, (bins, frames) in zip(drops, patches, strict=True):
            total[bins, frames] += drop
            count[bins, frames] += 1
        return total / count


def _patches(
    shape: tuple[int, ...], patch: tuple[int, int], stride: tuple[int, int]
) -> list[tuple[slice, slice]]:
    """Rows and columns of all patches; together they cover every bin.

    >>> _patches((4, 2), (3, 2), (2, 2))
    [(slice(0, 3, None), slice(0, 2, None)), (slice(2, 5, None), slice(0, 2, None))]
    """
    starts = [
        range(0, max(length - size, 0) + step, step)
        for length, size, step in zip(shape, patch, stride, strict=True)
    ]
    return [
        (slice(row, row + patch[0]), slice(column, column + patch[1]))
        for row in starts[0]
        for column in starts[1]
    ]
