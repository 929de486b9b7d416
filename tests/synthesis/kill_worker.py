"""Kill a synthesize job at random moments and resume it, many times in one warm process.

Importing torch and diffusers takes seconds, so each attempt is a child forked after the imports and killed with
SIGKILL by the parent. Run as ``python kill_worker.py FOLDER KILLS SEED``; prints a JSON summary.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tiny_sd
import torch

from glass_fast.config.schema import CaptureConfig, QualityConfig, SynthesisConfig
from glass_fast.synthesis.job import synthesize

CONFIG = SynthesisConfig(
    num=12,
    batch_size=2,
    shard_size=3,
    steps=2,
    capture=CaptureConfig(self_size=16, cross_size=8),
    quality=QualityConfig(max_reject_share=1.0),
)


def start(generator: Any, out: Path) -> int:
    """Fork a child that runs the job; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        synthesize(tiny_sd.prompts(), tiny_sd.LABELS, CONFIG, generator, out, seed=9)
        code = 0
    finally:
        os._exit(code)


def finish(generator: Any, out: Path) -> None:
    _, status = os.waitpid(start(generator, out), 0)
    if status != 0:
        raise SystemExit(f"the job in {out} ended with status {status}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.jsonl"}


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)  # a forked child must not inherit a pool whose threads are gone
    generator = tiny_sd.generator()
    draw = random.Random(seed)
    finish(generator, folder / "warm")  # the first run pays for caches and first imports
    begin = time.monotonic()
    finish(generator, folder / "reference")
    duration = time.monotonic() - begin
    wanted = contents(folder / "reference")
    killed, folders, in_write, partial = 0, 0, 0, 0
    while killed < kills:
        out = folder / f"killed-{folders}"
        folders += 1
        # several kills in one folder: a job may be interrupted again and again
        while killed < kills:
            child = start(generator, out)
            time.sleep(draw.uniform(0.0, 0.8) * duration)
            finished, status = os.waitpid(child, os.WNOHANG)
            if finished:
                if status != 0:
                    raise SystemExit(f"a resumed job ended with status {status}")
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            if out.is_dir():
                names = [path.name for path in out.iterdir()]
                in_write += any(name.startswith(".tmp-") for name in names)
                partial += 0 < sum(name.endswith(".tar") for name in names) < 4
        finish(generator, out)
        got = contents(out)
        if got != wanted:
            differing = sorted(
                name for name in got.keys() | wanted.keys() if got.get(name) != wanted.get(name)
            )
            raise SystemExit(f"{out} differs from the undisturbed run in {differing}")
    return {
        "kills": killed,
        "folders": folders,
        "files": len(wanted),
        "seconds": round(duration, 3),
        "left_temp_files": in_write,
        "partly_done": partial,
    }


if __name__ == "__main__":
    summary = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(summary) + "\n")
