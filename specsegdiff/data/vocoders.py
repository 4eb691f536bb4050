"""Vocoders and codecs without weights: they make real/vocoded pairs out of any speech at 16 kHz."""

import csv
import functools
import importlib
import math
import os
import random
import shutil
import subprocess
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from specsegdiff.data.audio import load_audio, write_audio
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import (
    AudioError,
    ConfigError,
    CorpusError,
    DependencyError,
    OutputError,
    PairError,
)
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.shapes import check_wave

SAMPLE_RATE = 16_000
MIN_LOGMEL_CORR = 0.6
"""Below it a result is no copy: mismatched utterances of the paired corpus reach 0.51 at most."""


@runtime_checkable
class Vocoder(Protocol):
    """A callable that copies speech ``(n,)``, float32 at 16 kHz, and leaves traces of synthesis.

    Equal input gives equal output; the length may differ by a delay, which `align` removes.
    """

    @property
    def name(self) -> str:
        """Label of the setting: folder name and manifest entry."""

    @property
    def family(self) -> str:
        """Kind of method: ``dsp``, ``source-filter`` or ``codec``."""

    @property
    def band_hz(self) -> float | None:
        """Highest frequency that it keeps; None where it keeps all."""

    def __call__(self, wave: Tensor, /) -> Tensor:
        """Copy ``wave``."""


@dataclass(frozen=True)
class GriffinLim:
    """Mel spectrogram, inverted by least squares and given a phase by fast Griffin-Lim.

    Griffin & Lim 1984, with the momentum of Perraudin et al. 2013 (Eq. 9-11).
    """

    name: str = "gl-mel80"
    "Label of the setting."
    n_mels: int = 80
    "Mel bands between 0 and 8 kHz."
    iterations: int = 32
    "Rounds of phase estimation; few of them leave more phase artifacts."
    inverse: Literal["pinv", "nnls"] = "pinv"
    "Mel to linear: clipped pseudo-inverse, or non-negative least squares (smoother)."
    momentum: float = 0.99
    "Momentum of the phase estimate, in [0, 1)."
    seed: int = 0
    "Seed of the first phases."
    family: Literal["dsp"] = "dsp"
    band_hz: None = None

    def __post_init__(self) -> None:
        if self.n_mels < 1 or self.iterations < 0 or not 0 <= self.momentum < 1:
            raise ConfigError(
                "GriffinLim needs n_mels >= 1, iterations >= 0 and momentum in [0, 1), got "
                f"{self.n_mels}, {self.iterations}, {self.momentum}"
            )
        _check_seed(self.seed)
        if self.inverse not in ("pinv", "nnls"):
            raise ConfigError(f"GriffinLim.inverse must be 'pinv' or 'nnls', got {self.inverse!r}")

    def __call__(self, wave: Tensor) -> Tensor:
        """Copy ``wave`` ``(n,)``; the result has its length."""
        wave = _checked(wave)
        stft, length = Stft(StftConfig()), wave.shape[-1]
        bank = _mel_bank(self.n_mels, 1024).T  # (m, f)
        mel = bank @ stft.magnitude(wave)
        magnitude = (torch.linalg.pinv(bank) @ mel).clamp_min(0)
        if self.inverse == "nnls":
            # Multiplicative updates (Lee & Seung 2001) stay positive without a projection.
            magnitude, gram = bank.T @ mel, bank.T @ bank
            for _ in range(50):
                magnitude = magnitude * (bank.T @ mel) / (gram @ magnitude).clamp_min(1e-12)
        noise = _noise(magnitude.numel(), wave, seed=self.seed, uniform=True)
        angles = torch.polar(torch.ones_like(magnitude), 2 * math.pi * noise.view_as(magnitude))
        previous = torch.zeros_like(angles)
        for _ in range(self.iterations):
            rebuilt = stft(stft.inverse(magnitude * angles, length=length))
            angles = torch.sgn(rebuilt - self.momentum / (1 + self.momentum) * previous)
            previous = rebuilt
        return stft.inverse(magnitude * angles, length=length)


@dataclass(frozen=True)
class World:
    """WORLD with Harvest, CheapTrick and D4C (Morise et al. 2016); needs ``pyworld``."""

    name: str = "world"
    "Label of the setting."
    frame_ms: float = 5.0
    "Frame period in milliseconds."
    n_coded: int | None = None
    "Mel-cepstral coefficients that carry the envelope; None keeps it whole."
    semitones: float = 0.0
    "Step of the pitch grid in semitones; 0 keeps the pitch."
    family: Literal["dsp"] = "dsp"
    band_hz: None = None

    def __post_init__(self) -> None:
        if (
            self.frame_ms <= 0
            or self.semitones < 0
            or (self.n_coded is not None and self.n_coded < 2)
        ):
            raise ConfigError(
                "World needs frame_ms > 0, semitones >= 0 and n_coded >= 2 or None, got "
                f"{self.frame_ms}, {self.semitones}, {self.n_coded}"
            )

    def __call__(self, wave: Tensor) -> Tensor:
        """Copy ``wave`` ``(n,)``; the result is longer by one frame at most.

        Raises `DependencyError` where pyworld is missing.
        """
        world = _pyworld()
        signal = _checked(wave).double().numpy()
        rate, period = SAMPLE_RATE, self.frame_ms
        f0, times = world.harvest(signal, rate, frame_period=period)
        envelope = world.cheaptrick(signal, f0, times, rate)
        aperiodicity = world.d4c(signal, f0, times, rate)
        if self.semitones:
            voiced = f0 > 0
            f0[voiced] = 55 * 2 ** (
                np.round(12 * np.log2(f0[voiced] / 55) / self.semitones) * self.semitones / 12
            )
        if self.n_coded is not None:
            size = world.get_cheaptrick_fft_size(rate)
            coded = world.code_spectral_envelope(envelope, rate, self.n_coded)
            envelope = world.decode_spectral_envelope(coded, rate, size)
            coded = world.code_aperiodicity(aperiodicity, rate)
            aperiodicity = world.decode_aperiodicity(coded, rate, size)
        return torch.from_numpy(world.synthesize(f0, envelope, aperiodicity, rate, period)).float()


@dataclass(frozen=True)
class Lpc:
    """Linear prediction with an artificial excitation (Atal & Hanauer 1971)."""

    name: str = "lpc-pulse"
    "Label of the setting."
    order: int = 18
    "Prediction order."
    excitation: Literal["pulse", "noise", "residual"] = "pulse"
    "Pulses where voiced and noise elsewhere; noise only (a whisper); the sign of the residual."
    hop: int = 160
    "Samples between frames of three hops."
    seed: int = 0
    "Seed of the noise."
    family: Literal["source-filter"] = "source-filter"
    band_hz: None = None

    def __post_init__(self) -> None:
        if self.order < 1 or self.hop < self.order:
            raise ConfigError(
                f"Lpc needs 1 <= order <= hop, got order={self.order}, hop={self.hop}"
            )
        _check_seed(self.seed)
        if self.excitation not in ("pulse", "noise", "residual"):
            raise ConfigError(
                f"Lpc.excitation must be 'pulse', 'noise' or 'residual', got {self.excitation!r}"
            )

    def __call__(self, wave: Tensor) -> Tensor:
        """Copy ``wave`` ``(n,)``; the result has its length."""
        from scipy.linalg import solve_toeplitz
        from scipy.signal import lfilter

        wave = _checked(wave)
        length, size = wave.shape[-1], 3 * self.hop
        window = np.hanning(size + 1)[:-1]

        def framed(signal: np.ndarray) -> np.ndarray:
            padded = np.pad(signal, (size, size))
            return np.lib.stride_tricks.sliding_window_view(padded, size)[:: self.hop] * window

        def overlapped(frames: Sequence[np.ndarray]) -> np.ndarray:
            total = np.zeros(length + 2 * size + max(map(len, frames)))
            for i, frame in enumerate(frames):
                total[i * self.hop : i * self.hop + len(frame)] += frame
            # Hann windows a third of their length apart add up to 1.5.
            return total[size : size + length] / 1.5

        frames = framed(wave.double().numpy())
        spectra = np.abs(np.fft.rfft(frames, 2 * size)) ** 2
        correlation = np.fft.irfft(spectra)[:, : self.order + 1]
        correlation[:, 0] = correlation[:, 0] * (1 + 1e-6) + 1e-9  # white-noise correction
        filters = [np.append(1.0, -solve_toeplitz(row[:-1], row[1:])) for row in correlation]
        energy = np.array([a @ row for a, row in zip(filters, correlation, strict=True)])
        gains = np.sqrt(np.maximum(energy, 0) / (window @ window))
        if self.excitation == "residual":
            whitened = [lfilter(a, [1.0], x) for a, x in zip(filters, frames, strict=True)]
            excitation = np.sign(overlapped(whitened))
        else:
            excitation = _noise(length, wave, seed=self.seed).double().numpy()
        if self.excitation == "pulse":
            excitation = _pulses(wave.double().numpy(), excitation, hop=self.hop)
        # The filters ring on after a frame: 512 samples hold the decay of speech formants.
        driven = np.pad(framed(excitation), ((0, 0), (0, 512)))
        parts = [lfilter([g], a, x) for g, a, x in zip(gains, filters, driven, strict=True)]
        return torch.from_numpy(overlapped(parts)).float()


@dataclass(frozen=True)
class Codec:
    """An audio codec of the installed ``ffmpeg``: encode and decode through pipes, no files."""

    name: str
    "Label of the setting."
    encoder: str
    "Name of the encoder in ``ffmpeg -encoders``."
    options: tuple[str, ...] = ()
    "Encoder options."
    container: str = "ogg"
    "Format between encoder and decoder."
    decode: tuple[str, ...] = ()
    "Options that a raw format needs to be read back."
    rate: int = SAMPLE_RATE
    "Hz at which the codec works; the result is brought back to 16 kHz."
    delay: int = 0
    "Samples at 16 kHz that the encoder puts before the signal and no header records."
    band_hz: float | None = None
    "Highest frequency that the codec keeps, in Hz."
    family: Literal["codec"] = "codec"

    def __call__(self, wave: Tensor) -> Tensor:
        """Copy ``wave`` ``(n,)``; a codec's own delay may remain.

        Raises `DependencyError` where ffmpeg lacks the encoder and `AudioError` where it fails.
        """
        if self.encoder not in _encoders():
            raise DependencyError(
                f"codec '{self.name}' needs ffmpeg with the encoder '{self.encoder}'; install "
                "ffmpeg with it, or take the codecs that vocoder_bank() lists"
            )
        raw = ("-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "1")
        coded = self._ffmpeg(
            (*raw, "-i", "pipe:0", "-ar", str(self.rate), "-c:a", self.encoder, *self.options),
            self.container,
            data=_checked(wave).numpy().astype("<f4").tobytes(),
        )
        demuxer = {"adts": "aac"}.get(self.container, self.container)
        decoded = self._ffmpeg(
            ("-f", demuxer, *self.decode, "-i", "pipe:0", *raw[2:]), "f32le", data=coded
        )
        copy = np.frombuffer(decoded, "<f4")[self.delay :].astype(np.float32)
        if not copy.size:
            raise AudioError(
                f"codec '{self.name}' returned no samples for {wave.shape[-1]}; "
                "the recording is too short for it"
            )
        return torch.from_numpy(copy)

    def _ffmpeg(self, options: tuple[str, ...], container: str, *, data: bytes) -> bytes:
        command = ("ffmpeg", "-hide_banner", "-loglevel", "error", "-threads", "1")
        done = subprocess.run(
            (*command, *options, "-fflags", "+bitexact", "-f", container, "pipe:1"),
            input=data,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise AudioError(
                f"codec '{self.name}': ffmpeg ended with status {done.returncode}: "
                f"{said[-1] if said else 'no message'}; leave this codec out"
            )
        return done.stdout


def vocoder_bank() -> list[Vocoder]:
    """Return a varied bank of all vocoders that this machine can run.

    Griffin-Lim and LPC always; WORLD with ``pyworld``; codecs as far as ``ffmpeg`` has encoders.
    """
    bank: list[Vocoder] = [
        GriffinLim(),
        GriffinLim("gl-mel40", n_mels=40),
        GriffinLim("gl-mel80-nnls-i4", iterations=4, inverse="nnls"),
        Lpc(),
        Lpc("lpc-noise", excitation="noise"),
        Lpc("lpc-residual", excitation="residual"),
    ]
    try:
        _pyworld()
    except DependencyError:
        pass
    else:
        bank += [World(), World("world-coarse", frame_ms=10.0, n_coded=24, semitones=1.0)]
    return bank + [codec for codec in _CODECS if codec.encoder in _encoders()]


# band_hz was measured: the highest frequency within 6 dB of the input on speech.
_NARROW = 3_500.0
_CODECS = (
    Codec("opus-6k", "libopus", ("-b:a", "6k"), band_hz=4_000.0),
    Codec("opus-9k", "libopus", ("-b:a", "9k")),
    Codec("opus-16k", "libopus", ("-b:a", "16k")),
    Codec("mp3-16k", "libmp3lame", ("-b:a", "16k"), "mp3", delay=1105, band_hz=5_500.0),
    Codec("mp3-24k", "libmp3lame", ("-b:a", "24k"), "mp3", delay=1105, band_hz=5_500.0),
    Codec("aac-16k", "aac", ("-b:a", "16k"), "adts", delay=1024, band_hz=3_700.0),
    Codec("vorbis-q-1", "libvorbis", ("-q:a", "-1")),
    Codec("speex-q3", "libspeex", ("-cbr_quality", "3")),
    Codec("speex-8khz-q3", "libspeex", ("-cbr_quality", "3"), rate=8_000, band_hz=_NARROW),
    Codec("codec2-3200", "libcodec2", ("-mode", "3200"), "codec2", rate=8_000, band_hz=_NARROW),
    Codec("codec2-1300", "libcodec2", ("-mode", "1300"), "codec2", rate=8_000, band_hz=3_250.0),
    Codec("gsm", "libgsm", (), "gsm", rate=8_000, band_hz=_NARROW),
    Codec("g722", "g722", (), "g722"),
    Codec(
        "g726-16k", "g726", ("-code_size", "2"), "g726", ("-code_size", "2"), 8_000, band_hz=_NARROW
    ),
    Codec("alaw", "pcm_alaw", (), "alaw", ("-ar", "8000", "-ac", "1"), 8_000, band_hz=_NARROW),
)


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
        first, second = (_log_mel(w, n_mels=40, n_fft=512, hop=hop) for w in (real, fake))
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


@dataclass(frozen=True)
class Copy:
    """A vocoded recording, aligned with its original, and how close it is."""

    fake: Tensor
    "``(n,)``, as long as the original, |x| <= 1."
    lag: int
    "Samples by which the vocoder was late, already removed."
    gain_db: float
    "RMS level of fake over real in dB."
    logmel_corr: float
    "Correlation of the log-mel spectrograms within ``band_hz``."
    band_hz: float | None
    "Highest frequency that the vocoder keeps."


def make_pair(
    wave: Tensor,
    vocoder: Vocoder,
    *,
    max_lag: int = 1024,
    min_logmel_corr: float = MIN_LOGMEL_CORR,
) -> Copy:
    """Vocode ``wave (n,)`` at 16 kHz, align the copy and measure it.

    Raises `PairError` where the result is no copy: silent or not finite, longer or shorter by more
    than ``max_lag`` and a frame of 100 ms, or with a ``logmel_corr`` below ``min_logmel_corr``.
    A copy that would clip is scaled to a peak of 1, and ``gain_db`` tells so.

    >>> wave = torch.sin(torch.arange(8_000) / 9) * torch.linspace(0, 0.5, 8_000)
    >>> copy = make_pair(wave, Lpc())
    >>> tuple(copy.fake.shape), copy.lag < 32
    ((8000,), True)
    """
    fake = vocoder(_checked(wave))
    if not bool(torch.isfinite(fake).all()):
        raise PairError(f"vocoder '{vocoder.name}' returned values that are not finite")
    n, m = wave.shape[-1], fake.shape[-1]
    if abs(m - n) > max_lag + SAMPLE_RATE // 10:
        raise PairError(f"vocoder '{vocoder.name}' returned {m} samples for {n}; no copy")
    fake, lag = align(wave, fake, max_lag=max_lag)
    fake = fake / max(1.0, float(fake.abs().max()))
    levels = [float(w.double().square().mean().sqrt()) for w in (wave, fake)]
    if min(levels) < 1e-5:
        raise PairError(
            f"vocoder '{vocoder.name}': a silent side, RMS of real {levels[0]:.1e} and of fake "
            f"{levels[1]:.1e}; both need 1e-5 or more"
        )
    mels = [
        _log_mel(w, n_mels=80, n_fft=1024, hop=256, band_hz=vocoder.band_hz) for w in (wave, fake)
    ]
    corr = float(torch.corrcoef(torch.stack([mel.flatten() for mel in mels]))[0, 1])
    if not corr >= min_logmel_corr:
        raise PairError(
            f"vocoder '{vocoder.name}': log-mel correlation {corr:.2f} is below {min_logmel_corr}; "
            "the result is no copy of the recording"
        )
    return Copy(fake, lag, 20 * math.log10(levels[1] / levels[0]), corr, vocoder.band_hz)


@dataclass(frozen=True)
class Source:
    """A recording to vocode, with what a manifest must know of it."""

    path: Path
    "Audio file."
    id: str = ""
    "Unique name; the file's stem by default."
    group: str = ""
    "Recordings of one utterance share it; the id by default."
    speaker: str = ""
    "Speaker, where known."
    split: str = ""
    "``train``, ``val`` or ``test``, where chosen."

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or self.path.stem)
        object.__setattr__(self, "group", self.group or self.id)
        if Path(self.id).name != self.id:
            raise CorpusError(
                f"a source id is one file name, got {self.id!r}; leave out separators"
            )


def make_pairs(
    sources: Iterable[Path | Source],
    out: Path,
    *,
    vocoders: Sequence[Vocoder],
    per_source: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Write ``real/*.flac``, ``fake/<vocoder>/*.flac`` and ``pairs.csv`` below ``out``.

    Each recording goes through every vocoder, or through ``per_source`` of them, drawn by ``seed``
    and the recording's id alone. ``progress(done, total)`` is called after each recording. What
    fails becomes a row of ``rejected.csv`` (source, vocoder, reason) and stops nothing; the pairs
    come in the order of the sources whatever ``jobs`` is. Files are written aside and renamed, the
    manifest last. Raises `CorpusError` on two sources of one id, `ConfigError` on two vocoders of
    one name, `OutputError` where ``out`` cannot be written.
    """
    todo = [source if isinstance(source, Source) else Source(Path(source)) for source in sources]
    twice = _repeated(source.id for source in todo)
    if twice:
        raise CorpusError(
            f"two sources are named '{twice}'; pass Source(path, id=...) with unique ids"
        )
    twice = _repeated(vocoder.name for vocoder in vocoders)
    if twice or not vocoders:
        raise ConfigError(
            f"make_pairs needs vocoders of different names, got '{twice}' twice or none"
        )
    if per_source is not None and not 1 <= per_source <= len(vocoders):
        raise ConfigError(f"per_source must lie in 1..{len(vocoders)}, got {per_source}")
    if jobs < 1:
        raise ConfigError(f"jobs must be >= 1, got {jobs}")
    chosen = []
    for source in todo:
        draw = random.Random(f"{seed}/{source.id}")
        picks = sorted(draw.sample(range(len(vocoders)), per_source or len(vocoders)))
        chosen.append([vocoders[i] for i in picks])
    results: dict[int, tuple[list[Row], list[Row]]] = {}
    if jobs == 1:
        for i, (source, bank) in enumerate(zip(todo, chosen, strict=True)):
            results[i] = _vocode_source(source, bank, out)
            if progress:
                progress(len(results), len(todo))
    else:
        # A forked child inherits torch's locked thread pool and may hang: start fresh ones.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = {
                pool.submit(_vocode_source, source, bank, out): i
                for i, (source, bank) in enumerate(zip(todo, chosen, strict=True))
            }
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                if progress:
                    progress(len(results), len(todo))
    good = [row for i in range(len(todo)) for row in results[i][0]]
    bad = [row for i in range(len(todo)) for row in results[i][1]]
    _write_csv(out / "rejected.csv", ("source", "vocoder", "reason"), bad)
    _write_csv(out / "pairs.csv", _COLUMNS, good)
    return [
        Pair(
            id=row["pair_id"],
            real=out / row["real"],
            fake=out / row["fake"],
            n_samples=int(row["n_samples"]),
            gain_db=float(row["gain_db"]),
            vocoder=row["vocoder"],
            family=row["family"],
            split=row["split"],
            source_group=row["source_group"],
            speaker=row["speaker"],
            band_hz=float(row["band_hz"]) if row["band_hz"] else None,
        )
        for row in good
    ]


Row = dict[str, str]
_COLUMNS = (
    "pair_id",
    "split",
    "vocoder",
    "family",
    "source_id",
    "source_group",
    "speaker",
    "real",
    "fake",
    "n_samples",
    "gain_db",
    "logmel_corr",
    "band_hz",
)


def _vocode_source(
    source: Source, vocoders: Sequence[Vocoder], out: Path
) -> tuple[list[Row], list[Row]]:
    """Write one recording and its copies; return manifest rows and rejected rows."""
    good: list[Row] = []
    bad: list[Row] = []

    def reject(vocoder: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        bad.append({"source": str(source.path), "vocoder": vocoder, "reason": reason})

    real = Path("real") / f"{source.id}.flac"
    try:
        wave = load_audio(source.path, target_rate=SAMPLE_RATE)
        _write(out / real, wave)
    except OutputError:
        raise
    except Exception as error:  # one bad recording among thousands must not end the job
        reject("", error)
        return good, bad
    for vocoder in vocoders:
        fake = Path("fake") / vocoder.name / f"{source.id}.flac"
        try:
            copy = make_pair(wave, vocoder)
            _write(out / fake, copy.fake)
        except OutputError:
            raise
        except Exception as error:
            reject(vocoder.name, error)
            continue
        good.append(
            {
                "pair_id": f"{source.id}--{vocoder.name}",
                "split": source.split,
                "vocoder": vocoder.name,
                "family": vocoder.family,
                "source_id": source.id,
                "source_group": source.group,
                "speaker": source.speaker,
                "real": real.as_posix(),
                "fake": fake.as_posix(),
                "n_samples": str(wave.shape[-1]),
                "gain_db": f"{copy.gain_db:.3f}",
                "logmel_corr": f"{copy.logmel_corr:.4f}",
                "band_hz": "" if copy.band_hz is None else f"{copy.band_hz:g}",
            }
        )
    return good, bad


def _write(path: Path, wave: Tensor) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {path.parent}: {error}; choose another folder") from error
    write_audio(path, wave, sample_rate=SAMPLE_RATE)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error}; choose another folder") from error


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _checked(wave: Tensor) -> Tensor:
    check_wave(wave)
    if wave.ndim != 1 or not bool(torch.isfinite(wave).all()):
        raise AudioError(
            f"a vocoder takes one finite waveform (n,), got shape {tuple(wave.shape)}; "
            "load it with specsegdiff.data.audio.load_audio"
        )
    return wave.detach().float().cpu()


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ConfigError(f"a vocoder's seed must lie in 0..2**32 - 1, got {seed}")


def _noise(size: int, wave: Tensor, *, seed: int, uniform: bool = False) -> Tensor:
    # The recording seeds too: a bank must not put one and the same noise on a whole corpus.
    # One 32-bit number of both, since torch's CPU generator ignores all higher bits of a seed.
    generator = torch.Generator().manual_seed(zlib.crc32(wave.numpy().tobytes(), seed))
    return (torch.rand if uniform else torch.randn)(size, generator=generator)


def _pulses(signal: np.ndarray, noise: np.ndarray, *, hop: int) -> np.ndarray:
    """Unit-power pulses at the pitch where ``signal (n,)`` is voiced, ``noise`` elsewhere."""
    size, low, high = 4 * hop, SAMPLE_RATE // 400, SAMPLE_RATE // 60
    padded = np.pad(signal, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * np.hanning(size)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * size)) ** 2)
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 2 * size)) ** 2)
    # The window's own correlation is divided out, and the cost of an octave breaks the tie between
    # a period and its multiples (Boersma 1993, there 0.01, too little for these short frames).
    ratio = correlation / (correlation[:, :1] + 1e-9) * (window[0] / window[: 2 * size])
    lags = np.arange(low, high)
    periods = lags[(ratio[:, low:high] - 0.05 * np.log2(lags / low)).argmax(1)]
    voiced = np.take_along_axis(ratio, periods[:, None], 1)[:, 0] > 0.5
    result, position = noise.copy(), 0
    while position < len(signal):
        frame = position // hop
        if voiced[frame]:
            period = int(periods[frame])
            result[position : position + period] = 0
            result[position] = math.sqrt(period)
            position += period
        else:
            position = (frame + 1) * hop
    return result


@functools.cache
def _mel_bank(n_mels: int, n_fft: int) -> Tensor:
    """Triangular HTK mel filters, ``(n_fft // 2 + 1, n_mels)``."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8_000 / 700), n_mels + 2) / 2595) - 1)
    freqs = np.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)[:, None]
    rising = (freqs - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - freqs) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None)).float()


def _log_mel(
    wave: Tensor, *, n_mels: int, n_fft: int, hop: int, band_hz: float | None = None
) -> Tensor:
    """Log-mel spectrogram ``(m, t)`` of the bands below ``band_hz``, 80 dB deep."""
    magnitude = Stft(StftConfig(n_fft=n_fft, hop=hop)).magnitude(wave)
    bank = _mel_bank(n_mels, n_fft)
    if band_hz is not None:
        freqs = torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)
        bank = bank[:, bank[freqs > band_hz].sum(0) == 0]
    mel = bank.T @ magnitude
    return mel.clamp_min(float(mel.max()) * 1e-4 + 1e-9).log()


def _cross_correlation(real: Tensor, fake: Tensor, *, max_lag: int) -> Tensor:
    """Normalised correlation of rows ``(c, n)`` and ``(c, m)`` at lags ``-max_lag..max_lag``."""
    first, second = (rows.double() - rows.double().mean(-1, keepdim=True) for rows in (real, fake))
    size = real.shape[-1] + fake.shape[-1] + max_lag
    product = torch.fft.rfft(second, size) * torch.fft.rfft(first, size).conj()
    full = torch.fft.irfft(product.sum(0), size)
    scale = (first.norm() * second.norm()).clamp_min(1e-12)
    return torch.cat((full[full.shape[-1] - max_lag :], full[: max_lag + 1])) / scale


@functools.cache
def _encoders() -> frozenset[str]:
    """Names of ffmpeg's encoders; none where ffmpeg is missing."""
    if shutil.which("ffmpeg") is None:
        return frozenset()
    done = subprocess.run(
        ("ffmpeg", "-hide_banner", "-encoders"), capture_output=True, text=True, check=False
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return frozenset(words[1] for words in lines if len(words) > 1 and words[0].startswith("A"))


def _pyworld() -> Any:
    try:
        with warnings.catch_warnings():
            # pyworld asks for pkg_resources, which warns of its own end.
            warnings.simplefilter("ignore")
            return importlib.import_module("pyworld")
    except ImportError as error:
        raise DependencyError(
            "WORLD needs pyworld, and pyworld needs pkg_resources; "
            "install them with: pip install 'specsegdiff[vocoders]'"
        ) from error
