"""VocV4: Voc.v4 of Wang & Yamagishi (arXiv 2210.10570) beside the bona fide of ASVspoof 2019 LA."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from specsegdiff.data.pairs import Pair, PathLike
from specsegdiff.errors import ConfigError, CorpusError

FAMILIES = {
    "hifigan": "gan",
    "hn-sinc-nsf": "source-filter",
    "hn-sinc-nsf-hifi": "source-filter",
    "waveglow": "flow",
}
"Vocoders of Voc.v4 and their families; hn-sinc-nsf-hifi is a source filter trained as a GAN."

LAYOUT = """expected
  <root>/protocol.txt                     LA_0079 hifigan_LA_T_1703395 - hifigan spoof
  <root>/scp/train.lst, dev.lst           hifigan_LA_T_1703395
  <root>/wav/hifigan_LA_T_1703395.wav     (zenodo 7314976, project09-voc.v4.tar)
  <asvspoof_root>/ASVspoof2019_LA_train/flac/LA_T_1703395.flac, and ..._dev
  <asvspoof_root>/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.train.trn.txt, ...dev.trl.txt"""
"Where the two corpora keep their files, as they are unpacked."

_BONA_FIDE = re.compile(r"LA_[TD]_\d{7}")
_SPOOF = re.compile(rf".+_(?P<source>{_BONA_FIDE.pattern})")
_PARTS = {"T": ("train", "train.trn"), "D": ("dev", "dev.trl")}


def vocv4(
    root: PathLike,
    asvspoof_root: PathLike,
    *,
    subset: Literal["train", "dev"] = "train",
    vocoders: Sequence[str] | None = None,
) -> list[Pair]:
    """List the pairs of ``scp/<subset>.lst`` with their bona fide recordings, in the list's order.

    ``root`` is the folder ``voc.v4`` of project09-voc.v4.tar or one above it, ``asvspoof_root`` the
    folder ``LA`` of ASVspoof 2019 or one above; `LAYOUT` shows both. Bona fide names in the list
    are passed over. ``vocoders`` keeps some of the systems. No list states levels:
    `specsegdiff.data.pairs.measure_pair` reads them. Raises `CorpusError` on a missing file, list,
    protocol line or vocoder, `ConfigError` on another subset.
    """
    if subset not in ("train", "dev"):
        raise ConfigError(f"subset must be 'train' or 'dev', got {subset!r}")
    voc = _folder(root, ("", "voc.v4", "project09-voc.v4/voc.v4"), holds="protocol.txt")
    asv = _folder(asvspoof_root, ("", "LA", "LA/LA"), holds="ASVspoof2019_LA_cm_protocols")
    spoofs = {cells[1]: (cells[0], cells[3]) for cells in _protocol(voc / "protocol.txt", "spoof")}
    listed = [line[0] for line in _lines(voc / "scp" / f"{subset}.lst")]
    bona_fide: dict[str, set[str]] = {}
    pairs = []
    for trial in dict.fromkeys(listed):
        if _BONA_FIDE.fullmatch(trial):
            continue
        match = _SPOOF.fullmatch(trial)
        if match is None or trial not in spoofs:
            raise CorpusError(
                f"{subset}.lst names {trial!r}, which has no spoof line in protocol.txt or no "
                f"source in its name; {LAYOUT}"
            )
        source = match["source"]
        speaker, vocoder = spoofs[trial]
        if vocoders is not None and vocoder not in vocoders:
            continue
        part, protocol = _PARTS[source[3]]
        if part not in bona_fide:
            name = f"ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{protocol}.txt"
            bona_fide[part] = {cells[1] for cells in _protocol(asv / name, "bonafide")}
        if source not in bona_fide[part]:
            raise CorpusError(
                f"{trial}: {source} is not bona fide in ASVspoof's protocol; {LAYOUT}"
            )
        pairs.append(
            Pair(
                trial,
                real=_file(asv / f"ASVspoof2019_LA_{part}" / "flac" / f"{source}.flac"),
                fake=_file(voc / "wav" / f"{trial}.wav"),
                vocoder=vocoder,
                family=FAMILIES.get(vocoder, ""),
                split=subset,
                source_group=source,
                speaker=speaker,
            )
        )
    absent = set(vocoders or ()) - {pair.vocoder for pair in pairs}
    if absent or not pairs:
        there = ", ".join(sorted({vocoder for _, vocoder in spoofs.values()})) or "none"
        raise CorpusError(
            f"{subset}.lst has no recording of {', '.join(sorted(absent)) or 'any vocoder'}; "
            f"the protocol knows {there}"
        )
    return pairs


def _folder(root: PathLike, below: Sequence[str], *, holds: str) -> Path:
    for name in below:
        if (Path(root) / name / holds).exists():
            return Path(root) / name
    raise CorpusError(f"{root} holds no {holds}; {LAYOUT}")


def _lines(path: Path) -> list[list[str]]:
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}; {LAYOUT}") from error
    return [line for line in lines if line]


def _protocol(path: Path, label: str) -> list[list[str]]:
    lines = _lines(path)
    for cells in lines:
        if len(cells) != 5 or cells[4] not in ("spoof", "bonafide"):
            raise CorpusError(
                f"{path} has the line {' '.join(cells)!r}, expected five cells, the last of them "
                f"spoof or bonafide; {LAYOUT}"
            )
    return [cells for cells in lines if cells[4] == label]


def _file(path: Path) -> Path:
    if not path.is_file():
        raise CorpusError(f"{path} is missing; {LAYOUT}")
    return path
