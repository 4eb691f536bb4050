import pytest

from specsegdiff.data.librisevoc import FAMILIES, librisevoc, speaker_split
from specsegdiff.errors import ConfigError, CorpusError

UTTERANCES = ("8014_112602_000001_000001", "8580_287363_000011_000000", "87_121553_000211_000000")


@pytest.fixture
def root(tmp_path):
    """LibriSeVoc with its true names, three utterances and empty recordings."""
    for folder in ("gt", *FAMILIES):
        (tmp_path / folder).mkdir()
        for utterance in UTTERANCES:
            (tmp_path / folder / f"{utterance}{'' if folder == 'gt' else '_gen'}.wav").touch()
    return tmp_path


def test_every_vocoded_recording_meets_its_utterance(root):
    pairs = librisevoc(root)
    assert len(pairs) == 6 * 3
    assert len({pair.id for pair in pairs}) == 6 * 3
    pair = next(pair for pair in pairs if pair.id == "melgan_87_121553_000211_000000")
    assert pair.real == root / "gt" / "87_121553_000211_000000.wav"
    assert pair.fake == root / "melgan" / "87_121553_000211_000000_gen.wav"
    assert (pair.vocoder, pair.family, pair.speaker) == ("melgan", "gan", "87")
    assert (pair.source_group, pair.align) == ("87_121553_000211_000000", "dtw")
    assert pair.split == speaker_split("87")


def test_splits_share_no_speaker_and_lose_none(root):
    for speaker in range(60):
        for folder, end in (("gt", ""), ("wavenet", "_gen")):
            (root / folder / f"{speaker}_1_000000_000000{end}.wav").touch()
    parts = {
        name: librisevoc(root, split=name, vocoders=["wavenet"])
        for name in ("train", "val", "test")
    }
    assert all(pair.split == name for name, pairs in parts.items() for pair in pairs)
    speakers = {name: {pair.speaker for pair in pairs} for name, pairs in parts.items()}
    assert all(speakers.values())
    assert sum(map(len, speakers.values())) == len(set().union(*speakers.values())) == 63
    whole = librisevoc(root, vocoders=["wavenet"])
    assert {pair.id for pairs in parts.values() for pair in pairs} == {pair.id for pair in whole}


def test_the_split_is_frozen():
    # a change of these moves speakers between training and test
    places = {speaker: speaker_split(speaker) for speaker in ("8014", "87", "14", "40", "61", "5")}
    assert places == {
        "8014": "train",
        "87": "train",
        "14": "train",
        "40": "val",
        "61": "val",
        "5": "test",
    }


def test_shares_of_the_split():
    splits = [speaker_split(str(speaker)) for speaker in range(4000)]
    # three standard deviations of a binomial share: 3 * sqrt(0.1 * 0.9 / 4000) = 0.014
    assert splits.count("val") / 4000 == pytest.approx(0.1, abs=0.014)
    assert splits.count("test") / 4000 == pytest.approx(0.1, abs=0.014)


def test_a_partial_download_is_read_as_far_as_it_goes(root):
    for file in (root / "wavernn").iterdir():
        file.unlink()
    (root / "wavernn").rmdir()
    (root / "melgan" / f"{UTTERANCES[0]}_gen.wav").unlink()
    (root / "melgan" / f"._{UTTERANCES[0]}_gen.wav").touch()
    pairs = librisevoc(root)
    assert len(pairs) == 4 * 3 + 2
    with pytest.raises(CorpusError, match="no folder wavernn"):
        librisevoc(root, vocoders=["wavernn"])


def test_other_layouts_are_refused(root, tmp_path_factory):
    with pytest.raises(CorpusError, match=r"no folder gt[\s\S]*expected"):
        librisevoc(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ConfigError, match="hifigan"):
        librisevoc(root, vocoders=["hifigan"])
    with pytest.raises(ConfigError, match="'dev'"):
        librisevoc(root, split="dev")
    (root / "gt" / f"{UTTERANCES[1]}.wav").unlink()
    with pytest.raises(CorpusError, match=f"no gt/{UTTERANCES[1]}.wav"):
        librisevoc(root)
    (root / "wavenet" / "LJ001-0001_gen.wav").touch()
    with pytest.raises(CorpusError, match="LJ001-0001_gen"):
        librisevoc(root, vocoders=["wavenet"])
