"""The page: what is shown, by plain functions; what the server refuses; and a real browser."""

import base64
import contextlib
import functools
import gc
import html
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import soundfile as sf
import torch
from matplotlib.image import imread
from models import make_model
from speech import speech
from typer.testing import CliRunner

from specsegdiff import api
from specsegdiff.casefile import LIMITS
from specsegdiff.cells import RegionGrid
from specsegdiff.cli import app
from specsegdiff.data.audio import write_audio
from specsegdiff.demo.page import POLICY, SWEEP, TRANSPORT, forget, serving
from specsegdiff.demo.view import (
    DPI,
    Limits,
    Place,
    buttons,
    complaint,
    examine,
    offer,
    places,
    result,
    words,
)
from specsegdiff.errors import AudioError, ConfigError, DependencyError, SpecSegDiffError
from specsegdiff.explanation import Explanation, assemble
from specsegdiff.frontend import Axes, StftConfig
from specsegdiff.models.segdiff import PRESETS
from specsegdiff.narration.rules import RuleNarrator
from specsegdiff.narration.schema import Report

SHORT = Limits(seconds=2.0, megabytes=0.5)

# gradio leaves event loops, and their sockets, to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

HOSTILE = "<img src=x onerror=alert(1)>'{{call}}${1}.wav"


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """Collect what is left of servers here, where that may be told of, and in no other file."""
    yield
    gc.collect()


def explainer(**options: Any) -> Any:
    """A tiny untrained model, one draw of one step, no detector."""
    model = make_model(PRESETS["tiny"], draws=1, steps=1)
    return functools.partial(api.explain, model=model, detector=False, **options)


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "call.wav"
    write_audio(path, speech(n_samples=16_000), sample_rate=16_000)
    return path


@pytest.fixture(scope="module")
def seen(call: Path) -> Explanation:
    return examine(call, explainer(), limits=SHORT)


@pytest.fixture(scope="module")
def report(seen: Explanation) -> Report:
    return RuleNarrator(k=16)(seen)


def embedded(text: str, kind: str) -> list[bytes]:
    """What the data URIs of a kind hold."""
    return [base64.b64decode(found) for found in re.findall(rf"data:{kind};base64,([^']+)'", text)]


# ------------------------------------------------------------------ a file


def test_an_uploaded_file_is_explained_under_its_own_name(seen: Explanation, call: Path) -> None:
    assert seen.provenance.source == "call.wav"
    assert str(call.parent) not in result(seen) + seen.to_html()
    # as the file itself, not as samples without one
    assert len(seen.provenance.file_sha256) == 64


def test_progress_is_passed_on(call: Path) -> None:
    heard: list[tuple[int, int]] = []
    examine(call, explainer(), limits=SHORT, progress=lambda *count: heard.append(count))
    assert heard == [(1, 1)]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            Limits(seconds=0.5, megabytes=1.0),
            "call.wav lasts 1.0 s, and this page takes 0.5 s at most",
        ),
        (
            Limits(seconds=2.0, megabytes=0.01),
            "call.wav has 0.0 MB, and this page takes 0.01 MB at most",
        ),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_explained(
    limits: Limits, said: str, call: Path
) -> None:
    def never(path: Path, **options: object) -> Explanation:
        raise AssertionError

    with pytest.raises(AudioError, match=said):
        examine(call, never, limits=limits)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_limits_are_positive(value: float) -> None:
    with pytest.raises(ConfigError, match="seconds must be positive"):
        Limits(seconds=value, megabytes=1.0)
    with pytest.raises(ConfigError, match="megabytes must be positive"):
        Limits(seconds=1.0, megabytes=value)


def test_a_broken_file_is_told_by_kind_and_text_and_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "<b>broken.wav"
    path.write_bytes(b"RIFF no more")
    with pytest.raises(SpecSegDiffError) as caught:
        examine(path, explainer(), limits=SHORT)
    told = complaint(caught.value, path)
    assert "<strong>AudioError</strong>" in told
    assert "role='alert'" in told
    assert "&lt;b&gt;broken.wav" in told
    assert "<b>" not in told
    assert str(tmp_path) not in told


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"call\.wav is gone .*; drop it again"):
        examine(tmp_path / "call.wav", explainer(), limits=SHORT)


# ------------------------------------------------------------------ cells


def explanation_of(heat: torch.Tensor, *, n: int = 16_000) -> Explanation:
    axes = Axes(StftConfig(), n_samples=n)
    return assemble(
        heat,
        heat / 2,
        speech(n_samples=n),
        config=axes.config,
        source="call.wav",
        model="none",
        weights_sha256="",
        seed=0,
        draws=1,
        steps=1,
        share=1 / 16,
        narrator=RuleNarrator(),
    )


def pixel(picture: np.ndarray, place: Place, x: float, y: float) -> np.ndarray:
    """Colour at a place's own coordinates, 0 to 1 from its top left."""
    height, width = picture.shape[:2]
    column = (place.left + x * place.width) / 100 * width
    row = (place.top + y * place.height) / 100 * height
    return picture[int(row), int(column), :3]


@pytest.mark.parametrize("id", ["1", "7", "16"])
def test_a_cell_lies_where_the_picture_shows_its_heat(id: str) -> None:
    grid = RegionGrid(Axes(StftConfig(), n_samples=16_000))
    made = explanation_of((grid.labels == int(id) - 1).float())
    figure, image = made.plot(title=""), io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    picture = imread(io.BytesIO(image.getvalue()))
    hot, cold = (np.array(matplotlib.colormaps["magma"](level)[:3]) for level in (1.0, 0.0))
    for other in grid.ids:
        spectrogram, heatmap, spread = places(figure, grid.box(other))
        assert spectrogram.top < heatmap.top < spread.top
        assert spectrogram.left == heatmap.left == spread.left
        expected = hot if other == id else cold
        # 0.1 inside the edges: bins and frames are coarser than pixels there
        for x, y in ((0.5, 0.5), (0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9)):
            assert np.abs(pixel(picture, heatmap, x, y) - expected).max() < 0.02, (other, x, y)


def test_cells_are_buttons_in_reading_order_and_the_hottest_is_chosen(
    seen: Explanation, report: Report
) -> None:
    figure = seen.plot(title="")
    figure.savefig(io.BytesIO(), format="png", dpi=DPI)
    shown = buttons(figure, report)
    found = re.findall(r"<button .*?aria-pressed='(\w+)'.*?>(\d+)</button>", shown)
    assert [id for _, id in found] == [str(number) for number in range(1, 17)]
    assert [id for pressed, id in found if pressed == "true"] == [report.cells[0].id]
    # the other two maps take clicks, and no focus
    assert len(re.findall(r"<div class='cell", shown)) == 32
    for cell in report.cells:
        name = f"Cell {cell.id}, {cell.box}, heat {cell.numbers['heat']:.2f}"
        assert shown.count(f"aria-label='{name}'") == 1


def test_words_are_the_sentences_of_the_cell(report: Report) -> None:
    sections = re.findall(r"<section data-words='(\d+)'( hidden)?>(.*?)</section>", words(report))
    assert [id for id, hidden, _ in sections if not hidden] == [report.cells[0].id]
    assert {id for id, *_ in sections} == {str(number) for number in range(1, 17)}
    for id, _, text in sections:
        told = [html.unescape(line) for line in re.findall(r"<li>(.*?)</li>", text)]
        assert told == [said.text for said in report.sentences if said.region == id]
        assert len(told) == 2


# ------------------------------------------------------------------ the whole


def test_a_result_has_words_for_its_picture_and_names_for_its_sounds(seen: Explanation) -> None:
    shown = result(seen)
    (alt,) = re.findall(r"<img alt='([^']+)'", shown)
    assert alt.startswith("Spectrogram of 1.00 s")
    assert len(re.findall(r"<audio controls aria-label='[^']+'", shown)) == 3
    assert all(html.escape(text) in shown for text in LIMITS)
    assert all(html.escape(str(region)) in shown for region in seen.regions)


def test_what_is_played_is_what_the_heat_selects(seen: Explanation) -> None:
    recording, artifacts, residual = (
        torch.from_numpy(sf.read(io.BytesIO(sound), dtype="float32")[0])
        for sound in embedded(result(seen), "audio/flac")
    )
    # 16 bits
    assert torch.allclose(recording, seen.audio("original"), atol=1e-4)
    assert torch.allclose(residual, seen.audio("residual"), atol=1e-4)
    expected = seen.audio("artifacts")
    gain = recording.abs().max() / expected.abs().max()
    assert torch.allclose(artifacts, gain * expected, atol=1e-4)


def test_a_result_is_text_whatever_the_file_is_called_and_holds_all_it_shows(
    seen: Explanation,
) -> None:
    named = replace(seen, provenance=replace(seen.provenance, source=HOSTILE))
    shown = result(named) + offer(named)
    assert "<img src=x" not in shown
    assert html.escape(HOSTILE) in shown
    assert set(re.findall(r"(?:src|href)='(\w+:)", shown)) == {"data:"}


def test_too_short_a_recording_has_no_cells_and_says_so() -> None:
    made = explanation_of(torch.rand(513, 3), n=600)
    shown = result(made)
    assert "data-cell" not in shown
    assert "has a column without a bin; ask for fewer columns" in shown
    assert json.loads(embedded(offer(made), "application/json")[0])["report"] is None


def test_the_report_is_offered_as_html_pdf_and_json(seen: Explanation) -> None:
    links = offer(seen)
    names = re.findall(r"download='([^']+)'", links)
    assert names == ["call-report.html", "call-report.pdf", "call-report.json"]
    assert embedded(links, "text/html") == [seen.to_html().encode()]
    assert embedded(links, "application/pdf") == [seen.to_pdf()]
    card = json.loads(embedded(links, "application/json")[0])
    assert Report.from_dict(card.pop("report")) == seen.report
    assert card == json.loads(seen.to_json())


# ------------------------------------------------------------------ the server


class Visitor:
    """Speaks to the page over HTTP, as its script in a browser does, and as others might."""

    def __init__(self, page: Any) -> None:
        import httpx

        self.door = httpx.Client(base_url=f"{page.local_url}gradio_api", timeout=120)
        self.folder = Path(page.app.uploaded_file_dir)

    def upload(self, name: str, content: bytes) -> Any:
        return self.door.post("/upload", files={"files": (name, content)})

    def ask(self, path: str) -> list[dict[str, Any]]:
        """Messages of the event that an uploaded file starts, up to its end."""
        data = {"path": path, "meta": {"_type": "gradio.FileData"}}
        asked = {"data": [data], "fn_index": 0, "session_hash": "visitor"}
        self.door.post("/queue/join", json=asked).raise_for_status()
        told = []
        with self.door.stream("GET", "/queue/data?session_hash=visitor") as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    told.append(json.loads(line.removeprefix("data: ")))
                    if told[-1]["msg"] == "process_completed":
                        break
        return told

    def left(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@contextlib.contextmanager
def served(explain: Any, limits: Limits) -> Iterator[Any]:
    """The page, in an environment that asks gradio for all that it must not do."""
    pytest.importorskip("gradio", reason="the page needs the extra 'demo'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ALLOWED_PATHS", str(Path(__file__).parent))
        patch.setenv("GRADIO_SHARE", "true")
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
        patch.setenv("GRADIO_RUN_HISTORY", "True")
        with serving(explain, limits=limits) as page:
            yield page


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with served(explainer(), SHORT) as page:
        yield page


@pytest.fixture
def visitor(page: Any) -> Iterator[Visitor]:
    visitor = Visitor(page)
    yield visitor
    visitor.door.close()


def test_an_upload_is_shown_and_offered_and_forgotten(visitor: Visitor, call: Path) -> None:
    (path,) = visitor.upload("call.wav", call.read_bytes()).json()
    assert visitor.left() == [Path(path)]
    told = visitor.ask(path)
    first = next(message for message in told if message["msg"] == "process_generating")
    shown, links, recording = first["output"]["data"]
    assert len(re.findall("<button", shown)) == 16
    assert (links, recording) == ("<p>Writing the report ...</p>", None)
    assert "call-report.pdf" in told[-1]["output"]["data"][1]
    assert any(message["msg"] == "progress" for message in told)
    assert visitor.left() == []


def test_a_broken_upload_is_a_complaint_and_forgotten(visitor: Visitor) -> None:
    (path,) = visitor.upload("broken.wav", b"RIFF no more").json()
    shown, links, recording = visitor.ask(path)[-1]["output"]["data"]
    assert "<strong>AudioError</strong>" in shown
    assert "Traceback" not in shown
    assert str(visitor.folder) not in shown
    assert (links, recording) == ("", None)
    assert visitor.left() == []


def test_files_that_were_not_uploaded_are_neither_explained_nor_sent(
    visitor: Visitor, call: Path
) -> None:
    above = f"{visitor.folder}/../{call.parent.name}/{call.name}"
    for path in (str(call), __file__, "/etc/passwd", above, "http://127.0.0.1/call.wav"):
        end = visitor.ask(path)[-1]
        assert (end["success"], end["output"]) == (False, {"error": None}), path
        assert visitor.door.get(f"/file={path}").status_code in (403, 404), path
    assert call.exists()


def test_the_page_is_local_and_tells_nobody(page: Any, visitor: Visitor) -> None:
    assert page.local_url.startswith("http://127.0.0.1:")
    assert page.allowed_paths == []
    assert (page.share, page.share_url) == (False, None)
    assert (page.analytics_enabled, page.run_history) == (False, False)
    assert page.delete_cache == SWEEP
    answer = visitor.door.get(page.local_url)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == POLICY


def test_an_upload_far_beyond_the_limit_is_cut_off(visitor: Visitor) -> None:
    answer = visitor.upload("long.wav", bytes(round(TRANSPORT * 0.5e6) + 1))
    assert answer.status_code == 413
    assert visitor.left() == []


def test_nothing_is_left_at_the_end(page: Any) -> None:
    before = dict(os.environ)
    with served(explainer(), SHORT) as other:
        visitor = Visitor(other)
        visitor.upload("call.wav", b"nobody asks for this one").raise_for_status()
        assert len(visitor.left()) == 1
        assert other.server_port != page.server_port
        visitor.door.close()
    assert not visitor.folder.exists()
    before["HF_HUB_DISABLE_TELEMETRY"] = "True"  # gradio's own, and welcome
    assert dict(os.environ) == before


def test_a_port_that_is_taken_is_told(page: Any) -> None:
    said = f"cannot serve a page on 127.0.0.1, port {page.server_port} .*choose another"
    with (
        pytest.raises(ConfigError, match=said),
        serving(explainer(), limits=SHORT, port=page.server_port),
    ):
        pass


def test_without_gradio_there_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with (
        pytest.raises(DependencyError, match=r"pip install 'specsegdiff\[demo\]'"),
        serving(explainer(), limits=SHORT),
    ):
        pass


def test_only_uploads_are_removed(tmp_path: Path) -> None:
    upload, other = tmp_path / "uploads" / "hash" / "call.wav", tmp_path / "mine" / "call.wav"
    for path in (upload, other):
        path.parent.mkdir(parents=True)
        path.touch()
        forget(path, tmp_path / "uploads")
    assert other.exists()
    assert list((tmp_path / "uploads").iterdir()) == []


# ------------------------------------------------------------------ a browser


@pytest.mark.slow
def test_the_page_in_a_browser(
    browser: Any, photograph: Callable[..., None], tmp_path: Path
) -> None:
    """Upload, look, click, use keys, download, record; a broken and a large file; and close."""
    broken, large = tmp_path / "broken.wav", tmp_path / "large.wav"
    broken.write_bytes(b"RIFF no more")
    large.write_bytes(bytes(21_000_000))
    with served(api.explain, Limits(seconds=60.0, megabytes=20.0)) as page:
        context = browser.new_context(
            viewport={"width": 1280, "height": 900}, permissions=["microphone"]
        )
        tab = context.new_page()
        tab.set_default_timeout(300_000)
        asked, failed = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: failed.append(str(error)))

        def choose(path: Path) -> None:
            tab.wait_for_selector("input[type=file]", state="attached")
            tab.set_input_files("input[type=file]", path)

        def read() -> str:
            return tab.inner_text(".words section:not([hidden])")

        tab.goto(page.local_url)
        choose(api.asset("example.flac"))
        tab.wait_for_selector(".report a")
        image = tab.locator(".plane img")
        assert image.get_attribute("alt").startswith("Spectrogram of ")
        assert image.evaluate("image => image.complete && image.naturalWidth") == 1210
        # players know how long they play: the browser could decode them
        players = "[...document.querySelectorAll('.sounds audio')].map(audio => audio.duration)"
        tab.wait_for_function(f"{players}.every(duration => duration > 0)")
        lengths = tab.evaluate(players)
        assert lengths == pytest.approx(3 * [lengths[0]])
        assert "number 1 of 16 by heat" in read()
        photograph(tab, "demo", full_page=True)

        # keys alone reach all there is, and one sees where one is
        name = "document.activeElement.ariaLabel || document.activeElement.innerText || ''"
        reached = []
        for _ in range(60):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate(name))
        for wanted in ("Drop an audio file", "Record audio", "recording", "residual", "PDF"):
            assert any(name.startswith(wanted) for name in reached), (wanted, reached)
        first = next(place for place, name in enumerate(reached) if name.startswith("Cell 1,"))
        cells = [name.split(",")[0] for name in reached[first : first + 16]]
        assert cells == [f"Cell {number}" for number in range(1, 17)]
        tab.focus("button.cell[data-cell='2']")
        tab.keyboard.press("Tab")
        outline = tab.evaluate("getComputedStyle(document.activeElement).outline")
        assert outline == "rgb(0, 95, 204) solid 3px"
        tab.keyboard.press("Enter")
        assert read().startswith("Cell 3: ")

        # a click in the spectrogram, and one in the heatmap below it
        tab.click("button.cell[data-cell='7']")
        assert re.match(r"Cell 7: number \d+ of 16 by heat\nCell 7, .*: mean heat ", read())
        tab.locator("div.cell[data-cell='13']").first.click()
        assert read().startswith("Cell 13: ")
        assert tab.get_attribute("button.cell[aria-pressed=true]", "data-cell") == "13"

        with tab.expect_download() as download:
            tab.click("text=PDF")
        assert download.value.suggested_filename == "example-report.pdf"
        assert Path(download.value.path()).read_bytes().startswith(b"%PDF")

        choose(broken)
        tab.wait_for_selector("text=cannot decode broken.wav")
        assert tab.inner_text("[role=alert] strong") == "AudioError"
        assert tab.locator("button.cell, .report").count() == 0
        choose(large)
        tab.wait_for_selector("text=large.wav has 21.0 MB, and this page takes 20 MB at most")
        # a new result after complaints can be used like the first
        tab.wait_for_selector("input[type=file]", state="attached")
        tab.click("[aria-label='Record audio']")
        tab.click("button.record-button:visible")
        tab.wait_for_timeout(1500)
        tab.click("button.stop-button:visible")
        tab.wait_for_selector(".report a")
        assert "audio.wav" in tab.inner_text("h2")
        tab.click("button.cell[data-cell='10']")
        assert read().startswith("Cell 10: ")

        assert Visitor(page).left() == []
        tab.close()
        for _ in range(300):
            if not page.state_holder.session_data:
                break
            time.sleep(0.1)
        assert not page.state_holder.session_data
        hosts = {re.match(r"\w+:(//[^/]+)?", url).group() for url in asked}
        assert hosts <= {page.local_url.rstrip("/"), "data:", "blob:"}
        assert failed == []


# ------------------------------------------------------------------ the command


def test_the_command_serves_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="the page needs the extra 'demo'")
    heard: list[Any] = []

    @contextlib.contextmanager
    def fake(explain: Any, **options: Any) -> Iterator[Any]:
        heard.append((explain, options))
        yield SimpleNamespace(local_url="http://127.0.0.1:7999/")
        raise AssertionError("the command ended by itself")

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specsegdiff.demo.page.serving", fake)
    monkeypatch.setattr("time.sleep", interrupt)
    words = ["demo", "--port", "7999", "--max-seconds", "9", "--max-mb", "3"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 130
    assert "open http://127.0.0.1:7999/ in a browser" in ended.stdout
    limits = Limits(seconds=9.0, megabytes=3.0)
    assert heard == [(api.explain, {"limits": limits, "host": "127.0.0.1", "port": 7999})]
    refused = CliRunner().invoke(app, ["demo", "--max-mb", "0"])
    assert refused.exit_code == 2
    assert "Limits.megabytes must be positive" in refused.stderr
