"""Stage ``decoder``: phase 2 of GLASS for the shipped slot model, saved in half precision beside its slots."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from glass_fast.config.schema import RunConfig
from glass_fast.data.atomic import write_bytes
from glass_fast.errors import ConfigError
from glass_fast.progress import Progress, StopToken


def build_decoder(
    slots: Path,
    generator: Path,
    shards: Path,
    work: Path,
    config: RunConfig,
    progress: Progress,
    stop: StopToken,
) -> None:
    """Train ``slots/decoder`` on the pictures that the slot model was trained on.

    Args:
        slots: model folder of stage ``slots``; only its sub-folder ``decoder`` is written.
        generator: folder of stage ``generator``; the decoder names it by package reference.
        shards: generated pictures.
        work: receives checkpoints, caches and ``losses.json``.
        config: ``decoder``, ``models.encoder``, ``seed`` and ``device`` are read.

    Raises:
        ConfigError: GF-CONFIG-215, slot attention would learn, so that the model's measured masks would change.
        Stopped: on request; the checkpoint is written first.
    """
    from glass_fast.data.shards import open_shards
    from glass_fast.models.diffusion_decoder import FOLDER
    from glass_fast.models.folders import atomic_folder
    from glass_fast.models.glass import Glass
    from glass_fast.models.loading import ModelSource, load_generator
    from glass_fast.training.phase2 import train_decoder

    if config.decoder.slots != "frozen":
        raise ConfigError(
            "GF-CONFIG-215",
            f"decoder.slots={config.decoder.slots!r} for the shipped model; expected 'frozen'",
            "to let slot attention learn use glass-fast train-decoder, which writes a model of its own",
        )
    parts = load_generator(generator, config.device)
    trained = train_decoder(
        config.decoder.model_copy(update={"saved_dtype": "float16"}),
        open_shards(shards),
        Glass.from_pretrained(slots, config.device, config.models.encoder),
        dataclasses.replace(parts, source=ModelSource("partworld:generator", generator)),
        work / "model",
        config.seed,
        config.device,
        stop,
        progress,
        reject=config.synthesis.quality.reject,
    )
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    write_bytes(
        work / "losses.json", json.dumps([[line["step"], line["diffusion"]] for line in lines]).encode()
    )
    with atomic_folder(slots / FOLDER) as folder:
        shutil.copytree(trained / FOLDER, folder, dirs_exist_ok=True)
