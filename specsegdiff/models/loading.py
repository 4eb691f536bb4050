"""Detectors by the class that their files name."""

from pathlib import Path

from specsegdiff import hub
from specsegdiff.errors import CheckpointError
from specsegdiff.models.aasist import AASIST
from specsegdiff.models.attm import AttMECAPA
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST

DETECTORS = (AASIST, Wav2Vec2AASIST, AttMECAPA)
"Classes that files may name; no other is built."


def load_detector(source: str | Path) -> AASIST | Wav2Vec2AASIST | AttMECAPA:
    """Load a detector: a folder or Hub id that ``save_pretrained`` wrote, or the path of a
    published AASIST without the endings of its two files.

    Raises `CheckpointError` where there is none or it is of another class, and `ConfigError` where
    its configuration is invalid.
    """
    path = Path(source)
    if path.with_name(path.name + ".safetensors").is_file():
        return AASIST.from_published(path)
    name = hub.kind_of(source, what="detector")
    for kind in DETECTORS:
        if kind.__name__ == name:
            return kind.from_pretrained(source)
    names = " or ".join(kind.__name__ for kind in DETECTORS)
    raise CheckpointError(f"{source} holds a {name!r}, expected {names}; pass a detector")
