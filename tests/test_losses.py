"""The loss against the formulas of the papers, its gradients, and what must not count."""

import math

import pytest
import torch
import torch.nn.functional as F
from models import TINY, TINY_PAPER, make_model, noise

from specsegdiff.errors import ConfigError
from specsegdiff.models.losses import LossConfig, diffusion_loss, draw_steps
from specsegdiff.models.segdiff import alpha_bar


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def paper():
    return make_model(TINY_PAPER)


CONDITION = noise(3, 33, 26, scale=1.0)
MARGIN = noise(3, 33, 26, seed=1, scale=1.0) - 1.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def loss_of(model, margin=MARGIN, *, seed=0, **options):
    config = LossConfig(**options)
    with torch.no_grad():
        return diffusion_loss(model, CONDITION, margin, config=config, generator=generator(seed))


def inside_out(model, margin, *, seed=0, **options):
    """Noise, noised mask and prediction of a batch, drawn as the loss does."""
    config, rng = model.config, generator(seed)
    clean = model.fold(config.mask_scale * (2 * (margin >= 0).float() - 1))
    eps = torch.randn(clean.shape, generator=rng)
    step = draw_steps(len(margin), config.train_steps, LossConfig(**options), generator=rng)
    level = alpha_bar(config)[step].reshape(-1, 1, 1, 1)
    noised = (level.sqrt() * clean + (1 - level).sqrt() * eps).float()
    with torch.no_grad():
        output = model.denoise(noised, step, model.encode(CONDITION))
    return eps, model.unfold(output, frames=26)


# ------------------------------------------------------------------ formulas


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_epsilon_loss_is_segdiffs(paper, reduction):
    eps, output = inside_out(paper, MARGIN)
    squares = (eps[:, 0] - output).square()
    # summed over an item's bins, then the mean over items, as in SegDiff's published code
    expected = (squares.sum((1, 2)) if reduction == "sum" else squares.mean((1, 2))).mean()
    loss, parts = loss_of(paper, reduction=reduction)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert float(parts["mse"]) == pytest.approx(float(squares.mean()), rel=1e-4)


@pytest.mark.parametrize("softness", [0.0, 0.25])
@pytest.mark.parametrize(("cross_entropy", "dice"), [(1.0, 0.0), (1.0, 0.3), (0.0, 1.0)])
def test_the_x0_loss_is_cross_entropy_and_dice(model, softness, cross_entropy, dice):
    _, logit = inside_out(model, MARGIN)
    target = (MARGIN / softness).sigmoid() if softness else (MARGIN >= 0).float()
    chance = logit.sigmoid()
    bce = -(target * chance.log() + (1 - target) * (1 - chance).log()).mean()
    overlap = 1 - 2 * (chance * target).sum() / (chance + target).sum()
    loss, parts = loss_of(model, softness=softness, cross_entropy=cross_entropy, dice=dice)
    assert float(parts["bce"]) == pytest.approx(float(bce), rel=1e-4)
    assert float(parts["dice"]) == pytest.approx(float(overlap), rel=1e-4)
    assert float(loss) == pytest.approx(float(cross_entropy * bce + dice * overlap), rel=1e-4)


def test_a_soft_label_narrows_to_the_hard_mask(model):
    margin = MARGIN + 0.01 * MARGIN.sign()  # none at the quantile itself, where a label is a half
    hard = float(loss_of(model, margin, dice=0.3)[0])
    gaps = [abs(float(loss_of(model, margin, dice=0.3, softness=s)[0]) - hard) for s in (1, 0.1)]
    assert gaps[0] > gaps[1] > 1e-6
    assert float(loss_of(model, margin, dice=0.3, softness=1e-4)[0]) == pytest.approx(
        hard, rel=1e-6
    )


def test_a_perfect_prediction_costs_nothing(model, monkeypatch):
    mask = (MARGIN >= 0).float()
    monkeypatch.setattr(model, "denoise", lambda *_: model.fold(40 * (2 * mask - 1)))
    loss, parts = loss_of(model, dice=1.0)
    assert float(loss) < 1e-6
    assert float(parts["dice"]) == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------ what does not count


@pytest.mark.parametrize("options", [{}, {"softness": 0.3, "dice": 0.5}])
@pytest.mark.parametrize("kind", ["model", "paper"])
def test_bins_without_a_margin_do_not_count(kind, options, request, monkeypatch):
    network = request.getfixturevalue(kind)
    margin = MARGIN.clone()
    margin[0, 20:] = torch.nan
    margin[1, :, 5:9] = torch.nan
    predict = network.denoise
    expected = loss_of(network, margin, **options)

    def spoilt(x, step, encoded):
        value = network.unfold(predict(x, step, encoded), frames=26)
        return network.fold(torch.where(margin.isnan(), 7.0, value))

    monkeypatch.setattr(network, "denoise", spoilt)
    found = loss_of(network, margin, **options)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    # and those with one do
    monkeypatch.setattr(network, "denoise", lambda *a: predict(*a) + 0.1)
    assert loss_of(network, margin, **options)[0] != expected[0]


@pytest.mark.parametrize("kind", ["model", "paper"])
def test_a_batch_without_a_margin_costs_nothing(kind, request):
    network = request.getfixturevalue(kind)
    empty = torch.full_like(MARGIN, torch.nan)
    loss, parts = loss_of(network, empty, reduction="mean")
    assert float(loss) == 0
    assert all(math.isfinite(float(value)) for value in parts.values())


def test_a_margin_of_minus_infinity_is_background(model):
    low = torch.where(MARGIN < 0, -torch.inf, MARGIN)
    assert loss_of(model, low)[0] == loss_of(model, MARGIN)[0]
    assert math.isfinite(float(loss_of(model, low, softness=0.2, dice=0.1)[0]))


# ------------------------------------------------------------------ gradients and randomness


@pytest.mark.parametrize("config", [TINY, TINY_PAPER])
def test_every_parameter_has_a_gradient(config):
    network = make_model(config).train()
    options = LossConfig(softness=0.2, dice=0.3)
    loss, _ = diffusion_loss(network, CONDITION, MARGIN, config=options, generator=generator())
    loss.backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_a_few_steps_of_training_lower_the_loss():
    network = make_model().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    values = []
    for _ in range(12):
        loss, _ = diffusion_loss(
            network, CONDITION, MARGIN, config=LossConfig(), generator=generator()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]


def test_the_generator_decides_all(model):
    assert loss_of(model, seed=1)[0] == loss_of(model, seed=1)[0]
    assert loss_of(model, seed=1)[0] != loss_of(model, seed=2)[0]
    deterministic = make_model(deterministic=True)
    assert loss_of(deterministic, seed=1)[0] == loss_of(deterministic, seed=2)[0]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_share_at_pure_noise_is_as_asked(share):
    count, total = 20_000, 100
    step = draw_steps(count, total, LossConfig(pure_noise=share), generator=generator())
    assert (int(step.min()) >= 0, int(step.max())) == (True, total - 1)
    expected = share + (1 - share) / total
    # five standard errors
    slack = 5 * (expected * (1 - expected) / count) ** 0.5
    assert float((step == total - 1).double().mean()) == pytest.approx(expected, abs=slack + 1e-12)
    others = F.one_hot(step[step < total - 1], total).sum(0)[:-1].double()
    if share < 1:
        assert float(others.max() / others.mean()) < 1.6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "fields",
    [
        {"pure_noise": -0.1},
        {"pure_noise": 1.1},
        {"softness": -1.0},
        {"dice": float("nan")},
        {"cross_entropy": -1.0},
        {"cross_entropy": 0.0},
        {"softness": float("nan")},
        {"reduction": "max"},
    ],
)
def test_impossible_weights_are_refused(fields):
    with pytest.raises(ConfigError, match="LossConfig"):
        LossConfig(**fields)
