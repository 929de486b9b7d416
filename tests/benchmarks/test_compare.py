"""Verdicts of the comparison of two runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compare import join, judge, main
from benchmarks.schema import Row, write_rows

from .rows import row

OLD = row()  # 1.0 ms, spread 0.2 ms: a change has to exceed 0.6 ms


def at(milliseconds: float, spread: float = 0.2) -> Row:
    half = spread / 2
    return row(p20_ms=milliseconds - half, p50_ms=milliseconds, p80_ms=milliseconds + half)


@pytest.mark.parametrize(
    ("new", "word"),
    [
        (at(0.3, 0.02), "faster"),
        (at(1.7), "slower"),
        (at(0.5), "noise"),
        (at(1.5), "noise"),
        (at(3.0, 1.0), "noise"),
        (replace(OLD, status="wrong", note="off", p50_ms=None), "wrong"),
        (replace(OLD, status="skipped", p50_ms=None), "not timed"),
    ],
)
def test_verdicts(new: Row, word: str) -> None:
    assert judge(OLD, new).word == word


def test_a_red_test_takes_the_speed_up_away() -> None:
    verdict = judge(OLD, at(0.1, 0.01), frozenset({"matching"}))
    assert verdict.word == "red test" and "0.1" not in verdict.line
    stage = replace(at(0.1, 0.01), kind="stage", op="")
    assert judge(OLD, stage, frozenset({"matching"})).word == "faster"


def test_rows_of_other_machines_and_thread_counts_are_not_joined() -> None:
    others = [
        row(device_name="another"),
        row(threads=2),
        row(mode="full"),
        row(provider="torch"),
        row(case="B1"),
    ]
    assert join([OLD], others) == ([], [OLD, *others])
    assert join([OLD], [at(2.0)]) == ([(OLD, at(2.0))], [])


def run(folder: Path, new: list[Row], *flags: str, green: bool = True) -> tuple[int, list[str]]:
    asked: list[str] = []

    def tests(op: str) -> bool:
        asked.append(op)
        return green

    write_rows(folder / "old.csv", [OLD])
    write_rows(folder / "new.csv", new)
    return main([str(folder / "old.csv"), str(folder / "new.csv"), *flags], tests), asked


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [at(0.3, 0.02)]) == (0, ["matching"])
    assert "faster" in capsys.readouterr().out
    assert run(tmp_path, [at(2.0)]) == (1, ["matching"])
    assert run(tmp_path, [at(0.3, 0.02)], green=False) == (3, ["matching"])
    out = capsys.readouterr().out
    assert "red test" in out and "faster" not in out
    assert run(tmp_path, [replace(OLD, status="wrong", note="off", p50_ms=None)])[0] == 3
    assert run(tmp_path, [row(threads=2)])[0] == 2


def test_without_tests_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [at(0.3, 0.02)], "--no-tests", green=False) == (0, [])
    assert capsys.readouterr().out.startswith("NOTHING WAS CHECKED")
