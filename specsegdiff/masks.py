"""Ground truth: from a real/vocoded pair of magnitudes to the mask of the bins that synthesis
changed most.

The recipe is that of arXiv 2506.03425 as far as it is public: both magnitude spectrograms are
smoothed, their relative difference is taken, and the bins above its 95 % quantile are the mask.
What the paper leaves open is a field of `MaskConfig`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.shapes import Map, Mask, check_map, check_same_shape, is_finite


@dataclass(frozen=True)
class MaskConfig:
    """The recipe's switches; the defaults are the published values under their most likely
    reading."""

    frames: int = 3
    "Taps of the Gaussian along time (the paper's kernel is '3 x 11'); 1 switches smoothing off."
    bins: int = 11
    "Taps of the Gaussian along frequency; swap with `frames` for the other reading of '3 x 11'."
    time_spread: float = 3.0
    "Width along time; the paper says 'variance 3 x 5'."
    freq_spread: float = 5.0
    "Width along frequency."
    spread_is: Literal["variance", "deviation"] = "variance"
    "Whether the widths are variances (sigma squared) or standard deviations (sigma)."
    domain: Literal["linear", "log"] = "linear"
    """'linear': |F - R| / (R + floor), Eq. 2; 'log': |log(F + floor) - log(R + floor)|, where loss
    weighs like gain."""
    floor: float = 1e-8
    """Added to the denominator (linear) or to both magnitudes (log); larger values quieten
    near-silent bins."""
    quantile: float = 0.95
    "Bins above this quantile of the difference, over all bins of the recording, are foreground."

    def __post_init__(self) -> None:
        for name in ("frames", "bins"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value % 2 == 0:
                raise ConfigError(
                    f"MaskConfig.{name} must be an odd positive integer, got {value!r}"
                )
        for name in ("time_spread", "freq_spread", "floor"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"MaskConfig.{name} must be positive, got {value!r}")
        if self.spread_is not in ("variance", "deviation"):
            raise ConfigError(
                f"MaskConfig.spread_is must be 'variance' or 'deviation', got {self.spread_is!r}"
            )
        if self.domain not in ("linear", "log"):
            raise ConfigError(f"MaskConfig.domain must be 'linear' or 'log', got {self.domain!r}")
        if not 0 < self.quantile < 1:
            raise ConfigError(
                f"MaskConfig.quantile must lie between 0 and 1, got {self.quantile!r}"
            )

    @property
    def share(self) -> float:
        """Share of the bins that becomes foreground, 0.05 for the 95 % quantile."""
        # 1 - 0.95 is above 0.05 in floating point, and would count one bin more than 0.05 does
        return round(1 - self.quantile, 12)


def gaussian_taps(size: int, spread: float, *, spread_is: str = "variance") -> Tensor:
    """Weights of a sampled Gaussian, ``(size,)``, that sum to one.

    >>> [round(tap, 4) for tap in gaussian_taps(3, 3.0).tolist()]
    [0.3143, 0.3713, 0.3143]
    """
    variance = spread if spread_is == "variance" else spread**2
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    weight = torch.exp(-(offset**2) / (2 * variance))
    return (weight / weight.sum()).float()


def smooth(magnitude: Map, config: MaskConfig | None = None) -> Map:
    """Smooth ``(..., f, t)`` with the separable Gaussian of the recipe; borders repeat the edge
    bin."""
    config = config or MaskConfig()
    check_map(magnitude, name="magnitude")
    bins, frames = magnitude.shape[-2:]
    flat = magnitude.reshape(-1, 1, bins, frames)
    for size, spread, shape in (
        (config.bins, config.freq_spread, (-1, 1)),
        (config.frames, config.time_spread, (1, -1)),
    ):
        taps = gaussian_taps(size, spread, spread_is=config.spread_is).to(flat)
        half = size // 2
        pad = (0, 0, half, half) if shape == (-1, 1) else (half, half, 0, 0)
        flat = F.conv2d(F.pad(flat, pad, mode="replicate"), taps.reshape(1, 1, *shape))
    return flat.reshape(magnitude.shape)


def difference(real: Map, fake: Map, config: MaskConfig | None = None) -> Map:
    """Difference of two linear magnitudes ``(..., f, t)`` after smoothing, relative to the real
    one (Eq. 2).

    Raises `ShapeError` where the shapes differ or a value is negative or not finite. Match levels
    and align first: a level is no artifact, and one frame of delay is one everywhere.
    """
    config = config or MaskConfig()
    check_map(real, name="real")
    check_map(fake, name="fake")
    check_same_shape(real, fake, names=("real", "fake"))
    for name, value in (("real", real), ("fake", fake)):
        if not is_finite(value) or bool((value < 0).any()):
            raise ShapeError(
                f"{name} must be a linear magnitude: finite and not negative; pass spec.abs()"
            )
    smooth_real, smooth_fake = smooth(real, config), smooth(fake, config)
    if config.domain == "log":
        return ((smooth_fake + config.floor) / (smooth_real + config.floor)).log().abs()
    return (smooth_fake - smooth_real).abs() / (smooth_real + config.floor)


def ground_truth(
    real: Map,
    fake: Map,
    config: MaskConfig | None = None,
    *,
    valid: Mask | None = None,
) -> Mask:
    """Mask of the bins that differ most between two linear magnitudes ``(..., f, t)``.

    ``valid`` restricts the quantile and the mask to some bins, such as the `shared_band` of
    band-limited material, where everything above the band would win otherwise. Ties at the quantile
    count by `top_share`.
    """
    config = config or MaskConfig()
    return top_share(difference(real, fake, config), share=config.share, valid=valid)


def top_share(value: Map, *, share: float = 0.05, valid: Mask | None = None) -> Mask:
    """Mask of the ``share`` of bins with the highest value: exactly ``round(share * bins)`` in
    each item.

    Ties go to the lower index in ``(f, t)`` order, so a constant map still gives the full count.
    With ``valid``, shares count the valid bins, and no other bin is chosen. Raises `ShapeError` on
    NaN.

    >>> top_share(torch.tensor([[[0.0, 3.0], [2.0, 1.0]]]), share=0.5)
    tensor([[[False,  True],
             [ True, False]]])
    """
    check_map(value, name="value")
    if bool(value.isnan().any()):
        raise ShapeError("value holds NaN; a share of the highest bins is not defined there")
    if not 0 <= share <= 1:
        raise ConfigError(f"share must lie in [0, 1], got {share!r}")
    flat = value.reshape(-1, value.shape[-2] * value.shape[-1])
    if valid is not None:
        check_same_shape(value, valid, names=("value", "valid"))
        rows = [
            _top_row(row, keep.reshape(-1), share)
            for row, keep in zip(flat, valid.reshape(flat.shape), strict=True)
        ]
        return torch.stack(rows).reshape(value.shape)
    count = round(share * flat.shape[1])
    return torch.stack([_top_count(row, count) for row in flat]).reshape(value.shape)


def _top_row(row: Tensor, keep: Tensor, share: float) -> Tensor:
    mask = torch.zeros_like(keep)
    inside = keep.nonzero().squeeze(1)
    if len(inside):
        mask[inside] = _top_count(row[inside], round(share * len(inside)))
    return mask


def _top_count(row: Tensor, count: int) -> Tensor:
    if count == 0:
        return torch.zeros(row.shape, dtype=torch.bool, device=row.device)
    threshold = row.topk(count).values[-1]
    mask = row > threshold
    ties = (row == threshold).nonzero().squeeze(1)[: count - int(mask.sum())]
    mask[ties] = True
    return mask


def shared_band(mask_like: Map, *, band_hz: float, hertz_per_bin: float) -> Mask:
    """Mask ``(..., f, t)`` of the bins up to ``band_hz`` (inclusive), the band that both members
    of a pair carry."""
    if not band_hz > 0:
        raise ConfigError(f"band_hz must be positive, got {band_hz!r}")
    inside = torch.arange(mask_like.shape[-2], device=mask_like.device) * hertz_per_bin <= band_hz
    return inside[:, None].expand(mask_like.shape)


def margin_map(value: Map, *, share: float = 0.05, valid: Mask | None = None) -> Map:
    """Log of a non-negative difference ``(f, t)`` over its quantile: at least 0 inside the mask,
    below 0 outside.

    The mask with its confidence: a bin just above the quantile has a margin near 0. Bins that do
    not differ at all are at minus infinity, also where the quantile is 0; those outside ``valid``
    are NaN.
    """
    inside = value[valid] if valid is not None else value.flatten()
    threshold = inside.topk(max(1, round(share * len(inside)))).values[-1]
    tiny = torch.finfo(value.dtype).tiny
    margin = (value.clamp_min(tiny) / threshold.clamp_min(tiny)).log()
    margin = margin.where(value > 0, -torch.inf)
    return margin if valid is None else margin.where(valid, torch.nan)
