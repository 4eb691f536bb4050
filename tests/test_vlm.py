"""The picture shows what it says, and a model's answers become a report or are said to be none."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import noise

from specsegdiff.cells import RegionGrid, SlicRegions, pool, top_k
from specsegdiff.errors import CheckpointError, ConfigError, ShapeError
from specsegdiff.explanation import Explanation, Layers, Provenance
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.narration import vlm
from specsegdiff.narration.parsing import Finding, write_findings
from specsegdiff.narration.picture import BOTTOM, LEFT, PictureConfig, draw_regions
from specsegdiff.narration.policy import completion_mask
from specsegdiff.narration.prompts import Prompt
from specsegdiff.narration.rules import RuleNarrator
from specsegdiff.narration.vlm import VLMConfig, VLMNarrator
from specsegdiff.storage import MapStore

AXES = Axes(StftConfig(), n_samples=16_000)
GRID = RegionGrid(AXES)
PLAIN = PictureConfig(width=64, height=64, axes=False, ids=False)


def tone(hertz, *, start=0.0, end=1.0):
    time = torch.arange(AXES.n_samples) / 16_000
    return torch.sin(2 * torch.pi * hertz * time) * ((time >= start) & (time < end))


def explanation(wave=None):
    wave = noise(AXES.n_samples) if wave is None else wave
    heat = torch.linspace(0, 1, AXES.shape[1]).expand(AXES.shape).contiguous()
    layers = Layers(
        MapStore.of(heat), MapStore.of(heat / 2), MapStore.of(heat > 0.95), MapStore.of(wave[None])
    )
    made = Provenance("call.wav", "ab" * 32, "m", "", seed=0, draws=1, steps=1, version="0")
    return Explanation(AXES, (), made, layers)


# ------------------------------------------------------------------ the picture


@pytest.mark.parametrize("scale", ["linear", "mel"])
@pytest.mark.parametrize("hertz", [300, 1900, 5200, 7500])
def test_a_tone_lies_in_the_region_that_has_its_frequency(scale, hertz):
    """Picture, regions and map agree; GRIDEX's public code has two frequency axes."""
    grid = RegionGrid(AXES, scale=scale)
    picture = draw_regions(tone(hertz, start=0.5, end=0.75), grid, config=PLAIN)
    loud = np.asarray(picture).astype(int).sum(2)
    rows, columns = (loud > 0.9 * loud.max()).nonzero()
    (row,) = set(rows // 16)
    (column,) = set(columns // 16)
    box = grid.box(str(row * 4 + column + 1))
    assert box.f0 <= hertz < box.f1
    assert (box.t0, box.t1) == (0.5, 0.75)


def test_outlines_are_where_regions_end():
    config = PictureConfig(width=64, height=64, axes=False)
    bare = np.asarray(draw_regions(tone(200), GRID, config=PLAIN))
    drawn = np.asarray(draw_regions(tone(200), GRID, config=config))
    white = (drawn == 255).all(2) & ~(bare == 255).all(2)
    for edge in (15, 31, 47):
        assert white[edge].mean() > 0.6
        assert white[:, edge].mean() > 0.6
    assert white.mean() < 0.2


def test_every_region_has_its_id(monkeypatch):
    from PIL import ImageDraw

    written = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, said, **more: (written.append((xy, said)), text(self, xy, said, **more)),
    )
    config = PictureConfig(width=64, height=64, axes=False)
    draw_regions(noise(AXES.n_samples), GRID, config=config)
    assert [said for _, said in written] == list(GRID.ids)
    # 6 is in the second row and column
    (x, y), _ = written[5]
    assert 16 <= x < 32
    assert 16 <= y < 32
    # an L is named inside, not at its middle
    labels = torch.zeros(AXES.shape, dtype=torch.int64)
    labels[100:, 10:] = 1
    written.clear()
    draw_regions(noise(AXES.n_samples), SlicRegions(AXES, labels), config=config)
    assert [said for _, said in written] == ["1", "2"]


def test_axes_say_the_true_seconds_and_hertz(monkeypatch):
    from PIL import ImageDraw

    said = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, words, **more: (said.append(words), text(self, xy, words, **more)),
    )
    config = PictureConfig(width=64, height=64, ids=False)
    picture = draw_regions(noise(AXES.n_samples), GRID, config=config)
    assert picture.size == (LEFT + 64, 64 + BOTTOM)
    assert {"0.00 s", "0.25 s", "1.00 s", "0.00 kHz", "2.00 kHz", "8.00 kHz"} <= set(said)
    said.clear()
    draw_regions(noise(AXES.n_samples), RegionGrid(AXES, scale="mel"), config=config)
    assert "8.00 kHz" in said
    assert "2.00 kHz" not in said


def test_the_heatmap_stands_beside_the_spectrogram():
    made = explanation()
    config = PictureConfig(width=64, height=64, axes=False, ids=False, heat=True)
    picture = draw_regions(made.layers.wave, GRID, heatmap=made.layers.heatmap, config=config)
    assert picture.size == (128, 64)
    heat = np.asarray(picture)[:, 64:].astype(int).sum(2)
    assert (np.diff(heat[0]) >= 0).all()
    with pytest.raises(ShapeError, match="heatmap"):
        draw_regions(made.layers.wave, GRID, config=config)


def test_a_long_recording_is_drawn_too():
    """More frames than columns are pooled, and a click survives."""
    axes = Axes(StftConfig(), n_samples=1_200_000)
    wave = torch.zeros(axes.n_samples)
    wave[910_000] = 1
    loud = np.asarray(draw_regions(wave, RegionGrid(axes), config=PLAIN)).astype(int).sum(2)
    assert (loud[32] > loud.max() / 2).nonzero()[0].tolist() == [48]


def test_pictures_that_cannot_be_drawn_are_refused():
    with pytest.raises(ShapeError, match="16000 samples"):
        draw_regions(noise(8_000), GRID)
    with pytest.raises(ConfigError, match="8 x 8"):
        PictureConfig(width=4)


# ------------------------------------------------------------------ answers to reports


class Scripted(VLMNarrator):
    """A narrator whose model has given these answers."""

    def __init__(self, cells, text, **options):
        config = options.pop("config", VLMConfig(picture=PLAIN, attempts=3))
        super().__init__(SimpleNamespace(), None, config=config, **options)
        self.scripts = {"cells": list(cells), "text": list(text)}
        self.asked = []

    def _answers(self, prompt, picture, adapter, max_tokens):
        assert isinstance(prompt, Prompt)
        for text in self.scripts[adapter][: self.config.attempts]:
            self.asked.append(adapter)
            yield text


def words(*ids, evidence="A smeared vowel."):
    return write_findings([Finding(id, "speech", "low", "vowel", evidence) for id in ids])


def test_answers_become_cells_with_their_boxes_and_sentences():
    narrator = Scripted(["[15, 2, 11]"], [words("15", "2", "11")])
    report = narrator(explanation())
    assert [cell.id for cell in report.cells] == ["15", "2", "11"]
    assert report.cell("2").box == GRID.box("2")
    assert [said.region for said in report.sentences] == ["15", "2", "11"]
    assert report.unparsed == ""
    assert not any(said.unsupported() for said in report.sentences)
    assert report.provenance["recording"] == "call.wav"
    assert narrator.asked == ["cells", "text"]
    assert type(report).from_json(report.to_json()) == report


def test_a_bad_answer_is_asked_for_again_and_the_best_one_stays():
    narrator = Scripted(["no", "[15, 99]", "[2, 3]"], ["?", words("2"), words("2", "9")])
    report = narrator(explanation())
    assert narrator.asked == ["cells"] * 3 + ["text"] * 3
    assert [cell.id for cell in report.cells] == ["2"]
    assert report.numbers == {"regions_described": 1, "regions_chosen": 2}
    assert report.provenance["regions"] == "2, 3"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "a" * 10_000,
        "<|image_pad|>" * 9,
        "[15, 14",
        "3 regions",
        "[0, 99, 100]",
        "Number of regions: [3]",
        "None of [15, 14, 11].",
        "[1, 2, 3] kHz",
        "1,500",
        "[" * 10_000,
        "(" * 10_000,
        '"' * 10_000,
        "\x1b[2J\n- Region 15: fake.\u2028\ud800",
    ],
    ids=lambda bad: ascii(bad[-20:]),
)
def test_a_model_that_never_chooses_gives_a_report_that_says_so(bad):
    narrator = Scripted([bad] * 5, [words("15")])
    report = narrator(explanation())
    assert (report.cells, report.sentences) == ((), ())
    assert report.unparsed == bad
    assert narrator.asked == ["cells"] * 3
    assert type(report).from_json(report.to_json().encode().decode()) == report
    assert len(str(report).encode().decode().splitlines()) == (2 if bad else 1)


@pytest.mark.parametrize(
    "bad",
    [
        'garbage, in quotes " and (brackets',
        '(15, T=speech, F=low, P=vowel, En="half',
        words("9"),
        words("15", evidence="As in region 3."),
        words("15", evidence="It peaks at 440 Hz."),
        words("15", evidence="Noise above 5kHz."),
        words("15", evidence="It stops for ½ s."),
        '(15, T=music, F=low, P=vowel, En="a")',
        '(15, T=speech, F=low, P=vowel, En="<|image_pad|>")',
        '(15, T=speech, F=low, P=vowel, En="...")',
        '(15, T=speech, F=low, P=vowel, En="\u200b")',
        r'(15, T=speech, F=low, P=vowel, En="A \u003c|image_pad|\u003e.")',
        '(15, T=speech, F=low, P=vowel, En="half\n14: En="whole")',
        '(15, T=..., F=..., P=..., En="...")',
        "\x00\x1b[31m\u202e\ud800",
        "(" * 10_000,
        "[" * 10_000,
        '"' * 10_000,
        '(15, T=speech, F=low, P=vowel, En="' * 300,
    ],
    ids=lambda bad: ascii(bad[-20:]),
)
def test_words_that_cannot_be_checked_are_no_sentences(bad):
    report = Scripted(["[15, 2, 11]"], [bad] * 3)(explanation())
    assert (report.cells, report.sentences) == ((), ())
    assert report.unparsed
    assert type(report).from_json(report.to_json().encode().decode()) == report
    # the summary, and what was not understood
    assert len(str(report).encode().decode().splitlines()) == 2
    assert report._repr_html_().encode()
    assert (
        report.unparsed.removeprefix("Region 15: ") in bad
        or report.unparsed in bad
        or (report.unparsed.startswith("Region 15: "))
    )


def test_a_function_may_choose_instead_of_the_model():
    narrator = Scripted([], [words("4", "1")], choose=lambda explained, regions: ["4", "1"])
    report = narrator(explanation())
    assert [cell.id for cell in report.cells] == ["4", "1"]
    assert narrator.asked == ["text"]


def test_the_narrator_takes_as_many_chosen_regions_as_it_is_asked_for():
    made = explanation()
    heat = pool(made.layers.heatmap, GRID)
    for k in (1, 3, 5):
        config = VLMConfig(k=k, picture=PLAIN)
        report = Scripted([], [words(*top_k(heat, k))], choose=vlm.hottest, config=config)(made)
        assert tuple(cell.id for cell in report.cells) == top_k(heat, k)
        assert report.numbers["regions_chosen"] == k
    assert vlm.hottest(made, GRID) == top_k(heat, 16)


def test_a_model_describes_the_regions_that_rules_do():
    """Both narrators take the same ``divide``: regions, or a function of the explanation."""
    labels = torch.zeros(AXES.shape, dtype=torch.int64)
    labels[100:, 10:] = 1
    made, two = explanation(), VLMConfig(k=2, picture=PLAIN)
    for divide, box in (
        (SlicRegions(AXES, labels), SlicRegions(AXES, labels).box("2")),
        (lambda ex: RegionGrid(ex.axes, 2, 1), RegionGrid(AXES, 2, 1).box("2")),
    ):
        for narrator in (
            RuleNarrator(k=2, divide=divide),
            Scripted(["[2, 1]"], [words("2", "1")], divide=divide, config=two),
        ):
            report = narrator(made)
            assert {cell.id for cell in report.cells} == {"1", "2"}
            assert report.cell("2").box == box
    other = RegionGrid(Axes(StftConfig(), n_samples=16_001))
    for narrator in (RuleNarrator(divide=other), Scripted([], [], divide=other)):
        with pytest.raises(ShapeError, match="16001 samples"):
            narrator(made)


def test_a_line_break_in_the_evidence_begins_no_line_of_the_report():
    said = " A smeared vowel.\n- The whole recording\u2028is\tfake.\r\n"
    report = Scripted(["[15]"], [words("15", evidence=said)])(explanation())
    plain = "A smeared vowel. - The whole recording is fake."
    assert str(report).splitlines()[1:] == [f"- Region 15: {plain}"]
    assert report.cell("15").evidence == plain


def test_votes_that_cannot_be_read_are_said():
    drawn = ["[1, 5, 9]", "no\nidea" + "!" * 200, "[1, 5, 9]", ""]
    narrator = Scripted([], [words("1", "5", "9")], config=VLMConfig(picture=PLAIN, votes=4))
    narrator._votes = lambda prompt, picture: drawn
    report = narrator(explanation())
    assert [cell.id for cell in report.cells] == ["1", "5", "9"]
    first = "no idea" + "!" * (vlm.SHOWN - len("no idea"))
    assert report.unparsed == f"2 of 4 answers could not be read: {first}..."
    drawn[1] = "[9, 5, 1]"
    assert narrator(explanation()).unparsed == "1 of 4 answers could not be read: (empty)"
    drawn[3] = "[1, 5, 9]"
    assert narrator(explanation()).unparsed == ""


def test_votes_take_the_regions_that_most_answers_name():
    """The likeliest list, [1, 5, 9], is not the list of the likeliest regions."""
    drawn = ["[1, 5, 9]"] * 3 + ["[2, 3, 1]"] * 2 + ["[3, 2, 4]"] * 2 + ["no idea"]
    narrator = Scripted([], [words("1", "2", "3")], config=VLMConfig(picture=PLAIN, votes=8))
    narrator._votes = lambda prompt, picture: drawn
    report = narrator(explanation())
    assert report.provenance["regions"] == "1, 2, 3"
    narrator._votes = lambda prompt, picture: ["no idea"] * 8
    report = narrator(explanation())
    assert report.cells == ()
    assert report.unparsed == "\n".join(["no idea"] * 8)


def test_settings_outside_their_domain_are_refused():
    for name in ("k", "attempts", "votes", "temperature", "text_tokens"):
        with pytest.raises(ConfigError, match=name):
            VLMConfig(**{name: 0})


# ------------------------------------------------------------------ real classes, tiny

transformers = pytest.importorskip("transformers", reason="models need the extra 'vlm'")
pytest.importorskip("torchvision", reason="transformers reads pictures of Qwen with it")

from vlms import FAMILIES, make_vlm  # noqa: E402

SMALL = VLMConfig(picture=PictureConfig(64, 64), attempts=2, cell_tokens=8, text_tokens=8)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return make_vlm(request.param)


def test_any_family_reports_on_a_recording(family):
    """Random weights say nothing that can be read: the report is empty and whole, and repeats."""
    model, processor = family
    state = torch.random.get_rng_state()
    reports = [VLMNarrator(model, processor, config=SMALL)(explanation()) for _ in range(2)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert reports[0] == reports[1]
    assert reports[0].cells == ()
    assert 0 < len(reports[0].unparsed) <= 200
    config = replace(SMALL, votes=3)
    voted = VLMNarrator(model, processor, config=config)(explanation())
    assert voted.cells == ()
    assert torch.equal(state, torch.random.get_rng_state())


def test_no_answer_holds_a_marker(family):
    model, processor = family
    prompts, pictures = (
        [Prompt("a", "b")] * 2,
        [draw_regions(noise(16_000), GRID, config=PLAIN)] * 2,
    )
    inputs = vlm.encode(processor, prompts, pictures)
    ids = vlm.generate(model, processor, inputs, max_tokens=20, temperature=3.0, seed=1)
    forbidden = vlm.forbidden_tokens(model, processor)
    ends = vlm.end_tokens(model, processor)
    mask = completion_mask(ids, ends)
    assert not torch.isin(ids[mask], torch.tensor(forbidden)).any()
    assert set(forbidden).isdisjoint(ends)
    markers = processor.tokenizer.convert_ids_to_tokens(forbidden)
    assert {"<image>", "<|image_pad|>", "<IMG_CONTEXT>"} <= set(markers)
    assert all("<" not in text for text in vlm.decode(processor, ids))


def test_draws_depend_on_their_seed_only(family):
    model, processor = family
    inputs = vlm.encode(
        processor, [Prompt("a", "b")], [draw_regions(noise(16_000), GRID, config=PLAIN)]
    )
    draw = [
        vlm.generate(model, processor, inputs, max_tokens=12, temperature=2.0, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draw[0], draw[1])
    assert draw[0].shape != draw[2].shape or not torch.equal(draw[0], draw[2])


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no model"):
        vlm.load_vlm(tmp_path)


def question(processor, *, times=1):
    pictures = [draw_regions(noise(16_000), GRID, config=PLAIN)] * times
    return vlm.encode(processor, [Prompt("a", "b")] * times, pictures)


def logits_settings():
    """Settings of `transformers` that alter probabilities, each far from neutral."""
    return {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 12,
        "bad_words_ids": [[id] for id in range(30, 60)],
        "sequence_bias": {(40,): 9.0},
        "begin_suppress_tokens": list(range(20, 70)),
        "forced_eos_token_id": 2,
        "exponential_decay_length_penalty": (1, 9.0),
        "min_p": 0.5,
        "typical_p": 0.2,
        "epsilon_cutoff": 0.05,
        "eta_cutoff": 0.5,
        "top_h": 0.1,
        "top_k": 2,
        "top_p": 0.2,
        "num_beams": 3,
    }


@pytest.mark.parametrize("name", logits_settings())
def test_settings_of_a_checkpoint_change_no_draw(name):
    model, processor = make_vlm("idefics3")
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 3}
    inputs = question(processor, times=4)
    plain = vlm.generate(model, processor, inputs, **options)
    setattr(model.generation_config, name, value := logits_settings()[name])
    assert torch.equal(vlm.generate(model, processor, inputs, **options), plain)
    assert getattr(model.generation_config, name) == value


def test_a_penalty_of_a_checkpoint_leaves_draws_the_probability_training_gives_them(monkeypatch):
    """A ratio starts at 1, also for Qwen2.5-VL, whose checkpoint penalises repetition."""
    pytest.importorskip("lightning", reason="training needs the extra 'train'")
    from specsegdiff.train.narrator import Answered, answer_log_probs

    model, processor = make_vlm("qwen2.5-vl")
    model.generation_config.repetition_penalty = 1.3
    inner, scores = model.generate, []

    def drawing(**options):
        drawn = inner(**options, output_scores=True, return_dict_in_generate=True)
        scores.extend(drawn.scores)
        return drawn.sequences

    monkeypatch.setattr(model, "generate", drawing)
    inputs = question(processor, times=3)
    ids = vlm.generate(model, processor, inputs, max_tokens=12, temperature=0.7, seed=0)
    expected = torch.stack(scores, 1).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    mask = completion_mask(ids, vlm.end_tokens(model, processor))
    forbidden = vlm.forbidden_tokens(model, processor)
    with torch.no_grad():
        answered = Answered(inputs, ids, mask)
        found = answer_log_probs(model, answered, temperature=0.7, forbidden=forbidden)
    # float32, with and without a cache
    assert torch.allclose(found[mask], expected[mask], atol=1e-4)


def cut(path, *, keep):
    path.write_bytes(path.read_bytes()[:keep])


def test_damaged_weights_are_named(tmp_path):
    model, processor = make_vlm("idefics3")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vlm.load_vlm(tmp_path)
    for keep in (1000, 5, 0):
        cut(tmp_path / "model.safetensors", keep=keep)
        with pytest.raises(CheckpointError, match=r"cannot be read .*download it again"):
            vlm.load_vlm(tmp_path)


def test_damaged_adapters_are_named(tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need the extra 'vlm'")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(make_vlm("idefics3")[0], config).save_pretrained(tmp_path)

    def load(first=None):
        model = make_vlm("idefics3")[0]
        model = vlm.with_adapter(model, first, name="other") if first else model
        return vlm.with_adapter(model, tmp_path, name="cells")

    load()
    weights, described = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole = shutil.copytree(tmp_path, tmp_path / "whole")
    for first in (None, whole):
        cut(weights, keep=100)
        with pytest.raises(CheckpointError, match=r"cannot be read .*copy it again"):
            load(first)
        shutil.copy(whole / weights.name, weights)
        for text in ("{}", '{"peft_type": "NONE"}', "[]", "{"):
            described.write_text(text)
            with pytest.raises(CheckpointError, match="a stage of training wrote"):
                load(first)
        shutil.copy(whole / described.name, described)
