"""Two recordings on one time axis: by one shift, or frame by frame where their silences differ."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.data.mel import log_mel
from specsegdiff.errors import ConfigError, PairError, ShapeError
from specsegdiff.frontend import log_magnitude
from specsegdiff.masks import MaskConfig, difference, shared_band
from specsegdiff.shapes import Map, Mask, check_map, check_wave, is_finite

_QUANTUM = 2.0**-30
"""Cosine distances are whole multiples of it: their sums in float64 are then exact up to 2 million
frames, so equal costs are equal, and rounding never moves a path off the diagonal."""

_BLOCK = 64
"Real frames whose distances are computed at once."

_STEPS = ((1, 1), (0, 1), (1, 0))
"""Steps ``(real, fake)`` of a path, the preferred one first where costs are equal."""


def align(real: Tensor, fake: Tensor, *, max_lag: int = 1024) -> tuple[Tensor, int]:
    """Return the fake shifted onto the real recording and cut to its length, and the lag removed.

    ``real (n,)`` and ``fake (m,)`` give ``(n,)`` and an integer in ``[-max_lag, max_lag]``; a
    positive lag means the fake came late. Where the waveforms match (normalised correlation of at
    least 0.5) the lag is their best shift, otherwise, since many vocoders keep no phase, the best
    shift of the log-mel spectrograms, which is good to a few samples.
    """
    check_wave(real)
    check_wave(fake)
    if real.ndim != 1 or fake.ndim != 1:
        raise PairError(
            f"align takes two waveforms (n,), got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    if max_lag < 0:
        raise ConfigError(f"max_lag must be >= 0, got {max_lag}")
    score = _cross_correlation(real[None], fake[None], max_lag=max_lag)
    lag = int(score.argmax()) - max_lag
    if float(score.max()) < 0.5:
        hop, reach = 16, -(-max_lag // 16)
        first, second = (log_mel(w, n_mels=40, n_fft=512, hop=hop) for w in (real, fake))
        score = _cross_correlation(first, second, max_lag=reach)
        peak = int(score.argmax())
        around = score[max(peak - 1, 0) : peak + 2].tolist()
        shift = float(peak)
        if len(around) == 3 and 2 * around[1] > around[0] + around[2]:
            # A parabola through three points finds the peak between frames.
            shift += (around[2] - around[0]) / (4 * around[1] - 2 * around[0] - 2 * around[2])
        lag = max(-max_lag, min(max_lag, round((shift - reach) * hop)))
    shifted = fake[lag:] if lag >= 0 else torch.nn.functional.pad(fake, (-lag, 0))
    missing = real.shape[-1] - shifted.shape[-1]
    return torch.nn.functional.pad(shifted, (0, missing)), lag


def dtw_path(
    real: Map,
    fake: Map,
    *,
    domain: Literal["linear", "log"] = "linear",
    band: int | None = None,
) -> Int[Tensor, "p 2"]:
    """Cheapest monotone path through two magnitudes ``(f, t1)`` and ``(f, t2)``.

    Its rows are the frames ``(real, fake)`` that belong together, from the first of both to the
    last of both by steps of (1, 1), (0, 1) and (1, 0), all of weight one. The cost is the cosine
    distance of two frames, which no level changes, on linear or floored logarithmic magnitudes; an
    all-zero frame is at distance 0 from another one and 1 from the rest. ``band`` (Sakoe & Chiba,
    1978) keeps frames at most that far apart, which bounds time and memory (one byte a cell) to
    ``2 * band + 1`` cells a frame. Raises `ShapeError` on other shapes or values, `ConfigError` on
    a band that is shorter than ``|t1 - t2|``.

    >>> ramp = torch.eye(4)[:, :3]
    >>> dtw_path(ramp, ramp[:, [0, 1, 1, 2]]).tolist()
    [[0, 0], [1, 1], [1, 2], [2, 3]]
    """
    _check(real, fake, domain=domain, band=band)
    return torch.from_numpy(_path(_unit_frames(real, domain), _unit_frames(fake, domain), band))


def aligned_difference(
    real: Map,
    fake: Map,
    masks: MaskConfig,
    *,
    align: Literal["none", "dtw"],
    band_hz: float | None,
    hertz_per_bin: float,
) -> tuple[Map, Mask | None]:
    """`difference` of two magnitudes ``(f, t)`` on the fake's frames, after `dtw_align` where
    ``align`` is 'dtw', and the bins up to ``band_hz``, which count; None where all do."""
    if align == "dtw":
        real = dtw_align(real, fake)
    valid = None
    if band_hz is not None:
        valid = shared_band(fake, band_hz=band_hz, hertz_per_bin=hertz_per_bin)
    return difference(real, fake, masks), valid


def dtw_align(
    real: Map,
    fake: Map,
    *,
    domain: Literal["linear", "log"] = "linear",
    band: int | None = None,
) -> Map:
    """Warp the real magnitude ``(f, t1)`` onto the fake's frames: ``(f, t2)``, whole frames of it.

    The mask lives on the fake's axes, hence this direction. Of the real frames on one fake frame
    the nearest is taken, not their mean, so that a silence that the fake lacks leaves no trace.
    Arguments and errors are those of `dtw_path`. The paper (arXiv 2506.03425) says only that
    LibriSeVoc is aligned by DTW; the cosine and the steps are those of the public
    re-implementation, which repeats frames of both members instead.
    """
    _check(real, fake, domain=domain, band=band)
    first, second = _unit_frames(real, domain), _unit_frames(fake, domain)
    path = _path(first, second, band)
    cost = _quantised(np.einsum("pf,pf->p", first[path[:, 0]], second[path[:, 1]]))
    # by fake frame, then cost, then time; the first of each fake frame is its nearest real one
    order = np.lexsort((path[:, 0], cost, path[:, 1]))
    _, nearest = np.unique(path[order, 1], return_index=True)
    index = torch.from_numpy(path[order[nearest], 0])
    return real[:, index.to(real.device)]


def _cross_correlation(real: Tensor, fake: Tensor, *, max_lag: int) -> Tensor:
    """Normalised correlation of rows ``(c, n)`` and ``(c, m)`` at lags ``-max_lag..max_lag``."""
    first, second = (rows.double() - rows.double().mean(-1, keepdim=True) for rows in (real, fake))
    size = real.shape[-1] + fake.shape[-1] + max_lag
    product = torch.fft.rfft(second, size) * torch.fft.rfft(first, size).conj()
    full = torch.fft.irfft(product.sum(0), size)
    scale = (first.norm() * second.norm()).clamp_min(1e-12)
    return torch.cat((full[full.shape[-1] - max_lag :], full[: max_lag + 1])) / scale


def _check(real: Tensor, fake: Tensor, *, domain: str, band: int | None) -> None:
    for name, value in (("real", real), ("fake", fake)):
        check_map(value, name=name)
        if value.ndim != 2 or not is_finite(value) or bool((value < 0).any()):
            raise ShapeError(
                f"expected {name} as one finite magnitude (f, t) without negative values, got "
                f"shape {tuple(value.shape)}, least value {float(value.min())}; align item by "
                "item, before taking logarithms"
            )
    if real.shape[0] != fake.shape[0]:
        raise ShapeError(
            f"real has {real.shape[0]} bins and fake {fake.shape[0]}; "
            "compute both with one StftConfig"
        )
    if domain not in ("linear", "log"):
        raise ConfigError(f"domain must be 'linear' or 'log', got {domain!r}")
    apart = abs(real.shape[1] - fake.shape[1])
    if band is not None and band < apart:
        raise ConfigError(
            f"band is {band} frames, but the recordings differ by {apart}; "
            "pass at least that, or None"
        )


def _unit_frames(magnitude: Tensor, domain: str) -> NDArray[np.float64]:
    """Frames as rows of length one; a further column holds the all-zero ones."""
    if domain == "log":
        magnitude = log_magnitude(magnitude) - log_magnitude(torch.zeros_like(magnitude[:1, :1]))
    frames = magnitude.detach().cpu().double().numpy().T
    # by the peak first: squares of tiny magnitudes vanish
    peak = frames.max(axis=1, keepdims=True)
    frames = np.concatenate([frames / np.where(peak > 0, peak, 1), peak == 0], axis=1)
    return frames / np.linalg.norm(frames, axis=1, keepdims=True)


def _quantised(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.rint((1 - cosine) / _QUANTUM)


def _path(
    real: NDArray[np.float64], fake: NDArray[np.float64], band: int | None
) -> NDArray[np.int64]:
    """Fill the table row by row, one row a real frame; a row is one cumulative minimum.

    With ``e[j] = min(D[i - 1, j - 1], D[i - 1, j])`` and the running sum ``S`` of the row's costs,
    ``D[i, j] = cost[j] + min(e[j], D[i, j - 1])`` is ``S[j]`` plus the least ``e[m] - S[m - 1]`` of
    all ``m <= j``.
    """
    rows, columns = len(real), len(fake)
    reach = max(rows, columns) if band is None else band
    last = np.full(columns + 1, np.inf)  # D of the row above at j + 1; infinite outside its band
    last[0] = 0.0
    choices: list[NDArray[np.uint8]] = []
    for i in range(rows):
        low, high = max(0, i - reach), min(columns, i + reach + 1)
        if i % _BLOCK == 0:
            offset, end = low, min(columns, i + _BLOCK + reach)
            block = _quantised(real[i : i + _BLOCK] @ fake[offset:end].T)
        cost = block[i % _BLOCK, low - offset : high - offset]
        total = np.cumsum(cost)
        diagonal, above = last[low:high], last[low + 1 : high + 1]
        entered = np.minimum(diagonal, above) - (total - cost)
        row = total + np.minimum.accumulate(entered)
        before = np.concatenate([[np.inf], row[:-1]])
        # in the order of _STEPS; argmin takes the first of equals
        choices.append(np.stack([diagonal, before, above]).argmin(axis=0).astype(np.uint8))
        last[low] = np.inf
        last[low + 1 : high + 1] = row
    i, j = rows - 1, columns - 1
    path = [(i, j)]
    while i or j:
        step = _STEPS[choices[i][j - max(0, i - reach)]]
        i, j = i - step[0], j - step[1]
        path.append((i, j))
    return np.array(path[::-1], dtype=np.int64)
