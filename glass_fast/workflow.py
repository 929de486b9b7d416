"""The whole chain: captions -> synthesize -> train -> evaluate -> discover -> report, each step an artefact on disk.

``run`` calls the stage functions in order and skips those whose artefact is complete and was made from the
same configuration; the command line calls them one by one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.config.schema import CaptionsConfig, DatasetConfig, RunConfig, TrainingConfig
from glass_fast.data.atomic import write_json
from glass_fast.errors import ConfigError, DataError, Stopped
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    from glass_fast.config.load import LoadedConfig

CAPTION_SCENES = 100_000
"""First training scene that ``captions.images: partworld:train`` shows; the shipped models never saw these."""
TRUTH_SCENES = 200_000
"""First training scene of the upper bound's annotated set."""
DISCOVER_SCENES = 50_000
"""First scene of the pictures that ``discover.images: partworld:test`` uses (no scored scene is among them)."""
_PARTWORLD = "partworld:"


# --- stages -----------------------------------------------------------------------------------------------------


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
    if not (captions.images or "").startswith(_PARTWORLD):
        return captions
    from glass_fast.partworld.folder import write_scenes

    split = str(captions.images).removeprefix(_PARTWORLD)
    folder = Path(out) / "data" / f"captions-{split}"
    write_scenes(folder, split, captions.limit or 400, start=CAPTION_SCENES, masks=False)
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
    changes: dict[str, Any] = {"learning_rate": config.learning_rates.get(arm, config.training.learning_rate)}
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

    from glass_fast.data.datasets import open_dataset
    from glass_fast.evaluation.baselines import build_baseline
    from glass_fast.evaluation.evaluate import evaluate
    from glass_fast.models.glass import Glass
    from glass_fast.models.loading import folder_checksum, load_encoder, resolve_device, resolve_model

    device = resolve_device(config.device)
    info: dict[str, Any] = {"ref": model if ":" in model else Path(model).name}
    if model in ("kmeans", "grid", "random_slots"):
        encoder = load_encoder(config.models.encoder, device, config.training.resolution)
        predictor = build_baseline(model, encoder, config.training, seed)
    else:
        predictor = Glass.from_pretrained(model, device=str(device))
        path = resolve_model(model).path
        info["checksum"] = folder_checksum(path) if path else None
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
            training_seed=seed,
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


# --- the run ----------------------------------------------------------------------------------------------------


class _Run:
    """Stage records of one run folder: ``stages/NAME.json`` says that an artefact is complete and from what."""

    def __init__(self, out: Path, progress: Progress, stop: StopToken) -> None:
        self.out, self.progress, self.stop = out, progress, stop

    def log(self, **event: Any) -> None:
        with (self.out / "run.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")

    def stage(self, name: str, key: dict[str, Any], work: Callable[[], Any], artefact: Path) -> Any:
        """Result of ``work``, or of the earlier run that made ``artefact`` from the same ``key``."""
        self.stop.check("the run continues with the stage that was interrupted")
        record = self.out / "stages" / f"{name.replace('/', '-')}.json"
        if record.exists():
            stored = json.loads(record.read_text(encoding="utf-8"))
            if stored["key"] != json.loads(json.dumps(key)):
                different = sorted(k for k in key if stored["key"].get(k) != json.loads(json.dumps(key[k])))
                raise ConfigError(
                    "GF-CONFIG-212",
                    f"{self.out} holds stage {name} of another configuration (differs in: {', '.join(different)})",
                    "choose another out folder, or delete this one",
                )
            if artefact.exists():
                self.log(stage=name, event="skipped", reason="complete")
                return stored["result"]
        self.log(stage=name, event="start")
        begin = time.monotonic()
        try:
            result = work()
        except BaseException as error:
            event = "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"
            self.log(stage=name, event=event, seconds=round(time.monotonic() - begin, 3), error=str(error))
            raise
        seconds = time.monotonic() - begin
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"stage": name, "key": key, "result": result, "artefact": artefact.name})
        self.log(stage=name, event="end", seconds=round(seconds, 3), result=result)
        return result


def plan(loaded: LoadedConfig, only: str | None = None) -> dict[str, Any]:
    """What ``run`` would do: stages in order with their counts (``--dry-run``)."""
    config = loaded.config
    trained = [f"{arm}-seed{seed}" for seed in config.seeds for arm in config.losses]
    stages: dict[str, Any] = {
        "captions": {"source": config.captions.source, "limit": config.captions.limit},
        "synthesize": {
            "images": config.synthesis.num,
            "steps": config.synthesis.steps,
            "shard_size": config.synthesis.shard_size,
        },
        "train": {"models": trained, "steps": config.training.steps},
        "evaluate": {
            "datasets": [d.name for d in config.evaluation.datasets],
            "models": trained + list(config.evaluation.baselines),
        },
        "discover": {"images": config.discover.images, "limit": config.discover.limit},
    }
    chosen = {only: stages[only]} if only else stages
    return {"out": config.out, "stages": chosen}


def run(loaded: LoadedConfig, progress: Progress, stop: StopToken) -> dict[str, Any]:
    """All stages of a configuration.

    Returns:
        ``out``, ``report``, the ablation table (when unguided and glass were trained) and ``text`` to print.

    Raises:
        ConfigError: the folder holds another configuration's results.
        Stopped: stopped on request; run again to continue.
    """
    from glass_fast import doctor
    from glass_fast.data.manifest import config_hash
    from glass_fast.report.html import write_report

    config = loaded.config
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    this = _Run(out, progress, stop)
    write_json(out / "config.json", {"config": config.model_dump(mode="json"), "origins": loaded.origins})
    write_json(out / "environment.json", doctor.collect())
    everything = config.model_dump(mode="json")
    captions_key = {"captions": everything["captions"], "models": everything["models"], "seed": config.seed}
    shards_key = captions_key | {"synthesis": everything["synthesis"]}
    prompts, shards = out / "prompts.parquet", out / "shards"
    this.stage("captions", captions_key, lambda: make_prompts(config, out, progress, stop), prompts)
    this.stage(
        "synthesize",
        shards_key,
        lambda: make_shards(config, prompts, shards, progress, stop),
        shards / "manifest.json",
    )

    arms: list[tuple[str, int, Path]] = []
    for seed in config.seeds:
        for arm in config.losses:
            folder = out / "models" / f"{arm}-seed{seed}"
            training = arm_training(config, arm).model_dump(mode="json")
            key = {"shards": config_hash(shards_key), "training": training, "seed": seed}

            def work(arm: str = arm, seed: int = seed, folder: Path = folder) -> str:
                return str(make_model(config, shards, folder, arm, seed, progress, stop).relative_to(out))

            this.stage(f"train/{folder.name}", key, work, folder / "model.safetensors")
            arms.append((arm, seed, folder))
    results = _evaluate_all(config, this, arms)
    ablation = _ablation(config, out, results)
    _discover_some(config, this, arms)
    report = write_report(out, None)
    this.log(stage="report", event="end", result=str(report.name))
    text = [ablation["text"]] if ablation else []
    return {
        "out": str(out),
        "report": str(report),
        "ablation": ablation,
        "text": "\n".join([*text, f"report: {report}"]),
    }


def _evaluate_all(
    config: RunConfig, this: _Run, arms: list[tuple[str, int, Path]]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """dataset -> arm -> one result per seed; every result is also a file under ``evaluation/``."""
    from glass_fast.data.manifest import config_hash

    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for dataset in config.evaluation.datasets:
        jobs: list[tuple[str, int, str]] = [
            (str(n), config.seeds[0], str(n)) for n in config.evaluation.baselines
        ]
        jobs += [(arm, seed, str(folder)) for arm, seed, folder in arms]
        for arm, seed, model in jobs:
            target = this.out / "evaluation" / dataset.name / f"{arm}-seed{seed}.json"

            def work(
                model: str = model, seed: int = seed, target: Path = target, dataset: DatasetConfig = dataset
            ) -> str:
                result = score(config, model, dataset, seed, this.progress, this.stop, this.out)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_json(target, result)
                return target.name

            weights = Path(model) / "run.json"
            source = config_hash(json.loads(weights.read_text())) if weights.exists() else model
            key = {
                "dataset": dataset.model_dump(mode="json"),
                "protocols": list(config.evaluation.protocols),
                "training": config.training.model_dump(mode="json"),
                "encoder": config.models.encoder,
                "seed": seed,
                "model": source,
            }
            this.stage(f"evaluate/{dataset.name}/{arm}-seed{seed}", key, work, target)
            results.setdefault(dataset.name, {}).setdefault(arm, []).append(
                json.loads(target.read_text(encoding="utf-8"))
            )
    return results


def _ablation(
    config: RunConfig, out: Path, results: dict[str, dict[str, list[dict[str, Any]]]]
) -> dict[str, Any] | None:
    """ablation.json of the first data set, when both sides of the comparison were trained."""
    from glass_fast.evaluation.ablation import ablation_table, ablation_text

    if not results or not {"unguided", "glass"} <= set(config.losses):
        return None
    first = next(iter(results))
    table = ablation_table(results[first])
    write_json(out / "ablation.json", table)
    return table | {"text": ablation_text(table)}


def _discover_some(config: RunConfig, this: _Run, arms: list[tuple[str, int, Path]]) -> None:
    """Objects in held-out pictures, with the glass model of the first seed (else the first model)."""
    if not config.discover.images or not arms:
        return
    model = next((folder for arm, _, folder in arms if arm == "glass"), arms[0][2])
    source = config.discover.images

    def work() -> dict[str, Any]:
        if source.startswith(_PARTWORLD):
            from glass_fast.partworld.folder import write_scenes

            split = source.removeprefix(_PARTWORLD)
            folder = this.out / "data" / f"discover-{split}"
            write_scenes(folder, split, config.discover.limit or 24, start=DISCOVER_SCENES, masks=False)
            pictures = folder / "images"
        else:
            pictures = Path(source)
            if not pictures.exists():
                raise DataError(
                    "GF-DISC-010", f"discover.images={source!r} does not exist", "give a folder of pictures"
                )
        return find_objects(config, str(model), [pictures], this.out / "discover", this.progress, this.stop)

    key = {"images": source, "model": model.name, "discover": config.discover.model_dump(mode="json")}
    this.stage("discover", key, work, this.out / "discover" / "objects.jsonl")
