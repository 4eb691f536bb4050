"""Ogg and MP3 files walked from page to page, or from frame to frame, without decoding them.

Neither format has to state its length. soundfile takes a file that was cut short for a whole one,
leaves out damaged Ogg pages, reads the first of several Ogg recordings, and guesses where an MP3
ends; the walk knows better. It also holds what a NIST SPHERE header says against the file.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MP3_SLACK = 2 * 1_152
"Samples by which soundfile may count too many in an intact MP3 that does not state its length."

_PAGE_HEAD = 27
_FIRST_PAGE = 2
_CHECKSUM = slice(22, 26)
"Where a page's checksum lies."
_GOES_ON = 255
"Length of a packet's segment that is not its last one."
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_NIST = b"NIST_1A\n"
_NIST_HEAD = 1_024
_NIST_COUNTS = ("sample_count", "channel_count", "sample_n_bytes")
# ISO/IEC 11172-3 and 13818-3, Layer III: kbit/s by index, and Hz by index and version, of which 0
# is the unofficial MPEG 2.5.
_LAYER_3 = 1
_KBITS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_HERTZ = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}
_LENGTH_TAGS = (b"Xing", b"Info")
_TAG_END = 40
"Where such a tag ends at the latest in the first frame: 4 bytes of header, 32 of nothing, a name."
_TRIM = 2 * 4_095
"Samples that it may tell a decoder to leave out, at both ends together."
_OTHER_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")


@dataclass(frozen=True)
class Walk:
    """What the pages or frames of a file tell."""

    cut: str | None = None
    "The page or frame that is not whole, in words; None where all are."
    is_chained: bool = False
    "Whether several Ogg recordings follow one another."
    samples: int | None = None
    "Samples in the frames of an MP3; None where that is not known."
    states_length: bool = False
    "Whether the first of these frames holds the MP3's length and no sound."

    def doubt(self, frames: int) -> str | None:
        """Say why an intact file does not have the ``frames`` samples that soundfile counts.

        An MP3 that states more than it has is not intact, and so in no doubt.
        """
        if self.is_chained:
            return "it reads the first of several recordings"
        if self.samples is None:
            return None
        if self.states_length:
            wrong = frames < self.samples - 1_152 - _TRIM
        else:
            wrong = abs(frames - self.samples) > MP3_SLACK
        return f"it counts {frames} samples, the frames hold {self.samples}" if wrong else None


def walk(path: Path) -> Walk:
    """Walk through an Ogg, MP3 (Layer III) or NIST file; another one gives an empty `Walk`.

    A cut exactly between two pages or frames is not seen, unless a packet goes on behind it. The
    end-of-stream flag that Ogg asks for on its last page (RFC 3533, section 6) proves nothing:
    Android's own recorder never sets it. At whatever is no page or frame the walk ends. Raises
    `OSError` where the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = _tag_size(file.read(10))
        file.seek(start)
        mark = file.read(len(_NIST))
        if mark == _NIST:
            return _nist(file, size)
        return (_ogg if mark.startswith(b"OggS") else _mp3)(file, start, size)


def _tag_size(head: bytes) -> int:
    """Bytes of an ID3v2 tag, 0 where there is none; its header gives them by 7 bits a byte."""
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    footer = 10 if head[5] & 0x10 else 0
    return 10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:])) + footer


def _ogg(file: BinaryIO, at: int, size: int) -> Walk:
    is_chained = had_data = False
    unfinished: set[bytes] = set()
    while at < size:
        file.seek(at)
        head = file.read(_PAGE_HEAD)
        if not head.startswith(b"OggS"[: len(head)]):
            break
        # the last byte counts the segments, whose lengths follow
        table = file.read(head[-1]) if len(head) == _PAGE_HEAD else b""
        end = at + len(head) + len(table) + sum(table)
        if len(head) < _PAGE_HEAD or len(table) < head[-1] or end > size:
            return Walk(cut=f"the page from byte {at} on is not whole")
        if not _is_intact(head + table + file.read(sum(table))):
            return Walk(cut=f"the checksum of the page from byte {at} on is wrong")
        serial = head[14:18]
        if table:
            (unfinished.add if table[-1] == _GOES_ON else unfinished.discard)(serial)
        is_first = bool(head[5] & _FIRST_PAGE)
        is_chained |= is_first and had_data
        had_data |= not is_first
        at = end
    if unfinished:
        return Walk(cut="a packet goes on after the last page")
    return Walk(is_chained=is_chained)


def _is_intact(page: bytes) -> bool:
    """Tell whether a page bears out its checksum (RFC 3533, section 6).

    It is a CRC-32 of zlib's polynomial with the bits of each byte in the other order.
    """
    stored = page[_CHECKSUM].translate(_REVERSED)
    zeroed = page[: _CHECKSUM.start] + bytes(4) + page[_CHECKSUM.stop :]
    # the exclusive ors undo zlib's start and end values
    found = zlib.crc32(zeroed.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return found == int.from_bytes(stored, "big")


def _nist(file: BinaryIO, size: int) -> Walk:
    file.seek(0)
    head = file.read(_NIST_HEAD)
    if b"embedded-" in head:
        return Walk()  # compressed: the counts tell nothing about bytes
    stated = 1
    for name in _NIST_COUNTS:
        found = re.search(rb"^%s -i (\d{1,18})\b" % name.encode(), head, re.MULTILINE)
        if found is None:
            return Walk()
        stated *= int(found[1])
    if _NIST_HEAD + stated > size:
        return Walk(cut=f"the header says {stated} bytes, {max(0, size - _NIST_HEAD)} are there")
    return Walk()


def _mp3(file: BinaryIO, at: int, size: int) -> Walk:
    total, states_length, head = 0, False, b""
    while at < size:
        file.seek(at)
        head = file.read(_TAG_END)
        length, samples = _frame(head)
        if not length:
            break
        if at + length > size:
            # a single frame may as well be a file of another kind
            return Walk(cut=f"the frame from byte {at} on is not whole" if total else None)
        states_length |= not total and any(tag in head for tag in _LENGTH_TAGS)
        total += samples
        at += length
    if not total or (at < size and not head.startswith(_OTHER_TAGS)):
        return Walk()  # damage that decoders skip, perhaps, with more frames behind it
    return Walk(samples=total, states_length=states_length)


def _frame(head: bytes) -> tuple[int, int]:
    """Bytes and samples of the Layer III frame that starts with ``head``; zeros for none."""
    if len(head) < 4:
        return (len(head) + 1 if head[0] == 0xFF else 0), 0
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    is_sync = head[0] == 0xFF and head[1] >> 5 == 7 and layer == _LAYER_3 and version in _HERTZ
    if not is_sync or bitrate in (0, 15) or rate == 3:  # bitrate 0 gives no length
        return 0, 0
    kbits, samples = (_KBITS_1, 1_152) if version == 3 else (_KBITS_2, 576)
    return samples // 8 * kbits[bitrate - 1] * 1_000 // _HERTZ[version][rate] + padding, samples
