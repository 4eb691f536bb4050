"""What is saved is what is loaded, bit for bit; everything else is a typed error."""

import copy
import hashlib
import json
import pickle
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from models import make_model
from safetensors.torch import load_file, save_file
from torch import nn

from specsegdiff import hub
from specsegdiff.errors import CheckpointError, ConfigError, OutputError
from specsegdiff.models.segdiff import SpecSegDiff


@pytest.fixture
def saved(tmp_path):
    """A folder with a small model."""
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def edit(folder, change):
    """Rewrite a folder's configuration."""
    path = folder / hub.CONFIG_NAME
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


# ------------------------------------------------------------------ round trips


def test_every_value_comes_back_bit_for_bit(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "new" / "model")
    back = SpecSegDiff.from_pretrained(tmp_path / "new" / "model")
    assert back.config == model.config
    assert back.name == "model"
    assert not back.training
    mine, theirs = model.state_dict(), back.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype is theirs[name].dtype
        assert torch.equal(value, theirs[name]), name
    assert hub.weights_hash(back) == hub.weights_hash(model)
    assert names(tmp_path / "new") == ["config.json", "model", "model.safetensors"]
    wave = torch.linspace(-1, 1, 300)[None]
    with torch.inference_mode():
        # another memory layout would round differently
        assert torch.equal(back.encode(back.condition(wave)), model.encode(model.condition(wave)))


def test_half_precision_is_float16_of_every_value(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, half=True)
    stored = load_file(tmp_path / hub.WEIGHTS_NAME)
    back = SpecSegDiff.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(stored[name], value.half())
        assert back[name].dtype is torch.float32
        assert torch.equal(back[name], value.half().float())
    # a second round changes nothing
    SpecSegDiff.from_pretrained(tmp_path).save_pretrained(tmp_path / "again", half=True)
    first, second = ((f / hub.WEIGHTS_NAME).read_bytes() for f in (tmp_path, tmp_path / "again"))
    assert first == second


def test_saving_over_a_model_replaces_it(saved):
    other = make_model(seed=1)
    other.save_pretrained(str(saved))
    assert hub.weights_hash(SpecSegDiff.from_pretrained(str(saved))) == hub.weights_hash(other)
    assert names(saved) == ["config.json", "model.safetensors"]


def test_the_hash_sees_a_single_bit():
    model = make_model()
    before = hub.weights_hash(model)
    bits = model.unet.last.bias.data.view(torch.int32)
    bits[3] ^= 1
    assert hub.weights_hash(model) != before
    bits[3] ^= 1
    assert hub.weights_hash(model) == before


# ------------------------------------------------------------------ failures while saving


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(OutputError, match="cannot write a model"):
            make_model().save_pretrained(place)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_leaves_the_model_that_was_there(saved, monkeypatch, nth):
    before = {name: (saved / name).read_bytes() for name in names(saved)}
    real_fdopen, count = hub.os.fdopen, 0

    def fail(*args):
        nonlocal count
        count += 1
        stream = real_fdopen(*args)
        if count == nth:
            stream.close()
            raise OSError(28, "No space left on device")
        return stream

    monkeypatch.setattr(hub.os, "fdopen", fail)
    with pytest.raises(OutputError, match="No space"):
        make_model(steps=2).save_pretrained(saved)
    # the weights and the configuration of one model, not of two, and no temporary file
    assert {name: (saved / name).read_bytes() for name in names(saved)} == before


# ------------------------------------------------------------------ tampered configurations


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda s: s["config"].update(colour="red"), ConfigError, "no field 'colour'"),
        (lambda s: s["config"]["unet"].update(depth=3), ConfigError, "UNetConfig has no field"),
        (lambda s: s["config"].pop("draws"), ConfigError, "'draws' of SegDiffConfig is missing"),
        (lambda s: s["config"]["stft"].pop("hop"), ConfigError, "'hop' of StftConfig is missing"),
        (lambda s: s["config"].update(draws="32"), ConfigError, "draws"),
        (lambda s: s["config"].update(draws=32.0), ConfigError, "draws"),
        (lambda s: s["config"].update(row_embedding=1), ConfigError, "row_embedding"),
        (lambda s: s["config"].update(patch=[8]), ConfigError, "patch"),
        (lambda s: s["config"].update(patch=[8, 4, 2]), ConfigError, "patch"),
        (lambda s: s["config"].update(prediction="v"), ConfigError, "prediction"),
        (lambda s: s["config"].update(rms=-1), ConfigError, "rms"),
        (lambda s: s["config"].update(rms=float("nan")), ConfigError, "rms"),
        (lambda s: s["config"].update(rms=10**400), ConfigError, "rms"),
        (lambda s: s["config"].update(unet=[1, 2]), ConfigError, "UNetConfig"),
        (lambda s: s["config"]["unet"].update(multipliers=[]), ConfigError, "levels"),
        (lambda s: s["config"]["unet"].update(channels=2**40), ConfigError, "channels"),
        (lambda s: s.update(config=None), ConfigError, "SegDiffConfig"),
        (lambda s: s.pop("config"), ConfigError, "SegDiffConfig"),
        (lambda s: s.update({"class": "Vocos"}), CheckpointError, "expected 'SpecSegDiff'"),
        (lambda s: s.update({"class": "os.system"}), CheckpointError, "expected 'SpecSegDiff'"),
        (lambda s: s.pop("class"), CheckpointError, "expected 'SpecSegDiff'"),
    ],
)
def test_a_tampered_configuration_names_what_is_wrong(saved, change, error, text):
    edit(saved, change)
    with pytest.raises(error, match=text):
        SpecSegDiff.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\ud800", "[" + "1" * 5000 + "]"])
def test_what_is_no_configuration_is_a_checkpoint_error(saved, text):
    (saved / hub.CONFIG_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match="model"):
        SpecSegDiff.from_pretrained(saved)


# ------------------------------------------------------------------ tampered weights


def test_a_truncated_file_is_refused_at_every_cut(saved):
    path = saved / hub.WEIGHTS_NAME
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            SpecSegDiff.from_pretrained(saved)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        SpecSegDiff.from_pretrained(saved)
    # a header that claims more than there is
    path.write_bytes(struct.pack("<Q", 2**62) + whole[8:])
    with pytest.raises(CheckpointError, match="damaged"):
        SpecSegDiff.from_pretrained(saved)


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


def test_a_renamed_pickle_is_refused_and_never_run(saved):
    path = saved / hub.WEIGHTS_NAME
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError, match="damaged"):
        SpecSegDiff.from_pretrained(saved)
    torch.save(make_model().state_dict(), path)
    with pytest.raises(CheckpointError, match="damaged"):
        SpecSegDiff.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("unet.last.bias"),
        lambda t: t.update({"unet.colour": torch.zeros(1)}),
        lambda t: t.update({"unet.last.bias": torch.zeros(33)}),
        lambda t: t.update({"unet.last.bias": torch.zeros(1)}),
        lambda t: t.update({"unet.last.bias": torch.zeros(32, dtype=torch.int64)}),
        lambda t: t.clear(),
    ],
)
def test_other_tensors_are_refused(saved, change):
    path = saved / hub.WEIGHTS_NAME
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"unet|encoder"):
        SpecSegDiff.from_pretrained(saved)


def test_weights_of_another_size_are_refused(saved):
    edit(saved, lambda s: s["config"].update(rrdb_features=8))
    with pytest.raises(CheckpointError, match="saved together"):
        SpecSegDiff.from_pretrained(saved)


# ------------------------------------------------------------------ other sources


@pytest.mark.parametrize("missing", [hub.CONFIG_NAME, hub.WEIGHTS_NAME])
def test_a_missing_file_is_named(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        SpecSegDiff.from_pretrained(saved)


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "a/b/c", "/no/where", "~/x"])
def test_a_missing_folder_is_not_asked_of_the_hub(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match="no folder"):
        SpecSegDiff.from_pretrained(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a b/c", "neither a folder here nor a valid hub id"),
        ("a/", "neither a folder here nor a valid hub id"),
        ("a\0b", "no folder"),
        ("x" * 5_000, r"x{200}\.\.\. \(.*too long"),
        (Path("x" * 5_000), "too long"),
        (None, "got None of type NoneType"),
        (7, "got 7 of type int"),
    ],
)
def test_what_can_be_no_name_of_a_model_is_a_checkpoint_error(source, says):
    with pytest.raises(CheckpointError, match=says):
        SpecSegDiff.from_pretrained(source)


def test_a_hub_id_is_fetched_and_loaded(saved, monkeypatch):
    asked = {}

    def fetch(repo, **options):
        asked.update(options, repo=repo)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    model = SpecSegDiff.from_pretrained("owner/name", revision="v1")
    assert (asked["repo"], asked["revision"], model.name) == ("owner/name", "v1", "name")
    # neither code nor pickles travel
    assert sorted(asked["allow_patterns"]) == ["config.json", "model.safetensors"]


def test_a_hub_that_does_not_answer_is_a_checkpoint_error(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*args, **options):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match="could not be fetched"):
        SpecSegDiff.from_pretrained("owner/name")


# ------------------------------------------------------------------ from_dict


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    inner: Inner
    ratio: float
    flag: bool
    kind: Literal["a", 1]
    limit: int | None
    pair: tuple[int, str]
    many: tuple[float, ...]
    table: dict[str, int | bool]


GOOD = {
    "inner": {"size": 2},
    "ratio": 1,
    "flag": False,
    "kind": "a",
    "limit": None,
    "pair": [1, "x"],
    "many": [1, 2.5],
    "table": {"a": True, "b": 2},
}


def test_plain_data_becomes_the_dataclass():
    made = hub.from_dict(Outer, json.loads(json.dumps(GOOD)), where="here")
    assert made == Outer(Inner(2), 1.0, False, "a", None, (1, "x"), (1.0, 2.5), {"a": True, "b": 2})
    assert type(made.ratio) is float
    assert type(made.table["a"]) is bool
    assert hub.from_dict(Outer, asdict(made), where="here") == made


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inner", {"size": True}),
        ("inner", 3),
        ("ratio", "1"),
        ("ratio", True),
        ("flag", 0),
        ("kind", True),
        ("kind", []),
        ("limit", 1.0),
        ("pair", [1]),
        ("pair", ["x", 1]),
        ("many", 3),
        ("many", [None]),
        ("table", {"a": 1.5}),
        ("table", {1: 1}),
        ("table", []),
    ],
)
def test_every_other_type_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        hub.from_dict(Outer, GOOD | {name: value}, where="here")


def test_names_that_are_no_text_are_refused():
    with pytest.raises(ConfigError, match="no field"):
        hub.from_dict(Outer, GOOD | {1: 2, "x": 3}, where="here")


def test_a_module_without_weights_has_a_hash():
    assert hub.weights_hash(nn.Identity()) == hub.weights_hash(nn.ReLU())


# ------------------------------------------------------------------ the hash of the weights


def test_the_hash_is_of_the_tensors_by_name_and_as_they_are_now():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    expected = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        expected.update(name.encode() + value.numpy().tobytes())
    assert hub.weights_hash(model) == expected.hexdigest()
    seen = {hub.weights_hash(model)}
    weight = model[0].weight
    changes = (
        lambda: model.load_state_dict(copy.deepcopy(model.state_dict())),
        lambda: weight.data.add_(1),
        lambda: weight.data.copy_(weight.data.flip(0)),
        lambda: model[1].running_mean.add_(1),
    )
    for number, change in enumerate(changes):
        change()
        seen.add(hub.weights_hash(model))
        # the first copies what is there, the others change a value, an order, a buffer
        assert len(seen) == 1 + number
    assert hub.weights_hash(copy.deepcopy(model)) == hub.weights_hash(model)


def test_equal_weights_are_hashed_once(monkeypatch):
    model, count = nn.Linear(3, 2), 0
    compute = hashlib.sha256

    def counted(*args):
        nonlocal count
        count += 1
        return compute(*args)

    monkeypatch.setattr(hub.hashlib, "sha256", counted)
    found = {hub.weights_hash(model) for _ in range(3)}
    assert (len(found), count) == (1, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, value):
    tensors = load_file(saved / "model.safetensors")
    tensors["unet.last.bias"][1] = value
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 tensors, first 'unet\.last"):
        SpecSegDiff.from_pretrained(saved)
