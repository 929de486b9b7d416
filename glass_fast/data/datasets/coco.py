"""COCO instances: official layout, polygons (also in several parts), compressed and plain RLE, crowds,
overlaps."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.data import atomic, rle
from glass_fast.data.datasets.records import Annotation, Dataset, Record, draw, missing, read_picture
from glass_fast.data.label_sets import MAX_LABELS, LabelSet, label_set
from glass_fast.errors import DataError

_LAYOUT = "expected the official layout: annotations/instances_val2017.json beside val2017/*.jpg"


def open_coco(
    root: str | Path, split: str = "val", *, name: str = "coco", limit: int | None = None
) -> Dataset:
    """Open COCO or any data set in its instances format.

    Args:
        root: folder with ``annotations/instances_<split>.json`` and ``<split>/*.jpg``.
        split: ``val2017``, or ``val`` for short.
        name: name of the data set in reports.
        limit: only the first pictures by id. Pictures without annotations are kept (val2017 has 48).

    Returns:
        Data set whose label set is COCO's, or the file's own categories (by id) when they are not COCO's.

    Raises:
        DataError: GF-DATA-170 a file is missing, GF-DATA-172 the annotations are damaged.
    """
    folder = Path(root)
    found = [s for s in (split, f"{split}2017") if (folder / "annotations" / f"instances_{s}.json").is_file()]
    if not found:
        raise missing(folder / "annotations" / f"instances_{split}2017.json", "COCO annotations", _LAYOUT)
    split = found[0]
    path = folder / "annotations" / f"instances_{split}.json"
    pictures = folder / split
    if not pictures.is_dir():
        raise missing(pictures, "folder of pictures", _LAYOUT)
    content = atomic.read_json(path, "COCO annotations", max_bytes=2**33)
    images = _by_id(content, "images", path)
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in _items(content, "annotations", path):
        by_image[annotation.get("image_id", -1)].append(annotation)
    labels = _labels(_by_id(content, "categories", path), path)
    captions = _captions(folder / "annotations" / f"captions_{split}.json")
    ids = [str(key) for key in sorted(images)][:limit]

    def read(key: str) -> Record:
        number = int(key)
        entry = images[number]
        size = _size(entry, path)
        file_name = entry.get("file_name")
        if (
            not isinstance(file_name, str)
            or not file_name
            or Path(file_name).is_absolute()
            or ".." in Path(file_name).parts
        ):
            raise _damaged(path, f"image {key}: file_name = {file_name!r}")
        image = read_picture(pictures / file_name)
        if image.shape[:2] != size:
            raise _damaged(
                path, f"image {key} is said to be {size[0]} x {size[1]}, {file_name} is {image.shape[:2]}"
            )
        annotations = [_annotation(item, size, labels, path) for item in by_image[number]]
        instances, classes, ignore, overlap, crowd = draw(annotations, size)
        return Record(
            key,
            image,
            instances,
            classes,
            ignore,
            overlap,
            crowd,
            None,
            annotations,
            labels,
            captions.get(number, ()),
        )

    return Dataset(name, labels, ids, read, note=f"{split}, {len(ids)} pictures")


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(
        "GF-DATA-172", f"{path}: {problem}", "the annotations are damaged; restore the official file"
    )


def _items(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _damaged(path, f"{key!r} is not a list of objects")
    return items


def _by_id(content: Any, key: str, path: Path) -> dict[int, dict[str, Any]]:
    result: dict[int, dict[str, Any]] = {}
    for item in _items(content, key, path):
        number = item.get("id")
        if isinstance(number, bool) or not isinstance(number, int) or number in result:
            raise _damaged(path, f"{key}: id = {number!r} is missing, not a whole number or given twice")
        result[number] = item
    return result


def _labels(categories: dict[int, dict[str, Any]], path: Path) -> LabelSet:
    names = {}
    for number in sorted(categories):
        name = categories[number].get("name")
        if not isinstance(name, str) or not name:
            raise _damaged(path, f"category {number} has no name")
        names[number] = name
    official = label_set("coco")
    known = dict(zip(official.category_ids, official.names, strict=True))
    if all(known.get(number) == name for number, name in names.items()):
        return official
    if len(names) > MAX_LABELS:
        raise _damaged(path, f"{len(names)} categories; at most {MAX_LABELS} can be told apart")
    return LabelSet(str(path), tuple(names.values()), category_ids=tuple(names))


def _size(entry: dict[str, Any], path: Path) -> tuple[int, int]:
    size = (entry.get("height"), entry.get("width"))
    for number in size:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 2**16:
            raise _damaged(path, f"image {entry.get('id')}: height, width = {size}")
    return size  # type: ignore[return-value]


def _annotation(item: dict[str, Any], size: tuple[int, int], labels: LabelSet, path: Path) -> Annotation:
    try:
        category = labels.label_of_category(item.get("category_id", -1))
    except DataError as error:
        raise _damaged(path, f"annotation {item.get('id')}: {error.message}") from error
    number = item.get("id", 0)
    return Annotation(
        category=category,
        decode=functools.partial(_mask, item, size, path),
        crowd=bool(item.get("iscrowd", 0)),
        ignore=bool(item.get("ignore", 0)),
        id=number if isinstance(number, int) else 0,
    )


def _mask(item: dict[str, Any], size: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    segmentation = item.get("segmentation")
    try:
        if isinstance(segmentation, list):
            return rle.polygons_to_mask(segmentation, *size)
        if isinstance(segmentation, dict):
            mask = rle.decode(segmentation)
            if mask.shape != size:
                raise _damaged(path, f"annotation {item.get('id')}: mask {mask.shape} in a picture of {size}")
            return mask
    except DataError as error:
        if error.code == "GF-DATA-172":
            raise
        raise _damaged(path, f"annotation {item.get('id')}: {error.message}") from error
    raise _damaged(path, f"annotation {item.get('id')}: segmentation is neither polygons nor RLE")


def _captions(path: Path) -> dict[int, tuple[str, ...]]:
    """Human captions by image id; a data set without a captions file has none."""
    if not path.is_file():
        return {}
    captions: dict[int, list[str]] = defaultdict(list)
    for item in _items(atomic.read_json(path, "COCO captions"), "annotations", path):
        if isinstance(item.get("image_id"), int) and isinstance(item.get("caption"), str):
            captions[item["image_id"]].append(" ".join(item["caption"].split()))
    return {number: tuple(texts) for number, texts in captions.items()}
