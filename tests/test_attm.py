"""AttM and ECAPA-TDNN: the public code's arithmetic on plain tensors, its sizes, and folders."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import ENCODER, noise

from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.models.attm import ECAPA, AttM, AttMECAPA, AttMECAPAConfig
from specsegdiff.models.detector import Detector
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

pytest.importorskip("transformers")

CONFIG = AttMECAPAConfig(
    backbone=ENCODER, n_samples=4_000, channels=16, scale=4, merged=12, attention=6, embedding=5
)


def woken(model, *, seed=0):
    """In evaluation mode, with nothing at its start."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point() and value.ndim == 1:
                value.add_(0.2 * torch.rand(value.shape, generator=draw))
    return model.eval()


def make(config=CONFIG, *, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return woken(AttMECAPA(config), seed=seed)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------ AttM


def test_attm_is_the_public_codes_arithmetic():
    layers, width, t = 4, 6, 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attm = AttM(layers=layers, width=width).eval()
    x = noise(2, layers, t, width, scale=1.0)
    w, w1, w2 = (m.weight.T for m in (attm.score, attm.squeeze, attm.expand))
    merge = dict(attm.merge.named_parameters())
    for item in range(2):
        mean = x[item].mean(1)  # (l, d), over time
        score = F.silu(mean @ w)[:, 0]
        gate = 1 / (1 + (-(F.silu(score @ w1) @ w2)).exp())
        assert torch.allclose(attm.gates(x)[item], gate, atol=1e-6)
        for frame in range(t):
            # feature by feature, the layers side by side
            row = torch.tensor(
                [float(gate[k] * x[item, k, frame, d]) for d in range(width) for k in range(layers)]
            )
            hidden = F.silu(merge["0.weight"] @ row + merge["0.bias"])
            expected = merge["2.weight"] @ hidden + merge["2.bias"]
            assert torch.allclose(attm(x)[item, frame], expected, atol=1e-5)


def test_attm_has_the_papers_sizes():
    with torch.device("meta"):
        attm = AttM(layers=24, width=1024)
    shapes = {name: tuple(v.shape) for name, v in attm.named_parameters()}
    assert shapes == {
        "score.weight": (1, 1024),
        "squeeze.weight": (12, 24),
        "expand.weight": (24, 12),
        "merge.0.weight": (6144, 24_576),
        "merge.0.bias": (6144,),
        "merge.2.weight": (1024, 6144),
        "merge.2.bias": (1024,),
    }


# ------------------------------------------------------------------ ECAPA


def conv(t, name, x, *, dilation=1):
    weight = t[f"{name}.weight"]
    return F.conv1d(
        x, weight, t[f"{name}.bias"], dilation=dilation, padding=weight.shape[2] // 2 * dilation
    )


def norm(t, name, x):
    shape = (1, -1, 1) if x.ndim == 3 else (1, -1)
    mean, var, gain, shift = (
        t[f"{name}.{part}"].reshape(shape)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + shift


def unit(t, name, x, *, dilation=1):
    return norm(t, f"{name}.2", conv(t, f"{name}.0", x, dilation=dilation).relu())


def slow_block(t, name, x, *, dilation, scale):
    y = unit(t, f"{name}.enter", x)
    pieces, done = y.split(y.shape[1] // scale, 1), []
    for i in range(scale - 1):
        piece = pieces[i] if i == 0 else pieces[i] + done[-1]
        done.append(unit(t, f"{name}.parts.{i}", piece, dilation=dilation))
    y = unit(t, f"{name}.leave", torch.cat([*done, pieces[-1]], 1))
    gate = conv(t, f"{name}.gate.1", y.mean(2, keepdim=True)).relu()
    return x + y * conv(t, f"{name}.gate.3", gate).sigmoid()


def test_ecapa_is_the_public_codes_arithmetic():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = woken(ECAPA(7, CONFIG))
    t = model.state_dict()
    frames = noise(2, 19, 7, scale=1.0)
    x = (frames @ t["enter.weight"].T + t["enter.bias"]).transpose(1, 2)
    x = norm(t, "norm.1", x.relu())
    one = slow_block(t, "blocks.0", x, dilation=2, scale=4)
    two = slow_block(t, "blocks.1", x + one, dilation=3, scale=4)
    three = slow_block(t, "blocks.2", x + one + two, dilation=4, scale=4)
    y = conv(t, "merge.0", torch.cat([one, two, three], 1)).relu()
    mean = y.mean(2, keepdim=True)
    spread = ((y - mean).square().sum(2, keepdim=True) / (y.shape[2] - 1)).clamp_min(1e-4).sqrt()
    context = torch.cat([y, mean.expand_as(y), spread.expand_as(y)], 1)
    scores = norm(t, "attention.2", conv(t, "attention.0", context).relu()).tanh()
    weights = conv(t, "attention.4", scores).softmax(2)
    mean = (y * weights).sum(2)
    spread = ((y**2 * weights).sum(2) - mean**2).clamp_min(1e-4).sqrt()
    z = norm(t, "out.0", torch.cat([mean, spread], 1)) @ t["out.1.weight"].T + t["out.1.bias"]
    expected = norm(t, "out.2", z) @ t["out.3.weight"].T + t["out.3.bias"]
    assert torch.allclose(model(frames), expected, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_ecapa_has_the_published_sizes():
    with torch.device("meta"):
        model = ECAPA(1024, AttMECAPAConfig())
    shapes = {name: tuple(v.shape) for name, v in model.state_dict().items()}
    expected = {
        "enter.weight": (512, 1024),
        "blocks.0.parts.6.0.weight": (64, 64, 3),
        "blocks.2.gate.1.weight": (128, 512, 1),
        "merge.0.weight": (1536, 1536, 1),
        "attention.0.weight": (256, 4608, 1),
        "attention.4.weight": (1536, 256, 1),
        "out.0.weight": (3072,),
        "out.1.weight": (192, 3072),
        "out.3.weight": (2, 192),
    }
    assert expected.items() <= shapes.items()
    assert "blocks.0.parts.7.0.weight" not in shapes
    assert "blocks.3.enter.0.weight" not in shapes
    assert [block.parts[0][0].dilation for block in model.blocks] == [(2,), (3,), (4,)]


# ------------------------------------------------------------------ detector


def test_the_detector_reads_every_layer():
    model, wave = make(), noise(1, 4_000)
    before = model(wave)
    for layer in range(3):
        changed = make()
        handle = changed.backbone.encoder.layers[layer].register_forward_hook(
            lambda module, inputs, out: out + 0.5
        )
        assert (changed(wave) - before).abs().max() > 1e-4, layer
        handle.remove()
    assert isinstance(model, Detector)
    states = torch.stack(
        model.backbone(_scaled(wave), output_hidden_states=True).hidden_states[1:3], 1
    )
    assert torch.allclose(states[:, 0], _first_layer(model, wave), atol=1e-5)


def _scaled(wave):
    return (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()


def _first_layer(model, wave):
    seen = []
    handle = model.attm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(wave)
    handle.remove()
    return seen[0][:, 0]


@pytest.mark.parametrize("n", [1, 3_999, 4_000, 9_000])
def test_any_length_gives_logits_and_items_are_independent(n):
    model, wave = make(), noise(3, n)
    logits = model(wave)
    assert logits.shape == (3, 2)
    assert logits.isfinite().all()
    assert torch.allclose(model(wave[1:2]), logits[1:2], atol=1e-5)


def test_it_takes_over_an_encoder(tmp_path):
    detector = Wav2Vec2AASIST.from_preset("tiny").eval()
    changes = {"channels": 16, "scale": 4, "merged": 12, "attention": 6, "embedding": 5}
    model = AttMECAPA.from_detector(detector, **changes)
    assert model.backbone is detector.backbone
    assert model.config.backbone == detector.config.backbone
    assert model.config.n_samples == detector.config.n_samples
    make(replace(CONFIG, backbone=replace(ENCODER, family="hubert"))).backbone.save_pretrained(
        tmp_path
    )
    taken = AttMECAPA.from_backbone(tmp_path, normalise=False, n_samples=4_000, **changes).eval()
    assert taken.config.backbone == replace(ENCODER, family="hubert")
    assert not taken.config.normalise
    assert taken(noise(1, 4_000)).shape == (1, 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"long": "all"}, "long"),
        ({"scale": 5}, "scale"),
        ({"scale": 1}, "scale"),
        ({"dilations": ()}, "positive sizes"),
        ({"embedding": 0}, "embedding"),
        ({"temperature": 0.0}, "temperature"),
        ({"n_samples": 400}, "two frames"),
        ({"backbone": replace(ENCODER, num_hidden_layers=1)}, "two layers"),
    ],
)
def test_a_wrong_setting_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        replace(CONFIG, **changes)


def test_wrong_input_is_named():
    with pytest.raises(ShapeError, match=r"\(b, n\)"):
        make()(torch.zeros(4_000))
