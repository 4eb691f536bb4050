"""Render the results files into the README and the docs.

    python benchmarks/table.py            rewrites every block between <!-- results:NAME --> markers
    python benchmarks/table.py --check    ends with 1 where a block is stale

A block ``NAME`` shows ``benchmarks/results/NAME.json``; `RENDERERS` knows the names.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- results:(?P<name>[\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
MISSING = "Not measured yet.\n"

PARTS = {"seen": "seen vocoders", "unseen": "unseen vocoders"}
SCORES = {"gdice": "GDice", "average_precision": "AP"}


def pages() -> list[Path]:
    """Files that may hold a block."""
    cards = (ROOT / "specsegdiff" / "assets").rglob("*.md")
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(cards)]


def fill(text: str, results: Path) -> str:
    """Text with each of its blocks rendered anew from ``results/NAME.json``."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        file, render = results / f"{OTHER_FILES.get(name, name)}.json", RENDERERS[name]
        content = render(json.loads(file.read_text("utf-8"))) if file.exists() else MISSING
        return f"{match[1]}{content}{match[3]}"

    return BLOCK.sub(block, text)


def segmentation(result: Mapping[str, Any]) -> str:
    """Markdown of a segmentation result: our methods first, then the controls."""
    meta, rows = result["meta"], sorted(result["rows"], key=lambda row: row["group"] != "ours")
    parts = [part for part in PARTS if part in rows[0]]
    columns = [(part, score) for score in SCORES for part in parts]
    head = ["method", *(f"{SCORES[score]}, {PARTS[part]}" for part, score in columns)]
    lines = [
        [
            _named(row),
            *(cell(row[part].get(score)) for part, score in columns),
            cell([row["spread_auroc"]] if "spread_auroc" in row else None),
        ]
        for row in rows
    ]
    counts = " and ".join(
        f"{max(row[part].get('pairs', 0) for row in rows)} pairs of {PARTS[part]}" for part in parts
    )
    return (
        f"{_table([*head, 'AUROC of the spread'], lines)}\nPercent, with 95 % bootstrap intervals "
        "by source recording; GDice at each map's own top 5 %; AUROC of 'this bin is on the wrong "
        f"side' by the map's spread. Split {meta['split']}: {counts}. "
        f"{_commit(meta)}, {meta['device']}.\n"
    )


def four_vocoders(result: Mapping[str, Any]) -> str:
    """Markdown of the paper's protocol, where the vocoders of training and test are the same."""
    meta, rows = result["meta"], sorted(result["rows"], key=lambda row: row["group"] != "ours")
    families = sorted({family for row in rows for family in row["family"]})
    lines = [
        [
            _named(row),
            *(cell(row["overall"].get(score)) for score in SCORES),
            *(cell(row["family"].get(family, {}).get("gdice")) for family in families),
        ]
        for row in rows
    ]
    head = ["method", *SCORES.values(), *(f"GDice, {family}" for family in families)]
    return (
        f"{_table(head, lines)}\nPercent, with 95 % bootstrap intervals by source recording; "
        f"{meta['pairs']} pairs, split {meta['split']}. "
        f"{_commit(meta)}, {meta['device']}.\n"
    )


def attribution(result: Mapping[str, Any]) -> str:
    """Markdown of the benchmark of explanations: truth and cost, detector, and content."""
    meta, rows = result["meta"], _in_order(result["rows"])
    truth = {"gdice": "GDice", "foreground_dice": "Dice", "average_precision": "AP"}
    cost = {"seconds": "seconds", "peak_mb": "MB"}
    detector = {"ai": "AI ↑", "ad": "AD ↓", "ag": "AG ↑", "fid_in": "Fid-In ↑", "ff": "FF ↑"}
    alike = {"maps": "alike", "gap": "alike beyond the truth", "specificity": "specific"}
    ranked = {
        "absolute": "Signed maps are ranked by absolute value.",
        "value": "Signed maps are ranked by value: evidence for spoof first.",
    }
    counts = " and ".join(
        f"{max(row[part]['pairs'] for row in rows if part in row)} pairs of {name}"
        for part, name in PARTS.items()
        if any(part in row for row in rows)
    )
    every = "" if meta["every"] == 1 else f", every {meta['every']}th pair"
    recordings = max(row.get("similarity", {}).get("pairs", 0) for row in rows)
    return (
        f"{_by_vocoders(rows, truth | cost)}\n{_headline(result['headline'])}"
        f"GDice and Dice at each map's own top 5 %, in percent. {ranked[meta['ranking']]} Cost of "
        "one map on one CPU; MB is the growth of the resident memory.\n\n"
        f"{_by_vocoders(rows, detector)}\n"
        "What the detector makes of those 5 % alone (AI, AD, AG, Fid-In, in percent) and of the "
        "rest (FF, from -1 to 1).\n\n"
        f"{_table(['method', *alike.values()], [_similarity(row, alike) for row in rows])}\n"
        f"For one recording under several vocoders ({recordings} recordings), "
        "phi coefficients of masks: among the method's "
        "own, that less the same among the true masks, and with the own truth less with another "
        "vocoder's. A method that draws content has 1, the largest, 0; the true mask has 0 in the "
        "middle.\n\n"
        f"95 % bootstrap intervals by source recording. Split {meta['split']}{every}: {counts}. "
        f"Detector {meta['detector'][:24]}. {_commit(meta)}, "
        f"{meta['device']}.\n"
    )


def attribution_brief(result: Mapping[str, Any]) -> str:
    """Markdown of the same benchmark in short: GDice and the ratio."""
    meta = result["meta"]
    lines = [
        [_named(row), *(cell(row.get(part, {}).get("gdice")) for part in PARTS)]
        for row in _in_order(result["rows"])
        if row["method"] != "true mask"
    ]
    return (
        f"{_table(['method', *(f'GDice, {name}' for name in PARTS.values())], lines)}\n"
        f"{_headline(result['headline'])}Split {meta['split']}, every {meta['every']}th pair, "
        f"with 95 % bootstrap intervals by source recording. {_commit(meta)}, {meta['device']}.\n"
    )


def attribution_timing(result: Mapping[str, Any]) -> str:
    """Markdown of the time that one map takes at the published size of the detector."""
    meta, ours = result["meta"], result["rows"][-1]
    lines = [
        [
            row["method"],
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / ours['seconds']:.0f}",
            cell(row["peak_mb"] and [row["peak_mb"]]),
        ]
        for row in result["rows"]
    ]
    head = ["one map", "seconds", "times ours", "MB"]
    return (
        f"{_table(head, lines)}\n{meta['seconds_of_audio']} s of audio; detector of "
        f"{result['parameters'] / 1e6:.0f} million parameters with random weights, one run, "
        f"{meta['threads']} threads of a {meta['device']}. MB is the growth of the resident "
        f"memory. {_commit(meta)}.\n"
    )


def cells(result: Mapping[str, Any]) -> str:
    """Markdown of top cells against true cells."""
    meta = result["meta"]
    names = {f"recall_at_{meta['k']}": f"R@{meta['k']}", "average_precision": "AP"}
    parts = {"all": "test", "seen": "seen", "unseen": "unseen"}
    lines = [
        [
            f"**{row['method']}**" if row["method"] == meta["chosen"] else row["method"],
            str(row["all"]["pairs"]),
            *(
                cell(row.get(part, {}).get(score), "similarity")
                for score in names
                for part in parts
            ),
        ]
        for row in result["test"]
    ]
    columns = (f"{n}, {p}" for n in names.values() for p in parts.values())
    return (
        f"{_table(['cells ranked by', 'pairs', *columns], lines)}\n4 x 4 grid on linear frequency, "
        "with 95 % bootstrap intervals by source recording; bold is what val chose. Attributions "
        f"on every {meta['attributions_every']}th pair; constants of a vocoder, and masks of "
        "others, where there are any. "
        f"{meta['draws']} draws of {meta['steps']} steps. {_commit(meta)}, {meta['device']}.\n"
    )


def detection(result: Mapping[str, Any]) -> str:
    """Markdown of the detector's equal error rates."""
    meta = result["meta"]
    splits = {name: result[name] for name in ("val", "test") if name in result}
    lines = [
        [split, part, str(found["fakes"]), cell(found["percent"])]
        for split, parts in splits.items()
        for part, found in parts["eer"].items()
    ]
    families = sorted({family for parts in splits.values() for family in parts["eer_by_family"]})
    rows = [
        [
            family,
            *(
                cell([parts["eer_by_family"][family]] if family in parts["eer_by_family"] else None)
                for parts in splits.values()
            ),
        ]
        for family in families
    ]
    reals = " and ".join(f"{parts['real']} of {name}" for name, parts in splits.items())
    gaps = " and ".join(
        f"{parts['calibration_error']:.1f} % on {name}" for name, parts in splits.items()
    )
    return (
        f"{_table(['split', 'vocoders', 'fakes', 'EER in percent'], lines)}\n"
        f"{_table(['family', *(f'EER, {name}' for name in splits)], rows)}\n"
        f"Against the same real recordings ({reals}), with 95 % bootstrap intervals by source "
        f"recording. Expected calibration error of `p_spoof`, both classes weighing the same: "
        f"{gaps}; the temperature ({meta['temperature']:.2f}) was fitted on val. "
        f"{_commit(meta)}, {meta['device']}.\n"
    )


def narration(result: Mapping[str, Any]) -> str:
    """Markdown of narrators: the cells that they name, and the words that they find."""
    meta, test = result["meta"], result["test"]
    k = meta["k"]
    scores = {
        f"recall_at_{k}": f"R@{k}",
        "over_constant": "over constant cells",
        f"ndcg_binary_at_{k}": "nDCG",
        f"ndcg_graded_at_{k}": "nDCG, graded",
        "average_precision": "AP",
    }
    lines = [
        [
            row["method"],
            str(row["all"]["pairs"]),
            *(cell(row["all"].get(score), "similarity") for score in scores),
        ]
        for row in test["cells"]
    ]
    fields = ("time", "frequency", "phone")
    words = [
        [
            row["narrator"],
            *(cell(row["fake"]["on_hits"][field], "similarity") for field in fields),
            cell(row["fake"]["end_to_end"], "similarity"),
            cell(row["genuine twin"]["end_to_end"], "similarity"),
            cell(row["genuine twin"]["on_hits"]["average"], "similarity"),
            cell(row["coverage"], "similarity"),
        ]
        for row in test["words"]
    ]
    head = ("words by", "T", "F", "P", "FieldAcc", "FieldAcc, twin", "on hits, twin", "CovAvg")
    texts = {
        "rouge_l": "ROUGE-L, on hits",
        "rouge_l_end_to_end": "ROUGE-L",
        "field_accuracy_from_text": "fields read from the text, on hits",
        "consistency": "consistency",
    }
    read = [[row["narrator"], *_shares(row["fake"]["scores"], texts)] for row in test["words"]]
    rewards = "; ".join(
        f"{name}, {ends['steps']} steps: {ends['reward'][0]:.2f} to {ends['reward'][1]:.2f}"
        for name, ends in result["rewards"].items()
    )
    return (
        f"{_table(['cells named by', 'pairs', *scores.values()], lines)}\n"
        f"{_table(head, words)}\n"
        f"{_table(['text by', *texts.values()], read)}\n"
        f"Test, 4 x 4 grid on linear frequency, lists of {k} cells, with 95 % bootstrap intervals "
        "by source recording where there are any. Graded nDCG also asks for the order of the true "
        "cells. T, F and P are the shares of right words on hits; FieldAcc is end to "
        "end, multiplied by the hit rate as GRIDEX publishes it. Their truth is a rule's, on the "
        "fake's own sound, which the rule narrator hears too, or on that of the genuine twin, "
        "which no narrator hears. ROUGE-L is to the sentences that examples for training have, so "
        "that other words for the same cost it; like FieldAcc, it is end to end unless on hits. "
        "Consistency is the share of fields that a text agrees with its own line in. Sampled "
        "reward of GRPO, mean of the first and of the last tenth: "
        f"{rewards}. {_commit(meta)}, {meta['device']}.\n"
    )


def speed(result: Mapping[str, Any]) -> str:
    """Markdown of a speed result: one line a measurement."""
    meta, parts = result["meta"], result["parts"]
    clip, ratio = parts["clip_4_s"], parts["procedures_4_s"]
    paper, long = parts["paper_network_4_s"], parts["half_hour_over_half_minute"]
    lines = [
        (
            "`explain` of a 4 s clip, after loading",
            f"{clip['seconds']:.2f} s, peak {clip['peak_mb']:.0f} MB",
        ),
        (
            "published procedure (condition encoded at each draw and step, 100 steps, 32 draws) "
            "over the default, same network",
            f"{ratio['published_over_default']:.0f} times",
        ),
        (
            "the same over 32 draws of two steps",
            f"{ratio['published_over_draws_32_steps_2']:.0f} times",
        ),
        (
            "the same at 100 steps on both sides: encoding the condition once",
            f"{ratio['published_over_cached_100_steps']:.2f} times",
        ),
        ("the same for the published network", f"{paper['published_over_cached']:.2f} times"),
        (
            "a file of 30 minutes over one of 30 seconds",
            f"{long['seconds']:.1f} times the time, {long['peak_mb']:.2f} times the peak memory",
        ),
        ("`import specsegdiff` beyond torch", f"{parts['import']['beyond_torch_s']:.2f} s"),
    ]
    table = _table(("measurement", "result"), lines)
    return (
        f"{table}\n{meta['threads']} threads of a {meta['device']}, {meta['precision']}. "
        f"{_commit(meta)}.\n"
    )


AFTERWARDS = ("write maps", "page with report and pictures")
"Parts of the pipeline that come after `explain`."


def pipeline(result: Mapping[str, Any]) -> str:
    """Markdown of where the time goes, and of time and memory over length."""
    meta, parts = result["meta"], result["parts"]
    whole = {
        seconds: sum(value for name, value in found.items() if name not in AFTERWARDS)
        for seconds, found in parts.items()
    }

    def told(name: str, seconds: str) -> str:
        value = parts[seconds][name]
        share = "" if name in AFTERWARDS else f", {100 * value / whole[seconds]:.0f} %"
        return f"{1000 * value:.0f} ms{share}"

    shares = [
        [name, *(told(name, seconds) for seconds in parts)] for name in next(iter(parts.values()))
    ]
    growth = [
        [
            f"{float(seconds):g} s",
            f"{found['seconds']:.2f} s",
            f"{float(seconds) / found['seconds']:.0f}",
            f"{found['peak_mb']:.0f} MB",
        ]
        for seconds, found in result["growth"].items()
    ]
    head = ["a file of", "explained in", "seconds of audio a second", "peak memory"]
    return (
        f"{_table(['part', *(f'{s} s of audio' for s in parts)], shares)}\n"
        f"{_table(head, growth)}\nShares are of `explain`; the last two parts come after it. Each "
        f"length in a process of its own. {meta['threads']} threads of a {meta['device']}, "
        f"{meta['precision']}. {_commit(meta)}.\n"
    )


def corpus(result: Mapping[str, Any]) -> str:
    """Markdown of what explaining a corpus costs in time and room."""
    meta, through, weight = result["meta"], result["throughput"], result["bytes_per_minute"]
    sizes = result["growth"]["by_files"]
    cores, largest = through["cores"], max(sizes, key=int)
    costs = ", ".join(f"{found['ms_per_file']:.2f}" for found in sizes.values())
    lines = [
        ("hours of audio an hour, one worker with one thread", f"{through['workers_1']:.1f}"),
        (f"the same, {cores} workers on {cores} cores", f"{through[f'workers_{cores}']:.1f}"),
        ("one worker over a plain loop", f"{through['one_worker_over_loop']:.2f} times"),
        (f"{cores} workers over one", f"{through['all_cores_over_one_worker']:.2f} times"),
        (f"the run itself, ms a recording of {', '.join(sizes)}", costs),
        (
            f"finding {largest} recordings done, ms a recording",
            f"{sizes[largest]['ms_per_file_again']:.3f}",
        ),
        (
            "masks, kB a minute of audio",
            f"{weight['mask'] / 1000:.0f}, {weight['mask_raw'] / 1000:.0f} before compression",
        ),
        (
            "full heatmaps on request, kB a minute",
            f"{weight['heatmap'] / 1000:.0f}, {weight['heatmap_raw'] / 1000:.0f} before",
        ),
        ("all else, kB a recording", f"{weight['all_else_per_file'] / 1000:.1f}"),
    ]
    return (
        f"{_table(['a corpus', 'result'], lines)}\n{through['clips']} clips of "
        f"{through['clip_s']:g} s for the throughput, with the embedded detector; room measured on "
        f"{weight['files']} recordings. {meta['device']}, {meta['precision']}. "
        f"{_commit(meta)}.\n"
    )


def runtimes(result: Mapping[str, Any]) -> str:
    """Markdown of what other runtimes take for the networks of one pass."""
    meta = result["meta"]
    lines = [
        [name, f"{row['ratio']:.2f}", f"{row['difference']:.0e}" if row["difference"] else "-"]
        for name, row in result["rows"].items()
    ]
    head = ["networks of one pass by", "time over PyTorch's", "largest difference of a bin's heat"]
    return (
        f"{_table(head, lines)}\n{meta['threads']} threads of a {meta['device']}, in one run. "
        f"{_commit(meta)}.\n"
    )


def newcomer(result: Mapping[str, Any]) -> str:
    """Markdown of the time to the first picture."""
    meta, ways = result["meta"], result["seconds"]
    named = {"clone": "`git clone`, `./run example`", "wheel": "the wheel, `specsegdiff explain`"}
    lines = [
        [
            named[way],
            f"{(found['get'] + found['first']) / 60:.1f} minutes",
            f"{100 * (1 - found['again'] / (found['get'] + found['first'])):.0f} %",
            f"{found['again']:.0f} s",
        ]
        for way, found in ways.items()
    ]
    head = ["from nothing to a picture by", "first time", "of it, installing", "each time after"]
    return (
        f"{_table(head, lines)}\nWith an empty home folder, and as fast as packages come here. "
        f"{_commit(meta)}, {meta['device']}.\n"
    )


def _commit(meta: Mapping[str, Any]) -> str:
    return f"Commit {meta['commit'][:8]}, {meta['date']}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *("---:" for _ in head[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ruler, *lines))


def _by_vocoders(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A line for each method and kind of vocoders."""
    lines = [
        [_named(row), part, *(cell(row[part].get(name), name) for name in columns)]
        for row in rows
        for part in PARTS
        if part in row
    ]
    return _table(["method", "vocoders", *columns.values()], lines)


def _shares(scores: Mapping[str, float | None], names: Mapping[str, str]) -> list[str]:
    """Scores that were kept without an interval."""
    found = (scores.get(name) for name in names)
    return [cell(None if value is None else [value], "similarity") for value in found]


def _similarity(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    scores = row.get("similarity", {})
    return [_named(row), *(cell(scores.get(name), "similarity") for name in columns)]


def _in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Our methods first, then the attributions, then the controls."""
    order = ("ours", "attribution", "control")
    return sorted(rows, key=lambda row: order.index(row["group"]))


def _named(row: Mapping[str, Any]) -> str:
    return f"**{row['method']}**" if row["group"] == "ours" else row["method"]


def _headline(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence for each kind of vocoders."""
    text = ""
    for part, found in parts.items():
        (ours, high), (theirs, low) = found["ours"], found["attribution"]
        text += (
            f"On {PARTS[part]}, GDice of {ours} ({high:.1f}) is {found['ratio']:.1f} times that of "
            f"the best attribution by the better of its two rankings, {theirs} ({low:.1f})"
        )
        if found["over_chance"] is not None:
            text += f"; above chance ({found['chance']:.1f}), {found['over_chance']:.1f} times"
        elif found["chance"] is not None:
            text += f", which is not above chance ({found['chance']:.1f})"
        text += ". "
    return text


FINE = ("ff", "seconds", "similarity", "auc")
"Columns with two decimals."

BARE = ("seconds", "peak_mb")
"Columns without intervals: they are about this machine."


def cell(score: Sequence[float] | None, name: str = "") -> str:
    """One score: its mean, with the interval where there is one."""
    if score is None:
        return "-"
    mean, *bounds = (f"{value:.{2 if name in FINE else 1}f}" for value in score)
    return f"{mean} ({' to '.join(bounds)})" if bounds and name not in BARE else mean


def probes(result: Mapping[str, Any]) -> str:
    """Markdown of region-indexed probes: which parts of speech betray a vocoder."""
    meta = result["meta"]
    lines = [
        [
            row["encoder"],
            row["region"],
            f"{100 * row['present']['unseen']:.0f} %",
            *(cell(row["auc"].get(part), "auc") for part in ("val", "seen", "unseen")),
            *(cell(row.get(gain, {}).get("unseen"), "auc") for gain in ("over_all", "over_random")),
            f"{100 * row['rests_on']:.0f} %" if "rests_on" in row else "-",
        ]
        for row in result["rows"]
        if row["division"] in ("all", "sound", "band")
    ]
    head = ["encoder", "region", "present", "AUC, val", "AUC, seen", "AUC, unseen"]
    head += ["above all frames, unseen", "above random places, unseen", "decisions that rest on it"]
    fakes = meta["vocoded"]
    return (
        f"{_table(head, lines)}\nArea under the ROC curve with 95 % bootstrap intervals by source "
        "recording; probes trained on train, layer and penalty chosen on val. Above all frames: "
        "the difference to the probe of all of the encoder's frames, on the same recordings; above "
        "random places: to a probe of as many frames from anywhere. Decisions: of the fakes that "
        "the division's probes together call spoof, those that rest on the region. "
        f"{fakes['seen']} fakes of seen and {fakes['unseen']} of unseen vocoders. "
        f"{_commit(meta)}, {meta['device']}.\n"
    )


def grounding(result: Mapping[str, Any]) -> str:
    """Markdown of texts that point at regions: how far they fit above texts shuffled over them."""
    meta = result["meta"]
    constant = ("damage", "same cell")
    lines = [
        [
            row["axis"],
            row["text"],
            row["shuffled"],
            f"{100 * row['observed']:.0f} %",
            f"{100 * row['null']:.0f} %",
            cell([100 * row[name] + 0.0 for name in ("above", "low", "high")]),
        ]
        for row in result["agreement"]["reported cells"]
        if "undefined" not in row
        and (row["text"] == "rule narrator" or (row["axis"], row["shuffled"]) == constant)
    ]
    head = ["the text tells", "by", "shuffled over", "right", "right by chance", "points above"]
    family = result["classification"]
    return (
        f"{_table(head, lines)}\nThe three cells of a report on each of {meta['pairs']} test "
        "recordings; when, phone and kind of artifact as the pair shows them, damage is whether "
        "any kind is there. Chance: the same texts shuffled over the cells of their recording, "
        "over all recordings at one cell, or over cells of one band and kind of sound. 95 % "
        "bootstrap intervals by source recording. The family of damage tells the vocoder's family "
        f"in {cell([100 * v for v in family['family of damage']])} percent, a constant in "
        f"{cell([100 * v for v in family['constant']])}. "
        f"{_commit(meta)}, {meta['device']}.\n"
    )


def mfpt(result: Mapping[str, Any]) -> str:
    """Markdown of mix-frame post-training: recordings first, then frames of splices."""
    meta = result["meta"]
    named = {"utterance": "second stage alone", "mfpt": "both stages"}
    head = ["detector", "training data"]
    for title in ("EER", "over before", "over the second stage alone"):
        head += [f"{title}, {part}" for part in PARTS]
    lines = [
        [
            named.get(row["method"], "before"),
            f"{100 * row['share']:.0f} %" if row["share"] else "-",
            *(
                cell(row.get(name, {}).get(part))
                for name in ("eer", "over_before", "over_utterance")
                for part in PARTS
            ),
        ]
        for row in result["summary"]
    ]
    places = [(part, score) for part in PARTS for score in ("frame_eer", "segment_f1")]
    places += [
        ("all", "segment_f1_8"),
        ("control", "injected_eer"),
        ("control", "join_eer_in_real"),
    ]
    frames = []
    for share in sorted({row["share"] for row in result["rows"]}):
        found = [r["frames"] for r in result["rows"] if "frames" in r and r["share"] == share]
        values = [[run[part][score][0] for run in found] for part, score in places]
        means = [[sum(v) / len(v), min(v), max(v)] for v in values]
        frames.append([f"{100 * share:.0f} %", *(cell(mean) for mean in means)])
    titles = ["training data"]
    for part in PARTS.values():
        titles += [f"frame EER, {part}", f"F1, {part}"]
    titles += ["F1 of 160 ms, all", "control: injected frames, EER", "control: joins, EER"]
    counts = " and ".join(f"{meta['pairs'][part]} of {name}" for part, name in PARTS.items())
    seeds = max(row["seeds"] for row in result["summary"])
    return (
        f"{_table(head, lines)}\nEqual error rates of recordings on test in percent, means over "
        f"{seeds} seeds; differences in points, on the same recordings, below zero where fewer "
        "errors are made. 95 % bootstrap intervals by source recording, which say nothing of the "
        f"spread over seeds. Fakes: {counts}.\n\n"
        f"{_table(titles, frames)}\nThe frame scorer on spliced test clips, in percent: means over "
        "the seeds, lowest and highest of them in brackets. Half of all frames are spoofed: "
        "marking every frame gives an F1 of 67. The control splices recordings of one class: a "
        "scorer of synthesis has 50 there, one that finds cuts less. "
        f"{_commit(meta)}, {meta['device']}.\n"
    )


OTHER_FILES = {"attribution-brief": "attribution"}
"Blocks whose file has another name."

RENDERERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "segmentation": segmentation,
    "segmentation-val": segmentation,
    "segmentation-four-vocoders": four_vocoders,
    "detection": detection,
    "cells": cells,
    "speed": speed,
    "pipeline": pipeline,
    "corpus": corpus,
    "runtimes": runtimes,
    "newcomer": newcomer,
    "attribution": attribution,
    "attribution-brief": attribution_brief,
    "attribution-timing": attribution_timing,
    "probes": probes,
    "grounding": grounding,
    "mfpt": mfpt,
    "narration": narration,
}


def main() -> None:
    """Rewrite or check every page."""
    stale = []
    for page in pages():
        before = page.read_text("utf-8")
        after = fill(before, RESULTS)
        if after != before:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv[1:]:
                page.write_text(after, "utf-8")
    if "--check" in sys.argv[1:] and stale:
        sys.exit(f"stale: {', '.join(stale)}; run python benchmarks/table.py")
    print(f"rewrote {', '.join(stale)}" if stale else "all blocks are up to date")


if __name__ == "__main__":
    main()
