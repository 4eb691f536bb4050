"""AASIST on wav2vec 2.0: a slow replica on fairseq's names, Hugging Face's own pass, its laws."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import noise
from test_aasist import (
    CLOSE,
    layer_shapes,
    linear,
    norm,
    norm_shapes,
    published_encoder,
    published_graph,
    random_tensors,
    selu,
    slow_encoder,
    slow_graph,
)
from torch import nn

from specsegdiff.errors import CheckpointError, ConfigError, ShapeError
from specsegdiff.models.detector import Detector, spoof_column
from specsegdiff.models.graph import GraphConfig
from specsegdiff.models.wav2vec2_aasist import (
    PRESETS,
    BackboneConfig,
    Wav2Vec2AASIST,
    Wav2Vec2AASISTConfig,
)

pytest.importorskip("transformers")

TINY = PRESETS["tiny"]

PUBLISHED = replace(
    TINY,
    channels=(2, 2, 3, 3, 3, 3),
    graph=GraphConfig((5, 4), (0.8, 0.7, 0.5), (2.0, 3.0, 1.5)),
)
"Six blocks, as published; all pool ratios different."

BASE = replace(
    TINY.backbone, feat_extract_norm="group", conv_bias=False, do_stable_layer_norm=False
)
"As wav2vec 2.0 base: group norm after the first convolution, layer norm after each part."


def make_tiny(**changes):
    """An evaluation-mode model in which nothing is at its start, where scales are one and shifts
    zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wav2Vec2AASIST.from_preset("tiny", **changes)
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim == 1:
                    value.add_(0.1 * torch.randn(value.shape))
            for _ in range(3):
                model(torch.randn(4, model.config.n_samples))
    return model.eval()


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


# ------------------------------------------------------------------ fairseq's names


def fairseq_shapes(config):
    """A wav2vec 2.0 as fairseq saves it, with the parts that only pre-training needs."""
    width, channels = config.hidden_size, config.conv_dim
    layered = config.feat_extract_norm == "layer"
    shapes = {"mask_emb": (width,)}
    for i, (after, kernel) in enumerate(zip(channels, config.conv_kernel, strict=True)):
        before = channels[i - 1] if i else 1
        conv = layer_shapes(f"feature_extractor.conv_layers.{i}.0", after, before, kernel)
        shapes |= {n: s for n, s in conv.items() if config.conv_bias or n.endswith("weight")}
        if layered:
            shapes |= layer_shapes(f"feature_extractor.conv_layers.{i}.2.1", after)
        elif i == 0:
            shapes |= layer_shapes("feature_extractor.conv_layers.0.2", after)
    shapes |= layer_shapes("post_extract_proj", width, channels[-1])
    taps, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    shapes |= {
        "quantizer.vars": (1, 640, 8),
        **layer_shapes("quantizer.weight_proj", 640, channels[-1]),
        **layer_shapes("project_q", 24, 24),
        "encoder.pos_conv.0.bias": (width,),
        "encoder.pos_conv.0.weight_g": (1, 1, taps),
        "encoder.pos_conv.0.weight_v": (width, width // groups, taps),
    }
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= layer_shapes(f"{layer}.self_attn.{name}", width, width)
        shapes |= layer_shapes(f"{layer}.self_attn_layer_norm", width)
        shapes |= layer_shapes(f"{layer}.fc1", config.intermediate_size, width)
        shapes |= layer_shapes(f"{layer}.fc2", width, config.intermediate_size)
        shapes |= layer_shapes(f"{layer}.final_layer_norm", width)
    shapes |= layer_shapes("encoder.layer_norm", width)
    shapes |= layer_shapes("layer_norm", channels[-1])
    return shapes | layer_shapes("final_proj", 24, width)


def published_shapes(config):
    """A whole checkpoint of SSL_Anti-spoofing."""
    width = config.channels[-1]
    backbone = fairseq_shapes(config.backbone)
    shapes = {f"ssl_model.model.{name}": shape for name, shape in backbone.items()}
    shapes |= layer_shapes("LL", config.rows, config.backbone.hidden_size)
    shapes |= norm_shapes("first_bn", 1) | norm_shapes("first_bn1", width)
    pairs = list(zip((1, *config.channels), config.channels, strict=False))
    shapes |= published_encoder(pairs)
    shapes |= layer_shapes("attention.0", 2 * width, width, 1, 1)
    shapes |= norm_shapes("attention.2", 2 * width)
    shapes |= layer_shapes("attention.3", width, 2 * width, 1, 1)
    return shapes | published_graph(width, config.graph.dims, config.rows // 3)


def published_detector(config):
    return random_tensors(published_shapes(config))


def test_the_true_names_are_those_of_fairseq():
    """By hand, from a54021305d, for the sizes of XLS-R; a replica cannot check its own spelling."""
    names = fairseq_shapes(BackboneConfig())
    expected = {
        "feature_extractor.conv_layers.0.0.weight": (512, 1, 10),
        "feature_extractor.conv_layers.6.2.1.bias": (512,),
        "post_extract_proj.weight": (1024, 512),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
        "encoder.pos_conv.0.weight_v": (1024, 64, 128),
        "encoder.layers.23.self_attn.k_proj.bias": (1024,),
        "encoder.layers.23.self_attn_layer_norm.weight": (1024,),
        "encoder.layers.0.fc1.weight": (4096, 1024),
        "encoder.layers.0.final_layer_norm.bias": (1024,),
        "encoder.layer_norm.weight": (1024,),
        "layer_norm.weight": (512,),
        "mask_emb": (1024,),
    }
    assert expected.items() <= names.items()
    assert len(names) == 429


# ------------------------------------------------------------------ slow replica, one item


def layer_norm(t, name, x):
    """Over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * t[f"{name}.weight"] + t[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def slow_frames(t, wave, config):
    """Feature extractor: ``(n,)`` to ``(t, c)``."""
    x = wave[None]
    for i, stride in enumerate(config.conv_stride):
        name = f"feature_extractor.conv_layers.{i}"
        x = F.conv1d(x[None], t[f"{name}.0.weight"], t.get(f"{name}.0.bias"), stride=stride)[0]
        if config.feat_extract_norm == "layer":
            x = layer_norm(t, f"{name}.2.1", x.T).T
        elif i == 0:  # one group a channel: each is normalised over time
            ones = {"n.weight": torch.tensor(1.0), "n.bias": torch.tensor(0.0)}
            x = layer_norm(ones, "n", x)
            x = x * t[f"{name}.2.weight"][:, None] + t[f"{name}.2.bias"][:, None]
        x = gelu(x)
    return x.T


def slow_position(t, x, config):
    """Grouped convolution over time whose weight is v / |v| * g, the norm taken for each tap."""
    v, g = t["encoder.pos_conv.0.weight_v"], t["encoder.pos_conv.0.weight_g"]
    weight = v / v.square().sum((0, 1), keepdim=True).sqrt() * g
    taps, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    padded = F.pad(x.T, (taps // 2, taps // 2))
    out = []
    for part, w in zip(padded.chunk(groups), weight.chunk(groups), strict=True):
        steps = [(w * part[:, i : i + taps]).sum((1, 2)) for i in range(len(x))]
        out.append(torch.stack(steps))
    return gelu(torch.cat(out, dim=1) + t["encoder.pos_conv.0.bias"])


def slow_self_attention(t, name, x, *, heads):
    q, k, v = (linear(t, f"{name}.{part}_proj", x) for part in "qkv")
    size = x.shape[1] // heads
    out = []
    for head in range(heads):
        inside = slice(head * size, (head + 1) * size)
        scores = q[:, inside] @ k[:, inside].T / math.sqrt(size)
        out.append(scores.softmax(-1) @ v[:, inside])
    return linear(t, f"{name}.out_proj", torch.cat(out, dim=1))


def slow_states(t, wave, config):
    """Output ``(t, d)`` of each transformer layer of fairseq, and what the model returns."""
    x = layer_norm(t, "layer_norm", slow_frames(t, wave, config))
    x = linear(t, "post_extract_proj", x)
    x = x + slow_position(t, x, config)
    before = config.do_stable_layer_norm
    if not before:
        x = layer_norm(t, "encoder.layer_norm", x)
    states = []
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layers.{i}"
        for part, after in (("self_attn", "self_attn_layer_norm"), ("fc", "final_layer_norm")):
            y = layer_norm(t, f"{layer}.{after}", x) if before else x
            if part == "fc":
                y = linear(t, f"{layer}.fc2", gelu(linear(t, f"{layer}.fc1", y)))
            else:
                y = slow_self_attention(
                    t, f"{layer}.self_attn", y, heads=config.num_attention_heads
                )
            x = x + y if before else layer_norm(t, f"{layer}.{after}", x + y)
        states.append(x)
    return states, layer_norm(t, "encoder.layer_norm", x) if before else x


def slow_detector(t, wave, config):
    """Logits of one window ``(n,)``, on the names of SSL_Anti-spoofing."""
    backbone = {
        name.removeprefix("ssl_model.model."): v for name, v in t.items() if "ssl_model" in name
    }
    _, x = slow_states(backbone, wave, config.backbone)
    x = F.max_pool2d(linear(t, "LL", x).T[None], 3)
    x = slow_encoder(t, selu(norm(t, "first_bn", x)), pool=1)
    x = selu(norm(t, "first_bn1", x))
    y = torch.einsum("dc,cft->dft", t["attention.0.weight"][:, :, 0, 0], x)
    y = norm(t, "attention.2", selu(y + t["attention.0.bias"][:, None, None]))
    y = torch.einsum("dc,cft->dft", t["attention.3.weight"][:, :, 0, 0], y)
    y = y + t["attention.3.bias"][:, None, None]
    return slow_graph(
        t,
        (x * y.softmax(2)).sum(2).T,
        (x * y.softmax(1)).sum(1).T,
        ratios=config.graph.pool_ratios,
        temperatures=config.graph.temperatures,
    )


def load_published(tensors, path, **changes):
    torch.save(tensors, path)
    settings = {"channels": PUBLISHED.channels, "graph": PUBLISHED.graph} | changes
    return Wav2Vec2AASIST.from_published(path, preset="tiny", **settings)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_checkpoint_is_its_slow_replica(tmp_path, prefix):
    """The DF recipe of SSL_Anti-spoofing saves its model with the prefix of DataParallel."""
    tensors = published_detector(PUBLISHED)
    model = load_published({prefix + n: v for n, v in tensors.items()}, tmp_path / "LA_model.pth")
    assert not model.training
    assert model.config == PUBLISHED
    wave = noise(2, 8_000)
    with torch.no_grad():
        expected = torch.stack([slow_detector(tensors, item, PUBLISHED) for item in wave])
        assert torch.allclose(model(wave), expected, **CLOSE)
    assert (expected[0] - expected[1]).abs().min() > 1e-3


@pytest.mark.parametrize("backbone", [TINY.backbone, BASE], ids=["large", "base"])
def test_features_are_the_outputs_of_fairseqs_layers(tmp_path, backbone):
    config = replace(PUBLISHED, backbone=backbone)
    tensors = published_detector(config)
    model = load_published(tensors, tmp_path / "model.pth", backbone=backbone)
    fairseq = {n.removeprefix("ssl_model.model."): v for n, v in tensors.items()}
    wave = noise(2, 3_000)
    with torch.no_grad():
        found = model.features(wave, (0, 2, 3))
        for item in range(2):
            states, _ = slow_states(fairseq, wave[item], backbone)
            for layer, hidden in zip((0, 2, 3), found, strict=True):
                assert hidden.shape == (2, 9, 32)
                assert torch.allclose(hidden[item], states[layer], **CLOSE)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("LL.bias"), "1 missing: project.bias"),
        (lambda t: t.pop("ssl_model.model.encoder.pos_conv.0.weight_g"), "missing.*original0"),
        (lambda t: t.update({"ssl_model.model.adapter.0": torch.zeros(1)}), "unknown: backbone.ad"),
        (lambda t: t.update({"LL.bias": torch.zeros(1)}), "another shape: project.bias"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path, edit, message):
    tensors = published_detector(PUBLISHED)
    edit(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_published(tensors, tmp_path / "model.pth")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": nn.Linear(1, 1)}, path)
    with pytest.raises(CheckpointError, match="as tensors"):
        Wav2Vec2AASIST.from_published(path, preset="tiny")
    torch.save([torch.zeros(1)], path)
    with pytest.raises(CheckpointError, match="no state dict"):
        Wav2Vec2AASIST.from_published(path, preset="tiny")
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="as tensors"):
        Wav2Vec2AASIST.from_published(path, preset="tiny")
    with pytest.raises(CheckpointError, match="as tensors"):
        Wav2Vec2AASIST.from_published(tmp_path / "absent.pth", preset="tiny")


# ------------------------------------------------------------------ Hugging Face


@pytest.mark.parametrize("backbone", [TINY.backbone, BASE], ids=["large", "base"])
def test_features_are_hugging_faces_hidden_states(backbone):
    model = make_tiny(backbone=backbone)
    wave = noise(2, 5_000)
    with torch.no_grad():
        whole = model.backbone(wave, output_hidden_states=True)
        found = model.features(wave, range(4))
        for hidden, theirs in zip(found[:3], whole.hidden_states[1:4], strict=True):
            assert torch.allclose(hidden, theirs, atol=1e-6)
        # the norm after the last layer is no layer's output
        last = model.backbone.encoder.layer_norm(found[3]) if backbone is not BASE else found[3]
        assert torch.allclose(last, whole.last_hidden_state, atol=1e-6)


def save_backbone(folder, **changes):
    """A Hugging Face wav2vec 2.0 with random weights, as its own library saves it."""
    import transformers

    config = Wav2Vec2AASIST.from_preset("tiny").backbone.config
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        backbone = transformers.Wav2Vec2ForPreTraining(config).eval()
    backbone.save_pretrained(folder)
    return backbone.wav2vec2


def from_backbone(folder, **changes):
    small = {"rows": 12, "n_samples": 4_000, "channels": (4, 4), "graph": GraphConfig(dims=(4, 4))}
    return Wav2Vec2AASIST.from_backbone(folder, **({"normalise": False} | small | changes))


@pytest.mark.parametrize("form", ["large", "base"])
def test_a_backbone_is_taken_from_hugging_face(tmp_path, form):
    changes = {"mask_time_prob": 0.05}  # brings an embedding that is not used here
    if form == "base":
        changes |= {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
    theirs = save_backbone(tmp_path, **changes)
    model = from_backbone(tmp_path).eval()
    assert model.config.backbone == (BASE if form == "base" else TINY.backbone)
    wave = noise(2, 3_000)
    with torch.no_grad():
        hidden = theirs(wave, output_hidden_states=True).hidden_states
        assert torch.allclose(model.features(wave, (1,))[0], hidden[2], atol=1e-6)
        assert model(wave).shape == (2, 2)


def test_normalised_windows_are_those_of_hugging_faces_extractor(tmp_path):
    from transformers import Wav2Vec2FeatureExtractor

    theirs = save_backbone(tmp_path)
    model = from_backbone(tmp_path, normalise=True).eval()
    wave = noise(1, 3_000) + 0.2
    ready = Wav2Vec2FeatureExtractor(do_normalize=True)(
        wave[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_values
    with torch.no_grad():
        hidden = theirs(ready, output_hidden_states=True).hidden_states
        assert torch.allclose(model.features(wave, (0,))[0], hidden[1], atol=1e-4)
        # gain and offset are gone; the offset costs float32 digits
        assert torch.allclose(model(wave), model(50 * wave), atol=1e-3)
        assert model(torch.zeros(1, 3_000)).isfinite().all()


def test_an_incomplete_backbone_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_backbone(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("layers.2.attention.k_proj.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors.*layers\.2\.attention\.k_proj"):
        from_backbone(tmp_path)


def test_other_backbones_are_refused(tmp_path):
    save_backbone(tmp_path, add_adapter=True)
    with pytest.raises(ConfigError, match="add_adapter=True"):
        from_backbone(tmp_path)
    with pytest.raises(CheckpointError, match="no wav2vec"):
        from_backbone(tmp_path / "absent")


# ------------------------------------------------------------------ presets


def test_the_paper_preset_is_xls_r_300m_with_the_published_back_end(monkeypatch):
    config = PRESETS["paper"]
    assert config == Wav2Vec2AASISTConfig()
    assert (config.backbone.hop, config.backbone.reach) == (320, 400)
    assert config.backbone.n_frames(64_600) == 201
    assert config.graph == GraphConfig((64, 32), (0.5, 0.5, 0.5), (2.0, 2.0, 100.0))
    assert (config.n_samples, config.rows, config.normalise) == (64_600, 128, False)
    monkeypatch.setattr("socket.socket", lambda *a, **k: pytest.fail("the network was asked"))
    with torch.device("meta"):
        model = Wav2Vec2AASIST.from_preset("paper")
    assert sum(p.numel() for p in model.backbone.parameters()) == 315_437_696
    assert model.graph.position.shape == (1, 42, 64)
    skipped = ("mask_emb", "quantizer", "project_q", "final_proj", ".bn1.")
    published = published_shapes(config).items()
    kept = sorted(math.prod(s) for n, s in published if not any(part in n for part in skipped))
    assert sorted(v.numel() for v in model.state_dict().values()) == kept


# ------------------------------------------------------------------ laws


def test_labels(tiny):
    assert tiny.labels == Wav2Vec2AASIST.labels == ("spoof", "bonafide")
    assert spoof_column(tiny) == 0
    assert isinstance(tiny, Detector)


@pytest.mark.parametrize("n", [1, 399, 8_000, 8_001])
def test_any_length_gives_finite_logits_features_and_gradients(tiny, n):
    wave = noise(2, n).requires_grad_()
    logits = tiny(wave)
    logits[:, 0].sum().backward()
    assert logits.shape == (2, 2)
    assert wave.grad.isfinite().all()
    with torch.no_grad():
        (hidden,) = tiny.features(wave, [3])
    assert hidden.shape == (2, tiny.config.backbone.n_frames(n), 32)
    assert hidden.isfinite().all()


def test_gradients_reach_a_wave_that_was_computed_also_in_training():
    """`Wav2Vec2FeatureEncoder.forward` would set requires_grad on it, which fails."""
    model = make_tiny().train()
    magnitude = noise(2, 8_000).abs().requires_grad_()
    model(magnitude * 0.5).sum().backward()
    assert (magnitude.grad != 0).any()


def test_short_waves_are_repeated_and_long_ones_averaged(tiny):
    wave = noise(2, 17_000)
    with torch.no_grad():
        assert torch.equal(tiny(wave[:, :3_000]), tiny(wave[:, :3_000].repeat(1, 3)[:, :8_000]))
        parts = [tiny(wave[:, start : start + 8_000]) for start in (0, 4_500, 9_000)]
        assert torch.allclose(tiny(wave), torch.stack(parts).mean(0), atol=1e-6)
        assert torch.allclose(make_tiny(long="first")(wave), parts[0], atol=1e-6)


def test_no_item_depends_on_another(tiny):
    wave = noise(3, 8_000)
    loud = wave.clone()
    loud[1:] *= 1_000
    with torch.no_grad():
        alone = torch.cat([tiny(item[None]) for item in wave])
        assert torch.allclose(tiny(wave), alone, atol=1e-6)
        assert torch.allclose(tiny(loud)[0], alone[0], atol=1e-6)


def test_frames_are_where_the_docstring_says(tiny):
    """Frame i is made of ``[320 i, 320 i + 400)`` before the transformer mixes frames."""
    config = tiny.config.backbone
    wave = noise(1, 4_000).requires_grad_()
    hidden = wave[:, None]
    for layer in tiny.backbone.feature_extractor.conv_layers:
        hidden = layer(hidden)
    hidden[0, :, 4].square().sum().backward()
    touched = wave.grad[0].nonzero().flatten()
    assert (touched[0].item(), touched[-1].item()) == (4 * 320, 4 * 320 + 399)
    assert hidden.shape[-1] == config.n_frames(4_000) == 12


def test_layers_come_in_the_order_asked_and_no_later_one_runs(tiny):
    wave = noise(1, 2_000)
    ran = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(tiny.backbone.encoder.layers)
    ]
    with torch.no_grad():
        one, zero, again = tiny.features(wave, (1, 0, 1))
        assert ran == [0, 1]
        assert torch.equal(one, again)
        assert not torch.equal(one, zero)
        assert torch.equal(zero, tiny.features(wave, [0])[0])
        assert tiny.features(wave, []) == []
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("layers", [(4,), (-1,), (0, 24)])
def test_layers_that_are_not_there_are_refused(tiny, layers):
    with pytest.raises(ConfigError, match="layers 0 to 3"):
        tiny.features(noise(1, 2_000), layers)


@pytest.mark.parametrize("wave", [torch.zeros(4_000), torch.zeros(1, 0), torch.zeros(1, 9).int()])
def test_other_waves_are_refused(tiny, wave):
    with pytest.raises(ShapeError):
        tiny(wave)
    with pytest.raises(ShapeError):
        tiny.features(wave, (0,))


def test_what_is_saved_is_what_is_loaded(tmp_path):
    model = make_tiny(temperature=1.75, normalise=True)
    model.save_pretrained(tmp_path)
    loaded = Wav2Vec2AASIST.from_pretrained(tmp_path)
    assert loaded.config == model.config
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    wave = noise(2, 9_000)
    with torch.no_grad():
        assert torch.equal(loaded(wave), model(wave))


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_dim": (8,)},
        {"num_attention_heads": 3},
        {"num_conv_pos_embedding_groups": 0},
        {"num_hidden_layers": 0},
        {"feat_extract_norm": "batch"},
    ],
)
def test_backbone_settings_outside_their_domain_are_refused(changes):
    with pytest.raises(ConfigError, match="BackboneConfig"):
        replace(TINY.backbone, **changes)


@pytest.mark.parametrize(
    "changes", [{"n_samples": 1_039}, {"rows": 2}, {"long": "full"}, {"temperature": -1.0}]
)
def test_settings_outside_their_domain_are_refused(changes):
    with pytest.raises(ConfigError):
        replace(TINY, **changes)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="paper"):
        Wav2Vec2AASIST.from_preset("huge")
