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
            {
                "method": "ours",
                "group": "ours",
                "seen": scores,
                "unseen": scores,
                "spread_auroc": 83.94,
            },
        ],
    }


def test_a_block_is_rendered_and_the_rest_stays(table: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "segmentation.json").write_text(json.dumps(result()))
    lines = table["fill"](PAGE, tmp_path).splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    gdice = "34.0 (31.0 to 37.3)"
    assert lines[4] == f"| **ours** | {gdice} | {gdice} | 20.0 | 20.0 | 83.9 |"
    assert lines[5] == f"| random | {gdice} | - | 20.0 | - | - |"
    assert "Commit 01234567, 2030-01-01" in lines[7]
    assert "9 pairs of seen vocoders and 9 pairs of unseen" in lines[7]


def test_a_split_without_unseen_vocoders_has_no_column_of_them(table: dict[str, Any]) -> None:
    found = result()
    for row in found["rows"]:
        del row["unseen"]
    head, *_, foot = table["segmentation"](found).splitlines()
    assert head == "| method | GDice, seen vocoders | AP, seen vocoders | AUROC of the spread |"
    assert "9 pairs of seen vocoders." in foot


def test_rendering_twice_changes_nothing(table: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "segmentation.json").write_text(json.dumps(result()))
    once = table["fill"](PAGE, tmp_path)
    assert table["fill"](once, tmp_path) == once


def test_without_results_a_block_says_so(table: dict[str, Any], tmp_path: Path) -> None:
    assert "Not measured yet.\n" in table["fill"](PAGE, tmp_path)


def benchmark_result() -> dict[str, Any]:
    scores = {
        "pairs": 9,
        "gdice": [34.04, 31.0, 37.26],
        "ad": [12.0, 10.0, 14.0],
        "ff": [0.456, 0.4, 0.5],
        "seconds": [1.234, 1.0, 1.5],
        "peak_mb": [56.7],
    }
    alike = {"maps": [0.9], "gap": [0.65, 0.6, 0.7], "specificity": [0.01]}
    return {
        "meta": {
            "commit": "0123456789",
            "date": "2030-01-01",
            "device": "cpu",
            "split": "test",
            "every": 4,
            "ranking": "absolute",
            "detector": "AASIST 0123456789abcdef0123456789abcdef",
        },
        "headline": {
            "seen": {
                "ours": ["ours", 34.04],
                "attribution": ["theirs", 12.0],
                "ratio": 34.04 / 12,
                "over_chance": None,
                "chance": 12.5,
            },
            "unseen": {
                "ours": ["ours", 30.0],
                "attribution": ["theirs", 12.0],
                "ratio": 2.5,
                "over_chance": 8.2,
                "chance": 9.5,
            },
        },
        "rows": [
            {"method": "random", "group": "control", "seen": scores},
            {"method": "theirs", "group": "attribution", "seen": scores, "similarity": alike},
            {"method": "ours", "group": "ours", "seen": scores, "unseen": scores},
        ],
    }


def test_the_benchmark_is_three_tables(table: dict[str, Any]) -> None:
    page = table["attribution"](benchmark_result())
    lines = page.splitlines()
    truth = "34.0 (31.0 to 37.3) | - | - | 1.23 | 56.7 |"
    assert lines[2] == f"| **ours** | seen | {truth}"
    assert lines[3] == f"| **ours** | unseen | {truth}"
    assert lines[5] == f"| random | seen | {truth}"
    assert "| **ours** | seen | - | 12.0 (10.0 to 14.0) | - | - | 0.46 (0.40 to 0.50) |" in lines
    assert "| theirs | 0.90 | 0.65 (0.60 to 0.70) | 0.01 |" in lines
    assert "| random | - | - | - |" in lines
    assert "On seen vocoders, GDice of ours (34.0) is 2.8 times" in page
    assert "which is not above chance (12.5). On unseen" in page
    assert "above chance (9.5), 8.2 times. " in page
    assert "every 4th pair: 9 pairs of seen vocoders and 9 pairs of unseen" in page


def test_the_timing_is_one_table(table: dict[str, Any]) -> None:
    meta = benchmark_result()["meta"] | {"threads": 2, "seconds_of_audio": 4}
    rows = [
        {"method": "slow", "seconds": 99.0, "peak_mb": None},
        {"method": "ours", "seconds": 2.344, "peak_mb": 100.04},
    ]
    page = table["attribution_timing"]({"meta": meta, "parameters": 317e6, "rows": rows})
    assert page.splitlines()[2:4] == ["| slow | 99.00 | 42 | - |", "| ours | 2.34 | 1 | 100.0 |"]
    assert "317 million" in page


def test_shares_of_the_time_are_of_explain(table: dict[str, Any]) -> None:
    meta = result()["meta"] | {"threads": 2, "precision": "torch.float32"}
    parts = {
        "4": {"read": 0.1, "encode": 0.3, "write maps": 9.0},
        "30": {"read": 1.0, "encode": 1.0, "write maps": 0.5},
    }
    growth = {"60": {"seconds": 3.0, "peak_mb": 900.4}}
    page = table["pipeline"]({"meta": meta, "parts": parts, "growth": growth})
    assert "| read | 100 ms, 25 % | 1000 ms, 50 % |\n| encode | 300 ms, 75 % |" in page
    assert "| write maps | 9000 ms | 500 ms |" in page
    assert "| 60 s | 3.00 s | 20 | 900 MB |" in page


def test_a_corpus_is_told_in_rates_and_room(table: dict[str, Any]) -> None:
    meta = result()["meta"] | {"precision": "torch.float32"}
    throughput = {"clips": 8, "clip_s": 4.0, "cores": 3, "workers_1": 10.0, "workers_3": 25.04}
    throughput |= {"one_worker_over_loop": 0.96, "all_cores_over_one_worker": 2.5}
    cost = {"ms_per_file": 1.5, "ms_per_file_again": 0.0456}
    weight = dict.fromkeys(("mask", "mask_raw", "heatmap", "heatmap_raw"), 2000.0)
    told = {
        "meta": meta,
        "throughput": throughput,
        "growth": {"by_files": {"10": cost, "200": cost}},
        "bytes_per_minute": weight | {"all_else_per_file": 3210.0, "files": 7},
    }
    page = table["corpus"](told)
    assert "| the same, 3 workers on 3 cores | 25.0 |" in page
    assert "| the run itself, ms a recording of 10, 200 | 1.50, 1.50 |" in page
    assert "| finding 200 recordings done, ms a recording | 0.046 |" in page
    assert "| all else, kB a recording | 3.2 |" in page


def test_no_page_lags_behind_its_results(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["table.py", "--check"])
    table["main"]()
    assert "up to date" in capsys.readouterr().out


def test_equal_error_rates_by_split_and_family(table: dict[str, Any], tmp_path: Path) -> None:
    split = {
        "real": 33,
        "eer": {"all": {"fakes": 92, "percent": [12.34, 10.0, 15.0]}},
        "eer_by_family": {"gan": 9.96},
        "calibration_error": 4.21,
    }
    found = {
        "meta": result()["meta"] | {"temperature": 1.5},
        "val": split,
        "test": split | {"eer_by_family": {"codec": 20.0}},
    }
    (tmp_path / "detection.json").write_text(json.dumps(found))
    text = table["fill"](PAGE.replace("segmentation", "detection"), tmp_path)
    assert "| val | all | 92 | 12.3 (10.0 to 15.0) |\n" in text
    assert "| codec | - | 20.0 |\n| gan | 10.0 | - |\n" in text
    assert "(33 of val and 33 of test)" in text
    assert "4.2 % on val" in text


def test_the_protocol_of_four_vocoders_shows_families(
    table: dict[str, Any], tmp_path: Path
) -> None:
    scores = {"gdice": [57.84, 53.3, 61.9], "average_precision": [57.7]}
    found = result() | {
        "rows": [
            {"method": "random", "group": "control", "overall": scores, "family": {}},
            {"method": "ours", "group": "ours", "overall": scores, "family": {"dsp": scores}},
        ]
    }
    found["meta"]["pairs"] = 184
    (tmp_path / "segmentation-four-vocoders.json").write_text(json.dumps(found))
    page = PAGE.replace("segmentation", "segmentation-four-vocoders")
    lines = table["fill"](page, tmp_path).splitlines()
    assert lines[2] == "| method | GDice | AP | GDice, dsp |"
    assert lines[4] == "| **ours** | 57.8 (53.3 to 61.9) | 57.7 | 57.8 (53.3 to 61.9) |"
    assert lines[5].endswith("| 57.7 | - |")
    assert "184 pairs, split test" in lines[7]


def test_the_pooling_that_val_chose_stands_out(table: dict[str, Any], tmp_path: Path) -> None:
    scores = {"recall_at_3": [0.6123, 0.5, 0.7], "average_precision": [0.5]}
    found = {
        "meta": result()["meta"]
        | {"k": 3, "chosen": "mean", "draws": 32, "steps": 2, "attributions_every": 5},
        "test": [
            {"method": "mean", "all": scores | {"pairs": 12}, "unseen": scores | {"pairs": 7}},
            {"method": "random", "all": scores | {"pairs": 3}},
        ],
    }
    (tmp_path / "cells.json").write_text(json.dumps(found))
    lines = table["fill"](PAGE.replace("segmentation", "cells"), tmp_path).splitlines()
    assert lines[2].startswith("| cells ranked by | pairs | R@3, test | R@3, seen | R@3, unseen |")
    assert lines[4].startswith("| **mean** | 12 | 0.61 (0.50 to 0.70) | - | 0.61 (0.50 to 0.70) |")
    assert lines[5].startswith("| random | 3 | 0.61")
    assert "Attributions on every 5th pair" in "".join(lines)


def test_narrators_are_a_table_of_cells_and_one_of_words(
    table: dict[str, Any], tmp_path: Path
) -> None:
    scores = {name: [0.5, 0.4, 0.6] for name in ("recall_at_3", "ndcg_binary_at_3")}
    scores["ndcg_graded_at_3"] = [0.375, 0.25, 0.5]
    scores |= {"over_constant": [-0.02, -0.1, 0.1], "average_precision": [0.25]}
    on_hits = {name: [1.0] for name in ("time", "frequency", "phone", "average")}
    texts = {"rouge_l": 0.781, "rouge_l_end_to_end": 0.39, "consistency": 0.875}
    texts["field_accuracy_from_text"] = 0.852
    words = {"on_hits": on_hits, "end_to_end": [0.4], "scores": texts}
    nothing = {"rouge_l": None, "rouge_l_end_to_end": 0.0}
    found = {
        "meta": result()["meta"] | {"k": 3},
        "test": {
            "cells": [{"method": "VLM", "all": scores | {"pairs": 12}}],
            "words": [
                {"narrator": "rules", "fake": words, "genuine twin": words, "coverage": [0.95]},
                {
                    "narrator": "silent",
                    "fake": words | {"on_hits": dict.fromkeys(on_hits), "scores": nothing},
                    "genuine twin": words,
                    "coverage": None,
                },
            ],
        },
        "rewards": {"grpo-1": {"steps": 200, "reward": [0.25, 0.5]}},
    }
    (tmp_path / "narration.json").write_text(json.dumps(found))
    lines = table["fill"](PAGE.replace("segmentation", "narration"), tmp_path).splitlines()
    assert "| VLM | 12 | 0.50 (0.40 to 0.60) | -0.02 (-0.10 to 0.10) | 0.50" in "\n".join(lines)
    assert "| 0.50 (0.40 to 0.60) | 0.38 (0.25 to 0.50) | 0.25 |" in "\n".join(lines)
    assert "| rules | 0.78 | 0.39 | 0.85 | 0.88 |" in lines
    assert "| silent | - | 0.00 | - | - |" in lines
    assert "| rules | 1.00 | 1.00 | 1.00 | 0.40 | 0.40 | 1.00 | 0.95 |" in lines
    assert "| silent | - | - | - | 0.40 | 0.40 | 1.00 | - |" in lines
    assert any("grpo-1, 200 steps: 0.25 to 0.50" in line for line in lines)
