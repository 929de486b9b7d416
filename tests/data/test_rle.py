"""Run-length masks and polygons against pycocotools, hand-made cases and real annotations."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_fast.data import rle
from glass_fast.errors import DataError

# pycocotools 2.0.11 under numpy 2; nothing that a user of this package would see
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def coco() -> object:
    return pytest.importorskip("pycocotools.mask", reason="pycocotools is the reference here")


def random_mask(chance: random.Random) -> np.ndarray:
    rng = np.random.default_rng(chance.randrange(2**32))
    height, width = (int(n) for n in rng.integers(1, 60, 2))
    if chance.random() < 0.5:
        return rng.random((height, width)) < rng.random()
    mask = np.zeros((height, width), bool)
    for _ in range(int(rng.integers(0, 5))):
        y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
        mask[y : y + int(rng.integers(1, 30)), x : x + int(rng.integers(1, 30))] ^= True
    return mask


def test_hand_made() -> None:
    """2 x 3 mask, down the columns 0 1 | 1 0 | 0 0: runs 1, 2, 3."""
    mask = np.array([[0, 1, 0], [1, 0, 0]], bool)
    assert rle.encode(mask) == {"size": [2, 3], "counts": "123"}
    assert np.array_equal(rle.decode({"size": [2, 3], "counts": [1, 2, 3]}), mask)
    assert rle.area(rle.encode(mask)) == 2 and rle.to_bbox(rle.encode(mask)) == (0, 0, 2, 2)
    # a full mask begins with a run of no zeros; 40 = 8 + 32 takes two characters
    assert rle.encode(np.ones((5, 8), bool))["counts"] == "0" + chr(48 + 32 + 8) + "1"
    assert rle.to_bbox(rle.encode(np.zeros((4, 4), bool))) == (0, 0, 0, 0)
    assert rle.encode(np.zeros((0, 3), bool)) == {"size": [0, 3], "counts": "0"}
    assert rle.decode({"size": [0, 3], "counts": "0"}).shape == (0, 3)


def test_equal_to_pycocotools() -> None:
    """1,000 masks: the same text, area and box; decoded back to the same mask, as text, bytes and list."""
    reference = coco()
    chance = random.Random(0)
    for _ in range(1000):
        mask = random_mask(chance)
        expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))  # type: ignore[attr-defined]
        ours = rle.encode(mask)
        assert ours["counts"].encode() == expected["counts"] and ours["size"] == list(expected["size"])
        assert rle.area(ours) == reference.area(expected)  # type: ignore[attr-defined]
        if mask.any():
            assert list(rle.to_bbox(ours)) == reference.toBbox(expected).tolist()  # type: ignore[attr-defined]
        for counts in (ours["counts"], expected["counts"], rle.decompress(ours["counts"]).tolist()):
            assert np.array_equal(rle.decode({"size": ours["size"], "counts": counts}), mask)


def test_long_runs() -> None:
    """Runs above 2**20 pixels, and differences of either sign, take five groups."""
    mask = np.zeros((4000, 3000), bool)
    mask[5, 7] = mask[3999, 2999] = True
    mask[:, 1000:2000] = True
    text = rle.encode(mask)
    assert np.array_equal(rle.decode(text), mask)
    reference = coco()
    assert text["counts"].encode() == reference.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]  # type: ignore[attr-defined]


@settings(max_examples=300)
@given(st.lists(st.integers(0, 2**27), max_size=40))
def test_compression_is_invertible(counts: list[int]) -> None:
    assert rle.decompress(rle.compress(counts)).tolist() == counts


@settings(max_examples=500)
@given(
    counts=st.text(max_size=12) | st.binary(max_size=12), height=st.integers(-1, 9), width=st.integers(0, 9)
)
def test_any_text(counts: str | bytes, height: int, width: int) -> None:
    """Any counts: a mask of the right size or a typed error."""
    try:
        assert rle.decode({"size": [height, width], "counts": counts}).shape == (height, width)
    except DataError as error:
        assert error.code == "GF-DATA-160"


@pytest.mark.parametrize(
    "annotation",
    [
        {},
        {"size": [2, 2]},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": [5]},
        {"size": [2, 2], "counts": [3]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": [1.0, 3]},
        {"size": [2, 2], "counts": [True, 3]},
        {"size": [2, 2], "counts": "4P"},
        {"size": [2, 2], "counts": "PPPPPPPPPPPP0"},
        {"size": [2, 2], "counts": "\u0664"},
        {"size": [2], "counts": "4"},
        {"size": "22", "counts": "4"},
        {"size": [2**20, 2**20], "counts": "4"},
        [1, 2],
    ],
)
def test_damaged_rle(annotation: object) -> None:
    with pytest.raises(DataError) as caught:
        rle.decode(annotation)  # type: ignore[arg-type]
    assert caught.value.code == "GF-DATA-160"


def test_polygon_by_hand() -> None:
    """A rectangle from (1, 1) to (4, 3) covers columns 1 to 3 and rows 1 to 2; outside is cut off."""
    mask = rle.polygons_to_mask([[1, 1, 4, 1, 4, 3, 1, 3]], 5, 6)
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    assert np.array_equal(mask, expected)
    assert rle.polygons_to_mask([[-9, -9, 99, -9, 99, 99, -9, 99]], 3, 4).all()
    assert not rle.polygons_to_mask([], 3, 4).any()
    parts = rle.polygons_to_mask([[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 4, 1, 4, 3, 1, 3]], 5, 6)
    expected[0:2, 0:2] = True
    assert np.array_equal(parts, expected)


def test_polygons_equal_to_pycocotools() -> None:
    """1,500 random objects of one to three parts, also self-crossing, degenerate and outside: pixel for
    pixel."""
    reference = coco()
    chance = random.Random(1)
    for _ in range(1500):
        height, width = chance.randint(1, 60), chance.randint(1, 60)
        digits = chance.choice((0, 1, 2, 6))
        polygons = [
            [round(chance.uniform(-15, 75), digits) for _ in range(2 * chance.randint(3, 9))]
            for _ in range(chance.randint(1, 3))
        ]
        if chance.random() < 0.2:  # repeated points and edges without length
            polygons[0] += polygons[0][-2:] * 2
        objects = reference.frPyObjects(polygons, height, width)  # type: ignore[attr-defined]
        expected = reference.decode(reference.merge(objects)).astype(bool)  # type: ignore[attr-defined]
        assert np.array_equal(rle.polygons_to_mask(polygons, height, width), expected), polygons


@pytest.mark.parametrize("split", ["val2017", "train2017"])
def test_real_annotations_equal_to_pycocotools(split: str, real_data: Path) -> None:
    """Every annotation of the COCO subset, crowds included: pixel for pixel."""
    reference = coco()
    content = json.loads((real_data / f"coco/annotations/instances_{split}.json").read_text())
    sizes = {item["id"]: (item["height"], item["width"]) for item in content["images"]}
    crowds = 0
    for item in content["annotations"]:
        size = sizes[item["image_id"]]
        segmentation = item["segmentation"]
        objects = reference.frPyObjects(segmentation, *size)  # type: ignore[attr-defined]
        if isinstance(segmentation, list):
            ours = rle.polygons_to_mask(segmentation, *size)
            objects = reference.merge(objects)  # type: ignore[attr-defined]
        else:
            crowds += 1
            ours = rle.decode(segmentation)
        assert np.array_equal(ours, reference.decode(objects)), item["id"]  # type: ignore[attr-defined]
    assert crowds >= 5 and len(content["annotations"]) >= 700


@pytest.mark.parametrize(
    "polygon",
    [
        [],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, float("nan")],
        [1e30] * 6,
        ["a"] * 6,
        [[1, 2], [3]],
        None,
        3,
    ],
)
def test_damaged_polygons(polygon: object) -> None:
    with pytest.raises(DataError) as caught:
        rle.polygons_to_mask([polygon], 5, 5)  # type: ignore[list-item]
    assert caught.value.code == "GF-DATA-161"
