"""Draws: the condition is encoded once, each draw owns its noise, nothing else changes a number."""

import math
from itertools import pairwise

import pytest
import torch
from models import TINY, TINY_PAPER, make_model, noise

from specsegdiff import sampling
from specsegdiff.errors import ConfigError
from specsegdiff.models.segdiff import PRESETS, SpecSegDiff, alpha_bar
from specsegdiff.sampling import draw_masks, moments, sample, starting_noise


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def paper():
    return make_model(TINY_PAPER)


@pytest.fixture(scope="module")
def conditions(model):
    """Three recordings, ``(3, 33, 26)``."""
    return model.condition(noise(3, 400))


@torch.inference_mode()
def drawn(model, condition, indices, **options):
    return torch.cat(list(draw_masks(model, condition, indices, **options)))


def same(a, b):
    return torch.equal(a.mean, b.mean) and torch.equal(a.spread, b.spread)


class Calls:
    """Counts the calls of a module."""

    def __init__(self, module):
        self.count, self.rows = 0, 0
        self.handle = module.register_forward_hook(self._seen)

    def _seen(self, module, args, output):
        self.count += 1
        self.rows += len(output)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handle.remove()


# ------------------------------------------------------------------ what is computed, how often


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_condition_is_encoded_once_per_item(paper, conditions, sampler):
    with Calls(paper.encoder) as encoder, Calls(paper.unet) as unet:
        sample(paper, conditions[:2], draws=3, steps=4, sampler=sampler)
    assert encoder.rows == encoder.count == 2
    assert unet.rows == 2 * 3 * 4


def test_a_step_that_sees_nothing_of_the_draw_is_computed_once(model, conditions):
    # the first step of `tiny` is noise alone, which its scaled input multiplies by 0
    with Calls(model.unet) as unet:
        one_step = sample(model, conditions[:1], draws=5, steps=1)
    assert unet.rows == 1
    # each draw's mask is the posterior's mean; a mask of zeros and ones deviates from it by this
    one = drawn(model, conditions[0], [4], steps=1)
    assert torch.equal(one_step.mean, one)
    assert torch.equal(one_step.spread, (one * (1 - one)).sqrt())
    with Calls(model.unet) as unet:
        sample(model, conditions[:1], draws=5, steps=3)
    assert unet.rows == 1 + 5 * 2


def test_progress_counts_every_draw_and_step(model, conditions):
    told = []
    sample(model, conditions[:2], draws=5, steps=3, chunk=2, progress=told.append)
    assert sum(told) == 2 * 5 * 3
    told.clear()
    sample(model, conditions[:2], draws=5, steps=1, progress=told.append)
    assert sum(told) == 2


# ------------------------------------------------------------------ what changes no number


@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 3}, {"steps": 2, "sampler": "ddpm"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunking_changes_no_number(model, conditions, options, dtype):
    results = [
        sample(model, conditions[:1], draws=8, chunk=chunk, dtype=dtype, **options)
        for chunk in (1, 3, 8)
    ]
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_chunking_changes_no_number_of_the_papers_model(paper, conditions):
    first, second = (sample(paper, conditions[:1], draws=3, steps=2, chunk=c) for c in (1, 3))
    assert same(first, second)


def test_neighbours_and_order_change_no_number(model, conditions):
    names = ["a", "b", "c"]
    together = sample(model, conditions, draws=3, steps=2, items=names)
    order = [2, 0, 1]
    turned = sample(model, conditions[order], draws=3, steps=2, items=[names[i] for i in order])
    assert torch.equal(turned.mean, together.mean[order])
    assert torch.equal(turned.spread, together.spread[order])
    for i, name in enumerate(names):
        alone = sample(model, conditions[i : i + 1], draws=3, steps=2, items=[name])
        assert torch.equal(alone.mean[0], together.mean[i])


def test_a_draw_is_the_same_whatever_is_drawn_beside_it(model, conditions):
    many = drawn(model, conditions[0], range(5), steps=2)
    assert torch.equal(drawn(model, conditions[0], [3], steps=2), many[3:4])
    assert torch.equal(drawn(model, conditions[0], [4, 0], steps=2), many[[4, 0]])


def test_the_global_generator_is_neither_read_nor_written(model, conditions):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sample(model, conditions[:1], draws=2, steps=2, sampler="ddpm")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(sample(model, conditions[:1], draws=2, steps=2, sampler="ddpm"), first)


# ------------------------------------------------------------------ what changes them


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_seeds_items_and_draws_have_noise_of_their_own(model, conditions, sampler):
    options = {"steps": 3, "sampler": sampler}
    variants = [
        *drawn(model, conditions[0], range(3), **options),
        *drawn(model, conditions[0], [0], seed=1, **options),
        *drawn(model, conditions[0], [0], item="1", **options),
    ]
    for i, first in enumerate(variants):
        for second in variants[:i]:
            assert float((first - second).abs().max()) > 1e-4


def test_a_deterministic_model_has_one_map(conditions):
    model = make_model(deterministic=True)
    first, second = (sample(model, conditions[:1], draws=3, seed=s) for s in (0, 1))
    assert same(first, second)
    assert torch.equal(first.spread, (first.mean * (1 - first.mean)).sqrt())


# ------------------------------------------------------------------ noise


def test_windows_of_a_recording_agree_on_its_noise():
    whole = starting_noise(3, "call", 1, (4, 5, 300))
    for first, columns in ((0, 10), (1, 63), (60, 10), (64, 64), (130, 170), (299, 1)):
        window = starting_noise(3, "call", 1, (4, 5, columns), first_column=first)
        assert torch.equal(window, whole[..., first : first + columns])


def test_starting_noise_is_standard_and_its_blocks_independent():
    value = starting_noise(0, "call", 0, (8, 16, 4 * sampling.NOISE_BLOCK)).double()
    blocks = value.reshape(8 * 16, 4, -1).transpose(0, 1).flatten(1)
    # 8,192 samples a block: five standard errors
    assert blocks.mean(1).abs().max() < 5 / 8192**0.5
    assert (blocks.square().mean(1) - 1).abs().max() < 5 * (2 / 8192) ** 0.5
    correlation = torch.corrcoef(blocks) - torch.eye(4)
    assert correlation.abs().max() < 5 / 8192**0.5


def test_the_noise_of_a_seed_is_frozen():
    # explanations name their seed: another generator would change what is published
    value = starting_noise(0, "0", 0, (1, 1, 4))[0, 0]
    assert value.tolist() == pytest.approx([-0.157461, 0.962804, 0.807912, 1.034424], abs=1e-6)


# ------------------------------------------------------------------ the diffusion


@pytest.mark.parametrize("config", [TINY, PRESETS["small"], PRESETS["paper"]])
def test_the_schedule_is_that_of_the_papers(config):
    t, total = torch.arange(config.train_steps, dtype=torch.float64), config.train_steps
    if config.schedule == "linear":
        # Ho et al. 2020: 1e-4 to 0.02 in 1000 steps, times 1000 / T
        beta = (1e-4 + (0.02 - 1e-4) * t / (total - 1)) * 1000 / total
    else:
        # Nichol and Dhariwal 2021, Eq. 17

        def level(step):
            return torch.cos((step / total + 0.008) / 1.008 * math.pi / 2) ** 2

        beta = (1 - level(t + 1) / level(t)).clamp(max=0.999)
    expected = torch.cumprod(1 - beta, dim=0)
    assert torch.allclose(alpha_bar(config), expected, rtol=1e-6)
    scheduler = SpecSegDiff.scheduler(_Holder(config))
    # diffusers multiplies in float32; a cosine schedule ends near 1e-9
    assert torch.allclose(scheduler.alphas_cumprod.double(), expected, rtol=1e-3, atol=1e-9)
    if config is PRESETS["paper"]:
        assert float(expected[-1]) == pytest.approx(2.0e-5, rel=0.05)


class _Holder:
    """A model without networks."""

    def __init__(self, config):
        self.config = config


def hand_made(model, condition, indices, *, steps, sampler, predict, seed=0):
    """Reverse diffusion by the formulas, in float64: DDIM is Eq. 12 of Song 2021, DDPM Eq. 7 of Ho
    2020 with variance beta."""
    config = model.config
    level = alpha_bar(config)
    encoded = model.encode(condition[None])
    shape = (config.patch[0] * config.patch[1], *model.grid(condition.shape[-1]))
    times = [config.train_steps - 1 - round(i * config.train_steps / steps) for i in range(steps)]
    maps = []
    for index in indices:
        x = starting_noise(seed, "0", index, shape)[None].double()
        generator = sampling._generator(seed, "0", index, "steps", 0)
        for now, after in pairwise([*times, -1]):
            a, b = level[now], level[after] if after >= 0 else torch.tensor(1.0).double()
            output = predict(x.float(), torch.tensor([now]), encoded).double()
            if config.prediction == "sample":
                clean = config.mask_scale * (2 * torch.sigmoid(output) - 1)
                eps = (x - a.sqrt() * clean) / (1 - a).sqrt()
            else:
                eps = output
                clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
            if sampler == "ddim":
                x = b.sqrt() * clean + (1 - b).sqrt() * eps
            else:
                beta = 1 - a / b
                x = (b.sqrt() * beta * clean + (a / b).sqrt() * (1 - b) * x) / (1 - a)
                if after >= 0:
                    x = x + beta.sqrt() * torch.randn(x.shape, generator=generator).double()
        maps.append(model.unfold(x, frames=condition.shape[-1])[0])
    return (torch.stack(maps) / config.mask_scale + 1).div(2).clamp(0, 1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_x0_prediction_follows_the_formulas(model, conditions, sampler, steps):
    with torch.no_grad():
        expected = hand_made(
            model, conditions[0], range(2), steps=steps, sampler=sampler, predict=model.denoise
        )
    found = drawn(model, conditions[0], range(2), steps=steps, sampler=sampler)
    # float32 against float64, over a few steps
    assert torch.allclose(found.double(), expected, atol=2e-4)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_epsilon_prediction_follows_the_formulas(paper, conditions, sampler, monkeypatch):
    # knows the noise of a mask, so that the result lies within [0, 1] and is not clipped away
    level, target = alpha_bar(paper.config), 0.5 * torch.sin(torch.arange(33.0))[:, None]

    def predict(x, step, encoded):
        a = level[int(step[0])]
        return ((x - a.sqrt() * target) / (1 - a).sqrt() + 0.01 * x).float()

    monkeypatch.setattr(paper, "denoise", predict)
    expected = hand_made(
        paper, conditions[0], range(2), steps=4, sampler=sampler, predict=predict
    ).float()
    found = drawn(paper, conditions[0], range(2), steps=4, sampler=sampler)
    assert float(((expected > 0) & (expected < 1)).float().mean()) > 0.9
    assert torch.allclose(found, expected, atol=1e-3)


def test_a_perfect_denoiser_finds_the_mask(paper, conditions, monkeypatch):
    """100 ancestral steps of the published procedure end in the mask that the noise hides."""
    mask = (noise(33, 26, seed=5) > 0).float()
    level = alpha_bar(paper.config)

    def predict(x, step, encoded):
        a = level[step].reshape(-1, 1, 1, 1)
        return ((x - a.sqrt() * (2 * mask - 1)) / (1 - a).sqrt()).float()

    monkeypatch.setattr(paper, "denoise", predict)
    result = sample(paper, conditions[:1], draws=2)
    assert torch.allclose(result.mean[0], mask, atol=1e-3)
    assert float(result.spread.max()) < 1e-3


def test_the_papers_procedure_runs_at_its_100_steps(paper):
    condition = paper.condition(noise(1, 160))
    with Calls(paper.unet) as unet:
        result = sample(paper, condition, draws=2)
    assert unet.rows == 2 * 100
    assert result.mean.shape == result.spread.shape == condition.shape
    assert bool(torch.isfinite(result.mean).all())
    assert float(result.spread.max()) > 0.01


# ------------------------------------------------------------------ moments and bad input


def test_moments_are_mean_and_deviation_however_chunked():
    draws = torch.rand(7, 5, 6, generator=torch.Generator().manual_seed(0))
    whole = moments([draws])
    assert torch.allclose(whole.mean, draws.mean(0), atol=1e-6)
    assert torch.allclose(whole.spread, draws.std(0, correction=0), atol=1e-6)
    assert same(moments(draws.split([1, 4, 2])), whole)
    equal = moments([draws[:1].expand(6, -1, -1)])
    assert torch.equal(equal.mean, draws[0])
    assert float(equal.spread.max()) == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        {"draws": 0},
        {"draws": -1},
        {"draws": 2.5},
        {"steps": 0},
        {"steps": 101},
        {"steps": "1"},
        {"chunk": 0},
        {"seed": 0.5},
        {"items": ["a"]},
    ],
)
def test_counts_outside_their_domain_are_refused(model, conditions, options):
    with pytest.raises(ConfigError, match=next(iter(options)).removesuffix("s")):
        sample(model, conditions[:2], **options)
