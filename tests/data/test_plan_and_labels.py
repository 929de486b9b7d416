"""Shard plan, label sets, prompt table and sample seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_fast.data.label_sets import LabelSet, label_set
from glass_fast.data.plan import ShardPlan
from glass_fast.data.prompts import Prompt, read_prompt_metadata, read_prompts, sample_seed, write_prompts
from glass_fast.errors import ConfigError, DataError

METADATA = {"vocabulary": "partworld", "labels": ["car", "cup"]}


@settings(max_examples=300)
@given(num=st.integers(1, 500), size=st.integers(1, 60), batch=st.integers(1, 70))
def test_plan_covers_every_sample_once(num: int, size: int, batch: int) -> None:
    plan = ShardPlan(num, size, batch)
    seen = []
    for number, spec in enumerate(plan.shards):
        assert spec.index == number and 1 <= spec.count <= size
        batches = plan.micro_batches(spec)
        assert all(1 <= len(rows) <= batch for rows in batches)
        assert all(len(rows) == batch for rows in batches[:-1])
        rows = [i for batch_rows in batches for i in batch_rows]
        assert rows == list(range(spec.start, spec.stop))
        seen += rows
    assert seen == list(range(num))


@pytest.mark.parametrize("values", [(0, 1, 1), (1, 0, 1), (1, 1, -2), (1.5, 1, 1), (True, 1, 1)])
def test_plan_refuses(values: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        ShardPlan(*values)


def test_built_in_label_sets() -> None:
    voc, coco, world = (label_set(name) for name in ("voc", "coco", "partworld"))
    assert (len(voc), len(coco), len(world)) == (20, 80, 10)
    assert len({*voc.official, *coco.names}) == 86
    assert voc.label_of("aeroplane") == 1 and voc.label_of("tv monitor") == voc.label_of("tvmonitor") == 20
    assert voc.label_of("person") == 15 and voc.official[15] == "pottedplant"
    assert coco.label_of_category(90) == 80 and coco.names[79] == "toothbrush" and coco.category_ids[11] == 13
    assert sorted(set(range(1, 91)) - set(coco.category_ids)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    shared = {*world.names} & {*voc.names, *coco.names}
    assert len(shared) >= 6 and any(" " in name for name in shared)
    assert [voc.name_of(i) for i in (0, 1, 255)] == ["background", "aeroplane", "uncertain"]


def test_coco_matches_the_official_file(real_data: Path) -> None:
    content = json.loads((real_data / "coco/annotations/instances_val2017.json").read_text())
    official = {item["id"]: item["name"] for item in content["categories"]}
    coco = label_set("coco")
    assert dict(zip(coco.category_ids, coco.names, strict=True)) == official


def test_label_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeff# animals\nred   panda\n\n caf\u0065\u0301 cat \r\n", encoding="utf-8")
    labels = label_set(path)
    assert labels.names == ("red panda", "caf\u00e9 cat") and labels.label_of("red panda") == 1
    for text, message in (
        ("a\nb\na\n", r":3: class 'a' is already in line 1"),
        ("# x\n", "0 class names"),
        ("a\x07b", "usable"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            label_set(path)
    path.write_text("\n".join(f"c{i}" for i in range(255)))
    with pytest.raises(DataError, match="255 class names"):
        label_set(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="UTF-8"):
        label_set(path)
    with pytest.raises(ConfigError, match="'cocoo' is neither"):
        label_set("cocoo")


@pytest.mark.parametrize(
    "call", [lambda s: s.label_of("wolf"), lambda s: s.label_of_category(9), lambda s: s.name_of(3)]
)
def test_unknown_labels(call) -> None:
    with pytest.raises(DataError) as caught:
        call(LabelSet("two", ("a", "b")))
    assert caught.value.code == "GF-DATA-111"


def prompt(number: int = 0, **changes: object) -> Prompt:
    row = Prompt(f"p{number}", "a red car", ("car", "cup"), "a red car; car cup", "car cup", 17, "list", "")
    return replace(row, **changes)  # type: ignore[arg-type]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ROWS = st.builds(
    Prompt,
    id=st.from_regex(r"[0-9a-z_-]{1,64}", fullmatch=True),
    caption=TEXT,
    classes=st.lists(TEXT.filter(str.strip), max_size=4).map(tuple),
    prompt=TEXT,
    class_prompt=TEXT,
    seed=st.integers(0, 2**63 - 1),
    source=TEXT,
    image_id=TEXT,
)


@settings(max_examples=60)
@given(rows=st.lists(ROWS, max_size=6, unique_by=lambda row: row.id))
def test_prompt_table_round_trip(rows: list[Prompt], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    for name in ("a", "b"):
        write_prompts(folder / name, rows, METADATA)
    assert read_prompts(folder / "a") == rows
    assert read_prompt_metadata(folder / "a") == METADATA
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"id": "p0"}, "id"),
        ({"id": "P.1"}, "id"),
        ({"id": "p1\n"}, "id"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"caption": "x" * 4097}, "caption"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"classes": (" ",)}, "classes"),
        ({"source": None}, "source"),
    ],
)
def test_bad_rows_are_named(changes: dict[str, object], column: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        write_prompts(tmp_path / "p", [prompt(0), prompt(1, **changes)], METADATA)
    assert caught.value.code == "GF-DATA-121"
    assert f"row 1, column {column!r}" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_foreign_parquet_is_checked(tmp_path: Path) -> None:
    """Tables written by other tools: equivalent types pass, everything else is named."""
    path = tmp_path / "p.parquet"
    rows = {
        name: pa.array([getattr(prompt(), name)]) for name in Prompt.__dataclass_fields__ if name != "classes"
    }
    rows["classes"] = pa.array([["car"]], pa.large_list(pa.large_string()))
    rows["caption"] = pa.array(["x"], pa.large_string())
    pq.write_table(pa.table(rows), path)
    assert read_prompts(path)[0].classes == ("car",)
    with pytest.raises(DataError, match="vocabulary"):
        read_prompt_metadata(path)
    for column, array, message in (
        ("seed", pa.array([1.5]), "'seed' has type double"),
        ("classes", pa.array(["car"]), "'classes' has type string"),
        ("id", pa.array([None], pa.string()), "row 0, column 'id'"),
        ("classes", pa.array([None], pa.list_(pa.string())), "row 0, column 'classes'"),
        ("classes", pa.array([[None]], pa.list_(pa.string())), "row 0, column 'classes'"),
        ("seed", pa.array([-3]), "row 0, column 'seed'"),
    ):
        pq.write_table(pa.table({**rows, column: array}), path)
        with pytest.raises(DataError, match=message):
            read_prompts(path)
    pq.write_table(pa.table({name: array for name, array in rows.items() if name != "prompt"}), path)
    with pytest.raises(DataError, match="column 'prompt' is missing"):
        read_prompts(path)


def test_damaged_prompt_tables(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_prompts(path, [prompt(i) for i in range(5)], METADATA)
    clean = path.read_bytes()
    for content in (b"", b"PAR1", clean[:100], clean[:-9], b"x" * 500):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_prompts(path)
        assert caught.value.code == "GF-DATA-120" and str(path) in caught.value.message
    with pytest.raises(DataError, match="absent"):
        read_prompts(tmp_path / "absent.parquet")
    with pytest.raises(DataError, match="vocabulary"):
        write_prompts(path, [], {"labels": ["a"]})


def test_mutated_prompt_tables(tmp_path: Path) -> None:
    """400 mutated tables: rows or a typed error, never anything else."""
    import random

    path = tmp_path / "p.parquet"
    write_prompts(path, [prompt(i) for i in range(5)], METADATA)
    clean = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(clean)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_prompts(path)
            read_prompt_metadata(path)
        except DataError:
            refused += 1
    assert refused > 100


def test_sample_seed() -> None:
    """Pinned values (data sets made earlier must be made again with the same noise), range and
    independence."""
    assert sample_seed(0, "p0", "noise") == 1442517701591920169
    values = {sample_seed(r, f"s{i}", p) for r in range(3) for i in range(2000) for p in ("noise", "text")}
    assert len(values) == 12_000 and all(0 <= value < 2**63 for value in values)
    assert sample_seed(1, "23", "x") != sample_seed(12, "3", "x") and sample_seed(
        1, "a", "bc"
    ) != sample_seed(1, "ab", "c")
    # the top bit is in use: half of the values lie in the upper half of the range (6 sigma: 0.5 +- 0.027)
    assert abs(sum(value >= 2**62 for value in values) / len(values) - 0.5) < 0.027
