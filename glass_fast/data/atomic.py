"""Files that are either absent or complete: temporary file, fsync, publish, fsync of the folder.

Under its final name a file is always whole. Temporary files are called ``.tmp-<host>-<pid>-<nonce>`` and lie
in the folder of the final file, so that publishing never crosses a file system.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glass_fast.errors import DataError, EnvironmentProblem

TEMP_PREFIX = ".tmp-"
_TEMP_NAME = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-(?P<nonce>[0-9a-f]{16})\Z")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def _host() -> str:
    return re.sub(r"[^0-9A-Za-z_.]", "_", socket.gethostname()) or "host"


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str], action: str) -> Iterator[None]:
    """Turn every ``OSError`` of the block into an :class:`EnvironmentProblem` that names ``path`` and
    ``action``.

    Raises:
        EnvironmentProblem: GF-ENV-101 disk full, GF-ENV-102 permission or read-only, GF-ENV-103 any other I/O
            error.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot {action} {os.fspath(path)}: {error.strerror or error}"
        if error.errno in _FULL:
            raise EnvironmentProblem(
                "GF-ENV-101", what, "free some space and run the same command again; nothing finished is lost"
            ) from error
        if error.errno in _DENIED:
            raise EnvironmentProblem(
                "GF-ENV-102", what, "make the folder writable for this user or choose another one"
            ) from error
        raise EnvironmentProblem(
            "GF-ENV-103", what, "check the path and the storage, then run the same command again"
        ) from error


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Create a folder with its parents.

    Raises:
        EnvironmentProblem: it cannot be created, or a file of that name exists.
    """
    with storage_errors(path, "create the folder"):
        os.makedirs(path, exist_ok=True)
    return Path(path)


def new_temp(directory: str | os.PathLike[str]) -> tuple[int, Path]:
    """Open a new temporary file in ``directory`` exclusively; returns its file descriptor and path."""
    path = Path(directory) / f"{TEMP_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(8)}"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644), path


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """``os.write`` until everything is written (a write may be short on a nearly full disk)."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_directory(directory: str | os.PathLike[str]) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temp: Path, final: Path) -> bool:
    """Give a finished, fsynced temporary file its final name without ever replacing a file.

    A hard link is used because, unlike a rename, it fails when the name is taken; file systems without hard
    links get a rename after a check. When the name is taken by a file of the same bytes the temporary file is
    dropped.

    Returns:
        True when the file was published, False when an identical one was already there.

    Raises:
        DataError: GF-DATA-101, a different file holds the name (it is left as it is).
    """
    try:
        os.link(temp, final)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not os.path.lexists(final):
            os.rename(temp, final)
            return True
    else:
        os.unlink(temp)
        return True
    if not _same_bytes(temp, final):
        os.unlink(temp)
        raise DataError(
            "GF-DATA-101",
            f"conflict: {final} exists with other content than this run would write there",
            "it was written by another configuration or version, or it is damaged: use a new output folder, "
            "or move that file away",
        )
    os.unlink(temp)
    return False


def _same_bytes(first: Path, second: Path) -> bool:
    if os.path.getsize(first) != os.path.getsize(second):
        return False
    return sha256_file(first) == sha256_file(second)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of ``data``, also after a power
    cut.

    Raises:
        EnvironmentProblem: disk full, permission, or another I/O error; the old content is then still there.
    """
    final = Path(path)
    with storage_errors(final, "write"):
        descriptor, temp = new_temp(final.parent)
        try:
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temp, final)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temp)
            raise
        fsync_directory(final.parent)


def canonical_json(obj: Any) -> bytes:
    """JSON with sorted keys, one fixed layout and a final newline: equal objects give equal bytes.

    Raises:
        DataError: GF-DATA-102, a value is not JSON (NaN and infinity included).
    """
    try:
        return (json.dumps(obj, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode(
            "utf-8"
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            "GF-DATA-102",
            f"a value cannot be written as JSON: {error}",
            "use finite numbers, text, lists and mappings",
        ) from error


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """:func:`write_bytes` of :func:`canonical_json`."""
    write_bytes(path, canonical_json(obj))


def read_json(path: str | os.PathLike[str], what: str = "JSON file", max_bytes: int = 2**30) -> Any:
    """Read a JSON file (UTF-8, NaN refused).

    Raises:
        DataError: GF-DATA-103 missing, unreadable, too large or not JSON.
    """
    return _parse_json(_read_limited(path, what, max_bytes), path, what)


def seal(obj: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with ``checksum``, the sha256 of its canonical JSON, so that it vouches for itself."""
    content = {key: value for key, value in obj.items() if key != "checksum"}
    return {**content, "checksum": hashlib.sha256(canonical_json(content)).hexdigest()}


def read_sealed(path: str | os.PathLike[str], what: str, max_bytes: int = 2**26) -> dict[str, Any]:
    """Read a file written as ``canonical_json(seal(...))``; any changed byte is found.

    Raises:
        DataError: GF-DATA-103 unreadable or not JSON, GF-DATA-104 changed after it was written.
    """
    data = _read_limited(path, what, max_bytes)
    content = _parse_json(data, path, what)
    if not isinstance(content, dict) or canonical_json(seal(content)) != data:
        raise DataError(
            "GF-DATA-104",
            f"{what} {path} was changed after it was written: its checksum does not fit",
            "restore it from a copy",
        )
    return content


def _read_limited(path: str | os.PathLike[str], what: str, max_bytes: int) -> bytes:
    try:
        size = os.path.getsize(path)
        if size > max_bytes:
            raise DataError(
                "GF-DATA-103", f"{what} {path} has {size} bytes; at most {max_bytes} are accepted"
            )
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            "GF-DATA-103", f"cannot read the {what} {path}: {error.strerror or error}", "check the path"
        ) from error


def _parse_json(data: bytes, path: str | os.PathLike[str], what: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            "GF-DATA-103",
            f"{what} {path} is not valid JSON: {error}",
            "it is damaged; restore it or make it again",
        ) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clean_temps(directory: str | os.PathLike[str], min_age_s: float = 3600.0) -> list[Path]:
    """Remove temporary files that no living writer owns.

    A file of this host is removed when its process is gone; one of another host when it was not modified for
    ``min_age_s`` seconds. Files of this process stay. Only names of our own form are touched.

    Returns:
        The removed paths, sorted.
    """
    removed = []
    with storage_errors(directory, "list the folder"):
        names = sorted(os.listdir(directory))
    for name in names:
        match = _TEMP_NAME.match(name)
        if match is None:
            continue
        path = Path(directory) / name
        if match["host"] == _host():
            stale = not _alive(int(match["pid"]))
        else:
            try:
                stale = time.time() - path.stat().st_mtime > min_age_s
            except FileNotFoundError:
                continue
        if stale:
            with (
                storage_errors(path, "remove the left-over temporary file"),
                contextlib.suppress(FileNotFoundError),
            ):
                os.unlink(path)
                removed.append(path)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
