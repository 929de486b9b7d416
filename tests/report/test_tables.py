"""Markdown tables from result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glass_fast.errors import DataError
from glass_fast.report.tables import ablation_markdown, fill, main


def result() -> dict[str, Any]:
    def arm(base: float, reference: float) -> dict[str, Any]:
        metrics = {
            "miou_i": base + 0.1,
            "miou_i_fg": base,
            "mbo_i_fg": base + 0.02,
            "fg_ari": base - 0.1,
        }
        return {
            "seeds": [0, 1, 2],
            "metrics": {k: {"mean": v, "std": 0.012, "values": [v] * 3} for k, v in metrics.items()},
            "relative": {"miou_i_fg": base / reference - 1},
        }

    return {
        "dataset": {"name": "partworld-test", "limit": 300},
        "protocol": "glass",
        "protocol_label": "glass: 256 px",
        "reference": "unguided",
        "candidate": "glass",
        "arms": {
            "glass": arm(0.56, 0.45),
            "unguided": arm(0.45, 0.45),
            "kmeans": {"seeds": [0], "metrics": {}},
        },
    }


def test_rows_order_and_figures() -> None:
    lines = ablation_markdown(result(), "results/ablation.json").splitlines()
    assert (
        lines[0] == "| method | seeds | mIoU_i, objects only | mBO_i, objects only | FG-ARI "
        "| mIoU_i, background counted |"
    )
    assert lines[2] == "| k-means | 1 | – | – | – | – |"
    assert lines[3] == "| unguided | 3 | 45.0 ± 1.2 | 47.0 ± 1.2 | 35.0 ± 1.2 | 55.0 ± 1.2 |"
    assert lines[4].startswith("| **glass** | 3 | 56.0 ± 1.2 (+24 %) | 58.0 ± 1.2 |")
    assert "partworld-test, 300 images" in lines[-1] and "`results/ablation.json`" in lines[-1]
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_a_real_ablation_result_is_understood() -> None:
    ablation = pytest.importorskip("glass_fast.evaluation.ablation")
    runs = {
        name: [
            {"miou_i": v + 0.1, "miou_i_fg": v, "mbo_i_fg": v, "fg_ari": 0.5, "seed": s}
            for s, v in enumerate((base, base + 0.02))
        ]
        for name, base in (("unguided", 0.40), ("glass", 0.50))
    }
    text = ablation_markdown(ablation.ablation_table(runs))
    # means 41 and 51, gain 51/41 - 1 = 24.4 %; deviation of two values 2 apart is 1.41
    assert "| unguided | 2 | 41.0 ± 1.4 |" in text
    assert "| **glass** | 2 | 51.0 ± 1.4 (+24 %) |" in text


def test_hostile_names_stay_in_their_cell() -> None:
    table = result()
    table["arms"]["a|b <script>"] = table["arms"]["glass"]
    row = next(line for line in ablation_markdown(table).splitlines() if "a\\|b" in line)
    assert "<script>" not in row


def test_fill_replaces_only_the_block() -> None:
    document = "a\n<!-- ablation:begin -->\nold\n<!-- ablation:end -->\nb\n"
    assert fill(document, "new") == "a\n<!-- ablation:begin -->\nnew\n<!-- ablation:end -->\nb\n"
    for broken in ("", document + document, "<!-- ablation:end --><!-- ablation:begin -->"):
        with pytest.raises(DataError):
            fill(broken, "new")


def test_command_fills_and_checks(tmp_path: Path) -> None:
    data, document = tmp_path / "ablation.json", tmp_path / "README.md"
    data.write_text(json.dumps(result()))
    document.write_text("x\n<!-- ablation:begin -->\n<!-- ablation:end -->\n")
    arguments = [str(data), str(document)]
    assert main([*arguments, "--check"]) == 3
    assert main(arguments) == 0
    assert "| **glass** |" in document.read_text()
    assert main([*arguments, "--check"]) == 0
    data.write_text("{}")
    assert main(arguments) == 3
    assert main([str(tmp_path / "absent.json"), str(document)]) == 3
