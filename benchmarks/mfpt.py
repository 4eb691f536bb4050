"""What mix-frame post-training gains: error rates before and after it, and what its frames find.

    python benchmarks/mfpt.py

trains from ``configs/detector/mfpt-small.yaml`` with each seed and share of the training data, with
both stages and with the second alone, and writes ``benchmarks/results/mfpt.json``:

- the detector's equal error rate on test, seen and unseen vocoders apart, with 95 % intervals by
  source group; the row ``before`` is the detector that all runs start from;
- the mean rate over the seeds, and its difference to that of ``before`` and of the second stage
  alone, on the same resampled recordings;
- of the frame scorer, on spliced test clips: frame error rate and segment F1, intervals by clip;
- on splices within one class: the error rate of telling injected frames from others, and, in real
  speech, frames with a join from others. Half is what a scorer of synthesis has there; one that
  finds cuts does better.

Finished runs are read from their folders, and interrupted ones go on.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from detection import Scored, compared, rate, score
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.data.protocols import pair_trials
from specsegdiff.data.splice import SpliceConfig
from specsegdiff.errors import ConfigError
from specsegdiff.metrics.localisation import frame_eer, segment_f1
from specsegdiff.models.frame_head import FrameScorer
from specsegdiff.models.loading import load_detector
from specsegdiff.train.mfpt import (
    VALIDATION_SEED,
    MFPTConfig,
    read_config,
    starting_detector,
    train,
)
from specsegdiff.train.splices import Pool, SplicedClips

ROOT = Path(__file__).resolve().parent.parent
PER_SEGMENT = 8
"Frames of a coarser segment, 160 ms."


def parts(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """All pairs, and those of vocoders that the training split holds or lacks."""
    found = {
        "all": list(pairs),
        "seen": [p for p in pairs if p.vocoder_seen],
        "unseen": [p for p in pairs if not p.vocoder_seen],
    }
    return {name: part for name, part in found.items() if part}


def judged(detector: Any, pairs: Sequence[Pair]) -> dict[str, list[Scored]]:
    """Scores of all recordings, by part; each has the real ones."""
    scored = score(detector.eval(), pairs)
    kept = {name: {pair.id for pair in part} for name, part in parts(pairs).items()}
    return {
        name: [s for s in scored if s.pair is None or s.pair.id in ids]
        for name, ids in kept.items()
    }


def summary(
    runs: Mapping[tuple[str, float], Sequence[Mapping[str, list[Scored]]]], detector: Any
) -> list[dict[str, Any]]:
    """Mean rate of each method and share over its seeds, and what it differs by from ``before`` and
    from the second stage alone."""
    before = runs["before", 0.0]
    found = []
    for (method, share), ours in runs.items():
        row: dict[str, Any] = {"method": method, "share": share, "seeds": len(ours)}
        against = {
            "eer": [],
            "over_before": before,
            "over_utterance": runs.get(("utterance", share)),
        }
        for name, others in against.items():
            if others is not None and (others is not ours):
                row[name] = {
                    part: compared([o[part] for o in ours], [o[part] for o in others], detector)
                    for part in ours[0]
                }
        found.append(row)
    return found


@torch.no_grad()
def splices(
    scorer: FrameScorer, pairs: Sequence[Pair], config: SpliceConfig, *, count: int
) -> dict[str, Tensor]:
    """Logits and labels of the frames of ``count`` spliced clips, each ``(b, t)``."""
    backbone = scorer.config.backbone
    frames = {"hop": backbone.hop, "reach": backbone.reach}
    clips = SplicedClips(
        Pool(pair_trials(pairs)),
        config,
        backbone,
        reading="source_class",
        count=count,
        seed=VALIDATION_SEED,
    )
    mixed = [clips.spliced(index) for index in range(count)]
    return {
        "logits": torch.cat([scorer.logits(m.wave[None]) for m in mixed]),
        "spoof": torch.stack([m.labels(**frames) for m in mixed]),
        "injected": torch.stack([m.labels(**frames, reading="injected") for m in mixed]),
        "joins": torch.stack([m.joins(**frames) for m in mixed]),
        "in_real": torch.tensor([not m.base_is_spoof for m in mixed]),
    }


def over_clips(
    measure: Callable[[Tensor, Tensor], float],
    logits: Tensor,
    truth: Tensor,
    *,
    resamples: int = 200,
) -> list[float]:
    """A score in percent and its 95 % bootstrap interval by clip."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(resamples):
        drawn = torch.randint(len(logits), (len(logits),), generator=generator)
        if truth[drawn].any() and not truth[drawn].all():
            values.append(100 * measure(logits[drawn], truth[drawn]))
    low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    return [100 * measure(logits, truth), low, high]


def localisation(
    scorer: FrameScorer, pairs: Sequence[Pair], config: SpliceConfig, *, count: int
) -> dict[str, Any]:
    """Scores of the frame scorer on splices of opposite classes, and on the control."""

    def f1(per_segment: int) -> Callable[[Tensor, Tensor], float]:
        options = {"threshold": 0.0, "per_segment": per_segment}
        return lambda logits, truth: segment_f1(logits, truth, **options).f1

    found: dict[str, Any] = {}
    for name, part in parts(pairs).items():
        held = splices(scorer, part, replace(config, control=False), count=count)
        logits, truth = held["logits"], held["spoof"]
        found[name] = {
            "clips": count,
            "frame_eer": over_clips(frame_eer, logits, truth),
            "segment_f1": over_clips(f1(1), logits, truth),
            f"segment_f1_{PER_SEGMENT}": over_clips(f1(PER_SEGMENT), logits, truth),
        }
    held = splices(scorer, pairs, replace(config, control=True), count=count)
    real = held["in_real"]
    found["control"] = {
        "clips": count,
        "injected_eer": over_clips(frame_eer, held["logits"], held["injected"]),
        "join_eer_in_real": over_clips(frame_eer, held["logits"][real], held["joins"][real]),
    }
    return found


def run(config: MFPTConfig, out: Path) -> None:
    """Train, unless it was done before; a folder of other settings is refused."""
    done = out / "config.json"
    if not done.exists():
        train(config, out, resume=True, accelerator="cpu")
    elif json.loads(done.read_text("utf-8")) != json.loads(json.dumps(asdict(config))):
        raise ConfigError(f"{out} was trained with other settings; remove it, or choose --runs")


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", default=ROOT / "configs" / "detector" / "mfpt-small.yaml")
    parser.add_argument("--pairs", help="manifest; by default the configuration's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 1.0])
    parser.add_argument("--splices", type=int, default=300, help="clips of each kind")
    parser.add_argument("--steps", type=int, help="steps of each stage, for a dry run")
    parser.add_argument("--every", type=int, default=1, help="keep every n-th test pair")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "mfpt")
    parser.add_argument("--out", type=Path, default=RESULTS / "mfpt.json")
    options = parser.parse_args()
    base = read_config(options.config, **({"data": options.pairs} if options.pairs else {}))
    if options.steps:
        base = replace(
            base,
            post=replace(base.post, steps=options.steps, validate_every=options.steps),
            utterance=replace(base.utterance, steps=options.steps, validate_every=options.steps),
        )
    test = read_manifest(base.data, split="test")[:: options.every]
    start = starting_detector(base)
    meta = provenance(
        start, config=Path(options.config).name, pairs={n: len(p) for n, p in parts(test).items()}
    )
    runs: dict[tuple[str, float], list[dict[str, list[Scored]]]] = {
        ("before", 0.0): [judged(start, test)]
    }
    rows: list[dict[str, Any]] = []
    for share in options.shares:
        for seed in options.seeds:
            for method in ("utterance", "mfpt"):
                config = replace(base, share=share, seed=seed)
                config = config if method == "mfpt" else replace(config, post=None)
                out = options.runs / f"{method}-{share:g}-{seed}"
                run(config, out)
                row: dict[str, Any] = {"method": method, "share": share, "seed": seed}
                runs.setdefault((method, share), []).append(
                    judged(load_detector(out / "model"), test)
                )
                row["eer"] = {
                    part: rate(found, start) for part, found in runs[method, share][-1].items()
                }
                if method == "mfpt":
                    scorer = FrameScorer.from_pretrained(out / "frames")
                    row["frames"] = localisation(scorer, test, base.splice, count=options.splices)
                rows.append(row)
                print(json.dumps(row), flush=True)
    result = {"meta": meta, "rows": rows, "summary": summary(runs, start)}
    write_results(options.out, result)


if __name__ == "__main__":
    main()
