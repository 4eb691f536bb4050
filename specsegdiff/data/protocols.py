"""Protocols of spoofing corpora: ASVspoof 2019 LA, 2021 LA and DF, ASVspoof 5, PartialSpoof.

Each reader takes a corpus as it is unpacked and returns its trials in the protocol's order. None of
them opens audio.
"""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from specsegdiff.data.pairs import Pair, PathLike
from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.errors import ConfigError, CorpusError

Subset: TypeAlias = Literal["train", "dev", "eval"]

LAYOUT_2019 = """expected
  <root>/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.train.trn.txt, ...dev.trl.txt,
  ...eval.trl.txt                                           LA_0039 LA_T_1004644 - A02 spoof
  <root>/ASVspoof2019_LA_train/flac/LA_T_1004644.flac, and ..._dev, ..._eval"""
"Where ASVspoof 2019 LA keeps its files, as LA.zip is unpacked; the root is LA."

LAYOUT_2021 = """expected
  <root>/ASVspoof2021_LA_eval/flac/LA_E_9332881.flac, or ASVspoof2021_DF_eval/flac/...
  <root>/keys/LA/CM/trial_metadata.txt     LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval
  <root>/keys/DF/CM/trial_metadata.txt, the same with more columns (LA- and DF-keys-full.tar.gz)"""
"Where ASVspoof 2021 keeps its files and keys."

LAYOUT_5 = """expected
  <root>/ASVspoof5.train.tsv, ASVspoof5.dev.track_1.tsv, ASVspoof5.eval.track_1.tsv, ten columns:
      T_4850 T_0000000000 F - - - AC3 A05 spoof -
  <root>/flac_T/T_0000000000.flac, flac_D, flac_E_eval"""
"""Where ASVspoof 5 keeps its files; ASVspoof5_protocols may be a folder of its own. Lists of the
first phase have six columns, the last of them the key."""

LAYOUT_PARTIAL = """expected
  <root>/protocols/PartialSpoof_LA_cm_protocols/PartialSpoof.LA.cm.train.trl.txt, ...dev, ...eval
      LA_0079 CON_T_0000029 - CON spoof
  <root>/train/con_wav/CON_T_0000029.wav, and dev, eval
  <root>/segment_labels/train_seglab_0.02.npy (v1.2: a label a segment, '0' spoof, '1' bona fide)"""
"Where PartialSpoof keeps its files (zenodo 5766198); the root is database."


@dataclass(frozen=True)
class Trial:
    """A recording and its class."""

    id: str
    "Name in the protocol."
    path: Path
    "Its file."
    is_spoof: bool
    "Its class; a partly spoofed recording is spoofed."
    system: str = ""
    "What made it: attack or vocoder, empty for bona fide."
    speaker: str = ""
    "Speaker."
    group: str = ""
    "Joins recordings of one source: divide and resample by it."
    codec: str = ""
    "Channel or codec that it went through."
    part: str = ""
    "Part of the subset: progress, eval or hidden in ASVspoof 2021."
    gain_db: float = 0.0
    "Level over the recording that it was made from; a level is no artifact."
    n_samples: int | None = None
    "Samples at 16 kHz to cut it to; None takes all."
    labels: Bool[Tensor, "s"] | None = field(default=None, compare=False)
    "Whether each segment of ``seconds`` is spoofed, where the corpus says so."
    seconds: float = 0.0
    "Length of such a segment."

    def frame_labels(self, *, hop: int, reach: int, n_frames: int) -> Bool[Tensor, "t"]:
        """Label of the segment that the centre of each of an encoder's frames lies in, at 16 kHz.

        The last segment goes on where the labels end before the frames, by one of them at most.
        Raises `CorpusError` where there are no labels, or too few.

        >>> labels = torch.tensor([False, True])
        >>> trial = Trial("a", Path("a.wav"), True, labels=labels, seconds=0.04)
        >>> trial.frame_labels(hop=320, reach=400, n_frames=3).tolist()
        [False, False, True]
        """
        if self.labels is None:
            raise CorpusError(f"{self.id} has no labels within; its class is all that is known")
        centres = torch.arange(n_frames) * hop + reach // 2
        place = (centres / SAMPLE_RATE / self.seconds).long()
        if int(place[-1]) > len(self.labels):
            raise CorpusError(
                f"{self.id} has {len(self.labels)} labels of {self.seconds} s for {n_frames} "
                f"frames of {hop / SAMPLE_RATE} s; take the labels that belong to the recording"
            )
        return self.labels[place.clamp_max(len(self.labels) - 1)]


def pair_trials(pairs: Iterable[Pair]) -> list[Trial]:
    """Trials of pairs: each real recording once, then the fakes at the level of their twins."""
    pairs = list(pairs)
    reals = {
        pair.real: Trial(
            str(pair.real),
            pair.real,
            False,
            speaker=pair.speaker,
            group=pair.source_group or pair.id,
        )
        for pair in pairs
    }
    fakes = [
        Trial(
            pair.id,
            pair.fake,
            True,
            system=pair.vocoder,
            speaker=pair.speaker,
            group=pair.source_group or pair.id,
            gain_db=pair.gain_db,
            n_samples=pair.n_samples,
        )
        for pair in pairs
    ]
    return [*reals.values(), *fakes]


def asvspoof2019(root: PathLike, subset: Subset) -> list[Trial]:
    """Trials of ASVspoof 2019 LA (Wang et al. 2020, arXiv 1911.01601); ``root`` is the folder LA or
    one above."""
    _check_subset(subset)
    folder = _folder(root, ("", "LA"), holds="ASVspoof2019_LA_cm_protocols", layout=LAYOUT_2019)
    suffix = "trn" if subset == "train" else "trl"
    table = folder / f"ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{subset}.{suffix}.txt"
    audio = folder / f"ASVspoof2019_LA_{subset}" / "flac"
    return [
        Trial(
            cells[1],
            _file(audio / f"{cells[1]}.flac", LAYOUT_2019),
            _is_spoof(cells[4], table, LAYOUT_2019),
            system=_named(cells[3]),
            speaker=cells[0],
        )
        for cells in _rows(table, (5,), LAYOUT_2019)
    ]


def asvspoof2021(root: PathLike, track: Literal["LA", "DF"]) -> list[Trial]:
    """Trials of ASVspoof 2021 LA or DF (Liu et al. 2023, arXiv 2210.02437), all parts of its only
    subset; `Trial.part` tells progress, eval and hidden apart."""
    if track not in ("LA", "DF"):
        raise ConfigError(f"track must be 'LA' or 'DF', got {track!r}")
    folder = _folder(root, ("",), holds="keys", layout=LAYOUT_2021)
    table = folder / "keys" / track / "CM" / "trial_metadata.txt"
    audio = folder / f"ASVspoof2021_{track}_eval" / "flac"
    return [
        Trial(
            cells[1],
            _file(audio / f"{cells[1]}.flac", LAYOUT_2021),
            _is_spoof(cells[5], table, LAYOUT_2021),
            # bona fide ones name themselves there
            system="" if cells[5] == "bonafide" else _named(cells[4]),
            speaker=cells[0],
            codec=cells[2],
            part=cells[7],
        )
        for cells in _rows(table, (8, 13), LAYOUT_2021)
    ]


def asvspoof5(root: PathLike, subset: Subset) -> list[Trial]:
    """Trials of ASVspoof 5, track 1 (Wang et al. 2024, arXiv 2408.08739)."""
    _check_subset(subset)
    name, audio = {
        "train": ("ASVspoof5.train.tsv", "flac_T"),
        "dev": ("ASVspoof5.dev.track_1.tsv", "flac_D"),
        "eval": ("ASVspoof5.eval.track_1.tsv", "flac_E_eval"),
    }[subset]
    folder = _folder(root, ("", "ASVspoof5_protocols"), holds=name, layout=LAYOUT_5)
    trials = []
    for cells in _rows(folder / name, (6, 10), LAYOUT_5):
        codec, attack, key = (
            (cells[3], cells[7], cells[8]) if len(cells) == 10 else ("-", *cells[4:])
        )
        spoof = _is_spoof(key, folder / name, LAYOUT_5)
        trials.append(
            Trial(
                cells[1],
                _file(Path(root) / audio / f"{cells[1]}.flac", LAYOUT_5),
                spoof,
                system=_named(attack) if spoof else "",
                speaker=cells[0],
                codec=_named(codec),
            )
        )
    return trials


def partialspoof(root: PathLike, subset: Subset, *, seconds: float = 0.02) -> list[Trial]:
    """Trials of PartialSpoof (Zhang et al. 2022, arXiv 2204.05177) with labels of segments of
    ``seconds``: 0.01, 0.02, 0.04 and so on to 0.64.

    Bona fide recordings must be bona fide in all segments and the others spoofed in one or more, or
    the file of labels is another than the protocol's: `CorpusError`. That file is a pickle; only
    arrays and plain values are read from it, never code.
    """
    _check_subset(subset)
    folder = _folder(root, ("", "database"), holds="protocols", layout=LAYOUT_PARTIAL)
    protocols = folder / "protocols" / "PartialSpoof_LA_cm_protocols"
    table = protocols / f"PartialSpoof.LA.cm.{subset}.trl.txt"
    file = folder / "segment_labels" / f"{subset}_seglab_{seconds:.2f}.npy"
    segments = _read_segments(file)
    trials = []
    for cells in _rows(table, (5,), LAYOUT_PARTIAL):
        spoof = _is_spoof(cells[4], table, LAYOUT_PARTIAL)
        if cells[1] not in segments:
            raise CorpusError(f"{file} has no labels of {cells[1]}; {LAYOUT_PARTIAL}")
        labels = torch.tensor([str(value) == "0" for value in segments[cells[1]]])
        if len(labels) == 0 or bool(labels.any()) != spoof:
            raise CorpusError(
                f"{cells[1]} is {cells[4]} in {table.name}, but {int(labels.sum())} of "
                f"{len(labels)} segments are spoofed in {file.name}; {LAYOUT_PARTIAL}"
            )
        trials.append(
            Trial(
                cells[1],
                _file(folder / subset / "con_wav" / f"{cells[1]}.wav", LAYOUT_PARTIAL),
                spoof,
                system=_named(cells[3]),
                speaker=cells[0],
                labels=labels,
                seconds=seconds,
            )
        )
    return trials


def asv_scores(path: PathLike) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of a speaker verification for targets, other speakers and spoofs, for `asv_errors`.

    ``path`` is the organisers' file of ASVspoof 2019 or PartialSpoof, such as
    ``ASVspoof2019.LA.asv.eval.gi.trl.scores.txt``, with lines like ``A07 spoof -2.85``.
    """
    layout = "expected lines of attack or bonafide, target, nontarget or spoof, and a score"
    found: dict[str, list[float]] = {"target": [], "nontarget": [], "spoof": []}
    for cells in _rows(Path(path), (3,), layout):
        try:
            found[cells[1]].append(float(cells[2]))
        except (KeyError, ValueError) as error:
            raise CorpusError(f"{path} has the line {' '.join(cells)!r}; {layout}") from error
    target, nontarget, spoof = (torch.tensor(scores) for scores in found.values())
    return target, nontarget, spoof


# ------------------------------------------------------------------ files


def _check_subset(subset: str) -> None:
    if subset not in ("train", "dev", "eval"):
        raise ConfigError(f"subset must be 'train', 'dev' or 'eval', got {subset!r}")


def _folder(root: PathLike, below: Sequence[str], *, holds: str, layout: str) -> Path:
    for name in below:
        if (Path(root) / name / holds).exists():
            return Path(root) / name
    raise CorpusError(f"{root} holds no {holds}; {layout}")


def _file(path: Path, layout: str) -> Path:
    if not path.is_file():
        raise CorpusError(f"{path} is missing; {layout}")
    return path


def _rows(path: Path, widths: tuple[int, ...], layout: str) -> list[list[str]]:
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}; {layout}") from error
    lines = [line for line in lines if line]
    for cells in lines:
        if len(cells) not in widths:
            raise CorpusError(
                f"{path} has the line {' '.join(cells)!r} of {len(cells)} columns, expected "
                f"{' or '.join(map(str, widths))}; {layout}"
            )
    if not lines:
        raise CorpusError(f"{path} is empty; {layout}")
    return lines


def _is_spoof(key: str, path: Path, layout: str) -> bool:
    if key not in ("spoof", "bonafide"):
        raise CorpusError(f"{path} has the key {key!r}, expected spoof or bonafide; {layout}")
    return key == "spoof"


def _named(cell: str) -> str:
    return "" if cell == "-" else cell


class _Arrays(pickle.Unpickler):
    """Reads arrays, strings and containers; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def _read_segments(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, kind = read(stream)
            if shape != () or kind != np.dtype(object):
                raise ValueError(f"an array {shape} of {kind}, no dictionary")
            found = _Arrays(stream).load()
        found = found.item() if isinstance(found, np.ndarray) else found
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, no dictionary")
    except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CorpusError(
            f"cannot read {file} as labels of segments ({error}); {LAYOUT_PARTIAL}"
        ) from error
    return found
