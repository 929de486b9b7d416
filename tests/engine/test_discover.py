"""Discovery over pictures of every kind, damaged ones included."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from glass_fast.config.schema import DiscoverConfig
from glass_fast.data import rle
from glass_fast.engine.discover import discover, unique_names
from glass_fast.engine.session import Session, TorchSession, open_session
from glass_fast.errors import ConfigError, DataError, NumericsError, Stopped
from glass_fast.models.encoder import Encoder
from glass_fast.models.glass import Glass
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig
from glass_fast.progress import Progress, StopToken


class ColourSession(Session):
    """Slot 0 is what is dark, slots 1 to 3 what is mostly red, green or blue."""

    engine, num_slots = "colour", 4

    def prepare(self, image: np.ndarray) -> np.ndarray:
        small = Image.fromarray(image).resize((32, 32), Image.Resampling.BOX)
        return np.asarray(small).astype(np.float32).transpose(2, 0, 1) / 255

    def masks(self, inputs: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
        batch = torch.from_numpy(np.stack(inputs))
        logits = torch.cat([torch.full_like(batch[:, :1], 0.5), batch], dim=1)
        return (8 * logits).softmax(1).numpy()

    def describe(self) -> dict[str, Any]:
        return {"engine": self.engine}


def picture(height: int = 60, width: int = 90) -> np.ndarray:
    """Dark, with a red box in the upper left and a blue box at the lower right border."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[height // 6 : height // 2, width // 6 : width // 3, 0] = 255
    image[2 * height // 3 :, 3 * width // 4 :, 2] = 255
    return image


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_files_of_every_kind(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rgb = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    (source / "plain.png").write_bytes(encoded(rgb, "PNG"))
    (source / "rotated.jpg").write_bytes(encoded(rgb.rotate(90, expand=True), "JPEG", exif=exif, quality=95))
    (source / "cmyk.jpg").write_bytes(encoded(rgb.convert("CMYK"), "JPEG"))
    (source / "grey.png").write_bytes(encoded(rgb.convert("L"), "PNG"))
    alpha = rgb.copy()
    alpha.putalpha(255)
    (source / "alpha.webp").write_bytes(encoded(alpha, "WEBP", lossless=True))
    (source / "wide.png").write_bytes(encoded(Image.fromarray(picture(30, 900)), "PNG"))
    (source / "dot.png").write_bytes(encoded(Image.new("RGB", (1, 1)), "PNG"))
    (source / "truncated.jpg").write_bytes(encoded(rgb, "JPEG")[:-200])
    (source / "text.jpg").write_text("no picture")
    (source / "empty.png").write_bytes(b"")
    (source / "huge.png").write_bytes(encoded(Image.new("L", (400, 400)), "PNG"))
    out = tmp_path / "out"
    summary = discover(
        ColourSession(), source, out, DiscoverConfig(limit=None, max_pixels=100_000, batch_size=3)
    )

    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["images"], summary["discovered"], summary["quarantined"]) == (11, 7, 4)
    refused = {Path(entry["file"]).name: entry for entry in read_lines(out / "quarantine.jsonl")}
    assert set(refused) == {"truncated.jpg", "text.jpg", "empty.png", "huge.png"}
    assert "truncated" in refused["truncated.jpg"]["reason"] and "160000" not in refused["text.jpg"]["reason"]
    assert "400 x 400" in refused["huge.png"]["reason"] and refused["huge.png"]["code"] == "GF-DATA-153"

    records = {record["name"]: record for record in read_lines(out / "objects.jsonl")}
    assert set(records) == {"plain", "rotated", "cmyk", "grey", "alpha", "wide", "dot"}
    assert (records["rotated"]["width"], records["rotated"]["height"]) == (90, 60)
    assert (records["dot"]["width"], records["dot"]["height"]) == (1, 1)
    for name in ("plain", "rotated", "cmyk", "alpha", "wide"):
        record = records[name]
        things = {item["slot"]: item for item in record["objects"] if not item["background"]}
        assert set(things) == {1, 3} and record["background_slot"] == 0, name
        x, y, w, h = things[1]["box"]
        centre = ((x + w / 2) / record["width"], (y + h / 2) / record["height"])
        assert centre == pytest.approx((0.25, 1 / 3), abs=0.03), name
        assert things[3]["box"][0] + things[3]["box"][2] == record["width"], "objects at the border are kept"

    for name, record in records.items():
        mask = Image.open(out / record["mask"])
        assert mask.mode == "P" and mask.size == (record["width"], record["height"])
        labels = np.asarray(mask)
        for item in record["objects"]:
            decoded = rle.decode(item["rle"])
            assert (decoded == (labels == item["slot"])).all(), name
            assert item["area"] == decoded.sum()
        with Image.open(out / record["overlay"]) as overlay:
            overlay.load()
            assert max(overlay.size) <= 1024
    assert not [path for path in out.rglob("*") if path.name.startswith(".tmp")]
    assert summary["objects"] == sum(not o["background"] for r in records.values() for o in r["objects"])


def test_same_result_for_any_batch_size_and_repeat(tmp_path: Path) -> None:
    images = [picture(40 + 7 * i, 90 - 5 * i) for i in range(5)]
    for name, size in (("a", 1), ("b", 5), ("b", 2)):
        discover(ColourSession(), images, tmp_path / name, DiscoverConfig(batch_size=size))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 5 + 5 + 3
    for file in files:
        if file.name != "summary.json":
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_python_use_returns_discoveries_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.fromarray(picture()), "PNG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    tagged = Image.open(
        io.BytesIO(encoded(Image.fromarray(picture()).rotate(90, expand=True), "PNG", exif=exif))
    )
    cmyk = Image.fromarray(picture()).convert("CMYK")
    found = discover(ColourSession(), [picture(), path, path.read_bytes(), tagged, cmyk])
    assert [item.name for item in found][1] == str(path) and len(found) == 5
    for item in found:
        assert item.label_map.shape == (60, 90) and item.label_map.dtype == np.uint8
        assert item.soft_masks.shape == (4, 32, 32)
        assert [thing.slot for thing in item.foreground] == [3, 1] and item.background_slot == 0
        assert (item.label_map == found[0].label_map).mean() > 0.98
    assert discover(ColourSession(), picture())[0].name == "image-000000"


def test_python_use_raises_on_unusable_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither JPEG, PNG nor WebP"):
        discover(ColourSession(), [b"nothing"])
    with pytest.raises(DataError, match="float32 array"):
        discover(ColourSession(), [np.zeros((4, 4, 3), np.float32)])
    with pytest.raises(DataError, match="is a int"):
        discover(ColourSession(), [3])
    with pytest.raises(DataError, match="no picture"):
        discover(ColourSession(), [])
    with pytest.raises(DataError, match="no such file"):
        discover(ColourSession(), tmp_path / "absent")
    with pytest.raises(ConfigError, match="'onnx' is unknown"):
        open_session(object(), "onnx")  # type: ignore[arg-type]


def test_all_pictures_refused_is_an_error_with_reasons(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"none of 2 pictures.*a\.jpg") as caught:
        discover(ColourSession(), [tmp_path / "a.jpg", tmp_path / "b.jpg"], out)
    assert caught.value.exit_code == 3
    assert len(read_lines(out / "quarantine.jsonl")) == 2
    assert json.loads((out / "summary.json").read_text())["quarantined"] == 2


def test_stop_keeps_what_is_finished(tmp_path: Path) -> None:
    stop = StopToken()

    class Stopping(Progress):
        def advance(self, count: int = 1, **fields: object) -> None:
            super().advance(count, **fields)
            if self.done >= 4:
                stop.set()

    images = [picture(), b"broken", *[picture()] * 6]
    with pytest.raises(Stopped, match="4 of 8"):
        discover(
            ColourSession(), images, tmp_path, DiscoverConfig(batch_size=2), progress=Stopping(), stop=stop
        )
    assert len(read_lines(tmp_path / "objects.jsonl")) == 3
    assert len(read_lines(tmp_path / "quarantine.jsonl")) == 1
    assert len(list((tmp_path / "masks").iterdir())) == 3 and not (tmp_path / "summary.json").exists()


def test_masks_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    class Broken(ColourSession):
        def masks(self, inputs: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
            masks = super().masks(inputs, seed)
            masks[1] = np.nan
            return masks

    with pytest.raises(NumericsError, match="image-000001"):
        discover(Broken(), [picture()] * 3, tmp_path)


def test_limit_takes_the_first_pictures(tmp_path: Path) -> None:
    summary = discover(ColourSession(), [picture()] * 5, tmp_path, DiscoverConfig(limit=2))
    assert summary["images"] == 2
    assert [record["name"] for record in read_lines(tmp_path / "objects.jsonl")] == [
        "image-000000",
        "image-000001",
    ]


def test_names_are_unique_on_every_file_system() -> None:
    assert unique_names(["a", "a", "a-2", "A", "b"]) == ["a", "a-3", "a-2", "A-4", "b"]
    assert unique_names(["x", "x", "x"]) == ["x", "x-2", "x-3"]
    long = unique_names(["ä" * 200, "ä" * 200])
    assert len(set(long)) == 2 and all(len(name.encode()) <= 205 for name in long)


def test_equal_stems_keep_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture()).save(tmp_path / folder / "cat.png")
    Image.fromarray(picture()).save(tmp_path / "two" / "cat.jpg")
    discover(ColourSession(), [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    records = read_lines(tmp_path / "out" / "objects.jsonl")
    assert [record["name"] for record in records] == ["cat", "cat-2", "cat-3"]
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3


class Patches(nn.Module):
    """A stand-in for a vision transformer: one linear layer over patches of 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 24, 8, 8)

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.projection(pixels)


def tiny_glass() -> Glass:
    torch.manual_seed(0)
    encoder = Encoder(Patches(), 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    sizes = SlotAttentionConfig(
        num_iterations=2, num_slots=5, input_size=24, slot_size=16, mlp_hidden_size=16, out_size=8,
        input_resolution=8,
    )  # fmt: skip
    return Glass(encoder, SlotAttention(sizes)).eval()


def test_torch_session_sees_the_whole_picture_and_is_independent_of_the_batch() -> None:
    session = open_session(tiny_glass())
    assert isinstance(session, TorchSession) and session.num_slots == 5
    images = [picture(60, 90), picture(90, 60), picture(64, 64)]
    inputs = [session.prepare(image) for image in images]
    stretched = np.asarray(Image.fromarray(images[0]).resize((64, 64), Image.Resampling.BICUBIC))
    # normalised by mean and deviation 0.5 in float32
    assert inputs[0] == pytest.approx((stretched.transpose(2, 0, 1) / 255 - 0.5) / 0.5, abs=1e-5)
    together = session.masks(inputs, seed=3)
    assert together.shape == (3, 5, 8, 8) and together.dtype == np.float32
    assert together.sum(1) == pytest.approx(1.0, abs=1e-5)
    # batched and single matrix products may round differently
    assert session.masks(inputs[1:2], seed=3)[0] == pytest.approx(together[1], abs=1e-5)
    assert np.abs(session.masks(inputs, seed=4) - together).max() > 1e-3
    assert json.dumps(session.describe())


def test_glass_discover_method(tmp_path: Path) -> None:
    model = tiny_glass()
    found = model.discover([picture(), picture(33, 200)])
    assert [item.label_map.shape for item in found] == [(60, 90), (33, 200)]
    summary = model.discover([picture()], tmp_path)
    assert summary["model"]["engine"] == "torch" and summary["model"]["num_slots"] == 5
    assert read_lines(tmp_path / "objects.jsonl")[0]["objects"]


@pytest.mark.parametrize("subset", ["coco/val2017", "voc/VOCdevkit/VOC2012/JPEGImages"])
def test_real_photos(real_data: Path, subset: str, tmp_path: Path) -> None:
    summary = discover(tiny_glass(), real_data / subset, tmp_path, DiscoverConfig(limit=8, batch_size=4))
    assert summary["discovered"] == 8 and summary["quarantined"] == 0
    for record in read_lines(tmp_path / "objects.jsonl"):
        with Image.open(record["file"]) as photo, Image.open(tmp_path / record["mask"]) as mask:
            assert photo.size == mask.size == (record["width"], record["height"])
        assert sum(item["area"] for item in record["objects"]) > 0.98 * record["width"] * record["height"]
