"""``glass-fast partworld build``: every shipped model, from nothing, in resumable stages.

The stages see pictures and captions only (``renderer.render_pictures``), never a mask.
Layout of the output, which is also that of the shipped weights:

    generator/{tokenizer,text_encoder,unet,vae,scheduler}/   Stable-Diffusion folder (diffusers)
    encoder/      timm folder          captioner/   BLIP folder (transformers)
    slots/        GLASS model trained on images that the generator made
    slots/decoder/   its diffusion decoder (phase 2)
    card.json     plan, seed, losses, seconds, machine, checksums, qualities; README.md says the same for people
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from glass_fast.data.atomic import read_json, write_bytes, write_json
from glass_fast.errors import ConfigError
from glass_fast.partworld.builder.card import write_card
from glass_fast.partworld.builder.targets import Target, load_target
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    from glass_fast.config.schema import RunConfig

STAGES = ("tokenizer", "autoencoder", "generator", "encoder", "captioner", "slots", "decoder")


_FOLDERS = {
    "tokenizer": "generator/tokenizer",
    "autoencoder": "generator/vae",
    "generator": "generator/unet",
    "encoder": "encoder",
    "captioner": "captioner",
    "slots": "slots",
    "decoder": "slots/decoder",
}
_NEEDS = {
    "generator": ("tokenizer", "autoencoder"),
    "slots": ("generator", "encoder", "captioner"),
    "decoder": ("generator", "encoder", "slots"),
}


def _pictures(work: Path, target: Target, seed: int, progress: Progress) -> tuple[Any, list[str]]:
    """Render the training pictures once; later stages and later runs read the cache."""
    import numpy as np

    from glass_fast.partworld.renderer import render_pictures

    pixels, text = work / "pictures.npy", work / "captions.json"
    if not text.exists():
        progress.start(target.pictures, "scenes", "render")
        images, captions = render_pictures("train", target.pictures, seed, target.workers)
        np.save(work / "pictures.tmp.npy", images)
        (work / "pictures.tmp.npy").replace(pixels)
        write_bytes(text, json.dumps(captions).encode())
        progress.advance(target.pictures)
        progress.finish()
    return np.load(pixels, mmap_mode="r"), json.loads(text.read_text())


def demo_config(models: Path, seed: int, device: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """The ``demo`` preset on the models of a build.

    Args:
        models: output folder of a build.
        overrides: dotted keys of the configuration and their values.
    """
    from glass_fast.config.load import load_config

    settings: dict[str, Any] = {
        f"models.{name}": str(models / name) for name in ("generator", "encoder", "captioner")
    }
    settings |= {"seed": seed, "device": device} | (overrides or {})
    return load_config("demo", [], [f"{key}={json.dumps(value)}" for key, value in settings.items()]).config


def _slots(out: Path, work: Path, config: RunConfig, progress: Progress, stop: StopToken) -> None:
    """The default model of ``discover``: captions -> synthesis -> training with the models just made."""
    from glass_fast import workflow

    workflow.make_prompts(config, work, progress, stop)
    workflow.make_shards(config, work / "prompts.parquet", work / "shards", progress, stop)
    model = workflow.make_model(config, work / "shards", work / "model", "glass", config.seed, progress, stop)
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


def machine() -> dict[str, Any]:
    """What a stage ran on: processor (and card), threads and library versions; no host name."""
    import platform

    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text(errors="replace"))
        name = found[1].strip() if found else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


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
        target: a file of ``partworld/targets``: cpu, gpu or smoke.
        stages: subset of :data:`STAGES`; empty means all.
        device: auto, cpu or cuda.

    Returns:
        The card without its stages' details: target, seed, checksums, names of finished stages.

    Raises:
        ConfigError: unknown target or stage.
        Stopped: stopped on request; run again to continue.
    """
    from glass_fast.models.loading import folder_checksum, resolve_device

    plan = load_target(target)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise ConfigError(
            "GF-CONFIG-204", f"stage {unknown[0]!r} is unknown; expected one of {', '.join(STAGES)}"
        )
    out, work = Path(out), Path(out) / "work"
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
    from glass_fast.partworld.builder import autoencoder, captioner, decoder, encoder, generator, text

    pictures, captions = _pictures(work, plan, seed, progress)
    generator_folder = out / "generator"
    common = (seed, place, progress, stop)
    config = demo_config(out, seed, place, plan.slots | plan.decoder)

    def run_stage(stage: str) -> None:
        if stage == "tokenizer":
            text.build_tokenizer(generator_folder / "tokenizer", captions)
        elif stage == "autoencoder":
            autoencoder.build_autoencoder(
                generator_folder / "vae", work / stage, pictures, plan.autoencoder, *common
            )
        elif stage == "generator":
            generator.build_generator(
                generator_folder, work / stage, pictures, captions, plan.generator, *common
            )
        elif stage == "encoder":
            encoder.build_encoder(out / "encoder", work / stage, pictures, plan.encoder.fit, *common)
        elif stage == "captioner":
            captioner.build_captioner(
                out / "captioner", work / stage, pictures, captions, plan.captioner.fit, *common
            )
        elif stage == "slots":
            _slots(out, work / stage, config, progress, stop)
        else:
            decoder.build_decoder(
                out / "slots",
                generator_folder,
                work / "slots" / "shards",
                work / stage,
                config,
                progress,
                stop,
            )

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
        # A stopped stage leaves its seconds behind, so that the card tells the time of all its runs.
        clock = work / stage / "seconds.json"
        spent = json.loads(clock.read_text()) if clock.exists() else 0.0
        begin = time.monotonic()
        try:
            run_stage(stage)
        finally:
            spent += time.monotonic() - begin
            clock.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(clock, json.dumps(round(spent, 1)).encode())
        losses = work / stage / "losses.json"
        recipe = getattr(plan, stage, None)
        card["stages"][stage] = {
            "seconds": round(spent, 1),
            "recipe": recipe.model_dump(mode="json") if isinstance(recipe, BaseModel) else recipe,
            "losses": json.loads(losses.read_text()) if losses.exists() else [],
            "machine": machine(),
        }
        card["checksums"] = {
            name: folder_checksum(out / name)
            for name in ("generator", "encoder", "captioner", "slots", "slots/decoder")
            if (out / name).is_dir()
        }
        write_json(card_file, card)
        write_card(out, card)
    return {key: value for key, value in card.items() if key != "stages"} | {"stages": sorted(card["stages"])}
