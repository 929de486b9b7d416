"""Scalars of a run: ``log.jsonl`` (always) and tensorboard (when installed)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from glass_fast.data import atomic

log = logging.getLogger(__name__)


class RunLog:
    """Writes a line of scalars now and then; on resume, lines after the checkpoint are taken back.

    Args:
        out: folder of ``log.jsonl`` and ``tensorboard/``.
        step: finished steps of the checkpoint that the run goes on from.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / "log.jsonl"
        kept = [line for line in _lines(self.path) if line.get("step", 0) <= step]
        atomic.write_bytes(self.path, b"".join((json.dumps(line) + "\n").encode() for line in kept))
        with atomic.storage_errors(self.path, "write the log"):
            self._file = self.path.open("a", encoding="utf-8")
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            log.info("no tensorboard scalars: %s", error)
        else:
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, scalars: dict[str, float], **extra: Any) -> None:
        """One line; ``extra`` goes to the file only."""
        with atomic.storage_errors(self.path, "write the log"):
            self._file.write(json.dumps({"step": step, **scalars, **extra}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an earlier part of the run; a last line cut by a crash is dropped."""
    if not path.is_file():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found
