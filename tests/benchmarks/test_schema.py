"""Rows survive their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.schema import environment, read_rows, write_rows
from glass_fast.errors import DataError

from .rows import row


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [
        row(), row(provider="x", status="wrong", note='a, "b"\nc', p50_ms=None, dirty=False, threads=2, peak_bytes=None)
    ]  # fmt: skip
    write_rows(tmp_path / "deep" / "r.csv", rows)
    assert read_rows(tmp_path / "deep" / "r.csv") == rows


def test_other_columns_are_ignored_and_absent_ones_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    write_rows(path, [row()])
    head, line = path.read_text().splitlines()
    path.write_text(f"{head},later\n{line},1\n")
    assert read_rows(path) == [row()]
    without = ",".join(head.split(",")[:-1]) + "\n" + ",".join(line.split(",")[:-1]) + "\n"
    path.write_text(without)
    assert read_rows(path) == [replace(row(), time="")]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "kind,threads\nop,many\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(DataError, match="GF-DATA-940"):
        read_rows(path)
    with pytest.raises(DataError, match="GF-DATA-940"):
        read_rows(tmp_path / "absent.csv")


def test_environment_names_machine_versions_and_commit() -> None:
    found = environment("cpu", 1, "python -m benchmarks.run")
    assert row(**found).threads == 1
    assert found["torch"] and found["python"] and "cores" in found["device_name"]
