"""The command line: a thin door to the functions of the library.

Exit codes: 0 done, 1 unexpected failure, 2 wrong usage or bad input, 75 ended early on a signal
(run again to go on), 130 interrupted. With ``--json``, standard output holds one JSON document and
nothing else, and an error is one JSON document on standard error.
"""

from typing import Annotated

import typer

from specsegdiff.cli import asking, explaining, making, measuring, serving
from specsegdiff.cli.door import Door
from specsegdiff.cli.output import version_of
from specsegdiff.cli.training import train_app

app = typer.Typer(
    cls=Door, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.command()(explaining.explain)
app.command()(asking.ask)
app.command("explain-corpus")(explaining.explain_corpus)
app.add_typer(train_app, name="train")
app.command()(measuring.evaluate)
app.command()(measuring.benchmark)
app.command("make-pairs")(making.make_pairs)
app.command("make-examples")(making.make_examples)
app.command()(explaining.export)
app.command()(serving.demo)


def main() -> None:
    """Run the command line; the entry point ``specsegdiff``."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"specsegdiff {version_of('specsegdiff')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Show where a voice recording was synthesised, and how sure that is."""
