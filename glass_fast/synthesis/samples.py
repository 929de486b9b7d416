"""From what the networks made to a sample of a shard: mask, absence guard, flags, scores, provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from glass_fast.config.schema import SynthesisConfig
from glass_fast.data.manifest import codec_versions
from glass_fast.data.prompts import Prompt, sample_seed
from glass_fast.data.shards import Sample
from glass_fast.errors import DataError
from glass_fast.synthesis.batches import Made
from glass_fast.synthesis.masks import UNCERTAIN, absent, mask_from_maps
from glass_fast.synthesis.quality import assess

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator

KEY_DIGITS = 9


@dataclass(frozen=True)
class PlannedSample:
    """Sample ``index`` of the job: which prompt it uses, in which round of the table, and its seed."""

    index: int
    key: str
    prompt: Prompt
    round: int
    seed: int


def plan_sample(prompts: Sequence[Prompt], index: int, run_seed: int) -> PlannedSample:
    """Sample ``index`` uses prompt ``index % len(prompts)``; every round over the table has its own seeds."""
    prompt, round_ = prompts[index % len(prompts)], index // len(prompts)
    seed = sample_seed(prompt.seed or run_seed, f"{prompt.id}-{round_}", "noise")
    return PlannedSample(index, f"{index:0{KEY_DIGITS}d}", prompt, round_, seed)


def label_ids(prompt: Prompt, labels: Sequence[str]) -> tuple[int, ...]:
    """Label id (1..254) of each class of a prompt.

    Raises:
        DataError: GF-DATA-071, a class that the label set does not have, or too many labels.
    """
    if len(labels) >= UNCERTAIN:
        raise DataError(
            "GF-DATA-071",
            f"the label set has {len(labels)} names; a mask holds at most {UNCERTAIN - 1}",
            "use a smaller vocabulary",
        )
    ids = []
    for name in prompt.classes:
        if name not in labels:
            raise DataError(
                "GF-DATA-071",
                f"prompt {prompt.id!r} has class {name!r}, which is not among the {len(labels)} labels: "
                f"{', '.join(labels)}",
                "make the prompt table and its labels from the same vocabulary",
            )
        ids.append(list(labels).index(name) + 1)
    return tuple(ids)


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over all rows, so that a folder is never continued with another table."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update((repr(asdict(prompt)) + "\n").encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of everything that decides the bits of a sample."""
    import diffusers
    import torch
    import transformers

    import glass_fast

    own = {
        "glass_fast": glass_fast.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    return {**own, **codec_versions()}


def provenance(generator: Generator, scheduler: dict[str, str]) -> dict[str, Any]:
    """The generator's identity for manifest and samples; no path, so two machines agree."""
    source = generator.source
    local = source.path is not None and not source.ref.startswith("partworld:")
    return {
        "model": source.path.name if local and source.path is not None else source.ref,
        "checksum": generator.checksum,
        "dtype": str(generator.unet.dtype).removeprefix("torch."),
        "scheduler": scheduler["class"],
        "scheduler_sha256": scheduler["config_sha256"],
    }


class Finisher:
    """Turns :class:`Made` into :class:`Sample`; runs beside the networks, on the CPU.

    Args:
        labels: class names of the label set.
        config: thresholds, guard and limits.
        facts: provenance that is the same for all samples.
    """

    def __init__(self, labels: Sequence[str], config: SynthesisConfig, facts: dict[str, Any]) -> None:
        self.labels, self.config, self.facts = labels, config, facts

    def __call__(self, planned: PlannedSample, made: Made) -> Sample:
        config, prompt = self.config, planned.prompt
        ids = label_ids(prompt, self.labels)
        dropped = absent(made.peaks, prompt.classes, config.masks)
        kept = [0 if gone else label for label, gone in zip(ids, dropped, strict=True)]
        size = (int(made.image.shape[0]), int(made.image.shape[1]))
        masks = config.masks
        mask = mask_from_maps(made.maps, kept, size, masks.threshold, masks.uncertain_threshold)
        judged = assess(made.image, mask, made.maps, kept, ids, masks.threshold, made.finite, config.quality)
        meta = {
            "prompt": prompt.prompt,
            "class_prompt": prompt.class_prompt,
            "caption": prompt.caption,
            "classes": list(prompt.classes),
            "label_ids": kept,
            "dropped": [name for name, gone in zip(prompt.classes, dropped, strict=True) if gone],
            "prompt_id": prompt.id,
            "round": planned.round,
            "source": prompt.source,
            "image_id": prompt.image_id,
            "seed": planned.seed,
            "flags": list(judged.flags),
            "scores": judged.scores,
            "areas": list(judged.areas),
            "confidences": list(judged.confidences),
            "peaks": [float(f"{peak:.6g}") for peak in made.peaks],
            "float32_retry": made.retried,
            **self.facts,
        }
        return Sample(planned.key, made.image, mask, made.maps, meta)
