"""Readers of COCO, VOC and PartWorld folders: hand-made folders with every special case, and the real
subsets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glass_fast.config.schema import DatasetConfig
from glass_fast.data import rle
from glass_fast.data.datasets import Record, open_dataset
from glass_fast.data.label_sets import label_set
from glass_fast.data.png import encode_labels
from glass_fast.errors import ConfigError, DataError

HEIGHT, WIDTH = 6, 8


def open_(kind: str, path: Path, **options: Any) -> Any:
    return open_dataset(DatasetConfig(name="test", kind=kind, path=str(path), **options))


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top: int, left: int, bottom: int, right: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def check(record: Record) -> None:
    """Types, sizes and the relations that hold for every reader."""
    size = record.image.shape[:2]
    assert record.image.dtype == np.uint8 and record.image.shape[2] == 3
    for name, kind in (
        ("instances", np.int32),
        ("classes", np.int32),
        ("ignore", bool),
        ("overlap", bool),
        ("crowd", bool),
    ):
        array = getattr(record, name)
        assert array.shape == size and array.dtype == kind, name
    assert ((record.instances > 0) == (record.classes > 0)).all()
    for number in np.unique(record.instances[record.instances > 0]):
        annotation = record.annotations[number - 1]
        place = record.instances == number
        assert not annotation.crowd and annotation.mask[place].all()
        assert (record.classes[place] == annotation.category).all()
    count = np.zeros(size, int)
    for annotation in record.annotations:
        assert annotation.mask.shape == size and 1 <= annotation.category <= len(record.labels)
        count += annotation.mask & (not annotation.crowd and not annotation.ignore)
    assert np.array_equal(record.overlap, count > 1)
    assert np.array_equal(record.instances > 0, count > 0)


# --- COCO --------------------------------------------------------------------------------------------------------

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}]


def write_coco(root: Path, annotations: list[dict[str, Any]], categories: Any = None, **image: Any) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "val2017").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (9, 8, 7)).save(root / "val2017" / "000000000042.jpg", quality=95)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "val2017" / "000000000007.jpg")
    images = [
        {"id": 42, "file_name": "000000000042.jpg", "height": HEIGHT, "width": WIDTH, **image},
        {"id": 7, "file_name": "000000000007.jpg", "height": HEIGHT, "width": WIDTH},
    ]
    full = [{"id": 100 + i, "image_id": 42, "iscrowd": 0, **item} for i, item in enumerate(annotations)]
    content = {
        "images": images,
        "annotations": full,
        "categories": CATEGORIES if categories is None else categories,
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def test_coco_special_cases(tmp_path: Path) -> None:
    crowd, compressed, ignored = box(0, 6, 2, 8), box(3, 3, 6, 6), box(5, 0, 6, 2)
    plain = rle.decompress(rle.encode(crowd)["counts"]).tolist()
    root = write_coco(
        tmp_path,
        [
            {"category_id": 3, "segmentation": [polygon(0, 0, 2, 2), polygon(3, 0, 5, 2)]},
            {"category_id": 1, "segmentation": [polygon(1, 1, 4, 4)]},
            {"category_id": 1, "iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": plain}},
            {"category_id": 90, "segmentation": rle.encode(compressed)},
            {"category_id": 3, "ignore": 1, "segmentation": rle.encode(ignored)},
        ],
    )
    (root / "annotations" / "captions_val2017.json").write_text(
        json.dumps(
            {"annotations": [{"image_id": 42, "caption": " A  car\n"}, {"image_id": 42, "caption": "B"}]}
        )
    )
    data = open_("coco", root)
    assert data.ids == ["7", "42"] and len(data) == 2 and data.labels is label_set("coco")
    empty, record = data
    check(record)
    check(empty)
    assert not empty.annotations and not empty.instances.any() and empty.captions == ()
    assert record.captions == ("A car", "B") and record.parts is None
    assert np.abs(record.image.astype(int) - [9, 8, 7]).max() <= 3
    two_parts = box(0, 0, 2, 2) | box(3, 0, 5, 2)
    masks = [two_parts, box(1, 1, 4, 4), crowd, compressed, ignored]
    assert [a.category for a in record.annotations] == [3, 1, 1, 80, 3]
    assert [a.id for a in record.annotations] == [100, 101, 102, 103, 104]
    assert [(a.crowd, a.ignore) for a in record.annotations] == [
        (False, False),
        (False, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    for annotation, mask in zip(record.annotations, masks, strict=True):
        assert np.array_equal(annotation.mask, mask)
    # the later object lies on top; crowds and ignored objects are not drawn
    expected = np.zeros((HEIGHT, WIDTH), int)
    for number in (1, 2, 4):
        expected[masks[number - 1]] = number
    assert np.array_equal(record.instances, expected)
    assert np.array_equal(record.overlap, (masks[0] & masks[1]) | (masks[1] & masks[3]))
    assert record.overlap.sum() == 2 + 1
    assert np.array_equal(record.crowd, crowd) and np.array_equal(record.ignore, ignored)
    assert open_("coco", root, split="val2017").ids == data.ids
    assert open_("coco", root, limit=1).ids == ["7"]


def test_coco_other_categories(tmp_path: Path) -> None:
    """A data set in COCO's format with classes of its own (zero-shot sets)."""
    categories = [{"id": 9, "name": "owl"}, {"id": 4, "name": "fox"}]
    root = write_coco(tmp_path, [{"category_id": 9, "segmentation": [polygon(0, 0, 2, 2)]}], categories)
    data = open_("coco", root)
    assert data.labels.names == ("fox", "owl") and data[1].annotations[0].category == 2


def test_coco_stored_orientation(tmp_path: Path) -> None:
    """Annotations refer to the stored pixels, so an EXIF rotation is not applied."""
    root = write_coco(tmp_path, [{"category_id": 1, "segmentation": [polygon(0, 0, 2, 2)]}])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "val2017" / "000000000042.jpg", exif=exif)
    assert open_("coco", root)[1].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 12, "segmentation": []}, "annotation 100: category id 12"),
        ({"category_id": 1, "segmentation": [[1, 2]]}, "annotation 100: a polygon has 2 values"),
        ({"category_id": 1, "segmentation": "x"}, "annotation 100: segmentation is neither"),
        (
            {"category_id": 1, "segmentation": {"size": [3, 3], "counts": "9"}},
            r"annotation 100: mask \(3, 3\)",
        ),
        ({"category_id": 1, "segmentation": {"size": [6, 8], "counts": [1]}}, "annotation 100: run-length"),
    ],
)
def test_coco_damaged_annotations(annotation: dict[str, Any], message: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path, [annotation])
    with pytest.raises(DataError, match=message) as caught:
        open_("coco", root)[1]
    assert caught.value.code == "GF-DATA-172" and "instances_val2017.json" in caught.value.message


@pytest.mark.parametrize(
    "image",
    [
        {"height": 5},
        {"width": None},
        {"file_name": "../../x.jpg"},
        {"file_name": "/etc/passwd"},
        {"file_name": 3},
    ],
)
def test_coco_damaged_images(image: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="42"):
        open_("coco", write_coco(tmp_path, [], **image))[1]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"images": 3}',
        '{"images": [1], "annotations": [], "categories": []}',
        '{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
        "[" * 10_000,
    ],
)
def test_coco_damaged_file(content: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path, [])
    (root / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(DataError, match="instances_val2017"):
        open_("coco", root)


def test_coco_missing_files(tmp_path: Path) -> None:
    for found in ("annotations", "pictures", "one picture"):
        with pytest.raises(DataError) as caught:
            open_("coco", tmp_path)[0]
        assert caught.value.code in ("GF-DATA-170", "GF-DATA-150") and str(tmp_path) in caught.value.message
        root = write_coco(tmp_path, [])
        for path in (root / "val2017").iterdir():
            path.unlink()
        if found == "annotations":
            (root / "val2017").rmdir()


# --- VOC ---------------------------------------------------------------------------------------------------------


def write_voc(
    root: Path, classes: np.ndarray, objects: np.ndarray, ids: str = "2007_000002\n2007_000001\n"
) -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass", "SegmentationObject"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "ImageSets/Segmentation/val.txt").write_text(ids)
    for key in ids.split():
        Image.new("RGB", (WIDTH, HEIGHT)).save(base / f"JPEGImages/{key}.jpg")
        (base / f"SegmentationClass/{key}.png").write_bytes(encode_labels(classes.astype(np.uint8)))
        (base / f"SegmentationObject/{key}.png").write_bytes(encode_labels(objects.astype(np.uint8)))
    return base


def voc_maps() -> tuple[np.ndarray, np.ndarray]:
    classes, objects = np.zeros((HEIGHT, WIDTH), int), np.zeros((HEIGHT, WIDTH), int)
    for number, (area, label) in enumerate(
        ((box(0, 0, 2, 3), 12), (box(0, 5, 2, 8), 12), (box(4, 0, 6, 8), 20)), start=1
    ):
        classes[area], objects[area] = label, number
    classes[2], objects[2] = 255, 255
    objects[4, 0] = 255  # void in one of the two maps only
    return classes, objects


def test_voc(tmp_path: Path) -> None:
    classes, objects = voc_maps()
    base = write_voc(tmp_path, classes, objects)
    for root in (tmp_path, tmp_path / "VOCdevkit", base):
        data = open_("voc", root)
        assert data.ids == ["2007_000001", "2007_000002"] and data.labels is label_set("voc")
    record = data[0]
    check(record)
    void = (classes == 255) | (objects == 255)
    assert np.array_equal(record.ignore, void) and void.sum() == WIDTH + 1
    assert np.array_equal(record.instances, np.where(void, 0, objects))
    assert np.array_equal(record.classes, np.where(void, 0, classes))
    assert [(a.category, a.id) for a in record.annotations] == [(12, 1), (12, 2), (20, 3)]
    assert not record.overlap.any() and not record.crowd.any() and record.parts is None


def test_voc_object_numbers_with_gaps(tmp_path: Path) -> None:
    classes, objects = voc_maps()
    objects[objects == 3] = 9
    record = open_("voc", write_voc(tmp_path, classes, objects))[0]
    assert [a.id for a in record.annotations] == [1, 2, 9] and record.instances.max() == 3
    check(record)


def test_voc_damage(tmp_path: Path) -> None:
    classes, objects = voc_maps()
    with pytest.raises(DataError, match="ImageSets"):
        open_("voc", tmp_path)
    base = write_voc(tmp_path, np.where(classes == 12, 21, classes), objects)
    with pytest.raises(DataError, match="class 21 in SegmentationClass"):
        open_("voc", base)[0]
    write_voc(tmp_path, np.where(classes == 12, 0, classes), objects)
    with pytest.raises(DataError, match="object 1 lies on background"):
        open_("voc", base)[0]
    write_voc(tmp_path, classes[:-1], objects)
    with pytest.raises(DataError, match="5 x 8 pixels; its picture has 6 x 8"):
        open_("voc", base)[0]
    write_voc(tmp_path, classes, objects)
    path = base / "SegmentationObject/2007_000001.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(DataError, match="colour picture"):
        open_("voc", base)[0]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="truncated"):
        open_("voc", base)[0]
    path.unlink()
    with pytest.raises(DataError, match="2007_000001"):
        open_("voc", base)[0]
    with pytest.raises(DataError, match=r"trainval\.txt"):
        open_("voc", base, split="trainval")
    (base / "ImageSets/Segmentation/val.txt").write_text("../../etc/passwd\n")
    with pytest.raises(DataError, match="not a picture id"):
        open_("voc", base)


# --- PartWorld ---------------------------------------------------------------------------------------------------


def write_world(
    root: Path, instances: np.ndarray, classes: np.ndarray, parts: np.ndarray | None = None
) -> Path:
    for name, array in (("instances", instances.astype(np.uint16)), ("classes", classes), ("parts", parts)):
        if array is not None:
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array if name == "instances" else array.astype(np.uint8)).save(
                root / name / "s1.png"
            )
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "s1.png")
    return root


def test_partworld(tmp_path: Path) -> None:
    instances, classes = np.zeros((HEIGHT, WIDTH), int), np.zeros((HEIGHT, WIDTH), int)
    instances[box(0, 0, 3, 3)], classes[box(0, 0, 3, 3)] = 300, 10
    instances[box(2, 2, 6, 6)], classes[box(2, 2, 6, 6)] = 2, 4
    parts = instances % 7
    root = write_world(tmp_path, instances, classes, parts)
    record = open_("partworld", root)[0]
    check(record)
    assert np.array_equal(record.instances, np.where(instances == 300, 2, instances // 2))
    assert np.array_equal(record.classes, classes) and np.array_equal(record.parts, parts)
    assert [(a.id, a.category) for a in record.annotations] == [(2, 4), (300, 10)]
    assert record.captions == () and record.labels is label_set("partworld")
    (root / "captions.json").write_text('{"s1": "a cup"}')
    (root / "labels.json").write_text(json.dumps(["x"] * 3))
    with pytest.raises(DataError, match=r"labels\.json"):
        open_("partworld", root)
    (root / "labels.json").write_text(json.dumps([f"c{i}" for i in range(10)]))
    record = open_("partworld", root)[0]
    assert record.captions == ("a cup",) and record.labels.names[9] == "c9"
    (root / "labels.json").write_text('["a", "b"]')
    with pytest.raises(DataError, match=r"1\.\.2"):
        open_("partworld", root)[0]


def test_partworld_damage(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rendered pictures"):
        open_("partworld", tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="rendered pictures"):
        open_("partworld", tmp_path)
    instances = np.where(box(0, 0, 3, 3), 1, 0)
    with pytest.raises(DataError, match="disagree"):
        open_("partworld", write_world(tmp_path, instances, np.zeros_like(instances)))[0]
    classes = instances.copy()
    classes[0, 0] = 2
    with pytest.raises(DataError, match="object 1 of 's1' has 2 classes"):
        open_("partworld", write_world(tmp_path, instances, classes))[0]
    (tmp_path / "captions.json").write_text("[1]")
    with pytest.raises(DataError, match="captions"):
        open_("partworld", tmp_path)


def test_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="'lvis'"):
        open_dataset(DatasetConfig.model_construct(name="x", kind="lvis", path="."))


# --- real subsets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "split", "pictures", "objects"), [("coco", "val", 79, 750), ("voc", "val", 119, 130)]
)
def test_real_subsets(kind: str, split: str, pictures: int, objects: int, real_data: Path) -> None:
    data = open_(kind, real_data / kind, split=split)
    assert len(data) == pictures
    total = 0
    for number, record in enumerate(data):
        total += len(record.annotations)
        if number % 6 == 0:
            check(record)
            assert len(record.captions) == (5 if kind == "coco" else 0)
    assert total == objects


def test_real_areas(real_data: Path) -> None:
    """Pixel counts against the areas recorded in the file, within 5 % + 8 px (polygon area is not pixel
    count)."""
    content = json.loads((real_data / "coco/annotations/instances_val2017.json").read_text())
    areas = {item["id"]: item["area"] for item in content["annotations"]}
    compared = 0
    for record in list(open_("coco", real_data / "coco", limit=25)):
        for annotation in record.annotations:
            if areas[annotation.id] > 200:
                assert abs(annotation.mask.sum() - areas[annotation.id]) <= 0.05 * areas[annotation.id] + 8
                compared += 1
    assert compared > 50
