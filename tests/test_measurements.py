"""Measurements against signals whose numbers are known."""

import math

import numpy as np
import pytest
import torch
from models import noise
from speech import speech

from specsegdiff.cells import Box, RegionGrid, whole_plane
from specsegdiff.errors import ShapeError
from specsegdiff.frontend import Axes, Stft, StftConfig
from specsegdiff.narration import measurements
from specsegdiff.narration.measurements import (
    MEASUREMENTS,
    change_name,
    click_db,
    contrast_db,
    decibels,
    detail_db,
    flatness_db,
    harmonicity_db,
    irregularity_db,
    kurtosis,
    level_db,
    measure,
    measure_pair,
    modulation_db,
    onset_db,
    place_of,
    repetition,
    step_db,
)

N = 32_000
AXES = Axes(StftConfig(), N)
TIME = np.arange(N) / 16_000
WHITE = noise(N, seed=0)


def power(wave):
    return Stft(StftConfig()).magnitude(torch.as_tensor(wave).float()).double().square().numpy()


def buzz(f0=123.4, f1=8000.0):
    """All harmonics up to ``f1``, equally loud, with phases that make no clicks."""
    count = int(f1 / f0)
    return sum(0.02 * np.cos(2 * np.pi * k * f0 * TIME + k * k) for k in range(1, count))


def gaussian(bins, frames, seed=0):
    """Power of independent bins of complex Gaussian noise: exponential, mean 1."""
    return np.random.default_rng(seed).exponential(size=(bins, frames))


def inner(values):
    """Without the frames that see the silence before and after the recording."""
    return values[:, 4:-4]


# ------------------------------------------------------------------ level and shape


def test_a_full_scale_sine_has_level_zero_at_its_peak():
    bins = inner(power(np.cos(2 * np.pi * 1000 * TIME)))  # bin 64, exactly
    assert level_db(bins[64:65], n_fft=1024) == pytest.approx(0, abs=1e-3)
    assert level_db(bins[64:65] / 4, n_fft=1024) == pytest.approx(-6.02, abs=0.01)
    assert level_db(np.zeros((3, 3)), n_fft=1024) == pytest.approx(-100 - 48.16, abs=0.01)


def test_flatness_of_white_noise_is_eulers_constant():
    # 10 log10 exp(-gamma); 400 bins of 4 correlated neighbours leave a deviation of about 0.02
    expected = -10 * np.euler_gamma / math.log(10)
    assert flatness_db(gaussian(400, 60)) == pytest.approx(expected, abs=0.03)
    assert flatness_db(inner(power(WHITE))[2:-2]) == pytest.approx(expected, abs=0.1)
    assert flatness_db(np.full((9, 4), 0.3)) == pytest.approx(0, abs=1e-12)
    # one bin of k holds everything but the floor: the mean of logs is that of 1 and 1e-10
    one = np.full((4, 2), 1e-10)
    one[1] = 1.0
    assert flatness_db(one) == pytest.approx(-75 + 10 * math.log10(4), abs=0.01)
    assert flatness_db(one[:1]) is None


@pytest.mark.parametrize("f0", [72.0, 123.4, 310.0])
@pytest.mark.parametrize("band", [(0, 128), (128, 256), (384, 513)])
def test_harmonics_stand_above_noise_in_every_band(f0, band):
    tone, hiss = (inner(power(w))[slice(*band)] for w in (buzz(f0), WHITE))
    assert harmonicity_db(tone, AXES) > 12
    assert harmonicity_db(hiss, AXES) < -3


def test_harmonicity_is_the_ratio_of_harmonics_to_noise():
    # of equal power in the band, mixed at known ratios; the window's length blurs what is above
    tone = buzz()
    hiss = WHITE.numpy() * math.sqrt((tone**2).mean() / float(WHITE.square().mean()))
    for ratio in (0, 6, 12):
        mixed = inner(power(tone + 10 ** (-ratio / 20) * hiss))[16:400]
        assert harmonicity_db(mixed, AXES) == pytest.approx(ratio, abs=1.5)
    # a formant is no pitch: noise through a resonance of 120 Hz and 30 dB stays noise
    shape = 1 + 1000 * np.exp(-((np.arange(513) * 15.625 - 1500) ** 2) / (2 * 60**2))[:, None]
    assert harmonicity_db(inner(power(WHITE))[:256] * shape[:256], AXES) < -3
    assert harmonicity_db(np.ones((31, 5)), AXES) is None
    assert harmonicity_db(np.zeros((64, 5)), AXES) == pytest.approx(-30, abs=25)


def test_contrast_is_from_valley_to_peak():
    freqs = np.arange(257)[:, None] * 15.625
    for depth in (0.0, 3.0, 10.0):
        # a ripple of 1 kHz in the level, on a slope of 6 dB a kHz, which is taken out
        ripple = depth * np.cos(2 * np.pi * freqs / 1000)
        value = 10 ** ((ripple - 6 * freqs / 1000) / 10) * np.ones((1, 6))
        found = contrast_db(value, AXES)
        # the quantiles of a sine at 5 and 95 % are 0.988 of its ends; smoothing takes the rest
        assert 0.6 * 2 * depth - 0.5 < found < 0.99 * 2 * depth + 1.0
    assert contrast_db(np.ones((31, 5)), AXES) is None
    # harmonics of a voice are no formants
    assert contrast_db(inner(power(buzz(110.0)))[8:400], AXES) < 3


# ------------------------------------------------------------------ movement


@pytest.mark.parametrize("depth", [0.1, 0.5, 1.0])
def test_modulation_is_the_depth_over_root_two(depth):
    frames = np.arange(100)
    amplitude = 1 + depth * np.cos(2 * np.pi * frames / 25)
    value = amplitude**2 * np.ones((7, 1))
    assert modulation_db(value) == pytest.approx(20 * math.log10(depth / 2**0.5), abs=1e-9)
    assert modulation_db(np.ones((7, 9))) == -60
    assert modulation_db(np.zeros((7, 9))) == -60
    assert modulation_db(value[:, :3]) is None


def test_a_repeated_stretch_is_found_with_its_period():
    piece = gaussian(60, 17)
    again, lag = repetition(np.tile(piece, 5)[:, :80])
    assert (again, lag) == (pytest.approx(1, abs=1e-9), 17)
    # at 12 frames, the least, 6 repeat
    assert repetition(np.tile(piece[:, :6], 2)) == (pytest.approx(1, abs=1e-9), 6)
    assert abs(repetition(gaussian(60, 80))[0]) < 0.1
    assert repetition(gaussian(60, 11)) is None
    assert repetition(np.ones((60, 40))) == (0, 5)
    # neither a colour nor a rhythm is a pattern
    rhythm = 10 ** np.cos(np.arange(80) * 2 * np.pi / 10)
    assert repetition(gaussian(60, 80) * rhythm * np.linspace(1, 9, 60)[:, None])[0] < 0.1


def test_repetition_is_its_slow_replica():
    value = gaussian(9, 40, seed=3) * (1 + np.tile(gaussian(9, 8, seed=4), 5))
    level = decibels(value)
    pattern = level - level.mean(0) - level.mean(1, keepdims=True) + level.mean()
    slow = []
    for lag in range(5, 21):
        first, second = pattern[:, :-lag], pattern[:, lag:]
        slow.append((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))
    assert repetition(value) == (pytest.approx(max(slow), abs=1e-9), 5 + int(np.argmax(slow)))


def test_an_onset_is_as_high_as_its_step():
    value = np.ones((8, 20))
    value[:, 10:] = 10.0
    assert onset_db(value) == pytest.approx(10)
    value[4:, 10:] = 0.1  # falls do not count
    assert onset_db(value) == pytest.approx(5)
    value[:, :10] = 0  # from nothing: the upper 60 dB count
    assert onset_db(value) == pytest.approx((60 + 40) / 2)
    assert onset_db(np.ones((8, 5))) == 0
    assert onset_db(value[:, :4]) is None


def test_steps_of_the_difference_are_found():
    difference = np.zeros((12, 40))
    assert step_db(difference) == 0
    difference[:, 20:] = np.where(np.arange(12) % 2, 6.0, -6.0)[:, None]
    assert step_db(difference) == pytest.approx(6)
    assert step_db(difference[:, :15]) is None
    # what differs all along is no splice
    assert step_db(np.full((12, 40), 9.0)) == pytest.approx(0, abs=1e-12)


def test_a_hard_cut_clicks_and_noise_does_not():
    sine = np.sin(2 * np.pi * 150 * TIME)
    cut = np.concatenate([sine[:10_000], sine[10_060:]])
    # its peak is root 2 over its level, of 3 periods without a third of one
    assert click_db(sine, sample_rate=16_000) == pytest.approx(3.01, abs=0.5)
    assert click_db(cut, sample_rate=16_000) > 25
    # the largest of 32,000 Gaussian values is 4 to 5 deviations: 12 to 14 dB
    assert 11 < click_db(WHITE.double().numpy(), sample_rate=16_000) < 16
    assert click_db(np.zeros(1000), sample_rate=16_000) == -60
    assert click_db(cut[:319], sample_rate=16_000) is None


# ------------------------------------------------------------------ grain


def test_detail_is_lost_when_a_picture_is_smoothed():
    from scipy.ndimage import gaussian_filter

    value = gaussian(100, 60)
    # of independent bins 5.57 dB, less what the kernel keeps of the middle one
    assert 4.8 < detail_db(value) < 5.57
    smoothed = gaussian_filter(value, 1.5)
    assert detail_db(smoothed) < 0.4 * detail_db(value)
    assert detail_db(np.ones((9, 9))) == pytest.approx(0, abs=1e-9)
    assert detail_db(value[:2]) is None


def test_irregularity_is_the_height_of_false_lines():
    level = np.zeros((170, 6))
    assert irregularity_db(10 ** (level / 10)) == pytest.approx(0, abs=1e-9)
    level[::17] = 17.0  # each moving mean holds one line and is 1
    expected = math.sqrt((16**2 + 16 * 1**2) / 17)
    assert irregularity_db(10 ** (level / 10)) == pytest.approx(expected, rel=0.02)
    # a slope is none, but for its ends
    slope = np.linspace(0, 30, 170)[:, None] * np.ones((1, 6))
    assert irregularity_db(10 ** (slope / 10)) < 0.3
    assert irregularity_db(level[:16]) is None


def test_kurtosis_tells_tones_noise_and_bursts():
    assert kurtosis(np.full((5, 30), 7.0)) == pytest.approx(-1)
    assert kurtosis(gaussian(300, 300)) == pytest.approx(0, abs=0.1)
    burst = np.full((5, 30), 1e-9)
    burst[:, 7] = 1.0
    assert kurtosis(burst) == pytest.approx(30 - 2, abs=1e-3)
    assert kurtosis(burst[:, :7]) is None


# ------------------------------------------------------------------ boxes


def test_a_box_is_the_bins_of_its_cell():
    for scale in ("linear", "mel"):
        axes = Axes(StftConfig(), 50_001)
        grid = RegionGrid(axes, 4, 5, scale)
        for place, id in enumerate(grid.ids):
            bins, frames = place_of(axes, grid.box(id))
            inside = torch.zeros(axes.shape, dtype=torch.bool)
            inside[bins, frames] = True
            assert torch.equal(inside, grid.labels == place)
    with pytest.raises(ShapeError, match="no bin"):
        place_of(AXES, Box(5.0, 6.0, 0.0, 1000.0))


def test_every_number_has_a_name_and_a_unit():
    found = measure(speech(n_samples=N), AXES, whole_plane(AXES))
    assert set(found) < set(MEASUREMENTS)
    assert all(math.isfinite(value) for value in found.values())
    tiny = measure(noise(1024), Axes(StftConfig(), 1024), Box(0.0, 0.016, 0.0, 100.0))
    assert set(tiny) == {"level_db", "flatness_db"}
    pair = measure_pair(WHITE, speech(n_samples=N), AXES, whole_plane(AXES))
    known = set(MEASUREMENTS) | {change_name(name) for name in MEASUREMENTS}
    assert set(pair) < known
    assert {"difference_db", "gain_db", "step_db", "detail_change_db"} < set(pair)


def test_a_pair_of_equals_has_no_change():
    wave = speech(n_samples=N)
    found = measure_pair(wave, wave, AXES, whole_plane(AXES))
    changes = {name: value for name, value in found.items() if "change" in name}
    assert len(changes) == 11
    assert set(changes.values()) == {0.0}
    assert found["difference_db"] == found["step_db"] == 0
    half = measure_pair(wave / 2, wave, AXES, Box(0.0, 0.5, 0.0, 1000.0))
    assert half["gain_db"] == pytest.approx(-6.02, abs=0.05)
    assert half["level_change_db"] == pytest.approx(-6.02, abs=0.01)


def test_silence_has_numbers_too():
    found = measure(torch.zeros(N), AXES, whole_plane(AXES))
    assert all(math.isfinite(value) for value in found.values())


def test_blocks_are_combined_and_a_file_gives_the_same_bits(monkeypatch):
    wave, box = speech(n_samples=N), whole_plane(AXES)
    whole = measure(wave, AXES, box)
    monkeypatch.setattr(measurements, "BLOCK_FRAMES", 63)
    halves = [measure(wave, AXES, Box(t, t + 1.008, 0, 8000)) for t in (0.0, 1.008)]
    both = measure(wave, AXES, box)
    assert both["onset_db"] == max(half["onset_db"] for half in halves)
    best = max(halves, key=lambda half: half["repetition"])
    assert (both["repetition"], both["repetition_s"]) == (
        best["repetition"],
        best["repetition_s"],
    )
    mean = (halves[0]["detail_db"] + halves[1]["detail_db"]) / 2
    assert both["detail_db"] == pytest.approx(mean, abs=1e-9)
    # of means over frames, blocks move nothing
    assert both["flatness_db"] == pytest.approx(whole["flatness_db"], abs=1e-6)


def test_another_length_is_refused():
    with pytest.raises(ShapeError, match="32000 samples"):
        measure(torch.zeros(N - 1), AXES, whole_plane(AXES))
    with pytest.raises(ShapeError, match="32000 samples"):
        measure_pair(torch.zeros(N), torch.zeros(N + 1), AXES, whole_plane(AXES))
