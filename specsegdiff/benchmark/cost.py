"""What a call costs: its seconds, and the memory that it takes beyond what was there."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

PROCESS = Path("/proc/self")
"Where Linux tells about this process."


class Cost(NamedTuple):
    """Cost of one call."""

    seconds: float
    "Wall time."
    peak_mb: float | None
    "Growth of the resident memory at its peak, in MB; None where it cannot be read."


def measured(call: Callable[[], T]) -> tuple[T, Cost]:
    """Result and cost of a call.

    The memory is the highest resident size of this process during the call (``VmHWM``, set back
    before it) less the size before, when garbage is collected and the allocator has returned what
    it can. It counts tensors and all else in RAM, of all threads, and no accelerator's memory. What
    a library keeps from an earlier call, such as oneDNN's scratch, is not counted again, so it is a
    lower bound. It needs Linux and the right to write to ``/proc/self/clear_refs``.
    """
    before = _resident_mb()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    peak = None if before is None else max(_status_mb("VmHWM") - before, 0.0)
    return result, Cost(seconds, peak)


def _resident_mb() -> float | None:
    """Resident size now, with its peak set back to it; None where this system cannot."""
    gc.collect()
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)
        (PROCESS / "clear_refs").write_text("5")
        return _status_mb("VmRSS")
    except (OSError, TypeError, KeyError):
        return None


def _status_mb(name: str) -> float:
    lines = (PROCESS / "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[name].split()[0]) / 1024
