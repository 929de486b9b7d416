"""Readers of annotated data sets: COCO instances, PASCAL VOC segmentation, rendered PartWorld folders.

All give :class:`Record`; which order overlapping objects are drawn in, and what crowds and void pixels count
as, is the evaluation protocol's decision, so a record carries what every protocol needs (method notes 7.2 and
7.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glass_fast.data.datasets.records import Annotation, Dataset, Record
from glass_fast.errors import ConfigError

if TYPE_CHECKING:
    from glass_fast.config.schema import DatasetConfig

__all__ = ["Annotation", "Dataset", "Record", "open_dataset"]


def open_dataset(config: DatasetConfig) -> Dataset:
    """Open a data set; pictures and masks are read when a record is asked for.

    Args:
        config: kind (``coco``, ``voc`` or ``partworld``), root folder, split and optional limit. Records are
            sorted by id, and ``limit`` takes the first ones.

    Raises:
        ConfigError: GF-CONFIG-130, an unknown kind.
        DataError: GF-DATA-170, a file of the official layout is missing or damaged.
    """
    if config.kind == "coco":
        from glass_fast.data.datasets.coco import open_coco

        return open_coco(config.path, config.split, name=config.name, limit=config.limit)
    if config.kind == "voc":
        from glass_fast.data.datasets.voc import open_voc

        return open_voc(config.path, config.split, name=config.name, limit=config.limit)
    if config.kind == "partworld":
        from glass_fast.data.datasets.partworld import open_partworld

        return open_partworld(config.path, name=config.name, limit=config.limit)
    raise ConfigError(
        "GF-CONFIG-130", f"data set {config.name!r}: kind = {config.kind!r}; expected coco, voc or partworld"
    )
