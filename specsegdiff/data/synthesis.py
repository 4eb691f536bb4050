"""Corpora made out of any speech: recordings, their copies, and the manifest of the pairs."""

import csv
import io
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from torch import Tensor

from specsegdiff.data.audio import open_audio, write_audio
from specsegdiff.data.copies import make_pair
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair, narrowest
from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.data.vocoders import Vocoder
from specsegdiff.errors import ConfigError, CorpusError, OutputError
from specsegdiff.hub import write_atomic

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
    come in the order of the sources whatever ``jobs`` is. Pairs of other recordings that ``out``
    holds already stay in its manifest, so that one call a split makes a corpus; those made now are
    returned. Files are written aside and renamed, the manifest last. Raises `CorpusError` on two
    sources of one id, also where ``out`` holds other pairs of that id, `ConfigError` on two
    vocoders of one name, `OutputError` where ``out`` cannot be written.
    """
    todo = [source if isinstance(source, Source) else Source(Path(source)) for source in sources]
    _check_job(todo, vocoders, per_source=per_source, jobs=jobs)
    work = []
    for source in todo:
        draw = random.Random(f"{seed}/{source.id}")
        picks = sorted(draw.sample(range(len(vocoders)), per_source or len(vocoders)))
        work.append((source, [vocoders[i] for i in picks]))
    kept = _kept(out, work)
    results = _vocode_sources(work, out, jobs=jobs, progress=progress)
    rejected = [row for _, bad in results for row in bad]
    made = [row for good, _ in results for row in good]
    _write_csv(out / "rejected.csv", ("source", "vocoder", "reason"), rejected)
    _write_csv(out / "pairs.csv", _COLUMNS, [*kept, *made])
    return read_manifest(out)[len(kept) :]


def _kept(out: Path, work: Sequence[tuple[Source, Sequence[Vocoder]]]) -> list[Row]:
    """Rows of a manifest that is there already, of recordings that this call does not vocode."""
    try:
        text = (out / "pairs.csv").read_text("utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(
            f"cannot read {out / 'pairs.csv'}: {error}; choose another folder"
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != _COLUMNS:
        raise CorpusError(
            f"{out / 'pairs.csv'} was not written by make_pairs, and would be lost; choose another "
            "folder"
        )
    planned = {
        source.id: (source.split, {_pair_id(source, vocoder) for vocoder in chosen})
        for source, chosen in work
    }
    kept = []
    for row in reader:
        split, made_again = planned.get(row["source_id"], (None, set()))
        if split is None:
            kept.append(row)
        elif row["split"] != split or row["pair_id"] not in made_again:
            raise CorpusError(
                f"{out} holds the pair {row['pair_id']!r} of split {row['split']!r}, and a "
                f"recording of that name would replace its real side; choose another folder, or "
                "name the recording otherwise"
            )
    return kept


def _pair_id(source: Source, vocoder: Vocoder) -> str:
    return f"{source.id}--{vocoder.name}"


def _check_job(
    sources: Sequence[Source], vocoders: Sequence[Vocoder], *, per_source: int | None, jobs: int
) -> None:
    twice = _repeated(source.id for source in sources)
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


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _vocode_sources(
    work: Sequence[tuple[Source, Sequence[Vocoder]]],
    out: Path,
    *,
    jobs: int,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[list[Row], list[Row]]]:
    """Results of `_vocode_source` in the order of ``work``, whatever ``jobs`` is."""
    results: dict[int, tuple[list[Row], list[Row]]] = {}

    def keep(i: int, result: tuple[list[Row], list[Row]]) -> None:
        results[i] = result
        if progress:
            progress(len(results), len(work))

    if jobs == 1:
        for i, (source, vocoders) in enumerate(work):
            keep(i, _vocode_source(source, vocoders, out))
    else:
        # A forked child inherits torch's locked thread pool and may hang: start fresh ones.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = {
                pool.submit(_vocode_source, source, vocoders, out): i
                for i, (source, vocoders) in enumerate(work)
            }
            for future in as_completed(futures):
                keep(futures[future], future.result())
    return [results[i] for i in range(len(work))]


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
        with open_audio(source.path, target_rate=SAMPLE_RATE) as stream:
            wave = stream.read(0, stream.n_samples)
            source_rate = stream.source_rate
        # float files go beyond full scale, and 16 bit would cut their peaks off
        wave = wave / max(1.0, float(wave.abs().max()))
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
        band_hz = narrowest(copy.band_hz, source_rate / 2)
        good.append(
            {
                "pair_id": _pair_id(source, vocoder),
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
                "band_hz": "" if band_hz is None else f"{band_hz:g}",
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
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue().encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; choose another folder") from error
