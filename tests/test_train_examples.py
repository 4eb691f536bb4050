"""Examples out of pairs say what rules say, and files of them are read by whoever should."""

import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from models import noise

from specsegdiff.cells import RegionGrid, truth_cells
from specsegdiff.data.audio import write_audio
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import ConfigError, CorpusError
from specsegdiff.frontend import Stft
from specsegdiff.masks import ground_truth
from specsegdiff.metrics.reports import Fields, read_fields
from specsegdiff.narration.parsing import (
    Finding,
    parse_cells,
    parse_findings,
    write_cells,
    write_findings,
)
from specsegdiff.narration.picture import PictureConfig
from specsegdiff.narration.prompts import Prompt
from specsegdiff.narration.rewards import CellReward, TextReward
from specsegdiff.narration.schema import FREQUENCIES, KINDS, PHONES, TIMES, unsupported_numbers
from specsegdiff.train.examples import (
    Example,
    ExampleConfig,
    _stretches,
    describe,
    export,
    make_examples,
    read_examples,
)

N = 16_000
SMALL = ExampleConfig(picture=PictureConfig(width=64, height=64, heat=True))


# ------------------------------------------------------------------ out of pairs


def test_every_sentence_says_its_fields_and_no_number():
    """The answers that are learned are consistent, and nothing in them needs checking."""
    for time, frequency, phone, kind in itertools.product(
        TIMES, FREQUENCIES, PHONES, (*KINDS, None)
    ):
        said = describe(time, frequency, phone, kind)
        assert read_fields(said) == Fields(time, frequency, phone)
        assert unsupported_numbers(said, {}) == ()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A tone in noise whose noise above 4 kHz was resynthesised in one half."""
    folder = tmp_path_factory.mktemp("pairs")
    time = torch.arange(N) / 16_000
    real = 0.1 * torch.sin(2 * torch.pi * 200 * time) + noise(N, seed=1, scale=0.02)
    fake = real + noise(N, seed=2, scale=0.05) * (time > 0.5)
    for name, wave in (("real", real), ("fake", fake)):
        write_audio(folder / f"{name}.flac", wave, sample_rate=16_000)
    files = folder / "real.flac", folder / "fake.flac"
    return [Pair("a", *files), Pair("b", *files, band_hz=4000.0), Pair("c", *files, align="dtw")]


def heat(wave):
    return torch.ones(1, 513, wave.shape[-1] // 256 + 1) / 2


def test_a_pair_becomes_two_questions_with_the_answers_of_the_rules(pairs, tmp_path):
    from PIL import Image

    examples = make_examples(pairs, tmp_path, config=SMALL, explainer=heat)
    # warped pairs are left out
    assert [(e.id, e.query) for e in examples] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert read_examples(tmp_path / "examples.jsonl") == examples
    where, what = examples[:2]
    ids = parse_cells(where.answer, count=16, k=3, strict=True).ids
    assert ids == where.truth == what.ids
    # the right half
    assert all((int(id) - 1) % 4 >= 2 for id in ids)
    told = parse_findings(what.answer, ids=ids, strict=True).findings
    assert [finding.id for finding in told] == list(ids)
    assert CellReward().parts(where.answer, where.truth).total == pytest.approx(1.4)
    reward = TextReward()([what.answer], ids=[what.ids], truth=[what.truth])
    assert reward == pytest.approx([1.7])
    with Image.open(tmp_path / what.picture) as picture:
        assert picture.size[0] > 128


def test_the_true_cells_are_those_of_the_true_mask(pairs, tmp_path):
    from specsegdiff.data.pairs import load_pair

    examples = make_examples(pairs, tmp_path, config=SMALL, explainer=heat)
    real, fake = load_pair(pairs[0])
    stft = Stft()
    mask = ground_truth(stft.magnitude(real)[None], stft.magnitude(fake)[None])[0]
    assert examples[0].truth == truth_cells(mask, RegionGrid(stft.axes(N)))
    # the second pair carries 4 kHz: nothing is true above
    assert all((int(id) - 1) // 4 >= 2 for id in examples[2].truth)


def test_stretches_are_examples_of_their_own(pairs, tmp_path):
    """Each has the cells of its own waves, and the part of the heatmap over them."""
    from PIL import Image

    from specsegdiff.data.pairs import load_pair

    shown = []

    def rising(wave):
        frames = wave.shape[-1] // 256 + 1
        shown.append(frames)
        return torch.linspace(0, 1, frames).expand(1, 513, frames)

    bare = PictureConfig(width=64, height=64, axes=False, ids=False, heat=True)
    # with this seed two of them begin far inside
    config = replace(SMALL, crops=3, seed=4, picture=bare)
    examples = make_examples(pairs[:1], tmp_path, config=config, explainer=rising)
    assert [e.id for e in examples[::2]] == ["a", "a-1", "a-2", "a-3"]
    # one heatmap for all
    assert shown == [63]
    stretches = list(_stretches("a", 63, config))
    assert stretches[0] == (0, 63)
    assert all(0 <= a < b <= 63 and 2 * (b - a) >= 63 for a, b in stretches)
    assert len(set(stretches)) == 4
    assert list(_stretches("a", 63, replace(config, seed=1))) != stretches
    assert list(_stretches("b", 63, config)) != stretches
    real, fake = load_pair(pairs[0])
    stft = Stft()
    for example, (first, last) in zip(examples[::2], stretches, strict=True):
        one, other = real[first * 256 : last * 256], fake[first * 256 : last * 256]
        mask = ground_truth(stft.magnitude(one)[None], stft.magnitude(other)[None])[0]
        assert example.truth == truth_cells(mask, RegionGrid(stft.axes(len(one))))
        with Image.open(tmp_path / example.picture) as picture:
            hot = np.asarray(picture.convert("RGB"))[32, 64:].astype(int).sum(1)
        # the heat at a stretch's edges is that of its first and last frame: brighter, the later
        edges = [colormaps["magma"](frame / 62)[:3] for frame in (first, min(last, 62))]
        assert hot[0] == pytest.approx(255 * sum(edges[0]), abs=25)
        assert hot[-1] == pytest.approx(255 * sum(edges[1]), abs=25)


def test_progress_is_told(pairs, tmp_path):
    told = []
    make_examples(
        pairs, tmp_path, config=SMALL, explainer=heat, progress=lambda *done: told.append(done)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(ConfigError, match="crops"):
        replace(SMALL, crops=-1)


# ------------------------------------------------------------------ files


def example(number, query):
    ids = ("15", "2")
    if query == 1:
        prompt = Prompt("S", "Where?")
        return Example(f"r{number}", 1, f"{number}.png", prompt, write_cells(ids), truth=ids)
    said = [Finding(id, "speech", "low", "vowel", "Dull.") for id in ids]
    rows = [{"region": f.id, **{k: v for k, v in asdict(f).items() if k != "id"}} for f in said]
    prompt = Prompt("S", f"What, at {number}?")
    return Example(f"r{number}", 2, f"{number}.png", prompt, write_findings(said), ids, tuple(rows))


@pytest.fixture
def exported(tmp_path):
    path = tmp_path / "examples.jsonl"
    export([example(number, query) for number in range(4) for query in (1, 2)], path)
    return path


def test_examples_come_back_as_they_were_exported(exported):
    written = [example(number, query) for number in range(4) for query in (1, 2)]
    assert read_examples(exported) == written


def test_other_trainers_find_their_columns(exported, tmp_path):
    row = json.loads(exported.read_text().splitlines()[1])
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    # one picture for each tag, as ms-swift and LLaMA-Factory count them
    assert row["messages"][1]["content"].count("<image>") == len(row["images"]) == 1
    assert TextReward()([row["messages"][2]["content"]], ids=[row["ids"]], truth=[row["truth"]])[0]
    export([example(0, 1)], tmp_path / "trl.jsonl", style="trl")
    row = json.loads((tmp_path / "trl.jsonl").read_text())
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert "<image>" not in row["prompt"][1]["content"]
    found = CellReward(k=2)(completions=[row["completion"]], truth=[row["truth"]], prompts=["?"])
    assert found == pytest.approx([1.4])


@pytest.mark.parametrize("style", ["swift", "trl"])
def test_arrow_reads_both_queries_and_each_reward_knows_its_rows(tmp_path, style):
    """`datasets` reads JSON lines with pyarrow, and TRL calls every reward with every row."""
    reader = pytest.importorskip("pyarrow.json", reason="reading as datasets does needs pyarrow")
    path = tmp_path / "examples.jsonl"
    written = [example(number, query) for number in range(4) for query in (1, 2)]
    export(written, path, style=style)
    # some blocks of both queries, as in a large file
    table = reader.read_json(path, read_options=reader.ReadOptions(block_size=2000))
    columns = table.to_pydict()
    assert columns["query"] == [1, 2] * 4
    answers = [[{"role": "assistant", "content": e.answer}] for e in written]
    cells, text = CellReward(k=2)(answers, **columns), TextReward()(answers, **columns)
    assert cells[1::2] == text[::2] == [None] * 4
    assert cells[::2] == pytest.approx([1.4] * 4)
    expected = TextReward()([written[1].answer], ids=[written[1].ids], truth=[written[1].truth])
    assert text[1::2] == pytest.approx(expected * 4)
    # all but the agreement, which finds no field in "Dull."
    assert expected == pytest.approx([1.6])


def test_files_whose_truth_of_query_1_holds_bare_ids_are_still_read(exported, tmp_path):
    rows = [json.loads(line) for line in exported.read_text().splitlines()]
    for row in rows:
        if row["query"] == 1:
            row["truth"] = [region["region"] for region in row["truth"]]
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows[0]["truth"] == ["15", "2"]
    assert read_examples(old) == read_examples(exported)


def test_a_true_region_without_its_id_is_named(exported):
    lines = exported.read_text().splitlines()
    exported.write_text(lines[0].replace('"region"', '"cell"') + "\n")
    with pytest.raises(CorpusError, match="line 1: expected a row of truth with region"):
        read_examples(exported)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"messages": []}', '{"id": "a", "query": 3, "messages": [1, 2, 3]}']
)
def test_lines_that_are_no_examples_are_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(CorpusError, match="line 1"):
        read_examples(path)
    with pytest.raises(CorpusError, match="cannot read"):
        read_examples(tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match="style"):
        export([], tmp_path / "a.jsonl", style="csv")
