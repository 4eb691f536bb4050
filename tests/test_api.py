"""`explain`, whole: no seams between windows, equal maps of equal calls, typed errors."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import STFT, TINY_PAPER, make_model, noise
from speech import speech

from specsegdiff import api
from specsegdiff.api import asset, explain, narrate
from specsegdiff.errors import AudioError, ConfigError, SpecSegDiffError
from specsegdiff.explanation import Explanation
from specsegdiff.hub import weights_hash
from specsegdiff.masks import top_share
from specsegdiff.models.segdiff import PRESETS
from specsegdiff.narration.answers import ask
from specsegdiff.sampling import sample

RATE = 1000
WAVE = noise(3000, seed=3)
EXACT = {"precision": torch.float32}


@pytest.fixture(scope="module")
def model():
    return make_model(draws=3, steps=2)


def same(a, b):
    return torch.equal(a.heatmap, b.heatmap) and torch.equal(a.spread, b.spread)


# ------------------------------------------------------------------ what is computed


def test_explain_is_condition_and_draws(model):
    ex = explain(WAVE, RATE, model=model, seed=5, **EXACT)
    drawn = sample(model, model.condition(WAVE[None]), seed=5)
    # the gain is computed in float64 there and rounded to float32 here
    assert torch.allclose(ex.heatmap, drawn.mean[0], atol=1e-5)
    assert torch.allclose(ex.spread, drawn.spread[0], atol=1e-5)
    assert torch.equal(ex.mask, top_share(ex.heatmap))
    assert torch.equal(ex.wave, WAVE)
    assert ex.heatmap.shape == ex.axes.shape == (33, 188)


def test_provenance_says_what_made_it(model):
    made = explain(WAVE, RATE, model=model, seed=5, draws=2, steps=1).provenance
    assert (made.seed, made.draws, made.steps) == (5, 2, 1)
    assert (made.source, made.model) == ("<array>", "SpecSegDiff")
    assert made.weights_sha256 == weights_hash(model)
    usual = explain(WAVE, RATE, model=model).provenance
    assert (usual.seed, usual.draws, usual.steps) == (0, 3, 2)


def test_a_share_is_exact(model):
    ex = explain(WAVE, RATE, model=model, share=0.2)
    assert int(ex.mask.sum()) == round(0.2 * 33 * 188)


# ------------------------------------------------------------------ verdict


class Ear(torch.nn.Module):
    """Says spoof as loudly as the recording's mean, and keeps what it heard."""

    labels = ("bonafide", "spoof")
    name = "ear"

    def __init__(self):
        super().__init__()
        self.heard = []

    def forward(self, wave):
        assert not self.training
        self.heard.append(wave)
        score = wave.mean(dim=1, keepdim=True)
        return torch.cat([0 * score, score], dim=1)


@pytest.fixture
def at_16_khz():
    return make_model(stft=replace(STFT, sample_rate=16_000), draws=1, steps=1)


def test_a_detector_judges_the_whole_recording(at_16_khz):
    ear, wave = Ear().train(), noise(3000, seed=3) + 0.5
    ex = explain(wave, 16_000, model=at_16_khz, detector=ear)
    assert ex.p_spoof == pytest.approx(float(torch.sigmoid(wave.mean())), abs=1e-6)
    assert (ex.verdict.detector, ex.verdict.weights_sha256) == ("ear", weights_hash(ear))
    assert torch.equal(ear.heard[0][0], wave)
    # left as it came
    assert ear.training
    assert explain(wave, 16_000, model=at_16_khz, detector=False).verdict is None


def test_a_long_recording_is_judged_in_stretches_that_count_by_their_length(at_16_khz, monkeypatch):
    monkeypatch.setattr(api, "DETECTOR_SECONDS", 0.05)
    ear, wave = Ear(), noise(3000, seed=3) + 0.5
    ex = explain(wave, 16_000, model=at_16_khz, detector=ear)
    assert [part.shape[1] for part in ear.heard] == [750] * 4
    assert torch.equal(torch.cat(ear.heard, dim=1)[0], wave)
    assert ex.p_spoof == pytest.approx(float(torch.sigmoid(wave.mean())), abs=1e-6)


def test_a_temperature_softens_the_verdict(at_16_khz):
    ear, wave = Ear(), noise(3000, seed=3) + 0.5
    ear.config = SimpleNamespace(temperature=4.0)
    ex = explain(wave, 16_000, model=at_16_khz, detector=ear)
    assert ex.p_spoof == pytest.approx(float(torch.sigmoid(wave.mean() / 4)), abs=1e-6)


def test_detectors_listen_at_16_khz_only(model):
    assert explain(WAVE, RATE, model=model).verdict is None
    with pytest.raises(ConfigError, match="listen at 16000 Hz"):
        explain(WAVE, RATE, model=model, detector=Ear())


def test_a_detector_without_named_columns_is_refused_before_any_work(at_16_khz, monkeypatch):
    monkeypatch.setattr(api, "_explain_window", None)
    for nameless in (torch.nn.Linear(2, 2), "embedded", None):
        with pytest.raises(ConfigError, match="does not name its columns"):
            explain(noise(3000, seed=3), 16_000, model=at_16_khz, detector=nameless)


def test_the_embedded_detector_is_the_default(at_16_khz):
    verdict = explain(noise(40_000, seed=1), 16_000, model=at_16_khz).verdict
    assert verdict.detector == api.DEFAULT_DETECTOR
    assert verdict.weights_sha256 == weights_hash(api.default_detector())


# ------------------------------------------------------------------ words


def test_the_report_is_the_narrators_and_asked_once(model):
    asked = []

    def narrator(explanation):
        asked.append(explanation)
        return "said"

    ex = explain(WAVE, RATE, model=model, narrator=narrator)
    assert asked == []
    assert (ex.report, ex.report, len(asked)) == ("said", "said", 1)
    assert asked[0] is ex


def test_rules_narrate_by_default_and_loaded_explanations_too(tmp_path):
    model = make_model(PRESETS["tiny"], draws=1, steps=1)
    ex = explain(speech(), 16_000, model=model, detector=False)
    assert len(ex.report.cells) == 3
    ex.save(tmp_path / "out")
    loaded = Explanation.load(tmp_path / "out")
    assert narrate(loaded) == ex.report
    with pytest.raises(ConfigError, match=r"narrate\(explanation\)"):
        _ = loaded.report


# ------------------------------------------------------------------ windows


@pytest.mark.parametrize("window", [40, 104])
@pytest.mark.parametrize("steps", [1, 2])
def test_windows_leave_no_seam(model, monkeypatch, window, steps):
    options = {"model": model, "steps": steps, **EXACT}
    whole = explain(WAVE.repeat(3), RATE, **options)
    monkeypatch.setattr(api, "WINDOW_FRAMES", window)
    cut = explain(WAVE.repeat(3), RATE, **options)
    # every frame sees all it depends on; only the order of sums in a kernel may differ, so borders
    # are as exact as the interior
    assert torch.allclose(cut.heatmap, whole.heatmap, atol=1e-5, rtol=0)
    assert torch.allclose(cut.spread, whole.spread, atol=1e-5, rtol=0)


def test_windows_without_context_would_leave_seams(model, monkeypatch):
    """The test above can fail: it sees a context that is too short."""
    whole = explain(WAVE, RATE, model=model, **EXACT)
    monkeypatch.setattr(api, "WINDOW_FRAMES", 64)
    monkeypatch.setattr(api, "CONTEXT_FRAMES", 8)
    cut = explain(WAVE, RATE, model=model, **EXACT)
    assert not torch.allclose(cut.heatmap, whole.heatmap, atol=1e-5, rtol=0)


def test_the_papers_model_runs_in_windows(monkeypatch):
    # its group norm sees the whole window, so windows agree only roughly
    monkeypatch.setattr(api, "WINDOW_FRAMES", 32)
    ex = explain(WAVE[:1000], RATE, model=make_model(TINY_PAPER), draws=1, steps=2)
    assert ex.heatmap.shape == (33, 63)
    assert bool(torch.isfinite(ex.heatmap).all())


def test_progress_ends_at_its_total(model, monkeypatch):
    monkeypatch.setattr(api, "WINDOW_FRAMES", 64)
    told = []
    explain(WAVE, RATE, model=model, progress=lambda done, total: told.append((done, total)))
    # three windows of three draws of two steps
    assert {total for _, total in told} == {18}
    assert [done for done, _ in told] == list(range(1, 19))


def test_progress_counts_the_detectors_stretches_too(monkeypatch):
    monkeypatch.setattr(api, "DETECTOR_SECONDS", 0.5)
    told = []
    model = make_model(PRESETS["tiny"], draws=1)
    explain(noise(20_000), 16_000, model=model, progress=lambda *now: told.append(now))
    # one window, and three stretches of the embedded detector
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_progress_true_shows_a_bar_and_false_none(model, capsys):
    explain(WAVE, RATE, model=model, progress=True)
    assert "6/6" in capsys.readouterr().err
    explain(WAVE, RATE, model=model, progress=False)
    explain(WAVE, RATE, model=model)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------ what changes the maps


def test_equal_calls_give_equal_maps_and_seeds_do_not(model):
    first = explain(WAVE, RATE, model=model)
    torch.manual_seed(7)
    assert same(explain(WAVE, RATE, model=model), first)
    other = explain(WAVE, RATE, model=model, seed=1)
    assert not torch.equal(other.heatmap, first.heatmap)


def test_a_level_is_no_artifact(model):
    loud, quiet = (explain(g * WAVE, RATE, model=model, **EXACT) for g in (1.0, 2.0**-12))
    assert torch.allclose(loud.heatmap, quiet.heatmap, atol=1e-5)


def test_a_device_may_be_torchs(model):
    same(
        explain(WAVE, RATE, model=model, device=torch.device("cpu"), **EXACT),
        explain(WAVE, RATE, model=model, device="cpu", **EXACT),
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_the_precision_is_the_one_computed_in(model, precision):
    seen = set()
    watch = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: seen.add(out.dtype) if isinstance(module, torch.nn.Conv2d) else None
    )
    with watch:
        found = explain(WAVE, RATE, model=model, detector=False, precision=precision)
    assert seen == {precision}
    assert found.provenance.precision == str(precision).removeprefix("torch.")


def test_bfloat16_is_near_float32(model):
    exact, fast = (
        explain(WAVE, RATE, model=model, precision=p) for p in (torch.float32, torch.bfloat16)
    )
    # 8 bits of mantissa
    assert torch.allclose(exact.heatmap, fast.heatmap, atol=0.02)
    assert not torch.equal(exact.heatmap, fast.heatmap)


def test_every_kind_of_source_gives_the_same_maps(model, tmp_path):
    pcm = (WAVE * 2**15).round().to(torch.int16)
    path = tmp_path / "call.flac"
    sf.write(path, pcm.numpy(), RATE, subtype="PCM_16")
    wave = pcm.float() / 2**15
    first = explain(path, model=model)
    assert first.provenance.source == str(path)
    for source, rate in (
        (str(path), RATE),
        (path.read_bytes(), None),
        (wave, RATE),
        (wave.double().numpy(), RATE),
        (pcm.numpy(), RATE),
        (pcm.expand(12, -1), RATE),
        ({"array": wave.numpy(), "sampling_rate": RATE}, None),
    ):
        ex = explain(source, rate, model=model)
        assert same(ex, first)
        assert ex.provenance.samples_sha256 == first.provenance.samples_sha256


def test_twelve_channels_are_averaged(model):
    many = noise(12, 2000)
    one, mean = (explain(wave, RATE, model=model, **EXACT) for wave in (many, many.mean(0)))
    # the order of a sum over twelve channels depends on their layout in memory
    assert torch.allclose(one.wave, mean.wave, atol=1e-7)
    assert torch.allclose(one.heatmap, mean.heatmap, atol=1e-4)


@pytest.mark.parametrize("rate", [1000, 8000, 44_100])
def test_any_rate_lands_on_the_models_axes(model, rate):
    ex = explain(noise(rate), rate, model=model)
    assert ex.axes.n_samples == 1000
    assert ex.axes.config == model.config.stft


def test_the_model_is_left_as_it_was(model):
    before = weights_hash(model)
    expected = explain(WAVE, RATE, model=model)
    model.train()
    try:
        assert same(explain(WAVE, RATE, model=model), expected)
        assert model.training
        with pytest.raises(ConfigError):
            explain(WAVE, RATE, model=model, draws=0)
        assert model.training
    finally:
        model.eval()
    assert weights_hash(model) == before
    assert all(p.grad is None for p in model.parameters())


# ------------------------------------------------------------------ bad input


def truncated(folder):
    path = folder / "cut.flac"
    sf.write(path, WAVE.numpy(), RATE)
    path.write_bytes(path.read_bytes()[:-500])
    return path


def text(folder):
    path = folder / "notes.wav"
    path.write_text("no audio here")
    return path


NAN, INF = WAVE.clone(), WAVE.clone()
NAN[100], INF[100] = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("source", "rate", "says"),
    [
        ([], RATE, "empty|no samples|0 samples"),
        (torch.zeros(0), RATE, "empty|no samples|0 samples"),
        (torch.zeros(2, 0), RATE, "empty|no samples|0 samples"),
        (torch.ones(1), RATE, "analysis window needs 64"),
        (torch.ones(63), RATE, "analysis window needs 64"),
        (torch.zeros(3000), RATE, "silence"),
        (torch.full((3000,), 1e-42), RATE, "silence"),
        (NAN, RATE, "NaN|finite"),
        (INF, RATE, "NaN|inf|finite"),
        (WAVE.to(torch.complex64), RATE, "complex"),
        (WAVE > 0, RATE, "bool"),
        (WAVE, None, "sample_rate"),
        (WAVE, 0, "rate"),
        (WAVE, -RATE, "rate"),
        (WAVE, "fast", "rate"),
        (WAVE.reshape(3, 10, 100), RATE, "axes|shape"),
        (None, RATE, "type object"),
        (object(), RATE, "type object"),
        ({"array": WAVE.numpy()}, None, "rate"),
        ("nowhere.wav", None, "nowhere.wav"),
        (b"", None, "empty|bytes"),
        (text, None, "notes.wav"),
        (truncated, None, "cut.flac"),
    ],
)
def test_bad_audio_is_an_audio_error(model, tmp_path, source, rate, says):
    given_source = source(tmp_path) if callable(source) else source
    with pytest.raises(AudioError, match=says):
        explain(given_source, rate, model=model)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        {"draws": 0},
        {"draws": -3},
        {"draws": 1.5},
        {"steps": 0},
        {"steps": 101},
        {"steps": "3"},
        {"draws": "3"},
        {"share": "0.1"},
        {"share": -0.05},
        {"share": 0.0},
        {"share": 1.0},
        {"share": float("nan")},
        {"seed": "a"},
        {"precision": torch.float64},
        {"precision": torch.int8},
        {"precision": "bfloat16"},
        {"precision": ""},
        {"device": "abacus"},
        {"device": f"cuda:{torch.cuda.device_count()}"},
        {"device": None},
    ],
)
def test_settings_outside_their_domain_are_config_errors(model, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        explain(WAVE, RATE, model=model, **options)


def test_a_missing_asset_is_named():
    with pytest.raises(ConfigError, match="nothing"):
        asset("nothing.flac")


DTYPES = ["u1", "i1", "i2", "u2", "i4", "i8", "f2", "f4", "f8", "c8", "?"]


@settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=st.one_of(
        st.tuples(st.integers(0, 1500)),
        st.tuples(st.integers(0, 13), st.integers(0, 1500)),
        st.tuples(st.integers(0, 1500), st.integers(0, 3)),
        st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple),
    ),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 1.0, 3e4]),
    rate=st.one_of(st.none(), st.integers(-2, 50_000), st.sampled_from([1000, 8000, 16000.0, 1e9])),
    as_tensor=st.booleans(),
)
def test_any_array_is_explained_or_refused_with_a_typed_error(
    model, shape, dtype, scale, rate, as_tensor
):
    value = np.random.default_rng(0).standard_normal(shape) * scale
    with np.errstate(all="ignore"):
        array = np.asarray(value).astype(dtype)
    source = torch.from_numpy(array) if as_tensor else array
    try:
        ex = explain(source, rate, model=model, draws=1, steps=1)
    except SpecSegDiffError:
        return
    assert isinstance(ex, Explanation)
    heat = ex.heatmap
    assert heat.shape == ex.axes.shape
    assert 0 <= float(heat.min()) <= float(heat.max()) <= 1
    assert bool(torch.isfinite(ex.spread).all())
    assert int(ex.mask.sum()) == round(0.05 * heat.numel())


def test_an_explanation_is_asked_about_a_part_of_itself(model, tmp_path):
    ex = explain(WAVE, RATE, model=model)
    answer = ex.ask("7")
    assert answer == ask(ex, "7")
    assert str(answer)
    ex.save(tmp_path / "out")
    loaded = Explanation.load(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"specsegdiff\.ask"):
        loaded.ask("7")
    assert ask(loaded, "7") == answer


def test_the_hash_of_the_file_is_taken_while_it_is_there(model, tmp_path, monkeypatch):
    sf.write(tmp_path / "call.wav", WAVE, RATE)
    digest = hashlib.sha256((tmp_path / "call.wav").read_bytes()).hexdigest()
    assert explain(str(tmp_path / "call.wav"), model=model).provenance.file_sha256 == digest
    assert explain(WAVE, RATE, model=model).provenance.file_sha256 == ""

    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(api, "file_sha256", gone)
    with pytest.raises(AudioError, match="cannot be hashed"):
        explain(tmp_path / "call.wav", model=model)
