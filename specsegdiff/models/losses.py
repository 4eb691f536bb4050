"""What a segmenter is trained on: one noised mask per item, and the loss of the denoiser's
prediction."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from specsegdiff.errors import ConfigError
from specsegdiff.models.segdiff import SegDiff
from specsegdiff.shapes import Map


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss; the defaults are SegDiff's: squared error of the noise at uniform
    steps."""

    pure_noise: float = 0.0
    """Share of items trained at the last step, where only the condition tells anything; the others
    are uniform."""
    softness: float = 0.0
    """Width, in nats of the difference over its quantile, of a soft label around the quantile; 0
    is a hard mask."""
    cross_entropy: float = 1.0
    "Weight of the cross-entropy ('sample' prediction only)."
    dice: float = 0.0
    """Weight of the soft Dice loss of the foreground ('sample' prediction only); at 5 % of the bins
    it is GDice but for 1/361 of the weight, the background's."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the bins of an item; SegDiff's published code sums, which ties the learning rate to the
    image size."""

    def __post_init__(self) -> None:
        weights = (self.cross_entropy, self.dice)
        lawful = all(value >= 0 for value in (self.softness, *weights)) and any(weights)
        if not (0 <= self.pure_noise <= 1 and lawful):
            raise ConfigError(
                "LossConfig needs pure_noise in [0, 1], softness, cross_entropy and dice >= 0, and "
                f"one of the last two above 0, got {self!r}"
            )
        if self.reduction not in ("sum", "mean"):
            raise ConfigError(
                f"LossConfig.reduction must be 'sum' or 'mean', got {self.reduction!r}"
            )


def diffusion_loss(
    model: SegDiff,
    condition: Float[Tensor, "b c t"],
    margin: Map,
    *,
    config: LossConfig,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch and its parts by name.

    ``condition`` is the model's own; the margin ``(b, f, t)`` is the log of the difference over its
    quantile, positive inside the mask (`margin_map`), NaN where a bin does not count.
    """
    valid = ~margin.isnan()
    margin = torch.where(valid, margin, -torch.inf)
    mask = (margin >= 0).to(condition.dtype)
    frames = condition.shape[-1]
    clean = model.fold(model.config.mask_scale * (2 * mask - 1))
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    if model.config.deterministic:
        step = torch.full((len(condition),), model.config.train_steps - 1, device=clean.device)
        noised = torch.zeros_like(clean)
    else:
        step = draw_steps(len(condition), model.config.train_steps, config, generator=generator).to(
            clean.device
        )
        noised = model.scheduler().add_noise(clean, noise, step)
    prediction = model.denoise(noised, step, model.encode(condition))
    output = model.unfold(prediction, frames=frames).float()
    if model.config.prediction == "epsilon":
        squares = (output - model.unfold(noise, frames=frames)).square() * valid
        per_item = squares.flatten(1).sum(1)
        if config.reduction == "mean":
            per_item = per_item / valid.flatten(1).sum(1).clamp_min(1)
        return per_item.mean(), {"mse": squares.sum() / valid.sum().clamp_min(1)}
    target = (margin / config.softness).sigmoid() if config.softness else mask
    bce = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    bce = (bce * valid).sum() / valid.sum().clamp_min(1)
    chance = output.sigmoid() * valid
    # over the batch, not the item: a crop may hold no foreground at all
    dice = 1 - 2 * (chance * target).sum() / (chance.sum() + (target * valid).sum()).clamp_min(1)
    return config.cross_entropy * bce + config.dice * dice, {"bce": bce, "dice": dice}


def draw_steps(
    count: int, train_steps: int, config: LossConfig, *, generator: torch.Generator
) -> Int[Tensor, " b"]:
    """Diffusion steps ``(b,)``: uniform, or the last one for a share of the items."""
    uniform = torch.randint(train_steps, (count,), generator=generator)
    last = torch.rand(count, generator=generator) < config.pure_noise
    return torch.where(last, train_steps - 1, uniform)
