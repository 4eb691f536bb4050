"""Mel spectrograms: bands between 0 and 8 kHz, equally wide on the HTK scale."""

import functools

import numpy as np
import torch
from torch import Tensor

from specsegdiff.data.samples import SAMPLE_RATE
from specsegdiff.frontend import Stft, StftConfig


@functools.cache
def mel_bank(n_mels: int, *, n_fft: int) -> Tensor:
    """Triangles ``(n_fft // 2 + 1, n_mels)`` in Hz, 1 at their centres."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8_000 / 700), n_mels + 2) / 2595) - 1)
    freqs = np.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)[:, None]
    rising = (freqs - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - freqs) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None)).float()


def log_mel(
    wave: Tensor, *, n_mels: int, n_fft: int, hop: int, band_hz: float | None = None
) -> Tensor:
    """Log-mel spectrogram ``(m, t)`` of the bands below ``band_hz``, 80 dB deep."""
    magnitude = Stft(StftConfig(n_fft=n_fft, hop=hop)).magnitude(wave)
    bank = mel_bank(n_mels, n_fft=n_fft)
    if band_hz is not None:
        freqs = torch.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)
        bank = bank[:, bank[freqs > band_hz].sum(0) == 0]
    mel = bank.T @ magnitude
    return mel.clamp_min(float(mel.max()) * 1e-4 + 1e-9).log()
