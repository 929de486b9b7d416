"""PartWorld scenes as a folder, in the layout that ``glass_fast.data.datasets`` reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from glass_fast.data.atomic import write_bytes
from glass_fast.partworld.renderer import render
from glass_fast.partworld.shapes import CLASSES

RECORD = "captions.json"


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_scenes(
    out: Path, split: str, num: int, *, seed: int = 0, start: int = 0, masks: bool = True
) -> Path:
    """Write scenes ``start .. start + num`` of a split.

    Writes images/ID.png, captions.json (ID -> caption) and labels.json; with ``masks`` also
    classes/ID.png (8 bit), instances/ID.png (16 bit) and parts/ID.png (16 bit). captions.json is written
    last and marks the folder complete; a folder that already holds it is returned as it is.

    Returns:
        ``out``.
    """
    out = Path(out)
    if (out / RECORD).exists() and len(json.loads((out / RECORD).read_text())) == num:
        return out
    folders = ("images", "classes", "instances", "parts") if masks else ("images",)
    for name in folders:
        (out / name).mkdir(parents=True, exist_ok=True)
    captions = {}
    for index in range(start, start + num):
        scene = render(split, index, seed)
        key = f"{split}-{index:06d}"
        captions[key] = scene.caption
        planes = {"images": scene.image}
        if masks:
            planes["classes"] = scene.classes.astype(np.uint8)
            planes["instances"] = scene.instances.astype(np.uint16)
            planes["parts"] = scene.parts.astype(np.uint16)
        for name in folders:
            (out / name / f"{key}.png").write_bytes(_png(planes[name]))
    write_bytes(out / "labels.json", json.dumps(list(CLASSES)).encode())
    write_bytes(out / RECORD, json.dumps(captions, indent=1).encode())
    return out
