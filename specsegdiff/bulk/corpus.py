"""Explain a corpus: as many recordings as there are, on one machine or as one of many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specsegdiff.bulk.parts import Marker
from specsegdiff.bulk.place import cores, find_place
from specsegdiff.bulk.plan import Work, prepare
from specsegdiff.bulk.settings import Settings
from specsegdiff.bulk.shards import explain_shard
from specsegdiff.bulk.stopping import Stop, stop_on_signals
from specsegdiff.bulk.workers import explain_in_processes
from specsegdiff.errors import ConfigError
from specsegdiff.progress import reported


@dataclass(frozen=True)
class Summary:
    """What stands after a run, of the shards that fall to it."""

    files: int
    "Recordings in finished parts."
    errors: int
    "Recordings among them that could not be explained."
    shards: int
    "Shards that fall to this run."
    finished: int
    "Shards among them that are finished."

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do here; otherwise run again to go on."""
        return self.finished == self.shards


def explain_corpus(
    source: Any,
    out: str | Path,
    *,
    settings: Work | None = None,
    workers: int | None = None,
    shard_seconds: float = 600.0,
    rank: int | None = None,
    world: int | None = None,
    grace: float = 20.0,
    progress: Callable[[int, int], object] | bool | None = None,
) -> Summary:
    """Explain every recording of a manifest into parquet parts, or go on where a run was killed.

    ``source`` is what `specsegdiff.bulk.manifest.open_manifest` takes; `read_parts` reads ``out``.
    A recording that cannot be explained becomes a row with its error. Rows do not depend on
    ``workers``, ``shard_seconds``, machines or order.

    ``workers`` processes explain a shard at a time, by default one a core, or one where
    ``settings.device`` is an accelerator; 0 works in this process. A shard holds about
    ``shard_seconds`` of audio: what a kill can cost a worker. ``rank`` of ``world`` takes every
    ``world``-th shard, by default as torchrun or srun say (`find_place`). SIGTERM or Ctrl-C begin
    no further shard and drop those at hand after ``grace`` seconds, a second one at once.
    ``progress`` is called with (recordings done, all); True shows a bar, None in a terminal only.

    Raises `ConfigError` on impossible settings, or where ``out`` holds a run with others,
    `CorpusError` on a manifest that cannot be read, `CheckpointError` on a damaged plan,
    `OutputError` where ``out`` cannot be written or is full, and `WorkerError` where worker
    processes fail whatever the file. What was finished before stays in each case.
    """
    work: Work = settings or Settings()
    if workers is None:
        workers = cores() if work.device == "cpu" else 1
    if workers < 0 or grace < 0:
        raise ConfigError(f"workers and grace must be at least 0, got {workers} and {grace}")
    place = find_place(rank, world)
    run = prepare(source, out, work, shard_seconds=shard_seconds, place=place)
    markers, todo = run.check(place)
    shards = len(markers) + len(todo)
    files = sum(marker.rows for marker in markers)
    left = sum(run.first[shard + 1] - run.first[shard] for shard in todo)
    stop = Stop(grace=grace)
    telling = reported(progress, total=files + left, done=files, unit="file", name="explain corpus")
    with stop_on_signals(stop), telling as advance:

        def done(marker: Marker) -> None:
            markers.append(marker)
            advance(marker.rows)

        if workers and todo:
            explain_in_processes(
                run.jobs(todo), work, workers=min(workers, len(todo)), stop=stop, done=done
            )
        else:
            for job in run.jobs(todo):
                if stop.requested:
                    break
                marker = explain_shard(work, job, tolerant=True, cancelled=lambda: stop.due)
                if marker is not None:
                    done(marker)
    return summarise(markers, shards=shards)


def summarise(markers: Sequence[Marker], *, shards: int) -> Summary:
    """Summary of finished shards, out of ``shards`` in all."""
    return Summary(
        files=sum(marker.rows for marker in markers),
        errors=sum(marker.errors for marker in markers),
        shards=shards,
        finished=len(markers),
    )
