"""Cards of synthetic samples and discovered pictures, and the counts over the shards behind the funnel."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glass_fast.errors import GlassError
from glass_fast.report import gallery
from glass_fast.report import text as fmt
from glass_fast.report.collect import RunData, as_dict_list, class_names
from glass_fast.report.palette import label_colour

if TYPE_CHECKING:
    from glass_fast.data.shards import Sample, ShardDataset

SCANNED_MASKS = 1000
"""Masks decoded at most (evenly spread) for the per-class counts."""


@dataclass(frozen=True)
class Chip:
    """A class name with its mask colour; ``state`` is obtained, missing or unknown."""

    name: str
    colour: str
    state: str


@dataclass(frozen=True)
class SampleCard:
    """One synthetic sample as shown in the grid."""

    key: str
    prompt: str
    chips: list[Chip]
    flags: list[str]
    confidence: float | None
    image: gallery.Picture
    overlay: gallery.Picture
    maps: list[tuple[str, gallery.Picture]]


@dataclass(frozen=True)
class DiscoveredCard:
    """One picture after discovery."""

    name: str
    objects: int | None
    best_score: float | None
    overlay: gallery.Picture
    mask: gallery.Picture | None


@dataclass
class ShardSummary:
    """Counts over all shards (``scanned`` says how many masks stand behind the per-class figures)."""

    total: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    unflagged: int = 0
    rejected: int = 0
    prompted: Counter[str] = field(default_factory=Counter)
    scanned: int = 0
    scanned_prompted: Counter[str] = field(default_factory=Counter)
    scanned_obtained: Counter[str] = field(default_factory=Counter)
    scanned_area: dict[str, float] = field(default_factory=dict)
    uncertain_share: float | None = None
    background_share: float | None = None
    confidences: list[float | None] = field(default_factory=list)
    complete: bool = True
    labels: tuple[str, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)


def open_dataset(data: RunData) -> ShardDataset | None:
    """The shards of the run, or ``None`` when there are none or they cannot be opened (then with a note)."""
    folder = data.folder / "shards"
    if not folder.is_dir():
        return None
    from glass_fast.data.shards import open_shards

    try:
        return open_shards(folder, partial=True)
    except (GlassError, OSError, ValueError) as problem:
        data.note(folder, problem)
        return None


def confidence(scores: Any) -> float | None:
    """One figure or ``None`` from a ``scores`` cell: a number, a list, a mapping, or JSON text of those."""
    if isinstance(scores, str):
        try:
            scores = json.loads(scores)
        except ValueError:
            return None
    if (
        isinstance(scores, list | tuple)
        and scores
        and all(isinstance(v, list | tuple) and len(v) == 2 for v in scores)
    ):
        scores = dict(scores)  # a parquet map arrives as pairs
    if isinstance(scores, dict):
        for name in ("confidence", "mean", "score"):
            if name in scores:
                return confidence(scores[name])
        scores = list(scores.values())
    if isinstance(scores, list | tuple):
        values = [float(v) for v in scores if fmt.is_number(v)]
        return sum(values) / len(values) if values else None
    return float(scores) if fmt.is_number(scores) else None


def flag_names(value: Any) -> list[str]:
    """Flags of a cell; ``class_missing:boat`` counts as ``class_missing``."""
    return [name.split(":", 1)[0] for name in class_names(value)]


def summarise(
    data: RunData, dataset: ShardDataset, reject: Sequence[str], min_area: float = 0.0
) -> ShardSummary:
    """Counts from the index of all shards and from at most ``SCANNED_MASKS`` decoded masks.

    Args:
        data: receives notes about samples that could not be read.
        dataset: opened shards.
        reject: flags that keep a sample out of training.
        min_area: share of the mask that a class must cover to count as obtained.
    """
    summary = ShardSummary(
        total=len(dataset),
        complete=dataset.complete,
        labels=tuple(dataset.labels),
        manifest=dict(dataset.manifest),
    )
    try:
        table = dataset.index()
        for batch in table.to_batches(max_chunksize=65536):
            columns = {
                name: batch.column(name).to_pylist()
                for name in ("classes", "flags", "scores")
                if name in batch.schema.names
            }
            for classes in columns.get("classes", []):
                summary.prompted.update(dict.fromkeys(class_names(classes), 1))
            for flags in columns.get("flags", []):
                names = set(flag_names(flags))
                summary.flags.update(names)
                summary.unflagged += not names
                summary.rejected += bool(names & set(reject))
            summary.confidences += [confidence(scores) for scores in columns.get("scores", [])]
    except (GlassError, OSError, ValueError, KeyError) as problem:
        data.note(data.folder / "shards", problem)
    _scan_masks(data, dataset, summary, min_area)
    return summary


def _scan_masks(data: RunData, dataset: ShardDataset, summary: ShardSummary, min_area: float) -> None:
    """Which prompted classes the masks contain, and how much of the picture they cover."""
    number = {name: label for label, name in enumerate(summary.labels, 1)}
    uncertain = background = 0.0
    for index in spread(summary.total, SCANNED_MASKS):
        sample = _sample(data, dataset, index)
        if sample is None:
            continue
        shares = np.bincount(sample.mask.ravel(), minlength=256) / max(sample.mask.size, 1)
        summary.scanned += 1
        background += float(shares[0])
        uncertain += float(shares[255])
        for name in set(class_names(sample.meta.get("classes"))):
            summary.scanned_prompted[name] += 1
            share = float(shares[number[name]]) if name in number else 0.0
            if share > 0 and share >= min_area:
                summary.scanned_obtained[name] += 1
                summary.scanned_area[name] = summary.scanned_area.get(name, 0.0) + share
    if summary.scanned:
        summary.uncertain_share = uncertain / summary.scanned
        summary.background_share = background / summary.scanned


def spread(total: int, limit: int) -> list[int]:
    """At most ``limit`` indices, evenly over ``range(total)``."""
    if total <= limit:
        return list(range(total))
    return [index * total // limit for index in range(limit)]


def sample_cards(data: RunData, dataset: ShardDataset, indices: Iterable[int]) -> list[SampleCard]:
    """Cards for the given positions; unreadable samples are noted and left out."""
    cards = []
    for index in indices:
        sample = _sample(data, dataset, index)
        if sample is not None:
            cards.append(_card(sample, tuple(dataset.labels)))
    return cards


def _sample(data: RunData, dataset: ShardDataset, index: int) -> Sample | None:
    try:
        return dataset[index]
    except (GlassError, OSError, ValueError, KeyError) as problem:
        data.note(data.folder / "shards", problem)
        return None


def _card(sample: Sample, labels: tuple[str, ...]) -> SampleCard:
    meta = sample.meta
    present = set(np.unique(sample.mask).tolist())
    number = {name: label for label, name in enumerate(labels, 1)}
    names = list(dict.fromkeys(class_names(meta.get("classes"))))
    chips = [
        Chip(
            fmt.clean(name, 40),
            label_colour(number.get(name, 0)),
            "unknown" if name not in number else "obtained" if number[name] in present else "missing",
        )
        for name in names
    ]
    prompt = fmt.clean(meta.get("prompt") or meta.get("caption"), 240)
    found = ", ".join(chip.name for chip in chips if chip.state == "obtained") or "no class"
    all_names = class_names(meta.get("classes"))
    maps = [
        (
            name := fmt.clean(all_names[position], 40)
            if position < len(all_names)
            else f"map {position + 1}",
            gallery.soft_map(values, f"Soft map of {name}"),
        )
        for position, values in enumerate(sample.maps[:8])
    ]
    return SampleCard(
        key=fmt.clean(sample.key, 64),
        prompt=prompt,
        chips=chips,
        flags=[fmt.clean(flag, 40) for flag in class_names(meta.get("flags"))],
        confidence=confidence(meta.get("scores")),
        image=gallery.picture(sample.image, f"Generated picture for: {prompt}"),
        overlay=gallery.mask_overlay(sample.image, sample.mask, f"Captured mask, showing {found}"),
        maps=maps,
    )


def discovered_cards(data: RunData, limit: int) -> list[DiscoveredCard]:
    """Pictures of the discover stage with their overlay and label map, in the order of ``objects.jsonl``."""
    folder = data.folder / "discover"
    cards: list[DiscoveredCard] = []
    for record in data.objects:
        if len(cards) >= limit:
            break
        name = str(record.get("name", ""))
        overlay = _inside(folder, record.get("overlay"))
        if overlay is None or not overlay.is_file():
            continue
        listed = [o for o in as_dict_list(record.get("objects")) if not o.get("background")]
        scores = [float(o["score"]) for o in listed if fmt.is_number(o.get("score"))]
        shown = fmt.clean(name or overlay.stem, 60)
        slot = record.get("background_slot")
        background = int(slot) if fmt.is_number(slot) else None
        try:
            cards.append(
                DiscoveredCard(
                    shown,
                    len(listed),
                    max(scores, default=None),
                    gallery.picture_file(overlay, f"Picture {shown} with {len(listed)} objects marked", 220),
                    _label_map(folder, record.get("mask"), background, shown),
                )
            )
        except (GlassError, OSError, ValueError) as problem:
            data.note(overlay, problem)
    return cards


def _label_map(folder: Path, mask: Any, background: int | None, name: str) -> gallery.Picture | None:
    path = _inside(folder, mask)
    if path is None or not path.is_file():
        return None
    return gallery.slot_map_file(path, background, f"Label map of {name}: one colour per object", 220)


def _inside(folder: Path, name: Any) -> Path | None:
    """``folder/name`` when it lies inside ``folder``; a record must not make the report read other files."""
    if not isinstance(name, str) or not name:
        return None
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError):
        return None
    return path if path.is_relative_to(folder.resolve()) else None
