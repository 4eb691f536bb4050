"""Rendered tables: blocks are filled from results, and pages that lag behind are noticed."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = "before\n<!-- results:segmentation -->\nold\n<!-- /results -->\nafter\n"


@pytest.fixture
def table() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "table.py"))


def result() -> dict[str, Any]:
    scores = {"gdice": [34.04, 31.0, 37.26], "average_precision": [20.0], "pairs": 9}
    return {
        "meta": {"commit": "0123456789", "date": "2030-01-01", "device": "cpu", "split": "test"},
        "rows": [
            {"method": "random", "group": "control", "seen": scores, "unseen": {"pairs": 7}},
            {"method": "ours", "group": "ours", "seen": scores, "unseen": scores},
        ],
    }


def test_a_block_is_rendered_and_the_rest_stays(table: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "segmentation.json").write_text(json.dumps(result()))
    lines = table["fill"](PAGE, tmp_path).splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert lines[4] == ("| **ours** | 34.0 (31.0 to 37.3) | 34.0 (31.0 to 37.3) | 20.0 | 20.0 |")
    assert lines[5] == "| random | 34.0 (31.0 to 37.3) | - | 20.0 | - |"
    assert "Commit 01234567, 2030-01-01" in lines[7]
    assert "9 pairs of seen vocoders and 9 pairs of unseen" in lines[7]


def test_rendering_twice_changes_nothing(table: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "segmentation.json").write_text(json.dumps(result()))
    once = table["fill"](PAGE, tmp_path)
    assert table["fill"](once, tmp_path) == once


def test_without_results_a_block_says_so(table: dict[str, Any], tmp_path: Path) -> None:
    assert "Not measured yet.\n" in table["fill"](PAGE, tmp_path)


def test_no_page_lags_behind_its_results(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["table.py", "--check"])
    table["main"]()
    assert "up to date" in capsys.readouterr().out
