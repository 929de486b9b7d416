"""Order of the operating system calls, storage failures at every call, conflicts, and damage after the
commit."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glass_fast.data import atomic, manifest, shards
from glass_fast.errors import ConfigError, DataError, EnvironmentProblem, GlassError
from tests.reliability import writer

ROOT = Path(__file__).resolve().parents[2]
SPEC = shards.ShardSpec(0, 0, 3)


def samples() -> list[shards.Sample]:
    return [writer.make_sample(i) for i in range(3)]


class Recorder:
    """Wraps the calls that matter in ``os`` and writes down what happens to which file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        self.names: dict[int, str] = {}
        real_open, real_fsync, real_write = os.open, os.fsync, os.write
        real_link, real_rename = os.link, os.rename

        def fake_open(path: str, flags: int, *rest: int) -> int:
            descriptor = real_open(path, flags, *rest)
            self.names[descriptor] = os.fspath(path)
            if flags & os.O_CREAT:
                assert flags & os.O_EXCL
                self.events.append(("create", os.fspath(path)))
            return descriptor

        def fake_write(descriptor: int, data: bytes) -> int:
            self.events.append(("write", self.names[descriptor]))
            return real_write(descriptor, data)

        def fake_fsync(descriptor: int) -> None:
            self.events.append(("fsync", self.names[descriptor]))
            real_fsync(descriptor)

        def fake_link(source: str, target: str) -> None:
            self.events.append(("publish", f"{source} -> {target}"))
            real_link(source, target)

        def fake_rename(source: str, target: str) -> None:
            self.events.append(("publish", f"{source} -> {target}"))
            real_rename(source, target)

        for name, fake in (
            ("open", fake_open),
            ("write", fake_write),
            ("fsync", fake_fsync),
            ("link", fake_link),
            ("rename", fake_rename),
        ):
            monkeypatch.setattr(os, name, fake)

    def at(self, kind: str, text: str) -> list[int]:
        return [i for i, (event, name) in enumerate(self.events) if event == kind and text in name]


def test_order_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data are on the disk before a name appears, and names before the commit record gets its own.

    A kill cannot show a missing fsync (the page cache survives), so the calls themselves are checked.
    """
    recorder = Recorder(monkeypatch)
    shards.write_shard(tmp_path, SPEC, samples())
    monkeypatch.undo()
    order = []
    for suffix in ("tar", "parquet", "json"):
        (published,) = recorder.at("publish", f"-> {tmp_path}/shard-000000.{suffix}")
        temp = recorder.events[published][1].split(" -> ")[0]
        assert Path(temp).parent == tmp_path and Path(temp).name.startswith(".tmp-")
        (synced,) = recorder.at("fsync", temp)
        assert max(recorder.at("write", temp)) < synced < published
        order.append((synced, published))
    (tar_synced, tar), (index_synced, index), (record_synced, record) = order
    folder = [i for i, event in enumerate(recorder.events) if event == ("fsync", str(tmp_path))]
    assert len(folder) == 2
    assert max(tar_synced, index_synced) < tar < index < folder[0] < record_synced < record < folder[1]
    assert recorder.events[-1] == ("fsync", str(tmp_path))


def test_order_of_calls_of_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    atomic.write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.undo()
    assert [kind for kind, _ in recorder.events] == ["create", "write", "fsync", "publish", "fsync"]
    assert recorder.events[-1] == ("fsync", str(tmp_path))
    atomic.write_json(tmp_path / "a.json", {"a": 2})  # a single file is replaced
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


CALLS = ("open", "write", "fsync", "link")


def _count_calls(call: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    count = 0
    real: Callable[..., object] = getattr(os, call)

    def counting(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, counting)
    shards.write_shard(folder, SPEC, samples())
    monkeypatch.undo()
    return count


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "GF-ENV-101"),
        (errno.EROFS, "GF-ENV-102"),
        (errno.EACCES, "GF-ENV-102"),
        (errno.EIO, "GF-ENV-103"),
    ],
)
def test_storage_failure_at_every_call(
    call: str, number: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call fails: a typed error, no temporary file, earlier commits intact, and a second try
    succeeds."""
    total = _count_calls(call, atomic.make_directory(tmp_path / "count"), monkeypatch)
    expected = {p.name: p.read_bytes() for p in (tmp_path / "count").iterdir()}
    assert total >= 3
    for failing in range(total):
        folder = atomic.make_directory(tmp_path / f"{failing}")
        real = getattr(os, call)
        hits = 0

        def fail(*arguments: object, real=real, failing=failing, **options: object) -> object:
            nonlocal hits
            hits += 1
            if hits == failing + 1:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(EnvironmentProblem) as caught:
                shards.write_shard(folder, SPEC, samples())
        assert caught.value.code == code
        assert "shard-000000" in caught.value.message and caught.value.hint
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]
        shards.write_shard(folder, SPEC, samples())
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == expected


def test_real_full_disk(tmp_path: Path) -> None:
    """The kernel refuses a write (file size limit): exit through the typed error, nothing under a final
    name."""
    program = (
        "import sys; from pathlib import Path\n"
        "from glass_fast.errors import EnvironmentProblem\n"
        "from tests.reliability import writer\n"
        "try: writer.run(Path(sys.argv[1]), 3, 3)\n"
        "except EnvironmentProblem as error: sys.stderr.write(error.code); sys.exit(error.exit_code)\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        env=environment,
        preexec_fn=limit,
        capture_output=True,
    )
    assert (done.returncode, done.stderr.decode()) == (4, "GF-ENV-101")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentProblem) as caught:
        manifest.write_manifest(tmp_path / "file" / "out", kind="shards", config={})
    assert caught.value.code == "GF-ENV-103" and str(tmp_path / "file") in caught.value.message


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    first = shards.write_shard(tmp_path, SPEC, samples())
    assert shards.write_shard(tmp_path, SPEC, samples()) == first
    changed = samples()
    changed[0].image[0, 0, 0] ^= 1
    with pytest.raises(DataError, match="conflict"):
        shards.write_shard(tmp_path, SPEC, changed)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"shard-000000.{s}" for s in ("json", "parquet", "tar")
    ]


def test_conflict_is_never_overwritten(tmp_path: Path) -> None:
    shards.write_shard(tmp_path, SPEC, samples())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = samples()
    changed[1].mask[0, 0] ^= 1
    with pytest.raises(DataError) as caught:
        shards.write_shard(tmp_path, SPEC, changed)
    assert caught.value.code == "GF-DATA-101" and "shard-000000.tar" in caught.value.message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # the same samples with other facts for the record: tar and index agree, the record does not
    with pytest.raises(DataError, match=r"conflict: .*shard-000000\.json"):
        shards.write_shard(tmp_path, SPEC, samples(), extra={"micro_batch": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resume_looks_at_records_only(tmp_path: Path) -> None:
    """A complete tar without its record does not exist; it is made again and found identical."""
    writer.run(tmp_path, 6, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "shard-000001.json").unlink()
    plan = shards.ShardPlan(6, 3, 2)
    assert shards.completed(tmp_path, plan) == {0}
    assert writer.run(tmp_path, 6, 3) == [1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    writer.run(tmp_path / "out", 6, 3)
    return tmp_path / "out"


def _use(folder: Path) -> list[str]:
    """Open, verify and read everything."""
    data = shards.open_shards(folder)
    problems = data.verify()
    for sample in data:
        assert sample.image.size
    data.index()
    return problems


def test_every_bit_flip_is_found(finished: Path) -> None:
    """One flipped bit anywhere in any file is found by a typed error or by ``verify``; clean folders pass."""
    assert _use(finished) == []
    chance = random.Random(0)
    for path in sorted(finished.iterdir()):
        clean = path.read_bytes()
        for _ in range(30):
            damaged = bytearray(clean)
            damaged[chance.randrange(len(clean))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            try:
                found = bool(_use(finished))
            except GlassError as error:
                found = error.code.startswith(("GF-DATA-", "GF-CONFIG-"))
            assert found, path.name
        path.write_bytes(clean)
    assert _use(finished) == []


def test_flipped_pixels_are_found_when_read(finished: Path) -> None:
    """Reading a sample finds damage by itself, without ``verify``, whether or not the PNG still decodes."""
    tar = finished / "shard-000001.tar"
    clean = tar.read_bytes()
    table = shards.open_shards(finished).index().to_pylist()
    chance = random.Random(1)
    for row in table[3:]:
        for _ in range(20):
            damaged = bytearray(clean)
            damaged[chance.randrange(row["offset"], row["offset"] + row["size"])] ^= 1 << chance.randrange(8)
            tar.write_bytes(damaged)
            data = shards.open_shards(finished)
            with pytest.raises(DataError) as caught:
                data[[r["key"] for r in table].index(row["key"])]
            assert caught.value.code == "GF-DATA-140" and row["key"] in caught.value.message


@pytest.mark.parametrize("suffix", ["tar", "parquet", "json"])
def test_every_truncation_is_found(finished: Path, suffix: str) -> None:
    path = finished / f"shard-000000.{suffix}"
    clean = path.read_bytes()
    cuts = sorted(
        {0, 1, 511, 512, 513, len(clean) // 2, len(clean) - 512, len(clean) - 1} & set(range(len(clean)))
    )
    for cut in cuts:
        path.write_bytes(clean[:cut])
        with pytest.raises(DataError) as caught:
            _use(finished)
        assert caught.value.code == "GF-DATA-140" and "shard-000000" in caught.value.message
    path.unlink()
    if suffix == "json":
        with pytest.raises(DataError, match="1 of 2 shards"):
            _use(finished)
    else:
        with pytest.raises(DataError, match=f"shard-000000.{suffix}"):
            _use(finished)


def test_shards_of_another_plan_are_refused(finished: Path) -> None:
    with pytest.raises(DataError, match="not about samples"):
        shards.completed(finished, shards.ShardPlan(6, 2, 2))


def test_other_configuration_in_the_same_folder(finished: Path) -> None:
    plan = shards.ShardPlan(6, 3, 2).as_dict()
    with pytest.raises(ConfigError) as caught:
        manifest.write_manifest(
            finished,
            kind="shards",
            config={"seed": 8, "new": {"x": 1}},
            plan={**plan, "num": 9},
            labels=writer.LABELS,
        )
    assert caught.value.code == "GF-CONFIG-120"
    for text in ("config.new", "config.seed: there 7, now 8", "plan.num: there 6, now 9"):
        assert text in caught.value.message
    with pytest.raises(ConfigError, match="labels"):
        manifest.write_manifest(finished, kind="shards", config={"seed": 7}, plan=plan, labels=("other",))


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError) as caught:
        manifest.write_manifest(tmp_path, kind="shards", config={})
    assert caught.value.code == "GF-CONFIG-121" and "thesis.tex" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_run_log_of_a_failed_start_is_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text("{}\n")
    (tmp_path / ".tmp-left-over").write_text("x")
    manifest.write_manifest(tmp_path, kind="shards", config={})
    assert manifest.read_manifest(tmp_path)["kind"] == "shards"
