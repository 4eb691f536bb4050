"""Residual-in-residual dense blocks: the network that encodes the condition (ESRGAN, as SegDiff
uses it)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseBlock(nn.Module):
    """Five convolutions, each fed by all before it; the last one is a residual scaled by 0.2."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(features + i * growth, growth if i < 4 else features, 3, padding=1)
            for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, f, t)`` to the same shape."""
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(seen, dim=1))


class RRDB(nn.Module):
    """Three dense blocks with an outer residual scaled by 0.2."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(features, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, c, f, t)`` to the same shape."""
        return x + 0.2 * self.blocks(x)


class RRDBNet(nn.Module):
    """Condition encoder: ``(b, in, f, t)`` to ``(b, out, f, t)`` at one resolution, without
    normalisation.

    Source: SegDiff (arXiv 2112.00390), which keeps ESRGAN's trunk and drops its upsampling.
    ``rows``, where given, adds a learned vector to each frequency row before the trunk: a
    departure, since convolutions alone know frequency only from the border.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        blocks: int,
        features: int = 64,
        growth: int = 32,
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, features, 3, padding=1)
        self.rows = nn.Parameter(0.5 * torch.randn(1, features, rows, 1)) if rows else None
        self.trunk = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.trunk_out = nn.Conv2d(features, features, 3, padding=1)
        self.refine = nn.Conv2d(features, features, 3, padding=1)
        self.last = nn.Conv2d(features, out_channels, 3, padding=1)

    def forward(self, condition: Tensor) -> Tensor:
        """Encode ``(b, in, f, t)``; it depends on neither the step nor the draw, so one call
        serves them all."""
        x = self.first(condition)
        if self.rows is not None:
            x = x + self.rows
        x = x + self.trunk_out(self.trunk(x))
        return self.last(F.leaky_relu(self.refine(x), 0.2))
