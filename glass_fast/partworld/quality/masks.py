"""How good captured masks are, by every setting that makes them: the measured table.

Two sources of truth. *Noised*: held-out renders with their true masks are noised to the timesteps of a schedule, the
UNet sees them once a timestep with the true caption, and the mask is made from what was captured. Exact, but blind to
what goes wrong in generation (missing or doubled objects). *Generated*: pictures that the generator painted, judged
by a segmenter trained on renders (:mod:`glass_fast.partworld.quality.judge`), which has errors of its own.

Scores are those of :mod:`glass_fast.partworld.quality.mask_scores`. The best of its thresholds stands beside the
configured one: that is hindsight, for comparing settings whose maps are scaled differently.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from glass_fast.config.schema import CaptureConfig, RunConfig, SynthesisConfig
from glass_fast.data.atomic import make_directory, read_json, write_bytes, write_json
from glass_fast.data.spans import join_classes, join_prompt
from glass_fast.partworld.quality.generated import coarsened
from glass_fast.partworld.quality.generated_masks import measure_generated
from glass_fast.partworld.quality.judge import NUM_CLASSES, Judge
from glass_fast.partworld.quality.mask_plot import write_plot
from glass_fast.partworld.quality.mask_scores import THRESHOLDS, Curve, Scores
from glass_fast.partworld.quality.mask_settings import (
    Setting,
    columns,
    find_blocks,
    preset_setting,
    settings,
)
from glass_fast.progress import Progress, StopToken
from glass_fast.synthesis.capture import AttentionMaps
from glass_fast.synthesis.masks import class_maps, soft_maps

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator
    from glass_fast.partworld.renderer import Scene

__all__ = ["FIELDS", "PICTURES", "measure_masks", "measure_noised", "write_plot", "write_table"]

PICTURES = 64
"""Generated pictures of each number of steps."""
FIELDS = (
    "source", "pictures", "factor", "value", "steps", "timesteps", "cross_layers", "self_layers", "tau", "threshold",
    "refine", "class_miou", "standard_error", "background_iou", "attribution", "best_threshold", "best_class_miou",
)  # fmt: skip
_BATCH = 20
_NO_BEST = {"best_threshold": None, "best_class_miou": None}


def mean_maps(captured: dict[int, dict[str, AttentionMaps]], setting: Setting) -> AttentionMaps:
    """Means over the timesteps and blocks of a setting; cross maps of coarse blocks are enlarged (bicubic).

    Args:
        captured: by timestep and block.
        setting: which of them count.
    """
    parts = [captured[timestep] for timestep in setting.timesteps]
    sides = [parts[0][name].self_size for name in setting.cross + setting.self_]
    size = max(sides)
    crosses = [
        cross
        if tuple(cross.shape[2:]) == size
        else F.interpolate(cross, size=size, mode="bicubic", align_corners=False)
        for cross in (torch.stack([part[name].cross for part in parts]).mean(0) for name in setting.cross)
    ]
    selfs = [part[name].self_ for part in parts for name in setting.self_]
    mean = torch.zeros_like(selfs[0])  # type: ignore[arg-type]
    for maps in selfs:
        mean += maps
    return AttentionMaps(
        torch.stack(crosses).mean(0), mean / len(selfs), parts[0][setting.self_[0]].self_size
    )


def captured_blocks(
    generator: Generator,
    scenes: Sequence[Scene],
    wanted: dict[int, set[str]],
    sides: dict[str, int],
    seed: int,
    probe: str,
) -> dict[int, dict[str, AttentionMaps]]:
    """Maps of each wanted timestep and block of noised scenes; a timestep has the same noise for all blocks."""
    from glass_fast.partworld.builder.generator import class_names
    from glass_fast.synthesis.measure import capture_maps

    names = [class_names(scene.caption) for scene in scenes]
    images = np.stack([scene.image for scene in scenes])
    prompts = [join_prompt(scene.caption, part) for scene, part in zip(scenes, names, strict=True)]
    found: dict[int, dict[str, AttentionMaps]] = {}
    for timestep, blocks in wanted.items():
        found[timestep] = {}
        for block in sorted(blocks):
            layers = CaptureConfig(
                self_size=sides[block],
                cross_size=sides[block],
                self_layers=(block + ".",),
                cross_layers=(block + ".",),
                probe=probe,  # type: ignore[arg-type]
            )
            found[timestep][block] = capture_maps(
                generator,
                images,
                prompts=prompts,
                class_prompts=[join_classes(part) for part in names],
                classes=names,
                timesteps=[timestep],
                config=layers,
                seeds=[1000 * (seed + row) + timestep for row in range(len(scenes))],
            )
    return found


def measure_noised(
    generator: Generator,
    config: SynthesisConfig,
    split: str = "test",
    scenes: int = 200,
    progress: Progress | None = None,
    stop: StopToken | None = None,
    *,
    only_preset: bool = False,
) -> list[dict[str, Any]]:
    """Rows of noised held-out renders: the preset, every factor around it, and tau against threshold.

    Args:
        generator: loaded generator.
        config: capture and mask options of the preset.
        split: tuning or test.
        scenes: number of scenes, from the first of the split.
        progress, stop: as everywhere.
        only_preset: leave out what is varied (and its time).

    Returns:
        Rows with the keys :data:`FIELDS`; the first is the preset, the second the ceiling of its tokens.
    """
    from glass_fast.partworld.builder.generator import class_names
    from glass_fast.partworld.renderer import render
    from glass_fast.partworld.shapes import CLASSES

    progress, stop = progress or Progress(), stop or StopToken()
    blocks = find_blocks(generator.unet, config.capture)
    chosen = settings(config, blocks) if not only_preset else [preset_setting(config, blocks)]
    wanted: dict[int, set[str]] = {}
    for setting in chosen:
        for timestep in setting.timesteps:
            wanted.setdefault(timestep, set()).update(setting.cross, setting.self_)
    order = {name: index + 1 for index, name in enumerate(CLASSES)}
    curves = [Curve(setting.masks.threshold) for setting in chosen]
    bound = Scores()
    side = max(blocks.sides[name] for name in blocks.cross + blocks.self_)
    progress.start(scenes, "scenes", "masks of noised renders")
    for start in range(0, scenes, _BATCH):
        stop.check("nothing of this table is saved")
        part = [render(split, index) for index in range(start, min(start + _BATCH, scenes))]
        truth = np.stack([scene.classes for scene in part]).astype(np.uint8)
        present = np.stack([np.bincount(t.ravel(), minlength=NUM_CLASSES + 1) > 0 for t in truth])
        names = [class_names(scene.caption) for scene in part]
        labels = torch.zeros(len(part), max(map(len, names)), dtype=torch.int64)
        for row, words in enumerate(names):
            labels[row, : len(words)] = torch.tensor([order[word] for word in words])
        images = torch.from_numpy(np.stack([scene.image for scene in part]))
        captured = captured_blocks(generator, part, wanted, blocks.sides, start, config.capture.probe)
        for setting, curve in zip(chosen, curves, strict=True):
            raw = class_maps(mean_maps(captured, setting), setting.masks.tau)
            curve.add(soft_maps(raw, setting.masks, images)[0], labels, truth, present)
        bound.add(coarsened(truth, side), truth, present)
        progress.advance(len(part))
    progress.finish()
    rows = [
        {"source": f"noised {split}", **columns(setting), **curve.row()}
        for setting, curve in zip(chosen, curves, strict=True)
    ]
    none = {"steps": None, "timesteps": None, "cross_layers": None, "self_layers": None, "tau": None}
    ceiling = {
        "source": f"noised {split}",
        "factor": "ceiling",
        "value": f"true masks at {side} x {side}",
        **none,
    }
    rows.insert(1, {**ceiling, "threshold": None, "refine": None, **bound.row(), **_NO_BEST})
    for factor, pick in (("threshold", "preset"), ("tau x threshold", "tau")):
        for setting, curve in zip(chosen, curves, strict=True):
            if setting.factor != pick:
                continue
            for threshold in THRESHOLDS:
                value = f"{threshold:g}" if pick == "preset" else f"{setting.masks.tau} x {threshold:g}"
                own = {**columns(setting), "factor": factor, "value": value, "threshold": threshold}
                scored = curve.by[threshold].row()
                rows.append({"source": f"noised {split}", **own, **scored, **_NO_BEST})
    return rows


def measure_masks(
    config: RunConfig,
    judge: Judge | None,
    work: Path,
    scenes: int,
    progress: Progress,
    stop: StopToken,
    split: str = "test",
    pictures: int = PICTURES,
) -> dict[str, Any]:
    """The whole table: noised renders and, with a judge, generated pictures.

    Each of the two is kept in ``work`` when it is done, and read from there when it was made with the same options.

    Args:
        config: generator and synthesis options.
        judge: segmenter trained on renders; None leaves generated pictures out.
        work: folder of this measurement.
        scenes: noised renders.
        progress, stop: as everywhere.
        split: tuning or test.
        pictures: generated pictures of each number of steps.

    Returns:
        ``preset`` and ``ceiling`` (rows of the table) and ``rows`` (all, keys :data:`FIELDS`).

    Raises:
        Stopped: on request; what was finished is kept.
    """
    from glass_fast.models.loading import load_generator

    loaded: list[Generator] = []

    def generator() -> Generator:
        if not loaded:
            loaded.append(load_generator(config.models.generator, torch.device("cpu"), "float32"))
        return loaded[0]

    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "noised": lambda: measure_noised(generator(), config.synthesis, split, scenes, progress, stop)
    }
    if judge is not None:
        seen = judge
        parts["generated"] = lambda: measure_generated(
            generator(), config.synthesis, seen, split, pictures, progress, stop
        )
    make_directory(work)
    asked = {
        "generator": str(config.models.generator),
        "synthesis": config.synthesis.model_dump(mode="json"),
        "sizes": [scenes, pictures],
    }
    rows = []
    for name, make in parts.items():
        file = Path(work) / f"{name}-{split}.json"
        if not file.exists() or read_json(file, "measurement")["asked"] != asked:
            write_json(file, {"asked": asked, "rows": make()})
        rows += read_json(file, "measurement")["rows"]
    return {"preset": rows[0], "ceiling": rows[1], "rows": rows}


def write_table(path: Path, rows: Sequence[dict[str, Any]], note: str) -> None:
    """Rows as CSV below one comment line."""
    text = io.StringIO()
    text.write(f"# {note}\n")
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    make_directory(Path(path).parent)
    write_bytes(path, text.getvalue().encode())
