"""The command that serves the page."""

import time
from typing import Annotated

import typer


def demo(
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this one lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; default: a free one from 7860 on.")
    ] = None,
    max_seconds: Annotated[float, typer.Option(help="Longest recording that it takes.")] = 60.0,
    max_mb: Annotated[float, typer.Option(help="Largest file that it takes, in MB.")] = 20.0,
) -> None:
    """Serve a page for the browser: drop or record a file, look, listen, click a cell and read.

    Recordings stay on this machine, and are removed once they were read. Ctrl+C ends it.
    """
    from specsegdiff import api
    from specsegdiff.demo.page import serving
    from specsegdiff.demo.view import Limits

    limits = Limits(seconds=max_seconds, megabytes=max_mb)
    with serving(api.explain, limits=limits, host=host, port=port) as page:
        print(f"open {page.local_url} in a browser; Ctrl+C ends it", flush=True)
        while True:
            time.sleep(3600)
