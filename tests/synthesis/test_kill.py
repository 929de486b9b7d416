"""kill -9 at random moments: resumed shards, indices and records equal an undisturbed run's byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("kills", "seed"), [(20, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(tmp_path: Path, repo_root: Path, kills: int, seed: int) -> None:
    script = Path(__file__).with_name("kill_worker.py")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(repo_root), str(script.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills), str(seed)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["kills"] == kills
    assert summary["files"] == 1 + 3 * 4  # manifest and 4 shards of tar, index and record
    assert summary["partly_done"] >= kills // 10, "the kills must hit jobs in the middle"
