"""Shipped PartWorld model and baselines on subsets of COCO and VOC: shows the readers and protocols at work.

    GLASS_FAST_REAL_DATA=DIR python benchmarks/real_subsets.py --out benchmarks/results/real_subsets.json

The model knows ten drawn classes, so its figures say nothing about GLASS on photographs. DIR holds ``coco/`` and
``voc/VOCdevkit/VOC2012/`` in their official layouts; the result names subset sizes. Where the VOC object
masks were derived from class masks and boxes, the instance figures are derived too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from glass_fast import workflow
from glass_fast.config.load import load_config
from glass_fast.config.schema import DatasetConfig
from glass_fast.data.atomic import write_json
from glass_fast.progress import StopToken, make_progress

SHOWN = ("miou_i", "miou_i_fg", "mbo_i_fg", "mbo_c_fg", "fg_ari")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    root = Path(os.environ["GLASS_FAST_REAL_DATA"])
    config = load_config("demo", [], []).config
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    record: dict[str, Any] = {
        "commit": commit,
        "note": "subsets, PartWorld model: not figures on VOC or COCO",
        "rows": [],
    }
    sets = (
        DatasetConfig(name="coco-val2017-subset", kind="coco", path=str(root / "coco"), split="val2017"),
        DatasetConfig(
            name="voc-val-subset", kind="voc", path=str(root / "voc/VOCdevkit/VOC2012"), split="val"
        ),
    )
    for dataset in sets:
        for model in ("partworld:slots", "kmeans", "grid"):
            with tempfile.TemporaryDirectory() as temporary:
                result = workflow.score(
                    config, model, dataset, 0, make_progress("plain"), StopToken(), Path(temporary)
                )
            for name, entry in result["protocols"].items():
                row = {
                    "data": dataset.name, "images": result["counts"]["images"], "model": model, "protocol": name,
                    "fields": entry["fields"], **{key: round(entry["metrics"][key], 4) for key in SHOWN},
                }  # fmt: skip
                record["rows"].append(row)
                print(json.dumps({key: value for key, value in row.items() if key != "fields"}))
    write_json(options.out, record)


if __name__ == "__main__":
    main()
