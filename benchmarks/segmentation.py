"""Segmentation on the corpus: SpecSegDiff at several draws and steps, and the controls it must
beat.

    python benchmarks/segmentation.py --pairs ../shared/corpus/pairs.csv --split test

writes ``benchmarks/results/segmentation.json``: per method, mean and 95 % interval by source
group, seen and
unseen vocoders apart, overall and per family. ``benchmarks/table.py`` renders it into the README.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from torch import Tensor

from specsegdiff.api import DEFAULT_MODEL, default_model
from specsegdiff.data.pairs import Pair, load_pair, read_manifest
from specsegdiff.hub import write_atomic
from specsegdiff.masks import MaskConfig, ground_truth, smooth, top_share
from specsegdiff.metrics import (
    average_precision,
    bootstrap_interval,
    foreground_dice,
    generalized_dice,
    iou,
    roc_auc,
)
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.sampling import Draws, draw_masks, fastest_dtype, moments

RESULTS = Path(__file__).parent / "results"
SCORES = ("gdice", "foreground_dice", "iou", "average_precision")
Row = dict[str, Any]


def truth_of(pair: Pair, model: SpecSegDiff, masks: MaskConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Mask ``(f, t)``, fake waveform ``(n,)`` and fake magnitude ``(f, t)`` of a pair."""
    real, fake = load_pair(pair, config=model.config.stft)
    magnitude = model.stft.magnitude(fake)
    return ground_truth(model.stft.magnitude(real), magnitude, masks), fake, magnitude


def score(heat: Tensor, truth: Tensor, share: float) -> dict[str, float]:
    """Scores of one map at its own top share."""
    own = top_share(heat[None], share=share)
    return {
        "gdice": 100 * float(generalized_dice(own, truth[None])),
        "foreground_dice": 100 * float(foreground_dice(own, truth[None])),
        "iou": 100 * float(iou(own, truth[None])),
        "average_precision": 100 * float(average_precision(heat[None].float(), truth[None])),
    }


def spread_auroc(drawn: Draws, truth: Tensor, share: float) -> dict[str, float]:
    """AUROC of 'this bin's label at the top share is wrong' by the spread, and by p(1 - p) of the
    mean."""
    wrong = top_share(drawn.mean[None], share=share) ^ truth[None]
    doubt = drawn.mean * (1 - drawn.mean)
    return {
        "spread_auroc": 100 * float(roc_auc(drawn.spread[None], wrong)),
        "doubt_auroc": 100 * float(roc_auc(doubt[None], wrong)),
    }


def prefixes(
    model: SpecSegDiff, wave: Tensor, item: str, counts: Sequence[int], steps: int, sampler: str
) -> dict[int, Draws]:
    """Mean and spread over the first 1, 8, 32 draws, from one run: a draw does not know its
    company."""
    chunks = draw_masks(
        model,
        model.condition(wave[None])[0],
        range(max(counts)),
        steps=steps,
        sampler=sampler,
        item=item,
        dtype=fastest_dtype("cpu"),
    )
    masks = torch.cat(list(chunks))
    return {count: moments([masks[:count]]) for count in counts}


def mean_mask_by_frequency(pairs: Iterable[Pair], model: SpecSegDiff, masks: MaskConfig) -> Tensor:
    """Share of foreground of each frequency bin over the training pairs, ``(f,)``."""
    total, frames = torch.zeros(model.config.stft.n_freqs), 0
    for pair in pairs:
        mask, _, _ = truth_of(pair, model, masks)
        total += mask.float().sum(dim=1)
        frames += mask.shape[1]
    return total / frames


def others(
    pair: Pair, masks_of: Mapping[str, Tensor], pairs: Sequence[Pair], *, siblings: bool
) -> list[Tensor]:
    """Masks of the same recording through other vocoders; without siblings, of other families
    only."""
    return [
        masks_of[p.id]
        for p in pairs
        if p.id != pair.id
        and p.real == pair.real
        and (p.vocoder != pair.vocoder or siblings)
        and (siblings or p.family != pair.family)
    ]


def average(masks: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Mean of masks on their common frames, the last frame repeated to ``shape``."""
    total = torch.zeros(shape)
    for mask in masks:
        frames = min(mask.shape[1], shape[1])
        total[:, :frames] += mask[:, :frames].float()
        total[:, frames:] += mask[:, frames - 1 : frames].float()
    return total / len(masks)


def run(
    pairs: Sequence[Pair],
    models: Mapping[str, tuple[SpecSegDiff, Sequence[int], int, str]],
    by_frequency: Tensor,
    masks: MaskConfig,
    *,
    tell: Callable[[str], object],
) -> list[Row]:
    """Score every method on every pair; one row a pair and method."""
    first = next(iter(models.values()))[0]
    masks_of = {p.id: truth_of(p, first, masks)[0] for p in pairs}
    rows: list[Row] = []
    for place, pair in enumerate(pairs):
        truth, fake, magnitude = truth_of(pair, first, masks)
        maps: dict[str, tuple[str, Tensor]] = {}
        generator = torch.Generator().manual_seed(place)
        maps["random"] = "control", torch.rand(truth.shape, generator=generator)
        maps["low energy"] = "control", -magnitude
        maps["low energy, smoothed"] = "control", -smooth(magnitude, masks)
        maps["mean mask by frequency"] = "control", by_frequency[:, None].expand(truth.shape)
        if found := others(pair, masks_of, pairs, siblings=False):
            maps["another family's mask, same recording"] = (
                "control",
                average(found[:1], truth.shape),
            )
            maps["mean of other families' masks, same recording"] = (
                "control",
                average(found, truth.shape),
            )
        if found := others(pair, masks_of, pairs, siblings=True):
            maps["mean of all other masks, same recording"] = "control", average(found, truth.shape)
        extra: dict[str, dict[str, float]] = {}
        for name, (model, counts, steps, sampler) in models.items():
            for count, drawn in prefixes(model, fake, pair.id, counts, steps, sampler).items():
                label = f"{name}, {count} draw{'s' if count > 1 else ''} of {steps} {sampler} step"
                label += "s" if steps > 1 else ""
                maps[label] = "ours", drawn.mean
                if count > 1:
                    extra[label] = spread_auroc(drawn, truth, masks.share)
        for label, (group, heat) in maps.items():
            rows.append(
                {
                    "method": label,
                    "group": group,
                    "pair": pair.id,
                    "seen": bool(pair.vocoder_seen),
                    "family": pair.family,
                    "source_group": pair.source_group,
                    **score(heat, truth, masks.share),
                    **extra.get(label, {}),
                }
            )
        if place % 10 == 9:
            tell(f"{place + 1} of {len(pairs)} pairs")
    return rows


def interval(rows: Sequence[Row], name: str) -> list[float] | None:
    """Mean with its 95 % bootstrap interval by source group; the mean alone where there is one
    group."""
    kept = [r for r in rows if name in r and r[name] == r[name]]
    if not kept:
        return None
    values = torch.tensor([r[name] for r in kept])
    groups = [r["source_group"] for r in kept]
    bounds = bootstrap_interval(values, groups) if len(set(groups)) > 1 else ()
    return [round(float(x), 2) for x in (values.mean(), *bounds)]


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One entry a method: seen, unseen, overall and per family."""
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    names = (*SCORES, "spread_auroc", "doubt_auroc")
    result = []
    for method, found in by_method.items():
        parts = {
            "overall": found,
            "seen": [r for r in found if r["seen"]],
            "unseen": [r for r in found if not r["seen"]],
        }
        entry: Row = {"method": method, "group": found[0]["group"]}
        for part, kept in parts.items():
            entry[part] = {n: value for n in names if (value := interval(kept, n))}
            entry[part]["pairs"] = len(kept)
        entry["family"] = {
            family: {"gdice": interval([r for r in found if r["family"] == family], "gdice")}
            for family in sorted({r["family"] for r in found})
        }
        result.append(entry)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--pairs", default="../shared/corpus/pairs.csv", help="manifest of the corpus"
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--model", help="folder of a model, by default the embedded one")
    parser.add_argument("--deterministic", help="folder of the deterministic control, if trained")
    parser.add_argument(
        "--steps", type=int, nargs="*", default=[1], help="step counts, each at --draws"
    )
    parser.add_argument("--sampler", choices=("ddim", "ddpm"), default="ddim")
    parser.add_argument("--draws", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--every", type=int, default=1, help="keep every n-th pair")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    masks = MaskConfig()
    model = SpecSegDiff.from_pretrained(options.model) if options.model else default_model()
    pairs = read_manifest(options.pairs)
    kept = [p for p in pairs if p.split == options.split][:: options.every]
    models: dict[str, tuple[SpecSegDiff, Sequence[int], int, str]] = {
        f"{DEFAULT_MODEL} ({steps})": (model, options.draws, steps, options.sampler)
        for steps in options.steps
    }
    models = {
        (DEFAULT_MODEL if i == 0 else name): value for i, (name, value) in enumerate(models.items())
    }
    if options.deterministic:
        control = SpecSegDiff.from_pretrained(options.deterministic)
        models["deterministic control"] = (control, [1], 1, "ddim")
    start = time.perf_counter()
    by_frequency = mean_mask_by_frequency((p for p in pairs if p.split == "train"), model, masks)
    rows = run(kept, models, by_frequency, masks, tell=lambda text: print(text, flush=True))
    out = options.out or RESULTS / (
        "segmentation.json" if options.split == "test" else "segmentation-val.json"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    meta = provenance(
        model,
        split=options.split,
        pairs=len(kept),
        every=options.every,
        seconds=round(time.perf_counter() - start),
    )
    content = json.dumps({"meta": meta, "rows": summarise(rows)}, indent=1)
    write_atomic(out, content.encode() + b"\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
