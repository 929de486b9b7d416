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

| stage | steps | batch | seconds | machine | first loss | last loss |
|---|---|---|---|---|---|---|
{stages}

{note}

Loss curves, sheets of 64 generated pictures, captured masks, pictures painted from slots and the
plot of mask quality lie in `docs/images/partworld/` of the repository.

{qualities}Checksums (sha256 over names and file hashes):

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


def _machine(machine: dict[str, Any] | None) -> str:
    if not machine:
        return "-"
    return (
        f"{machine['card'] or machine['processor']}, {machine['threads']} thread(s), torch {machine['torch']}"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _share(entry: dict[str, Any]) -> str:
    return (
        f"{_percent(entry['share'])} ({entry['count']} of {entry['total']}; "
        f"95 % interval {100 * entry['low']:.0f}-{100 * entry['high']:.0f})"
    )


def _qualities(found: dict[str, Any] | None) -> str:
    """Table of ``glass-fast partworld measure``; nothing before it has run."""
    if not found:
        return ""
    captioner, generator, encoder = found["captioner"], found["generator"], found["encoder"]
    probe, closer = encoder["probe"], found["slots"]["closer"]
    guard = generator["guard"]["as_run"]
    rows = [
        ("captioner: class precision, held-out scenes", _share(captioner["precision"])),
        ("captioner: class recall", _share(captioner["recall"])),
        (
            "generator: class recognised by the judge, one-class prompts",
            _share(generator["recognition"]["single"]["all"]),
        ),
        (
            "generator: both classes recognised, two-class prompts",
            _share(generator["recognition"]["pair"]["all"]),
        ),
        (
            "generator: all three classes, three-class prompts",
            _share(generator["recognition"]["triple"]["all"]),
        ),
        (
            "generator: recognised classes that are drawn twice",
            _share(generator["recognition"]["pair"]["doubled"]),
        ),
        *_mask_rows(found["masks"]),
        (
            "masks of generated pictures against the judge: class mIoU",
            _percent(generator["masks"]["all"]["class_miou"]),
        ),
        ("absence guard, dropped classes: precision", _share(guard["dropped"]["precision"])),
        ("absence guard, dropped classes: recall", _share(guard["dropped"]["recall"])),
        (
            "absence guard with the area rule (flag class_missing): precision",
            _share(guard["flagged"]["precision"]),
        ),
        ("absence guard with the area rule: recall", _share(guard["flagged"]["recall"])),
        ("encoder: linear probe, class of an object", _share(probe["encoder"]["object"]["accuracy"])),
        ("encoder: linear probe, class of an object's token", _share(probe["encoder"]["token"]["accuracy"])),
        ("the same probe on mean colours alone: object", _share(probe["mean_colours"]["object"]["accuracy"])),
        ("the same probe on mean colours alone: token", _share(probe["mean_colours"]["token"]["accuracy"])),
        *(
            (f"{name}: objects split into parts", _share(entry["split"]))
            for name, entry in encoder["part_whole"].items()
        ),
        ("generation from slots: closer to its own source than to another scene", _share_of(closer)),
        (
            "judge on held-out renders: class mIoU",
            _percent(found["judge"]["renders"]["segmenter"]["class_miou"]),
        ),
    ]
    lines = ["| quality | reached |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    sizes = found["sizes"]
    return (
        "## Qualities\n\n"
        "Measured by `glass-fast partworld measure` on scenes that no model was trained on; which choices were made\n"
        "with a look at them is told in `docs/partworld.md`. The judge is a small network trained on renders and\n"
        "their masks; no shipped model has seen it or them. All counts, curves and per-class figures are in\n"
        f"`card.json` ({sizes['images']} pictures a class, {sizes['scenes']} scenes).\n\n"
        + "\n".join(lines)
        + "\n\n"
    )


def _mask_rows(masks: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("masks of noised renders: class mIoU", _percent(masks["preset"]["class_miou"])),
        ("masks of noised renders: background IoU", _percent(masks["preset"]["background_iou"])),
        (
            f"the same, {masks['ceiling']['value']} (true masks on the token grid)",
            _percent(masks["ceiling"]["class_miou"]),
        ),
    ]


def _share_of(closer: dict[str, Any]) -> str:
    patch, pooled = closer["patch"]["share"], closer["pooled"]["share"]
    return f"{_percent(patch)} by patch features, {_percent(pooled)} pooled ({closer['images']} scenes)"


def write_card(out: Path, card: dict[str, Any]) -> Path:
    """Write ``out/README.md`` from the build's record; returns its path."""
    folders, stages = [], []
    for name, kind in _KINDS.items():
        folder = out / name
        if folder.is_dir():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            folders.append(f"| `{name}/` | {kind} | {_FORMATS[name]} | {_parameters(folder):,} | {size:,} |")
    for name, entry in card["stages"].items():
        losses = entry["losses"]
        recipe = (entry["recipe"] or {}).get("fit", {})
        ends = (f"{losses[0][1]:.4g}", f"{losses[-1][1]:.4g}") if losses else ("-", "-")
        steps, batch = recipe.get("steps", losses[-1][0] if losses else "-"), recipe.get("batch_size", "-")
        stages.append(
            f"| {name} | {steps} | {batch} | {entry['seconds']:.0f} | {_machine(entry.get('machine'))} "
            f"| {ends[0]} | {ends[1]} |"
        )
    text = _TEXT.format(
        folders="\n".join(folders),
        stages="\n".join(stages),
        seed=card["seed"],
        target=card["target"],
        note=card.get("note", ""),
        qualities=_qualities(card.get("qualities")),
        checksums="\n".join(f"- `{name}`: `{value}`" for name, value in card.get("checksums", {}).items()),
    )
    path = out / "README.md"
    write_bytes(path, text.encode())
    return path
