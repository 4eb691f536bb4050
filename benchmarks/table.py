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
        file, render = results / f"{match['name']}.json", RENDERERS[match["name"]]
        content = render(json.loads(file.read_text("utf-8"))) if file.exists() else MISSING
        return f"{match[1]}{content}{match[3]}"

    return BLOCK.sub(block, text)


def segmentation(result: Mapping[str, Any]) -> str:
    """Markdown of a segmentation result: our methods first, then the controls."""
    meta, rows = result["meta"], sorted(result["rows"], key=lambda row: row["group"] != "ours")
    columns = [(part, score) for score in SCORES for part in PARTS]
    head = ["method", *(f"{SCORES[score]}, {PARTS[part]}" for part, score in columns)]
    lines = [head, ["---", *("---:" for _ in columns)]]
    for row in rows:
        name = f"**{row['method']}**" if row["group"] == "ours" else row["method"]
        lines.append([name, *(cell(row[part].get(score)) for part, score in columns)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    counts = " and ".join(
        f"{max(row[part].get('pairs', 0) for row in rows)} pairs of {name}"
        for part, name in PARTS.items()
    )
    return (
        f"{table}\nPercent, with 95 % bootstrap intervals by source recording; GDice at each map's "
        f"own top 5 %. Split {meta['split']}: {counts}. Commit {meta['commit'][:8]}, "
        f"{meta['date']}, {meta['device']}.\n"
    )


def speed(result: Mapping[str, Any]) -> str:
    """Markdown of a speed result: one line a measurement."""
    meta, parts = result["meta"], result["parts"]
    clip, ratio = parts["clip_4_s"], parts["procedures_4_s"]
    paper, long = parts["paper_network_4_s"], parts["half_hour_over_half_minute"]
    lines = [
        ("measurement", "result"),
        ("---", "---:"),
        (
            "`explain` of a 4 s clip, after loading",
            f"{clip['seconds']:.2f} s, peak {clip['peak_mb']:.0f} MB",
        ),
        (
            "published procedure (condition encoded at each draw and step, 100 steps, 32 draws) "
            "over the default, same network",
            f"{ratio['published_over_default']:.1f} times",
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
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return (
        f"{table}\n{meta['threads']} threads of a {meta['device']}, {meta['precision']}. "
        f"Commit {meta['commit'][:8]}, {meta['date']}.\n"
    )


def cell(score: Sequence[float] | None) -> str:
    """One score: its mean, with the interval where there is one."""
    if score is None:
        return "-"
    mean, *bounds = (f"{value:.1f}" for value in score)
    return f"{mean} ({' to '.join(bounds)})" if bounds else mean


RENDERERS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "segmentation": segmentation,
    "speed": speed,
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
