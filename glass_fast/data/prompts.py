"""The prompt table: one row per image to be synthesized, as parquet with a fixed schema."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glass_fast.data import atomic
from glass_fast.errors import DataError

ID_PATTERN = re.compile(r"[0-9a-z_-]{1,64}\Z")
"""Sample ids and keys; no dot, because WebDataset splits a member's name at the first one."""
MAX_TEXT_BYTES = 4096
_METADATA_KEY = b"glass_fast"
_TEXTS = ("id", "caption", "prompt", "class_prompt", "source", "image_id")


@dataclass(frozen=True)
class Prompt:
    """One row of the prompt table.

    Attributes:
        id: sample id, ``[0-9a-z_-]{1,64}``, unique in the table.
        caption: the caption of the source image.
        classes: class names in the order of ``class_prompt``.
        prompt: text that makes the image (caption and class names).
        class_prompt: text whose attention columns are read (class names only).
        seed: 63-bit seed of everything random about the sample.
        source: where the caption came from (captioner, provided, labels, list).
        image_id: id of the source image, empty when there is none.
    """

    id: str
    caption: str
    classes: tuple[str, ...]
    prompt: str
    class_prompt: str
    seed: int
    source: str
    image_id: str


def sample_seed(run_seed: int, sample_id: str, purpose: str) -> int:
    """Seed of one sample for one purpose: the first 63 bits of BLAKE2b over the three values.

    It does not depend on order, batch, worker or restart. The parts are length-prefixed, so that
    no two different triples give the same bytes.

    Returns:
        An integer in ``[0, 2**63)``.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (str(int(run_seed)), sample_id, purpose):
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "big") >> 1


def _schema() -> Any:
    import pyarrow as pa

    text = [pa.field(name, pa.string(), nullable=False) for name in ("id", "caption")]
    return pa.schema(
        [
            *text,
            pa.field("classes", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("class_prompt", pa.string(), nullable=False),
            pa.field("seed", pa.int64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("image_id", pa.string(), nullable=False),
        ]
    )


def _fail(where: str, row: int, column: str, value: Any, expected: str) -> DataError:
    return DataError(
        "GF-DATA-121",
        f"{where}: row {row}, column {column!r}: {str(value)[:80]!r}; expected {expected}",
        "correct that row and write the prompt table again",
    )


def _check(prompts: Sequence[Prompt], where: str) -> None:
    seen: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        for column in _TEXTS:
            value = getattr(prompt, column)
            if not isinstance(value, str):
                raise _fail(where, row, column, value, "text")
            try:
                size = len(value.encode("utf-8"))
            except UnicodeEncodeError:
                raise _fail(where, row, column, ascii(value), "valid Unicode") from None
            if size > MAX_TEXT_BYTES:
                raise _fail(where, row, column, value, f"at most {MAX_TEXT_BYTES} bytes, not {size}")
        if not ID_PATTERN.match(prompt.id):
            raise _fail(where, row, "id", prompt.id, "1 to 64 characters of a-z, 0-9, _ and -")
        if prompt.id in seen:
            raise _fail(where, row, "id", prompt.id, f"a unique id (row {seen[prompt.id]} has the same)")
        seen[prompt.id] = row
        if not all(isinstance(name, str) and name.strip() for name in prompt.classes):
            raise _fail(where, row, "classes", prompt.classes, "a list of class names")
        if isinstance(prompt.seed, bool) or not isinstance(prompt.seed, int) or not 0 <= prompt.seed < 2**63:
            raise _fail(where, row, "seed", prompt.seed, "a whole number in [0, 2**63)")


def write_prompts(path: str | os.PathLike[str], prompts: Sequence[Prompt], metadata: dict[str, Any]) -> None:
    """Write a prompt table atomically; equal rows and metadata give equal bytes.

    Args:
        path: parquet file.
        prompts: rows in order; their order is the order of the samples.
        metadata: JSON-able; holds at least ``vocabulary`` (name) and ``labels`` (list of class names).

    Raises:
        DataError: GF-DATA-121 a row is invalid, GF-DATA-122 the metadata lacks ``vocabulary`` or ``labels``.
        EnvironmentProblem: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = os.fspath(path)
    _check(prompts, where)
    _check_metadata(metadata, where)
    rows = [{**asdict(prompt), "classes": list(prompt.classes)} for prompt in prompts]
    encoded = json.dumps(metadata, sort_keys=True, ensure_ascii=False, allow_nan=False).encode("utf-8")
    schema = _schema().with_metadata({_METADATA_KEY: encoded})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    atomic.make_directory(Path(path).parent)
    atomic.write_bytes(path, buffer.getvalue())


def _check_metadata(metadata: Any, where: str) -> None:
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    good = isinstance(labels, (list, tuple)) and all(isinstance(name, str) for name in labels)
    if not good or not isinstance(metadata.get("vocabulary"), str):
        raise DataError(
            "GF-DATA-122",
            f"{where}: the prompt table's metadata needs 'vocabulary' (text) and 'labels' (list of names)",
            "write the table with glass-fast captions",
        )


def _open(path: str | os.PathLike[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(os.fspath(path), memory_map=False)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            "GF-DATA-120",
            f"prompt table {os.fspath(path)} cannot be read as parquet: {error}",
            "check the path; the table is written by glass-fast captions",
        ) from error


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Read and validate a prompt table.

    Raises:
        DataError: GF-DATA-120 not a readable parquet file, GF-DATA-123 a column is missing or of the wrong
            type, GF-DATA-121 a value is invalid (row and column named).
    """
    import pyarrow as pa

    where = os.fspath(path)
    with _open(path) as file:
        found = file.schema_arrow
        for field in _schema():
            index = found.get_field_index(field.name)
            if index < 0:
                raise DataError(
                    "GF-DATA-123",
                    f"{where}: column {field.name!r} is missing; found {', '.join(found.names)}",
                    "the table is written by glass-fast captions",
                )
            kind = found.field(index).type
            texts = (pa.string(), pa.large_string())
            if pa.types.is_list(field.type):
                good = (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and kind.value_type in texts
            else:
                good = kind == field.type or (field.type == pa.string() and kind in texts)
            if not good:
                raise DataError(
                    "GF-DATA-123", f"{where}: column {field.name!r} has type {kind}; expected {field.type}"
                )
        try:
            rows = file.read(columns=_schema().names).to_pylist()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise DataError("GF-DATA-120", f"prompt table {where} is damaged: {error}") from error
    prompts = []
    for number, row in enumerate(rows):
        if row["classes"] is None:
            raise _fail(where, number, "classes", None, "a list of class names")
        prompts.append(Prompt(**{**row, "classes": tuple(row["classes"])}))
    _check(prompts, where)
    return prompts


def read_prompt_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Metadata given to :func:`write_prompts`.

    Raises:
        DataError: GF-DATA-120 not readable, GF-DATA-122 the metadata is missing or damaged.
    """
    with _open(path) as file:
        raw = (file.schema_arrow.metadata or {}).get(_METADATA_KEY, b"null")
    try:
        metadata = json.loads(raw.decode("utf-8"))
    except ValueError:
        metadata = None
    _check_metadata(metadata, os.fspath(path))
    assert isinstance(metadata, dict)
    return metadata
