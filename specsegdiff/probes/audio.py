"""Tokens of speech and the regions they lie in: frames by kind of sound or by phone, patches by
band."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from specsegdiff.errors import AudioError, ConfigError, ShapeError
from specsegdiff.frontend import Axes, Stft, log_magnitude
from specsegdiff.models.encoder import BackboneConfig
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.narration.concepts import speech_concepts
from specsegdiff.narration.fields import VOICED, frames_of
from specsegdiff.narration.phones import IPA_VOWELS, SILENCES, Alphabet, PhoneInterval
from specsegdiff.shapes import Wave, check_wave, is_finite

Division: TypeAlias = Literal["sound", "voicing"]
"What divides frames that no alignment is known for."

DIVISIONS: Mapping[Division, tuple[str, ...]] = {
    "sound": ("vowel", "voiced consonant", "voiceless consonant", "pause"),
    "voicing": ("voiced", "voiceless", "pause"),
}
"Regions of `sound_labels`, in the order of their numbers."

MANNERS = ("vowel", "stop", "affricate", "fricative", "nasal", "approximant", "pause")
"""Regions of `phone_labels`, in the order of their numbers; concepts of
`specsegdiff.narration.concepts.speech_concepts`, and the pause."""

_IPA = {
    "stop": "p b t d k ɡ g q ɢ c ɟ ʈ ɖ ʔ ɾ",
    "affricate": "tʃ dʒ ts dz tɕ dʑ tʂ dʐ pf",
    "fricative": "f v θ ð s z ʃ ʒ ʂ ʐ ɕ ʑ ç ʝ x ɣ χ ʁ ħ ʕ h ɦ ɸ β ɬ ɮ",
    "nasal": "m n ŋ ɲ ɱ ɳ ɴ",
    "approximant": "l ɫ ɭ ʎ ʟ r ɹ ɻ ʀ j w ɥ ʍ ʋ ɰ",
}
_MANNER_OF_IPA = dict.fromkeys(IPA_VOWELS, "vowel") | {
    name: manner for manner, names in _IPA.items() for name in names.split()
}

LOCAL = -1
"In place of a layer's number: the frames that enter the transformer."

BANDS_HZ = (0.0, 1000.0, 4000.0, 8000.0)
"Edges of the bands low, mid and high in Hz: pitch and first formant, other formants, sibilance."

PATCH_ROWS = 32
"Equal parts of a band whose levels make a patch."


def frame_times(backbone: BackboneConfig, n_samples: int, *, rate: int = 16_000) -> Tensor:
    """Centres in seconds of an encoder's frames ``(t,)``: the middle of the samples each is made
    of.

    >>> frame_times(BackboneConfig(), 1_040).tolist()
    [0.0125, 0.0325, 0.0525]
    """
    first = torch.arange(backbone.n_frames(n_samples), dtype=torch.float64) * backbone.hop
    return (first + backbone.reach / 2) / rate


def frame_tokens(
    detector: Wav2Vec2AASIST, wave: Wave, *, layers: Sequence[int]
) -> tuple[list[Float[Tensor, "1 t d"]], Float[Tensor, " t"]]:
    """Hidden states of a waveform ``(n,)`` after each of ``layers``, and the seconds of their
    frames.

    A layer's frames have heard the whole recording. `LOCAL` in place of a layer stands for the
    frames that enter the transformer, made of their own ``reach`` samples and no others (400 in
    XLS-R). The detector is run as it is: put it in evaluation mode first. Raises as its
    ``features`` do, and `ShapeError` on anything but one waveform.
    """
    _check(wave)
    entered: list[Tensor] = []
    hook = detector.backbone.feature_projection.register_forward_hook(
        # HuBERT's gives no second value
        lambda module, inputs, out: entered.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        with torch.no_grad():
            deep = iter(detector.features(wave[None], [i for i in layers if i != LOCAL] or [0]))
    finally:
        hook.remove()
    tokens = [entered[0] if layer == LOCAL else next(deep) for layer in layers]
    return tokens, frame_times(detector.config.backbone, len(wave))


def sound_labels(
    wave: Wave, times: Float[Tensor, " t"], *, division: Division = "sound"
) -> Int[Tensor, " t"]:
    """Region of `DIVISIONS` that each of ``times`` in seconds lies in, by what a waveform ``(n,)``
    at 16 kHz sounds like.

    By the rules of `specsegdiff.narration.fields`, in windows of 64 ms: speech is loud enough
    beside the recording's loud frames, voiced where it repeats at a pitch, and a vowel where it is
    voiced, loud and strong in the middle band. Nasals and liquids as loud as vowels pass for them.
    Raises `AudioError` on NaN, `ConfigError` on another division.
    """
    if division not in DIVISIONS:
        raise ConfigError(f"division must be one of {tuple(DIVISIONS)}, got {division!r}")
    _check(wave)
    axes = Stft().axes(len(wave))
    frames = frames_of(wave, axes)
    place = (times / axes.seconds_per_frame).round().long().clamp(0, axes.shape[1] - 1).numpy()
    speech, voiced = frames.margin_db[place] > 0, frames.voicing[place] > VOICED
    kinds = [frames.vowel[place], speech & voiced, speech] if division == "sound" else []
    kinds = kinds or [speech & voiced, speech]
    return torch.from_numpy(np.select(kinds, range(len(kinds)), default=len(kinds)))


def phone_labels(
    phones: Sequence[PhoneInterval], times: Float[Tensor, " t"], *, alphabet: Alphabet = "arpabet"
) -> Int[Tensor, " t"]:
    """Manner of articulation, a number into `MANNERS`, of the aligned phone that each of ``times``
    in seconds lies in.

    A phone holds its start and not its end; between phones, and in silences, there is a pause. Of
    phones that overlap, the later counts. Raises `ConfigError` on a phone whose manner is unknown.

    >>> phones = [PhoneInterval(0.1, 0.2, "S"), PhoneInterval(0.2, 0.3, "IY1")]
    >>> [MANNERS[i] for i in phone_labels(phones, torch.tensor([0.0, 0.1, 0.2, 0.3]))]
    ['pause', 'fricative', 'vowel', 'pause']
    """
    labels = torch.full(times.shape, MANNERS.index("pause"))
    for phone in sorted(phones, key=lambda phone: phone.t0):
        inside = (times >= phone.t0) & (times < phone.t1)
        labels[inside] = MANNERS.index(manner_of(phone.label, alphabet=alphabet))
    return labels


def manner_of(label: str, *, alphabet: Alphabet = "arpabet") -> str:
    """Manner of articulation of a phone, one of `MANNERS`; raises `ConfigError` on an unknown one.

    >>> [manner_of(label) for label in ("AE1", "jh", "sil", "ng")]
    ['vowel', 'affricate', 'pause', 'nasal']
    >>> [manner_of(label, alphabet="ipa") for label in ("ˈɔː", "t͡ʃ", "tʰ")]
    ['vowel', 'affricate', 'stop']
    """
    name = label.strip()
    if alphabet not in get_args(Alphabet):
        raise ConfigError(f"alphabet must be 'arpabet' or 'ipa', got {alphabet!r}")
    if name.lower() in SILENCES:
        return "pause"
    if alphabet == "arpabet":
        tree = speech_concepts()
        concept = tree.by_label(name.upper().rstrip("0123456789"))
        found = [n for n in tree.path(concept.name) if n in MANNERS] if concept else []
    else:
        letters = name.lstrip("ˈˌ'").replace("\u0361", "")
        # an affricate has two letters, every other phone begins with the one that says it all
        found = [_MANNER_OF_IPA[n] for n in (letters[:2], letters[:1]) if n in _MANNER_OF_IPA]
    if not found:
        raise ConfigError(
            f"no manner of articulation is known for the phone {label!r} in {alphabet!r}; "
            "rename it, or pass the alphabet it is written in"
        )
    return found[0]


def spectral_patches(
    wave: Wave,
    *,
    bands_hz: Sequence[float] = BANDS_HZ,
    rows: int = PATCH_ROWS,
    stft: Stft | None = None,
) -> tuple[Float[Tensor, "t k d"], Float[Tensor, " t"]]:
    """Patches of a spectrogram ``(t, k, d)`` of a waveform ``(n,)``, one a frame and band, and the
    seconds of the frames.

    Each of the k bands between ``bands_hz`` is cut into ``rows`` equal parts. A patch holds the
    natural logarithm of the mean magnitude in each, at unit RMS of the recording, and how much it
    changes to the next frame: level and roughness, which survive a mean over patches. So d is ``2 *
    rows``, and no patch sees more than its band and two frames: the comparison to an encoder whose
    frames know the whole recording.

    Raises `AudioError` on digital silence, which has no level, and on NaN; `ConfigError` where a
    part would hold no bin.
    """
    _check(wave)
    stft = stft or Stft()
    level = float(wave.double().square().mean().sqrt())
    if level == 0:
        raise AudioError("the recording is digital silence, so it has no level; leave it out")
    axes = stft.axes(len(wave))
    row, count = _row_of_bin(axes, bands_hz, rows)
    magnitude = stft.magnitude(wave / level)[row >= 0]
    inside = row[row >= 0]
    parts = torch.zeros(count, magnitude.shape[1]).index_add_(0, inside, magnitude.float())
    logs = log_magnitude(parts / torch.bincount(inside, minlength=count)[:, None])
    change = torch.diff(logs, append=logs[:, -1:]).abs()
    patches = rearrange(torch.stack([logs, change]), "s (k r) t -> t k (s r)", r=rows)
    return patches, axes.times


def by_band(
    patches: Float[Tensor, "t k d"],
) -> tuple[Float[Tensor, "1 n d"], Int[Tensor, "1 n"]]:
    """Patches as tokens of one recording, each labelled with its band.

    >>> tokens, labels = by_band(torch.zeros(5, 3, 64))
    >>> tuple(tokens.shape), labels[0, :4].tolist()
    ((1, 15, 64), [0, 1, 2, 0])
    """
    frames, bands, _ = patches.shape
    return (
        rearrange(patches, "t k d -> 1 (t k) d"),
        repeat(torch.arange(bands), "k -> 1 (t k)", t=frames),
    )


def _row_of_bin(axes: Axes, bands_hz: Sequence[float], rows: int) -> tuple[Int[Tensor, " f"], int]:
    """Part that each bin lies in, from 0 at the lowest; -1 outside all bands. And their number."""
    edges = torch.as_tensor(bands_hz, dtype=torch.float64)
    if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()) or rows < 1:
        raise ConfigError(
            f"expected two or more rising edges of bands in Hz and rows >= 1, got {bands_hz!r}, "
            f"rows={rows!r}"
        )
    steps = torch.arange(rows, dtype=torch.float64) / rows
    inner = (edges[:-1, None] + edges.diff()[:, None] * steps).flatten()
    fine = torch.cat([inner, edges[-1:]])
    row = torch.searchsorted(fine, axes.freqs, right=True) - 1
    # the highest bin lies on the last edge
    row = torch.where(axes.freqs == edges[-1], len(fine) - 2, row)
    row = row.masked_fill(axes.freqs > edges[-1], -1)
    if len(row[row >= 0].unique()) < len(fine) - 1:
        raise ConfigError(
            f"bands {tuple(bands_hz)} Hz in {rows} parts each have a part without a bin of "
            f"{axes.hertz_per_bin:.1f} Hz; ask for fewer rows or wider bands"
        )
    return row, len(fine) - 1


def _check(wave: Tensor) -> None:
    check_wave(wave)
    if wave.ndim != 1:
        raise ShapeError(f"expected one waveform (n,), got {tuple(wave.shape)}; pass them in turn")
    if not is_finite(wave):
        raise AudioError("the recording holds NaN or infinite samples; repair or leave it out")
