"""Any method, on any pairs, for any detector: against true masks and against the detector.

A method is a callable from waves ``(b, n)`` to maps ``(b, f, t)``, a detector one from waves to
logits ``(b, classes)``. With one of each,

>>> from specsegdiff import Stft, asset
>>> from specsegdiff.data.pairs import Pair
>>> from specsegdiff.models.aasist import AASIST
>>> my_method, my_detector = Stft().magnitude, AASIST.from_preset("tiny").eval()

three lines measure them on pairs of your own (`paired_folder` and `read_manifest` list many):

>>> pairs = [Pair("mine", asset("example-real.flac"), asset("example.flac"))]
>>> rows = measure({"loud bins": my_method}, pairs, detector=my_detector)
>>> {entry["method"]: round(entry["overall"]["gdice"][0]) for entry in entries(rows)}
{'true mask': 100, 'loud bins': 8}

``measurement`` is the loop, ``scoring`` a map against a mask, ``cost`` seconds and memory,
``journal`` the file that a killed run goes on from, ``fingerprints`` what tells its methods apart,
``methods`` what packages register by name, and
``shipped`` what this one brings. `score_maps` is the part of it that `specsegdiff evaluate` uses.
"""

from specsegdiff.benchmark.measurement import (
    FAITHFULNESS,
    MEASURES,
    SIMILARITIES,
    TRUTH,
    Ranking,
    entries,
    measure,
    rank,
    similarities,
)
from specsegdiff.benchmark.methods import available, load_methods
from specsegdiff.benchmark.scoring import SCORES, Method, Row, score_maps, summarise
from specsegdiff.benchmark.shipped import load_detector

__all__ = [
    "FAITHFULNESS",
    "MEASURES",
    "SCORES",
    "SIMILARITIES",
    "TRUTH",
    "Method",
    "Ranking",
    "Row",
    "available",
    "entries",
    "load_detector",
    "load_methods",
    "measure",
    "rank",
    "score_maps",
    "similarities",
    "summarise",
]
