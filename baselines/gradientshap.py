"""GradientSHAP on the time-frequency plane, through captum."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from baselines.plane import (
    Item,
    OnPlane,
    Part,
    Plane,
    References,
    Scale,
    check_count,
    check_references,
    count_of,
    import_captum,
    seed_of,
)
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import Stft
from specsegdiff.shapes import Map


class GradientSHAP(OnPlane):
    """Expected gradients times difference from a baseline (Lundberg & Lee 2017, arXiv 1705.07874,
    as captum's GradientShap has it).

    Each of ``samples`` draws takes a baseline b and a point ``b + α (x - b)``, α uniform in [0, 1],
    and contributes ``(x - b)`` times the gradient there; the map is their mean. Its expectation
    sums to ``f(x) - mean f(b)``; one map misses that by about ``s / √samples``, s the standard
    deviation of one draw's sum.

    By default the baseline is silence and there are 20 samples, as the paper has it: magnitude 0 on
    the linear scale, and the wrapper's floor on the log scale, where 0 would be loud. With
    ``references``, waves of real speech, each draw takes one of them. ``noise`` is the standard
    deviation of Gaussian noise on the values, in their units; with it, the expectation is off.

    Draws hang on the seed, the recording's samples and their own index; ``chunk`` of them pass the
    network at once, as many as the memory holds by default, and windows of a long recording a few
    at a time (`Plane.parts`). captum draws α from NumPy's global state, which is put back; do not
    draw from it in another thread meanwhile. Raises `ConfigError` on other settings, and
    `ShapeError` on waves that are not ``(b, n)`` and finite.
    """

    def __init__(
        self,
        detector: Callable[..., Any],
        *,
        target: str | int = "spoof",
        stft: Stft | None = None,
        scale: Scale = "linear",
        samples: int = 20,
        references: References | None = None,
        noise: float = 0.0,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        check_count(samples, name="samples")
        check_references(references)
        if not (noise >= 0 and math.isfinite(noise)):
            raise ConfigError(f"noise must be finite and not negative, got {noise!r}")
        if not isinstance(seed, int):
            raise ConfigError(
                f"seed must be an integer, got {seed!r}; the draws hang on it exactly"
            )
        super().__init__(Plane(detector, target=target, stft=stft, scale=scale, chunk=chunk))
        self.samples = samples
        self.references = references
        self.noise = noise
        self.seed = seed

    def _explain(self, item: Item) -> tuple[Map, Float[Tensor, ""]]:
        import_captum()

        def rows(chosen: range) -> Tensor:
            return self._draw(item, chosen)

        return self.plane.mean(rows, self.samples), self.plane.change(item, self.references)

    def _draw(self, item: Item, chosen: range) -> Float[Tensor, "s f t"]:
        from captum.attr import GradientShap

        starts, offsets = [], []
        for sample in chosen:
            generator = torch.Generator().manual_seed(seed_of(self.seed, item.key, sample))
            place = int(torch.randint(count_of(self.references), (), generator=generator))
            (baseline,) = self.plane.baseline(item, self.references, range(place, place + 1))
            moved = item.value[0]
            if self.noise:
                noise = torch.randn(moved.shape, generator=generator, dtype=moved.dtype)
                moved = moved + self.noise * noise.to(moved.device)
            starts.append(baseline)
            offsets.append(moved - baseline)
        start, offset = torch.stack(starts), torch.stack(offsets)

        def gradients(part: Part) -> Tensor:
            def network(offset: Tensor, start: Tensor) -> Tensor:
                return part.score(start + offset)

            own = start[:, :, part.frames]
            # As a function of the offset from its own baseline, every draw has the baseline 0, so
            # captum has α alone left to draw: one number a row, in the order of the samples, and
            # the same for all parts of a recording.
            with _numpy_draws(seed_of(self.seed, item.key), skip=chosen.start):
                return GradientShap(network).attribute(
                    offset[:, :, part.frames],
                    baselines=torch.zeros_like(own[:1]),
                    n_samples=1,
                    stdevs=0.0,
                    additional_forward_args=(own,),
                )

        return self.plane.over_parts(item, gradients)


@contextlib.contextmanager
def _numpy_draws(seed: int, *, skip: int) -> Iterator[None]:
    """Seed the global states that captum draws from, past the first ``skip`` numbers; then put them
    back."""
    found = np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        np.random.seed(seed % 2**32)  # noqa: NPY002
        np.random.uniform(size=skip)  # noqa: NPY002
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(found)  # noqa: NPY002
