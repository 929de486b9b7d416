"""``glass-fast partworld build``: every shipped model, from nothing, in resumable stages.

The stages see pictures and captions only (``renderer.render_pictures``), never a mask.
Layout of the output, which is also that of the shipped weights:

    generator/{tokenizer,text_encoder,unet,vae,scheduler}/   Stable-Diffusion folder (diffusers)
    encoder/      timm folder          captioner/   BLIP folder (transformers)
    slots/        GLASS model trained on images that the generator made
    card.json     recipe, seed, losses, seconds, checksums; README.md says the same for people
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glass_fast.data.atomic import read_json, write_bytes, write_json
from glass_fast.errors import ConfigError
from glass_fast.partworld.builder.card import write_card
from glass_fast.partworld.builder.fitting import Fit
from glass_fast.progress import Progress, StopToken

STAGES = ("tokenizer", "autoencoder", "generator", "encoder", "captioner", "slots")


_FOLDERS = {
    "tokenizer": "generator/tokenizer",
    "autoencoder": "generator/vae",
    "generator": "generator/unet",
    "encoder": "encoder",
    "captioner": "captioner",
    "slots": "slots",
}
_NEEDS = {"generator": ("tokenizer", "autoencoder"), "slots": ("generator", "encoder", "captioner")}


@dataclass(frozen=True)
class Recipe:
    """What one target machine trains."""

    pictures: int
    autoencoder: Fit
    generator: Fit
    encoder: Fit
    captioner: Fit
    slots: dict[str, Any]
    """Overrides of the ``demo`` preset for the default slot model."""
    workers: int = 1


RECIPES = {
    "cpu": Recipe(
        pictures=24000,
        autoencoder=Fit(steps=850, batch_size=64, peak=3e-3, flat=0.5, ema=0.99),
        generator=Fit(steps=6500, batch_size=16, peak=1.2e-3, flat=0.4, ema=0.997),
        encoder=Fit(
            steps=1600, batch_size=64, peak=1.5e-3, warmup=100, flat=0.4, ema=0.995, weight_decay=0.05
        ),
        captioner=Fit(
            steps=1600, batch_size=64, peak=1.5e-3, warmup=100, flat=0.4, ema=0.99, weight_decay=0.02
        ),
        slots={},
    ),
    "gpu": Recipe(
        pictures=60000,
        autoencoder=Fit(steps=2500, batch_size=256, peak=3e-3, flat=0.5, ema=0.995),
        generator=Fit(steps=16000, batch_size=128, peak=1.5e-3, warmup=300, flat=0.4, ema=0.999),
        encoder=Fit(
            steps=6000, batch_size=256, peak=1.5e-3, warmup=300, flat=0.4, ema=0.998, weight_decay=0.05
        ),
        captioner=Fit(
            steps=4000, batch_size=256, peak=1.5e-3, warmup=200, flat=0.4, ema=0.995, weight_decay=0.02
        ),
        slots={},
        workers=8,
    ),
    "smoke": Recipe(
        pictures=600,
        autoencoder=Fit(steps=4, batch_size=4, peak=1e-3, warmup=1),
        generator=Fit(steps=4, batch_size=4, peak=1e-3, warmup=1, ema=0.9),
        encoder=Fit(steps=3, batch_size=4, peak=1e-3, warmup=1),
        captioner=Fit(steps=3, batch_size=4, peak=1e-3, warmup=1),
        slots={
            "captions.limit": 4,
            "synthesis.num": 4,
            "synthesis.batch_size": 2,
            "synthesis.steps": 2,
            "training.steps": 2,
            "training.batch_size": 2,
            "synthesis.quality.reject": [],
        },
    ),
}


def _pictures(work: Path, recipe: Recipe, seed: int, progress: Progress) -> tuple[Any, list[str]]:
    """Render the training pictures once; later stages and later runs read the cache."""
    import numpy as np

    from glass_fast.partworld.renderer import render_pictures

    pixels, text = work / "pictures.npy", work / "captions.json"
    if not text.exists():
        progress.start(recipe.pictures, "scenes", "render")
        images, captions = render_pictures("train", recipe.pictures, seed, recipe.workers)
        np.save(work / "pictures.tmp.npy", images)
        (work / "pictures.tmp.npy").replace(pixels)
        write_bytes(text, json.dumps(captions).encode())
        progress.advance(recipe.pictures)
        progress.finish()
    return np.load(pixels, mmap_mode="r"), json.loads(text.read_text())


def _slots(
    out: Path, work: Path, recipe: Recipe, seed: int, device: str, progress: Progress, stop: StopToken
) -> None:
    """The default model of ``discover``: captions -> synthesis -> training with the models just made."""
    import shutil

    from glass_fast import workflow
    from glass_fast.config.load import load_config

    models = [
        f"models.{name}={json.dumps(str(out / name))}" for name in ("generator", "encoder", "captioner")
    ]
    overrides = [*models, f"seed={seed}", f"device={device}"]
    overrides += [f"{key}={json.dumps(value)}" for key, value in recipe.slots.items()]
    config = load_config("demo", [], overrides).config
    workflow.make_prompts(config, work, progress, stop)
    workflow.make_shards(config, work / "prompts.parquet", work / "shards", progress, stop)
    model = workflow.make_model(config, work / "shards", work / "model", "glass", seed, progress, stop)
    temporary = out / ".slots.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(
        model,
        temporary,
        ignore=shutil.ignore_patterns("checkpoints", "*.jsonl", "tensorboard", "events*", "step-*"),
    )
    # The shipped copy names its encoder by package reference, not by the folder of this build.
    for file in (temporary / "config.json", temporary / "run.json", temporary / "README.md"):
        text = file.read_text(encoding="utf-8").replace(str(out / "encoder"), "partworld:encoder")
        write_bytes(file, text.encode())
    shutil.rmtree(out / "slots", ignore_errors=True)
    temporary.rename(out / "slots")


def build(
    out: Path,
    target: str,
    stages: tuple[str, ...],
    seed: int,
    device: str,
    progress: Progress,
    stop: StopToken,
) -> dict[str, Any]:
    """Train all models (or the named stages) into ``out``; finished stages are skipped.

    Args:
        out: output folder; ``out/work`` holds caches and checkpoints and may be deleted afterwards.
        target: cpu, gpu or smoke.
        stages: subset of :data:`STAGES`; empty means all.
        device: auto, cpu or cuda.

    Returns:
        The card: recipe, seconds and loss curve per stage, checksums.

    Raises:
        ConfigError: unknown target or stage.
        Stopped: stopped on request; run again to continue.
    """
    from glass_fast.models.loading import folder_checksum, resolve_device

    if target not in RECIPES:
        raise ConfigError(
            "GF-CONFIG-203", f"target {target!r} is unknown; expected one of {', '.join(RECIPES)}"
        )
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ConfigError(
            "GF-CONFIG-204", f"stage {unknown[0]!r} is unknown; expected one of {', '.join(STAGES)}"
        )
    out, work, recipe = Path(out), Path(out) / "work", RECIPES[target]
    work.mkdir(parents=True, exist_ok=True)
    place = str(resolve_device(device))
    card_file = out / "card.json"
    card: dict[str, Any] = {"target": target, "seed": seed, "stages": {}}
    if card_file.exists():
        card = read_json(card_file, "build record")
    if (card["target"], card["seed"]) != (target, seed):
        raise ConfigError(
            "GF-CONFIG-205",
            f"{out} holds a build for target {card['target']}, seed {card['seed']}; asked for {target}, {seed}",
            "choose another --out",
        )
    from glass_fast.partworld.builder import autoencoder, captioner, encoder, generator, text

    pictures, captions = _pictures(work, recipe, seed, progress)
    generator_folder = out / "generator"
    common = (seed, place, progress, stop)

    def run_stage(stage: str) -> None:
        if stage == "tokenizer":
            text.build_tokenizer(generator_folder / "tokenizer", captions)
        elif stage == "autoencoder":
            autoencoder.build_autoencoder(
                generator_folder / "vae", work / stage, pictures, recipe.autoencoder, *common
            )
        elif stage == "generator":
            generator.build_generator(
                generator_folder, work / stage, pictures, captions, recipe.generator, *common
            )
        elif stage == "encoder":
            encoder.build_encoder(out / "encoder", work / stage, pictures, recipe.encoder, *common)
        elif stage == "captioner":
            captioner.build_captioner(
                out / "captioner", work / stage, pictures, captions, recipe.captioner, *common
            )
        else:
            _slots(out, work / stage, recipe, *common)

    for stage in stages or STAGES:
        if stage in card["stages"] and (out / _FOLDERS[stage]).is_dir():
            continue
        for needed in _NEEDS.get(stage, ()):
            if not (out / _FOLDERS[needed]).is_dir():
                raise ConfigError(
                    "GF-CONFIG-207",
                    f"stage {stage} needs the result of stage {needed}, which {out} does not hold",
                    f"add --stage {needed}, or name no stage to build all",
                )
        begin = time.monotonic()
        run_stage(stage)
        losses = work / stage / "losses.json"
        plan = getattr(recipe, stage, None)
        card["stages"][stage] = {
            "seconds": round(time.monotonic() - begin, 1),
            "recipe": asdict(plan) if isinstance(plan, Fit) else plan,
            "losses": json.loads(losses.read_text()) if losses.exists() else [],
        }
        card["checksums"] = {
            name: folder_checksum(out / name)
            for name in ("generator", "encoder", "captioner", "slots")
            if (out / name).is_dir()
        }
        write_json(card_file, card)
        write_card(out, card)
    return {key: value for key, value in card.items() if key != "stages"} | {"stages": sorted(card["stages"])}
