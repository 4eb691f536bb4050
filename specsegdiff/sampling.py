"""Draws from a diffusion segmenter: the condition is encoded once, and each draw owns its seed."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from specsegdiff.errors import ConfigError
from specsegdiff.shapes import Map

ROOM = 0.8
"Share of an accelerator's free memory that draws at once may take."

NOISE_BLOCK = 64
"""Grid columns of starting noise that share a generator, so that windows of one recording agree on
it."""

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"Types that the networks compute in."


@runtime_checkable
class Segmenter(Protocol):
    """What sampling needs of a model; `models.segdiff.SpecSegDiff` is one."""

    config: Any

    def grid(self, n_frames: int) -> tuple[int, int]:
        """Patch rows and columns of a map."""

    def encode(self, condition: Tensor) -> Tensor:
        """Encode a condition ``(b, c, t)``, where t counts the map's frames."""

    def denoise(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """Predict on the grid ``(b, c, f, t)``."""

    def is_blind(self, step: Tensor) -> bool:
        """Tell whether all draws share the prediction at a step."""

    def clean(self, prediction: Tensor) -> Tensor:
        """Clean mask of a ``sample`` prediction."""

    def unfold(self, grid: Tensor, *, frames: int) -> Map:
        """Grid to map."""

    def scheduler(self, *, sampler: str | None = None) -> Any:
        """Scheduler of diffusers."""


@dataclass(frozen=True)
class Draws:
    """What draws say of each bin, ``(..., f, t)``."""

    mean: Map
    "Mean over the draws, in [0, 1]."
    spread: Map
    """Standard deviation over the draws, in [0, 0.5]; where one pass answers for all of them, that
    of a bin which is marked with probability `mean`."""


@torch.inference_mode()
def sample(
    model: Segmenter,
    condition: Float[Tensor, "b c t"],
    *,
    draws: int | None = None,
    items: Sequence[str] | None = None,
    **options: Any,
) -> Draws:
    """Draw masks for conditions ``(b, c, t)`` and return their mean and spread.

    The noise of a draw depends on the seed, the item's name (its place in ``items``, by default
    "0") and the draw's index only, never on batch size or order. Where draws cannot differ
    (`is_one_pass`) one is computed: it is the mean p of the mask's posterior, and the spread is
    sqrt(p (1 - p)). ``options`` are those of `draw_masks`. Raises `ConfigError` on counts below
    one, or more steps than were trained.
    """
    draws = model.config.draws if draws is None else draws
    check_count(draws, name="draws")
    names = ["0"] * len(condition) if items is None else list(items)
    if len(names) != len(condition):
        raise ConfigError(
            f"got {len(names)} item names for {len(condition)} conditions; pass one for each"
        )
    shared = is_one_pass(model, steps=options.get("steps"), sampler=options.get("sampler"))
    results = [
        moments(draw_masks(model, one, range(1 if shared else draws), item=name, **options))
        for one, name in zip(condition, names, strict=True)
    ]
    mean = torch.stack([r.mean for r in results])
    if shared:
        return Draws(mean, (mean * (1 - mean)).sqrt())
    return Draws(mean, torch.stack([r.spread for r in results]))


def is_one_pass(model: Segmenter, *, steps: int | None = None, sampler: str | None = None) -> bool:
    """Tell whether one network pass answers for all draws: the only step sees nothing of them."""
    if (model.config.steps if steps is None else steps) != 1:
        return False
    scheduler = model.scheduler(sampler=sampler)
    _set_steps(scheduler, 1)
    return model.is_blind(scheduler.timesteps[0])


def moments(chunks: Iterable[Float[Tensor, "_ f t"]]) -> Draws:
    """Mean and standard deviation ``(f, t)`` over draws that come in chunks."""
    count, mean, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for chunk in chunks:
        # draw by draw: a sum over the chunk would round by how draws are chunked
        for draw in chunk.double():
            # Welford, Technometrics 4 (1962), 419: equal draws spread by exactly 0
            count += 1
            off = draw - mean
            mean = mean + off / count
            squares = squares + off * (draw - mean)
    return Draws(mean.float(), (squares / count).sqrt().float())


@torch.inference_mode()
def draw_masks(
    model: Segmenter,
    condition: Float[Tensor, "c t"],
    indices: Sequence[int],
    *,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    item: str = "0",
    first_column: int = 0,
    chunk: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Float[Tensor, "_ f t"]]:
    """Yield the draws ``indices`` of one condition in chunks ``(d, f, t)`` in [0, 1].

    The condition is encoded once, never per step or draw; a step at which the denoiser sees nothing
    of the draw (`Segmenter.is_blind`) is computed once too. ``chunk`` draws share a network call on
    an accelerator, by default as many as its memory holds (`batches`). ``first_column`` tells where
    on the grid of a longer recording the condition starts. ``dtype`` is the networks' precision.
    ``progress`` is called with the number of draws after each step of a chunk.
    """
    config = model.config
    steps = config.steps if steps is None else steps
    check_count(steps, name="steps", at_most=config.train_steps)
    if chunk is not None:
        check_count(chunk, name="chunk")
    if not isinstance(seed, int):
        raise ConfigError(f"seed must be an integer, got {seed!r}; the noise hangs on it exactly")
    check_precision(dtype)
    frames = condition.shape[-1]
    shape = (config.patch[0] * config.patch[1], *model.grid(frames))
    device = condition.device.type
    # entered around each use: held over a yield, it would leak into the caller
    autocast = torch.autocast(device, dtype, enabled=dtype is not torch.float32)
    with autocast:
        encoded = model.encode(condition[None])
    scheduler = model.scheduler(sampler=sampler)
    _set_steps(scheduler, steps)
    blind = None
    if model.is_blind(scheduler.timesteps[0]):
        nothing = torch.zeros(1, *shape, device=encoded.device)
        with autocast:
            blind = model.denoise(nothing, scheduler.timesteps[:1].to(encoded.device), encoded)
        blind = blind.float()
    for some in batches(indices, device=condition.device, chunk=chunk):
        _set_steps(scheduler, steps)  # solvers remember the draws before
        noise = torch.stack(
            [starting_noise(seed, item, d, shape, first_column=first_column) for d in some]
        )
        if config.deterministic:
            noise.zero_()
        generators = [_generator(seed, item, d, "steps", first_column) for d in some]
        with autocast:
            x = _denoise(model, noise, encoded, scheduler, generators, blind, progress)
        clean = model.unfold(x, frames=frames).cpu()
        yield (clean / config.mask_scale + 1).div(2).clamp(0, 1)


def batches(
    indices: Sequence[int], *, device: torch.device, chunk: int | None = None
) -> Iterator[Sequence[int]]:
    """Draws that share a network call: one on a CPU, ``chunk`` elsewhere.

    Without ``chunk``, a CUDA device computes the first draw alone; what that took tells how many
    fit at once into the share `ROOM` of what is free.
    """
    # convolutions on a CPU round by the batch's size (PyTorch and oneDNN choose kernels by it), and
    # gain nothing from it: there each draw has a call of its own
    size = 1
    if device.type != "cpu":
        size = chunk or 8
    if device.type == "cuda" and chunk is None:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield indices[:1]
        taken = torch.cuda.max_memory_allocated(device) - before
        # what PyTorch holds in reserve is as good as free
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        size, indices = max(1, int(ROOM * free / max(taken, 1))), indices[1:]
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _set_steps(scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) > steps:
        # rounding in diffusers' trailing spacing: 29 of 100 steps become 30, the last one at -1
        scheduler.timesteps = scheduler.timesteps[:steps]
        scheduler.num_inference_steps = steps
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])


def _denoise(
    model: Segmenter,
    noise: Float[Tensor, "d c f t"],
    encoded: Float[Tensor, "1 e f t"],
    scheduler: Any,
    generators: list[torch.Generator],
    blind: Tensor | None,
    progress: Callable[[int], object] | None,
) -> Float[Tensor, "d c f t"]:
    x = noise.to(encoded.device).contiguous(memory_format=torch.channels_last)
    shared = encoded.expand(len(x), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    is_random = "generator" in inspect.signature(scheduler.step).parameters
    noises = {"generator": generators} if is_random else {}
    for place, step in enumerate(scheduler.timesteps):
        if place == 0 and blind is not None:
            prediction = blind.expand_as(x)
        else:
            prediction = model.denoise(x, step.expand(len(x)).to(x.device), shared).float()
        if model.config.prediction == "sample":
            prediction = model.clean(prediction)
        stepped = scheduler.step(prediction, step, x, **noises)
        x = stepped.prev_sample
        if progress is not None:
            progress(len(x))
    # DDPMScheduler adds noise to the last sample too, unless it ends at step 0; solvers end there
    return getattr(stepped, "pred_original_sample", x)


def starting_noise(
    seed: int, item: str, draw: int, shape: tuple[int, int, int], *, first_column: int = 0
) -> Float[Tensor, "c f t"]:
    """Gaussian noise ``(c, f, t)`` of one draw for grid columns from ``first_column`` on.

    Blocks of `NOISE_BLOCK` columns have a generator each, so any window of a recording sees the
    same noise.
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
    """bfloat16 where the device has instructions for it, float32 elsewhere."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # oneDNN says it supports bfloat16 on any AVX-512 machine; where that is emulated, convolutions
    # take twice the time of float32
    if torch.device(device).type == "cpu":
        found = torch.cpu.get_capabilities()
        if any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            return torch.bfloat16
    return torch.float32


def check_precision(dtype: object) -> None:
    """Raise `ConfigError` unless the networks can compute in a type."""
    if dtype not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(map(str, PRECISIONS))}, got {dtype!r}; "
            "pass the torch type itself, not its name"
        )


def check_device(device: object) -> None:
    """Raise `ConfigError` where nothing can be computed on a device."""
    name = str(device)
    try:
        torch.zeros(1, device=name)
    # torch asserts that it was built for the device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"cannot compute on device {name!r} ({error}); use cpu, or cuda where there is one"
        ) from error


def check_count(value: int, *, name: str, at_most: int | None = None) -> None:
    """Raise `ConfigError` unless a count is an integer of at least one, and of what is possible."""
    if not isinstance(value, int) or value < 1 or (at_most is not None and value > at_most):
        domain = "at least 1" if at_most is None else f"between 1 and {at_most}"
        raise ConfigError(f"{name} must be an integer, {domain}, got {value!r}")


def _generator(seed: int, item: str, draw: int, purpose: str, block: int) -> torch.Generator:
    key = repr((seed, item, draw, purpose, block)).encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(number)
