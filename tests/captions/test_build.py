"""The prompt table from every source that needs no model; the captioner is tested in test_captioner.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glass_fast.captions import build_prompts
from glass_fast.config.schema import CaptionsConfig
from glass_fast.data.label_sets import label_set
from glass_fast.data.png import encode_labels, encode_rgb
from glass_fast.data.prompts import Prompt, read_prompt_metadata, read_prompts, sample_seed
from glass_fast.errors import ConfigError, DataError

COCO, VOC, PARTWORLD = label_set("coco"), label_set("voc"), label_set("partworld")


def build(tmp_path: Path, labels: Any = COCO, seed: int = 5, tokenizer: Any = None, **options: Any) -> Any:
    out = tmp_path / "out"
    stats = build_prompts(CaptionsConfig(**options), labels, out, seed, tokenizer=tokenizer)
    return read_prompts(out / "prompts.parquet"), stats, out


def rejects(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "prompts.rejects.jsonl").read_text("utf-8").splitlines()]


def write_captions(path: Path) -> Path:
    captions = [
        (139, 9, "A dog."),
        (139, 3, "two cats; and a dog"),
        (7, 4, "a sunset"),
        (7, 12, "A Bus\n\nstop, a bus"),
    ]
    rows = [{"image_id": image, "id": number, "caption": text} for image, number, text in captions]
    path.write_text(json.dumps({"annotations": rows, "images": []}), "utf-8")
    return path


def test_coco_captions(tmp_path: Path) -> None:
    """First captions of all images before second ones; format ``caption; c1 c2``; rejected rows leave no
    gap."""
    rows, stats, out = build(tmp_path, source="provided", file=str(write_captions(tmp_path / "c.json")))
    assert rows == [
        Prompt(
            "000000000139-0",
            "two cats; and a dog",
            ("cat", "dog"),
            "two cats; and a dog; cat dog",
            "cat dog",
            sample_seed(5, "000000000139-0", "image"),
            "provided",
            "000000000139",
        ),
        Prompt(
            "000000000007-1",
            "A Bus stop, a bus",
            ("bus",),
            "A Bus stop, a bus; bus",
            "bus",
            sample_seed(5, "000000000007-1", "image"),
            "provided",
            "000000000007",
        ),
        Prompt(
            "000000000139-1",
            "A dog",
            ("dog",),
            "A dog; dog",
            "dog",
            sample_seed(5, "000000000139-1", "image"),
            "provided",
            "000000000139",
        ),
    ]
    assert stats["without_classes"] == 1 and stats["rejected"] == {"GF-CAP-003": 1}
    assert [row["id"] for row in rejects(out)] == ["000000000007-0"]
    assert stats["classes"] == {"dog": 2, "cat": 1, "bus": 1}
    metadata = read_prompt_metadata(out / "prompts.parquet")
    assert metadata["vocabulary"] == "coco" and metadata["labels"] == list(COCO.names)


def test_ids_and_seeds_do_not_depend_on_the_rest(tmp_path: Path) -> None:
    """Another limit, class list or seed leaves ids as they are; seeds follow the run seed only."""
    file = str(write_captions(tmp_path / "c.json"))
    rows, _, _ = build(tmp_path, source="provided", file=file)
    fewer, _, _ = build(tmp_path, source="provided", file=file, limit=1)
    assert fewer == rows[:1]
    kept, _, _ = build(tmp_path, source="provided", file=file, keep_without_classes=True)
    assert [row for row in kept if row.classes] == rows
    assert [(row.id, row.prompt, row.class_prompt) for row in kept if not row.classes] == [
        ("000000000007-0", "a sunset", "")
    ]
    other, _, _ = build(tmp_path, source="provided", file=file, seed=6)
    assert [row.id for row in other] == [row.id for row in rows]
    assert not {row.seed for row in other} & {row.seed for row in rows}


def test_equal_bytes(tmp_path: Path) -> None:
    file = str(write_captions(tmp_path / "c.json"))
    tables = []
    for name in ("a", "b"):
        build_prompts(CaptionsConfig(source="provided", file=file), COCO, tmp_path / name / "t.parquet", 1)
        tables.append((tmp_path / name / "t.parquet").read_bytes())
    assert tables[0] == tables[1]


def test_max_classes(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a dog, a cat, a cow and a sheep\n", "utf-8")
    rows, stats, _ = build(tmp_path, source="provided", file=str(tmp_path / "c.txt"), max_classes=2)
    assert (
        rows[0].classes == ("dog", "cat")
        and rows[0].prompt.endswith("; dog cat")
        and stats["cut_classes"] == 2
    )


def test_text_file(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, empty lines, control characters, decomposed accents, an overlong line."""
    lines = ["\ufeffa dog\r", "", "  ", "un chat: a cat, cafe\u0301\u0007", "a cow " * 600, "a sheep"]
    (tmp_path / "c.txt").write_bytes("\n".join(lines).encode("utf-8"))
    rows, _, out = build(tmp_path, source="provided", file=str(tmp_path / "c.txt"))
    assert [(row.id, row.caption) for row in rows] == [
        ("00000001", "a dog"),
        ("00000004", "un chat: a cat, café"),
        ("00000006", "a sheep"),
    ]
    assert [(row["id"], row["code"]) for row in rejects(out)] == [("00000005", "GF-CAP-002")]
    (tmp_path / "bad.txt").write_bytes(b"a dog\na caf\xe9\n")
    with pytest.raises(DataError, match=r"bad\.txt:2 is not UTF-8"):
        build(tmp_path, source="provided", file=str(tmp_path / "bad.txt"))


def test_parquet(tmp_path: Path) -> None:
    """Given classes win over the caption's words and may be synonyms; ids may be any text."""
    table = pa.table(
        {
            "id": ["first", "Second One", "third", "first"],
            "image_id": pa.array(["x", None, "000000000009", "x"]),
            "caption": ["a dog", "a cat", "a scene", "a bus"],
            "classes": pa.array([["couch", "sofa", "tv"], None, ["cow"], None], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    rows, _, out = build(tmp_path, VOC, source="provided", file=str(tmp_path / "c.parquet"))
    assert [row.classes for row in rows] == [("sofa", "tv monitor"), ("cat",), ("cow",)]
    assert (
        rows[0].id == "first" and rows[1].id.startswith("second-one-") and rows[2].image_id == "000000000009"
    )
    assert rows[0].prompt == "a dog; sofa tv monitor"
    assert [row["code"] for row in rejects(out)] == ["GF-CAP-015"]
    pq.write_table(pa.table({"caption": ["a dog", "a cat"]}), tmp_path / "plain.parquet")
    rows, _, _ = build(tmp_path, VOC, source="provided", file=str(tmp_path / "plain.parquet"))
    assert [row.id for row in rows] == ["00000000", "00000001"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "no column 'caption'; found text"),
        ({"caption": [3]}, "row 0, column 'caption': '3'; expected text"),
        ({"caption": ["a", None]}, "row 1, column 'caption'"),
        ({"caption": ["a"], "classes": [["unicorn"]]}, "row 0, column 'classes': 'unicorn'"),
        ({"caption": ["a"], "classes": ["dog"]}, "row 0, column 'classes': 'dog'; expected a list"),
    ],
)
def test_bad_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=message):
        build(tmp_path, source="provided", file=str(tmp_path / "c.parquet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "no list 'annotations'"),
        (b'{"annotations": [3]}', r"annotations\[0\] has image_id"),
        (
            b'{"annotations": [{"image_id": true, "id": 1, "caption": "a"}]}',
            r"annotations\[0\] has image_id = True",
        ),
        (
            b'{"annotations": [{"image_id": 1, "id": 1}]}',
            r"annotations\[0\] has caption = None; expected str",
        ),
        (b'{"annotations": []}', "no prompt is left"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        build(tmp_path, source="provided", file=str(tmp_path / "c.json"))


def write_instances(path: Path) -> Path:
    categories = [{"id": 1, "name": "person"}, {"id": 63, "name": "couch"}, {"id": 25, "name": "giraffe"}]
    annotations = [
        {"image_id": 5, "category_id": 1, "area": 40.5},
        {"image_id": 5, "category_id": 63, "area": 30},
        {"image_id": 5, "category_id": 63, "bbox": [0, 0, 4, 5]},
        {"image_id": 6, "category_id": 25, "area": 9},
    ]
    images = [{"id": 5}, {"id": 6}, {"id": 7}]
    path.write_text(
        json.dumps({"images": images, "categories": categories, "annotations": annotations}), "utf-8"
    )
    return path


def test_ground_truth_labels(tmp_path: Path) -> None:
    """Largest total area first (couch 30 + 20 before person 40.5); other sets through synonyms; the rest
    rejected."""
    file = str(write_instances(tmp_path / "i.json"))
    rows, _, out = build(tmp_path, VOC, source="labels", file=file)
    assert [(row.id, row.image_id, row.prompt) for row in rows] == [
        ("000000000005", "000000000005", "a photo of a sofa and a person; sofa person")
    ]
    assert [(row["id"], row["reason"].split("shows ")[1]) for row in rejects(out)] == [
        ("000000000006", "giraffe"),
        ("000000000007", "nothing"),
    ]
    rows, _, _ = build(tmp_path, COCO, source="labels", file=file, max_classes=1)
    assert [row.caption for row in rows] == ["a photo of a couch", "a photo of a giraffe"]
    (tmp_path / "b.json").write_text(Path(file).read_text("utf-8").replace('"id": 63', '"id": 64'), "utf-8")
    with pytest.raises(DataError, match=r"annotations\[1\] has category_id 63"):
        build(tmp_path, source="labels", file=str(tmp_path / "b.json"))


def test_class_masks(tmp_path: Path) -> None:
    """A VOC folder (ids are VOC's), a plain folder (ids are the label set's); damaged masks are
    quarantined."""
    folder = tmp_path / "VOC2012" / "SegmentationClass"
    folder.mkdir(parents=True)
    mask = np.zeros((8, 8), np.uint8)
    mask[0], mask[1:4], mask[5, :2] = 255, 12, 20  # void, dog, tv monitor
    (folder / "2007_000032.png").write_bytes(encode_labels(mask))
    (folder / "2007_000033.png").write_bytes(encode_labels(np.full((4, 4), 33, np.uint8)))
    (folder / "2007_000039.png").write_bytes(encode_rgb(np.zeros((4, 4, 3), np.uint8)))
    (folder / "2007_000042.png").write_bytes(b"\x89PNG")
    (folder / "2007_000050.png").write_bytes(encode_labels(np.zeros((4, 4), np.uint8)))
    rows, _, out = build(tmp_path, COCO, source="labels", file=str(tmp_path / "VOC2012"))
    assert [(row.id, row.classes) for row in rows] == [("2007_000032", ("dog", "tv"))]
    assert {row["id"][-2:]: row["code"] for row in rejects(out)} == {
        "33": "GF-DATA-111",
        "39": "GF-CAP-017",
        "42": "GF-DATA-132",
        "50": "GF-CAP-003",
    }
    plain = tmp_path / "masks"
    plain.mkdir()
    (plain / "a.png").write_bytes(encode_labels(np.full((4, 4), 3, np.uint8)))
    rows, _, _ = build(tmp_path, PARTWORLD, source="labels", file=str(plain))
    assert rows[0].prompt == "a photo of an aeroplane; aeroplane"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no PNG class mask"):
        build(tmp_path, source="labels", file=str(tmp_path / "empty"))


def test_list_of_names(tmp_path: Path) -> None:
    rows, _, _ = build(tmp_path, VOC, source="list", classes=("couch", "dog", "tv + dog"), combine=2)
    assert [(row.id, row.prompt) for row in rows] == [
        ("list-sofa", "a photo of a sofa; sofa"),
        ("list-dog", "a photo of a dog; dog"),
        ("list-tv-monitor_dog", "a photo of a tv monitor and a dog; tv monitor dog"),
        ("list-sofa_dog", "a photo of a sofa and a dog; sofa dog"),
    ]


def test_combinations_are_drawn(tmp_path: Path) -> None:
    """More combinations than wanted: distinct ones, in list order inside, the same for the same seed."""
    options = {"source": "list", "classes": COCO.names, "combine": 4, "limit": 200}
    rows, _, _ = build(tmp_path, COCO, **options)
    again, _, _ = build(tmp_path, COCO, **options)
    other, _, _ = build(tmp_path, COCO, seed=6, **options)
    assert rows == again and [row.id for row in rows] != [row.id for row in other]
    assert len({row.classes for row in rows}) == 200 and [len(row.classes) for row in rows[:80]] == [1] * 80
    order = {name: index for index, name in enumerate(COCO.names)}
    for row in rows[80:]:
        assert 2 <= len(row.classes) <= 4
        assert [order[name] for name in row.classes] == sorted(order[name] for name in row.classes)
    dense, _, _ = build(tmp_path, COCO, source="list", classes=COCO.names[:5], combine=2, limit=12)
    assert len({row.classes for row in dense}) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "list"}, "captions.classes is empty"),
        ({"source": "list", "classes": ("dog + unicorn",)}, "'unicorn' is not in the label set"),
        ({"source": "list", "classes": COCO.names, "combine": 5}, "gives 25706916 combinations"),
        ({"source": "provided"}, r"captions\.file is not set"),
        ({"source": "provided", "file": "/nowhere/c.json"}, "no such file"),
        ({"source": "labels", "file": "/nowhere"}, "no such file or folder"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, **options)
    assert not (tmp_path / "out" / "prompts.parquet").exists()


class CharacterTokenizer:
    """One token a character and no offsets; enough to see the table use fit_prompt."""

    model_max_length = 40

    def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> dict[str, list[int]]:
        ids = [ord(c) for c in text if c != " "]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_tokenizer_moves_classes_forward(tmp_path: Path) -> None:
    """38 characters fit: a short caption stays, a long one follows its classes, too many classes are
    rejected."""
    lines = ["a dog", "a dog " + "very " * 9, "a parking meter, baseball glove, tennis racket, potted plant"]
    (tmp_path / "c.txt").write_text("\n".join(lines), "utf-8")
    rows, stats, out = build(
        tmp_path, tokenizer=CharacterTokenizer(), source="provided", file=str(tmp_path / "c.txt")
    )
    assert [row.prompt for row in rows] == ["a dog; dog", "dog; a dog " + " ".join(["very"] * 9)]
    assert stats["moved_forward"] == 1 and rejects(out)[0]["code"] == "GF-DATA-062"
    assert "'potted plant'" in rejects(out)[0]["reason"]


def test_real_captions(tmp_path: Path, real_data: Path) -> None:
    """COCO's human captions -> prompts in two label sets; every prompt holds its class list."""
    file = real_data / "coco" / "annotations" / "captions_val2017.json"
    if not file.is_file():
        pytest.skip(f"no captions at {file}")
    rows, stats, _ = build(tmp_path, COCO, source="provided", file=str(file))
    assert stats["inputs"] == 395 and len(rows) > 330 and len(stats["classes"]) > 50
    assert all(row.prompt == f"{row.caption}; {row.class_prompt}" for row in rows)
    rows, stats, _ = build(tmp_path, PARTWORLD, source="provided", file=str(file))
    assert {"car", "boat", "aeroplane", "umbrella", "cup", "potted plant"} <= set(stats["classes"])
    voc = real_data / "voc" / "VOCdevkit" / "VOC2012"
    rows, stats, _ = build(tmp_path, VOC, source="labels", file=str(voc))
    assert len(rows) == 239 and not stats["rejected"]


def test_no_torch_for_tables(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a dog\n", "utf-8")
    code = (
        "import sys; from glass_fast.captions import build_prompts; from glass_fast.config.schema import "
        "CaptionsConfig as C; from glass_fast.data.label_sets import label_set\n"
        "build_prompts(C(source='provided', file=sys.argv[1]), label_set('voc'), sys.argv[2], 0)\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c.txt"), str(tmp_path / "o")]
    assert subprocess.run(command, check=False).returncode == 0
