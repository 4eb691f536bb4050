"""What can be measured in a region of a recording: named numbers, each with its unit.

Most are functions of a power spectrogram ``(f, t)``: the bins and frames whose centres lie in the
region's box. `MEASUREMENTS` says what each name means; the unit ends the name. Decibels are of
power, and magnitudes are floored at 1e-5, as in `specsegdiff.frontend.log_magnitude`. A number that
a region is too small for is None, and left out by `measure`: it is never guessed.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.cells import Box
from specsegdiff.errors import ShapeError
from specsegdiff.frontend import Axes, Stft
from specsegdiff.masks import MaskConfig
from specsegdiff.storage import BLOCK_FRAMES, MapStore, spectrum_window

Array: TypeAlias = NDArray[np.float64]

MEASUREMENTS = {
    "level_db": "mean power of a bin, relative to the peak bin of a full-scale sine",
    "flatness_db": "spectral flatness: -2.5 for white noise, far below for a tone",
    "harmonicity_db": "periodic over other power at the best pitch from 60 to 400 Hz: 10 and more "
    "for a steady voice, below 0 for noise",
    "contrast_db": "from the valleys to the peaks of the spectral envelope, tilt removed",
    "modulation_db": "depth of the level's movement in time: -3 for a full sine, more for bursts",
    "repetition": "highest correlation of the pattern with itself 5 or more frames later, -1 to 1",
    "repetition_s": "how much later that is, in seconds",
    "onset_db": "steepest rise within 4 frames, mean over the bins",
    "irregularity_db": "deviation of the mean spectrum from its own moving mean over 17 bins",
    "detail_db": "deviation of the bins from their own smoothed surroundings: the grain",
    "kurtosis": "burstiness of the bins: 0 for Gaussian noise, -1 for a steady tone, large for "
    "a few bursts",
    "click_db": "largest second difference of the samples over its level 10 ms around, whole band",
    "difference_db": "mean distance to the genuine twin, bin by bin",
    "gain_db": "level over that of the genuine twin, mean over the bins",
    "step_db": "largest step in time of the distance to the genuine twin",
}
"""What each number means. `measure_pair` adds changes, such as ``harmonicity_change_db``: the
recording's number less that of its genuine twin."""

FLOOR = 1e-5
"Least magnitude."

PITCH_HZ = (60.0, 400.0)
"Pitches that a voice is looked for at."

RANGE_DB = 60.0
"How far below a region's peak its bins count as empty, where rises and shapes are measured."

_PEAKS = {"repetition": "repetition_s", "onset_db": "", "click_db": "", "step_db": ""}
"Numbers whose largest block counts, with the number that goes with them; of others, the mean does."


def measure(wave: Tensor | MapStore, axes: Axes, box: Box) -> dict[str, float]:
    """Measure what lies in a box of a recording ``(n,)``: numbers by name, see `MEASUREMENTS`.

    A box of more than 2048 frames is measured in blocks of them, in memory that does not grow with
    the recording: of peaks the highest block counts, of all else the mean, weighted by frames.
    Raises `ShapeError` where the waveform has another length than ``axes`` say, or no bin lies in
    the box.

    >>> import torch
    >>> from specsegdiff.cells import whole_plane
    >>> from specsegdiff.frontend import StftConfig
    >>> noise = torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    >>> axes = Axes(StftConfig(), 32_000)
    >>> round(measure(noise, axes, whole_plane(axes))["flatness_db"], 1)
    -2.5
    """
    store = _waveform(wave, axes)
    blocks = [
        (power.shape[1], _measure_block(power, samples, axes))
        for _, power, samples in _blocks(store, axes, box)
    ]
    return _combined(blocks)


def measure_pair(
    wave: Tensor | MapStore, genuine: Tensor | MapStore, axes: Axes, box: Box
) -> dict[str, float]:
    """Measure a box of a recording ``(n,)`` beside its genuine twin ``(n,)``, level and time
    matched.

    The numbers of `measure`, their changes, and those of the difference. Both are scaled to the
    genuine recording's level by whoever reads the pair (`specsegdiff.data.pairs.load_pair`).
    """
    own, other = measure(wave, axes, box), measure(genuine, axes, box)
    changes = {
        change_name(name): own[name] - other[name]
        for name in own
        if name in other and name != "repetition_s"
    }
    first, second = _waveform(wave, axes), _waveform(genuine, axes)
    blocks = []
    for (_, power, _), (_, reference, _) in zip(
        _blocks(first, axes, box), _blocks(second, axes, box), strict=True
    ):
        distance = decibels(power) - decibels(reference)
        found = {
            "difference_db": float(np.abs(distance).mean()),
            "gain_db": float(distance.mean()),
            "step_db": step_db(distance),
        }
        blocks.append((power.shape[1], _known(found)))
    return own | changes | _combined(blocks)


def change_name(name: str) -> str:
    """Name of the change of a measurement.

    >>> change_name("detail_db"), change_name("repetition")
    ('detail_change_db', 'repetition_change')
    """
    return f"{name[:-3]}_change_db" if name.endswith("_db") else f"{name}_change"


def place_of(axes: Axes, box: Box) -> tuple[slice, slice]:
    """Bins and frames whose centres lie in a box; the upper edge and the end belong to the next
    box, but for the last ones.

    Raises `ShapeError` where there are none.
    """
    bins = _inside(axes.shape[0], axes.hertz_per_bin, box.f0, box.f1, axes.config.sample_rate / 2)
    frames = _inside(axes.shape[1], axes.seconds_per_frame, box.t0, box.t1, axes.duration)
    if bins.start >= bins.stop or frames.start >= frames.stop:
        raise ShapeError(f"no bin lies in {box} of a recording of {axes.duration:.2f} s")
    return bins, frames


# ------------------------------------------------------------------ numbers


def decibels(power: Array) -> Array:
    """Power in dB, floored at that of `FLOOR`."""
    return 10 * np.log10(np.maximum(power, FLOOR**2))


def level_db(power: Array, *, n_fft: int) -> float:
    """Mean power ``(f, t)`` in dB; 0 is the peak bin of a sine of amplitude 1 under a Hann window.

    >>> level_db(np.full((3, 4), 256.0**2), n_fft=1024)
    0.0
    """
    full_scale = (n_fft / 4) ** 2
    return float(10 * np.log10(max(power.mean(), FLOOR**2) / full_scale))


def flatness_db(power: Array) -> float | None:
    """Geometric over arithmetic mean along frequency (Johnston 1988), in dB, mean over the frames.

    For white noise, power is exponential, and the expectation ``10 log10 exp(-gamma) = -2.51``,
    gamma being Euler's constant. Needs 2 bins.
    """
    if power.shape[0] < 2:
        return None
    floored = np.maximum(power, FLOOR**2)
    ratio = np.log(floored).mean(0) - np.log(floored.mean(0))
    return float(10 / np.log(10) * ratio.mean())


def harmonicity_db(power: Array, axes: Axes) -> float | None:
    """Harmonics-to-noise ratio of a band: ``10 log10 r / (1 - r)``, -30 to 30 dB.

    ``r`` is the highest autocorrelation at the lags of `PITCH_HZ`, over that of the window (Boersma
    1993); frames count by their power. Departures, since it is a band's: the envelope of the
    autocorrelation is taken, so that a carrier of some kHz needs no lag between samples, and the
    spectrum is divided by itself smoothed over 200 Hz, so that a formant is no pitch. Needs 500 Hz.
    """
    if power.shape[0] * axes.hertz_per_bin < 500:
        return None
    from scipy.ndimage import gaussian_filter1d

    n, rate = axes.config.n_fft, axes.config.sample_rate
    floored = np.maximum(power, FLOOR**2)
    flat = floored / gaussian_filter1d(floored, 200 / axes.hertz_per_bin, axis=0, mode="nearest")
    lags = np.arange(int(np.ceil(rate / PITCH_HZ[1])), int(rate / PITCH_HZ[0]) + 1)
    correlation = np.abs(np.fft.fft(flat, n, axis=0))[lags] / flat.sum(0)
    r = (correlation / window_correlation(n)[lags][:, None]).max(0)
    r = float(np.clip((r * floored.sum(0)).sum() / floored.sum(), 1e-3, 1 - 1e-3))
    return float(10 * np.log10(r / (1 - r)))


def contrast_db(power: Array, axes: Axes) -> float | None:
    """From the 5 % to the 95 % quantile of the spectral envelope in dB, its straight line removed.

    The envelope is the power smoothed by a Gaussian of 125 Hz: formants pass, the harmonics of most
    voices do not. Mean over the frames, which count by their power. Needs 500 Hz.
    """
    if power.shape[0] * axes.hertz_per_bin < 500:
        return None
    from scipy.ndimage import gaussian_filter1d

    smoothed = gaussian_filter1d(power, 125 / axes.hertz_per_bin, axis=0, mode="nearest")
    envelope = decibels(smoothed)
    ramp = np.linspace(-1, 1, len(envelope))[:, None]
    level = envelope - envelope.mean(0) - ramp * (ramp * envelope).sum(0) / (ramp**2).sum()
    low, high = np.quantile(level, (0.05, 0.95), axis=0)
    weight = power.sum(0) + FLOOR**2
    return float(((high - low) * weight).sum() / weight.sum())


def modulation_db(power: Array) -> float | None:
    """Standard deviation over mean of the amplitude along time, in dB, at least -60.

    The amplitude of a frame is the root of its mean power; modulated by a sine of depth m, it gives
    ``20 log10(m / sqrt 2)``. Needs 4 frames.
    """
    if power.shape[1] < 4:
        return None
    amplitude = np.sqrt(power.mean(0))
    depth = amplitude.std() / max(amplitude.mean(), FLOOR)
    return float(20 * np.log10(max(depth, 1e-3)))


def repetition(power: Array) -> tuple[float, int] | None:
    """Highest correlation of the pattern with itself at a later time, and the lag in frames.

    The pattern is the level in dB less its mean in every bin and in every frame, so that neither
    colour nor rhythm counts. Lags go from 5 frames, where windows no longer overlap, to half of the
    region, at most 125. Needs 12 frames and 4 bins; 0 where there is no pattern.
    """
    bins, frames = power.shape
    if frames < 12 or bins < 4:
        return None
    level = _ranged(power)
    pattern = level - level.mean(0) - level.mean(1, keepdims=True) + level.mean()
    lags = np.arange(5, min(frames // 2, 125) + 1)
    spectrum = np.fft.rfft(pattern, 2 * frames, axis=1)
    product = np.fft.irfft((np.abs(spectrum) ** 2).sum(0))[lags]
    energy = np.concatenate([[0.0], np.cumsum((pattern**2).sum(0))])
    before, after = energy[frames - lags], energy[-1] - energy[lags]
    # below a hundredth of a dB a pattern is rounding
    limit = 1e-4 * bins * (frames - lags)
    heard = (before > limit) & (after > limit)
    norm = np.sqrt(np.where(heard, before * after, 1.0))
    correlation = np.where(heard, product / norm, 0.0)
    best = int(correlation.argmax())
    return float(np.clip(correlation[best], -1, 1)), int(lags[best])


def onset_db(power: Array) -> float | None:
    """Steepest rise in 4 frames, one window at the default axes: mean over the bins of what rises.

    Counted within the upper 60 dB of the region. Needs 5 frames.
    """
    if power.shape[1] < 5:
        return None
    level = _ranged(power)
    return float(np.maximum(level[:, 4:] - level[:, :-4], 0).mean(0).max())


def irregularity_db(power: Array) -> float | None:
    """Root mean square of the time-averaged level in dB less its moving mean over 17 bins.

    After Krimphoff (1994), with 17 bins for 3: under a Hann window neighbours are no more than one
    line. Counted within the upper 60 dB of the region. Needs 17 bins.
    """
    if power.shape[0] < 17:
        return None
    from scipy.ndimage import uniform_filter1d

    mean = _ranged(power).mean(1)
    return float(np.sqrt(np.square(mean - uniform_filter1d(mean, 17, mode="nearest")).mean()))


def detail_db(power: Array) -> float | None:
    """Root mean square of the level in dB less its own smoothing by the ground truth's kernel.

    For white noise about 5 dB, less than the 5.57 dB by which levels of exponential power vary,
    since neighbours share samples; 0 for an ideally smooth picture. Needs 3 frames and 3 bins.
    """
    if min(power.shape) < 3:
        return None
    from scipy.ndimage import gaussian_filter1d

    recipe, level = MaskConfig(), _ranged(power)
    smoothed = level
    for axis, size, variance in (
        (0, recipe.bins, recipe.freq_spread),
        (1, recipe.frames, recipe.time_spread),
    ):
        sigma = variance**0.5
        smoothed = gaussian_filter1d(
            smoothed, sigma, axis=axis, mode="nearest", truncate=size // 2 / sigma
        )
    return float(np.sqrt(np.square(level - smoothed).mean()))


def kurtosis(power: Array) -> float | None:
    """Spectral kurtosis (Antoni 2006): ``E|X|^4 / (E|X|^2)^2 - 2`` along time, mean over the bins.

    Needs 8 frames.
    """
    if power.shape[1] < 8:
        return None
    floored = np.maximum(power, FLOOR**2)
    # powers of magnitudes leave the range of floats sooner than their ratio to the mean
    ratio = floored / floored.mean(1, keepdims=True)
    return float(np.square(ratio).mean() - 2)


def click_db(samples: Array, *, sample_rate: int) -> float | None:
    """Largest second difference of samples ``(n,)`` over its root mean square from 1 to 10 ms away.

    A cut without a crossfade leaves one; so do plosives. Levels below one step of 16 bits do not
    count. Needs 20 ms.
    """
    if len(samples) < sample_rate // 50:
        return None
    from scipy.ndimage import uniform_filter1d

    bend = np.diff(samples, 2)
    # running means, which are 0 beyond the ends: in the ratio to that of ones this cancels
    ring = np.stack([bend**2, np.ones_like(bend)])
    wide, narrow = (2 * (sample_rate // per) + 1 for per in (100, 1000))
    total, count = wide * uniform_filter1d(ring, wide, mode="constant") - narrow * (
        uniform_filter1d(ring, narrow, mode="constant")
    )
    # running sums are off by the last bits of the largest value
    level = np.sqrt(np.maximum(total, 0) / count)
    return float(20 * np.log10(max((np.abs(bend) / np.maximum(level, 2**-15)).max(), 1e-3)))


def step_db(difference: Array) -> float | None:
    """Largest step of the mean absolute difference ``(f, t)`` in dB between 6 frames and 6 later
    ones, 4 apart.

    Where a part of a genuine recording was replaced, the difference begins. Needs 16 frames.
    """
    distance = np.abs(difference).mean(0)
    if len(distance) < 16:
        return None
    mean = np.convolve(distance, np.full(6, 1 / 6), mode="valid")
    return float(np.abs(mean[10:] - mean[:-10]).max())


# ------------------------------------------------------------------ blocks


def _measure_block(power: Array, samples: Array, axes: Axes) -> dict[str, float]:
    again = repetition(power)
    found = {
        "level_db": level_db(power, n_fft=axes.config.n_fft),
        "flatness_db": flatness_db(power),
        "harmonicity_db": harmonicity_db(power, axes),
        "contrast_db": contrast_db(power, axes),
        "modulation_db": modulation_db(power),
        "repetition": again[0] if again else None,
        "repetition_s": again[1] * axes.seconds_per_frame if again else None,
        "onset_db": onset_db(power),
        "irregularity_db": irregularity_db(power),
        "detail_db": detail_db(power),
        "kurtosis": kurtosis(power),
        "click_db": click_db(samples, sample_rate=axes.config.sample_rate),
    }
    return _known(found)


def _known(found: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value is not None}


def _combined(blocks: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Numbers of a region from those of its blocks, with their frames."""
    result: dict[str, float] = {}
    for name in blocks[0][1]:
        known = [(frames, found) for frames, found in blocks if name in found]
        if name in _PEAKS:
            best = max((found for _, found in known), key=lambda found: found[name])
            result[name] = best[name]
            if partner := _PEAKS[name]:
                result[partner] = best[partner]
        elif name not in _PEAKS.values():
            frames = sum(count for count, _ in known)
            result[name] = sum(count * found[name] for count, found in known) / frames
    return result


def _blocks(wave: MapStore, axes: Axes, box: Box) -> Iterator[tuple[int, Array, Array]]:
    """First frame, power ``(f, t)`` and samples of a box, at most `BLOCK_FRAMES` frames each."""
    bins, frames = place_of(axes, box)
    stft, hop = Stft(axes.config), axes.config.hop
    for start in range(frames.start, frames.stop, BLOCK_FRAMES):
        stop = min(start + BLOCK_FRAMES, frames.stop)
        spec = spectrum_window(wave, stft, start, stop)[bins]
        power = spec.abs().double().square().numpy()
        # a frame stands for the samples around its centre
        first, last = max(0, start * hop - hop // 2), min(axes.n_samples, stop * hop - hop // 2)
        yield start, power, wave.window(first, last)[0].double().numpy()


def _inside(count: int, step: float, low: float, high: float, end: float) -> slice:
    # a millionth of a step, since the edges of cells are rounded
    places = np.arange(count) * step + 1e-6 * step
    first = int(np.searchsorted(places, low))
    last = count if high >= end - 1e-6 * step else int(np.searchsorted(places, high))
    return slice(first, last)


def _ranged(power: Array) -> Array:
    level = decibels(power)
    return np.maximum(level, level.max() - RANGE_DB)


def window_correlation(n: int) -> Array:
    """Autocorrelation of a Hann window of ``n`` samples at all lags, 1 at lag 0."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * n)) ** 2)[:n]
    return correlation / correlation[0]


def _waveform(wave: Tensor | MapStore, axes: Axes) -> MapStore:
    store = MapStore.of(wave)
    if store.shape != (1, axes.n_samples):
        raise ShapeError(
            f"expected a waveform of {axes.n_samples} samples on these axes, got {store.shape}"
        )
    return store
