"""The plan of a run: which recording is in which shard, written once and kept for every resume."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from specsegdiff.bulk.manifest import Item, Manifest, open_manifest
from specsegdiff.bulk.parts import (
    FORMAT,
    PLAN_NAME,
    RUN_NAME,
    Marker,
    Tag,
    finished,
    make_folders,
    parquet,
    read_run,
    read_table,
    sweep,
    sweep_plan,
    table_bytes,
    write_durably,
)
from specsegdiff.bulk.place import Place
from specsegdiff.bulk.rows import Row
from specsegdiff.errors import CheckpointError, ConfigError

_Length: TypeAlias = tuple[Item, float | None]
"A recording and its seconds, None where they are unknown."

SHORTEST = 1.0
"Seconds that a recording counts at least: opening a file takes its time too."

UNKNOWN = 60.0
"Seconds that a recording of unknown length counts."

PATIENCE = 3600.0
"Seconds that other machines wait for the first one's plan."


class Work(Protocol):
    """What explains recordings in worker processes: it is pickled, and hashable.

    `specsegdiff.bulk.settings.Settings` is one.
    """

    def __hash__(self) -> int:
        """A worker process loads an explainer once."""

    @property
    def device(self) -> str:
        """Where its networks run."""

    def identity(self) -> dict[str, Any]:
        """What its rows depend on, for JSON: hashes under ``weights``, the rest ``settings``."""

    def open(self) -> Callable[[str | bytes], Row]:
        """Load what maps a path, or the bytes of a file, to the columns of a row."""


@dataclass(frozen=True)
class Job:
    """A shard to explain."""

    out: Path
    "Folder of the run."
    shard: int
    "Number of the shard."
    items: tuple[Item, ...]
    "Recordings."
    sources: tuple[str | bytes, ...]
    "What to read for each of them."
    tag: Tag
    "What its part belongs to."


@dataclass(frozen=True)
class Run:
    """A planned run."""

    out: Path
    "Folder of the run."
    manifest: Manifest = field(repr=False)
    "Recordings."
    items: Sequence[Item] = field(repr=False)
    "Recordings in the order of the plan."
    first: Sequence[int] = field(repr=False)
    "Place of each shard's first recording among them, and at last their number."
    tag: Tag
    "What its parts belong to."

    @property
    def shards(self) -> int:
        """Number of all shards."""
        return len(self.first) - 1

    def job(self, shard: int) -> Job:
        """A shard, with what is to be read."""
        items = tuple(self.items[self.first[shard] : self.first[shard + 1]])
        return Job(self.out, shard, items, tuple(self.manifest.sources(items)), self.tag)

    def jobs(self, shards: Sequence[int]) -> Iterator[Job]:
        """Shards one by one, so that what a dataset holds is not read long before its use."""
        return map(self.job, shards)

    def check(self, place: Place) -> tuple[list[Marker], list[int]]:
        """Markers of the finished shards that fall to a place, and the numbers of the others.

        What killed runs left of those is removed.
        """
        mine = range(place.rank, self.shards, place.world)
        found = {shard: finished(self.out, shard, self.tag) for shard in mine}
        todo = [shard for shard, marker in found.items() if marker is None]
        sweep(self.out, todo)
        return [marker for marker in found.values() if marker], todo


def prepare(source: Any, out: str | Path, work: Work, *, shard_seconds: float, place: Place) -> Run:
    """Plan a run in ``out``, or find the plan that is there; the first of many machines plans.

    Raises `ConfigError` where the folder holds a run of other weights, settings or recordings,
    `CorpusError` where the manifest cannot be read, `CheckpointError` on a damaged plan and
    `OutputError` where the folder cannot be written.
    """
    if not (math.isfinite(shard_seconds) and shard_seconds > 0):
        raise ConfigError(f"shard_seconds must be positive, got {shard_seconds!r}")
    parquet()
    out = Path(out)
    manifest = open_manifest(source)
    identity = json.loads(json.dumps(work.identity()))
    card = {
        "format": FORMAT,
        **identity,
        "manifest": {"sha256": manifest.sha256, "files": len(manifest.items)},
        "shard_seconds": float(shard_seconds),
    }
    tag = Tag(_hash(card["weights"]), _hash(card["settings"]), card["manifest"]["sha256"])
    there = read_run(out)
    if there is None and place.rank > 0:
        there = _wait(out)
    if there is None:
        make_folders(out)
        sweep_plan(out)
        lengths, first = _cut(manifest, shard_seconds)
        content = _plan_bytes(lengths, first)
        write_durably(out / PLAN_NAME, content)
        more = {"tag": asdict(tag), "shards": len(first) - 1}
        there = card | more | {"plan_sha256": hashlib.sha256(content).hexdigest()}
        # last: a folder with run.json has a plan
        write_durably(out / RUN_NAME, json.dumps(there, indent=1).encode() + b"\n")
    _check_same(there, card, out)
    items, first = _read_plan(out, there)
    if manifest.dataset is None:
        # the plan holds all of them; twice a million names need not be kept
        manifest = replace(manifest, items=())
    return Run(out, manifest, items, first, tag)


def _cut(manifest: Manifest, shard_seconds: float) -> tuple[list[_Length], list[int]]:
    """Recordings from the longest on, unknown lengths before all, and where shards begin.

    So the last shards are the quick ones and no worker is left behind with an hour of audio; what
    does not fit into memory shows at once.
    """
    lengths = list(zip(manifest.items, manifest.seconds(), strict=True))
    lengths.sort(key=lambda pair: (-math.inf if pair[1] is None else -pair[1], pair[0].id))
    first, total = [0], 0.0
    for at, (_, seconds) in enumerate(lengths):
        cost = UNKNOWN if seconds is None else max(seconds, SHORTEST)
        if total > 0 and total + cost > shard_seconds:
            first.append(at)
            total = 0.0
        total += cost
    return lengths, [*first, len(lengths)]


def _plan_bytes(lengths: Sequence[_Length], first: Sequence[int]) -> bytes:
    import pyarrow as pa

    columns = pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("seconds", pa.float64()),
            ("shard", pa.int32()),
        ]
    )
    rows = []
    for shard in range(len(first) - 1):
        for item, seconds in lengths[first[shard] : first[shard + 1]]:
            rows.append({"id": item.id, "path": item.path, "seconds": seconds, "shard": shard})
    return table_bytes(rows, columns)


def _read_plan(out: Path, card: dict[str, Any]) -> tuple[list[Item], list[int]]:
    path = out / PLAN_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path} ({error}); choose another folder for a new run"
        ) from error
    if hashlib.sha256(content).hexdigest() != card["plan_sha256"]:
        raise CheckpointError(
            f"{path} was changed or damaged after it was written, and with it which recording is "
            "in which part; restore it, or choose another folder for a new run"
        )
    table = read_table(content)
    items = list(map(Item, table["id"].to_pylist(), table["path"].to_pylist()))
    shards = table["shard"].to_pylist()
    first = [0] + [at for at in range(1, len(shards)) if shards[at] != shards[at - 1]]
    return items, [*first, len(items)]


def _wait(out: Path) -> dict[str, Any]:
    """Run card of the first machine, once it has planned."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        card = read_run(out)
        if card is not None:
            return card
        time.sleep(0.5)
    raise ConfigError(
        f"rank 0 left no {RUN_NAME} in {out} for {PATIENCE:.0f} s; start it too, and let all ranks "
        "see one folder"
    )


def _check_same(there: dict[str, Any], card: dict[str, Any], out: Path) -> None:
    before, now = _flat(there), _flat(card)
    names = [name for name in now if before.get(name) != now[name]]
    names += [f for part in ("weights", "settings") for f in _gone(there, card, part)]
    if names:
        said = "; ".join(
            f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in names
        )
        raise ConfigError(
            f"{out} holds another run: {said}. Pass what was passed before to go on, "
            "or choose another folder for a new run"
        )


def _gone(there: dict[str, Any], card: dict[str, Any], part: str) -> list[str]:
    return [f"{part}.{name}" for name in there.get(part, {}) if name not in card[part]]


def _flat(card: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in card.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": found for inner, found in value.items()}
        else:
            flat[name] = value
    return flat


def _short(value: object) -> str:
    return repr(value if not isinstance(value, str) or len(value) < 64 else f"{value[:12]}...")


def _hash(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
