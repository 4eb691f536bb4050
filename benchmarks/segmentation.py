"""Segmentation on the corpus: SpecSegDiff at several draws and steps, ADDSegDiff, and the controls.

    python benchmarks/segmentation.py --split test

writes ``benchmarks/results/segmentation.json``: per method, mean and 95 % interval by source
group, seen and unseen vocoders apart, overall and per family. ``benchmarks/table.py`` renders it.
"""

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from specsegdiff.api import default_model
from specsegdiff.benchmark import Method, Row, score_maps, summarise
from specsegdiff.benchmark.scoring import load_case
from specsegdiff.benchmark.shipped import addsegdiff
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair
from specsegdiff.masks import MaskConfig, smooth, top_share
from specsegdiff.metrics import roc_auc
from specsegdiff.models.segdiff import SAMPLERS, SegDiff, SpecSegDiff
from specsegdiff.sampling import Draws, draw_masks, fastest_dtype, is_one_pass, moments, sample

MASKS = MaskConfig()
NO_DIFFUSION = "same network, trained without diffusion"


def truth_of(pair: Pair, model: SegDiff) -> Tensor:
    """Mask ``(f, t)`` of a pair."""
    return load_case(pair, masks=MASKS, stft=model.stft).truth


class DrawnMaps:
    """Means over the first 1, 8, 32 draws, from one run: a draw does not know its company."""

    def __init__(self, model: SegDiff, counts: Sequence[int], steps: int, sampler: str) -> None:
        self.model, self.steps, self.sampler = model, steps, sampler
        self.one_pass = is_one_pass(model, steps=steps, sampler=sampler)
        self.counts = [1] if self.one_pass else counts
        self.pair = ""
        self.drawn: dict[int, Draws] = {}
        self.doubts: list[Row] = []

    def method(self, count: int) -> Method:
        """Heatmap of the first ``count`` draws."""

        def predict(pair: Pair, wave: Tensor) -> Tensor:
            if self.pair != pair.id:
                self._draw(pair, wave)
            return self.drawn[count].mean

        return predict

    def _draw(self, pair: Pair, wave: Tensor) -> None:
        condition = self.model.condition(wave[None])
        how = {"steps": self.steps, "sampler": self.sampler, "dtype": fastest_dtype("cpu")}
        if self.one_pass:
            found = sample(self.model, condition, **how)
            self.drawn = {1: Draws(found.mean[0], found.spread[0])}
        else:
            chunks = draw_masks(
                self.model, condition[0], range(max(self.counts)), item=pair.id, **how
            )
            masks = torch.cat(list(chunks))
            self.drawn = {n: moments([masks[:n]]) for n in self.counts}
        self.pair = pair.id
        if self.one_pass or max(self.counts) > 1:
            self.doubts.append(doubts(self.drawn[max(self.counts)], truth_of(pair, self.model)))


def doubts(drawn: Draws, truth: Tensor) -> Row:
    """AUROC, in percent, of 'this bin's label is wrong' by the spread, and by p (1 - p)."""
    wrong = top_share(drawn.mean[None], share=MASKS.share) ^ truth[None]
    doubt = drawn.mean * (1 - drawn.mean)
    return {
        "spread_auroc": 100 * float(roc_auc(drawn.spread[None], wrong)),
        "mean_auroc": 100 * float(roc_auc(doubt[None], wrong)),
    }


def controls(
    pairs: Sequence[Pair], training: Iterable[Pair], model: SpecSegDiff
) -> dict[str, Method]:
    """What a map has to beat; the last three know the real recording."""
    by_frequency, frames = torch.zeros(model.config.stft.n_freqs), 0
    for pair in training:
        mask = truth_of(pair, model)
        by_frequency += mask.float().sum(dim=1)
        frames += mask.shape[1]
    by_frequency /= max(frames, 1)
    masks_of = {pair.id: truth_of(pair, model) for pair in pairs}

    def magnitude(wave: Tensor) -> Tensor:
        return model.stft.magnitude(wave)

    def noise(pair: Pair, wave: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int.from_bytes(pair.id.encode()[-6:]))
        return torch.rand(magnitude(wave).shape, generator=generator)

    def others(pair: Pair, wave: Tensor, *, most: int | None, siblings: bool) -> Tensor:
        found = [
            masks_of[p.id]
            for p in pairs
            if p.id != pair.id and p.real == pair.real and (siblings or p.family != pair.family)
        ]
        # a pair without such company is scored as no knowledge at all, and left out below
        shape = magnitude(wave).shape
        return average(found[:most], shape) if found else torch.zeros(shape)

    # a manifest without training pairs has no mean mask
    mean = {
        "mean mask by frequency": lambda pair, wave: by_frequency[:, None].expand_as(
            magnitude(wave)
        )
    }
    return {
        "random": noise,
        "low energy": lambda pair, wave: -magnitude(wave),
        "low energy, smoothed": lambda pair, wave: -smooth(magnitude(wave), MASKS),
        **(mean if frames else {}),
        "mask of another family, same recording": lambda pair, wave: others(
            pair, wave, most=1, siblings=False
        ),
        "mean mask of other families, same recording": lambda pair, wave: others(
            pair, wave, most=None, siblings=False
        ),
        "mean mask of all others, same recording": lambda pair, wave: others(
            pair, wave, most=None, siblings=True
        ),
    }


def average(masks: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Mean of masks of one recording whose lengths differ by its fakes'; the last frame repeats."""
    total = torch.zeros(shape)
    for mask in masks:
        frames = min(mask.shape[1], shape[1])
        total[:, :frames] += mask[:, :frames].float()
        total[:, frames:] += mask[:, frames - 1 : frames].float()
    return total / len(masks)


def has_company(row: Row, pairs: Mapping[str, Pair]) -> bool:
    """Tell whether a control that uses other masks of the recording has any for this row."""
    pair, siblings = pairs[row["id"]], row["method"].startswith("mean mask of all")
    if not row["method"].endswith("same recording"):
        return True
    return any(
        p.id != pair.id and p.real == pair.real and (siblings or p.family != pair.family)
        for p in pairs.values()
    )


def entry(name: str, rows: Sequence[Row], doubt: Sequence[Row], *, ours: bool) -> dict[str, Any]:
    """Summary of one method for the results file."""
    kept = [row for row in rows if row["method"] == name]
    result: dict[str, Any] = {
        "method": name,
        "group": "ours" if ours else "control",
        "overall": summarise(kept)["all"],
        **summarise(kept, by="vocoder_seen"),
        "family": summarise(kept, by="family"),
    }
    for key in doubt[0] if doubt else ():
        result[key] = sum(row[key] for row in doubt) / len(doubt)
    return result


def main() -> None:
    """Score all methods on one split and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--model", help="folder of a model, by default the embedded one")
    parser.add_argument("--deterministic", help="folder of the deterministic control")
    parser.add_argument("--steps", type=int, nargs="+", help="by default the model's own")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--every", type=int, default=1, help="keep every n-th pair")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    start = time.perf_counter()
    model = SpecSegDiff.from_pretrained(options.model) if options.model else default_model()
    everything = read_manifest(options.pairs)
    pairs = [p for p in everything if p.split == options.split][:: options.every]
    drawn = {}
    for steps in options.steps or [model.config.steps]:
        maps = DrawnMaps(model, options.draws, steps, options.sampler)
        for count in maps.counts:
            how = "one pass" if maps.one_pass else f"draws {count}, steps {steps}"
            drawn[f"SpecSegDiff, {how}"] = (maps, count)
    if not options.model:
        drawn["ADDSegDiff, one pass"] = (DrawnMaps(addsegdiff(), [1], 1, options.sampler), 1)
    if options.deterministic:
        control = SpecSegDiff.from_pretrained(options.deterministic)
        drawn[NO_DIFFUSION] = (DrawnMaps(control, [1], 1, "ddim"), 1)
    methods = controls(pairs, [p for p in everything if p.split == "train"], model)
    methods |= {name: maps.method(count) for name, (maps, count) in drawn.items()}

    def tell(done: int, total: int) -> None:
        if done % 10 == 0:
            print(f"{done} of {total} pairs, {time.perf_counter() - start:.0f} s", flush=True)

    rows = score_maps(methods, pairs, masks=MASKS, stft=model.config.stft, progress=tell)
    by_id = {pair.id: pair for pair in pairs}
    rows = [row for row in rows if has_company(row, by_id)]
    entries = []
    scored = {row["method"] for row in rows}
    for name in (method for method in methods if method in scored):
        maps, count = drawn.get(name, (None, 0))
        doubt = maps.doubts if maps is not None and count == max(maps.counts) else []
        entries.append(entry(name, rows, doubt, ours=name in drawn and name != NO_DIFFUSION))
    meta = provenance(
        model,
        split=options.split,
        pairs=len(pairs),
        every=options.every,
        sampler=options.sampler,
        seconds=round(time.perf_counter() - start),
    )
    name = "segmentation.json" if options.split == "test" else "segmentation-val.json"
    write_results(options.out or RESULTS / name, {"meta": meta, "rows": entries})


if __name__ == "__main__":
    main()
