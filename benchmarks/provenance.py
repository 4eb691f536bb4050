"""What a reader needs to repeat a result: commit, model, device, versions."""

import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from specsegdiff.hub import weights_hash
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.sampling import fastest_dtype


def provenance(model: SpecSegDiff | Wav2Vec2AASIST, **more: object) -> dict[str, object]:
    """Plain data for the ``meta`` field of a results file."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "precision": str(fastest_dtype("cpu")),
        "model": model.name,
        "weights_sha256": weights_hash(model),
        "versions": {name: version(name) for name in ("torch", "diffusers", "numpy")},
        **more,
    }
