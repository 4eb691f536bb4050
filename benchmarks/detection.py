"""How well the embedded detector tells vocoded speech from real: equal error rates by split.

    python benchmarks/detection.py

writes ``benchmarks/results/detection.json``: on val and test, seen and unseen vocoders apart, per
family, with 95 % intervals by source group, and how well `p_spoof` is calibrated. The temperature
was fitted on val. ``benchmarks/table.py`` renders it.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_results

from specsegdiff.api import default_detector
from specsegdiff.data.audio import load_audio
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.metrics.detection import eer, eer_by_group
from specsegdiff.models.detector import p_spoof, spoof_column
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST


@dataclass(frozen=True)
class Scored:
    """A recording and what the detector says of it."""

    group: str
    pair: Pair | None
    logits: torch.Tensor


def score(detector: Wav2Vec2AASIST, pairs: Sequence[Pair]) -> list[Scored]:
    """All fakes of the pairs, and each real recording once, cut as its longest pair is."""
    reals: dict[Path, Pair] = {}
    for pair in pairs:
        known = reals.get(pair.real)
        if known is None or (pair.n_samples or 0) > (known.n_samples or 0):
            reals[pair.real] = pair
    found = []
    with torch.no_grad():
        for pair, path in [(p, p.real) for p in reals.values()] + [(p, p.fake) for p in pairs]:
            wave = load_audio(path)[: pair.n_samples]
            kept = pair if path == pair.fake else None
            found.append(Scored(pair.source_group or pair.id, kept, detector(wave[None])[0]))
    return found


def rate(scored: Sequence[Scored], detector: Wav2Vec2AASIST) -> float:
    """Equal error rate in percent."""
    column = spoof_column(detector)
    logits = torch.stack([s.logits for s in scored])
    spoof = torch.tensor([s.pair is not None for s in scored])
    return 100 * eer(logits[:, column] - logits[:, 1 - column], spoof)


def interval(scored: Sequence[Scored], detector: Wav2Vec2AASIST) -> list[float]:
    """Rate and its 95 % bootstrap interval; whole source groups are drawn, reals and fakes."""
    return compared([scored], [], detector)


def compared(
    ours: Sequence[Sequence[Scored]],
    others: Sequence[Sequence[Scored]],
    detector: Wav2Vec2AASIST,
    *,
    resamples: int = 500,
) -> list[float]:
    """Mean rate of some runs less that of others, in points, and its 95 % bootstrap interval: the
    same source groups are drawn for all runs. Without others, the mean rate."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(ours[0]):
        places[item.group].append(place)
    groups = sorted(places)

    def mean(runs: Sequence[Sequence[Scored]], drawn: list[int]) -> float:
        rates = [rate([run[place] for place in drawn], detector) for run in runs]
        return sum(rates) / len(rates) if rates else 0.0

    everything = list(range(len(ours[0])))
    generator = torch.Generator().manual_seed(0)
    values: list[float] = []
    while len(values) < resamples:
        picked = torch.randint(len(groups), (len(groups),), generator=generator).tolist()
        drawn = [place for number in picked for place in places[groups[number]]]
        if len({ours[0][place].pair is None for place in drawn}) == 2:
            values.append(mean(ours, drawn) - mean(others, drawn))
    low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    return [mean(ours, everything) - mean(others, everything), low, high]


def calibration(scored: Sequence[Scored], detector: Wav2Vec2AASIST, bins: int = 10) -> float:
    """Expected calibration error in percent (Guo et al. 2017, Eq. 3), both classes weighing the
    same."""
    chance = p_spoof(
        torch.stack([s.logits for s in scored]),
        labels=detector.labels,
        temperature=detector.config.temperature,
    )
    spoof = torch.tensor([float(s.pair is not None) for s in scored])
    weight = torch.where(spoof > 0, 0.5 / spoof.sum(), 0.5 / (1 - spoof).sum())
    place = (chance * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins).index_add_(0, place, weight * (spoof - chance))
    return 100 * float(gap.abs().sum())


def summary(scored: Sequence[Scored], detector: Wav2Vec2AASIST) -> dict[str, Any]:
    """Everything about one split."""
    reals = [s for s in scored if s.pair is None]
    fakes = [s for s in scored if s.pair is not None]
    parts = {
        "all": fakes,
        "seen": [s for s in fakes if s.pair and s.pair.vocoder_seen],
        "unseen": [s for s in fakes if s.pair and not s.pair.vocoder_seen],
    }
    column = spoof_column(detector)
    logits = torch.stack([s.logits for s in scored])
    spoof = torch.tensor([s.pair is not None for s in scored])
    return {
        "real": len(reals),
        "eer": {
            name: {"fakes": len(part), "percent": interval([*reals, *part], detector)}
            for name, part in parts.items()
            if part
        },
        "eer_by_family": {
            family: 100 * value
            for family, value in eer_by_group(
                logits[:, column] - logits[:, 1 - column],
                spoof,
                [s.pair.family if s.pair else "" for s in scored],
            ).items()
        },
        "calibration_error": calibration(scored, detector),
    }


def main() -> None:
    """Score both splits and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--model", help="folder of a detector, by default the embedded one")
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--out", type=Path, default=RESULTS / "detection.json")
    options = parser.parse_args()
    detector = Wav2Vec2AASIST.from_pretrained(options.model) if options.model else None
    detector = detector or default_detector()
    everything = read_manifest(options.pairs)
    result: dict[str, Any] = {"meta": provenance(detector, temperature=detector.config.temperature)}
    for split in options.splits:
        scored = score(detector, [p for p in everything if p.split == split])
        result[split] = summary(scored, detector)
        print(split, json.dumps(result[split], indent=1), flush=True)
    write_results(options.out, result)


if __name__ == "__main__":
    main()
