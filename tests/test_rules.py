"""The rule narrator: its words come from the saved explanation, and from nowhere else."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import noise
from speech import speech

from specsegdiff import storage
from specsegdiff.api import asset, explain
from specsegdiff.cells import Box, RegionGrid, SlicRegions, pool, top_k
from specsegdiff.errors import ConfigError, ShapeError
from specsegdiff.explanation import Explanation, assemble
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.narration.fields import Fields, fields_from_sound, frames_of
from specsegdiff.narration.kinds import SIGNS, Judgement, Reference, Usual, default_reference, judge
from specsegdiff.narration.measurements import change_name, measure
from specsegdiff.narration.phones import PhoneInterval
from specsegdiff.narration.rules import RuleNarrator, evidence
from specsegdiff.narration.schema import KINDS, Report, unsupported_numbers

N = 24_000
VOWEL = Fields("speech", "low", "vowel", (), {"speech_s": 1.0, "phone_s": 0.5})


def make(wave=None, *, seed=2, n=N):
    wave = speech(n_samples=n) if wave is None else wave
    axes = Axes(StftConfig(), len(wave))
    rough = torch.rand(1, 1, *axes.shape, generator=torch.Generator().manual_seed(seed))
    heat = torch.nn.functional.avg_pool2d(rough, 9, stride=1, padding=4)[0, 0]
    heat[:100, 30:50] += 0.3
    return assemble(
        heat,
        heat / 3,
        wave,
        config=axes.config,
        source="call.wav",
        model="tiny",
        weights_sha256="ab" * 32,
        seed=3,
        draws=4,
        steps=1,
    )


@pytest.fixture(scope="module")
def explanation():
    return make()


# ------------------------------------------------------------------ words


@pytest.mark.parametrize("lazy", [True, False])
def test_a_saved_explanation_gives_the_same_words(explanation, tmp_path, monkeypatch, lazy):
    report = RuleNarrator()(explanation)
    explanation.save(tmp_path / "ex")
    report.save(tmp_path / "report.json")
    if lazy:
        monkeypatch.setattr(storage, "IN_MEMORY_VALUES", 0)
    again = RuleNarrator()(Explanation.load(tmp_path / "ex"))
    assert again == Report.load(tmp_path / "report.json") == report


def narrators():
    grid = [PhoneInterval(0.0, 0.4, "AA1"), PhoneInterval(0.4, 0.5, "S"), PhoneInterval(0.5, 1, "")]
    return {
        "plain": RuleNarrator(),
        "many": RuleNarrator(k=12, rows=3, columns=5, scale="mel"),
        "phones": RuleNarrator(k=16, phones=grid),
        "twin": RuleNarrator(k=16, genuine=0.9 * speech(n_samples=N) + noise(N, scale=0.01)),
    }


@pytest.mark.parametrize("name", ["plain", "many", "phones", "twin"])
def test_every_number_is_known_and_every_sentence_has_a_region(explanation, name):
    report = narrators()[name](explanation)
    assert len(report.sentences) == 2 * len(report.cells)
    for sentence in report.sentences:
        assert len(re.findall(r"\d+\.\d", sentence.text)) >= 4
        assert sentence.unsupported() == ()
        # the numbers are the cell's, which anybody can compute again
        cell = report.cell(sentence.region)
        assert sentence.numbers.items() <= cell.numbers.items()
        assert sentence.text.startswith(f"Cell {cell.id}, {cell.box}: ")
        for word in (cell.evidence, str(cell.box)):
            assert unsupported_numbers(word, cell.numbers) == ()
    assert unsupported_numbers(report.summary, report.numbers) == ()
    assert report.summary in str(report)
    assert len(re.findall("<li><a href=", report._repr_html_())) == len(report.sentences)


def test_a_number_that_is_changed_is_noticed(explanation):
    for sentence in RuleNarrator()(explanation).sentences:
        printed = re.findall(r"(?<![\d.])\d+(?:\.\d+)?", sentence.text)[1:]  # but for its cell
        # nothing is there but what is printed, which a wrong number could happen to be
        assert len(sentence.numbers) == len(printed) == 7
        numbers = {key: 1.5 * value + 7000.3 for key, value in sentence.numbers.items()}
        assert len(replace(sentence, numbers=numbers).unsupported()) == 7


def test_numbers_are_those_of_the_maps_and_of_the_recording(explanation):
    report, grid = RuleNarrator()(explanation), RegionGrid(explanation.axes)
    heat = pool(explanation.heatmap, grid)
    assert tuple(cell.id for cell in report.cells) == top_k(heat, 3)
    covered = 0
    for cell in report.cells:
        place = int(cell.id) - 1
        inside = grid.labels == place
        assert cell.numbers["heat"] == float(heat[place])
        assert cell.numbers["spread"] == pytest.approx(float(heat[place]) / 3, rel=1e-6)
        covered += int((explanation.mask & inside).sum())
        fresh = measure(explanation.wave, explanation.axes, cell.box)
        assert fresh.items() <= cell.numbers.items()
    expected = 100 * covered / int(explanation.mask.sum())
    assert report.numbers["mask_percent"] == pytest.approx(expected)


def test_words_name_the_fields_and_no_region(explanation):
    for narrator in narrators().values():
        for cell in narrator(explanation).cells:
            words = cell.evidence.lower()
            # the lexicon of GRIDEX's coverage and consistency: the first match decides a tie
            assert re.search(r"non-speech|speech", words).group() == cell.time
            assert re.findall(r"\b(low|mid|high)\b", words) == [cell.frequency]
            found = re.findall(r"\b(vowel|formant|consonant|unvoiced|burst)\b", words)
            assert found[0] == cell.phone
            assert not re.search(r"cell|region", words)


def test_a_kind_without_a_twin_is_a_guess(explanation):
    named = [cell for cell in narrators()["phones"](explanation).cells if cell.kind]
    assert all("kind" in cell.uncertain for cell in named)
    assert all(f": perhaps {cell.kind}; " in cell.evidence for cell in named)
    beside = [cell for cell in narrators()["twin"](explanation).cells if cell.kind]
    assert beside
    assert all("kind" not in cell.uncertain for cell in beside)
    assert not any("perhaps" in cell.evidence for cell in beside)
    for cell in beside:
        assert cell.kind in cell.evidence


def test_provenance_says_what_the_words_depend_on(explanation):
    plain = RuleNarrator()(explanation).provenance
    assert plain["samples_sha256"] == explanation.provenance.samples_sha256
    assert (plain["regions"], plain["fields"]) == ("4x4 linear", "sound")
    assert plain["usual"].startswith("val")
    twin = RuleNarrator(genuine=explanation.wave)(explanation).provenance
    assert twin["twin_sha256"] == explanation.provenance.samples_sha256


def test_other_regions_are_described_too(explanation):
    labels = torch.zeros(explanation.axes.shape, dtype=torch.int64)
    labels[:100, 30:50] = 1
    report = RuleNarrator(k=1, divide=lambda ex: SlicRegions(ex.axes, labels))(explanation)
    assert [cell.id for cell in report.cells] == ["2"]
    assert report.cells[0].box.f1 == pytest.approx(99.5 * 15.625)


def test_a_superpixel_has_the_heat_of_its_bins_and_the_sound_of_its_box(explanation):
    """What the docstring says; an L leaves most of its box to others."""
    axes = explanation.axes
    labels = torch.zeros(axes.shape, dtype=torch.int64)
    labels[:300, 20:24] = labels[:20, 20:60] = 1
    regions = SlicRegions(axes, labels)
    cell = RuleNarrator(k=2, divide=regions)(explanation).cell("2")
    inside = labels == 1
    assert cell.numbers["heat"] == pytest.approx(float(explanation.heatmap[inside].mean()))
    marked = explanation.mask & inside
    expected = 100 * int(marked.sum()) / int(explanation.mask.sum())
    assert cell.numbers["mask_percent"] == pytest.approx(expected)
    box = regions.box("2")
    assert cell.box == box
    assert measure(explanation.wave, axes, box).items() <= cell.numbers.items()
    sound = fields_from_sound(box, frames_of(explanation.wave, axes))
    assert (cell.time, cell.frequency, cell.phone) == (sound.time, sound.frequency, sound.phone)


def test_every_number_of_the_example_comes_out_of_the_saved_files(tmp_path):
    """Boxes, heat and mask by hand from the arrays; what is measured, from the samples."""
    made = explain(asset("example.flac"), draws=2, steps=2, detector=False)
    made.save(tmp_path / "ex")
    made.report.save(tmp_path / "report.json")
    report = Report.load(tmp_path / "report.json")
    card = json.loads((tmp_path / "ex" / "explanation.json").read_text("utf-8"))
    maps = {name: np.load(tmp_path / "ex" / f"{name}.npy") for name in ("heatmap", "spread")}
    mask = np.load(tmp_path / "ex" / "mask.npy").astype(bool)
    wave = torch.from_numpy(np.load(tmp_path / "ex" / "wave.npy")).flatten()
    rate, hop, n = card["stft"]["sample_rate"], card["stft"]["hop"], card["n_samples"]
    axes, seconds = Axes(StftConfig(**card["stft"]), n), n / rate
    hertz = np.arange(mask.shape[0]) * rate / card["stft"]["n_fft"]
    time = np.arange(mask.shape[1]) * hop / rate
    held = []
    for sentence in report.sentences:
        row, column = divmod(int(sentence.region) - 1, 4)
        t0, t1 = column * seconds / 4, (column + 1) * seconds / 4
        f0, f1 = (3 - row) * rate / 8, (4 - row) * rate / 8
        rows = (hertz >= f0) & ((hertz < f1) | (row == 0))
        inside = np.ix_(rows, (time >= t0) & ((time < t1) | (column == 3)))
        again = {"t0_s": t0, "t1_s": t1, "f0_hz": f0, "f1_hz": f1}
        if "heat" in sentence.numbers:
            again |= {
                "heat": maps["heatmap"][inside].mean(dtype=np.float64),
                "spread": maps["spread"][inside].mean(dtype=np.float64),
                "mask_percent": 100 * mask[inside].sum() / mask.sum(),
            }
            held.append(again["mask_percent"])
        else:
            measured = measure(wave, axes, Box(t0, t1, f0, f1))
            cell = report.cell(sentence.region)
            (name,) = measured.keys() & sentence.numbers.keys()
            usual = default_reference().genuine[f"{cell.frequency} {cell.phone}"][name]
            again |= {name: measured[name], "usual": usual.middle, "bound": usual.bound}
        assert sentence.numbers == pytest.approx(again, rel=1e-9)
        # each number that is printed is one of these, and each of these is printed
        assert replace(sentence, numbers=again).unsupported() == ()
        for name in again:
            others = {key: value for key, value in again.items() if key != name}
            others = {k: v for k, v in others.items() if f"{v:.2f}" != f"{again[name]:.2f}"}
            assert replace(sentence, numbers=others).unsupported(), name
    assert unsupported_numbers(report.summary, {"k": 3, "all": 16, "held": sum(held)}) == ()
    assert len(held) == 3


def test_short_and_silent_recordings_have_words():
    short = RuleNarrator()(make(noise(1024)))
    assert len(short.sentences) == 6
    quiet = noise(16_000, scale=1e-6)
    report = RuleNarrator(k=16)(make(quiet))
    assert all(sentence.unsupported() == () for sentence in report.sentences)


def test_impossible_requests_are_refused(explanation):
    with pytest.raises(ConfigError, match="k must be"):
        RuleNarrator(k=0)
    with pytest.raises(ConfigError, match="1 to 16"):
        RuleNarrator(k=17)(explanation)
    with pytest.raises(ShapeError, match="24000 samples"):
        RuleNarrator(genuine=torch.zeros(100))(explanation)


# ------------------------------------------------------------------ kinds

TABLE = {sign.measurement: Usual(10.0, 10.0 + sign.direction) for sign in SIGNS.values()}
CHANGES = {sign.paired: Usual(0.0, float(sign.direction)) for sign in SIGNS.values()}
REFERENCE = Reference("specsegdiff usual measurements 1", "test", {"low vowel": TABLE}, CHANGES)


def numbers_of(kind, strength, *, paired):
    """Numbers that are usual, but for one kind's."""
    sign = SIGNS[kind]
    numbers = dict.fromkeys(TABLE, 10.0)
    if kind == "noise flattening":  # judged in noise only
        numbers["harmonicity_db"] = -5.0
    if not paired:
        numbers[sign.measurement] += strength * sign.direction
        return numbers
    numbers |= dict.fromkeys(CHANGES, 0.0) | {"difference_db": 1.0}
    return numbers | {sign.paired: float(strength * sign.direction)}


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_named_by_its_own_number(kind, paired):
    reference = REFERENCE
    if kind == "noise flattening" and not paired:
        # noise is no more harmonic than it is: the vowel's own bound would be passed first
        hiss = TABLE | {"harmonicity_db": Usual(-5.0, -6.0)}
        reference = replace(REFERENCE, genuine={"low vowel": hiss})
    for strength, expected in ((1.5, kind), (1.0, kind), (0.9, None)):
        judgement = judge(numbers_of(kind, strength, paired=paired), VOWEL, reference=reference)
        assert judgement.kind == expected
        assert judgement.strongest == kind
        assert judgement.strengths[kind] == pytest.approx(strength)
    other_way = judge(numbers_of(kind, -3.0, paired=paired), VOWEL, reference=reference)
    assert other_way.kind is None


def test_the_strongest_is_named_and_ties_go_to_the_first():
    numbers = numbers_of("formant fading", 2.0, paired=True)
    numbers |= {"irregularity_change_db": 3.0}
    assert judge(numbers, VOWEL, reference=REFERENCE).kind == "spectral irregularity"
    numbers |= {"irregularity_change_db": 2.0}
    assert judge(numbers, VOWEL, reference=REFERENCE).kind == "formant fading"


def test_kinds_are_judged_where_they_can_be():
    numbers = dict.fromkeys(TABLE, 10.0) | dict.fromkeys(CHANGES, -9.0) | {"difference_db": 1.0}

    def judged(numbers, **changes):
        return set(judge(numbers, replace(VOWEL, **changes), reference=REFERENCE).strengths)

    assert judged(numbers) == set(KINDS) - {"noise flattening"}
    assert "formant fading" not in judged(numbers, frequency="high")
    assert not {"formant fading", "harmonic degradation"} & judged(numbers, phone="consonant")
    assert "transient degradation" not in judged(numbers, time="non-speech", phone="unvoiced")
    # without the twin, harmonics are missed where genuine speech has some
    alone = dict.fromkeys(TABLE, -5.0)
    assert "harmonic degradation" in judged(alone)
    hiss = replace(REFERENCE, genuine={"low vowel": TABLE | {"harmonicity_db": Usual(-3.0, -4.0)}})
    assert "harmonic degradation" not in judge(alone, VOWEL, reference=hiss).strengths
    # what was noise before the vocoder had no harmonics to lose; what is noise now may have had
    noisy = numbers | {"harmonicity_db": 5.0, "harmonicity_change_db": 9.0}
    assert "noise flattening" in judged(noisy)
    assert not {"over-smoothing", "harmonic degradation"} & judged(noisy)
    hoarse = numbers | {"harmonicity_db": -5.0, "harmonicity_change_db": -9.0}
    assert "noise flattening" not in judged(hoarse)
    assert {"over-smoothing", "harmonic degradation"} < judged(hoarse)
    assert judge({}, VOWEL, reference=REFERENCE) == Judgement(None, None, {}, {})
    assert judge({"difference_db": 1.0}, VOWEL, reference=REFERENCE).kind is None


def test_a_guess_is_called_one():
    judgement = Judgement(None, None, {}, {})
    for fields, words in (
        (VOWEL, "Speech, mostly a vowel, low band: "),
        (replace(VOWEL, uncertain=("phone",)), "Speech, probably a vowel, low band: "),
        (replace(VOWEL, uncertain=("time", "phone")), "Probably speech, mostly a vowel, low band"),
        (
            Fields("non-speech", "high", "unvoiced", ("time", "phone"), {}),
            "Probably non-speech, unvoiced, high band: ",
        ),
    ):
        assert evidence({}, fields, judgement)[0].startswith(words)


def test_where_there_is_no_sound_nothing_is_judged():
    numbers = numbers_of("over-smoothing", 2.0, paired=False)
    assert judge(numbers | {"level_db": -114.0}, VOWEL, reference=REFERENCE).kind
    assert judge(numbers | {"level_db": -116.0}, VOWEL, reference=REFERENCE).strongest is None
    # what the vocoder took away was there
    numbers = numbers_of("over-smoothing", 2.0, paired=True) | {"level_db": -116.0}
    lost = judge(numbers | {"level_change_db": -9.0}, VOWEL, reference=REFERENCE)
    assert lost.kind == "over-smoothing"
    assert judge(numbers, VOWEL, reference=REFERENCE).strongest is None
    # a telephone's band, in 16 bits: above 3.4 kHz there is quantisation noise
    spectrum = torch.fft.rfft(speech(n_samples=N))
    spectrum[3400 * N // 16_000 :] = 0
    narrow = (torch.fft.irfft(spectrum) * 2**15).round() / 2**15
    cells = RuleNarrator(k=16)(make(narrow)).cells
    upper = {cell.id for cell in cells if "nothing can be measured" in cell.evidence}
    assert upper == {str(number) for number in range(1, 9)}


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_words(kind, paired):
    judgement = Judgement(kind, kind, {kind: 2.0}, {kind: Usual(0.25, -1.75)})
    numbers = numbers_of(kind, 2.0, paired=paired)
    text, used = evidence(numbers, VOWEL, judgement)
    assert kind in text
    assert unsupported_numbers(text, used) == ()
    assert len(used) == (2 if paired else 3)
    assert len(re.findall(r"\d\.\d", text)) == (2 if paired else 3)
    calm, _ = evidence(numbers, VOWEL, replace(judgement, kind=None))
    assert "no artifact stands out" in calm
    assert evidence({}, VOWEL, Judgement(None, None, {}, {}))[1] == {}


def test_the_numbers_that_ship_are_complete():
    reference = default_reference()
    assert len(reference.genuine) == 9
    for table in reference.genuine.values():
        assert set(table) == {sign.measurement for sign in SIGNS.values()}
    assert set(reference.changes) == {sign.paired for sign in SIGNS.values()}
    for sign in SIGNS.values():
        for usual in (
            reference.changes[sign.paired],
            reference.genuine["low vowel"][sign.measurement],
        ):
            assert (usual.bound - usual.middle) * sign.direction > 0
    with pytest.raises(ConfigError, match="format"):
        replace(reference, format="other")
    with pytest.raises(ConfigError, match="differ"):
        Usual(1.0, 1.0)
    assert change_name("click_db") == "click_change_db"


# ------------------------------------------------------------------ known damage


def damaged(spectrum_of):
    """A voice, and the same with its spectrum changed; both have the genuine phases."""
    from specsegdiff.frontend import Stft

    wave, stft = speech(n_samples=N), Stft(StftConfig())
    return wave, stft.inverse(spectrum_of(stft(wave)), length=N)


def test_known_damage_is_named():
    """Damage done to one cell moves that cell's number, as its kind says."""
    axes = Axes(StftConfig(), N)
    box = RegionGrid(axes).box("14")

    def numbers(wave, twin):
        from specsegdiff.narration.measurements import measure_pair

        return measure_pair(wave, twin, axes, box)

    wave = speech(n_samples=N)
    hoarse = numbers(wave + noise(N, scale=0.03), wave)
    assert judge(hoarse, VOWEL).strengths["harmonic degradation"] > 1
    joined = torch.cat([wave[:9_000], speech(n_samples=N, seed=5, f0=190.0)[9_000:]])
    assert judge(numbers(joined, wave), VOWEL).strengths["splice boundary"] > 1
    looped = wave.clone()
    looped[6_000:12_000] = wave[6_000:7_536].repeat(4)[:6_000]
    assert judge(numbers(looped, wave), VOWEL).strengths["periodic repetition"] > 1
    first, smooth = damaged(lambda s: s * (s.abs().clamp_min(1e-3).log().mul(-0.7).exp()))
    assert judge(numbers(smooth, first), VOWEL).strengths["formant fading"] > 1
