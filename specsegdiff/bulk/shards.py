"""The loop over the recordings of a shard, the same in every process and on every engine."""

from collections.abc import Callable
from functools import lru_cache

from specsegdiff.bulk.manifest import Item
from specsegdiff.bulk.parts import Marker, write_part
from specsegdiff.bulk.plan import Job, Work
from specsegdiff.bulk.rows import Row, error_row
from specsegdiff.errors import ConfigError, DependencyError, OutputError, SpecSegDiffError

NOT_THE_FILE = (ConfigError, DependencyError, OutputError)
"Errors that would meet every recording: they end the run."


def explain_shard(
    work: Work,
    job: Job,
    *,
    tolerant: bool = False,
    cancelled: Callable[[], bool] | None = None,
) -> Marker | None:
    """Explain the recordings of a shard and write its part.

    A typed error becomes the row of its recording (`explain_item`); with ``tolerant``, so does any
    other. ``cancelled`` is asked before each recording: where it says so the shard is dropped, and
    None returned. Raises `OutputError` where the part cannot be written.
    """
    rows = []
    for item, source in zip(job.items, job.sources, strict=True):
        if cancelled is not None and cancelled():
            return None
        try:
            rows.append(explain_item(work, item, source))
        except SpecSegDiffError:
            raise
        except Exception as error:
            if not tolerant:
                raise
            rows.append(item._asdict() | error_row(error))
    return write_part(job.out, job.shard, rows, job.tag)


def explain_item(work: Work, item: Item, source: str | bytes) -> Row:
    """Row of one recording; a typed error becomes one too, unless it is no fault of the file's."""
    explain = opened(work)
    try:
        return item._asdict() | explain(source)
    except NOT_THE_FILE:
        raise
    except SpecSegDiffError as error:
        return item._asdict() | error_row(error)


@lru_cache(maxsize=1)
def opened(work: Work) -> Callable[[str | bytes], Row]:
    """The explainer of this process, loaded once; the one before is let go."""
    return work.open()
