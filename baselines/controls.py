"""Controls: explainers that know nothing of the detector, so that a score has something to beat."""

from collections.abc import Iterable
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from baselines.plane import check_batch, content_key, seed_of
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Stft, check_stft
from specsegdiff.shapes import Map, Mask, Wave


class Random:
    """Uniform noise in [0, 1): chance.

    It hangs on the seed and the recording's samples, never on a batch. A detector is taken, so that
    all methods are built alike, and ignored.
    """

    def __init__(self, detector: object = None, *, stft: Stft | None = None, seed: int = 0) -> None:
        if not isinstance(seed, int):
            raise ConfigError(f"seed must be an integer, got {seed!r}; the noise hangs on it")
        check_stft(stft)
        self.stft = stft or Stft()
        self.seed = seed

    def __call__(self, wave: Wave) -> Map:
        """Noise ``(b, f, t)`` for waves ``(b, n)``, on the axes of `Stft`."""
        check_batch(wave)
        shape = self.stft.axes(wave.shape[-1]).shape
        rows = [
            torch.rand(
                shape,
                generator=torch.Generator().manual_seed(seed_of(self.seed, content_key(row))),
            )
            for row in wave
        ]
        return torch.stack(rows).to(wave.device)


class Energy:
    """The magnitude itself: what marking loud bins scores. The detector is ignored."""

    def __init__(self, detector: object = None, *, stft: Stft | None = None) -> None:
        check_stft(stft)
        self.stft = stft or Stft()

    def __call__(self, wave: Wave) -> Map:
        """Magnitude ``(b, f, t)`` of waves ``(b, n)``."""
        check_batch(wave)
        return self.stft.magnitude(wave.detach())


class LowEnergy:
    """The magnitude with its sign turned: what marking quiet bins scores, where a ratio of
    magnitudes, as the ground truth takes it, is largest. The detector is ignored."""

    signed = False
    "Every value is below 0, and the highest counts (`specsegdiff.benchmark.rank`)."

    def __init__(self, detector: object = None, *, stft: Stft | None = None) -> None:
        self.energy = Energy(stft=stft)

    def __call__(self, wave: Wave) -> Map:
        """Negative magnitude ``(b, f, t)`` of waves ``(b, n)``."""
        return -self.energy(wave)


class MeanMaskByFrequency:
    """One share for every frequency bin at all times: what knowing no more than where masks usually
    lie scores. Fit it on masks of training data with `fit`; the detector is ignored.

    >>> mask = torch.tensor([[True, True], [True, False], [False, False]])
    >>> MeanMaskByFrequency.fit([mask]).profile
    tensor([1.0000, 0.5000, 0.0000])
    """

    def __init__(
        self,
        detector: object = None,
        *,
        profile: Float[Tensor, "f"],
        stft: Stft | None = None,
    ) -> None:
        if not isinstance(profile, Tensor) or profile.ndim != 1 or not profile.is_floating_point():
            raise ShapeError(
                "expected the profile as floating shares (f,), one a frequency bin; "
                "make it with MeanMaskByFrequency.fit"
            )
        check_stft(stft)
        self.stft = stft or Stft()
        self.profile = profile

    @classmethod
    def fit(cls, masks: Iterable[Mask], *, stft: Stft | None = None) -> Self:
        """Fit on masks ``(..., f, t)``: the mean over time, then over masks, each counted once.

        Raises `ShapeError` on other tensors or unequal numbers of bins, and `ConfigError` without
        any mask.
        """
        total, count = torch.zeros((), dtype=torch.float64), 0
        for mask in masks:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim < 2:
                raise ShapeError("expected bool masks (..., f, t), as ground_truth returns them")
            for share in mask.double().mean(-1).reshape(-1, mask.shape[-2]).cpu():
                if count and share.shape != total.shape:
                    raise ShapeError(
                        f"expected masks of {len(total)} frequency bins, as the first has, got "
                        f"{len(share)}; compute all with one StftConfig"
                    )
                total, count = total + share, count + 1
        if count == 0:
            raise ConfigError("expected at least one mask to fit on, got none")
        return cls(profile=(total / count).float(), stft=stft)

    def __call__(self, wave: Wave) -> Map:
        """The profile at every frame, ``(b, f, t)``, for waves ``(b, n)``; raises `ShapeError`
        where it has other bins than `Stft`."""
        check_batch(wave)
        bins, frames = self.stft.axes(wave.shape[-1]).shape
        if len(self.profile) != bins:
            raise ShapeError(
                f"the profile has {len(self.profile)} frequency bins and the transform {bins}; "
                "fit and explain with one StftConfig"
            )
        profile = self.profile.to(wave.device)
        return profile[None, :, None].expand(len(wave), bins, frames).clone()
