"""Captions made so far, so that a stopped captioner goes on where it was.

A line of the file is one batch: a CRC-32 of its records, then the records. A batch is appended with a
single write and an fsync; a line that is torn or damaged ends the file for us, and is cut off before the
next append. So a batch is either wholly there or made again, and the file never has to be rewritten.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glass_fast.data import atomic
from glass_fast.data.faults import fault_point

VERSION = 1


class CaptionCache:
    """Append-only JSONL file of captions, valid for one captioner and its decoding settings.

    Args:
        path: the file; made when absent.
        identity: what a caption depends on besides the image (model checksum, decoding settings). A file
            of another identity is replaced.

    Attributes:
        captions: content hash of an image -> its caption.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.captions: dict[str, str] = {}
        header = _line({"version": VERSION, "identity": identity})
        good = self._read(header)
        atomic.make_directory(path.parent)
        if good == 0:
            atomic.write_bytes(path, header)
        elif good < os.path.getsize(path):
            with atomic.storage_errors(path, "cut the damaged end of"):
                os.truncate(path, good)

    def _read(self, header: bytes) -> int:
        """Load all whole lines; returns the bytes they take, 0 when the file cannot be used at all."""
        if not self.path.is_file():
            return 0
        with atomic.storage_errors(self.path, "read"):
            data = self.path.read_bytes()
        if not data.startswith(header):
            return 0
        good = len(header)
        while (end := data.find(b"\n", good)) >= 0:
            batch = _parse(data[good:end])
            if batch is None:
                break
            self.captions.update(batch)
            good = end + 1
        return good

    def append(self, batch: Sequence[tuple[str, str]]) -> None:
        """Add (content hash, caption) pairs of one batch; on return they are on disk.

        Raises:
            EnvironmentProblem: the file cannot be written.
        """
        data = _line({"captions": [list(pair) for pair in batch]})
        fault_point("caption_append")
        with atomic.storage_errors(self.path, "write"):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                atomic.write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fault_point("caption_appended")
        self.captions.update(batch)


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, sort_keys=True).encode("utf-8")
    return b"%08x " % zlib.crc32(text) + text + b"\n"


def _parse(line: bytes) -> dict[str, str] | None:
    """Captions of one line, or None when it is damaged."""
    check, _, text = line.partition(b" ")
    if check != b"%08x" % zlib.crc32(text):
        return None
    return dict(json.loads(text)["captions"])
