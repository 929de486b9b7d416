"""A small but complete run folder with real shards, drawn from a fixed seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

LABELS = ("car", "boat", "potted plant")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def drawn(rng: np.random.Generator, side: int, label: int) -> tuple[np.ndarray, np.ndarray]:
    """One ellipse on a gradient: picture and mask (with an uncertain rim)."""
    ramp = np.linspace(90, 200, side, dtype=np.float32)[:, None, None] + rng.normal(0, 4, (side, side, 3))
    image = Image.fromarray(np.clip(ramp, 0, 255).astype(np.uint8))
    mask = Image.new("L", (side, side), 0)
    x, y = rng.integers(side // 8, side // 2, 2).tolist()
    box = (x, y, x + side // 3, y + side // 3)
    ImageDraw.Draw(image).ellipse(box, fill=[(200, 40, 40), (40, 90, 210), (30, 150, 60)][label % 3])
    ImageDraw.Draw(mask).ellipse(tuple(v + d for v, d in zip(box, (-2, -2, 2, 2), strict=True)), fill=255)
    ImageDraw.Draw(mask).ellipse(box, fill=label + 1)
    return np.asarray(image), np.asarray(mask)


def write_samples(
    folder: Path, count: int, *, side: int = 64, caption: str = "a photo of a {}", shard_size: int = 8
) -> None:
    """Commit ``count`` samples as real shards with a manifest."""
    from glass_fast.data.manifest import write_manifest
    from glass_fast.data.plan import ShardPlan
    from glass_fast.data.shards import Sample, write_shard

    folder.mkdir(parents=True, exist_ok=True)
    plan = ShardPlan(count, shard_size, 4)
    write_manifest(folder, kind="shards", config={"steps": 4}, labels=list(LABELS), plan=plan.as_dict())
    rng = np.random.default_rng(3)
    for spec in plan.shards:
        samples = []
        for index in range(spec.start, spec.stop):
            label = index % 3
            image, mask = drawn(rng, side, label)
            flags = []
            if index == 1:
                mask, flags = np.zeros_like(mask), ["empty", "class_missing"]
            soft = np.asarray(Image.fromarray((mask == label + 1).astype(np.uint8) * 255).resize((16, 16)))
            name = LABELS[label]
            text = caption.format(name)
            samples.append(
                Sample(
                    f"s{index:05d}",
                    image,
                    mask,
                    soft[None],
                    {
                        "prompt": f"{text}; {name}",
                        "caption": text,
                        "class_prompt": name,
                        "classes": [name],
                        "seed": index,
                        "flags": flags,
                        "scores": {
                            "confidence": 0.5 + 0.4 * rng.random(),
                            "foreground": float((mask > 0).mean()),
                        },
                    },
                )
            )
        write_shard(folder, spec, samples)


def figures(base: float, *, background: bool) -> dict[str, Any]:
    """One protocol's part of an evaluation file: ``base`` is the overlap without background."""
    switches = dict.fromkeys(
        ("background_miou", "background_mbo", "background_recovery", "background_corloc"), background
    )
    counted = base + 0.1 if background else base
    metrics = {
        "miou_i": counted,
        "mbo_i": counted + 0.02,
        "mbo_c": counted + 0.04,
        "miou_c": counted + 0.03,
        "fg_ari": 0.3 + base / 4,
        "ari": base / 2,
        "object_recovery": counted,
        "corloc": 0.9,
        "miou_i_fg": base,
        "mbo_i_fg": base + 0.02,
        "mbo_c_fg": base + 0.04,
        "miou_c_fg": base + 0.03,
        "object_recovery_fg": base,
        "corloc_fg": 0.8,
        "fg_ari_multi": 0.25 + base / 4,
    }
    return {
        "label": f"{'glass' if background else 'spot'}: 256 px centre crop",
        "fields": {"name": "glass" if background else "spot", "resolution": 256, **switches},
        "metrics": metrics,
        "standard_error": dict.fromkeys(metrics, 0.01),
        "per_class": {
            name: {"objects": 10, "images": 9, "mbo_i": base + shift, "object_recovery": 0.5, "mbo_c": base}
            for name, shift in (("car", 0.01), ("boat", 0.0), ("potted plant", -0.05))
        },
        "images": 30,
    }


def write_run(folder: Path, *, samples: int = 20, seeds: int = 2, caption: str = "a photo of a {}") -> Path:
    """A complete run folder as ``glass-fast run`` leaves it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "name": "fixture",
        "seed": 0,
        "device": "cpu",
        "synthesis": {"num": samples, "quality": {"reject": ["empty"], "min_area": 0.002}},
        "models": {"generator": "partworld:generator"},
    }
    dump(
        folder / "config.json",
        {
            "config": config,
            "origins": {
                "name": "preset demo",
                "seed": "default",
                "synthesis.num": "--set",
                "models": "default",
            },
        },
    )
    rows = [
        {
            "id": f"s{i:05d}",
            "caption": caption.format(LABELS[i % 3]),
            "classes": [LABELS[i % 3]],
            "source": "captioner",
        }
        for i in range(samples)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts.parquet")
    write_samples(folder / "shards", samples, caption=caption)
    values = {
        "kmeans": 0.3,
        "grid": 0.2,
        "random_slots": 0.15,
        "unguided": 0.42,
        "semantic": 0.45,
        "glass": 0.55,
        "upper_bound": 0.64,
    }
    for method, base in values.items():
        trained = method in ("unguided", "semantic", "glass", "upper_bound")
        for seed in range(seeds):
            value = base + 0.01 * seed
            record = {
                "protocols": {
                    "glass": figures(value, background=True),
                    "spot": figures(value, background=False),
                }
            }
            dump(folder / "evaluation" / "partworld-test" / f"{method}-seed{seed}.json", record)
            if trained:
                model = folder / "models" / f"{method}-seed{seed}"
                dump(model / "run.json", {"steps": 400, "learning_rate": 1e-3, "seconds": 12.5})
                jsonl(
                    model / "log.jsonl",
                    [
                        {"step": s, "loss": 2 / (s + 10) + base, "loss_instance": 1 / (s + 5)}
                        for s in range(0, 400, 10)
                    ],
                )
    dump(folder / "ablation.json", {"relative_gain": {"glass": 0.2}})
    discover = folder / "discover"
    (discover / "overlays").mkdir(parents=True)
    (discover / "masks").mkdir()
    rng = np.random.default_rng(5)
    records = []
    for index in range(3):
        image, mask = drawn(rng, 96, index)
        Image.fromarray(image).save(discover / "overlays" / f"photo{index}.jpg")
        Image.fromarray(np.where(mask > 0, 3, 0).astype(np.uint8)).save(
            discover / "masks" / f"photo{index}.png"
        )
        objects = [
            {"slot": 0, "background": True, "score": 0.95},
            {"slot": 3, "background": False, "score": 0.5 + index / 10},
        ]
        names = {
            "name": f"photo{index}",
            "overlay": f"overlays/photo{index}.jpg",
            "mask": f"masks/photo{index}.png",
        }
        records.append(
            {"file": f"/home/someone/photo{index}.jpg", "background_slot": 0, "objects": objects, **names}
        )
    jsonl(discover / "objects.jsonl", records)
    reason = "/home/someone/pictures/broken.jpg: truncated file"
    jsonl(
        discover / "quarantine.jsonl",
        [{"file": "/home/someone/pictures/broken.jpg", "code": "GF-DATA-153", "reason": reason}],
    )
    jsonl(folder / "prompts.rejects.jsonl", [{"id": "img-7", "code": "GF-CAP-040", "reason": "no class"}])
    dump(discover / "summary.json", {"images": 4, "discovered": 3, "quarantined": 1})
    jsonl(
        folder / "run.jsonl",
        [
            {"stage": "captions", "event": "start"},
            {"stage": "captions", "event": "end", "seconds": 3.0, "result": {"prompts": samples}},
            {"stage": "synthesize", "event": "start"},
            {"stage": "synthesize", "event": "start"},
            {
                "stage": "synthesize",
                "event": "end",
                "seconds": 60.0,
                "result": {"num": samples, "rate": 1.9, "flags": {"empty": 1}},
            },
            {"stage": "train/glass-seed0", "event": "end", "seconds": 90.0, "result": "models/glass-seed0"},
            {
                "stage": "train/unguided-seed0",
                "event": "end",
                "seconds": 80.0,
                "result": "models/unguided-seed0",
            },
            {"stage": "evaluate/partworld-test/glass-seed0", "event": "start"},
            {"stage": "captions", "event": "skipped", "reason": "complete"},
        ],
    )
    dump(
        folder / "environment.json",
        {
            "glass_fast": {"version": "0.1.0", "python": "3.11.7", "prefix": "/home/someone/venv"},
            "machine": {"system": "Linux", "cpus": 2},
            "packages": {
                "torch": {"installed": "2.13.0", "range": ">=2.10"},
                "triton": {"installed": None, "range": ">=3.6"},
            },
            "gpu": {"available": False, "reason": "torch is a CPU build", "devices": []},
            "ops": {"matching": {"backends": [{"name": "cpu"}], "chosen": {"cpu": "cpu"}}},
            "environment": {"GLASS_FAST_REAL_DATA": "/home/someone/data"},
        },
    )
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder, shared by tests that do not change it."""
    return write_run(tmp_path_factory.mktemp("run") / "fixture")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builder of run folders of one's own."""
    return lambda **options: write_run(tmp_path / "run", **options)
