"""Named fault points: tests kill the process at an exact step of a protocol.

``GLASS_FAST_FAULT=name[:count]`` in the environment makes the process kill itself with SIGKILL at the
``count``-th hit (default: first) of the point ``name``. Without that variable a point costs one dictionary
look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_VARIABLE = "GLASS_FAST_FAULT"
_hits: Counter[str] = Counter()

SHARD_FAULT_POINTS = (
    "plan",
    "open_temp",
    "write_member",
    "close_tar",
    "write_index",
    "fsync_files",
    "rename_tar",
    "rename_index",
    "fsync_dir",
    "write_record_temp",
    "rename_record",
    "fsync_dir2",
    "report",
)
"""Points of the shard commit protocol in their order; each is hit just before its step is carried out."""


def fault_point(name: str) -> None:
    """Mark a step; kills the process here when the environment asks for it (tests only)."""
    wanted = os.environ.get(_VARIABLE)
    if not wanted:
        return
    target, _, count = wanted.partition(":")
    if target != name:
        return
    _hits[name] += 1
    if _hits[name] >= int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
