"""The model folder: round trip, damage, encoder checks, determinism of masks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glass_fast import Glass
from glass_fast.errors import ConfigError, DataError
from glass_fast.models.folders import atomic_folder
from glass_fast.models.loading import load_encoder
from glass_fast.models.mlp_decoder import MLPDecoder, MLPDecoderConfig
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig
from tests.training import tiny


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(tiny.write_encoder(tmp_path_factory.mktemp("models") / "encoder"), "cpu")


@pytest.fixture
def model(encoder):
    slots = SlotAttention(SlotAttentionConfig(2, 4, 1, 24, 8, 16, 16, 8))
    return Glass(
        encoder, slots, MLPDecoder(MLPDecoderConfig(16, 24, 64, 16, 2)), ("car", "potted plant")
    ).eval()


@pytest.fixture
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))


def test_round_trip_is_bit_equal(model, pictures, tmp_path):
    path = model.save_pretrained(tmp_path / "m")
    files = {"config.json", "model.safetensors", "preprocess.json", "label_map.json", "README.md"}
    assert {p.name for p in path.iterdir()} == files
    again = Glass.from_pretrained(path, "cpu")
    assert torch.equal(again.masks(pictures), model.masks(pictures))
    assert torch.equal(
        again.decoder(again.slots(pictures).slots)[0], model.decoder(model.slots(pictures).slots)[0]
    )
    assert again.labels == ("car", "potted plant") and again.config_dict() == model.config_dict()
    labels = json.loads((path / "label_map.json").read_text())
    assert labels == {"background": 0, "uncertain": 255, "labels": {"1": "car", "2": "potted plant"}}
    assert json.loads((path / "preprocess.json").read_text())["grid"] == [8, 8]
    assert "CVPR 2025" in (path / "README.md").read_text()


def test_masks_do_not_depend_on_the_batch(model, pictures):
    masks = model.masks(pictures, seed=5)
    assert masks.shape == (3, 4, 8, 8)
    assert torch.allclose(masks.sum(1), torch.ones(3, 8, 8), atol=1e-6)
    # same noise whatever the batch; another batch size may change the last bits of a product
    assert torch.allclose(model.masks(pictures[2:], seed=5)[0], masks[2], atol=1e-5)
    named = model.masks(pictures, seed=5, ids=["a", "b", "c"])
    assert torch.allclose(model.masks([pictures[1]], seed=5, ids=["b"])[0], named[1], atol=1e-5)
    assert not torch.allclose(named[0], masks[0], atol=1e-3)
    assert not torch.allclose(model.masks(pictures, seed=6), masks, atol=1e-3)
    with pytest.raises(ConfigError, match="2 ids for 3 images"):
        model.masks(pictures, ids=["a", "b"])


def test_features_and_images_give_the_same(model, pictures):
    features = model.encode(pictures)
    assert torch.equal(model.slots(features).masks, model.slots(pictures).masks)
    assert model.slots(pictures, num_slots=9).masks.shape == (3, 9, 64)
    assert model.slots(pictures).projected.shape == (3, 4, 8)


def test_another_encoder_is_refused(model, tmp_path):
    path = model.save_pretrained(tmp_path / "m")
    other = load_encoder(tiny.write_encoder(tmp_path / "other", seed=1), "cpu")
    for given in (other, tmp_path / "other"):
        with pytest.raises(DataError, match="was trained with encoder") as caught:
            Glass.from_pretrained(path, "cpu", given)
        assert caught.value.code == "GF-MODEL-042"
    moved = shutil.copytree(model.encoder.source.path, tmp_path / "moved")
    assert Glass.from_pretrained(path, "cpu", moved).encoder.checksum == model.encoder.checksum
    with pytest.raises(DataError, match="trained at resolution 32"):
        Glass.from_pretrained(path, "cpu", load_encoder(moved, "cpu", resolution=48))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema": 2}, DataError, "schema 2"),
        ({"class": "Other"}, DataError, "class 'Other'"),
        ({"extra": 1}, ConfigError, "extra"),
        ({"decoder": {"hidden": 1}}, ConfigError, "unknown keys hidden"),
        ({"decoder": None}, DataError, "does not fit config.json"),
    ],
)
def test_wrong_configurations(model, tmp_path, change, error, message):
    path = model.save_pretrained(tmp_path / "m")
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        Glass.from_pretrained(path, "cpu", model.encoder)


def test_weights_of_another_shape(model, tmp_path):
    path = model.save_pretrained(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["slot_attention.slot_mu"] = torch.zeros(1, 1, 5)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(DataError, match=r"slot_attention\.slot_mu' is \(1, 1, 5\), expected \(1, 1, 16\)"):
        Glass.from_pretrained(path, "cpu", model.encoder)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged or cut short"):
        Glass.from_pretrained(path, "cpu", model.encoder)


def test_an_encoder_of_another_width_is_refused(encoder):
    with pytest.raises(ConfigError, match="24 channels, slot attention expects 768"):
        Glass(encoder, SlotAttention(SlotAttentionConfig()))


def test_saving_beside_logs_keeps_them_and_fails_whole(model, tmp_path, monkeypatch):
    path = tmp_path / "m"
    path.mkdir()
    (path / "log.jsonl").write_text("{}\n")
    model.save_pretrained(path)
    first = (path / "model.safetensors").read_bytes()
    assert (path / "log.jsonl").read_text() == "{}\n"
    with torch.no_grad():
        model.slot_attention.slot_mu.add_(1)
    monkeypatch.setattr("glass_fast.models.glass.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(path)
    assert (path / "model.safetensors").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_atomic_folder_replaces_as_a_whole(tmp_path):
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "f") as folder:
            (folder / f"{text}.txt").write_text(text)
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["two.txt"]
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "f"):
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
