"""What the trainer reads from shards and from true masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glass_fast.errors import ConfigError, DataError
from glass_fast.training import store
from glass_fast.training.data import GroundTruthData, prepare
from glass_fast.training.segments import labels_by_area
from tests.training import tiny


def ground_truth(count: int = 6) -> GroundTruthData:
    rng = np.random.default_rng(1)
    images, masks = zip(*(tiny.picture(rng) for _ in range(count)), strict=True)
    return GroundTruthData(np.stack(images), np.stack(masks).astype(np.int32), tiny.LABELS, "test")


def test_features_masks_and_rejects_of_shards(encoder, shards):
    prepared = prepare(tiny.tiny_config(), shards, encoder)
    rows = [i for i in range(24) if i != 3]
    assert len(prepared) == 23 and prepared.record["rejected"] == 1 and prepared.names == tiny.LABELS
    for number in (0, 3, 22):
        sample = shards[rows[number]]
        wanted = encoder.features([sample.image])[0]
        # another batch size may change the last bits of a product
        assert torch.allclose(prepared.features[0, number], wanted, atol=1e-5)
        mirrored = encoder.features([np.ascontiguousarray(sample.image[:, ::-1])])[0]
        assert torch.allclose(prepared.features[1, number], mirrored, atol=1e-5)
        assert prepared.labels[number].tolist() == labels_by_area(sample.mask, (8, 8)).reshape(-1).tolist()


def test_a_mirrored_row_has_mirrored_masks(encoder, shards):
    prepared = prepare(tiny.tiny_config(), shards, encoder)
    rows, cpu = torch.tensor([4, 4]), torch.device("cpu")
    features, segments, counts, valid = prepared.batch(rows, torch.tensor([False, True]), cpu)
    straight, mirrored = segments.unflatten(2, (8, 8))
    assert torch.equal(mirrored, straight.flip(2)) and bool(straight.any())
    assert torch.equal(valid[1].view(8, 8), valid[0].view(8, 8).flip(1)) and not bool(valid.all())
    assert counts[0] == counts[1] == 3
    assert torch.equal(features[1], prepared.features[1, 4])


def test_soft_maps_are_rethresholded_when_asked(encoder, shards):
    config = tiny.tiny_config(threshold=0.3, uncertain_threshold=0.2)
    prepared = prepare(config, shards, encoder)
    kept = shards[0]
    soft = kept.maps.reshape(len(kept.maps), 8, 2, 8, 2).astype(np.float64).mean((2, 4)) / 255
    best, which = soft.max(0), soft.argmax(0)
    wanted = np.where(best >= 0.3, np.array(kept.meta["label_ids"])[which], np.where(best >= 0.2, 255, 0))
    assert prepared.labels[0].tolist() == wanted.reshape(-1).tolist()


def test_true_masks_and_captured_runs_do_not_mix(encoder, shards):
    with pytest.raises(ConfigError, match="expected ShardDataset"):
        prepare(tiny.tiny_config(), ground_truth(), encoder)
    with pytest.raises(ConfigError, match="expected GroundTruthData"):
        prepare(tiny.tiny_config(mask_source="ground_truth"), shards, encoder)
    prepared = prepare(tiny.tiny_config(mask_source="ground_truth"), ground_truth(), encoder)
    assert prepared.record["kind"] == "ground_truth" and len(prepared) == 6


def test_nothing_to_train_on(encoder, tmp_path):
    with pytest.raises(DataError, match="none of the 4 samples"):
        prepare(tiny.tiny_config(), tiny.write_shards(tmp_path / "s", 4, rejected=(0, 1, 2, 3)), encoder)


def test_large_features_go_to_a_mapped_file_and_are_reused(encoder, shards, tmp_path, monkeypatch):
    plain = prepare(tiny.tiny_config(), shards, encoder)
    monkeypatch.setattr(store, "MEMORY_LIMIT", 1000)
    mapped = prepare(tiny.tiny_config(), shards, encoder, tmp_path)
    assert torch.equal(mapped.features, plain.features.half())
    monkeypatch.setattr(encoder, "features", lambda *_: pytest.fail("the cached features were not used"))
    again = prepare(tiny.tiny_config(), shards, encoder, tmp_path)
    assert torch.equal(again.features, mapped.features)
