"""Worker processes of one machine: each may die without taking more with it than a try.

Every process is an executor of its own, so that a death is known to be that of one shard. The shard
is then explained again file by file: a file at which a process dies twice, or fails twice in a way
that nobody foresaw, becomes a row that says so.
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

from specsegdiff.bulk.manifest import Item
from specsegdiff.bulk.parts import Marker, write_part
from specsegdiff.bulk.plan import Job, Work
from specsegdiff.bulk.rows import Row, error_row
from specsegdiff.bulk.shards import explain_item, explain_shard, opened
from specsegdiff.bulk.stopping import Stop
from specsegdiff.errors import SpecSegDiffError, WorkerError

TRIES = 3
"Times that a process may die before it is ready, in a row."

TOO_MANY = 3
"Files of a shard that may all fail unforeseen before that is no fault of theirs."


def explain_in_processes(
    jobs: Iterator[Job],
    work: Work,
    *,
    workers: int,
    stop: Stop,
    done: Callable[[Marker], object],
) -> None:
    """Explain shards in worker processes; ``done`` is called here with the marker of each.

    The first error ends all: `OutputError`, `ConfigError`, or `WorkerError` where processes die or
    fail whatever the file. Where ``stop`` is due, the processes are killed, and what they had in
    hand is dropped.
    """
    results: queue.SimpleQueue[Marker | BaseException | None] = queue.SimpleQueue()
    slots = [_Slot(work) for _ in range(workers)]
    lock = threading.Lock()

    def serve(slot: _Slot) -> None:
        try:
            while not stop.requested:
                with lock:
                    job = next(jobs, None)
                if job is None:
                    break
                results.put(slot.explain(job))
        except _Closed:
            pass
        except BaseException as error:
            results.put(error)
        finally:
            slot.close()
            results.put(None)

    threads = [threading.Thread(target=serve, args=(slot,)) for slot in slots]
    for thread in threads:
        thread.start()
    failed: BaseException | None = None
    try:
        at_work = workers
        while at_work:
            if failed or stop.due:
                for slot in slots:
                    slot.kill()
            try:
                got = results.get(timeout=0.1)
            except queue.Empty:
                continue
            if got is None:
                at_work -= 1
            elif isinstance(got, Marker):
                done(got)
            else:
                failed = failed or got
    finally:
        for slot in slots:
            slot.kill()
        for thread in threads:
            thread.join()
    if failed:
        raise failed


class _Closed(Exception):
    """Raised in a slot that was killed."""


class _Slot:
    """One worker process, replaced where it dies."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._pid: int | None = None
        self._closed = False

    def explain(self, job: Job) -> Marker:
        """Explain a shard, and once more file by file where that went wrong."""
        pool = self._ready()
        try:
            return pool.submit(explain_shard, self._work, job).result()  # type: ignore[return-value]  # nothing cancels
        except SpecSegDiffError:
            raise
        except Exception:
            self._replace()
        return self._explain_by_file(job)

    def close(self) -> None:
        """Let the process end, once it is done."""
        if self._pool is not None:
            self._pool.shutdown()

    def kill(self) -> None:
        """End the process at once, and start no other."""
        with self._lock:
            self._closed = True
            self._kill()

    def _explain_by_file(self, job: Job) -> Marker:
        rows, unforeseen = [], 0
        for item, source in zip(job.items, job.sources, strict=True):
            row, expected = self._explain_alone(item, source)
            rows.append(row)
            unforeseen += not expected
        if unforeseen == len(rows) >= TOO_MANY:
            last = rows[-1]
            raise WorkerError(
                f"all {len(rows)} files of a shard failed, {last['path']} with "
                f"{last['error_type']}: {last['error']}; that is no fault of theirs: check memory, "
                "device and installation, and run again"
            )
        return write_part(job.out, job.shard, rows, job.tag)

    def _explain_alone(self, item: Item, source: str | bytes) -> tuple[Row, bool]:
        """Row of a file, and whether it is one that was foreseen."""
        for _ in range(2):
            pool = self._ready()
            try:
                return pool.submit(explain_item, self._work, item, source).result(), True
            except SpecSegDiffError:
                raise
            except BrokenExecutor:
                failure: Exception = WorkerError(
                    "its worker process died twice: out of memory, or a fault in a decoder"
                )
            except Exception as error:
                failure = error
            self._replace()
        return item._asdict() | error_row(failure), False

    def _ready(self) -> ProcessPoolExecutor:
        """Executor whose process has loaded the networks."""
        for _ in range(TRIES):
            with self._lock:
                if self._closed:
                    raise _Closed
                if self._pool is not None:
                    return self._pool
                context = multiprocessing.get_context("spawn")
                pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
                self._pool = pool
            try:
                pid = pool.submit(os.getpid).result()
                with self._lock:
                    self._pid = pid
                    if self._closed:
                        self._kill()
                pool.submit(_load, self._work).result()
            except BrokenExecutor:
                self._replace()
        raise WorkerError(
            f"a worker process died {TRIES} times before it was ready; ask for fewer workers if "
            'memory is short, and in a script, begin with: if __name__ == "__main__":'
        )

    def _replace(self) -> None:
        """Leave this process behind; the next call starts another."""
        with self._lock:
            self._kill()
            pool, self._pool, self._pid = self._pool, None, None
        if pool is not None:
            pool.shutdown()

    def _kill(self) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self._pid = None


def _begin() -> None:
    """Leave signals to the first process, and do not outlive it.

    An executor's process waits on a pipe that it holds both ends of, so that it would wait for ever
    (CPython issue 111873).
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def _load(work: Work) -> None:
    opened(work)
