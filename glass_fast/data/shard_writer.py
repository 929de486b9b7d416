"""Writing shards with the commit protocol: what has a commit record is complete, everything else does not
exist.

Steps, each a named fault point: plan, open_temp, write_member, close_tar, write_index, fsync_files,
rename_tar, rename_index, fsync_dir, write_record_temp, rename_record (the commit), fsync_dir2, report. The
bytes are a pure function of the samples, so doing a shard twice gives the same files, and a different file
under a final name is a conflict that is reported and never overwritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from glass_fast.data import atomic
from glass_fast.data.faults import fault_point
from glass_fast.data.plan import ShardPlan, ShardSpec
from glass_fast.data.shard_format import (
    RECORD_SCHEMA,
    Sample,
    encode_sample,
    index_row,
    index_schema,
    read_record,
)
from glass_fast.errors import DataError

_END_OF_TAR = b"\0" * 1024
_RECORD_SIZE = 10240


class _TempFile:
    """A temporary file of the protocol: written in pieces, hashed as it grows, removed unless published."""

    def __init__(self, directory: Path) -> None:
        self.descriptor, self.path = atomic.new_temp(directory)
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        atomic.write_all(self.descriptor, data)
        self.sha256.update(data)
        self.size += len(data)

    def fsync(self) -> None:
        os.fsync(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = -1

    def discard(self) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = -1
        with contextlib.suppress(OSError):
            os.unlink(self.path)


@contextlib.contextmanager
def _temp(directory: Path) -> Iterator[_TempFile]:
    file = _TempFile(directory)
    try:
        yield file
    finally:
        file.discard()


def write_shard(
    directory: str | os.PathLike[str],
    spec: ShardSpec,
    samples: Iterable[Sample],
    *,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and commit one shard.

    Args:
        directory: output folder, which exists.
        spec: the shard's place in the plan.
        samples: exactly ``spec.count`` samples in plan order; taken one by one, so a generator needs no more
            memory than one sample.
        extra: further JSON-able facts for the commit record, such as the effective micro-batch. They must be
            a pure function of the plan and the configuration (no times, no host), or redoing the shard is a
            conflict.

    Returns:
        The commit record.

    Raises:
        DataError: GF-DATA-141 a malformed sample or a wrong number of them, GF-DATA-101 another file holds a
            final name, GF-DATA-102 a value is not JSON.
        EnvironmentProblem: disk full, permission, or another I/O error. Nothing is committed then.
    """
    folder = Path(directory)
    fault_point("plan")
    with contextlib.ExitStack() as stack:
        with _storage(folder, spec):
            fault_point("open_temp")
            tar = stack.enter_context(_temp(folder))
        rows = _write_tar(folder, spec, tar, samples)
        with _storage(folder, spec):
            fault_point("write_index")
            index = stack.enter_context(_temp(folder))
            index.write(_index_bytes(rows))
            fault_point("fsync_files")
            tar.fsync()
            index.fsync()
            fault_point("rename_tar")
            atomic.publish(tar.path, folder / f"{spec.stem}.tar")
            fault_point("rename_index")
            atomic.publish(index.path, folder / f"{spec.stem}.parquet")
            fault_point("fsync_dir")
            atomic.fsync_directory(folder)
            record = atomic.seal(
                {
                    **(extra or {}),
                    "schema": RECORD_SCHEMA,
                    "index": spec.index,
                    "start": spec.start,
                    "count": spec.count,
                    "first_key": rows[0]["key"],
                    "last_key": rows[-1]["key"],
                    "tar_bytes": tar.size,
                    "tar_sha256": tar.sha256.hexdigest(),
                    "index_bytes": index.size,
                    "index_sha256": index.sha256.hexdigest(),
                }
            )
            fault_point("write_record_temp")
            proof = stack.enter_context(_temp(folder))
            proof.write(atomic.canonical_json(record))
            proof.fsync()
            fault_point("rename_record")
            atomic.publish(proof.path, folder / f"{spec.stem}.json")
            fault_point("fsync_dir2")
            atomic.fsync_directory(folder)
    fault_point("report")
    return record


def _storage(folder: Path, spec: ShardSpec) -> contextlib.AbstractContextManager[None]:
    return atomic.storage_errors(folder / f"{spec.stem}.tar", "write the shard")


def _write_tar(
    folder: Path, spec: ShardSpec, tar: _TempFile, samples: Iterable[Sample]
) -> list[dict[str, Any]]:
    """Write all members and the end of the archive; returns the index rows."""
    rows: list[dict[str, Any]] = []
    keys: set[str] = set()
    for sample in samples:
        if len(rows) == spec.count:
            raise DataError(
                "GF-DATA-141", f"{spec.stem}: more than the planned {spec.count} samples were given"
            )
        members = encode_sample(sample)
        if sample.key in keys:
            raise DataError("GF-DATA-141", f"{spec.stem}: key {sample.key!r} is given twice")
        keys.add(sample.key)
        digest = xxhash.xxh3_128()
        begin = tar.size
        with _storage(folder, spec):
            for data in members:
                fault_point("write_member")
                tar.write(data)
                digest.update(data)
        rows.append(index_row(sample, begin, tar.size - begin, digest.hexdigest()))
    if len(rows) != spec.count:
        raise DataError(
            "GF-DATA-141", f"{spec.stem}: {len(rows)} samples were given, {spec.count} are planned"
        )
    with _storage(folder, spec):
        fault_point("close_tar")
        tar.write(_END_OF_TAR)
        tar.write(b"\0" * (-tar.size % _RECORD_SIZE))
    return rows


def _index_bytes(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=index_schema()), buffer, compression="zstd")
    return buffer.getvalue()


def completed(directory: str | os.PathLike[str], plan: ShardPlan) -> set[int]:
    """Indices of the shards that are committed; only commit records count, never the mere presence of a tar.

    Raises:
        DataError: GF-DATA-140, a record is damaged, belongs to another plan, or its files are missing or cut.
    """
    folder = Path(directory)
    if not folder.is_dir():
        return set()
    with atomic.storage_errors(folder, "list the folder"):
        names = set(os.listdir(folder))
    done = set()
    for spec in plan.shards:
        if f"{spec.stem}.json" in names:
            read_record(folder, spec)
            done.add(spec.index)
    return done


def clean_temps(directory: str | os.PathLike[str], min_age_s: float = 3600.0) -> list[Path]:
    """Remove temporary files that a killed writer left behind; see
    :func:`glass_fast.data.atomic.clean_temps`."""
    return atomic.clean_temps(directory, min_age_s) if Path(directory).is_dir() else []
