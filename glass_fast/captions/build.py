"""The captions stage: a source of captions -> the prompt table.

Writes ``prompts.parquet`` and, beside it, ``prompts.rejects.jsonl`` (every input without a prompt, with
the reason) and for the captioner ``prompts.captions.jsonl`` (its captions, for resuming). The table's rows
depend on the inputs, the configuration and the seed only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.captions.labels import read_labels
from glass_fast.captions.matching import ClassMatcher
from glass_fast.captions.sources import Item, Rejects, read_list, read_provided, unique_ids
from glass_fast.captions.text import fits_table
from glass_fast.config.schema import CaptionsConfig
from glass_fast.data import atomic
from glass_fast.data.label_sets import LabelSet
from glass_fast.data.prompts import Prompt, sample_seed, write_prompts
from glass_fast.data.spans import fit_prompt, join_classes, join_prompt
from glass_fast.errors import ConfigError, DataError
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    from glass_fast.captions.captioner import Captioner

TABLE = "prompts.parquet"
SEED_PURPOSE = "image"


def build_prompts(
    config: CaptionsConfig,
    labels: LabelSet,
    out: str | Path,
    seed: int,
    device: str = "auto",
    captioner_ref: str = "partworld:captioner",
    progress: Progress | None = None,
    stop: StopToken | None = None,
    *,
    tokenizer: Any = None,
    captioner: Captioner | None = None,
) -> dict[str, Any]:
    """Make the prompt table.

    Args:
        config: source, files, limits and decoding settings.
        labels: label set whose classes are looked for.
        out: the table's path (``*.parquet``), or a folder that gets ``prompts.parquet``.
        seed: run seed; the seed of a row depends on it and on the row's id only.
        device: where the captioner runs.
        captioner_ref: captioner model for ``source=captioner``.
        progress: shows the captioner's progress.
        stop: stops between batches of the captioner.
        tokenizer: the generator's tokenizer. With it, prompts that are too long are written ``c1 c2;
            caption``, and a row whose class names alone are too long is rejected.
        captioner: a loaded captioner to use instead of ``captioner_ref``.

    Returns:
        Counts: ``prompts``, ``inputs``, ``without_classes``, ``moved_forward``, ``cut_classes``,
            ``rejected`` (by
        code), ``classes`` (rows per class), and for the captioner ``images``, ``captioned``, ``reused``.

    Raises:
        ConfigError: an option is missing or names something unknown.
        DataError: GF-CAP-030, no prompt is left; or the source is damaged.
        Stopped: on request; run again to continue.
    """
    table = Path(out) if Path(out).suffix == ".parquet" else Path(out) / TABLE
    progress, stop = progress or Progress(), stop or StopToken()
    matcher = ClassMatcher(labels.names)
    rejects = Rejects()
    extra: dict[str, Any] = {}
    if config.source == "captioner":
        from glass_fast.captions.captioner import caption_images

        items, extra = caption_images(
            config,
            table.with_suffix(".captions.jsonl"),
            captioner_ref,
            device,
            rejects,
            progress,
            stop,
            captioner,
        )
    else:
        items = _read(config, labels, matcher, rejects, seed)
    items = list(unique_ids(items, rejects))
    rows = _Rows(config, labels, matcher, seed, tokenizer, rejects)
    prompts = rows.make(items)
    _write_rejects(table.with_suffix(".rejects.jsonl"), rejects)
    if not prompts:
        raise DataError(
            "GF-CAP-030",
            f"no prompt is left of {len(items)} captions with the label set {labels.name!r}; "
            f"rejected: {rejects.counts() or 'none'}",
            f"see {table.with_suffix('.rejects.jsonl')}; choose another vocabulary or set "
            "captions.keep_without_classes=true",
        )
    metadata = {
        "vocabulary": labels.name,
        "labels": list(labels.names),
        "source": config.source,
        "seed": seed,
        "max_classes": config.max_classes,
        "rejected": rejects.counts(),
    }
    if config.source == "captioner":
        decoding = {"max_new_tokens": config.max_new_tokens, "num_beams": config.num_beams}
        metadata |= {"captioner": extra["captioner"], "decoding": decoding}
    write_prompts(table, prompts, metadata)
    return {
        "table": str(table),
        "source": config.source,
        "inputs": len(items),
        "prompts": len(prompts),
        **rows.counts,
        "classes": dict(Counter(name for prompt in prompts for name in prompt.classes).most_common()),
        "rejected": rejects.counts(),
        **extra,
    }


def _read(
    config: CaptionsConfig, labels: LabelSet, matcher: ClassMatcher, rejects: Rejects, seed: int
) -> list[Item]:
    """Items of the sources that need no model."""
    if config.source == "list":
        return read_list(config.classes, matcher, config.combine, config.limit, seed)
    if not config.file:
        raise ConfigError(
            "GF-CAP-020",
            f"captions.file is not set; source={config.source} needs it",
            "--set captions.file=PATH",
        )
    path = Path(config.file).expanduser()
    if config.source == "labels":
        return read_labels(path, labels, matcher, config.max_classes, rejects)
    return read_provided(path, matcher, rejects)


class _Rows:
    """Turns items into prompts and counts what happened to them."""

    def __init__(
        self,
        config: CaptionsConfig,
        labels: LabelSet,
        matcher: ClassMatcher,
        seed: int,
        tokenizer: Any,
        rejects: Rejects,
    ) -> None:
        self.config, self.labels, self.matcher = config, labels, matcher
        self.seed, self.tokenizer, self.rejects = seed, tokenizer, rejects
        self.counts = {"without_classes": 0, "moved_forward": 0, "cut_classes": 0}

    def make(self, items: Sequence[Item]) -> list[Prompt]:
        """Prompts in the order of the items, at most ``config.limit``."""
        prompts: list[Prompt] = []
        for item in items:
            if self.config.limit is not None and len(prompts) >= self.config.limit:
                break
            prompt = self._prompt(item)
            if prompt is not None:
                prompts.append(prompt)
        return prompts

    def _prompt(self, item: Item) -> Prompt | None:
        classes = self.matcher.classes(item.caption) if item.classes is None else item.classes
        if not classes:
            self.counts["without_classes"] += 1
            if not self.config.keep_without_classes:
                reason = f"no class of the label set {self.labels.name!r} in {item.caption!r}"
                self.rejects.add(item.id, "GF-CAP-003", reason)
                return None
        self.counts["cut_classes"] += max(len(classes) - self.config.max_classes, 0)
        classes = classes[: self.config.max_classes]
        text = join_prompt(item.caption, classes)
        if self.tokenizer is not None:
            try:
                text = fit_prompt(self.tokenizer, item.caption, classes)
            except DataError as error:
                self.rejects.add(item.id, error.code, error.message)
                return None
            self.counts["moved_forward"] += text != join_prompt(item.caption, classes)
        if not fits_table(text):
            self.rejects.add(
                item.id, "GF-CAP-002", "caption and class names together have more than 4096 bytes"
            )
            return None
        return Prompt(
            item.id,
            item.caption,
            tuple(classes),
            text,
            join_classes(classes),
            sample_seed(self.seed, item.id, SEED_PURPOSE),
            self.config.source,
            item.image_id,
        )


def _write_rejects(path: Path, rejects: Rejects) -> None:
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rejects.rows]
    atomic.make_directory(path.parent)
    atomic.write_bytes(path, "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))
