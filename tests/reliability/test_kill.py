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
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


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


def _random_kills(folder: Path, kills: int, seed: int) -> None:
    """Kill a job at random moments of its work until ``kills`` of them have hit it; restart until each is done.

    A kill waits for a random number of commits and then for a random part of a shard's time, so that it hits the
    work however slow the machine is.
    """
    num = 36
    begin = time.monotonic()
    writer.run(folder / "reference", num, SHARD_SIZE)
    shard_time = (time.monotonic() - begin) * SHARD_SIZE / num
    reference = tree(folder / "reference")
    chance = random.Random(seed)
    hits = inside = run = attempts = 0
    while hits < kills:
        attempts += 1
        assert attempts < 10 * kills
        out = folder / f"run{run}"
        process = start(out, num)
        assert process.stdout is not None
        for _ in range(1 + chance.randint(0, 3)):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 1.5 * shard_time))
        process.kill()
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        hits += process.returncode == -signal.SIGKILL
        done = check_partial(out) if out.exists() else 0
        inside += 0 < done < num
        if done == num:
            assert (
                writer.run(out, num, SHARD_SIZE) == []
            )  # removes the temporary file of a kill after the commit
            assert tree(out) == reference
            run += 1
    writer.run(folder / f"run{run}", num, SHARD_SIZE)
    assert tree(folder / f"run{run}") == reference
    # half of the kills must have hit a job with something committed and more to do; otherwise little was tested
    assert inside >= kills // 2, f"{inside} of {kills} kills hit the work"


def test_random_kills(tmp_path: Path) -> None:
    """20 kills (``make test-all``: 200)."""
    _random_kills(tmp_path, 20, seed=1)


@pytest.mark.slow
def test_random_kills_in_full(tmp_path: Path) -> None:
    _random_kills(tmp_path, 200, seed=2)


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
