"""The diffusion decoder: slots are its only context, and its folder gives back what was saved or says what is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.models.diffusion_decoder import DiffusionDecoder, fit_picture, load_decoder, module_checksum
from glass_fast.models.glass import Glass
from glass_fast.models.loading import load_encoder, load_generator
from glass_fast.models.schedulers import NoiseSchedule, build_scheduler
from glass_fast.models.weights import folder_checksum
from tests.generation import tiny_decoder
from tests.synthesis import tiny_sd
from tests.training import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("decoder")
    tiny.write_encoder(root / "encoder")
    tiny_decoder.write_generator(root / "generator")
    return root


@pytest.fixture(scope="module")
def generator(folders):
    return load_generator(folders / "generator", "cpu")


@pytest.fixture(scope="module")
def model(folders):
    return tiny_decoder.model(load_encoder(folders / "encoder", "cpu"))


@pytest.fixture
def decoder(generator, model):
    made = DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH)
    made.slots_checksum = module_checksum(model.slot_attention)
    made.null_context.data.normal_()
    return made


def inputs(batch: int = 2):
    return torch.randn(batch, 4, 16, 16), torch.tensor([100, 700])[:batch], torch.randn(batch, 4, 16)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_forward_process_and_target_agree_with_diffusers(prediction):
    shipped = {**tiny_sd.SD_SCHEDULER, "prediction_type": prediction}
    schedule, theirs = NoiseSchedule(shipped), build_scheduler("ddpm", shipped)
    clean, noise, times = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 400, 999])
    # the same float32 formula; torch may fuse it in another order
    torch.testing.assert_close(
        schedule.add_noise(clean, noise, times), theirs.add_noise(clean, noise, times), rtol=1e-5, atol=1e-6
    )
    wanted = {
        "epsilon": noise, "sample": clean, "v_prediction": theirs.get_velocity(clean, noise, times)
    }[prediction]  # fmt: skip
    torch.testing.assert_close(schedule.target(clean, noise, times), wanted, rtol=1e-5, atol=1e-6)
    assert schedule.alphas_cumprod[0] > 0.99 and schedule.alphas_cumprod[-1] < 0.01 and len(schedule) == 1000


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ConfigError, match="prediction_type is 'flow'") as caught:
        NoiseSchedule({**tiny_sd.SD_SCHEDULER, "prediction_type": "flow"})
    assert caught.value.code == "GF-SYN-013"


def test_slots_are_the_only_context(decoder):
    noisy, times, slots = inputs()
    seen = []
    for name, module in decoder.unet.named_modules():
        if name.endswith("attn2"):
            module.to_k.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        plain = decoder(noisy, times, slots)
        assert len(seen) >= 4 and all(torch.equal(context, slots) for context in seen)
        shuffled = decoder(noisy, times, slots[:, [2, 0, 3, 1]])
        changed = decoder(noisy, times, slots + torch.eye(4)[2][:, None])
    # a set has no order: only the order of sums differs
    torch.testing.assert_close(shuffled, plain, rtol=1e-4, atol=1e-5)
    assert (changed - plain).abs().max() > 1e-3
    assert plain.shape == noisy.shape


def test_dropped_samples_see_the_null_context_and_teach_it(decoder):
    noisy, times, slots = inputs()
    dropped = torch.tensor([True, False])
    out = decoder(noisy, times, slots, dropped)
    with torch.no_grad():
        null = decoder(noisy, times, decoder.null(2, 4))
        kept = decoder(noisy, times, slots)
    assert torch.equal(out[0], null[0]) and torch.equal(out[1], kept[1])
    assert not torch.allclose(null[0], kept[0], atol=1e-3)
    (gradient,) = torch.autograd.grad(
        out[1].sum(), decoder.null_context, retain_graph=True, materialize_grads=True
    )
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(out[0].sum(), decoder.null_context)
    assert gradient.any()


def test_round_trip_inside_a_model_folder(decoder, model, generator, tmp_path):
    path = model.save_pretrained(tmp_path / "m")
    before = folder_checksum(path)
    decoder.save_pretrained(path / "decoder")
    assert folder_checksum(path) == before, "the decoder does not decide what the model finds"
    loaded_model = Glass.from_pretrained(path, "cpu", model.encoder)
    again = load_decoder(path, loaded_model, "cpu")
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.resolution == tiny_decoder.SIDE and again.noise_schedule.prediction_type == "v_prediction"
    assert again.config_dict() == decoder.config_dict()
    files = sorted(
        p.relative_to(path / "decoder").as_posix() for p in (path / "decoder").rglob("*.*") if p.is_file()
    )
    assert files == [
        "README.md", "config.json", "null_context.safetensors", "scheduler/scheduler_config.json",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    unet = (path / "decoder" / "unet" / "config.json").read_text()
    assert str(generator.source.folder()) not in unet and "_name_or_path" not in unet


def test_half_precision_halves_the_file_and_loads_as_float32(decoder, tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        decoder.save_pretrained(tmp_path / dtype, dtype)
        weights = tmp_path / dtype / "unet" / "diffusion_pytorch_model.safetensors"
        assert {str(t.dtype) for t in load_file(weights).values()} == {f"torch.{dtype}"}
        sizes[dtype] = sum(t.nbytes for t in load_file(weights).values())
    assert sizes["float16"] * 2 == sizes["float32"]
    again = DiffusionDecoder.from_pretrained(tmp_path / "float16", "cpu")
    assert again.unet.dtype == again.null_context.dtype == decoder.unet.dtype == torch.float32
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name


def test_the_generator_is_left_as_it_is(generator):
    before = module_checksum(generator.unet)
    made = DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH)
    assert module_checksum(made.unet) == before
    with torch.no_grad():
        made.unet.conv_in.weight.add_(1)
    assert module_checksum(generator.unet) == before
    state = torch.get_rng_state()
    random = [
        module_checksum(DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH, "scratch", seed).unet)
        for seed in (1, 1, 2)
    ]
    assert random[0] == random[1] != random[2] and before not in random
    assert torch.equal(torch.get_rng_state(), state)


def test_what_does_not_fit_is_refused(generator, decoder, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"slots are 24 wide, the UNet of .* takes a context of 16"
    ) as caught:
        DiffusionDecoder.from_generator(generator, 24)
    assert caught.value.code == "GF-MODEL-051"
    with pytest.raises(ConfigError, match=r"slots of shape \(2, 4, 24\)") as caught:
        decoder(torch.randn(2, 4, 16, 16), torch.tensor([1, 2]), torch.randn(2, 4, 24))
    assert caught.value.code == "GF-MODEL-051"
    with pytest.raises(ConfigError, match=r"resolution=33; expected a multiple of 2") as caught:
        DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH, resolution=33)
    assert caught.value.code == "GF-MODEL-052"
    assert DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH, resolution=48).latent_size == 24
    monkeypatch.setattr("glass_fast.models.diffusion_decoder._FOREIGN_INPUTS", ("act_fn",))
    with pytest.raises(ConfigError, match="the UNet has act_fn") as caught:
        DiffusionDecoder.from_generator(generator, tiny_decoder.WIDTH)
    assert caught.value.code == "GF-MODEL-050"


def test_the_vae_must_be_the_one_of_the_training(decoder, folders, tmp_path):
    path = decoder.save_pretrained(tmp_path / "d")
    other = tiny_decoder.write_generator(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="trained with a VAE of checksum") as caught:
        DiffusionDecoder.from_pretrained(path, "cpu", other)
    assert caught.value.code == "GF-MODEL-053"
    moved = shutil.copytree(folders / "generator", tmp_path / "moved")
    shutil.rmtree(moved / "unet")  # only the VAE is needed
    assert DiffusionDecoder.from_pretrained(path, "cpu", moved).vae.checksum == decoder.vae.checksum
    shutil.rmtree(moved / "vae")
    with pytest.raises(EnvironmentProblem, match="lacks vae/"):
        DiffusionDecoder.from_pretrained(path, "cpu", moved)


def test_a_model_without_decoder_or_with_that_of_another(decoder, model, tmp_path):
    path = model.save_pretrained(tmp_path / "m")
    with pytest.raises(EnvironmentProblem, match="has no decoder/") as caught:
        load_decoder(path, model, "cpu")
    assert caught.value.code == "GF-MODEL-057" and "train-decoder" in caught.value.hint
    decoder.save_pretrained(path / "decoder")
    load_decoder(path, model, "cpu")
    other = tiny_decoder.model(model.encoder, seed=1)
    with pytest.raises(DataError, match="trained on slots of checksum") as caught:
        load_decoder(path, other, "cpu")
    assert caught.value.code == "GF-MODEL-058"


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"schema": 2}, DataError, "GF-MODEL-055"),
        ({"class": "Glass"}, DataError, "GF-MODEL-055"),
        ({"extra": 1}, ConfigError, "GF-MODEL-056"),
        ({"out_size": 8}, DataError, "GF-MODEL-054"),
        ({"prediction_type": "epsilon"}, DataError, "GF-MODEL-054"),
    ],
)
def test_wrong_configurations(decoder, tmp_path, change, error, code):
    path = decoder.save_pretrained(tmp_path / "d")
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error) as caught:
        DiffusionDecoder.from_pretrained(path, "cpu")
    assert caught.value.code == code


def test_damaged_weights(decoder, tmp_path):
    path = decoder.save_pretrained(tmp_path / "d")
    save_file({"null_context": torch.zeros(3)}, path / "null_context.safetensors")
    with pytest.raises(DataError, match=r"holds \{'null_context': \(3,\)\}"):
        DiffusionDecoder.from_pretrained(path, "cpu")
    (path / "null_context.safetensors").unlink()
    with pytest.raises(DataError, match=r"null_context\.safetensors is missing"):
        DiffusionDecoder.from_pretrained(path, "cpu")
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged or cut short"):
        DiffusionDecoder.from_pretrained(path, "cpu")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match="as pickle"):
        DiffusionDecoder.from_pretrained(path, "cpu")


def test_pictures_are_cut_to_the_centre_square():
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200
    # constant inside the square; bicubic weights sum to one within a rounding step
    assert np.abs(fit_picture(wide, 32)[2:-2, 2:-2].astype(int) - 200).max() <= 1
    assert fit_picture(wide, 32).shape == (32, 32, 3)
    exact = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(fit_picture(exact, 32), exact)
