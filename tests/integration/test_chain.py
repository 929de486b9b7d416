"""The whole chain with the shipped models: artefacts, skipping, refusal of foreign folders, stops, real captions."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from glass_fast import chain, workflow
from glass_fast.config.load import load_config
from glass_fast.errors import ConfigError, Stopped
from glass_fast.progress import Progress, StopToken

SMALL = [
    "captions.limit=12",
    "synthesis.num=12",
    "synthesis.batch_size=4",
    "synthesis.shard_size=8",
    "synthesis.steps=4",
    "training.steps=12",
    "training.batch_size=4",
    "training.warmup_steps=2",
    "discover.limit=3",
    'evaluation.datasets=[{name: partworld-tuning, kind: partworld, path: "partworld:tuning", limit: 6}]',
]


def _load(out: Path, *extra: str):
    return load_config("demo", [], [*SMALL, f"out={json.dumps(str(out))}", *extra])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("chain") / "demo"
    result = chain.run(_load(out), Progress(), StopToken())
    return out, result


def test_every_artefact_is_there(finished) -> None:
    out, result = finished
    for name in (
        "prompts.parquet",
        "shards/manifest.json",
        "ablation.json",
        "report.html",
        "run.jsonl",
        "environment.json",
    ):
        assert (out / name).exists(), name
    arms = {path.name for path in (out / "models").iterdir()}
    assert arms == {f"{arm}-seed0" for arm in ("unguided", "semantic", "glass", "upper_bound")}
    scored = {path.stem for path in (out / "evaluation" / "partworld-tuning").iterdir()}
    assert scored == arms | {"kmeans-seed0", "grid-seed0", "random_slots-seed0"}
    table = json.loads((out / "ablation.json").read_text())
    assert {"relative_gain", "relative_gain_foreground"} <= set(table)
    unguided, glass = (
        json.loads((out / "evaluation" / "partworld-tuning" / f"{arm}-seed0.json").read_text())["protocols"][
            "glass"
        ]["metrics"]
        for arm in ("unguided", "glass")
    )
    assert table["relative_gain"] == pytest.approx(glass["miou_i"] / unguided["miou_i"] - 1)
    for key in ("miou_i", "mbo_i"):
        gain = glass[f"{key}_fg"] / unguided[f"{key}_fg"] - 1
        assert table["relative_gain_foreground"][key] == pytest.approx(gain)
    assert "glass over unguided" in result["text"]
    for arm in ("kmeans", "unguided", "semantic", "glass", "upper_bound"):
        assert arm in result["text"]
    assert len((out / "discover" / "objects.jsonl").read_text().splitlines()) == 3
    assert (out / "report.html").stat().st_size <= 10 * 2**20


def test_second_run_skips_every_stage(finished) -> None:
    out, first = finished
    before = {
        p: p.stat().st_mtime_ns
        for p in [*out.rglob("*.safetensors"), *out.rglob("*.tar"), out / "prompts.parquet"]
    }
    second = chain.run(_load(out), Progress(), StopToken())
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert second["text"] == first["text"]
    events = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    starts = [e for e in events if e.get("event") == "start"]
    assert len({e["stage"] for e in starts}) == len(starts), "a finished stage was started again"


def test_folder_of_another_configuration_is_refused_untouched(finished) -> None:
    out, _ = finished
    before = (out / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="synthesis"):
        chain.run(_load(out, "synthesis.guidance_scale=2.0"), Progress(), StopToken())
    assert (out / "config.json").read_bytes() == before


def test_lost_artefacts_are_made_again(finished) -> None:
    out, first = finished
    model = out / "models" / "glass-seed0" / "model.safetensors"
    weights = model.read_bytes()
    model.unlink()
    record = out / "shards" / "shard-000000.json"
    record.unlink()
    again = chain.run(_load(out), Progress(), StopToken())
    assert model.read_bytes() == weights and record.exists()
    assert again["text"] == first["text"]


def test_discovery_is_done_again_for_other_pictures(tmp_path, finished) -> None:
    from glass_fast.partworld.folder import write_scenes

    out, _ = finished
    pictures = write_scenes(tmp_path / "mine", "tuning", 2, masks=False) / "images"
    chain.run(_load(out, f"discover.images={json.dumps(str(pictures))}"), Progress(), StopToken())
    assert len((out / "discover" / "objects.jsonl").read_text().splitlines()) == 2
    assert len(list((out / "discover" / "masks").iterdir())) == 2
    chain.run(_load(out), Progress(), StopToken())
    assert len((out / "discover" / "objects.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("learning_rates={glass: -1}", "learning_rates"),
        ("losses=[]", "losses"),
        ("seeds=[0, 0]", "seeds"),
        ("evaluation.protocols=[foo]", "protocols"),
        ("synthesis.quality.reject=[blak]", "reject"),
        ("synthesis.capture.timestep_min=900", "timestep"),
        ("training.uncertain_threshold=0.9", "uncertain_threshold"),
        ('evaluation.datasets=[{name: ../x, kind: coco, path: y}]', "name"),
    ],
)  # fmt: skip
def test_bad_settings_fail_before_any_work(tmp_path, setting, named) -> None:
    with pytest.raises(ConfigError, match=named):
        _load(tmp_path, setting)


def test_guided_chain_runs_with_unreadable_renderer_masks(tmp_path, monkeypatch) -> None:
    from glass_fast.partworld import folder, renderer

    Poison = runpy.run_path(str(Path(__file__).parents[1] / "partworld" / "poison.py"))["Poison"]
    true_render = renderer.render

    def render(split, index, seed=0):
        scene = true_render(split, index, seed)
        return renderer.Scene(scene.image, scene.caption, Poison(), Poison(), Poison(), scene.labels)

    for module in (renderer, folder):
        monkeypatch.setattr(module, "render", render)
    config = _load(tmp_path, "training.steps=3").config
    workflow.make_prompts(config, tmp_path, Progress(), StopToken())
    workflow.make_shards(config, tmp_path / "prompts.parquet", tmp_path / "shards", Progress(), StopToken())
    for arm in ("unguided", "semantic", "glass"):
        workflow.make_model(config, tmp_path / "shards", tmp_path / arm, arm, 0, Progress(), StopToken())
    with pytest.raises(AssertionError, match="mask was read"):
        workflow.make_model(
            config, tmp_path / "shards", tmp_path / "bound", "upper_bound", 0, Progress(), StopToken()
        )


def test_stop_and_continue(tmp_path) -> None:
    class StopEarly(Progress):
        def __init__(self, token: StopToken) -> None:
            self.token = token

        def advance(self, count: int = 1, **fields: object) -> None:
            super().advance(count)
            if self.label == "synthesize":
                self.token.set()

    token = StopToken()
    with pytest.raises(Stopped):
        chain.run(_load(tmp_path, "losses=[unguided]"), StopEarly(token), token)
    result = chain.run(_load(tmp_path, "losses=[unguided]"), Progress(), StopToken())
    assert Path(result["report"]).exists() and result["ablation"] is None


def _cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "glass_fast", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def test_errors_are_one_message_with_an_exit_code(tmp_path) -> None:
    for arguments, code, text in (
        (("run", "demo", "--set", "synthesis.step=3"), 2, "step"),
        (("run", "no-such-preset"), 2, "no-such-preset"),
        (("synthesize", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "o")), 3, "none.parquet"),
        (("discover", str(tmp_path / "none.jpg"), "--out", str(tmp_path / "o")), 3, "none.jpg"),
        (("train", str(tmp_path), "--out", str(tmp_path / "m"), "--loss", "best"), 2, "best"),
    ):
        done = _cli(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert text in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_dry_run_writes_nothing(tmp_path) -> None:
    done = _cli("run", "demo", "--out", str(tmp_path / "x"), "--dry-run", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["stages"]["synthesize"]["images"] > 0
    assert not (tmp_path / "x").exists()


def test_presets_load() -> None:
    for name in ("demo", "sd15-voc", "sd21-coco"):
        assert load_config(name, [], []).config.name == name
    assert load_config("sd21-coco", [], []).config.models.decoder == "models/stable-diffusion-2-1"


def test_coco_captions_to_a_data_set(real_data, tmp_path) -> None:
    """Human captions of real photos -> prompts with PartWorld classes -> images with masks of those classes."""
    from glass_fast.data.prompts import read_prompts
    from glass_fast.data.shards import open_shards

    captions = real_data / "coco" / "annotations" / "captions_val2017.json"
    config = _load(
        tmp_path, "captions.source=provided", f"captions.file={captions}", "captions.limit=null"
    ).config
    stats = workflow.make_prompts(config, tmp_path, Progress(), StopToken())
    prompts = read_prompts(tmp_path / "prompts.parquet")
    assert stats and len({name for prompt in prompts for name in prompt.classes}) >= 3
    workflow.make_shards(config, tmp_path / "prompts.parquet", tmp_path / "shards", Progress(), StopToken())
    samples = open_shards(tmp_path / "shards")
    assert len(samples) == 12 and sum(len(np_unique(s.mask)) > 1 for s in samples) >= 6


def np_unique(mask):
    import numpy as np

    return np.unique(mask)
