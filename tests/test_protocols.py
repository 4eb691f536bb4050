"""Protocol readers on tiny trees with the names and columns of the true corpora."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specsegdiff.data.pairs import Pair
from specsegdiff.data.protocols import (
    Trial,
    asv_scores,
    asvspoof5,
    asvspoof2019,
    asvspoof2021,
    pair_trials,
    partialspoof,
)
from specsegdiff.errors import ConfigError, CorpusError


def write(root, name, text=""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def tree_2019(root):
    tables = {
        "train.trn": "LA_0079 LA_T_1138215 - - bonafide\nLA_0039 LA_T_1004644 - A02 spoof\n",
        "dev.trl": "LA_0069 LA_D_1047731 - - bonafide\n",
        "eval.trl": "LA_0039 LA_E_2834763 - A11 spoof\n",
    }
    for part, text in tables.items():
        write(root, f"LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{part}.txt", text)
        for line in text.splitlines():
            subset = part.split(".")[0]
            write(root, f"LA/ASVspoof2019_LA_{subset}/flac/{line.split()[1]}.flac")
    return root


def tree_2021(root):
    la = (
        "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval\n"
        "LA_0020 LA_E_6866159 gsm pstn bonafide bonafide notrim progress\n"
    )
    df = (
        "LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress traditional_vocoder "
        "- - - -\n"
        "TEF2 DF_E_2000013 low_m4a vcc2020 Task1-team20 spoof notrim eval neural_vocoder_"
        "nonautoregressive Task1 team20 FF E\n"
    )
    for track, text in (("LA", la), ("DF", df)):
        write(root, f"keys/{track}/CM/trial_metadata.txt", text)
        for line in text.splitlines():
            write(root, f"ASVspoof2021_{track}_eval/flac/{line.split()[1]}.flac")
    return root


def tree_5(root, *, below=""):
    tables = {
        ("ASVspoof5.train.tsv", "flac_T"): (
            "T_4850 T_0000000000 F - - - AC3 A05 spoof -\n"
            "T_0004 T_0000000001 M - - - - bonafide bonafide -\n"
        ),
        ("ASVspoof5.dev.track_1.tsv", "flac_D"): "D_3755 D_0000000022 F - A11 spoof\n",
        ("ASVspoof5.eval.track_1.tsv", "flac_E_eval"): (
            "E_1607 E_0009538969 M C06 4 E_0003340453 AC2 A22 spoof -\n"
        ),
    }
    for (name, audio), text in tables.items():
        write(root, below + name, text)
        for line in text.splitlines():
            write(root, f"{audio}/{line.split()[1]}.flac")
    return root


SEGMENTS = {
    "LA_T_1000137": np.array(["1", "1", "1"]),
    "CON_T_0000029": np.array(["1", "0", "0", "1"]),
}


def tree_partial(root, segments=SEGMENTS):
    text = "LA_0079 LA_T_1000137 - - bonafide\nLA_0079 CON_T_0000029 - CON spoof\n"
    folder = "database/protocols/PartialSpoof_LA_cm_protocols"
    write(root, f"{folder}/PartialSpoof.LA.cm.train.trl.txt", text)
    for line in text.splitlines():
        write(root, f"database/train/con_wav/{line.split()[1]}.wav")
    labels = write(root, "database/segment_labels/train_seglab_0.02.npy")
    np.save(labels, segments, allow_pickle=True)
    return root


# ------------------------------------------------------------------ what is read


@pytest.mark.parametrize("below", ["", "LA"])
def test_asvspoof_2019(tmp_path, below):
    root = tree_2019(tmp_path)
    real, fake = asvspoof2019(root / below, "train")
    flac = root / "LA" / "ASVspoof2019_LA_train" / "flac"
    assert real == Trial("LA_T_1138215", flac / "LA_T_1138215.flac", False, speaker="LA_0079")
    assert fake == Trial(
        "LA_T_1004644", flac / "LA_T_1004644.flac", True, system="A02", speaker="LA_0039"
    )
    assert [t.is_spoof for t in asvspoof2019(root, "dev")] == [False]
    assert [t.system for t in asvspoof2019(root, "eval")] == ["A11"]


def test_asvspoof_2021(tmp_path):
    root = tree_2021(tmp_path)
    fake, real = asvspoof2021(root, "LA")
    assert (fake.system, fake.codec, fake.part, fake.is_spoof) == ("A07", "alaw", "eval", True)
    assert (real.system, real.codec, real.part, real.is_spoof) == ("", "gsm", "progress", False)
    assert fake.path == root / "ASVspoof2021_LA_eval" / "flac" / "LA_E_9332881.flac"
    first, second = asvspoof2021(root, "DF")
    assert (first.id, first.system, first.part) == ("DF_E_2000011", "A14", "progress")
    assert (second.speaker, second.system, second.codec) == ("TEF2", "Task1-team20", "low_m4a")
    with pytest.raises(ConfigError, match="track"):
        asvspoof2021(root, "PA")


@pytest.mark.parametrize("below", ["", "ASVspoof5_protocols/"])
def test_asvspoof_5(tmp_path, below):
    root = tree_5(tmp_path, below=below)
    fake, real = asvspoof5(root, "train")
    assert (fake.system, fake.speaker, fake.codec, fake.is_spoof) == ("A05", "T_4850", "", True)
    assert (real.system, real.is_spoof) == ("", False)
    assert real.path == root / "flac_T" / "T_0000000001.flac"
    # the six columns of the first phase
    (dev,) = asvspoof5(root, "dev")
    assert (dev.system, dev.is_spoof, dev.path.parent.name) == ("A11", True, "flac_D")
    (eval_,) = asvspoof5(root, "eval")
    assert (eval_.codec, eval_.system, eval_.path.parent.name) == ("C06", "A22", "flac_E_eval")


@pytest.mark.parametrize("below", ["", "database"])
def test_partialspoof(tmp_path, below):
    real, fake = partialspoof(tree_partial(tmp_path) / below, "train")
    assert real.labels.tolist() == [False] * 3
    assert fake.labels.tolist() == [False, True, True, False]
    assert (real.is_spoof, fake.is_spoof, fake.system, fake.seconds) == (False, True, "CON", 0.02)
    assert fake.path.name == "CON_T_0000029.wav"


def test_segment_labels_become_those_of_frames(tmp_path):
    _, fake = partialspoof(tree_partial(tmp_path), "train")
    # centres at 12.5, 32.5, 52.5 ms: segments 0, 1, 2
    assert fake.frame_labels(hop=320, reach=400, n_frames=3).tolist() == [False, True, True]
    # one frame more than there are labels for
    assert fake.frame_labels(hop=320, reach=400, n_frames=5).tolist()[3:] == [False, False]
    finer = replace(fake, seconds=0.01)
    # their starts would lie in segments 0 and 2
    assert finer.frame_labels(hop=320, reach=400, n_frames=2).tolist() == [True, False]
    with pytest.raises(CorpusError, match=r"4 labels of 0.02 s for 6 frames"):
        fake.frame_labels(hop=320, reach=400, n_frames=6)
    with pytest.raises(CorpusError, match="no labels within"):
        Trial("a", Path("a"), True).frame_labels(hop=320, reach=400, n_frames=1)


def test_trials_of_pairs_name_each_real_recording_once():
    one = Pair("p0", Path("a"), Path("b"), 100, -6.0, vocoder="gan", source_group="g")
    two = Pair("p1", Path("a"), Path("c"), vocoder="dsp", source_group="g")
    real, *fakes = pair_trials([one, two])
    assert (real.path, real.is_spoof, real.group, real.gain_db) == (Path("a"), False, "g", 0.0)
    assert [(t.id, t.path, t.system) for t in fakes] == [
        ("p0", Path("b"), "gan"),
        ("p1", Path("c"), "dsp"),
    ]
    assert (fakes[0].gain_db, fakes[0].n_samples) == (-6.0, 100)
    assert pair_trials([Pair("p2", Path("a"), Path("b"))])[0].group == "p2"


def test_scores_of_the_speaker_verification(tmp_path):
    text = "bonafide target 3.5\nA07 spoof -2.85\nbonafide nontarget -1\nbonafide target 2\n"
    path = write(tmp_path, "ASVspoof2019.LA.asv.eval.gi.trl.scores.txt", text)
    target, nontarget, spoof = asv_scores(path)
    assert target.tolist() == [3.5, 2.0]
    assert nontarget.tolist() == [-1.0]
    assert spoof.tolist() == pytest.approx([-2.85])
    for line in ("bonafide impostor 1", "A07 spoof high", "A07 spoof"):
        path.write_text(text + line)
        with pytest.raises(CorpusError, match="expected lines"):
            asv_scores(path)


# ------------------------------------------------------------------ what is refused


READERS = [
    (tree_2019, lambda root: asvspoof2019(root, "train"), "LA/ASVspoof2019_LA_cm_protocols/"
     "ASVspoof2019.LA.cm.train.trn.txt", "LA/ASVspoof2019_LA_train/flac/LA_T_1004644.flac"),
    (tree_2021, lambda root: asvspoof2021(root, "LA"), "keys/LA/CM/trial_metadata.txt",
     "ASVspoof2021_LA_eval/flac/LA_E_9332881.flac"),
    (tree_5, lambda root: asvspoof5(root, "train"), "ASVspoof5.train.tsv",
     "flac_T/T_0000000001.flac"),
    (tree_partial, lambda root: partialspoof(root, "train"), "database/protocols/PartialSpoof_LA_"
     "cm_protocols/PartialSpoof.LA.cm.train.trl.txt", "database/train/con_wav/CON_T_0000029.wav"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "read", "table", "audio"), READERS, ids=["2019", "2021", "5", "p"]
)
def test_a_broken_tree_is_told_with_the_layout(tmp_path, tree, read, table, audio):
    with pytest.raises(CorpusError, match="expected"):
        read(tmp_path / "nowhere")
    root = tree(tmp_path)
    text = (root / table).read_text()
    (root / audio).rename(root / "away")
    with pytest.raises(CorpusError, match=rf"{Path(audio).name} is missing; expected"):
        read(root)
    (root / "away").rename(root / audio)
    for wrong, says in (
        (text.replace("spoof", "fake"), "key 'fake'"),
        (text + "LA_0079 LA_T_1\n", "of 2 columns"),
        ("\n", "is empty"),
    ):
        (root / table).write_text(wrong)
        with pytest.raises(CorpusError, match=says):
            read(root)
    (root / table).write_bytes(b"\xff\xfe")
    with pytest.raises(CorpusError, match="cannot read"):
        read(root)


@pytest.mark.parametrize("read", [asvspoof2019, asvspoof5, partialspoof])
def test_an_unknown_subset_is_named(tmp_path, read):
    with pytest.raises(ConfigError, match="subset"):
        read(tmp_path, "test")


def test_labels_that_contradict_the_protocol_are_refused(tmp_path):
    upside_down = {name: np.where(row == "1", "0", "1") for name, row in SEGMENTS.items()}
    for segments, says in (
        (upside_down, "LA_T_1000137 is bonafide .* but 3 of 3"),
        (SEGMENTS | {"CON_T_0000029": np.array(["1"])}, "is spoof in .* but 0 of 1"),
        ({"LA_T_1000137": SEGMENTS["LA_T_1000137"]}, "no labels of CON_T"),
    ):
        root = tree_partial(tmp_path, segments)
        with pytest.raises(CorpusError, match=says):
            partialspoof(root, "train")


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_labels_that_would_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tree_partial(tmp_path, {"LA_T_1000137": Harm()})
    with pytest.raises(CorpusError, match="which is no array"):
        partialspoof(root, "train")
    assert not (tmp_path / "harm").exists()
    labels = root / "database" / "segment_labels" / "train_seglab_0.02.npy"
    for content in (b"", b"nothing", pickle.dumps({})):
        labels.write_bytes(content)
        with pytest.raises(CorpusError, match="cannot read"):
            partialspoof(root, "train")
    np.save(labels, np.zeros(3))
    with pytest.raises(CorpusError, match="no dictionary"):
        partialspoof(root, "train")
    np.save(labels, np.array([1, None], dtype=object), allow_pickle=True)
    with pytest.raises(CorpusError, match="no dictionary"):
        partialspoof(root, "train")
