"""What a captioner names on held-out scenes: precision and recall of classes, and captions that are right in full."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from glass_fast.config.schema import CaptionsConfig
from glass_fast.partworld.quality.shares import share
from glass_fast.partworld.renderer import describe, render
from glass_fast.partworld.shapes import CLASSES
from glass_fast.progress import Progress, StopToken

NAMES = tuple(CLASSES)


def right_captions(labels: Sequence[int]) -> set[str]:
    """Every caption that is right for objects of these labels (1-based): the order of mention is free."""
    names = [NAMES[label - 1] for label in labels]
    # describe() counts equal names, so they have to stand side by side: permute the distinct ones
    distinct = sorted(set(names), key=names.index)
    return {
        "a photo of " + describe(name for name in order for _ in range(names.count(name)))
        for order in itertools.permutations(distinct)
    }


def caption_scores(captions: Sequence[str], labels: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Scores of captions against the labels of the objects in each scene.

    Classes are read from a caption by the matcher of the captions stage, so what is scored is what the prompt table
    gets.

    Args:
        captions: one a scene.
        labels: 1-based class labels of every object of each scene.

    Returns:
        ``precision`` and ``recall`` of (scene, class) pairs, ``class_sets`` (captions that name exactly the classes
        shown), ``exact`` (also the right numbers and wording, in any order), and precision and recall per class.
    """
    from glass_fast.captions.matching import ClassMatcher

    matcher = ClassMatcher(NAMES)
    found = np.zeros((len(captions), len(NAMES)), bool)
    shown = np.zeros_like(found)
    exact = 0
    for row, (caption, objects) in enumerate(zip(captions, labels, strict=True)):
        for name in matcher.classes(caption):
            found[row, NAMES.index(name)] = True
        shown[row, [label - 1 for label in objects]] = True
        exact += caption.strip() in right_captions(objects)
    right = found & shown
    return {
        "scenes": len(captions),
        "precision": share(int(right.sum()), int(found.sum())),
        "recall": share(int(right.sum()), int(shown.sum())),
        "class_sets": share(int((found == shown).all(axis=1).sum()), len(captions)),
        "exact": share(exact, len(captions)),
        "class": {
            name: {
                "precision": share(int(right[:, i].sum()), int(found[:, i].sum())),
                "recall": share(int(right[:, i].sum()), int(shown[:, i].sum())),
            }
            for i, name in enumerate(NAMES)
        },
    }


def measure_captioner(
    captioner: str,
    settings: CaptionsConfig,
    scenes: int = 400,
    start: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> dict[str, Any]:
    """Caption held-out scenes (test split) and score them.

    Args:
        captioner: model folder or ``partworld:captioner``.
        settings: decoding settings and batch size of the captions stage.
        scenes: how many.
        start: first of them.
        device: where it runs.

    Raises:
        Stopped: stopped on request.
    """
    from glass_fast.captions.captioner import load
    from glass_fast.models.loading import folder_checksum, resolve_model

    progress, stop = progress or Progress(), stop or StopToken()
    model = load(captioner, device, settings)
    truth = [render("test", start + index) for index in range(scenes)]
    captions: list[str] = []
    progress.start(scenes, "scenes", "captions")
    for begin in range(0, scenes, settings.batch_size):
        stop.check("nothing of this measure is saved")
        part = truth[begin : begin + settings.batch_size]
        captions += model([scene.image for scene in part])
        progress.advance(len(part))
    progress.finish()
    return {
        "captioner": {"checksum": folder_checksum(resolve_model(captioner).folder())},
        "split": "test",
        "start": start,
        **caption_scores(captions, [scene.labels for scene in truth]),
        "examples": [
            {"caption": caption, "true": scene.caption}
            for caption, scene in list(zip(captions, truth, strict=True))[:8]
        ],
    }
