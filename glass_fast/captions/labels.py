"""Ground-truth classes of images as a caption source: COCO instances JSON, or a folder of class masks.

Only the *names* of the classes are read, never where they are: this is GLASS's weakly supervised variant,
in which image-level labels replace the captioner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glass_fast.captions.matching import ClassMatcher
from glass_fast.captions.sources import MAX_JSON_BYTES, Item, Rejects, coco_image_key, rows_of
from glass_fast.captions.text import caption_of_classes, clean_caption, image_key
from glass_fast.data.atomic import read_json
from glass_fast.data.label_sets import BACKGROUND, UNCERTAIN, LabelSet, label_set
from glass_fast.errors import ConfigError, DataError

VOC_MASKS = "SegmentationClass"


def read_labels(
    path: Path, labels: LabelSet, matcher: ClassMatcher, most: int, rejects: Rejects
) -> list[Item]:
    """One item an image; its classes are ordered from the largest to the smallest total area.

    Args:
        path: a COCO instances file, a folder of PNG class masks, or a VOC folder holding
            ``SegmentationClass``.
        labels: the label set of the prompts; foreign class names are mapped by synonyms ("couch" -> "sofa").
        matcher: of ``labels``.
        most: classes kept per image.
        rejects: receives images without a class of the label set and unreadable masks.

    Raises:
        ConfigError: GF-CAP-020, there is no such file or folder.
        DataError: the file is damaged or of another form, or the folder holds no PNG.
    """
    if path.is_dir():
        areas = _mask_areas(path, labels, rejects)
    elif path.is_file():
        areas = _coco_areas(path)
    else:
        raise ConfigError(
            "GF-CAP-020",
            f"captions.file={str(path)!r}: no such file or folder",
            "source=labels expects a COCO instances file or a folder of class masks (VOC SegmentationClass)",
        )
    items = []
    for key, by_name in sorted(areas.items()):
        known: dict[str, float] = {}
        for name, area in by_name.items():
            target = matcher.resolve(name)
            if target is not None:
                known[target] = known.get(target, 0.0) + area
        names = _largest(known, matcher.names)[:most]
        if names:
            items.append(Item(key, clean_caption(caption_of_classes(names)), key, names))
        else:
            found = ", ".join(sorted(by_name)) or "nothing"
            rejects.add(
                key, "GF-CAP-003", f"no class of the label set {labels.name!r}; the image shows {found}"
            )
    return items


def _largest(areas: dict[str, float], order: Sequence[str]) -> tuple[str, ...]:
    """Names by falling area; equal areas in the order of the label set."""
    return tuple(sorted(areas, key=lambda name: (-areas[name], order.index(name))))


def _coco_areas(path: Path) -> dict[str, dict[str, float]]:
    """Area in pixels of every category of every image; crowds count, since the class is there."""
    document = read_json(path, "COCO instances", MAX_JSON_BYTES)
    categories = rows_of(document, "categories", path, {"id": int, "name": str})
    names = {row["id"]: row["name"] for row in categories}
    images = rows_of(document, "images", path, {"id": (int, str)})
    areas: dict[str, dict[str, float]] = {coco_image_key(row["id"]): {} for row in images}
    annotations = rows_of(document, "annotations", path, {"image_id": (int, str), "category_id": int})
    for number, row in enumerate(annotations):
        if row["category_id"] not in names:
            raise DataError(
                "GF-CAP-011",
                f"{path}: annotations[{number}] has category_id {row['category_id']}, which is no category",
                "the file is damaged or was cut by hand",
            )
        image = areas.setdefault(coco_image_key(row["image_id"]), {})
        name = names[row["category_id"]]
        image[name] = image.get(name, 0.0) + _area(row)
    return areas


def _area(row: dict[str, Any]) -> float:
    """Area of an annotation; of its box where the file gives none."""
    area = row.get("area")
    if isinstance(area, (int, float)) and area >= 0:
        return float(area)
    box = row.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box):
        return float(max(box[2], 0) * max(box[3], 0))
    return 0.0


def _mask_areas(folder: Path, labels: LabelSet, rejects: Rejects) -> dict[str, dict[str, float]]:
    """Pixels of every class of every mask; in a VOC folder the ids are VOC's, elsewhere those of
    ``labels``."""
    import numpy as np

    from glass_fast.data.png import decode_exact

    if (folder / VOC_MASKS).is_dir():
        folder = folder / VOC_MASKS
    named = label_set("voc") if folder.name == VOC_MASKS else labels
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.is_file())
    if not paths:
        raise DataError(
            "GF-CAP-016", f"no PNG class mask in {folder}", "expected ID.png files whose values are label ids"
        )
    areas: dict[str, dict[str, float]] = {}
    for path in paths:
        key = image_key(path.stem)
        try:
            mask = decode_exact(path.read_bytes(), str(path))
            if mask.ndim != 2:
                raise DataError("GF-CAP-017", f"{path} is a colour picture; expected a palette or grey PNG")
            values, counts = np.unique(mask, return_counts=True)
            areas[key] = {
                named.name_of(int(value)): float(count)
                for value, count in zip(values, counts, strict=True)
                if value not in (BACKGROUND, UNCERTAIN)
            }
        except DataError as error:
            rejects.add(key, error.code, error.message)
        except OSError as error:
            rejects.add(key, "GF-CAP-017", f"cannot read {path}: {error.strerror or error}")
    return areas
