"""The job: prompt table -> shards, resumable, with the same bytes however often it was interrupted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.config.schema import SynthesisConfig
from glass_fast.data.manifest import write_manifest
from glass_fast.data.plan import ShardPlan, ShardSpec
from glass_fast.data.prompts import Prompt
from glass_fast.data.shards import clean_temps, completed, open_shards, write_shard
from glass_fast.errors import DataError, RejectsError
from glass_fast.kernels import choices
from glass_fast.progress import Progress, StopToken
from glass_fast.synthesis.batches import BatchRunner, Made, Request
from glass_fast.synthesis.quality import FLAGS, is_rejected
from glass_fast.synthesis.runlog import RunLog, peak_memory
from glass_fast.synthesis.samples import (
    Finisher,
    PlannedSample,
    label_ids,
    plan_sample,
    prompts_digest,
    provenance,
    versions,
)
from glass_fast.synthesis.text import text_row

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator


def synthesize(
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    config: SynthesisConfig,
    generator: Generator,
    out: Path,
    seed: int = 0,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> dict[str, Any]:
    """Make ``config.num`` images with masks and write them as shards (GLASS section 3).

    Everything is checked before the first image. Shards that are committed are skipped; the others are made again
    from their seeds, so an interrupted job ends with the same bytes as an undisturbed one.

    Args:
        prompts: prompt table; sample ``i`` uses row ``i % len(prompts)``.
        labels: class names; label id of ``labels[i]`` is ``i + 1``.
        config: synthesis options.
        generator: loaded generator, on its device.
        out: folder of the shards, new, empty or from the same job.
        seed: run seed, for prompts whose own seed is 0.
        progress: shows rate, time left and yield.
        stop: looked at between micro-batches.

    Returns:
        Statistics: ``num``, ``made`` (in this call), ``resumed``, ``rejected``, ``reject_share``, ``flags`` (counts),
        ``classes`` (samples a class was asked for), ``dropped`` (classes dropped by the absence guard), ``seconds``
        and ``rate`` (of this call), ``shards``.

    Raises:
        ConfigError: a wrong option, or ``out`` belongs to another configuration.
        DataError: empty table, unknown class, class cut off by the text encoder's length.
        NumericsError: out of memory with one row.
        RejectsError: GF-SYN-030, a larger share than ``quality.max_reject_share`` is rejected; all is written.
        Stopped: stopped on request; committed shards stay.
    """
    progress, stop = progress or Progress(), stop or StopToken()
    if not prompts:
        raise DataError(
            "GF-DATA-072", "the prompt table has no rows; expected at least one", "run glass-fast captions"
        )
    used = prompts[: config.num]
    for prompt in used:
        label_ids(prompt, labels)
    out = Path(out)
    log = RunLog(out / "run.jsonl")
    runner = BatchRunner(
        generator, config, max(len(prompt.classes) for prompt in used), note=lambda event: log.write(**event)
    )
    texts = [text_row(generator.tokenizer, runner.length, prompt, config.capture.probe) for prompt in used]
    plan = ShardPlan(config.num, config.shard_size, config.batch_size)
    facts = _facts(config, generator, runner)
    write_manifest(
        out,
        kind="synthesis",
        plan=plan.as_dict(),
        labels=labels,
        generator=facts["generator"],
        versions=facts["versions"],
        config=_job_config(config, prompts, seed),
    )
    clean_temps(out)
    done = completed(out, plan)
    resumed = sum(spec.count for spec in plan.shards if spec.index in done)
    device = generator.unet.device.type
    log.start(
        num=plan.num,
        resumed=resumed,
        device=device,
        captured_steps=runner.captured_steps,
        **_layer_facts(runner),
    )
    began = time.monotonic()
    finisher = Finisher(tuple(labels), config, facts)
    tally = _Tally(config)
    progress.start(plan.num, "images", "synthesize", done=resumed)
    # One writer: masks and PNG of a shard are made while the networks work on the next one. At most one shard waits.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer") as pool:
        pending: Future[None] | None = None
        try:
            for spec in plan.shards:
                if spec.index in done:
                    continue
                rows: list[tuple[PlannedSample, Made]] = []
                for batch in plan.micro_batches(spec):
                    stop.check(f"{resumed + tally.count} of {plan.num} images are committed in {out}")
                    planned = [plan_sample(prompts, index, seed) for index in batch]
                    requests = [Request(p.seed, texts[p.index % len(prompts)]) for p in planned]
                    start = time.monotonic()
                    made = runner.run(requests)
                    seconds = time.monotonic() - start
                    rows += zip(planned, made, strict=True)
                    log.write(
                        "batch",
                        shard=spec.index,
                        first=batch.start,
                        images=len(batch),
                        rows=runner.rows,
                        seconds=round(seconds, 4),
                        rate=round(len(batch) / seconds, 4),
                        peak_bytes=peak_memory(device),
                    )
                    progress.advance(len(batch), **tally.shown())
                if pending is not None:
                    pending.result()
                pending = pool.submit(_write, out, spec, rows, finisher, tally, log)
        finally:
            # also on a stop or an error: a shard whose samples are complete is worth committing
            if pending is not None:
                pending.result()
            progress.finish()
    return _finish(out, config, plan, resumed, time.monotonic() - began, log)


class _Tally:
    """Running counts of this call for the progress line; the statistics come from the index."""

    def __init__(self, config: SynthesisConfig) -> None:
        self.config = config
        self.count = 0
        self.rejected = 0

    def add(self, flags: Sequence[str]) -> None:
        self.rejected += is_rejected(flags, self.config.quality)

    def shown(self) -> dict[str, float]:
        return {"yield": 1.0 - self.rejected / self.count} if self.count else {}


def _write(
    out: Path,
    spec: ShardSpec,
    rows: list[tuple[PlannedSample, Made]],
    finisher: Finisher,
    tally: _Tally,
    log: RunLog,
) -> None:
    """Finish and commit one shard (writer thread)."""
    start = time.monotonic()
    flags = []
    samples = []
    for planned, made in rows:
        samples.append(finisher(planned, made))
        flags.append(samples[-1].meta["flags"])
    write_shard(out, spec, samples)
    for raised in flags:
        tally.add(raised)
    tally.count += spec.count
    log.write("shard", shard=spec.index, images=spec.count, seconds=round(time.monotonic() - start, 4))


def _job_config(config: SynthesisConfig, prompts: Sequence[Prompt], seed: int) -> dict[str, Any]:
    """What the bits of the job depend on, apart from generator and versions; limits on the yield may change."""
    options = config.model_dump(mode="json")
    for name in ("reject", "max_reject_share"):
        options["quality"].pop(name)
    return {
        "synthesis": options,
        "prompts": {"rows": len(prompts), "sha256": prompts_digest(prompts)},
        "seed": seed,
    }


def _facts(config: SynthesisConfig, generator: Generator, runner: BatchRunner) -> dict[str, Any]:
    """Provenance that is the same for every sample of the job."""
    return {
        "generator": provenance(generator, runner.scheduler),
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "guidance_rescale": config.guidance_rescale,
        "negative_prompt": config.negative_prompt,
        **config.masks.model_dump(mode="json", exclude={"absence_peaks"}),
        "capture": config.capture.model_dump(mode="json"),
        "versions": versions(),
    }


def _layer_facts(runner: BatchRunner) -> dict[str, Any]:
    choice = runner.capture.choice
    return {
        "cross_layers": [layer.name for layer in choice.cross],
        "self_layers": [layer.name for layer in choice.self_],
        "cross_size": choice.cross_size,
        "self_size": choice.self_size,
    }


def _finish(
    out: Path, config: SynthesisConfig, plan: ShardPlan, resumed: int, seconds: float, log: RunLog
) -> dict[str, Any]:
    """Statistics of the whole job, from the committed index (so a resumed job reports all of it).

    Raises:
        RejectsError: GF-SYN-030.
    """
    table = open_shards(out).index()
    flags: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    rejected = 0
    for raised, names, extra in zip(
        table.column("flags").to_pylist(),
        table.column("classes").to_pylist(),
        table.column("extra").to_pylist(),
        strict=True,
    ):
        flags.update(raised)
        classes.update(set(names))
        dropped.update(set(json.loads(extra)["dropped"]))
        rejected += is_rejected(raised, config.quality)
    made = plan.num - resumed
    stats: dict[str, Any] = {
        "num": plan.num,
        "made": made,
        "resumed": resumed,
        "shards": len(plan.shards),
        "rejected": rejected,
        "reject_share": rejected / plan.num,
        "flags": {flag: flags[flag] for flag in FLAGS},
        "classes": dict(sorted(classes.items())),
        "dropped": dict(sorted(dropped.items())),
        "seconds": round(seconds, 3),
        "rate": round(made / seconds, 4) if made and seconds > 0 else 0.0,
    }
    log.write("finish", backends=choices(), **stats)
    if stats["reject_share"] > config.quality.max_reject_share:
        shown = ", ".join(f"{flag} {count}" for flag, count in stats["flags"].items() if count)
        raise RejectsError(
            "GF-SYN-030",
            f"{rejected} of {plan.num} images are rejected ({stats['reject_share']:.1%}; at most "
            f"{config.quality.max_reject_share:.1%} allowed): {shown}",
            f"all images are in {out}; look at them, then change the prompts, the guidance, the thresholds or "
            "synthesis.quality.max_reject_share",
        )
    return stats
