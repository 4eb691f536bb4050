"""Narrators on the corpus: which cells they name, and how right their words are.

    python benchmarks/narration.py --runs runs/small

writes ``results/narration.json`` and ``docs/images/rewards.png``. In the folder of runs lie the
examples of train (``examples-train``), the model (``base/model``) and its adapters (``sft-1``,
``sft-1-seed-1``, ``sft-1-seed-2``, ``grpo-1``, ``sft-2``, ``grpo-2``, each with ``adapter`` and
``log``). Every list of cells is cut to three, so that AP is that of three cells for all. The words
are the first answer of the model; a narrator would ask again where one cannot be read.
"""

import argparse
import csv
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cells import (
    DRAWS,
    LOW_ENERGY,
    MASKS,
    RECALL,
    STFT,
    K,
    grid_of,
    low_energy,
    masks_of_others,
    random_cells,
    ranking,
)
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from specsegdiff.api import default_model, explain
from specsegdiff.benchmark.scoring import load_case
from specsegdiff.cells import RegionGrid, pool
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.metrics import bootstrap_interval
from specsegdiff.metrics.ranking import evaluate_ranking
from specsegdiff.metrics.reports import (
    Fields,
    Told,
    coverage,
    evaluate_reports,
    field_accuracy,
)
from specsegdiff.models.segdiff import SpecSegDiff
from specsegdiff.narration.fields import fields_from_sound, frames_of
from specsegdiff.narration.parsing import parse_cells, parse_findings
from specsegdiff.narration.picture import SMALL_PICTURE
from specsegdiff.narration.prompts import Prompt, describe_prompt
from specsegdiff.narration.rewards import told
from specsegdiff.narration.vlm import decode, elect, encode, generate, load_vlm, using, with_adapter
from specsegdiff.train.examples import (
    Example,
    ExampleConfig,
    describe,
    make_examples,
    read_examples,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent
CONSTANT = "constant cells of train"
SEEDS = ("sft-1", "sft-1-seed-1", "sft-1-seed-2")
"Runs of SFT-1 that differ in their seed only."

VOTES = 16
"Answers that a vote is taken of."
VOTED = f", vote of {VOTES}"

Lists = dict[str, dict[str, tuple[str, ...]]]
"Cells by method and pair, best first."


@dataclass(frozen=True, eq=False)
class Seen:
    """A pair as narrators see it, and the truth about it."""

    pair: Pair
    where: Example
    what: Example
    picture: Any
    grid: RegionGrid
    cover: Tensor
    "Share of each cell that the true mask covers."
    heat: tuple[str, ...]
    low_energy: tuple[str, ...]
    rules: tuple[Told, ...]
    "What `RuleNarrator` says of the fake alone."
    genuine: Mapping[str, Fields]
    "T, F and P of the genuine twin by rule, for the true cells."

    @property
    def truth(self) -> tuple[str, ...]:
        return self.where.truth

    def told(self, *, genuine: bool) -> dict[str, Told]:
        """True words by cell: fields as the fake sounds, or as its genuine twin does."""
        rows = {row.region: row for row in map(told, self.what.truth)}
        if not genuine:
            return rows
        return {id: replace(row, fields=self.genuine[id]) for id, row in rows.items()}


def observe(
    pairs: Sequence[Pair], model: SpecSegDiff, folder: Path, *, draws: int, steps: int
) -> Iterator[Seen]:
    """Explain every pair's fake once; pairs without three true cells are left out."""
    from PIL import Image

    config = ExampleConfig(k=K, picture=SMALL_PICTURE, masks=MASKS, stft=STFT.config)
    for done, pair in enumerate(pairs, start=1):
        if done % 20 == 0:
            print(f"{done} of {len(pairs)}", flush=True)
        case = load_case(pair, masks=MASKS, stft=STFT)
        found = explain(
            case.fake, 16_000, model=model, detector=False, draws=draws, steps=steps, progress=False
        )
        heat = found.heatmap
        made = make_examples([pair], folder, config=config, explainer=lambda _, m=heat: m[None])
        if not made:
            continue
        where, what = made
        with Image.open(folder / where.picture) as file:
            picture = file.convert("RGB")
        yield Seen(
            pair,
            where,
            what,
            picture,
            grid_of(case),
            pool(case.truth.float(), grid_of(case)),
            ranking(pool(heat, grid_of(case)))[:K],
            low_energy(case)[:K],
            tuple(
                Told(cell.id, Fields(cell.time, cell.frequency, cell.phone), cell.evidence)
                for cell in found.report.cells
            ),
            fields_of_twin(pair, where.truth, grid_of(case)),
        )


def fields_of_twin(pair: Pair, ids: Sequence[str], grid: RegionGrid) -> dict[str, Fields]:
    """T, F and P of the real recording by rule."""
    frames = frames_of(load_pair(pair)[0], grid.axes)
    found = {id: fields_from_sound(grid.box(id), frames) for id in ids}
    return {id: Fields(f.time, f.frequency, f.phone) for id, f in found.items()}


# ------------------------------------------------------------------ controls


@dataclass(frozen=True)
class Priors:
    """What the training split says before anything is looked at."""

    cells: Mapping[str, tuple[str, ...]]
    "Commonest true cells by vocoder, by family, and under '' of all."
    words: Mapping[str, Told]
    "Commonest fields of each cell."

    def of(self, pair: Pair) -> tuple[str, ...]:
        """Constant cells of the pair's vocoder; of its family where train has no such vocoder."""
        known = (f"vocoder {pair.vocoder}", f"family {pair.family}", "")
        return next(self.cells[name] for name in known if name in self.cells)


def priors(examples: Sequence[Example], training: Sequence[Pair]) -> Priors:
    """Count true cells and fields of whole recordings; stretches of them do not count."""
    pair_of = {pair.id: pair for pair in training}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    fields: dict[str, Counter[Fields]] = defaultdict(Counter)
    for example in examples:
        pair = pair_of.get(example.id)
        if pair is None:
            continue
        if example.query == 1:
            for name in (f"vocoder {pair.vocoder}", f"family {pair.family}", ""):
                counts[name].update(example.truth)
        for row in map(told, example.truth if example.query == 2 else ()):
            fields[row.region][row.fields] += 1
    numbers = [str(number) for number in range(1, 17)]
    cells = {
        name: ranking(torch.tensor([float(count[id]) for id in numbers]))[:K]
        for name, count in counts.items()
    }
    common = {id: count.most_common(1)[0][0] for id, count in fields.items()}
    words = {id: Told(id, f, describe(*map(str, f), None)) for id, f in common.items()}
    return Priors(cells, words)


def controls(seen: Sequence[Seen], known: Priors) -> Lists:
    """Lists of cells by everything that is no narrator, but for random ones."""
    found: Lists = defaultdict(dict)
    for one in seen:
        id = one.pair.id
        found[CONSTANT][id] = known.cells[""]
        found["constant cells of the vocoder in train"][id] = known.of(one.pair)
        found[LOW_ENERGY][id] = one.low_energy
        found["SpecSegDiff, mean heat"][id] = one.heat
        found["oracle"][id] = one.truth
    others = masks_of_others([s.pair for s in seen], {s.pair.id: s.cover for s in seen})
    for name, ranked in others.items():
        found[name] = {id: lists[0][:K] for id, lists in ranked.items()}
    return found


# ------------------------------------------------------------------ the model


def load_runs(runs: Path) -> tuple[Any, Any]:
    """The model with the adapter of every stage, under the name of its run."""
    model, processor = load_vlm(runs / "base" / "model")
    for name in (*SEEDS, "grpo-1", "sft-2", "grpo-2"):
        model = with_adapter(model, runs / name / "adapter", name=name)
    return model.eval(), processor


def answers(
    model: Any,
    processor: Any,
    asked: Sequence[tuple[Prompt, Any]],
    *,
    adapter: str | None,
    max_tokens: int,
    temperature: float = 0.0,
    batch: int = 16,
) -> list[str]:
    """Answers to questions about pictures: the likeliest, or drawn at a temperature."""
    texts = []
    for start in range(0, len(asked), batch):
        prompts, pictures = zip(*asked[start : start + batch], strict=True)
        inputs = encode(processor, prompts, pictures)
        with using(model, adapter):
            ids = generate(
                model,
                processor,
                inputs,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=start,
            )
        texts += decode(processor, ids)
    return texts


def name_cells(
    model: Any, processor: Any, seen: Sequence[Seen], adapter: str | None
) -> dict[str, tuple[str, ...]]:
    """Query 1 about every pair."""
    asked = [(one.where.prompt, one.picture) for one in seen]
    texts = answers(model, processor, asked, adapter=adapter, max_tokens=32)
    return {
        one.pair.id: parse_cells(text, count=16, k=K).ids
        for one, text in zip(seen, texts, strict=True)
    }


def vote_cells(
    model: Any, processor: Any, seen: Sequence[Seen], adapter: str | None, *, draws: int = VOTES
) -> dict[str, tuple[str, ...]]:
    """Query 1 by vote, as `VLMConfig.votes` has it."""
    asked = [(one.where.prompt, one.picture) for one in seen for _ in range(draws)]
    texts = answers(
        model, processor, asked, adapter=adapter, max_tokens=32, temperature=1.0, batch=128
    )
    return {
        one.pair.id: elect(texts[place * draws : (place + 1) * draws], count=16, k=K)
        for place, one in enumerate(seen)
    }


def say(
    model: Any, processor: Any, seen: Sequence[Seen], ids: Mapping[str, Sequence[str]], adapter: str
) -> list[tuple[Told, ...]]:
    """Query 2 about the cells of every pair; what cannot be read is not said."""
    some = [one for one in seen if ids[one.pair.id]]
    asked = [(describe_prompt(one.grid, ids[one.pair.id]), one.picture) for one in some]
    texts = answers(model, processor, asked, adapter=adapter, max_tokens=256)
    said = {}
    for one, text in zip(some, texts, strict=True):
        found = parse_findings(text, ids=ids[one.pair.id]).findings
        said[one.pair.id] = tuple(
            Told(f.id, Fields(f.time, f.frequency, f.phone), f.evidence)
            for f in found
            if f.complete
        )
    return [said.get(one.pair.id, ()) for one in seen]


# ------------------------------------------------------------------ scores


def interval(values: Sequence[float], groups: Sequence[str]) -> list[float] | None:
    """Mean with its 95 % interval by source group; without one of a single group, None of
    nothing."""
    if not values:
        return None
    exact = torch.tensor(values, dtype=torch.float64)
    if len(set(groups)) < 2:
        return [float(exact.mean())]
    return [float(exact.mean()), *bootstrap_interval(exact, groups)]


def cell_rows(seen: Sequence[Seen], lists: Lists) -> list[dict[str, Any]]:
    """Scores of every method's cells, and its R@3 minus that of constant cells on the same pairs;
    the mean over seeds of SFT-1 is a row of its own."""
    by_id = {one.pair.id: one for one in seen}

    def score(ids: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, float]]:
        found = evaluate_ranking(list(ids.values()), [by_id[id].truth for id in ids], k=K)
        return {name: dict(zip(ids, each.tolist(), strict=True)) for name, each in found.items()}

    def mean(runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
        return {
            name: {id: sum(run[name][id] for run in runs) / len(runs) for id in runs[0][name]}
            for name in runs[0]
        }

    drawn = {id: random_cells(id) for id in by_id}
    by_chance = [score({id: lists[i][:K] for id, lists in drawn.items()}) for i in range(DRAWS)]
    scores = {"random": mean(by_chance)} | {name: score(ids) for name, ids in lists.items()}
    for how in ("", VOTED):
        seeds = [scores[f"VLM, {run}{how}"] for run in SEEDS]
        scores[f"VLM, SFT-1{how}, mean of {len(seeds)} seeds"] = mean(seeds)
    rows = []
    for name, found in scores.items():
        row: dict[str, Any] = {"method": name}
        for part, wanted in (("all", (True, False)), ("seen", (True,)), ("unseen", (False,))):
            ids = [id for id in found[RECALL] if by_id[id].pair.vocoder_seen in wanted]
            if not ids:
                continue
            groups = [by_id[id].pair.source_group or id for id in ids]
            row[part] = {"pairs": len(ids)} | {
                score: interval([values[id] for id in ids], groups)
                for score, values in found.items()
            }
            over = [found[RECALL][id] - scores[CONSTANT][RECALL][id] for id in ids]
            row[part]["over_constant"] = interval(over, groups)
        rows.append(row)
    return rows


def word_row(name: str, seen: Sequence[Seen], said: Sequence[tuple[Told, ...]]) -> dict[str, Any]:
    """Scores of a narrator's words against both truths."""
    row: dict[str, Any] = {"narrator": name}
    every = [(one, each) for one, rows in zip(seen, said, strict=True) for each in rows]
    covered = [coverage([each.evidence])["average"] for _, each in every]
    row["coverage"] = interval(covered, [group_of(one) for one, _ in every])
    for truth, genuine in (("fake", False), ("genuine twin", True)):
        true = [one.told(genuine=genuine) for one in seen]
        scores = evaluate_reports(said, true, asked=K)
        hits = []
        whole = []
        for one, rows, right in zip(seen, said, true, strict=True):
            found = [
                field_accuracy([each.fields], [right[each.region].fields])
                for each in rows
                if each.region in right
            ]
            hits += [(one, shares) for shares in found]
            whole.append(sum(shares["average"] for shares in found) / K)
        row[truth] = {
            "scores": {k: None if math.isnan(v) else v for k, v in scores.items()},
            "on_hits": {
                field: interval([s[field] for _, s in hits], [group_of(one) for one, _ in hits])
                for field in (*Fields._fields, "average")
            },
            "end_to_end": interval(whole, [group_of(one) for one in seen]),
        }
    return row


def group_of(one: Seen) -> str:
    """What stands or falls together."""
    return one.pair.source_group or one.pair.id


def measure(
    pairs: Sequence[Pair], model: SpecSegDiff, vlm: tuple[Any, Any], known: Priors, **how: int
) -> dict[str, Any]:
    """Cells and words of one split."""
    with tempfile.TemporaryDirectory() as folder:
        seen = list(observe(pairs, model, Path(folder), **how))
    lists = controls(seen, known)
    lists["VLM, base"] = name_cells(*vlm, seen, None)
    for run in (*SEEDS, "grpo-1"):
        lists[f"VLM, {run}"] = name_cells(*vlm, seen, run)
        lists[f"VLM, {run}{VOTED}"] = vote_cells(*vlm, seen, run)
    constant = [tuple(known.words[id] for id in known.cells[""]) for _ in seen]
    hot = lists["SpecSegDiff, mean heat"]
    said = {
        "constant cells, commonest words": constant,
        "rules": [one.rules for one in seen],
        "VLM, SFT-1 and SFT-2": say(*vlm, seen, lists["VLM, sft-1"], "sft-2"),
        "VLM, GRPO-1 and GRPO-2": say(*vlm, seen, lists["VLM, grpo-1"], "grpo-2"),
        "VLM, vote of GRPO-1 and GRPO-2": say(*vlm, seen, lists[f"VLM, grpo-1{VOTED}"], "grpo-2"),
        "VLM, hottest cells and GRPO-2": say(*vlm, seen, hot, "grpo-2"),
    }
    return {
        "pairs": len(pairs),
        "left_out": len(pairs) - len(seen),
        "cells": cell_rows(seen, lists),
        "words": [word_row(name, seen, rows) for name, rows in said.items()],
    }


# ------------------------------------------------------------------ rewards


def read_log(run: Path) -> dict[str, list[float]]:
    """Columns of a run's log by name, a value for each step; a resumed run has several files."""
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    for file in sorted(run.glob("log/version_*/metrics.csv")):
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                found = {k: float(v) for k, v in row.items() if v and k not in ("step", "epoch")}
                steps[int(row["step"])] |= found
    rows = [steps[step] for step in sorted(steps) if "reward" in steps[step]]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def rewards_figure(logs: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """Reward and divergence of every step of GRPO, with a running mean over a tenth of the run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3 * len(logs)), layout="constrained")
    panels = figure.subplots(len(logs), 2, squeeze=False)
    for line, (name, log) in zip(panels, logs.items(), strict=True):
        for panel, what in zip(line, ("reward", "kl"), strict=True):
            values = torch.tensor(log[what])
            width = max(len(values) // 10, 1)
            panel.plot(values, color="0.7", linewidth=0.8)
            smoothed = values.unfold(0, width, 1).mean(dim=1)
            panel.plot(torch.arange(len(smoothed)) + width - 1, smoothed, color="C3")
            panel.set_title(f"{name}: {'sampled reward' if what == 'reward' else 'KL'}")
            panel.set_xlabel("step")
    return figure


def ends(log: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Means over the first and the last tenth of the steps."""
    tenth = max(len(log["reward"]) // 10, 1)
    return {"steps": len(log["reward"])} | {
        name: [sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth]
        for name, values in log.items()
        if name.startswith("reward") or name in ("kl", "flat", "tokens")
    }


def main() -> None:
    """Measure val and test, and draw the rewards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="take every so manieth pair")
    parser.add_argument("--out", type=Path, default=RESULTS / "narration.json")
    parser.add_argument(
        "--figure", type=Path, default=ROOT.parent / "docs" / "images" / "rewards.png"
    )
    options = parser.parse_args()
    everything, model = read_manifest(options.pairs), default_model()
    vlm = load_runs(options.runs)
    known = priors(
        read_examples(options.runs / "examples-train" / "examples.jsonl"),
        [pair for pair in everything if pair.split == "train"],
    )
    how = {"draws": options.draws, "steps": options.steps}
    logs = {name: read_log(options.runs / name) for name in ("grpo-1", "grpo-2")}
    files = {"base": options.runs / "base" / "model" / "model.safetensors"} | {
        name: options.runs / name / "adapter" / "adapter_model.safetensors"
        for name in (*SEEDS, "grpo-1", "sft-2", "grpo-2")
    }
    result: dict[str, Any] = {
        "meta": provenance(
            model,
            k=K,
            vlm_parameters=sum(p.numel() for p in load_vlm(files["base"].parent)[0].parameters()),
            vlm_bytes={name: file.stat().st_size for name, file in files.items()},
            **how,
        ),
        "rewards": {name: ends(log) for name, log in logs.items()},
    }
    for split in ("val", "test"):
        part = [pair for pair in everything if pair.split == split][:: options.every]
        result[split] = measure(part, model, vlm, known, **how)
        for row in result[split]["cells"]:
            print(split, row["method"], row["all"][RECALL], row["all"]["over_constant"], flush=True)
        for row in result[split]["words"]:
            print(split, row["narrator"], row["fake"]["end_to_end"], row["coverage"], flush=True)
    write_results(options.out, result)
    rewards_figure(logs).savefig(options.figure, dpi=120)


if __name__ == "__main__":
    main()
