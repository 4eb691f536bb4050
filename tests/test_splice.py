"""Splices: where they lie, what they hold, how frames are labelled, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from models import noise

from specsegdiff.data.splice import (
    Clip,
    SpliceConfig,
    Spliced,
    Splicer,
    fill,
    frame_starts,
    splice,
)
from specsegdiff.errors import ConfigError, PairError, ShapeError
from specsegdiff.models.encoder import BackboneConfig

N = 2_000
SMALL = SpliceConfig(n_samples=N)
REAL, FAKE = Clip(torch.zeros(N), False), Clip(torch.ones(N), True)


def injected(spliced):
    """Ones where samples of a donor of ones stand, in a base of zeros."""
    return spliced.wave > 0.5


# ------------------------------------------------------------------ where


def test_a_segment_replaces_10_to_30_percent_of_the_clip_anywhere():
    splicer, lengths, firsts = Splicer(SMALL), [], []
    for seed in range(300):
        mixed = splicer(REAL, FAKE, seed=seed)
        ((first, end),) = mixed.segments
        assert injected(mixed).nonzero().flatten().tolist() == list(range(first, end))
        lengths.append((end - first) / N)
        firsts.append(first / (N - (end - first)))
    lengths, firsts = torch.tensor(lengths), torch.tensor(firsts)
    assert 0.1 <= lengths.min() < 0.11
    assert 0.29 < lengths.max() <= 0.3
    # even draws: within four standard errors of the middle, 1 / sqrt(12 * 300) of the range each
    assert abs(lengths.mean() - 0.2) < 4 * 0.2 / (12 * 300) ** 0.5
    assert abs(firsts.mean() - 0.5) < 4 / (12 * 300) ** 0.5


def test_the_paper_gives_6460_to_19380_samples_and_201_frames():
    config = SpliceConfig()
    assert [round(share * config.n_samples) for share in config.ratio] == [6_460, 19_380]
    assert len(frame_starts(config.n_samples, hop=320, reach=400)) == 201
    backbone = BackboneConfig()
    for n in (100, 400, 719, 720, 64_600):
        starts = frame_starts(n, hop=backbone.hop, reach=backbone.reach)
        assert len(starts) == backbone.n_frames(n)


@pytest.mark.parametrize("n", [20, N])
def test_several_segments_share_the_ratio_and_lie_apart(n):
    """In 20 samples segments meet in most draws, unless one is kept between them."""
    splicer = Splicer(SpliceConfig(n_samples=n, n_segments=4, ratio=(0.2, 0.3)))
    base, donor = Clip(torch.zeros(n), False), Clip(torch.ones(n), True)
    for seed in range(100):
        mixed = splicer(base, donor, seed=seed)
        lengths = [end - first for first, end in mixed.segments]
        assert max(lengths) - min(lengths) <= 1
        assert 0.2 * n - 1 <= sum(lengths) <= 0.3 * n + 1
        edges = [edge for segment in mixed.segments for edge in segment]
        assert edges == sorted(set(edges))
        assert int(injected(mixed).sum()) == sum(lengths)


def test_the_source_is_anywhere_in_the_donor():
    """A donor whose samples tell where they were."""
    donor = Clip(1 + torch.arange(float(N)), True)
    offsets = []
    for seed in range(50):
        mixed = Splicer(SMALL)(REAL, donor, seed=seed)
        ((first, end),) = mixed.segments
        part = mixed.wave[first:end]
        assert torch.equal(part.diff(), torch.ones(end - first - 1))
        offsets.append(int(part[0]) - 1 - first)
    assert min(offsets) < -100
    assert max(offsets) > 100


def test_one_seed_gives_one_splice_and_the_inputs_stay():
    base, donor = Clip(noise(N, seed=1), True), Clip(noise(N, seed=2), False)
    before = base.wave.clone()
    one, same, other = (Splicer(SMALL)(base, donor, seed=s) for s in (5, 5, 6))
    assert torch.equal(one.wave, same.wave)
    assert one.segments == same.segments
    assert one.segments != other.segments
    assert torch.equal(base.wave, before)


# ------------------------------------------------------------------ what


def test_a_hard_cut_changes_nothing_else():
    base, donor = Clip(noise(N, seed=1), False), Clip(noise(N, seed=2), True)
    mixed = splice(base, donor, segments=[(300, 500)], sources=[1_000])
    assert torch.equal(mixed.wave[:300], base.wave[:300])
    assert torch.equal(mixed.wave[300:500], donor.wave[1_000:1_200])
    assert torch.equal(mixed.wave[500:], base.wave[500:])


def test_a_fade_has_one_power_in_sum_and_lies_within_the_segment():
    zeros, ones = torch.zeros(N), torch.ones(N)
    where = {"segments": [(300, 500)], "sources": [0], "fade": 50}
    rising = splice(Clip(zeros, False), Clip(ones, True), **where).wave
    falling = splice(Clip(ones, False), Clip(zeros, True), **where).wave
    assert torch.allclose(rising.square() + falling.square(), ones, atol=1e-6)
    assert rising[:300].sum() == 0
    assert rising[500:].sum() == 0
    assert (rising[300:350].diff() > 0).all()
    assert torch.equal(rising[350:450], ones[350:450])
    # the sine at the middle of the first sample
    assert rising[300] == pytest.approx(float(torch.sin(torch.tensor(0.5 * torch.pi / 100))))
    at_the_ends = splice(
        Clip(zeros, False),
        Clip(ones, True),
        segments=[(0, 200), (1_900, N)],
        sources=[0, 0],
        fade=50,
    ).wave
    assert at_the_ends[0] == 1
    assert at_the_ends[-1] == 1
    assert at_the_ends[199] < 0.1
    assert at_the_ends[1_900] < 0.1


def test_the_crossfade_is_in_milliseconds():
    assert replace(SMALL, crossfade_ms=2.5).fade == 40
    mixed = Splicer(replace(SMALL, crossfade_ms=2.5))(REAL, FAKE, seed=3)
    ((first, end),) = mixed.segments
    assert ((mixed.wave > 0) & (mixed.wave < 1)).sum() == 80
    assert mixed.wave[first:end].min() > 0


def test_the_level_match_brings_the_donor_to_the_base():
    base, donor = Clip(noise(N, seed=1), False), Clip(7 * noise(N, seed=2), True)
    config = replace(SMALL, match_rms=True)
    ((first, end),) = (mixed := Splicer(config)(base, donor, seed=1)).segments
    plain = Splicer(SMALL)(base, donor, seed=1)
    gain = (mixed.wave[first:end] / plain.wave[first:end]).mean()
    expected = base.wave.square().mean().sqrt() / donor.wave.square().mean().sqrt()
    assert float(gain) == pytest.approx(float(expected), rel=1e-4)
    silent = Splicer(config)(base, Clip(torch.zeros(N), True), seed=1)
    assert silent.wave[first:end].abs().sum() == 0


def test_fill_crops_and_repeats():
    wave = torch.arange(10.0)
    assert torch.equal(fill(wave, 4, start=3), torch.tensor([3.0, 4.0, 5.0, 6.0]))
    assert torch.equal(fill(wave, 25), torch.cat([wave, wave, wave[:5]]))


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize("reach", [400, 401, 2_432])
def test_a_frame_belongs_to_the_class_of_its_middle_sample(reach):
    wave = torch.zeros(9_000)
    # the segment begins and ends on the middles of frames 9 and 14
    first, end = (320 * k + reach // 2 for k in (9, 14))
    wave[first:end] = 1
    mixed = Spliced(wave, ((first, end),), False, True)
    expected = [bool(wave[k * 320 + reach // 2] > 0) for k in range((9_000 - reach) // 320 + 1)]
    assert mixed.labels(hop=320, reach=reach).tolist() == expected
    assert sum(expected) == 5


def test_both_readings_of_a_label():
    frames = {"hop": 100, "reach": 100}
    segments = ((500, 900),)
    truth = {}
    for base, donor in [(False, True), (True, False), (False, False), (True, True)]:
        mixed = Spliced(torch.zeros(1_500), segments, base, donor)
        inside = mixed.labels(**frames, reading="injected")
        assert inside.nonzero().flatten().tolist() == [5, 6, 7, 8]
        truth[base, donor] = mixed.labels(**frames, reading="source_class")
    assert torch.equal(truth[False, True], inside)
    assert torch.equal(truth[True, False], ~inside)
    # the control has nothing to find
    assert not truth[False, False].any()
    assert truth[True, True].all()
    with pytest.raises(ConfigError, match="reading"):
        mixed.labels(**frames, reading="spoof")


def test_frames_with_a_join_are_those_that_see_both_sides():
    mixed = Spliced(torch.zeros(1_500), ((0, 250), (700, 900)), False, True)
    # joins at 250, 700, 900; a join between frames is seen by neither
    assert mixed.joins(hop=100, reach=100).nonzero().flatten().tolist() == [2]
    assert mixed.joins(hop=100, reach=200).nonzero().flatten().tolist() == [1, 2, 6, 8]


# ------------------------------------------------------------------ refusals


def test_the_control_wants_one_class_and_the_rest_opposite_ones():
    control = Splicer(replace(SMALL, control=True))
    other = Clip(torch.ones(N), False)
    assert int(injected(control(REAL, other, seed=0)).sum()) >= 0.1 * N
    with pytest.raises(PairError, match="one class"):
        control(REAL, FAKE, seed=0)
    with pytest.raises(PairError, match="opposite classes"):
        Splicer(SMALL)(REAL, other, seed=0)


def test_unequal_rates_and_lengths_are_refused():
    with pytest.raises(PairError, match="16000 Hz and the donor at 8000"):
        Splicer(SMALL)(REAL, replace(FAKE, sample_rate=8_000), seed=0)
    with pytest.raises(PairError, match=r"donor has shape \(1999,\), expected \(2000,\)"):
        Splicer(SMALL)(REAL, Clip(torch.ones(N - 1), True), seed=0)
    with pytest.raises(PairError, match="base has shape"):
        Splicer(SMALL)(Clip(torch.zeros(1, N), False), FAKE, seed=0)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"segments": [(0, N + 1)], "sources": [0]}, "does not fit"),
        ({"segments": [(-1, 5)], "sources": [0]}, "does not fit"),
        ({"segments": [(5, 5)], "sources": [0]}, "does not fit"),
        ({"segments": [(0, 10), (9, 20)], "sources": [0, 0]}, "does not fit"),
        ({"segments": [(0, 10)], "sources": [0], "fade": 6}, "12 samples or longer"),
        ({"segments": [(0, 100)], "sources": [N - 99]}, "the donor has 2000"),
        ({"segments": [(0, 100)], "sources": [-1]}, "the donor has 2000"),
        ({"segments": [(0, 100)], "sources": []}, "as many sources"),
    ],
)
def test_segments_outside_a_clip_are_refused(where, says):
    with pytest.raises(ShapeError, match=says):
        splice(REAL, FAKE, **where)


def test_other_waves_are_refused():
    for wave in (torch.zeros(2, N), torch.zeros(N, dtype=torch.int16), torch.zeros(0)):
        with pytest.raises(ShapeError, match="waveform"):
            splice(Clip(wave, False), FAKE, segments=[(0, 1)], sources=[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ratio": (0.3, 1.0)}, "shorter than the clip"),
        ({"ratio": (0.3, 0.1)}, "ratio"),
        ({"ratio": (0.0, 0.1)}, "ratio"),
        ({"n_segments": 0}, "n_segments"),
        ({"crossfade_ms": -1.0}, "crossfade_ms"),
        ({"n_segments": 300}, "do not fit"),
        ({"crossfade_ms": 10.0}, "do not fit"),
        ({"n_samples": 5}, "do not fit"),
    ],
)
def test_a_wrong_setting_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        replace(SMALL, **changes)


def test_a_bad_seed_is_refused():
    with pytest.raises(ConfigError, match="seed"):
        Splicer(SMALL)(REAL, FAKE, seed=-1)
