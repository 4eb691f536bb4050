"""A result as a document of its own for a case file: one HTML page, or a PDF.

It holds what a second analyst needs to get the same numbers: settings, versions, and hashes of the
recording and of all weights.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

from specsegdiff.grid import Region
from specsegdiff.notebook import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMITS = (
    "The heat says where this recording resembles what vocoders changed in the training material. "
    "It does not say whether the recording is synthetic: a genuine one has as many bins marked.",
    "p(spoof) is a detector's estimate under conditions like those of its training. It is often "
    "wrong on other channels, codecs, languages and systems.",
    "Words about a region describe what was measured there. They are no diagnosis and no proof.",
)
"What stands at the end of every document."

_PAGE = (8.27, 11.69)
_COLUMNS = 92
_LINES = 68

_STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:1em auto;padding:0 1em;color:#111;"
    "background:#fff}img{max-width:100%}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border:1px solid #777;padding:.2em .6em;text-align:left;overflow-wrap:anywhere}"
    "a:focus,rect:focus{outline:3px solid #005fcc}"
)


@dataclass(frozen=True)
class CaseFile:
    """The parts of a document, in the order in which they stand in it."""

    title: str
    "What it is about."
    heading: str
    "The result in one line."
    facts: tuple[tuple[str, str], ...]
    "Names and values: settings, versions, hashes."
    picture: "Figure"
    "Maps over the spectrogram."
    alt: str
    "The picture in words."
    players: Sequence[tuple[str, Tensor]]
    "Names and waveforms ``(n,)``; a PDF has none."
    regions: Sequence[Region]
    "The table of regions."
    words: str
    "What a narrator says, as text."
    words_html: str
    "The same as HTML, which the page holds as it is."
    sample_rate: int
    "Of the waveforms, in Hz."

    def html(self) -> str:
        """One page without a link to anything outside: pictures and sounds are in it."""
        facts = "".join(
            f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in self.facts
        )
        limits = "".join(f"<li>{escape(text)}</li>" for text in LIMITS)
        shown = render(
            self.heading,
            self.picture,
            self.players,
            self.regions,
            sample_rate=self.sample_rate,
            alt=self.alt,
            dpi=110,
        )
        return (
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width'>"
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body><main>"
            f"<h1>{escape(self.title)}</h1>{shown}<h2>In words</h2>{self.words_html}"
            f"<h2>How it was made</h2><table>{facts}</table>"
            f"<h2>What it cannot tell</h2><ul>{limits}</ul></main></body></html>\n"
        )

    def pdf(self) -> bytes:
        """Pages of text, and one of pictures; the same parts give the same bytes."""
        from matplotlib.backends.backend_pdf import PdfPages

        lines = [self.title, "", self.heading, ""]
        lines += ["REGIONS", *map(str, self.regions), "", "IN WORDS", *self.words.splitlines(), ""]
        lines += ["HOW IT WAS MADE", *(f"{name}: {value}" for name, value in self.facts), ""]
        lines += ["WHAT IT CANNOT TELL", *LIMITS]
        wrapped = [part for line in lines for part in textwrap.wrap(line, _COLUMNS) or [""]]
        out = io.BytesIO()
        # no date: the file of the same result is the same file
        with PdfPages(out, metadata={"Title": self.title, "CreationDate": None}) as pages:
            for first in range(0, len(wrapped), _LINES):
                pages.savefig(_text_page(wrapped[first : first + _LINES]))
                if first == 0:
                    pages.savefig(self.picture)
        return out.getvalue()


def _text_page(lines: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure

    page = Figure(figsize=_PAGE)
    page.text(
        0.07,
        0.96,
        "\n".join(lines),
        family="monospace",
        fontsize=8.5,
        va="top",
        linespacing=1.35,
        parse_math=False,
    )
    return page
