"""The shipped model on real photos: nothing is claimed about quality, all about getting through and labelling it."""

from __future__ import annotations

import json

import pytest

from glass_fast import workflow
from glass_fast.config.load import load_config
from glass_fast.config.schema import DatasetConfig
from glass_fast.progress import Progress, StopToken


@pytest.fixture(scope="module")
def config():
    return load_config("demo", [], []).config


def test_discover_on_photos(real_data, tmp_path, config) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    coco = sorted((real_data / "coco" / "val2017").glob("*.jpg"))[:5]
    voc = sorted((real_data / "voc" / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("*.jpg"))[:5]
    for photo in coco + voc:
        (folder / photo.name).write_bytes(photo.read_bytes())
    (folder / "cut.jpg").write_bytes(coco[0].read_bytes()[:3000])
    summary = workflow.find_objects(
        config, "partworld:slots", [folder], tmp_path / "out", Progress(), StopToken()
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "objects.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and all(line["objects"] for line in lines)
    refused = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert len(refused) == 1 and "cut.jpg" in json.dumps(refused) and refused[0]["reason"]
    assert summary


@pytest.mark.parametrize(
    ("kind", "folder", "split"), [("coco", "coco", "val2017"), ("voc", "voc/VOCdevkit/VOC2012", "val")]
)
def test_evaluate_on_subsets(real_data, tmp_path, config, kind, folder, split) -> None:
    dataset = DatasetConfig(
        name=f"{kind}-subset", kind=kind, path=str(real_data / folder), split=split, limit=8
    )
    result = workflow.score(config, "partworld:slots", dataset, 0, Progress(), StopToken(), tmp_path)
    assert result["dataset"]["name"] == f"{kind}-subset" and result["counts"]["images"] == 8
    for protocol in ("glass", "spot"):
        metrics = result["protocols"][protocol]["metrics"]
        assert 0 < metrics["mbo_i"] < 1 and metrics["miou_i"] <= metrics["mbo_i"] + 1e-9
    text = workflow.score_text(result)
    assert "resolution=256" in text and "resolution=320" in text and f"{kind}-subset" in text
