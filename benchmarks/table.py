"""Render the results files into the README and the docs.

    python benchmarks/table.py            rewrites every block between <!-- results:NAME --> markers
    python benchmarks/table.py --check    ends with 1 where a block is stale

A block ``segmentation`` shows ``benchmarks/results/segmentation.json``; numbers are percent.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
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
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill(text: str, results: Path) -> str:
    """Text with each of its blocks rendered anew from ``results/NAME.json``."""

    def block(match: re.Match[str]) -> str:
        file = results / f"{match['name']}.json"
        content = segmentation(json.loads(file.read_text("utf-8"))) if file.exists() else MISSING
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


def cell(score: Sequence[float] | None) -> str:
    """One score: its mean, with the interval where there is one."""
    if score is None:
        return "-"
    mean, *bounds = (f"{value:.1f}" for value in score)
    return f"{mean} ({' to '.join(bounds)})" if bounds else mean


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
