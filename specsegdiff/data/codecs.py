"""Audio codecs of the installed ``ffmpeg``, as vocoders of `specsegdiff.data.vocoders`."""

import functools
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from specsegdiff.data.samples import SAMPLE_RATE, check_mono
from specsegdiff.errors import AudioError, DependencyError


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
        if self.encoder not in encoders():
            raise DependencyError(
                f"codec '{self.name}' needs ffmpeg with the encoder '{self.encoder}'; install "
                "ffmpeg with it, or take the codecs that vocoder_bank() lists"
            )
        raw = ("-f", "f32le", "-ar", str(SAMPLE_RATE), "-ac", "1")
        coded = self._ffmpeg(
            (*raw, "-i", "pipe:0", "-ar", str(self.rate), "-c:a", self.encoder, *self.options),
            self.container,
            data=check_mono(wave).numpy().astype("<f4").tobytes(),
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


_NARROW = 3_500.0
CODECS = (
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
"""The codecs that take part in `specsegdiff.data.vocoders.vocoder_bank`. Their ``band_hz`` was
measured: the highest frequency within 6 dB of the input on speech."""


def installed_codecs() -> list[Codec]:
    """Return the codecs of `CODECS` that this machine's ``ffmpeg`` can encode."""
    return [codec for codec in CODECS if codec.encoder in encoders()]


@functools.cache
def encoders() -> frozenset[str]:
    """Names of ffmpeg's encoders; none where ffmpeg is missing."""
    if shutil.which("ffmpeg") is None:
        return frozenset()
    done = subprocess.run(
        ("ffmpeg", "-hide_banner", "-encoders"), capture_output=True, text=True, check=False
    )
    lines = (line.split() for line in done.stdout.splitlines())
    return frozenset(words[1] for words in lines if len(words) > 1 and words[0].startswith("A"))
