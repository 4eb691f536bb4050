"""Manifests: what is written is what is read, and a bad line is named."""

import csv
from pathlib import Path

import pytest

from specsegdiff.data.manifest import read_manifest, write_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.errors import CorpusError, OutputError

HEADER = "pair_id,split,vocoder,family,vocoder_seen_in_train,real,fake,n_samples,gain_db,speaker"
ROW = "p0,train,hifigan,gan,1,real/a.flac,fake/hifigan/a.flac,1000,-1.5,lj"


def manifest(folder, *rows, header=HEADER):
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


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
    for folder in (tmp_path / "real", tmp_path / "fake" / "hifigan"):
        folder.mkdir(parents=True)
        (folder / "a.flac").touch()
    assert len(read_manifest(table)) == 2
    assert len(read_manifest(table, split="train", check_files=True)) == 1
    with pytest.raises(CorpusError, match=r"line 3: the real file .*b\.flac is missing"):
        read_manifest(table, check_files=True)
