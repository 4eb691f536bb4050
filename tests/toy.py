"""A corpus of four pairs for tests of training: buzzing voices, and what a bad vocoder keeps."""

import numpy as np
import torch
from models import noise
from scipy.signal import butter, lfilter

from specsegdiff.data.audio import write_audio
from specsegdiff.data.manifest import write_manifest
from specsegdiff.data.pairs import Pair

N = 12_000
"Samples of each recording."


def voice(seed):
    """Harmonics that glide, in a little noise: enough like speech to be resynthesised badly."""
    time = np.arange(N) / 16_000
    pitch = 2 * np.pi * np.cumsum(120 + 10 * seed + 30 * np.sin(3 * time)) / 16_000
    tones = sum(np.sin(k * pitch) / k for k in range(1, 20))
    return torch.from_numpy(0.1 * tones).float() + noise(N, seed=seed, scale=0.005)


def vocoded(wave, cut):
    """A vocoder that loses the high frequencies and buzzes a little."""
    low = lfilter(*butter(4, cut / 8_000), wave.numpy())
    return torch.from_numpy(low).float() + noise(N, seed=9, scale=0.002)


def write_corpus(folder, splits=("train", "train", "train", "val")):
    """Write pairs of these splits and their manifest, whose path is returned."""
    pairs = []
    for i, split in enumerate(splits):
        real, fake = folder / f"real{i}.flac", folder / f"fake{i}.flac"
        wave = voice(i)
        write_audio(real, wave, sample_rate=16_000)
        write_audio(fake, vocoded(wave, 2000 + 500 * i), sample_rate=16_000)
        band = 4000.0 if i == 2 else None
        pairs.append(Pair(f"p{i}", real, fake, N, vocoder="ab"[i % 2], split=split, band_hz=band))
    write_manifest(pairs, folder / "pairs.csv")
    return folder / "pairs.csv"
