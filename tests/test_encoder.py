"""Encoders of three families: transformers' own pass, folders, and adapters that have an effect."""

import copy
from dataclasses import replace

import pytest
import torch
from models import ENCODER, noise

from specsegdiff.errors import ConfigError
from specsegdiff.models.encoder import WAVLM_LARGE, build_backbone
from specsegdiff.models.graph import GraphConfig
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

transformers = pytest.importorskip("transformers")

FAMILIES = ("wav2vec2", "wavlm", "hubert")


def make(family, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = replace(ENCODER, family=family, **changes)
        model = Wav2Vec2AASIST.from_preset("tiny", backbone=backbone)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.ndim == 1 or "rel_attn" in name or "gru" in name:
                    value.add_(0.3 * torch.randn(value.shape))
    return model.eval()


@pytest.mark.parametrize("stable", [True, False], ids=["large", "base"])
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_transformers_hidden_states(family, stable):
    changes = {} if stable else {"do_stable_layer_norm": False, "feat_extract_norm": "group"}
    model, wave = make(family, **changes), noise(2, 5_000)
    theirs = model.backbone
    if family == "wavlm":  # their own attention, on the same tensors
        theirs = transformers.WavLMModel(model.backbone.config).eval()
        theirs.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        whole = theirs(wave, output_hidden_states=True)
        found = model.features(wave, range(3))
        expected = whole.hidden_states[1:3]
        last = model.backbone.encoder.layer_norm(found[2]) if stable else found[2]
    for ours, hidden in zip([*found[:2], last], [*expected, whole.last_hidden_state], strict=True):
        assert torch.allclose(ours, hidden, atol=1e-5)
    assert (found[0][0] - found[0][1]).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_is_taken_from_hugging_face_and_kept_in_a_folder(family, tmp_path):
    theirs = make(family).backbone
    theirs.save_pretrained(tmp_path / "theirs")
    small = {"rows": 12, "n_samples": 4_000, "channels": (4, 4), "graph": GraphConfig(dims=(4, 4))}
    model = Wav2Vec2AASIST.from_backbone(tmp_path / "theirs", normalise=True, **small).eval()
    assert model.config.backbone == replace(ENCODER, family=family)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    model.save_pretrained(tmp_path / "ours")
    loaded, wave = Wav2Vec2AASIST.from_pretrained(tmp_path / "ours"), noise(1, 3_000)
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(wave), model(wave))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_on_a_projection_changes_the_output_and_gets_a_gradient(family):
    """WavLM's own attention reads weights only: there an adapter would do nothing."""
    peft = pytest.importorskip("peft")
    model, wave = make(family), noise(1, 3_000)
    for target in ("q_proj", "k_proj", "v_proj"):
        adapted = copy.deepcopy(model)
        config = peft.LoraConfig(
            r=2, lora_alpha=64, target_modules=[target], init_lora_weights=False
        )
        peft.inject_adapter_in_model(config, adapted.backbone)
        (hidden,) = adapted.features(wave, [2])
        assert (hidden - model.features(wave, [2])[0]).abs().max() > 1e-4, target
        hidden.square().sum().backward()
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                assert value.grad is not None, name
                assert value.grad.abs().max() > 0, name


def test_other_encoders_are_refused(tmp_path):
    wavlm = make("wavlm").backbone
    wavlm.save_pretrained(tmp_path)
    for name, value in {"num_buckets": 160, "hidden_act": "relu"}.items():
        changed = copy.deepcopy(wavlm.config)
        setattr(changed, name, value)
        changed.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=f"{name}={value!r}"):
            Wav2Vec2AASIST.from_backbone(tmp_path, normalise=True)
    transformers.Data2VecAudioConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type='data2vec-audio', expected one of wav2vec2"):
        Wav2Vec2AASIST.from_backbone(tmp_path, normalise=True)
    with pytest.raises(ConfigError, match="family"):
        replace(ENCODER, family="data2vec")


def test_wavlm_large_has_the_published_size():
    with torch.device("meta"):
        backbone = build_backbone(WAVLM_LARGE)
    # microsoft/wavlm-large has 315,453,120; its embedding of masked frames is left out
    assert sum(p.numel() for p in backbone.parameters()) == 315_453_120 - 1_024
