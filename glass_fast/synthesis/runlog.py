"""Append-only log of a job: everything that may differ between two runs with the same bits (time, host, memory)."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any


class RunLog:
    """Lines of JSON, each written with one ``write`` so that a killed job leaves at most one cut line.

    Args:
        path: file, created on the first event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the wall-clock time in seconds."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def start(self, **fields: Any) -> None:
        """First event of a run: host, process and what the caller adds."""
        self.write("start", host=platform.node(), pid=os.getpid(), machine=platform.machine(), **fields)


def peak_memory(device_type: str) -> int:
    """Peak bytes so far: of the CUDA allocator, or of the process on a CPU."""
    if device_type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
