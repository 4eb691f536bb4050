"""What measurements usually are: medians and bounds of cells whose numbers are known."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from speech import speech

from specsegdiff.data.audio import write_audio
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import ConfigError
from specsegdiff.hub import from_dict
from specsegdiff.narration import calibration
from specsegdiff.narration.calibration import Cell, calibrate, measure_cells
from specsegdiff.narration.fields import Fields
from specsegdiff.narration.kinds import SIGNS, Reference, default_reference
from specsegdiff.narration.measurements import measure

CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
NAMES = [sign.measurement for sign in SIGNS.values()]


def cells(count=100, *, frequency="low", phone="vowel", shift=0.0, recording="a"):
    """Cells whose numbers are 0, 1, ..., count - 1, and their changes a tenth of that."""
    fields = Fields("speech", frequency, phone, (), {})
    return [
        Cell(
            f"{recording} {i}",
            fields,
            fields,
            dict.fromkeys(NAMES, i + shift),
            dict.fromkeys([sign.paired for sign in SIGNS.values()], (i - count / 2) / 10),
        )
        for i in range(count)
    ]


def everywhere():
    """All bands, two kinds of sound; of unvoiced cells too few."""
    found = []
    for place, band in enumerate(("low", "mid", "high")):
        for number, phone in enumerate(("vowel", "consonant")):
            shift = 1000.0 * (2 * place + number)
            found += cells(frequency=band, phone=phone, shift=shift, recording=f"{band}{phone}")
    return found


def test_bounds_are_quantiles_on_the_side_of_the_kind():
    reference = calibrate(everywhere(), source="test")
    table = reference.genuine["mid vowel"]
    for sign in SIGNS.values():
        usual = table[sign.measurement]
        assert usual.middle == 2000 + 49.5
        share = 0.01 if sign.with_twin else 0.05
        expected = 99 * (1 - share) if sign.direction > 0 else 99 * share
        assert usual.bound == pytest.approx(2000 + expected)
        change = reference.changes[sign.paired]
        share = 0.01 if sign.with_twin else 0.25
        expected = 99 * (1 - share) if sign.direction > 0 else 99 * share
        assert change.bound == pytest.approx((expected - 50) / 10)
        # a change is compared with none, a step with the usual one
        assert change.middle == pytest.approx(-0.05 if sign.with_twin else 0)


def test_groups_that_are_too_small_take_their_band():
    found = [*everywhere(), *cells(39, frequency="low", phone="unvoiced", recording="few")]
    reference = calibrate(found, source="test")
    numbers = [*range(100), *range(1000, 1100), *range(39)]
    assert reference.genuine["low unvoiced"]["contrast_db"].middle == np.median(numbers)
    with pytest.raises(ConfigError, match="at least 40"):
        calibrate(cells(100), source="test")


def test_a_genuine_cell_counts_once():
    found = everywhere()
    copies = [replace(cell) for cell in found if cell.genuine["contrast_db"] < 50] * 3
    once, thrice = (calibrate(some, source="test") for some in (found, found + copies))
    assert once.genuine == thrice.genuine
    assert once.changes != thrice.changes


def test_trust_counts_names_and_their_agreement():
    reference = calibrate(everywhere(), source="test")
    voice = Fields("speech", "low", "vowel", (), {})
    usual = {name: reference.genuine["low vowel"][name].middle for name in NAMES}
    still = {sign.paired: 0.0 for sign in SIGNS.values()} | {"difference_db": 1.0}

    def cell(alone=(), beside=()):
        """A cell with the numbers of some kinds far beyond their bounds."""
        own, paired = dict(usual), dict(still)
        for kind in alone:
            own[SIGNS[kind].measurement] += 1e6 * SIGNS[kind].direction
        for kind in beside:
            paired[SIGNS[kind].paired] += 1e6 * SIGNS[kind].direction
        return Cell("a", voice, voice, usual, own | paired)

    one, two = ["formant fading"], ["spectral irregularity"]
    found = calibration.trust(
        [cell(one, one), cell(one, two), cell(two, two), cell(two, two), cell(), cell((), one)],
        reference,
    )
    assert (found.named, found.named_in_genuine) == (4 / 6, 0)
    # of four, three agree; alone 2 and 2, beside 1 and 3
    assert (found.same, found.same_by_chance) == (3 / 4, (2 * 1 + 2 * 3) / 16)
    assert np.isnan(calibration.trust([cell()], reference).same)


@pytest.fixture
def pair(tmp_path):
    wave = speech(n_samples=16_000)
    noisy = wave + 0.01 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    for name, samples in (("real", wave), ("fake", noisy)):
        write_audio(tmp_path / f"{name}.wav", samples, sample_rate=16_000)
    return Pair("p", tmp_path / "real.wav", tmp_path / "fake.wav", source_group="g")


def test_both_members_are_measured(pair):
    from specsegdiff.cells import RegionGrid
    from specsegdiff.data.pairs import load_pair
    from specsegdiff.frontend import Axes, StftConfig

    found = measure_cells(pair)
    assert [cell.name for cell in found] == [f"g 16000 {i}" for i in range(1, 17)]
    real, fake = load_pair(pair)
    axes = Axes(StftConfig(), 16_000)
    box = RegionGrid(axes).box("14")
    genuine, own = measure(real, axes, box), measure(fake, axes, box)
    assert found[13].genuine == pytest.approx(
        {name: genuine[name] for name in genuine if name != "repetition_s"}
    )
    assert own.items() <= found[13].paired.items()


def test_the_command_writes_what_the_package_reads(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibration, "LEAST_CELLS", 4)
    lines = "pair_id,split,vocoder,real,fake,n_samples,gain_db\np,val,v,real.wav,fake.wav,,0\n"
    (tmp_path / "pairs.csv").write_text(lines)
    out = tmp_path / "reference.json"
    monkeypatch.setattr(sys, "argv", ["calibration", str(tmp_path), "--out", str(out)])
    calibration.main()
    reference = from_dict(Reference, json.loads(out.read_text()), where="test")
    assert reference.source == "val: 1 pairs of 1 recordings, 16 cells"
    assert re.search(r"1/1\nTrust\(named=\d", capsys.readouterr().out)


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason="the paired corpus is not in ../shared/corpus")
def test_what_ships_is_of_the_val_split():
    from specsegdiff.data.manifest import read_manifest

    pairs = read_manifest(CORPUS, split="val")
    recordings = len({pair.source_group for pair in pairs})
    expected = f"val: {len(pairs)} pairs of {recordings} recordings, {16 * len(pairs)} cells"
    assert default_reference().source == expected
