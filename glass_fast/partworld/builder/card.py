"""The model card of a PartWorld build, written from its card.json and the folders themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glass_fast.data.atomic import write_bytes

_TEXT = """# PartWorld models

Tiny models trained from nothing on rendered PartWorld pictures and their captions. They exist so that the whole of
glass-fast can run, be tested and be shown without anybody's pretrained weights; they know ten drawn object classes
and nothing about photographs.

| folder | what | format | parameters | bytes |
|---|---|---|---|---|
{folders}

Data: pictures and captions of the renderer's `train` split, seed {seed}. **No stage reads a class, instance or part
mask**: the builder gets pictures and captions only, and a test runs it with masks that fail when read. The slot
model is trained on images that `generator/` made and on masks captured from its attention.

Rebuild with `glass-fast partworld build --target {target} --seed {seed} --out DIR`.

| stage | steps | batch | seconds | first loss | last loss |
|---|---|---|---|---|---|
{stages}

{note}

Checksums (sha256 over names and file hashes):

{checksums}

Licence: Apache-2.0, as the code.
"""

_KINDS = {
    "generator": "text to image (CLIP text encoder without layers, UNet, VAE; v-prediction)",
    "encoder": "picture features (ViT, masked autoencoding)",
    "captioner": "picture to caption (BLIP)",
    "slots": "object discovery (slot attention and MLP decoder, GLASS loss)",
}
_FORMATS = {"generator": "diffusers", "encoder": "timm", "captioner": "transformers", "slots": "glass-fast"}


def _parameters(folder: Path) -> int:
    import math

    import safetensors

    total = 0
    for file in folder.rglob("*.safetensors"):
        with safetensors.safe_open(file, "np") as stored:
            total += sum(math.prod(stored.get_slice(key).get_shape()) for key in stored.keys())  # noqa: SIM118 - not a dict
    return total


def write_card(out: Path, card: dict[str, Any]) -> Path:
    """Write ``out/README.md`` from the build's record; returns its path."""
    folders, stages = [], []
    for name, kind in _KINDS.items():
        folder = out / name
        if folder.is_dir():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            folders.append(f"| `{name}/` | {kind} | {_FORMATS[name]} | {_parameters(folder):,} | {size:,} |")
    for name, entry in card["stages"].items():
        recipe, losses = entry["recipe"] or {}, entry["losses"]
        ends = (f"{losses[0][1]:.4g}", f"{losses[-1][1]:.4g}") if losses else ("-", "-")
        steps, batch = recipe.get("steps", "-"), recipe.get("batch_size", "-")
        stages.append(f"| {name} | {steps} | {batch} | {entry['seconds']:.0f} | {ends[0]} | {ends[1]} |")
    text = _TEXT.format(
        folders="\n".join(folders),
        stages="\n".join(stages),
        seed=card["seed"],
        target=card["target"],
        note=card.get("note", ""),
        checksums="\n".join(f"- `{name}`: `{value}`" for name, value in card.get("checksums", {}).items()),
    )
    path = out / "README.md"
    write_bytes(path, text.encode())
    return path
