"""A copy of a recording: vocoded, aligned with it, and checked to be one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specsegdiff.data.alignment import align
from specsegdiff.data.mel import log_mel
from specsegdiff.data.samples import SAMPLE_RATE, check_mono
from specsegdiff.data.vocoders import Vocoder
from specsegdiff.errors import PairError

MIN_LOGMEL_CORR = 0.6
"""Below it a result is no copy: mismatched utterances of the paired corpus reach 0.51 at most."""


@dataclass(frozen=True)
class Copy:
    """A vocoded recording, aligned with its original, and how close it is."""

    fake: Tensor
    "``(n,)``, as long as the original, |x| <= 1."
    lag: int
    "Samples by which the vocoder was late, already removed."
    gain_db: float
    "RMS level of fake over real in dB."
    logmel_corr: float
    "Correlation of the log-mel spectrograms within ``band_hz``."
    band_hz: float | None
    "Highest frequency that the vocoder keeps."


def make_pair(
    wave: Tensor,
    vocoder: Vocoder,
    *,
    max_lag: int = 1024,
    min_logmel_corr: float = MIN_LOGMEL_CORR,
) -> Copy:
    """Vocode ``wave (n,)`` at 16 kHz, align the copy and measure it.

    Raises `PairError` where the result is no copy: silent or not finite, longer or shorter by more
    than ``max_lag`` and a frame of 100 ms, or with a ``logmel_corr`` below ``min_logmel_corr``. A
    copy that would clip is scaled to a peak of 1, and ``gain_db`` tells so.

    >>> from specsegdiff.data.vocoders import Lpc
    >>> wave = torch.sin(torch.arange(8_000) / 9) * torch.linspace(0, 0.5, 8_000)
    >>> copy = make_pair(wave, Lpc())
    >>> tuple(copy.fake.shape), copy.lag < 32
    ((8000,), True)
    """
    fake = vocoder(check_mono(wave))
    if not bool(torch.isfinite(fake).all()):
        raise PairError(f"vocoder '{vocoder.name}' returned values that are not finite")
    n, m = wave.shape[-1], fake.shape[-1]
    if abs(m - n) > max_lag + SAMPLE_RATE // 10:
        raise PairError(f"vocoder '{vocoder.name}' returned {m} samples for {n}; no copy")
    fake, lag = align(wave, fake, max_lag=max_lag)
    fake = fake / max(1.0, float(fake.abs().max()))
    levels = [float(w.double().square().mean().sqrt()) for w in (wave, fake)]
    if min(levels) < 1e-5:
        raise PairError(
            f"vocoder '{vocoder.name}': a silent side, RMS of real {levels[0]:.1e} and of fake "
            f"{levels[1]:.1e}; both need 1e-5 or more"
        )
    mels = [
        log_mel(w, n_mels=80, n_fft=1024, hop=256, band_hz=vocoder.band_hz) for w in (wave, fake)
    ]
    corr = float(torch.corrcoef(torch.stack([mel.flatten() for mel in mels]))[0, 1])
    if not corr >= min_logmel_corr:
        raise PairError(
            f"vocoder '{vocoder.name}': log-mel correlation {corr:.2f} is below {min_logmel_corr}; "
            "the result is no copy of the recording"
        )
    return Copy(fake, lag, 20 * math.log10(levels[1] / levels[0]), corr, vocoder.band_hz)
