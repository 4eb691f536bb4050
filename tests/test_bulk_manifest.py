"""Manifests of every kind name the same recordings, and a bad one says where it is bad."""

import dataclasses
import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import Tiny, write_corpus

from specsegdiff.bulk import explain_corpus, read_parts
from specsegdiff.bulk.manifest import Item, open_manifest
from specsegdiff.errors import CorpusError


@dataclasses.dataclass
class Audio:
    """Stands for `datasets.Audio`."""

    decode: bool = True


class Dataset:
    """Stands for `datasets.Dataset`, which need not be installed."""

    def __init__(self, columns, audio=None):
        self.columns = columns
        self.column_names = list(columns)
        self.features = {"audio": audio} if "audio" in columns else {}

    def cast_column(self, name, feature):
        assert isinstance(feature, Audio)
        return Dataset(self.columns, feature)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        if "audio" in self.columns and self.features["audio"].decode:
            pytest.fail("decoding is the library's own matter")
        return {name: values[key] for name, values in self.columns.items()}

    def __iter__(self):
        return (self[at] for at in range(len(self)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), count=4, broken=()).parent


ITEMS = [Item(f"id{i}", f"f{i:02d}.wav") for i in range(4)]


def test_a_csv(folder, tmp_path):
    manifest = open_manifest(folder / "manifest.csv")
    assert list(manifest.items) == ITEMS
    assert manifest.sources(ITEMS[:1]) == [str(folder / "f00.wav")]
    seconds = list(manifest.seconds())
    assert all(0.1 <= length <= 0.5 for length in seconds)
    other = tmp_path / "other.csv"
    other.write_bytes(b"\xef\xbb\xbflabel,path,id\r\nx,/a.wav,\r\n")
    assert list(open_manifest(str(other)).items) == [Item("/a.wav", "/a.wav")]
    assert open_manifest(str(other)).sources([Item("/a.wav", "/a.wav")]) == ["/a.wav"]
    assert list(open_manifest(other).seconds()) == [None]


def test_a_parquet_file(folder, tmp_path):
    table = pa.table({"id": [3, 4], "path": ["a.wav", "b.wav"], "label": [0, 1]})
    pq.write_table(table, tmp_path / "m.parquet")
    assert list(open_manifest(tmp_path / "m.parquet").items) == [
        Item("3", "a.wav"),
        Item("4", "b.wav"),
    ]


def test_a_folder(folder, tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/x.WAV", "a.flac", "b/.hidden.wav", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert list(open_manifest(tmp_path).items) == [
        Item("a.flac", "a.flac"),
        Item("b/x.WAV", "b/x.WAV"),
    ]


def test_a_dataset_of_paths(folder):
    dataset = Dataset({"id": ["x"], "path": [str(folder / "f00.wav")], "label": [1]})
    assert list(open_manifest(dataset).items) == [Item("x", str(folder / "f00.wav"))]


def test_a_dataset_of_recordings(folder, tmp_path):
    content = (folder / "f01.wav").read_bytes()
    audio = [
        {"path": str(folder / "f00.wav"), "bytes": None},
        {"path": "f01.wav", "bytes": content},
        {"path": None, "bytes": (folder / "f02.wav").read_bytes()},
    ]
    dataset = Dataset({"audio": audio}, Audio())
    manifest = open_manifest(dataset)
    hashed = hashlib.sha256(audio[2]["bytes"]).hexdigest()
    assert [item.id for item in manifest.items] == [str(folder / "f00.wav"), "f01.wav", hashed]
    assert manifest.sources([manifest.items[1]]) == [content]
    assert None not in list(manifest.seconds())
    options = {"settings": Tiny(), "workers": 0, "progress": False}
    explain_corpus(dataset, tmp_path / "dataset", **options)
    explain_corpus(folder, tmp_path / "folder", **options)
    hashes = [
        {row["samples_sha256"] for row in read_parts(tmp_path / name)}
        for name in ("dataset", "folder")
    ]
    assert len(hashes[0]) == 3
    assert hashes[0] < hashes[1]
    named = Dataset({"audio": audio, "id": [7, 8, 9]}, Audio())
    assert [item.id for item in open_manifest(named).items] == ["7", "8", "9"]


def test_the_hash_is_that_of_the_set(folder, tmp_path):
    manifest = open_manifest(folder / "manifest.csv")
    assert dataclasses.replace(manifest, items=ITEMS[::-1]).sha256 == manifest.sha256
    assert dataclasses.replace(manifest, root=tmp_path).sha256 == manifest.sha256
    for items in (ITEMS[1:], [Item("other", "f00.wav"), *ITEMS[1:]]):
        assert dataclasses.replace(manifest, items=items).sha256 != manifest.sha256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: expected a column 'path', got None"),
        ("id,file\na,b\n", r"line 1: expected a column 'path', got \['id', 'file'\]"),
        ("path\n\n", "lists no recording"),
        ("id,path\na,x\na,y\n", "'a' occurs twice"),
        ("path\nx\nx\n", "'x' occurs twice"),
        ("id,path\na,\n", "line 2: the path is empty"),
        ("id,path\na\n", "line 2: the path is empty"),
        ('path\n"x\n', "cannot read the manifest"),
    ],
)
def test_bad_tables(tmp_path, text, said):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(CorpusError, match=said):
        open_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"file": ["a"]}, "expected a column 'path'"),
        ({"path": ["a", None]}, "row 1: the path or the id is empty"),
        ({"path": ["a", "b"], "id": ["x", ""]}, "row 1: the path or the id is empty"),
        ({"path": ["a", "b"], "id": ["x", "x"]}, "occurs twice"),
    ],
)
def test_bad_parquet(tmp_path, table, said):
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    with pytest.raises(CorpusError, match=said):
        open_manifest(tmp_path / "m.parquet")


def test_what_is_no_manifest(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"no parquet")
    (tmp_path / "m.csv").write_bytes(b"path\n\xff\n")
    for name in ("m.parquet", "m.csv", "absent.csv", "absent.parquet"):
        with pytest.raises(CorpusError, match="cannot read the manifest"):
            open_manifest(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="lists no recording"):
        open_manifest(tmp_path / "empty")
    with pytest.raises(CorpusError, match="got list"):
        open_manifest(["a.wav"])
    with pytest.raises(CorpusError, match="'path' or 'audio'"):
        open_manifest(Dataset({"label": [1]}))
    splits = Dataset({"path": []})
    splits.column_names = {"train": ["path"]}
    with pytest.raises(CorpusError, match="one split that is not streamed"):
        open_manifest(splits)
