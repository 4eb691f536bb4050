"""A result as one piece of HTML for a notebook: heading, picture, players, table of regions."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specsegdiff.grid import Region

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("", "time (s)", "frequency (Hz)", "heat", "of the mask")


def render(
    heading: str,
    picture: "Figure",
    players: Sequence[tuple[str, Tensor]],
    regions: Sequence[Region],
    *,
    sample_rate: int,
    alt: str = "heatmap over the spectrogram",
    dpi: int = 75,
    words: str = "",
) -> str:
    """Render plain text, a figure, named waveforms ``(n,)`` and regions; every name is escaped.

    ``alt`` tells in words what the figure shows, and ``words`` is HTML that goes in as it is.
    """
    image = io.BytesIO()
    picture.savefig(image, format="png", dpi=dpi)
    sounds = "".join(
        f"<figure style='display:inline-block;margin:4px'><figcaption>{escape(name)}</figcaption>"
        f"<audio controls src='{data_uri(flac(wave, sample_rate), 'audio/flac')}'></audio>"
        "</figure>"
        for name, wave in players
    )
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(r.id)}</td><td>{r.t0:.2f}-{r.t1:.2f}</td><td>{r.f0:.0f}-{r.f1:.0f}</td>"
        f"<td>{r.score:.2f}</td><td>{100 * r.share:.1f} %</td></tr>"
        for r in regions
    )
    return (
        f"<div><p>{escape(heading)}</p>"
        f"<img alt='{escape(alt)}' src='{data_uri(image.getvalue(), 'image/png')}'>"
        f"<div>{sounds}</div>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{words}</div>"
    )


def playable(wave: Tensor, *, gain_db: float = 0.0) -> Tensor:
    """Apply a gain to ``(n,)``, and lower it where the result would pass full scale.

    >>> playable(torch.tensor([0.5, -1.0]), gain_db=20.0)
    tensor([ 0.5000, -1.0000])
    """
    peak = max(float(wave.abs().max()), 1e-12)
    return wave * min(10 ** (gain_db / 20), 1 / peak)


def flac(wave: Tensor, sample_rate: int) -> bytes:
    """Encode ``(n,)`` as 16-bit FLAC, lowered where it would pass full scale."""
    import soundfile

    sound = io.BytesIO()
    soundfile.write(
        sound,
        playable(wave).to(torch.float32).numpy(),
        sample_rate,
        format="FLAC",
        subtype="PCM_16",
    )
    return sound.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Write bytes of a MIME type as an address that holds them.

    >>> data_uri(b"a", "text/plain")
    'data:text/plain;base64,YQ=='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
