"""Do texts fit the regions that they point at? The rule narrator against pairs of the corpus.

    python benchmarks/grounding.py

writes ``benchmarks/results/grounding.json``. Each test recording is explained alone; what the
narrator says of a cell is written as markup, parsed again, and read with the lexicon of the concept
tree. The truth of the cell comes from the pair: when and phone from the genuine recording, the kind
from what the vocoder changed against it, by bounds of the val split. So text and truth share the
place of the cell, and nothing else but the vocoded recording itself. Agreement is given above three
nulls: the same texts shuffled over the cells of their recording, over all recordings at the same
cell, and over all cells of one band and one kind of sound. A text that knows only the place gains
nothing over the second, one that knows only the fields nothing over the third; two controls that
know just that, from the val split, are beside it. Intervals are bootstraps by source group.
"""

import argparse
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from specsegdiff.api import default_model, explain
from specsegdiff.benchmark.scoring import load_case
from specsegdiff.cells import RegionGrid
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.errors import ShapeError
from specsegdiff.explanation import Explanation
from specsegdiff.frontend import Stft
from specsegdiff.grid import Region, find_regions
from specsegdiff.masks import MaskConfig
from specsegdiff.metrics import bootstrap_interval
from specsegdiff.metrics.grounding import agreement, concept_accuracy, evaluate_regions
from specsegdiff.narration.answers import ask
from specsegdiff.narration.concepts import speech_concepts
from specsegdiff.narration.places import Listener
from specsegdiff.narration.references import grounded, parse
from specsegdiff.narration.rules import RuleNarrator

TREE, STFT, CELLS, REPORTED = speech_concepts(), Stft(), 16, 3
AXES = ("when", "phone", "kind", "damage")

Concepts: TypeAlias = dict[str, str]
Prior: TypeAlias = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Item:
    """A cell of a recording: what the text says of it, and what is true."""

    pair: Pair
    cell: str
    rank: int
    "0 for the hottest."
    said: Concepts
    "Read from the narrator's text."
    answered: Concepts
    "As `ask` answers, down to the leaves."
    truth: Concepts
    mask_percent: float


def items_of(pair: Pair, explanation: Explanation) -> list[Item]:
    """All cells of a pair, hottest first."""
    real, fake = load_pair(pair)
    text = grounded(RuleNarrator(k=CELLS)(explanation))
    text = parse(text.markup, text.places)
    true = Listener(fake, explanation.axes, genuine=real)
    return [
        Item(
            pair,
            place.id,
            rank,
            TREE.read(text.of(place.id)),
            place.concepts,
            true.look(place.box).concepts,
            place.numbers["mask_percent"],
        )
        for rank, place in enumerate(ask(explanation, k=CELLS).places)
    ]


def level(concepts: Concepts, axis: str) -> str:
    """Concept as the narrator's words have it: the top of an axis, but for the kind itself."""
    name = concepts["kind" if axis == "damage" else axis]
    return name if axis == "kind" else TREE.path(name)[:2][-1]


def truths_of(pair: Pair) -> list[tuple[str, Concepts]]:
    """Id and truth of all cells of a pair."""
    real, fake = load_pair(pair)
    grid = RegionGrid(STFT.axes(len(fake)))
    true = Listener(fake, grid.axes, genuine=real)
    return [(id, true.look(grid.box(id)).concepts) for id in grid.ids]


def priors(training: Sequence[tuple[str, Concepts]], axis: str) -> tuple[Prior, Prior]:
    """Most common truth of each cell, and of each pair of fields."""
    by_cell: dict[str, Counter[str]] = defaultdict(Counter)
    by_fields: dict[str, Counter[str]] = defaultdict(Counter)
    for cell, truth in training:
        by_cell[cell][level(truth, axis)] += 1
        by_fields[fields(truth)][level(truth, axis)] += 1
    first, second = (
        {key: seen.most_common(1)[0][0] for key, seen in table.items()}
        for table in (by_cell, by_fields)
    )
    return first, second


def fields(truth: Concepts) -> str:
    """Band and phone of a cell, from the genuine recording."""
    return f"{level(truth, 'band')} {level(truth, 'phone')}"


def agreements(
    items: Sequence[Item], training: Sequence[tuple[str, Concepts]]
) -> list[dict[str, Any]]:
    """Rows of axes, texts and nulls."""
    nulls: dict[str, Callable[[Item], str]] = {
        "same recording": lambda item: item.pair.id,
        "same cell": lambda item: item.cell,
        "same fields": lambda item: fields(item.truth),
    }
    rows = []
    for axis in AXES:
        root = TREE.root("kind" if axis == "damage" else axis)
        known = [item for item in items if level(item.truth, axis) != root]
        truth = [level(item.truth, axis) for item in known]
        of_cell, of_fields = priors(training, axis)
        texts = {
            "rule narrator": [level(item.said, axis) for item in known],
            "most common of the cell": [of_cell.get(item.cell, "") for item in known],
        }
        if axis in ("kind", "damage"):
            texts["most common of the fields"] = [
                of_fields.get(fields(item.truth), "") for item in known
            ]
        for (name, said), (null, key) in ((t, n) for t in texts.items() for n in nulls.items()):
            row: dict[str, Any] = {"axis": axis, "text": name, "shuffled": null}
            try:
                found = agreement(
                    said,
                    truth,
                    groups=[item.pair.source_group or item.pair.id for item in known],
                    strata=[key(item) for item in known],
                )
                row |= dataclasses.asdict(found)
            except ShapeError as error:  # too few pairs
                row["undefined"] = str(error)
            rows.append(row)
    return rows


def regions_of(mask: Tensor, found: Sequence[Region]) -> Tensor:
    """Bins of a mask in the box of each region, ``(n, f, t)``."""
    axes = STFT.axes((mask.shape[1] - 1) * STFT.config.hop)
    times, freqs = axes.times, axes.freqs
    inside = [
        ((freqs >= r.f0) & (freqs <= r.f1))[:, None] & ((times >= r.t0) & (times <= r.t1))
        for r in found
    ]
    return torch.stack(inside) & mask if inside else torch.zeros(0, *mask.shape, dtype=torch.bool)


def localisation(pair: Pair, explanation: Explanation) -> dict[str, dict[str, float]]:
    """Regions of the explanation against those of the true mask, and the same turned in time."""
    case = load_case(pair, masks=MaskConfig(), stft=STFT)
    true = regions_of(case.truth, find_regions(case.truth, case.truth.float(), explanation.axes))
    own = regions_of(explanation.mask, explanation.regions)
    return {
        "SpecSegDiff": evaluate_regions(own, true),
        "turned in time": evaluate_regions(own.flip(-1), true),
    }


def family_of_damage(items: Sequence[Item]) -> str:
    """As `specsegdiff.narration.answers.classify`: the family with most of the mask."""
    shares: Counter[str] = Counter()
    for item in items[:REPORTED]:
        shares[TREE.path(item.answered["kind"])[:3][-1]] += round(1e6 * item.mask_percent)
    return max(sorted(shares), key=lambda name: shares[name])


def classification(by_pair: Sequence[Sequence[Item]]) -> dict[str, Any]:
    """How often the family of damage, and a constant, tell the family of the vocoder."""
    groups = [items[0].pair.source_group or items[0].pair.id for items in by_pair]
    truth = [items[0].pair.family for items in by_pair]
    rows = {}
    for name, cue in (
        ("family of damage", [family_of_damage(items) for items in by_pair]),
        ("constant", [""] * len(by_pair)),
    ):
        hits = []
        for place, group in enumerate(groups):
            seen = Counter(
                truth[i] for i, g in enumerate(groups) if g != group and cue[i] == cue[place]
            )
            guess = max(sorted(seen), key=lambda word: seen[word], default="")
            hits.append(float(guess == truth[place]))
        rows[name] = summary(hits, groups)
    return rows


def summary(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    """Mean and interval; of one group, the mean alone."""
    exact = torch.tensor(values, dtype=torch.float64)
    if len(set(groups)) < 2:
        return [float(exact.mean())]
    return [float(exact.mean()), *bootstrap_interval(exact, groups)]


def evaluate(
    by_pair: Sequence[Sequence[Item]],
    places: Sequence[dict[str, dict[str, float]]],
    training: Sequence[tuple[str, Concepts]],
) -> dict[str, Any]:
    """All tables."""
    # cells in one order, since those of one source are shuffled alike
    every = [item for items in by_pair for item in sorted(items, key=lambda i: int(i.cell))]
    reported = [item for item in every if item.rank < REPORTED]
    groups = [items[0].pair.source_group or items[0].pair.id for items in by_pair]
    confusion = Counter((level(i.said, "kind"), level(i.truth, "kind")) for i in reported)
    return {
        "agreement": {
            "reported cells": agreements(reported, training),
            "all cells": agreements(every, training),
        },
        "concepts": {
            name: concept_accuracy(
                [i.answered for i in part], [i.truth for i in part], distance=TREE.distance
            )
            for name, part in (("reported cells", reported), ("all cells", every))
        },
        "localisation": {
            name: {
                score: summary([place[name][score] for place in places], groups)
                for score in places[0][name]
            }
            for name in places[0]
        },
        "classification": classification(by_pair),
        "kinds": [
            {"said": said, "true": true, "cells": count}
            for (said, true), count in sorted(confusion.items())
        ],
    }


def main() -> None:
    """Explain, narrate and score the test pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="take every n-th pair only")
    parser.add_argument("--out", type=Path, default=RESULTS / "grounding.json")
    options = parser.parse_args()
    model = default_model()
    pairs = read_manifest(options.pairs, split="test")[:: options.every]
    training = [
        cell
        for pair in read_manifest(options.pairs, split="val")[:: options.every]
        for cell in truths_of(pair)
    ]
    by_pair, places = [], []
    for done, pair in enumerate(pairs, start=1):
        _, fake = load_pair(pair)
        explanation = explain(
            fake,
            STFT.config.sample_rate,
            model=model,
            detector=False,
            draws=options.draws,
            steps=options.steps,
        )
        by_pair.append(items_of(pair, explanation))
        places.append(localisation(pair, explanation))
        if done % 20 == 0 or done == len(pairs):
            print(f"{done} of {len(pairs)}", flush=True)
    how = {"draws": options.draws, "steps": options.steps, "pairs": len(pairs)}
    result = {"meta": provenance(model, **how)} | evaluate(by_pair, places, training)
    for row in result["agreement"]["reported cells"]:
        print(*row.values())
    write_results(options.out, result)


if __name__ == "__main__":
    main()
