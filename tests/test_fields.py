"""T, F and P of a region, from phones and from sounds whose kind is known."""

import numpy as np
import pytest
import torch
from models import noise

from specsegdiff.cells import Box, RegionGrid, whole_plane
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.narration import fields
from specsegdiff.narration.fields import (
    Frames,
    fields_from_phones,
    fields_from_sound,
    frames_of,
    frequency_of,
)
from specsegdiff.narration.phones import PhoneInterval

N = 32_000
AXES = Axes(StftConfig(), N)
FIRST = Box(0.0, 0.5, 0.0, 2000.0)


def vowel(n, f0=118.0):
    """A voice through formants at 500, 1500 and 2500 Hz."""
    t = np.arange(n) / 16_000
    wave = np.zeros(n)
    for k in range(1, int(4000 / f0)):
        near = sum(1 / (1 + ((k * f0 - f) / 100) ** 2) for f in (500, 1500, 2500))
        wave += near * np.cos(2 * np.pi * k * f0 * t + k * k)
    return torch.from_numpy(0.1 * wave).float()


def fricative(n):
    """Noise that rises with frequency."""
    return torch.diff(noise(n + 1, scale=0.05, seed=1))


def utterance():
    """Half a second each of silence, a vowel, a fricative, and silence, with a noise floor."""
    parts = [torch.zeros(8000), vowel(8000), fricative(8000), torch.zeros(8000)]
    return torch.cat(parts) + noise(N, scale=1e-4)


# ------------------------------------------------------------------ by sound


def test_known_sounds_have_known_fields():
    frames, grid = frames_of(utterance(), AXES), RegionGrid(AXES)
    # a column begins or ends within half a window of the next sound
    inner = [Box(t + 0.1, t + 0.4, 0.0, 2000.0) for t in (0.0, 0.5, 1.0, 1.5)]
    found = [fields_from_sound(box, frames) for box in inner]
    assert [f.time for f in found] == ["non-speech", "speech", "speech", "non-speech"]
    assert [f.phone for f in found] == ["unvoiced", "vowel", "consonant", "unvoiced"]
    assert all(f.uncertain == () for f in found)
    assert found[1].numbers["speech_s"] == pytest.approx(0.3, abs=0.02)
    assert found[0].numbers == {"speech_s": 0.0, "phone_s": 0.0}
    # T and P are a matter of time: all rows of a column agree
    for column in range(4):
        cells = [fields_from_sound(grid.box(str(column + 1 + 4 * row)), frames) for row in range(4)]
        assert len({(cell.time, cell.phone, cell.uncertain) for cell in cells}) == 1
        assert [cell.frequency for cell in cells] == ["high", "mid", "mid", "low"]


@pytest.mark.parametrize("gain", [0.01, 1.0, 30.0])
def test_a_level_changes_no_field(gain):
    expected = frames_of(utterance(), AXES)
    frames = frames_of(gain * utterance(), AXES)
    for t in np.arange(0.0, 1.9, 0.1):
        box = Box(t, t + 0.1, 0.0, 2000.0)
        assert fields_from_sound(box, frames) == fields_from_sound(box, expected)


def test_voices_correlate_and_noise_does_not():
    for f0 in (75.0, 118.0, 240.0, 390.0):
        voicing = frames_of(vowel(N, f0), AXES).voicing[4:-4]
        assert voicing.min() > 0.8
    hiss = frames_of(noise(N), AXES).voicing[4:-4]
    assert np.quantile(hiss, 0.99) < fields.VOICED
    # hum is no voice: it lies below 100 Hz
    hum = 0.1 * torch.sin(2 * torch.pi * 50 * torch.arange(N) / 16_000)
    assert np.quantile(frames_of(hum + noise(N, scale=0.01), AXES).voicing[4:-4], 0.99) < 0.55


def made(margin, vowels=()):
    """Frames whose margin above the limit of speech is given, in one second of loud ones."""
    count = AXES.shape[1]
    level = np.full(count, 0.0)
    level[: count // 2] = -100.0
    level[: len(margin)] = -fields.SPEECH_RANGE_DB + np.asarray(margin)
    voicing = np.zeros(count)
    voicing[list(vowels)] = 1.0
    return Frames(AXES, level, voicing, np.ones(count))


def test_frames_near_the_limit_are_uncertain():
    frames = made([1.0, 1.0])
    assert frames.margin_db[:2] == pytest.approx([1, 1])
    assert fields_from_sound(FIRST, frames).time == "speech"
    assert fields_from_sound(FIRST, frames).uncertain == ("time", "phone")
    assert fields_from_sound(FIRST, made([-1.0, -1.0])).time == "non-speech"
    assert fields_from_sound(FIRST, made([-1.0, -1.0])).uncertain == ("time", "phone")
    assert fields_from_sound(FIRST, made([-9.0, -9.0])).uncertain == ()
    assert fields_from_sound(FIRST, made([9.0, 9.0])).uncertain == ()
    # one frame, 16 ms, is too short to be speech
    assert fields_from_sound(FIRST, made([9.0])).time == "non-speech"


def test_the_longest_run_of_a_kind_decides():
    # consonant 3 frames, vowel 5, consonant 4: more consonant in all, but not at one piece
    found = fields_from_sound(FIRST, made([30.0] * 12, vowels=range(3, 8)))
    assert (found.phone, found.numbers["phone_s"]) == ("vowel", pytest.approx(5 * 0.016))
    assert found.uncertain == ("phone",)
    found = fields_from_sound(FIRST, made([30.0] * 12, vowels=range(3, 5)))
    assert (found.phone, found.uncertain) == ("consonant", ())
    # what lies between two runs is none
    found = fields_from_sound(FIRST, made([30.0] * 9, vowels=(0, 8)))
    assert (found.phone, found.numbers["phone_s"]) == ("consonant", pytest.approx(7 * 0.016))


def test_speech_without_pauses_is_speech():
    frames = frames_of(vowel(N) * (1.2 + torch.sin(torch.arange(N) / 900)), AXES)
    assert (frames.margin_db > 0).mean() > 0.95
    # nor is a whisper without pauses silence: nothing in the recording is quieter
    assert (frames_of(noise(N), AXES).margin_db > 0).mean() > 0.9


def test_frames_do_not_depend_on_blocks(monkeypatch):
    expected = frames_of(utterance(), AXES)
    monkeypatch.setattr(fields, "BLOCK_FRAMES", 13)
    found = frames_of(utterance(), AXES)
    for name in ("level_db", "voicing", "middle"):
        # windows of other sizes round differently
        assert np.allclose(getattr(found, name), getattr(expected, name), atol=1e-3)


def test_silence_is_no_speech():
    frames = frames_of(torch.zeros(N), AXES)
    assert np.isfinite([frames.level_db, frames.voicing, frames.middle]).all()
    found = fields_from_sound(whole_plane(AXES), frames)
    assert (found.time, found.phone, found.uncertain) == ("non-speech", "unvoiced", ())


def test_another_length_is_refused():
    with pytest.raises(ShapeError, match="32000 samples"):
        frames_of(torch.zeros(N + 1), AXES)


# ------------------------------------------------------------------ by phones

PHONES = [
    PhoneInterval(0.0, 0.20, "sil"),
    PhoneInterval(0.20, 0.30, "S"),
    PhoneInterval(0.30, 0.45, "EY1"),
    PhoneInterval(0.45, 0.60, "sp"),
    PhoneInterval(0.60, 0.62, "T"),
]


@pytest.mark.parametrize(
    ("t0", "t1", "time", "phone", "speech_s"),
    [
        (0.0, 0.5, "speech", "vowel", 0.25),
        (0.0, 0.38, "speech", "consonant", 0.18),
        (0.0, 0.2, "non-speech", "unvoiced", 0.0),
        (0.0, 0.219, "non-speech", "unvoiced", 0.019),
        (0.0, 0.221, "speech", "consonant", 0.021),
        (0.45, 0.7, "speech", "consonant", 0.02),
        (0.7, 2.0, "non-speech", "unvoiced", 0.0),
    ],
)
def test_the_phone_with_the_largest_overlap_decides(t0, t1, time, phone, speech_s):
    found = fields_from_phones(Box(t0, t1, 0.0, 2000.0), PHONES, AXES)
    assert (found.time, found.phone, found.uncertain) == (time, phone, ())
    assert found.numbers["speech_s"] == pytest.approx(speech_s)


def test_equal_overlaps_of_two_kinds_are_uncertain():
    found = fields_from_phones(Box(0.2, 0.4, 0.0, 2000.0), PHONES, AXES)
    assert (found.phone, found.uncertain) == ("consonant", ("phone",))
    ipa = [PhoneInterval(0.0, 0.5, "y")]
    assert fields_from_phones(FIRST, ipa, AXES).phone == "consonant"
    assert fields_from_phones(FIRST, ipa, AXES, alphabet="ipa").phone == "vowel"
    assert fields_from_phones(FIRST, [], AXES).time == "non-speech"


# ------------------------------------------------------------------ band


@pytest.mark.parametrize("scale", ["linear", "mel"])
def test_the_band_is_the_third_of_the_pictures_height(scale):
    grid = RegionGrid(AXES, scale=scale)
    found = [frequency_of(grid.box(id), AXES, scale=scale) for id in ("1", "5", "9", "13")]
    assert found == ["high", "mid", "mid", "low"]
    six = RegionGrid(AXES, rows=6, columns=1, scale=scale)
    found = [frequency_of(six.box(id), AXES, scale=scale) for id in six.ids]
    assert found == ["high", "high", "mid", "mid", "low", "low"]


def test_a_window_that_holds_no_pitch_is_a_typed_error():
    axes = Axes(StftConfig(n_fft=512, hop=128), N)
    with pytest.raises(ConfigError, match="32 ms is too short"):
        frames_of(torch.zeros(N), axes)
