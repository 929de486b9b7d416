"""Phase 2 end to end: it learns, resumes bit for bit, moves only what it may, refuses what does not belong together."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from glass_fast.errors import ConfigError, DataError, NumericsError, Stopped
from glass_fast.models.diffusion_decoder import DiffusionDecoder, load_decoder
from glass_fast.models.glass import Glass
from glass_fast.models.loading import load_generator
from glass_fast.progress import Progress, StopToken
from glass_fast.training import checkpoints, phase2
from glass_fast.training.latents import PictureFolder, choose_pictures, prepare_latents
from glass_fast.training.phase2 import train_decoder
from tests.generation import tiny_decoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return load_generator(tiny_decoder.write_generator(tmp_path_factory.mktemp("sd") / "generator"), "cpu")


@pytest.fixture(scope="module")
def model(encoder):
    return tiny_decoder.model(encoder)


def weights(out):
    """All weight bytes of a finished folder."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.glob("**/*.safetensors"))
            if "checkpoints" not in p.parts}  # fmt: skip


def make_run(config, data, model, generator, out, seed=3):
    decoder = DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH)
    chosen = choose_pictures(data, ())
    prepared = prepare_latents(config, data, chosen, model.encoder, decoder)
    return phase2._Run(config, prepared, model, decoder, out, seed, CPU, {}, "")


class StopAfter(Progress):
    """Asks for a stop after some steps, as a signal would."""

    def __init__(self, token: StopToken, steps: int) -> None:
        self.token, self.steps = token, steps

    def advance(self, count: int = 1, **fields: object) -> None:
        super().advance(count, **fields)
        if self.unit == "steps" and self.done >= self.steps:
            self.token.set()


def test_it_learns_and_gives_a_model_folder(model, generator, shards, tmp_path):
    config = tiny_decoder.config(steps=40, batch_size=8, log_every=10, learning_rate=3e-3)
    source = model.save_pretrained(tmp_path / "source")
    out = train_decoder(config, shards, model, generator, tmp_path / "out", 1, "cpu")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    # the mean over ten steps of eight noise levels scatters by about a tenth
    assert lines[-1]["diffusion"] < 0.8 * lines[0]["diffusion"]
    assert lines[-1]["loss"] == lines[-1]["diffusion"] and "instance" not in lines[-1]
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    loaded = Glass.from_pretrained(out, "cpu", model.encoder)
    decoder = load_decoder(out, loaded, "cpu")
    assert decoder.context_dropout == 0.1 and bool(decoder.null_context.any())
    run = json.loads((out / "decoder" / "run.json").read_text())
    assert run["data"]["samples"] == 23 and run["data"]["rejected"] == 1 and run["data"]["kind"] == "shards"
    assert run["generator"]["checksum"] == generator.checksum and run["ms_per_step"] > 0
    assert run["final_losses"]["loss"] == pytest.approx(lines[-1]["loss"])
    assert "23 pictures" in (out / "decoder" / "README.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "ema": 0.9,
            "flip": True,
            "timesteps": "logit_normal",
            "saved_dtype": "float16",
            "context_dropout": 0.4,
        },
        {"slots": "low_rate", "keep_phase1": True, "micro_batch": 2, "latents": "mean"},
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(model, generator, shards, tmp_path, changes):
    config = tiny_decoder.config(**changes)
    whole = train_decoder(config, shards, model, generator, tmp_path / "whole", 3, "cpu")
    token = StopToken()
    with pytest.raises(Stopped, match="3 of 6 steps"):
        train_decoder(
            config, shards, model, generator, tmp_path / "parts", 3, "cpu", token, StopAfter(token, 3)
        )
    assert not (tmp_path / "parts" / "config.json").exists()
    parts = train_decoder(config, shards, model, generator, tmp_path / "parts", 3, "cpu")
    assert weights(parts) == weights(whole)
    assert list(weights(whole)) == [
        "decoder/null_context.safetensors", "decoder/unet/diffusion_pytorch_model.safetensors",
        "model.safetensors",
    ]  # fmt: skip
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (d / "log.jsonl").open()]
        for d in (whole, parts)
    ]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0]] == [2, 4, 6]


def test_plain_pictures_give_the_same_decoder_so_no_mask_is_used(model, generator, shards, tmp_path):
    for number, sample in enumerate(shards):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(tmp_path / "pictures" / f"{number:03d}.png")
    folder = PictureFolder(tmp_path / "pictures")
    config = tiny_decoder.config(steps=2)
    plain = train_decoder(config, folder, model, generator, tmp_path / "plain", 3, "cpu")
    ours = train_decoder(config, shards, model, generator, tmp_path / "shards", 3, "cpu", reject=())
    assert weights(plain) == weights(ours)
    assert json.loads((plain / "decoder" / "run.json").read_text())["data"]["kind"] == "pictures"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "pictures" / "000.png")
    with pytest.raises(ConfigError, match="another configuration"):
        train_decoder(config, PictureFolder(tmp_path / "pictures"), model, generator, plain, 3, "cpu")


def test_slot_attention_moves_only_when_asked_and_ten_times_slower(model, generator, shards, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = make_run(tiny_decoder.config(), shards, model, generator, tmp_path)
    assert {name.split(".")[0] for name in frozen.parameters} == {"unet", "null_context"}
    config = tiny_decoder.config(slots="low_rate", weight_decay=0.0, learning_rate=1e-3, context_dropout=0.5)
    run = make_run(config, shards, model, generator, tmp_path)
    assert {name.split(".")[0] for name in run.parameters} == {"unet", "null_context", "slot_attention"}
    start = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
    run._one_step()
    moved = {
        part: max(
            float((parameter.detach() - start[name]).abs().max())
            for name, parameter in run.parameters.items()
            if name.startswith(part)
        )
        for part in ("unet", "null_context", "slot_attention")
    }
    # Adam's first step is the learning rate times the sign of the gradient, up to its epsilon
    assert moved == pytest.approx({"unet": 1e-3, "null_context": 1e-3, "slot_attention": 1e-4}, rel=0.02)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the caller's model was changed"


def test_low_rate_publishes_the_slots_that_the_decoder_saw(model, generator, shards, tmp_path):
    config = tiny_decoder.config(slots="low_rate", keep_phase1=True, steps=2)
    source = model.save_pretrained(tmp_path / "source")
    out = train_decoder(config, shards, model, generator, tmp_path / "out", 1, "cpu")
    old, new = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"slot_attention", "decoder"}
    load_decoder(out, Glass.from_pretrained(out, "cpu", model.encoder), "cpu")
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["instance"] > 0


def test_pieces_of_a_batch_give_the_gradient_of_the_batch(model, generator, shards, tmp_path):
    found = []
    for piece in (None, 2):
        config = tiny_decoder.config(micro_batch=piece, slots="low_rate", keep_phase1=True)
        run = make_run(config, shards, model, generator, tmp_path)
        values, _ = run.gradients(0)
        found.append((values, {name: p.grad.clone() for name, p in run.parameters.items()}))
    (whole, gradients), (pieces, summed) = found
    assert pieces == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients.items():
        # sums of float32 in another order
        torch.testing.assert_close(summed[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_loss_by_hand(model, generator, shards, tmp_path):
    """Mean squared error between prediction and velocity of the posterior's draw, with some contexts dropped."""
    config = tiny_decoder.config(context_dropout=0.5, batch_size=6)
    run = make_run(config, shards, model, generator, tmp_path)
    drawn = run.draw(1)
    assert 0 < int(drawn.dropped.sum()) < 6
    with torch.no_grad():
        got = run.losses(drawn)["diffusion"]
        features = run.data.features[0, drawn.rows]
        _, slots, _ = model.slot_attention(features, drawn.slots, grid=(8, 8))
        mean, deviation = run.data.latents[0, drawn.rows].unbind(1)
        clean = mean + deviation * drawn.posterior
        share = run.decoder.noise_schedule.alphas_cumprod[drawn.timesteps].view(-1, 1, 1, 1)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * drawn.noise
        velocity = share.sqrt() * drawn.noise - (1 - share).sqrt() * clean
        slots[drawn.dropped] = 0.0  # the null context starts at zero
        prediction = run.decoder.unet(noisy, drawn.timesteps, encoder_hidden_states=slots).sample
    assert float(got) == pytest.approx(float((prediction - velocity).square().mean()), rel=1e-5)
    assert float(deviation.min()) > 0 and not torch.equal(clean, mean)


def test_draws_are_functions_of_seed_and_step_alone(model, generator, shards, tmp_path):
    config = tiny_decoder.config(batch_size=64, context_dropout=0.25)
    run = make_run(config, shards, model, generator, tmp_path)
    steps = [run.draw(step) for step in range(20)]
    again = make_run(config, shards, model, generator, tmp_path).draw(7)
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(steps[7]).items())
    dropped = torch.cat([drawn.dropped for drawn in steps]).float().mean()
    times = torch.cat([drawn.timesteps for drawn in steps]).double()
    # four standard errors of 1280 draws: 4 sqrt(0.25 0.75 / 1280) and 4 * 289 / sqrt(1280)
    assert abs(float(dropped) - 0.25) < 0.05 and abs(float(times.mean()) - 499.5) < 33
    assert times.min() >= 0 and times.max() <= 999 and not any(drawn.flips.any() for drawn in steps)
    changed = config.model_copy(
        update={
            "timesteps": "logit_normal",
            "logit_std": 0.5,
            "context_dropout": 0.0,
            "latents": "mean",
            "flip": True,
        }
    )
    other = make_run(changed, shards, model, generator, tmp_path)
    drawn = [other.draw(step) for step in range(20)]
    for name in ("rows", "slots", "posterior", "noise"):
        assert torch.equal(vars(drawn[7])[name], vars(steps[7])[name]), f"an option moved {name}"
    middle = torch.cat([d.timesteps for d in drawn]).double()
    # sigmoid(0.5 z): half of the draws between sigmoid(-0.337) and sigmoid(0.337), i.e. 417..583; uniform has a sixth
    assert abs(float(((middle > 417) & (middle < 583)).double().mean()) - 0.5) < 0.06
    assert not torch.cat([d.dropped for d in drawn]).any() and torch.cat([d.flips for d in drawn]).any()


def test_mirrored_pictures_have_latents_of_their_own(model, generator, shards):
    config = tiny_decoder.config(flip=True)
    decoder = DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH)
    data = prepare_latents(config, shards, choose_pictures(shards, ("empty",)), model.encoder, decoder)
    rows, flips = torch.tensor([0, 0]), torch.tensor([False, True])
    features, mean, deviation = data.batch(rows, flips, CPU)
    image = shards[0].image
    for view, picture in enumerate((image, np.ascontiguousarray(image[:, ::-1]))):
        wanted = decoder.vae.moments(picture[None])
        # another batch size may change the last bits of a product
        torch.testing.assert_close(mean[view], wanted[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(deviation[view], wanted[1][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features[view], model.encode([picture])[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mean[0], mean[1], atol=1e-2)


def test_the_average_is_saved_and_the_last_weights_are_not(model, generator, shards, tmp_path):
    config = tiny_decoder.config(ema=0.5, steps=2, checkpoint_every=1, keep_checkpoints=2)
    out = train_decoder(config, shards, model, generator, tmp_path / "out", 3, "cpu")
    first, second = (checkpoints.load(out / "checkpoints" / f"step-000000{step}") for step in (1, 2))
    name = "unet.conv_in.weight"
    start = generator.unet.conv_in.weight
    # decays 1/10 and 2/11: min(ema, (step + 1) / (step + 10))
    one = 0.1 * start + 0.9 * first.model[name]
    two = 2 / 11 * one + 9 / 11 * second.model[name]
    saved = load_file(out / "decoder" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    torch.testing.assert_close(saved, two, rtol=1e-5, atol=1e-7)  # one rounding of float32 per step
    assert torch.equal(second.model[f"ema.{name}"], saved)
    assert (saved - second.model[name]).abs().max() > 1e-5


def test_a_finished_run_is_returned_and_other_folders_are_refused(
    model, generator, shards, tmp_path, monkeypatch
):
    out = train_decoder(tiny_decoder.config(steps=2), shards, model, generator, tmp_path / "m", 3, "cpu")
    before = weights(out)
    (out / "config.json").rename(out / "kept")  # as if the process had died while it published
    assert train_decoder(tiny_decoder.config(steps=2), shards, model, generator, out, 3, "cpu") == out
    assert weights(out) == before and (out / "config.json").read_bytes() == (out / "kept").read_bytes()
    monkeypatch.setattr(phase2, "_Run", lambda *_: pytest.fail("a finished run was trained again"))
    sampling = {"steps": 99}
    same = tiny_decoder.config(steps=2, log_every=1, sampling=sampling)
    assert train_decoder(same, shards, model, generator, out, 3, "cpu") == out
    for changed, seed, message in (
        (
            tiny_decoder.config(steps=2, context_dropout=0.2),
            3,
            r"decoder\.context_dropout: 0\.1 there, 0\.2 now",
        ),
        (tiny_decoder.config(steps=2), 4, "seed: 3 there, 4 now"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            train_decoder(changed, shards, model, generator, out, seed, "cpu")
        assert caught.value.code == "GF-TRAIN-007"
    with pytest.raises(ConfigError, match="slot_attention"):
        train_decoder(
            tiny_decoder.config(steps=2),
            shards,
            tiny_decoder.model(model.encoder, seed=9),
            generator,
            out,
            3,
            "cpu",
        )
    phase1 = model.save_pretrained(tmp_path / "phase1")
    with pytest.raises(ConfigError, match="already holds a model without decoder") as caught:
        train_decoder(tiny_decoder.config(), shards, model, generator, phase1, 3, "cpu")
    assert caught.value.code == "GF-TRAIN-022"


def test_options_that_do_not_go_together(encoder, generator, shards, tmp_path):
    with pytest.raises(ValidationError, match="keep_phase1 needs slots: low_rate"):
        tiny_decoder.config(keep_phase1=True)
    with pytest.raises(ValidationError, match="multiple of micro_batch"):
        tiny_decoder.config(micro_batch=3)
    bare = tiny_decoder.model(encoder, mlp=False)
    config = tiny_decoder.config(slots="low_rate", keep_phase1=True)
    with pytest.raises(ConfigError, match="no MLP decoder") as caught:
        train_decoder(config, shards, bare, generator, tmp_path / "m", 3, "cpu")
    assert caught.value.code == "GF-TRAIN-021"
    wide = tiny_decoder.model(encoder, out_size=24)
    with pytest.raises(ConfigError, match="slots are 24 wide"):
        train_decoder(tiny_decoder.config(), shards, wide, generator, tmp_path / "m", 3, "cpu")
    assert not (tmp_path / "m").exists()


def test_a_vae_of_another_model_is_refused(model, generator, shards, monkeypatch):
    decoder = DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH)
    monkeypatch.setattr(decoder, "latent_size", 8)
    chosen = choose_pictures(shards, ())
    monkeypatch.setattr(type(decoder), "resolution", property(lambda self: 32))
    with pytest.raises(DataError, match=r"gives latents \(4, 16, 16\); the UNet takes \(4, 8, 8\)") as caught:
        prepare_latents(tiny_decoder.config(), shards, chosen, model.encoder, decoder)
    assert caught.value.code == "GF-TRAIN-020"


def test_a_non_finite_step_is_saved_and_named(model, generator, shards, tmp_path):
    run = make_run(tiny_decoder.config(), shards, model, generator, tmp_path)
    run.data.latents[:, 4] = float("nan")
    with pytest.raises(NumericsError, match="of the diffusion decoder is not finite") as caught:
        run.to_the_end(StopToken(), Progress())
    assert caught.value.exit_code == 6 and "decoder.learning_rate" in caught.value.hint
    (failure,) = (tmp_path / "failures").iterdir()
    state = json.loads((failure / "state.json").read_text())
    assert 4 in state["failed"]["rows"] and state["failed"]["values"]["loss"] == "nan"
    assert all(bool(torch.isfinite(t).all()) for t in load_file(failure / "model.safetensors").values())


def test_damaged_pictures_are_named(model, generator, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"a\.png"):
        train_decoder(
            tiny_decoder.config(), PictureFolder(tmp_path / "p"), model, generator, tmp_path / "m", 3, "cpu"
        )
