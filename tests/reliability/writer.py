"""A small synthesize job without a model: random samples, real shards. Run as a script so that it can be
killed.

Usage: ``python writer.py OUT NUM SHARD_SIZE``; running it again continues.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glass_fast.data import manifest, shards
from glass_fast.data.plan import ShardPlan
from glass_fast.data.prompts import sample_seed

LABELS = ("car", "tree", "cup")
RUN_SEED = 7


def make_sample(index: int) -> shards.Sample:
    """Sample ``index`` as a pure function of its id; 0 to 2 maps, so that both member layouts occur."""
    key = f"s{index:06d}"
    seed = sample_seed(RUN_SEED, key, "noise")
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 3))
    return shards.Sample(
        key,
        rng.integers(0, 256, (24, 16, 3), dtype=np.uint8),
        rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (24, 16)),
        rng.integers(0, 256, (count, 6, 4), dtype=np.uint8),
        {
            "prompt": f"a picture; {' '.join(LABELS[:count])}",
            "caption": "a picture",
            "classes": list(LABELS[:count]),
            "seed": seed,
            "flags": ["empty"] if count == 0 else [],
            "scores": {"confidence": float(rng.random())},
        },
    )


def run(out: Path, num: int, shard_size: int, report: Callable[[], object] = lambda: None) -> list[int]:
    """Write what is missing, calling ``report`` at the start and after each shard; returns the shards written."""
    report()
    plan = ShardPlan(num, shard_size, 2)
    manifest.write_manifest(out, kind="shards", config={"seed": RUN_SEED}, plan=plan.as_dict(), labels=LABELS)
    shards.clean_temps(out)
    done = shards.completed(out, plan)
    todo = [spec for spec in plan.shards if spec.index not in done]
    for spec in todo:
        shards.write_shard(out, spec, (make_sample(i) for i in range(spec.start, spec.stop)))
        report()
    return [spec.index for spec in todo]


def tell() -> None:
    """A line for the process that will kill this one."""
    sys.stdout.write("step\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), tell)
