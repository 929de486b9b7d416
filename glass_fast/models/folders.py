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
def atomic_folder(path: str | os.PathLike[str], merge_last: str | None = None) -> Iterator[Path]:
    """Write a folder under a temporary name; it gets its own name only when the block ends without an error.

    Args:
        path: final folder.
        merge_last: what happens when the folder exists. None: it is moved aside, replaced and removed, so
            that at no moment a half-written folder has the name. A file name: the new files are moved into
            the folder beside what else lies there (logs, checkpoints); the file of that name is taken away
            first and comes back last, so that readers who need it never see a mixture.

    Yields:
        The temporary folder to write into.

    Raises:
        EnvironmentProblem: disk full, permission, or another I/O error; the old folder is then still there.
    """
    final = Path(path)
    atomic.make_directory(final.parent)
    temp = final.parent / f".tmp-{final.name}-{os.getpid()}-{secrets.token_hex(4)}"
    with atomic.storage_errors(final, "write the folder"):
        temp.mkdir()
    try:
        yield temp
        with atomic.storage_errors(final, "write the folder"):
            fsync_tree(temp)
            if not final.exists():
                os.rename(temp, final)
            elif merge_last is None:
                _replace(temp, final)
            else:
                _merge(temp, final, merge_last)
            atomic.fsync_directory(final.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _replace(temp: Path, final: Path) -> None:
    old = temp.with_name(temp.name.replace(".tmp-", ".old-", 1))
    os.rename(final, old)
    try:
        os.rename(temp, final)
    except OSError:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _merge(temp: Path, final: Path, last: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(final / last)
    atomic.fsync_directory(final)
    names = sorted(os.listdir(temp), key=lambda name: (name == last, name))
    for name in names:
        if name == last:
            atomic.fsync_directory(final)
        os.rename(temp / name, final / name)
    atomic.fsync_directory(final)
