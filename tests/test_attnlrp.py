"""AttnLRP: every rule against its equation, whole networks against lxt and zennit, and the laws.

Sums are compared in float64, where rounding is 1e-16 of the relevance that cancels; gates and
attention divide by small numbers, so that this can be a million times the logit, hence 1e-7.
"""

import gc
import importlib
import importlib.util
import sys
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines import lrp as lrp_module
from baselines.attnlrp import AttnLRP
from baselines.contrast import RuleError
from baselines.lrp import propagate
from baselines.lrp_rules import LRPRules
from specsegdiff.errors import ConfigError, DependencyError, ShapeError
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.models.aasist import AASIST

EXACT = LRPRules(epsilon=0, gamma_conv=0, gamma_linear=0)
STFT = Stft(StftConfig(n_fft=256, hop=64))


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relevance(function, x, received_per_value, rules=EXACT):
    """Relevance of x, where each value z of the result receives z times a number."""

    def score(x):
        return (function(x) * received_per_value).sum()[None]

    return propagate(score, x, rules=rules)[0]


def stabilised(z, epsilon):
    return z + epsilon * torch.where(z < 0, -1.0, 1.0)


# ------------------------------------------------------------------ one rule at a time


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_linear_layers_follow_the_epsilon_rule(epsilon):
    x, weight, bias, share = draws(4), draws(3, 4, seed=1), draws(3, seed=2), draws(3, seed=3)
    rules = LRPRules(epsilon=epsilon, gamma_conv=0, gamma_linear=0)
    z = weight @ x + bias
    slow = [
        sum(x[j] * weight[k, j] / stabilised(z[k], epsilon) * z[k] * share[k] for k in range(3))
        for j in range(4)
    ]
    for function in (
        lambda x: F.linear(x, weight, bias),
        lambda x: torch.addmv(bias, weight, x) if epsilon == 0 else F.linear(x, weight, bias),
        lambda x: F.conv1d(x[None, :, None], weight[:, :, None], bias)[0, :, 0],
    ):
        assert torch.allclose(relevance(function, x, share, rules), torch.stack(slow))


ELEMENT_WISE = [
    F.gelu,
    F.silu,
    F.selu,
    F.relu,
    F.elu,
    F.softplus,
    F.softsign,
    torch.tanh,
    torch.sigmoid,
    torch.exp,
    torch.square,
    nn.LeakyReLU(0.1),
    nn.Hardswish(),
    lambda x: x**3,
    lambda x: 2**x,
    lambda x: x.clamp(-1, 1),
    lambda x: nn.SELU(inplace=True)(x * 1),
    lambda x: (x * 1).tanh_(),
]


@pytest.mark.parametrize("function", ELEMENT_WISE)
def test_relevance_passes_element_wise_functions_unchanged(function):
    x, share = draws(3, 5), draws(3, 5, seed=1)
    assert torch.allclose(relevance(function, x, share), function(x) * share)


def test_softmax_is_expanded_at_its_scores():
    x, share = draws(2, 5), draws(2, 5, seed=1)
    s = x.softmax(-1)
    received = s * share
    expected = x * (received - s * received.sum(-1, keepdim=True))  # Prop. 3.1
    for function in (nn.Softmax(-1), lambda x: F.softmax(x, -1), lambda x: x.softmax(-1)):
        assert torch.allclose(relevance(function, x, share), expected)


def slow_norm(x, share, weight, eps=1e-5):
    """Relevance through ``weight * (x - mean) / σ`` of rows, σ constant, bin by bin."""
    rows = []
    for row, received in zip(x, share, strict=True):
        n, deviation = len(row), (row.var(correction=0) + eps).sqrt()
        rows.append(
            [
                row[j]
                * sum(
                    (float(j == k) - 1 / n) * weight[k] / deviation * received[k] for k in range(n)
                )
                for j in range(n)
            ]
        )
    return torch.tensor(rows, dtype=x.dtype)


def test_norms_hold_their_deviation_constant():
    x, share, weight, bias = draws(3, 6), draws(3, 6, seed=1), draws(6, seed=2), draws(6, seed=3)
    expected = slow_norm(x, share, weight)
    assert torch.allclose(
        relevance(lambda x: F.layer_norm(x, (6,), weight, bias), x, share), expected
    )

    def by_hand(x):
        variance = x.var(-1, correction=0, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt() * weight + bias

    assert torch.allclose(relevance(by_hand, x, share), expected)
    # two groups of two channels are two layer norms; one group a channel is an instance norm
    ones, grouped = torch.ones(12), draws(2, 4, 3)
    flat, received = grouped.reshape(4, 6), draws(4, 6, seed=1)
    for function, rows in (
        (lambda x: F.group_norm(x, 2), 4),
        (lambda x: F.instance_norm(x), 8),
    ):
        assert torch.allclose(
            relevance(function, grouped, received.reshape(2, 4, 3)).reshape(rows, -1),
            slow_norm(flat.reshape(rows, -1), received.reshape(rows, -1), ones),
        )


def test_rms_norm_scales_by_a_constant():
    x, share, weight = draws(3, 6), draws(3, 6, seed=1), draws(6, seed=2)
    expected = F.rms_norm(x, (6,), weight, 1e-5) * share
    by_hand = lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight  # noqa: E731
    for function in (lambda x: F.rms_norm(x, (6,), weight, 1e-5), by_hand):
        assert torch.allclose(relevance(function, x, share), expected)


def test_spreads_pass_what_they_get():
    x, share = draws(3, 6), draws(3, seed=1)
    for spread in (lambda x: x.std(-1), lambda x: x.var(-1), lambda x: x.norm(dim=-1)):
        result = relevance(spread, x, share).sum(-1)
        assert torch.allclose(result, spread(x) * share)


def test_batch_norm_is_affine_in_evaluation():
    norm = nn.BatchNorm1d(4).double().eval()
    norm.running_mean.copy_(draws(4))
    norm.running_var.copy_(draws(4, seed=1).square() + 0.1)
    x, share = draws(2, 4, 3, seed=2), draws(2, 4, 3, seed=3)
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    expected = x * scale[:, None] * share
    assert torch.allclose(relevance(norm, x, share), expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_factors_of_a_matrix_product_share_alike(epsilon):
    x, share = draws(12), draws(2, 2, seed=1)
    rules = LRPRules(epsilon=epsilon, gamma_conv=0, gamma_linear=0)
    a, b = x[:6].reshape(2, 3), x[6:].reshape(3, 2)
    z = a @ b
    received = z * share / stabilised(2 * z, epsilon)
    slow_a = [
        [sum(a[j, i] * b[i, p] * received[j, p] for p in range(2)) for i in range(3)]
        for j in range(2)
    ]
    slow_b = [
        [sum(a[j, i] * b[i, p] * received[j, p] for j in range(2)) for p in range(2)]
        for i in range(3)
    ]
    expected = torch.cat([torch.tensor(slow_a).flatten(), torch.tensor(slow_b).flatten()])
    for product in (
        lambda a, b: a @ b,
        lambda a, b: torch.einsum("ij,jk->ik", a, b),
        lambda a, b: torch.bmm(a[None], b[None])[0],
        lambda a, b: F.linear(a, b.T),
    ):
        result = relevance(lambda x: product(x[:6].view(2, 3), x[6:].view(3, 2)), x, share, rules)  # noqa: B023
        assert torch.allclose(result, expected.to(x))


def test_products_share_quotients_do_not():
    x, share = draws(6) + 3, draws(3, seed=1)
    half = x[:3] * x[3:] * share / 2
    assert torch.allclose(relevance(lambda x: x[:3] * x[3:], x, share), torch.cat([half, half]))
    whole = torch.cat([x[:3] / x[3:] * share, torch.zeros(3)])
    assert torch.allclose(relevance(lambda x: x[:3] / x[3:], x, share), whole)
    assert torch.allclose(relevance(lambda x: x[:3] * (1 / x[3:]), x, share), whole)


def test_sums_share_by_value():
    x, share = draws(6), draws(3, seed=1)
    rules = LRPRules(epsilon=0.1, gamma_conv=0, gamma_linear=0)
    z = x[:3] + x[3:]
    per_value = z * share / stabilised(z, 0.1)
    expected = torch.cat([x[:3] * per_value, x[3:] * per_value])
    assert torch.allclose(relevance(lambda x: x[:3] + x[3:], x, share, rules), expected)


def test_winners_take_all():
    x, share = draws(2, 6), draws(2, 2, seed=1)
    values, places = x.topk(2)
    expected = torch.zeros_like(x).scatter(1, places, values * share)
    assert torch.allclose(relevance(lambda x: x.topk(2).values, x, share), expected)
    pooled = relevance(lambda x: nn.MaxPool1d(3)(x), x, share)
    assert torch.allclose(pooled.reshape(2, 2, 3).sum(-1), nn.MaxPool1d(3)(x) * share)
    assert (pooled != 0).sum() == 4
    gated = relevance(lambda x: F.glu(x), x, draws(2, 3, seed=1))
    assert torch.allclose(gated[:, :3], gated[:, 3:])


def test_fused_attention_is_the_open_one():
    x, share = draws(3, 2, 5, 4), draws(2, 5, 4, seed=1)
    hidden = torch.ones(5, 5, dtype=torch.bool).tril()

    def by_hand(x):
        scores = x[0] @ x[1].transpose(1, 2) / 2
        return scores.masked_fill(~hidden, -torch.inf).softmax(-1) @ x[2]

    expected = relevance(by_hand, x, share)
    assert expected.isfinite().all()
    for fused in (
        lambda x: F.scaled_dot_product_attention(*x, is_causal=True),
        lambda x: F.scaled_dot_product_attention(*x, attn_mask=hidden),
    ):
        assert torch.allclose(fused(x), by_hand(x))
        assert torch.allclose(relevance(fused, x, share), expected)


def test_functions_written_in_python_are_opened():
    attention = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64).eval()
    x, share = draws(1, 5, 4), draws(1, 5, 4, seed=1)

    def by_hand(x):
        parts = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        q, k, v = (part.view(1, 5, 2, 2).transpose(1, 2) for part in parts)
        mixed = ((q / 2**0.5) @ k.transpose(2, 3)).softmax(-1) @ v
        return attention.out_proj(mixed.transpose(1, 2).reshape(1, 5, 4))

    expected = relevance(by_hand, x, share)
    for weights in (False, True):
        function = lambda x: attention(x, x, x, need_weights=weights)[0]  # noqa: B023, E731
        assert torch.allclose(function(x), by_hand(x))
        assert torch.allclose(relevance(function, x, share), expected)


def test_functions_in_place_are_those_out_of_place():
    weight, other = draws(4, 4), draws(3, 4, seed=1)

    def in_place(x):
        x = x @ weight
        x += F.selu(x * 2, inplace=True)
        x.mul_(other).sub_(1).div_(x.abs().sum(-1, keepdim=True))
        x[:, :2] = 0
        return x.relu_()

    def out_of_place(x):
        x = x @ weight
        x = x + F.selu(x * 2)
        x = x * other - 1
        x = x / x.abs().sum(-1, keepdim=True)
        return torch.cat([torch.zeros(3, 2), x[:, 2:]], 1).relu()

    x, share = draws(3, 4, seed=2), draws(3, 4, seed=3)
    assert torch.allclose(in_place(x), out_of_place(x))
    assert torch.allclose(relevance(in_place, x, share), relevance(out_of_place, x, share))


def test_constant_weights_get_nothing():
    x, share = draws(6), draws(3, seed=1)
    rules = LRPRules(epsilon=0, gamma_conv=0, gamma_linear=0, attention="constant")
    for weigh in (torch.sigmoid, lambda x: x.softmax(0)):
        expected = torch.cat([x[:3] * weigh(x[3:]) * share, torch.zeros(3)])
        result = relevance(lambda x: x[:3] * weigh(x[3:]), x, share, rules)  # noqa: B023
        assert torch.allclose(result, expected)


# ------------------------------------------------------------------ other libraries


def lxt_rules():
    """The rules of lxt for Llama. Its package also imports a BERT that newer transformers lack the
    parts for, so its folders are entered past their ``__init__``."""
    found = importlib.util.find_spec("lxt")
    if found is None:
        pytest.skip("lxt is not installed")
    folder = Path(next(iter(found.submodule_search_locations)))
    stubs = {}
    for name in ("lxt.efficient", "lxt.efficient.models"):
        stubs[name] = ModuleType(name)
        stubs[name].__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    return stubs


LXT = [-0.176889, 0.038371, -0.146675, -0.076101, -0.028046, 0.091908, 0.307697]
"""Relevance of each token of `llama`'s sequence by lxt 2.1 with transformers 5.23, which
`test_a_transformer_agrees_with_lxt` computes anew where lxt is installed."""


def llama():
    """A Llama with weights that hang on no library, a sequence, and the score that is explained."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.llama import modeling_llama

    config = modeling_llama.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=11,
        attn_implementation="eager",
    )
    model = modeling_llama.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            drawn = draws(*weight.shape, seed=place)
            weight.copy_(drawn / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 1 + drawn / 10)

    def score(x):
        return model(inputs_embeds=x, use_cache=False).logits[:, -1, 3]

    return model, draws(1, 7, 16).float(), score


def test_a_transformer_has_the_relevance_that_lxt_gave_it():
    model, embedding, score = llama()
    ours, logit = propagate(score, embedding, rules=EXACT, root=model)
    assert torch.allclose(logit, score(embedding), atol=1e-6)
    # float32 through two layers
    assert torch.allclose(ours.sum(dim=-1)[0], torch.tensor(LXT), rtol=1e-3, atol=1e-5)


def test_a_transformer_agrees_with_lxt(monkeypatch):
    model, embedding, score = llama()
    from transformers.models.llama import modeling_llama

    for name, stub in lxt_rules().items():
        monkeypatch.setitem(sys.modules, name, stub)
    rules = importlib.import_module("lxt.efficient.models.llama").attnLRP
    ours, _ = propagate(score, embedding, rules=EXACT, root=model)
    # lxt patches classes and the module for good: what it changes is put back afterwards
    for target, patch in rules.items():
        if isinstance(target, type):
            monkeypatch.setattr(target, "forward", target.forward)
            assert patch(target)
    wrap = importlib.import_module("lxt.efficient.patches").wrap_attention_forward
    plain = modeling_llama.eager_attention_forward
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", wrap(plain))
    leaf = embedding.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    theirs = embedding * gradient
    size = float(theirs.abs().max())
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * size)
    assert torch.allclose(theirs.sum(dim=-1)[0], torch.tensor(LXT), rtol=1e-3, atol=1e-5)
    monkeypatch.undo()
    (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    assert float((embedding * gradient - theirs).abs().max()) > 0.01 * size


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 4, 5, stride=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(4, 6, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).double()


@pytest.mark.parametrize("gamma", [0.0, 10.0])
def test_a_convolutional_network_agrees_with_zennit(gamma):
    pytest.importorskip("zennit", reason="zennit is not installed")
    from zennit.rules import Epsilon, Gamma, Pass

    net, x = conv_net(), draws(2, 1, 28)
    rules = LRPRules(epsilon=1e-3, gamma_conv=gamma, gamma_linear=gamma / 100)
    handles = []
    for layer in net:
        weight = gamma if isinstance(layer, nn.Conv1d) else gamma / 100
        if isinstance(layer, nn.Conv1d | nn.Linear):
            rule = Gamma(weight, stabilizer=1e-3) if weight else Epsilon(1e-3)
        elif isinstance(layer, nn.ReLU):
            rule = Pass()
        else:
            continue
        # zennit refers to its rules weakly
        handles.append((rule, rule.register(layer)))
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    wanted = logits.detach() * torch.eye(3, dtype=torch.float64)[[1, 1]]
    (theirs,) = torch.autograd.grad(logits, leaf, wanted)
    for _, handle in handles:
        handle.remove()
    ours, logits = propagate(lambda x: net(x)[:, 1], x, rules=rules)
    assert torch.allclose(logits, net(x)[:, 1])
    assert torch.allclose(ours, theirs, atol=1e-12)


# ------------------------------------------------------------------ detectors


def without_biases(model):
    """Zero what is added to activations: biases, positions, master nodes, shifts of batch norms."""
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "position", "master", "running_mean")):
                value.zero_()
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2)
    return model


def detector(kind):
    torch.manual_seed(1)
    if kind == "aasist":
        return AASIST.from_preset("tiny").double().eval()
    pytest.importorskip("transformers", reason="transformers is not installed")
    from dataclasses import replace

    from specsegdiff.models.wav2vec2_aasist import PRESETS, Wav2Vec2AASIST

    stable = kind != "wav2vec2-group"
    backbone = replace(
        PRESETS["tiny"].backbone,
        do_stable_layer_norm=stable,
        feat_extract_norm="layer" if stable else "group",
        num_hidden_layers=2,
    )
    model = Wav2Vec2AASIST.from_preset("tiny", backbone=backbone, normalise=True).double().eval()
    model.backbone.set_attn_implementation("sdpa" if kind == "wav2vec2-fused" else "eager")
    return model


def spoof_logit(model, wave):
    with torch.no_grad():
        return float(model(wave)[0, 0])


KINDS = ["aasist", "wav2vec2", "wav2vec2-fused", "wav2vec2-group"]
RULE_SETS = {
    "epsilon": EXACT,
    "gamma": LRPRules(epsilon=0),
    "constant": LRPRules(epsilon=0, gamma_conv=0, gamma_linear=0, attention="constant"),
}


def needs(rules):
    if rules.needs_zennit:
        pytest.importorskip("zennit", reason="zennit is not installed")
    return rules


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_and_what_is_absorbed_sum_to_the_logit(kind):
    model, wave = detector(kind), draws(1, 5_000) / 10
    lrp = AttnLRP(model, stft=STFT, rules=needs(LRPRules()))
    result, flows = lrp.attribute(wave), lrp.flows(wave)
    absorbed = sum(flow.absorbed for flow in flows)
    logit = spoof_logit(model, wave)
    assert float(result.map.sum()) + absorbed == pytest.approx(logit, abs=1e-7)
    assert float(result.delta) == pytest.approx(-absorbed, abs=1e-7)
    # what has no constant part absorbs nothing
    assert {"conv1d", "conv2d", "linear", "softmax", "matmul"} <= {flow.function for flow in flows}
    for flow in flows:
        if flow.function in ("selu", "gelu", "tanh", "sigmoid", "mul", "max_pool2d", "max"):
            assert flow.absorbed == pytest.approx(0, abs=1e-7), flow


@pytest.mark.parametrize("rules", RULE_SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_biases_every_layer_conserves(kind, rules):
    model, wave = without_biases(detector(kind)), draws(1, 5_000) / 10
    lrp = AttnLRP(model, stft=STFT, rules=needs(RULE_SETS[rules]))
    flows = lrp.flows(wave)
    for flow in flows:
        if flow.function != "softmax":
            assert flow.absorbed == pytest.approx(0, abs=1e-7), flow
    rest = sum(flow.absorbed for flow in flows if flow.function == "softmax")
    assert (rest == 0) == (rules == "constant")
    logit = spoof_logit(model, wave)
    assert float(lrp(wave).sum()) == pytest.approx(logit - rest, abs=1e-7)


def test_epsilon_takes_its_share():
    model, wave = without_biases(detector("aasist")), draws(1, 5_000) / 10
    logit, missing = spoof_logit(model, wave), []
    for epsilon in (1e-2, 1e-5, 1e-8):
        rules = LRPRules(epsilon=epsilon, gamma_conv=0, gamma_linear=0, attention="constant")
        missing.append(abs(float(AttnLRP(model, stft=STFT, rules=rules)(wave).sum()) - logit))
    assert missing[0] > missing[1] > missing[2]
    assert missing[2] < 1e-4 * abs(logit)


def test_maps_lie_on_the_axes_and_items_are_alone():
    model, waves = detector("aasist").float(), draws(3, 5_000).float() / 10
    lrp = AttnLRP(model, rules=EXACT)
    maps = lrp(waves)
    assert maps.shape == (3, *Stft().axes(5_000).shape)
    assert maps.dtype == torch.float32
    assert (maps < 0).any()
    assert (maps > 0).any()
    assert torch.equal(maps[1:2], lrp(waves[1:2]))
    assert torch.equal(AttnLRP(model, rules=EXACT, scale="log")(waves), maps)
    other = AttnLRP(model, rules=EXACT, target="bonafide")(waves)
    assert torch.equal(other, AttnLRP(model, rules=EXACT, target=1)(waves))
    assert not torch.allclose(other, maps)


def test_modes_of_gradients_change_nothing():
    model, wave = detector("aasist"), draws(1, 5_000) / 10
    lrp = AttnLRP(model, stft=STFT, rules=EXACT)
    expected = lrp(wave)
    # a function hides its weights, which ask for gradients
    hidden = AttnLRP(lambda wave: model(wave), stft=STFT, rules=EXACT, target=0)
    assert torch.equal(hidden(wave), expected)
    assert all(weight.grad is None for weight in model.parameters())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(lrp(wave.clone()), expected)


# ------------------------------------------------------------------ as it was found


def state(model):
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [
            {name: dict(value) for name, value in vars(module).items() if name.endswith("_hooks")}
            for module in model.modules()
        ],
        "methods": [set(vars(module)) for module in model.modules()],
        "weights": [(id(p), p.requires_grad, id(p.grad)) for p in model.parameters()],
        "functions": [F.softmax, F.gelu, torch.matmul, nn.Linear.forward, torch.Tensor.__mul__],
        "stack": torch.overrides._get_current_function_mode_stack(),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_the_detector_is_left_as_it_was_found(fails):
    model = detector("aasist").train()
    model.encoder[0].eval()
    model.norm.weight.requires_grad_(False)
    model.graph.out.weight.grad = torch.ones_like(model.graph.out.weight)
    model.graph.out.register_forward_hook(lambda module, args, output: output)
    if fails:

        def stop(module, args, output):
            raise ArithmeticError("stop")

        model.graph.drop.register_forward_hook(stop)
    before, values = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    lrp, wave = AttnLRP(model, stft=STFT, rules=EXACT), draws(1, 5_000) / 10
    if fails:
        for run in (lrp, lrp.flows, lrp.check):
            with pytest.raises(ArithmeticError):
                run(wave)
    else:
        # dropout and the statistics of the batch are off meanwhile
        assert torch.equal(lrp(wave), lrp(wave))
        lrp.flows(wave), lrp.check(wave)
    assert state(model) == before
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------ what has no rule


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Odd(nn.Module):
    labels = ("bonafide", "spoof")

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 2, batch_first=True)

    def forward(self, wave):
        hidden, _ = self.rnn(Doubled.apply(wave[:, :8, None]))
        return torch.log_softmax(hidden.mean(1), dim=-1)


def test_a_check_names_what_has_no_rule():
    lrp = AttnLRP(Odd(), stft=STFT, rules=EXACT)
    names = ["gru in rnn (GRU)", "log_softmax in Odd", "the autograd function Doubled"]
    assert lrp.check() == names
    with pytest.raises(RuleError, match=r"3 function.*gru in rnn \(GRU\), log_softmax in Odd"):
        lrp(draws(1, 500).float())
    model = detector("aasist")
    assert AttnLRP(model, stft=STFT, rules=EXACT).check(draws(1, 5_000)) == []
    model.selu = torch.jit.script(model.selu)
    with pytest.raises(RuleError, match=r"selu \(RecursiveScriptModule\), which is compiled"):
        AttnLRP(model, stft=STFT, rules=EXACT)(draws(1, 5_000))


def test_a_detector_without_gradients_is_refused():
    class Frozen(AASIST):
        def forward(self, wave):
            with torch.no_grad():
                return super().forward(wave)

    with pytest.raises(RuleError, match="no_grad"):
        AttnLRP(Frozen.from_preset("tiny"), rules=EXACT)(draws(1, 5_000).float())


def test_nothing_of_a_pass_is_kept(monkeypatch):
    pytest.importorskip("zennit", reason="zennit is not installed")
    kept = []

    class Watched(lrp_module._Propagation):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            kept.append(weakref.ref(self))

    monkeypatch.setattr(lrp_module, "_Propagation", Watched)
    method = AttnLRP(AASIST.from_preset("tiny"))
    method(draws(2, 5_000).float())
    method.check()
    gc.collect()
    # a graph that leads back to its pass is one that no collector sees through
    assert [run() for run in kept] == [None] * 3


def test_gamma_asks_for_zennit(monkeypatch):
    monkeypatch.setitem(sys.modules, "zennit", None)
    monkeypatch.setitem(sys.modules, "zennit.rules", None)
    model = detector("aasist")
    with pytest.raises(DependencyError, match="zennit"):
        AttnLRP(model)
    with pytest.raises(DependencyError, match="gamma_conv=0"):
        propagate(lambda x: x.sum()[None], draws(3))
    assert AttnLRP(model.float(), rules=EXACT).check() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"epsilon": -1e-6},
        {"epsilon": float("nan")},
        {"gamma_conv": float("inf")},
        {"gamma_linear": "0.1"},
        {"attention": "half"},
    ],
)
def test_rules_outside_their_domain_are_refused(fields):
    with pytest.raises(ConfigError, match=f"LRPRules.{next(iter(fields))}"):
        LRPRules(**fields)


def test_other_settings_and_waves_are_refused():
    model = detector("aasist")
    for settings in ({"scale": "db"}, {"target": "fake"}, {"target": -1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            AttnLRP(model, rules=EXACT, **settings)
    for rules in ("epsilon", "", {"epsilon": 1e-6}):
        with pytest.raises(ConfigError, match="rules must be an LRPRules"):
            AttnLRP(model, rules=rules)
    lrp = AttnLRP(model, rules=EXACT)
    for wave in (torch.zeros(5_000), torch.zeros(0, 5_000), torch.full((1, 500), torch.nan)):
        with pytest.raises(ShapeError):
            lrp(wave)
