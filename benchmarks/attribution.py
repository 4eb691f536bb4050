"""Segmenters, attributions and controls on the corpus: against true masks and against a detector.

    python benchmarks/attribution.py                 writes results/attribution.json
    python benchmarks/attribution.py --figure P.png  draws all methods under four vocoders
    python benchmarks/attribution.py --timing        writes results/attribution-timing.json

Per method: means and 95 % intervals by source group of everything that
`specsegdiff.benchmark.measure` measures, seen and unseen vocoders apart, and how alike its maps are
among the vocoders of one recording. Rows are kept in ``runs/`` as they come: run the same command
again to go on. ``benchmarks/table.py`` renders the results.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from provenance import RESULTS, provenance, write_results
from torch import Tensor

from baselines import AttnLRP, DeepSHAP, GradientSHAP, MeanMaskByFrequency
from specsegdiff.api import default_model
from specsegdiff.benchmark import TRUTH, entries, load_detector, load_methods, measure
from specsegdiff.benchmark.cost import measured
from specsegdiff.benchmark.fingerprints import fingerprint
from specsegdiff.benchmark.scoring import load_case
from specsegdiff.data.manifest import read_manifest
from specsegdiff.data.pairs import Pair, load_pair
from specsegdiff.explanation import Explainer
from specsegdiff.frontend import Stft
from specsegdiff.masks import MaskConfig
from specsegdiff.models.wav2vec2_aasist import Wav2Vec2AASIST
from specsegdiff.plots import vocoder_figure
from specsegdiff.sampling import sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent
RATE = 16_000
MASKS, STFT = MaskConfig(), Stft()

REGISTERED = {
    "SpecSegDiff": "specsegdiff",
    "ADDSegDiff": "addsegdiff",
    "GradientSHAP": "gradientshap",
    "AttnLRP": "attnlrp",
    "integrated gradients": "integrated-gradients",
    "occlusion": "occlusion",
    "random": "random",
    "low energy": "low-energy",
    "energy": "energy",
}
"Methods that need nothing but a detector, and the names that they are registered under."

GROUPS = {
    "ours": ("SpecSegDiff", "ADDSegDiff"),
    "attribution": (
        "DeepSHAP",
        "DeepSHAP, captum's rules",
        "GradientSHAP",
        "AttnLRP",
        "integrated gradients",
        "occlusion",
    ),
    "control": ("random", "low energy", "energy", "mean mask by frequency", TRUTH),
}
"What each method is."

METHODS = [name for names in GROUPS.values() for name in names if name != TRUTH]
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def build(name: str, detector: Any, training: Sequence[Pair]) -> Explainer:
    """A method by its name in the table; some look at training pairs."""
    if name == "DeepSHAP":
        return DeepSHAP(detector, references=real_waves(training))
    if name == "DeepSHAP, captum's rules":
        return DeepSHAP(detector, references=real_waves(training), rules="captum")
    if name == "mean mask by frequency":
        cases = (load_case(pair, masks=MASKS, stft=STFT) for pair in training)
        return MeanMaskByFrequency.fit(case.truth for case in cases)
    return load_methods([REGISTERED[name]], detector)[REGISTERED[name]]


def real_waves(training: Sequence[Pair], count: int = 20) -> list[Tensor]:
    """First 4 s of ``count`` real recordings, evenly spread over the training split."""
    by_recording = {pair.real: pair for pair in training}
    pairs = [by_recording[real] for real in sorted(by_recording)]
    step = max(len(pairs) // count, 1)
    return [load_pair(pair)[0][: 4 * RATE] for pair in pairs[::step][:count]]


def headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """GDice of our best method over the best attribution's, seen and unseen vocoders apart.

    An attribution counts with the better of its two rankings. ``over_chance`` is the ratio of what
    both have above the random control.
    """
    result = {}
    for part in ("seen", "unseen"):
        there = [row for row in rows if part in row]
        chance = [row[part]["gdice"][0] for row in there if row["method"] == "random"]
        best = {
            group: max(
                (max(row[part][score][0] for score in ("gdice", "gdice_by_value")), row["method"])
                for row in there
                if row["group"] == group
            )
            for group in ("ours", "attribution")
            if any(row["group"] == group for row in there)
        }
        if len(best) < 2:
            continue
        (ours, our_name), (theirs, their_name) = best["ours"], best["attribution"]
        result[part] = {
            "ours": [our_name, ours],
            "attribution": [their_name, theirs],
            "ratio": ours / theirs,
            "over_chance": (
                (ours - chance[0]) / (theirs - chance[0]) if chance and theirs > chance[0] else None
            ),
            "chance": chance[0] if chance else None,
        }
    return result


def four_vocoders(pairs: Sequence[Pair]) -> list[Pair]:
    """Four fakes of the recording with the most families, families apart first, of one length."""
    by_recording: dict[Path, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_recording[pair.real].append(pair)
    chosen = max(by_recording.values(), key=lambda own: (len({p.family for p in own}), len(own)))
    firsts = {pair.family: pair for pair in reversed(chosen)}
    rest = [pair for pair in chosen if pair not in firsts.values()]
    four = [*firsts.values(), *rest][:4]
    n = min(len(load_pair(pair)[1]) for pair in four)
    return [replace(pair, n_samples=n) for pair in four]


def figure(methods: Mapping[str, Explainer], pairs: Sequence[Pair]) -> "Figure":
    """Maps of all methods for one recording under four vocoders, with the true masks outlined."""
    cases = [load_case(pair, masks=MASKS, stft=STFT) for pair in four_vocoders(pairs)]
    names = [case.pair.vocoder for case in cases]
    maps = {
        method: {
            name: case.check(explainer(case.fake[None])[0], name=method)
            for name, case in zip(names, cases, strict=True)
        }
        for method, explainer in methods.items()
    }
    truths = dict(zip(names, (case.truth for case in cases), strict=True))
    return vocoder_figure(maps, STFT.axes(len(cases[0].fake)), masks=truths)


def timing(preset: str) -> dict[str, Any]:
    """One map of 4 s by each method in one run; the detector has random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Wav2Vec2AASIST.from_preset(preset).eval()
    model = default_model()
    wave = 0.05 * torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(0))
    methods: dict[str, Explainer] = {
        "AttnLRP": AttnLRP(detector),
        "GradientSHAP, 20 samples": GradientSHAP(detector, samples=20),
        "SpecSegDiff, 32 draws of two steps": lambda wave: (
            sample(model, model.condition(wave), draws=32, steps=2).mean
        ),
        "SpecSegDiff, the default's one pass": lambda wave: (
            sample(model, model.condition(wave)).mean
        ),
    }
    rows = []
    for name, method in methods.items():
        heat, cost = measured(lambda method=method: method(wave))
        assert heat.shape == (1, *STFT.axes(4 * RATE).shape)
        rows.append({"method": name, **cost._asdict()})
        print(rows[-1], flush=True)
    return {"parameters": sum(value.numel() for value in detector.parameters()), "rows": rows}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, draw or time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", default="../shared/corpus/pairs.csv", help="manifest")
    parser.add_argument("--split", default="test")
    parser.add_argument("--detector", default="embedded", help="as specsegdiff benchmark takes it")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--ranking", choices=("absolute", "value"), default="absolute")
    parser.add_argument("--every", type=int, default=1, help="keep every n-th pair")
    parser.add_argument("--journal", type=Path, help="rows as they come, by default in runs/")
    parser.add_argument("--figure", type=Path, help="draw this picture instead")
    parser.add_argument("--timing", action="store_true", help="time three methods instead")
    parser.add_argument("--preset", default="paper", help="size of the detector that is timed")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args(words)
    if options.timing:
        if options.preset != "tiny":
            timing("tiny")  # imports and caches are no part of a map
        meta = provenance(default_model(), detector=options.preset, seconds_of_audio=4)
        out = options.out or RESULTS / "attribution-timing.json"
        write_results(out, {"meta": meta, **timing(options.preset)})
        return
    start = time.perf_counter()
    everything = read_manifest(options.pairs)
    pairs = [pair for pair in everything if pair.split == options.split][:: options.every]
    training = [pair for pair in everything if pair.split == "train"]
    detector = load_detector(options.detector)
    methods = {name: build(name, detector, training) for name in options.methods}
    if options.figure:
        figure(methods, pairs).savefig(options.figure, dpi=120)
        print(f"wrote {options.figure}")
        return

    def tell(done: int, total: int) -> None:
        print(f"{done} of {total} pairs, {time.perf_counter() - start:.0f} s", flush=True)

    rows = measure(
        methods,
        pairs,
        detector=detector,
        ranking=options.ranking,
        masks=MASKS,
        journal=options.journal or ROOT.parent / "runs" / "attribution.rows.jsonl",
        progress=tell,
    )
    summary = [entry | {"group": GROUP_OF[entry["method"]]} for entry in entries(rows)]
    meta = provenance(
        default_model(),
        split=options.split,
        pairs=len(pairs),
        every=options.every,
        ranking=options.ranking,
        detector=fingerprint(detector),
    )
    out = options.out or RESULTS / "attribution.json"
    write_results(out, {"meta": meta, "headline": headline(summary), "rows": summary})


if __name__ == "__main__":
    main()
