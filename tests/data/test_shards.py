"""Shards: round trip, fixed bytes, random access, and reading by another library."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glass_fast.data import atomic, manifest, png, shards
from glass_fast.data.shard_format import encode_sample, member, parse_sample
from glass_fast.errors import DataError, GlassError

ROOT = Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def random_samples(draw: st.DrawFn) -> shards.Sample:
    height, width, count = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return shards.Sample(
        draw(st.from_regex(r"[0-9a-z_-]{1,64}", fullmatch=True)),
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.integers(0, 256, (height, width), dtype=np.uint8),
        rng.integers(0, 256, (count, 3, 5), dtype=np.uint8),
        {
            "prompt": draw(TEXT),
            "caption": draw(TEXT),
            "classes": draw(st.lists(TEXT, max_size=3)),
            "seed": draw(st.integers(0, 2**63 - 1)),
            "flags": draw(st.lists(TEXT, max_size=2)),
            "scores": draw(
                st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=3)
            ),
            "thresholds": {"low": 0.5},
        },
    )


def write(folder: Path, samples: list[shards.Sample], shard_size: int = 2) -> shards.ShardDataset:
    plan = shards.ShardPlan(len(samples), shard_size, 1)
    manifest.write_manifest(folder, kind="shards", config={}, plan=plan.as_dict(), labels=("a", "b"))
    for spec in plan.shards:
        shards.write_shard(folder, spec, samples[spec.start : spec.stop])
    return shards.open_shards(folder)


def some(count: int, seed: int = 0) -> list[shards.Sample]:
    rng = np.random.default_rng(seed)
    return [
        shards.Sample(
            f"k{i}",
            rng.integers(0, 256, (8, 6, 3), dtype=np.uint8),
            rng.integers(0, 256, (8, 6), dtype=np.uint8),
            rng.integers(0, 256, (i % 3, 4, 3), dtype=np.uint8),
            {"prompt": f"p{i}", "classes": ["a"], "seed": i, "scores": {"confidence": i / 8}, "steps": 3},
        )
        for i in range(count)
    ]


def equal(left: shards.Sample, right: shards.Sample) -> bool:
    return (
        left.key == right.key
        and np.array_equal(left.image, right.image)
        and np.array_equal(left.mask, right.mask)
        and left.maps.tolist() == right.maps.tolist()
        and {**left.document(), **right.meta} == right.document() == {**right.document(), **left.meta}
    )


@settings(max_examples=150)
@given(sample=random_samples())
def test_sample_round_trip(sample: shards.Sample) -> None:
    back = parse_sample(b"".join(encode_sample(sample)), sample.key, Path("x.tar"))
    assert equal(sample, back)
    # what was read can be written again, to the same bytes
    assert encode_sample(back) == encode_sample(sample)


@settings(max_examples=25)
@given(
    samples=st.lists(random_samples(), min_size=1, max_size=5, unique_by=lambda s: s.key),
    size=st.integers(1, 3),
)
def test_folder_round_trip(
    samples: list[shards.Sample], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = write(tmp_path_factory.mktemp("shards"), samples, size)
    assert len(data) == len(samples) and data.labels == ("a", "b") and data.complete
    assert all(equal(a, b) for a, b in zip(samples, data, strict=True))
    rows = data.index().to_pylist()
    assert [row["key"] for row in rows] == data.keys() == [s.key for s in samples]
    for row, sample in zip(rows, samples, strict=True):
        for name in ("prompt", "caption", "classes", "seed", "flags"):
            assert row[name] == sample.meta[name]
        assert dict(row["scores"]) == sample.meta["scores"]
        assert json.loads(row["extra"]) == {"thresholds": {"low": 0.5}}
        assert (row["height"], row["width"], row["maps"]) == (*sample.mask.shape, len(sample.maps))


def test_access(tmp_path: Path) -> None:
    samples = some(7)
    data = write(tmp_path, samples, 3)
    for index in (6, 0, 3, 2, 5, -1, -7):
        assert equal(data[index], samples[index])
    for index in (7, -8):
        with pytest.raises(IndexError):
            data[index]


def test_many_open_files(tmp_path: Path) -> None:
    """More shards than files kept open: the number of open files stays bounded."""
    data = write(tmp_path, some(80), 1)
    for _ in range(2):
        assert [sample.key for sample in data] == data.keys()
    assert len(data._descriptors) <= 64
    data.close()
    assert not data._descriptors and data[79].key == "k79"


def _keys(data: shards.ShardDataset, indices: list[int]) -> list[str]:
    return [data[i].key for i in indices]


def test_worker_processes(tmp_path: Path) -> None:
    """The data set can be pickled and shared by workers that read at the same time."""
    data = write(tmp_path, some(6), 2)
    assert data[0].key == "k0"
    copied = pickle.loads(pickle.dumps(data))
    assert copied[5].key == "k5" and not data.__getstate__()["_descriptors"]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(_keys, [(data, [0, 3, 5]), (data, [4, 1])])
    assert found == [["k0", "k3", "k5"], ["k4", "k1"]]


def test_bytes_are_fixed(tmp_path: Path) -> None:
    """Two processes with other hash seeds, folders and times write the same bytes; headers hold no time or
    owner."""
    program = (
        "import sys; from pathlib import Path; from tests.reliability import writer; "
        "writer.run(Path(sys.argv[1]), 5, 2)"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "TZ": f"UTC+{seed}"}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / seed)], env=environment, check=True)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / s).iterdir()} for s in ("1", "2"))
    assert first == second and len(first) == 10
    with tarfile.open(tmp_path / "1" / "shard-000000.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (
                0,
                0,
                0,
                "",
                "",
                0o644,
            )
            assert info.isreg()


def test_meta_order_does_not_matter() -> None:
    sample = some(1)[0]
    turned = copy.deepcopy(sample)
    turned.meta = dict(reversed(list(sample.meta.items())))
    assert encode_sample(sample) == encode_sample(turned)


def test_read_by_webdataset(tmp_path: Path) -> None:
    """An independent reader sees the same members, pixels and facts in the same order."""
    webdataset = pytest.importorskip("webdataset")
    samples = some(5)
    write(tmp_path, samples, 2)
    urls = [str(tmp_path / f"shard-00000{i}.tar") for i in range(3)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [item["__key__"] for item in found] == [sample.key for sample in samples]
    for item, sample in zip(found, samples, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(item["png"]))), sample.image)
        mask = Image.open(io.BytesIO(item["mask.png"]))
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), sample.mask)
        if len(sample.maps):
            maps = np.asarray(Image.open(io.BytesIO(item["maps.png"])))
            assert np.array_equal(maps, sample.maps.reshape(-1, sample.maps.shape[2]))
        else:
            assert "maps.png" not in item
        assert json.loads(item["json"])["prompt"] == sample.meta["prompt"]


def test_palette() -> None:
    """The official VOC colours of a few classes and of void."""
    palette = np.array(png.voc_palette()).reshape(256, 3).tolist()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        3: (128, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {label: tuple(palette[label]) for label in known} == known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "A.b"}, "key"),
        ({"key": ""}, "key"),
        ({"key": "x" * 65}, "key"),
        ({"key": "ok\n"}, "key"),
        ({"image": np.zeros((8, 6), np.uint8)}, "image"),
        ({"image": np.zeros((8, 6, 3), np.float32)}, "image"),
        ({"mask": np.zeros((8, 7), np.uint8)}, "do not fit"),
        ({"maps": np.zeros((2, 0, 3), np.uint8)}, "empty"),
        ({"meta": {"key": "other"}}, "reserved"),
        ({"meta": {"seed": 2**63}}, "seed"),
        ({"meta": {"seed": True}}, "seed"),
        ({"meta": {"classes": "car"}}, "classes"),
        ({"meta": {"prompt": 3}}, "prompt"),
        ({"meta": {"score": float("nan")}}, "JSON"),
        ({"meta": {"thing": object()}}, "JSON"),
        ({"meta": {1: 2}}, "text keys"),
    ],
)
def test_malformed_samples_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    sample = some(1)[0]
    for name, value in change.items():
        setattr(sample, name, value)
    with pytest.raises(DataError, match=message):
        shards.write_shard(tmp_path, shards.ShardSpec(0, 0, 1), [sample])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 3])
def test_wrong_number_of_samples(count: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 are planned|planned 2 samples"):
        shards.write_shard(tmp_path, shards.ShardSpec(0, 0, 2), some(count))
    assert list(tmp_path.iterdir()) == []


def test_repeated_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="twice"):
        shards.write_shard(tmp_path, shards.ShardSpec(0, 0, 2), some(1) * 2)


def _tar_member(name: str, data: bytes = b"", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % 512)


GOOD = encode_sample(some(1)[0])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 512,
        b"x" * 700,
        GOOD[0] + GOOD[1],
        b"".join(GOOD) + GOOD[0],
        b"".join(GOOD) + _tar_member("k0.sh", b"rm"),
        b"".join(GOOD) + _tar_member("../k0.maps.png", b"x"),
        b"".join(GOOD) + _tar_member("k1.maps.png", b"x"),
        b"".join(GOOD) + _tar_member("k0.maps.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        b"".join(GOOD) + _tar_member("k0.maps.png", type=tarfile.LNKTYPE, linkname="k0.png"),
        b"".join(GOOD) + _tar_member("k0.maps.png", type=tarfile.DIRTYPE),
        b"".join(GOOD) + _tar_member("k0.maps.png", type=tarfile.CHRTYPE),
        b"".join(GOOD) + _tar_member("k0.maps.png", type=b"S"),
        b"".join(GOOD) + _tar_member("k0.maps.png", b"x" * 10, type=b"x"),
        b"".join(GOOD)[:-600],
        GOOD[0] + GOOD[1] + member("k0.json", b"{"),
        GOOD[0] + GOOD[1] + member("k0.json", b'{"maps": [1, 2]}'),
        GOOD[0] + GOOD[1] + member("k0.json", b'{"maps": [1, 4, 3]}'),
        GOOD[0] + GOOD[1] + member("k0.json", b"[" * 100_000),
        member("k0.png", b"not a png") + GOOD[1] + GOOD[2],
        member("k0.png", GOOD[1][512:]) + GOOD[1] + GOOD[2],
    ],
)
def test_hostile_archives(data: bytes) -> None:
    """Crafted members (links, devices, foreign names, sparse and pax tricks, wrong content): a typed
    error."""
    with pytest.raises(DataError):
        parse_sample(data, "k0", Path("x.tar"))


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_members(data: st.DataObject) -> None:
    """Whatever the bytes: a sample of sound shapes or a typed error."""
    raw = bytearray(b"".join(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        sample = parse_sample(bytes(raw[: data.draw(st.integers(0, len(raw)))]), "k0", Path("x.tar"))
    except DataError:
        return
    sample.check()


@settings(max_examples=80)
@given(data=st.data())
def test_mutated_small_files_with_fitting_checksum(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Manifest and record with other values under a valid checksum (a foreign writer): read, or a typed
    error."""
    folder = tmp_path_factory.mktemp("mutated")
    write(folder, some(3), 2)
    path = folder / data.draw(st.sampled_from(["manifest.json", "shard-000000.json"]))
    content = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(content)))
    value = (
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT | st.lists(st.integers(), max_size=2)
    )
    content[key] = data.draw(value | st.dictionaries(TEXT, value, max_size=2))
    path.write_bytes(atomic.canonical_json(atomic.seal(content)))
    try:
        opened = shards.open_shards(folder)
        for sample in opened:
            sample.check()
        opened.verify()
    except GlassError as error:
        assert error.code.startswith("GF-DATA-") or error.code == "GF-CONFIG-110"


def test_unfinished_folder(tmp_path: Path) -> None:
    samples = some(4)
    plan = shards.ShardPlan(4, 2, 1)
    manifest.write_manifest(tmp_path, kind="shards", config={}, plan=plan.as_dict(), labels=())
    shards.write_shard(tmp_path, plan.shards[1], samples[2:])
    with pytest.raises(DataError) as caught:
        shards.open_shards(tmp_path)
    assert caught.value.code == "GF-DATA-142" and "1 of 2" in caught.value.message
    data = shards.open_shards(tmp_path, partial=True)
    assert not data.complete and data.keys() == ["k2", "k3"] and data[0].key == "k2"


def test_empty_partial_folder(tmp_path: Path) -> None:
    manifest.write_manifest(tmp_path, kind="shards", config={}, plan=shards.ShardPlan(4, 2, 1).as_dict())
    data = shards.open_shards(tmp_path, partial=True)
    assert len(data) == 0 and list(data) == [] and data.index().num_rows == 0


def test_not_a_shard_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        shards.open_shards(tmp_path)
    assert caught.value.code == "GF-DATA-131" and str(tmp_path) in caught.value.message
    manifest.write_manifest(tmp_path / "x", kind="models", config={})
    with pytest.raises(DataError, match="no plan"):
        shards.open_shards(tmp_path / "x")
