"""Small annotated pictures and predictors whose masks are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from glass_fast.data.datasets.records import Annotation, Dataset, Record, draw
from glass_fast.data.label_sets import LabelSet
from glass_fast.errors import DataError

LABELS = LabelSet("toy", ("car", "tree", "cup"))


def record(key: str, side: int, boxes: Sequence[tuple[int, int, int, int, int]]) -> Record:
    """Boxes are (label id, top, left, bottom, right); the picture's red channel holds the instance number."""
    annotations = []
    for label, top, left, bottom, right in boxes:
        mask = np.zeros((side, side), dtype=bool)
        mask[top:bottom, left:right] = True
        annotations.append(Annotation(label, partial(np.copy, mask)))
    instances, classes, ignore, overlap, crowd = draw(annotations, (side, side))
    image = np.zeros((side, side, 3), dtype=np.uint8)
    image[..., 0] = instances
    return Record(key, image, instances, classes, ignore, overlap, crowd, None, annotations, LABELS)


def toy_dataset(count: int = 6, broken: Sequence[int] = ()) -> Dataset:
    """Pictures of 32 px with 0, 1 or 2 objects (bands of a quarter) in turn; ``broken`` ones fail."""
    boxes = [[], [(1, 0, 0, 8, 32)], [(1, 0, 0, 8, 32), (3, 24, 0, 32, 32)]]

    def read(key: str) -> Record:
        index = int(key)
        if index in broken:
            raise DataError("GF-DATA-154", f"picture {key} is damaged")
        return record(key, 32, boxes[index % 3])

    return Dataset("toy", LABELS, [str(i) for i in range(count)], read, note="toy set")


class ImagePredictor:
    """A predictor that computes its masks from the pictures by a given function."""

    def __init__(
        self, function: Callable[[np.ndarray, int], torch.Tensor], num_slots: int, name: str = "fake"
    ) -> None:
        self.function, self.num_slots, self.name = function, num_slots, name
        self.calls: list[int] = []

    def masks(self, images: Sequence[np.ndarray], seeds: Sequence[int]) -> torch.Tensor:
        self.calls.append(len(images))
        return torch.stack([self.function(image, seed) for image, seed in zip(images, seeds, strict=True)])

    def describe(self) -> dict[str, Any]:
        return {"type": "fake"}


def perfect(image: np.ndarray, seed: int) -> torch.Tensor:
    """One slot per instance, read off the red channel."""
    labels = torch.from_numpy(image[..., 0].astype(np.int64))
    return torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()


def one_slot(image: np.ndarray, seed: int) -> torch.Tensor:
    masks = torch.zeros(4, 8, 8)
    masks[2] = 1
    return masks


def noisy(image: np.ndarray, seed: int) -> torch.Tensor:
    return torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(seed))
