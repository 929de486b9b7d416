"""k-means against scikit-learn, grid blocks, untrained slots."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from glass_fast.config.schema import TrainingConfig
from glass_fast.errors import ConfigError
from glass_fast.evaluation.baselines import (
    GridPredictor,
    KMeansPredictor,
    build_baseline,
    grid_masks,
    kmeans,
    kmeans_start,
)
from glass_fast.evaluation.predictors import Predictor, as_predictor, slot_noise

TRAINING = TrainingConfig(num_slots=5, num_iterations=3, slot_size=16, slot_mlp_size=16, out_size=8)


class FakeEncoder:
    """Tokens are the mean colours of 6 x 6 cells plus a fixed mixing."""

    grid, dim, checksum = (6, 6), 12, "abc"
    device = torch.device("cpu")

    def features(self, images: list[np.ndarray]) -> torch.Tensor:
        mixing = torch.randn(3, self.dim, generator=torch.Generator().manual_seed(0))
        pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images])
        cells = torch.nn.functional.adaptive_avg_pool2d(pixels, self.grid).flatten(2).transpose(1, 2)
        return cells @ mixing


def pictures(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("clusters", [2, 5, 9])
def test_lloyd_equals_scikit_learn(clusters: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster", reason="needs the eval extra")
    points = torch.randn(4, 60, 7, generator=torch.Generator().manual_seed(clusters), dtype=torch.float64)
    start = kmeans_start(points, clusters, [3, 1, 4, 1])
    labels, centres, inertia = kmeans(points, start, max_iterations=300)
    for image in range(4):
        other = cluster.KMeans(
            clusters, init=start[image].numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd"
        ).fit(points[image].numpy())
        assert (other.labels_ == labels[image].numpy()).all()
        # float64 sums in another order
        assert centres[image].numpy() == pytest.approx(other.cluster_centers_, abs=1e-10)
        assert float(inertia[image]) == pytest.approx(other.inertia_, rel=1e-10)


def test_start_depends_on_the_own_seed_only_and_picks_distinct_tokens() -> None:
    points = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(0))
    together = kmeans_start(points, 6, [7, 8, 9])
    assert torch.equal(together[1], kmeans_start(points[1:2], 6, [8])[0])
    assert not torch.equal(together[1], kmeans_start(points[1:2], 6, [9])[0])
    for image in range(3):
        picked = (together[image][:, None] == points[image][None]).all(-1)
        assert (picked.sum(1) == 1).all() and (picked.sum(0) <= 1).all()


def test_start_spreads_over_far_clusters() -> None:
    """k-means++ takes a token of every far-apart group; uniform choice would miss one almost always."""
    groups = torch.arange(8.0)[:, None, None] * 1000 + torch.rand(
        8, 5, 2, generator=torch.Generator().manual_seed(0)
    )
    points = groups.reshape(1, 40, 2).repeat(20, 1, 1)
    start = kmeans_start(points, 8, range(20))
    found = (start[..., 0] / 1000).floor().sort(dim=1).values
    assert torch.equal(found, torch.arange(8.0).expand(20, 8))


def test_no_cluster_stays_empty_and_few_distinct_tokens_work() -> None:
    points = torch.zeros(1, 10, 2)
    points[0, 5:] = 1
    start = torch.tensor([[[0.0, 0.0], [50.0, 50.0], [60.0, 60.0]]])
    labels, _, _ = kmeans(points, start)
    assert set(labels[0].tolist()) == {0, 1, 2}
    same = torch.ones(1, 4, 2)
    labels, centres, inertia = kmeans(same, kmeans_start(same, 6, [0]))
    assert torch.isfinite(centres).all() and float(inertia) == pytest.approx(0, abs=1e-12)


def test_kmeans_finds_colour_regions() -> None:
    image = np.zeros((24, 24, 3), dtype=np.uint8)
    image[:, 8:16, 0] = 255
    image[12:, 16:, 1] = 255
    masks = KMeansPredictor(FakeEncoder(), 3).masks([image], [0])[0]
    regions = masks.argmax(0)
    assert len(regions.unique()) == 3
    assert (regions[:, 2:4] == regions[0, 2]).all() and (regions[3:, 4:] == regions[5, 5]).all()


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 6, 7, 16, 64])
def test_grid_blocks_are_equal_connected_rectangles(slots: int) -> None:
    masks = grid_masks(slots, 128)
    assert torch.equal(masks.sum(0), torch.ones(128, 128))
    areas = masks.sum((1, 2)) / 128**2
    # block borders are rounded to cells: at most one row and one column of 128 too many or too few
    assert float((areas - 1 / slots).abs().max()) < 2.5 / 128
    for mask in masks:
        rows, columns = mask.any(1), mask.any(0)
        assert float(mask.sum()) == int(rows.sum()) * int(columns.sum()) > 0
    assert GridPredictor(slots).masks(pictures(2), [0, 0]).shape == (2, slots, 64, 64)


@pytest.mark.parametrize("name", ["kmeans", "grid", "random_slots"])
def test_baselines_are_predictors_with_seeded_masks(name: str) -> None:
    predictor = build_baseline(name, FakeEncoder(), TRAINING, seed=3)
    assert isinstance(predictor, Predictor) and predictor.name == name and predictor.num_slots == 5
    images = pictures(3)
    masks = predictor.masks(images, [1, 2, 3])
    assert masks.shape[:2] == (3, 5)
    # batched and single matrix products may round differently
    assert torch.allclose(masks[1:2], predictor.masks(images[1:2], [2]), atol=1e-5)
    assert torch.allclose(masks.sum(1), torch.ones_like(masks.sum(1)), atol=1e-5)
    assert predictor.describe()["type"]


def test_untrained_weights_follow_their_seed() -> None:
    images = pictures(2)
    first, same, other = (build_baseline("random_slots", FakeEncoder(), TRAINING, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.masks(images, [1, 2]), same.masks(images, [1, 2]))
    assert not torch.allclose(first.masks(images, [1, 2]), other.masks(images, [1, 2]), atol=1e-3)


def test_slot_noise_rows_belong_to_their_seeds() -> None:
    noise = slot_noise([5, 6, 5], 4, 3)
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])


def test_unknown_baseline_and_wrapped_model() -> None:
    with pytest.raises(ConfigError, match="'kmean' is unknown"):
        build_baseline("kmean", FakeEncoder(), TRAINING)
    inner = build_baseline("random_slots", FakeEncoder(), TRAINING)
    model = SimpleNamespace(
        encoder=inner.encoder,
        slot_attention=inner.slot_attention,
        config_dict=lambda: {"encoder": {"checksum": "c"}, "grid": [6, 6]},
    )
    wrapped = as_predictor(model, "mine")
    assert wrapped.name == "mine" and wrapped.describe() == {"type": "glass", "encoder": {"checksum": "c"}}
    assert torch.equal(wrapped.masks(pictures(2), [0, 1]), inner.masks(pictures(2), [0, 1]))
