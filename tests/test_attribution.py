"""The benchmark's script: methods that look at training pairs, the headline, figure and timing."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from models import make_model

from specsegdiff.benchmark import available
from specsegdiff.data.audio import write_audio
from specsegdiff.data.manifest import read_manifest, write_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.segdiff import PRESETS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RATE = 16_000


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("zennit", reason="attributions need the extra 'baselines'")
    pytest.importorskip("captum", reason="attributions need the extra 'baselines'")
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("attribution")
    model = make_model(PRESETS["tiny"], draws=2)
    monkeypatch.setattr(module, "default_model", lambda: model)
    yield module
    for name in ("attribution", "provenance"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector; two training pairs; five test pairs of one recording of 0.3 s, one of another."""
    folder = tmp_path_factory.mktemp("corpus")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AASIST.from_preset("tiny", n_samples=4_000).save_pretrained(folder / "detector")
    pairs = []
    for i in range(8):
        source = (0, 1, 2, 2, 2, 2, 2, 3)[i]
        generator = torch.Generator().manual_seed(i)
        real = 0.1 * torch.randn(4_800, generator=torch.Generator().manual_seed(90 + source))
        fake = real + 0.05 * torch.randn(4_800, generator=generator)
        write_audio(folder / f"real{source}.flac", real, sample_rate=RATE)
        write_audio(folder / f"fake{i}.flac", fake[: 4_800 - 256 * (i == 3)], sample_rate=RATE)
        pairs.append(
            Pair(
                f"p{i}",
                folder / f"real{source}.flac",
                folder / f"fake{i}.flac",
                n_samples=4_800 - 256 * (i == 3),
                vocoder=f"v{i}",
                family="gan" if i in (2, 3) else f"f{i}",
                split="train" if i < 2 else "test",
                source_group=f"g{source}",
                vocoder_seen=i % 2 == 0,
            )
        )
    write_manifest(pairs, folder / "pairs.csv")
    return folder


def where(place: Path, *words: object) -> list[str]:
    every = ("--pairs", place / "pairs.csv", "--detector", place / "detector", *words)
    return [str(word) for word in every]


def test_results_are_written_and_rendered(
    script: ModuleType, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["GradientSHAP", "random", "mean mask by frequency"]
    out, journal = tmp_path / "attribution.json", tmp_path / "rows.jsonl"
    words = ("--methods", *methods, "--every", "2", "--out", out, "--journal", journal)
    script.main(where(place, *words))
    assert "3 of 3 pairs" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert [(row["method"], row["group"]) for row in result["rows"]] == [
        ("true mask", "control"),
        ("GradientSHAP", "attribution"),
        ("random", "control"),
        ("mean mask by frequency", "control"),
    ]
    assert result["meta"]["detector"].startswith("AASIST ")
    assert result["meta"]["pairs"] == 3
    page = importlib.import_module("table").fill(
        "<!-- results:attribution -->\n<!-- /results -->", tmp_path
    )
    assert "| GradientSHAP | seen | " in page


def test_every_method_can_be_built(script: ModuleType, place: Path) -> None:
    assert set(script.REGISTERED.values()) <= available().keys()
    training = read_manifest(place, split="train")
    detector = AASIST.from_preset("tiny", n_samples=4_000).eval()
    looked = [name for name in script.METHODS if name not in script.REGISTERED]
    for name in looked:
        assert callable(script.build(name, detector, training)), name
    assert script.build(looked[0], detector, training).rules == "full"
    assert [len(wave) for wave in script.real_waves(training)] == [4_800] * 2
    assert len(script.real_waves(training, count=1)) == 1


def test_the_headline_is_fair_to_attributions(script: ModuleType) -> None:
    def row(method: str, group: str, gdice: float, by_value: float) -> dict[str, object]:
        scores = {"gdice": [gdice, 0, 99], "gdice_by_value": [by_value]}
        return {"method": method, "group": group, "seen": scores}

    rows = [row("ours", "ours", 39.5, 39.5), row("a", "attribution", 8.0, 12.5)]
    rows += [row("b", "attribution", 11.0, 7.0), row("random", "control", 9.5, 9.5)]
    found = script.headline(rows)
    assert list(found) == ["seen"]
    assert found["seen"]["attribution"] == ["a", 12.5]
    assert found["seen"]["ratio"] == pytest.approx(39.5 / 12.5)
    assert found["seen"]["over_chance"] == pytest.approx(30 / 3)
    # no ratio over chance where the best attribution has nothing above it
    rows[1] = row("a", "attribution", 9.0, 9.5)
    rows[2] = row("b", "attribution", 9.0, 9.0)
    assert script.headline(rows)["seen"]["over_chance"] is None
    assert script.headline(rows[1:]) == {}


def test_the_figure_shows_four_families_at_one_length(
    script: ModuleType, place: Path, tmp_path: Path
) -> None:
    four = script.four_vocoders(read_manifest(place, split="test"))
    assert [pair.vocoder for pair in four] == ["v6", "v5", "v4", "v2"]
    assert {pair.n_samples for pair in four} == {4_800}
    shorter = script.four_vocoders(read_manifest(place, split="test")[1:4])
    assert {pair.n_samples for pair in shorter} == {4_544}
    out = tmp_path / "maps.png"
    script.main(where(place, "--methods", "energy", "low energy", "--figure", out))
    assert out.read_bytes().startswith(b"\x89PNG")


def test_methods_are_timed_in_one_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 s are 8 windows of the tiny detector; here they are one
    monkeypatch.setattr(script, "RATE", 2_000)
    out = tmp_path / "timing.json"
    script.main(["--timing", "--preset", "tiny", "--out", str(out)])
    result = json.loads(out.read_text())
    assert [row["method"].split(",")[0] for row in result["rows"]] == [
        "AttnLRP",
        "GradientSHAP",
        "SpecSegDiff",
        "SpecSegDiff",
    ]
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert result["parameters"] > 10_000
