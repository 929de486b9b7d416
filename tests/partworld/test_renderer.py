"""The renderer: a pure function of (split, seed, index) whose masks, captions and labels agree."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from glass_fast.data.label_sets import label_set
from glass_fast.errors import ConfigError
from glass_fast.partworld.builder.generator import class_names
from glass_fast.partworld.folder import write_scenes
from glass_fast.partworld.renderer import SIZE, describe, plural, render, render_pictures
from glass_fast.partworld.shapes import CLASSES


def test_classes_are_the_label_set() -> None:
    assert tuple(CLASSES) == label_set("partworld").names
    assert len(CLASSES) >= 10
    known = set(label_set("coco").names) | set(label_set("voc").names)
    assert len(known & set(CLASSES)) >= 6
    assert any(" " in name for name in known & set(CLASSES))


def test_scene_is_a_function_of_its_index() -> None:
    first, second = render("train", 7), render("train", 7)
    assert np.array_equal(first.image, second.image) and first.caption == second.caption
    assert not np.array_equal(first.image, render("test", 7).image)
    assert not np.array_equal(first.image, render("train", 7, seed=1).image)


def test_world_is_frozen() -> None:
    """Recipes were tuned and numbers measured on this world: a change to it voids them all.

    Label maps are hashed, not pictures: antialiasing may differ in the last bit between Pillow versions.
    """
    digest = hashlib.sha256()
    for split in ("train", "tuning", "test"):
        for index in range(5):
            scene = render(split, index)
            digest.update(scene.parts.astype("<i4").tobytes() + scene.classes.astype("<i4").tobytes())
            digest.update(scene.caption.encode())
    assert digest.hexdigest()[:16] == "2f1de1bf2554514c"


def test_masks_captions_and_labels_agree() -> None:
    for index in range(60):
        scene = render("tuning", index)
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        assert np.array_equal(scene.classes > 0, scene.instances > 0)
        assert np.array_equal(scene.parts > 0, scene.instances > 0)
        assert set(np.unique(scene.instances)) == set(range(len(scene.labels) + 1)), (
            "an object is wholly hidden"
        )
        for number, label in enumerate(scene.labels, start=1):
            assert set(np.unique(scene.classes[scene.instances == number])) == {label}
            parts = set(np.unique(scene.parts[scene.instances == number]))
            assert not parts & set(np.unique(scene.parts[scene.instances != number]))
        names = {tuple(CLASSES)[label - 1] for label in scene.labels}
        assert set(class_names(scene.caption)) == names


def test_parts_differ_more_than_objects() -> None:
    """The part-whole ambiguity: colour spread between parts of one object exceeds that between objects' means."""
    within, means = [], []
    for index in range(80):
        scene = render("tuning", index)
        image = scene.image.astype(float)
        for number in range(1, len(scene.labels) + 1):
            inside = scene.instances == number
            colours = [image[inside & (scene.parts == p)].mean(0) for p in np.unique(scene.parts[inside])]
            within.append(np.stack(colours).std(0).mean())
            means.append(image[inside].mean(0))
    assert np.mean(within) > np.stack(means).std(0).mean()


def test_some_scenes_repeat_a_class_and_some_overlap() -> None:
    scenes = [render("train", index) for index in range(200)]
    repeats = sum(len(set(s.labels)) < len(s.labels) for s in scenes)
    assert (
        8 <= repeats <= 60
    )  # 12 % of multi-object scenes, scaled by count; binomial bounds far outside 3 sigma


def test_phrases() -> None:
    assert describe(["car"]) == "a car"
    assert describe(["umbrella", "car", "car"]) == "an umbrella and two cars"
    assert describe(["tree", "cup", "house"]) == "a tree, a cup and a house"
    assert plural("snowman") == "snowmen" and plural("potted plant") == "potted plants"


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match="'valid'"):
        render("valid", 0)
    with pytest.raises(ConfigError, match="-1"):
        render("train", -1)


def test_pictures_equal_scenes_for_any_worker_count() -> None:
    images, captions = render_pictures("train", 300, workers=2)
    assert len(images) == len(captions) == 300
    for index in (0, 255, 256, 299):
        assert np.array_equal(images[index], render("train", index).image)
        assert captions[index] == render("train", index).caption


def test_folder_reads_back(tmp_path) -> None:
    from glass_fast.config.schema import DatasetConfig
    from glass_fast.data.datasets import open_dataset

    write_scenes(tmp_path, "test", 4)
    records = open_dataset(DatasetConfig(name="x", kind="partworld", path=str(tmp_path)))
    assert len(records) == 4
    for index, record in enumerate(records):
        scene = render("test", index)
        assert np.array_equal(record.image, scene.image)
        assert np.array_equal(record.instances, scene.instances)
        assert np.array_equal(record.classes, scene.classes)
        assert np.array_equal(record.parts, scene.parts)


def test_folder_without_masks_holds_none(tmp_path) -> None:
    write_scenes(tmp_path, "train", 2, masks=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "captions.json",
        "images",
        "labels.json",
        "scenes.json",
    ]


def test_folder_of_other_scenes_is_refused(tmp_path) -> None:
    write_scenes(tmp_path, "test", 2)
    assert write_scenes(tmp_path, "test", 2) == tmp_path
    for split, num, masks in (("train", 2, True), ("test", 3, True), ("test", 2, False)):
        with pytest.raises(ConfigError, match="holds scenes"):
            write_scenes(tmp_path, split, num, masks=masks)
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_interrupted_folder_is_finished(tmp_path) -> None:
    from glass_fast.partworld.folder import RECORD, STARTED

    write_scenes(tmp_path, "test", 3)
    (tmp_path / RECORD).rename(tmp_path / STARTED)
    (tmp_path / "images" / "test-000002.png").unlink()
    write_scenes(tmp_path, "test", 3)
    assert len(list((tmp_path / "images").iterdir())) == 3 and (tmp_path / RECORD).exists()


def test_backgrounds_are_several_regions() -> None:
    """One to three stretches of ground: rows of the lower edge differ from the upper edge in most scenes."""
    from glass_fast.partworld.renderer import _background

    apart = 0
    for index in range(200):
        picture = _background(np.random.default_rng(index))
        assert picture.shape == (SIZE, SIZE, 3)
        apart += abs(picture[:6].mean((0, 1)) - picture[-6:].mean((0, 1))).max() > 20
    # 80 % of the scenes have an edge; two muted colours differ by more than 20 grey levels in most draws.
    assert 0.5 < apart / 200 < 0.95
