"""The stages of the chain as functions of a configuration: captions, synthesize, train, evaluate, discover.

Each turns artefacts on disk into an artefact on disk. The command line calls them one by one; ``glass_fast.chain``
calls them in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.config.schema import CaptionsConfig, DatasetConfig, RunConfig, TrainingConfig
from glass_fast.errors import ConfigError, DataError
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    pass

CAPTION_SCENES = 100_000
"""First training scene that ``captions.images: partworld:train`` shows; the shipped models never saw these."""
TRUTH_SCENES = 200_000
"""First training scene of the upper bound's annotated set."""
DISCOVER_SCENES = 50_000
"""First scene of the pictures that ``discover.images: partworld:test`` uses (no scored scene is among them)."""
_PARTWORLD = "partworld:"


def make_prompts(config: RunConfig, out: Path, progress: Progress, stop: StopToken) -> dict[str, Any]:
    """Captions stage: writes ``out/prompts.parquet``; returns its statistics."""
    from glass_fast.captions import build_prompts
    from glass_fast.data.label_sets import label_set
    from glass_fast.models.loading import load_tokenizer

    settings = _with_pictures(config.captions, out)
    labels = label_set(settings.vocabulary)
    return build_prompts(
        settings,
        labels,
        out,
        config.seed,
        config.device,
        config.models.captioner,
        progress=progress,
        stop=stop,
        tokenizer=load_tokenizer(config.models.generator),
    )


def _with_pictures(captions: CaptionsConfig, out: Path) -> CaptionsConfig:
    """Turn ``partworld:SPLIT`` into a folder of rendered pictures without masks."""
    if captions.source != "captioner" or not (captions.images or "").startswith(_PARTWORLD):
        return captions
    from glass_fast.partworld.folder import write_scenes

    split = str(captions.images).removeprefix(_PARTWORLD)
    count = captions.limit or 400
    folder = Path(out) / "data" / f"captions-{split}-{count}"
    write_scenes(folder, split, count, start=CAPTION_SCENES, masks=False)
    return captions.model_copy(update={"images": str(folder / "images")})


def make_shards(
    config: RunConfig, prompts: Path, out: Path, progress: Progress, stop: StopToken, resume: bool = True
) -> dict[str, Any]:
    """Synthesis stage: writes shards to ``out``; returns its statistics."""
    from glass_fast.data.prompts import read_prompt_metadata, read_prompts
    from glass_fast.models.loading import load_generator, resolve_device
    from glass_fast.synthesis.job import synthesize

    _may_continue(out, resume)
    rows = read_prompts(prompts)
    labels = tuple(read_prompt_metadata(prompts)["labels"])
    generator = load_generator(config.models.generator, resolve_device(config.device), config.synthesis.dtype)
    return synthesize(rows, labels, config.synthesis, generator, out, config.seed, progress, stop)


def _may_continue(out: Path, resume: bool) -> None:
    if not resume and Path(out).is_dir() and any(Path(out).iterdir()):
        raise ConfigError(
            "GF-CONFIG-210",
            f"{out} is not empty and --no-resume was given",
            "choose another --out or allow --resume",
        )


def arm_training(config: RunConfig, arm: str) -> TrainingConfig:
    """Training options of one arm: its loss, its tuned learning rate, its source of masks."""
    rates: dict[str, float] = {str(name): rate for name, rate in config.learning_rates.items()}
    changes: dict[str, Any] = {"learning_rate": rates.get(arm, config.training.learning_rate)}
    if arm == "upper_bound":
        changes |= {"loss": "glass", "mask_source": "ground_truth"}
    else:
        changes |= {"loss": arm, "mask_source": "captured"}
    return TrainingConfig.model_validate(config.training.model_dump() | changes)


def make_model(
    config: RunConfig,
    shards: Path,
    out: Path,
    arm: str,
    seed: int,
    progress: Progress,
    stop: StopToken,
    resume: bool = True,
) -> Path:
    """Training stage for one arm (unguided, semantic, glass or upper_bound) and seed; returns the model folder."""
    from glass_fast.data.shards import open_shards
    from glass_fast.models.loading import load_encoder, resolve_device
    from glass_fast.training.trainer import train

    if arm not in ("unguided", "semantic", "glass", "upper_bound"):
        raise ConfigError(
            "GF-CONFIG-211", f"loss {arm!r} is unknown; expected unguided, semantic, glass or upper_bound"
        )
    _may_continue(out, resume)
    device = resolve_device(config.device)
    encoder = load_encoder(config.models.encoder, device, config.training.resolution)
    training = arm_training(config, arm)
    if arm == "upper_bound" and config.captions.vocabulary != "partworld":
        raise ConfigError(
            "GF-CONFIG-213",
            f"upper_bound with captions.vocabulary={config.captions.vocabulary!r}; it exists for PartWorld "
            "alone, whose scenes come with true masks",
            "leave upper_bound out of losses",
        )
    data = _truth(config.synthesis.num) if arm == "upper_bound" else open_shards(shards)
    return train(
        training, data, encoder, out, seed, device, stop, progress, reject=config.synthesis.quality.reject
    )


def _truth(num: int) -> Any:
    """Rendered scenes with their true object masks: what the upper bound alone may see."""
    import numpy as np

    from glass_fast.data.label_sets import label_set
    from glass_fast.partworld.renderer import render
    from glass_fast.training.data import GroundTruthData

    scenes = [render("train", TRUTH_SCENES + index) for index in range(num)]
    return GroundTruthData(
        images=np.stack([scene.image for scene in scenes]),
        instances=np.stack([scene.instances for scene in scenes]),
        labels=label_set("partworld").names,
    )


def make_decoder(
    config: RunConfig,
    pictures: Path,
    model: str,
    out: Path,
    seed: int,
    progress: Progress,
    stop: StopToken,
    resume: bool = True,
) -> Path:
    """Phase 2: a copy of ``model`` with a diffusion decoder trained on shards or plain pictures; returns ``out``."""
    from glass_fast.data.shards import open_shards
    from glass_fast.models.glass import Glass
    from glass_fast.models.loading import load_generator, resolve_device, resolve_model
    from glass_fast.training.latents import PictureFolder
    from glass_fast.training.phase2 import train_decoder

    _may_continue(out, resume)
    folder = resolve_model(model).path
    if folder is not None and folder == Path(out).resolve():
        raise ConfigError(
            "GF-CONFIG-214",
            f"--out is the folder of the model ({folder}); phase 2 writes a full model folder of its own",
            "choose another --out",
        )
    device = resolve_device(config.device)
    is_shards = (Path(pictures) / "manifest.json").exists()
    return train_decoder(
        config.decoder,
        open_shards(pictures) if is_shards else PictureFolder(pictures),
        Glass.from_pretrained(model, device),
        load_generator(config.models.decoder or config.models.generator, device),
        out,
        seed,
        device,
        stop,
        progress,
        reject=config.synthesis.quality.reject,
    )


def generate_pictures(
    config: RunConfig, model: str, images: Sequence[Path], out: Path, progress: Progress, stop: StopToken
) -> dict[str, Any]:
    """Pictures -> slots -> new pictures with a sheet in ``out``; returns the record without its list of pictures."""
    from glass_fast.generation.pictures import generate
    from glass_fast.models.diffusion_decoder import load_decoder
    from glass_fast.models.glass import Glass

    loaded = Glass.from_pretrained(model, device=config.device)
    decoder = load_decoder(model, loaded, config.device)
    record = generate(
        loaded, decoder, list(images), out, config.decoder.sampling, config.seed, progress, stop
    )
    return {key: value for key, value in record.items() if key != "pictures"}


def dataset_folder(dataset: DatasetConfig, out: Path) -> DatasetConfig:
    """Render ``partworld:SPLIT`` into ``out/data`` and point the data set there; others are returned as they are."""
    if not dataset.path.startswith(_PARTWORLD):
        return dataset
    from glass_fast.partworld.folder import write_scenes

    split = dataset.path.removeprefix(_PARTWORLD)
    count = dataset.limit or 500
    folder = write_scenes(Path(out) / "data" / f"{split}-{count}", split, count)
    return dataset.model_copy(update={"path": str(folder)})


def score(
    config: RunConfig,
    model: str,
    dataset: DatasetConfig,
    seed: int,
    progress: Progress,
    stop: StopToken,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluation stage for one model folder or baseline (kmeans, grid, random_slots)."""
    import tempfile

    from glass_fast.data.atomic import read_json
    from glass_fast.data.datasets import open_dataset
    from glass_fast.evaluation.baselines import build_baseline
    from glass_fast.evaluation.evaluate import evaluate
    from glass_fast.models.glass import Glass
    from glass_fast.models.loading import folder_checksum, load_encoder, resolve_device, resolve_model

    device = resolve_device(config.device)
    info: dict[str, Any] = {"ref": model if ":" in model else Path(model).name}
    trained_with = None
    if model in ("kmeans", "grid", "random_slots"):
        encoder = load_encoder(config.models.encoder, device, config.training.resolution)
        predictor = build_baseline(model, encoder, config.training, seed)
    else:
        predictor = Glass.from_pretrained(model, device=str(device))
        path = resolve_model(model).path
        if path:
            info["checksum"] = folder_checksum(path)
            if (path / "run.json").exists():
                trained_with = read_json(path / "run.json", "run record").get("seed")
    with tempfile.TemporaryDirectory() as temporary:
        source = dataset_folder(dataset, out or Path(temporary))
        records = open_dataset(source)
        return evaluate(
            predictor,
            records,
            config.evaluation.protocols,
            batch_size=config.evaluation.batch_size,
            seed=seed,
            limit=dataset.limit,
            progress=progress,
            stop=stop,
            training_seed=trained_with,
            model_info=info,
            name=Path(model).name if "/" in model else model,
            dataset_info=dataset.model_dump(mode="json")
            | {"path": dataset.path if ":" in dataset.path else Path(dataset.path).name},
        )


def score_text(result: dict[str, Any]) -> str:
    """The numbers of one evaluation with the fields of each protocol beside them."""
    lines = [
        f"model {result['model']['name']}, data {result['dataset']['name']}, {result['counts']['images']} images"
    ]
    for name, entry in result["protocols"].items():
        fields = ", ".join(f"{key}={value}" for key, value in entry["fields"].items() if key != "name")
        lines.append(f"protocol {name} ({fields})")
        for metric, value in entry["metrics"].items():
            lines.append(
                f"  {metric:<24} {value:.4f}" if isinstance(value, float) else f"  {metric:<24} {value}"
            )
    return "\n".join(lines)


def find_objects(
    config: RunConfig, model: str, images: Sequence[Path], out: Path, progress: Progress, stop: StopToken
) -> dict[str, Any]:
    """Discovery stage: label maps, JSONL and overlays in ``out``."""
    from glass_fast.engine.discover import discover
    from glass_fast.models.glass import Glass

    return discover(
        Glass.from_pretrained(model, device=config.device),
        list(images),
        out,
        config.discover,
        progress=progress,
        stop=stop,
    )


def discover_pictures(config: RunConfig, out: Path) -> Path:
    """The folder of ``discover.images``; ``partworld:SPLIT`` is rendered without masks.

    Raises:
        DataError: the folder does not exist.
    """
    source = config.discover.images or f"{_PARTWORLD}test"
    if source.startswith(_PARTWORLD):
        from glass_fast.partworld.folder import write_scenes

        split, count = source.removeprefix(_PARTWORLD), config.discover.limit or 24
        folder = Path(out) / "data" / f"discover-{split}-{count}"
        return write_scenes(folder, split, count, start=DISCOVER_SCENES, masks=False) / "images"
    if not Path(source).exists():
        raise DataError(
            "GF-DISC-010", f"discover.images={source!r} does not exist", "give a folder of pictures"
        )
    return Path(source)
