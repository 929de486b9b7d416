"""Tables and charts of docs/benchmarks.md, made from committed result files so that no figure is typed by hand.

python -m benchmarks.report            # fills the blocks and draws docs/images/benchmarks/*.svg
python -m benchmarks.report --check    # changes nothing; exit code 3 when something is out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from benchmarks.baselines import BASELINE, MEANING
from benchmarks.chain import METRICS, SIDES
from benchmarks.gates import GATES, SHARE
from benchmarks.schema import OK, ROOT, Row, read_rows
from glass_fast.data.atomic import write_bytes
from glass_fast.errors import EXIT_DATA, EXIT_OK
from glass_fast.report.charts import INK, Bar, bar_chart
from glass_fast.report.palette import method_colour
from glass_fast.report.tables import fill

DOCUMENT = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images" / "benchmarks"
BLOCKS: Mapping[str, str] = {
    "ops_cpu": "Ops: times faster than the main baseline",
    "stages_cpu": "Stages: times faster than with reference backends",
}
"""Result file and block of the document -> title of its chart."""

_WIDTH = 760
_GREY, _BLUE = method_colour("random_slots"), method_colour("glass")


def generate(document: str, results: Path = RESULTS) -> tuple[str, dict[str, str]]:
    """The document with its blocks filled, and the charts by file name.

    Raises:
        DataError: a result file is damaged, or the document lacks a pair of markers.
    """
    document = fill(document, gates_table(), "gates")
    charts = {}
    for name, title in BLOCKS.items():
        path = results / f"{name}.csv"
        if not path.exists():
            kind = "--" + name.partition("_")[0]
            content = (
                f"No results yet: `python -m benchmarks.run {kind} --out benchmarks/results/{path.name}`"
                " writes them."
            )
        else:
            rows = read_rows(path)
            charts[f"{name}.svg"] = chart(rows, title)
            content = (
                f"{conditions(rows, path.name)}\n\n![{title}](images/benchmarks/{name}.svg)\n\n{tables(rows)}"
            )
        document = fill(document, content, name)
    chain = results / "chain_cpu.json"
    return fill(document, chain_table(chain), "chain_cpu"), charts


def chain_table(path: Path) -> str:
    """Seconds and metrics of the whole chain on each set of backends (``benchmarks.chain``)."""
    if not path.exists():
        return f"No results yet: `python -m benchmarks.chain --work runs/chain --out benchmarks/results/{path.name}`."
    found = json.loads(path.read_text("utf-8"))
    where, sides = found["machine"], {side: found["sides"][side] for side in SIDES if side in found["sides"]}
    last = list(sides)[-1]
    threads = f"{where['threads']} {'thread' if where['threads'] == 1 else 'threads'}"
    lines = [
        f"`glass-fast run {found['config']}`; {where['device_name']}; {threads}; torch {where['torch']},"
        f" Python {where['python']}, glass-fast {where['glass_fast']} at commit `{where['commit']}`; {where['time']}."
        f" Source: `benchmarks/results/{path.name}`.",
        "",
        "| | " + " | ".join(f"`{side}`" for side in sides) + " | times faster |",
        "|---|" + "---:|" * (len(sides) + 1),
    ]
    rows = [
        (f"{stage}, s", [side["stages"].get(stage, 0.0) for side in sides.values()])
        for stage in sides[last]["stages"]
    ]
    rows += [
        (f"whole run, {name}", [side[key] for side in sides.values()])
        for name, key in (("s", "wall_s"), ("CPU s", "cpu_s"))
    ]
    for name, values in rows:
        factor = f"{values[0] / values[-1]:.2f}" if values[-1] else "–"
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in values) + f" | {factor} |")
    for arm in sides[last]["metrics"]:
        for key in METRICS:
            values = [side["metrics"].get(arm, {}).get(key) for side in sides.values()]
            cells = " | ".join("–" if value is None else f"{100 * value:.1f}" for value in values)
            lines.append(f"| {arm.replace('_', ' ')}, {key} | {cells} | |")
    return "\n".join(lines)


def gates_table() -> str:
    """Goals and gates as Markdown."""
    lines = ["| op | mode | provider | against | goal | gate |", "|---|---|---|---|---:|---:|"]
    for gate in GATES:
        against = MEANING.get(gate.baseline, gate.baseline)
        lines.append(
            f"| {gate.op} | {gate.mode} | `{gate.provider}` | {against} | {gate.goal:g}x | {gate.least:.2g}x |"
        )
    return "\n".join([*lines, "", f"A gate asks for {SHARE:.0%} of its goal."])


def conditions(rows: Sequence[Row], source: str) -> str:
    """Machine, versions, commit and command of a result file."""
    lines = []
    for row in {(r.command, r.commit, r.device_name, r.threads, r.torch): r for r in rows}.values():
        triton = f", triton {row.triton}" if row.triton else ""
        changes = " with uncommitted changes" if row.dirty else ""
        lines.append(
            f"{row.device_name}; {row.threads} {'thread' if row.threads == 1 else 'threads'}; torch {row.torch},"
            f" Python {row.python}{triton}, glass-fast {row.glass_fast} at commit `{row.commit}`{changes};"
            f" {row.time}. Made with `{row.command}`; source: `benchmarks/results/{source}`."
        )
        if row.ceiling_gflops and row.ceiling_gbps:
            lines.append(
                f"Reached in the same run: {row.ceiling_gflops:.0f} GFLOP/s by a matrix product,"
                f" {row.ceiling_gbps:.1f} GB/s by a copy."
            )
    return "\n".join(lines)


def tables(rows: Sequence[Row]) -> str:
    """One table for each op function or stage, in the order of the file."""
    parts = []
    for name in dict.fromkeys(row.name for row in rows):
        mine = [row for row in rows if row.name == name]
        parts.append(f"### {name}\n\n{_table(mine)}")
    return "\n\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    main = next((row.ratio_to for row in rows if row.ratio_to), "")
    several = any(row.tuned_to and row.tuned_to != main for row in rows)
    heads = [
        "case", "mode", "implementation", "ms (p20 to p80)", "CPU ms", f"times faster than `{main}`",
        *(["than the fastest baseline"] if several else []), "memory, MiB", "of the floor",
    ]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|" + "---:|" * (len(heads) - 3)]
    before: tuple[str, ...] = ()
    for row in rows:
        group = (row.case, row.mode, row.dtype)
        head = ["", ""] if group == before else [f"`{row.case}`", _mode(row)]
        before = group
        lines.append("| " + " | ".join([*head, _provider(row), *_figures(row, several)]) + " |")
    return "\n".join(lines)


def _mode(row: Row) -> str:
    words = {"full": "forward and backward"}.get(row.mode, row.mode)
    return words if row.dtype == "float32" else f"{words}, {row.dtype}"


def _provider(row: Row) -> str:
    return f"`{row.provider}`" + (" (baseline)" if row.role == BASELINE else "")


def _figures(row: Row, several: bool) -> list[str]:
    if row.status != OK or row.p50_ms is None or row.p20_ms is None or row.p80_ms is None:
        return [f"{row.status}: {_plain(row.note)}", *["–"] * (4 + several)]
    tuned = _ratio(row.tuned_ratio_p20, row.tuned_ratio_p50, row.tuned_ratio_p80)
    return [
        f"{_ms(row.p50_ms)} ({_ms(row.p20_ms)} to {_ms(row.p80_ms)})",
        "–" if row.cpu_p50_ms is None else _ms(row.cpu_p50_ms),
        _ratio(row.ratio_p20, row.ratio_p50, row.ratio_p80),
        *([tuned] if several else []),
        "–" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
        "–" if row.floor_share is None else f"{100 * row.floor_share:.0f} %",
    ]


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _ratio(low: float | None, middle: float | None, high: float | None) -> str:
    if low is None or middle is None or high is None:
        return "–"
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def chart(rows: Sequence[Row], title: str) -> str:
    """Bars of the ratios to the main baseline; dots are percentiles 20 and 80. First case of each function."""
    panels, y = [], 34
    for name in dict.fromkeys(row.name for row in rows):
        mine = [row for row in rows if row.name == name and row.status == OK and row.ratio_p50 is not None]
        mine = [row for row in mine if row.case == mine[0].case]
        bars = [_bar(row) for row in mine if row.provider != row.ratio_to]
        if not bars:
            continue
        drawn = str(
            bar_chart(
                bars,
                f"{name} over {mine[0].ratio_to}, {_shorten(mine[0].case)}",
                digits=2,
                width=_WIDTH,
                label_width=240,
            )
        )
        found = re.search(r'viewBox="0 0 \d+ (\d+)"', drawn)
        assert found is not None
        height = int(found[1])
        panels.append(drawn.replace("<svg ", f'<svg x="10" y="{y}" height="{height}" ', 1))
        y += height + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 20}" height="{y}" font-family="sans-serif">\n'
        f'<title>{escape(title)}</title><rect width="{_WIDTH + 20}" height="{y}" fill="#fff"/>\n'
        f'<text x="10" y="20" font-size="15" font-weight="600" fill="{INK}">{escape(title)}</text>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _shorten(case: str) -> str:
    return case if len(case) <= 48 else case[:47] + "…"


def _bar(row: Row) -> Bar:
    assert row.ratio_p20 is not None and row.ratio_p50 is not None and row.ratio_p80 is not None
    label = f"{row.provider}, {_mode(row)}" if row.kind == "op" else row.provider
    colour = _GREY if row.role == BASELINE else _BLUE
    return Bar(label, row.ratio_p50, colour, (row.ratio_p20, row.ratio_p80))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 3 when out of date")
    options = parser.parse_args(arguments)
    before = DOCUMENT.read_text("utf-8")
    document, charts = generate(before)
    stale = [] if document == before else [DOCUMENT]
    wanted = {IMAGES / name: text for name, text in charts.items()}
    stale += [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
    left = [path for path in IMAGES.glob("*.svg") if path not in wanted]
    if options.check:
        for path in (*stale, *left):
            print(
                f"{path.relative_to(ROOT)} is out of date: run python -m benchmarks.report", file=sys.stderr
            )
        return EXIT_DATA if stale or left else EXIT_OK
    for path in left:
        path.unlink()
    IMAGES.mkdir(parents=True, exist_ok=True)
    for path, text in {DOCUMENT: document, **wanted}.items():
        write_bytes(path, text.encode())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
