"""Files decoded to samples: soundfile first, then torchcodec, then the ffmpeg program."""

import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from specsegdiff.data.containers import MP3_SLACK, Walk, walk
from specsegdiff.data.samples import Opened, Samples, check_rate, check_values, from_decoder
from specsegdiff.errors import AudioError

# Formats and subtypes whose every sample sits at a known byte, or in FLAC: seeking is exact there.
_ADDRESSABLE = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"}
_PLAIN = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
# libsndfile trusts the file's real size over the header and only notes the claim in its log.
_CLAIM = re.compile(
    r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (-?\d+) \(should be (\d+)\)", re.MULTILINE
)
_UNKNOWN_SIZES = (range(0x7FFF_F000, 2**32), range(2**64 - 1, 2**64))
"""Claims in here are the placeholders that streaming writers (ffmpeg, SoX) leave."""
_UNKNOWN_FRAMES = 2**62
LONGEST = 24 * 3_600
"""Seconds that a file with fewer bytes than samples may decode to: some kilobytes can be crafted
into weeks of silence."""
_FFMPEG_SECONDS = 60
_FFMPEG_BYTES = 2**18
"""ffmpeg may take so many seconds, and one more for each so many bytes, a twentieth of its speed on
one slow core."""
_FFMPEG_BLOCK = 2**28
"Bytes that it may reserve at once, whatever a header says."
# Containers of recordings, by their names in ffmpeg. Scripts and playlists (ffconcat, HLS, SBaGen)
# are left out: a few lines of them name other files, or make sound for ever.
_FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,iff,ircam,loas,"
    "matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,oma,qcp,rm,shn,sox,tak,tta,voc,w64,wav,wv"
)
_MALFORMED = 3  # SF_ERR_MALFORMED_FILE: recognised, so another decoder would hide the damage


def _temporary(cleanup: ExitStack) -> Path:
    return Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="specsegdiff-")))


def from_bytes(source: Any, name: str, cleanup: ExitStack) -> Opened:
    """Copy ``bytes`` or a binary file object to a file, so that every decoder can seek in it."""
    path = _temporary(cleanup) / "source"
    if isinstance(source, (bytes, bytearray, memoryview)):
        path.write_bytes(source)
        return from_file(path, name, cleanup)
    with path.open("wb") as file:
        while True:
            try:
                chunk = source.read(2**20)
            except Exception as error:  # a foreign object's read may raise anything
                raise AudioError(
                    f"cannot read the file object: {error}; pass one opened with mode 'rb'"
                ) from error
            if not isinstance(chunk, bytes):
                raise AudioError(
                    f"the file object gave {type(chunk).__name__}, expected bytes; "
                    "open it with mode 'rb'"
                )
            if not chunk:
                break
            file.write(chunk)
    return from_file(path, name, cleanup)


def from_file(path: Path, name: str, cleanup: ExitStack) -> Opened:
    """Open an audio file; what has to outlive this call is closed by ``cleanup``."""
    try:
        status = path.stat()
        regular = stat.S_ISREG(status.st_mode)
        # opening a pipe or a device could wait for ever
        walked = walk(path) if regular else Walk()
    except (OSError, ValueError) as error:
        raise AudioError(
            f"cannot open {name}: {error}; check the path and its permissions"
        ) from error
    if not regular:
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "device or pipe"
        raise AudioError(f"{name} is a {kind}, expected an audio file; pass the path of a file")
    if status.st_size == 0:
        raise AudioError(f"{name} has 0 bytes, expected an audio file; fetch or write it again")
    if walked.cut:
        raise _damaged(name, walked.cut)
    try:
        file = cleanup.enter_context(sf.SoundFile(path))
    except (sf.SoundFileError, TypeError) as error:  # TypeError: headerless formats, by suffix
        if getattr(error, "code", 0) == _MALFORMED:
            raise _damaged(name, error) from error
        return _from_other_decoders(path, name, cleanup, reason=str(error))
    check_rate(file.samplerate, what=f"sample rate of {name}")
    if file.frames >= _UNKNOWN_FRAMES:  # a streamed FLAC, at whose end soundfile fails
        return _from_other_decoders(path, name, cleanup, reason="the header gives no length")
    if "IEEE float" in file.extra_info and file.subtype == "PCM_32":  # in W64, a libsndfile bug
        return _from_other_decoders(path, name, cleanup, reason="floats taken for integers")
    if doubt := walked.doubt(file.frames):
        return _from_other_decoders(path, name, cleanup, reason=doubt)
    for said, real in _CLAIM.findall(file.extra_info):
        claim = int(said) % 2**64  # those from 2**63 on are told as negative
        if claim > int(real) + 1 and not any(claim in sizes for sizes in _UNKNOWN_SIZES):
            raise _damaged(name, f"the header says {claim} bytes, {real} are there")
    size = status.st_size
    if not (file.format in _ADDRESSABLE and file.subtype in _PLAIN and file.seekable()):
        file = _decode_once(file, name, _temporary(cleanup), cleanup, size=size)
    return _from_soundfile(file, name, size=size)


def _damaged(name: str, reason: object) -> AudioError:
    return AudioError(f"{name} is damaged or cut short: {reason}; fetch or write it again")


def _check_length(samples: int, rate: int, name: str, *, size: int) -> None:
    if samples > max(size, LONGEST * rate):
        raise AudioError(
            f"{name} decodes to more than {LONGEST // 3_600} hours, from fewer bytes than samples; "
            "split it, or convert it to WAV if it is a recording"
        )


def _from_other_decoders(path: Path, name: str, cleanup: ExitStack, *, reason: str) -> Opened:
    tried = [f"soundfile: {reason}"]
    try:
        from torchcodec.decoders import AudioDecoder

        return from_decoder(AudioDecoder(str(path)), name)
    except ImportError:
        tried.append("torchcodec: not installed")
    except Exception as error:  # a broken or unfit torchcodec raises errors of many kinds
        tried.append(f"torchcodec: {error}")
    program = shutil.which("ffmpeg")
    if program is None:
        tried.append("ffmpeg: not installed")
    else:
        out = _temporary(cleanup) / "decoded.wav"
        if (message := _run_ffmpeg(program, path, out)) is None:
            file = cleanup.enter_context(sf.SoundFile(out))
            return _from_soundfile(file, name, size=path.stat().st_size)
        tried.append(f"ffmpeg: {message}")
    raise AudioError(
        f"cannot decode {name} by soundfile, torchcodec or ffmpeg ({'; '.join(tried)}); "
        "check that it is audio, install one of these for its format, or convert it to WAV or FLAC"
    )


def _run_ffmpeg(program: str, path: Path, out: Path) -> str | None:
    """Decode ``path`` to the WAV file ``out``, and say what is wrong where that fails."""
    # The whitelist keeps playlists off the network; -xerror turns damage into failure.
    command = [program, "-nostdin", "-v", "error", "-xerror", "-max_alloc", str(_FFMPEG_BLOCK)]
    command += ["-protocol_whitelist", "file", "-format_whitelist", _FFMPEG_FORMATS]
    command += ["-i", f"file:{path.absolute()}", "-map", "0:a:0", "-t", str(LONGEST + 1)]
    command += ["-c:a", "pcm_f32le", "-rf64", "auto", str(out)]
    limit = _FFMPEG_SECONDS + path.stat().st_size / _FFMPEG_BYTES
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    if done.returncode == 0 and out.exists():
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no audio stream"


def _decode_once(
    file: sf.SoundFile, name: str, folder: Path, cleanup: ExitStack, *, size: int
) -> sf.SoundFile:
    """Decode a file that cannot be addressed by sample, front to back, to mono floats on disk."""
    path, total = folder / "decoded.w64", 0
    try:
        with sf.SoundFile(path, "w", file.samplerate, 1, "FLOAT", format="W64") as out:
            for block in _blocks(file, name):
                out.write(block.mean(axis=1))
                total += len(block)
                _check_length(total, file.samplerate, name, size=size)
    except (sf.SoundFileError, AssertionError) as error:  # soundfile asserts that all was written
        raise AudioError(
            f"cannot decode {name} to {folder}: {error}; free some space, or set TMPDIR"
        ) from error
    if total + MP3_SLACK < file.frames:
        raise _damaged(name, f"the header says {file.frames} samples, {total} can be decoded")
    return cleanup.enter_context(sf.SoundFile(path))


def _blocks(file: sf.SoundFile, name: str) -> Iterator[Samples]:
    try:
        while len(block := file.read(max(1, 2**20 // file.channels), always_2d=True)):
            yield block
    except sf.SoundFileError as error:
        raise _damaged(name, error) from error


def _from_soundfile(file: sf.SoundFile, name: str, *, size: int) -> Opened:
    """Read windows of a sample-addressable file, once its end and values are checked; ``size`` is
    that of the recording it came from, in bytes."""
    rate = check_rate(file.samplerate, what=f"sample rate of {name}")
    if file.frames == 0:
        raise AudioError(f"{name} holds no samples, expected at least one; fetch or write it again")

    def read(start: int, stop: int) -> Samples:
        out = np.empty(stop - start)
        piece = max(1, 2**20 // file.channels)
        for at in range(start, stop, piece):
            want = min(piece, stop - at)
            try:
                file.seek(at)
                block = file.read(want, always_2d=True)
            except sf.SoundFileError as error:
                raise _damaged(name, f"unreadable within {at}..{at + want} ({error})") from error
            if len(block) != want:
                raise _damaged(name, f"no samples from {at + len(block)} on")
            out[at - start : at - start + want] = block.mean(axis=1)
        return out

    read(file.frames - 1, file.frames)  # a cut FLAC cannot reach its end
    _check_length(file.frames, rate, name, size=size)
    if file.subtype in ("FLOAT", "DOUBLE"):
        file.seek(0)
        check_values(_blocks(file, name), name)
    return Opened(name, rate, file.frames, read)
