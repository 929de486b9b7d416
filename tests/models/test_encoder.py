"""The frozen encoder: tokens, geometry, resolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.models.encoder import crop_box
from glass_fast.models.loading import load_encoder
from tests.training import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder, "cpu")


def images(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_features_are_the_final_norm_patch_tokens(encoder):
    batch = images(3)
    inputs = (torch.from_numpy(batch).permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    model = encoder.model
    tokens = model.norm(model.blocks(model._pos_embed(model.patch_embed(inputs.float()))))[:, 1:]
    got = encoder.features(batch)
    assert got.shape == (3, 64, 24) and got.dtype == torch.float32 and not got.requires_grad
    # normalisation in another order of operations: float32 rounding
    assert torch.allclose(got, tokens, atol=1e-5)
    assert torch.equal(encoder.features(torch.from_numpy(batch)), got)
    normalised = torch.stack([encoder.preprocess(image) for image in batch])
    assert torch.allclose(encoder.features(normalised), got, atol=1e-5)
    assert encoder.features([]).shape == (0, 64, 24)


def test_it_stays_frozen(encoder):
    encoder.train()
    assert not encoder.training and not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_crop_box_is_the_centred_square():
    assert crop_box(10, 10) == (0, 0, 10, 10)
    assert crop_box(10, 20) == (5, 0, 15, 10)
    assert crop_box(21, 10) == (0, 5.5, 10, 15.5)


def test_preprocess_crops_or_stretches(encoder):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    assert float(encoder.preprocess(wide).min()) == 1.0  # only the white centre is seen
    assert float(encoder.preprocess(wide, "stretch")[:, :, 0].max()) == -1.0
    small = encoder.preprocess(np.full((8, 5, 3), 51, np.uint8))
    assert small.shape == (3, 32, 32)
    assert torch.allclose(small, torch.full((3, 32, 32), 51 / 127.5 - 1), atol=1e-6)


def test_images_of_any_size_in_one_batch(encoder):
    batch = [images(1)[0], images(1, 50, 70)[0], images(1, 9, 200)[0]]
    got = encoder.features(batch)
    for image, row in zip(batch, got, strict=True):
        # another batch size may change the last bits of a product
        assert torch.allclose(encoder.features([image])[0], row, atol=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(encoder, bad):
    with pytest.raises(DataError, match="expected uint8"):
        encoder.preprocess(bad)


def test_wrong_normalised_tensors_are_refused(encoder):
    with pytest.raises(DataError, match="normalised images of shape"):
        encoder.features(torch.zeros(1, 3, 16, 16))


def test_other_resolutions(folder, encoder):
    larger = load_encoder(folder, "cpu", resolution=48)
    assert larger.grid == (12, 12) and larger.resolution == 48 and larger.checksum == encoder.checksum
    assert larger.features(images(2)).shape == (2, 144, 24)
    with pytest.raises(ConfigError, match="no multiple of the patch size 4") as caught:
        load_encoder(folder, "cpu", resolution=34)
    assert "32 or 36" in caught.value.hint


def test_a_folder_without_configuration_names_the_remedy(tmp_path):
    with pytest.raises(EnvironmentProblem, match=r"no config\.json") as caught:
        load_encoder(tmp_path, "cpu")
    assert "MODEL_NAME@FOLDER" in caught.value.hint
