"""Mix-frame post-training end to end on a toy corpus, what each stage trains, and what it reads."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import ENCODER, noise
from test_protocols import tree_5, tree_2019
from toy import write_corpus

from specsegdiff.data.audio import write_audio
from specsegdiff.data.protocols import Trial
from specsegdiff.data.splice import SpliceConfig
from specsegdiff.errors import ConfigError, DependencyError, ShapeError
from specsegdiff.models.attm import AttMECAPA, AttMECAPAConfig
from specsegdiff.models.detector import fit_temperature
from specsegdiff.models.frame_head import FrameScorer
from specsegdiff.models.wav2vec2_aasist import PRESETS, Wav2Vec2AASIST

pytest.importorskip("lightning", reason="training needs the extra 'train'")
pytest.importorskip("peft", reason="post-training needs peft")

from specsegdiff.train import detector as calibration
from specsegdiff.train import mfpt
from specsegdiff.train.mfpt import (
    FrameModule,
    MFPTConfig,
    UtteranceModule,
    adapt,
    read_config,
    read_trials,
    starting_detector,
    train,
)
from specsegdiff.train.recipe import RunConfig
from specsegdiff.train.splices import Clips, Pool, SplicedClips, stretch, subset, whole

# Lightning's advice on workers, folders and intervals
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parent.parent
RUN = RunConfig(
    steps=2, batch=2, learning_rate=1e-2, warmup=1, validate_every=1, precision="32-true", ema=0.5
)
SPLICES = SpliceConfig(n_samples=4_000)
TINY = replace(
    PRESETS["tiny"],
    backbone=replace(ENCODER, num_hidden_layers=2),
    n_samples=6_000,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), ("train", "train", "val", "val"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Folder of an untrained detector."""
    folder = tmp_path_factory.mktemp("detector")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Wav2Vec2AASIST(TINY).save_pretrained(folder)
    return folder


def config_of(corpus, detector, **changes):
    small = MFPTConfig(
        detector=str(detector),
        data=str(corpus),
        splice=SPLICES,
        rank=2,
        alpha=4,
        post=RUN,
        utterance=RUN,
    )
    return replace(small, **changes)


@pytest.fixture(scope="module")
def finished(corpus, detector, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        # two steps may classify all of val, or none of it: then there is none to fit
        patch.setattr(calibration, "fit_temperature", lambda *args, **options: 2.0)
        return out, train(config_of(corpus, detector), out, accelerator="cpu")


# ------------------------------------------------------------------ a whole run


def test_a_run_leaves_an_ordinary_detector_a_frame_scorer_and_logs(corpus, detector, finished):
    out, model = finished
    loaded = Wav2Vec2AASIST.from_pretrained(out / "model")
    assert loaded.config == model.config == replace(TINY, temperature=2.0)
    assert set(loaded.state_dict()) == set(Wav2Vec2AASIST(TINY).state_dict())
    wave = noise(2, 7_000)
    with torch.no_grad():
        # stored in half precision
        assert torch.allclose(loaded(wave), model(wave), atol=2e-2)
        frames = FrameScorer.from_pretrained(out / "frames")
        assert frames.p_spoof(wave).shape == (2, TINY.backbone.n_frames(7_000))
    assert frames.config.backbone == TINY.backbone
    assert frames.config.n_samples == SPLICES.n_samples
    written = json.loads((out / "config.json").read_text())
    assert written == json.loads(json.dumps(asdict(config_of(corpus, detector))))
    for stage, name in (("post", "val_frame_eer"), ("utterance", "val_eer")):
        with (out / stage / "log" / "version_0" / "metrics.csv").open() as file:
            rates = [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
        assert len(rates) == 2
        assert all(0 <= rate <= 100 for rate in rates)


def test_lora_changes_its_layers_and_nothing_else_of_the_encoder(detector, finished):
    out, model = finished
    start = Wav2Vec2AASIST.from_pretrained(detector)
    frames = FrameScorer.from_pretrained(out / "frames")
    for name, value in start.state_dict().items():
        adapted = any(f".{target}.weight" in name for target in mfpt.TARGETS)
        encoder = name.startswith("backbone.")
        if encoder:
            after = frames.state_dict()[name]
            same = torch.equal(after, value.half().float())
            assert same != adapted, name
            assert torch.equal(model.state_dict()[name], value) != adapted, name
            # the second stage trains the same LoRA on
            again = torch.equal(after, model.state_dict()[name].half().float())
            assert again != adapted, name
        else:
            # batch statistics too: a loaded model is in evaluation mode
            assert not torch.equal(model.state_dict()[name], value), name


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stage", ["post", "utterance"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    corpus, detector, finished, tmp_path, monkeypatch, stage
):
    kind = {"post": FrameModule, "utterance": UtteranceModule}[stage]
    compute, count = kind.loss, 0

    def fail(*args):
        nonlocal count
        count += 1
        if count == 2:
            raise Interrupted
        return compute(*args)

    monkeypatch.setattr(calibration, "fit_temperature", lambda *args, **options: 2.0)
    monkeypatch.setattr(kind, "loss", fail)
    with pytest.raises(Interrupted):
        train(config_of(corpus, detector), tmp_path, accelerator="cpu")
    monkeypatch.setattr(kind, "loss", compute)
    resumed = train(config_of(corpus, detector), tmp_path, resume=True, accelerator="cpu")
    for name, value in finished[1].state_dict().items():
        assert torch.allclose(resumed.state_dict()[name].float(), value.float(), atol=1e-5), name


def test_the_second_stage_alone_is_the_control(corpus, detector, tmp_path, capsys):
    config = config_of(corpus, detector, post=None, back_end="attm-ecapa")
    small = {"channels": 8, "scale": 2, "merged": 6, "attention": 4, "embedding": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttMECAPAConfig, "__init__", _with_defaults(AttMECAPAConfig, small))
        patch.setattr(calibration, "fit_temperature", _no_optimum)
        model = train(config, tmp_path, accelerator="cpu")
        assert isinstance(AttMECAPA.from_pretrained(tmp_path / "model"), AttMECAPA)
    assert not (tmp_path / "frames").exists()
    assert not (tmp_path / "post").exists()
    assert model.config.temperature == 1
    assert "not calibrated: no optimum" in capsys.readouterr().out


def _with_defaults(kind, changes):
    original = kind.__init__

    def init(self, **values):
        original(self, **(changes | values))

    return init


def _no_optimum(*args, **options):
    raise ShapeError("no optimum")


# ------------------------------------------------------------------ losses


def test_the_first_stage_is_binary_cross_entropy_of_frames(detector):
    scorer = FrameScorer.from_detector(Wav2Vec2AASIST.from_pretrained(detector), n_samples=4_000)
    module = FrameModule(scorer.eval(), RUN, None)
    waves = noise(2, 4_000)
    labels = (torch.arange(2 * 12).reshape(2, 12) % 3 == 0).float()
    with torch.no_grad():
        p = scorer.p_spoof(waves)
        expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
        assert float(module.loss(waves, labels)) == pytest.approx(float(expected), rel=1e-5)


def test_the_second_stage_is_cross_entropy_in_the_columns_that_labels_name(detector):
    model = Wav2Vec2AASIST.from_pretrained(detector)
    waves, labels = noise(3, 6_000), torch.tensor([True, False, True])
    with torch.no_grad():
        rows = F.log_softmax(model(waves), dim=1)
        for names, columns in (
            (("spoof", "bonafide"), (0, 1, 0)),
            (("bonafide", "spoof"), (1, 0, 1)),
        ):
            model.labels = names
            found = UtteranceModule(model, RUN, []).loss(waves, labels)
            expected = -torch.stack([row[c] for row, c in zip(rows, columns, strict=True)]).mean()
            assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_temperature_is_the_one_that_val_asks_for(detector, monkeypatch):
    trials = [Trial(str(i), Path("x"), i < 2) for i in range(4)]
    module = UtteranceModule(Wav2Vec2AASIST.from_pretrained(detector), RUN, trials)
    margins = torch.tensor([3.0, -1.0, -3.0, -3.0])
    monkeypatch.setattr(
        module, "_logits", lambda place: torch.stack([margins[place], torch.tensor(0.0)])[None]
    )
    module.calibrate()
    rows = torch.stack([margins, torch.zeros(4)], dim=1)
    expected = fit_temperature(rows, torch.tensor([True, True, False, False]))
    assert module.detector.config.temperature == pytest.approx(expected)
    assert expected != 1


# ------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm", "hubert"])
def test_lora_starts_without_effect_and_merging_changes_no_output(family):
    backbone = replace(TINY.backbone, family=family)
    model = Wav2Vec2AASIST.from_preset("tiny", backbone=backbone, n_samples=6_000).eval()
    wave = noise(1, 6_000)
    with torch.no_grad():
        before = model(wave)
        adapter = adapt(model.backbone, rank=3, alpha=6)
        assert torch.allclose(model(wave), before, atol=1e-6)
        trained = {n: p for n, p in model.backbone.named_parameters() if p.requires_grad}
        assert all("lora_" in name for name in trained)
        # two matrices for each of five layers in each of two blocks
        assert len(trained) == 2 * 5 * 2
        assert {min(p.shape) for p in trained.values()} == {3}
        for value in trained.values():
            value.add_(noise(*value.shape, scale=0.3))
        changed = model(wave)
        assert not torch.allclose(changed, before, atol=1e-3)
        model.backbone = adapter.merge_and_unload()
        assert torch.allclose(model(wave), changed, atol=1e-5)
        assert set(model.state_dict()) == set(Wav2Vec2AASIST(model.config).state_dict())


def test_a_missing_peft_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(DependencyError, match=r"specsegdiff\[train\]"):
        adapt(torch.nn.Linear(1, 1), rank=1, alpha=1)


# ------------------------------------------------------------------ where it starts


def test_a_run_starts_from_a_detector_or_an_encoder(corpus, detector, tmp_path, monkeypatch):
    config = config_of(corpus, detector)
    assert type(starting_detector(config)) is Wav2Vec2AASIST
    AttMECAPA.from_detector(
        Wav2Vec2AASIST(TINY), channels=8, scale=2, merged=6, attention=4, embedding=4
    ).save_pretrained(tmp_path / "attm")
    with pytest.raises(ConfigError, match="say back_end: attm-ecapa"):
        starting_detector(replace(config, detector=str(tmp_path / "attm")))
    again = starting_detector(
        replace(config, detector=str(tmp_path / "attm"), back_end="attm-ecapa")
    )
    assert again.config.channels == 8
    embedded = starting_detector(replace(config, detector="embedded"))
    assert embedded.name == "wav2vec2-aasist-small"
    asked = []
    for kind in (Wav2Vec2AASIST, AttMECAPA):
        monkeypatch.setattr(
            kind, "from_backbone", classmethod(lambda cls, *a, **o: asked.append((cls, a, o)))
        )
    for back_end in ("aasist", "attm-ecapa"):
        starting_detector(replace(config, detector=None, backbone="a/b", back_end=back_end))
    expected = [
        (Wav2Vec2AASIST, ("a/b",), {"normalise": True}),
        (AttMECAPA, ("a/b",), {"normalise": True}),
    ]
    assert asked == expected


# ------------------------------------------------------------------ data


def test_trials_of_a_split_and_a_share(corpus, detector, tmp_path):
    config = config_of(corpus, detector)
    known, held = read_trials(config, "train"), read_trials(config, "val")
    assert [t.is_spoof for t in known] == [False, False, True, True]
    assert not {t.path for t in known} & {t.path for t in held}
    assert len(read_trials(replace(config, val_items=2), "val")) == 2
    half = read_trials(replace(config, share=0.5), "train")
    assert {t.is_spoof for t in half} == {False, True}
    assert len(half) == 2
    for name, tree in (("asvspoof2019", tree_2019), ("asvspoof5", tree_5)):
        root = tree(tmp_path / name)
        changed = replace(config, corpus=name, data=str(root))
        assert len(read_trials(changed, "train")) == 2
        assert len(read_trials(changed, "val")) == 1


def test_a_larger_share_holds_the_smaller_and_groups_stay_whole():
    trials = [
        Trial(f"{g}{i}", Path(f"{g}{i}"), i > 0, group=str(g)) for g in range(20) for i in range(3)
    ]
    kept = {share: {t.id for t in subset(trials, share, seed=3)} for share in (0.05, 0.2, 0.5, 1.0)}
    assert [len(k) for k in kept.values()] == [3, 12, 30, 60]
    assert kept[0.05] < kept[0.2] < kept[0.5] < kept[1.0]
    assert {t.id for t in subset(trials, 0.2, seed=4)} != kept[0.2]
    alone = [Trial(str(i), Path(str(i)), False) for i in range(10)]
    assert len(subset(alone, 0.3, seed=0)) == 3


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Three recordings of each class whose samples tell which it is."""
    folder, trials = tmp_path_factory.mktemp("marked"), []
    for i in range(6):
        path = folder / f"{i}.wav"
        write_audio(path, torch.full((5_000,), (i + 1) / 10), sample_rate=16_000)
        trials.append(Trial(str(i), path, i >= 3, system=str(i) if i >= 3 else ""))
    return Pool(trials)


def source(samples):
    """Which recordings the samples are from."""
    return (10 * samples).round().int() - 1


def test_a_clip_has_its_recordings_class_and_both_are_alike_often(marked):
    clips = Clips(marked, n_samples=100, count=200, seed=0)
    assert len(clips) == 200
    spoofed = []
    for index in range(200):
        wave, label = clips[index]
        assert wave.shape == (100,)
        assert bool(label) == (int(source(wave)[0]) >= 3)
        spoofed.append(float(label))
    assert abs(np.mean(spoofed) - 0.5) < 4 * 0.5 / 200**0.5
    assert torch.equal(clips[7][0], clips[7][0])


@pytest.mark.parametrize("control", [False, True])
def test_splices_join_two_recordings_and_label_frames(marked, control):
    config = replace(SPLICES, n_samples=3_000, control=control)
    options = {"reading": "source_class", "count": 40, "seed": 1}
    clips = SplicedClips(marked, config, TINY.backbone, **options)
    other = SplicedClips(marked, config, TINY.backbone, **options | {"reading": "injected"})
    bases = set()
    for index in range(40):
        mixed = clips.spliced(index)
        wave, labels = clips[index]
        assert torch.equal(wave, mixed.wave)
        assert len(source(wave).unique()) == 2
        ((first, end),) = mixed.segments
        base, donor = int(source(wave)[first - 1 if first else end]), int(source(wave)[first])
        assert (base >= 3, donor >= 3) == (mixed.base_is_spoof, mixed.donor_is_spoof)
        assert (mixed.base_is_spoof == mixed.donor_is_spoof) == control
        centres = [320 * k + TINY.backbone.reach // 2 for k in range(len(labels))]
        assert len(labels) == TINY.backbone.n_frames(3_000)
        assert labels.tolist() == [float(int(source(wave)[c]) >= 3) for c in centres]
        assert other[index][1].tolist() == [float(first <= c < end) for c in centres]
        bases.add(mixed.base_is_spoof)
    assert bases == {False, True}


def test_a_recording_is_cut_levelled_and_repeated(marked, tmp_path):
    trial = replace(marked.trials[True][0], gain_db=20.0, n_samples=1_500)
    rng = np.random.default_rng(0)
    assert whole(trial).shape == (1_500,)
    assert torch.allclose(whole(trial), torch.tensor(0.04), atol=1e-4)
    assert stretch(trial, 4_000, rng).shape == (4_000,)
    assert torch.allclose(stretch(trial, 10, rng), torch.tensor(0.04), atol=1e-3)


def test_pools_that_cannot_serve_are_refused(marked):
    reals = marked.trials[False]
    with pytest.raises(ConfigError, match="3 bona fide and 0 spoofed"):
        Pool(reals)
    lonely = Pool([*reals, marked.trials[True][0]])
    with pytest.raises(ConfigError, match="two recordings or more"):
        SplicedClips(
            lonely,
            replace(SPLICES, control=True),
            TINY.backbone,
            reading="injected",
            count=1,
            seed=0,
        )


# ------------------------------------------------------------------ configuration


def test_the_shipped_configurations_are_valid():
    folder = ROOT / "configs" / "detector"
    small, paper = (
        read_config(folder / f"mfpt-{name}.yaml", seed=3) for name in ("small", "paper")
    )
    for config in (small, paper):
        assert (config.rank, config.seed, config.stage("post").seed) == (32, 3, 3)
        assert config.stage("post").learning_rate == 4e-4
        assert config.stage("utterance").learning_rate == 5e-5
        assert config.splice.ratio == (0.1, 0.3)
    assert paper.splice == SpliceConfig()
    assert (paper.backbone, paper.back_end) == ("microsoft/wavlm-large", "attm-ecapa")
    assert small.detector == "embedded"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backbone": "a/b"}, "either detector or backbone"),
        ({"detector": None}, "either detector or backbone"),
        ({"share": 0.0}, "share"),
        ({"rank": 0}, "rank"),
        ({"val_items": -1}, "val_items"),
        ({"post": replace(RUN, seed=1)}, "one seed"),
    ],
)
def test_a_wrong_setting_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        replace(config_of("pairs.csv", "folder"), **changes)


def test_yaml_may_leave_a_stage_out_and_may_not_name_unknown_fields(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("detector: embedded\ndata: x\npost: null\nutterance: {steps: 3}\n")
    config = read_config(file)
    assert config.post is None
    assert (config.utterance.steps, config.utterance.learning_rate) == (3, 5e-5)
    for wrong in ("splice: {length: 3}", "back_end: lstm", "reading: spoof", "speed: 1"):
        file.write_text(f"detector: embedded\ndata: x\n{wrong}\n")
        with pytest.raises(ConfigError, match=wrong.split(":")[0]):
            read_config(file)
