"""The trainer end to end: it learns, resumes bit for bit, stops on request, refuses what does not belong together."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glass_fast.config.schema import TrainingConfig
from glass_fast.errors import ConfigError, NumericsError, Stopped
from glass_fast.models.glass import Glass
from glass_fast.progress import Progress, StopToken
from glass_fast.training import checkpoints, trainer
from glass_fast.training.data import GroundTruthData, prepare
from glass_fast.training.schedule import guidance_weight, learning_rate
from glass_fast.training.trainer import train
from tests.training import tiny


def bits(folder):
    return (folder / "model.safetensors").read_bytes()


class StopAfter(Progress):
    """Asks for a stop after some steps, as a signal would."""

    def __init__(self, token: StopToken, steps: int) -> None:
        self.token, self.steps = token, steps

    def advance(self, count: int = 1, **fields: object) -> None:
        super().advance(count, **fields)
        if self.unit == "steps" and self.done >= self.steps:
            self.token.set()


def test_it_learns_and_gives_a_model_folder(encoder, shards, tmp_path):
    config = tiny.tiny_config(steps=60, log_every=10, num_iterations=3, learning_rate=4e-3)
    out = train(config, shards, encoder, tmp_path / "glass", seed=1, device="cpu")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["instance"] < 0.8 * lines[0]["instance"]
    assert lines[-1]["semantic"] < 0.8 * lines[0]["semantic"]
    run = json.loads((out / "run.json").read_text())
    assert run["data"]["samples"] == 23 and run["encoder"]["checksum"] == encoder.checksum
    assert run["final_losses"]["loss"] == pytest.approx(lines[-1]["loss"]) and run["ms_per_step"] > 0
    assert len(list((out / "tensorboard").glob("events*"))) == 1
    model = Glass.from_pretrained(out, "cpu")
    masks = model.masks([shards[0].image])
    assert masks.shape == (1, 4, 8, 8) and model.labels == tiny.LABELS
    card = (out / "README.md").read_text()
    assert "synthetic images" in card and encoder.checksum[:16] in card


@pytest.mark.parametrize("loss", ["unguided", "semantic", "glass"])
def test_resumed_equals_uninterrupted_bit_for_bit(encoder, shards, tmp_path, loss):
    config = tiny.tiny_config(loss=loss, guidance_start=0.25, guidance_ramp=0.25, reconstruction_share=0.5)
    whole = train(config, shards, encoder, tmp_path / "whole", seed=3, device="cpu")
    token = StopToken()
    with pytest.raises(Stopped, match="6 of 12 steps"):
        train(config, shards, encoder, tmp_path / "parts", 3, "cpu", token, StopAfter(token, 6))
    assert not (tmp_path / "parts" / "config.json").exists()
    parts = train(config, shards, encoder, tmp_path / "parts", seed=3, device="cpu")
    assert bits(parts) == bits(whole)
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (d / "log.jsonl").open()]
        for d in (whole, parts)
    ]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [5, 10, 12]


def test_a_crash_goes_back_to_the_last_whole_checkpoint(encoder, shards, tmp_path, caplog):
    config = tiny.tiny_config()
    whole = train(config, shards, encoder, tmp_path / "whole", seed=3, device="cpu")
    broken = shutil.copytree(whole, tmp_path / "broken")
    (broken / "config.json").unlink()  # as if the process died before the model was published
    newest = broken / "checkpoints" / "step-0000012" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    (broken / "checkpoints" / ".tmp-step-0000013-1-aa").mkdir()
    again = train(config, shards, encoder, broken, seed=3, device="cpu")
    assert "step-0000012 is damaged and skipped" in caplog.text
    assert bits(again) == bits(whole)
    assert sorted(p.name for p in (again / "checkpoints").iterdir()) == ["step-0000008", "step-0000012"]
    assert [json.loads(line)["step"] for line in (again / "log.jsonl").open()] == [5, 10, 12]


def test_a_finished_run_is_returned_and_another_configuration_refused(encoder, shards, tmp_path, monkeypatch):
    out = train(tiny.tiny_config(), shards, encoder, tmp_path / "m", seed=3, device="cpu")
    before = bits(out)
    monkeypatch.setattr(trainer, "_Run", lambda *_: pytest.fail("a finished run was trained again"))
    assert train(tiny.tiny_config(log_every=1), shards, encoder, out, seed=3, device="cpu") == out
    assert bits(out) == before
    with pytest.raises(ConfigError, match=r"training\.learning_rate: 0\.002 there, 0\.5 now"):
        train(tiny.tiny_config(learning_rate=0.5), shards, encoder, out, seed=3, device="cpu")
    with pytest.raises(ConfigError, match="seed: 3 there, 4 now"):
        train(tiny.tiny_config(), shards, encoder, out, seed=4, device="cpu")


def test_losses_share_batches_noise_and_initial_weights(encoder, shards, tmp_path, monkeypatch):
    prepared = prepare(tiny.tiny_config(), shards, encoder)
    seen: dict[str, list[torch.Tensor]] = {}
    for loss in ("unguided", "semantic", "glass"):
        config = tiny.tiny_config(loss=loss)
        run = trainer._Run(config, prepared, encoder, tmp_path, 7, torch.device("cpu"), {})
        drawn = seen[loss] = [*run.slot_attention.state_dict().values()]
        original = run.slot_attention.forward
        run.slot_attention.forward = lambda f, n, _d=drawn, _o=original, **k: (
            _d.extend((f, n)),
            _o(f, n, **k),
        )[1]
        for step in (0, 3, 9):
            drawn.append(run._losses(step)[1])
    for loss in ("semantic", "glass"):
        assert len(seen[loss]) == len(seen["unguided"])
        for one, other in zip(seen[loss], seen["unguided"], strict=True):
            assert torch.equal(one, other)


def test_every_image_is_seen_once_an_epoch(encoder, shards, tmp_path):
    prepared = prepare(tiny.tiny_config(), shards, encoder)
    run = trainer._Run(tiny.tiny_config(), prepared, encoder, tmp_path, 7, torch.device("cpu"), {})
    rows = torch.cat([run.rows(step) for step in range(23)])  # 5 epochs of 23 in batches of 5
    for epoch in rows.view(5, 23):
        assert sorted(epoch.tolist()) == list(range(23))
    assert not torch.equal(rows[:23], rows[23:46])


def test_unguided_loss_reads_no_mask(encoder, shards, tmp_path):
    """The same features with all masks blanked give the same unguided model, and another guided one."""
    models = {}
    for blank in (False, True):
        prepared = prepare(tiny.tiny_config(), shards, encoder)
        if blank:
            prepared.labels.zero_()
            prepared.ids.fill_(-1)
            prepared.counts.zero_()
        for loss in ("unguided", "glass"):
            out = tmp_path / f"{loss}-{blank}"
            train(tiny.tiny_config(loss=loss), shards, encoder, out, 3, "cpu", prepared=prepared)
            models[loss, blank] = bits(out)
    assert models["unguided", False] == models["unguided", True]
    assert models["glass", False] != models["glass", True]


def test_ground_truth_serves_the_upper_bound_only(encoder, shards, tmp_path):
    rng = np.random.default_rng(0)
    images, masks = zip(*(tiny.picture(rng) for _ in range(6)), strict=True)
    truth = GroundTruthData(np.stack(images), np.stack(masks).astype(np.int32), tiny.LABELS)
    for loss in ("unguided", "semantic", "glass"):
        with pytest.raises(ConfigError, match="expected ShardDataset"):
            train(tiny.tiny_config(loss=loss), truth, encoder, tmp_path / "x", device="cpu")
    config = tiny.tiny_config(mask_source="ground_truth", steps=2)
    with pytest.raises(ConfigError, match="expected GroundTruthData"):
        train(config, shards, encoder, tmp_path / "x", device="cpu")
    assert not (tmp_path / "x").exists()
    out = train(config, truth, encoder, tmp_path / "upper", device="cpu")
    assert "ground truth (upper bound)" in (out / "README.md").read_text()


def test_a_non_finite_step_is_saved_and_named(encoder, shards, tmp_path):
    prepared = prepare(tiny.tiny_config(), shards, encoder)
    prepared.features[:, 4] = float("nan")
    with pytest.raises(NumericsError, match="is not finite") as caught:
        train(tiny.tiny_config(), shards, encoder, tmp_path / "m", 3, "cpu", prepared=prepared)
    assert caught.value.exit_code == 6
    (failure,) = (tmp_path / "m" / "failures").iterdir()
    state = json.loads((failure / "state.json").read_text())
    assert 4 in state["failed"]["rows"] and state["failed"]["values"]["loss"] == "nan"
    weights = load_file(failure / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def test_semantic_models_have_no_decoder(encoder, shards, tmp_path):
    out = train(tiny.tiny_config(loss="semantic", steps=2), shards, encoder, tmp_path / "m", device="cpu")
    assert json.loads((out / "config.json").read_text())["decoder"] is None
    assert not any(name.startswith("decoder.") for name in load_file(out / "model.safetensors"))
    assert Glass.from_pretrained(out, "cpu", encoder).decoder is None


def test_wrong_resolution_is_refused(encoder, shards, tmp_path):
    with pytest.raises(ConfigError, match="resolution=448, but the encoder was loaded at 32"):
        train(tiny.tiny_config(resolution=448), shards, encoder, tmp_path / "m")


def test_learning_rate_by_hand():
    config = TrainingConfig(steps=10, warmup_steps=2, learning_rate=1.0, schedule="linear")
    rates = [learning_rate(config, step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    cosine = config.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 6) == pytest.approx(0.5) and learning_rate(cosine, 2) == 1.0
    assert learning_rate(cosine, 4) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert learning_rate(TrainingConfig(learning_rate=2e-5), 9999) == 2e-5


def test_guidance_weight_by_hand():
    config = TrainingConfig(steps=20, guidance_start=0.4, guidance_ramp=0.2)
    weights = [guidance_weight(config, step) for step in range(20)]
    assert weights == pytest.approx([0.0] * 8 + [0.25, 0.5, 0.75, 1.0] + [1.0] * 8)
    assert guidance_weight(TrainingConfig(steps=20), 0) == 1.0
    assert guidance_weight(config.model_copy(update={"loss": "semantic"}), 0) == 1.0
    assert guidance_weight(config.model_copy(update={"loss": "unguided"}), 19) == 0.0


def test_a_checkpoint_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    tensors = {"a": torch.ones(2)}
    for step in (1, 2):
        checkpoints.save(tmp_path, checkpoints.Checkpoint(step, tensors, {}, {}), keep=2)
    monkeypatch.setattr(
        checkpoints.atomic, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(OSError, match="full"):
        checkpoints.save(tmp_path, checkpoints.Checkpoint(3, tensors, {}, {}), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000001", "step-0000002"]
    found = checkpoints.latest(tmp_path)
    assert found is not None and found.step == 2 and torch.equal(found.model["a"], torch.ones(2))
