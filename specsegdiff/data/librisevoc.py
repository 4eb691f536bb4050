"""LibriSeVoc: 13,201 utterances of LibriTTS, each through six vocoders (24 kHz, CC BY-SA 4.0)."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from specsegdiff.data.pairs import Pair, PathLike
from specsegdiff.errors import ConfigError, CorpusError

Split: TypeAlias = Literal["train", "val", "test"]

FAMILIES = {
    "diffwave": "diffusion",
    "melgan": "gan",
    "parallel_wave_gan": "gan",
    "wavegrad": "diffusion",
    "wavenet": "autoregressive",
    "wavernn": "autoregressive",
}
"Folders of the vocoded recordings and their families."

LAYOUT = """expected
  <root>/gt/8014_112602_000001_000001.wav
  <root>/diffwave/8014_112602_000001_000001_gen.wav, and so in melgan, parallel_wave_gan, ..."""
"Where the corpus keeps its files, as it is unpacked."

_UTTERANCE = re.compile(r"(?P<speaker>\d+)_\d+_\d{6}_\d{6}")


def librisevoc(
    root: PathLike, *, split: Split | None = None, vocoders: Sequence[str] | None = None
) -> list[Pair]:
    """List the pairs of LibriSeVoc, or of one `speaker_split`, by vocoder and utterance.

    ``root`` holds the folders of `LAYOUT`; of the vocoders' folders those that are there are read,
    or exactly ``vocoders``. Silences are not those of the real recording, hence ``align='dtw'``.
    Levels are not stated: `specsegdiff.data.pairs.measure_pair` reads them. Raises `CorpusError` on
    a missing folder or real recording and on other file names, `ConfigError` on an unknown split or
    vocoder.
    """
    if split not in (None, "train", "val", "test"):
        raise ConfigError(f"split must be 'train', 'val', 'test' or None, got {split!r}")
    unknown = set(vocoders or ()) - set(FAMILIES)
    if unknown:
        raise ConfigError(
            f"LibriSeVoc has no vocoder {', '.join(sorted(unknown))}; it has {', '.join(FAMILIES)}"
        )
    folder = Path(root)
    wanted = (
        [name for name in FAMILIES if (folder / name).is_dir()] if vocoders is None else vocoders
    )
    missing = [name for name in ("gt", *wanted) if not (folder / name).is_dir()]
    if missing or not wanted:
        raise CorpusError(
            f"{folder} has no folder {', '.join(missing) or 'of a vocoder'}; {LAYOUT}"
        )
    reals = _recordings(folder / "gt")
    pairs = []
    for vocoder in wanted:
        for utterance, (speaker, fake) in _recordings(folder / vocoder).items():
            if utterance not in reals:
                raise CorpusError(f"{fake} has no gt/{utterance}.wav; {LAYOUT}")
            part = speaker_split(speaker)
            if split in (None, part):
                pairs.append(
                    Pair(
                        f"{vocoder}_{utterance}",
                        real=reals[utterance][1],
                        fake=fake,
                        vocoder=vocoder,
                        family=FAMILIES[vocoder],
                        split=part,
                        source_group=utterance,
                        speaker=speaker,
                        align="dtw",
                    )
                )
    return pairs


def speaker_split(speaker: str) -> Split:
    """Split of a LibriTTS speaker: 80 % train, 10 % val, 10 % test, by a hash of the speaker's id.

    The first 8 bytes of SHA-256 of the id as a fraction: below 0.8 train, below 0.9 val, else test.
    It hangs on nothing but the id, so no speaker is in two splits, and a part of the corpus is
    split as the whole. The split of arXiv 2506.03425 is not known: scores do not compare with its.

    >>> [speaker_split(speaker) for speaker in ("8014", "87", "6415")]
    ['train', 'train', 'train']
    """
    place = int.from_bytes(hashlib.sha256(speaker.encode()).digest()[:8], "big") / 2**64
    return "train" if place < 0.8 else "val" if place < 0.9 else "test"


def _recordings(folder: Path) -> dict[str, tuple[str, Path]]:
    """Speaker and file by utterance."""
    found = {}
    for file in sorted(folder.glob("*.wav")):
        if file.name.startswith("."):  # resource forks that macOS leaves in archives
            continue
        utterance = file.stem.removesuffix("_gen")
        match = _UTTERANCE.fullmatch(utterance)
        if match is None or (folder.name == "gt") != (utterance == file.stem):
            raise CorpusError(f"{file} is not named as LibriSeVoc's files are; {LAYOUT}")
        found[utterance] = match["speaker"], file
    if not found:
        raise CorpusError(f"{folder} holds no recording; {LAYOUT}")
    return found
