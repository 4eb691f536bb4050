"""Quality over cost: every sampler at few steps, against 100 steps of DDPM, on the same pairs.

    python benchmarks/steps.py --every 9       writes results/steps-val.json and draws
                                               docs/images/steps.png from it
    python benchmarks/steps.py --figure-only   draws it again

Cost is counted in network passes, and in seconds as a multiple of one pass over the same pair,
timed in the same run. Rows are kept in ``runs/`` as they come: run the same command again to go on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from provenance import RESULTS, provenance, write_results

from specsegdiff.api import default_model
from specsegdiff.benchmark.fingerprints import fingerprint
from specsegdiff.benchmark.journal import note_rows, open_journal
from specsegdiff.benchmark.scoring import Case, Row, identify, load_case, summarise
from specsegdiff.data.manifest import read_manifest
from specsegdiff.masks import MaskConfig
from specsegdiff.models.segdiff import SAMPLERS, SpecSegDiff
from specsegdiff.sampling import draw_masks, fastest_dtype, moments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent
PICTURE = ROOT.parent / "docs" / "images" / "steps.png"
MASKS = MaskConfig()
SOLVERS = [name for name in SAMPLERS if name != "ddpm"]
STEPS = (1, 2, 3, 5, 10)
REFERENCE = ("ddpm", 100)
"Sampler and steps of the published procedure."
LOSS = 0.5
"GDice points below the best that a cheaper way may lose (issue 6)."
SCORES = {"gdice": "GDice", "average_precision": "AP"}


def named(sampler: str, steps: int) -> str:
    """What a way to draw is called in the rows."""
    return f"{sampler}, {steps} steps"


@torch.inference_mode()
def seconds_of_a_pass(model: SpecSegDiff, case: Case) -> float:
    """Median wall seconds of one call of the denoiser on a pair, after one that warms up."""
    condition = model.condition(case.fake[None])
    times = []
    with torch.autocast("cpu", fastest_dtype("cpu"), enabled=fastest_dtype("cpu") != torch.float32):
        encoded, x = model.encode(condition), torch.randn_like(model.fold(condition))
        for _ in range(4):
            start = time.perf_counter()
            model.denoise(x, torch.tensor([0]), encoded)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def score(
    model: SpecSegDiff, case: Case, sampler: str, steps: int, *, draws: int, one_pass: float
) -> Row:
    """Scores and cost of one way to draw on one pair."""
    passes = 0

    def count(module: object, inputs: object, output: torch.Tensor) -> None:
        nonlocal passes
        passes += len(output)

    start = time.perf_counter()
    counter = model.unet.register_forward_hook(count)
    try:
        chunks = draw_masks(
            model,
            model.condition(case.fake[None])[0],
            range(draws),
            steps=steps,
            sampler=sampler,
            item=case.pair.id,
            dtype=fastest_dtype("cpu"),
        )
        heat = moments(chunks).mean
    finally:
        counter.remove()
    seconds = time.perf_counter() - start
    return {
        "method": named(sampler, steps),
        "sampler": sampler,
        "steps": steps,
        "passes": passes,
        "seconds": seconds,
        "seconds_over_pass": seconds / one_pass,
        **identify(case.pair),
        **case.scores(case.check(heat)),
    }


def summary(rows: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """Per way to draw: cost, scores with intervals, and by how much it beats the reference."""
    of_reference = {row["id"]: row for row in rows if row["method"] == reference}
    result = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        beside = [
            row | {key: row[key] - of_reference[row["id"]][key] for key in SCORES}
            for row in own
            if None not in [row[key] for key in SCORES] and row["id"] in of_reference
        ]
        overall = summarise(own, scores=tuple(SCORES))["all"]
        over = summarise(beside, scores=tuple(SCORES))["all"] if beside else {}
        result.append(
            {
                "method": name,
                "sampler": own[0]["sampler"],
                "steps": own[0]["steps"],
                "passes": own[0]["passes"],
                "seconds": statistics.mean(row["seconds"] for row in own),
                "seconds_over_pass": statistics.median(row["seconds_over_pass"] for row in own),
                **overall,
                "over_reference": {key: over[key] for key in SCORES if key in over},
            }
        )
    return result


def cheapest(entries: Sequence[Mapping[str, Any]], *, loss: float = LOSS) -> str:
    """The way with the fewest passes among those within ``loss`` GDice points of the best."""
    best = max(entry["gdice"][0] for entry in entries)
    good = [entry for entry in entries if entry["gdice"][0] >= best - loss]
    return min(good, key=lambda entry: (entry["passes"], -entry["gdice"][0]))["method"]


def front(entries: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """The ways that no cheaper one beats in a score, from cheap to dear."""
    kept: list[Mapping[str, Any]] = []
    for entry in sorted(entries, key=lambda entry: (entry["passes"], -entry[key][0])):
        if not kept or entry[key][0] > kept[-1][key][0]:
            kept.append(entry)
    return kept


def figure(result: Mapping[str, Any]) -> "Figure":
    """Both scores over network passes, a line a sampler, and the front that nothing beats."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 3.8), layout="constrained")
    for panel, (key, title) in zip(drawn.subplots(1, len(SCORES)), SCORES.items(), strict=True):
        for sampler in dict.fromkeys(row["sampler"] for row in result["rows"]):
            own = sorted(
                (row for row in result["rows"] if row["sampler"] == sampler),
                key=lambda row: row["passes"],
            )
            passes, means = [row["passes"] for row in own], [row[key][0] for row in own]
            low, high = (
                [abs(row[key][side] - row[key][0]) if len(row[key]) == 3 else 0 for row in own]
                for side in (1, 2)
            )
            panel.errorbar(
                passes,
                means,
                yerr=(low, high),
                marker="o",
                capsize=2,
                lw=1,
                alpha=0.8,
                label=sampler,
            )
            for row in own:
                panel.annotate(f" {row['steps']}", (row["passes"], row[key][0]), fontsize=7)
        best = front(result["rows"], key)
        panel.step(
            [row["passes"] for row in best],
            [row[key][0] for row in best],
            where="post",
            color="black",
            lw=0.8,
            ls=":",
            label="nothing cheaper is better",
        )
        panel.set(xscale="log", xlabel="network passes a recording", ylabel=f"{title} (%)")
        panel.grid(alpha=0.3)
    panel.legend(fontsize=7)
    meta = result["meta"]
    drawn.suptitle(
        f"{meta['draws']} draws, {meta['pairs']} pairs of {meta['split']}; numbers are steps",
        fontsize=9,
    )
    return drawn


def draw_figure(source: Path, picture: Path) -> None:
    """Draw the figure of a results file."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure(json.loads(source.read_text("utf-8"))).savefig(picture, dpi=120)
    print(f"wrote {picture}")


def main(words: Sequence[str] | None = None) -> None:
    """Measure every way to draw on one split, write the results and draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--every", type=int, default=9, help="keep every n-th pair")
    parser.add_argument("--limit", type=int, help="of those, keep the first n")
    parser.add_argument("--model", help="folder of a model, by default the embedded one")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SOLVERS)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--reference-steps", type=int, default=REFERENCE[1], help="of DDPM")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--journal", type=Path, default=ROOT.parent / "runs" / "steps.rows.jsonl")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "steps-val.json", help="JSON to write"
    )
    parser.add_argument("--picture", type=Path, default=PICTURE, help="figure to draw")
    parser.add_argument("--figure-only", action="store_true", help="of what --out holds")
    options = parser.parse_args(words)
    if options.figure_only:
        draw_figure(options.out, options.picture)
        return
    start = time.perf_counter()
    model = SpecSegDiff.from_pretrained(options.model) if options.model else default_model()
    pairs = [p for p in read_manifest(options.pairs) if p.split == options.split]
    pairs = pairs[:: options.every][: options.limit]
    ways = [(sampler, steps) for sampler in options.samplers for steps in options.steps]
    ways.append((REFERENCE[0], options.reference_steps))
    settings = {
        "model": fingerprint(model),
        "draws": options.draws,
        "threads": torch.get_num_threads(),
    }
    for sampler, _ in ways:
        model.scheduler(sampler=sampler)  # the first call imports; that is no part of a draw
    rows = open_journal(options.journal, settings)
    done = {(row["id"], row["method"]) for row in rows}
    for number, pair in enumerate(pairs, start=1):
        todo = [way for way in ways if (pair.id, named(*way)) not in done]
        if todo:
            case = load_case(pair, masks=MASKS, stft=model.stft)
            one_pass = seconds_of_a_pass(model, case)
        for sampler, steps in todo:
            row = score(model, case, sampler, steps, draws=options.draws, one_pass=one_pass)
            note_rows(options.journal, [row])
            rows.append(row)
        print(f"{number} of {len(pairs)} pairs, {time.perf_counter() - start:.0f} s", flush=True)
    names, ids = {named(*way) for way in ways}, {pair.id for pair in pairs}
    rows = [row for row in rows if row["method"] in names and row["id"] in ids]
    entries = summary(rows, named(REFERENCE[0], options.reference_steps))
    meta = provenance(
        model,
        split=options.split,
        pairs=len(pairs),
        every=options.every,
        draws=options.draws,
        cheapest_within_half_a_point=cheapest(entries),
    )
    write_results(options.out, {"meta": meta, "rows": entries})
    draw_figure(options.out, options.picture)


if __name__ == "__main__":
    main()
