"""What all tests share: axes and types checked at every call, few threads, and small live models."""

import jaxtyping
import pytest
import torch

# before anything imports the package, since the hook works on import
jaxtyping.install_import_hook("specsegdiff", "beartype.beartype")
torch.set_num_threads(2)
