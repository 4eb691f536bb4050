"""Options that several commands share, and what they stand for."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from specsegdiff.export import OnnxSegmenter
    from specsegdiff.models.segdiff import SpecSegDiff

Model = Annotated[
    str | None, typer.Option(help="Folder or Hub id of a model; by default the embedded one.")
]
Draws = Annotated[
    int | None,
    typer.Option(
        min=1, help="Masks to average; they differ from two steps on. Default: the model's."
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps a draw; default: the model's.")
]
Seed = Annotated[int, typer.Option(help="Seed; the same seed gives the same result.")]
Device = Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, cuda:1, ...")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else; errors are JSON, too.")
]


def load_model(source: str | None) -> "SpecSegDiff | None":
    """Model of an option `Model`; None is the embedded one."""
    from specsegdiff.models.segdiff import SpecSegDiff

    return None if source is None else SpecSegDiff.from_pretrained(source)


def load_segmenter(source: str | None) -> "SpecSegDiff | OnnxSegmenter | None":
    """The same, for commands that run graphs of ``specsegdiff export`` too."""
    from specsegdiff.export import ENCODER_NAME, OnnxSegmenter

    # pathlib raises on what can be no path
    if source is not None and os.path.isfile(f"{source}/{ENCODER_NAME}"):  # noqa: PTH113
        return OnnxSegmenter(source)
    return load_model(source)


def check_device(name: str) -> None:
    """Raise `ConfigError` where nothing can be computed on a device."""
    from specsegdiff import sampling

    sampling.check_device(name)
