"""Compare two result files: python -m benchmarks.compare OLD.csv NEW.csv

Joins rows of the same op or stage, case, provider, mode, dtype, machine and thread count. A row is faster or slower
only when its median changes by more than three times the spread (20th to 80th percentile) of the noisier file;
anything less is noise. Tests of the compared ops run first: a row whose result is wrong, or whose op has a red test,
gets no verdict on speed. Exit code 0: nothing slower; 1: something is slower; 3: something is wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.schema import OK, ROOT, WRONG, Row, read_rows

NOISE = 3.0
"""How many spreads a change has to exceed."""
EXIT_SLOWER, EXIT_WRONG = 1, 3


@dataclass(frozen=True)
class Verdict:
    """One joined pair: ``faster``, ``slower``, ``noise``, ``wrong``, ``red test`` or ``not timed``."""

    old: Row
    new: Row
    word: str

    @property
    def line(self) -> str:
        """Names, medians, old over new, verdict."""
        new = self.new
        head = f"{new.name} {new.case} {new.mode} {new.provider} ({new.threads} threads)"
        if self.word in ("wrong", "red test", "not timed"):
            return f"{self.word:9} {head}" + (f": {new.note}" if new.note else "")
        assert self.old.p50_ms is not None and new.p50_ms is not None
        return (
            f"{self.word:9} {head}: {self.old.p50_ms:.4g} -> {new.p50_ms:.4g} ms,"
            f" {self.old.p50_ms / new.p50_ms:.2f}x"
        )


def judge(old: Row, new: Row, red: frozenset[str] = frozenset()) -> Verdict:
    """The verdict on one pair.

    Args:
        old: timed before.
        new: timed after the change.
        red: ops whose tests fail now.
    """
    if new.status == WRONG:
        return Verdict(old, new, "wrong")
    if new.op and new.op in red:
        return Verdict(old, new, "red test")
    if old.status != OK or new.status != OK or old.p50_ms is None or new.p50_ms is None:
        return Verdict(old, new, "not timed")
    spread = max(_spread(old), _spread(new))
    change = new.p50_ms - old.p50_ms
    if abs(change) <= NOISE * spread:
        return Verdict(old, new, "noise")
    return Verdict(old, new, "slower" if change > 0 else "faster")


def _spread(row: Row) -> float:
    assert row.p20_ms is not None and row.p80_ms is not None
    return row.p80_ms - row.p20_ms


def join(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[Row]]:
    """Pairs in the order of ``new``, and rows of either file that have no partner."""
    before = {row.key: row for row in old}
    pairs = [(before[row.key], row) for row in new if row.key in before]
    known = {row.key for _, row in pairs}
    return pairs, [row for row in (*old, *new) if row.key not in known]


def run_tests(op: str) -> bool:
    """Whether the tests of an op are green; an op without tests counts as red."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "tests/kernels", "-k", op]
    return subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode == 0


def main(arguments: Sequence[str] | None = None, tests: Callable[[str], bool] = run_tests) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--no-tests", action="store_true", help="do not run the ops' tests first")
    options = parser.parse_args(arguments)
    pairs, alone = join(read_rows(options.old), read_rows(options.new))
    if not pairs:
        print(
            "the files have no row in common (same case, provider, mode, machine and threads)",
            file=sys.stderr,
        )
        return 2
    state: Mapping[str, bool] = {}
    if options.no_tests:
        print("NOTHING WAS CHECKED: --no-tests; a faster row may be faster because it is wrong")
    else:
        state = {op: tests(op) for op in sorted({new.op for _, new in pairs if new.op})}
    red = frozenset(op for op, green in state.items() if not green)
    verdicts = [judge(old, new, red) for old, new in pairs]
    for verdict in verdicts:
        print(verdict.line)
    for row in alone:
        print(f"alone     {row.name} {row.case} {row.mode} {row.provider}")
    words = {verdict.word for verdict in verdicts}
    if words & {"wrong", "red test"}:
        return EXIT_WRONG
    return EXIT_SLOWER if "slower" in words else 0


if __name__ == "__main__":
    sys.exit(main())
