"""The job: shards, provenance, resume, stop, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from glass_fast.config.schema import CaptureConfig, MasksConfig, QualityConfig, SynthesisConfig
from glass_fast.data.prompts import sample_seed
from glass_fast.data.shards import open_shards
from glass_fast.errors import ConfigError, DataError, RejectsError, Stopped
from glass_fast.progress import Progress, StopToken
from glass_fast.synthesis.job import synthesize
from glass_fast.synthesis.masks import mask_from_maps


def config(**changes: Any) -> SynthesisConfig:
    base = {
        "num": 7,
        "batch_size": 2,
        "shard_size": 3,
        "steps": 2,
        "capture": CaptureConfig(self_size=16, cross_size=8),
        "quality": QualityConfig(max_reject_share=1.0),
    }
    return SynthesisConfig(**{**base, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the run log, which alone may hold times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.jsonl"}


@pytest.fixture(scope="module")
def finished(tiny_sd: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("finished") / "shards"
    stats = synthesize(tiny_sd.prompts(), tiny_sd.LABELS, config(), tiny_sd.generator(), out, seed=5)
    return out, stats


def test_every_sample_of_the_plan_is_written_with_its_provenance(
    tiny_sd: ModuleType, finished: tuple[Path, dict[str, Any]]
) -> None:
    out, stats = finished
    data = open_shards(out)
    assert len(data) == 7 and stats["num"] == stats["made"] == 7 and stats["shards"] == 3
    assert data.keys() == [f"{index:09d}" for index in range(7)]
    prompts = tiny_sd.prompts()
    for index, sample in enumerate(data):
        prompt, meta = prompts[index % 4], sample.meta
        assert sample.image.shape == (32, 32, 3) and sample.maps.shape[0] == len(prompt.classes)
        assert meta["prompt"] == prompt.prompt and meta["class_prompt"] == prompt.class_prompt
        assert meta["classes"] == list(prompt.classes) and meta["prompt_id"] == prompt.id
        assert meta["seed"] == sample_seed(prompt.seed, f"{prompt.id}-{index // 4}", "noise")
        assert meta["label_ids"] == [tiny_sd.LABELS.index(name) + 1 for name in prompt.classes]
        assert meta["generator"]["checksum"] == "c" * 64 and meta["generator"]["scheduler"] == "DDIMScheduler"
        assert len(meta["generator"]["scheduler_sha256"]) == 64
        assert (meta["steps"], meta["guidance_scale"], meta["tau"], meta["threshold"]) == (2, 7.5, 4, 0.6)
        assert len(meta["peaks"]) == len(meta["areas"]) == len(meta["confidences"]) == len(prompt.classes)
        assert meta["versions"]["torch"] == torch.__version__
    assert data[0].meta["seed"] != data[4].meta["seed"], "the second round over the table has its own noise"
    assert not (data[0].image == data[4].image).all()


def test_stored_maps_reproduce_the_stored_mask(finished: tuple[Path, dict[str, Any]]) -> None:
    labelled = 0
    for sample in open_shards(finished[0]):
        size = (sample.mask.shape[0], sample.mask.shape[1])
        again = mask_from_maps(sample.maps, sample.meta["label_ids"], size, 0.6, 0.5)
        assert (again == sample.mask).all()
        labelled += int(((again > 0) & (again < 255)).any())
        if len(sample.maps):
            loose = mask_from_maps(sample.maps, sample.meta["label_ids"], size, 0.3, 0.3)
            assert (loose > 0).sum() > (again > 0).sum()
    assert labelled >= 4


def test_no_time_and_no_host_outside_the_run_log(finished: tuple[Path, dict[str, Any]]) -> None:
    import platform

    out, _ = finished
    for name, data in contents(out).items():
        if name.endswith(".json"):
            text = data.decode()
            assert platform.node() not in text and "seconds" not in text and 'rate"' not in text, name
    for sample in open_shards(out):
        assert not {"time", "host", "seconds", "rate"} & set(
            json.dumps(sample.meta).replace('"', " ").split()
        )
    events = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("batch") == 5
    batch = next(event for event in events if event["event"] == "batch")
    assert batch["seconds"] > 0 and batch["rate"] > 0 and batch["peak_bytes"] > 0


class StopAfter(Progress):
    """Sets the stop token after a number of micro-batches, as SIGTERM would in the middle of a job."""

    def __init__(self, batches: int, token: StopToken) -> None:
        self.left, self.token = batches, token

    def advance(self, count: int = 1, **fields: Any) -> None:
        super().advance(count, **fields)
        self.left -= 1
        if self.left == 0:
            self.token.set()


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_stopped_and_resumed_equals_undisturbed(
    tiny_sd: ModuleType, finished: tuple[Path, dict[str, Any]], tmp_path: Path, batches: int
) -> None:
    token = StopToken()
    arguments = (tiny_sd.prompts(), tiny_sd.LABELS, config(), tiny_sd.generator(), tmp_path / "shards", 5)
    with pytest.raises(Stopped) as caught:
        synthesize(*arguments, progress=StopAfter(batches, token), stop=token)
    assert caught.value.exit_code == 75
    committed = batches // 2 * 3
    shown = [name for name in contents(tmp_path / "shards") if name.endswith(".tar")]
    assert len(shown) == committed // 3 and not any(
        name.startswith(".tmp") for name in contents(tmp_path / "shards")
    )
    stats = synthesize(*arguments)
    assert contents(tmp_path / "shards") == contents(finished[0])
    assert stats["resumed"] == committed and stats["made"] == 7 - committed
    assert stats["flags"] == finished[1]["flags"] and stats["classes"] == finished[1]["classes"]


def test_finished_job_does_nothing_again(
    tiny_sd: ModuleType, finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = tiny_sd.generator()
    monkeypatch.setattr(generator.unet, "forward", None)
    before = contents(finished[0])
    stats = synthesize(tiny_sd.prompts(), tiny_sd.LABELS, config(), generator, finished[0], seed=5)
    assert stats["made"] == 0 and stats["resumed"] == 7 and contents(finished[0]) == before


def test_another_configuration_or_table_into_the_same_folder_is_refused(
    tiny_sd: ModuleType, finished: tuple[Path, dict[str, Any]]
) -> None:
    generator, prompts = tiny_sd.generator(), tiny_sd.prompts()
    with pytest.raises(ConfigError, match="steps"):
        synthesize(prompts, tiny_sd.LABELS, config(steps=3), generator, finished[0], seed=5)
    with pytest.raises(ConfigError, match="prompts"):
        synthesize(prompts[:3], tiny_sd.LABELS, config(), generator, finished[0], seed=5)
    with pytest.raises(ConfigError, match="checksum"):
        synthesize(
            prompts, tiny_sd.LABELS, config(), replace(generator, checksum="d" * 64), finished[0], seed=5
        )
    strict = QualityConfig(max_reject_share=1.0, reject=("class_missing",))
    synthesize(
        prompts, tiny_sd.LABELS, config(quality=strict), generator, finished[0], seed=5
    )  # only counts differ


def test_shards_do_not_depend_on_where_the_job_starts(
    tiny_sd: ModuleType, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Losing the middle shard only: it alone is made again, with the same bytes."""
    import shutil

    shutil.copytree(finished[0], tmp_path / "copy")
    for path in (tmp_path / "copy").glob("shard-000001*"):
        path.unlink()
    stats = synthesize(
        tiny_sd.prompts(), tiny_sd.LABELS, config(), tiny_sd.generator(), tmp_path / "copy", seed=5
    )
    assert stats["made"] == 3 and contents(tmp_path / "copy") == contents(finished[0])


def test_run_seed_counts_only_for_prompts_without_their_own(tiny_sd: ModuleType, tmp_path: Path) -> None:
    own, free = tiny_sd.prompts()[0], replace(tiny_sd.prompts()[1], seed=0)
    images = {}
    for seed in (1, 2):
        out = tmp_path / str(seed)
        synthesize([own, free], tiny_sd.LABELS, config(num=2), tiny_sd.generator(), out, seed=seed)
        images[seed] = [sample.image for sample in open_shards(out)]
    assert (images[1][0] == images[2][0]).all() and not (images[1][1] == images[2][1]).all()


def test_too_many_rejects_end_with_code_5_after_everything_is_written(
    tiny_sd: ModuleType, tmp_path: Path
) -> None:
    generator = tiny_sd.generator()
    generator.vae.decoder.conv_out.weight.data.zero_()  # every image is one flat colour
    generator.vae.decoder.conv_out.bias.data.fill_(-1.0)
    with pytest.raises(RejectsError, match=r"7 of 7 images are rejected .*black 7") as caught:
        synthesize(
            tiny_sd.prompts(), tiny_sd.LABELS, config(quality=QualityConfig()), generator, tmp_path / "out"
        )
    assert caught.value.exit_code == 5
    data = open_shards(tmp_path / "out")
    assert len(data) == 7 and all("black" in sample.meta["flags"] for sample in data)
    assert not data[0].image.any()
    relaxed = config(quality=QualityConfig(max_reject_share=1.0))
    stats = synthesize(tiny_sd.prompts(), tiny_sd.LABELS, relaxed, generator, tmp_path / "out")
    assert stats["made"] == 0 and stats["flags"]["black"] == 7 and stats["reject_share"] == 1.0


def test_absent_classes_are_dropped_from_the_mask_but_their_maps_are_kept(
    tiny_sd: ModuleType, tmp_path: Path
) -> None:
    guard = MasksConfig(absence_ratio=1.0, absence_peaks={"boat": 1.0, "car": 0.0})
    stats = synthesize(
        tiny_sd.prompts()[:1],
        tiny_sd.LABELS,
        config(num=1, masks=guard),
        tiny_sd.generator(),
        tmp_path / "out",
    )
    sample = open_shards(tmp_path / "out")[0]
    assert sample.meta["dropped"] == ["boat"] and sample.meta["label_ids"] == [1, 0] and len(sample.maps) == 2
    assert not (sample.mask == 2).any() and "class_missing" in sample.meta["flags"]
    assert stats["dropped"] == {"boat": 1}


def test_bad_inputs_are_named_before_any_work(tiny_sd: ModuleType, tiny: Any, tmp_path: Path) -> None:
    prompts, labels = tiny_sd.prompts(), tiny_sd.LABELS
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (DataError, "no rows", {"prompts": []}),
        (DataError, "prompt 'p1' has class 'tree', which is not among the 4 labels", {"labels": labels[:4]}),
        (ConfigError, "scheduler='nope'", {"config": config(scheduler="nope")}),
        (
            ConfigError,
            r"no cross-attention layer of 4x4 .* it has 16x16 \(3 layers\)",
            {"config": config(capture=CaptureConfig(self_size=16))},
        ),
        (
            ConfigError,
            r"\[995, 1000\)",
            {"config": config(capture=CaptureConfig(self_size=16, cross_size=8, timestep_min=995))},
        ),
        (
            DataError,
            "prompt 'p0': class 'car' lies beyond",
            {
                "prompts": [
                    replace(prompts[0], prompt="a photo of the car and the boat and a tree and a; car boat")
                ]
            },
        ),
    ]
    for error, text, change in cases:
        arguments = {"prompts": prompts, "labels": labels, "config": config(), "generator": tiny, **change}
        with pytest.raises(error, match=text):
            synthesize(**arguments, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


class Recorder(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def advance(self, count: int = 1, **fields: Any) -> None:
        super().advance(count, **fields)
        self.lines.append(self.line(fields))


def test_progress_shows_rate_time_left_and_yield(tiny_sd: ModuleType, tiny: Any, tmp_path: Path) -> None:
    seen = Recorder()
    synthesize(tiny_sd.prompts(), tiny_sd.LABELS, config(shard_size=2), tiny, tmp_path / "out", progress=seen)
    assert seen.done == seen.total == 7
    assert "images" in seen.lines[-1] and "/s" in seen.lines[-1] and "s left" in seen.lines[-1]
    assert "yield=" in seen.lines[-1]


def test_half_precision_networks_make_float_masks(tiny_sd: ModuleType, tmp_path: Path) -> None:
    generator = tiny_sd.generator()
    for part in (generator.unet, generator.vae, generator.text_encoder):
        part.to(torch.bfloat16)
    synthesize(tiny_sd.prompts(), tiny_sd.LABELS, config(num=2), generator, tmp_path / "out")
    sample = open_shards(tmp_path / "out")[0]
    assert sample.meta["generator"]["dtype"] == "bfloat16" and np.ptp(sample.maps) == 255
