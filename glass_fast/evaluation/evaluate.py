"""One pass over a data set: each picture is predicted once and scored under every protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.data.prompts import sample_seed
from glass_fast.errors import ConfigError, DataError, NumericsError
from glass_fast.evaluation.predictors import as_predictor
from glass_fast.evaluation.scores import ProtocolScores
from glass_fast.metrics.ground_truth import GroundTruth, build_ground_truth
from glass_fast.metrics.protocols import Protocol, get_protocol
from glass_fast.progress import Progress, StopToken

SCHEMA = 1
LISTED_FAILURES = 50
_UPSAMPLE_BYTES = 128 * 2**20


def slot_labels(masks: torch.Tensor, side: int) -> NDArray[np.uint8]:
    """Slot index of each pixel: bilinear upsampling of the soft masks, then arg-max (ties: lowest slot).

    Args:
        masks: float ``(batch, slots, rows, columns)``.
        side: height and width of the result in pixels.

    Returns:
        uint8 ``(batch, side, side)``.
    """
    step = max(1, _UPSAMPLE_BYTES // (4 * masks.shape[1] * side * side))
    parts = []
    for start in range(0, masks.shape[0], step):
        part = masks[start : start + step].float()
        full = torch.nn.functional.interpolate(part, size=(side, side), mode="bilinear", align_corners=False)
        # a running maximum over slots: argmax over a strided dimension is ten times slower on the CPU
        best = full[:, 0].clone()
        labels = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
        for slot in range(1, full.shape[1]):
            labels.masked_fill_(full[:, slot] > best, slot)
            torch.maximum(best, full[:, slot], out=best)
        parts.append(labels.cpu())
    return torch.cat(parts).numpy()


def evaluate(
    model: Any,
    dataset: Sequence[Any],
    protocols: Sequence[str | Protocol] = ("glass", "spot"),
    *,
    batch_size: int = 32,
    seed: int = 0,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    dataset_info: dict[str, Any] | None = None,
    model_info: dict[str, Any] | None = None,
    name: str | None = None,
    training_seed: int | None = None,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> dict[str, Any]:
    """Score a model or baseline on an annotated data set.

    Slot noise is seeded for each picture from ``seed`` and the picture's id, so results do not depend on
    ``batch_size``, order or ``limit`` (up to rounding of batched matrix products).

    Args:
        model: a :class:`glass_fast.models.glass.Glass` or a predictor (:mod:`.predictors`).
        dataset: records as :func:`glass_fast.data.datasets.open_dataset` gives them.
        protocols: names or :class:`~glass_fast.metrics.protocols.Protocol` objects.
        batch_size: pictures per forward pass.
        seed: seed of the slot noise.
        limit: only the first so many records.
        class_names: for the per-class table; default: ``dataset.labels.names`` or ``dataset.labels``.
        dataset_info: recorded beside the numbers (name, kind, split, subset, ...).
        model_info: recorded with the model (reference, checksum of its folder, ...).
        name: name of the model in the result; default: the predictor's own.
        training_seed: seed the model was trained with, recorded so that ablations can pair runs.
        progress: told about every batch.
        stop: looked at between batches.

    Returns:
        JSON-able dict: ``schema``, ``kind`` = "evaluation", ``model``, ``dataset``, ``seed``,
        ``training_seed``, ``counts``
        (images, objects, failures), ``failures`` (id, code, reason; at most 50 are listed), and
        ``protocols``: name -> :meth:`glass_fast.evaluation.scores.ProtocolScores.result`.

    Raises:
        ConfigError: no or unknown protocol, or a model that cannot be evaluated.
        DataError: no record could be scored.
        NumericsError: the model gives masks that are not finite.
        Stopped: a stop was asked for.
    """
    predictor = as_predictor(model, name)
    rules = [get_protocol(protocol) for protocol in protocols]
    if not rules or len({rule.name for rule in rules}) != len(rules):
        raise ConfigError("GF-EVAL-004", f"protocols={list(protocols)!r}; expected at least one, each once")
    if batch_size < 1:
        raise ConfigError("GF-EVAL-004", f"batch_size={batch_size}; expected at least 1")
    progress, stop = progress or Progress(), stop or StopToken()
    scores = {
        rule.name: ProtocolScores(rule, predictor.num_slots, class_names or _class_names(dataset))
        for rule in rules
    }
    total = len(dataset) if limit is None else min(limit, len(dataset))
    failures: list[dict[str, str]] = []
    progress.start(total, "images", f"evaluate {name or predictor.name}")
    try:
        for start in range(0, total, batch_size):
            stop.check("an evaluation has no partial result", "run the same command again")
            indices = range(start, min(start + batch_size, total))
            batch = list(_read(dataset, indices, rules, failures))
            if batch:
                _score(predictor, batch, rules, scores, seed)
            progress.advance(len(indices), failures=len(failures))
    finally:
        progress.finish()
    first = scores[rules[0].name]
    if not first.images:
        detail = f"; the first failure: {failures[0]['id']}: {failures[0]['reason']}" if failures else ""
        raise DataError(
            "GF-EVAL-020", f"none of {total} records could be scored{detail}", "check the data set's folder"
        )
    return {
        "schema": SCHEMA,
        "kind": "evaluation",
        "model": {"name": name or predictor.name, "num_slots": predictor.num_slots}
        | predictor.describe()
        | dict(model_info or {}),
        "dataset": {"name": getattr(dataset, "name", ""), "note": getattr(dataset, "note", "")}
        | dict(dataset_info or {}),
        "seed": seed,
        "training_seed": training_seed,
        "counts": {"images": first.images, "objects": first.objects, "failures": len(failures)},
        "failures": failures[:LISTED_FAILURES],
        "protocols": {rule_name: score.result() for rule_name, score in scores.items()},
    }


def _class_names(dataset: Any) -> tuple[str, ...]:
    labels = getattr(dataset, "labels", None) or getattr(dataset, "label_set", None) or ()
    return tuple(getattr(labels, "names", labels))


def _read(
    dataset: Sequence[Any], indices: Sequence[int], rules: Sequence[Protocol], failures: list[dict[str, str]]
) -> Iterator[tuple[Any, list[GroundTruth]]]:
    """Records with their ground truth under every protocol; unreadable ones are noted and left out."""
    for index in indices:
        record = None
        try:
            record = dataset[index]
            yield record, [build_ground_truth(record, rule) for rule in rules]
        except DataError as error:
            identity = str(record.id) if record is not None else f"record {index}"
            failures.append({"id": identity, "code": error.code, "reason": error.message})


def _score(
    predictor: Any,
    batch: list[tuple[Any, list[GroundTruth]]],
    rules: Sequence[Protocol],
    scores: dict[str, ProtocolScores],
    seed: int,
) -> None:
    images = [record.image for record, _ in batch]
    masks = predictor.masks(images, [sample_seed(seed, str(record.id), "evaluate") for record, _ in batch])
    if tuple(masks.shape[:2]) != (len(images), predictor.num_slots) or masks.ndim != 4:
        raise DataError(
            "GF-EVAL-021",
            f"{predictor.name} gave masks of shape {tuple(masks.shape)}; expected "
            f"({len(images)}, {predictor.num_slots}, rows, columns)",
        )
    finite = torch.isfinite(masks).flatten(1).all(dim=1).cpu()
    if not bool(finite.all()):
        bad = str(batch[int((~finite).nonzero()[0, 0])][0].id)
        raise NumericsError(
            "GF-NUM-030",
            f"{predictor.name} gave masks that are not finite for image {bad!r}",
            "the weights are damaged or the model diverged in training",
        )
    labels: dict[int, NDArray[np.uint8]] = {}
    for position, rule in enumerate(rules):
        if rule.resolution not in labels:
            labels[rule.resolution] = slot_labels(masks, rule.resolution)
        scores[rule.name].add(labels[rule.resolution], [truths[position] for _, truths in batch])
