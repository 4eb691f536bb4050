"""Parts of a corpus on disk: each is whole or absent, and a marker says when it is finished.

::

    out/run.json                 weights, settings and manifest of the run
        plan.parquet             which recording is in which shard
        parts/part-00012.parquet one row a recording of shard 12
        done/part-00012.json     hashes: the part is whole, and belongs to this run

A part is written to a hidden name, flushed to the disk and renamed, then so is its marker. A kill
in between leaves a part without marker, which the next run writes again under the same name: so no
row is lost, and none is there twice.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specsegdiff.bulk.rows import Row, schema
from specsegdiff.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    DependencyError,
    OutputError,
)

RUN_NAME = "run.json"
PLAN_NAME = "plan.parquet"
FORMAT = "specsegdiff corpus 1"


@dataclass(frozen=True)
class Tag:
    """What a part belongs to."""

    weights: str
    "SHA-256 of the hashes of all weights."
    settings: str
    "SHA-256 of the settings."
    manifest: str
    "SHA-256 of the manifest's ids and paths."


@dataclass(frozen=True)
class Marker:
    """Says that a part is finished."""

    shard: int
    "Number of the shard."
    rows: int
    "Recordings in it."
    errors: int
    "Recordings among them that could not be explained."
    sha256: str
    "SHA-256 of the parquet file."
    tag: Tag
    "What it belongs to."


def parquet() -> Any:
    """The module `pyarrow.parquet`; raises `DependencyError` where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError(
            "corpora are kept as parquet, which needs pyarrow: pip install 'specsegdiff[corpus]'"
        ) from error
    return pyarrow.parquet


def write_part(out: Path, shard: int, rows: Sequence[Row], tag: Tag) -> Marker:
    """Write the rows of a shard, then its marker; raises `OutputError` where that fails."""
    content = table_bytes(rows, schema())
    errors = sum(row.get("error_type") is not None for row in rows)
    marker = Marker(shard, len(rows), errors, hashlib.sha256(content).hexdigest(), tag)
    write_durably(_part(out, shard), content)
    write_durably(_marker(out, shard), json.dumps(asdict(marker)).encode() + b"\n")
    return marker


def read_marker(out: Path, shard: int) -> Marker | None:
    """Marker of a shard, or None where there is none that can be read."""
    try:
        values = json.loads(_marker(out, shard).read_bytes())
        return Marker(**values | {"tag": Tag(**values["tag"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def finished(out: Path, shard: int, tag: Tag) -> Marker | None:
    """Marker of a shard whose part is there, undamaged and of this run; else None."""
    marker = read_marker(out, shard)
    if marker is None or marker.tag != tag or marker.shard != shard:
        return None
    try:
        with _part(out, shard).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
    return marker if found == marker.sha256 else None


def sweep(out: Path, shards: Iterable[int]) -> None:
    """Remove what killed runs left half written of these shards.

    Those of other shards may be at work on another machine. Raises `OutputError` where that fails.
    """
    wanted = set(shards)
    left = []
    for file in out.glob("*/.part-*"):
        match = re.match(r"\.part-(\d+)\.", file.name)
        if match and int(match[1]) in wanted:
            left.append(file)
    _remove(left)


def sweep_plan(out: Path) -> None:
    """Remove what was left half written of plan and run; raises `OutputError` where that fails."""
    _remove([*out.glob(f".{PLAN_NAME}.*"), *out.glob(f".{RUN_NAME}.*")])


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot remove {file}, left by a killed run: {error}; choose a writable folder"
            ) from error


def read_parts(
    out: str | Path, *, columns: Sequence[str] | None = None, partial: bool = False
) -> Iterator[Row]:
    """Read the rows that `specsegdiff.bulk.explain_corpus` left in a folder, part after part.

    Rows are dicts with the columns of `specsegdiff.bulk.rows.schema`, or only ``columns``; one part
    is in memory at a time. Longer recordings come first. Raises `CorpusError` where shards are
    unfinished, unless ``partial``, `CheckpointError` where a finished part is damaged and
    `ConfigError` for a column that there is not.
    """
    out = Path(out)
    check_columns(columns)
    return rows_of(out, finished_parts(out, partial=partial), columns)


def check_columns(columns: Sequence[str] | None) -> None:
    """Raise `ConfigError` for a column that parts do not have."""
    parquet()
    if isinstance(columns, str):
        raise ConfigError(
            f"columns must be names in a sequence, got {columns!r}; pass [{columns!r}]"
        )
    names = schema().names
    if unknown := sorted(set(columns or ()) - set(names)):
        raise ConfigError(
            f"parts have no column {', '.join(unknown)}; choose from {', '.join(names)}"
        )


def finished_parts(out: Path, *, partial: bool = False) -> list[Marker]:
    """Markers of the finished parts, in order; raises `CorpusError` as `read_parts` does."""
    card = read_run(out)
    if card is None:
        raise CorpusError(f"{out} holds no {RUN_NAME}; pass a folder that explain_corpus wrote")
    found = (read_marker(out, shard) for shard in range(card["shards"]))
    markers = [marker for marker in found if marker and asdict(marker.tag) == card["tag"]]
    missing = card["shards"] - len(markers)
    if missing and not partial:
        raise CorpusError(
            f"{missing} of {card['shards']} shards in {out} are unfinished; run explain_corpus "
            "again to go on, or pass partial=True"
        )
    return markers


def rows_of(out: Path, markers: Iterable[Marker], columns: Sequence[str] | None) -> Iterator[Row]:
    """Rows of finished parts; raises `CheckpointError` where one is damaged."""
    for marker in markers:
        path = _part(out, marker.shard)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path} ({error}); explain it again") from error
        if hashlib.sha256(content).hexdigest() != marker.sha256:
            raise CheckpointError(
                f"{path} was changed or damaged after it was written; "
                "run explain_corpus again, which writes it anew"
            )
        yield from read_table(content, columns).to_pylist()


def read_run(out: Path) -> dict[str, Any] | None:
    """Contents of ``run.json``, or None where there is none; `CheckpointError` if damaged."""
    path = out / RUN_NAME
    try:
        card = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path} ({error}); choose another folder") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CheckpointError(f"{path} is none of this version's; choose another folder")
    return card


def read_table(source: bytes | Path, columns: Sequence[str] | None = None) -> Any:
    """Those of the columns that a parquet file has, by default all, read by this thread alone.

    `pyarrow.parquet.read_table` begins threads even where it is told not to, and an interpreter
    that ends beside them aborts in one of five short runs (apache/arrow issue 34314).
    """
    module = parquet()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with module.ParquetFile(file, pre_buffer=False) as opened:
        return opened.read(columns=columns, use_threads=False)


def table_bytes(rows: Sequence[Row], columns: Any) -> bytes:
    """Rows as a parquet file."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(list(rows), schema=columns)
    # hashes and packed bits repeat nothing that a dictionary could share, and their least and
    # greatest values tell nobody anything
    told = [name for name in ("id", "duration", "p_spoof") if name in columns.names]
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": told}
    parquet().write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, also when the power goes.

    Raises `OutputError` where it cannot be written; what is finished stays, nothing half-written
    does.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # temporary files are private, a result is not
        temporary.chmod(0o644)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error}; what is finished is kept, so make room "
            "or rights and run again to go on"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def make_folders(out: Path) -> None:
    """Make the folders of a run; raises `OutputError` where that cannot be."""
    try:
        for folder in (out / "parts", out / "done"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {out}: {error}; choose another folder") from error


def _sync_folder(folder: Path) -> None:
    """Flush a rename; Windows cannot open folders, and flushes it itself."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _part(out: Path, shard: int) -> Path:
    return out / "parts" / f"part-{shard:05d}.parquet"


def _marker(out: Path, shard: int) -> Path:
    return out / "done" / f"part-{shard:05d}.json"
