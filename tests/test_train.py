"""Training end to end on a toy corpus, its resumption, its configuration, and its crops."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from models import awake, noise
from toy import vocoded, voice, write_corpus
from typer.testing import CliRunner

from specsegdiff.benchmark import score_maps
from specsegdiff.cli import app
from specsegdiff.data.audio import load_audio, write_audio
from specsegdiff.data.manifest import read_manifest, write_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import CheckpointError, ConfigError, CorpusError
from specsegdiff.hub import weights_hash
from specsegdiff.masks import MaskConfig, difference, top_share
from specsegdiff.models import wav2vec2_aasist
from specsegdiff.models.addsegdiff import ADDSegDiff, FrontConfig
from specsegdiff.models.segdiff import PRESETS, SegDiffConfig, SpecSegDiff
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

pytest.importorskip("lightning", reason="training needs the extra 'train'")

from specsegdiff.sampling import sample
from specsegdiff.train import features, recipe, segmenter
from specsegdiff.train.average import average
from specsegdiff.train.features import (
    AugmentConfig,
    Change,
    Crops,
    Item,
    make_item,
    make_items,
)
from specsegdiff.train.recipe import moving_average
from specsegdiff.train.segmenter import (
    SegmenterModule,
    TrainConfig,
    read_config,
    start_from,
    train,
)

# Lightning's advice on workers, folders and intervals
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parent.parent
MODEL = PRESETS["tiny"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Manifest of three pairs to train on and one to validate."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def config_of(corpus, **changes):
    # a high rate from the first step, so that different crops would give different weights
    small = TrainConfig(
        preset="tiny",
        pairs=str(corpus),
        local_pairs=None,
        steps=4,
        batch=2,
        frames=32,
        learning_rate=1e-2,
        warmup=1,
        validate_every=2,
        precision="32-true",
        augment=AugmentConfig(copies=0),
    )
    return replace(small, **changes)


def logged(out, version):
    """Measurements on val by step, which counts from 0."""
    with (out / "log" / f"version_{version}" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val_gdice")]
    return {int(row["step"]): float(row["val_gdice"]) for row in rows}


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run of four steps, uninterrupted: its folder and its model."""
    out = tmp_path_factory.mktemp("run")
    return out, train(config_of(corpus), out, accelerator="cpu")


def test_a_run_leaves_a_model_a_log_and_its_configuration(corpus, finished):
    out, model = finished
    loaded = SpecSegDiff.from_pretrained(out / "model")
    assert loaded.config == model.config == MODEL
    # stored as float16
    assert torch.equal(weights(loaded), weights(model).half().float())
    assert not model.training
    assert json.loads((out / "config.json").read_text()) == json.loads(
        json.dumps(asdict(config_of(corpus)))
    )
    scores = logged(out, 0)
    # in percent
    assert list(scores) == [1, 3]
    assert all(0 < score <= 100 for score in scores.values())


def test_training_changes_every_tensor(finished):
    torch.manual_seed(0)
    start = SpecSegDiff(MODEL).state_dict()
    for name, value in finished[1].state_dict().items():
        # seeded alike, so only training can tell them apart
        assert not torch.equal(value, start[name]), name


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupted(corpus, tmp_path, monkeypatch):
    """A run that broke off in its fourth step, one step after its checkpoint."""
    compute, count = segmenter.diffusion_loss, 0

    def fail(*args, **options):
        nonlocal count
        count += 1
        if count == 4:
            raise Interrupted
        return compute(*args, **options)

    monkeypatch.setattr(segmenter, "diffusion_loss", fail)
    with pytest.raises(Interrupted):
        train(config_of(corpus), tmp_path, accelerator="cpu")
    monkeypatch.setattr(segmenter, "diffusion_loss", compute)
    assert not (tmp_path / "model").exists()
    return tmp_path


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(corpus, finished, interrupted):
    resumed = train(config_of(corpus), interrupted, resume=True, accelerator="cpu")
    gap = (weights(resumed) - weights(finished[1])).abs().max()
    assert float(gap) <= 1e-6
    # the log of the first part is still there, and the last score is that of the whole run
    assert list(logged(interrupted, 0)) == [1]
    assert logged(interrupted, 1)[3] == pytest.approx(logged(finished[0], 0)[3], abs=1e-3)


def test_a_damaged_checkpoint_or_another_models_is_named(corpus, interrupted):
    other = config_of(corpus, model={"refine": ()})
    with pytest.raises(CheckpointError, match="does not hold this run's model"):
        train(other, interrupted, resume=True, accelerator="cpu")
    last = interrupted / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.ckpt is no complete checkpoint"):
        train(config_of(corpus), interrupted, resume=True, accelerator="cpu")


def test_other_crops_would_have_been_noticed(corpus, finished, interrupted, monkeypatch):
    """The test above can fail: a loader that starts again at its first crop ends elsewhere."""
    monkeypatch.setattr(recipe.Onwards, "__iter__", lambda self: iter(range(len(self))))
    resumed = train(config_of(corpus), interrupted, resume=True, accelerator="cpu")
    assert float((weights(resumed) - weights(finished[1])).abs().max()) > 1e-4


def test_a_run_that_stops_early_goes_on_along_the_same_schedule(corpus, finished, tmp_path):
    early = train(config_of(corpus, stop=2), tmp_path, accelerator="cpu")
    assert float((weights(early) - weights(finished[1])).abs().max()) > 1e-4
    resumed = train(config_of(corpus), tmp_path, resume=True, accelerator="cpu")
    assert float((weights(resumed) - weights(finished[1])).abs().max()) <= 1e-6
    # nothing is left to do: the same model again
    again = train(config_of(corpus), tmp_path, resume=True, accelerator="cpu")
    assert torch.equal(weights(again), weights(resumed))


def test_local_pairs_and_other_fields_of_the_model_are_used(corpus, tmp_path):
    local = tmp_path / "local.csv"
    write_manifest(read_manifest(corpus)[:1], local)
    config = config_of(corpus, local_pairs=str(local), steps=1, model={"deterministic": True})
    model = train(config, tmp_path / "run", accelerator="cpu")
    assert model.config.deterministic
    assert SpecSegDiff.from_pretrained(tmp_path / "run" / "model").config.deterministic


def test_an_addsegdiff_maps_features_first_and_starts_from_a_specsegdiff(
    corpus, finished, tmp_path, monkeypatch
):
    """For its first steps only the mapping moves; the networks then start from those given."""
    torch.manual_seed(0)
    Wav2Vec2AASIST.from_preset("tiny").save_pretrained(tmp_path / "detector")
    config = config_of(
        corpus,
        detector=str(tmp_path / "detector"),
        init=str(finished[0] / "model"),
        mapping_steps=4,
        model={"mapping": "grid", "hidden": 12, "layers": (0, 3)},
        augment=AugmentConfig(copies=0, gain_db=0.0, tilt_db=0.0),
        ema=0.0,
    )
    start = segmenter.build(config)
    assert (start.config.layers, start.config.feature_size) == ((0, 3), 32)
    mapped = train(config, tmp_path / "mapped", accelerator="cpu")
    given = SpecSegDiff.from_pretrained(finished[0] / "model").state_dict()
    for name, value in mapped.state_dict().items():
        if name.startswith("project."):
            assert not torch.equal(value, start.state_dict()[name]), name
        else:
            assert torch.equal(value, given[name]), name
    whole = train(replace(config, mapping_steps=1), tmp_path / "whole", accelerator="cpu")
    assert not torch.equal(whole.unet.last.weight, mapped.unet.last.weight)
    loaded = ADDSegDiff.from_pretrained(
        tmp_path / "whole" / "model",
        detector=Wav2Vec2AASIST.from_pretrained(tmp_path / "detector"),
    )
    assert loaded.config == whole.config
    # goes on: at no learning rate it stays what it was, mapping and all
    onward = replace(
        config, init=str(tmp_path / "whole" / "model"), mapping_steps=0, learning_rate=1e-12
    )
    same = train(onward, tmp_path / "same", accelerator="cpu")
    assert torch.allclose(weights(same), weights(loaded), atol=1e-9)
    with pytest.raises(ConfigError, match="whose mapping is learnt"):
        train(replace(onward, mapping_steps=1), tmp_path / "refused", accelerator="cpu")


def test_an_addsegdiff_reads_the_front_end_of_its_detector(corpus, finished, tmp_path):
    tiny = wav2vec2_aasist.PRESETS["tiny"]
    spectral = replace(
        tiny.backbone,
        spectrogram=True,
        conv_dim=(256, 4, 6),
        conv_kernel=(512, 3, 3),
        conv_stride=(160, 1, 2),
    )
    torch.manual_seed(0)
    Wav2Vec2AASIST(replace(tiny, backbone=spectral)).save_pretrained(tmp_path / "detector")
    config = config_of(
        corpus,
        detector=str(tmp_path / "detector"),
        front=0,
        init=str(finished[0] / "model"),
        mapping_steps=4,
        model={"mapping": "grid", "hidden": 12, "layers": (0, 3), "maps": 1},
        augment=AugmentConfig(copies=0, gain_db=0.0, tilt_db=0.0),
        ema=0.0,
    )
    start = segmenter.build(config)
    assert start.config.front == FrontConfig(0, channels=4, rows=128, hop=160, window=832)
    # the front end learns what a SpecSegDiff sees, and nothing else learns meanwhile
    mapped = train(config, tmp_path / "mapped", accelerator="cpu").state_dict()
    for name, value in start.state_dict().items():
        if name.startswith("front."):
            assert not torch.equal(value, mapped[name]), name
    given = SpecSegDiff.from_pretrained(finished[0] / "model").state_dict()
    assert torch.equal(mapped["unet.last.weight"], given["unet.last.weight"])
    whole = train(replace(config, mapping_steps=0), tmp_path / "whole", accelerator="cpu")
    loaded = ADDSegDiff.from_pretrained(tmp_path / "whole" / "model", detector=None)
    assert loaded.config == whole.config


def test_settings_of_an_addsegdiff_that_make_no_sense_are_refused(corpus):
    with pytest.raises(ConfigError, match="cannot be equalised"):
        config_of(corpus, detector="somewhere")
    with pytest.raises(ConfigError, match="mapping_steps"):
        config_of(corpus, mapping_steps=1)
    with pytest.raises(ConfigError, match="name the detector too"):
        config_of(corpus, front=0)


def test_a_corpus_without_training_pairs_is_refused(corpus, tmp_path):
    only_val = tmp_path / "pairs.csv"
    write_manifest([p for p in read_manifest(corpus) if p.split == "val"], only_val)
    with pytest.raises(ConfigError, match="no readable pair"):
        train(config_of(only_val), tmp_path / "run", accelerator="cpu")
    with pytest.raises(CorpusError, match=r"nowhere.csv"):
        train(config_of(tmp_path / "nowhere.csv"), tmp_path / "run", accelerator="cpu")


def test_a_run_starts_from_a_model_that_lacks_the_newer_inputs(tmp_path):
    torch.manual_seed(0)
    older = SpecSegDiff(replace(MODEL, smoothed=False, refine=())).eval()
    newer = SpecSegDiff(MODEL).eval()
    start_from(newer, older)
    condition = noise(1, 513, 16, scale=1.0)
    x, step = torch.randn(1, 32, 65, 4), torch.tensor([50])
    with torch.no_grad():
        same = newer.denoise(x, step, newer.encode(condition))
        assert torch.equal(same, older.denoise(x, step, older.encode(condition)))
    with pytest.raises(ConfigError, match="do not fit"):
        start_from(newer, SpecSegDiff(replace(MODEL, rrdb_features=24)))


def test_the_average_forgets_where_it_started():
    average = torch.tensor(100.0)
    for count in range(1, 400):
        average = moving_average(0.99, average, torch.tensor(1.0), count)
    # 0.99 alone would still hold 0.99 ** 399 = 1.8 % of the start
    assert float(average) == pytest.approx(1, abs=0.05)
    value, target = torch.tensor(2.0), torch.tensor(5.0)
    assert float(moving_average(0.9, value, target, 10**6)) == pytest.approx(0.9 * 2 + 0.1 * 5)


def test_the_average_of_models_is_the_mean_of_their_weights(tmp_path):
    models = [awake(SpecSegDiff(MODEL), seed=seed) for seed in range(3)]
    before = [weights_hash(model) for model in models]
    mean = average(models).state_dict()
    for name, value in mean.items():
        expected = torch.stack([model.state_dict()[name] for model in models]).mean(dim=0)
        assert torch.allclose(value, expected, atol=1e-6), name
    assert [weights_hash(model) for model in models] == before
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / str(i))
    folders = [str(tmp_path / str(i)) for i in range(3)]
    told = CliRunner().invoke(app, ["train", "average", *folders, "--out", str(tmp_path / "mean")])
    assert told.exit_code == 0, told.output
    stored = SpecSegDiff.from_pretrained(tmp_path / "mean").state_dict()
    assert all(torch.allclose(stored[name], mean[name], atol=1e-3) for name in mean)


def test_models_that_have_no_average_are_refused():
    model = SpecSegDiff(MODEL)
    with pytest.raises(ConfigError, match="two models or more, got 1"):
        average([model])
    with pytest.raises(ConfigError, match=r"differs from .* in class or configuration"):
        average([model, SpecSegDiff(replace(MODEL, rrdb_features=24))])


# ------------------------------------------------------------------ configuration


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


BASE = "preset: tiny\npairs: a.csv\nlocal_pairs: null\nsteps: 10\n"


def test_a_file_needs_only_what_has_no_default(tmp_path):
    config = read_config(write(tmp_path, BASE + "loss: {dice: 1}\nlearning_rate: 1\n"))
    expected = TrainConfig(preset="tiny", pairs="a.csv", local_pairs=None, steps=10)
    assert config == replace(expected, loss=replace(expected.loss, dice=1.0), learning_rate=1.0)
    assert read_config(write(tmp_path, BASE), steps=3, seed=7) == replace(expected, steps=3, seed=7)
    # what a run writes is what it read
    path = write(tmp_path, yaml.safe_dump(json.loads(json.dumps(asdict(config)))))
    assert read_config(path) == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "segmenter").glob("*.yaml")), ids=str)
def test_the_shipped_configurations_are_valid(path):
    assert isinstance(read_config(path), TrainConfig)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BASE + "colour: red", "no field 'colour'"),
        (BASE + "loss: {colour: 1}", "LossConfig has no field 'colour'"),
        (BASE + "masks: {domain: db}", "domain"),
        (BASE + "augment: [1]", "AugmentConfig"),
        (BASE + "loss: null", "LossConfig"),
        (BASE + "model: 3", "model"),
        (BASE + "1: 2", "no field 1"),
        (BASE.replace("steps: 10", "steps: ten"), "steps"),
        (BASE.replace("steps: 10", "steps: 0"), "steps"),
        (BASE.replace("steps: 10\n", ""), "'steps' of TrainConfig is missing"),
        (BASE.replace("tiny", "huge"), "preset"),
        ("[1, 2]", "expected the fields of TrainConfig"),
        ("", "expected the fields of TrainConfig"),
        ("a: [", "cannot read"),
    ],
)
def test_a_wrong_file_names_what_is_wrong(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        read_config(write(tmp_path, text))


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path / "none.yaml")


# ------------------------------------------------------------------ items and crops


def test_an_item_is_condition_and_margin_of_its_pair(corpus):
    pair, model = read_manifest(corpus)[0], SpecSegDiff(MODEL)
    item = make_item(pair, model, MaskConfig())
    wave = voice(0)
    real = (wave * 2**15).round() / 2**15
    fake = (vocoded(wave, 2000) * 2**15).round() / 2**15
    # both at the level of the fake, which is all that inference knows
    gain = model.level(fake)
    assert torch.allclose(item.condition.float(), model.condition(fake[None])[0], atol=4e-3)
    value = difference(model.stft.magnitude(real * gain), model.stft.magnitude(fake * gain))
    mask = top_share(value[None])[0]
    # float16 may move a bin over the quantile
    assert float((mask ^ (item.margin >= 0)).double().mean()) < 1e-3
    assert (item.condition.dtype, item.margin.dtype) == (torch.float16, torch.float16)


def test_bins_above_the_shared_band_have_no_margin(corpus):
    item = make_item(read_manifest(corpus)[2], SpecSegDiff(MODEL), MaskConfig())
    assert torch.equal(item.margin.isnan().any(dim=1), torch.arange(513) * 15.625 > 4000)
    assert not item.condition.isnan().any()


def test_copies_are_changed_alike_and_an_unreadable_pair_is_told(corpus):
    pairs = [p for p in read_manifest(corpus) if p.split == "train"][:1]
    broken = replace(pairs[0], id="broken", fake=Path("nowhere.flac"))
    told = []
    augment, model = AugmentConfig(copies=2), SpecSegDiff(MODEL)
    first, second = (
        make_items([broken, *pairs], model, MaskConfig(), augment, seed=0, warn=told.append)
        for _ in range(2)
    )
    assert len(first) == 3
    assert all("broken" in text for text in told)
    assert len(told) == 2
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.condition, b.condition)
    lengths = [item.condition.shape[1] for item in first]
    assert len(set(lengths)) > 1
    # at most 12 % faster or slower
    assert all(abs(length / lengths[0] - 1) < 0.16 for length in lengths)
    # a gain or a filter on both members would leave most of the mask in place
    assert all(0.02 < float((item.margin >= 0).double().mean()) < 0.08 for item in first)


def late_pair(pair, folder):
    """The same pair with silence before the real recording, to be aligned frame by frame."""
    real = torch.cat([torch.zeros(4_096), load_audio(pair.real)])
    write_audio(folder / "late.flac", real, sample_rate=16_000)
    return replace(pair, real=folder / "late.flac", n_samples=None, align="dtw")


def test_a_dtw_pair_is_aligned_before_its_margin_is_taken(corpus, tmp_path):
    pair, model = read_manifest(corpus)[0], SpecSegDiff(MODEL)
    late = late_pair(pair, tmp_path)
    (item,) = make_items([late], model, MaskConfig(), AugmentConfig(copies=2), seed=0)
    straight = make_item(pair, model, MaskConfig())
    # on the fake's frames, and nearly what the pair without the silence gives
    assert torch.equal(item.condition, straight.condition)
    assert item.margin.shape == straight.margin.shape
    mask, known = item.margin >= 0, straight.margin >= 0
    assert float((mask & known).sum() / known.sum()) > 0.8
    with pytest.raises(ConfigError, match="align is 'dtw'"):
        make_item(late, model, MaskConfig(), change=Change(90, None))


def white_pair(folder):
    """White noise of the whole band, and a fake that differs everywhere."""
    real = noise(16_000, seed=1, scale=0.1)
    for name, wave in (("real", real), ("fake", real + noise(16_000, seed=2, scale=0.05))):
        write_audio(folder / f"{name}.flac", wave, sample_rate=16_000)
    return Pair("white", folder / "real.flac", folder / "fake.flac")


@pytest.mark.parametrize(
    ("percent", "band_hz", "expected"),
    [
        (88, None, 7_040.0),
        (88, 4_000.0, 3_520.0),
        (112, 4_000.0, 4_480.0),
        (112, None, None),
        (112, 7_900.0, None),
    ],
)
def test_the_band_of_a_copy_moves_with_its_speed(tmp_path, percent, band_hz, expected):
    pair, model = replace(white_pair(tmp_path), band_hz=band_hz), SpecSegDiff(MODEL)
    item = make_item(pair, model, MaskConfig(), change=Change(percent, None))
    counts = ~item.margin.isnan().any(dim=1)
    assert torch.equal(counts, torch.arange(513) * 15.625 <= (expected or 8_000.0))
    if band_hz is None:
        # what counts is what the copy carries: beyond lies only the resampler's floor
        level = item.condition.float().mean(dim=1)
        assert float(level[counts].min()) > float(level[counts].median()) - 0.3
        assert not (~counts).any() or float(level[~counts][20:].max()) < float(level[counts].min())


def test_val_gdice_is_what_evaluate_counts(corpus, tmp_path, monkeypatch):
    """Within the band of a narrow pair, and on the frames of an aligned one."""
    narrow = replace(read_manifest(corpus)[3], band_hz=2_000.0)
    pairs = [narrow, late_pair(narrow, tmp_path)]
    module = SegmenterModule(config_of(corpus), pairs)
    awake(module.model)
    told = []
    monkeypatch.setattr(module, "log", lambda name, value, **_: told.append(float(value)))
    for place in range(2):
        module.validation_step(torch.tensor(place), place)

    def method(pair, fake):
        condition = module.model.condition(fake[None])
        return sample(module.model, condition, draws=1, items=[pair.id]).mean[0]

    rows = score_maps(method, pairs, stft=MODEL.stft)
    assert told == pytest.approx([row["gdice"] for row in rows])


def item_of(frames, *, vocoder="a", local=False, fill=0.0):
    return Item(
        vocoder,
        local,
        torch.full((513, frames), fill, dtype=torch.float16),
        torch.arange(frames, dtype=torch.float16).expand(513, -1),
    )


def crops_of(items, *, frames=32, **changes):
    still = replace(AugmentConfig(gain_db=0.0, tilt_db=0.0), **changes)
    return Crops(items, MODEL, still, frames=frames, count=400, seed=0)


def test_a_crop_is_the_same_each_time_and_part_of_its_item():
    crops = crops_of([item_of(100)])
    starts = set()
    for index in range(50):
        condition, margin = crops[index]
        again = crops[index]
        assert torch.equal(condition, again[0])
        assert torch.equal(margin, again[1])
        start = int(margin[0, 0])
        assert torch.equal(margin[5], torch.arange(start, start + 32.0))
        starts.add(start)
    assert min(starts) < 10
    assert max(starts) > 58
    assert len(crops) == 400


def test_a_short_item_repeats_its_last_frame_which_does_not_count():
    item = item_of(10)
    item.condition[:, 9] = 3
    condition, margin = crops_of([item])[0]
    assert condition.shape == margin.shape == (513, 32)
    assert torch.equal(margin.isnan()[0], torch.arange(32) >= 10)
    assert torch.equal(condition[:, :9], torch.zeros(513, 9))
    assert torch.equal(condition[:, 9:], torch.full((513, 23), 3.0))


def test_crops_are_drawn_by_length_root_of_vocoder_and_share_of_local():
    items = [
        item_of(90, vocoder="common", fill=1),
        item_of(90, vocoder="common", fill=2),
        item_of(45, vocoder="rare", fill=3),
        item_of(90, vocoder="mine", local=True, fill=4),
    ]
    crops = crops_of(items, local_share=0.25)
    drawn = torch.tensor([int(crops[i][0][0, 0]) for i in range(400)])
    common, rare = 180**0.5, 45**0.5
    expected = {
        1: 0.75 * common / 2 / (common + rare),
        3: 0.75 * rare / (common + rare),
        4: 0.25,
    }
    for kind, chance in expected.items():
        slack = 4 * (chance * (1 - chance) / 400) ** 0.5
        assert float((drawn == kind).double().mean()) == pytest.approx(chance, abs=slack)


def test_gain_and_equaliser_move_the_condition_in_decibels_and_leave_the_margin():
    item = item_of(40, fill=1.0)
    condition, margin = crops_of([item], frames=40, gain_db=6.0)[3]
    shift = (condition - 1) * MODEL.log_scale / (np.log(10) / 20)
    assert float(shift.std()) < 1e-3
    assert 0.01 < abs(float(shift.mean())) < 30
    tilted, same = crops_of([item], frames=40, tilt_db=4.0)[3]
    curve = (tilted - 1)[:, 0]
    assert torch.equal(tilted, tilted[:, :1].expand(-1, 40))
    assert float(curve.std()) > 1e-3
    # six cosines: from bin to bin it hardly moves
    assert float(curve.diff().abs().max()) < 0.05 * float(curve.max() - curve.min())
    assert torch.equal(margin, item.margin.float())
    assert torch.equal(same, item.margin.float())


def test_no_items_are_refused():
    with pytest.raises(ConfigError, match="no training item"):
        crops_of([])


@pytest.mark.parametrize(
    "fields", [{"copies": -1}, {"speed": 1.0}, {"gain_db": -1.0}, {"local_share": 1.5}]
)
def test_impossible_augmentation_is_refused(fields):
    with pytest.raises(ConfigError, match="AugmentConfig"):
        AugmentConfig(**fields)


def test_train_configs_name_the_field():
    good = {"preset": "tiny", "pairs": "a", "local_pairs": None, "steps": 1}
    for name in ("steps", "batch", "frames", "validate_every"):
        with pytest.raises(ConfigError, match=name):
            TrainConfig(**good | {name: 0})
    assert isinstance(MODEL, SegDiffConfig)
    assert features.equaliser(5, 0.0, np.random.default_rng(0)).tolist() == [0.0] * 5
