import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from specsegdiff.data.pairs import (
    Pair,
    estimate_band_hz,
    level_gain_db,
    load_pair,
    measure_pair,
    paired_folder,
    read_manifest,
    write_manifest,
)
from specsegdiff.errors import AudioError, CorpusError, OutputError, PairError
from specsegdiff.frontend import StftConfig

CORPUS = Path(__file__).parents[2] / "shared" / "corpus"

HEADER = "pair_id,split,vocoder,family,vocoder_seen_in_train,real,fake,n_samples,gain_db,speaker"
ROW = "p0,train,hifigan,gan,1,real/a.flac,fake/hifigan/a.flac,1000,-1.5,lj"


def noise(n, *, seed=0):
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def save(path, wave, *, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave.numpy(), rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def manifest(folder, *rows, header=HEADER):
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
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


# ------------------------------------------------------------------ manifests


def test_a_manifest_is_read(tmp_path):
    table = manifest(tmp_path, ROW, "p1,test,vocos,istft-gan,0,/abs/b.wav,fake/b.wav,,,")
    first, second = read_manifest(table)
    assert first == Pair(
        "p0",
        tmp_path / "real" / "a.flac",
        tmp_path / "fake" / "hifigan" / "a.flac",
        n_samples=1_000,
        gain_db=-1.5,
        vocoder="hifigan",
        family="gan",
        split="train",
        speaker="lj",
        vocoder_seen=True,
    )
    assert second.real == Path("/abs/b.wav")
    assert (second.n_samples, second.gain_db, second.vocoder_seen) == (None, 0.0, False)
    assert read_manifest(tmp_path, split="test") == [second]
    with pytest.raises(CorpusError, match=r"no pair in split 'val'; its splits are: test, train"):
        read_manifest(tmp_path, split="val")


@pytest.mark.parametrize(
    ("rates", "band_hz"),
    [("8000,24000", 4_000), ("16000,11025", 5_512.5), ("16000,48000", None), (",", None)],
)
def test_rates_give_the_band(tmp_path, rates, band_hz):
    header = f"{HEADER},sample_rate_original,sample_rate_fake"
    assert read_manifest(manifest(tmp_path, f"{ROW},{rates}", header=header))[0].band_hz == band_hz


def test_what_is_written_is_what_is_read(tmp_path):
    inside = Pair(
        "a, b",
        tmp_path / "real" / "ü.wav",
        tmp_path / "fake" / 'x"y.wav',
        n_samples=7,
        gain_db=-0.1 - 0.2,
        vocoder="v",
        family="f",
        split="dev",
        source_group="g",
        speaker="s",
        vocoder_seen=False,
        band_hz=1 / 3,
        align="dtw",
    )
    outside = Pair("o", Path("/elsewhere/r.wav"), Path("/elsewhere/f.wav"))
    write_manifest([inside, outside], tmp_path / "pairs.csv")
    assert read_manifest(tmp_path) == [inside, outside]
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]
    with (tmp_path / "pairs.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["real"] == "real/ü.wav"


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    def pairs():
        yield Pair("p", tmp_path / "a", tmp_path / "b")
        raise RuntimeError("the source of the pairs broke")

    old = manifest(tmp_path, ROW).read_bytes()
    with pytest.raises(RuntimeError):
        write_manifest(pairs(), tmp_path / "pairs.csv")
    assert (tmp_path / "pairs.csv").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]
    with pytest.raises(OutputError, match="writable folder"):
        write_manifest([], tmp_path / "absent" / "pairs.csv")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (ROW.replace("1000", "ten"), "line 3: n_samples is 'ten'"),
        (ROW.replace("1000", "10.5"), "line 3: n_samples is '10.5'"),
        (ROW.replace("1000", "0"), "line 3: .*n_samples must be at least 1"),
        (ROW.replace("-1.5", "nan"), "line 3: gain_db is 'nan'"),
        (ROW.replace("gan,1", "gan,yes"), "line 3: vocoder_seen_in_train is 'yes'"),
        (ROW.replace("real/a.flac", ""), "line 3: column real is empty"),
        (ROW + ",surplus", "line 3: expected one cell per column"),
        (ROW[:-3], "line 3: expected one cell per column"),
        (ROW, "line 3: pair_id 'p0' came before"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, match):
    with pytest.raises(CorpusError, match=match):
        read_manifest(manifest(tmp_path, ROW, row if row == ROW else row.replace("p0", "p1")))


def test_bad_tables_are_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"line 1: the columns split, gain_db are missing"):
        read_manifest(manifest(tmp_path, header="pair_id,vocoder,real,fake,n_samples"))
    with pytest.raises(CorpusError, match="cannot read the manifest"):
        read_manifest(tmp_path / "absent.csv")
    (tmp_path / "pairs.csv").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(CorpusError, match="cannot read the manifest"):
        read_manifest(tmp_path)


def test_files_are_looked_for_when_asked(tmp_path):
    table = manifest(tmp_path, ROW, ROW.replace("p0,train", "p1,test").replace("a.flac", "b.flac"))
    save(tmp_path / "real" / "a.flac", noise(10))
    save(tmp_path / "fake" / "hifigan" / "a.flac", noise(10))
    assert len(read_manifest(table)) == 2
    assert len(read_manifest(table, split="train", check_files=True)) == 1
    with pytest.raises(CorpusError, match=r"line 3: the real file .*b\.flac is missing"):
        read_manifest(table, check_files=True)


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
