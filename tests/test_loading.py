"""Detectors are built by the class that their folder names, and no other class is."""

import json
from pathlib import Path

import pytest
import torch
from models import noise

from specsegdiff.errors import CheckpointError
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.attm import AttMECAPA
from specsegdiff.models.loading import load_detector
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

PUBLISHED = Path(__file__).parent.parent.parent / "shared" / "weights" / "aasist"


def small(kind: type) -> torch.nn.Module:
    if kind is AASIST:
        return AASIST.from_preset("tiny")
    pytest.importorskip("transformers")
    ssl = Wav2Vec2AASIST.from_preset("tiny")
    return ssl if kind is Wav2Vec2AASIST else AttMECAPA.from_detector(ssl, channels=16, merged=24)


@pytest.mark.parametrize("kind", [AASIST, Wav2Vec2AASIST, AttMECAPA])
def test_what_is_saved_is_what_is_loaded(kind: type, tmp_path: Path) -> None:
    model, wave = small(kind).eval(), noise(1, 3_000)
    model.save_pretrained(tmp_path / "mine")
    loaded = load_detector(tmp_path / "mine")
    assert type(loaded) is kind
    assert loaded.config == model.config
    assert loaded.name == "mine"
    with torch.no_grad():
        assert torch.equal(loaded(wave), model(wave))


@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs the published weights in ../shared")
def test_a_published_detector_is_loaded() -> None:
    assert type(load_detector(PUBLISHED / "AASIST-L")) is AASIST


def test_what_is_no_detector_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        load_detector(tmp_path / "none")
    config = tmp_path / "config.json"
    for text in (None, "[]", "{"):
        if text is not None:
            config.write_text(text)
        with pytest.raises(CheckpointError, match="holds no detector"):
            load_detector(tmp_path)
    config.write_text(json.dumps({"class": "os.system", "config": {}}))
    says = r"'os.system', expected AASIST or Wav2Vec2AASIST or AttMECAPA"
    with pytest.raises(CheckpointError, match=says):
        load_detector(tmp_path)
