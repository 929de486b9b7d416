"""The evaluator on pictures whose scores are known."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glass_fast.config.schema import DatasetConfig
from glass_fast.data.datasets import open_dataset
from glass_fast.errors import ConfigError, DataError, NumericsError, Stopped
from glass_fast.evaluation.baselines import GridPredictor
from glass_fast.evaluation.evaluate import evaluate, slot_labels
from glass_fast.evaluation.scores import FOREGROUND_METRICS, METRICS
from glass_fast.metrics.ground_truth import build_ground_truth
from glass_fast.metrics.protocols import get_protocol
from glass_fast.models.encoder import Encoder
from glass_fast.models.glass import Glass
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig
from glass_fast.progress import Progress, StopToken

_spec = importlib.util.spec_from_file_location("evaluation_fakes", Path(__file__).with_name("fakes.py"))
assert _spec and _spec.loader
fakes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakes)

BOTH = ("glass", "spot")


def test_perfect_masks_score_one_everywhere() -> None:
    result = evaluate(fakes.ImagePredictor(fakes.perfect, 4), fakes.toy_dataset(), BOTH, batch_size=4)
    for name, part in result["protocols"].items():
        # straight borders survive upsampling by a whole even factor exactly
        for metric in (*METRICS, *FOREGROUND_METRICS, "fg_ari_multi"):
            assert part["metrics"][metric] == pytest.approx(1.0, abs=1e-12), (name, metric)
        assert (part["images"], part["images_without_object"], part["objects"]) == (6, 2, 6)
    assert result["counts"] == {"images": 6, "objects": 6, "failures": 0}


def test_one_slot_everywhere_by_hand() -> None:
    """Objects cover a quarter each: IoU 1/4 with the one slot; the background has IoU 1, 3/4 and 1/2."""
    result = evaluate(fakes.ImagePredictor(fakes.one_slot, 4), fakes.toy_dataset(3), BOTH)
    glass, spot = (result["protocols"][name]["metrics"] for name in BOTH)
    exact = pytest.approx
    # Hungarian: the slot goes to the background; images: 1/1, (3/4 + 0)/2, (1/2 + 0 + 0)/3
    assert glass["miou_i"] == exact((1 + 3 / 8 + 1 / 6) / 3, abs=1e-12)
    assert glass["mbo_i"] == exact((1 + 1 / 2 + 1 / 3) / 3, abs=1e-12)
    # recovery: best IoU > 0.5 holds for the backgrounds of the first two images only
    assert glass["object_recovery"] == exact((1 + 1 / 2 + 0) / 3, abs=1e-12)
    assert glass["corloc"] == exact(2 / 3, abs=1e-12)
    # FG-ARI: no object 1, one object in one slot 1, two objects in one slot 0
    assert glass["fg_ari"] == exact(2 / 3, abs=1e-12)
    assert glass["fg_ari_multi"] == exact(0.0, abs=1e-12)
    # foreground: the image without an object is skipped; 1/4, then one of two objects matched
    assert glass["miou_i_fg"] == spot["miou_i"] == spot["miou_i_fg"] == exact((1 / 4 + 1 / 8) / 2, abs=1e-12)
    assert spot["mbo_i"] == glass["mbo_i_fg"] == exact(1 / 4, abs=1e-12)
    assert spot["fg_ari"] == glass["fg_ari"]


def test_per_class_and_per_object_means() -> None:
    result = evaluate(fakes.ImagePredictor(fakes.one_slot, 4), fakes.toy_dataset(3), ("spot",))
    part = result["protocols"]["spot"]
    assert set(part["per_class"]) == {"car", "cup"}, "classes without an object are not listed"
    assert part["per_class"]["car"] == {
        "objects": 2,
        "images": 2,
        "mbo_i": pytest.approx(0.25),
        "mbo_c": pytest.approx(0.25),
        "object_recovery": 0.0,
    }
    assert part["per_class"]["cup"]["objects"] == 1
    assert part["per_object"]["miou_i_fg"] == pytest.approx((0.25 + 0.25 + 0) / 3)
    assert part["per_object"]["mbo_i_fg"] == pytest.approx(0.25)


def test_result_is_json_with_the_fields_beside_the_numbers() -> None:
    result = evaluate(
        fakes.ImagePredictor(fakes.noisy, 4),
        fakes.toy_dataset(),
        BOTH,
        seed=5,
        dataset_info={"kind": "toy"},
        model_info={"checksum": "c0ffee"},
        name="mine",
        training_seed=2,
    )
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    assert (result["kind"], result["seed"], result["training_seed"]) == ("evaluation", 5, 2)
    assert result["model"] == {"name": "mine", "num_slots": 4, "type": "fake", "checksum": "c0ffee"}
    assert result["dataset"] == {"name": "toy", "note": "toy set", "kind": "toy"}
    assert result["protocols"]["glass"]["fields"]["resolution"] == 256
    assert "320 px" in result["protocols"]["spot"]["label"]


def test_numbers_do_not_depend_on_the_batch_and_each_picture_is_predicted_once() -> None:
    predictor = fakes.ImagePredictor(fakes.noisy, 4)
    reference = evaluate(predictor, fakes.toy_dataset(7), BOTH, batch_size=3, seed=1)
    assert predictor.calls == [3, 3, 1], "one prediction serves both protocols"
    for size in (1, 7):
        other = evaluate(
            fakes.ImagePredictor(fakes.noisy, 4), fakes.toy_dataset(7), BOTH, batch_size=size, seed=1
        )
        for name in BOTH:
            # only the order of float64 sums differs
            assert other["protocols"][name]["metrics"] == pytest.approx(
                reference["protocols"][name]["metrics"], abs=1e-13
            )
    changed = evaluate(fakes.ImagePredictor(fakes.noisy, 4), fakes.toy_dataset(7), BOTH, seed=2)
    assert changed["protocols"]["glass"]["metrics"] != reference["protocols"]["glass"]["metrics"]
    assert evaluate(predictor, fakes.toy_dataset(7), BOTH, limit=2)["counts"]["images"] == 2


def test_unreadable_records_are_counted_and_named() -> None:
    result = evaluate(fakes.ImagePredictor(fakes.perfect, 4), fakes.toy_dataset(6, broken=(1, 4)), BOTH)
    assert result["counts"] == {"images": 4, "objects": 4, "failures": 2}
    assert [f["code"] for f in result["failures"]] == ["GF-DATA-154"] * 2
    assert "picture 1 is damaged" in result["failures"][0]["reason"]
    with pytest.raises(DataError, match=r"none of 2 records.*picture 0"):
        evaluate(fakes.ImagePredictor(fakes.perfect, 4), fakes.toy_dataset(2, broken=(0, 1)), BOTH)


def test_bad_models_and_settings_are_refused() -> None:
    dataset = fakes.toy_dataset(3)
    nan = fakes.ImagePredictor(lambda image, seed: torch.full((4, 8, 8), torch.nan), 4)
    with pytest.raises(NumericsError, match="not finite for image '0'"):
        evaluate(nan, dataset, BOTH)
    with pytest.raises(DataError, match="expected"):
        evaluate(fakes.ImagePredictor(fakes.perfect, 5), dataset, BOTH)
    with pytest.raises(ConfigError, match="cannot evaluate a int"):
        evaluate(3, dataset, BOTH)
    for protocols in ((), ("glass", "glass")):
        with pytest.raises(ConfigError, match="protocols"):
            evaluate(fakes.ImagePredictor(fakes.perfect, 4), dataset, protocols)
    with pytest.raises(ConfigError, match="'mine' is unknown"):
        evaluate(fakes.ImagePredictor(fakes.perfect, 4), dataset, ("mine",))


def test_stop_between_batches_and_progress() -> None:
    stop = StopToken()

    class Stopping(Progress):
        def advance(self, count: int = 1, **fields: object) -> None:
            super().advance(count, **fields)
            stop.set()

    progress = Stopping()
    with pytest.raises(Stopped):
        evaluate(
            fakes.ImagePredictor(fakes.perfect, 4),
            fakes.toy_dataset(),
            BOTH,
            batch_size=2,
            progress=progress,
            stop=stop,
        )
    assert (progress.total, progress.done) == (6, 2)


def test_glass_model_end_to_end() -> None:
    """A real (untrained) model: recorded with its encoder, and independent of the batch."""
    torch.manual_seed(0)

    class Patches(torch.nn.Conv2d):
        forward_features = torch.nn.Conv2d.forward

    encoder = Encoder(Patches(3, 24, 8, 8), 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    sizes = SlotAttentionConfig(2, 4, 1, 24, 8, 16, 16, 8)
    model = Glass(encoder, SlotAttention(sizes)).eval()
    results = [evaluate(model, fakes.toy_dataset(), BOTH, batch_size=size) for size in (1, 4)]
    assert results[0]["model"]["encoder"] == model.config_dict()["encoder"]
    assert results[0]["model"]["num_slots"] == 4
    for name in BOTH:
        # float32 products round by batch size, so a pixel on a border may change its slot
        assert results[0]["protocols"][name]["metrics"] == pytest.approx(
            results[1]["protocols"][name]["metrics"], abs=1e-3
        )


def test_slot_labels_are_bilinear_argmax() -> None:
    masks = torch.rand(3, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = slot_labels(masks, 31)
    expected = torch.nn.functional.interpolate(masks, size=(31, 31), mode="bilinear").argmax(1)
    assert labels.dtype == np.uint8 and (labels == expected.numpy()).all()


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_real_photos(real_data: Path, kind: str) -> None:
    """The whole path on photos: grid masks, both protocols; the protocols must disagree as designed."""
    folder = real_data / ("coco" if kind == "coco" else "voc")
    dataset = open_dataset(DatasetConfig(name=kind, kind=kind, path=str(folder), split="val", limit=10))
    result = evaluate(GridPredictor(6), dataset, BOTH, batch_size=4)
    assert result["counts"]["images"] == 10 and result["counts"]["failures"] == 0
    for part in result["protocols"].values():
        metrics = part["metrics"]
        assert 0.02 < metrics["miou_i_fg"] < 0.5 and metrics["miou_i_fg"] <= metrics["mbo_i_fg"]
        assert sum(row["objects"] for row in part["per_class"].values()) == part["objects"] >= 10
    assert (
        result["protocols"]["glass"]["metrics"]["miou_i"]
        > result["protocols"]["glass"]["metrics"]["miou_i_fg"]
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_ground_truth_equals_pycocotools_painting(real_data: Path) -> None:
    """Both protocols' label maps against painting pycocotools masks; resolution = shorter side, unresized."""
    coco_module = pytest.importorskip("pycocotools.coco", reason="needs the eval extra")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO(str(real_data / "coco" / "annotations" / "instances_val2017.json"))
    dataset = open_dataset(DatasetConfig(name="coco", kind="coco", path=str(real_data / "coco"), limit=30))
    crowds = overlaps = 0
    for item in dataset:
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=int(item.id)))
        side = min(item.image.shape[:2])
        for name in BOTH:
            last, hidden = name == "glass", np.zeros(item.image.shape[:2], int)
            painted = np.zeros_like(hidden)
            for number, annotation in enumerate(annotations, start=1):
                crowds += annotation["iscrowd"]
                if last and annotation["iscrowd"]:
                    continue
                mask = coco.annToMask(annotation).astype(bool)
                hidden += mask
                painted[mask if last else mask & (painted == 0)] = number
            truth = build_ground_truth(item, replace(get_protocol(name), resolution=side))
            height, width = painted.shape
            top, left = (height - side) // 2, (width - side) // 2
            if not last:
                top, left = round((height - side) / 2), round((width - side) / 2)
            crop = painted[top : top + side, left : left + side]
            ids = np.unique(crop) if last else np.union1d(crop, [0])
            assert (truth.instances == np.searchsorted(ids, crop)).all(), (item.id, name)
            overlap = (hidden > 1)[top : top + side, left : left + side]
            assert truth.valid.all() if last else (truth.valid == ~overlap).all()
            overlaps += int(overlap.sum())
    assert crowds and overlaps, "the sample must exercise both rules"
