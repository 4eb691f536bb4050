"""The command that asks about a part of a recording."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from specsegdiff.cli.options import (
    AsJson,
    Device,
    Draws,
    Model,
    Seed,
    Steps,
    check_device,
    load_segmenter,
)
from specsegdiff.errors import ConfigError

Task = Literal["ask", "detect", "classify", "localise", "ground"]


def ask(
    source: Annotated[
        Path, typer.Argument(help="Recording, or the folder that explain --out wrote.")
    ],
    question: Annotated[
        str | None,
        typer.Argument(help="Cell ('7'), region ('R3') or phrase ('high-frequency vowels')."),
    ] = None,
    t0: Annotated[float | None, typer.Option(help="Start of a box in s.")] = None,
    t1: Annotated[float | None, typer.Option(help="End of the box in s.")] = None,
    f0: Annotated[float | None, typer.Option(help="Lowest frequency of the box in Hz.")] = None,
    f1: Annotated[float | None, typer.Option(help="Highest frequency of the box in Hz.")] = None,
    task: Annotated[
        Task,
        typer.Option(
            help="ask: what is there; detect: is it synthetic; classify: what damage; "
            "localise: where is the mask; ground: text and regions in one."
        ),
    ] = "ask",
    draws: Draws = None,
    steps: Steps = None,
    seed: Seed = 0,
    model: Model = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Answer on a recording, or on a part of it; every number in the answer can be computed again.

    Settings of the model are for a recording; a folder has its own.
    """
    from specsegdiff import api
    from specsegdiff.explanation import Explanation
    from specsegdiff.narration import answers

    asked = (question, t0, t1, f0, f1)
    if any(part is not None for part in asked) and task not in ("ask", "localise"):
        raise ConfigError(f"--task {task} is about the whole recording; leave the question out")
    if source.is_dir():
        explanation = Explanation.load(source)
    else:
        check_device(device)
        explanation = api.explain(
            source,
            model=load_segmenter(model),
            draws=draws,
            steps=steps,
            seed=seed,
            device=device,
            progress=False if as_json else None,
        )
    if task == "ask":
        answer = answers.ask(explanation, question, t0=t0, t1=t1, f0=f0, f1=f1)
    elif task == "localise":
        answer = answers.localise(explanation, question, t0=t0, t1=t1, f0=f0, f1=f1)
    else:
        whole = {"detect": answers.detect, "classify": answers.classify, "ground": answers.ground}
        answer = whole[task](explanation)
    print(answer.to_json() if as_json else answer)
