"""Small models for tests, woken up: an untrained one hides mistakes behind layers that are zero."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specsegdiff.frontend import StftConfig
from specsegdiff.models import wav2vec2_aasist
from specsegdiff.models.segdiff import PRESETS, SegDiffConfig, SpecSegDiff
from specsegdiff.models.unet import UNetConfig

STFT = StftConfig(sample_rate=1000, n_fft=64, hop=16)
"33 bins: large enough for 5 rows of patches, small enough for hundreds of passes."

TINY = replace(PRESETS["tiny"], stft=STFT)
"Preset `tiny` on those axes: x0 prediction, no layer mixes frames but convolutions."

TINY_PAPER = replace(
    PRESETS["paper"],
    stft=STFT,
    rrdb_blocks=2,
    rrdb_features=8,
    rrdb_growth=4,
    unet=UNetConfig(channels=32, multipliers=(1, 2), res_blocks=2, attention_levels=(1,)),
)
"Preset `paper` with fewer channels and levels: epsilon, 100 DDPM steps, group norm, no patches."

ENCODER = replace(
    wav2vec2_aasist.PRESETS["tiny"].backbone,
    conv_dim=(16,) * 3,
    conv_kernel=(10, 8, 4),
    conv_stride=(5, 8, 8),
    num_hidden_layers=3,
)
"Encoder of a detector with three convolutions instead of seven: frames of 165 samples, hop 320."


def awake(model: torch.nn.Module, *, seed: int = 0, scale: float = 0.05) -> torch.nn.Module:
    """Give every parameter that starts at zero, or at one constant, small random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.numel() == 1 or value.std() == 0:
                value.add_(scale * torch.randn(value.shape, generator=generator))
    return model.eval()


def make_model(config: SegDiffConfig = TINY, *, seed: int = 0, **changes: Any) -> SpecSegDiff:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SpecSegDiff(replace(config, **changes))
    return awake(model, seed=seed)


def noise(*shape: int, seed: int = 0, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
