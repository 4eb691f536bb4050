"""DeepSHAP: contributions sum to the change of the logit, for every operation, and are captum's
where captum is complete."""

import contextlib
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import STFT, noise
from torch import nn

from baselines import deeplift_maps as maps
from baselines.contrast import Contrast, RuleError
from baselines.deeplift import deeplift
from baselines.deepshap import DeepSHAP
from baselines.deepshap_check import check_rules
from baselines.plane import as_found
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.frontend import Stft, StftConfig

PUBLISHED = Path(__file__).parents[2] / "shared" / "weights" / "aasist"

# rounding of float64 sums over a hundred terms of size 1 to 100
EXACT = {"atol": 1e-10, "rtol": 1e-10}


def make(module, seed=0):
    """A module as it is explained: in evaluation mode, without gradients to its weights. They are
    random, also where they start with ones, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 + 0.5 * torch.rand(value.shape, generator=generator))
    return module.double().eval().requires_grad_(False)


def pair(*shape, positive=False, dtype=torch.float64):
    item, reference = (noise(*shape, seed=seed, scale=1.0).to(dtype) for seed in (1, 2))
    return (item.abs() + 0.1, reference.abs() + 0.1) if positive else (item, reference)


def to_scores(operation):
    """One number a row, in which every element of the result has a weight of its own."""

    def network(x):
        result = operation(x).reshape(len(x), -1)
        return (result * torch.linspace(1, 2, result.shape[1], dtype=result.dtype)).sum(1)

    return network


# ------------------------------------------------------------------ the sum, for every operation


def graph_pool(x):
    """As AASIST has it: keep the rows with the highest score, in its order."""
    scores = torch.sigmoid(x.mean(2, keepdim=True))
    kept = scores.topk(2, dim=1).indices
    return (x * scores).gather(1, kept.expand(-1, -1, x.shape[2]))


def in_place(x):
    y = x + 0
    y.mul_(x)
    y[:, 1] = 3.0
    y[:, 2:].tanh_()
    board = y.new_zeros(*y.shape[:-1], y.shape[-1] + 1)
    board[..., 1:] = y
    F.selu_(board)
    filled = torch.zeros(3, 4, 13, dtype=x.dtype)
    filled[:, :2] = board[:, 2:]
    filled[:, 2:, 0] += 1
    board = board * filled + torch.ones(13, dtype=x.dtype)
    return board.transpose_(1, 2).clamp_min_(-1).add_(x.mean((1, 2), keepdim=True))


def without_gradients(x):
    with torch.no_grad():
        y = x.exp()
    with torch.inference_mode():
        y = y * x
    return y.detach() + x


def spectrum(x):
    window = torch.hann_window(16, dtype=x.dtype)
    return torch.stft(x.flatten(1), 16, 4, window=window, return_complex=True)


OPERATIONS = {
    # element by element, functions and modules
    "gelu": F.gelu,
    "gelu module": nn.GELU(),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "selu": F.selu,
    "selu module": nn.SELU(),
    "silu": F.silu,
    "mish": F.mish,
    "relu": torch.relu,
    "leaky relu": F.leaky_relu,
    "prelu": make(nn.PReLU()),
    "elu": F.elu,
    "celu": F.celu,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "logsigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "exp": torch.exp,
    "2 ** x": lambda x: 2**x,
    "x ** 2": lambda x: x**2,
    "x ** 3": lambda x: x**3,
    "sin": torch.sin,
    # products
    "x * y": lambda x: x * x.roll(1, -1),
    "addcmul": lambda x: torch.addcmul(x, x, x.exp(), value=0.3),
    "matmul": lambda x: x @ x.transpose(1, 2),
    "baddbmm": lambda x: torch.baddbmm(x, x @ x.transpose(1, 2), x, beta=0.5, alpha=2),
    "einsum": lambda x: torch.einsum("bct,bdt->bcd", x, x),
    "glu": lambda x: F.glu(x, 1),
    "prod": lambda x: x[:, :3].prod(1),
    "cosine": lambda x: F.cosine_similarity(x, x.roll(1, -1), dim=-1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "multi-head attention": lambda x: ATTENTION(x, x, x)[0],
    "transformer": lambda x: TRANSFORMER(x),
    "GRU": lambda x: GRU(x)[0],
    "LSTM": lambda x: LSTM(x)[0],
    # softmax, norms
    "softmax": lambda x: F.softmax(x, 1),
    "softmax module": nn.Softmax(-1),
    # its kernel changes the layout
    "softmax, transposed": lambda x: F.softmax(x.transpose(1, 2), -1).view(3, -1),
    "log-softmax": lambda x: F.log_softmax(x, -1),
    "logsumexp": lambda x: x.logsumexp((1, 2)),
    "LayerNorm": make(nn.LayerNorm(12)),
    "layer_norm": lambda x: F.layer_norm(x, (4, 12)),
    "RMSNorm": make(nn.RMSNorm(12)),
    "GroupNorm": make(nn.GroupNorm(2, 4)),
    "InstanceNorm": make(nn.InstanceNorm1d(4, affine=True)),
    "BatchNorm": make(nn.BatchNorm1d(4)),
    "var": lambda x: x.var(-1),
    "std": lambda x: x.std(1, correction=0),
    "var and mean": lambda x: torch.cat(torch.var_mean(x, -1), 1),
    "std and mean": lambda x: torch.cat(torch.std_mean(x, 1, keepdim=True), 1),
    "norm": lambda x: x.norm(dim=-1),
    "1-norm": lambda x: x.norm(p=1, dim=-1),
    "3-norm": lambda x: x.norm(p=3, dim=-1),
    # choices
    "max pool 1d": lambda x: F.max_pool1d(x, 3, 2, 1),
    "max pool 2d": nn.MaxPool2d(2),
    "max pool 3d": lambda x: F.max_pool3d(x.reshape(3, 1, 2, 2, 12), 2),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x[:, None], 3),
    "max": lambda x: x.max(1).values,
    "max, keeping": lambda x: x.max(2, keepdim=True).values,
    "amax": lambda x: x.amax((1, 2)),
    "min": lambda x: x.min(2).values,
    "amin": lambda x: x.amin(1),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x, torch.zeros(12, dtype=x.dtype)),
    "topk": lambda x: x.topk(2, 1).values,
    "sort": lambda x: x.sort(-1).values,
    "graph pool": graph_pool,
    "where": lambda x: torch.where(x > 0, x.exp(), 2 * x),
    "where 0": lambda x: torch.where(x > 0, x, 0.0),
    # linear
    "conv": make(nn.Conv1d(4, 5, 3)),
    "transposed conv": make(nn.ConvTranspose1d(4, 5, 3, 2)),
    "linear": make(nn.Linear(12, 3)),
    "average pool": lambda x: F.avg_pool1d(x, 2),
    "interpolate": lambda x: F.interpolate(x, 24, mode="linear"),
    "cat": lambda x: torch.cat([x, x * x, torch.ones(3, 1, 12, dtype=x.dtype)], 1),
    "pad": lambda x: F.pad(x, (1, 2), value=5.0),
    "masked fill": lambda x: x.masked_fill(torch.arange(12) > 5, 7.0),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, torch.zeros(3, 1, 12).long(), x[:, :1]),
    "1 - x": lambda x: 1 - x,
    # spectra
    "rfft": lambda x: torch.view_as_real(torch.fft.rfft(x)).square().sum(-1),
    "stft": lambda x: spectrum(x).abs(),
    "log power": lambda x: spectrum(x).abs().pow(2).add(1e-6).log(),
    # the network's own doings
    "in place": in_place,
    "no gradients": without_gradients,
}
POSITIVE = {
    "log": torch.log,
    "log10": torch.log10,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "1 / x": lambda x: 1 / x,
    "x / y": lambda x: x / x.roll(1, -1),
    "addcdiv": lambda x: torch.addcdiv(x, x.exp(), x, value=0.3),
    "x ** 0.3": lambda x: x**0.3,
    "x ** -2": lambda x: x**-2,
    "log1p": torch.log1p,
}
ATTENTION = make(nn.MultiheadAttention(12, 3, batch_first=True))
TRANSFORMER = make(nn.TransformerEncoderLayer(12, 3, 16, batch_first=True))
GRU = make(nn.GRU(12, 5, batch_first=True))
LSTM = make(nn.LSTM(12, 5, batch_first=True, bidirectional=True))


@pytest.mark.parametrize("name", [*OPERATIONS, *POSITIVE])
def test_contributions_sum_to_the_change(name):
    item, reference = pair(3, 4, 12, positive=name in POSITIVE)
    network = to_scores((OPERATIONS | POSITIVE)[name])
    contributions, change = deeplift(network, item, reference)
    with torch.no_grad():
        expected = network(item) - network(reference)
    assert torch.allclose(change, expected, **EXACT)
    assert torch.allclose(contributions.flatten(1).sum(1), expected, **EXACT)


@pytest.mark.parametrize("name", [*OPERATIONS, *POSITIVE])
def test_multipliers_of_close_ends_are_gradients(name):
    item, _ = pair(3, 4, 12, positive=name in POSITIVE)
    # ends this close make the same choices; curvature over 1e-7 is of that size
    reference = item - 1e-7 * noise(3, 4, 12, seed=3, scale=1.0).double().sign()
    network = to_scores((OPERATIONS | POSITIVE)[name])
    multiplier = deeplift(network, item, reference)[0] / (item - reference)
    if name == "no gradients":
        expected = item.exp() * (1 + item) + 1
        expected = expected * torch.linspace(1, 2, 48).double().reshape(4, 12)
    else:
        leaf = item.clone().requires_grad_()
        (expected,) = torch.autograd.grad(network(leaf).sum(), leaf)
    assert torch.allclose(multiplier, expected, rtol=1e-4, atol=1e-4)


def test_rows_do_not_influence_each_other():
    item, reference = pair(3, 4, 12)
    network = to_scores(lambda x: graph_pool(TRANSFORMER(x)))
    together = deeplift(network, item, reference)[0]
    alone = [deeplift(network, item[i : i + 1], reference[i : i + 1])[0] for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), **EXACT)


def test_an_input_that_does_not_count_gets_nothing():
    item, reference = pair(2, 3)
    contributions, change = deeplift(lambda x: x[:, 0].exp(), item, reference)
    assert (contributions[:, 1:] == 0).all()
    assert torch.allclose(contributions[:, 0], change, **EXACT)
    contributions, change = deeplift(lambda x: torch.ones(2), item, reference)
    assert (contributions == 0).all()
    assert (change == 0).all()


# ------------------------------------------------------------------ the maps themselves


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-4, 4e-3, 6e-3, 0.1, 3.0])
@pytest.mark.parametrize("function", [F.gelu, F.selu, torch.sigmoid, torch.tanh, F.silu])
def test_slopes_are_accurate_in_single_precision(function, gap):
    a = torch.linspace(-4, 4, 40)
    r = a + gap
    kinks = (0.0,) if function is F.selu else ()
    slope = maps.smooth_secant(function, a, r, kinks=kinks)
    a, r = a.double(), r.double()
    expected = maps.derivative(function, (a + r) / 2)
    if gap > 1e-4:
        expected = (function(a) - function(r)) / torch.where(a == r, 1, a - r)
    # 2e-4: a difference of values near 4 in float32 errs by 5e-7, over a gap of 5e-3
    assert torch.allclose(slope.double(), expected, atol=2e-4)


def test_a_kink_between_close_ends_counts():
    a, r = torch.tensor([2e-3]), torch.tensor([-1e-3])
    expected = (F.selu(a.double()) - F.selu(r.double())) / (a - r).double()
    slope = maps.smooth_secant(F.selu, a, r, kinks=(0.0,))
    # the slope is 1.05 on the right, 1.76 on the left and half of that between
    assert torch.allclose(slope.double(), expected, rtol=1e-4)
    assert not torch.allclose(slope, maps.smooth_secant(F.selu, a, r), rtol=1e-2)


def test_the_softmax_map_is_its_jacobian_at_the_logarithmic_mean():
    a, r = pair(1, 5)
    rho = [
        (p - q) / math.log(p / q)
        for p, q in zip(a.softmax(1)[0].tolist(), r.softmax(1)[0].tolist(), strict=True)
    ]
    rho = torch.tensor(rho, dtype=a.dtype)
    jacobian = rho.diag() - rho.outer(rho) / rho.sum()
    change = noise(1, 5, seed=4).double()
    assert torch.allclose(maps.softmax_change(change, a, r, 1)[0], jacobian @ change[0], **EXACT)
    # a constant added to all scores is nothing to a softmax
    shifted = maps.softmax_change(change, a + 3, r - 5, 1)
    assert torch.allclose(shifted, maps.softmax_change(change, a, r, 1), **EXACT)


def test_softmax_of_far_and_masked_scores_stays_finite():
    item = torch.tensor([[900.0, -900.0, 0.0, -1.0]])
    masked = torch.tensor([False, False, False, True])
    network = to_scores(lambda x: x.masked_fill(masked, -math.inf).softmax(1))
    contributions, change = deeplift(network, item, -item)
    assert contributions.isfinite().all()
    assert torch.allclose(contributions.sum(1), change, atol=1e-5)
    assert contributions[0, 3] == 0


def test_the_winner_takes_the_change_of_a_maximum():
    item, reference = torch.tensor([[5.0, 1.0, 4.0]]), torch.tensor([[2.0, 3.0, 4.0]])
    # 5 - 4 = 1 goes to the first, which is the maximum of the higher end and changes by 3
    assert deeplift(lambda x: x.amax(1), item, reference)[0].tolist() == [[1.0, 0.0, 0.0]]
    assert deeplift(lambda x: x.amax(1), reference, item)[0].tolist() == [[-1.0, 0.0, 0.0]]


def test_a_change_of_choice_is_spread_by_squared_change():
    item = torch.tensor([[[3.0, 1.0]]]).double()
    reference = torch.tensor([[[0.0, 2.0]]]).double()
    # first of the sorted: 3 - 2. Mean of both choices: (3 - 0)/2 for one, (1 - 2)/2 for the other;
    # the choice itself adds ((3 + 0) - (1 + 2))/2 = 0
    result = deeplift(lambda x: x.sort(-1, descending=True).values[:, 0, 0], item, reference)
    assert torch.allclose(result[0], torch.tensor([[[1.5, -0.5]]]).double(), **EXACT)
    # with 4 for 3: ((4 + 0) - (1 + 2))/2 = 1/2, of which 16/17 to the first
    item[..., 0] = 4
    result = deeplift(lambda x: x.sort(-1, descending=True).values[:, 0, 0], item, reference)
    expected = torch.tensor([[[2 + 8 / 17, -0.5 + 0.5 / 17]]], dtype=torch.float64)
    assert torch.allclose(result[0], expected, **EXACT)


# ------------------------------------------------------------------ what has no rule


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        (lambda x: torch.fft.rfft(x).angle(), "angle"),
        (lambda x: x.cumprod(-1), "cumprod"),
        (lambda x: F.dropout(x), "dropout|bernoulli"),
        (lambda x: x * (x > 0).to(x.dtype), "hard decision"),
        (lambda x: x.argmax(1).to(x.dtype), "hard decision"),
        (lambda x: torch.arange(12.0).double().repeat(3, 4, 1).copy_(x), "new_zeros"),
        (lambda x: x * float(x.sum()), "into Python"),
        (lambda x: x[x > 0].sum() * torch.ones(3, 2).double(), "index|shape"),
        (lambda x: x ** x.abs(), "pow"),
        (lambda x: torch.div(x, x.abs() + 1, rounding_mode="floor"), "rounds"),
    ],
)
def test_an_operation_without_a_rule_is_an_error(operation, told):
    item, reference = pair(3, 4, 12)
    with pytest.raises(RuleError, match=told):
        deeplift(to_scores(operation), item, reference)


def test_decisions_that_agree_are_constants():
    item, reference = pair(2, 5, positive=True)
    contributions, change = deeplift(lambda x: (x * (x > 0).double()).sum(1), item, reference)
    assert torch.allclose(contributions, item - reference, **EXACT)
    assert torch.allclose(contributions.sum(1), change, **EXACT)


def test_a_contrast_is_nothing_behind_its_pass():
    kept = []

    def network(x):
        kept.append(x)
        return x.sum(1)

    deeplift(network, *pair(2, 3))
    with pytest.raises(RuleError, match="is over"):
        kept[0].exp()


def test_a_contrast_says_what_it_is():
    assert repr(Contrast(torch.ones(2), torch.zeros(2), torch.ones(2))).startswith("Contrast((2,)")


# ------------------------------------------------------------------ detectors


class Plain(nn.Module):
    """Modules that captum knows, each once, none next to another: its answer is complete."""

    labels = ("bonafide", "spoof")

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv1d(1, 6, 9, stride=2),
                nn.ReLU(),
                nn.Conv1d(6, 6, 3),
                nn.MaxPool1d(3),
                nn.Conv1d(6, 6, 5, bias=False),
                nn.Tanh(),
                nn.Conv1d(6, 4, 3),
                nn.LeakyReLU(0.1),
                nn.AdaptiveAvgPool1d(2),
                nn.Flatten(),
                nn.Linear(8, 2),
            )

    def forward(self, wave):
        return self.layers(10 * wave[:, None])


class Modern(nn.Module):
    """What captum passes over: GELU, SELU, SiLU, LayerNorm, softmax, products, functions."""

    labels = ("spoof", "bonafide")

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv1d(1, 8, 16, stride=8)
            self.norm = nn.BatchNorm1d(8)
            self.selu = nn.SELU(inplace=True)
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True)
            self.gate = nn.Sequential(nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 8), nn.Sigmoid())
            self.head = nn.Linear(16, 2)
            nn.init.normal_(self.norm.running_mean)

    def forward(self, wave):
        x = self.selu(self.norm(self.conv(20 * wave[:, None])))
        x = self.selu(F.max_pool1d(x, 2)).transpose(1, 2)
        x = self.layer(x)
        x = x * self.gate(x)
        weights = torch.softmax(x.mean(2, keepdim=True), dim=1)
        return self.head(torch.cat([(weights * x).sum(1), x.abs().amax(1)], dim=1))


def explainer(detector, **options):
    return DeepSHAP(detector.eval(), stft=Stft(STFT), **options)


WAVES = noise(2, 200, seed=5, scale=0.3)
REFERENCES = [noise(n, seed=n, scale=0.3) for n in (200, 150, 260)]


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("references", [None, REFERENCES])
def test_a_map_sums_to_the_change_of_the_logit(references, scale):
    method = explainer(Modern(), scale=scale, references=references)
    result, delta = method.attribute(WAVES)
    assert result.shape == (2, *Stft(STFT).axes(200).shape)
    # the definition, by hand
    wrapper = method.plane.wrapper
    value, phase, length = wrapper.split(WAVES)
    others = [torch.full_like(value, wrapper.silence)]
    if references is not None:
        rows = [r.repeat(2)[:200].expand(2, -1) for r in references]
        others = [wrapper.split(row)[0] for row in rows]
    with torch.no_grad():
        scores = [wrapper(other, phase, length)[:, 0] for other in others]
        change = wrapper(value, phase, length)[:, 0] - torch.stack(scores).mean(0)
    # rounding of float32 along a dozen layers; the logits change by 0.1 to 1
    assert change.abs().min() > 0.02
    assert torch.allclose(result.sum((1, 2)), change, atol=2e-5)
    assert torch.allclose(delta, result.sum((1, 2)) - change, atol=2e-6)


def test_captums_rules_miss_the_sum_that_full_ones_reach():
    detector = Modern()
    # captum refuses modules that run twice; GELU and SELU it does not see at all
    full, captum = (explainer(detector, rules=rules).attribute(WAVES) for rules in RULE_SETS)
    assert full.delta.abs().max() < 2e-5
    assert captum.delta.abs().max() > 100 * full.delta.abs().max()


RULE_SETS = ["full", "captum"]


@pytest.mark.parametrize("references", [None, REFERENCES])
def test_both_rule_sets_agree_where_captum_is_complete(references):
    detector, waves = Plain().double(), WAVES.double()
    rows = None if references is None else [row.double() for row in references]
    assert check_rules(detector, rules="captum", wave=waves[:1], stft=Stft(STFT)) == []
    full, captum = (
        explainer(detector, rules=rules, references=rows).attribute(waves) for rules in RULE_SETS
    )
    # captum takes the gradient below differences of 1e-10; maps are rounded to float32
    assert torch.allclose(full.map, captum.map, rtol=1e-6, atol=1e-9)
    assert full.map.abs().max() > 1e-3
    assert full.delta.abs().max() < 1e-12
    assert captum.delta.abs().max() < 1e-8


def test_captums_rules_are_deepliftshaps():
    from captum.attr import DeepLiftShap

    method = explainer(Plain(), rules="captum", references=REFERENCES)
    wrapper = method.plane.wrapper
    value, phase, length = wrapper.split(WAVES[:1])
    rows = torch.stack([r.repeat(2)[:200] for r in REFERENCES])
    with pytest.warns(UserWarning, match="hooks"):
        expected = DeepLiftShap(wrapper).attribute(
            value, wrapper.split(rows)[0], target=1, additional_forward_args=(phase, length)
        )
    # the same numbers, but for the rounding of convolutions by the batch's size
    assert torch.allclose(method(WAVES[:1]), expected, atol=1e-6)


@pytest.mark.parametrize("rules", RULE_SETS)
def test_chunks_and_batches_change_no_number(rules):
    detector = Plain() if rules == "captum" else Modern()
    maps = [
        explainer(detector, rules=rules, references=REFERENCES, chunk=chunk)(WAVES)
        for chunk in (None, 2, 3)
    ]
    assert torch.allclose(maps[0], maps[1], atol=1e-6)
    assert torch.allclose(maps[0], maps[2], atol=1e-6)
    method = explainer(detector, rules=rules, references=REFERENCES)
    assert torch.equal(method(WAVES.flip(0)).flip(0), maps[0])


def test_a_target_is_a_name_or_an_index():
    detector = Plain()
    maps = {target: explainer(detector, target=target)(WAVES) for target in ("spoof", 1, 0)}
    assert torch.equal(maps["spoof"], maps[1])
    assert torch.equal(explainer(detector, target="bonafide")(WAVES), maps[0])
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)


# ------------------------------------------------------------------ the check before


def test_full_rules_know_every_step_of_the_detectors():
    for detector in (Plain(), Modern()):
        for scale in ("linear", "log"):
            options = {"scale": scale, "wave": WAVES[:1], "stft": Stft(STFT)}
            assert check_rules(detector, **options) == []


def test_the_check_names_what_captum_passes_over():
    gaps = check_rules(Modern(), rules="captum", wave=WAVES[:1], stft=Stft(STFT))
    told = [str(gap) for gap in gaps]
    for part in (
        "selu: elu (captum has no rule for SELU)",
        "gate.0: native_layer_norm (captum has no rule for LayerNorm)",
        "gate.1: silu (captum has no rule for SiLU)",
        "Modern: _softmax (captum sees modules alone, and this runs in the forward of Modern)",
        "Modern: mul (captum",
        "Modern: max_pool2d_with_indices (captum",
    ):
        assert [line for line in told if part in line], (part, told)
    assert not [gap for gap in gaps if gap.module == "gate.3"]  # a Sigmoid, once
    # a step that is spelled out in others is one step
    assert len([gap for gap in gaps if gap.module == "gate.0"]) == 1
    assert not [line for line in told if "batch_norm" in line or "convolution" in line]
    logs = check_rules(Plain(), rules="captum", scale="log", wave=WAVES[:1], stft=Stft(STFT))
    assert {(gap.module, gap.operation) for gap in logs} >= {("RawWrapper", "exp")}


class Wired(nn.Module):
    """Two linear layers around one wiring of modules."""

    labels = ("spoof", "bonafide")

    def __init__(self, *modules, forward=None):
        super().__init__()
        self.parts, self.path = nn.ModuleList(modules), forward
        self.first, self.last = make(nn.Conv1d(1, 6, 9, stride=4)), make(nn.Linear(6, 2))

    def forward(self, wave):
        x = self.first(4 * wave[:, None]) - 0.3
        if self.path is not None:
            x = self.path(x, *self.parts)
        else:
            for part in self.parts:
                x = part(x)
        shares = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        return self.last((x * shares).mean(-1))


WRONG = {
    "next to another": (
        (nn.Tanh(), nn.Sigmoid()),
        "parts.0: Tanh (captum gives it the plain gradient of parts.1, which takes its result "
        "directly)",
    ),
    "next to a pool": (
        (nn.ReLU(), nn.Identity(), nn.MaxPool1d(3)),
        "parts.0: ReLU (captum gives it the plain gradient of parts.2, which takes its result "
        "directly)",
    ),
    "beside a skip": (
        (nn.Tanh(),),
        "parts.0: Tanh (captum drops the gradient of whatever else takes its input)",
    ),
    "a softmax": (
        (nn.Softmax(-1),),
        "parts.0: Softmax (captum's rule for Softmax does not add up)",
    ),
    "overlapping windows": (
        (nn.MaxPool1d(3, 2),),
        "parts.0: MaxPool1d (captum's rule for MaxPool1d needs windows side by side)",
    ),
    "a class that it does not know": ((nn.SELU(),), "parts.0: elu (captum has no rule for SELU)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_check_names_is_what_captum_gets_wrong(name):
    parts, told = WRONG[name]
    skip = (lambda x, tanh: tanh(x) + x) if name == "beside a skip" else None
    detector = Wired(*parts, forward=skip)
    gaps = check_rules(detector, rules="captum", wave=WAVES[:1].double(), stft=Stft(STFT))
    assert [str(gap) for gap in gaps] == [told]
    full, captum = (
        explainer(detector, rules=rules, references=REFERENCES[:1]).attribute(WAVES[:1].double())
        for rules in RULE_SETS
    )
    assert abs(full.delta) < 1e-12
    # were captum mended, the check would have to be mended too
    assert abs(captum.delta) > 1e-4


@pytest.mark.parametrize(
    "part",
    [
        *(nn.ReLU(), nn.ELU(), nn.LeakyReLU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus()),
        *(nn.MaxPool1d(3), nn.MaxPool1d(2, 3)),
    ],
)
def test_a_clean_bill_is_a_complete_captum(part):
    detector = Wired(part)
    wave = WAVES[:1].double()
    assert check_rules(detector, rules="captum", wave=wave, stft=Stft(STFT)) == []
    full, captum = (
        explainer(detector, rules=rules, references=REFERENCES[:1]).attribute(wave)
        for rules in RULE_SETS
    )
    assert torch.allclose(full.map, captum.map, rtol=1e-6, atol=1e-9)
    assert abs(captum.delta) < 1e-8


class Twice(Plain):
    def forward(self, wave):
        return super().forward(self.layers[1](wave))


def test_a_module_that_runs_twice_stops_captum_and_is_named():
    (gap,) = check_rules(Twice(), rules="captum", wave=WAVES[:1], stft=Stft(STFT))
    assert (gap.module, gap.reason) == ("layers.1", "ReLU runs more than once")
    detector = Twice().eval()
    with pytest.raises(RuleError, match="more than once"):
        explainer(detector, rules="captum")(WAVES)
    assert explainer(detector).attribute(WAVES).delta.abs().max() < 1e-5


class Odd(Plain):
    def forward(self, wave):
        return super().forward(wave.cumprod(1)) * wave.sum().item()


def test_the_check_names_steps_without_a_rule_and_goes_on():
    gaps = check_rules(Odd(), wave=WAVES[:1], stft=Stft(STFT))
    assert [gap.operation for gap in gaps] == ["cumprod", "_local_scalar_dense"]
    assert {gap.module for gap in gaps} == {"Odd"}
    with pytest.raises(RuleError, match="cumprod in Odd"):
        explainer(Odd())(WAVES)


# ------------------------------------------------------------------ the model as it was found


class Failing(Modern):
    """Fails in the middle of a pass, after some passes went well."""

    passes = 0

    def forward(self, wave):
        result = super().forward(wave)
        Failing.passes += 1
        if Failing.passes > 1:
            raise RuntimeError("failed in the middle")
        return result


def state(module):
    """All that an explainer might change."""
    return [
        (
            part.training,
            sorted(vars(part)),
            {name: dict(v) for name, v in vars(part).items() if "hooks" in name and v},
            [(p.requires_grad, p.grad, p.detach().clone()) for p in part.parameters(False)],
            [buffer.clone() for buffer in part.buffers(False)],
        )
        for part in module.modules()
    ]


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


@pytest.mark.parametrize("rules", RULE_SETS)
@pytest.mark.parametrize("kind", [Plain, Modern, Failing, Twice, Odd])
def test_the_detector_is_left_as_it_was_found(kind, rules):
    detector = kind()
    first, *others = detector.parameters()
    first.requires_grad_(False)
    others[0].grad = torch.ones_like(others[0])
    next(detector.children()).eval()
    detector.register_forward_hook(lambda *_: None)
    before = state(detector)
    Failing.passes = 0
    with contextlib.suppress(RuntimeError, RuleError):
        DeepSHAP(detector, stft=Stft(STFT), rules=rules)(WAVES)
    assert same(before, state(detector))
    with contextlib.suppress(RuntimeError):
        check_rules(detector, rules=rules, wave=WAVES[:1], stft=Stft(STFT))
    assert same(before, state(detector))


def test_what_others_leave_on_a_module_is_taken_off():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = state(module)

    def litter():
        with as_found(module):
            assert not module[1].training
            assert not module[0].weight.requires_grad
            module[1].register_forward_hook(lambda *_: None)
            module[1].input = torch.ones(2)
            raise KeyError

    with pytest.raises(KeyError):
        litter()
    assert same(before, state(module))


# ------------------------------------------------------------------ real detectors


def tiny(kind):
    """A small detector with random weights, in float64."""
    from dataclasses import replace

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "AASIST":
            from specsegdiff.models.aasist import AASIST

            return AASIST.from_preset("tiny", n_samples=4_000).double().eval()
        pytest.importorskip("transformers", reason="transformers is not installed")
        from specsegdiff.models.wav2vec2_aasist import PRESETS, Wav2Vec2AASIST

        stable = kind == "stable Wav2Vec2AASIST"
        backbone = replace(
            PRESETS["tiny"].backbone,
            do_stable_layer_norm=stable,
            feat_extract_norm="layer" if stable else "group",
            num_hidden_layers=2,
        )
        model = Wav2Vec2AASIST.from_preset(
            "tiny", backbone=backbone, normalise=stable, n_samples=4_000
        )
        return model.double().eval()


@pytest.mark.parametrize("kind", ["AASIST", "stable Wav2Vec2AASIST", "early Wav2Vec2AASIST"])
def test_detectors_are_explained_to_rounding(kind):
    detector, wave = tiny(kind), noise(1, 4_000, seed=1).double()
    stft = Stft(StftConfig(n_fft=256, hop=64))
    options = {"stft": stft, "scale": "log"}
    assert check_rules(detector, wave=wave, **options) == []
    passed_over = {
        gap.operation for gap in check_rules(detector, rules="captum", wave=wave, **options)
    }
    steps = {"elu", "max", "topk", "mul"} | (
        {"gelu", "native_layer_norm"} if "W" in kind else set()
    )
    assert passed_over >= steps
    references = [noise(4_000, seed=2, scale=0.05).double()]
    result, delta = DeepSHAP(detector, references=references, **options).attribute(wave)
    change = abs(float(result.double().sum()))
    # float64 through some hundred steps, relative to what the logit changes by
    assert change > 1e-6
    assert abs(float(delta)) < 1e-9 * change


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs the published weights in ../shared")
def test_the_published_aasist_is_explained_to_rounding():
    from specsegdiff.models.aasist import AASIST

    detector = AASIST.from_published(PUBLISHED / "AASIST-L")
    assert check_rules(detector) == []
    result, delta = DeepSHAP(detector).attribute(noise(1, 16_000, seed=1, scale=0.05))
    # logits of size 1 to 10, float32 through some hundred steps
    assert abs(float(delta)) < 1e-3
    assert abs(float(result.sum() - delta)) > 0.1


# ------------------------------------------------------------------ bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rules": "some"}, "'full' or 'captum'"),
        ({"references": []}, "k >= 1"),
        ({"references": 3}, "int"),
        ({"chunk": 0}, "chunk"),
        ({"chunk": True}, "chunk"),
        ({"target": "real"}, "labels"),
        ({"target": -1}, "labels"),
        ({"scale": "mel"}, "scale"),
    ],
)
def test_bad_settings_are_config_errors(options, told):
    with pytest.raises(ConfigError, match=told):
        explainer(Plain(), **options)


def test_bad_references_are_shape_errors():
    for references in ([torch.ones(2, 3)], [torch.ones(3, dtype=torch.long)], [torch.ones(0)]):
        with pytest.raises(ShapeError):
            explainer(Plain(), references=references)
    with pytest.raises(ShapeError, match="finite"):
        explainer(Plain(), references=[torch.tensor([math.nan])])


def test_a_check_of_unknown_rules_is_a_config_error():
    with pytest.raises(ConfigError, match="'full' or 'captum'"):
        check_rules(Plain(), rules="lrp")
