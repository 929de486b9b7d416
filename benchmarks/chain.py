"""The whole chain on other backends: how much faster the default ones make a run, and whether its metrics stay.

    python -m benchmarks.chain --work runs/chain --out benchmarks/results/chain_cpu.json
    python -m benchmarks.chain --work runs/chain --sides torch default -- --set "seeds=[0]"

Each side is ``glass-fast run CONFIG`` in a process of its own, one after another: seconds of wall and CPU time, by
stage from its run.jsonl. A side that is complete in ``--work`` is not run again. What follows ``--`` goes to
``glass-fast run`` of every side.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.schema import environment as machine
from glass_fast.data.atomic import write_json
from glass_fast.kernels import ops

SIDES = {
    "reference": {"*": "reference"},
    "torch": {"*": "torch", "matching": "cpu", "mask_labels": "cpu"},
    "default": {},
}
"""Backend of each op by side: the textbook form; rewritten PyTorch beside the native ops that came first; the choice
of the registry."""
METRICS = ("miou_i", "miou_i_fg", "mbo_i_fg", "fg_ari")


def environment(side: str) -> dict[str, str]:
    """Environment of a side's process; ``*`` stands for every op that the side does not name."""
    wanted = SIDES[side]
    if not wanted:
        return {**os.environ}
    pairs = (f"{op}={wanted.get(op, wanted['*'])}" for op in ops())
    return {**os.environ, "GLASS_FAST_BACKENDS": ",".join(pairs)}


def run_side(side: str, config: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Run the chain once; returns wall and CPU seconds. Raises CalledProcessError when it fails."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "glass_fast", "run", config, "--out", str(folder), "--progress", "none"]
    subprocess.run([*command, *arguments], env=environment(side), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.monotonic() - begin, 2), "cpu_s": round(cpu, 2)}


def stages(folder: Path) -> dict[str, float]:
    """Wall seconds by kind of stage (``train/glass-seed0`` counts as ``train``), from the run's own log."""
    found: dict[str, float] = defaultdict(float)
    for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event.get("event") == "end" and "seconds" in event:
            found[event["stage"].partition("/")[0]] += event["seconds"]
    return {name: round(seconds, 2) for name, seconds in found.items()}


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    """Mean of each metric by arm of the comparison."""
    arms = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))["arms"]
    return {
        name: {key: round(arm["metrics"][key]["mean"], 4) for key in METRICS if key in arm["metrics"]}
        for name, arm in arms.items()
    }


def measure(side: str, config: str, work: Path, arguments: list[str]) -> dict[str, Any]:
    """Seconds, stages and metrics of a side; kept in ``work/SIDE.json``."""
    record, folder = work / f"{side}.json", work / side
    if not record.exists():
        shutil.rmtree(
            folder, ignore_errors=True
        )  # a continued run would not have the seconds of its first part
        seconds = run_side(side, config, folder, arguments)
        write_json(record, seconds | {"stages": stages(folder), "metrics": metrics(folder)})
    result: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return result


def table(sides: dict[str, dict[str, Any]]) -> str:
    """Seconds of each side by stage, and the factor of the last side over each other one."""
    *others, last = sides
    names = list(dict.fromkeys(stage for side in sides.values() for stage in side["stages"]))
    rows = [["seconds", *sides, *(f"{last} over {other}" for other in others)]]
    for name in names:
        values = [side["stages"].get(name, 0.0) for side in sides.values()]
        rows.append([name, *(f"{value:.1f}" for value in values), *_factors(values)])
    for key in ("wall_s", "cpu_s"):
        values = [side[key] for side in sides.values()]
        rows.append([f"all, {key[:-2]}", *(f"{value:.1f}" for value in values), *_factors(values)])
    for arm in sides[last]["metrics"]:
        for key in METRICS:
            values = [side["metrics"].get(arm, {}).get(key) for side in sides.values()]
            rows.append([f"{arm}, {key}", *("-" if v is None else f"{v:.4f}" for v in values)])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows
    )


def _factors(values: list[float]) -> list[str]:
    *others, last = values
    return [f"{other / last:.2f}x" if last else "-" for other in others]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="demo")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sides", nargs="+", default=["torch", "default"], choices=tuple(SIDES))
    parser.add_argument("--out", type=Path, help="JSON with everything that is printed, machine and commit")
    parser.add_argument("arguments", nargs="*", help="after --: for glass-fast run")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    sides = {name: measure(name, options.config, options.work, options.arguments) for name in options.sides}
    print(table(sides))
    if options.out:
        where = machine("cpu", torch.get_num_threads(), " ".join(sys.argv))
        write_json(options.out, {"config": options.config, "sides": sides, "machine": where})


if __name__ == "__main__":
    main()
