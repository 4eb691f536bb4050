"""Ogg and MP3 cut short: every cut within a page or frame is seen, and no sound is lost in silence.

The files are soundfile's own; where pages and frames begin is found here by their marks alone.
"""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from specsegdiff.data.audio import load_audio
from specsegdiff.data.containers import MP3_SLACK, Walk, walk
from specsegdiff.errors import AudioError

KINDS = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[1].lower())
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def encoded(kind: tuple[str, str], *, n: int = 30_000, rate: int = 16_000, **options) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, n) * np.linspace(0.01, 1, n)
    sf.write(file, noise, rate, format=kind[0], subtype=kind[1], **options)
    return file.getvalue()


def borders(content: bytes, kind: tuple[str, str]) -> list[int]:
    """Where pages or frames begin: at the mark of the first one, which no sound repeats here."""
    mark = b"OggS" if kind[0] == "OGG" else content[:2]
    return [match.start() for match in re.finditer(re.escape(mark), content)]


def without_length(content: bytes) -> bytes:
    """An MP3 without its first frame, which states the length and holds no sound."""
    rest = content[borders(content, KINDS[2])[1] :]
    assert b"Info" in content[:40] or b"Xing" in content[:40]
    assert b"Info" not in rest
    assert b"Xing" not in rest
    return rest


def walked(folder: Path, content: bytes) -> Walk:
    path = folder / "take"
    path.write_bytes(content)
    return walk(path)


@kinds
def test_every_cut_is_seen_but_those_between_two_pages_or_frames(tmp_path, kind):
    content = encoded(kind, n=30_000 if kind[0] == "OGG" else 6_000)
    starts = borders(content, kind)
    assert len(starts) > 3
    assert walked(tmp_path, content).cut is None
    for start, end in zip(starts[1:], [*starts[2:], len(content)], strict=True):
        assert walked(tmp_path, content[:start]).cut is None
        for at in (start + 1, start + 3, start + 5, (start + end) // 2, end - 1):
            said = walked(tmp_path, content[:at]).cut
            assert said is not None, at
            assert f"from byte {start} on" in said


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("kind", ["vorbis", "opus", "mp3", "mp3 without length"])
def test_a_recording_cut_short_is_refused(kind, share):
    content = encoded(KINDS[["vorbis", "opus"].index(kind) if "mp3" not in kind else 2])
    content = without_length(content) if "without" in kind else content
    load_audio(content)
    with pytest.raises(AudioError, match=r"cut short: the (page|frame) from byte \d+ on"):
        load_audio(content[: int(share * len(content))])


def test_a_cut_between_two_pages_is_not_seen_for_some_recorders_end_so():
    content = encoded(KINDS[0])
    whole, rest = (
        load_audio(part) for part in (content, content[: borders(content, KINDS[0])[-1]])
    )
    assert 0 < len(rest) < len(whole)


def test_tags_around_an_mp3_are_no_part_of_it(tmp_path):
    content = encoded(KINDS[2])
    size = 300  # in 7 bits a byte, as ID3v2 has it: 2, 44
    before = b"ID3\x03\0\0" + bytes([0, 0, size >> 7, size & 127]) + b"\0" * size
    after = b"TAG" + b"\0" * 125
    plain, tagged = (walked(tmp_path, part) for part in (content, before + content + after))
    assert plain == tagged
    assert plain.samples is not None
    for kind in KINDS:
        assert walked(tmp_path, before + encoded(kind)[:-9]).cut is not None
    assert len(load_audio(before + content + after)) == len(load_audio(content))


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_frames_hold_the_samples_that_are_decoded(tmp_path, rate):
    # at a constant bit rate, frames at 44.1 kHz are padded by a byte now and then
    content = encoded(KINDS[2], rate=rate, bitrate_mode="CONSTANT", compression_level=0.4)
    stated = walked(tmp_path, content)
    assert stated.states_length
    # beside the sound: the frame that states the length, and what the encoder adds at both ends
    assert 30_000 < stated.samples < 30_000 + 5 * 1_152
    guessed = walked(tmp_path, without_length(content))
    assert not guessed.states_length
    assert stated.samples - guessed.samples in (576, 1_152)
    assert not walked(tmp_path, without_length(content) + content).states_length


@pytest.mark.parametrize(
    ("found", "frames", "doubted"),
    [
        (Walk(), 5, False),
        (Walk(is_chained=True), 5, True),
        (Walk(samples=90_000), 90_000 + MP3_SLACK, False),
        (Walk(samples=90_000), 90_001 + MP3_SLACK, True),
        (Walk(samples=90_000), 89_999 - MP3_SLACK, True),
        (Walk(samples=90_000, states_length=True), 90_000 - 1_152 - 8_190, False),
        (Walk(samples=90_000, states_length=True), 89_999 - 1_152 - 8_190, True),
        (Walk(samples=90_000, states_length=True), 200_000, False),  # cut, not miscounted
    ],
)
def test_a_count_that_the_frames_do_not_bear_out_is_doubted(found, frames, doubted):
    assert bool(found.doubt(frames)) == doubted


def test_an_mp3_that_lost_whole_frames_is_refused_where_it_states_its_length():
    content = encoded(KINDS[2])
    with pytest.raises(AudioError, match="the header says 30000 samples"):
        load_audio(content[: borders(content, KINDS[2])[-8]])


@needs_ffmpeg
def test_an_mp3_whose_length_soundfile_guesses_wrong_is_read_to_its_end(tmp_path):
    """Loud, then silent frames: soundfile counts with the size of the first ones."""
    content = without_length(encoded_unevenly())
    path = tmp_path / "take.mp3"
    path.write_bytes(content)
    found = walk(path)
    assert sf.info(path).frames < found.samples - 10_000
    assert len(load_audio(path)) == found.samples


def encoded_unevenly() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    sf.write(file, np.concatenate([noise, np.zeros(48_000)]), 16_000, format="MP3")
    return file.getvalue()


@needs_ffmpeg
def test_ogg_recordings_in_a_row_are_all_read_or_refused():
    first, second = encoded(KINDS[1], n=30_000), encoded(KINDS[1], n=20_000)
    assert len(load_audio(first + second)) == pytest.approx(50_000, abs=320)


@pytest.mark.parametrize(
    "content", [b"", b"O", b"\xff", b"\xff\xfb\x90", b"RIFF....WAVE", b"ID3", b"\xff\xfe" * 9]
)
def test_other_files_tell_nothing(tmp_path, content):
    assert walked(tmp_path, content) == Walk()
