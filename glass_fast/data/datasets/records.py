"""The record that every data set reader gives, and the indexable data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glass_fast.data import png
from glass_fast.data.images import decode_image
from glass_fast.data.label_sets import LabelSet
from glass_fast.errors import DataError

MAX_PIXELS = 2**26


@dataclass(frozen=True)
class Annotation:
    """One annotated object.

    Attributes:
        category: 1-based label id.
        crowd: a region of many objects that were not separated (COCO ``iscrowd``).
        ignore: marked by the data set as not to be counted.
        id: the data set's own number of the object.
    """

    category: int
    decode: Callable[[], NDArray[np.bool_]] = field(repr=False, compare=False)
    crowd: bool = False
    ignore: bool = False
    id: int = 0

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Bool ``(height, width)``, decoded anew at each access."""
        return self.decode()


@dataclass
class Record:
    """One picture with its ground truth, all maps of the picture's size.

    Attributes:
        id: the data set's own id of the picture.
        image: uint8 ``(height, width, 3)``, in the stored orientation.
        instances: int32 ``(height, width)``: 0 background, ``k`` the object ``annotations[k - 1]``. Objects
            are drawn in file order, so a later one hides an earlier one; crowds are not drawn.
        classes: int32 ``(height, width)``: 0 background, else the 1-based label id of the object in
            ``instances``.
        ignore: pixels that must not count (VOC void, COCO objects marked ``ignore``).
        overlap: pixels of two or more drawn objects.
        crowd: pixels of a crowd region.
        parts: int32 ``(height, width)`` part ids, or None where the data set has no parts.
        annotations: the objects in file order, crowds included.
        labels: the label set.
        captions: captions of the picture, if the data set has any.
    """

    id: str
    image: NDArray[np.uint8]
    instances: NDArray[np.int32]
    classes: NDArray[np.int32]
    ignore: NDArray[np.bool_]
    overlap: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    parts: NDArray[np.int32] | None
    annotations: list[Annotation]
    labels: LabelSet
    captions: tuple[str, ...] = ()


class Dataset(Sequence[Record]):
    """Indexable, iterable data set whose records are read when asked for.

    Attributes:
        name: name given in the configuration.
        labels: the label set.
        ids: ids of the records in order.
        note: what a number computed on this data set must be labelled with (``derived`` masks, subset, ...).
    """

    def __init__(
        self, name: str, labels: LabelSet, ids: Sequence[str], read: Callable[[str], Record], note: str = ""
    ) -> None:
        self.name = name
        self.labels = labels
        self.ids = list(ids)
        self.note = note
        self._read = read

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        return self._read(self.ids[index])

    def __iter__(self) -> Iterator[Record]:
        for key in self.ids:
            yield self._read(key)


def missing(path: Path, what: str, hint: str) -> DataError:
    """The error for a file that the official layout has and this folder has not (GF-DATA-170)."""
    return DataError("GF-DATA-170", f"{what} not found: {path}", hint)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A data set's picture in its stored orientation, which is the one its annotations refer to."""
    return decode_image(path, apply_orientation=False, max_pixels=MAX_PIXELS)


def read_label_map(path: Path, size: tuple[int, int]) -> NDArray[np.int32]:
    """Values of a single-channel or palette PNG as int32 ``(height, width)``.

    Raises:
        DataError: GF-DATA-170 missing or unreadable, GF-DATA-171 another size than the picture or colour
            channels.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise missing(path, "label map", error.strerror or "check the path") from error
    values = png.decode_exact(data, str(path), max_pixels=MAX_PIXELS)
    if values.ndim != 2:
        raise DataError(
            "GF-DATA-171", f"{path} is a colour picture; expected a palette or grey PNG with label ids"
        )
    if values.shape != size:
        raise DataError(
            "GF-DATA-171",
            f"{path} has {values.shape[0]} x {values.shape[1]} pixels; its picture has {size[0]} x {size[1]}",
        )
    return values.astype(np.int32)


def draw(
    annotations: Sequence[Annotation], size: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Draw objects in order, the last one on top.

    Returns:
        ``instances``, ``classes`` (int32), ``ignore``, ``overlap`` and ``crowd`` (bool), as in
        :class:`Record`.
    """
    instances = np.zeros(size, np.int32)
    classes = np.zeros(size, np.int32)
    ignore, overlap, crowd = (np.zeros(size, bool) for _ in range(3))
    for number, annotation in enumerate(annotations, start=1):
        mask = annotation.mask
        if annotation.crowd:
            crowd |= mask
        elif annotation.ignore:
            ignore |= mask
        else:
            overlap |= mask & (instances > 0)
            instances[mask] = number
            classes[mask] = annotation.category
    return instances, classes, ignore, overlap, crowd
