"""Commands that train."""

import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from specsegdiff.cli.options import AsJson
from specsegdiff.cli.output import make_folder
from specsegdiff.errors import DependencyError

train_app = typer.Typer(help="Train a model.", rich_markup_mode=None)


def _add_training(what: str, text: str) -> None:
    """A command that trains what a module of `specsegdiff.train` trains; they differ in nothing
    else."""

    @train_app.command(what, help=f"{text} Paths in the YAML start here.")
    def command(
        config: Annotated[Path, typer.Option(help="YAML of the run, see configs/.")],
        out: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and the model.")],
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
        ] = False,
        seed: Annotated[int | None, typer.Option(help="Overrides the seed of the YAML.")] = None,
        accelerator: Annotated[
            str, typer.Option(help="Lightning's accelerator: auto, cpu, gpu.")
        ] = "auto",
        as_json: AsJson = False,
    ) -> None:
        module = _module(what)
        settings = module.read_config(config, **({} if seed is None else {"seed": seed}))
        make_folder(out)
        # what Lightning prints is no JSON
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            written = module.train(settings, out, resume=resume, accelerator=accelerator)
        # a narrator's stage says where it wrote what; the others return the model
        _tell(written if what == "narrator" else out / "model", as_json=as_json)


@train_app.command("average")
def average(
    models: Annotated[list[str], typer.Argument(help="Folders or hub ids of segmenters.")],
    out: Annotated[Path, typer.Option(help="Folder of the new model.")],
    as_json: AsJson = False,
) -> None:
    """Write the mean of the weights of segmenters whose runs started from the same ones."""
    module, segmenter = _module("average"), _module("segmenter")
    mean = module.average([segmenter.starting_model(source) for source in models])
    make_folder(out)
    mean.save_pretrained(out, half=True)
    _tell(out, as_json=as_json)


def _tell(written: Path, *, as_json: bool) -> None:
    print(json.dumps({"written": str(written)}) if as_json else f"wrote {written}")


def _module(what: str) -> Any:
    try:
        return importlib.import_module(f"specsegdiff.train.{what}")
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"training needs {error.name}; pip install 'specsegdiff[train]'"
        ) from error


_add_training(
    "segmenter", "Train a SpecSegDiff or ADDSegDiff; the averaged model lands in OUT/model."
)
_add_training(
    "detector", "Train a Wav2Vec2-AASIST; the averaged, calibrated model lands in OUT/model."
)
_add_training(
    "mfpt",
    "Post-train a detector on splices; it lands in OUT/model, its frame scorer in OUT/frames.",
)
_add_training(
    "narrator",
    "Train one stage of a vision-language narrator; its adapter lands in OUT/adapter, the small "
    "model of stage base in OUT/model.",
)
