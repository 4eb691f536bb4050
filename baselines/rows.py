"""Work on many rows, as many at once as the memory holds."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

ROWS_ON_ACCELERATOR = 8
"Rows a pass on an accelerator, halved until they fit; a CPU gains nothing from more than one."

T = TypeVar("T")


def each_row(
    work: Callable[[range], Tensor], count: int, *, chunk: int | None, device: torch.device
) -> Iterator[Tensor]:
    """Results of ``work`` for the rows ``0 .. count - 1``, given to it in ranges of ``chunk``.

    Without ``chunk``, ranges are as long as the memory allows (`fitting_memory`). ``work`` returns
    the results of its rows, ``(rows, ...)``; each comes out alone, in float64 on the CPU, so that a
    sum of them is the same for all chunks, but for the network's own rounding.
    """
    start, most = 0, None
    while start < count:

        def some(rows: int, start: int = start) -> Tensor:
            return work(range(start, min(start + rows, count)))

        results, most = fitting_memory(some, chunk=chunk, device=device, most=most)
        yield from results.detach().cpu().double()
        start += len(results)


def mean_row(
    work: Callable[[range], Tensor], count: int, *, chunk: int | None, device: torch.device
) -> Tensor:
    """Mean in float64 of what `each_row` gives."""
    total = torch.zeros((), dtype=torch.float64)
    for result in each_row(work, count, chunk=chunk, device=device):
        total = total + result
    return total / count


def fitting_memory(
    work: Callable[[int], T], *, chunk: int | None, device: torch.device, most: int | None = None
) -> tuple[T, int]:
    """Result of ``work`` with ``chunk`` rows at once, and how many rows that were.

    Without ``chunk``: with ``most`` rows, by default one on a CPU and `ROWS_ON_ACCELERATOR` on any
    other device, halved each time that it runs out of memory.
    """
    rows = chunk or most or (1 if device.type == "cpu" else ROWS_ON_ACCELERATOR)
    while True:
        try:
            return work(rows), rows
        except torch.OutOfMemoryError:
            if chunk is not None or rows == 1:
                raise
        rows //= 2
