"""The server of the page: a thin layer of gradio, which reads uploads alone and keeps nothing."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specsegdiff.demo.view import Limits, complaint, examine, offer, result
from specsegdiff.errors import ConfigError, DependencyError, SpecSegDiffError
from specsegdiff.explanation import Explanation

if TYPE_CHECKING:
    import gradio as gr

SWEEP = (60, 1800)
"""Seconds between two looks for uploads that nobody waits for any more, and the age at which they
go: a tab that was closed while it queued leaves one."""

TRANSPORT = 10
"""Multiple of `Limits.megabytes` at which an upload is cut off; below, the page itself says what is
wrong."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'"
)
"What the browser may load: this server and what the page holds, nothing from elsewhere."

STYLE = """
:focus-visible { outline: 3px solid #005fcc !important; outline-offset: 2px;
  box-shadow: 0 0 0 6px #fff; }
.plane { position: relative; max-width: 1210px; }
.plane img { display: block; width: 100%; margin: 0; }
.plane .cell { position: absolute; margin: 0; padding: 0 0 0 3px; cursor: pointer; color: #000;
  font: bold 11px sans-serif; text-shadow: 0 0 2px #fff, 0 0 2px #fff; background: transparent;
  border: 1px dotted #777; text-align: left; line-height: 1; transition: none; }
.plane button.cell { display: flex; align-items: flex-end; padding-bottom: 3px; }
.plane .cell.chosen { border: 3px solid #000; box-shadow: inset 0 0 0 2px #fff; }
.plane .cell:focus-visible { outline-offset: -3px; box-shadow: inset 0 0 0 6px #fff; z-index: 1; }
.words section { border-left: 4px solid currentColor; padding-left: 1em; margin: 1em 0; }
.sounds figure { display: inline-block; margin: 4px 12px 4px 0; }
.complaint { border: 3px solid #b00020; padding: 0.5em 1em; }
"""

CHOOSE = """
element.addEventListener('click', (event) => {
  const place = event.target.closest('[data-cell]');
  if (!place) return;
  for (const other of element.querySelectorAll('[data-cell]')) {
    const chosen = other.dataset.cell === place.dataset.cell;
    other.classList.toggle('chosen', chosen);
    if (other.matches('button')) other.setAttribute('aria-pressed', chosen);
  }
  for (const words of element.querySelectorAll('[data-words]'))
    words.hidden = words.dataset.words !== place.dataset.cell;
});
"""
"Shows the words of the cell that was clicked, or chosen by a key."


@contextmanager
def serving(
    explain: Callable[..., Explanation],
    *,
    limits: Limits,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator["gr.Blocks"]:
    """Serve the page while the block runs; its address is ``local_url`` of what is given.

    ``explain`` takes a path and ``progress``, as `specsegdiff.explain` does. Without ``port``, a
    free one is taken. Uploads lie in a temporary folder until they were read; it goes at the end.
    Raises `DependencyError` without gradio, and `ConfigError` where the address cannot be had.
    """
    try:
        import gradio as gr
        from starlette.middleware import Middleware
    except ImportError as error:
        raise DependencyError(
            f"the page needs {error.name}; pip install 'specsegdiff[demo]'"
        ) from error
    with (
        tempfile.TemporaryDirectory(prefix="specsegdiff-demo-") as folder,
        _environment(GRADIO_TEMP_DIR=str(Path(folder).resolve()), GRADIO_ALLOWED_PATHS=""),
    ):
        page = build(explain, limits=limits, uploads=Path(folder).resolve())
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                inline=False,
                prevent_thread_lock=True,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                pwa=False,
                mcp_server=False,
                footer_links=[],
                max_file_size=round(TRANSPORT * 1e6 * limits.megabytes),
                theme=gr.themes.Default(font="sans-serif", font_mono="monospace"),
                css=STYLE,
                app_kwargs={"middleware": [Middleware(_Fence)]},
            )
        except OSError as error:
            raise ConfigError(
                f"cannot serve a page on {host}, port {port or 'any'} ({error}); "
                "choose another --host or --port"
            ) from error
        try:
            yield page
        finally:
            page.close(verbose=False)


def build(explain: Callable[..., Explanation], *, limits: Limits, uploads: Path) -> "gr.Blocks":
    """Lay out the page; ``uploads`` is the folder that uploaded files lie in until they were
    read."""
    import gradio as gr

    tracker = gr.Progress()

    def show(path: str | None, progress: gr.Progress = tracker) -> Iterator[tuple[Any, ...]]:
        if path is None:
            yield "", "", None
            return
        file = Path(path)
        try:
            explanation = examine(
                file,
                explain,
                limits=limits,
                progress=lambda done, total: progress((done, total), unit="passes"),
            )
        except SpecSegDiffError as error:
            yield complaint(error, file), "", None
            return
        finally:
            forget(file, uploads)
        yield result(explanation), "<p>Writing the report ...</p>", None
        yield gr.skip(), offer(explanation), gr.skip()

    with gr.Blocks(title="SpecSegDiff", analytics_enabled=False, delete_cache=SWEEP) as page:
        gr.HTML(
            "<h1>Where does a recording resemble synthetic speech?</h1>"
            f"<p>Recordings stay on the machine that runs this page, and nothing is kept. "
            f"At most {limits}.</p>"
        )
        recording = gr.Audio(
            sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[]
        )
        shown = gr.HTML(js_on_load=CHOOSE, min_height=80)
        links = gr.HTML()
        gr.on(
            [recording.upload, recording.stop_recording],
            show,
            inputs=recording,
            outputs=[shown, links, recording],
            show_progress_on=shown,
            trigger_mode="multiple",
            api_visibility="private",
        )

        def end(request: gr.Request) -> None:
            # gradio would hold what it sent to this tab for as long as the server runs
            page.state_holder.session_data.pop(request.session_hash or "", None)

        page.unload(end)
    return page


def forget(file: Path, uploads: Path) -> None:
    """Remove an uploaded file with the folder of its own that it lies in, and nothing else."""
    if file.parent.parent == uploads:
        shutil.rmtree(file.parent, ignore_errors=True)


class _Fence:
    """Tells the browser by `POLICY` to load nothing from elsewhere (an ASGI application)."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(
        self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        async def fenced(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                more = [(b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self.app(scope, receive, fenced)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables of the environment, as gradio wants some of its settings; they go back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
