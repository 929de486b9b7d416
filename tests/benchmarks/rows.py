"""A result row with plausible values."""

from __future__ import annotations

from typing import Any

from benchmarks.schema import Row


def row(**changes: Any) -> Row:
    """One timed op row; keyword arguments replace columns."""
    values: dict[str, Any] = {
        "kind": "op", "name": "matching", "op": "matching", "case": "B256-S7-K7", "provider": "cpu", "role": "ours",
        "mode": "forward", "dtype": "float32", "device": "cpu", "device_name": "test CPU, 2 cores", "threads": 1,
        "p20_ms": 0.9, "p50_ms": 1.0, "p80_ms": 1.1, "cpu_p50_ms": 1.0, "peak_bytes": 4096,
        "peak_method": "resident set", "ratio_to": "scipy_loop", "ratio_p20": 7.0, "ratio_p50": 8.0,
        "ratio_p80": 9.0, "cpu_ratio_p50": 8.5, "tuned_to": "scipy_loop", "tuned_ratio_p20": 7.0,
        "tuned_ratio_p50": 8.0, "tuned_ratio_p80": 9.0, "flops": 25088.0, "bytes": 64512.0, "ceiling_gflops": 90.0,
        "ceiling_gbps": 12.0, "floor_ms": 0.0054, "floor_share": 0.0054, "rounds": 20, "repeats": 12,
        "torch": "2.13.0", "python": "3.11.7", "triton": "", "glass_fast": "0.1.0", "commit": "0123456789ab",
        "dirty": True, "command": "python -m benchmarks.run --ops", "time": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return Row(**values | changes)
