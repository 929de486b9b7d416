"""The chain on several backends: what each side is told, and the table of factors."""

from __future__ import annotations

import json

from benchmarks import chain
from glass_fast import kernels


def test_every_side_names_backends_that_exist(monkeypatch) -> None:
    monkeypatch.delenv("GLASS_FAST_BACKENDS", raising=False)
    assert "GLASS_FAST_BACKENDS" not in chain.environment("default")
    for side in ("reference", "torch"):
        pairs = dict(p.split("=") for p in chain.environment(side)["GLASS_FAST_BACKENDS"].split(","))
        assert set(pairs) == set(kernels.ops())
        for op, backend in pairs.items():
            assert backend in {status.name for status in kernels.backends(op)}, (side, op)
    assert pairs["slot_attention"] == "torch" and pairs["matching"] == "cpu"


def test_stages_are_added_up_by_kind(tmp_path) -> None:
    events = [
        {"stage": "train/glass-seed0", "event": "start"},
        {"stage": "train/glass-seed0", "event": "end", "seconds": 3.0},
        {"stage": "train/unguided-seed0", "event": "end", "seconds": 1.5},
        {"stage": "captions", "event": "skipped", "reason": "complete"},
        {"stage": "report", "event": "end"},
    ]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert chain.stages(tmp_path) == {"train": 4.5}


def test_the_table_compares_the_last_side_with_the_others() -> None:
    sides = {
        "torch": {
            "wall_s": 30.0,
            "cpu_s": 40.0,
            "stages": {"train": 20.0},
            "metrics": {"glass": {"fg_ari": 0.4}},
        },
        "default": {
            "wall_s": 20.0,
            "cpu_s": 20.0,
            "stages": {"train": 8.0},
            "metrics": {"glass": {"fg_ari": 0.41}},
        },
    }
    lines = chain.table(sides).splitlines()
    assert lines[0].split() == ["seconds", "torch", "default", "default", "over", "torch"]
    assert lines[1].split() == ["train", "20.0", "8.0", "2.50x"]
    assert lines[2].split()[-1] == "1.50x" and lines[3].split()[-1] == "2.00x"
    assert any(line.split() == ["glass,", "fg_ari", "0.4000", "0.4100"] for line in lines)
