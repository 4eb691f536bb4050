"""The small model of our own: real classes, a tokenizer that loses nothing, files of half size."""

import importlib
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import noise

import specsegdiff as ssd
from specsegdiff.cells import RegionGrid
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import ConfigError
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.metrics.reports import Fields, Told
from specsegdiff.narration.parsing import Finding, write_cells, write_findings
from specsegdiff.narration.picture import SMALL_PICTURE, draw_regions
from specsegdiff.narration.prompts import describe_prompt, select_prompt
from specsegdiff.narration.schema import KINDS, PHONES

pytest.importorskip("lightning", reason="training needs the extra 'train'")
pytest.importorskip("peft", reason="adapters need the extra 'vlm'")
pytest.importorskip("PIL", reason="pictures need the extra 'vlm'")

from specsegdiff.narration.vlm import (
    VLMConfig,
    VLMNarrator,
    encode,
    forbidden_tokens,
    generate,
    load_vlm,
)
from specsegdiff.train.examples import Example, describe, export
from specsegdiff.train.narrator import NarratorConfig, train
from specsegdiff.train.small_vlm import (
    SPECIAL,
    SmallConfig,
    make_small_vlm,
    save_vlm,
)

# Lightning's advice on workers, folders and intervals
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TINY = SmallConfig(vision_width=32, text_width=32, layers=1, vocabulary=1024)
GRID = RegionGrid(Axes(StftConfig(), 16_000))
N = 16_000


def findings(number):
    """Three cells with fields and kinds that differ by number."""
    ids = [str((number + step) % 16 + 1) for step in (0, 5, 11)]
    phones = [PHONES[(number + step) % 3] for step in range(3)]
    said = [describe("speech", "low", p, KINDS[number % len(KINDS)]) for p in phones]
    return [Finding(id, "speech", "low", p, s) for id, p, s in zip(ids, phones, said, strict=True)]


def examples():
    """Both questions about eight pictures."""
    made = []
    for number in range(8):
        found = findings(number)
        ids = tuple(f.id for f in found)
        where, what = select_prompt(GRID), describe_prompt(GRID, ids)
        picture = f"{number}.png"
        rows = tuple(
            {"region": f.id, **{k: v for k, v in asdict(f).items() if k != "id"}} for f in found
        )
        made.append(Example(f"r{number}", 1, picture, where, write_cells(ids), truth=ids))
        made.append(Example(f"r{number}", 2, picture, what, write_findings(found), ids, rows))
    return made


def texts():
    return [t for e in examples() for t in (e.prompt.system, e.prompt.user, e.answer)]


@pytest.fixture(scope="module")
def small():
    """The model at its real sizes."""
    return make_small_vlm(texts())


@pytest.fixture(scope="module")
def tiny():
    return make_small_vlm(texts(), TINY)


def picture(number=0):
    heat = torch.zeros(GRID.axes.shape)
    heat[:, number * 7 :] = 0.5
    return draw_regions(noise(N, seed=number), GRID, heatmap=heat, config=SMALL_PICTURE)


# ------------------------------------------------------------------ sizes


def test_it_is_small_enough_to_ship(small, tmp_path):
    model, processor = small
    count = sum(value.numel() for value in model.parameters())
    assert 2e6 < count < 4e6
    save_vlm(model, processor, tmp_path)
    # two adapters of rank 16 come on top, 1.5 MB each
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 8e6


def test_questions_and_answers_are_short(small):
    """An answer of five numbers has no more tokens than it has parts, and a question few more than
    the picture."""
    _, processor = small
    where, what = examples()[:2]
    for example, asked, answered in ((where, 100, 7), (what, 150, 90)):
        inputs = encode(processor, [example.prompt], [picture()])
        assert inputs["input_ids"].shape[1] <= asked
        ids = processor.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        assert len(ids) <= answered


def test_a_token_holds_one_number_and_no_field_with_its_value(small):
    tokens = small[1].tokenizer.tokenize(examples()[0].answer + examples()[1].answer)
    assert not any("," in token and any(c.isdigit() for c in token) for token in tokens)
    assert not any("=" in token and any(c.isalpha() for c in token) for token in tokens)


@pytest.mark.parametrize(
    "text", [*texts()[:6], "“é” 漢字\n\t<b>", "0123456789.5", " two  blanks ", "\x00\\\"'"]
)
def test_every_text_comes_back(small, text):
    tokenizer = small[1].tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def test_the_pictures_panels_are_its_halves(tiny):
    """Left half spectrogram, right half heatmap; nothing is scaled on the way to the model."""
    drawn = picture(3)
    assert drawn.size == (TINY.side, TINY.side)
    inputs = encode(tiny[1], [examples()[0].prompt], [drawn])
    pixels = inputs["pixel_values"][0, 0].permute(1, 2, 0).numpy()
    assert np.allclose(pixels, np.asarray(drawn) / 127.5 - 1, atol=1e-5)
    assert int((inputs["input_ids"] == tiny[0].config.image_token_id).sum()) == 16


def test_no_marker_is_drawn(tiny):
    model, processor = tiny
    inputs = encode(processor, [examples()[0].prompt] * 4, [picture()] * 4)
    ids = generate(model, processor, inputs, max_tokens=24, temperature=3.0, seed=0)
    forbidden = forbidden_tokens(model, processor)
    assert max(forbidden) < len(processor.tokenizer)
    assert model.config.image_token_id in forbidden
    assert not torch.isin(ids[:, :-1], torch.tensor([f for f in forbidden if f])).any()


def test_the_same_texts_and_seed_give_the_same_model(tiny):
    state = torch.random.get_rng_state()
    again, processor = make_small_vlm(reversed(texts()), TINY)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert processor.tokenizer.get_vocab() == tiny[1].tokenizer.get_vocab()
    first = dict(tiny[0].named_parameters())
    assert all(torch.equal(value, first[name]) for name, value in again.named_parameters())
    other, _ = make_small_vlm(texts(), TINY, seed=1)
    assert any(not torch.equal(v, first[name]) for name, v in other.named_parameters())


# ------------------------------------------------------------------ files


def test_what_is_saved_is_what_is_loaded(tiny, tmp_path):
    """Float16 on disk, float32 in memory, bit for bit; the processor gives the same inputs."""
    model, processor = tiny
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_vlm(model, processor, tmp_path)
    loaded, other = load_vlm(tmp_path)
    assert type(loaded) is type(model)
    for name, value in loaded.state_dict().items():
        assert value.dtype == before[name].dtype
        expected = before[name].half().float() if value.is_floating_point() else before[name]
        assert torch.equal(value, expected), name
    # saving changed nothing, and the output is tied to the input
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    prompt = examples()[1].prompt
    one, two = (encode(p, [prompt], [picture()]) for p in (processor, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    # no pickle, and nothing that would run
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("changes", [{"side": 100}, {"vocabulary": 100}, {"merge": 3}])
def test_impossible_sizes_are_refused(changes):
    with pytest.raises(ConfigError):
        SmallConfig(**changes)


def test_the_markers_come_first(tiny):
    vocabulary = tiny[1].tokenizer.get_vocab()
    assert [vocabulary[token] for token in SPECIAL] == list(range(len(SPECIAL)))
    assert len(vocabulary) == tiny[0].get_input_embeddings().weight.shape[0]


# ------------------------------------------------------------------ base


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    for number in range(8):
        picture(number).save(folder / f"{number}.png")
    export(examples(), folder / "examples.jsonl")
    return folder / "examples.jsonl"


def base(corpus, out, **changes):
    settings = {
        "stage": "base",
        "examples": str(corpus),
        "small": TINY,
        "steps": 3,
        "batch": 4,
        "learning_rate": 1e-2,
        "warmup": 1,
        "validate_every": 2,
    }
    resume = changes.pop("resume", False)
    return train(NarratorConfig(**settings | changes), out, accelerator="cpu", resume=resume)


def losses(out):
    text = (out / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    place = text[0].split(",").index("loss")
    return [float(line.split(",")[place]) for line in text[1:] if line.split(",")[place]]


def test_base_trains_all_of_a_new_model_on_both_queries(corpus, tmp_path):
    folder = base(corpus, tmp_path, steps=12, batch=8)
    assert folder == tmp_path / "model"
    found = losses(tmp_path)
    # from the guess among all tokens
    assert found[0] == pytest.approx(math.log(len(load_vlm(folder)[1].tokenizer)), rel=0.2)
    assert found[-1] < 0.75 * found[0]
    model, _ = load_vlm(folder)
    fresh, _ = make_small_vlm(texts(), TINY)
    start = dict(fresh.named_parameters())
    still = [n for n, v in model.named_parameters() if torch.equal(v, start[n].half().float())]
    assert still == []


def test_base_goes_on_where_it_was_killed(corpus, tmp_path):
    from safetensors.torch import load_file

    whole = base(corpus, tmp_path / "whole")
    base(corpus, tmp_path / "broken", stop=2)
    resumed = base(corpus, tmp_path / "broken", resume=True)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert one.keys() == two.keys()
    # float16 on disk
    assert max(float((one[n].float() - two[n].float()).abs().max()) for n in one) <= 1e-3


def test_only_base_may_have_no_model(corpus):
    with pytest.raises(ConfigError, match="folder that base wrote"):
        NarratorConfig(stage="sft-1", examples=str(corpus), steps=1)


@pytest.mark.slow
def test_from_random_weights_to_a_report(corpus, tmp_path):
    """All five stages, then `explain` with the model and both adapters, without a network."""
    model = base(corpus, tmp_path / "base", steps=1)
    kept = {}
    for stage in ("sft-1", "grpo-1", "sft-2", "grpo-2"):
        start = kept.get(stage.replace("grpo", "sft"))
        config = NarratorConfig(
            stage=stage,
            model=str(model),
            examples=str(corpus),
            adapter=str(start) if start else None,
            steps=1,
            batch=2,
            warmup=1,
            validate_every=1,
            rank=2,
            alpha=4,
            max_tokens=8,
        )
        kept[stage] = train(config, tmp_path / stage, accelerator="cpu")
    narrator = VLMNarrator.from_pretrained(
        model,
        adapters=(kept["grpo-1"], kept["grpo-2"]),
        config=VLMConfig(picture=SMALL_PICTURE, attempts=2, cell_tokens=8, text_tokens=8),
    )
    report = ssd.explain(
        noise(N, seed=0).numpy(), N, detector=False, draws=1, steps=1, narrator=narrator
    ).report
    assert report.provenance["model"] == str(model)
    # one step teaches nothing, and nothing is invented
    assert report.unparsed or len(report.cells) <= 3


# ------------------------------------------------------------------ the embedded one


def test_the_embedded_narrator_names_cells_and_says_what_is_there():
    """Trained weights: its answers can be read, and repeat."""
    example = ssd.explain(ssd.asset("example.flac"), detector=False)
    first, second = (ssd.narrate(example, ssd.small_narrator()) for _ in range(2))
    assert first == second
    assert [cell.id for cell in first.cells] == [cell.id for cell in example.report.cells]
    own = ssd.narrate(example, ssd.small_narrator(chooses=True))
    assert len(own.cells) == 3
    assert own.provenance["regions chosen by"] == "the model"
    assert first.provenance["model"] == "narrator-small"
    assert len(first.cells) == len(first.sentences) == 3
    assert first.unparsed == ""
    assert all(said.text.startswith(f"Region {said.region}: ") for said in first.sentences)
    assert not any(said.unsupported() for said in first.sentences)


# ------------------------------------------------------------------ benchmark


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    yield importlib.import_module("narration")
    for name in ("narration", "cells", "provenance"):
        sys.modules.pop(name, None)


def seen(script, number, *, vocoder="v", family="f", split="test"):
    """A pair as the benchmark sees it, without sound."""
    where, what = examples()[2 * number : 2 * number + 2]
    pair = Pair(where.id, Path("real"), Path(where.id), vocoder=vocoder, family=family)
    pair = replace(pair, source_group=f"g{number % 3}", vocoder_seen=True, split=split)
    cover = torch.zeros(16)
    cover[number] = 1
    genuine = {row["region"]: Fields("speech", "low", "vowel") for row in what.truth}
    ids = where.truth
    rules = tuple(
        Told(id, Fields("speech", "low", "vowel"), "A low vowel of speech.") for id in ids
    )
    return script.Seen(
        pair, where, what, None, GRID, cover, ids[::-1], ("1", "2", "3"), rules[:2], genuine
    )


def test_a_vote_takes_the_cells_that_most_answers_name(script, monkeypatch):
    """The likeliest list, [1, 5, 9], is not the list of the likeliest cells."""
    drawn = ["[1, 5, 9]"] * 3 + ["[2, 3, 1]"] * 2 + ["[3, 2, 4]"] * 2 + ["no idea"]
    monkeypatch.setattr(script, "answers", lambda *args, **options: drawn + ["?"] * 8)
    found = script.vote_cells(None, None, [seen(script, 0), seen(script, 1)], None, draws=8)
    assert found == {"r0": ("1", "2", "3"), "r1": ()}


def test_controls_know_train_and_other_vocoders_only(script):
    """Constant cells are train's; a vocoder that train lacks gets its family's."""
    training = [seen(script, n, vocoder=f"v{n % 2}", family=f"f{n % 2}") for n in range(4)]
    made = [e for one in training for e in (one.where, one.what)]
    stretch = replace(training[0].where, id="r0-1", truth=("9", "9", "9"))
    known = script.priors([*made, stretch], [one.pair for one in training])
    # r0 and r2 name 1, 6, 12 and 3, 8, 14; r1 and r3 name 2, 7, 13 and 4, 9, 15
    assert known.cells["vocoder v0"] == ("1", "3", "6")
    assert known.of(replace(training[0].pair, vocoder="new")) == known.cells["family f0"]
    assert known.of(replace(training[0].pair, vocoder="n", family="n")) == known.cells[""]
    assert known.words["6"].fields == training[0].told(genuine=False)["6"].fields
    test = [seen(script, n, vocoder=f"v{n}", family=f"f{n % 2}") for n in (5, 6, 7)]
    lists = script.controls(test, known)
    assert lists["oracle"] == {one.pair.id: one.truth for one in test}
    # its own mask is not among them: r5 and r7 are of one family
    assert lists["masks of other families, same recording"]["r5"][0] == "7"
    assert set(lists["masks of all other vocoders, same recording"]["r6"][:2]) == {"6", "8"}


def test_rows_hold_the_published_scores_and_differences_on_the_same_pairs(script):
    those = [seen(script, n) for n in range(6)]
    lists = {script.CONSTANT: {one.pair.id: ("1", "2", "3") for one in those}}
    for run in script.SEEDS:
        for how in ("", script.VOTED):
            lists[f"VLM, {run}{how}"] = {one.pair.id: one.truth for one in those}
    lists["half"] = {one.pair.id: one.truth for one in those[:3]}
    rows = {row["method"]: row for row in script.cell_rows(those, lists)}
    best = rows["VLM, SFT-1, mean of 3 seeds"]["all"]
    constant = rows[script.CONSTANT]["all"]
    assert best["recall_at_3"][0] == 1
    assert best["average_precision"][0] == pytest.approx(1)
    assert best["over_constant"][0] == pytest.approx(1 - constant["recall_at_3"][0])
    assert constant["over_constant"] == [0, 0, 0]
    assert rows["half"]["all"]["pairs"] == 3


def test_words_end_to_end_are_multiplied_by_the_hit_rate(script):
    """The mean over pairs is the published product; on hits it is not multiplied."""
    those = [seen(script, n) for n in range(6)]
    said = [one.rules for one in those]
    row = script.word_row("rules", those, said)
    for truth in ("fake", "genuine twin"):
        scores = row[truth]["scores"]
        assert scores["hit_rate"] == pytest.approx(2 / 3)
        assert row[truth]["end_to_end"][0] == pytest.approx(scores["field_accuracy_end_to_end"])
        assert row[truth]["on_hits"]["average"][0] == pytest.approx(scores["field_accuracy"])
    # the twin always has a vowel, the fake not
    assert row["genuine twin"]["on_hits"]["phone"][0] == 1
    assert row["fake"]["on_hits"]["phone"][0] < 1
    assert row["coverage"][0] == 1
    silent = script.word_row("nobody", those, [()] * 6)
    assert silent["coverage"] is None
    assert silent["fake"]["end_to_end"][0] == 0
    json.dumps(silent, allow_nan=False)
    # one hit has no spread, and stops nothing
    single = script.word_row("once", those, [those[0].rules[:1], *[()] * 5])
    assert single["fake"]["on_hits"]["frequency"] == [1.0]


def test_a_log_in_parts_is_read_as_one(script, tmp_path):
    for version, rows in enumerate((["0,0.5,0.1", "1,0.6,0.1"], ["1,0.7,0.2", "2,0.8,0.3"])):
        folder = tmp_path / "log" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("\n".join(["step,reward,kl", *rows]) + "\n")
    log = script.read_log(tmp_path)
    assert log == {"reward": [0.5, 0.7, 0.8], "kl": [0.1, 0.2, 0.3]}
    assert script.ends(log)["reward"] == [0.5, 0.8]
    assert len(script.rewards_figure({"grpo-1": log}).axes) == 2
