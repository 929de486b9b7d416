"""``glass-fast run``: all stages in order, each skipped when its artefact is complete and made from the same input.

``stages/NAME.json`` records what a stage was made from: its options and hashes of its inputs. Expensive stages
refuse other options (their results would be lost); evaluation and discovery are simply done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast import workflow
from glass_fast.config.schema import DatasetConfig
from glass_fast.data.atomic import read_json, sha256_file, write_json
from glass_fast.errors import ConfigError, DataError, Stopped
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    from glass_fast.config.load import LoadedConfig


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
    if only:
        return {"stages": {only: stages[only]}}
    return {"out": config.out, "stages": stages}


def run(loaded: LoadedConfig, progress: Progress, stop: StopToken) -> dict[str, Any]:
    """All stages of a configuration.

    Returns:
        ``out``, ``report``, the ablation table (when unguided and glass were trained) and ``text`` to print.

    Raises:
        ConfigError: the folder holds another configuration's results; nothing is changed then.
        Stopped: stopped on request; run again to continue.
    """
    return _Run(loaded, progress, stop).to_the_end()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


class _Run:
    """One run folder and its stage records."""

    def __init__(self, loaded: LoadedConfig, progress: Progress, stop: StopToken) -> None:
        self.loaded, self.config = loaded, loaded.config
        self.out = Path(self.config.out)
        self.progress, self.stop = progress, stop
        self.models = [
            (arm, seed, self.out / "models" / f"{arm}-seed{seed}")
            for seed in self.config.seeds
            for arm in self.config.losses
        ]

    def to_the_end(self) -> dict[str, Any]:
        from glass_fast import doctor
        from glass_fast.report.html import write_report

        config, out = self.config, self.out
        self._refuse_other_options()
        out.mkdir(parents=True, exist_ok=True)
        write_json(
            out / "config.json",
            {"config": config.model_dump(mode="json"), "origins": self.loaded.origins},
        )
        write_json(out / "environment.json", doctor.collect())
        self._make()
        results = self._evaluate()
        ablation = self._ablation(results)
        self._discover()
        report = write_report(out, None)
        self.log(stage="report", event="end", result=report.name)
        text = [ablation["text"]] if ablation else []
        return {
            "out": str(out),
            "report": str(report),
            "ablation": ablation,
            "text": "\n".join([*text, f"report: {report}"]),
        }

    # --- records

    def log(self, **event: Any) -> None:
        with (self.out / "run.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")

    def _record(self, name: str) -> Path:
        return self.out / "stages" / f"{name.replace('/', '-')}.json"

    def _expensive(self) -> dict[str, dict[str, Any]]:
        """Stage name -> options, of the stages whose results must not be lost to another configuration."""
        config = self.config
        everything = config.model_dump(mode="json")
        captions = {"captions": everything["captions"], "models": everything["models"], "seed": config.seed}
        stages = {"captions": captions, "synthesize": captions | {"synthesis": everything["synthesis"]}}
        for arm, seed, folder in self.models:
            training = workflow.arm_training(config, arm).model_dump(mode="json")
            stages[f"train/{folder.name}"] = {"training": training, "seed": seed}
        return stages

    def _refuse_other_options(self) -> None:
        for name, options in self._expensive().items():
            record = self._record(name)
            if not record.exists():
                continue
            stored = read_json(record, "stage record")["options"]
            if stored != _plain(options):
                keys = sorted(k for k in options if stored.get(k) != _plain(options[k]))
                raise ConfigError(
                    "GF-CONFIG-212",
                    f"{self.out} holds stage {name} of another configuration (differs in: {', '.join(keys)})",
                    "choose another out folder, or delete this one",
                )

    def stage(
        self,
        name: str,
        options: dict[str, Any],
        inputs: dict[str, Any],
        work: Callable[[], Any],
        complete: Callable[[], bool],
    ) -> None:
        """Do ``work`` unless the record names the same options and inputs and the artefact is complete."""
        self.stop.check("the run continues with the stage that was interrupted")
        record, key = self._record(name), {"options": _plain(options), "inputs": _plain(inputs)}
        if record.exists():
            stored = read_json(record, "stage record")
            if {k: stored.get(k) for k in key} == key and complete():
                self.log(stage=name, event="skipped", reason="complete")
                return
        self.log(stage=name, event="start")
        begin = time.monotonic()
        try:
            result = work()
            if not complete():
                raise DataError(
                    "GF-DATA-210", f"stage {name} ended, but its artefact in {self.out} is not complete",
                    "delete what is left of it and run again",
                )  # fmt: skip
        except BaseException as error:
            event = "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"
            self.log(stage=name, event=event, seconds=round(time.monotonic() - begin, 3), error=str(error))
            raise
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"stage": name, **key, "result": result})
        self.log(stage=name, event="end", seconds=round(time.monotonic() - begin, 3), result=result)

    # --- stages

    def _make(self) -> None:
        """Prompts, shards and models."""
        from glass_fast.data.plan import ShardPlan
        from glass_fast.data.shards import completed

        config, out, progress, stop = self.config, self.out, self.progress, self.stop
        prompts, shards = out / "prompts.parquet", out / "shards"
        options = self._expensive()
        self.stage(
            "captions",
            options["captions"],
            {},
            lambda: workflow.make_prompts(config, out, progress, stop),
            prompts.exists,
        )
        shard_plan = ShardPlan(config.synthesis.num, config.synthesis.shard_size, config.synthesis.batch_size)
        self.stage(
            "synthesize",
            options["synthesize"],
            {"prompts": sha256_file(prompts)},
            lambda: workflow.make_shards(config, prompts, shards, progress, stop),
            lambda: len(completed(shards, shard_plan)) == len(shard_plan.shards),
        )
        source = {"shards": sha256_file(shards / "manifest.json")}
        for arm, seed, folder in self.models:

            def work(arm: str = arm, seed: int = seed, folder: Path = folder) -> str:
                return workflow.make_model(config, shards, folder, arm, seed, progress, stop).name

            name = f"train/{folder.name}"
            self.stage(name, options[name], source, work, (folder / "model.safetensors").exists)

    def _evaluate(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """dataset -> arm -> one result per seed; every result is also a file under ``evaluation/``."""
        config = self.config
        jobs: list[tuple[str, int, str]] = [(n, config.seeds[0], n) for n in config.evaluation.baselines]
        jobs += [(arm, seed, str(folder)) for arm, seed, folder in self.models]
        results: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for dataset in config.evaluation.datasets:
            for arm, seed, model in jobs:
                target = self.out / "evaluation" / dataset.name / f"{arm}-seed{seed}.json"

                def work(
                    model: str = model,
                    seed: int = seed,
                    target: Path = target,
                    dataset: DatasetConfig = dataset,
                ) -> str:
                    result = workflow.score(config, model, dataset, seed, self.progress, self.stop, self.out)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_json(target, result)
                    return target.name

                options = {
                    "dataset": dataset.model_dump(mode="json"),
                    "evaluation": config.evaluation.model_dump(
                        mode="json", exclude={"datasets", "baselines"}
                    ),
                    "encoder": config.models.encoder,
                    "seed": seed,
                    "slots": [
                        config.training.num_slots,
                        config.training.num_iterations,
                        config.training.slot_size,
                    ],
                }
                self.stage(
                    f"evaluate/{dataset.name}/{target.stem}", options, _weights(model), work, target.exists
                )
                found = read_json(target, "evaluation result")
                results.setdefault(dataset.name, {}).setdefault(arm, []).append(found)
        return results

    def _ablation(self, results: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any] | None:
        """ablation.json of the first data set, when both sides of the comparison were trained."""
        from glass_fast.evaluation.ablation import ablation_table, ablation_text

        if not results or not {"unguided", "glass"} <= set(self.config.losses):
            return None
        protocols = self.config.evaluation.protocols
        protocol = "glass" if "glass" in protocols else protocols[0]
        table = ablation_table(next(iter(results.values())), protocol=protocol)
        write_json(self.out / "ablation.json", table)
        return table | {"text": ablation_text(table)}

    def _discover(self) -> None:
        """Objects in held-out pictures, with the glass model of the first seed (else the first model)."""
        config, source = self.config, self.config.discover.images
        if not source or not self.models:
            return
        model = next((folder for arm, _, folder in self.models if arm == "glass"), self.models[0][2])
        target = self.out / "discover"

        def work() -> dict[str, Any]:
            pictures = workflow.discover_pictures(config, self.out)
            shutil.rmtree(
                target, ignore_errors=True
            )  # pictures of an earlier choice must not stay among these
            return workflow.find_objects(config, str(model), [pictures], target, self.progress, self.stop)

        options = {"discover": config.discover.model_dump(mode="json")}
        self.stage("discover", options, _weights(str(model)), work, (target / "objects.jsonl").exists)


def _weights(model: str) -> dict[str, Any]:
    """What a model is, for stage records: the hash of its weights, or the name of a baseline."""
    weights = Path(model) / "model.safetensors"
    return {"model": sha256_file(weights) if weights.exists() else model}
