"""The committed page is the generated one; tables and charts say what the rows say."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from benchmarks import report
from benchmarks.gates import GATES
from benchmarks.schema import write_rows

from .rows import row


def test_the_committed_page_is_up_to_date() -> None:
    document = report.DOCUMENT.read_text("utf-8")
    generated, charts = report.generate(document)
    assert generated == document, "run python -m benchmarks.report"
    committed = {path.name: path.read_text("utf-8") for path in report.IMAGES.glob("*.svg")}
    assert committed == charts


def rows() -> list:
    return [
        row(provider="scipy_loop", role="baseline", p20_ms=7.0, p50_ms=8.0, p80_ms=9.0, ratio_p20=1.0, ratio_p50=1.0,
            ratio_p80=1.0),
        row(),
        row(provider="torch", status="wrong", note="a|b <c>", p20_ms=None, p50_ms=None, p80_ms=None, ratio_p50=None),
        row(case="B64", tuned_to="detr_loop"),
    ]  # fmt: skip


def test_tables_hold_the_figures(tmp_path: Path) -> None:
    write_rows(tmp_path / "ops_cpu.csv", rows())
    text, charts = report.generate(report.DOCUMENT.read_text("utf-8"), tmp_path)
    assert "| `B256-S7-K7` | forward | `scipy_loop` (baseline) | 8.000 (7.000 to 9.000) |" in text
    assert (
        "|  |  | `cpu` | 1.000 (0.900 to 1.100) | 1.000 | 8.00 (7.00 to 9.00) | 8.00 (7.00 to 9.00) | 0.0 | 1 % |"
        in text
    )
    assert "| `torch` | wrong: a\\|b &lt;c> |" in text
    assert (
        "test CPU, 2 cores; 1 thread; torch 2.13.0" in text
        and "`0123456789ab` with uncommitted changes" in text
    )
    assert "Made with `python -m benchmarks.run --ops`" in text and "90 GFLOP/s" in text
    assert "No results yet: `python -m benchmarks.run --stages" in text
    lines = [line for line in text.splitlines() if line.startswith("| ") and "scipy_loop" in line]
    assert (
        len({line.count("|") - line.count("\\|") for line in lines if "`cpu`" in line or "loop` (" in line})
        == 1
    )
    assert set(charts) == {"ops_cpu.svg"}


def test_charts_are_drawings_with_intervals() -> None:
    drawn = report.chart(rows(), "Ops & more")
    tree = ElementTree.fromstring(drawn)
    space = {"s": "http://www.w3.org/2000/svg"}
    assert tree.find("s:title", space).text == "Ops & more"  # type: ignore[union-attr]
    panels = tree.findall("s:svg", space)
    assert len(panels) == 1 and "8.00" in "".join(panels[0].itertext())
    assert len(panels[0].findall("s:circle", space)) == 2, "percentiles 20 and 80 of the one implementation"


def test_every_gate_is_in_the_page() -> None:
    table = report.gates_table()
    assert len(table.splitlines()) == len(GATES) + 4
    assert "| slot_attention | forward | `cpu` | textbook form, eager PyTorch | 4x | 2.4x |" in table
