"""ONNX graphs: the same map as PyTorch's at any length, from files that say what they are."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from models import TINY, TINY_PAPER, make_model, noise
from typer.testing import CliRunner

from specsegdiff.api import default_model, explain
from specsegdiff.cli import app
from specsegdiff.data.audio import write_audio
from specsegdiff.errors import CheckpointError, ConfigError, DependencyError, OutputError
from specsegdiff.export import (
    DENOISER_NAME,
    ENCODER_NAME,
    TOLERANCE,
    OnnxSegmenter,
    export_onnx,
)
from specsegdiff.hub import weights_hash
from specsegdiff.models.segdiff import SegDiff
from specsegdiff.sampling import Segmenter, draw_masks, sample

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CONFIGS = {
    "tiny": replace(TINY, unet=replace(TINY.unet, multipliers=(1, 2, 2), attention_levels=(2,))),
    "paper": TINY_PAPER,
}
"Three levels, so that two paddings nest; and the published design, with attention over all."


@pytest.fixture(scope="module", params=list(CONFIGS))
def exported(request, tmp_path_factory):
    """A model, and its graphs run by ONNX Runtime."""
    model = make_model(CONFIGS[request.param])
    model.name = "mine"
    folder = tmp_path_factory.mktemp(request.param)
    export_onnx(model, folder)
    return model, OnnxSegmenter(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Graphs of one small model."""
    path = tmp_path_factory.mktemp("graphs")
    export_onnx(make_model(), path)
    return path


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("n", [80, 400, 1_000])
def test_a_map_is_pytorchs_at_any_length(exported, n, steps):
    model, segmenter = exported
    wave = noise(1, n, seed=n)
    condition = model.condition(wave)
    assert torch.equal(segmenter.condition(wave), condition)
    options = {"draws": 2, "steps": steps, "seed": 3, "items": ["call"]}
    found, expected = (sample(m, condition, **options) for m in (segmenter, model))
    assert found.mean.shape == expected.mean.shape == condition.shape
    tolerance = TOLERANCE * (10 if model.config.prediction == "epsilon" else 1)
    torch.testing.assert_close(found.mean, expected.mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.spread, expected.spread, atol=tolerance, rtol=0)
    assert float(expected.mean.std()) > 10 * tolerance  # a map that says something


@torch.no_grad()
def test_the_graphs_are_the_networks_for_several_draws_at_once(exported):
    model, segmenter = exported
    condition = model.condition(noise(3, 300))
    encoded = model.encode(condition)
    torch.testing.assert_close(segmenter.encode(condition), encoded, atol=1e-5, rtol=1e-5)
    x, step = noise(3, *model.fold(condition).shape[1:], scale=1.0), torch.tensor([0, 7, 99])
    found, expected = (m.denoise(x, step, encoded) for m in (segmenter, model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])


def test_a_segmenter_of_graphs_is_a_segmenter(exported):
    model, segmenter = exported
    assert isinstance(segmenter, Segmenter)
    assert segmenter.config == model.config
    assert segmenter.name == "mine"
    assert segmenter.weights_sha256 == weights_hash(model)


def test_chunks_and_threads_change_no_number(folder):
    first, second = OnnxSegmenter(folder), OnnxSegmenter(folder, threads=2)
    condition = first.condition(noise(1, 400))
    together = sample(first, condition, draws=3, steps=2, chunk=3)
    apart = torch.cat(list(draw_masks(first, condition[0], [2, 1, 0], steps=2, chunk=1)))
    assert torch.allclose(apart.mean(0), together.mean[0], atol=1e-6)
    other = sample(second, condition, draws=3, steps=2)
    assert torch.allclose(other.mean, together.mean, atol=1e-6)


def test_a_model_is_left_as_it_was(tmp_path):
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [DENOISER_NAME, ENCODER_NAME]


def test_the_embedded_model_gives_its_map_as_graphs(tmp_path):
    model = default_model()
    export_onnx(model, tmp_path)
    segmenter = OnnxSegmenter(tmp_path)
    for n, steps in ((16_000, 1), (16_000, 2), (25_000, 2)):
        condition = model.condition(noise(1, n))
        found, expected = (sample(m, condition, draws=2, steps=steps) for m in (segmenter, model))
        # float32, 20 layers deep
        torch.testing.assert_close(found.mean, expected.mean, atol=TOLERANCE / 5, rtol=0)
        torch.testing.assert_close(found.spread, expected.spread, atol=TOLERANCE / 5, rtol=0)


def test_a_recording_is_explained_by_graphs_as_by_the_model(tmp_path):
    model = default_model()
    export_onnx(model, tmp_path)
    # two windows and a bit
    wave = noise(17 * 16_000)
    found, expected = (
        explain(wave, 16_000, model=m, detector=False, precision=torch.float32)
        for m in (OnnxSegmenter(tmp_path), model)
    )
    torch.testing.assert_close(found.heatmap, expected.heatmap, atol=TOLERANCE, rtol=0)
    made, true = found.provenance, expected.provenance
    assert (made.model, made.weights_sha256) == (true.model, true.weights_sha256)
    assert "onnxruntime " in made.runtime
    assert "onnxruntime " not in true.runtime


def test_the_command_explains_with_graphs(folder, tmp_path):
    write_audio(tmp_path / "call.wav", noise(16_000), sample_rate=16_000)
    words = ["explain", str(tmp_path / "call.wav"), "--model", str(folder), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)["provenance"]
    assert made["weights_sha256"] == OnnxSegmenter(folder).weights_sha256


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"precision": torch.bfloat16}])
def test_graphs_run_on_the_cpu_in_float32_only(folder, options):
    with pytest.raises(ConfigError, match="run on the CPU in float32, got"):
        explain(noise(16_000), 16_000, model=OnnxSegmenter(folder), detector=False, **options)


def test_only_models_of_spectrograms_are_exported(tmp_path):
    class Other(SegDiff):
        condition = observe = images = None

    with pytest.raises(ConfigError, match="expected a SpecSegDiff, got Other"):
        export_onnx(Other(TINY, images=1), tmp_path)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write ONNX graphs"):
        export_onnx(make_model(), tmp_path / "file")


@pytest.mark.parametrize("name", [ENCODER_NAME, DENOISER_NAME])
def test_a_graph_that_is_missing_or_damaged_is_a_checkpoint_error(tmp_path, folder, name):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        OnnxSegmenter(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        OnnxSegmenter(tmp_path)


@pytest.mark.parametrize(
    ("facts", "error", "said"),
    [
        ({"class": "ADDSegDiff"}, CheckpointError, "something else"),
        ({"weights_sha256": None}, CheckpointError, "something else"),
        ({"config": "{"}, CheckpointError, "damaged"),
        ({"config": "{}"}, ConfigError, "missing"),
    ],
)
def test_graphs_that_do_not_say_what_they_are_are_refused(tmp_path, folder, facts, error, said):
    for file in folder.iterdir():
        graph = onnx.load(file)
        told = {p.key: p.value for p in graph.metadata_props} | facts
        del graph.metadata_props[:]
        onnx.helper.set_model_props(graph, {k: v for k, v in told.items() if v is not None})
        onnx.save(graph, tmp_path / file.name)
    with pytest.raises(error, match=said):
        OnnxSegmenter(tmp_path)


def test_graphs_of_two_models_are_refused(tmp_path, folder):
    for file in folder.iterdir():
        graph = onnx.load(file)
        if file.name == ENCODER_NAME:
            next(p for p in graph.metadata_props if p.key == "weights_sha256").value = "0" * 64
        onnx.save(graph, tmp_path / file.name)
    with pytest.raises(CheckpointError, match="two models"):
        OnnxSegmenter(tmp_path)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path, folder, monkeypatch, name):
    real = importlib.import_module

    def without(wanted, *rest):
        if wanted == name:
            raise ImportError(wanted)
        return real(wanted, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(DependencyError, match=rf"{name}, .*specsegdiff\[onnx\]"):
        export_onnx(make_model(), tmp_path) if name == "onnx" else OnnxSegmenter(folder)
