"""Examples for a narrator: pictures, questions and answers out of real pairs, and files of them.

The answers are what rules find beside the genuine twin: the cells that the true mask covers most,
their fields, and a sentence on the kind of artifact. Other trainers read the same files.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from specsegdiff import hub
from specsegdiff.cells import RegionGrid, truth_cells
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.errors import ConfigError, CorpusError
from specsegdiff.explanation import Explainer
from specsegdiff.frontend import Stft, StftConfig
from specsegdiff.masks import MaskConfig, ground_truth, shared_band
from specsegdiff.narration.fields import fields_from_sound, frames_of
from specsegdiff.narration.kinds import judge
from specsegdiff.narration.measurements import measure_pair
from specsegdiff.narration.parsing import Finding, write_cells, write_findings
from specsegdiff.narration.picture import PictureConfig, draw_regions
from specsegdiff.narration.prompts import Prompt, describe_prompt, select_prompt
from specsegdiff.narration.rewards import WORDS, true_cells
from specsegdiff.narration.schema import Kind
from specsegdiff.shapes import Map, Mask, Wave

SEEN: dict[Kind | None, str] = {
    "noise flattening": "the noise is flattened, without its grain; it may sound smooth and dull",
    "formant fading": "the bands of resonance fade; the colour of the voice may be pale",
    "periodic repetition": "a pattern repeats like stripes; it may sound looped or buzzing",
    "harmonic degradation": "the harmonics are smeared; it may sound hoarse",
    "transient degradation": "onsets are blurred; attacks may sound soft",
    "over-smoothing": "fine detail is smoothed away; it may sound muffled",
    "spectral irregularity": "the spectrum is uneven; it may ring or sound metallic",
    "splice boundary": "a straight edge cuts through; the recording may jump there",
    None: "the texture differs slightly; it may sound a little unnatural",
}
"""What is seen and heard, by kind of artifact, in words without a number that name no field."""


@dataclass(frozen=True)
class ExampleConfig:
    """What is asked, and about which picture."""

    rows: int = 4
    "Rows of the grid."
    columns: int = 4
    "Columns of the grid."
    k: int = 3
    "Regions asked for."
    crops: int = 0
    """Stretches of each recording that become examples beside the whole, at random places and at
    least half as long: the true regions of a stretch are others."""
    seed: int = 0
    "Of these places."
    picture: PictureConfig = field(default_factory=PictureConfig)
    "The picture."
    masks: MaskConfig = field(default_factory=MaskConfig)
    "Ground truth."
    stft: StftConfig = field(default_factory=StftConfig)
    "Axes of the picture and of the ground truth."

    def __post_init__(self) -> None:
        if self.crops < 0:
            raise ConfigError(f"ExampleConfig.crops must be at least 0, got {self.crops!r}")


@dataclass(frozen=True)
class Example:
    """One question about one picture, with its answer and what the rewards need."""

    id: str
    "Name of the pair, of a stretch with its number behind: unique for its query."
    query: Literal[1, 2]
    "1 asks where, 2 asks what."
    picture: str
    "Path of the PNG, relative to the file of examples."
    prompt: Prompt
    "The question."
    answer: str
    "What SFT learns by heart."
    ids: tuple[str, ...] = ()
    "Query 2: the regions asked about."
    truth: tuple[Any, ...] = ()
    """Query 1: ids of the true regions, most covered first. Query 2: a row for each true region,
    with region, time, frequency, phone and evidence."""


def make_examples(
    pairs: Sequence[Pair],
    folder: str | Path,
    *,
    config: ExampleConfig | None = None,
    explainer: Explainer | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Example]:
    """Draw the fake of every pair into ``folder``, and ask both questions about it.

    ``folder`` gets a PNG for each pair, and for each stretch of it, and ``examples.jsonl``, which
    `export` writes. ``explainer`` gives the heatmap where the picture has one; it should not have
    seen these recordings, or the narrator learns to trust it too much. Pairs that are aligned by
    warping, and what has a true mask in fewer than ``k`` cells, are left out. ``progress`` is
    called with (pairs done, all).
    """
    folder, config = Path(folder), config or ExampleConfig()
    folder.mkdir(parents=True, exist_ok=True)
    examples: list[Example] = []
    for number, pair in enumerate(pairs):
        if pair.align != "dtw":
            examples += _examples(pair, f"{number:06d}", folder, config, explainer)
        if progress:
            progress(number + 1, len(pairs))
    export(examples, folder / "examples.jsonl")
    return examples


def _examples(
    pair: Pair, name: str, folder: Path, config: ExampleConfig, explainer: Explainer | None
) -> Iterator[Example]:
    """Examples of a pair and of its stretches; all share one heatmap."""
    real, fake = load_pair(pair, config=config.stft)
    heatmap = explainer(fake[None])[0] if explainer else None
    hop, axes = config.stft.hop, Stft(config.stft).axes(len(fake))
    for place, (first, last) in enumerate(_stretches(pair.id, axes.shape[1], config)):
        cut = slice(first * hop, last * hop)
        part = real[cut], fake[cut]
        # frame i is centred on sample i * hop
        n = Stft(config.stft).axes(len(part[1])).shape[1]
        hot = None if heatmap is None else heatmap[:, first : first + n]
        more = f"-{place}" if place else ""
        yield from _questions(
            replace(pair, id=pair.id + more), *part, hot, folder / f"{name}{more}.png", config
        )


def _stretches(id: str, n_frames: int, config: ExampleConfig) -> Iterator[tuple[int, int]]:
    """First frame and end of the whole recording, and of each stretch."""
    yield 0, n_frames
    digest = hashlib.sha256(f"{config.seed}/{id}".encode()).digest()
    generator = random.Random(digest)
    for _ in range(config.crops):
        length = generator.randint(-(-n_frames // 2), n_frames)
        first = generator.randint(0, n_frames - length)
        yield first, first + length


def _questions(
    pair: Pair, real: Wave, fake: Wave, heatmap: Map | None, path: Path, config: ExampleConfig
) -> Iterator[Example]:
    """Both questions about one picture, which is drawn to ``path``."""
    stft = Stft(config.stft)
    axes = stft.axes(len(fake))
    regions = RegionGrid(axes, config.rows, config.columns)
    ids = truth_cells(_mask(real, fake, pair, stft, config.masks), regions, k=config.k)
    if len(ids) < config.k:
        return
    draw_regions(fake, regions, heatmap=heatmap, config=config.picture).save(path)
    frames = frames_of(fake, axes)
    findings = []
    for id in ids:
        box = regions.box(id)
        fields = fields_from_sound(box, frames)
        kind = judge(measure_pair(fake, real, axes, box), fields).kind
        said = describe(fields.time, fields.frequency, fields.phone, kind)
        findings.append(Finding(id, fields.time, fields.frequency, fields.phone, said))
    rows = tuple(
        {
            "region": finding.id,
            "time": finding.time,
            "frequency": finding.frequency,
            "phone": finding.phone,
            "evidence": finding.evidence,
        }
        for finding in findings
    )
    where, what = select_prompt(regions, k=config.k), describe_prompt(regions, ids)
    yield Example(pair.id, 1, path.name, where, write_cells(ids), truth=ids)
    yield Example(pair.id, 2, path.name, what, write_findings(findings), ids=ids, truth=rows)


def describe(time: str, frequency: str, phone: str, kind: Kind | None) -> str:
    """Say what a region shows in a sentence: T, F and P first, then the kind of artifact.

    >>> describe("speech", "low", "vowel", "harmonic degradation")
    'In speech, low band, a vowel: the harmonics are smeared; it may sound hoarse.'
    """
    sound = "an unvoiced stretch" if phone == "unvoiced" else f"a {phone}"
    return f"In {time}, {frequency} band, {sound}: {SEEN[kind]}."


def _mask(real: Wave, fake: Wave, pair: Pair, stft: Stft, masks: MaskConfig) -> Mask:
    one, other = stft.magnitude(real), stft.magnitude(fake)
    valid = None
    if pair.band_hz is not None:
        step = stft.axes(len(fake)).hertz_per_bin
        valid = shared_band(one, band_hz=pair.band_hz, hertz_per_bin=step)[None]
    return ground_truth(one[None], other[None], masks, valid=valid)[0]


# ------------------------------------------------------------------ files


def export(
    examples: Sequence[Example], path: str | Path, *, style: Literal["swift", "trl"] = "swift"
) -> None:
    """Write examples as JSON lines of chats, for other trainers and for `read_examples`.

    ``swift``: ``messages`` with ``<image>`` in the user's turn and ``images``, as ms-swift and
    LLaMA-Factory read them (the latter as format sharegpt with the roles of OpenAI). ``trl``:
    ``prompt`` and ``completion`` without that tag, which TRL puts in by itself. Both carry the
    columns that the rewards read: ``ids`` and ``truth``. The latter has one type in all rows, as
    Arrow wants it: rows with region, time, frequency, phone and evidence, of which those of Query 1
    have the region only and "" for the rest.
    """
    if style not in ("swift", "trl"):
        raise ConfigError(f"style must be 'swift' or 'trl', got {style!r}")
    lines = (json.dumps(_row(example, style), ensure_ascii=False) for example in examples)
    hub.write_atomic(Path(path), "".join(f"{line}\n" for line in lines).encode())


def read_examples(path: str | Path) -> list[Example]:
    """Read what `export` wrote in style ``swift``; raises `CorpusError` that names the line.

    Older files, whose ``truth`` of Query 1 holds bare ids, give the same examples.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read the examples {path} ({error}); export them") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            system, user, assistant = (turn["content"] for turn in row["messages"])
            if row["query"] not in (1, 2) or not user.startswith("<image>"):
                raise ValueError("no question about a picture")
            (picture,) = row["images"]
            examples.append(
                Example(
                    id=row["id"],
                    query=row["query"],
                    picture=picture,
                    prompt=Prompt(system, user.removeprefix("<image>")),
                    answer=assistant,
                    ids=tuple(row["ids"]),
                    truth=tuple(row["truth"] if row["query"] == 2 else true_cells(row["truth"])),
                )
            )
        except CorpusError as error:
            raise CorpusError(f"{path}, line {number}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(
                f"{path}, line {number}: {error}; write the file with export(style='swift')"
            ) from error
    return examples


def _row(example: Example, style: str) -> dict[str, Any]:
    tag = "<image>" if style == "swift" else ""
    chat = [
        {"role": "system", "content": example.prompt.system},
        {"role": "user", "content": tag + example.prompt.user},
        {"role": "assistant", "content": example.answer},
    ]
    turns = {"messages": chat} if style == "swift" else {"prompt": chat[:2], "completion": chat[2:]}
    return {
        "id": example.id,
        "query": example.query,
        **turns,
        "images": [example.picture],
        "ids": list(example.ids),
        "truth": list(example.truth) if example.query == 2 else _blank_rows(example.truth),
    }


def _blank_rows(ids: Sequence[Any]) -> list[dict[str, str]]:
    """Rows of Query 1 in the type of Query 2's: readers of Arrow take no other in one column."""
    return [{"region": str(id), **dict.fromkeys(WORDS, "")} for id in ids]
