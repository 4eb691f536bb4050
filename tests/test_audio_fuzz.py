"""Hostile files: whatever the bytes say, a recording loads or is an AudioError, and costs little.

The cost is held by the system: one process loads all of a table under a limit on its memory.
"""

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specsegdiff.data import decoding
from specsegdiff.data.audio import load_audio, open_audio
from specsegdiff.data.containers import walk
from specsegdiff.data.samples import PEAK_LIMIT
from specsegdiff.errors import AudioError

RATE = 16_000
N = 3_000
KINDS = [
    *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAVEX", "PCM_24")),
    *(("RF64", "PCM_16"), ("W64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16")),
    *(("AU", "ULAW"), ("CAF", "PCM_16"), ("FLAC", "PCM_16"), ("NIST", "PCM_16")),
    *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def encoded(format: str, subtype: str, *, n: int = N) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(0).uniform(-0.5, 0.5, n)
    sf.write(file, values, RATE, format=format, subtype=subtype)
    return file.getvalue()


WHOLE = {f"{kind} {subtype}": encoded(kind, subtype) for kind, subtype in KINDS}


def wav(
    *,
    format: int = 1,
    channels: int = 1,
    rate: int = RATE,
    align: int = 2,
    bits: int = 16,
    data: int | None = None,
    riff: int | None = None,
    body: bytes = bytes(2 * N),
) -> bytes:
    """A WAV file whose every number may lie."""
    head = struct.pack("<HHIIHH", format, channels, rate, rate * align % 2**32, align, bits)
    parts = b"WAVEfmt " + struct.pack("<I", len(head)) + head
    parts += b"data" + struct.pack("<I", len(body) if data is None else data) + body
    return b"RIFF" + struct.pack("<I", len(parts) if riff is None else riff) + parts


def rf64(*, data: int, samples: int, riff: int = 2**63) -> bytes:
    """An RF64 file with 64-bit lengths of its own choice."""
    head = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    lengths = struct.pack("<QQQI", riff, data, samples, 0)
    parts = b"WAVEds64" + struct.pack("<I", len(lengths)) + lengths
    parts += b"fmt " + struct.pack("<I", len(head)) + head
    return b"RF64\xff\xff\xff\xff" + parts + b"data\xff\xff\xff\xff" + bytes(2 * N)


def au(*, offset: int = 24, data: int = 2 * N, rate: int = RATE, channels: int = 1) -> bytes:
    """An AU file whose every number may lie."""
    return b".snd" + struct.pack(">5I", offset, data, 3, rate, channels) + bytes(2 * N)


def aiff(*, frames: int = N, channels: int = 1, rate: bytes | None = None) -> bytes:
    """An AIFF file whose COMM chunk may lie; ``rate`` is an 80-bit float."""
    rate = rate or struct.pack(">HQ", 16_383 + 13, RATE << 50)
    common = struct.pack(">HIH", channels, frames, 16) + rate
    body = struct.pack(">II", 0, 0) + bytes(2 * N)
    parts = b"AIFFCOMM" + struct.pack(">I", len(common)) + common
    parts += b"SSND" + struct.pack(">I", len(body)) + body
    return b"FORM" + struct.pack(">I", len(parts)) + parts


def nist(*, samples: int = N, body: int = N) -> bytes:
    """A NIST SPHERE file of ``body`` samples."""
    head = (
        f"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {samples}\nsample_rate -i {RATE}\n"
    )
    head += "sample_n_bytes -i 2\nsample_byte_format -s2 01\nsample_sig_bits -i 16\nend_head\n"
    return head.encode().ljust(1_024) + bytes(2 * body)


def flac_of_silence(*, minutes: int) -> bytes:
    """A FLAC file in which 14 bytes state 4.1 s of digital silence, over and over."""
    per_frame = 65_535
    count = minutes * 60 * RATE // per_frame

    def number(value: int) -> bytes:  # as UTF-8 has it, up to 31 bits
        if value < 0x80:
            return bytes([value])
        tail = []
        room = 0x1F
        while True:
            tail.insert(0, 0x80 | value & 0x3F)
            value >>= 6
            if value <= room:
                return bytes([~(2 * room + 1) & 0xFF | value, *tail])
            room >>= 1

    def crc(data: bytes, width: int, polynomial: int) -> int:
        value, top = 0, 1 << width - 1
        for byte in data:
            value ^= byte << width - 8
            for _ in range(8):
                value = (value << 1 ^ (polynomial if value & top else 0)) & (2 * top - 1)
        return value

    info = struct.pack(">HH", per_frame, per_frame) + bytes(6)
    info += struct.pack(">Q", RATE << 44 | 15 << 36 | count * per_frame) + bytes(16)
    frames = []
    for i in range(count):
        head = b"\xff\xf8\x75\x08" + number(i) + struct.pack(">H", per_frame - 1)
        frame = head + bytes([crc(head, 8, 0x07)]) + b"\0\0\0"
        frames.append(frame + struct.pack(">H", crc(frame, 16, 0x8005)))
    return b"fLaC\x80\0\0\x22" + info + b"".join(frames)


# what is told, and whether the file may load in spite of it
HOSTILE: dict[str, tuple[bytes, bool]] = {
    "wav: nothing but a header": (wav(body=b""), False),
    "wav: zero bytes, all of it": (bytes(20_000), False),
    "wav: header, then the end": (wav()[:20], False),
    "wav: block align 0": (wav(align=0), True),
    "wav: block align 65535": (wav(align=65_535), True),
    "wav: rate 0": (wav(rate=0), False),
    "wav: rate 999": (wav(rate=999), False),
    "wav: rate 2^31": (wav(rate=2**31), False),
    "wav: rate 2^32 - 1": (wav(rate=2**32 - 1), False),
    "wav: rate 383999": (wav(rate=383_999), True),
    "wav: no channels": (wav(channels=0, align=0), False),
    "wav: 1024 channels": (wav(channels=1_024, align=2_048, body=bytes(2_048 * 40)), True),
    "wav: 65535 channels": (wav(channels=65_535, align=65_534), False),
    "wav: no bits": (wav(bits=0), False),
    "wav: 65535 bits": (wav(bits=65_535), False),
    "wav: a data chunk of 2 GB": (wav(data=2_000_000_000), False),
    "wav: lengths of a stream": (wav(data=2**32 - 1, riff=2**32 - 1), True),
    "wav: no data": (wav(data=0), False),
    "wav: ADPCM in blocks of 0": (wav(format=17, align=0, bits=4), False),
    "wav: ADPCM in blocks of 64 KB": (wav(format=17, align=65_535, bits=4), False),
    "wav: MP3 inside": (wav(format=85), False),
    "wav: a format that nobody knows": (wav(format=0x7777), False),
    "rf64: 2^63 bytes": (rf64(data=2**63, samples=N), False),
    "rf64: 2^64 - 1 samples": (rf64(data=2 * N, samples=2**64 - 1, riff=72 + 2 * N), True),
    "rf64: 2^40 bytes": (rf64(data=2**40, samples=2**39, riff=2**40 + 72), False),
    "rf64: nothing": (rf64(data=0, samples=0), False),
    "au: 2 GB": (au(data=2_000_000_000), False),
    "au: length unknown": (au(data=2**32 - 1), True),
    "au: samples from byte 2^31 on": (au(offset=2**31), False),
    "au: rate 2^31": (au(rate=2**31), False),
    "au: no channels": (au(channels=0), False),
    "au: 2^32 - 1 channels": (au(channels=2**32 - 1), False),
    "aiff: 2^32 - 1 frames": (aiff(frames=2**32 - 1), True),
    "aiff: no channels": (aiff(channels=0), False),
    "aiff: 65535 channels": (aiff(channels=65_535), False),
    "aiff: rate 0": (aiff(rate=bytes(10)), False),
    "aiff: rate infinite": (aiff(rate=b"\x7f\xff\x80" + bytes(7)), False),
    "aiff: rate 2^31": (aiff(rate=struct.pack(">HQ", 16_383 + 31, 1 << 63)), False),
    "nist: a third is missing": (nist(body=2 * N // 3), False),
    "nist: 10^12 samples": (nist(samples=10**12), False),
    "flac: 26 h of silence in 300 KB": (flac_of_silence(minutes=26 * 60), False),
    "ogg: a page without segments, again and again": (b"OggS" + bytes(23), False),
    "mp3: a frame, and no more": (b"\xff\xfb\x90\x00" + bytes(413), False),
    "mp3: an ID3 tag of 256 MB": (b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + bytes(5_000), False),
}

MEGABYTES = 700
"What loading may reserve beside what the imports did; the filter of rate 383999 takes most of it."

SECONDS = 60
"Of processor time, for the whole table; it takes about five."


def test_hostile_headers_load_or_are_audio_errors_in_little_memory_and_time(tmp_path):
    for i, (content, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{i}").write_bytes(content)
    code = f"""
import json, resource, warnings
from pathlib import Path
warnings.simplefilter("error")
from specsegdiff.data import decoding
from specsegdiff.data.audio import load_audio
from specsegdiff.errors import AudioError
decoding.shutil.which = lambda program: None  # ffmpeg has tests of its own
load_audio([0.0] * 99, 44_100)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {MEGABYTES} * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS} + int(sum(resource.getrusage(0)[:2])),) * 2)
for i in range({len(HOSTILE)}):
    try:
        wave = load_audio(Path({str(tmp_path)!r}) / str(i))
        print(json.dumps([len(wave), bool(wave.isfinite().all())]), flush=True)
    except AudioError as error:
        print(json.dumps(str(error)), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=300,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", '"'))]
    assert done.returncode == 0, (list(HOSTILE)[len(told)], done.stderr[-2_000:])
    found = dict(zip(HOSTILE, told, strict=True))
    loaded = {name: isinstance(result, list) for name, result in found.items()}
    assert loaded == {name: loads for name, (_, loads) in HOSTILE.items()}
    for name in (name for name in HOSTILE if loaded[name]):
        n, is_finite = found[name]
        assert is_finite, name
        assert n <= 16 * len(HOSTILE[name][0]), name  # as many as bytes, at 1 kHz and above


# ------------------------------------------------------------------ any bytes


def no_programs(monkeypatch):
    """ffmpeg takes a tenth of a second; the tables above and below have it in."""
    monkeypatch.setattr(decoding.shutil, "which", lambda program: None)


NUMBERS = [0, 1, 2, 999, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


@st.composite
def damages(draw) -> tuple[str, list[tuple]]:
    """A kind of file, and what is done to it where: flips, numbers, cuts, zeros, repetitions."""
    name = draw(st.sampled_from(list(WHOLE)))
    # the header is where the lies are
    places = st.integers(0, 63) | st.integers(0, len(WHOLE[name]) - 1)
    numbers = st.tuples(st.sampled_from(NUMBERS), st.sampled_from(["<H", "<I", "<Q", ">I", ">Q"]))
    damage = st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("number"), places, numbers),
        st.tuples(st.just("cut"), places, st.none()),
        st.tuples(st.just("zeros"), places, st.integers(1, 64)),
        st.tuples(st.just("again"), places, st.none()),
    )
    return name, draw(st.lists(damage, min_size=1, max_size=4))


def damaged(name: str, steps: list[tuple]) -> bytes:
    content = bytearray(WHOLE[name])
    for kind, place, value in steps:
        at = min(place, len(content) - 1)
        if kind == "flip":
            content[at] ^= 1 << value
        elif kind == "number":
            number = struct.pack(value[1], value[0] % 256 ** struct.calcsize(value[1]))
            content[at : at + len(number)] = number
        elif kind == "cut":
            del content[max(1, at) :]
        elif kind == "zeros":
            content[at : at + value] = bytes(value)
        else:
            content += content[at:]
    return bytes(content)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damages())
def test_damaged_files_load_or_are_audio_errors(monkeypatch, damage):
    no_programs(monkeypatch)
    content = damaged(*damage)
    began = time.process_time()
    try:
        # at a rate of its own: resampling by any ratio is in the table above
        with open_audio(content) as stream:
            rate = stream.source_rate
        with open_audio(content, target_rate=rate) as stream:
            wave = stream.read(0, stream.n_samples)
    except AudioError:
        return
    finally:
        assert time.process_time() - began < 5
    assert wave.dtype == torch.float32
    assert bool(wave.isfinite().all())


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    mark=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"FORM", b".snd"]),
    rest=st.binary(max_size=200),
)
def test_any_bytes_load_or_are_audio_errors(monkeypatch, mark, rest):
    no_programs(monkeypatch)
    try:
        wave = load_audio(mark + rest)
    except AudioError:
        return
    assert bool(wave.isfinite().all())
    assert float(wave.abs().max()) <= PEAK_LIMIT


# ------------------------------------------------------------------ cuts that leave no trace


@pytest.mark.parametrize("name", list(WHOLE))
@pytest.mark.parametrize("share", [0.35, 0.8])
def test_a_cut_is_refused(monkeypatch, name, share):
    no_programs(monkeypatch)
    content = WHOLE[name]
    assert len(load_audio(content)) >= N
    with pytest.raises(AudioError):
        load_audio(content[: int(share * len(content))])


@pytest.mark.parametrize(
    "kind",
    ["AVR", "IRCAM", "MAT4", "MAT5", "MPC2K", "PAF", "PVF", "SVX", "VOC"],
)
def test_formats_whose_headers_are_not_held_against_the_file_give_what_is_there(kind):
    content = encoded(kind, "PCM_16", n=9_000)
    whole, part = load_audio(content), load_audio(content[: len(content) // 2])
    assert 0 < len(part) < len(whole)
    assert torch.equal(part, whole[: len(part)])


def borders(content: bytes, mark: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(mark), content)]


def test_an_mp3_without_a_stated_length_that_lost_whole_frames_gives_what_is_there():
    """No frame tells that more came after it: what is left is what an intact file would hold."""
    content = WHOLE["MP3 MPEG_LAYER_III"]
    starts = borders(content, content[:2])
    silent = content[starts[1] :]  # the first frame states the length, and holds no sound
    cut = content[starts[1] : starts[-2]]
    whole, part = load_audio(silent), load_audio(cut)
    assert 0 < len(part) < len(whole)
    held = len(part) - 1_152  # a decoder's last frame overlaps with the one that is gone
    torch.testing.assert_close(part[:held], whole[:held], atol=1e-6, rtol=0)
    with pytest.raises(AudioError, match="cut short: the frame from byte"):
        load_audio(cut[:-1])


# ------------------------------------------------------------------ pages


@pytest.mark.parametrize("name", ["OGG VORBIS", "OGG OPUS"])
def test_an_ogg_page_that_is_damaged_is_seen_wherever_that_is(tmp_path, monkeypatch, name):
    """Decoders leave such a page out, and a second of the recording with it."""
    no_programs(monkeypatch)
    content = encoded(*name.split(), n=40_000)
    starts = [*borders(content, b"OggS"), len(content)]
    assert len(starts) > 4
    path = tmp_path / "take"
    path.write_bytes(content)
    assert walk(path).cut is None
    for start, end in pairwise(starts[2:]):
        for at in (start + 6, start + 23, start + 30, (start + end) // 2, end - 1):
            flipped = bytearray(content)
            flipped[at] ^= 0x10
            with pytest.raises(AudioError, match=rf"page from byte {start} on"):
                load_audio(bytes(flipped))


def page(*, table: bytes, number: int, flags: int = 0) -> bytes:
    """An Ogg page, its checksum by the bits as RFC 3533 has it."""
    head = b"OggS\0" + bytes([flags]) + bytes(8) + b"flow" + struct.pack("<I", number)
    body = bytes(sum(table))
    crc = 0
    for byte in head + bytes(4) + bytes([len(table)]) + table + body:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C1_1DB7 if crc >> 31 else 0)) & 0xFFFF_FFFF
    return head + struct.pack("<I", crc) + bytes([len(table)]) + table + body


def test_a_packet_that_goes_on_after_the_last_page_is_a_cut(tmp_path):
    path = tmp_path / "take"
    first, second = page(table=b"\x09", number=0, flags=2), page(table=b"\xff\xff", number=1)
    path.write_bytes(first + second)
    assert "goes on" in walk(path).cut
    path.write_bytes(first + second + page(table=b"\x00", number=2, flags=1))
    assert walk(path).cut is None
    path.write_bytes(first + second + page(table=b"", number=2) + b"no page")
    assert "goes on" in walk(path).cut


# ------------------------------------------------------------------ bounds


def test_a_recording_that_does_not_fit_into_memory_is_an_audio_error(monkeypatch):
    with open_audio(WHOLE["WAV PCM_16"]) as stream:

        def full(*shape, **options):
            raise MemoryError

        monkeypatch.setattr("specsegdiff.data.audio.np.empty", full)
        with pytest.raises(AudioError, match="read shorter windows"):
            stream.read(0, stream.n_samples)


@pytest.mark.parametrize("name", ["FLAC PCM_16", "OGG VORBIS", "WAV IMA_ADPCM"])
def test_few_bytes_may_not_decode_to_days(monkeypatch, name):
    content = encoded(*name.split(), n=60_000)
    content = flac_of_silence(minutes=1) if "FLAC" in name else content
    assert len(load_audio(content)) > 50_000
    monkeypatch.setattr(decoding, "LONGEST", 2)
    with pytest.raises(AudioError, match="fewer bytes than samples"):
        load_audio(content)


def test_as_many_bytes_as_samples_may_last_as_long_as_they_do(monkeypatch):
    monkeypatch.setattr(decoding, "LONGEST", 0)
    assert len(load_audio(WHOLE["WAV PCM_16"])) == len(load_audio(nist())) == N


@needs_ffmpeg
def test_ffmpeg_decodes_no_more_than_the_longest_recording(tmp_path, monkeypatch):
    source, path = tmp_path / "take.wav", tmp_path / "take.m4a"
    source.write_bytes(wav(body=bytes(2 * 60_000)))
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, path], check=True)
    assert len(load_audio(path)) > 59_000
    monkeypatch.setattr(decoding, "LONGEST", 2)
    with pytest.raises(AudioError, match="fewer bytes than samples"):
        load_audio(path)


@needs_ffmpeg
def test_a_list_of_other_files_is_no_recording(tmp_path):
    """ffmpeg's own lists name files beside them, as often as they like."""
    (tmp_path / "take.wav").write_bytes(wav())
    path = tmp_path / "list"
    path.write_text("ffconcat version 1.0\n" + 50 * "file take.wav\n")
    command = ["ffmpeg", "-v", "error", "-i", path, tmp_path / "all.wav"]
    subprocess.run(command, check=True)  # it would read them
    with pytest.raises(AudioError, match="ffmpeg"):
        load_audio(path)


def test_ffmpeg_that_does_not_end_is_ended(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(decoding.shutil, "which", lambda name: str(program))
    monkeypatch.setattr(decoding, "_FFMPEG_SECONDS", 0.1)
    with pytest.raises(AudioError, match="not done after 0 s"):
        load_audio(b"no recording at all")


def test_the_silence_of_these_tests_is_a_flac():
    """The bomb is made by hand, so that it is known to be well-formed below the limit."""
    wave = load_audio(flac_of_silence(minutes=2))
    assert len(wave) == 120 * RATE // 65_535 * 65_535
    assert float(wave.abs().max()) == 0
