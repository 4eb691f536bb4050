"""Results files, and what a reader needs to repeat them: commit, model, device, versions."""

import json
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from specsegdiff.hub import weights_hash, write_atomic
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.sampling import fastest_dtype

RESULTS = Path(__file__).parent / "results"


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


def write_results(out: Path, content: object) -> None:
    """Write a results file, and its folder; a NaN in it is an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    print(f"wrote {out}")
