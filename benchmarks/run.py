"""Measure ops and stages on this machine.

    python -m benchmarks.run --ops --out benchmarks/results/ops_cpu.csv                  # every op
    python -m benchmarks.run --ops slot_attention matching --cases gate --rounds 50      # some of them, to the screen
    python -m benchmarks.run --stages --threads 2 --out benchmarks/results/stages_cpu.csv

Without --ops and --stages both are measured. Every provider's result is compared with the float64 reference before
it is timed; a wrong one gets a row without times and the exit code is 3.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXIT_WRONG = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    # OpenMP reads these once, when torch is imported; waiting threads that spin would count as CPU time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from benchmarks.schema import WRONG, environment, write_rows
    from benchmarks.timing import make_clock, measure_ceilings

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    command = "python -m benchmarks.run " + shlex.join(given)
    record = environment(options.device, options.threads, command)
    clock = make_clock(options.device, options.threads)
    dtypes = ("float32",) if options.device == "cpu" else ("float32", "float16", "bfloat16")
    ceilings = {dtype: measure_ceilings(options.device, clock, dtype) for dtype in dtypes}
    _say(f"{record['device_name']}, {options.threads} threads, commit {record['commit']}")
    for dtype, reached in ceilings.items():
        _say(f"ceilings {dtype}: {reached.flops / 1e9:.0f} GFLOP/s, {reached.bytes / 1e9:.1f} GB/s")
    rows = []
    for row in _rows(options, clock, ceilings, record):
        rows.append(row)
        print(_line(row), flush=True)
    if options.out:
        write_rows(options.out, rows)
        _say(f"{len(rows)} rows in {options.out}")
    return EXIT_WRONG if any(row.status == WRONG for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ops", nargs="*", metavar="NAME", help="all, or these")
    parser.add_argument("--stages", nargs="*", metavar="NAME", help="all, or these")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch and OpenMP (default: 1)")
    parser.add_argument("--rounds", type=int, default=20, help="samples of each provider (default: 20)")
    parser.add_argument("--cases", default="", help="only cases of ops whose name holds this")
    parser.add_argument("--modes", nargs="+", choices=("forward", "full"), default=["forward", "full"])
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="PROVIDER", help="leave these out (compile)"
    )
    parser.add_argument(
        "--limit", type=float, default=300.0, metavar="SECONDS",
        help="skip a case whose rounds would take longer (default: 300)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="CSV")
    return parser


def _rows(options: argparse.Namespace, clock: Any, ceilings: Any, record: dict[str, Any]) -> Any:
    both = options.ops is None and options.stages is None
    if options.ops is not None or both:
        from benchmarks.ops import op_rows

        yield from op_rows(
            options.ops or (), clock, ceilings, record, options.rounds, cases=options.cases, modes=options.modes,
            without=options.without, limit=options.limit, say=_say,
        )  # fmt: skip
    if options.stages is not None or both:
        from benchmarks.stages import stage_rows

        yield from stage_rows(options.stages or (), clock, record, options.rounds, say=_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _line(row: Any) -> str:
    head = f"{row.name} {row.case} {row.mode} {row.dtype} {row.provider}"
    if row.p50_ms is None:
        return f"{head}: {row.status}: {row.note}"
    text = f"{head}: {row.p50_ms:.3f} ms ({row.p20_ms:.3f} to {row.p80_ms:.3f}), CPU {row.cpu_p50_ms:.3f} ms"
    if row.ratio_p50 is not None:
        text += f", {row.ratio_p50:.2f}x ({row.ratio_p20:.2f} to {row.ratio_p80:.2f}) {row.ratio_to}"
    if row.floor_share is not None:
        text += f", {100 * row.floor_share:.0f} % of the floor"
    return f"{text}, {row.repeats} calls x {row.rounds}"


if __name__ == "__main__":
    sys.exit(main())
