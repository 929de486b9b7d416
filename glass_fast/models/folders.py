"""Folders that appear whole or not at all: model folders and checkpoints."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from glass_fast.data import atomic


def fsync_tree(folder: Path) -> None:
    """Make every file below ``folder`` and the entries of every folder durable."""
    for root, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        atomic.fsync_directory(root)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a folder under a temporary name; it gets its own name only when the block ends without an error.

    A folder that holds the name already is replaced: it is moved aside, then removed, so that at no moment a
    half-written folder has the name.

    Args:
        path: final folder.

    Yields:
        The temporary folder to write into.

    Raises:
        EnvironmentProblem: disk full, permission, or another I/O error; the old folder is then still there.
    """
    final = Path(path)
    atomic.make_directory(final.parent)
    tag = f"{os.getpid()}-{secrets.token_hex(4)}"
    temp = final.parent / f".tmp-{final.name}-{tag}"
    old = final.parent / f".old-{final.name}-{tag}"
    with atomic.storage_errors(final, "write the folder"):
        temp.mkdir()
    try:
        yield temp
        with atomic.storage_errors(final, "write the folder"):
            fsync_tree(temp)
            replaced = final.exists()
            if replaced:
                os.rename(final, old)
            try:
                os.rename(temp, final)
            except OSError:
                if replaced:
                    os.rename(old, final)
                raise
            atomic.fsync_directory(final.parent)
            if replaced:
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
