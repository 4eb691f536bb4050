"""When, which band, what kind of sound: the fields T, F and P of a region, by rule.

From the phones where an alignment is given, and from the sound otherwise: voice activity, voicing
and the shape of the spectrum. What is a guess is said to be one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from specsegdiff.cells import Box, RowScale, hertz_to_mel
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Axes, Stft
from specsegdiff.narration.measurements import FLOOR, PITCH_HZ, place_of, window_correlation
from specsegdiff.narration.phones import Alphabet, PhoneInterval, phone_class
from specsegdiff.narration.schema import FieldName, Frequency, Phone, Time
from specsegdiff.storage import BLOCK_FRAMES, MapStore, spectrum_window

SpokenPhone: TypeAlias = Literal["vowel", "consonant"]

SHORTEST_S = 0.02
"Seconds of speech that make a region one with speech, as in GRIDEX's public code."

VOICED = 0.55
"Correlation at the pitch above which a frame is voiced; noise stays below 0.4."

SPEECH_RANGE_DB = 35.0
"Speech is sought so far below the recording's loud frames, those of its 95 % quantile."

ABOVE_FLOOR_DB = 6.0
"Speech stands so far above the recording's quiet frames, those of its 5 % quantile."

VOWEL_RANGE_DB = 20.0
"Vowels are sought so far below the recording's loud frames."

SILENCE_DB = -90.0
"Power of a frame below which there is no sound: quantisation noise of 16 bits has -48."

DOUBT_DB = 3.0
"Frames so near the limit may be speech or not."


@dataclass(frozen=True)
class Fields:
    """T, F and P of a region, which of them are a guess, and the seconds they were read from."""

    time: Time
    "T."
    frequency: Frequency
    "F."
    phone: Phone
    "P."
    uncertain: tuple[FieldName, ...]
    "Fields that are a guess."
    numbers: dict[str, float]
    "``speech_s``: speech in the region; ``phone_s``: the phone, or the longest run of its kind."


@dataclass(frozen=True)
class Frames:
    """What the fields need to know of every frame of a recording; 24 bytes a frame."""

    axes: Axes
    "Axes of the recording."
    level_db: NDArray[np.float64]
    "Power of the frame above 100 Hz, ``(t,)``: below lie hum and rumble."
    voicing: NDArray[np.float64]
    "Correlation at the best pitch, ``(t,)``, about [0, 1]."
    middle: NDArray[np.float64]
    "Share of the power that lies between 300 Hz and 3 kHz, ``(t,)``: where vowels have theirs."

    @property
    def margin_db(self) -> NDArray[np.float64]:
        """How far each frame stands above the limit of speech, ``(t,)``; below it, negative."""
        quiet, loud = np.quantile(self.level_db, (0.05, 0.95))
        # where nobody pauses the quiet frames are speech too, a voice among them in particular
        unvoiced = max(loud - SPEECH_RANGE_DB, min(quiet + ABOVE_FLOOR_DB, loud - ABOVE_FLOOR_DB))
        limit = np.where(self.voicing > VOICED, loud - SPEECH_RANGE_DB, unvoiced)
        return self.level_db - np.maximum(limit, SILENCE_DB)

    @property
    def vowel(self) -> NDArray[np.bool_]:
        """Frames that sound like a vowel, ``(t,)``: voiced, loud, and strong in the middle."""
        loud = np.quantile(self.level_db, 0.95)
        return (
            (self.voicing > VOICED)
            & (self.level_db > loud - VOWEL_RANGE_DB)
            & (self.middle > 0.3)
            & (self.margin_db > 0)
        )


def frames_of(wave: Tensor | MapStore, axes: Axes) -> Frames:
    """Look through a recording ``(n,)`` once, in blocks.

    Raises `ShapeError` on another length, and `ConfigError` on a window that is too short to hear a
    pitch.
    """
    store, window = MapStore.of(wave), axes.config.n_fft / axes.config.sample_rate
    if window < 2 / PITCH_HZ[0]:
        raise ConfigError(
            f"the window of {1000 * window:.0f} ms is too short for a pitch of {PITCH_HZ[0]:.0f} "
            f"Hz; use at least {2000 / PITCH_HZ[0]:.0f} ms, or pass phones"
        )
    if store.shape != (1, axes.n_samples):
        raise ShapeError(
            f"expected a waveform of {axes.n_samples} samples on these axes, got {store.shape}"
        )
    stft, parts = Stft(axes.config), []
    for start in range(0, axes.shape[1], BLOCK_FRAMES):
        stop = min(start + BLOCK_FRAMES, axes.shape[1])
        magnitude = spectrum_window(store, stft, start, stop).abs()
        parts.append(_look(magnitude.double().square().numpy(), axes))
    level, voicing, middle = np.concatenate(parts, axis=1)
    return Frames(axes, level, voicing, middle)


def fields_from_sound(box: Box, frames: Frames, *, scale: RowScale = "linear") -> Fields:
    """Fields of a region from what its frames sound like, whatever its band.

    T is speech where `SHORTEST_S` of its frames are: loud enough beside the recording's loud frames
    and clear of its quiet ones. P is the kind, vowel or consonant, of the longest run of frames of
    one kind, which stands for the phone with the largest overlap; nasals and liquids as loud as
    vowels pass for them. T is uncertain where frames within 3 dB of the limit decide it, P where
    the other kind has a run at least two thirds as long, and always where T is.
    """
    _, span = place_of(frames.axes, box)
    margin, vowel = frames.margin_db[span], frames.vowel[span]
    step, needed = frames.axes.seconds_per_frame, SHORTEST_S - 1e-9
    speech, sure, perhaps = (
        float((margin > limit).sum()) * step for limit in (0.0, DOUBT_DB, -DOUBT_DB)
    )
    spoken = speech >= needed
    doubtful = (sure >= needed) != (perhaps >= needed)
    frequency = frequency_of(box, frames.axes, scale=scale)
    if not spoken:
        uncertain: tuple[FieldName, ...] = ("time", "phone") if doubtful else ()
        numbers = {"speech_s": speech, "phone_s": 0.0}
        return Fields("non-speech", frequency, "unvoiced", uncertain, numbers)
    runs: dict[SpokenPhone, float] = {
        "vowel": _longest_run(vowel) * step,
        "consonant": _longest_run((margin > 0) & ~vowel) * step,
    }
    phone: SpokenPhone = "vowel" if runs["vowel"] >= runs["consonant"] else "consonant"
    close = min(runs.values()) >= 2 / 3 * max(runs.values())
    uncertain = ("time", "phone") if doubtful else ("phone",) if close else ()
    numbers = {"speech_s": speech, "phone_s": runs[phone]}
    return Fields("speech", frequency, phone, uncertain, numbers)


def fields_from_phones(
    box: Box,
    phones: Sequence[PhoneInterval],
    axes: Axes,
    *,
    alphabet: Alphabet = "arpabet",
    scale: RowScale = "linear",
) -> Fields:
    """Fields of a region from aligned phones: the phone with the largest overlap decides.

    Where none overlaps by `SHORTEST_S`, T is non-speech and P unvoiced. The rule of GRIDEX's public
    code (region_phone_table.py), but that silences do not compete: a region is unvoiced where it
    has no phone, not where its longest interval is a pause. Overlaps that are equal to 1 ms go to
    the earlier phone, and P is uncertain then. Phones that all end before the region begins say
    that it is silent, not that the alignment is too short: pass one of the whole recording.
    """
    overlaps = [
        (overlap, kind)
        for phone in phones
        if (overlap := min(phone.t1, box.t1) - max(phone.t0, box.t0)) > 0
        and (kind := phone_class(phone.label, alphabet=alphabet)) is not None
    ]
    frequency = frequency_of(box, axes, scale=scale)
    numbers = {"speech_s": sum(overlap for overlap, _ in overlaps), "phone_s": 0.0}
    longest = max((overlap for overlap, _ in overlaps), default=0.0)
    if longest < SHORTEST_S:
        return Fields("non-speech", frequency, "unvoiced", (), numbers)
    near = [kind for overlap, kind in overlaps if overlap > longest - 1e-3]
    uncertain: tuple[FieldName, ...] = ("phone",) if len(set(near)) > 1 else ()
    return Fields("speech", frequency, near[0], uncertain, numbers | {"phone_s": longest})


def frequency_of(box: Box, axes: Axes, *, scale: RowScale = "linear") -> Frequency:
    """Third of the picture's height that the middle of a box lies in, on the picture's own scale.

    Of four rows, the lowest is low, the two in between are mid, the highest is high.

    >>> from specsegdiff.frontend import StftConfig
    >>> axes = Axes(StftConfig(), 16_000)
    >>> [frequency_of(Box(0, 1, f, f + 2000), axes) for f in (0.0, 2000.0, 4000.0, 6000.0)]
    ['low', 'mid', 'mid', 'high']
    """
    top, low, high = axes.config.sample_rate / 2, box.f0, box.f1
    if scale == "mel":
        top, low, high = (hertz_to_mel(value) for value in (top, low, high))
    middle = (low + high) / (2 * top)
    return "low" if middle < 1 / 3 else "mid" if middle < 2 / 3 else "high"


def _look(power: NDArray[np.float64], axes: Axes) -> NDArray[np.float64]:
    """Level, voicing and share of the middle of frames ``(f, t)``: ``(3, t)``."""
    freqs, floor = axes.freqs.numpy(), FLOOR**2
    power = np.where(freqs[:, None] < 100, 0.0, power)
    total = power.sum(0)
    low = power[freqs <= 2000]
    middle = power[(freqs >= 300) & (freqs <= 3000)].sum(0) / np.maximum(total, floor)
    n, rate = axes.config.n_fft, axes.config.sample_rate
    lags = np.arange(int(np.ceil(rate / PITCH_HZ[1])), int(rate / PITCH_HZ[0]) + 1)
    # the real autocorrelation: below 2 kHz a pitch falls on a sample
    correlation = np.fft.irfft(np.pad(low, ((0, n // 2 + 1 - len(low)), (0, 0))), n, axis=0)
    voicing = (correlation[lags] / window_correlation(n)[lags][:, None]).max(0)
    voicing = voicing / np.maximum(correlation[0], floor)
    return np.stack([10 * np.log10(np.maximum(total, floor)), voicing, middle])


def _longest_run(flags: NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return int(np.diff(edges)[::2].max(initial=0))
