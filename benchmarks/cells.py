"""Top-3 cells of a 4 x 4 grid: heatmaps and controls against the cells that the true mask covers.

    python benchmarks/cells.py

writes ``benchmarks/results/cells.json``: R@3, nDCG@3 and mAP on val and test, with 95 % intervals
by source group. What a heatmap is pooled by, its mean or the share of its own mask, is chosen on
val. Attributions take seconds a map, so they are measured on every fifth pair of test, pooled by
their size. ``benchmarks/table.py`` renders it.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from specsegdiff.api import default_model
from specsegdiff.benchmark import load_detector, load_methods
from specsegdiff.benchmark.scoring import Case, load_case
from specsegdiff.cells import RegionGrid, pool, top_k, truth_cells
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.explanation import Explainer
from specsegdiff.frontend import Stft, log_magnitude
from specsegdiff.masks import MaskConfig, smooth
from specsegdiff.metrics import bootstrap_interval
from specsegdiff.metrics.ranking import evaluate_ranking
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.sampling import sample

MASKS, STFT, K = MaskConfig(), Stft(), 3
RECALL = f"recall_at_{K}"
MEAN, SHARE = "SpecSegDiff, mean heat", "SpecSegDiff, share of its mask"
ADD = "ADDSegDiff, mean heat"
LOW_ENERGY = "low energy, share of its lowest 5 %"
ATTRIBUTIONS = {
    "AttnLRP": "attnlrp",
    "GradientSHAP": "gradientshap",
    "integrated gradients": "integrated-gradients",
}
"Attributions, and the names that they are registered under."

Lists = dict[str, dict[str, list[tuple[str, ...]]]]
"Rankings of all cells by method and pair; the scores of several are averaged."

DRAWS = 100
"Random rankings of each pair."


def grid_of(case: Case) -> RegionGrid:
    """The grid that prediction and truth share."""
    return RegionGrid(STFT.axes(len(case.fake)))


def ranking(scores: Tensor) -> tuple[str, ...]:
    """All cells, highest score first."""
    return top_k(scores, len(scores))


def constant_cells(training: Sequence[Pair]) -> dict[str, tuple[str, ...]]:
    """Cells by how often they are among the true ones of the training split, by vocoder, and under
    '' of all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in training:
        case = load_case(pair, masks=MASKS, stft=STFT)
        for name in ("", pair.vocoder):
            counts[name].update(truth_cells(case.truth, grid_of(case), k=K))
    return {
        name: ranking(torch.tensor([float(count[str(id)]) for id in range(1, 17)]))
        for name, count in counts.items()
    }


def random_cells(id: str) -> list[tuple[str, ...]]:
    """Random rankings of a pair's 16 cells."""
    generator = torch.Generator().manual_seed(int.from_bytes(id.encode()[-6:]))
    return [ranking(scores) for scores in torch.rand(DRAWS, 16, generator=generator)]


def masks_of_others(pairs: Sequence[Pair], covers: Mapping[str, Tensor]) -> Lists:
    """Rankings by the mean mask of other vocoders on the same recording, where there are any.

    ``covers`` has the share of each cell that a pair's true mask covers, by its id.
    """
    found: Lists = defaultdict(dict)
    for pair in pairs:
        same = [p for p in pairs if p.real == pair.real and p.vocoder != pair.vocoder]
        foreign = [p for p in same if p.family != pair.family]
        for name, known in (("other families", foreign), ("all other vocoders", same)):
            if known:
                cover = torch.stack([covers[p.id] for p in known]).mean(dim=0)
                found[f"masks of {name}, same recording"][pair.id] = [ranking(cover)]
    return found


def low_energy(case: Case, *, share: bool = True) -> tuple[str, ...]:
    """Cells with the most of the 5 % of the bins with the least smoothed magnitude, as a mask is
    pooled, or with the lowest mean level in dB.

    A mean of linear magnitudes would be that of the loudest frames.
    """
    quiet = -log_magnitude(smooth(STFT.magnitude(case.fake)[None], MASKS)[0])
    return ranking(pool(case.top(quiet).float() if share else quiet, grid_of(case)))


def predictions(
    case: Case,
    model: SpecSegDiff,
    others: Mapping[str, Explainer],
    constant: Mapping[str, tuple[str, ...]],
    *,
    draws: int,
    steps: int,
) -> dict[str, list[tuple[str, ...]]]:
    """Rankings of all cells of one pair by every method that sees the fake alone."""
    grid = grid_of(case)
    condition = model.condition(case.fake[None])
    heat = sample(model, condition, draws=draws, steps=steps).mean[0]
    found = {
        MEAN: [ranking(pool(heat, grid))],
        SHARE: [ranking(pool(case.top(heat).float(), grid))],
    }
    for name, explainer in others.items():
        found[name] = [ranking(pool(explainer(case.fake[None])[0].abs(), grid))]
    found |= {
        "random": random_cells(case.pair.id),
        "constant cells of train": [constant[""]],
        LOW_ENERGY: [low_energy(case)],
        "low energy, mean level": [low_energy(case, share=False)],
    }
    if case.pair.vocoder in constant:
        found["constant cells of the vocoder in train"] = [constant[case.pair.vocoder]]
    return found


def measure(
    pairs: Sequence[Pair],
    model: SpecSegDiff,
    others: Mapping[str, Explainer],
    slow: Mapping[str, Explainer],
    constant: Mapping[str, tuple[str, ...]],
    *,
    every: int,
    **how: int,
) -> list[dict[str, Any]]:
    """Rows of methods with their scores, and those of other vocoders on the same recording; those
    of ``slow`` explainers on every n-th pair."""
    found: Lists = defaultdict(dict)
    truths, covers = {}, {}
    for done, pair in enumerate(pairs):
        case = load_case(pair, masks=MASKS, stft=STFT)
        truths[pair.id] = truth_cells(case.truth, grid_of(case), k=K)
        covers[pair.id] = pool(case.truth.float(), grid_of(case))
        some = {**others, **slow} if done % every == 0 else others
        for name, rankings in predictions(case, model, some, constant, **how).items():
            found[name][pair.id] = rankings
        if done % 20 == 0:
            print(f"{done} of {len(pairs)}", flush=True)
    found |= masks_of_others(pairs, covers)
    for pair in pairs:
        found["oracle"][pair.id] = [ranking(covers[pair.id])]
    by_id = {pair.id: pair for pair in pairs}
    rows = []
    for name, ranked in found.items():
        row: dict[str, Any] = {"method": name}
        for part, wanted in (("all", (True, False)), ("seen", (True,)), ("unseen", (False,))):
            ids = [id for id in ranked if by_id[id].vocoder_seen in wanted]
            if not ids:
                continue
            runs = [
                evaluate_ranking(list(each), [truths[i] for i in ids], k=K)
                for each in zip(*(ranked[i] for i in ids), strict=True)
            ]
            groups = [by_id[i].source_group or i for i in ids]
            row[part] = {"pairs": len(ids)}
            for score in runs[0]:
                values = torch.stack([run[score] for run in runs]).mean(dim=0)
                row[part][score] = [float(values.mean()), *bootstrap_interval(values, groups)]
        rows.append(row)
    return rows


def main() -> None:
    """Measure val, choose how to pool, measure test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--attributions-every", type=int, default=5, help="on every n-th of test")
    parser.add_argument("--out", type=Path, default=RESULTS / "cells.json")
    options = parser.parse_args()
    model, everything = default_model(), read_manifest(options.pairs)
    constant = constant_cells([p for p in everything if p.split == "train"])
    print("constant cells", constant[""][:K], flush=True)
    how = {"draws": options.draws, "steps": options.steps}
    detector = load_detector("embedded")
    others = {ADD: load_methods(["addsegdiff"], detector)["addsegdiff"]}
    methods = load_methods(list(ATTRIBUTIONS.values()), detector)
    slow = {"test": {name: methods[known] for name, known in ATTRIBUTIONS.items()}, "val": {}}
    every = options.attributions_every
    result: dict[str, Any] = {"meta": provenance(model, k=K, attributions_every=every, **how)}
    for split in ("val", "test"):
        part = [p for p in everything if p.split == split]
        result[split] = measure(part, model, others, slow[split], constant, every=every, **how)
        for row in result[split]:
            print(split, row["method"], row["all"]["pairs"], row["all"][RECALL], flush=True)
    ours = {row["method"]: row for row in result["val"] if row["method"] in (MEAN, SHARE)}
    result["meta"]["chosen"] = max(ours, key=lambda name: ours[name]["all"][RECALL][0])
    write_results(options.out, result)


if __name__ == "__main__":
    main()
