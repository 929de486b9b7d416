"""Linear probing: what a linear classifier reads from frozen features about the class of an object or a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.errors import EnvironmentProblem
from glass_fast.partworld.quality.shares import share
from glass_fast.partworld.shapes import CLASSES

MIN_OBJECT = 16
"""Pixels of the smallest object that is probed: the size of one token of 4 x 4 pixels."""


@dataclass(frozen=True)
class Labelled:
    """Feature vectors with class numbers 0..9.

    Attributes:
        features: float32 (M, D).
        labels: int64 (M,).
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def logistic_regression(features: NDArray[Any], labels: NDArray[np.int64]) -> Any:
    """Multinomial logistic regression on standardised features (L2 with C = 1), a scikit-learn pipeline.

    Raises:
        EnvironmentProblem: GF-QUAL-201, scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise EnvironmentProblem(
            "GF-QUAL-201", f"linear probing needs scikit-learn: {error}", "pip install 'glass-fast[eval]'"
        ) from error
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000)).fit(features, labels)


def token_cover(masks: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Share of each token that a mask covers: bool (K, H, W) -> float32 (K, rows * columns), tokens row by row."""
    count, height, width = masks.shape
    rows, columns = grid
    blocks = masks.reshape(count, rows, height // rows, columns, width // columns)
    cover: NDArray[np.float32] = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(count, rows * columns)
    return cover


def object_features(
    features: NDArray[np.float32],
    instances: NDArray[np.integer],
    classes: NDArray[np.integer],
    grid: tuple[int, int],
) -> Labelled:
    """Mean feature of each true object, tokens weighted by the share that the object covers.

    Args:
        features: (N, tokens, D).
        instances: (N, H, W), 0 = background.
        classes: (N, H, W), 1-based labels.
        grid: token rows and columns; must divide H and W.
    """
    means, labels = [], []
    for tokens, numbers, kinds in zip(features, instances, classes, strict=True):
        present = [n for n in np.unique(numbers) if n > 0 and (numbers == n).sum() >= MIN_OBJECT]
        if not present:
            continue
        cover = token_cover(np.stack([numbers == n for n in present]), grid)
        means.append((cover @ tokens) / cover.sum(axis=1, keepdims=True))
        labels += [int(kinds[numbers == n][0]) - 1 for n in present]
    dim = features.shape[-1]
    stacked = np.concatenate(means) if means else np.zeros((0, dim), np.float32)
    return Labelled(stacked, np.array(labels, np.int64))


def token_features(
    features: NDArray[np.float32], classes: NDArray[np.integer], grid: tuple[int, int]
) -> Labelled:
    """Features of the tokens of which one class covers more than half, with that class."""
    kept, labels = [], []
    for tokens, kinds in zip(features, classes, strict=True):
        cover = token_cover(np.stack([kinds == label + 1 for label in range(len(CLASSES))]), grid)
        best = cover.argmax(axis=0)
        sure = cover.max(axis=0) > 0.5
        kept.append(tokens[sure])
        labels.append(best[sure])
    return Labelled(np.concatenate(kept), np.concatenate(labels).astype(np.int64))


def thinned(data: Labelled, most: int) -> Labelled:
    """At most ``most`` rows, evenly spread over the data."""
    if len(data.labels) <= most:
        return data
    rows = np.linspace(0, len(data.labels) - 1, most).round().astype(np.int64)
    return Labelled(data.features[rows], data.labels[rows])


def probe(train: Labelled, test: Labelled) -> dict[str, Any]:
    """Fit on ``train``, score on ``test``.

    Returns:
        ``accuracy`` with counts and interval, ``balanced`` (mean recall of the classes), ``commonest`` (share of the
        commonest class of the test data: what a constant answer reaches), ``class`` (recall per class), ``trained_on``.
    """
    guess = logistic_regression(train.features, train.labels).predict(test.features)
    right = guess == test.labels
    names = tuple(CLASSES)
    by_class = {
        names[c]: share(int(right[test.labels == c].sum()), int((test.labels == c).sum()))
        for c in np.unique(test.labels)
    }
    return {
        "accuracy": share(int(right.sum()), len(right)),
        "balanced": round(float(np.mean([entry["share"] for entry in by_class.values()])), 4),
        "commonest": round(float(np.bincount(test.labels).max() / len(test.labels)), 4),
        "class": by_class,
        "trained_on": len(train.labels),
    }
