"""Which of many machines this is: static shards by rank, as torchrun and SLURM number processes."""

import os
from dataclasses import dataclass

from specsegdiff.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """A process among those that share a run."""

    rank: int = 0
    "Number of this one, from 0."
    world: int = 1
    "How many there are."

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(
                f"expected 0 <= rank < world, got rank={self.rank}, world={self.world}; "
                "in an array of jobs, count from 0"
            )


def find_place(rank: int | None = None, world: int | None = None) -> Place:
    """Place that is given, else that of the environment, else the only one.

    torchrun sets ``RANK`` and ``WORLD_SIZE``. srun sets ``SLURM_PROCID`` and
    ``SLURM_STEP_NUM_TASKS``; a batch script itself has the first too, and ``SLURM_NTASKS`` with it,
    but runs once, so that only what srun adds is believed. Raises `ConfigError` where one of the
    two numbers is missing or no number.
    """
    if rank is not None or world is not None:
        if rank is None or world is None:
            raise ConfigError(f"rank and world go together, got rank={rank}, world={world}")
        return Place(rank, world)
    for mine, all_ in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if all_ in os.environ:
            return Place(_number(mine), _number(all_))
    return Place()


def local_rank() -> int:
    """Number of this process among those of its machine; 0 where nobody counts."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return _number(name)
    return 0


def cores() -> int:
    """Processor cores that this process may use, shared with torchrun's others on the machine."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else 1
    return max(1, (allowed or 1) // max(1, here))


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"expected a whole number in the environment variable {name}, "
            f"got {os.environ.get(name)!r}; set it, or pass rank and world"
        ) from error
