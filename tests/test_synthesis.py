"""Corpora made out of recordings: they read back, hang on the seed alone, and stop for nothing."""

import csv
from pathlib import Path

import pytest
import soundfile as sf
import torch
from speech import Stub, speech

from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import load_pair
from specsegdiff.data.synthesis import Source, make_pairs
from specsegdiff.data.vocoders import GriffinLim, Lpc
from specsegdiff.errors import ConfigError, CorpusError, OutputError


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"r{i}.wav" for i in range(3)]
    for i, path in enumerate(paths):
        sf.write(path, speech(seed=i, n_samples=8_000).numpy(), 16_000)
    return paths


def test_a_float_file_beyond_full_scale_is_scaled_not_clipped(recordings, tmp_path):
    wave, rate = sf.read(recordings[0], dtype="float32")
    loud = tmp_path / "loud.wav"
    sf.write(loud, wave * 3 / abs(wave).max(), rate, subtype="FLOAT")
    (pair,) = make_pairs([loud], tmp_path / "out", vocoders=[Stub("half", gain=0.5)])
    real, _ = load_pair(pair)
    expected = torch.from_numpy(wave / abs(wave).max())
    torch.testing.assert_close(real, expected, atol=1e-4, rtol=0)


def test_a_corpus_reads_back_as_it_was_made(recordings, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    sources = [
        Source(recordings[0], group="g", speaker="s", split="train"),
        *recordings[1:],
        broken,
    ]
    seen = []
    bank = [Lpc(), Stub("half", gain=0.5), Stub("mute", value=0.0, band_hz=4_000.0)]
    out = tmp_path / "out"
    made = make_pairs(sources, out, vocoders=bank, progress=lambda *n: seen.append(n))
    assert [pair.id for pair in made[:3]] == ["r0--lpc-pulse", "r0--half", "r1--lpc-pulse"]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert read_manifest(out / "pairs.csv") == made
    assert (made[0].source_group, made[0].speaker, made[0].split) == ("g", "s", "train")
    assert made[2].source_group == "r1"
    real, fake = load_pair(made[1])
    torch.testing.assert_close(real, fake, atol=1e-4, rtol=0)  # two 16-bit roundings, one doubled
    with (out / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0.6 < float(row["logmel_corr"]) <= 1 for row in rows)
    assert rows[0]["real"] == "real/r0.flac"
    with (out / "rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [row["vocoder"] for row in rejected] == ["mute", "mute", "mute", ""]
    assert rejected[3]["reason"].startswith("AudioError")
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    expected = {
        f"{where}/r{i}.flac" for where in ("real", "fake/half", "fake/lpc-pulse") for i in range(3)
    }
    assert files == expected | {"pairs.csv", "rejected.csv"}


def test_the_draw_of_vocoders_hangs_on_seed_and_recording_alone(recordings, tmp_path):
    bank = [Stub(f"stub{i}") for i in range(6)]

    def drawn(name, sources, seed=0):
        made = make_pairs(sources, tmp_path / name, vocoders=bank, per_source=2, seed=seed)
        return {pair.id for pair in made}

    assert len(drawn("a", recordings)) == 6
    assert drawn("b", recordings[::-1]) == drawn("a", recordings)
    assert drawn("c", recordings, seed=1) != drawn("a", recordings)


def test_a_narrow_recording_limits_the_band_of_its_pairs(recordings, tmp_path):
    for rate in (8_000, 44_100):
        sf.write(tmp_path / f"at{rate}.wav", speech(n_samples=rate).numpy(), rate)
    sources = [tmp_path / "at8000.wav", tmp_path / "at44100.wav", recordings[0]]
    bank = [Stub("a"), Stub("b", band_hz=3_000.0), Stub("c", band_hz=6_000.0)]
    made = make_pairs(sources, tmp_path / "out", vocoders=bank)
    narrow, wide = [4_000.0, 3_000.0, 4_000.0], [None, 3_000.0, 6_000.0]
    assert [pair.band_hz for pair in made] == narrow + 2 * wide


@pytest.mark.slow
def test_two_processes_write_what_one_writes(recordings, tmp_path):
    one, two = (
        make_pairs(recordings, tmp_path / str(jobs), vocoders=[Lpc(), GriffinLim()], jobs=jobs)
        for jobs in (1, 2)
    )
    assert [pair.id for pair in one] == [pair.id for pair in two]
    for name in ("pairs.csv", "rejected.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert all(a.fake.read_bytes() == b.fake.read_bytes() for a, b in zip(one, two, strict=True))


def test_a_corpus_that_cannot_work_is_refused_before_it_starts(recordings, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CorpusError, match="named 'r0'"):
        make_pairs([recordings[0], recordings[0]], out, vocoders=[Stub()])
    with pytest.raises(ConfigError, match="different names"):
        make_pairs(recordings, out, vocoders=[Stub(), Stub()])
    with pytest.raises(ConfigError, match="per_source"):
        make_pairs(recordings, out, vocoders=[Stub()], per_source=2)
    with pytest.raises(ConfigError, match="jobs"):
        make_pairs(recordings, out, vocoders=[Stub()], jobs=0)
    with pytest.raises(CorpusError, match="separators"):
        Source(recordings[0], id="a/b")
    assert not out.exists()


def test_calls_on_one_folder_make_one_corpus(recordings, tmp_path):
    out = tmp_path / "out"
    train = [Source(path, split="train") for path in recordings[:2]]
    first = make_pairs(train, out, vocoders=[Stub("a"), Stub("b")])
    more = make_pairs([Source(recordings[2], split="val")], out, vocoders=[Stub("a")])
    assert [(pair.id, pair.split) for pair in more] == [("r2--a", "val")]
    assert read_manifest(out) == [*first, *more]
    # done again, a recording's pairs replace those that were there
    again = make_pairs(train, out, vocoders=[Stub("a"), Stub("b"), Stub("c")])
    assert len(again) == 6
    assert read_manifest(out) == [*more, *again]


def test_a_real_side_that_other_pairs_need_is_not_replaced(recordings, tmp_path):
    out = tmp_path / "out"
    make_pairs([Source(recordings[0], split="train")], out, vocoders=[Stub("a")])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = Source(recordings[1], id="r0", split="val")
    for sources, bank in (([other], [Stub("a")]), ([recordings[0]], [Stub("b")])):
        with pytest.raises(CorpusError, match="'r0--a' of split 'train'"):
            make_pairs(sources, out, vocoders=bank)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "pairs.csv").write_text("pair_id,split\n")
    with pytest.raises(CorpusError, match="was not written by make_pairs"):
        make_pairs(recordings, foreign, vocoders=[Stub("a")])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in foreign.iterdir()] == ["pairs.csv"]


def test_a_folder_that_cannot_be_written_ends_the_job(recordings, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError):
        make_pairs(recordings, blocked, vocoders=[Stub()])
