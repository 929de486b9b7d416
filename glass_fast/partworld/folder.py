"""PartWorld scenes as a folder, in the layout that ``glass_fast.data.datasets`` reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from glass_fast.data.atomic import read_json, write_bytes, write_json
from glass_fast.errors import ConfigError
from glass_fast.partworld.renderer import render
from glass_fast.partworld.shapes import CLASSES

RECORD = "scenes.json"
STARTED = "scenes.started.json"


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_scenes(
    out: Path, split: str, num: int, *, seed: int = 0, start: int = 0, masks: bool = True
) -> Path:
    """Write scenes ``start .. start + num`` of a split.

    Writes images/ID.png, captions.json (ID -> caption) and labels.json; with ``masks`` also
    classes/ID.png (8 bit), instances/ID.png (16 bit) and parts/ID.png (16 bit). scenes.json names what was
    written and is there only when all is; a folder that holds the same scenes is returned as it is.

    Returns:
        ``out``.

    Raises:
        ConfigError: the folder holds other scenes or other files.
    """
    out = Path(out)
    record = {"split": split, "num": num, "seed": seed, "start": start, "masks": masks}
    if (out / RECORD).exists():
        found = read_json(out / RECORD, "scene record")
        if found == record:
            return out
        raise ConfigError(
            "GF-CONFIG-206",
            f"{out} holds scenes {found}; asked for {record}",
            "choose another folder, or delete this one",
        )
    if (out / "images").is_dir() and any(out.joinpath("images").iterdir()):
        started = out / STARTED
        if not started.exists() or read_json(started, "scene record") != record:
            raise ConfigError(
                "GF-CONFIG-206",
                f"{out}/images holds other files; expected an empty folder",
                "choose another folder",
            )
    folders = ("images", "classes", "instances", "parts") if masks else ("images",)
    for name in folders:
        (out / name).mkdir(parents=True, exist_ok=True)
    write_json(out / STARTED, record)
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
    write_bytes(out / "captions.json", json.dumps(captions, indent=1).encode())
    (out / STARTED).rename(out / RECORD)
    return out
