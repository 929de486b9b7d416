"""Reading shards: a folder of WebDataset tars with parquet indices and commit records as one indexable data
set.

Writing is in :mod:`glass_fast.data.shard_writer`, the layout in :mod:`glass_fast.data.shard_format`; both are
re-exported here.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from glass_fast.data import atomic
from glass_fast.data.manifest import read_manifest
from glass_fast.data.plan import ShardPlan, ShardSpec
from glass_fast.data.shard_format import (
    INDEX_COLUMNS,
    Sample,
    corrupt,
    index_schema,
    parse_sample,
    read_record,
)
from glass_fast.data.shard_writer import clean_temps, completed, write_shard
from glass_fast.errors import DataError

__all__ = [
    "INDEX_COLUMNS",
    "Sample",
    "ShardDataset",
    "ShardPlan",
    "ShardSpec",
    "clean_temps",
    "completed",
    "open_shards",
    "write_shard",
]


class _Shard:
    """One committed shard: its record, its index table and a lazily opened tar."""

    def __init__(self, directory: Path, spec: ShardSpec) -> None:
        self.spec = spec
        self.record = read_record(directory, spec)
        self.tar = directory / f"{spec.stem}.tar"
        self.table = _read_index(directory / f"{spec.stem}.parquet", spec, self.record)
        self.keys: list[str] = self.table.column("key").to_pylist()
        self.offsets: list[int] = self.table.column("offset").to_pylist()
        self.sizes: list[int] = self.table.column("size").to_pylist()
        self.hashes: list[str] = self.table.column("xxh3").to_pylist()
        limit = self.record["tar_bytes"]
        for offset, size in zip(self.offsets, self.sizes, strict=True):
            if offset < 0 or size < 1 or offset + size > limit:
                raise corrupt(
                    self.tar, f"its index points outside the file ({offset} + {size} of {limit} bytes)"
                )

    def read(self, row: int, descriptor: int) -> Sample:
        offset, size = self.offsets[row], self.sizes[row]
        try:
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise corrupt(self.tar, f"sample {self.keys[row]!r} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise corrupt(self.tar, f"sample {self.keys[row]!r} ends after {len(data)} of {size} bytes")
        if xxhash.xxh3_128_hexdigest(data) != self.hashes[row]:
            raise corrupt(self.tar, f"sample {self.keys[row]!r} does not fit its hash in the index")
        return parse_sample(data, self.keys[row], self.tar)


class ShardDataset:
    """Random access to the samples of a finished (or partly finished) folder of shards.

    Every sample is checked against its hash before it is decoded. The object can be sent to worker processes;
    each process opens the tars for itself.

    Attributes:
        directory: the folder.
        manifest: content of ``manifest.json``.
        labels: class names; label id of ``labels[i]`` is ``i + 1``.
        complete: whether every shard of the plan is there.
    """

    def __init__(
        self, directory: Path, shards: list[_Shard], manifest: dict[str, Any], complete: bool
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.labels: tuple[str, ...] = tuple(manifest["labels"])
        self.complete = complete
        self._shards = shards
        self._stops: list[int] = []
        for shard in shards:
            self._stops.append((self._stops[-1] if self._stops else 0) + shard.spec.count)
        self._descriptors: dict[int, int] = {}
        self._owner = os.getpid()

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def _locate(self, index: int) -> tuple[int, int]:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._stops, position)
        return number, position - (self._stops[number - 1] if number else 0)

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``, verified.

        Raises:
            IndexError: no such index.
            DataError: GF-DATA-140, the sample is damaged.
        """
        number, row = self._locate(index)
        return self._shards[number].read(row, self._descriptor(number))

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self)):
            yield self[index]

    def _descriptor(self, number: int) -> int:
        if self._owner != os.getpid():  # forked: leave the parent's descriptors alone
            self._descriptors, self._owner = {}, os.getpid()
        if number not in self._descriptors:
            if len(self._descriptors) >= 64:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            path = self._shards[number].tar
            try:
                self._descriptors[number] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise corrupt(path, f"it cannot be opened: {error.strerror}") from error
        return self._descriptors[number]

    def close(self) -> None:
        """Close the tars; reading opens them again."""
        if self._owner == os.getpid():
            for descriptor in self._descriptors.values():
                os.close(descriptor)
        self._descriptors = {}

    def __del__(self) -> None:
        if "_descriptors" in self.__dict__:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _owner=os.getpid())

    def index(self) -> Any:
        """One ``pyarrow.Table`` over all samples in order, with the columns of :data:`INDEX_COLUMNS`."""
        import pyarrow as pa

        if not self._shards:
            return index_schema().empty_table()
        return pa.concat_tables([shard.table for shard in self._shards])

    def keys(self) -> list[str]:
        """Keys of all samples in order."""
        return [key for shard in self._shards for key in shard.keys]

    def verify(self) -> list[str]:
        """Read every file in full and compare it with its commit record.

        Returns:
            One line per damaged file; empty when all is well.
        """
        problems = []
        for shard in self._shards:
            for path, wanted in (
                (shard.tar, "tar_sha256"),
                (shard.tar.with_suffix(".parquet"), "index_sha256"),
            ):
                try:
                    found = atomic.sha256_file(path)
                except OSError as error:
                    problems.append(f"{path}: {error.strerror}")
                    continue
                if found != shard.record[wanted]:
                    problems.append(f"{path}: sha256 {found} instead of {shard.record[wanted]}")
        return problems


def _read_index(path: Path, spec: ShardSpec, record: dict[str, Any]) -> Any:
    """The index table of one shard, checked against the record before it is parsed."""
    import hashlib
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = path.read_bytes()
    except OSError as error:
        raise corrupt(path, f"the index cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != record["index_sha256"]:
        raise corrupt(path, "the index does not fit its sha256 in the commit record")
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise corrupt(path, f"the index is not readable parquet: {error}") from error
    if not table.schema.equals(index_schema()) or table.num_rows != spec.count:
        raise corrupt(path, f"the index has another form or not {spec.count} rows")
    return table


def open_shards(directory: str | os.PathLike[str], partial: bool = False) -> ShardDataset:
    """Open a folder written by ``glass-fast synthesize``.

    Only committed shards are looked at: commit records, file sizes and the indices' hashes are checked here,
    each sample's hash when it is read.

    Args:
        directory: folder with ``manifest.json``.
        partial: accept a folder whose job is not finished.

    Raises:
        DataError: GF-DATA-131 no or damaged manifest, GF-DATA-140 a damaged shard, GF-DATA-142 the job is not
            finished (and ``partial`` is False).
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    if manifest["plan"] is None:
        raise DataError("GF-DATA-131", f"manifest of {folder}: no plan, so the folder holds no shards")
    plan = ShardPlan(**{key: manifest["plan"][key] for key in ("num", "shard_size", "batch_size")})
    done = completed(folder, plan)
    if len(done) < len(plan.shards) and not partial:
        raise DataError(
            "GF-DATA-142",
            f"{folder} has {len(done)} of {len(plan.shards)} shards",
            "run the same glass-fast synthesize command again to finish it",
        )
    shards = [_Shard(folder, spec) for spec in plan.shards if spec.index in done]
    return ShardDataset(folder, shards, manifest, complete=len(done) == len(plan.shards))
