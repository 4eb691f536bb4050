"""A detector, or a frame scorer, on a spoofing corpus: error rates as the official scripts give
them.

    python benchmarks/asvspoof.py asvspoof2019 ROOT --asv-scores ASVspoof2019.LA.asv.eval...txt
    python benchmarks/asvspoof.py asvspoof2021-LA ROOT
    python benchmarks/asvspoof.py asvspoof5 ROOT
    python benchmarks/asvspoof.py partialspoof ROOT --frames runs/mfpt/frames

writes ``benchmarks/results/CORPUS.json``: the equal error rate over the evaluation set and by
system, ASVspoof's and ours, the minimum t-DCF where scores of the speaker verification are given,
and for PartialSpoof the error rate of frames of 20 ms. No table shows these files: none of the
corpora comes with the library.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_results

from specsegdiff.api import DEFAULT_DETECTOR, asset
from specsegdiff.data.audio import load_audio
from specsegdiff.data.protocols import (
    Trial,
    asv_scores,
    asvspoof5,
    asvspoof2019,
    asvspoof2021,
    partialspoof,
)
from specsegdiff.metrics.detection import asv_errors, asvspoof_eer, eer, min_tdcf
from specsegdiff.metrics.localisation import frame_eer, segment_f1
from specsegdiff.models.detector import spoof_column
from specsegdiff.models.frame_head import FrameScorer
from specsegdiff.models.loading import load_detector

CORPORA: dict[str, Callable[[str], list[Trial]]] = {
    "asvspoof2019": partial(asvspoof2019, subset="eval"),
    "asvspoof2021-LA": lambda root: [t for t in asvspoof2021(root, "LA") if t.part == "eval"],
    "asvspoof2021-DF": lambda root: [t for t in asvspoof2021(root, "DF") if t.part == "eval"],
    "asvspoof5": partial(asvspoof5, subset="eval"),
    "partialspoof": partial(partialspoof, subset="eval"),
}
"The official evaluation set of each corpus."


@torch.no_grad()
def recordings(
    detector: Any, trials: Sequence[Trial], *, edition: int, asv: str | None
) -> dict[str, Any]:
    """Rates over all recordings and by system."""
    column = spoof_column(detector)
    logits = torch.cat([detector(load_audio(trial.path)[None]) for trial in trials])
    scores = logits[:, column] - logits[:, 1 - column]
    spoof = torch.tensor([trial.is_spoof for trial in trials])
    found: dict[str, Any] = {
        "recordings": len(trials),
        "asvspoof_eer": 100 * asvspoof_eer(scores, spoof),
        "eer": 100 * eer(scores, spoof),
        "asvspoof_eer_by_system": {},
    }
    for system in sorted({trial.system for trial in trials if trial.is_spoof}):
        keep = torch.tensor([not t.is_spoof or t.system == system for t in trials])
        rate = 100 * asvspoof_eer(scores[keep], spoof[keep])
        found["asvspoof_eer_by_system"][system] = rate
    if asv:
        errors = asv_errors(*asv_scores(asv))
        found["min_tdcf"] = min_tdcf(scores, spoof, errors, edition=edition)  # type: ignore[arg-type]
    return found


@torch.no_grad()
def frames(scorer: FrameScorer, trials: Sequence[Trial]) -> dict[str, Any]:
    """Rates over the frames of all recordings."""
    backbone, scores, labels = scorer.config.backbone, [], []
    for trial in trials:
        logits = scorer.logits(load_audio(trial.path)[None])[0]
        options = {"hop": backbone.hop, "reach": backbone.reach, "n_frames": len(logits)}
        scores.append(logits)
        labels.append(trial.frame_labels(**options))
    score = torch.nn.utils.rnn.pad_sequence(scores, batch_first=True)
    truth = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
    lengths = torch.tensor([len(row) for row in scores])
    valid = torch.arange(score.shape[1]) < lengths[:, None]
    return {
        "frame_eer": 100 * frame_eer(score, truth, valid=valid),
        "segment": segment_f1(score, truth, threshold=0.0, valid=valid)._asdict(),
    }


def main() -> None:
    """Score a corpus and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", choices=sorted(CORPORA))
    parser.add_argument("root", help="folder of the corpus, as it is unpacked")
    parser.add_argument("--model", help="folder of a detector, by default the embedded one")
    parser.add_argument("--frames", help="folder of a frame scorer, for partialspoof")
    parser.add_argument("--asv-scores", help="the organisers' scores, for the t-DCF")
    parser.add_argument("--every", type=int, default=1, help="keep every n-th recording")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trials = CORPORA[options.corpus](options.root)[:: options.every]
    detector = load_detector(options.model or asset(DEFAULT_DETECTOR))
    edition = 2021 if options.corpus.startswith("asvspoof2021") else 2019
    result: dict[str, Any] = {
        "meta": provenance(detector, corpus=options.corpus, every=options.every),
        **recordings(detector, trials, edition=edition, asv=options.asv_scores),
    }
    if options.frames:
        result["frames"] = frames(FrameScorer.from_pretrained(options.frames), trials)
    out = options.out or RESULTS / f"{options.corpus}.json"
    write_results(out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
