"""A spectrogram in place of wav2vec 2.0's convolutions on samples, for backbones that start from
random weights."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

LOG_MEAN, LOG_SCALE = -7.0, 4.0
"Centre and scale of the natural log-power of waves with unit variance."

FLOOR = 1e-6
"Added to the power before its logarithm."


class SpectralFront(nn.Module):
    """Log-power spectrum, then 3 x 3 convolutions that halve its frequency axis, with GELU.

    Such a subsampling in two dimensions is what speech transformers without pre-training use
    (Dong et al. 2018, the Speech-Transformer, doi 10.1109/ICASSP.2018.8462506). Time is not padded,
    so that frame i depends on a stretch of samples that `BackboneConfig.reach` gives. All of it is
    made of convolutions, squares and logarithms, which attribution rules know.
    """

    filters: Tensor
    "Windowed cosines and sines ``(2 bins, 1, taps)``; fixed, so not stored."

    def __init__(
        self, widths: tuple[int, ...], kernels: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        bins, *channels = widths
        self.hop = strides[0]
        self.register_buffer("filters", fourier_filters(bins, kernels[0]), persistent=False)
        self.place = nn.Parameter(torch.zeros(1, channels[0], -(-bins // 2), 1))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, (3, taps), stride=(2, stride), padding=(1, 0))
            for before, after, taps, stride in zip(
                (1, *channels), channels, kernels[1:], strides[1:], strict=False
            )
        )
        # half the time on CPUs, where few channels meet large maps
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.width = channels[-1] * math.ceil(bins / 2 ** len(channels))

    def forward(self, wave: Float[Tensor, "b 1 n"]) -> Float[Tensor, "b d t"]:
        """Features ``(b, d, t)`` of waveforms ``(b, 1, n)``; d is ``width``."""
        *_, last = self.maps(wave)
        return rearrange(last, "b c f t -> b (c f) t")

    def maps(self, wave: Float[Tensor, "b 1 n"]) -> Iterator[Float[Tensor, "b c f t"]]:
        """Map of each convolution in turn. Row r of the first lies around bin 2 r of the spectrum,
        counted from the first above 0 Hz, and each further one halves the rows again."""
        cosine, sine = F.conv1d(wave, self.filters, stride=self.hop).square().chunk(2, dim=1)
        level = (cosine + sine + FLOOR).log()
        x = ((level - LOG_MEAN) / LOG_SCALE)[:, None]
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            # a convolution alone does not know which frequency it sees
            x = F.gelu(x + self.place if index == 0 else x)
            yield x


def fourier_filters(bins: int, taps: int) -> Float[Tensor, "c 1 k"]:
    """Cosines and sines of the first ``bins`` frequencies above 0 under a Hann window of unit
    energy.

    >>> tone = torch.sin(2 * torch.pi * 5 / 64 * torch.arange(64.0))
    >>> power = (fourier_filters(8, 64)[:, 0] @ tone).square()
    >>> int((power[:8] + power[8:]).argmax()) + 1
    5
    """
    window = torch.hann_window(taps, dtype=torch.float64)
    angle = 2 * torch.pi / taps * torch.arange(1, bins + 1)[:, None] * torch.arange(taps)
    both = torch.cat([angle.double().cos(), angle.double().sin()]) * window / window.norm()
    return both[:, None].float()
