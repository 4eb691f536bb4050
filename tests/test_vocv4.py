import pytest

from specsegdiff.data.vocv4 import vocv4
from specsegdiff.errors import ConfigError, CorpusError

VOCODERS = ("hifigan", "hn-sinc-nsf", "hn-sinc-nsf-hifi", "waveglow")
SPEAKER = {"LA_T_1138215": "LA_0079", "LA_T_1703395": "LA_0079", "LA_D_1024892": "LA_0070"}


@pytest.fixture
def trees(tmp_path):
    """Voc.v4 and ASVspoof 2019 LA with their true names, three sources and empty recordings."""
    voc = tmp_path / "project09-voc.v4" / "voc.v4"
    asv = tmp_path / "asvspoof" / "LA"
    for folder in (voc / "scp", voc / "wav", asv / "ASVspoof2019_LA_cm_protocols"):
        folder.mkdir(parents=True)
    protocol, lists, labels = [], {"T": [], "D": []}, {"T": [], "D": []}
    for source, speaker in SPEAKER.items():
        part = source[3]
        for vocoder in VOCODERS:
            protocol.append(f"{speaker} {vocoder}_{source} - {vocoder} spoof")
            lists[part].append(f"{vocoder}_{source}")
            (voc / "wav" / f"{vocoder}_{source}.wav").touch()
        lists[part].append(source)
        protocol.append(f"{speaker} {source} - - bonafide")
        labels[part] += [
            f"{speaker} {source} - - bonafide",
            f"{speaker} {source[:-1]}9 - A01 spoof",
        ]
        flac = asv / f"ASVspoof2019_LA_{'train' if part == 'T' else 'dev'}" / "flac"
        flac.mkdir(parents=True, exist_ok=True)
        (flac / f"{source}.flac").touch()
    write(voc / "protocol.txt", protocol)
    write(voc / "scp" / "train.lst", lists["T"])
    write(voc / "scp" / "dev.lst", lists["D"])
    protocols = asv / "ASVspoof2019_LA_cm_protocols"
    write(protocols / "ASVspoof2019.LA.cm.train.trn.txt", labels["T"])
    write(protocols / "ASVspoof2019.LA.cm.dev.trl.txt", labels["D"])
    return voc, asv


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def replace(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_every_vocoded_trial_meets_its_source(trees):
    voc, asv = trees
    pairs = vocv4(voc, asv)
    assert [pair.id for pair in pairs] == [
        f"{vocoder}_{source}" for source in ("LA_T_1138215", "LA_T_1703395") for vocoder in VOCODERS
    ]
    pair = pairs[5]
    assert pair.fake == voc / "wav" / "hn-sinc-nsf_LA_T_1703395.wav"
    assert pair.real == asv / "ASVspoof2019_LA_train" / "flac" / "LA_T_1703395.flac"
    assert (pair.vocoder, pair.family, pair.split) == ("hn-sinc-nsf", "source-filter", "train")
    assert (pair.speaker, pair.source_group, pair.align) == ("LA_0079", "LA_T_1703395", "none")
    assert all(pair.family for pair in pairs)


def test_dev_reads_the_other_list_and_folder(trees):
    pairs = vocv4(*trees, subset="dev")
    assert len(pairs) == 4
    assert {pair.real.parent.parent.name for pair in pairs} == {"ASVspoof2019_LA_dev"}
    assert {pair.split for pair in pairs} == {"dev"}


def test_the_unpacked_archives_may_be_passed_whole(trees):
    voc, asv = trees
    assert vocv4(voc.parent.parent, asv.parent) == vocv4(voc, asv) == vocv4(voc.parent, asv)


def test_vocoders_can_be_chosen(trees):
    pairs = vocv4(*trees, vocoders=["waveglow"])
    assert [pair.id for pair in pairs] == ["waveglow_LA_T_1138215", "waveglow_LA_T_1703395"]
    with pytest.raises(CorpusError, match=r"no recording of melgan.*hn-sinc-nsf-hifi"):
        vocv4(*trees, vocoders=["waveglow", "melgan"])


def test_listed_files_need_not_all_be_in_the_train_part(trees):
    voc, asv = trees
    replace(voc / "scp" / "train.lst", "hifigan_LA_T_1138215", "hifigan_LA_D_1024892")
    assert vocv4(voc, asv)[0].real.parent.parent.name == "ASVspoof2019_LA_dev"


def test_errors_show_what_is_missing_and_the_layout(trees):
    voc, asv = trees
    with pytest.raises(ConfigError, match="'eval'"):
        vocv4(voc, asv, subset="eval")
    with pytest.raises(CorpusError, match=r"protocol\.txt[\s\S]*zenodo"):
        vocv4(asv, asv)
    with pytest.raises(CorpusError, match=r"holds no ASVspoof2019_LA_cm_protocols"):
        vocv4(voc, voc)


@pytest.mark.parametrize(
    "name",
    [
        "scp/train.lst",
        "wav/waveglow_LA_T_1703395.wav",
        "ASVspoof2019_LA_train/flac/LA_T_1138215.flac",
    ],
)
def test_a_missing_file_is_named(trees, name):
    voc, asv = trees
    path = (asv if name.startswith("ASV") else voc) / name
    path.unlink()
    with pytest.raises(CorpusError, match=path.name):
        vocv4(voc, asv)


def test_lists_that_contradict_each_other_are_refused(trees):
    voc, asv = trees
    train = asv / "ASVspoof2019_LA_cm_protocols" / "ASVspoof2019.LA.cm.train.trn.txt"
    replace(train, "LA_T_1703395 - - bonafide", "LA_T_1703395 - A02 spoof")
    with pytest.raises(CorpusError, match="LA_T_1703395 is not bona fide"):
        vocv4(voc, asv)
    replace(voc / "scp" / "train.lst", "hifigan_LA_T_1138215", "hifigan_LA_T_0000000")
    with pytest.raises(CorpusError, match="'hifigan_LA_T_0000000'"):
        vocv4(voc, asv)
    replace(voc / "protocol.txt", "- waveglow spoof", "waveglow spoof")
    with pytest.raises(CorpusError, match="five cells"):
        vocv4(voc, asv)
