"""Which recordings: a CSV, a parquet file, a folder of audio or a Hugging Face dataset."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from specsegdiff.bulk.parts import read_table
from specsegdiff.errors import CorpusError

READERS = 16
"Threads that read the headers of files; a network drive answers many at once."


class Item(NamedTuple):
    """A recording: what it is called, and where it lies, as the manifest has it."""

    id: str
    path: str


@dataclass(frozen=True)
class Manifest:
    """Recordings in any order, each with an id of its own; `open_manifest` makes one."""

    items: Sequence[Item]
    "All recordings."
    root: Path
    "Folder that relative paths start at."
    dataset: Any = None
    "Dataset that holds the recordings themselves; None where they are files."

    @property
    def sha256(self) -> str:
        """Hash of ids and paths; their order does not count, nor does the folder they lie in."""
        digest = hashlib.sha256()
        for item in sorted(self.items):
            digest.update(json.dumps(item).encode() + b"\n")
        return digest.hexdigest()

    def seconds(self) -> Iterator[float | None]:
        """Length of each recording by its header; None where that cannot be read."""
        if self.dataset is not None:
            yield from (_seconds(self._content(at)) for at in range(len(self.items)))
            return
        with ThreadPoolExecutor(READERS) as threads:
            paths = (str(self.root / item.path) for item in self.items)
            yield from threads.map(_seconds, paths)

    def sources(self, items: Iterable[Item]) -> list[str | bytes]:
        """What the explainer reads for these items: paths, or the bytes that a dataset holds."""
        if self.dataset is None:
            return [str(self.root / item.path) for item in items]
        return [self._content(self._places[item.id]) for item in items]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {item.id: at for at, item in enumerate(self.items)}

    def _content(self, at: int) -> str | bytes:
        value = self.dataset[at]["audio"]
        return value["path"] if value["bytes"] is None else bytes(value["bytes"])


def open_manifest(source: Any) -> Manifest:
    """Open a manifest: the path of a CSV, a parquet file or a folder, or a `datasets.Dataset`.

    Tables have a column ``path``, relative to their folder or absolute, and may have ``id``, which
    is the path otherwise; other columns are ignored. Of a folder, all recordings below it count. A
    dataset has a column ``path``, or ``audio``, whose bytes are read where it holds them; its ids
    are those of ``id``, else the paths, else the SHA-256 of the bytes, and its paths start here.
    Raises `CorpusError` where it cannot be read, an id occurs twice, or there is no recording.
    """
    if isinstance(source, str | os.PathLike):
        table = Path(source)
        if table.is_dir():
            manifest = Manifest(_of_folder(table), table)
        elif table.suffix == ".parquet":
            manifest = Manifest(_of_parquet(table), table.parent)
        else:
            manifest = Manifest(_of_csv(table), table.parent)
        name = str(source)
    elif hasattr(source, "column_names") and hasattr(source, "__getitem__"):
        manifest, name = _of_dataset(source), "the dataset"
    else:
        raise CorpusError(
            "expected the path of a CSV, a parquet file or a folder, or a datasets.Dataset, "
            f"got {type(source).__name__}"
        )
    seen: set[str] = set()
    for item in manifest.items:
        if item.id in seen:
            raise CorpusError(f"{name}: the id {item.id!r} occurs twice; ids must be unique")
        seen.add(item.id)
    if not seen:
        raise CorpusError(f"{name} lists no recording; add one")
    return manifest


def _of_csv(table: Path) -> list[Item]:
    items = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if "path" not in (reader.fieldnames or ()):
                raise CorpusError(
                    f"{table}, line 1: expected a column 'path', got {reader.fieldnames}; add it"
                )
            for row in reader:
                if not row["path"]:
                    raise CorpusError(f"{table}, line {reader.line_num}: the path is empty")
                items.append(Item(row.get("id") or row["path"], row["path"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(
            f"cannot read the manifest {table}: {error}; pass a UTF-8 CSV, a .parquet or a folder"
        ) from error
    return items


def _of_parquet(table: Path) -> list[Item]:
    from pyarrow import ArrowException

    try:
        columns = read_table(table, ["path", "id"]).to_pydict()
    except (OSError, ArrowException) as error:
        raise CorpusError(f"cannot read the manifest {table}: {error}; write it anew") from error
    return _of_columns(columns, name=str(table))


def _of_columns(columns: dict[str, list[Any]], *, name: str) -> list[Item]:
    if "path" not in columns:
        raise CorpusError(f"{name}: expected a column 'path', got {', '.join(columns) or 'none'}")
    paths = columns["path"]
    ids = columns.get("id") or paths
    for at, (id, path) in enumerate(zip(ids, paths, strict=True)):
        if not path or id in (None, ""):
            raise CorpusError(f"{name}, row {at}: the path or the id is empty")
    return [Item(str(id), str(path)) for id, path in zip(ids, paths, strict=True)]


def _of_folder(folder: Path) -> list[Item]:
    from specsegdiff.data.pairs import has_audio_name

    paths = [
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if has_audio_name(file)
    ]
    return [Item(path, path) for path in sorted(paths)]


def _of_dataset(dataset: Any) -> Manifest:
    names = dataset.column_names
    if isinstance(names, dict) or not hasattr(dataset, "__len__"):
        raise CorpusError(
            f"expected one split that is not streamed, got a {type(dataset).__name__}; "
            "pass dataset['train'], loaded without streaming=True"
        )
    if "path" in names:
        columns = {name: list(dataset[name]) for name in ("path", "id") if name in names}
        return Manifest(_of_columns(columns, name="the dataset"), Path())
    if "audio" not in names:
        raise CorpusError(f"the dataset has the columns {names}, expected 'path' or 'audio'")
    # as stored: decoding is the library's own matter
    undecoded = dataset.cast_column("audio", replace(dataset.features["audio"], decode=False))
    items = []
    for row in undecoded:
        audio = row["audio"]
        path = audio["path"] or ""
        id = row.get("id")
        if id is None:
            id = path or hashlib.sha256(audio["bytes"]).hexdigest()
        items.append(Item(str(id), path))
    return Manifest(items, Path(), undecoded)


def _seconds(source: str | bytes) -> float | None:
    import soundfile

    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return float(soundfile.info(file).duration)
    except Exception:  # whatever is wrong with it, its row will say so
        return None
