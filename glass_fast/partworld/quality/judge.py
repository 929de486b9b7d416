"""The judge: a small network that says what a picture shows and where, trained on renders only.

Generated pictures have no true masks, so somebody else has to say what they show. The judge learns from the
renderer's pictures *and masks*. That is allowed for a judge and for nothing else: no shipped weight is trained with
it, no shipped setting is made from it without the tables saying so, and its own weights are not shipped.

Two heads share one trunk: a class per pixel (:meth:`Judge.segment`) and a probability per class for the whole
picture (:meth:`Judge.probabilities`). Pictures of a small generator are softer and noisier than renders, so training
pictures are blurred, resampled, recoloured and cut together from two scenes at random; they stay renders. Scenes come
from ``render("train", index)`` with ``index >= JUDGE_SCENES``, which no model and no caption list uses.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glass_fast.data.atomic import make_directory, read_json, write_bytes, write_json
from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.partworld.builder.fitting import Fit, fit, step_rng
from glass_fast.partworld.renderer import SIZE, render
from glass_fast.partworld.shapes import CLASSES
from glass_fast.progress import Progress, StopToken

JUDGE_SCENES = 400_000
"""First training scene of the judge; captions show 100,000 and on, the upper bound's truth 200,000 and on."""
NUM_CLASSES = len(CLASSES)
STEPS = 1000
RECORD = "judge.json"
WEIGHTS = "judge.safetensors"
_SCHEMA = 1
_SCENES = 8_000
_TUNING_SCENES = 300
_TEST_SCENES = 400
_WIDTHS = (32, 64, 96)
_MOSAIC_SHARE = 0.3
_VISIBLE = 0.5
"""A class of which at least this share is left by a cut counts as shown; less than that, but some, is not asked."""
_WORLD_TOLERANCE = 1.5
"""Grey levels; image libraries round differently by less, another world differs by tens."""


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # GroupNorm: the same in training and evaluation, so averaged weights need no new statistics.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)
    )


class JudgeNetwork(nn.Module):
    """U-shaped network on 2 x 2 pixel blocks, so that no layer runs at full resolution.

    Input float ``(B, 3, 64, 64)`` in about [-2, 2]; output class logits ``(B, 11, 64, 64)`` (0 = background) and
    presence logits ``(B, 10)``.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = _WIDTHS
        self.stem = nn.Sequential(_unit(12, fine), _unit(fine, fine))
        self.down = nn.Sequential(_unit(fine, middle, 2), _unit(middle, middle))
        self.deep = nn.Sequential(_unit(middle, coarse, 2), _unit(coarse, coarse), _unit(coarse, coarse))
        self.up = _unit(coarse, middle)
        self.merge = _unit(middle, fine)
        self.last = _unit(fine, fine)
        self.pixel = nn.Conv2d(fine, 4 * (NUM_CLASSES + 1), 1)
        self.image = nn.Sequential(
            nn.Linear(2 * coarse, coarse), nn.ReLU(inplace=True), nn.Linear(coarse, NUM_CLASSES)
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(F.pixel_unshuffle(pictures, 2))
        middle = self.down(fine)
        coarse = self.deep(middle)
        pooled = torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3))], dim=1)
        state = F.interpolate(self.up(coarse), scale_factor=2, mode="nearest") + middle
        state = F.interpolate(self.merge(state), scale_factor=2, mode="nearest") + fine
        return F.pixel_shuffle(self.pixel(self.last(state)), 2), self.image(pooled)


def _normalised(pictures: Tensor) -> Tensor:
    """Grey levels 0..255, (B, H, W, 3) -> network input (B, 3, H, W)."""
    return (pictures.permute(0, 3, 1, 2) - 127.5) / 64.0


class Judge:
    """A trained judge.

    Args:
        network: :class:`JudgeNetwork`.
        record: content of ``judge.json``.
    """

    batch = 128

    def __init__(self, network: JudgeNetwork, record: dict[str, Any]) -> None:
        self.network = network.requires_grad_(False).eval()
        self.record = record
        self._shift = float(record.get("presence_shift", 0.0))

    def _run(self, images: NDArray[np.uint8]) -> list[tuple[Tensor, Tensor]]:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
            raise DataError(
                "GF-JUDGE-001",
                f"pictures of {images.dtype} {images.shape}; expected uint8 (batch, {SIZE}, {SIZE}, 3)",
                "the judge knows PartWorld pictures in their own size only",
            )
        with torch.inference_mode():
            return [
                self.network(
                    _normalised(torch.from_numpy(images[start : start + self.batch].astype(np.float32)))
                )
                for start in range(0, len(images), self.batch)
            ]

    def both(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """:meth:`segment` and :meth:`probabilities` in one pass."""
        parts = self._run(images)
        if not parts:
            return np.zeros((0, SIZE, SIZE), np.uint8), np.zeros((0, NUM_CLASSES), np.float32)
        labels = torch.cat([pixel.argmax(dim=1).to(torch.uint8) for pixel, _ in parts])
        shares = torch.cat([torch.sigmoid(image + self._shift) for _, image in parts])
        return labels.numpy(), shares.numpy()

    def segment(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Label of every pixel, 0 = background, 1..10 = classes.

        Args:
            images: uint8 ``(B, 64, 64, 3)``.

        Returns:
            uint8 ``(B, 64, 64)``.

        Raises:
            DataError: GF-JUDGE-001, other shape or type.
        """
        return self.both(images)[0]

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probability of every class to be in the picture, float32 ``(B, 10)``.

        Calibrated on the tuning split such that 0.5 is the threshold of the best F1 there.

        Raises:
            DataError: GF-JUDGE-001, other shape or type.
        """
        return self.both(images)[1]

    def present(self, images: NDArray[np.uint8], threshold: float = 0.5) -> NDArray[np.bool_]:
        """Which classes are in the picture, bool ``(B, 10)``."""
        result: NDArray[np.bool_] = self.probabilities(images) >= threshold
        return result


def judge_scenes(count: int, start: int = JUDGE_SCENES) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pictures uint8 (count, 64, 64, 3) and class maps uint8 (count, 64, 64) of the judge's own scenes."""
    return _rendered("train", start, count)


def _rendered(split: str, start: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    classes = np.empty((count, SIZE, SIZE), np.uint8)
    for index in range(count):
        scene = render(split, start + index)
        images[index], classes[index] = scene.image, scene.classes
    return images, classes


def class_areas(classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of each class, int64 (B, 10), of label maps (B, H, W) with labels 0..10."""
    count = len(classes)
    offset = np.arange(count).reshape(-1, 1, 1) * (NUM_CLASSES + 1)
    flat = np.bincount((classes + offset).ravel(), minlength=count * (NUM_CLASSES + 1))
    return flat.reshape(count, NUM_CLASSES + 1)[:, 1:]


def cut_together(
    images: NDArray[np.uint8], classes: NDArray[np.uint8], rng: np.random.Generator, share: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Replace one side of some pictures by that side of the next picture of the batch.

    Renders never show a picture without an object, half an object at a straight edge or more than three classes;
    generated pictures do. Returns pictures, class maps, presence targets (B, 10) and their weights (0 where a cut
    has left less than half of a class, so that neither answer is right).
    """
    count, side = len(images), images.shape[1]
    whole = class_areas(classes)
    cut = rng.random(count) < share
    vertical = rng.random(count) < 0.5
    at = rng.integers(side // 4, 3 * side // 4, size=count)
    line = np.arange(side)
    from_next = line[None] >= at[:, None]
    from_next = np.where(vertical[:, None, None], from_next[:, None, :], from_next[:, :, None])
    from_next = np.broadcast_to(from_next, classes.shape) & cut[:, None, None]
    other = np.roll(np.arange(count), -1)
    mixed_images = np.where(from_next[..., None], images[other], images)
    mixed = np.where(from_next, classes[other], classes)
    possible = whole + np.where(cut[:, None], whole[other], 0)
    # what is left, measured against the fuller of the two scenes: one whole car is enough
    reference = np.where(cut[:, None], np.maximum(whole, whole[other]), whole)
    left = class_areas(mixed) / np.maximum(reference, 1)
    target = (left >= _VISIBLE).astype(np.float32)
    weight = np.where((possible > 0) & (left < _VISIBLE) & (left > 0), 0.0, 1.0).astype(np.float32)
    return mixed_images, mixed, target, weight


def soften(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Make renders look like decoded latents: blur, down- and up-sampling, noise, small changes of colour.

    Args:
        pictures: float (B, H, W, 3) in grey levels.
        rng: source of all draws.

    Returns:
        float (B, H, W, 3) in [0, 255].
    """
    count, side = len(pictures), pictures.shape[1]
    planes = pictures.permute(0, 3, 1, 2)
    small = int(rng.integers(side // 2, side))
    resampled = F.interpolate(planes, size=(small, small), mode="bilinear", antialias=True)
    resampled = F.interpolate(resampled, size=(side, side), mode="bilinear", align_corners=False)
    chosen = torch.from_numpy(rng.random(count) < 0.3).view(-1, 1, 1, 1)
    planes = torch.where(chosen, resampled, planes)
    sigma = np.where(rng.random(count) < 0.6, rng.uniform(0.3, 1.3, count), 1e-3)
    offsets = np.arange(-3, 4)
    taps = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = torch.from_numpy((taps / taps.sum(1, keepdims=True)).astype(np.float32)).repeat_interleave(3, 0)
    flat = F.pad(planes.reshape(1, 3 * count, side, side), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(flat, kernel.view(-1, 1, 1, 7), groups=3 * count)
    flat = F.conv2d(flat, kernel.view(-1, 1, 7, 1), groups=3 * count)
    planes = flat.view(count, 3, side, side)

    def per_image(low: float, high: float, channels: int = 1) -> Tensor:
        values = rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32)
        return torch.from_numpy(values)

    grey = planes.mean(dim=1, keepdim=True)
    planes = grey + (planes - grey) * per_image(0.75, 1.2)
    planes = (planes - 127.5) * per_image(0.85, 1.15) + 127.5 + per_image(-8, 8, 3)
    noise = torch.from_numpy(rng.standard_normal(planes.shape, dtype=np.float32))
    planes = planes + noise * per_image(0.0, 7.0)
    return planes.clamp(0, 255).permute(0, 2, 3, 1)


def world_signature() -> list[float]:
    """Mean colours of the quarters of three scenes: tells one world from another, whatever rounds a pixel."""
    half = SIZE // 2
    blocks = [
        render("train", JUDGE_SCENES + index).image.reshape(2, half, 2, half, 3).mean(axis=(1, 3))
        for index in range(3)
    ]
    return [round(float(value), 2) for value in np.stack(blocks).ravel()]


def _settings(seed: int, steps: int, scenes: int) -> dict[str, Any]:
    plan = Fit(steps=steps, batch_size=32, peak=2.5e-3, warmup=min(60, steps), flat=0.4, ema=0.99)
    return {"schema": _SCHEMA, "seed": seed, "scenes": scenes, "recipe": asdict(plan)}


def train_judge(
    folder: Path,
    seed: int,
    progress: Progress,
    stop: StopToken,
    *,
    steps: int = STEPS,
    scenes: int = _SCENES,
    test_scenes: int = _TEST_SCENES,
) -> Judge:
    """Train the judge, or return the one in ``folder`` when it was made with the same settings for the same world.

    Writes judge.safetensors and, last, judge.json (settings, losses, its own quality on renders). A stopped training
    continues from ``folder/work``.

    Args:
        folder: where the judge lives.
        seed: of weights and batches.
        steps: optimiser steps of 32 pictures.
        scenes: training scenes.
        test_scenes: held-out scenes on which its quality is stated (the tuning split has 3/4 as many).

    Raises:
        ConfigError: GF-JUDGE-002, the folder holds a judge made with other settings or for another world.
        Stopped: stopped on request; run again to continue.
    """
    folder = Path(folder)
    settings = _settings(seed, steps, scenes)
    if (folder / RECORD).exists():
        judge = load_judge(folder)
        made = {key: judge.record[key] for key in settings}
        if made != settings:
            raise ConfigError(
                "GF-JUDGE-002",
                f"{folder} holds a judge made with {made}; asked for {settings}",
                "choose another folder, or delete this one",
            )
        return judge
    make_directory(folder)
    began = time.monotonic()
    progress.start(scenes, "scenes", "judge: render")
    images, classes = judge_scenes(scenes)
    progress.finish()
    plan = Fit(**settings["recipe"])
    torch.manual_seed(seed)
    network = JudgeNetwork().to(memory_format=torch.channels_last)  # a fifth faster on a CPU

    def loss_of(step: int) -> Tensor:
        rng = step_rng(seed, "judge", step)
        picked = rng.integers(scenes, size=plan.batch_size)
        batch, truth, target, weight = cut_together(images[picked], classes[picked], rng, _MOSAIC_SHARE)
        if rng.random() < 0.5:
            batch, truth = batch[:, :, ::-1], truth[:, :, ::-1]
        pictures = torch.from_numpy(batch.astype(np.float32))
        soft = torch.from_numpy(rng.random(plan.batch_size) < 0.75).view(-1, 1, 1, 1)
        pictures = torch.where(soft, soften(pictures, rng), pictures)
        pixel, image = network(_normalised(pictures))
        where = F.cross_entropy(pixel, torch.from_numpy(truth.astype(np.int64)))
        what = F.binary_cross_entropy_with_logits(
            image, torch.from_numpy(target), weight=torch.from_numpy(weight)
        )
        return where + what

    fit("judge", network, loss_of, plan, folder / "work", progress, stop)
    record = settings | {
        "world": world_signature(),
        "presence_shift": 0.0,
        "parameters": sum(p.numel() for p in network.parameters()),
        "losses": read_json(folder / "work" / "losses.json", "losses"),
    }
    judge = Judge(network, record)
    record["presence_shift"] = round(
        _calibrate(judge, _rendered("tuning", 0, max(test_scenes * 3 // 4, 1))), 4
    )
    judge = Judge(network, record)
    record["quality"] = judge_quality(judge, "test", 0, test_scenes)
    record["seconds"] = round(time.monotonic() - began, 1)
    import safetensors.torch

    write_bytes(
        folder / WEIGHTS,
        safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()}),
    )
    write_json(folder / RECORD, record)
    shutil.rmtree(folder / "work", ignore_errors=True)
    return judge


def load_judge(folder: Path) -> Judge:
    """Read a judge written by :func:`train_judge`.

    Raises:
        EnvironmentProblem: GF-JUDGE-003, no finished judge there.
        ConfigError: GF-JUDGE-002, it was trained on another world (another renderer).
        DataError: damaged files.
    """
    import safetensors.torch

    from glass_fast.models.weights import check_safetensors

    folder = Path(folder)
    if not (folder / RECORD).exists() or not (folder / WEIGHTS).exists():
        raise EnvironmentProblem(
            "GF-JUDGE-003",
            f"{folder} holds no finished judge (expected {RECORD} and {WEIGHTS})",
            "train one with glass_fast.partworld.quality.judge.train_judge",
        )
    record = read_json(folder / RECORD, "judge record")
    away = np.abs(np.subtract(record["world"], world_signature())).max()
    if away > _WORLD_TOLERANCE:
        raise ConfigError(
            "GF-JUDGE-002",
            f"the judge in {folder} was trained on another world: its scenes differ by {away:.1f} grey levels from "
            f"this renderer's; expected at most {_WORLD_TOLERANCE}",
            "train a new judge in another folder",
        )
    check_safetensors(folder / WEIGHTS)
    network = JudgeNetwork()
    network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    return Judge(network, record)


def _softened(images: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Pictures softened as in training, with draws that depend on ``name`` and the position alone."""
    blocks = [
        soften(torch.from_numpy(images[start : start + 64].astype(np.float32)), step_rng(0, name, start))
        for start in range(0, len(images), 64)
    ]
    return torch.cat(blocks).round().to(torch.uint8).numpy()


def _calibrate(judge: Judge, scenes: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> float:
    """What to add to presence logits so that the threshold of the best F1 becomes 0 (the middle of equals)."""
    images, classes = scenes
    truth = class_areas(classes) > 0
    both = np.concatenate([images, _softened(images, "calibrate")])
    shares = judge.probabilities(both).astype(np.float64)
    logits = np.log(shares.clip(1e-9) / (1 - shares).clip(1e-9)) - judge._shift
    truth = np.concatenate([truth, truth])
    grid = np.linspace(-6, 6, 121)
    scores = [2 * (truth & (logits >= t)).sum() / max(truth.sum() + (logits >= t).sum(), 1) for t in grid]
    best = np.flatnonzero(np.asarray(scores) >= max(scores) - 1e-12)
    return -float(grid[best].mean())


def presence_scores(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, Any]:
    """Multi-label scores of bool (N, 10) predictions, with the counts behind them."""
    right, named, shown = int((found & truth).sum()), int(found.sum()), int(truth.sum())
    exact = int((found == truth).all(axis=1).sum())
    return {
        "pictures": len(truth),
        "exact": exact,
        "exact_share": exact / max(len(truth), 1),
        "right": right,
        "named": named,
        "shown": shown,
        "precision": right / max(named, 1),
        "recall": right / max(shown, 1),
    }


def segment_scores(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, Any]:
    """IoU of label maps (N, H, W) per class over all pictures, their mean, and the mean per picture.

    ``class_miou`` is the mean over classes of pooled intersections and unions; ``picture_miou`` averages the classes
    of each picture first, then pictures, as the mask benchmark does.
    """
    labels = NUM_CLASSES + 1
    count = len(truth)
    offset = np.arange(count, dtype=np.int64).reshape(-1, 1, 1)
    joint = np.bincount(
        ((offset * labels + found) * labels + truth).ravel(), minlength=count * labels * labels
    ).reshape(count, labels, labels)
    both = np.einsum("nii->ni", joint)
    union = joint.sum(axis=1) + joint.sum(axis=2) - both
    pooled = both.sum(axis=0) / np.maximum(union.sum(axis=0), 1)
    shown = joint.sum(axis=1) > 0
    seen = shown.any(axis=0)
    shown[:, 0] = False
    per_picture = np.where(shown, both / np.maximum(union, 1), 0).sum(1) / np.maximum(shown.sum(1), 1)
    some = shown.any(axis=1)
    return {
        "pictures": count,
        "class_miou": float(pooled[1:][seen[1:]].mean()) if seen[1:].any() else 0.0,
        "picture_miou": float(per_picture[some].mean()) if some.any() else 0.0,
        "background_iou": float(pooled[0]),
        "class_iou": {name: round(float(pooled[i + 1]), 4) for i, name in enumerate(CLASSES) if seen[i + 1]},
    }


def judge_quality(
    judge: Judge, split: str = "test", start: int = 0, count: int = _TEST_SCENES
) -> dict[str, Any]:
    """How far the judge can be trusted: its scores on held-out renders, as they are and softened."""
    images, classes = _rendered(split, start, count)
    truth = class_areas(classes) > 0
    result: dict[str, Any] = {"split": split, "start": start}
    for name, pictures in (("renders", images), ("softened", _softened(images, "quality"))):
        labels, shares = judge.both(pictures)
        result[name] = {
            "segmenter": segment_scores(labels, classes),
            "classifier": presence_scores(shares >= 0.5, truth),
        }
    return result
