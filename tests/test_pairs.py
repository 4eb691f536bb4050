from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import (
    Pair,
    estimate_band_hz,
    level_gain_db,
    load_pair,
    measure_pair,
    paired_folder,
)
from specsegdiff.errors import AudioError, CorpusError, PairError
from specsegdiff.frontend import StftConfig

CORPUS = Path(__file__).parents[2] / "shared" / "corpus"


def noise(n, *, seed=0):
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def save(path, wave, *, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave.numpy(), rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


# ------------------------------------------------------------------ loading


def test_the_fake_comes_at_the_level_of_the_real(tmp_path):
    wave = noise(5_000)
    pair = Pair(
        "p",
        save(tmp_path / "real.wav", wave),
        save(tmp_path / "fake.wav", wave * 10 ** (-7.5 / 20)),
        gain_db=-7.5,
    )
    real, fake = load_pair(pair)
    assert torch.equal(real, wave)
    torch.testing.assert_close(fake, wave)


@pytest.mark.parametrize(
    ("lengths", "n_samples", "expected"),
    [
        ((8_000, 8_000), None, 8_000),
        ((8_000, 9_600), None, 8_000),  # 0.1 s apart, the tolerance
        ((8_000, 12_000), 6_000, 6_000),  # one real file serves fakes of several lengths
        ((8_000, 8_500), 8_400, 8_000),
    ],
)
def test_both_are_cut_to_one_length(tmp_path, lengths, n_samples, expected):
    waves = noise(lengths[0]), noise(lengths[1], seed=1)
    files = [save(tmp_path / f"{i}.wav", wave) for i, wave in enumerate(waves)]
    real, fake = load_pair(Pair("p", *files, n_samples=n_samples))
    assert torch.equal(real, waves[0][:expected])
    assert torch.equal(fake, waves[1][:expected])


@pytest.mark.parametrize(
    ("lengths", "n_samples"), [((8_000, 9_601), None), ((9_000, 8_000), 9_601)]
)
def test_lengths_that_do_not_fit_are_refused(tmp_path, lengths, n_samples):
    files = [save(tmp_path / f"{i}.wav", noise(n)) for i, n in enumerate(lengths)]
    with pytest.raises(PairError, match=rf"real has {lengths[0]} and fake {lengths[1]}.*9601"):
        load_pair(Pair("p", *files, n_samples=n_samples))


def test_members_to_be_warped_keep_their_lengths(tmp_path):
    files = [save(tmp_path / f"{n}.wav", noise(n)) for n in (8_000, 20_000)]
    assert [len(wave) for wave in load_pair(Pair("p", *files, align="dtw"))] == [8_000, 20_000]


def test_unequal_rates_are_resampled_and_n_samples_counts_at_16_khz(tmp_path):
    files = [
        save(tmp_path / "real.wav", noise(16_000), rate=16_000),
        save(tmp_path / "fake.wav", noise(24_000), rate=24_000),
    ]
    assert [len(wave) for wave in load_pair(Pair("p", *files))] == [16_000, 16_000]
    half = load_pair(Pair("p", *files, n_samples=10_000), config=StftConfig(sample_rate=8_000))
    assert [len(wave) for wave in half] == [5_000, 5_000]


def test_a_missing_member_is_an_audio_error(tmp_path):
    real = save(tmp_path / "real.wav", noise(100))
    with pytest.raises(AudioError, match="absent"):
        load_pair(Pair("p", real, tmp_path / "absent.wav"))


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"n_samples": 0},
        {"gain_db": float("nan")},
        {"band_hz": -1.0},
        {"band_hz": float("inf")},
        {"align": "lag"},
    ],
)
def test_a_pair_checks_itself(change):
    with pytest.raises(PairError, match=next(iter(change))):
        replace(Pair("p", Path("a"), Path("b")), **change)


# ------------------------------------------------------------------ level and band


@pytest.mark.parametrize("gain_db", [-20.0, 0.0, 3.5])
def test_level_is_that_of_the_gain(gain_db):
    wave = noise(3_000)
    assert level_gain_db(wave, wave * 10 ** (gain_db / 20)) == pytest.approx(gain_db, abs=1e-5)
    assert level_gain_db(wave, torch.cat([wave, wave])) == pytest.approx(0, abs=1e-5)


def test_silence_has_neither_level_nor_band():
    with pytest.raises(PairError, match="fake recording has power 0"):
        level_gain_db(noise(100), torch.zeros(100))
    with pytest.raises(PairError, match="real recording is silent"):
        estimate_band_hz(torch.zeros(100), noise(100))


def test_a_measured_pair_loads_at_one_level(tmp_path):
    files = save(tmp_path / "real.wav", noise(5_000)), save(tmp_path / "fake.wav", 3 * noise(5_000))
    pair = measure_pair(Pair("p", *files, gain_db=99.0))
    assert pair.gain_db == pytest.approx(20 * np.log10(3), abs=1e-4)
    real, fake = load_pair(pair)
    torch.testing.assert_close(real, fake)


def low_passed(wave, *, edge_hz):
    spectrum = torch.fft.rfft(wave)
    hertz = torch.linspace(0, 8_000, len(spectrum))
    narrow = torch.fft.irfft(torch.where(hertz <= edge_hz, spectrum, 0), n=len(wave))
    return narrow + 1e-5 * noise(len(wave), seed=9)  # below 16-bit quantisation noise


@pytest.mark.parametrize("narrow", ["real", "fake", "both"])
def test_band_ends_where_the_narrower_member_does(narrow):
    waves = {name: noise(32_000, seed=seed) for seed, name in enumerate(["real", "fake"])}
    for name in waves:
        if narrow in (name, "both"):
            waves[name] = low_passed(waves[name], edge_hz=4_000)
    # a Hann window of 64 ms spreads an edge over four bins of 15.6 Hz, to -60 dB over some more
    assert estimate_band_hz(**waves) == pytest.approx(4_000, abs=200)


def test_the_whole_band_is_none():
    assert estimate_band_hz(noise(32_000), noise(32_000, seed=1)) is None
    assert estimate_band_hz(noise(32_000), low_passed(noise(32_000), edge_hz=7_400)) is None


# ------------------------------------------------------------------ folders


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folders_are_paired_by_name(tmp_path):
    real = touch(tmp_path / "real", "a.flac", "spk/b.wav")
    fake = touch(
        tmp_path / "fake", "a.wav", "hifigan/a.WAV", "vocos/spk/b.wav", "spk/b.wav", "note.txt"
    )
    pairs = {pair.id: pair for pair in paired_folder(real, fake, unpaired="error")}
    assert {name: (pair.vocoder, pair.source_group) for name, pair in pairs.items()} == {
        "a": ("", "a"),
        "hifigan/a": ("hifigan", "a"),
        "spk/b": ("", "spk/b"),
        "vocos/spk/b": ("vocos", "spk/b"),
    }
    assert pairs["hifigan/a"].real == real / "a.flac"
    assert pairs["hifigan/a"].fake == fake / "hifigan" / "a.WAV"


def test_what_has_no_twin_is_reported(tmp_path):
    real = touch(tmp_path / "real", "a.wav", "lonely.wav", "._a.wav")
    fake = touch(tmp_path / "fake", "a.wav", "stray.wav")
    with pytest.warns(UserWarning, match=r"2 recordings have no twin: .*stray.*lonely"):
        assert [pair.id for pair in paired_folder(real, fake)] == ["a"]
    with pytest.raises(CorpusError, match="2 recordings have no twin"):
        paired_folder(real, fake, unpaired="error")
    assert len(paired_folder(real, fake, unpaired="ignore")) == 1


def test_folders_that_cannot_be_paired_are_refused(tmp_path):
    real = touch(tmp_path / "real", "a.wav")
    with pytest.raises(CorpusError, match="is not a folder"):
        paired_folder(real, tmp_path / "absent")
    with pytest.raises(CorpusError, match="lie in one another"):
        paired_folder(tmp_path, real)
    with pytest.raises(CorpusError, match="no recording in"):
        paired_folder(real, touch(tmp_path / "fake", "b.wav"))
    with pytest.raises(CorpusError, match="have one name"):
        paired_folder(touch(real, "a.flac"), tmp_path / "fake")


# ------------------------------------------------------------------ corpus


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason="the paired corpus is not in ../shared/corpus")
def test_the_corpus_is_read_and_its_levels_are_those_stated():
    pairs = read_manifest(CORPUS, check_files=True)
    assert len({pair.id for pair in pairs}) == len(pairs) > 1_000
    groups = {
        name: {p.source_group for p in pairs if p.split == name} for name in ("train", "test")
    }
    assert not groups["train"] & groups["test"]
    for pair in pairs[::250]:
        # the manifest gives two decimals
        assert measure_pair(pair).gain_db == pytest.approx(pair.gain_db, abs=0.02)
        real, fake = load_pair(pair)
        assert len(real) == len(fake) == pair.n_samples
        assert level_gain_db(real, fake) == pytest.approx(0, abs=0.02)
