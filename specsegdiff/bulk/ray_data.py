"""The same run on a Ray cluster: Ray Data hands shards to actors, parts and plan stay ours.

Ray's own checkpoints keep the ids of all rows in memory and its blocks differ from run to run, so
that what is finished is what has a marker, here as everywhere.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specsegdiff.bulk.corpus import Summary, summarise
from specsegdiff.bulk.parts import finished
from specsegdiff.bulk.place import Place
from specsegdiff.bulk.plan import Run, Work, prepare
from specsegdiff.bulk.settings import Settings
from specsegdiff.bulk.shards import explain_shard, opened
from specsegdiff.errors import ConfigError, DependencyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Batch = dict[str, NDArray[np.int64]]


def explain_on_ray(
    source: Any,
    out: str | Path,
    *,
    settings: Work | None = None,
    workers: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    shard_seconds: float = 600.0,
) -> Summary:
    """Explain a corpus as `explain_corpus` does, by ``workers`` actors of a Ray cluster.

    All machines must see ``out`` and the recordings under the same paths. Each actor takes ``cpus``
    cores and ``gpus`` cards. The two functions may take turns on one folder. An actor that dies is
    Ray's to replace; where it gives up, its error is raised and the finished shards stay. Raises
    `DependencyError` where Ray is not installed, and else as `explain_corpus`.
    """
    try:
        import ray.data
    except ImportError as error:
        raise DependencyError("explain_on_ray needs ray: pip install 'specsegdiff[ray]'") from error
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    work: Work = settings or Settings()
    run = prepare(source, out, work, shard_seconds=shard_seconds, place=Place())
    markers, todo = run.check(Place())
    if todo:
        shards = ray.data.from_items(
            [{"shard": shard} for shard in todo], override_num_blocks=len(todo)
        )
        done = shards.map_batches(
            _Actor,
            fn_constructor_args=(work, run),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(todo))),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in done.iter_rows():
            marker = finished(run.out, int(row["shard"]), run.tag)
            if marker is not None:
                markers.append(marker)
    return summarise(markers, shards=run.shards)


class _Actor:
    """A process of the cluster that has loaded the networks."""

    def __init__(self, work: Work, run: Run) -> None:
        self._work, self._run = work, run
        opened(work)

    def __call__(self, batch: "Batch") -> "Batch":
        for shard in batch["shard"].tolist():
            # Ray repeats a batch whose actor died; what it had finished stands
            if finished(self._run.out, shard, self._run.tag) is None:
                explain_shard(self._work, self._run.job(shard), tolerant=True)
        return batch
