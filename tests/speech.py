"""A stand-in for speech, and a vocoder whose output is known."""

import dataclasses

import numpy as np
import torch
from torch import Tensor


def speech(*, seed: int = 0, n_samples: int = 16_000, f0: float = 113.0) -> Tensor:
    """Syllables of a gliding voice through moving formants, fricative noise between them."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / 16_000
    turns = 2 * np.pi * np.cumsum(f0 * (1 + 0.05 * np.sin(2 * np.pi * 0.7 * t))) / 16_000
    formants = (500 + 200 * np.sin(2 * np.pi * 1.7 * t + seed), 1_500 + 400 * np.cos(9 * t), 2_600)
    voice = np.zeros(n_samples)
    for k in range(1, int(7_000 / f0)):
        near = sum(1 / (1 + ((k * f0 - f) / 120) ** 2) for f in formants)
        voice += (near + 0.02) * np.cos(k * turns)
    syllables = np.clip(np.sin(2 * np.pi * 3 * t + seed), 0, None)
    hiss = np.diff(rng.standard_normal(n_samples + 1)) * np.clip(
        -np.sin(6 * np.pi * t + seed), 0, None
    )
    wave = (
        voice * syllables + 0.3 * hiss * (np.sin(5 * t) > 0) + 1e-3 * rng.standard_normal(n_samples)
    )
    return torch.from_numpy(wave / np.abs(wave).max() * 0.5).float()


@dataclasses.dataclass(frozen=True)
class Stub:
    """A vocoder whose output the test knows."""

    name: str = "stub"
    family: str = "dsp"
    band_hz: float | None = None
    gain: float = 1.0
    delay: int = 0
    tail: int = 0
    value: float | None = None

    def __call__(self, wave: Tensor) -> Tensor:
        copy = torch.nn.functional.pad(wave * self.gain, (self.delay, self.tail))
        return copy if self.value is None else torch.full_like(copy, self.value)
