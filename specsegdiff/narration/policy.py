"""GRPO as arithmetic: rewards to advantages, log-probabilities to a loss; no trainer, no model.

Axes: ``b`` completion (the ``g`` completions of a prompt lie side by side), ``t`` token of the
completion, ``v`` entry of the vocabulary. Sources: GRPO, Shao et al. 2024, arXiv 2402.03300, Eq. 3
and 4; Dr. GRPO, Liu et al. 2025, arXiv 2503.20783; DAPO, Yu et al. 2025, arXiv 2503.14476. The
reductions are those of TRL (Hugging Face), number for number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specsegdiff.errors import ConfigError, ShapeError

Scale: TypeAlias = Literal["group", "batch", "none"]
"""What an advantage is divided by: the group's deviation, that of all rewards, or nothing."""

Reduction: TypeAlias = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
"""How the loss of tokens becomes one number; see `reduce_tokens`."""

SCALES = ("group", "batch", "none")
REDUCTIONS = ("grpo", "dr_grpo", "dapo", "bnpo")
FLOOR = 1e-4
"Added to a deviation before it divides, as in TRL; a group of equal rewards has advantage 0."


@dataclass(frozen=True)
class PolicyConfig:
    """The switches of the loss; the defaults are GRPO as published, with the weaker of GRIDEX's
    two KL weights."""

    group: int = 8
    "Completions of one prompt."
    clip_low: float = 0.2
    """The ratio counts from ``1 - clip_low``. It needs the ``old`` of `policy_loss`: the trainer
    `specsegdiff.train.narrator` makes one update per draw, so its ratio is always 1, and neither
    clip changes anything there."""
    clip_high: float = 0.2
    """The ratio counts up to ``1 + clip_high``; DAPO uses 0.28. Without effect in that trainer, as
    ``clip_low``."""
    beta: float = 0.01
    "Weight of the divergence from the reference; GRIDEX takes 0.01 for cells and 0.1 for text."
    reduction: Reduction = "grpo"
    "How the loss of tokens becomes one number."
    scale: Scale = "group"
    "What an advantage is divided by; Dr. GRPO takes 'none'."
    drop_flat: bool = False
    """Leave out groups whose rewards are all equal: their advantage is 0, but the divergence would
    pull. The trainer takes them out of ``mask`` and ``total``: dapo and bnpo divide by the tokens
    that stay; grpo and dr_grpo still divide by all completions, so the rest weighs no more."""

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ConfigError(
                f"PolicyConfig.group must be at least 2, got {self.group!r}: one completion has "
                "nothing to be better than"
            )
        if not 0 <= self.clip_low < 1 or not self.clip_high >= 0 or not self.beta >= 0:
            raise ConfigError(
                "PolicyConfig needs clip_low in [0, 1), clip_high and beta at least 0, "
                f"got {self.clip_low!r}, {self.clip_high!r}, {self.beta!r}"
            )
        _check_choice("PolicyConfig.reduction", self.reduction, REDUCTIONS)
        _check_choice("PolicyConfig.scale", self.scale, SCALES)


class PolicyLoss(NamedTuple):
    """The loss, and what to watch beside it; on policy the loss itself tells nothing."""

    loss: Float[Tensor, ""]
    "To be minimised."
    kl: Float[Tensor, ""]
    "Mean k3 estimate over counted tokens, without gradient."
    clip_share: Float[Tensor, ""]
    "Share of counted tokens whose ratio the clip holds back, without gradient."


def group_advantages(
    rewards: Float[Tensor, "b"], *, group: int, scale: Scale = "group"
) -> Float[Tensor, "b"]:
    """Advantage of each completion over its group, ``(r - mean) / (std + 1e-4)``, ``(b,)``.

    ``b`` is a multiple of ``group``, and the completions of one prompt lie side by side. The
    deviation is the unbiased one, of the group or of the whole batch; without scaling, of Dr. GRPO,
    it does not divide. A NaN reward does not apply: it enters no mean, and its advantage is 0.
    A group must not be split over processes; scaling by the batch wants the rewards of all.

    Raises `ShapeError` where groups are incomplete.

    >>> group_advantages(torch.tensor([0.0, 1.0, 2.0, 5.0, 5.0, 5.0]), group=3)
    tensor([-0.9999,  0.0000,  0.9999,  0.0000,  0.0000,  0.0000])
    """
    _check_choice("scale", scale, SCALES)
    grouped = _grouped(rewards, group)
    centred = grouped - grouped.nanmean(1, keepdim=True)
    if scale == "group":
        centred = centred / (_nan_std(grouped) + FLOOR)
    elif scale == "batch":
        centred = centred / (_nan_std(rewards[None]) + FLOOR)
    return centred.nan_to_num(0.0).flatten()


def flat_groups(rewards: Float[Tensor, "b"], *, group: int) -> Bool[Tensor, "b"]:
    """Completions whose group teaches nothing, since its rewards are all equal or do not apply.

    >>> flat_groups(torch.tensor([0.0, 1.0, 2.0, 2.0]), group=2)
    tensor([False, False,  True,  True])
    """
    grouped = _grouped(rewards, group)
    # NaN does not apply, so it neither raises the highest nor lowers the lowest
    spread = grouped.nan_to_num(-torch.inf).amax(1) - grouped.nan_to_num(torch.inf).amin(1)
    return (spread <= 0).repeat_interleave(group)


def completion_mask(ids: Int[Tensor, "b t"], end_ids: Sequence[int]) -> Bool[Tensor, "b t"]:
    """Tokens that the model chose: up to the first end token, and that one too.

    Never "unequal to the padding": in many vocabularies padding is the end token.

    >>> completion_mask(torch.tensor([[5, 2, 2], [5, 6, 7]]), end_ids=[2]).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    ends = torch.isin(ids, torch.tensor(list(end_ids), dtype=ids.dtype, device=ids.device))
    ended_before = ends.cumsum(1) - ends.long() > 0
    return ~ended_before


def token_log_probs(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], *, temperature: float = 1.0
) -> Float[Tensor, "b t"]:
    """Log-probability of each token; ``logits[:, i]`` are those that ``ids[:, i]`` was drawn from.

    ``temperature`` is the one of sampling: only then is a policy compared with itself.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, got {temperature!r}")
    if logits.shape[:2] != ids.shape:
        raise ShapeError(
            f"expected logits (b, t, v) of ids {tuple(ids.shape)}, got {tuple(logits.shape)}; "
            "shift them by one: the logits at a token predict the next one"
        )
    # in float32 also under autocast: a ratio of 1 must be 1
    return (logits.float() / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def clipped_loss(
    ratio: Float[Tensor, "b t"],
    advantages: Float[Tensor, "b"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "b t"]:
    """``-min(ratio * A, clip(ratio) * A)`` of each token (Eq. 3): no reward for moving far.

    >>> clipped_loss(torch.tensor([[1.0, 3.0], [1.0, 0.1]]), torch.tensor([1.0, -1.0]))
    tensor([[-1.0000, -1.2000],
            [ 1.0000,  0.8000]])
    """
    advantage = advantages[:, None]
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def k3(log_probs: Float[Tensor, "b t"], reference: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Schulman's third estimate of KL(policy || reference) from samples of the policy (Eq. 4).

    ``exp(d) - d - 1`` with ``d = reference - log_probs``: never negative, and unbiased.

    >>> k3(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([[0.0000, 0.7183]])
    """
    gap = reference - log_probs
    return gap.exp() - gap - 1


def reduce_tokens(
    value: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    *,
    reduction: Reduction = "grpo",
    max_tokens: int | None = None,
    total: Tensor | float | None = None,
) -> Float[Tensor, ""]:
    """One number from the loss of tokens, of which ``mask`` counts.

    - ``grpo``: the mean of each completion's mean; a long one's tokens count less.
    - ``dr_grpo``: the sum over ``b * max_tokens``, the budget of generation; no bias by length.
    - ``dapo``: the sum over the counted tokens of all processes and accumulated batches.
    - ``bnpo``: the sum over the counted tokens of this batch.

    ``total`` is for dapo: the counted tokens of the whole step, those that ``mask`` drops not among
    them, divided by the number of processes whose gradients are averaged; without it, those of this
    batch. Averaged over processes that share a batch, all give what one process gives, but bnpo and
    dapo without ``total``: these are then means of the processes' means. A mask without a token
    gives 0.
    Raises `ConfigError` where dr_grpo lacks ``max_tokens``.

    >>> value, mask = torch.tensor([[1.0, 1.0], [4.0, 9.0]]), torch.tensor([[1, 1], [1, 0]]).bool()
    >>> [round(float(reduce_tokens(value, mask, reduction=r, max_tokens=4)), 2) for r in REDUCTIONS]
    [2.5, 0.75, 2.0, 2.0]
    """
    _check_choice("reduction", reduction, REDUCTIONS)
    if value.shape != mask.shape or mask.dtype != torch.bool:
        raise ShapeError(
            f"expected a bool mask of shape {tuple(value.shape)}, "
            f"got {tuple(mask.shape)} {mask.dtype}"
        )
    # not a product: what is masked may be infinite
    kept = value.where(mask, torch.zeros_like(value))
    if reduction == "grpo":
        return (kept.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if reduction == "dr_grpo":
        if max_tokens is None or max_tokens < 1:
            raise ConfigError(
                f"dr_grpo divides by the budget of generation; pass max_tokens, got {max_tokens!r}"
            )
        return kept.sum() / (len(kept) * max_tokens)
    count = mask.sum() if reduction == "bnpo" or total is None else total
    return kept.sum() / torch.as_tensor(count, device=value.device).clamp(min=1)


def policy_loss(
    log_probs: Float[Tensor, "b t"],
    old: Float[Tensor, "b t"] | None,
    reference: Float[Tensor, "b t"] | None,
    advantages: Float[Tensor, "b"],
    mask: Bool[Tensor, "b t"],
    *,
    config: PolicyConfig,
    max_tokens: int | None = None,
    total: Tensor | float | None = None,
) -> PolicyLoss:
    """The whole loss: clipped ratio plus ``beta`` times the divergence, reduced over ``mask``.

    ``log_probs`` carry the gradient; ``old`` are those at sampling (None on policy: the same
    numbers, without gradient), ``reference`` those of the model without adapter (may be None
    where beta is 0). ``max_tokens`` and ``total`` as in `reduce_tokens`. ``config.drop_flat`` is
    for the caller, who knows the rewards: leave `flat_groups` out of ``mask`` and ``total``.

    On policy and without divergence the value is minus the mean advantage, which scaling makes 0:
    its gradient, ``-A * grad log p``, is not. Show rewards as progress, never this.
    """
    ratio = (log_probs - (log_probs.detach() if old is None else old)).exp()
    value = clipped_loss(ratio, advantages, clip_low=config.clip_low, clip_high=config.clip_high)
    kl = torch.zeros_like(log_probs)
    if reference is not None:
        kl = k3(log_probs, reference)
    if config.beta:
        if reference is None:
            raise ConfigError(
                f"beta is {config.beta}, but no reference was given; pass the log-probabilities "
                "of the model without adapter, or set beta to 0"
            )
        value = value + config.beta * kl
    advantage = advantages[:, None]
    held = ((ratio < 1 - config.clip_low) & (advantage < 0)) | (
        (ratio > 1 + config.clip_high) & (advantage > 0)
    )
    return PolicyLoss(
        reduce_tokens(value, mask, reduction=config.reduction, max_tokens=max_tokens, total=total),
        reduce_tokens(kl.detach(), mask, reduction="bnpo"),
        reduce_tokens(held.to(value.dtype), mask, reduction="bnpo"),
    )


def _grouped(rewards: Tensor, group: int) -> Tensor:
    if rewards.ndim != 1 or group < 1 or len(rewards) % group or not len(rewards):
        raise ShapeError(
            f"expected rewards (b,) in whole groups of {group}, got shape {tuple(rewards.shape)}; "
            "the completions of a prompt lie side by side"
        )
    return rewards.reshape(-1, group)


def _nan_std(value: Tensor) -> Tensor:
    """Unbiased deviation along the last axis, without NaN; 0 where fewer than two values are."""
    count = (~value.isnan()).sum(-1, keepdim=True)
    square = (value - value.nanmean(-1, keepdim=True)) ** 2
    variance = square.nansum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return variance.sqrt()


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
