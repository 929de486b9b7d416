"""How good captured masks are: PartWorld scenes with known masks, noised, captured at several timesteps.

    python benchmarks/mask_quality.py --split test --out benchmarks/results/mask_quality_test.csv
    python benchmarks/mask_quality.py --split tuning --sweep          # how the preset's values were chosen

Generated images have no true masks, so this is the closest exact measurement; it does not see what goes wrong in
generation (missing or doubled objects). Scores: mean over the classes present of the IoU of the class mask, then
over scenes; IoU of background; share of true foreground pixels whose strongest class is the right one (scenes with
two or more classes; uncertain pixels count as background). ``ceiling`` is the true mask reduced to the token grid
by majority and enlarged again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glass_fast.config.load import load_config
from glass_fast.config.schema import CaptureConfig
from glass_fast.data.label_sets import label_set
from glass_fast.kernels.mask_labels import mask_labels
from glass_fast.models.loading import load_generator
from glass_fast.partworld.builder.generator import class_names
from glass_fast.partworld.renderer import render
from glass_fast.synthesis.masks import soft_maps
from glass_fast.synthesis.measure import capture_maps

FIELDS = (
    "split",
    "scenes",
    "timesteps",
    "cross_layers",
    "self_layers",
    "tau",
    "threshold",
    "class_miou",
    "background_iou",
    "attribution",
)


def scores(masks: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Scores of label masks (B, H, W) against true class maps; 255 counts as background."""
    masks = np.where(masks == 255, 0, masks)
    per_scene, background, right, total = [], [], 0, 0
    for found, true in zip(masks, truth, strict=True):
        present = np.unique(true[true > 0])
        ious = [((found == c) & (true == c)).sum() / ((found == c) | (true == c)).sum() for c in present]
        per_scene.append(np.mean(ious))
        background.append(((found == 0) & (true == 0)).sum() / ((found == 0) | (true == 0)).sum())
        if len(present) > 1:
            right += ((found == true) & (true > 0)).sum()
            total += ((found > 0) & (true > 0)).sum()
    return {
        "class_miou": float(np.mean(per_scene)),
        "background_iou": float(np.mean(background)),
        "attribution": float(right / max(total, 1)),
    }


def ceiling(truth: np.ndarray, grid: int) -> dict[str, float]:
    """Scores of the true masks after majority reduction to ``grid`` tokens."""
    side = truth.shape[1] // grid
    blocks = (
        truth.reshape(len(truth), grid, side, grid, side)
        .transpose(0, 1, 3, 2, 4)
        .reshape(len(truth), grid, grid, -1)
    )
    coarse = np.stack([[[np.bincount(cell).argmax() for cell in row] for row in scene] for scene in blocks])
    return scores(coarse.repeat(side, 1).repeat(side, 2), truth)


def capture(
    generator: Any, scenes: list[Any], timesteps: list[int], layers: CaptureConfig, batch: int = 25
) -> list[Any]:
    """Maps of all scenes in batches."""
    maps = []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        names = [class_names(scene.caption) for scene in part]
        maps.append(
            capture_maps(
                generator,
                np.stack([scene.image for scene in part]),
                prompts=[f"{scene.caption}; {' '.join(n)}" for scene, n in zip(part, names, strict=True)],
                class_prompts=[" ".join(n) for n in names],
                classes=names,
                timesteps=timesteps,
                config=layers,
                seeds=list(range(start, start + len(part))),
            )
        )
    return maps


def measure(
    maps: list[Any], scenes: list[Any], tau: int, thresholds: list[float], batch: int = 25
) -> list[dict[str, Any]]:
    """One row of scores per threshold."""
    order = {name: i + 1 for i, name in enumerate(label_set("partworld").names)}
    truth = np.stack([scene.classes for scene in scenes])
    soft = [soft_maps(m, tau)[0].float() / 255 for m in maps]
    rows = []
    for threshold in thresholds:
        found = []
        for index, part in enumerate(soft):
            batch_scenes = scenes[index * batch : index * batch + len(part)]
            labels = torch.zeros(part.shape[:2], dtype=torch.uint8)
            for i, scene in enumerate(batch_scenes):
                ids = [order[n] for n in class_names(scene.caption)]
                labels[i, : len(ids)] = torch.tensor(ids, dtype=torch.uint8)
            found.append(
                mask_labels(part, labels, truth.shape[1:], threshold, max(threshold - 0.1, 0.0)).numpy()
            )
        rows.append({"tau": tau, "threshold": threshold} | scores(np.concatenate(found), truth))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="partworld:generator")
    parser.add_argument("--split", default="test", choices=("tuning", "test"))
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--sweep", action="store_true", help="layers x tau x thresholds x single timesteps")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    preset = load_config("demo", [], []).config.synthesis
    generator = load_generator(options.generator, torch.device("cpu"), "float32")
    scenes = [render(options.split, index) for index in range(options.scenes)]
    up, up_last, down = "up_blocks.1.attentions.0", "up_blocks.1.attentions.1", "down_blocks.0"
    chosen = (preset.capture.cross_layers, preset.capture.self_layers)
    combinations = (
        [chosen]
        if not options.sweep
        else list(
            itertools.product(
                ((down, up), (down,), (up,), (down, up, up_last)),
                ((up,), (down, up, up_last)),
            )
        )
    )
    times = [[300, 450, 600]] + [[t] for t in (150, 300, 450, 600, 750, 900)]
    taus = [preset.masks.tau] if not options.sweep else [0, 1, 2, 4]
    thresholds = (
        [preset.masks.threshold] if not options.sweep else [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6]
    )
    rows = [
        dict(
            split=options.split,
            scenes=len(scenes),
            timesteps="-",
            cross_layers="ceiling at 16x16",
            self_layers="-",
            tau="-",
            threshold="-",
            **ceiling(np.stack([s.classes for s in scenes]), 16),
        )
    ]
    for timesteps in times if not options.sweep else times[:1]:
        for cross, self_ in combinations:
            layers = preset.capture.model_copy(update={"cross_layers": cross, "self_layers": self_})
            maps = capture(generator, scenes, timesteps, layers)
            for tau in taus:
                for row in measure(maps, scenes, tau, thresholds):
                    rows.append(
                        {
                            "split": options.split,
                            "scenes": len(scenes),
                            "timesteps": "+".join(map(str, timesteps)),
                            "cross_layers": "+".join(cross or ("all",)),
                            "self_layers": "+".join(self_ or ("all",)),
                            **row,
                        }
                    )
    shown = sorted(rows, key=lambda r: -r["class_miou"])[:12] if options.sweep else rows
    for row in shown:
        print("  ".join(f"{row[f]:.3f}" if isinstance(row[f], float) else str(row[f]) for f in FIELDS))
    if options.out:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            source = f"generator {generator.checksum[:16]}, commit {commit}"
            file.write(f"# {source}, {platform.machine()} CPU, torch {torch.__version__}\n")
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(
                {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
            )


if __name__ == "__main__":
    main()
