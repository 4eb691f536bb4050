"""Who is told of progress: a callable, a bar, or nobody."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def reported(
    wanted: Callable[[int, int], object] | bool | None,
    *,
    total: int,
    done: int = 0,
    unit: str,
    name: str,
    long: bool = True,
) -> Iterator[Callable[[int], object]]:
    """Give a function that takes how many units were done just now, of ``total``.

    A callable ``wanted`` is called with (done, total); True shows a bar, None shows one for
    ``long`` work in a terminal only, False none.

    >>> seen = []
    >>> with reported(lambda *told: seen.append(told), total=3, unit="file", name="x") as advance:
    ...     advance(2)
    >>> seen
    [(2, 3)]
    """
    if callable(wanted):

        def advance(units: int) -> None:
            nonlocal done
            done += units
            wanted(done, total)

        yield advance
    elif wanted or (wanted is None and long and sys.stderr.isatty()):
        from tqdm.auto import tqdm

        with tqdm(total=total, initial=done, unit=unit, desc=name) as bar:
            yield bar.update
    else:
        yield lambda units: None
