"""What a frozen network gives for every image, as one array: in memory, or half precision in a mapped file."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch

from glass_fast.data import atomic
from glass_fast.errors import DataError

log = logging.getLogger(__name__)

MEMORY_LIMIT = 4 * 2**30
"""Bytes; a larger array goes to a file."""


class ArrayStore:
    """Array ``(views, images, ...)`` that is filled in order and can be used again by the next run.

    Args:
        name: what is stored; names the file and stands in messages.
        shape: ``(views, images, ...)``.
        cache: folder for an array above :data:`MEMORY_LIMIT`; None: always in memory.
        key: identity of the content; a file of another key is made again.

    Attributes:
        complete: True when the file of an earlier run holds everything.
    """

    def __init__(self, name: str, shape: tuple[int, ...], cache: Path | None, key: str) -> None:
        self.name = name
        size = math.prod(shape) * 4
        self.mapped: Path | None = None
        self.complete = False
        if cache is None or size <= MEMORY_LIMIT:
            self.array = torch.empty(shape)
            return
        atomic.make_directory(cache)
        self.mapped, self.key = cache / f"{name}.f16", key
        proof = self.mapped.with_suffix(".json")
        self.complete = (
            proof.is_file()
            and atomic.read_json(proof, f"record of the cached {name}").get("key") == key
            and self.mapped.is_file()
            and self.mapped.stat().st_size == size // 2  # half precision; a shorter file was cut off
        )
        if not self.complete:
            proof.unlink(missing_ok=True)
        with atomic.storage_errors(self.mapped, f"write the cached {name}"):
            mapped = np.memmap(self.mapped, np.float16, "r+" if self.complete else "w+", shape=shape)
        self.file, self.array = mapped, torch.from_numpy(mapped)
        log.info("%s of %d images take %.1f GB: cached in %s", name, shape[1], size / 2e9, self.mapped)

    def put(self, view: int, first: int, values: torch.Tensor) -> None:
        """Store the values of images ``first ..`` of a view.

        Raises:
            DataError: GF-TRAIN-005, they are not finite.
        """
        if not torch.isfinite(values).all():
            raise DataError("GF-TRAIN-005", f"the {self.name} of images {first}.. are not finite")
        self.array[view, first : first + len(values)] = values.cpu().to(self.array.dtype)

    def finish(self) -> torch.Tensor:
        """The whole array, after the file (if any) was made durable."""
        if self.mapped is not None and not self.complete:
            self.file.flush()  # the record must not be on disk before the values are
            atomic.write_json(self.mapped.with_suffix(".json"), {"key": self.key})
        return self.array
