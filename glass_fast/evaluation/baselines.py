"""Baselines on the same encoder: k-means of its features, a regular grid, untrained slot attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.config.schema import TrainingConfig
from glass_fast.data.prompts import sample_seed
from glass_fast.errors import ConfigError
from glass_fast.evaluation.predictors import Predictor, SlotPredictor

MAX_ITERATIONS = 100


def kmeans_start(features: torch.Tensor, clusters: int, seeds: Sequence[int]) -> torch.Tensor:
    """k-means++ centres (Arthur & Vassilvitskii 2007), one random stream per image.

    Args:
        features: ``(batch, tokens, dim)``.
        clusters: number of centres.
        seeds: one per image.

    Returns:
        ``(batch, clusters, dim)``, each centre a copy of a token.
    """
    batch, tokens, _ = features.shape
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    draws = torch.stack([torch.rand(clusters, generator=g, dtype=torch.float64) for g in streams])
    draws = draws.to(features.device)
    rows = torch.arange(batch, device=features.device)
    index = (draws[:, 0] * tokens).long().clamp(max=tokens - 1)
    centres = [features[rows, index]]
    nearest = torch.full((batch, tokens), torch.inf, dtype=torch.float64, device=features.device)
    for cluster in range(1, clusters):
        distance = (features - centres[-1][:, None]).double().square().sum(-1)
        nearest = torch.minimum(nearest, distance)
        # fewer distinct tokens than clusters: all weights are 0, and any token serves
        total = nearest.sum(-1, keepdim=True)
        weights = torch.where(total > 0, nearest, torch.ones_like(nearest))
        edges = weights.cumsum(-1)
        target = draws[:, cluster, None] * edges[:, -1:]
        index = torch.searchsorted(edges, target, right=True)[:, 0].clamp(max=tokens - 1)
        centres.append(features[rows, index])
    return torch.stack(centres, dim=1)


def kmeans(
    features: torch.Tensor, centres: torch.Tensor, max_iterations: int = MAX_ITERATIONS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm on a batch of images at once, until no token changes its cluster.

    An empty cluster takes over the token that is farthest from its own centre.

    Args:
        features: ``(batch, tokens, dim)``.
        centres: start, ``(batch, clusters, dim)``.
        max_iterations: upper bound of rounds.

    Returns:
        int64 labels ``(batch, tokens)``, centres ``(batch, clusters, dim)``, sum of squared distances
        ``(batch,)``.
    """
    clusters = centres.shape[1]
    # k-means does not change under translation, and small norms keep the expanded distance accurate
    mean = features.mean(dim=1, keepdim=True)
    points, centres = features - mean, centres - mean
    labels = torch.full(features.shape[:2], -1, device=features.device)
    for _ in range(max_iterations):
        distance = _squared_distances(points, centres)
        new = distance.argmin(dim=-1)
        new = _fill_empty(new, distance, clusters)
        if torch.equal(new, labels):
            break
        labels = new
        member = torch.nn.functional.one_hot(labels, clusters).to(points.dtype)
        centres = (member.transpose(1, 2) @ points) / member.sum(dim=1).clamp(min=1)[..., None]
    inertia = _squared_distances(points, centres).gather(-1, labels[..., None]).sum(dim=(1, 2))
    return labels, centres + mean, inertia


def _squared_distances(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    cross = points @ centres.transpose(1, 2)
    norms = points.square().sum(-1, keepdim=True) + centres.square().sum(-1)[:, None]
    return (norms - 2 * cross).clamp(min=0)


def _fill_empty(labels: torch.Tensor, distance: torch.Tensor, clusters: int) -> torch.Tensor:
    counts = torch.nn.functional.one_hot(labels, clusters).sum(dim=1)
    for image in (counts == 0).any(dim=1).nonzero()[:, 0].tolist():
        own = distance[image].gather(-1, labels[image][:, None])[:, 0].clone()
        for cluster in (counts[image] == 0).nonzero()[:, 0].tolist():
            own = torch.where(counts[image][labels[image]] > 1, own, -torch.ones_like(own))
            token = int(own.argmax())
            if own[token] < 0:
                break  # more clusters than tokens
            counts[image, labels[image, token]] -= 1
            counts[image, cluster] = 1
            labels[image, token] = cluster
            own[token] = -1
    return labels


class KMeansPredictor:
    """Each image's tokens clustered by k-means into as many groups as the models have slots.

    Args:
        encoder: :class:`glass_fast.models.encoder.Encoder`.
        num_slots: clusters.
        restarts: starts per image; the one of least inertia is kept.
    """

    name = "kmeans"

    def __init__(self, encoder: Any, num_slots: int, restarts: int = 3) -> None:
        self.encoder, self.num_slots, self.restarts = encoder, num_slots, restarts

    @torch.no_grad()
    def masks(self, images: Sequence[NDArray[np.uint8]], seeds: Sequence[int]) -> torch.Tensor:
        features = self.encoder.features(list(images))
        best_labels: torch.Tensor | None = None
        best = torch.full((features.shape[0],), torch.inf, device=features.device, dtype=features.dtype)
        for restart in range(self.restarts):
            start = kmeans_start(features, self.num_slots, [(seed + restart) % 2**63 for seed in seeds])
            labels, _, inertia = kmeans(features, start)
            better = inertia < best
            best_labels = labels if best_labels is None else torch.where(better[:, None], labels, best_labels)
            best = torch.minimum(best, inertia)
        assert best_labels is not None
        rows, columns = self.encoder.grid
        hard = torch.nn.functional.one_hot(best_labels, self.num_slots).float()
        return hard.transpose(1, 2).reshape(len(images), self.num_slots, rows, columns)

    def describe(self) -> dict[str, Any]:
        return {
            "type": "k-means of encoder features",
            "num_slots": self.num_slots,
            "restarts": self.restarts,
            "encoder_checksum": getattr(self.encoder, "checksum", ""),
        }


def grid_masks(num_slots: int, side: int) -> torch.Tensor:
    """Blocks of (nearly) equal area, in rows: float ``(num_slots, side, side)``, one-hot over slots.

    The number of rows is the square root of the slot count, rounded; rows with more blocks are higher.
    """
    count = max(1, round(num_slots**0.5))
    per_row = [num_slots // count + (row < num_slots % count) for row in range(count)]
    centre = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    bottoms = torch.tensor(per_row, dtype=torch.float64).cumsum(0) / num_slots
    row_of = torch.bucketize(centre, bottoms, right=True).clamp(max=count - 1)
    labels = torch.empty(side, side, dtype=torch.int64)
    first = 0
    for row, blocks in enumerate(per_row):
        labels[row_of == row] = first + (centre * blocks).long().clamp(max=blocks - 1)
        first += blocks
    return torch.nn.functional.one_hot(labels, num_slots).permute(2, 0, 1).float()


class GridPredictor:
    """The same regular blocks for every picture: what position alone gives.

    Args:
        num_slots: blocks.
        side: cells per side of the mask.
    """

    name = "grid"

    def __init__(self, num_slots: int, side: int = 64) -> None:
        self.num_slots = num_slots
        self._masks = grid_masks(num_slots, side)

    def masks(self, images: Sequence[NDArray[np.uint8]], seeds: Sequence[int]) -> torch.Tensor:
        return self._masks.expand(len(images), -1, -1, -1)

    def describe(self) -> dict[str, Any]:
        return {"type": "regular grid", "num_slots": self.num_slots}


def random_slots(encoder: Any, training: TrainingConfig, seed: int = 0) -> SlotPredictor:
    """Slot attention with untrained weights on the frozen encoder: what the architecture alone gives.

    Args:
        encoder: :class:`glass_fast.models.encoder.Encoder`.
        training: sizes of the slot attention.
        seed: seed of the weights.
    """
    from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig

    slot_attention = SlotAttention(
        SlotAttentionConfig(
            num_iterations=training.num_iterations,
            num_slots=training.num_slots,
            input_size=encoder.dim,
            out_size=training.out_size,
            slot_size=training.slot_size,
            mlp_hidden_size=training.slot_mlp_size,
            input_resolution=encoder.grid[0],
        )
    )
    weights = torch.Generator().manual_seed(sample_seed(seed, "slot_attention", "weights"))
    slot_attention.reset_parameters(weights)
    record = {
        "type": "untrained slot attention",
        "weights_seed": seed,
        "num_iterations": training.num_iterations,
        "encoder_checksum": getattr(encoder, "checksum", ""),
    }
    device = getattr(encoder, "device", torch.device("cpu"))
    return SlotPredictor(encoder, slot_attention.to(device).eval(), "random_slots", record)


def build_baseline(name: str, encoder: Any, training: TrainingConfig, seed: int = 0) -> Predictor:
    """The predictor of a baseline.

    Args:
        name: ``kmeans``, ``grid`` or ``random_slots``.
        encoder: the encoder that the compared models use.
        training: gives the number of slots and the sizes of the untrained slot attention.
        seed: seed of untrained weights.

    Raises:
        ConfigError: unknown name.
    """
    builders: dict[str, Callable[[], Predictor]] = {
        "kmeans": lambda: KMeansPredictor(encoder, training.num_slots),
        "grid": lambda: GridPredictor(training.num_slots),
        "random_slots": lambda: random_slots(encoder, training, seed),
    }
    if name not in builders:
        raise ConfigError(
            "GF-EVAL-003",
            f"baseline {name!r} is unknown; expected one of {', '.join(builders)}",
            "set evaluation.baselines",
        )
    return builders[name]()
