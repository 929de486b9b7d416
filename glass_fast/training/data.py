"""What the trainer reads: token labels and frozen features of a fixed list of images, in memory or mapped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.config.schema import TrainingConfig
from glass_fast.data.shards import ShardDataset
from glass_fast.errors import ConfigError, DataError
from glass_fast.models.encoder import Encoder
from glass_fast.progress import Progress, StopToken
from glass_fast.training.segments import (
    UNCERTAIN,
    labels_by_area,
    labels_from_maps,
    segment_table,
    split_components,
)
from glass_fast.training.store import ArrayStore

DEFAULT_REJECT = ("black", "empty")
ENCODE_BATCH = 32
"""Pictures that a frozen network sees at once: constant, so that a value never depends on who is trained."""


@dataclass(frozen=True)
class GroundTruthData:
    """Images with true masks: only for the upper bound (``mask_source="ground_truth"``).

    Attributes:
        images: uint8 ``(images, height, width, 3)``.
        instances: integer ``(images, height, width)``: 0 background, 1..254 and from 256 on instance ids,
            255 or negative: excluded.
        labels: class names, for the model's label map.
        name: where the data come from, for the run record.
    """

    images: NDArray[np.uint8]
    instances: NDArray[np.integer[Any]]
    labels: tuple[str, ...] = ()
    name: str = "ground truth"

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.dtype != np.uint8:
            raise DataError(
                "GF-TRAIN-002",
                f"images of {self.images.dtype} {self.images.shape}; expected uint8 (images, height, "
                "width, 3)",
            )
        if self.instances.shape != self.images.shape[:3] or self.instances.dtype.kind not in "iu":
            raise DataError(
                "GF-TRAIN-002",
                f"instances of {self.instances.dtype} {self.instances.shape}; expected integers of shape "
                f"{self.images.shape[:3]}",
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class TrainingData:
    """Everything a training run indexes into.

    Attributes:
        features: ``(views, images, tokens, dim)``; view 1 is the mirrored image.
        ids: int32 ``(images, slots)`` labels of the segments, -1 beyond the count.
        counts: int64 ``(images,)``.
        labels: int32 ``(images, tokens)`` token labels, 0 background, 255 or negative excluded.
        grid: token rows and columns.
        names: class names.
        record: what ``run.json`` says about the data.
    """

    features: torch.Tensor
    ids: torch.Tensor
    counts: torch.Tensor
    labels: torch.Tensor
    grid: tuple[int, int]
    names: tuple[str, ...]
    record: dict[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, rows: torch.Tensor, flips: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gather a batch.

        Args:
            rows: int64 ``(batch,)`` image indices.
            flips: bool ``(batch,)``: take the mirrored view.
            device: where the batch goes.

        Returns:
            features float32 ``(batch, tokens, dim)``, segments bool ``(batch, slots, tokens)``, counts
            ``(batch,)``, valid bool ``(batch, tokens)``.
        """
        views = flips.long() if self.features.shape[0] > 1 else torch.zeros_like(rows)
        features = self.features[views.to(self.features.device), rows.to(self.features.device)]
        labels = self.labels[rows]
        height, width = self.grid
        mirrored = labels.unflatten(1, (height, width)).flip(2).flatten(1)
        labels = torch.where(flips[:, None], mirrored, labels)
        ids = self.ids[rows][:, :, None]
        segments = (labels[:, None, :] == ids) & (ids >= 0)
        valid = (labels >= 0) & (labels != UNCERTAIN)
        return (
            features.to(device, torch.float32), segments.to(device), self.counts[rows], valid.to(device),
        )  # fmt: skip


def check_source(config: TrainingConfig, data: ShardDataset | GroundTruthData) -> None:
    """A captured run reads shards only; true masks serve the upper bound only.

    Raises:
        ConfigError: ``mask_source`` and the kind of data do not go together.
    """
    wanted = {"captured": ShardDataset, "ground_truth": GroundTruthData}[config.mask_source]
    if not isinstance(data, wanted):
        raise ConfigError(
            "GF-TRAIN-003",
            f"mask_source={config.mask_source!r} with data of type {type(data).__name__}; expected "
            f"{wanted.__name__}",
            "captured masks come from a folder of shards; ground-truth masks are for the upper bound only",
        )


def select(data: ShardDataset, reject: Sequence[str]) -> list[int]:
    """Indices of the samples without a rejecting flag; ``nonfinite`` always rejects.

    Raises:
        DataError: none is left.
    """
    flags = data.index().column("flags").to_pylist() if len(data) else []
    banned = {*reject, "nonfinite"}
    kept = [i for i, raised in enumerate(flags) if not set(raised or ()) & banned]
    if not kept:
        raise DataError(
            "GF-TRAIN-004",
            f"none of the {len(data)} samples can be trained on: every one has a flag of {', '.join(reject)}",
            "look at the flags in the shards' index, and at the generator's images",
        )
    return kept


def _sample_labels(
    sample: Any, names: tuple[str, ...], grid: tuple[int, int], config: TrainingConfig
) -> NDArray[np.int32]:
    if config.threshold is None:
        return labels_by_area(sample.mask, grid)
    meta = sample.meta
    ids = meta.get("label_ids")
    if ids is None:
        dropped = set(meta.get("dropped", ()))
        ids = [0 if name in dropped else names.index(name) + 1 for name in meta.get("classes", ())]
    low = config.threshold if config.uncertain_threshold is None else config.uncertain_threshold
    return labels_from_maps(sample.maps, ids, grid, config.threshold, low, sample.mask.shape)


def data_hash(data: ShardDataset | GroundTruthData) -> str:
    """SHA-256 of the manifest and all commit records, or of the arrays."""
    digest = hashlib.sha256()
    if isinstance(data, ShardDataset):
        for path in [data.directory / "manifest.json", *sorted(data.directory.glob("shard-*.json"))]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    else:
        for array in (data.images, data.instances):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def feature_store(
    encoder: Encoder, images: int, views: int, cache: Path | None, digest: str, rows_hash: str
) -> ArrayStore:
    """Room for the features of ``images`` pictures; the key says of which pictures, encoder and views."""
    key = json.dumps([digest, encoder.checksum, encoder.resolution, views, rows_hash])
    return ArrayStore("features", (views, images, math.prod(encoder.grid), encoder.dim), cache, key)


def put_features(store: ArrayStore, encoder: Encoder, first: int, images: list[NDArray[np.uint8]]) -> None:
    """Encode images ``first ..`` (and their mirror images where the store has two views)."""
    inputs = torch.stack([encoder.preprocess(image) for image in images]).to(encoder.device)
    for view in range(store.array.shape[0]):
        store.put(view, first, encoder.features(inputs.flip(3) if view else inputs))


def _iterate(
    data: ShardDataset | GroundTruthData, rows: list[int], grid: tuple[int, int], config: TrainingConfig
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    for row in rows:
        if isinstance(data, GroundTruthData):
            yield data.images[row], labels_by_area(data.instances[row], grid)
        else:
            sample = data[row]
            yield sample.image, _segments(sample, data.labels, grid, config)


def _segments(
    sample: Any, names: tuple[str, ...], grid: tuple[int, int], config: TrainingConfig
) -> NDArray[np.int32]:
    """Segment of each token; pieces are found on the token grid or, finer, on ``component_size`` cells a side."""
    if config.segments == "class":
        return _sample_labels(sample, names, grid, config)
    if config.component_size is None:
        return split_components(_sample_labels(sample, names, grid, config), config.min_component)
    fine = (config.component_size, config.component_size)
    smallest = config.min_component * math.prod(fine) // math.prod(grid)
    pieces = split_components(_sample_labels(sample, names, fine, config), max(1, smallest))
    return labels_by_area(pieces, grid)


@dataclass(frozen=True)
class Chosen:
    """Which samples a run trains on, known before anything is encoded.

    Attributes:
        rows: indices into the data set.
        digest: identity of the data set.
        rows_hash: sha256 of ``rows``.
    """

    rows: list[int]
    digest: str
    rows_hash: str


def choose(config: TrainingConfig, data: ShardDataset | GroundTruthData, reject: Sequence[str]) -> Chosen:
    """Check that data and configuration go together and pick the samples; errors as :func:`prepare`."""
    check_source(config, data)
    rows = select(data, reject) if isinstance(data, ShardDataset) else list(range(len(data)))
    if not rows:
        raise DataError("GF-TRAIN-004", "the data set is empty")
    return Chosen(rows, data_hash(data), hashlib.sha256(json.dumps(rows).encode()).hexdigest())


def prepare(
    config: TrainingConfig,
    data: ShardDataset | GroundTruthData,
    encoder: Encoder,
    cache: Path | None = None,
    reject: Sequence[str] = DEFAULT_REJECT,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> TrainingData:
    """Encode all images once and bring their masks to the token grid.

    Args:
        config: label options; see :class:`TrainingConfig`.
        data: shards, or true masks for the upper bound.
        encoder: frozen encoder.
        cache: folder for the features when they exceed 4 GiB.
        reject: samples with one of these flags are left out.
        progress: shows images, rate and time left.
        stop: looked at between batches.

    Raises:
        ConfigError: data and ``mask_source`` do not go together.
        DataError: nothing to train on, or a damaged sample.
    """
    chosen = choose(config, data, reject)
    rows, digest = chosen.rows, chosen.digest
    views = 2 if config.flip else 1
    store = feature_store(encoder, len(rows), views, cache, digest, chosen.rows_hash)
    progress = progress or Progress()
    progress.start(len(rows), "images", "features")
    labels = np.empty((len(rows), math.prod(encoder.grid)), np.int32)
    pending: list[NDArray[np.uint8]] = []
    for number, (image, tokens) in enumerate(_iterate(data, rows, encoder.grid, config)):
        labels[number] = tokens.reshape(-1)
        pending.append(image)
        if len(pending) == ENCODE_BATCH or number == len(rows) - 1:
            if not store.complete:
                put_features(store, encoder, number + 1 - len(pending), pending)
            progress.advance(len(pending))
            pending = []
            if stop is not None:
                stop.check("training had not begun")
    progress.finish()
    ids, counts = segment_table(labels, config.num_slots, config.background_segment)
    record = {
        "kind": "shards" if isinstance(data, ShardDataset) else "ground_truth",
        "name": data.directory.name if isinstance(data, ShardDataset) else data.name,
        "hash": digest,
        "samples": len(rows),
        "rows": chosen.rows_hash,
        "rejected": len(data) - len(rows),
        "segments_mean": float(counts.mean()),
    }
    return TrainingData(
        store.finish(), torch.from_numpy(ids), torch.from_numpy(counts), torch.from_numpy(labels),
        encoder.grid, tuple(data.labels), record,
    )  # fmt: skip
