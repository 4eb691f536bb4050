"""The command line: every command on a tiny untrained model, and every way to end."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from models import make_model
from typer.testing import CliRunner, Result

import specsegdiff as ssd
from specsegdiff import api
from specsegdiff.cli import app
from specsegdiff.data.audio import load_audio, write_audio
from specsegdiff.data.manifest import read_manifest, write_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.data.voice import example_mask
from specsegdiff.explanation import Explanation
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.segdiff import PRESETS, SpecSegDiff
from specsegdiff.narration.schema import Report

RATE = 16_000


def speech(seed: int, seconds: float = 0.5) -> torch.Tensor:
    """Harmonics under a slow envelope, with a little noise."""
    t = torch.arange(round(seconds * RATE)) / RATE
    tones = sum(torch.sin(2 * torch.pi * (110 + 7 * seed) * k * t) / k for k in range(1, 20))
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(seed))
    return 0.1 * tones * (0.6 + 0.4 * torch.sin(9 * t)) + 0.002 * noise


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a recording, and a manifest of three pairs, two of them of one source."""
    folder = tmp_path_factory.mktemp("cli")
    make_model(PRESETS["tiny"], draws=2).save_pretrained(folder / "model")
    write_audio(folder / "call.wav", speech(0), sample_rate=RATE)
    for i in range(2):
        write_audio(folder / f"real{i}.flac", speech(i), sample_rate=RATE)
    for i in range(3):
        fake = speech(i // 2) + 0.02 * torch.randn(
            RATE // 2, generator=torch.Generator().manual_seed(9 + i)
        )
        write_audio(folder / f"fake{i}.flac", fake, sample_rate=RATE)
    write_manifest(
        [
            Pair(
                f"p{i}",
                folder / f"real{i // 2}.flac",
                folder / f"fake{i}.flac",
                vocoder=f"v{i}",
                family="gan" if i else "dsp",
                split="test",
                source_group=f"g{i // 2}",
                speaker=f"s{i // 2}",
                vocoder_seen=bool(i),
            )
            for i in range(3)
        ],
        folder / "pairs.csv",
    )
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def succeed(*words: object) -> Result:
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    return result


def refuse(*words: object, says: str, code: int = 2) -> None:
    """The command ends with ``code`` and one line on standard error, as text and as JSON."""
    result = run(*words)
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert "Traceback" not in line


def refuse_json(*words: object, kind: str) -> None:
    result = run(*words, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    error = json.loads(result.stderr)["error"]
    assert (error["kind"], error["exit_code"]) == (kind, 2)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- explain


def explain(place: Path, *words: object) -> Result:
    return succeed("explain", place / "call.wav", "--model", place / "model", *words)


def test_explain_prints_regions_and_writes_maps_picture_and_sound(
    place: Path, tmp_path: Path
) -> None:
    result = explain(place, "--out", tmp_path / "out")
    explanation = Explanation.load(tmp_path / "out")
    assert explanation.regions
    for region in explanation.regions:
        assert f" {region.id} " in result.stdout
    sound = load_audio(tmp_path / "out" / "artifacts.flac")
    # 16 bits round to half a step of 1 / 32768
    torch.testing.assert_close(sound, explanation.audio("artifacts"), rtol=0, atol=2**-16)
    assert (tmp_path / "out" / "explanation.png").read_bytes().startswith(b"\x89PNG")
    # nothing else stays, hidden or not
    assert left_in(tmp_path) == ["out"]
    assert len(left_in(tmp_path / "out")) == 10
    digest = hashlib.sha256((place / "call.wav").read_bytes()).hexdigest()
    assert explanation.provenance.file_sha256 == digest
    assert digest in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "report.pdf").read_bytes().startswith(b"%PDF")
    said = json.loads((tmp_path / "out" / "report.json").read_text())
    assert Report.from_dict(said).cells


def test_explain_asks_the_narrator_that_is_named(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters need the extra 'vlm'")
    for name, expected in (("rules", "rules"), ("small", "VLMNarrator")):
        explain(place, "--out", tmp_path / name, "--narrator", name)
        said = json.loads((tmp_path / name / "report.json").read_text())
        assert said["provenance"]["narrator"] == expected
    assert run("explain", place / "call.wav", "--narrator", "nobody").exit_code == 2


def test_explain_prints_json_and_nothing_else(place: Path, tmp_path: Path) -> None:
    result = explain(place, "--json", "--draws", 3, "--steps", 2, "--share", 0.1)
    told = json.loads(result.stdout)
    assert result.stderr == ""
    assert (told["provenance"]["draws"], told["provenance"]["steps"]) == (3, 2)
    assert told["out"] is None
    assert sum(region["share"] for region in told["regions"]) <= 1
    expected = api.explain(
        place / "call.wav",
        model=SpecSegDiff.from_pretrained(place / "model"),
        draws=3,
        steps=2,
        share=0.1,
    )
    assert told | {"out": None} == json.loads(expected.to_json()) | {"out": None}


def test_the_example_is_compared_with_its_true_mask(place: Path, tmp_path: Path) -> None:
    words = ("explain", "--example", "--model", place / "model", "--draws", 1)
    told = json.loads(succeed(*words, "--out", tmp_path / "out", "--json").stdout)
    assert told["provenance"]["source"].endswith("example.flac")
    marked = Explanation.load(tmp_path / "out").mask
    assert told["true_share"] == pytest.approx(float(example_mask()[marked].float().mean()))
    assert f"true mask: {100 * told['true_share']:.0f} %" in succeed(*words).stdout


def test_an_empty_mask_has_no_true_share(place: Path) -> None:
    words = ("explain", "--example", "--model", place / "model", "--draws", 1, "--share", 1e-7)
    said = succeed(*words, "--json").stdout
    told = json.loads(said, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["true_share"] is None
    text = succeed(*words).stdout
    assert "true mask: no bin is marked" in text
    assert "nan" not in text


def test_the_seed_decides_the_maps(place: Path, tmp_path: Path) -> None:
    # one step starts blind and sees no noise
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        explain(place, "--out", tmp_path / name, "--seed", seed, "--steps", 3)
    heat = {name: (tmp_path / name / "heatmap.npy").read_bytes() for name in "abc"}
    assert heat["a"] == heat["b"]
    assert heat["a"] != heat["c"]


def test_an_explanation_is_replaced_and_other_folders_are_refused(
    place: Path, tmp_path: Path
) -> None:
    explain(place, "--out", tmp_path / "out", "--seed", 1)
    explain(place, "--out", tmp_path / "out", "--seed", 2)
    assert Explanation.load(tmp_path / "out").provenance.seed == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    words = ("explain", place / "call.wav", "--model", place / "model", "--out", other)
    refuse(*words, says="choose a new or empty folder")
    assert left_in(other) == ["thesis.txt"]


def test_a_failing_picture_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Explanation) -> None:
        raise RuntimeError("no\nink")

    monkeypatch.setattr(Explanation, "plot", fail)
    result = run(
        "explain", place / "call.wav", "--model", place / "model", "--out", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0].startswith("Traceback")
    assert "error: unexpected RuntimeError: no ink" in result.stderr
    assert left_in(tmp_path) == []


def test_an_interruption_ends_with_130(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "explain", interrupt)
    result = run("explain", place / "call.wav", "--model", place / "model")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr


def test_bad_recordings_are_named(place: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("this is no sound\n" * 100)
    whole = tmp_path / "whole.flac"
    write_audio(whole, speech(3, seconds=2.0), sample_rate=RATE)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    made = {
        "one.wav": np.zeros(1),
        "silent.wav": np.zeros(RATE),
        "nan.wav": np.full(RATE, np.nan),
        "short.wav": np.full(1_000, 0.1),
    }
    for name, samples in made.items():
        sf.write(tmp_path / name, samples.astype(np.float32), RATE, subtype="FLOAT")
    model = ("--model", place / "model")
    for name in (*made, "text.wav", "cut.flac", "missing.wav"):
        refuse("explain", tmp_path / name, *model, "--out", tmp_path / "out", says=name)
        refuse_json("explain", tmp_path / name, *model, kind="AudioError")
    assert not (tmp_path / "out").exists()


def test_bad_settings_and_places_are_named(place: Path, tmp_path: Path) -> None:
    refuse("explain", place / "call.wav", "--model", "m" * 5000, says="mmm")
    call, model = place / "call.wav", ("--model", place / "model")
    below_a_file = place / "call.wav" / "out"
    refuse("explain", call, *model, "--out", below_a_file, says="choose")
    refuse_json("explain", call, *model, "--out", below_a_file, kind="OutputError")
    refuse("explain", call, *model, "--share", "1.5", says="share")
    refuse("explain", call, *model, "--steps", "100000", says="steps")
    refuse("explain", call, *model, "--device", "abacus", says="abacus")
    refuse("explain", call, "--model", tmp_path / "none", says="none")
    refuse_json("explain", call, "--model", tmp_path, kind="CheckpointError")
    refuse("explain", says="--example")
    refuse("explain", call, "--example", says="--example")


def test_wrong_usage_ends_with_2(place: Path) -> None:
    call = place / "call.wav"
    refuse("explain", call, "--draws", "0", says="--draws")
    refuse("explain", call, "--draws", "many", says="--draws")
    refuse("explain", call, "--nonsense", says="--nonsense")
    refuse("sing", says="sing")
    refuse("evaluate", says="--pairs")
    result = run("explain", call, "--json", "--draws", "0")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--draws" in json.loads(result.stderr)["error"]["message"]


def test_version_and_help() -> None:
    assert succeed("--version").stdout.startswith("specsegdiff ")
    for command in ("explain", "evaluate", "benchmark", "make-pairs", "train"):
        assert command in succeed("--help").stdout
        assert "Usage" in succeed(command, "--help").stdout
    for what in ("segmenter", "detector", "narrator"):
        told = succeed("train", what, "--help").stdout
        assert "--config" in told
        assert "--json" in told
        assert "--seed" in told


# ---------------------------------------------------------------- evaluate


def evaluate(place: Path, *words: object) -> Result:
    return succeed(
        "evaluate", "--pairs", place, "--split", "test", "--model", place / "model", *words
    )


def test_evaluate_scores_every_pair_and_part(place: Path, tmp_path: Path) -> None:
    result = evaluate(place, "--json", "--out", tmp_path / "scores.json")
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "scores.json").read_text())
    assert [row["id"] for row in told["rows"]] == ["p0", "p1", "p2"]
    assert set(told["summary"]) == {"all", "seen", "unseen", "gan", "dsp"}
    assert told["summary"]["all"]["groups"] == 2
    mean = sum(row["gdice"] for row in told["rows"]) / 3
    assert told["summary"]["all"]["gdice"][0] == pytest.approx(mean)
    assert len(told["meta"]["weights_sha256"]) == 64
    assert json.loads(evaluate(place, "--json").stdout)["rows"] == told["rows"]
    table = evaluate(place).stdout
    assert "unseen" in table
    assert f"{mean:.1f}" in table


def test_evaluate_names_what_is_wrong(place: Path, tmp_path: Path) -> None:
    model = ("--model", place / "model")
    refuse("evaluate", "--pairs", tmp_path, "--split", "test", *model, says="pairs.csv")
    refuse("evaluate", "--pairs", place, "--split", "dev", *model, says="its splits are: test")
    # where nothing can be written, that is said before anything is read
    for out in (place / "call.wav" / "scores.json", tmp_path):
        words = ("--pairs", "nowhere", "--split", "test", "--out", out)
        refuse("evaluate", *words, *model, says=f"cannot write {out}")
        refuse("benchmark", *words, "--methods", "random", says=f"cannot write {out}")


# ---------------------------------------------------------------- benchmark


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AASIST.from_preset("tiny").save_pretrained(folder)
    return folder


def benchmark(place: Path, detector: Path, out: Path, *words: object) -> tuple[object, ...]:
    where = ("--pairs", place, "--split", "test", "--detector", detector, "--out", out)
    return ("benchmark", *where, "--methods", "random, low-energy", *words)


def test_benchmark_measures_methods_and_goes_on(
    place: Path, detector: Path, tmp_path: Path
) -> None:
    words = benchmark(place, detector, tmp_path / "results.json")
    told = json.loads(succeed(*words, "--every", 2, "--json").stdout)
    assert told == json.loads((tmp_path / "results.json").read_text())
    assert [row["id"] for row in told["rows"] if row["method"] == "random"] == ["p0", "p2"]
    assert [entry["method"] for entry in told["summary"]] == ["true mask", "random", "low-energy"]
    quiet = [row["ad"] for row in told["rows"] if row["method"] == "low-energy"]
    assert told["summary"][2]["overall"]["ad"][0] == pytest.approx(sum(quiet) / 2)
    assert left_in(tmp_path) == ["results.json", "results.rows.jsonl"]
    # the rows that were there are taken, to the second
    table = succeed(*words).stdout
    assert [table.count(name) for name in ("random", "low-energy", "unseen")] == [4, 4, 6]
    assert max(map(len, table.splitlines()[1:])) <= 80
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row for row in rows if row["id"] != "p1"] == told["rows"]


def test_benchmark_names_what_is_wrong(place: Path, detector: Path, tmp_path: Path) -> None:
    words = benchmark(place, detector, tmp_path / "results.json")
    refuse(*words, "--methods", "tarot", says="there are addsegdiff, attnlrp")
    refuse(*words, "--detector", tmp_path, says="holds no detector")
    refuse(*words, "--ranking", "size", says="ranking")
    refuse(*words, "--split", "dev", says="its splits are: test")
    refuse(*words, "--every", "0", says="--every")
    refuse(*words, "--out", place / "call.wav" / "results.json", says="choose a file")
    assert left_in(tmp_path) == []


# ---------------------------------------------------------------- ask


def test_ask_answers_on_a_part_of_a_saved_explanation(place: Path, tmp_path: Path) -> None:
    explain(place, "--out", tmp_path / "out")
    explanation = Explanation.load(tmp_path / "out")
    box = ("--t0", 0.1, "--t1", 0.4, "--f0", 1000, "--f1", 3000)
    told = json.loads(succeed("ask", tmp_path / "out", *box, "--json").stdout)
    answer = ssd.ask(explanation, t0=0.1, t1=0.4, f0=1000.0, f1=3000.0)
    assert told == json.loads(answer.to_json())
    assert succeed("ask", tmp_path / "out", "7").stdout == f"{ssd.ask(explanation, '7')}\n"
    for task in ("detect", "classify", "localise", "ground"):
        assert succeed("ask", tmp_path / "out", "--task", task).stdout.strip(), task
    refuse("ask", tmp_path / "out", "7", "--task", "ground", says="leave the question out")
    refuse("ask", tmp_path / "out", "--t0", 90, says="90")


def test_ask_explains_a_recording_first(place: Path) -> None:
    result = succeed("ask", place / "call.wav", "R1", "--model", place / "model", "--json")
    assert [found["id"] for found in json.loads(result.stdout)["places"]] == ["R1"]


# ---------------------------------------------------------------- export


def test_export_writes_graphs_of_the_model(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="graphs need the extra 'onnx'")
    from specsegdiff.export import OnnxSegmenter
    from specsegdiff.hub import weights_hash

    result = succeed("export", tmp_path / "graphs", "--model", place / "model", "--json")
    assert sorted(json.loads(result.stdout)["files"]) == [
        str(tmp_path / "graphs" / name) for name in ("denoiser.onnx", "encoder.onnx")
    ]
    model = SpecSegDiff.from_pretrained(place / "model")
    assert OnnxSegmenter(tmp_path / "graphs").weights_sha256 == weights_hash(model)


# ---------------------------------------------------------------- explain-corpus


@pytest.fixture
def corpus(place: Path, tmp_path: Path) -> Path:
    """A manifest of two recordings, one of which is missing."""
    (tmp_path / "m.csv").write_text(f"id,path\na,{place / 'call.wav'}\nb,absent.wav\n")
    return tmp_path / "m.csv"


def test_explain_corpus_writes_a_row_for_each_recording_and_goes_on(
    place: Path, corpus: Path, tmp_path: Path
) -> None:
    from specsegdiff.bulk import mask_of, read_parts

    words = ["explain-corpus", corpus, "--out", tmp_path / "maps", "--workers", 0, "--no-detector"]
    words += ["--model", place / "model"]
    result = succeed(*words)
    assert re.search(r"2 recordings in (\d) of \1 shards, 1 of them with an error", result.stdout)
    rows = {row["id"]: row for row in read_parts(tmp_path / "maps")}
    expected = api.explain(
        place / "call.wav",
        model=SpecSegDiff.from_pretrained(place / "model"),
        detector=False,
        progress=False,
    )
    np.testing.assert_array_equal(mask_of(rows["a"]), expected.mask.numpy())
    assert rows["b"]["error_type"] == "AudioError"
    told = json.loads(succeed(*words, "--json").stdout)
    assert (told["files"], told["errors"], told["complete"]) == (2, 1, True)
    refuse(*words, "--seed", 1, says="settings.seed was 0, is 1")
    refuse(*words, "--ray", "--rank", 0, "--world", 1, says="either --ray or --rank")
    refuse(*words, "--precision", "float16", says="precision must be one of")


def test_explain_corpus_that_a_signal_ends_says_so(
    place: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specsegdiff import bulk

    left = bulk.Summary(files=1, errors=0, shards=2, finished=1)
    monkeypatch.setattr(bulk, "explain_corpus", lambda *_, **__: left)
    result = run("explain-corpus", corpus, "--out", tmp_path / "maps")
    assert result.exit_code == 75
    assert "run the same command again" in result.stdout
    result = run("explain-corpus", corpus, "--out", tmp_path / "maps", "--json")
    assert (result.exit_code, json.loads(result.stdout)["complete"]) == (75, False)


# ---------------------------------------------------------------- make-pairs


def test_make_pairs_keeps_the_groups_of_a_manifest(place: Path, tmp_path: Path) -> None:
    words = ("--manifest", place, "--split", "test", "--vocoders", "lpc-noise,lpc-residual")
    result = succeed("make-pairs", *words, "--out", tmp_path / "made", "--json")
    told = json.loads(result.stdout)
    pairs = read_manifest(tmp_path / "made", check_files=True)
    assert (told["pairs"], told["rejected"]) == (len(pairs), 4 - len(pairs))
    assert {(p.source_group, p.speaker, p.split) for p in pairs} == {
        ("g0", "s0", "test"),
        ("g1", "s1", "test"),
    }
    assert told["manifest"] == str(tmp_path / "made" / "pairs.csv")


def test_make_pairs_draws_vocoders_by_seed_from_folders_and_files(
    place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "speech"
    for name in ("a/one", "b/one"):
        (folder / name).parent.mkdir(parents=True)
        write_audio(folder / f"{name}.flac", speech(4), sample_rate=RATE)
    words = ("make-pairs", folder, place / "call.wav", "--per-recording", 1)
    words = (*words, "--vocoders", "lpc-noise, lpc-pulse,lpc-residual")
    made = []
    for name, seed in (("x", 0), ("y", 0)):
        succeed(*words, "--out", tmp_path / name, "--seed", seed)
        made.append([(p.id, p.vocoder) for p in read_manifest(tmp_path / name)])
    assert made[0] == made[1]
    assert 1 <= len(made[0]) <= 3
    # files of one name in two folders stay apart
    assert left_in(tmp_path / "x" / "real") == ["a-one.flac", "b-one.flac", "call.flac"]


def test_make_pairs_names_what_is_wrong(place: Path, tmp_path: Path) -> None:
    call, out = place / "call.wav", ("--out", tmp_path / "made")
    refuse("make-pairs", *out, says="--manifest")
    refuse("make-pairs", tmp_path / "none", *out, says="none")
    refuse("make-pairs", call, *out, "--vocoders", "tin-can", says="tin-can")
    refuse_json("make-pairs", call, *out, "--vocoders", "tin-can", kind="ConfigError")
    assert left_in(tmp_path) == []
    refuse("make-pairs", call, "--out", call / "made", "--vocoders", "lpc-noise", says="choose")
    sf.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    silent = ("make-pairs", tmp_path / "silent.wav", *out, "--vocoders", "lpc-noise")
    refuse(*silent, says="rejected.csv")


# ---------------------------------------------------------------- train


@pytest.fixture
def config(place: Path, tmp_path: Path) -> Path:
    """Two steps on the pairs, which serve both to train and to measure."""
    pairs = read_manifest(place)
    parts = [
        Pair(f"{p.id}-{s}", p.real, p.fake, split=s, vocoder=p.vocoder)
        for p in pairs
        for s in ("train", "val")
    ]
    write_manifest(parts, tmp_path / "pairs.csv")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"preset: tiny\npairs: {tmp_path / 'pairs.csv'}\nlocal_pairs: null\nsteps: 2\nbatch: 2\n"
        "frames: 32\nwarmup: 1\nvalidate_every: 2\nprecision: 32-true\naugment: {copies: 0}\n"
    )
    return path


# Lightning warns of few workers and of short epochs
@pytest.mark.filterwarnings("ignore")
def test_training_leaves_a_model_that_explains(place: Path, tmp_path: Path, config: Path) -> None:
    pytest.importorskip("lightning", reason="training needs the extra 'train'")
    out = tmp_path / "run"
    told = succeed("train", "segmenter", "--config", config, "--out", out, "--seed", 3, "--json")
    assert json.loads(told.stdout) == {"written": str(out / "model")}
    assert json.loads((out / "config.json").read_text())["seed"] == 3
    model = out / "model"
    told = succeed("explain", place / "call.wav", "--model", model, "--draws", 1, "--json")
    assert json.loads(told.stdout)["provenance"]["model"] == "model"


def test_training_names_what_is_wrong(place: Path, tmp_path: Path, config: Path) -> None:
    pytest.importorskip("lightning", reason="training needs the extra 'train'")
    out = ("--out", tmp_path / "run")
    refuse("train", "segmenter", "--config", tmp_path / "none.yaml", *out, says="none.yaml")
    config.write_text(config.read_text() + "colour: blue\n")
    refuse("train", "segmenter", "--config", config, *out, says="colour")
    config.write_text(config.read_text().replace("colour: blue\n", ""))
    refuse("train", "segmenter", "--config", config, *out, "--seed", -1, says="seed")
    assert not (tmp_path / "run").exists()
    below_a_file = place / "call.wav" / "run"
    refuse("train", "segmenter", "--config", config, "--out", below_a_file, says="choose")


@pytest.mark.skipif(os.name == "nt", reason="folder modes are POSIX")
def test_a_read_only_folder_is_named(place: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    words = ("explain", place / "call.wav", "--model", place / "model", "--out", locked / "out")
    refuse(*words, says="choose a writable folder")
