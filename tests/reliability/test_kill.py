"""kill -9 at every step of the commit protocol and at random moments, then resume: nothing lost, doubled or
changed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glass_fast.data import shards
from glass_fast.data.faults import SHARD_FAULT_POINTS
from tests.reliability import writer

ROOT = Path(__file__).resolve().parents[2]
NUM, SHARD_SIZE = 7, 3


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file in a folder, hidden ones included."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    writer.run(out, NUM, SHARD_SIZE)
    return tree(out)


def start(out: Path, num: int = NUM, fault: str = "") -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "GLASS_FAST_FAULT": fault,
        "PYTHONHASHSEED": "random",
    }
    command = [sys.executable, str(ROOT / "tests/reliability/writer.py"), str(out), str(num), str(SHARD_SIZE)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def check_partial(out: Path) -> int:
    """Whatever has a commit record can be read in full; returns the number of samples."""
    if not (out / "manifest.json").exists():
        return 0
    data = shards.open_shards(out, partial=True)
    assert data.verify() == []
    for sample in data:
        expected = writer.make_sample(int(sample.key[1:]))
        assert (sample.image == expected.image).all()
        assert (sample.mask == expected.mask).all()
        assert sample.maps.tolist() == expected.maps.tolist()
    return len(data)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("point", SHARD_FAULT_POINTS)
def test_kill_at_fault_point(point: str, count: int, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    hit = {1: 7, 2: 15}[count] if point == "write_member" else count  # inside the first and second shard
    out = tmp_path / "out"
    process = start(out, fault=f"{point}:{hit}")
    _, error = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, error.decode()
    before = check_partial(out)
    # the record has its final name from the step before these two on
    done = count if point in ("fsync_dir2", "report") else count - 1
    assert before == done * SHARD_SIZE
    redone = writer.run(out, NUM, SHARD_SIZE)
    assert len(redone) == 3 - before // SHARD_SIZE  # committed shards are not made again
    assert tree(out) == undisturbed


def _random_kills(out: Path, kills: int, num: int, reference: dict[str, str], seed: int) -> int:
    """Kill runs at random moments until ``kills`` of them hit a running process; returns the complete
    runs."""
    chance = random.Random(seed)
    done = complete = attempt = 0
    while done < kills:
        attempt += 1
        process = start(out / f"run{complete}", num=num)
        try:
            process.wait(timeout=chance.uniform(0.12, 0.9))
        except subprocess.TimeoutExpired:
            process.kill()
        _, error = process.communicate()
        if process.returncode == -signal.SIGKILL:
            done += 1
            check_partial(out / f"run{complete}")
        else:
            assert process.returncode == 0, error.decode()
            assert tree(out / f"run{complete}") == reference
            complete += 1
        assert attempt < 20 * kills
    writer.run(out / f"run{complete}", num, SHARD_SIZE)
    assert tree(out / f"run{complete}") == reference
    return complete + 1


def _reference(folder: Path, num: int) -> dict[str, str]:
    writer.run(folder, num, SHARD_SIZE)
    return tree(folder)


def test_random_kills(tmp_path: Path) -> None:
    """20 kills (``make test-all``: 200)."""
    assert _random_kills(tmp_path, 20, 150, _reference(tmp_path / "reference", 150), seed=1) >= 1


@pytest.mark.slow
def test_random_kills_in_full(tmp_path: Path) -> None:
    assert _random_kills(tmp_path, 200, 150, _reference(tmp_path / "reference", 150), seed=2) >= 1


def test_competing_writers(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """Four processes that write the same shards at once: one set of files, no error, no left-over."""
    out = tmp_path / "out"
    processes = [start(out) for _ in range(4)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()
    assert tree(out) == undisturbed


def test_interrupted_run_leaves_no_temp(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """An exception from the sample source drops the open shard and keeps the committed ones."""

    def broken() -> object:
        yield writer.make_sample(3)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    writer.run(out, 3, SHARD_SIZE)
    with pytest.raises(KeyboardInterrupt):
        shards.write_shard(out, shards.ShardSpec(1, 3, 6), broken())  # type: ignore[arg-type]
    assert sorted(tree(out)) == [
        "manifest.json",
        "shard-000000.json",
        "shard-000000.parquet",
        "shard-000000.tar",
    ]


def test_temps_of_living_writers_stay(tmp_path: Path) -> None:
    """Only left-overs of dead processes (or old ones of other hosts) are removed."""
    from glass_fast.data import atomic

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = atomic._host()
    names = {
        f".tmp-{host}-{dead.pid}-0123456789abcdef": True,
        f".tmp-{host}-{os.getpid()}-0123456789abcdef": False,
        ".tmp-elsewhere-1-0123456789abcdef": False,
        ".tmp-elsewhere-2-0123456789abcdef": True,
        ".tmp-notes": False,
        "shard-000000.tar": False,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    old = time.time() - 7200
    os.utime(tmp_path / ".tmp-elsewhere-2-0123456789abcdef", (old, old))
    removed = {path.name for path in shards.clean_temps(tmp_path)}
    assert removed == {name for name, gone in names.items() if gone}
    assert {path.name for path in tmp_path.iterdir()} == {name for name, gone in names.items() if not gone}
