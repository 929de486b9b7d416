"""Layout of a shard on disk: the sample, its tar members, its index row and the commit record.

Members of a sample, in this order: ``key.png`` (RGB), ``key.mask.png`` (palette, 255 = uncertain),
``key.maps.png`` (grey; the K soft maps stacked from top to bottom; absent when K = 0) and ``key.json``.
Headers are plain ustar with time 0 and owner 0, so a sample's bytes are a pure function of its content.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.data import atomic, png
from glass_fast.data.plan import ShardSpec
from glass_fast.data.prompts import ID_PATTERN
from glass_fast.errors import DataError

RECORD_SCHEMA = 1
MAX_MEMBER_BYTES = 32 * 2**20
MAX_MEMBERS = 8
_BLOCK = 512
_SUFFIXES = (".png", ".mask.png", ".maps.png", ".json")
_RESERVED = ("key", "height", "width", "maps")
_TEXT_COLUMNS = ("prompt", "caption", "class_prompt")
INDEX_COLUMNS = (
    "key",
    "offset",
    "size",
    "xxh3",
    "height",
    "width",
    "maps",
    "prompt",
    "caption",
    "class_prompt",
    "classes",
    "seed",
    "flags",
    "scores",
    "extra",
)
"""Columns of an index: place and hash of the sample in the tar, then what its ``meta`` holds; ``scores`` is a
map from name to number, ``extra`` the remaining keys of ``meta`` as one JSON text."""


def corrupt(path: str | os.PathLike[str], problem: str) -> DataError:
    """The error for a damaged shard file (GF-DATA-140)."""
    return DataError(
        "GF-DATA-140",
        f"{os.fspath(path)}: {problem}",
        "the shard was damaged after it was written: restore it, or delete its .tar, .parquet and .json "
        "and run the same glass-fast synthesize command again to make it anew",
    )


@dataclass
class Sample:
    """One synthetic image with its labels.

    Attributes:
        key: sample id, ``[0-9a-z_-]{1,64}``.
        image: uint8 ``(height, width, 3)``.
        mask: uint8 ``(height, width)``: 0 background, 1..254 label ids, 255 uncertain.
        maps: uint8 ``(K, h, w)``: soft map of each class in ``meta["classes"]``, 255 = 1.0.
        meta: JSON-able facts. ``prompt``, ``caption``, ``class_prompt`` (text), ``classes``, ``flags`` (lists
            of text), ``seed`` (63 bits) and ``scores`` (name -> finite number) become index columns;
            everything else goes into the column ``extra``. After reading it also holds ``key``, ``height``,
            ``width`` and ``maps`` (the shape ``[K, h, w]``).
    """

    key: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    meta: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise :class:`DataError` (GF-DATA-141) when shapes, types or the key are not as described."""
        problem = ""
        if not isinstance(self.key, str) or not ID_PATTERN.match(self.key):
            problem = "the key must be 1 to 64 characters of a-z, 0-9, _ and -"
        for name, dimensions in (("image", 3), ("mask", 2), ("maps", 3)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != dimensions:
                problem = f"{name} must be a uint8 array with {dimensions} dimensions"
        if not problem:
            if self.image.shape[2] != 3 or self.image.shape[:2] != self.mask.shape or not self.mask.size:
                problem = f"image {self.image.shape} and mask {self.mask.shape} do not fit each other"
            elif len(self.maps) and not self.maps.size:
                problem = f"maps {self.maps.shape} are empty"
            elif not isinstance(self.meta, dict) or not all(isinstance(key, str) for key in self.meta):
                problem = "meta must be a dict with text keys"
        if problem:
            raise DataError("GF-DATA-141", f"sample {self.key!r}: {problem}")

    def document(self) -> dict[str, Any]:
        """``meta`` with key and shapes, as stored in ``key.json``.

        Raises:
            DataError: GF-DATA-141, ``meta`` holds a reserved key with another value.
        """
        shape = [int(n) for n in self.maps.shape] if len(self.maps) else [0, 0, 0]
        height, width = (int(n) for n in self.mask.shape)
        reserved = {"key": self.key, "height": height, "width": width, "maps": shape}
        for name, value in reserved.items():
            if name in self.meta and self.meta[name] != value:
                raise DataError(
                    "GF-DATA-141",
                    f"sample {self.key!r}: meta[{name!r}] = {self.meta[name]!r}; reserved for {value!r}",
                )
        return {**self.meta, **reserved}


def index_schema() -> Any:
    """The parquet schema of an index, columns in the order of :data:`INDEX_COLUMNS`."""
    import pyarrow as pa

    text = pa.string()
    kinds = {
        "offset": pa.int64(),
        "size": pa.int64(),
        "height": pa.int32(),
        "width": pa.int32(),
        "seed": pa.int64(),
        "maps": pa.int32(),
        "classes": pa.list_(text),
        "flags": pa.list_(text),
        "scores": pa.map_(text, pa.float64()),
    }
    return pa.schema([pa.field(name, kinds.get(name, text)) for name in INDEX_COLUMNS])


def index_row(sample: Sample, offset: int, size: int, digest: str) -> dict[str, Any]:
    """The sample's row of the index.

    Raises:
        DataError: GF-DATA-141, a known key of ``meta`` has a value of another type.
    """
    meta = sample.meta
    for name, good in (
        *((name, isinstance(meta.get(name, ""), str)) for name in _TEXT_COLUMNS),
        *((name, _is_texts(meta.get(name, []))) for name in ("classes", "flags")),
        ("seed", type(meta.get("seed", 0)) is int and 0 <= meta.get("seed", 0) < 2**63),
    ):
        if not good:
            raise DataError(
                "GF-DATA-141", f"sample {sample.key!r}: meta[{name!r}] = {meta[name]!r} has the wrong type"
            )
    scores = meta.get("scores")
    as_column: list[tuple[str, float]] = []
    known = {*_RESERVED, *_TEXT_COLUMNS, "classes", "flags", "seed"}
    if isinstance(scores, dict) and all(isinstance(value, (int, float)) for value in scores.values()):
        as_column = sorted((str(name), float(value)) for name, value in scores.items())
        known.add("scores")
    extra = {name: value for name, value in meta.items() if name not in known}
    return {
        "key": sample.key,
        "offset": offset,
        "size": size,
        "xxh3": digest,
        "height": sample.mask.shape[0],
        "width": sample.mask.shape[1],
        "maps": len(sample.maps),
        **{name: meta.get(name, "") for name in _TEXT_COLUMNS},
        "classes": list(meta.get("classes", [])),
        "seed": meta.get("seed", 0),
        "flags": list(meta.get("flags", [])),
        "scores": as_column,
        "extra": json.dumps(extra, sort_keys=True, ensure_ascii=False, allow_nan=False),
    }


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def member(name: str, data: bytes) -> bytes:
    """Header, content and padding of one tar member.

    Raises:
        DataError: GF-DATA-141, over 32 MiB.
    """
    if len(data) > MAX_MEMBER_BYTES:
        raise DataError(
            "GF-DATA-141", f"{name} has {len(data)} bytes; at most {MAX_MEMBER_BYTES} fit a shard member"
        )
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % _BLOCK)


def encode_sample(sample: Sample) -> list[bytes]:
    """The sample's tar members in their order, as bytes.

    Raises:
        DataError: GF-DATA-141 the sample is malformed, GF-DATA-102 ``meta`` is not JSON.
    """
    sample.check()
    members = [
        member(f"{sample.key}.png", png.encode_rgb(sample.image)),
        member(f"{sample.key}.mask.png", png.encode_labels(sample.mask)),
    ]
    if len(sample.maps):
        stacked = sample.maps.reshape(-1, sample.maps.shape[2])
        members.append(member(f"{sample.key}.maps.png", png.encode_grey(stacked)))
    members.append(member(f"{sample.key}.json", atomic.canonical_json(sample.document())))
    return members


def parse_sample(data: bytes, key: str, path: Path) -> Sample:
    """Inverse of :func:`encode_sample`; accepts regular members of the known suffixes only.

    Raises:
        DataError: GF-DATA-140, anything else than a well-formed sample.
    """
    parts: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        try:
            info = tarfile.TarInfo.frombuf(data[position : position + _BLOCK], "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise corrupt(path, f"sample {key!r}: bad tar header ({error})") from error
        suffix = info.name[len(key) :]
        begin, end = position + _BLOCK, position + _BLOCK + info.size
        if (
            info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)
            or not info.name.startswith(key)
            or suffix not in _SUFFIXES
            or suffix in parts
            or not 0 <= info.size <= MAX_MEMBER_BYTES
            or end > len(data)
        ):
            raise corrupt(path, f"sample {key!r}: unexpected member {info.name!r}")
        parts[suffix] = data[begin:end]
        position = end + -info.size % _BLOCK
    missing = {".png", ".mask.png", ".json"} - parts.keys()
    if missing:
        raise corrupt(path, f"sample {key!r}: member {sorted(missing)[0]!r} is missing")
    where = f"{path}: {key}"
    try:
        meta = json.loads(parts[".json"].decode("utf-8"))
        count, height, width = (int(n) for n in meta["maps"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise corrupt(path, f"sample {key!r}: its json member is damaged: {error}") from error
    image = png.decode_exact(parts[".png"], f"{where}.png")
    mask = png.decode_exact(parts[".mask.png"], f"{where}.mask.png")
    maps = np.zeros((0, 0, 0), np.uint8)
    if count:
        stacked = png.decode_exact(parts.get(".maps.png", b""), f"{where}.maps.png")
        if stacked.dtype != np.uint8 or stacked.shape != (count * height, width):
            raise corrupt(
                path, f"sample {key!r}: maps of shape {stacked.shape} instead of {count} x {height} x {width}"
            )
        maps = stacked.reshape(count, height, width).astype(np.uint8, copy=False)
    sample = Sample(key, image.astype(np.uint8, copy=False), mask.astype(np.uint8, copy=False), maps, meta)
    try:
        sample.check()
    except DataError as error:
        raise corrupt(path, error.message) from error
    return sample


_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def read_record(directory: Path, spec: ShardSpec) -> dict[str, Any]:
    """Read a shard's commit record and compare it with the plan and the sizes of the two files.

    Raises:
        DataError: GF-DATA-140, damaged record, another plan, or a file that is missing or of another size.
    """
    path = directory / f"{spec.stem}.json"
    try:
        record = atomic.read_sealed(path, "commit record", max_bytes=2**20)
    except DataError as error:
        raise corrupt(path, error.message) from error
    good = (
        record.get("schema") == RECORD_SCHEMA
        and all(
            isinstance(record.get(name), str) and _SHA256.match(record[name])
            for name in ("tar_sha256", "index_sha256")
        )
        and all(
            type(record.get(name)) is int for name in ("index", "start", "count", "tar_bytes", "index_bytes")
        )
    )
    if not good:
        raise corrupt(path, "the commit record is damaged")
    if (record["index"], record["start"], record["count"]) != (spec.index, spec.start, spec.count):
        raise corrupt(path, f"the commit record is not about samples {spec.start}..{spec.stop - 1}")
    for suffix, name in ((".tar", "tar_bytes"), (".parquet", "index_bytes")):
        file = directory / f"{spec.stem}{suffix}"
        try:
            size = os.path.getsize(file)
        except OSError as error:
            raise corrupt(file, f"it is committed but cannot be read: {error.strerror}") from error
        if size != record[name]:
            raise corrupt(file, f"it has {size} bytes; {record[name]} were committed")
    return record
