"""The one pair type: a real recording, its vocoded twin, and how to compare them."""

import math
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from specsegdiff.data.audio import load_audio
from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.errors import CorpusError, PairError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.shapes import Wave, check_wave

TOLERANCE_S = 0.1
"""Seconds by which members may differ in length: vocoders and codecs fill or drop the last frame,
80 ms in the slowest of them; a larger difference means other content or another rate."""

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64"}
)
"What counts as a recording in a folder."

PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class Pair:
    """A real recording, its vocoded twin, and what to undo before their spectra are compared.

    >>> pair = Pair("p0", Path("real/a.flac"), Path("fake/hifigan/a.flac"), gain_db=-6.0)
    >>> pair.align, pair.n_samples
    ('none', None)
    """

    id: str
    "Unique in its corpus; seeds hang on it, so it must not change."
    real: Path
    "File of the real recording."
    fake: Path
    "File of the vocoded recording."
    n_samples: int | None = None
    "Samples to cut both to, counted at 16 kHz; None takes the shorter member."
    gain_db: float = 0.0
    "Level of the fake over the real recording; a level is no artifact."
    vocoder: str = ""
    "Name of the system that made the fake."
    family: str = ""
    "Kind of system: gan, diffusion, codec, ..."
    split: str = ""
    "train, val, dev or test."
    source_group: str = ""
    "Joins overlapping recordings: split and resample by it, never by pair."
    speaker: str = ""
    "Speaker of the real recording."
    vocoder_seen: bool | None = None
    "Whether the training split holds this vocoder."
    band_hz: float | None = None
    "Highest frequency that both members can carry; None where that is the whole band."
    align: Literal["none", "dtw"] = "none"
    "'dtw' where silences differ: match the frames with `specsegdiff.data.alignment.dtw_align`."

    def __post_init__(self) -> None:
        if not self.id:
            raise PairError("a pair needs a non-empty id; its seeds and results hang on it")
        if self.n_samples is not None and self.n_samples < 1:
            raise PairError(f"pair {self.id}: n_samples must be at least 1, got {self.n_samples}")
        if not math.isfinite(self.gain_db):
            raise PairError(f"pair {self.id}: gain_db must be finite, got {self.gain_db}")
        if self.band_hz is not None and not (math.isfinite(self.band_hz) and self.band_hz > 0):
            raise PairError(f"pair {self.id}: band_hz must be positive, got {self.band_hz}")
        if self.align not in ("none", "dtw"):
            raise PairError(f"pair {self.id}: align must be 'none' or 'dtw', got {self.align!r}")


def load_pair(pair: Pair, *, config: StftConfig | None = None) -> tuple[Wave, Wave]:
    """Read a pair as ``(real, fake)``, each ``(n,)``, of one length and level.

    Both come at ``config.sample_rate``, whatever the files' rates, and are cut to
    ``pair.n_samples``, or to the shorter where they differ by at most `TOLERANCE_S`. The members of
    a ``'dtw'`` pair keep lengths of their own: align their magnitudes with
    `specsegdiff.data.alignment.dtw_align`. Raises `PairError` where the lengths do not fit,
    `AudioError` where a file cannot be read.
    """
    rate = (config or StftConfig()).sample_rate
    real = load_audio(pair.real, target_rate=rate)
    fake = load_audio(pair.fake, target_rate=rate) * 10 ** (-pair.gain_db / 20)
    limit = max(len(real), len(fake))
    if pair.n_samples is not None:
        limit = max(1, pair.n_samples * rate // SAMPLE_RATE)
    if pair.align == "dtw":
        return real[:limit], fake[:limit]
    if limit - min(len(real), len(fake)) > TOLERANCE_S * rate:
        raise PairError(
            f"pair {pair.id}: real has {len(real)} and fake {len(fake)} samples at {rate} Hz, "
            f"expected {limit} of each, to {TOLERANCE_S} s; check that both hold the same whole "
            "utterance, or align them (align='dtw') where silences differ"
        )
    shared = min(len(real), len(fake), limit)
    return real[:shared], fake[:shared]


def level_gain_db(real: Wave, fake: Wave) -> float:
    """RMS level of the fake over the real recording in dB, as `Pair.gain_db` keeps it.

    Raises `PairError` where either is silent, since silence has no level.

    >>> import torch
    >>> round(level_gain_db(torch.ones(8), 0.5 * torch.ones(8)), 2)
    -6.02
    """
    levels = []
    for name, wave in (("real", real), ("fake", fake)):
        check_wave(wave)
        power = float(wave.double().square().mean())
        if not (math.isfinite(power) and power > 0):
            raise PairError(
                f"the {name} recording has power {power}, so no level; pass a finite, audible one"
            )
        levels.append(10 * math.log10(power))
    return levels[1] - levels[0]


def narrowest(*bands_hz: float | None) -> float | None:
    """Narrowest of some bands; None where none is narrower than a recording at the library's rate.

    >>> narrowest(None, 4_000.0, 5_500.0), narrowest(None, 24_000.0)
    (4000.0, None)
    """
    band_hz = min((each for each in bands_hz if each is not None), default=math.inf)
    return band_hz if band_hz < SAMPLE_RATE / 2 else None


def estimate_band_hz(
    real: Wave, fake: Wave, *, config: StftConfig | None = None, below_db: float = 60.0
) -> float | None:
    """Highest frequency in Hz up to which both members carry energy; None for the whole band.

    Of each member the 95 % quantile over the frames counts in every bin: a few fricatives suffice,
    a click does not. Its band ends at the last bin less than ``below_db`` under the loudest one;
    beyond the band of a narrow source there is only quantisation noise, in 16 bit about 85 dB under
    speech. The lower end of the two is taken; within 10 % of the Nyquist frequency it is the
    roll-off of an anti-alias filter, so the whole band. A vocoder that loses high frequencies
    leaves the same trace as a narrow source: there the loss is the artifact, and its band must not
    be cut. Raises `PairError` on a member that is silent in 95 % of its frames.
    """
    stft = Stft(config)
    nyquist = stft.config.sample_rate / 2
    edges = []
    for name, wave in (("real", real), ("fake", fake)):
        magnitude = stft.magnitude(wave)
        peak = magnitude.kthvalue(math.ceil(0.95 * magnitude.shape[-1])).values
        if not float(peak.max()) > 0:
            raise PairError(
                f"the {name} recording is silent, so its band is unknown; pass an audible one"
            )
        carried = peak > peak.max() * 10 ** (-below_db / 20)
        edges.append(float(carried.nonzero().max()) * stft.config.sample_rate / stft.config.n_fft)
    edge = min(edges)
    return edge if edge < 0.9 * nyquist else None


def measure_pair(pair: Pair, *, config: StftConfig | None = None) -> Pair:
    """Return ``pair`` with `gain_db` read from its files, for corpora whose lists do not state it.

    Raises as `load_pair` and `level_gain_db`.
    """
    real, fake = load_pair(replace(pair, gain_db=0.0), config=config)
    return replace(pair, gain_db=level_gain_db(real, fake))


def paired_folder(
    real: PathLike, fake: PathLike, *, unpaired: Literal["warn", "error", "ignore"] = "warn"
) -> list[Pair]:
    """Pair ``real/<stem>`` with ``fake/<stem>`` or ``fake/<vocoder>/<stem>``, at any depth.

    The stem is the path below the folder without suffix. The fake's is the id, the real one's the
    source group. Recordings left over are reported as ``unpaired`` says: by a warning or a
    `CorpusError`, which also comes for a missing folder, nested folders, two recordings of one
    name, and no pair at all.
    """
    roots = Path(real), Path(fake)
    inner, outer = sorted((root.resolve() for root in roots), key=lambda root: -len(root.parts))
    if inner.is_relative_to(outer):
        raise CorpusError(
            f"{roots[0]} and {roots[1]} lie in one another; pass two separate folders"
        )
    reals, fakes = (_recordings(root) for root in roots)
    pairs: list[Pair] = []
    used: set[str] = set()
    lonely: list[str] = []
    for name, file in fakes.items():
        vocoder, _, stem = name.partition("/")
        source, vocoder = (name, "") if name in reals else (stem, vocoder)
        if source not in reals:
            lonely.append(str(file))
            continue
        used.add(source)
        pairs.append(Pair(name, reals[source], file, vocoder=vocoder, source_group=source))
    lonely += [str(file) for name, file in reals.items() if name not in used]
    if not pairs:
        raise CorpusError(
            f"no recording in {roots[1]} has the name of one in {roots[0]}; expected <stem>.wav in "
            "both, or <vocoder>/<stem>.wav in the second"
        )
    if lonely and unpaired != "ignore":
        names = ", ".join(lonely[:5]) + (", ..." if len(lonely) > 5 else "")
        text = f"{len(lonely)} recordings have no twin: {names}"
        if unpaired == "error":
            raise CorpusError(f"{text}; remove them, or pass unpaired='ignore'")
        warnings.warn(text, stacklevel=2)
    return pairs


def has_audio_name(path: Path) -> bool:
    """Whether a file's name is that of a recording: one of `AUDIO_SUFFIXES`, and not hidden.

    >>> has_audio_name(Path("a/b.WAV")), has_audio_name(Path(".b.wav")), has_audio_name(Path("b"))
    (True, False, False)
    """
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def _recordings(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise CorpusError(f"{root} is not a folder; pass the folder of the recordings")
    found: dict[str, Path] = {}
    for file in sorted(root.rglob("*")):
        if not (has_audio_name(file) and file.is_file()):
            continue
        name = file.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise CorpusError(f"{found[name]} and {file} have one name; keep one of them")
        found[name] = file
    return found
