"""The two questions to a vision-language model, and chats that hold them.

Query 1 asks which regions of a picture look synthetic, Query 2 what is to be seen and heard in each
of some regions. Both say what the picture shows in its own numbers: seconds, Hz, rows and columns.
Answers have the forms of `specsegdiff.narration.parsing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specsegdiff.cells import RegionGrid, Regions, whole_plane
from specsegdiff.errors import ConfigError
from specsegdiff.narration.parsing import write_cells
from specsegdiff.narration.schema import FREQUENCIES, PHONES, TIMES


@dataclass(frozen=True)
class Prompt:
    """A question about one picture."""

    system: str
    "What the model is, and the form of its answer."
    user: str
    "What is asked about this picture."


def select_prompt(regions: Regions, *, k: int = 3) -> Prompt:
    """Query 1: the ids of the ``k`` regions with the clearest artifacts, best first.

    Raises `ConfigError` unless ``1 <= k <= regions.count``.
    """
    _check_count(k, regions)
    return Prompt(
        system=(
            "You examine spectrograms of recordings that are known to be synthetic speech, and "
            "find where the synthesis shows. Answer with the numbers of regions as a JSON array "
            f"of {k} different integers from 1 to {regions.count}, the clearest trace first, and "
            "with nothing else."
        ),
        user=(
            f"{describe_picture(regions)} Which {k} regions show the clearest traces of synthesis?"
        ),
    )


def describe_prompt(regions: Regions, ids: Sequence[str], *, transcript: str = "") -> Prompt:
    """Query 2: T, F, P and the evidence in words, for each region of ``ids`` in their order.

    ``transcript`` is what is said in the recording, if it is known, best with the seconds of each
    word. Raises `ConfigError` where ``ids`` is empty, repeats an id, or names no region.
    """
    _check_count(len(ids), regions)
    if len(set(ids)) < len(ids) or not set(ids) <= set(regions.ids):
        raise ConfigError(
            f"expected different ids of 1 to {regions.count}, got {list(ids)}; "
            "ask about regions of this picture"
        )
    said = f" What is said: {' '.join(transcript.split())}" if transcript.strip() else ""
    return Prompt(
        system=(
            "You examine spectrograms of recordings that are known to be synthetic speech, and "
            "put into words what gives single regions away. Answer with one line for each region "
            "asked about, in the order asked, and with nothing else:\n"
            '(ID, T=..., F=..., P=..., En="...")\n'
            f"T is {_either(TIMES)}: whether somebody speaks there. "
            f"F is {_either(FREQUENCIES)}: the third of the frequency axis that the region's "
            f"middle lies in. P is {_either(PHONES)}: the sound that fills most of the region, "
            "unvoiced where there is no phone. En is a JSON string of one or two sentences: what "
            "is seen, and how it probably sounds. It agrees with T, F and P, and names no number "
            "and no region."
        ),
        user=f"{describe_picture(regions)} Describe the regions {write_cells(ids)}.{said}",
    )


def describe_picture(regions: Regions) -> str:
    """What a picture shows, in a few sentences with its true axes.

    >>> from specsegdiff.frontend import Axes, StftConfig
    >>> print(describe_picture(RegionGrid(Axes(StftConfig(), n_samples=32_000))))
    The picture is a spectrogram: 0 to 2.00 s from left to right, 0 to 8.0 kHz from bottom to top. \
It is divided into 16 numbered regions, 4 rows by 4 columns; region 1 is at the top left, \
region 16 at the bottom right.
    """
    whole = whole_plane(regions.axes)
    scale = "" if regions.scale == "linear" else f" on a {regions.scale} scale"
    if isinstance(regions, RegionGrid):
        division = f"{regions.rows} rows by {regions.columns} columns; region 1 is"
    else:
        division = "outlined in white; region 1 is"
    return (
        f"The picture is a spectrogram: 0 to {whole.t1:.2f} s from left to right, "
        f"0 to {whole.f1 / 1000:.1f} kHz from bottom to top{scale}. It is divided into "
        f"{regions.count} numbered regions, {division} at the top left, "
        f"region {regions.count} at the bottom right."
    )


def messages(prompt: Prompt, *, answer: str | None = None, image: Any = None) -> list[Any]:
    """A chat as `transformers` templates and TRL read it: the picture, the question, the answer.

    ``image`` goes into the picture's place as it is, such as a path for a file of examples; without
    it the place stays empty, for a processor that takes the picture by itself.

    >>> chat = messages(Prompt("Look.", "Where?"), answer="[1]")
    >>> [turn["role"] for turn in chat], chat[1]["content"][0]
    (['system', 'user', 'assistant'], {'type': 'image'})
    """
    picture = {"type": "image"} if image is None else {"type": "image", "image": image}
    chat = [
        {"role": "system", "content": [_text(prompt.system)]},
        {"role": "user", "content": [picture, _text(prompt.user)]},
    ]
    if answer is not None:
        chat.append({"role": "assistant", "content": [_text(answer)]})
    return chat


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _check_count(count: int, regions: Regions) -> None:
    if not 1 <= count <= regions.count:
        raise ConfigError(f"expected 1 to {regions.count} regions, got {count}")
