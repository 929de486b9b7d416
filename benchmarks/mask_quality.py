"""The table of mask quality: noised held-out renders by every setting, and generated pictures by steps and timesteps.

    python benchmarks/mask_quality.py --split tuning                                  # to choose the preset's values
    python benchmarks/mask_quality.py --split test --judge work/judge \
        --out benchmarks/results/mask_quality_test.csv --plot docs/images/mask_quality.svg

What is measured and how: glass_fast/partworld/quality/masks.py. ``glass-fast partworld measure`` measures the same
and trains the judge; without ``--judge`` the rows of generated pictures are left out.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import tempfile
from pathlib import Path

import torch

from glass_fast.partworld.quality.generated import generator_config
from glass_fast.partworld.quality.judge import load_judge
from glass_fast.partworld.quality.masks import FIELDS, PICTURES, measure_masks, write_plot, write_table
from glass_fast.progress import StopToken, make_progress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="partworld:generator")
    parser.add_argument("--split", default="test", choices=("tuning", "test"))
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="generated, of each number of steps")
    parser.add_argument("--judge", type=Path, help="folder of a trained judge")
    parser.add_argument("--work", type=Path, help="keeps what is finished (default: nothing is kept)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="over the demo preset"
    )
    parser.add_argument("--out", type=Path, help="CSV")
    parser.add_argument("--plot", type=Path, help="SVG")
    options = parser.parse_args()
    config = generator_config(options.generator, options.set)
    judge = load_judge(options.judge) if options.judge else None
    with StopToken() as stop, tempfile.TemporaryDirectory() as temporary:
        found = measure_masks(
            config,
            judge,
            options.work or Path(temporary),
            options.scenes,
            make_progress("plain"),
            stop,
            options.split,
            options.pictures,
        )
    for row in found["rows"]:
        print("  ".join("-" if row[name] is None else str(row[name]) for name in FIELDS))
    if options.out:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        note = f"generator {options.generator}, commit {commit}, {platform.machine()} CPU, torch {torch.__version__}"
        write_table(options.out, found["rows"], note)
    if options.plot:
        write_plot(options.plot, found)


if __name__ == "__main__":
    main()
