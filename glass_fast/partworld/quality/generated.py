"""What a generator paints: pictures of single classes and of pairs, made by the real stage, judged by the judge.

Nothing here knows the truth about a generated picture: "shows a class" always means that the judge says so, and the
judge's own errors on renders stand beside every figure (:func:`judge_on_renders`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from glass_fast.config.schema import RunConfig
from glass_fast.partworld.quality.judge import (
    NUM_CLASSES,
    Judge,
    class_areas,
    presence_scores,
    segment_scores,
)
from glass_fast.partworld.quality.shares import share
from glass_fast.partworld.shapes import CLASSES
from glass_fast.progress import Progress, StopToken
from glass_fast.synthesis.masks import UNCERTAIN

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator

NAMES = tuple(CLASSES)
MIN_AREA = 20
"""Pixels (0.5 % of a picture) that the segmenter must give to a class before it counts as seen there."""
MIN_PIECE = 40
"""Pixels (1 % of a picture) of a connected piece that counts as an object of its own."""
Kind = Literal["single", "pair", "triple"]
_SIZES = {"single": 1, "pair": 2, "triple": 3}


@dataclass(frozen=True)
class Pictures:
    """Generated pictures with what the stage stored about them and what the judge says.

    Attributes:
        images: uint8 (N, 64, 64, 3).
        masks: uint8 (N, 64, 64), captured masks; 255 = uncertain.
        maps: N arrays uint8 (K, h, w), soft maps in the order of ``prompted``.
        prompted: N tuples of class numbers 0..9.
        peaks: N tuples of raw peaks, as ``prompted``.
        dropped: N tuples of class numbers that the absence guard dropped.
        prompt: number of the prompt of each picture, int64 (N,).
        texts: N prompts' captions.
        labels: uint8 (N, 64, 64), the judge's segmentation.
        found: bool (N, 10), what the judge's classifier sees.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    maps: list[NDArray[np.uint8]]
    prompted: list[tuple[int, ...]]
    peaks: list[tuple[float, ...]]
    dropped: list[tuple[int, ...]]
    prompt: NDArray[np.int64]
    texts: list[str]
    labels: NDArray[np.uint8]
    found: NDArray[np.bool_]

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """bool (N, 10): which classes the prompt names."""
        result = np.zeros((len(self.prompted), NUM_CLASSES), bool)
        for row, classes in enumerate(self.prompted):
            result[row, list(classes)] = True
        return result

    @property
    def seen(self) -> NDArray[np.bool_]:
        """bool (N, 10): classifier and segmenter both see the class."""
        result: NDArray[np.bool_] = self.found & (class_areas(self.labels) >= MIN_AREA)
        return result


def entries(kind: Kind) -> list[str]:
    """Entries of the caption source ``list``: 10 classes, 45 pairs or 120 triples, in orders that take turns."""
    sets = itertools.combinations(range(NUM_CLASSES), _SIZES[kind])
    turned = [numbers if sum(numbers) % 2 else numbers[::-1] for numbers in sets]
    return [" + ".join(NAMES[number] for number in numbers) for numbers in turned]


def generator_config(generator: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The demo preset with another generator and further ``key=value`` overrides."""
    from glass_fast.config.load import load_config

    return load_config("demo", [], [f"models.generator={json.dumps(str(generator))}", *overrides]).config


def make_pictures(
    config: RunConfig, kind: Kind, each: int, out: Path, progress: Progress, stop: StopToken
) -> Path:
    """Prompts by the captions stage, shards by the synthesis stage; finished shards are kept.

    Args:
        config: the run's configuration; its synthesis settings are used as they are.
        kind: ``single`` (10 prompts), ``pair`` (45) or ``triple`` (120).
        each: pictures of every prompt.
        out: gets ``KIND-EACH/prompts.parquet`` and ``KIND-EACH/shards``.

    Returns:
        Folder of the shards.

    Raises:
        ConfigError: the folder holds another job.
        Stopped: stopped on request; run again to continue.
    """
    from glass_fast import workflow

    place = Path(out) / f"{kind}-{each}"
    names = entries(kind)
    captions = config.captions.model_copy(
        update={"source": "list", "classes": tuple(names), "combine": 1, "limit": None, "images": None}
    )
    # pictures that miss their class are what is counted here, so no share of them is too large
    quality = config.synthesis.quality.model_copy(update={"max_reject_share": 1.0})
    synthesis = config.synthesis.model_copy(update={"num": each * len(names), "quality": quality})
    job = config.model_copy(update={"captions": captions, "synthesis": synthesis})
    workflow.make_prompts(job, place, progress, stop)
    workflow.make_shards(job, place / "prompts.parquet", place / "shards", progress, stop)
    return place / "shards"


def read_pictures(shards: Path, judge: Judge) -> Pictures:
    """Read shards and let the judge look at them.

    Raises:
        DataError: damaged or unfinished shards, or pictures that are not 64 x 64.
    """
    from glass_fast.data.shards import open_shards

    samples = list(open_shards(shards))
    images = np.stack([sample.image for sample in samples])
    labels, shares = judge.both(images)
    numbers = {name: index for index, name in enumerate(NAMES)}
    prompts = {key: i for i, key in enumerate(dict.fromkeys(s.meta["prompt_id"] for s in samples))}
    return Pictures(
        images=images,
        masks=np.stack([sample.mask for sample in samples]),
        maps=[sample.maps for sample in samples],
        prompted=[tuple(numbers[name] for name in sample.meta["classes"]) for sample in samples],
        peaks=[tuple(sample.meta["peaks"]) for sample in samples],
        dropped=[tuple(numbers[name] for name in sample.meta["dropped"]) for sample in samples],
        prompt=np.array([prompts[sample.meta["prompt_id"]] for sample in samples], np.int64),
        texts=[sample.meta["caption"] for sample in samples],
        labels=labels,
        found=shares >= 0.5,
    )


def joined(parts: Sequence[Pictures]) -> Pictures:
    """Several sets of pictures as one; prompts keep apart."""
    offsets = np.cumsum([0, *(int(part.prompt.max(initial=-1)) + 1 for part in parts)])

    def flat(name: str) -> list[Any]:
        return [item for part in parts for item in getattr(part, name)]

    return Pictures(
        images=np.concatenate([part.images for part in parts]),
        masks=np.concatenate([part.masks for part in parts]),
        maps=flat("maps"),
        prompted=flat("prompted"),
        peaks=flat("peaks"),
        dropped=flat("dropped"),
        prompt=np.concatenate([part.prompt + start for part, start in zip(parts, offsets, strict=False)]),
        texts=flat("texts"),
        labels=np.concatenate([part.labels for part in parts]),
        found=np.concatenate([part.found for part in parts]),
    )


def count_pieces(labels: NDArray[np.uint8], smallest: int = MIN_PIECE) -> NDArray[np.int64]:
    """Connected pieces (8 neighbours) of at least ``smallest`` pixels of each class, int64 (N, 10)."""
    from scipy import ndimage

    pieces = np.zeros((len(labels), NUM_CLASSES), np.int64)
    around = np.ones((3, 3))
    for row, column in zip(*np.nonzero(class_areas(labels) >= smallest), strict=True):
        numbered, count = ndimage.label(labels[row] == column + 1, around)
        if count:
            sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
            pieces[row, column] = int((sizes >= smallest).sum())
    return pieces


def recognition(pictures: Pictures) -> dict[str, Any]:
    """Which prompted classes the judge recognises, what else it sees, and what is there twice.

    Returns:
        ``all``: pictures of which every prompted class is recognised by the classifier; ``all_seen``: the segmenter
        also gives each of them :data:`MIN_PIECE` pixels in one piece; ``class``: recognised, per class, over pictures
        that name it; ``extra``: pictures with a class that was not asked for; ``extra_class``: how often each;
        ``doubled``: prompted and recognised classes that lie in two or more pieces, overall and per class.
    """
    wanted, found = pictures.wanted, pictures.found
    pieces = count_pieces(pictures.labels)
    asked_and_found = wanted & found
    twice = asked_and_found & (pieces >= 2)
    extra = found & ~wanted
    return {
        "pictures": len(wanted),
        "prompts": len(np.unique(pictures.prompt)),
        "all": share(int((found | ~wanted).all(axis=1).sum()), len(wanted)),
        "all_seen": share(int(((found & (pieces >= 1)) | ~wanted).all(axis=1).sum()), len(wanted)),
        "class": {
            name: share(int(asked_and_found[:, i].sum()), int(wanted[:, i].sum()))
            for i, name in enumerate(NAMES)
            if wanted[:, i].any()
        },
        "extra": share(int(extra.any(axis=1).sum()), len(wanted)),
        "extra_class": {name: int(extra[:, i].sum()) for i, name in enumerate(NAMES)},
        "doubled": share(int(twice.sum()), int(asked_and_found.sum())),
        "doubled_class": {
            name: share(int(twice[:, i].sum()), int(asked_and_found[:, i].sum()))
            for i, name in enumerate(NAMES)
            if asked_and_found[:, i].any()
        },
    }


def mask_scores(pictures: Pictures, grid: int | None = None) -> dict[str, Any]:
    """Captured masks against the judge's segmentation.

    Only prompted classes that the judge sees count (an absent one has no right mask); uncertain pixels count as
    background, as in the mask benchmark, and are left out in the ``_sure`` figure. Pixels which the judge gives to a
    class that was not asked for are left out of the background's IoU. ``attribution``: share of the pixels, in
    pictures with two or more seen classes, on which mask and judge both see an object and agree on the class.
    ``token_ceiling``: the judge's own labels, reduced to the token grid by majority and enlarged again; refined maps
    can be better.

    Args:
        pictures: judged pictures.
        grid: tokens per side of the captured maps; default: the side of the stored maps.
    """
    seen = pictures.seen & pictures.wanted
    masks = np.where(pictures.masks == UNCERTAIN, 0, pictures.masks)
    sure = pictures.masks != UNCERTAIN
    grid = grid or next((maps.shape[-1] for maps in pictures.maps if len(maps)), masks.shape[-1])
    coarse = coarsened(pictures.labels, min(grid, masks.shape[-1]))
    by_class: dict[str, list[float]] = {name: [] for name in NAMES}
    rows: list[tuple[float, float, float]] = []
    background, right, total = [], 0, 0
    for row in range(len(masks)):
        mask, label, known = masks[row], pictures.labels[row], sure[row]
        classes = np.flatnonzero(seen[row]) + 1
        own = [_iou(mask == c, label == c) for c in classes]
        for number, value in zip(classes, own, strict=True):
            by_class[NAMES[number - 1]].append(value)
        if len(classes):
            certain = [_iou((mask == c)[known], (label == c)[known]) for c in classes]
            bound = [_iou(coarse[row] == c, label == c) for c in classes]
            rows.append((float(np.mean(own)), float(np.mean(certain)), float(np.mean(bound))))
        asked = np.isin(label, [0, *(number + 1 for number in pictures.prompted[row])])
        background.append(_iou((mask == 0)[asked], (label == 0)[asked]))
        if len(classes) > 1:
            both = np.isin(label, classes) & (mask > 0)
            right += int((mask == label)[both].sum())
            total += int(both.sum())
    means = np.mean(rows, axis=0) if rows else np.full(3, np.nan)
    return {
        "pictures": len(rows),
        "class_miou": _rounded(means[0]),
        "class_miou_sure": _rounded(means[1]),
        "token_ceiling": _rounded(means[2]),
        "grid": grid,
        "deviation": _rounded(np.std([row[0] for row in rows])) if rows else None,
        "class_iou": {
            name: {"mean": _rounded(np.mean(values)), "pictures": len(values)}
            for name, values in by_class.items()
            if values
        },
        "background_iou": _rounded(np.mean(background)) if background else None,
        "attribution": _rounded(right / total) if total else None,
        "attribution_pixels": [right, total],
    }


def coarsened(labels: NDArray[np.uint8], grid: int) -> NDArray[np.uint8]:
    """Label maps (N, H, W) whose blocks hold the label of their majority (ties: the lowest), as a token grid would.

    H and W must be multiples of ``grid``.
    """
    count, height, width = labels.shape
    tall, wide = height // grid, width // grid
    blocks = labels.reshape(count, grid, tall, grid, wide)
    votes = np.stack([(blocks == value).sum(axis=(2, 4)) for value in range(NUM_CLASSES + 1)])
    best = votes.argmax(axis=0).astype(np.uint8)
    return best.repeat(tall, axis=1).repeat(wide, axis=2)


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def judge_on_renders(
    judge: Judge, generator: Generator | None = None, count: int = 200, start: int = 2_000
) -> dict[str, Any]:
    """The judge's own errors on held-out renders: what it doubles, and what the generator's autoencoder costs it.

    Args:
        judge: the judge.
        generator: its autoencoder encodes and decodes the renders first (None: only the renders as they are).
        count: scenes of the test split.
        start: first of them; the judge's own record uses lower numbers.
    """
    from glass_fast.partworld.renderer import render

    scenes = [render("test", start + index) for index in range(count)]
    images = np.stack([scene.image for scene in scenes])
    classes = np.stack([scene.classes for scene in scenes]).astype(np.uint8)
    once = np.array(
        [[scene.labels.count(label + 1) == 1 for label in range(NUM_CLASSES)] for scene in scenes]
    )
    sources = {"renders": images}
    result: dict[str, Any] = {}
    if generator is not None:
        sources["reconstructed"] = reconstructed(generator, images)
        error = (sources["reconstructed"].astype(np.float64) - images) ** 2
        result["reconstruction_psnr"] = round(float(10 * np.log10(255**2 / error.mean())), 2)
    for name, pictures in sources.items():
        labels, shares = judge.both(pictures)
        single = once & (shares >= 0.5)
        result[name] = {
            "segmenter": segment_scores(labels, classes),
            "classifier": presence_scores(shares >= 0.5, class_areas(classes) > 0),
            "doubled": share(int((single & (count_pieces(labels) >= 2)).sum()), int(single.sum())),
        }
    return result


def reconstructed(generator: Generator, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures after the generator's autoencoder, uint8 like the input."""
    import torch

    from glass_fast.models.denoising import decode, encode

    parts = []
    with torch.inference_mode():
        for begin in range(0, len(images), 64):
            latents = encode(generator.vae, torch.from_numpy(images[begin : begin + 64]))
            parts.append(decode(generator.vae, latents)[0].numpy())
    return np.concatenate(parts)


def reference_peaks(pictures: Pictures) -> dict[str, dict[str, float]]:
    """``{"absence_peaks": {class: median raw peak}}`` of single-class pictures, as the preset's section masks has it.

    The judge has no say in it: medians stand a good many pictures that miss their class.
    """
    by_class: dict[int, list[float]] = {}
    for classes, peaks in zip(pictures.prompted, pictures.peaks, strict=True):
        if len(classes) == 1:
            by_class.setdefault(classes[0], []).append(peaks[0])
    return {"absence_peaks": {NAMES[i]: round(float(np.median(by_class[i])), 3) for i in sorted(by_class)}}


def measure_generator(
    config: RunConfig,
    judge: Judge,
    out: Path,
    each_single: int,
    each_pair: int,
    each_triple: int,
    progress: Progress,
    stop: StopToken,
) -> dict[str, Any]:
    """All figures about a generator: recognition, captured masks, absence guard, reference peaks.

    Args:
        config: from :func:`generator_config`.
        judge: the judge.
        out: folder of the pictures; a stopped measurement continues from it.
        each_single: pictures of each of the 10 single-class prompts.
        each_pair: pictures of each of the 45 pairs.
        each_triple: pictures of each of the 120 triples, in which classes are missing most often; 0 leaves them out.

    Raises:
        Stopped: stopped on request; run again to continue.
    """
    from glass_fast.models.loading import load_generator
    from glass_fast.partworld.quality.guard import guard_report

    counts: dict[Kind, int] = {"single": each_single, "pair": each_pair, "triple": each_triple}
    parts: dict[str, Pictures] = {
        kind: read_pictures(make_pictures(config, kind, each, out, progress, stop), judge)
        for kind, each in counts.items()
        if each
    }
    parts["all"] = joined(list(parts.values()))
    generator = load_generator(config.models.generator, "cpu", config.synthesis.dtype)
    peaks, grid = reference_peaks(parts["all"]), config.synthesis.capture.self_size
    return {
        "generator": {"ref": Path(config.models.generator).name, "checksum": generator.checksum},
        "synthesis": config.synthesis.model_dump(mode="json"),
        "seed": config.seed,
        "recognition": {name: recognition(part) for name, part in parts.items() if name != "all"},
        "masks": {name: mask_scores(part, grid) for name, part in parts.items()},
        "guard": guard_report(parts["all"], config.synthesis, peaks["absence_peaks"]),
        "reference_peaks": peaks,
        "judge_on_renders": judge_on_renders(judge, generator),
    }
