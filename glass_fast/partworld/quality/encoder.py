"""What the encoder knows (linear probing) and what clustering it without guidance gets wrong (part-whole failure).

True masks are read here to measure, never to train a shipped weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.config.schema import TrainingConfig
from glass_fast.data.prompts import sample_seed
from glass_fast.partworld.quality import probe, splits
from glass_fast.partworld.renderer import SIZE, Scene, render
from glass_fast.progress import Progress, StopToken

PROBE_SCENES = 500_000
"""First training scene of the probe; no model, caption list, upper bound or judge uses these."""
_BATCH = 50
_MOST_TOKENS = 15_000

Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def mean_colours(grid: tuple[int, int]) -> Features:
    """The control of the probe: mean and deviation of each colour in each token, float32 (N, tokens, 6)."""

    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        count, height, width, _ = images.shape
        rows, columns = grid
        blocks = images.astype(np.float32).reshape(count, rows, height // rows, columns, width // columns, 3)
        both = np.concatenate([blocks.mean(axis=(2, 4)), blocks.std(axis=(2, 4))], axis=-1)
        return both.reshape(count, rows * columns, 6)

    return features


def probe_features(
    features: Features, grid: tuple[int, int], train: Sequence[Scene], test: Sequence[Scene]
) -> dict[str, Any]:
    """Object-level and token-level probes of one kind of features.

    Args:
        features: uint8 images (B, H, W, 3) -> float32 (B, tokens, D).
        grid: token rows and columns.
        train: scenes to fit on.
        test: scenes to score on.
    """
    data: dict[str, list[probe.Labelled]] = {"object": [], "token": []}
    for scenes in (train, test):
        tokens = np.concatenate(
            [
                features(np.stack([scene.image for scene in scenes[start : start + _BATCH]]))
                for start in range(0, len(scenes), _BATCH)
            ]
        )
        classes = np.stack([scene.classes for scene in scenes])
        instances = np.stack([scene.instances for scene in scenes])
        data["object"].append(probe.object_features(tokens, instances, classes, grid))
        data["token"].append(probe.thinned(probe.token_features(tokens, classes, grid), _MOST_TOKENS))
    return {name: probe.probe(*pair) for name, pair in data.items()}


def measure_probe(
    encoder: Any, train_scenes: int = 800, test_scenes: int = 400, start: int = 0
) -> dict[str, Any]:
    """Linear probing of a frozen encoder beside the control that sees mean colours only.

    Args:
        encoder: :class:`glass_fast.models.encoder.Encoder`.
        train_scenes: scenes of the train split from :data:`PROBE_SCENES` on.
        test_scenes: scenes of the test split.
        start: first test scene.
    """
    train = [render("train", PROBE_SCENES + index) for index in range(train_scenes)]
    test = [render("test", start + index) for index in range(test_scenes)]

    def tokens(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(encoder.features(images).cpu().numpy(), np.float32)

    return {
        "train_scenes": train_scenes,
        "test_scenes": test_scenes,
        "encoder": probe_features(tokens, encoder.grid, train, test),
        "mean_colours": probe_features(mean_colours(encoder.grid), encoder.grid, train, test),
    }


def segment_scenes(
    predictor: Any,
    scenes: Sequence[Scene],
    names: Sequence[str],
    seed: int,
    progress: Progress,
    stop: StopToken,
) -> NDArray[np.uint8]:
    """Segment of each pixel, uint8 (N, 64, 64), as the evaluation stage makes them (same seeds for same names).

    Args:
        predictor: :class:`glass_fast.evaluation.predictors.Predictor`.
        scenes: what to segment.
        names: identifier of each scene, for the seed of its slot noise.
        seed: run seed.

    Raises:
        Stopped: stopped on request.
    """
    from glass_fast.evaluation.evaluate import slot_labels

    parts = []
    progress.start(len(scenes), "scenes", "segments")
    for start in range(0, len(scenes), _BATCH):
        stop.check("nothing of this measure is saved")
        chosen = range(start, min(start + _BATCH, len(scenes)))
        with torch.no_grad():
            masks = predictor.masks(
                [scenes[i].image for i in chosen], [sample_seed(seed, names[i], "evaluate") for i in chosen]
            )
        parts.append(slot_labels(masks, SIZE))
        progress.advance(len(chosen))
    progress.finish()
    return np.concatenate(parts)


def measure_splits(
    model: str,
    encoder: Any,
    training: TrainingConfig,
    scenes: int = 300,
    seed: int = 0,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> dict[str, Any]:
    """Part-whole failure of a model folder or a baseline on the test split.

    Args:
        model: ``kmeans``, ``grid``, ``random_slots``, a model folder or ``partworld:NAME``.
        encoder: encoder of the baselines (a model folder brings its own).
        training: number of slots and sizes of the baselines.
        scenes: scenes 0.. of the test split.
        seed: of slot noise and k-means starts.

    Raises:
        Stopped: stopped on request.
    """
    predictor = load_predictor(model, encoder, training, seed)
    names = [f"test-{index:06d}" for index in range(scenes)]
    truth = [render("test", index) for index in range(scenes)]
    labels = segment_scenes(predictor, truth, names, seed, progress or Progress(), stop or StopToken())
    return splits.part_whole(
        labels, np.stack([s.instances for s in truth]), np.stack([s.parts for s in truth])
    )


def load_predictor(model: str, encoder: Any, training: TrainingConfig, seed: int) -> Any:
    """A baseline on ``encoder``, or the model of a folder."""
    from glass_fast.evaluation.baselines import build_baseline
    from glass_fast.evaluation.predictors import as_predictor
    from glass_fast.models.glass import Glass

    if model in ("kmeans", "grid", "random_slots"):
        return build_baseline(model, encoder, training, seed)
    return as_predictor(Glass.from_pretrained(model, device=str(encoder.device)))


def measure_encoder(
    encoder: Any,
    training: TrainingConfig,
    models: Sequence[str] = ("kmeans",),
    *,
    train_scenes: int = 800,
    test_scenes: int = 400,
    split_scenes: int = 300,
    seed: int = 0,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> dict[str, Any]:
    """Linear probing of the encoder, and the part-whole failure of each model on it."""
    return {
        "encoder": {
            "checksum": getattr(encoder, "checksum", ""),
            "grid": list(encoder.grid),
            "dim": encoder.dim,
        },
        "probe": measure_probe(encoder, train_scenes, test_scenes),
        "part_whole": {
            model
            if ":" in model or "/" not in model
            else model.rstrip("/").rsplit("/", 1)[-1]: measure_splits(
                model, encoder, training, split_scenes, seed, progress, stop
            )
            for model in models
        },
    }
