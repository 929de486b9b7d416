"""PASCAL VOC 2012 segmentation: class and object PNGs, value 255 = void."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glass_fast.data.datasets.records import (
    Annotation,
    Dataset,
    Record,
    missing,
    read_label_map,
    read_picture,
)
from glass_fast.data.label_sets import label_set
from glass_fast.errors import DataError

VOID = 255
_LAYOUT = (
    "expected the official layout: VOCdevkit/VOC2012 with ImageSets/Segmentation, JPEGImages, "
    "SegmentationClass and SegmentationObject"
)
_ID = re.compile(r"[0-9A-Za-z_.-]{1,64}\Z")


def open_voc(root: str | Path, split: str = "val", *, name: str = "voc", limit: int | None = None) -> Dataset:
    """Open VOC 2012 (or another year in the same layout).

    Args:
        root: ``VOC2012`` itself, ``VOCdevkit``, or the folder that holds it.
        split: name of a list in ``ImageSets/Segmentation`` (train, val, trainval).
        name: name of the data set in reports.
        limit: only the first pictures by id.

    Raises:
        DataError: GF-DATA-170 a file is missing, GF-DATA-173 the list or a mask is damaged.
    """
    base = _find(Path(root))
    path = base / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise missing(path, "VOC list of pictures", _LAYOUT) from error
    except UnicodeDecodeError as error:
        raise DataError("GF-DATA-173", f"{path} is not text: {error}", "restore the official file") from error
    keys = [line.strip() for line in lines if line.strip()]
    for key in keys:
        if not _ID.match(key):
            raise DataError(
                "GF-DATA-173", f"{path}: {key[:80]!r} is not a picture id", "restore the official file"
            )
    ids = sorted(set(keys))[:limit]
    labels = label_set("voc")

    def read(key: str) -> Record:
        image = read_picture(base / "JPEGImages" / f"{key}.jpg")
        size = image.shape[:2]
        class_map = read_label_map(base / "SegmentationClass" / f"{key}.png", size)
        path_objects = base / "SegmentationObject" / f"{key}.png"
        objects = read_label_map(path_objects, size)
        void = (objects == VOID) | (class_map == VOID)
        wrong = class_map[(class_map > len(labels)) & ~void]
        if wrong.size:
            raise DataError(
                "GF-DATA-173", f"{key}: class {int(wrong[0])} in SegmentationClass; expected 0..20 or 255"
            )
        annotations, instances, classes = _objects(objects, class_map, void, path_objects)
        nothing = np.zeros(size, bool)
        return Record(
            key, image, instances, classes, void, nothing, nothing.copy(), None, annotations, labels
        )

    return Dataset(name, labels, ids, read, note=f"VOC {split}, {len(ids)} pictures")


def _find(root: Path) -> Path:
    for base in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (base / "ImageSets" / "Segmentation").is_dir():
            return base
    raise missing(root / "ImageSets" / "Segmentation", "VOC folder", _LAYOUT)


def _objects(
    objects: NDArray[np.int32], class_map: NDArray[np.int32], void: NDArray[np.bool_], path: Path
) -> tuple[list[Annotation], NDArray[np.int32], NDArray[np.int32]]:
    """Objects in the order of their numbers, each with the class that most of its pixels have."""
    instances = np.zeros(objects.shape, np.int32)
    classes = np.zeros(objects.shape, np.int32)
    annotations: list[Annotation] = []
    for number in np.unique(objects[~void & (objects > 0)]):
        mask = (objects == number) & ~void
        votes = np.bincount(class_map[mask], minlength=2)
        category = int(votes[1:].argmax()) + 1
        if votes[category] == 0:
            raise DataError("GF-DATA-173", f"{path}: object {number} lies on background in SegmentationClass")
        annotations.append(
            Annotation(category, functools.partial(_same, objects, int(number), void), id=int(number))
        )
        instances[mask] = len(annotations)
        classes[mask] = category
    return annotations, instances, classes


def _same(objects: NDArray[np.int32], number: int, void: NDArray[np.bool_]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = (objects == number) & ~void
    return mask
