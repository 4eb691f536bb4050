"""Laws of an explanation: its parts add up to the recording; what is saved is what is loaded."""

import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specsegdiff import explanation, storage
from specsegdiff.errors import (
    CheckpointError,
    ConfigError,
    DependencyError,
    OutputError,
    ShapeError,
    SpecSegDiffError,
)
from specsegdiff.explanation import Explanation, Verdict, assemble
from specsegdiff.frontend import Axes, Stft, StftConfig
from specsegdiff.masks import top_share
from specsegdiff.storage import MapWriter

SMALL = StftConfig(sample_rate=1000, n_fft=64, hop=16)


def waves(n):
    return torch.randn(n, generator=torch.Generator().manual_seed(n)).mul(0.1)


def make(n=5000, *, config=SMALL, in_memory=True, source="call.wav"):
    shape = Axes(config, n).shape
    wave = waves(n)
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(2))
    heat = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)[0, 0]
    maps = []
    for value in (heat, heat / 3, wave[None]):
        writer = MapWriter(*value.shape, in_memory=in_memory)
        writer.append(value)
        maps.append(writer.finish())
    return assemble(
        *maps,
        config=config,
        source=source,
        model="tiny",
        weights_sha256="ab" * 32,
        seed=3,
        draws=4,
        steps=1,
    )


def files(folder: Path):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_assemble_finds_mask_regions_and_hash():
    ex = make()
    assert torch.equal(ex.mask, top_share(ex.heatmap))
    assert len(ex.regions) > 1
    expected = hashlib.sha256(waves(5000).numpy().tobytes()).hexdigest()
    assert ex.provenance.samples_sha256 == expected
    assert torch.equal(ex.wave, waves(5000))


@pytest.mark.parametrize("n", [1, 15, 16, 63, 64, 1000, 5003])
@pytest.mark.parametrize("soft", [False, True])
def test_artifacts_and_residual_add_up_to_the_recording(n, soft):
    ex = make(n)
    total = ex.audio("artifacts", soft=soft) + ex.audio("residual", soft=soft)
    # the inverse transform is exact to 1e-5 (StftConfig's contract)
    assert torch.allclose(total, ex.wave, atol=1e-5)
    assert torch.equal(ex.audio("original"), ex.wave)


def test_audio_is_the_masked_spectrum_with_the_recordings_phase():
    ex, stft = make(), Stft(SMALL)
    spec = stft(ex.wave)
    for soft, weight in ((False, ex.mask), (True, ex.heatmap)):
        slow = stft.inverse(torch.polar(spec.abs() * weight, spec.angle()), length=5000)
        assert torch.allclose(ex.audio("artifacts", soft=soft), slow, atol=1e-5)


def test_audio_does_not_depend_on_blocks_or_stretch(monkeypatch):
    ex = make()
    for what in ("artifacts", "residual", "original"):
        whole = ex.audio(what)
        assert torch.allclose(ex.audio(what, t0=1.0, t1=1.5), whole[1000:1500], atol=1e-6)
        assert torch.allclose(ex.audio(what, t0=4.9), whole[4900:], atol=1e-6)
        monkeypatch.setattr(explanation, "BLOCK_SAMPLES", 371)
        assert torch.allclose(ex.audio(what), whole, atol=1e-6)
        monkeypatch.undo()


def test_audio_refuses_other_names_and_times():
    ex = make()
    with pytest.raises(ConfigError, match="'artifacts'"):
        ex.audio("voice")
    for t0, t1 in ((-1, 1), (2, 1), (5, None), (1, 1)):
        with pytest.raises(ConfigError, match="t0 < t1"):
            ex.audio("artifacts", t0=t0, t1=t1)


def test_original_is_a_copy():
    ex = make()
    ex.audio("original").zero_()
    assert torch.equal(ex.wave, waves(5000))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("lazy", [True, False])
def test_what_is_saved_is_what_is_loaded(tmp_path, monkeypatch, in_memory, lazy):
    ex = make(in_memory=in_memory, source="Anruf 'α' <1>.wav")
    ex.save(tmp_path / "new" / "out")
    if lazy:
        monkeypatch.setattr(storage, "IN_MEMORY_VALUES", 0)
    back = Explanation.load(tmp_path / "new" / "out")
    for name in ("heatmap", "spread", "mask", "wave"):
        assert torch.equal(getattr(back, name), getattr(ex, name))
        assert getattr(back, name).dtype == getattr(ex, name).dtype
    assert back.regions == ex.regions
    assert back.provenance == ex.provenance
    assert back.axes == ex.axes
    assert back.to_json() == ex.to_json()
    assert np.array_equal(np.load(tmp_path / "new/out/heatmap.npy"), ex.heatmap.numpy())
    # loaded maps may lie in the very folder that is written to
    back.save(tmp_path / "new" / "out")
    assert torch.equal(Explanation.load(tmp_path / "new" / "out").heatmap, ex.heatmap)
    assert files(tmp_path) == [
        "new",
        "new/out",
        *(
            f"new/out/{n}"
            for n in ("explanation.json", "heatmap.npy", "mask.npy", "spread.npy", "wave.npy")
        ),
    ]


def test_the_result_does_not_depend_on_where_it_is_stored():
    memory, disk = make(), make(in_memory=False)
    assert memory.to_json() == disk.to_json()
    assert torch.equal(memory.mask, disk.mask)
    assert torch.equal(memory.audio("artifacts"), disk.audio("artifacts"))


def test_save_leaves_other_things_alone(tmp_path):
    ex = make()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    for name, message in (
        ("file", "is a file"),
        ("full", "holds no explanation.json"),
        ("file/below", "cannot"),
    ):
        with pytest.raises(OutputError, match=message):
            ex.save(tmp_path / name)
        assert files(tmp_path) == before
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    ex.save(tmp_path / "empty")
    assert torch.equal(Explanation.load(tmp_path / "empty").mask, ex.mask)


def test_save_writes_through_a_link(tmp_path):
    make(3000).save(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make().save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Explanation.load(tmp_path / "real").axes.n_samples == 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a folder that not even root may write"
)
def test_save_into_a_read_only_place():
    with pytest.raises(OutputError, match="cannot write /proc/specsegdiff"):
        make().save("/proc/specsegdiff-out")


def test_a_save_that_fails_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    old = make()
    old.save(tmp_path / "out")
    before = files(tmp_path)

    def full_disk(store, path):
        path.write_bytes(b"half")
        if path.name == "mask.npy":
            raise OSError("no space left")

    monkeypatch.setattr(explanation, "save_store", full_disk)
    for name in ("out", "other"):
        with pytest.raises(OutputError, match="no space left"):
            make(3000).save(tmp_path / name)
        assert files(tmp_path) == before
    assert torch.equal(Explanation.load(tmp_path / "out").heatmap, old.heatmap)


def test_a_verdict_is_told_and_kept(tmp_path):
    ex = make()
    assert ex.p_spoof is None
    assert "p(spoof)" not in str(ex)
    judged = replace(ex, verdict=Verdict(0.625, "ear", "cd" * 32))
    assert judged.p_spoof == 0.625
    assert str(judged).endswith("; p(spoof) 0.62 by ear")
    judged.save(tmp_path / "out")
    assert Explanation.load(tmp_path / "out").verdict == judged.verdict
    with pytest.raises(ConfigError, match="p_spoof must lie"):
        Verdict(float("nan"), "ear", "")


def test_a_swap_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    old = make()
    old.save(tmp_path / "out")
    rename = Path.rename

    def refuse_the_new(path, target):
        if Path(target) == tmp_path / "out" and refusals.pop():
            raise OSError("busy")
        return rename(path, target)

    refusals = [False, True]
    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(OutputError, match="busy"):
        make(3000).save(tmp_path / "out")
    assert torch.equal(Explanation.load(tmp_path / "out").heatmap, old.heatmap)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), "specsegdiff explanation 9"),
        (("n_samples",), 0),
        (("n_samples",), "5000"),
        (("n_samples",), 5000.0),
        (("stft", "hop"), -1),
        (("stft", "hops"), 16),
        (("provenance", "draws"), 0),
        (("provenance", "seed"), None),
        (("verdict",), 0.5),
        (("verdict",), {"p_spoof": 1.5, "detector": "d", "weights_sha256": ""}),
        (("regions",), [1]),
        (("regions", 0, "t0"), float("nan")),
        (("regions", 0, "t1"), -1.0),
        (("regions", 0, "score"), 7.0),
        (("sha256", "mask"), 5),
        (("extra",), 1),
    ],
)
def test_a_tampered_card_is_refused(tmp_path, place, value):
    make().save(tmp_path / "out")
    card = tmp_path / "out" / "explanation.json"
    values = json.loads(card.read_text())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    card.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"expected|must|at least|no field"):
        Explanation.load(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_a_broken_card_is_refused(tmp_path, text):
    make().save(tmp_path / "out")
    (tmp_path / "out" / "explanation.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"explanation\.json"):
        Explanation.load(tmp_path / "out")


def test_changed_or_missing_arrays_are_refused(tmp_path):
    ex = make()
    ex.save(tmp_path / "out")
    path = tmp_path / "out" / "heatmap.npy"
    good = path.read_bytes()
    for bad in (good[:-1], good[:-1] + b"?", b""):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="SHA-256"):
            Explanation.load(tmp_path / "out")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"heatmap\.npy"):
        Explanation.load(tmp_path / "out")
    with pytest.raises(CheckpointError, match="no explanation"):
        Explanation.load(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["text", "shape", "type", "pickle", "header"])
def test_arrays_of_another_kind_are_refused_even_with_their_hash(tmp_path, kind):
    make().save(tmp_path / "out")
    path = tmp_path / "out" / "heatmap.npy"
    value = np.load(path)
    if kind == "text":
        path.write_text("no array")
    elif kind == "header":
        path.write_bytes(path.read_bytes().replace(b"'descr'", b"'de(cr'"))
    else:
        other = {
            "shape": value[:, 1:],
            "type": value.astype("f8"),
            "pickle": np.array([{}], object),
        }
        np.save(path, other[kind], allow_pickle=True)
    card = tmp_path / "out" / "explanation.json"
    values = json.loads(card.read_text())
    values["sha256"]["heatmap"] = hashlib.sha256(path.read_bytes()).hexdigest()
    card.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"heatmap\.npy"):
        Explanation.load(tmp_path / "out")


def test_text_is_a_table_of_regions():
    ex = make()
    lines = str(ex).splitlines()
    assert lines[0].startswith("call.wav: 5.00 s at 1000 Hz, model tiny (abababababab), draws 4")
    assert len(lines) == len(ex.regions) + 2
    first = ex.regions[0]
    assert re.search(
        rf"R1 +{first.t0:.2f}-{first.t1:.2f} s, .* Hz, heat {first.score:.2f}", lines[1]
    )
    assert repr(ex) == f"<Explanation of 'call.wav': 5.00 s, {len(ex.regions)} regions>"
    deep = make(source="case 7/call.wav")
    assert str(deep) == str(ex)
    assert deep.provenance.source == "case 7/call.wav"
    assert json.loads(ex.to_json()) == ex.to_dict()


def test_html_has_a_row_a_region_and_escapes_names():
    ex = make(source="<script>x</script>.wav")
    html = ex._repr_html_()
    assert html.count("<tr><td>R") == len(ex.regions)
    assert html.count("<audio controls src='data:audio/flac;base64,") == 3
    assert html.count("<img") == 1
    assert "<script>" not in html


class Said:
    """Words of a narrator, for people and for a page."""

    def __str__(self):
        return "Region R1 hums."

    def to_dict(self):
        return {"said": "hum"}

    def _repr_html_(self):
        return "<ol><li>Region R1 hums.</li></ol>"


def test_html_tells_what_the_narrator_says():
    ex = replace(make(), narrator=lambda explanation: Said())
    assert "<li>Region R1 hums.</li>" in ex._repr_html_()
    assert "narrator" not in make()._repr_html_()


def test_a_case_file_holds_all_that_makes_the_same_maps_again():
    verdict = Verdict(p_spoof=0.25, detector="small", weights_sha256="ef" * 32)
    ex = replace(
        make(source="<b>call</b>.wav"), verdict=verdict, narrator=lambda explanation: Said()
    )
    ex = replace(ex, provenance=replace(ex.provenance, file_sha256="cd" * 32, runtime="abacus 2"))
    html, made = ex.to_html(), ex.provenance
    for fact in (
        made.file_sha256,
        made.samples_sha256,
        made.weights_sha256,
        verdict.weights_sha256,
        made.version,
        made.runtime,
        "--draws 4 --steps 1 --seed 3 --share 0.05",
        "p(spoof) 0.25",
        "Region R1 hums.",
        "does not say whether the recording is synthetic",
        f"strongest regions: R1 {ex.regions[0].t0:.2f}",
    ):
        assert fact in html, fact
    assert html.count("<tr><td>R") == len(ex.regions)
    assert "<b>call" not in html
    # whole in itself: nothing is fetched when it is opened
    assert not re.search(r"(src|href)=.http|<script|<link", html)


def test_a_case_file_without_words_says_why():
    assert "this explanation has no narrator" in make().to_html()


def test_a_pdf_holds_the_same_facts_and_the_same_result_the_same_bytes():
    import matplotlib

    ex = replace(make(), narrator=lambda explanation: Said())
    assert ex.to_pdf() == ex.to_pdf()
    with matplotlib.rc_context({"pdf.compression": 0}):
        pdf = ex.to_pdf().decode("latin-1")
    assert pdf.startswith("%PDF")
    # each glyph is a string of its own, between kerns
    drawn = "".join(re.findall(r"\((.)\)", pdf))
    for fact in (ex.provenance.samples_sha256[:40], "Region R1 hums.", "WHAT IT CANNOT TELL"):
        assert fact in drawn, fact
    assert "/Count 2" in pdf


def test_html_of_a_long_recording_is_bounded(monkeypatch):
    # two minutes of noise, which no codec compresses: pictures of 2000 columns, players of 30 s
    ex = make(120 * 16_000, config=StftConfig())
    html = ex._repr_html_()
    assert len(html) < 6_000_000
    middle = (ex.regions[0].t0 + ex.regions[0].t1) / 2
    t0, t1 = map(float, re.search(r"recording, ([\d.]+)-([\d.]+) s", html).groups())
    assert t1 - t0 == pytest.approx(30)
    assert t0 <= middle <= t1


def test_silence_and_one_sample_are_shown():
    for n in (1, 700):
        shape = Axes(SMALL, n).shape
        silent = assemble(
            torch.zeros(shape),
            torch.zeros(shape),
            torch.zeros(n),
            config=SMALL,
            source="silence",
            model="rule",
            weights_sha256="",
            seed=0,
            draws=1,
            steps=1,
        )
        assert "silence" in str(silent)
        assert silent._repr_html_().count("<audio") == 3


def test_listen_plays_at_the_recordings_level():
    pytest.importorskip("IPython", reason="IPython is optional")
    import io
    import wave

    ex = make(4000, config=StftConfig())
    for gain_db in (0.0, 6.0):
        player = ex.listen("artifacts", gain_db=gain_db)
        with wave.open(io.BytesIO(player.data)) as sound:
            assert sound.getframerate() == 16_000
            came = np.frombuffer(sound.readframes(4000), "<i2") / 32767
        # half a 16-bit step, doubled by truncation
        expected = ex.audio("artifacts").numpy() * 10 ** (gain_db / 20)
        assert np.allclose(came, expected, atol=1 / 32767)


def test_listen_never_passes_full_scale():
    pytest.importorskip("IPython", reason="IPython is optional")
    player = make(4000, config=StftConfig()).listen("artifacts", gain_db=90.0)
    samples = np.frombuffer(player.data[44:], "<i2")
    # 16-bit full scale, less what truncation takes
    assert np.abs(samples).max() in (32766, 32767)


def test_listen_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(DependencyError, match="pip install ipython"):
        make().listen()


def test_maps_of_another_recording_are_refused():
    ex = make()
    with pytest.raises(ShapeError, match="expected"):
        make_like(ex, spread=ex.spread[:, 1:])
    with pytest.raises(ShapeError, match="expected"):
        make_like(ex, wave=ex.wave[:100])
    with pytest.raises(ShapeError, match=r"\[0, 1\]"):
        make_like(ex, heatmap=ex.heatmap * 3)
    with pytest.raises(ConfigError, match="at least one draw"):
        make_like(ex, draws=0)
    assert issubclass(ShapeError, SpecSegDiffError)


def make_like(ex, **changes):
    options = {
        "heatmap": ex.heatmap,
        "spread": ex.spread,
        "wave": ex.wave,
        "config": SMALL,
        "source": "x",
        "model": "tiny",
        "weights_sha256": "",
        "seed": 0,
        "draws": 1,
        "steps": 1,
    }
    return assemble(**(options | changes))
