"""What all tests share: one thread, axes and types checked at every call, and a browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype

# an int is a float, as mypy has it
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

# Before anything imports the package: the hook works on import. Only modules that compute on maps;
# beartype knows no `Self`, and typed errors of the others are tested with arguments of wrong types.
CHECKED = ["frontend", "masks", "sampling", "models.rrdb", "models.unet", "models.losses"]
jaxtyping.install_import_hook([f"specsegdiff.{name}" for name in CHECKED], "conftest.checked")
torch.set_num_threads(1)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch those checks off, to see the library's own errors on arguments of wrong types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium with a microphone that beeps."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a chromium in PATH")
    options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture
def photograph() -> Callable[..., None]:
    """Keep a picture of a page as NAME.png in the folder SPECSEGDIFF_SCREENSHOTS, where that is
    set: ``SPECSEGDIFF_SCREENSHOTS=docs/images pytest -k browser`` renews those of the docs."""

    def keep(tab: Any, name: str, **options: Any) -> None:
        if folder := os.environ.get("SPECSEGDIFF_SCREENSHOTS"):
            tab.screenshot(path=Path(folder) / f"{name}.png", **options)

    return keep
