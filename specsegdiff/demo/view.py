"""What the page shows of a recording: a picture with cells to choose, sounds, words, a report.

All of it is HTML that holds its pictures, sounds and documents, so that no server has to keep one.
"""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from specsegdiff.casefile import LIMITS
from specsegdiff.cells import Box
from specsegdiff.data.audio import open_audio
from specsegdiff.errors import AudioError, ConfigError, SpecSegDiffError
from specsegdiff.explanation import Explanation
from specsegdiff.narration.rules import RuleNarrator
from specsegdiff.narration.schema import Report
from specsegdiff.notebook import data_uri, flac

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS, COLUMNS = 4, 4
"Cells of the picture; every one is described."

DPI = 110
"Resolution of the picture: 1210 x 990 pixels."


@dataclass(frozen=True)
class Limits:
    """How much the page takes at once."""

    seconds: float
    "Longest recording."
    megabytes: float
    "Largest file, in 10^6 bytes."

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ConfigError(f"Limits.{name} must be positive and finite, got {value!r}")

    def __str__(self) -> str:
        return f"{self.seconds:g} s and {self.megabytes:g} MB"


@dataclass(frozen=True)
class Place:
    """A rectangle of a picture, in percent of its width and height, from the top left."""

    left: float
    "Left edge."
    top: float
    "Upper edge."
    width: float
    "Width."
    height: float
    "Height."

    def __str__(self) -> str:
        return ";".join(f"{name}:{value:.3f}%" for name, value in vars(self).items())


def examine(
    path: Path,
    explain: Callable[..., Explanation],
    *,
    limits: Limits,
    progress: Callable[[int, int], object] | None = None,
) -> Explanation:
    """Explain an uploaded file by ``explain``, such as `specsegdiff.explain`; its folder, which is
    temporary, is not named in the result.

    Raises `AudioError` where the file is larger, or the recording longer, than the page takes, or
    the file is gone, and whatever ``explain`` raises.
    """
    try:
        megabytes = path.stat().st_size / 1e6
    except OSError as error:  # the same file was dropped twice, and removed with the first
        raise AudioError(f"{path.name} is gone ({error.strerror}); drop it again") from error
    if megabytes > limits.megabytes:
        raise AudioError(
            f"{path.name} has {megabytes:.1f} MB, and this page takes {limits.megabytes:g} MB at "
            "most; cut it, or start the page with a larger --max-mb"
        )
    with open_audio(path) as stream:
        seconds = stream.n_samples / stream.target_rate
    if seconds > limits.seconds:
        raise AudioError(
            f"{path.name} lasts {seconds:.1f} s, and this page takes {limits.seconds:g} s at most; "
            "cut it, or start the page with a larger --max-seconds"
        )
    made = explain(path, progress=progress)
    return replace(made, provenance=replace(made.provenance, source=path.name))


def result(explanation: Explanation) -> str:
    """Show an explanation: picture with cells, what is said of each, sounds, and what it cannot
    tell."""
    heading, *regions, foot = str(explanation).splitlines()
    figure = explanation.plot(title="")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    try:
        report = RuleNarrator(k=ROWS * COLUMNS, rows=ROWS, columns=COLUMNS)(explanation)
        cells, said = buttons(figure, report), words(report)
    except ConfigError as error:  # too short for cells
        cells, said = "", f"<p>{escape(str(error))}</p>"
    rate = explanation.axes.config.sample_rate
    sounds = "".join(
        f"<figure><figcaption>{escape(name)}</figcaption><audio controls "
        f"aria-label='{escape(name)}' src='{data_uri(flac(wave, rate), 'audio/flac')}'></audio>"
        "</figure>"
        for name, wave in explanation.players()
    )
    listed = "\n".join(regions)
    limits = "".join(f"<li>{escape(text)}</li>" for text in LIMITS)
    return (
        f"<h2>{escape(heading)}</h2><p>{escape(foot)}</p>"
        f"<div class='plane'><img alt='{escape(explanation.in_words())}' "
        f"src='{data_uri(image.getvalue(), 'image/png')}'>{cells}</div>"
        f"<div class='words' aria-live='polite'>{said}</div>"
        "<details><summary>Regions named in the picture</summary>"
        f"<pre>{escape(listed)}</pre></details>"
        f"<h3>What the heat selects</h3><div class='sounds'>{sounds}</div>"
        f"<h3>What it cannot tell</h3><ul>{limits}</ul>"
    )


def places(figure: "Figure", box: Box) -> list[Place]:
    """Where a box of time and frequency lies in each map of a drawn figure, from the top down."""
    found = []
    corners = ((box.t0, box.f0), (box.t1, box.f1))
    for panel in figure.axes:
        if panel.images:
            pixels = panel.transData.transform(corners)
            (x0, y0), (x1, y1) = 100 * figure.transFigure.inverted().transform(pixels)
            found.append(Place(x0, 100 - y1, x1 - x0, y1 - y0))
    return found


def buttons(figure: "Figure", report: Report) -> str:
    """Cells of a report over a drawn figure, the hottest one chosen.

    In the first map they are buttons, in reading order, for mouse and keys; in the others they
    take clicks only, so that the tabulator does not stop three times at each.
    """
    shown = []
    for cell in sorted(report.cells, key=lambda cell: int(cell.id)):
        if cell.box is None:
            continue
        chosen = cell.id == report.cells[0].id
        kind = f"class='cell{' chosen' if chosen else ''}' data-cell='{escape(cell.id)}'"
        name = f"Cell {cell.id}, {cell.box}, heat {cell.numbers['heat']:.2f}"
        first, *others = places(figure, cell.box)
        shown.append(
            f"<button type='button' {kind} aria-label='{escape(name)}' "
            f"aria-pressed='{str(chosen).lower()}' style='{first}'>{escape(cell.id)}</button>"
        )
        shown += [f"<div {kind} style='{place}'></div>" for place in others]
    return "".join(shown)


def words(report: Report) -> str:
    """What a report says of each cell, of which the hottest one is shown and the others hidden."""
    return "".join(
        f"<section data-words='{escape(cell.id)}'{'' if rank == 1 else ' hidden'}>"
        f"<h3>Cell {escape(cell.id)}: number {rank} of {len(report.cells)} by heat</h3>"
        f"<ul>{_sentences(report, cell.id)}</ul></section>"
        for rank, cell in enumerate(report.cells, start=1)
    )


def offer(explanation: Explanation) -> str:
    """Links to the report as HTML, PDF and JSON; each link holds its document."""
    try:
        said = explanation.report.to_dict()
    except ConfigError:  # too short for cells; the documents say so
        said = None
    card = explanation.to_dict() | {"report": said}
    documents = (
        ("html", "text/html", explanation.to_html().encode()),
        ("pdf", "application/pdf", explanation.to_pdf()),
        ("json", "application/json", json.dumps(card, indent=2, ensure_ascii=False).encode()),
    )
    stem = escape(Path(explanation.provenance.source).stem)
    links = "".join(
        f" <a download='{stem}-report.{suffix}' href='{data_uri(content, kind)}'>"
        f"{suffix.upper()}</a>"
        for suffix, kind, content in documents
    )
    return f"<p class='report'>Download the report:{links}</p>"


def complaint(error: SpecSegDiffError, path: Path) -> str:
    """Show what is wrong with an uploaded file: kind and text of the error, without its folder."""
    text = str(error).replace(f"{path.parent}/", "")
    return (
        f"<div role='alert' class='complaint'><strong>{type(error).__name__}</strong>"
        f"<p>{escape(text)}</p></div>"
    )


def _sentences(report: Report, id: str) -> str:
    said = (sentence.text for sentence in report.sentences if sentence.region == id)
    return "".join(f"<li>{escape(text)}</li>" for text in said)
