"""GRPO against slow formulas, against TRL's lines and numbers, and on a bandit that must learn."""

import ast
import importlib.metadata
import importlib.util
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.narration.policy import (
    REDUCTIONS,
    SCALES,
    PolicyConfig,
    clipped_loss,
    completion_mask,
    flat_groups,
    group_advantages,
    k3,
    policy_loss,
    reduce_tokens,
    token_log_probs,
)

B, T, GROUP, MAX_TOKENS = 6, 5, 3, 9


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batch():
    """Log-probabilities that differ, advantages of both signs, completions of five lengths."""
    lengths = torch.tensor([5, 1, 3, 4, 2, 5])
    return SimpleNamespace(
        log_probs=-draws(B, T, seed=1).abs(),
        old=-draws(B, T, seed=2).abs(),
        reference=-draws(B, T, seed=3).abs(),
        advantages=group_advantages(draws(B, seed=4), group=GROUP),
        mask=torch.arange(T) < lengths[:, None],
    )


# ------------------------------------------------------------------ slow replicas


def slow_advantages(rewards, group, scale):
    def deviation(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    result = []
    for place, reward in enumerate(rewards):
        first = place // group * group
        own = rewards[first : first + group]
        divisor = {"group": own, "batch": rewards}.get(scale)
        gap = reward - sum(own) / group
        result.append(gap if divisor is None else gap / (deviation(divisor) + 1e-4))
    return result


def slow_loss(batch, config, total):
    sums, counts = [], []
    for row in range(B):
        parts = []
        for token in range(T):
            if not batch.mask[row, token]:
                continue
            lp, old, ref = (
                float(x[row, token]) for x in (batch.log_probs, batch.old, batch.reference)
            )
            ratio, advantage = math.exp(lp - old), float(batch.advantages[row])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            divergence = math.exp(ref - lp) - (ref - lp) - 1
            parts.append(-min(ratio * advantage, clipped * advantage) + config.beta * divergence)
        sums.append(sum(parts))
        counts.append(len(parts))
    return {
        "grpo": sum(s / c for s, c in zip(sums, counts, strict=True)) / B,
        "dr_grpo": sum(sums) / (B * MAX_TOKENS),
        "dapo": sum(sums) / total,
        "bnpo": sum(sums) / sum(counts),
    }[config.reduction]


@pytest.mark.parametrize("scale", SCALES)
def test_advantages_are_their_slow_replica(scale):
    rewards = draws(12)
    expected = slow_advantages(rewards.tolist(), 4, scale)
    assert group_advantages(rewards, group=4, scale=scale).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_loss_is_its_slow_replica(batch, reduction, beta):
    config = PolicyConfig(beta=beta, reduction=reduction, clip_high=0.28)
    found = policy_loss(**vars(batch), config=config, max_tokens=MAX_TOKENS, total=31.0)
    assert float(found.loss) == pytest.approx(slow_loss(batch, config, 31.0))


# ------------------------------------------------------------------ TRL


def trl_source(name):
    """Text of a file of TRL; its import takes minutes on a small machine, its lines do not."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed; its frozen numbers below stand for it")
    return (Path(spec.origin).parent / "trainer" / name).read_text(encoding="utf-8")


def part_of(source, keep):
    """Code of the one part of ``source`` that ``keep`` accepts, whatever stands around it."""
    (found,) = [node for node in ast.walk(ast.parse(source)) if keep(node)]
    return compile(ast.Module([found], type_ignores=[]), "trl", "exec")


def function(name):
    return lambda node: isinstance(node, ast.FunctionDef) and node.name == name


def trl_loss(batch, config, *, total):
    """Loss and metrics of ``GRPOTrainer._compute_loss`` itself, on a trainer of plain values."""
    space = {"torch": torch, "nanmin": torch.min, "nanmax": torch.max}
    exec(part_of(trl_source("grpo_trainer.py"), function("_compute_loss")), space)
    off = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            batch.log_probs,
            torch.zeros_like(batch.log_probs),
            None,
        ),
        loss_type=config.reduction,
        beta=config.beta,
        epsilon_low=config.clip_low,
        epsilon_high=config.clip_high,
        max_completion_length=MAX_TOKENS,
        importance_sampling_level="token",
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        router_aux_loss_coef=0.0,
        args=off,
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda value: value, reduce=lambda value, reduction: value
        ),
    )
    nothing = torch.zeros(B, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": nothing,
        "prompt_mask": nothing,
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": batch.mask.int(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old,
        "ref_per_token_logps": batch.reference,
        "num_items_in_batch": torch.tensor(total),
    }
    loss = space["_compute_loss"](trainer, trainer.model, inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_loss_is_trls(batch, reduction, beta):
    config = PolicyConfig(beta=beta, reduction=reduction, clip_high=0.28)
    total = 31.0
    expected, metrics = trl_loss(batch, config, total=total)
    found = policy_loss(**vars(batch), config=config, max_tokens=MAX_TOKENS, total=total)
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-12)
    # TRL counts in float32
    assert float(found.clip_share) == pytest.approx(metrics["clip_ratio/region_mean"], rel=1e-6)
    if beta:
        assert float(found.kl) == pytest.approx(metrics["kl"], rel=1e-6)


def trl_advantages(rewards, *, group, scale):
    """Advantages by the lines of TRL that scale rewards; 0 where a reward does not apply."""

    def is_choice(node):
        return isinstance(node, ast.If) and ast.unparse(node.test) == (
            "self.multi_objective_aggregation == 'sum_then_normalize'"
        )

    space = {
        "torch": torch,
        "num_generations": group,
        "device": rewards.device,
        "rewards_per_func": rewards[:, None],
        "unscorable_mask": rewards.isnan(),
        "self": SimpleNamespace(
            multi_objective_aggregation="sum_then_normalize",
            scale_rewards=scale,
            reward_weights=torch.ones(1),
        ),
    }
    exec(part_of(trl_source("utils.py"), function("nanstd")), space)
    exec(part_of(trl_source("grpo_trainer.py"), is_choice), space)
    return space["advantages"].nan_to_num(0.0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("holes", [False, True])
def test_advantages_are_trls(scale, holes):
    rewards = draws(12)
    if holes:
        rewards[[1, 4, 5]] = torch.nan
    expected = trl_advantages(rewards, group=4, scale=scale)
    found = group_advantages(rewards, group=4, scale=scale)
    # TRL divides integers into float32
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-7)


def test_the_version_of_trl_is_the_one_that_was_read():
    """The tests above run lines of TRL by name: another version may hold other lines."""
    trl_source("grpo_trainer.py")
    assert importlib.metadata.version("trl").startswith("1.16.")


# ------------------------------------------------------------------ TRL's numbers, without TRL

# What the lines of TRL 1.16.0 gave for `fixed` and `REWARDS`, in float64 with torch 2.11.0
TRL_LOSSES = {
    ("grpo", 0.0): 0.6264338312424931,
    ("grpo", 0.1): 0.6769832527701695,
    ("dr_grpo", 0.0): 0.011093725635973394,
    ("dr_grpo", 0.1): 0.030988824162754208,
    ("dapo", 0.0): 0.019324554333631075,
    ("dapo", 0.1): 0.053980532412539584,
    ("bnpo", 0.0): 0.029953059217128163,
    ("bnpo", 0.1): 0.08366982523943636,
}
TRL_KL = 0.5371676602230813
# 3 of 20 tokens, of which the lower clip holds one
TRL_CLIPPED = 0.15
REWARDS = (1.4, 0.1, 0.75, 0.0, 1.1, 0.1)
TRL_ADVANTAGES = {
    ("group", False): [0.9998461775, -0.9998461775, 0.0, -0.6574878589, 1.150603753, -0.4931158942],
    ("group", True): [0.9998461775, -0.9998461775, 0.0, -0.7061081934, 0.0, 0.7061081934],
    ("batch", False): [1.092677778, -1.092677778, 0.0, -0.6724170942, 1.176729915, -0.5043128206],
    ("batch", True): [1.083905656, -1.083905656, 0.0, -0.08337735817, 0.0, 0.08337735817],
    ("none", False): [0.65, -0.65, 0.0, -0.4, 0.7, -0.3],
    ("none", True): [0.65, -0.65, 0.0, -0.05, 0.0, 0.05],
}
# TRL's own float32 counts are in the advantages and in the metrics
FLOAT32 = 1e-6


def fixed():
    """Tensors without a random generator, which another torch may change; the clips hold some."""

    def waves(step):
        place = torch.arange(1, B * T + 1, dtype=torch.float64)
        return -2 * (step * place).sin().abs().reshape(B, T)

    return SimpleNamespace(
        log_probs=waves(1.0),
        old=waves(1.1),
        reference=waves(1.3),
        advantages=torch.tensor([1.25, -0.5, -0.75, 0.0, -1.5, 1.5], dtype=torch.float64),
        mask=torch.arange(T) < torch.tensor([5, 1, 3, 4, 2, 5])[:, None],
    )


def fixed_rewards(holes):
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    return rewards.where(torch.arange(B) != 4, torch.nan) if holes else rewards


@pytest.mark.parametrize(("reduction", "beta"), TRL_LOSSES)
def test_the_loss_has_trls_frozen_numbers(reduction, beta):
    config = PolicyConfig(beta=beta, reduction=reduction, clip_high=0.28)
    found = policy_loss(**vars(fixed()), config=config, max_tokens=MAX_TOKENS, total=31.0)
    # float64 all through; sums of 20 terms and another machine's sine
    assert float(found.loss) == pytest.approx(TRL_LOSSES[reduction, beta], rel=1e-11)
    assert float(found.kl) == pytest.approx(TRL_KL, rel=1e-11)
    assert float(found.clip_share) == pytest.approx(TRL_CLIPPED, rel=1e-11)


@pytest.mark.parametrize(("scale", "holes"), TRL_ADVANTAGES)
def test_advantages_have_trls_frozen_numbers(scale, holes):
    found = group_advantages(fixed_rewards(holes), group=GROUP, scale=scale)
    expected = TRL_ADVANTAGES[scale, holes]
    assert found.tolist() == pytest.approx(expected, rel=FLOAT32, abs=1e-12)


def test_the_frozen_numbers_are_those_of_trl():
    for (reduction, beta), expected in TRL_LOSSES.items():
        config = PolicyConfig(beta=beta, reduction=reduction, clip_high=0.28)
        loss, metrics = trl_loss(fixed(), config, total=31.0)
        assert float(loss) == pytest.approx(expected, rel=1e-11)
        assert metrics["clip_ratio/region_mean"] == pytest.approx(TRL_CLIPPED, rel=FLOAT32)
        if beta:
            assert metrics["kl"] == pytest.approx(TRL_KL, rel=FLOAT32)
    for (scale, holes), expected in TRL_ADVANTAGES.items():
        found = trl_advantages(fixed_rewards(holes), group=GROUP, scale=scale)
        assert found.tolist() == pytest.approx(expected, rel=FLOAT32, abs=1e-12)


# ------------------------------------------------------------------ laws


def test_advantages_of_a_group_add_up_to_nothing_and_ignore_shift_and_size():
    rewards = draws(12)
    found = group_advantages(rewards, group=4)
    assert found.reshape(3, 4).sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    shifted = group_advantages(100 * rewards + 7, group=4)
    # up to the floor of 1e-4 beside a deviation of about 1
    assert torch.allclose(found, shifted, rtol=1e-3)
    assert not torch.allclose(found, group_advantages(100 * rewards, group=4, scale="none"))


def test_equal_rewards_have_no_advantage_and_are_counted():
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, torch.nan, torch.nan, torch.nan])
    assert not group_advantages(rewards, group=3)[:3].any()
    assert flat_groups(rewards, group=3).tolist() == [True] * 3 + [False] * 3 + [True] * 3


def test_a_reward_that_does_not_apply_changes_no_other():
    rewards = torch.tensor([0.0, 1.0, torch.nan, 3.0])
    found = group_advantages(rewards, group=4, scale="none")
    assert found.tolist() == pytest.approx([-4 / 3, -1 / 3, 0, 5 / 3])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_mask_ends_with_the_first_end_token(ids):
    mask = completion_mask(torch.tensor([ids]), end_ids=[2, 3])[0].tolist()
    ends = [place for place, token in enumerate(ids) if token in (2, 3)]
    length = ends[0] + 1 if ends else len(ids)
    assert mask == [place < length for place in range(len(ids))]


@given(st.floats(-30, 0), st.floats(-30, 0))
@settings(max_examples=100, deadline=None)
def test_the_divergence_is_never_negative_and_zero_at_equality(first, second):
    pair = torch.tensor([[first]], dtype=torch.float64), torch.tensor([[second]]).double()
    assert float(k3(*pair)) >= -1e-9
    assert float(k3(pair[0], pair[0])) == 0


def test_the_divergence_is_unbiased():
    policy, reference = draws(7, seed=5).log_softmax(0), draws(7, seed=6).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    estimate = (policy.exp() * k3(policy[None], reference[None])[0]).sum()
    assert float(estimate) == pytest.approx(float(exact))


def test_on_policy_the_value_is_nothing_and_the_gradient_is_not(batch):
    log_probs = batch.log_probs.clone().requires_grad_()
    config = PolicyConfig(beta=0.0, reduction="bnpo")
    whole = torch.ones_like(batch.mask)
    found = policy_loss(log_probs, None, None, batch.advantages, whole, config=config)
    assert found.loss.item() == pytest.approx(0, abs=1e-12)
    assert float(found.kl) == float(found.clip_share) == 0
    found.loss.backward()
    expected = -batch.advantages[:, None].expand(B, T) / (B * T)
    assert torch.allclose(log_probs.grad, expected)


def test_a_ratio_beyond_the_clip_has_no_gradient_where_that_would_reward_it():
    ratio = torch.tensor([[1.3, 1.3, 0.5, 0.5]], requires_grad=True)
    up = clipped_loss(ratio, torch.tensor([1.0]))
    (gradient,) = torch.autograd.grad(up.sum(), ratio)
    assert gradient.tolist() == [[0, 0, -1, -1]]
    down = clipped_loss(ratio, torch.tensor([-1.0]))
    (gradient,) = torch.autograd.grad(down.sum(), ratio)
    assert gradient.tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_the_mask_leaves_out_changes_nothing_even_where_it_is_infinite(batch, reduction):
    config = PolicyConfig(reduction=reduction)
    value = draws(B, T)
    before = reduce_tokens(value, batch.mask, reduction=reduction, max_tokens=4)
    spoilt = value.masked_fill(~batch.mask, torch.inf)
    assert torch.equal(before, reduce_tokens(spoilt, batch.mask, reduction=reduction, max_tokens=4))
    none = torch.zeros_like(batch.mask)
    assert float(reduce_tokens(value, none, reduction=reduction, max_tokens=4)) == 0
    found = policy_loss(**vars(batch), config=config, max_tokens=4)
    assert found.loss.ndim == 0


def test_dapo_over_processes_is_bnpo_of_the_whole(batch):
    """Gradients are averaged over processes, so each divides by its share of all tokens."""
    value, mask = draws(B, T), batch.mask
    whole = reduce_tokens(value, mask, reduction="bnpo")
    halves = [(value[:2], mask[:2]), (value[2:], mask[2:])]
    total = mask.sum() / len(halves)
    parts = [reduce_tokens(v, m, reduction="dapo", total=total) for v, m in halves]
    assert float(sum(parts) / 2) == pytest.approx(float(whole))


def test_log_probs_are_those_of_the_temperature():
    logits, ids = draws(2, 3, 7).float(), torch.tensor([[0, 6, 2], [1, 1, 5]])
    found = token_log_probs(logits, ids, temperature=0.5)
    sharp = logits.exp().pow(2)
    expected = (sharp / sharp.sum(-1, keepdim=True)).gather(-1, ids[..., None])[..., 0].log()
    # float32
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_bandit_learns_the_cells_that_are_rewarded():
    """The loss drives a policy: a categorical over 16 cells finds the three that pay."""
    gains = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.zeros(1, 16, requires_grad=True)
        config = PolicyConfig(group=8, beta=0.01)
        mean = []
        for _ in range(60):
            ids = torch.multinomial(scores.detach().softmax(1)[0], 8, True, generator=generator)
            rewards = torch.isin(ids, torch.tensor([3, 7, 11])).float()
            mean.append(float(rewards.mean()))
            log_probs = token_log_probs(scores.expand(8, 1, 16), ids[:, None])
            loss = policy_loss(
                log_probs,
                None,
                torch.full_like(log_probs, -math.log(16)),
                group_advantages(rewards, group=8),
                torch.ones(8, 1, dtype=torch.bool),
                config=config,
            ).loss
            (gradient,) = torch.autograd.grad(loss, scores)
            scores = (scores - gradient).detach().requires_grad_()
        gains.append(sum(mean[-10:]) / 10 - sum(mean[:10]) / 10)
    # chance is 3/16; the last draws come nearly all from the three
    assert min(gains) > 0.4


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "changes",
    [
        {"group": 1},
        {"clip_low": 1.0},
        {"clip_high": -0.1},
        {"beta": -1.0},
        {"beta": math.nan},
        {"reduction": "gspo"},
        {"scale": "all"},
    ],
)
def test_settings_outside_their_domain_are_refused(changes):
    with pytest.raises(ConfigError):
        replace(PolicyConfig(), **changes)


def test_bad_shapes_and_missing_parts_are_named(batch):
    with pytest.raises(ShapeError, match="whole groups of 4"):
        group_advantages(torch.zeros(6), group=4)
    with pytest.raises(ShapeError, match="bool mask"):
        reduce_tokens(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ShapeError, match="shift them by one"):
        token_log_probs(torch.zeros(2, 4, 7), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ConfigError, match="max_tokens"):
        reduce_tokens(torch.zeros(2, 3), torch.ones(2, 3).bool(), reduction="dr_grpo")
    with pytest.raises(ConfigError, match="no reference"):
        policy_loss(
            batch.log_probs, None, None, batch.advantages, batch.mask, config=PolicyConfig()
        )
    with pytest.raises(ConfigError, match="temperature"):
        token_log_probs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=0)
