"""Markdown tables for the documentation, made from committed result files so that no figure is typed by hand.

``python -m glass_fast.report.tables RESULT.json README.md`` fills the block between the comment lines
``<!-- ablation:begin -->`` and ``<!-- ablation:end -->``; with ``--check`` it changes nothing and ends with exit
code 3 when the block is out of date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glass_fast.data.atomic import write_bytes
from glass_fast.errors import EXIT_DATA, EXIT_OK, DataError, GlassError
from glass_fast.report import text as fmt
from glass_fast.report.collect import as_dict
from glass_fast.report.palette import method_label, method_order

COLUMNS: Mapping[str, str] = {
    "miou_i_fg": "mIoU_i, objects only",
    "mbo_i_fg": "mBO_i, objects only",
    "fg_ari": "FG-ARI",
    "miou_i": "mIoU_i, background counted",
}
"""Metrics of ``ablation.json`` and their headings; the judged ones come first."""
BLOCK = "ablation"


def ablation_markdown(table: Mapping[str, Any], source: str = "") -> str:
    """The comparison of training arms as Markdown.

    Args:
        table: content of ``ablation.json`` (schema in :mod:`glass_fast.evaluation.ablation`).
        source: name of the file, printed below the table.

    Returns:
        A table (percent, ± sample deviation over seeds, gain over the reference) and one line about data set,
        protocol and file. Missing figures are dashes.

    Raises:
        DataError: ``table`` has no ``arms``.
    """
    arms = as_dict(table.get("arms"))
    if not arms:
        raise DataError(
            "GF-DATA-192",
            "the ablation result has no 'arms'",
            "give the ablation.json of a run that trained models",
        )
    reference = str(table.get("reference", "unguided"))
    present = [m for m in COLUMNS if any(m in as_dict(as_dict(arm).get("metrics")) for arm in arms.values())]
    lines = [
        "| method | seeds | " + " | ".join(_heading(metric, table) for metric in present) + " |",
        "|---|---:|" + "---:|" * len(present),
    ]
    for name in method_order(set(arms)):
        arm = as_dict(arms[name])
        cells = [
            _cell(as_dict(arm.get("metrics")).get(m), as_dict(arm.get("relative")).get(m), name == reference)
            for m in present
        ]
        label = f"**{method_label(name)}**" if name == table.get("candidate") else method_label(name)
        lines.append(f"| {_plain(label)} | {len(arm.get('seeds') or ())} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _legend(table, reference, source)])


def _heading(metric: str, table: Mapping[str, Any]) -> str:
    counted = as_dict(table.get("protocol_fields")).get("background_miou")
    if metric == "miou_i" and (counted is False or (counted is None and table.get("protocol") != "glass")):
        return f"mIoU_i, as protocol {_plain(table.get('protocol', ''))} counts it"
    return COLUMNS[metric]


def _cell(entry: Any, relative: Any, is_reference: bool) -> str:
    entry = as_dict(entry)
    if not fmt.is_number(entry.get("mean")):
        return fmt.DASH
    value = fmt.percent(entry["mean"])
    if fmt.is_number(entry.get("std")):
        value += f" ± {fmt.percent(entry['std'])}"
    if is_reference or not fmt.is_number(relative):
        return value
    return f"{value} ({fmt.signed_percent(relative, 0)})"


def _legend(table: Mapping[str, Any], reference: str, source: str) -> str:
    dataset = as_dict(table.get("dataset"))
    parts = [f"Percent, ± sample deviation over seeds; in brackets the gain over {_plain(reference)}."]
    if dataset.get("name"):
        amount = f", {fmt.count(dataset['limit'])} images" if fmt.is_number(dataset.get("limit")) else ""
        parts.append(f"Data: {_plain(dataset['name'])}{amount}.")
    if table.get("protocol_label"):
        parts.append(f"Protocol {_plain(table['protocol_label'])}.")
    if "upper_bound" in as_dict(table.get("arms")):
        parts.append("The upper bound alone has seen true masks.")
    if source:
        parts.append(f"Source: `{_plain(source)}`.")
    return " ".join(parts)


def _plain(value: Any) -> str:
    """Text that cannot break out of a Markdown table cell."""
    return fmt.clean(value).replace("|", "\\|").replace("<", "&lt;")


def fill(document: str, content: str, block: str = BLOCK) -> str:
    """Replace what stands between the two markers of ``block``.

    Raises:
        DataError: the markers are absent, repeated or in the wrong order.
    """
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise DataError(
            "GF-DATA-193",
            f"expected exactly one {begin} followed by one {end}",
            "put the two comment lines into the document",
        )
    head, rest = document.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill or check the block of a document; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m glass_fast.report.tables", description=__doc__.splitlines()[0]
    )
    parser.add_argument("result", type=Path, help="ablation.json")
    parser.add_argument("document", type=Path, help="Markdown file with the markers")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 3 when the block is out of date"
    )
    options = parser.parse_args(arguments)
    try:
        try:
            table = json.loads(options.result.read_text("utf-8"))
            document = options.document.read_text("utf-8")
        except (OSError, ValueError) as problem:
            raise DataError("GF-DATA-194", f"cannot read the result or the document: {problem}") from problem
        filled = fill(document, ablation_markdown(as_dict(table), options.result.as_posix()))
    except GlassError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if filled == document:
        sys.stderr.write(f"{options.document} is up to date\n")
        return EXIT_OK
    if options.check:
        sys.stderr.write(f"{options.document} is out of date: run the same command without --check\n")
        return EXIT_DATA
    write_bytes(options.document, filled.encode("utf-8"))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
