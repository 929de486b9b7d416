"""Reads a run folder and never fails on a missing or damaged part: what could not be read becomes a note."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glass_fast.report import text as fmt
from glass_fast.report.palette import method_order

MAX_JSON_BYTES = 64 * 2**20
MAX_LINE_BYTES = 4 * 2**20
MAX_LOG_LINES = 500_000

_SEEDED = re.compile(r"^(?P<method>.+?)(?:-seed(?P<seed>\d{1,18}))?$")


@dataclass(frozen=True)
class Score:
    """Figures of one method and seed on one data set under one protocol (metrics are fractions)."""

    dataset: str
    method: str
    seed: int | None
    protocol: str
    fields: dict[str, Any]
    metrics: dict[str, float]
    per_class: dict[str, Any]
    errors: dict[str, float] = field(default_factory=dict)
    """Standard error of each metric over images."""
    images: int | None = None
    label: str = ""
    """One line with the choices of the protocol."""


@dataclass(frozen=True)
class ModelRun:
    """One trained model: its record and its training log."""

    method: str
    seed: int | None
    folder: str
    record: dict[str, Any]
    log: list[dict[str, Any]]


@dataclass
class PromptSummary:
    """Counts over the prompt table."""

    total: int = 0
    per_class: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    without_class: int = 0


@dataclass
class RunData:
    """Everything found in a run folder; absent parts are empty."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    prompts: PromptSummary | None = None
    models: list[ModelRun] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    ablation: dict[str, Any] = field(default_factory=dict)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    """Inputs of the captions stage that gave no prompt."""
    objects: list[dict[str, Any]] = field(default_factory=list)
    discover_summary: dict[str, Any] = field(default_factory=dict)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    evaluation_failures: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, path: Path, problem: object) -> None:
        """Remember that ``path`` could not be used, for the section on failures."""
        name = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path.name
        self.notes.append(f"{name}: {fmt.clean(problem, 200)}")


def split_method(stem: str) -> tuple[str, int | None]:
    """``glass-seed2`` -> ("glass", 2); ``kmeans`` -> ("kmeans", None)."""
    match = _SEEDED.match(stem)
    if match is None:
        return stem, None
    return match["method"], None if match["seed"] is None else int(match["seed"])


def collect(folder: Path) -> RunData:
    """Read all artefacts of ``folder`` except pictures and shards."""
    data = RunData(folder)
    recorded = _object(data, folder / "config.json")
    inner = recorded.get("config", recorded)
    data.config = inner if isinstance(inner, dict) else {}
    origins = recorded.get("origins") if "config" in recorded else None
    data.origins = (
        {str(key): str(value) for key, value in origins.items()} if isinstance(origins, dict) else {}
    )
    data.prompts = _prompts(data, folder / "prompts.parquet")
    data.models = list(_models(data, folder / "models"))
    data.scores = list(_scores(data, folder / "evaluation"))
    data.ablation = _object(data, folder / "ablation.json")
    discover = folder / "discover"
    data.rejects = _lines(data, folder / "prompts.rejects.jsonl")
    data.objects = _lines(data, discover / "objects.jsonl")
    data.discover_summary = _object(data, discover / "summary.json")
    data.quarantine = _lines(data, discover / "quarantine.jsonl")
    data.events = _lines(data, folder / "run.jsonl")
    data.environment = _object(data, folder / "environment.json")
    return data


def _object(data: RunData, path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty when absent, with a note when damaged."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {fmt.size(MAX_JSON_BYTES)}")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        data.note(path, problem)
        return {}
    if not isinstance(value, dict):
        data.note(path, f"expected a JSON object, found {type(value).__name__}")
        return {}
    return value


def _lines(data: RunData, path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSONL file; a torn last line (a killed writer) is normal, others get a note."""
    if not path.is_file():
        return []
    out: list[dict[str, Any]] = []
    damaged: list[int] = []
    number = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), 1):
                if number > MAX_LOG_LINES:
                    data.note(path, f"only the first {MAX_LOG_LINES:,} lines were read")
                    break
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    damaged.append(number)
                    continue
                if isinstance(value, dict):
                    out.append(value)
                else:
                    damaged.append(number)
    except OSError as problem:
        data.note(path, problem)
    damaged = [line for line in damaged if line != number]
    if damaged:
        data.note(path, f"{len(damaged)} damaged lines, the first is line {damaged[0]}")
    return out


def _prompts(data: RunData, path: Path) -> PromptSummary | None:
    """Counts of the prompt table, read column-wise in batches."""
    if not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    summary = PromptSummary()
    try:
        with pq.ParquetFile(path) as table:
            wanted = [name for name in ("classes", "source") if name in table.schema_arrow.names]
            summary.total = table.metadata.num_rows
            for batch in table.iter_batches(batch_size=65536, columns=wanted):
                columns = batch.to_pydict()
                for classes in columns.get("classes", []):
                    summary.per_class.update(dict.fromkeys(class_names(classes), 1))
                    summary.without_class += not classes
                summary.sources.update(str(source) for source in columns.get("source", []))
    except (OSError, ValueError, pa.ArrowException) as problem:
        data.note(path, problem)
        return None
    return summary


def class_names(value: Any) -> list[str]:
    """The names in a ``classes`` cell: a list, or JSON text of one; repeats kept, damage gives none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return [value] if value else []
    return [str(name) for name in value] if isinstance(value, list | tuple) else []


def _models(data: RunData, folder: Path) -> Iterator[ModelRun]:
    if not folder.is_dir():
        return
    found = {p: split_method(p.name) for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
    order = {
        method: rank for rank, method in enumerate(method_order({method for method, _ in found.values()}))
    }
    for path, (method, seed) in sorted(
        found.items(), key=lambda item: (order[item[1][0]], item[1][1] or 0, item[0].name)
    ):
        yield ModelRun(
            method, seed, path.name, _object(data, path / "run.json"), _lines(data, path / "log.jsonl")
        )


def _scores(data: RunData, folder: Path) -> Iterator[Score]:
    """One entry per file and protocol in ``evaluation/<dataset>/<method>-seed<k>.json``."""
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*/*.json")):
        method, seed = split_method(path.stem)
        record = _object(data, path)
        for failure in as_dict_list(record.get("failures")):
            data.evaluation_failures.append({"dataset": path.parent.name, "method": path.stem, **failure})
        protocols = record.get("protocols")
        if not isinstance(protocols, dict):
            if record:
                data.note(path, "no 'protocols' object")
            continue
        for name, part in protocols.items():
            if not isinstance(part, dict):
                data.note(path, f"protocol {name} is not an object")
                continue
            images = part.get("images")
            yield Score(
                path.parent.name,
                method,
                seed,
                str(name),
                as_dict(part.get("fields")),
                _figures(part.get("metrics")),
                as_dict(part.get("per_class")),
                _figures(part.get("standard_error")),
                int(images) if fmt.is_number(images) else None,
                str(part.get("label", "")),
            )


def _figures(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping; a metric without any counted image is ``None`` there."""
    return {str(key): float(number) for key, number in as_dict(value).items() if fmt.is_number(number)}


def as_dict(value: Any) -> dict[str, Any]:
    """``value`` when it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_dict_list(value: Any) -> list[dict[str, Any]]:
    """The dicts of a list; an empty list for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a nested mapping; lists are leaves."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, value
