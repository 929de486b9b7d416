"""One measured figure set as a row, and the CSV files that hold rows.

The format is long: a row is one provider (implementation) of one case in one mode on one machine. Units are in the
column names. What is not known is left empty.
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args, get_type_hints

from glass_fast.data.atomic import write_bytes
from glass_fast.errors import DataError

ROOT = Path(__file__).resolve().parents[1]

OK, WRONG, SKIPPED = "ok", "wrong", "skipped"
"""Values of ``status``: timed; refused, because its result is not the reference's; not measured (see ``note``)."""


@dataclass(frozen=True)
class Row:
    """One line of a result file.

    Attributes:
        kind: ``op`` or ``stage``.
        name: of the op's public function or of the stage.
        op: the op's folder; empty for stages.
        case: sizes and options.
        provider: implementation.
        role: ``baseline`` or ``ours``.
        mode: ``forward``, ``full`` (forward and backward) or ``step``.
        dtype: of the inputs.
        device: torch device type.
        device_name: processor or GPU.
        threads: of torch, for CPU rows.
        status: see :data:`OK`.
        note: why there is no time, or what the row needs said.
        p20_ms: wall time of a call, 20th percentile over rounds; GPU: time between events.
        p50_ms: its median.
        p80_ms: its 80th percentile.
        cpu_p50_ms: median CPU time of a call: of the calling thread with one thread, else of the process.
        peak_bytes: most memory in use during a call beyond what was in use before it.
        peak_method: how that was measured.
        ratio_to: baseline that the ratios compare with.
        ratio_p20: wall time of the baseline over that of the provider, paired by round; above 1 is faster.
        ratio_p50: its median.
        ratio_p80: its 80th percentile.
        cpu_ratio_p50: median of the same ratio of CPU times.
        tuned_to: fastest baseline of the row's case (the tuned one), for rows with several baselines.
        tuned_ratio_p20: as ``ratio_p20``, against that baseline.
        tuned_ratio_p50: its median.
        tuned_ratio_p80: its 80th percentile.
        flops: least floating-point operations of the case.
        bytes: least bytes moved.
        ceiling_gflops: of a matrix product in the same run.
        ceiling_gbps: of a copy in the same run, read and written bytes.
        floor_ms: the larger of flops and bytes over these ceilings.
        floor_share: ``floor_ms`` over ``p50_ms``.
        rounds: samples behind the percentiles.
        repeats: calls in a sample.
        torch: version.
        python: version.
        triton: version, when it is installed.
        glass_fast: version.
        commit: of the checkout, 12 digits.
        dirty: whether tracked files differed from it.
        command: that was run.
        time: UTC.
    """

    kind: str
    name: str
    op: str
    case: str
    provider: str
    role: str
    mode: str
    dtype: str
    device: str
    device_name: str
    threads: int
    status: str = OK
    note: str = ""
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    cpu_p50_ms: float | None = None
    peak_bytes: int | None = None
    peak_method: str = ""
    ratio_to: str = ""
    ratio_p20: float | None = None
    ratio_p50: float | None = None
    ratio_p80: float | None = None
    cpu_ratio_p50: float | None = None
    tuned_to: str = ""
    tuned_ratio_p20: float | None = None
    tuned_ratio_p50: float | None = None
    tuned_ratio_p80: float | None = None
    flops: float | None = None
    bytes: float | None = None
    ceiling_gflops: float | None = None
    ceiling_gbps: float | None = None
    floor_ms: float | None = None
    floor_share: float | None = None
    rounds: int | None = None
    repeats: int | None = None
    torch: str = ""
    python: str = ""
    triton: str = ""
    glass_fast: str = ""
    commit: str = ""
    dirty: bool = False
    command: str = ""
    time: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two rows of different runs comparable."""
        return (
            self.kind, self.name, self.case, self.provider, self.mode, self.dtype, self.device_name,
            str(self.threads),
        )  # fmt: skip


def environment(device: str, threads: int, command: str = "") -> dict[str, Any]:
    """The columns that say where and with what a run was made."""
    import torch

    return {
        "device": device, "device_name": device_name(device), "threads": threads, "torch": torch.__version__,
        "python": platform.python_version(), "triton": _version("triton"), "glass_fast": _version("glass-fast"),
        "commit": _git("rev-parse", "HEAD")[:12],
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")), "command": command,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip


def device_name(device: str) -> str:
    """Name of the GPU, or of the processor with the number of cores that this process may use."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        name = " ".join(lines[0].partition(":")[2].split()) if lines else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a result file, replacing an older one in one step."""
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _to_text(value) for name, value in asdict(row).items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.getvalue().encode())


def read_rows(path: Path) -> list[Row]:
    """Rows of a result file; columns of a later version are ignored, absent ones get their default.

    Raises:
        DataError: GF-DATA-940, not a result file.
    """
    types = {name: _plain_type(hint) for name, hint in get_type_hints(Row).items()}
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                values = {name: _from_text(line[name], kind) for name, kind in types.items() if name in line}
                rows.append(Row(**{name: value for name, value in values.items() if value is not None}))
    except (OSError, ValueError, TypeError) as problem:
        raise DataError(
            "GF-DATA-940",
            f"{path} is no benchmark result: {problem}",
            "write one with python -m benchmarks.run",
        ) from problem
    return rows


def _plain_type(hint: Any) -> type:
    kinds: Sequence[Any] = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    return kinds[0]


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _from_text(text: str | None, kind: type) -> Any:
    if text is None or (text == "" and kind is not str):
        return None
    return bool(int(text)) if kind is bool else kind(text)
