"""Schedulers by name: on a Gaussian whose diffusion has a closed form, and on small models."""

import inspect
from dataclasses import replace

import pytest
import torch
from models import TINY, TINY_PAPER, make_model, noise

from specsegdiff.errors import ConfigError
from specsegdiff.models.segdiff import SAMPLERS, SegDiffConfig, SpecSegDiff, alpha_bar
from specsegdiff.sampling import batches, draw_masks, sample, starting_noise

SOLVERS = [name for name in SAMPLERS if name != "ddpm"]
MEAN, DEVIATION = 0.05, 0.04


class Gaussian:
    """A segmenter for masks whose every bin is normal: its best denoiser is linear in x_t.

    It keeps the clean masks that it told, to see what the scheduler was given.
    """

    def __init__(self, prediction="sample", *, scale=0.3, train_steps=1_000):
        self.config = replace(
            TINY,
            prediction=prediction,
            mask_scale=scale,
            train_steps=train_steps,
            patch=(1, 1),
            refine=(),
        )
        self.level = alpha_bar(self.config)
        self.seen = []

    def grid(self, n_frames):
        return 8, n_frames

    def encode(self, condition):
        return torch.zeros(1, 1, 8, condition.shape[-1])

    def denoise(self, x, step, encoded):
        """E[x_0 | x_t], or the noise that belongs to it."""
        a = self.level[step].float().reshape(-1, 1, 1, 1)
        gain = a.sqrt() * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
        clean = MEAN + gain * (x - a.sqrt() * MEAN)
        self.seen.append((int(step[0]), float(clean.abs().max())))
        if self.config.prediction == "epsilon":
            return (x - a.sqrt() * clean) / (1 - a).sqrt()
        return 2 * torch.atanh(clean / self.config.mask_scale)  # what `clean` undoes

    def is_blind(self, step):
        return False

    def clean(self, prediction):
        return SpecSegDiff.clean(self, prediction)

    def unfold(self, grid, *, frames):
        return grid[:, 0]

    def scheduler(self, *, sampler=None):
        return SpecSegDiff.scheduler(self, sampler=sampler)

    def exact(self, steps, *, frames=32):
        """The last clean mask on the probability-flow path, with no error in time.

        A Gaussian's path keeps x_t's distance from its mean, counted in deviations (Song et al.
        2021, arXiv 2011.13456, Eq. 13, solved).
        """
        start = starting_noise(0, "0", 0, (1, 8, frames)).double()[0]
        first = self.level[-1]
        deviation = (first * DEVIATION**2 + 1 - first).sqrt()
        return MEAN + self.deviation(steps) * (start - first.sqrt() * MEAN) / deviation

    def deviation(self, steps):
        """That of the last clean mask, E[x_0 | x_t] at the last step: below `DEVIATION`."""
        last = self.level[round(1_000 / steps) - 1]
        return last.sqrt() * DEVIATION**2 / (last * DEVIATION**2 + 1 - last).sqrt()


@torch.inference_mode()
def draw(model, condition, indices, **options):
    return torch.cat(list(draw_masks(model, condition, indices, **options)))


def drawn(model, steps, sampler, *, frames=32):
    """Clean masks ``(d, f, t)`` in the model's own scale."""
    masks = draw(model, torch.zeros(1, frames), range(1), steps=steps, sampler=sampler)
    return (2 * masks - 1).double() * model.config.mask_scale


def error(model, steps, sampler):
    return float((drawn(model, steps, sampler)[0] - model.exact(steps)).square().mean().sqrt())


# ------------------------------------------------------------------ the known posterior


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_many_steps_follow_the_exact_path(sampler, prediction):
    model = Gaussian(prediction)
    # DDIM errs by the first order of its steps, 4 % of the deviation; the others by a seventh of it
    assert error(model, 100, sampler) < (0.06 if sampler == "ddim" else 0.01) * DEVIATION


@pytest.mark.parametrize("sampler", ["dpmsolver++", "unipc"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_solvers_of_second_order_err_less_than_ddim(sampler, steps):
    model = Gaussian()
    assert error(model, steps, sampler) < 0.7 * error(model, steps, "ddim")


def test_solvers_agree_with_one_another_and_with_the_posterior():
    model = Gaussian()
    # DDPM's larger variance is right in the limit only: at 100 steps it draws 18 % too wide
    steps = {name: 1_000 if name == "ddpm" else 100 for name in SAMPLERS}
    every = {name: drawn(model, steps[name], name, frames=256) for name in SAMPLERS}
    for name in ("dpmsolver++", "unipc"):
        off = (every[name] - every["ddim"]).square().mean().sqrt()
        assert float(off) < 0.06 * DEVIATION, name
    for name, values in every.items():
        # 2,048 values: five standard errors, and what DDIM errs by
        assert abs(float(values.mean()) - MEAN) < 5 * DEVIATION / 2_048**0.5, name
        expected = float(model.deviation(steps[name]))
        assert float(values.std()) == pytest.approx(expected, rel=5 / 4_096**0.5 + 0.06), name


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("train_steps", [100, 1_000])
def test_steps_are_as_many_as_asked_and_spaced_from_the_end(sampler, train_steps):
    for steps in (*range(1, 11), 29, 31, 61):
        model = Gaussian(train_steps=train_steps)
        drawn(model, steps, sampler, frames=1)
        times = [step for step, _ in model.seen]
        expected = [train_steps - 1 - i * train_steps / steps for i in range(steps)]
        assert times == pytest.approx(expected, abs=0.5), steps
        assert times[-1] >= 0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 29])
def test_the_last_clean_mask_is_the_result(sampler, steps):
    model = Gaussian(train_steps=100)
    result = drawn(model, steps, sampler)
    assert float(result.abs().max()) == pytest.approx(model.seen[-1][1], abs=1e-6)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_one_step_is_the_same_whatever_the_solver(sampler):
    model = make_model()
    condition = model.condition(noise(1, 400))
    first, other = (
        sample(model, condition, draws=2, steps=1, sampler=s) for s in ("ddpm", sampler)
    )
    torch.testing.assert_close(other.mean, first.mean, atol=1e-6, rtol=0)


# ------------------------------------------------------------------ on networks


@pytest.fixture(scope="module", params=[TINY, TINY_PAPER], ids=["sample", "epsilon"])
def model(request):
    return make_model(request.param)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_draw_hangs_on_its_seed_alone(model, sampler):
    condition = model.condition(noise(1, 300))[0]
    options = {"steps": 3, "sampler": sampler}
    together = draw(model, condition, range(3), **options)
    assert together.shape == (3, *condition.shape)
    assert bool(together.isfinite().all())
    apart = draw(model, condition, [2], **options)
    assert torch.equal(apart, together[2:])  # a solver does not remember the draw before
    other = draw(model, condition, [2], seed=1, **options)
    assert float((other - apart).abs().max()) > 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_clean_masks_stay_within_the_masks_scale(monkeypatch, sampler, scale):
    model = make_model(mask_scale=scale)
    given = []
    scheduler = model.scheduler(sampler=sampler)
    step = scheduler.step

    def spy(prediction, *rest, **options):
        given.append(prediction)
        return step(prediction, *rest, **options)

    # of the same signature, by which noise is given
    spy.__signature__ = inspect.signature(step)
    scheduler.step = spy
    monkeypatch.setattr(model, "scheduler", lambda **options: scheduler)
    monkeypatch.setattr(model, "denoise", lambda x, step, encoded: 1e3 * torch.sign(x))
    monkeypatch.setattr(model, "is_blind", lambda step: False)
    masks = draw(model, model.condition(noise(1, 200))[0], range(2), steps=3)
    assert len(given) == 6
    assert all(float(value.abs().max()) == pytest.approx(scale) for value in given)
    # full confidence at every step is certainty at the end, neither more nor less
    assert float((masks - 0.5).abs().min()) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_configuration_may_name_any_of_them(sampler):
    model = make_model(sampler=sampler)
    condition = model.condition(noise(1, 200))
    first = sample(model, condition, draws=1, steps=3)
    assert torch.equal(first.mean, sample(model, condition, draws=1, steps=3, sampler=sampler).mean)


def test_other_names_are_refused():
    with pytest.raises(ConfigError, match=r"no sampler 'euler'; .*unipc"):
        make_model().scheduler(sampler="euler")
    with pytest.raises(ConfigError, match="sampler must be one of"):
        SegDiffConfig(sampler="euler")


# ------------------------------------------------------------------ memory


class Card:
    """A CUDA device of some bytes, of which every draw takes some."""

    def __init__(self, monkeypatch, *, free, reserved=0, per_draw):
        self.now, self.peak, self.per_draw = 50, 10**9, per_draw
        for name, value in {
            "reset_peak_memory_stats": self.reset,
            "memory_allocated": lambda device: self.now,
            "max_memory_allocated": lambda device: self.peak,
            "memory_reserved": lambda device: self.now + reserved,
            "mem_get_info": lambda device: (free, 10**12),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def reset(self, device):
        self.peak = self.now

    def run(self, draws, **options):
        sizes = []
        for some in batches(range(draws), device=torch.device("cuda"), **options):
            self.peak = max(self.peak, self.now + self.per_draw * len(some))
            sizes.append(len(some))
        return sizes


@pytest.mark.usefixtures("unchecked")
def test_draws_at_once_are_as_many_as_memory_holds(monkeypatch):
    # 80 % of what is free
    assert Card(monkeypatch, free=1_000, per_draw=100).run(32) == [1, 8, 8, 8, 7]
    assert Card(monkeypatch, free=500, reserved=500, per_draw=100).run(32) == [1, 8, 8, 8, 7]
    assert Card(monkeypatch, free=10**6, per_draw=100).run(32) == [1, 31]
    assert Card(monkeypatch, free=10, per_draw=100).run(3) == [1, 1, 1]
    assert Card(monkeypatch, free=1_000, per_draw=100).run(1) == [1]
    assert Card(monkeypatch, free=1_000, per_draw=0).run(9) == [1, 8]
    assert Card(monkeypatch, free=1_000, per_draw=100).run(9, chunk=4) == [4, 4, 1]


def test_every_draw_comes_once_and_in_order(monkeypatch):
    Card(monkeypatch, free=300, per_draw=100)
    for device in ("cpu", "cuda", "mps"):
        for chunk in (None, 3):
            parts = list(batches([4, 2, 9, 7, 1], device=torch.device(device), chunk=chunk))
            assert [d for part in parts for d in part] == [4, 2, 9, 7, 1]
            assert device != "cpu" or len(parts) == 5
