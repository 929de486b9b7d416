"""Contact sheets: right places, right frames, small enough; loss curves that a browser can read."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from glass_fast.partworld.quality import sheets
from glass_fast.partworld.quality.generated import Pictures
from glass_fast.partworld.renderer import render

SCENES = [render("test", index) for index in range(6)]


def pictures_of(prompted, found) -> Pictures:
    count = len(prompted)
    scenes = [SCENES[i % len(SCENES)] for i in range(count)]
    seen = np.zeros((count, 10), bool)
    for row, classes in enumerate(found):
        seen[row, list(classes)] = True
    classes = np.stack([scene.classes for scene in scenes]).astype(np.uint8)
    return Pictures(
        images=np.stack([scene.image for scene in scenes]), masks=classes, maps=[], prompted=prompted,
        peaks=[], dropped=[], prompt=np.arange(count), texts=[], labels=classes, found=seen,
    )  # fmt: skip


def test_rows_of_classes_and_frames() -> None:
    prompted = [(index % 10,) for index in range(80)]
    found = [() if index == 13 else (index % 10,) for index in range(80)]
    sheet = sheets.single_sheet(pictures_of(prompted, found), "t")
    assert [len(row) for row in sheet.rows] == [7] * 4 + [6] * 6, "64 pictures in ten rows"
    assert list(sheet.row_names) == list(sheets.NAMES)
    framed = [(r, c) for r, row in enumerate(sheet.rows) for c, tile in enumerate(row) if tile.framed]
    assert framed == [(3, 1)], "picture 13 is the second one of class 3"


def test_pictures_stand_where_they_belong(tmp_path) -> None:
    first, second = np.full((4, 4, 3), 40, np.uint8), np.full((4, 4, 3), 90, np.uint8)
    image = sheets.Sheet([[sheets.Tile(first), sheets.Tile(second, framed=True)]], "t").draw()
    pixels = np.asarray(image)
    rows, columns = np.nonzero((pixels == 40).all(-1))
    assert (np.ptp(rows), np.ptp(columns)) == (7, 7), "twice the size of the picture"
    x, y = columns.max() + 1 + sheets._GAP, rows.min()
    assert (pixels[y : y + 8, x : x + 8] == 90).all()
    assert (
        tuple(pixels[y - 1, x - 1]) == sheets._RED and not (pixels[:, : x - 2] == sheets._RED).all(-1).any()
    )


def test_files_are_pictures_of_limited_size(tmp_path) -> None:
    pairs = pictures_of([(0, 1)] * 16, [(0, 1)] * 16)
    path = sheets.pair_sheet(pairs, "Pairs").save(tmp_path / "a" / "pairs.png")
    assert 5_000 < path.stat().st_size <= sheets.MAX_BYTES
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 8 * 128


def test_rounder_colours_where_the_file_would_be_too_large() -> None:
    # Noise does not compress: 24 bits a pixel, some 13 with four bits a channel, 4 with sixteen colours.
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    image, area = Image.fromarray(noise), 96 * 96
    for bits, mode, apart in ((26, "RGB", 0), (16, "RGB", 8), (5, "P", 255)):
        data = sheets.png_within(image, area * bits // 8)
        assert len(data) <= area * bits // 8
        with Image.open(io.BytesIO(data)) as again:
            assert again.mode == mode
            difference = np.abs(np.asarray(again.convert("RGB")).astype(int) - noise)
        # four bits: the nearest of sixteen levels is at most 8 away
        assert difference.max() <= apart
    with pytest.raises(ValueError, match="fewer pictures"):
        sheets.png_within(image, area // 8)


def test_full_colour_is_kept_when_it_fits() -> None:
    image = Image.fromarray(SCENES[0].image)
    with Image.open(io.BytesIO(sheets.png_within(image, 10**6))) as again:
        assert again.mode == "RGB" and np.array_equal(np.asarray(again), SCENES[0].image)


def test_tint_colours_labels_and_nothing_else() -> None:
    image = np.full((8, 8, 3), (100, 120, 140), np.uint8)
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 2:6] = 3
    result = sheets.tinted(image, labels)
    assert (result[labels == 0] == 120).all(), "background is grey and not tinted"
    expected = 0.4 * 120 + 0.6 * sheets.class_colours()[3].astype(float)
    assert np.abs(result[4, 4] - expected).max() <= 0.5  # rounded to whole grey levels
    assert (result[2, 2] == 255).all()
    colours = sheets.class_colours()[1:11].astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(10, dtype=int)
    assert apart.min() > 80, "ten colours that can be told apart"


def test_panels_of_masks_and_renders() -> None:
    pictures = pictures_of([(index % 10,) for index in range(30)], [()] * 30)
    sheet = sheets.mask_sheet(pictures, "t", count=12, groups=3)
    assert [len(row) for row in sheet.rows] == [9] * 4 and sheet.column_names[:3] == (
        "generated", "captured mask", "judge",
    )  # fmt: skip
    truth = np.stack([scene.classes for scene in SCENES]).astype(np.uint8)
    sheet = sheets.render_sheet(SCENES, truth, truth, "t")
    assert [len(row) for row in sheet.rows] == [8] * 3
    assert np.array_equal(sheet.rows[0][1].image, sheet.rows[0][3].image)
    assert sheet.draw().height > 3 * 128


def test_captured_masks_of_renders() -> None:
    from glass_fast.models.loading import load_generator
    from glass_fast.partworld.quality.generated import generator_config

    config = generator_config("partworld:generator").synthesis
    masks = sheets.captured_on_renders(load_generator("partworld:generator", "cpu"), SCENES[:2], config)
    assert masks.shape == (2, 64, 64) and masks.dtype == np.uint8
    for mask, scene in zip(masks, SCENES[:2], strict=True):
        assert set(np.unique(mask)) <= {0, 255, *scene.labels}


def test_loss_curves() -> None:
    card = {
        "stages": {
            "a": {"losses": [[50, 1.0], [100, 0.5]]},
            "b & c": {"losses": [[50, 2.0], [100, 0.1], [150, 0.05]]},
            "tokenizer": {"losses": []},
        }
    }
    root = ElementTree.fromstring(sheets.loss_chart(card))
    space = "{http://www.w3.org/2000/svg}"
    charts = root.findall(f"{space}svg")
    assert [chart.get("x") for chart in charts] == ["0", "380"]
    assert [chart.find(f"{space}title").text for chart in charts] == ["a", "b & c"]
    assert ElementTree.fromstring(sheets.loss_chart({"stages": {}})).tag == f"{space}svg"
