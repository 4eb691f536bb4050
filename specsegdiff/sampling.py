"""Draws from a diffusion segmenter: the condition is encoded once, and each draw owns its seed."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from specsegdiff.errors import ConfigError
from specsegdiff.shapes import Map

NOISE_BLOCK = 64
"""Grid columns of starting noise that share a generator, so that windows of one recording agree on it."""


class Segmenter(Protocol):
    """What sampling needs of a model; `models.segdiff.SpecSegDiff` is one."""

    config: Any

    def grid(self, n_frames: int) -> tuple[int, int]:
        """Patch rows and columns of a map."""

    def encode(self, condition: Map) -> Tensor:
        """Encode a condition ``(b, f, t)``."""

    def denoise(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """Predict on the grid ``(b, c, f, t)``."""

    def clean(self, prediction: Tensor) -> Tensor:
        """Clean mask of a ``sample`` prediction."""

    def unfold(self, grid: Tensor, *, frames: int) -> Map:
        """Grid to map."""

    def scheduler(self, *, sampler: str | None = None) -> Any:
        """Scheduler of diffusers."""


@dataclass(frozen=True)
class Draws:
    """Mean and standard deviation over the draws, ``(b, f, t)`` in [0, 1] and [0, 0.5]."""

    mean: Map
    spread: Map


@torch.inference_mode()
def sample(
    model: Segmenter,
    condition: Map,
    *,
    draws: int | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    items: Sequence[str] | None = None,
    first_column: int = 0,
    chunk: int = 8,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], object] | None = None,
) -> Draws:
    """Draw masks for conditions ``(b, f, t)`` and return their mean and spread.

    The condition is encoded once per item, never per step or draw. The noise of a draw depends on ``seed``,
    the item's name (its place in ``items``, by default "0") and the draw's index only: ``chunk`` (draws per
    network call), batch size and order change no number on a CPU. ``first_column`` tells where on the grid of a
    longer recording the condition starts. ``dtype`` is the networks' precision. ``progress`` is called with the draws advanced by one step after each
    network call. Raises `ConfigError` on counts below one, or more steps than the model was trained for.
    """
    config = model.config
    draws, steps = draws or config.draws, steps or config.steps
    for name, value, top in (
        ("draws", draws, None),
        ("steps", steps, config.train_steps),
        ("chunk", chunk, None),
    ):
        if value < 1 or (top is not None and value > top):
            raise ConfigError(f"{name} must lie between 1 and {top or 'any'}, got {value}")
    names = ["0"] * len(condition) if items is None else list(items)
    if len(names) != len(condition):
        raise ConfigError(
            f"got {len(names)} item names for {len(condition)} conditions; pass one for each"
        )
    with torch.autocast(condition.device.type, dtype, enabled=dtype is not torch.float32):
        results = [
            _sample_one(
                model, one[None], name, draws, steps, sampler, seed, first_column, chunk, progress
            )
            for one, name in zip(condition, names, strict=True)
        ]
    return Draws(torch.cat([r.mean for r in results]), torch.cat([r.spread for r in results]))


def _sample_one(
    model: Segmenter,
    condition: Map,
    item: str,
    draws: int,
    steps: int,
    sampler: str | None,
    seed: int,
    first_column: int,
    chunk: int,
    progress: Callable[[int], object] | None,
) -> Draws:
    frames = condition.shape[-1]
    encoded = model.encode(condition)
    shape = (model.config.patch[0] * model.config.patch[1], *model.grid(frames))
    total = torch.zeros(condition.shape, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, draws, chunk):
        ids = range(start, min(start + chunk, draws))
        noise = torch.stack(
            [starting_noise(seed, item, d, shape, first_column=first_column) for d in ids]
        )
        generators = [_generator(seed, item, d, "steps", first_column) for d in ids]
        scale = model.config.mask_scale
        x = denoise_chunk(model, noise.to(encoded), encoded, steps, sampler, generators, progress)
        value = (model.unfold(x, frames=frames).double().cpu() / scale + 1).div(2).clamp(0, 1)
        total += value.sum(dim=0)
        squares += value.square().sum(dim=0)
    mean = total / draws
    spread = (squares / draws - mean.square()).clamp_min(0).sqrt()
    return Draws(mean.float(), spread.float())


def denoise_chunk(
    model: Segmenter,
    noise: Float[Tensor, "d c f t"],
    encoded: Float[Tensor, "1 c f t"],
    steps: int,
    sampler: str | None,
    generators: Sequence[torch.Generator],
    progress: Callable[[int], object] | None,
) -> Float[Tensor, "d c f t"]:
    """Run the reverse diffusion of several draws that share one encoded condition."""
    scheduler = model.scheduler(sampler=sampler)
    scheduler.set_timesteps(steps)
    x = noise.contiguous(memory_format=torch.channels_last)
    shared = encoded.expand(len(x), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    for step in scheduler.timesteps:
        prediction = model.denoise(x, step.expand(len(x)).to(x.device), shared).float()
        if model.config.prediction == "sample":
            prediction = model.clean(prediction)
        x = scheduler.step(prediction, step, x.float(), generator=list(generators)).prev_sample
        if progress is not None:
            progress(len(x))
    return x


def starting_noise(
    seed: int, item: str, draw: int, shape: tuple[int, int, int], *, first_column: int = 0
) -> Float[Tensor, "c f t"]:
    """Gaussian noise ``(c, f, t)`` of one draw for grid columns from ``first_column`` on.

    Blocks of `NOISE_BLOCK` columns have a generator each, so any window of a recording sees the same noise.
    """
    channels, rows, columns = shape
    first, last = first_column // NOISE_BLOCK, (first_column + columns - 1) // NOISE_BLOCK
    blocks = [
        torch.randn(
            channels, rows, NOISE_BLOCK, generator=_generator(seed, item, draw, "start", block)
        )
        for block in range(first, last + 1)
    ]
    offset = first_column - first * NOISE_BLOCK
    return torch.cat(blocks, dim=-1)[..., offset : offset + columns]


def fastest_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device computes with it, float32 elsewhere; asked of the device, not assumed."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if torch.device(device).type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _generator(seed: int, item: str, draw: int, purpose: str, block: int) -> torch.Generator:
    key = repr((seed, item, draw, purpose, block)).encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(number)
