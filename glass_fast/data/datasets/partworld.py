"""Rendered PartWorld folders: pictures with instance, class and part maps, captions and label names.

Layout: ``images/ID.png``, ``instances/ID.png`` (16-bit; 0 background), ``classes/ID.png`` (label ids),
``parts/ID.png`` (8 or 16 bit; optional), ``captions.json`` (``{"ID": "caption"}``; optional) and
``labels.json`` (list of class names; optional, default the built-in PartWorld label set).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glass_fast.data import atomic
from glass_fast.data.datasets.records import (
    Annotation,
    Dataset,
    Record,
    missing,
    read_label_map,
    read_picture,
)
from glass_fast.data.label_sets import MAX_LABELS, LabelSet, label_set
from glass_fast.errors import DataError

_LAYOUT = "give a folder written by glass-fast partworld render"


def open_partworld(root: str | Path, *, name: str = "partworld", limit: int | None = None) -> Dataset:
    """Open a folder written by ``glass-fast partworld render``.

    Raises:
        DataError: GF-DATA-170 a file is missing, GF-DATA-174 maps, captions or labels do not fit each other.
    """
    folder = Path(root)
    pictures = folder / "images"
    if not pictures.is_dir():
        raise missing(pictures, "folder of rendered pictures", _LAYOUT)
    ids = sorted(path.stem for path in pictures.glob("*.png") if not path.name.startswith("."))[:limit]
    if not ids:
        raise missing(pictures / "*.png", "rendered pictures", _LAYOUT)
    labels = _labels(folder / "labels.json")
    captions = _captions(folder / "captions.json")
    has_parts = (folder / "parts").is_dir()

    def read(key: str) -> Record:
        image = read_picture(pictures / f"{key}.png")
        size = image.shape[:2]
        numbers = read_label_map(folder / "instances" / f"{key}.png", size)
        class_map = read_label_map(folder / "classes" / f"{key}.png", size)
        parts = read_label_map(folder / "parts" / f"{key}.png", size) if has_parts else None
        if ((numbers > 0) != (class_map > 0)).any() or class_map.max(initial=0) > len(labels):
            raise DataError(
                "GF-DATA-174",
                f"{folder}: maps of {key!r} disagree: every object pixel needs a class in 1..{len(labels)}",
                "render the folder again",
            )
        instances = np.zeros(size, np.int32)
        annotations = []
        for number in np.unique(numbers[numbers > 0]):
            mask = numbers == number
            found = np.unique(class_map[mask])
            if found.size != 1:
                raise DataError(
                    "GF-DATA-174", f"{folder}: object {number} of {key!r} has {found.size} classes", _LAYOUT
                )
            decode = functools.partial(_same, numbers, int(number))
            annotations.append(Annotation(int(found[0]), decode, id=int(number)))
            instances[mask] = len(annotations)
        nothing = np.zeros(size, bool)
        text = (captions[key],) if key in captions else ()
        return Record(
            key,
            image,
            instances,
            class_map,
            nothing,
            nothing.copy(),
            nothing.copy(),
            parts,
            annotations,
            labels,
            text,
        )

    return Dataset(name, labels, ids, read, note=f"{len(ids)} rendered scenes")


def _same(numbers: NDArray[np.int32], number: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = numbers == number
    return mask


def _labels(path: Path) -> LabelSet:
    built_in = label_set("partworld")
    if not path.exists():
        return built_in
    names = atomic.read_json(path, "label names")
    good = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not good or not 1 <= len(names) <= MAX_LABELS or len(set(names)) != len(names):
        raise DataError(
            "GF-DATA-174", f"{path}: expected a list of 1 to {MAX_LABELS} different class names", _LAYOUT
        )
    return built_in if tuple(names) == built_in.names else LabelSet(str(path), tuple(names))


def _captions(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    captions = atomic.read_json(path, "captions")
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise DataError("GF-DATA-174", f"{path}: expected an object from picture id to caption", _LAYOUT)
    return captions
