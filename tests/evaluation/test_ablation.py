"""Gains, deviations and the terminal table of an ablation."""

from __future__ import annotations

import json

import pytest

from glass_fast.errors import DataError
from glass_fast.evaluation.ablation import ablation_table, ablation_text, relative_gain


def run(seed: int, miou: float, miou_fg: float, mbo_fg: float, fg_ari: float, dataset: str = "test") -> dict:
    metrics = {"miou_i": miou, "miou_i_fg": miou_fg, "mbo_i_fg": mbo_fg, "fg_ari": fg_ari, "corloc": None}
    return {
        "seed": 0,
        "training_seed": seed,
        "dataset": {"name": dataset},
        "protocols": {
            "glass": {"label": "glass: 256 px", "metrics": metrics},
            "spot": {"label": "spot: 320 px", "metrics": {"miou_i": miou_fg}},
        },
    }


RESULTS = {
    "unguided": [run(0, 0.40, 0.40, 0.44, 0.50), run(1, 0.44, 0.44, 0.46, 0.52)],
    "glass": [run(1, 0.66, 0.55, 0.57, 0.35), run(0, 0.60, 0.50, 0.55, 0.37)],
    "kmeans": [run(0, 0.30, 0.30, 0.35, 0.30)],
}


def test_gains_are_ratios_of_means() -> None:
    table = ablation_table(RESULTS)
    assert table["relative_gain"] == pytest.approx(0.63 / 0.42 - 1)
    assert table["relative_gain_foreground"] == {
        "miou_i": pytest.approx(0.525 / 0.42 - 1),
        "mbo_i": pytest.approx(0.56 / 0.45 - 1),
    }
    assert table["fg_ari"]["difference"] == pytest.approx(-0.15)
    assert table["fg_ari"]["relative"] == pytest.approx(0.36 / 0.51 - 1)
    glass = table["arms"]["glass"]
    assert glass["seeds"] == [1, 0]
    assert glass["metrics"]["miou_i"]["mean"] == pytest.approx(0.63)
    assert glass["metrics"]["miou_i"]["std"] == pytest.approx(0.06 / 2**0.5), "sample deviation of two values"
    assert table["arms"]["kmeans"]["metrics"]["miou_i"]["std"] is None
    assert glass["metrics"]["corloc"]["mean"] is None
    assert glass["protocols"]["spot"]["miou_i"]["mean"] == pytest.approx(0.525)
    assert table["arms"]["unguided"]["relative"]["miou_i"] == 0.0
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_per_seed_gains_pair_equal_seeds() -> None:
    rows = ablation_table(RESULTS)["relative_gain_per_seed"]
    assert [row["seed"] for row in rows] == [1, 0]
    assert rows[0]["miou_i"] == pytest.approx(0.66 / 0.44 - 1)
    assert rows[1]["mbo_i_fg"] == pytest.approx(0.55 / 0.44 - 1)


def test_bare_metric_dicts_and_missing_arms() -> None:
    table = ablation_table({"unguided": [{"miou_i": 0.4, "seed": 0}], "glass": [{"miou_i": 0.6, "seed": 0}]})
    assert table["relative_gain"] == pytest.approx(0.5)
    assert table["relative_gain_foreground"] == {"miou_i": None, "mbo_i": None}
    alone = ablation_table({"kmeans": RESULTS["kmeans"]})
    assert alone["relative_gain"] is None and alone["relative_gain_per_seed"] == []
    assert alone["fg_ari"]["candidate"] is None
    assert "n/a" in ablation_text(alone)
    assert relative_gain(0.5, 0.0) is None and relative_gain(None, 0.5) is None


def test_runs_without_a_training_seed_go_by_their_evaluation_seed() -> None:
    runs = {arm: [{**run(0, 0.4, 0.4, 0.4, 0.4), "training_seed": None, "seed": s} for s in (3, 4)] for arm in
            ("unguided", "glass")}  # fmt: skip
    table = ablation_table(runs)
    assert table["arms"]["glass"]["seeds"] == [3, 4]
    assert [row["seed"] for row in table["relative_gain_per_seed"]] == [3, 4]


def test_unlike_results_are_refused() -> None:
    with pytest.raises(DataError, match="different data sets"):
        ablation_table({"unguided": RESULTS["unguided"], "glass": [run(0, 0.5, 0.5, 0.5, 0.5, "train")]})
    with pytest.raises(DataError, match="'glass' has no result"):
        ablation_table({"unguided": RESULTS["unguided"], "glass": []})
    with pytest.raises(DataError, match="lacks protocol 'coda'"):
        ablation_table(RESULTS, protocol="coda")


def test_terminal_table_shows_absolute_and_relative() -> None:
    text = ablation_text(ablation_table(RESULTS))
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["arm", "seeds"] and "mIoU_i fg" in lines[0] and "FG-ARI" in lines[0]
    glass = next(line for line in lines if line.startswith("glass "))
    assert "63.0 +-4.2 [+50%]" in glass and "36.0 +-1.4 [-29%]" in glass
    assert "[" not in next(line for line in lines if line.startswith("unguided"))
    assert "mIoU_i +50.0 % as the protocol counts it, +25.0 % without background" in text
    assert "FG-ARI -15.0 points" in text and "protocol glass: 256 px" in text
    assert len({len(line) for line in lines[:5]}) == 1, "columns are aligned"
