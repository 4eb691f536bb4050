"""Top-3 cells of a 4 x 4 grid: heatmaps and controls against the cells that the true mask covers.

    python benchmarks/cells.py

writes ``benchmarks/results/cells.json``: R@3, nDCG@3 and mAP on val and test, with 95 % intervals
by source group. What a heatmap is pooled by, its mean or the share of its own mask, is chosen on
val. ``benchmarks/table.py`` renders it.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from specsegdiff.api import default_model
from specsegdiff.benchmark.scoring import Case, load_case
from specsegdiff.cells import RegionGrid, pool, top_k, truth_cells
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.frontend import Stft
from specsegdiff.masks import MaskConfig, smooth
from specsegdiff.metrics import bootstrap_interval
from specsegdiff.metrics.ranking import evaluate_ranking
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.sampling import sample

MASKS, STFT, K = MaskConfig(), Stft(), 3
RECALL = f"recall_at_{K}"
MEAN, SHARE = "SpecSegDiff, mean heat", "SpecSegDiff, share of its mask"


def grid_of(case: Case) -> RegionGrid:
    """The grid that prediction and truth share."""
    return RegionGrid(STFT.axes(len(case.fake)))


def ranking(scores: Tensor) -> tuple[str, ...]:
    """All cells, highest score first."""
    return top_k(scores, len(scores))


def constant_cells(training: Sequence[Pair]) -> tuple[str, ...]:
    """Cells by how often they are among the true ones of the training split."""
    counts: Counter[str] = Counter()
    for pair in training:
        case = load_case(pair, masks=MASKS, stft=STFT)
        counts.update(truth_cells(case.truth, grid_of(case), k=K))
    return ranking(torch.tensor([float(counts[str(id)]) for id in range(1, 17)]))


def predictions(
    case: Case, model: SpecSegDiff, constant: tuple[str, ...], *, draws: int, steps: int
) -> dict[str, tuple[str, ...]]:
    """Rankings of all cells of one pair by every method that sees the fake alone."""
    grid = grid_of(case)
    condition = model.condition(case.fake[None])
    heat = sample(model, condition, draws=draws, steps=steps).mean[0]
    magnitude = STFT.magnitude(case.fake)
    generator = torch.Generator().manual_seed(int.from_bytes(case.pair.id.encode()[-6:]))
    return {
        MEAN: ranking(pool(heat, grid)),
        SHARE: ranking(pool(case.top(heat).float(), grid)),
        "random": ranking(torch.rand(grid.count, generator=generator)),
        "constant cells of train": constant,
        "low energy": ranking(-pool(smooth(magnitude[None], MASKS)[0], grid)),
    }


def measure(
    pairs: Sequence[Pair], model: SpecSegDiff, constant: tuple[str, ...], **how: int
) -> list[dict[str, Any]]:
    """Rows of methods with their scores, and those of other vocoders on the same recording."""
    found: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    truths, covers = {}, {}
    for done, pair in enumerate(pairs, start=1):
        case = load_case(pair, masks=MASKS, stft=STFT)
        truths[pair.id] = truth_cells(case.truth, grid_of(case), k=K)
        covers[pair.id] = pool(case.truth.float(), grid_of(case))
        for name, ids in predictions(case, model, constant, **how).items():
            found[name][pair.id] = ids
        if done % 20 == 0:
            print(f"{done} of {len(pairs)}", flush=True)
    for pair in pairs:
        others = [covers[p.id] for p in pairs if p.real == pair.real and p.family != pair.family]
        if others:
            name = "masks of other families, same recording"
            found[name][pair.id] = ranking(torch.stack(others).mean(dim=0))
    by_id = {pair.id: pair for pair in pairs}
    rows = []
    for name, ranked in found.items():
        row: dict[str, Any] = {"method": name}
        for part, wanted in (("all", (True, False)), ("seen", (True,)), ("unseen", (False,))):
            ids = [id for id in ranked if by_id[id].vocoder_seen in wanted]
            if not ids:
                continue
            scores = evaluate_ranking([ranked[i] for i in ids], [truths[i] for i in ids], k=K)
            groups = [by_id[i].source_group or i for i in ids]
            row[part] = {"pairs": len(ids)} | {
                score: [float(values.mean()), *bootstrap_interval(values, groups)]
                for score, values in scores.items()
            }
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
    parser.add_argument("--out", type=Path, default=RESULTS / "cells.json")
    options = parser.parse_args()
    model, everything = default_model(), read_manifest(options.pairs)
    constant = constant_cells([p for p in everything if p.split == "train"])
    print("constant cells", constant[:K], flush=True)
    how = {"draws": options.draws, "steps": options.steps}
    result: dict[str, Any] = {"meta": provenance(model, k=K, **how)}
    for split in ("val", "test"):
        part = [p for p in everything if p.split == split]
        result[split] = measure(part, model, constant, **how)
        for row in result[split]:
            print(split, row["method"], row["all"][RECALL], flush=True)
    ours = {row["method"]: row for row in result["val"] if row["method"] in (MEAN, SHARE)}
    result["meta"]["chosen"] = max(ours, key=lambda name: ours[name]["all"][RECALL][0])
    write_results(options.out, result)


if __name__ == "__main__":
    main()
