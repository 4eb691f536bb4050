"""What all tests share: one thread, and axes and types checked at every call."""

from collections.abc import Iterator

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
