"""Protocols as data, and the ground truth they make of one and the same annotated picture."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from glass_fast.data.datasets.records import Annotation, Record, draw
from glass_fast.data.label_sets import label_set
from glass_fast.errors import ConfigError, DataError
from glass_fast.metrics.ground_truth import build_ground_truth, crop_indices, resize_indices
from glass_fast.metrics.protocols import Protocol, get_protocol, protocol_names
from glass_fast.models.loading import ensure_torchvision

GLASS, SPOT = get_protocol("glass"), get_protocol("spot")


def rectangle(shape: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def annotated(shape: tuple[int, int], *items: tuple[int, np.ndarray, bool]) -> Record:
    """A record as the readers make it from (category, mask, crowd) in file order."""
    annotations = [Annotation(category, partial(np.copy, mask), crowd) for category, mask, crowd in items]
    instances, classes, ignore, overlap, crowd = draw(annotations, shape)
    return Record(
        "fake",
        np.zeros((*shape, 3), np.uint8),
        instances,
        classes,
        ignore,
        overlap,
        crowd,
        None,
        annotations,
        label_set("coco"),
    )


def small(name: str, side: int = 8, **changes: object) -> Protocol:
    return replace(get_protocol(name), resolution=side, **changes)


def test_named_protocols_hold_the_documented_choices() -> None:
    assert protocol_names() == ("glass", "spot")
    assert (GLASS.resolution, GLASS.overlaps, GLASS.overwrite) == (256, "kept", "last")
    assert GLASS.crowd == GLASS.void == "background"
    assert GLASS.background_miou and GLASS.background_mbo and GLASS.background_corloc and GLASS.renumber
    assert (SPOT.resolution, SPOT.overlaps, SPOT.overwrite) == (320, "ignored", "first")
    assert (SPOT.crowd, SPOT.void) == ("segment", "background") and not SPOT.renumber
    assert not (SPOT.background_miou or SPOT.background_mbo or SPOT.background_corloc)
    with pytest.raises(ConfigError, match=r"'glas'.*glass, spot"):
        get_protocol("glas")


def test_fields_are_json_and_the_label_tells_the_protocols_apart() -> None:
    for protocol in (GLASS, SPOT):
        assert set(json.loads(json.dumps(protocol.fields()))) == {f.name for f in fields(Protocol)}
    assert "256 px" in GLASS.label() and "background counted" in GLASS.label()
    assert "320 px" in SPOT.label() and "background excluded" in SPOT.label() and "first wins" in SPOT.label()
    assert (
        "background counted in mIoU,"
        in replace(GLASS, background_mbo=False, background_recovery=False, background_corloc=False).label()
    )


def test_overlap_order_and_crowd_differ_between_the_protocols() -> None:
    shape = (8, 8)
    record = annotated(
        shape,
        (5, rectangle(shape, 0, 0, 4, 4), False),
        (7, rectangle(shape, 2, 2, 6, 6), False),
        (9, rectangle(shape, 7, 0, 8, 8), True),
    )
    last = build_ground_truth(record, small("glass"))
    assert (last.instances == 2).sum() == 16 and (last.instances == 1).sum() == 12
    assert last.valid.all() and last.instances.max() == 2
    assert list(last.instance_classes) == [0, 5, 7] and list(last.class_labels) == [0, 5, 7]

    first = build_ground_truth(record, small("spot"))
    assert (first.instances == 1).sum() == 16 and (first.instances == 2).sum() == 12
    assert (~first.valid).sum() == 4 and not first.valid[2:4, 2:4].any()
    assert list(first.instance_classes) == [0, 5, 7, 9], "a crowd is a segment"
    assert first.instances[7].tolist() == [3] * 8


def test_glass_renumbers_a_crop_without_background() -> None:
    """Released script: ids are renumbered in sorted order, so the first object becomes the background."""
    shape = (4, 4)
    record = annotated(
        shape, (5, rectangle(shape, 0, 0, 4, 2), False), (3, rectangle(shape, 0, 2, 4, 4), False)
    )
    quirk = build_ground_truth(record, small("glass", 4))
    assert quirk.instances[0].tolist() == [0, 0, 1, 1]
    assert list(quirk.instance_classes) == [5, 3]
    assert quirk.classes[0].tolist() == [1, 1, 0, 0] and list(quirk.class_labels) == [3, 5]
    kept = build_ground_truth(record, small("spot", 4))
    assert kept.instances[0].tolist() == [1, 1, 2, 2]
    assert list(kept.instance_classes) == [0, 5, 3] and kept.classes[0].tolist() == [2, 2, 1, 1]


def test_objects_cropped_away_leave_no_gap() -> None:
    shape = (8, 24)
    record = annotated(
        shape, (1, rectangle(shape, 0, 0, 8, 4), False), (2, rectangle(shape, 2, 10, 6, 14), False)
    )
    truth = build_ground_truth(record, small("glass"))
    assert set(np.unique(truth.instances)) == {0, 1} and list(truth.instance_classes) == [0, 2]


def test_label_maps_without_annotations_use_void_and_overlap() -> None:
    instances = np.zeros((8, 8), dtype=np.int32)
    instances[:4] = 2
    void = np.zeros((8, 8), dtype=bool)
    void[3] = True
    record = annotated((8, 8))
    record.instances, record.classes, record.ignore, record.overlap = instances, instances * 6, void, void
    truth = build_ground_truth(record, small("glass"))
    assert (truth.instances == 1).sum() == 24 and truth.valid.all()
    assert list(truth.instance_classes) == [0, 12] and list(truth.class_labels) == [0, 12]
    assert not build_ground_truth(record, small("glass", void="ignored")).valid[3].any()
    assert not build_ground_truth(record, small("spot")).valid[3].any()
    assert instances[3, 0] == 2, "the record itself is not changed"


def test_mask_of_another_size_is_refused() -> None:
    record = annotated((8, 8), (1, np.ones((8, 8), bool), False))
    record.annotations = [Annotation(1, partial(np.ones, (8, 9), bool))]
    with pytest.raises(DataError, match="annotation 1"):
        build_ground_truth(record, SPOT)
    record.instances = np.zeros((9, 8), np.int32)
    with pytest.raises(DataError, match="'fake'"):
        build_ground_truth(record, GLASS)


def test_crowd_over_an_object_hides_it_only_where_the_protocol_lets_it() -> None:
    shape = (8, 8)
    record = annotated(
        shape, (5, rectangle(shape, 0, 0, 8, 8), True), (7, rectangle(shape, 0, 0, 2, 8), False)
    )
    kept = build_ground_truth(record, small("glass"))
    assert (kept.instances == 1).sum() == 16 and list(kept.instance_classes) == [0, 7]
    painted = build_ground_truth(record, small("glass", overwrite="first"))
    assert (painted.instances == kept.instances).all(), "painting and ready maps agree where rules coincide"
    first = build_ground_truth(record, small("spot"))
    assert (first.instances == 1).all() and not first.valid[:2].any() and first.valid[2:].all()


def test_nearest_rules_equal_torch_and_pillow() -> None:
    for source, scaled in ((64, 256), (480, 256), (37, 53), (53, 37), (500, 320), (7, 7)):
        line = torch.arange(source, dtype=torch.float64)[None, None]
        floor = torch.nn.functional.interpolate(line, size=scaled, mode="nearest")[0, 0].long().numpy()
        # OpenCV and torch "nearest" both read floor(i * scale), torch in float32 (one off on exact hits)
        ours = resize_indices(source, scaled, "corner")
        assert np.abs(ours - floor).max() <= (0 if scaled % source == 0 else 1)
        assert (ours != floor).mean() < 0.02
        picture = Image.fromarray(np.arange(source, dtype=np.int32)[None], mode="I")
        pillow = np.asarray(picture.resize((scaled, 1), Image.Resampling.NEAREST))[0]
        assert (resize_indices(source, scaled, "centre") == pillow).all()


@pytest.mark.parametrize("height, width", [(480, 640), (640, 480), (375, 500), (333, 500), (612, 612)])
def test_spot_crop_equals_torchvision(height: int, width: int) -> None:
    ensure_torchvision()
    from torchvision.transforms import InterpolationMode, functional

    ids = Image.fromarray(np.arange(height * width, dtype=np.int32).reshape(height, width), mode="I")
    resized = functional.resize(ids, 320, interpolation=InterpolationMode.NEAREST)
    expected = np.asarray(functional.center_crop(resized, 320))
    rows, columns = crop_indices(height, width, SPOT)
    assert (rows[:, None] * width + columns == expected).all()


def test_glass_crop_keeps_the_centre() -> None:
    rows, columns = crop_indices(480, 640, GLASS)
    # 640 * 256 / 480 = 341.33 -> 341 columns, corner (341 - 256) // 2 = 42
    assert rows[0] == 0 and rows[-1] == 478
    assert columns[0] == int(42 * 640 / 341) and columns[-1] == int(297 * 640 / 341)
    assert len(rows) == len(columns) == 256
