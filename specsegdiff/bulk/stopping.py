"""When to end: SIGTERM and Ctrl-C let the shards at hand finish for a while, then drop them."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """A wish to end, and the moment at which the shards at hand are dropped.

    >>> stop = Stop(grace=0.0)
    >>> stop.requested, stop.due
    (False, False)
    >>> stop.request(); stop.requested, stop.due
    (True, True)
    """

    def __init__(self, *, grace: float) -> None:
        """Let shards at hand go on for ``grace`` seconds after the wish."""
        self._grace = grace
        self._until: float | None = None

    def request(self) -> None:
        """Begin no further shard; asked a second time, drop those at hand."""
        self._until = time.monotonic() + self._grace if self._until is None else time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether the end was wished for."""
        return self._until is not None

    @property
    def due(self) -> bool:
        """Whether shards at hand are to be dropped."""
        return self._until is not None and time.monotonic() >= self._until


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into requests; only the main thread can, others leave them be."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop.request()) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
