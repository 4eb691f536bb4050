"""The denoiser: a UNet over (frequency, time) that knows the step and receives the encoded
condition once."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from specsegdiff.errors import ConfigError
from specsegdiff.models.sizes import LARGEST, check_sizes


@dataclass(frozen=True)
class UNetConfig:
    """Size and kind of the UNet; the defaults are SegDiff's for 256-pixel images with 2 blocks per
    level."""

    channels: int = 128
    "Width of the first level; the condition is encoded to this many channels."
    multipliers: tuple[float, ...] = (1, 1, 1, 2, 2, 4, 4)
    "Width of each level over `channels`; each level halves both axes."
    res_blocks: int = 2
    "Residual blocks per level of the encoder; the decoder has one more."
    attention_levels: tuple[int, ...] = (4, 5)
    "Levels with self-attention: 4 and 5 lie at 1/16 and 1/32."
    heads: int = 4
    "Attention heads."
    attention_axis: Literal["both", "frequency"] = "both"
    """'both': over all positions; 'frequency': within each frame, which keeps the receptive field
    in time finite."""
    norm: Literal["group", "position"] = "group"
    """'group': 32 groups over all positions; 'position': over channels at each position, blind to
    clip length."""
    dropout: float = 0.0
    "Probability of dropping a channel value inside the residual blocks."

    def __post_init__(self) -> None:
        check_sizes(self, "channels", "res_blocks", "heads")
        for name, choices in (
            ("norm", ("group", "position")),
            ("attention_axis", ("both", "frequency")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"UNetConfig.{name} must be one of {choices}, got {getattr(self, name)!r}"
                )
        if not 1 <= len(self.multipliers) <= 16:
            raise ConfigError(
                f"UNetConfig.multipliers must name 1 to 16 levels, got {self.multipliers!r}"
            )
        part = math.lcm(self.heads, 32) if self.norm == "group" else self.heads
        for width in (self.channels * m for m in self.multipliers):
            if not 0 < width <= LARGEST or width % part:
                raise ConfigError(
                    f"every level's width, channels * multiplier, must be a multiple of {part} "
                    f"({self.heads} heads, {self.norm} norm) up to {LARGEST}, got {width!r} of "
                    f"channels={self.channels!r} and multipliers={self.multipliers!r}"
                )
        if self.norm == "group" and self.channels % 32:
            raise ConfigError(
                f"group norm has 32 groups; channels={self.channels} is no multiple of 32"
            )
        if any(not 0 <= level < len(self.multipliers) for level in self.attention_levels):
            raise ConfigError(
                f"UNetConfig.attention_levels must lie below the {len(self.multipliers)} levels "
                f"of multipliers, got {self.attention_levels!r}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"UNetConfig.dropout must lie in [0, 1), got {self.dropout!r}")

    @property
    def stride(self) -> int:
        """Factor by which the coarsest level is smaller than the input."""
        return 2 ** (len(self.multipliers) - 1)


class PositionNorm(nn.Module):
    """Layer normalisation over the channels of each position: no statistic crosses time or
    frequency."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(b, c, f, t)``."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return y.permute(0, 3, 1, 2)


def _norm(config: UNetConfig, channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels) if config.norm == "group" else PositionNorm(channels)


def _zero(module: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def step_embedding(step: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding of diffusion steps ``(b,)`` to ``(b, channels)``, cosines first."""
    half = channels // 2
    scale = torch.exp(
        -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=step.device) / half
    )
    angle = step.float()[:, None] * scale
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the step embedding added in between; the last
    convolution starts at zero."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_in = _norm(config, in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.step = nn.Linear(4 * config.channels, out_channels)
        self.norm_out = _norm(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(b, in, f, t)`` to ``(b, out, f, t)``."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = h + self.step(F.silu(embedding))[:, :, None, None]
        return self.skip(x) + self.conv_out(self.dropout(F.silu(self.norm_out(h))))


class Attention(nn.Module):
    """Multi-head self-attention over all positions, or over frequency within each frame."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.axis = config.attention_axis
        self.norm = _norm(config, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, f, t)`` to the same shape."""
        bins, frames = x.shape[-2:]
        tokens = (
            "b (s h d) f t -> s b h (f t) d"
            if self.axis == "both"
            else "b (s h d) f t -> s (b t) h f d"
        )
        q, k, v = rearrange(self.qkv(self.norm(x)), tokens, s=3, h=self.heads)
        y = F.scaled_dot_product_attention(q, k, v)
        back = "b h (f t) d -> b (h d) f t" if self.axis == "both" else "(b t) h f d -> b (h d) f t"
        return x + self.out(rearrange(y, back, b=x.shape[0], f=bins, t=frames))


class Level(nn.Module):
    """A residual block, followed by attention where the level has it."""

    def __init__(
        self, config: UNetConfig, in_channels: int, out_channels: int, *, attend: bool
    ) -> None:
        super().__init__()
        self.res = ResBlock(config, in_channels, out_channels)
        self.attention = Attention(config, out_channels) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(b, in, f, t)`` to ``(b, out, f, t)``."""
        return self.attention(self.res(x, embedding))


class UNet(nn.Module):
    """Denoiser ``(x_t, step, condition) -> prediction``; both axes are padded inside to the
    coarsest stride.

    The encoded condition ``(b, channels, f, t)`` is added once, after the first convolution, and
    that sum is the first skip (SegDiff, arXiv 2112.00390, Eq. 6).
    """

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.config = config
        widths = [int(config.channels * m) for m in config.multipliers]
        self.embed = nn.Sequential(
            nn.Linear(config.channels, 4 * config.channels),
            nn.SiLU(),
            nn.Linear(4 * config.channels, 4 * config.channels),
        )
        self.first = nn.Conv2d(in_channels, config.channels, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, width = [config.channels], config.channels
        for level, out in enumerate(widths):
            attend = level in config.attention_levels
            blocks = nn.ModuleList()
            for _ in range(config.res_blocks):
                blocks.append(Level(config, width, out, attend=attend))
                width = out
                skips.append(width)
            self.down.append(blocks)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList(
            [Level(config, width, width, attend=True), Level(config, width, width, attend=False)]
        )
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            attend = level in config.attention_levels
            blocks = nn.ModuleList()
            for _ in range(config.res_blocks + 1):
                blocks.append(Level(config, width + skips.pop(), out, attend=attend))
                width = out
            self.up.append(blocks)
            if level > 0:
                self.grow.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm = _norm(config, width)
        self.last = _zero(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Predict from ``x`` ``(b, in, f, t)``, ``step`` ``(b,)`` and the encoded condition ``(b,
        c, f, t)``."""
        bins, frames = x.shape[-2:]
        embedding = self.embed(step_embedding(step, self.config.channels).to(condition.dtype))
        h = self.first(x) + condition
        h = F.pad(h, (0, -frames % self.config.stride, 0, -bins % self.config.stride))
        skips = [h]
        for level, blocks in enumerate(self.down):
            for block in blocks.children():
                h = block(h, embedding)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for level, blocks in enumerate(self.up):
            for block in blocks.children():
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.last(F.silu(self.norm(h)))[..., :bins, :frames]
