"""A small formant synthesiser, and the example recording that the package makes with it.

The voice is a stand-in for a bona fide recording: it is itself synthetic, and says so. Nobody's
voice and nobody's licence is needed, and its vocoded copy has a true mask.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from specsegdiff.data.pairs import Pair
from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.data.seeds import check_seed
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import StftConfig
from specsegdiff.shapes import Mask, Wave

UTTERANCE = (
    "_ n ow: b ax d iy eh: v er s p ow: k dh ih s _ ax m ax sh iy: n m ey: d dh ax v oy: s "
    "_ ah v p ah: l s ih z _"
)
"""'Nobody ever spoke this; a machine made the voice of pulses', in ARPAbet: a colon marks stress,
``_`` a pause."""

Array: TypeAlias = npt.NDArray[np.float64]
Formants: TypeAlias = tuple[float, float, float]


class Segment(NamedTuple):
    """A stretch of speech with constant targets, between which the voice glides."""

    ms: float
    "Duration in milliseconds."
    formants: Formants | None = None
    "F1, F2, F3 in Hz; None takes those of what follows."
    voice: float = 0.0
    "Amplitude of the glottal pulses; a vowel has 1."
    breath: float = 0.0
    "Amplitude of the noise at the glottis, which the formants shape."
    hiss: float = 0.0
    "Amplitude of the noise at a constriction, over that of a vowel."
    band: tuple[float, float] = (1_000.0, 7_000.0)
    "Band of that noise in Hz."


def _vowel(*targets: Formants, ms: float = 80.0) -> tuple[Segment, ...]:
    each = ms if len(targets) == 1 else 0.7 * ms
    return tuple(Segment(each, formants, voice=1.0, breath=0.03) for formants in targets)


def _stop(formants: Formants, band: tuple[float, float], *, voiced: bool) -> tuple[Segment, ...]:
    closure = Segment(55.0, formants, voice=0.12 if voiced else 0.0)
    burst = Segment(12.0, formants, hiss=0.15 if voiced else 0.3, band=band)
    return (closure, burst) if voiced else (closure, burst, Segment(35.0, None, breath=0.15))


# Means of 33 men (Peterson & Barney 1952, Table II), and the schwa of a nearly uniform tube.
_IY, _IH, _EH, _AE = (270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410)
_AA, _AO, _UH, _UW = (730, 1090, 2440), (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240)
_AH, _ER, _AX = (640, 1190, 2390), (490, 1350, 1690), (500, 1450, 2450)
_LIPS, _TEETH, _PALATE = (400.0, 1800.0), (3000.0, 7500.0), (1600.0, 3200.0)

# Consonants are close to Klatt 1980, Table III. Nasals lack the pole and zero of the nasal tract.
PHONES: dict[str, tuple[Segment, ...]] = {
    "iy": _vowel(_IY),
    "ih": _vowel(_IH),
    "eh": _vowel(_EH),
    "ae": _vowel(_AE),
    "aa": _vowel(_AA),
    "ao": _vowel(_AO),
    "uh": _vowel(_UH),
    "uw": _vowel(_UW),
    "ah": _vowel(_AH),
    "er": _vowel(_ER),
    "ax": _vowel(_AX, ms=55.0),
    "ey": _vowel(_EH, _IY),
    "ay": _vowel(_AA, _IH),
    "oy": _vowel(_AO, _IH),
    "aw": _vowel(_AA, _UH),
    "ow": _vowel(_AO, _UH),
    "w": (Segment(65.0, (290, 610, 2150), voice=0.6),),
    "y": (Segment(65.0, (260, 2070, 3020), voice=0.6),),
    "r": (Segment(65.0, (310, 1060, 1380), voice=0.6),),
    "l": (Segment(65.0, (310, 1050, 2880), voice=0.6),),
    "m": (Segment(65.0, (270, 1270, 2130), voice=0.4),),
    "n": (Segment(65.0, (270, 1340, 2470), voice=0.4),),
    "h": (Segment(60.0, None, breath=0.2),),
    "f": (Segment(90.0, (340, 1100, 2080), hiss=0.07, band=(1_000.0, 7_500.0)),),
    "v": (Segment(60.0, (220, 1100, 2080), voice=0.35, hiss=0.03, band=(1_000.0, 7_500.0)),),
    "th": (Segment(90.0, (320, 1290, 2540), hiss=0.06, band=(1_500.0, 7_500.0)),),
    "dh": (Segment(45.0, (270, 1290, 2540), voice=0.4, hiss=0.03, band=(1_500.0, 7_500.0)),),
    "s": (Segment(100.0, (320, 1390, 2530), hiss=0.2, band=(3_800.0, 7_600.0)),),
    "z": (Segment(75.0, (240, 1390, 2530), voice=0.3, hiss=0.12, band=(3_800.0, 7_600.0)),),
    "sh": (Segment(105.0, (300, 1840, 2750), hiss=0.25, band=(2_000.0, 5_500.0)),),
    "p": _stop((400, 1100, 2150), _LIPS, voiced=False),
    "t": _stop((400, 1600, 2600), _TEETH, voiced=False),
    "k": _stop((300, 1990, 2850), _PALATE, voiced=False),
    "b": _stop((200, 1100, 2150), _LIPS, voiced=True),
    "d": _stop((200, 1600, 2600), _TEETH, voiced=True),
    "g": _stop((200, 1990, 2850), _PALATE, voiced=True),
    "_": (Segment(170.0),),
}
"The phones that `synthesise_voice` can speak."

_STEP = 32  # samples between updates of the filters, 2 ms; Klatt updates every 5
_BANDWIDTHS = (60.0, 90.0, 150.0)
# A uniform tube of 17 cm goes on like this; Klatt's 10 kHz synthesiser ends with F5.
_UPPER = ((3_500.0, 200.0), (4_500.0, 250.0), (5_500.0, 300.0), (6_500.0, 400.0), (7_500.0, 500.0))


def synthesise_voice(phones: str = UTTERANCE, *, seed: int, f0_hz: float = 118.0) -> Wave:
    """Speak ``phones``, symbols of `PHONES` between spaces: ``(n,)``, float32 at 16 kHz, peak 0.5.

    A source of Rosenberg pulses and noise drives a cascade of eight resonators; frication joins
    behind it (Klatt 1980, doi 10.1121/1.383940, with one band of noise in place of his parallel
    branch). Pitch falls by a fifth around ``f0_hz`` over each phrase, rises on stressed vowels, and
    trembles (flutter, jitter, shimmer). A room that decays by 60 dB in 0.25 s and a faint,
    wandering noise follow, so that no silence is digital. ``seed`` draws all that is random. Raises
    `ConfigError` on an unknown phone, no phone, a negative seed, or a pitch outside 50 to 400 Hz.

    >>> synthesise_voice("_ h ax l ow: _", seed=0).shape
    torch.Size([11187])
    """
    rng = np.random.default_rng(check_seed(seed))
    if not 50 <= f0_hz <= 400:
        raise ConfigError(f"f0_hz must lie between 50 and 400 Hz, got {f0_hz!r}")
    segments, formants, pitch = _segments(phones)
    edges = np.rint(np.cumsum([0.0, *(s.ms for s in segments)]) * SAMPLE_RATE / 1000).astype(int)
    counts = np.diff(edges)

    def track(values: list[float], ms: float) -> Array:
        return _glide(np.repeat(np.asarray(values, float), counts), ms)

    f0 = f0_hz * track(pitch, 120.0)
    f0 *= _flutter(len(f0), rng)
    flow, openness = _glottis(f0, rng)
    voice = track([s.voice for s in segments], 20.0)
    noise = rng.standard_normal(len(f0)) * (0.5 + 0.5 * openness)
    source = voice * flow + track([s.breath for s in segments], 15.0) * noise
    for k, width in enumerate(_BANDWIDTHS):
        centre = track([targets[k] for targets in formants], 60.0)
        source = _resonate(source, centre, width)
    for centre_hz, width in _UPPER:
        source = _resonate(source, np.array([centre_hz]), width)
    speech = source / _rms(source[voice > 0.9] if (voice > 0.9).any() else source)
    for band in sorted({s.band for s in segments if s.hiss}):
        level = track([s.hiss if s.band == band else 0.0 for s in segments], 8.0)
        speech += level * _band_noise(len(f0), band, rng)
    speech = _room(speech / _rms(speech), rng) + 10 ** (-46 / 20) * _background(len(f0), rng)
    return torch.from_numpy(0.5 * speech / np.abs(speech).max()).float()


def example_pair() -> Pair:
    """Return the example of the package as a pair: the voice, and its vocoded copy.

    >>> example_pair().vocoder
    'gl-mel40'
    """
    card = json.loads(_asset("example.json").read_text(encoding="utf-8"))
    return Pair(
        "example",
        _asset("example-real.flac"),
        _asset("example.flac"),
        n_samples=card["n_samples"],
        gain_db=card["gain_db"],
        vocoder=card["vocoder"],
        family=card["family"],
    )


def example_mask() -> Mask:
    """Return the true mask ``(f, t)`` of the example, on the default axes.

    >>> mask = example_mask()
    >>> mask.shape[0], round(float(mask.float().mean()), 3)
    (513, 0.05)
    """
    bits = np.load(_asset("example-mask.npy"))
    mask = np.unpackbits(bits, axis=0, count=StftConfig().n_freqs)
    return torch.from_numpy(mask).bool()


def _asset(name: str) -> Path:
    return Path(str(files("specsegdiff") / "assets" / name))


def _segments(phones: str) -> tuple[list[Segment], list[Formants], list[float]]:
    """Segments, the formants of each, and its pitch over the mean."""
    segments: list[Segment] = []
    pitch: list[float] = []
    phrase: list[float] = []
    for symbol in phones.split():
        name = symbol.removesuffix(":")
        if name not in PHONES:
            raise ConfigError(f"no phone {symbol!r}; there are {', '.join(PHONES)}")
        stressed = name != symbol
        for segment in PHONES[name]:
            segments.append(segment._replace(ms=segment.ms * (1.6 if stressed else 1.0)))
            phrase.append(0.15 if stressed else 0.0)
        if name == "_":
            pitch += _fall(phrase)
            phrase = []
    pitch += _fall(phrase)
    if not segments:
        raise ConfigError("phones is empty; name some, for example '_ h ax l ow: _'")
    known = [s.formants for s in segments if s.formants]
    formants = [known[-1] if known else (500.0, 1_500.0, 2_500.0)]
    for segment in reversed(segments):
        formants.append(segment.formants or formants[-1])
    return segments, formants[:0:-1], pitch


def _fall(accents: list[float]) -> list[float]:
    """Pitch of the segments of a phrase: a fall by a fifth, around 1, under their accents."""
    n = len(accents)
    return [1.12 - 0.24 * (i + 0.5) / n + accent for i, accent in enumerate(accents)]


def _glide(steps: Array, ms: float) -> Array:
    """Smooth a stepwise track by a Hann window of ``2 * ms``, its ends held."""
    from scipy.signal import fftconvolve

    half = round(ms * SAMPLE_RATE / 1000)
    window = np.hanning(2 * half + 1)
    padded = np.pad(steps, half, mode="edge")
    smooth: Array = fftconvolve(padded, window / window.sum(), mode="valid")
    return smooth


def _flutter(n: int, rng: np.random.Generator) -> Array:
    """Slow trembling of the pitch around 1 (Klatt & Klatt 1990, flutter of 25 %)."""
    t = np.arange(n) / SAMPLE_RATE
    waves = [np.sin(2 * np.pi * (hz * t + rng.random())) for hz in (12.7, 7.1, 4.7)]
    return 1 + 0.005 * np.sum(waves, axis=0)


def _glottis(f0: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Derivative of the flow through the glottis, RMS 1, and how far it stands open, in [0, 1].

    Rosenberg 1971, pulse C: 40 % of a period rising, 16 % falling, the rest closed. The derivative
    is the radiation at the lips. Four-fold sampling keeps the sharp closure from aliasing.
    """
    from scipy.signal import resample_poly

    onsets, periods = [0.0], []
    while onsets[-1] < len(f0):
        jitter = 1 + 0.008 * rng.standard_normal()
        periods.append(SAMPLE_RATE / f0[int(onsets[-1])] * jitter)
        onsets.append(onsets[-1] + periods[-1])
    shimmer = 1 + 0.03 * rng.standard_normal(len(periods))
    t = np.arange(4 * len(f0)) / 4
    pulse = np.searchsorted(onsets, t, side="right") - 1
    phase = (t - np.array(onsets)[pulse]) / np.array(periods)[pulse]
    rising = 0.5 - 0.5 * np.cos(np.pi * phase / 0.4)
    falling = np.cos(0.5 * np.pi * (phase - 0.4) / 0.16)
    shape = np.where(phase < 0.4, rising, np.where(phase < 0.56, falling, 0.0))
    flow = np.diff(resample_poly(shape * shimmer[pulse], 1, 4), prepend=0.0)
    return flow / _rms(flow), np.clip(shape[::4], 0, 1)


def _resonate(signal: Array, centre: Array, width: float) -> Array:
    """Pass through a resonator at ``centre`` Hz, ``(n,)`` or ``(1,)``, of ``width`` Hz.

    y[n] = A x[n] + B y[n-1] + C y[n-2], of gain 1 at 0 Hz (Klatt 1980, Eq. 1-2); a new centre keeps
    the past outputs.
    """
    from scipy.signal import lfilter

    c = -np.exp(-2 * np.pi * width / SAMPLE_RATE)
    out = np.empty_like(signal)
    step = _STEP if len(centre) > 1 else len(signal)
    for start in range(0, len(signal), step):
        b = 2 * np.sqrt(-c) * np.cos(2 * np.pi * centre[start] / SAMPLE_RATE)
        block = slice(start, start + step)
        last, before = (out[start - 1], out[start - 2]) if start else (0.0, 0.0)
        state = [b * last + c * before, c * last]
        out[block], _ = lfilter([1 - b - c], [1, -b, -c], signal[block], zi=state)
    return out


def _band_noise(n: int, band: tuple[float, float], rng: np.random.Generator) -> Array:
    """White noise through a band-pass of 18 dB an octave, RMS 1."""
    from scipy.signal import butter, sosfilt

    sections = butter(3, band, btype="bandpass", fs=SAMPLE_RATE, output="sos")
    noise: Array = sosfilt(sections, rng.standard_normal(n))
    return noise / _rms(noise)


def _room(speech: Array, rng: np.random.Generator) -> Array:
    """Add the tail of a small room, 60 dB in 0.25 s and 14 dB below the direct sound."""
    from scipy.signal import fftconvolve

    t = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / 0.25) * (t > 0.004)
    tail *= 10 ** (-14 / 20) / np.sqrt(np.sum(tail**2))
    wet: Array = fftconvolve(speech, tail)[: len(speech)]
    return speech + wet


def _background(n: int, rng: np.random.Generator) -> Array:
    """Noise that falls by 3 dB an octave and wanders by some dB within seconds, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 50.0))
    noise = np.fft.irfft(spectrum, n)
    corners = rng.normal(0, 2.0, n // SAMPLE_RATE + 2)
    drift_db = np.interp(np.arange(n) / SAMPLE_RATE, np.arange(len(corners)), corners)
    noise *= 10 ** (drift_db / 20)
    return noise / _rms(noise)


def _rms(signal: Array) -> float:
    return float(np.sqrt(np.mean(signal**2))) or 1.0
