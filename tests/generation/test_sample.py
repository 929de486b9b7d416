"""Pictures from slots: the sampler undoes the training's noise, pictures do not depend on neighbours, closeness."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from glass_fast.cli import app
from glass_fast.config.schema import SamplingConfig
from glass_fast.errors import ConfigError, DataError, EnvironmentProblem, NumericsError, Stopped
from glass_fast.generation.compare import closer_to_source, derangement
from glass_fast.generation.pictures import contact_sheet, generate
from glass_fast.generation.sample import sample
from glass_fast.models.denoising import decode
from glass_fast.models.diffusion_decoder import DiffusionDecoder, module_checksum
from glass_fast.models.loading import load_encoder, load_generator
from glass_fast.progress import StopToken
from tests.generation import tiny_decoder
from tests.training import tiny

SAMPLING = SamplingConfig(steps=3, scheduler="ddim", guidance_scale=1.5, batch_size=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("generation")
    tiny.write_encoder(root / "encoder")
    tiny_decoder.write_generator(root / "generator")
    rng = np.random.default_rng(3)
    (root / "pictures").mkdir()
    for number in range(5):
        image, _ = tiny.picture(rng)
        Image.fromarray(image).save(root / "pictures" / f"p{number}.png")
    return root


@pytest.fixture(scope="module")
def model(folders):
    return tiny_decoder.model(load_encoder(folders / "encoder", "cpu"))


@pytest.fixture(scope="module")
def decoder(folders, model):
    made = DiffusionDecoder.from_generator(load_generator(folders / "generator", "cpu"), tiny_decoder.WIDTH)
    made.null_context.data.normal_(generator=torch.Generator().manual_seed(1))
    made.context_dropout = 0.1
    made.slots_checksum = module_checksum(model.slot_attention)
    return made.requires_grad_(False)


def slots(count: int) -> torch.Tensor:
    return torch.randn(count, 4, tiny_decoder.WIDTH, generator=torch.Generator().manual_seed(2))


class Oracle(torch.nn.Module):
    """A UNet that knows the clean latents and predicts exactly what the objective asks for."""

    def __init__(self, decoder: DiffusionDecoder, clean: torch.Tensor) -> None:
        super().__init__()
        self.config, self.dtype = decoder.unet.config, torch.float32
        self.schedule, self.clean = decoder.noise_schedule, clean

    def forward(self, noisy, timestep, encoder_hidden_states, return_dict):
        times = torch.as_tensor(timestep).long().expand(len(noisy))
        share = self.schedule.alphas_cumprod[times].view(-1, 1, 1, 1)
        noise = (noisy - share.sqrt() * self.clean) / (1 - share).sqrt()
        return (self.schedule.target(self.clean, noise, times),)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_undoes_what_training_does(decoder, monkeypatch, prediction):
    """With a perfect network every sampler must end at the latents that the training's formulas were given."""
    clean = torch.randn(2, 4, 16, 16)
    shipped = {
        **decoder.scheduler_config,
        "prediction_type": prediction,
        "set_alpha_to_one": True,
        "steps_offset": 0,
    }
    perfect = DiffusionDecoder(decoder.unet, decoder.vae, shipped, 16)
    monkeypatch.setattr(perfect, "unet", Oracle(perfect, clean))
    wanted = decode(decoder.vae.model, clean)[0].numpy()
    for scheduler, steps in (("ddim", 8), ("dpmsolver++", 25)):
        got = sample(perfect, slots(2), steps, 1.0, [5, 6], scheduler=scheduler)
        # rounding to uint8, and the little noise that DPM-Solver leaves at its last timestep
        assert np.abs(got.astype(int) - wanted).mean() < 1.0, scheduler


def test_a_picture_depends_on_its_slots_and_seed_alone(decoder):
    together = sample(decoder, slots(3), 3, 1.5, [7, 8, 9], scheduler="ddim")
    assert together.shape == (3, 32, 32, 3) and together.dtype == np.uint8
    for item, seed in enumerate((7, 8, 9)):
        alone = sample(decoder, slots(3)[item : item + 1], 3, 1.5, [seed], scheduler="ddim")
        # another batch size may change the last bits of a product, so a pixel may round the other way
        assert np.abs(alone[0].astype(int) - together[item]).max() <= 1
    for other in (
        sample(decoder, slots(3), 3, 1.5, [7, 8, 1], scheduler="ddim"),
        sample(
            decoder,
            slots(3) * torch.tensor([1.0, 1.0, -1.0])[:, None, None],
            3,
            1.5,
            [7, 8, 9],
            scheduler="ddim",
        ),
    ):
        assert np.array_equal(other[:2], together[:2]) and not np.array_equal(other[2], together[2])


def test_guidance_is_against_the_null_context(decoder, monkeypatch):
    seeds = [1, 2]
    null = decoder.null(2, 4)
    without = sample(decoder, slots(2), 3, 0.0, seeds, scheduler="ddim")
    # scale 0 keeps the unconditional half alone; it ran in a batch of four instead of two
    assert np.abs(without.astype(int) - sample(decoder, null, 3, 1.0, seeds, scheduler="ddim")).max() <= 1
    plain, guided = (sample(decoder, slots(2), 3, scale, seeds, scheduler="ddim") for scale in (1.0, 4.0))
    assert np.abs(guided.astype(int) - plain).mean() > 1
    rows = []
    hook = decoder.unet.conv_in.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    sample(decoder, slots(2), 3, 1.0, seeds, scheduler="ddim")
    sample(decoder, slots(2), 3, 2.0, seeds, scheduler="ddim")
    hook.remove()
    assert rows == [2] * 3 + [4] * 3, "guidance 1 must not pay for the second half"


def test_wrong_arguments(decoder, monkeypatch):
    with pytest.raises(ConfigError, match="1 seeds for 2 sets of slots"):
        sample(decoder, slots(2), 3, 1.0, [1])
    with pytest.raises(ConfigError, match="slots of shape"):
        sample(decoder, slots(2)[..., :8], 3, 1.0, [1, 2])
    with pytest.raises(ConfigError, match=r"decoder\.sampling\.scheduler='nope'"):
        sample(decoder, slots(1), 3, 1.0, [1], scheduler="nope")
    with pytest.raises(ConfigError, match=r"decoder\.sampling\.steps=2000"):
        sample(decoder, slots(1), 2000, 1.0, [1], scheduler="ddim")
    assert sample(decoder, slots(0), 3, 1.0, []).shape == (0, 32, 32, 3)
    monkeypatch.setattr(decoder, "context_dropout", 0.0)
    with pytest.raises(ConfigError, match="knows no null context") as caught:
        sample(decoder, slots(1), 3, 1.5, [1])
    assert caught.value.code == "GF-GEN-002"
    sample(decoder, slots(1), 2, 1.0, [1], scheduler="ddim")
    with pytest.raises(NumericsError, match=r"picture 1 of 2 \(seed 4\) is not finite"):
        sample(
            decoder,
            slots(2) * torch.tensor([1.0, float("nan")])[:, None, None],
            2,
            1.0,
            [3, 4],
            scheduler="ddim",
        )


class Corners:
    """An encoder of four tokens and two channels: mean red and green of each quarter."""

    def features(self, images):
        pixels = torch.from_numpy(np.stack(images)).float()[..., :2]
        return pixels.unflatten(2, (2, -1)).unflatten(1, (2, -1)).mean((2, 4)).flatten(1, 2)


def test_closeness_by_hand():
    """Three scenes of one bright quarter; 0 is painted well, 1 in the wrong place, 2 as its partner."""

    def scene(quarter: int, value: int) -> np.ndarray:
        image = np.zeros((4, 4, 3), np.uint8)
        y, x = divmod(quarter, 2)
        image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, 0] = value
        return image

    partners = derangement(3, seed=4)
    sources = [scene(0, 80), scene(1, 80), scene(2, 120)]
    made = [scene(0, 84), scene(3, 80), sources[partners[2]]]
    result = closer_to_source(Corners(), sources, made, seed=4, batch_size=2)
    other = [sources[partner] for partner in partners]

    def distance(a, b, pooled):
        fa, fb = (Corners().features([picture])[0].double() for picture in (a, b))
        return float(((fa.mean(0) - fb.mean(0)) if pooled else (fa - fb)).square().mean())

    assert result["images"] == 3 and result["seed"] == 4
    for name, pooled in (("patch", False), ("pooled", True)):
        near = [distance(m, s, pooled) for m, s in zip(made, sources, strict=True)]
        far = [distance(m, s, pooled) for m, s in zip(made, other, strict=True)]
        assert result[name]["own"] == pytest.approx(np.mean(near))
        assert result[name]["other"] == pytest.approx(np.mean(far))
        assert result[name]["share"] == pytest.approx(np.mean(np.array(near) < np.array(far)))
    # by hand: own patch distances are 4^2 / 8, 2 * 80^2 / 8 (both quarters wrong) and 120^2 + 80^2 over 8
    assert result["patch"]["own"] == pytest.approx((16 + 2 * 80**2 + 120**2 + 80**2) / 8 / 3)
    # pooled red is a quarter of the value, over two channels: 1, 0 and 10 apart
    assert result["pooled"]["own"] == pytest.approx((1 + 0 + 100) / 2 / 3)


def test_a_tie_is_not_closer():
    same = [np.full((4, 4, 3), 9, np.uint8)] * 4
    result = closer_to_source(Corners(), same, same)
    assert result["patch"] == result["pooled"] == {"share": 0.0, "own": 0.0, "other": 0.0}


def test_partners_are_never_the_item_itself():
    for count in (2, 3, 50):
        for seed in range(20):
            partners = derangement(count, seed)
            assert sorted(partners) == list(range(count)) and not (partners == np.arange(count)).any()
    assert derangement(50, 0).tolist() != derangement(50, 1).tolist()
    with pytest.raises(DataError, match="at least two"):
        derangement(1, 0)
    with pytest.raises(DataError, match="1 generated pictures for 2 sources"):
        closer_to_source(Corners(), [np.zeros((4, 4, 3), np.uint8)] * 2, [np.zeros((4, 4, 3), np.uint8)])


def test_sheet_has_source_beside_picture():
    sources = [np.full((6, 6, 3), 10 * n, np.uint8) for n in range(10)]
    made = [np.full((6, 6, 3), 10 * n + 5, np.uint8) for n in range(10)]
    sheet = contact_sheet(sources, made)
    assert sheet.shape == (2 * 10 + 4, 8 * 20 + 4, 3)
    values = sheet[7, :, 0]
    assert [int(v) for v in values if v != 255][::6] == [v for n in range(8) for v in (10 * n, 10 * n + 5)]
    assert [int(v) for v in sheet[17, :, 0] if v != 255][::6] == [80, 85, 90, 95]


def test_pictures_are_written_with_their_record(model, decoder, folders, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = []
    hook = decoder.unet.conv_in.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    record = generate(
        model, decoder, [folders / "pictures", tmp_path / "bad.png"], tmp_path / "out", SAMPLING, 5
    )
    hook.remove()
    # a matrix product may round a row differently in a batch of another size: two batches of three, both full
    assert rows == [6] * 6
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*"))
    assert files == ["generation.json", *(f"images/p{n}.png" for n in range(5)), "sheet.png"]
    assert json.loads((tmp_path / "out" / "generation.json").read_text()) == json.loads(json.dumps(record))
    assert record["images"] == 5 and [entry["name"] for entry in record["pictures"]] == [
        f"p{n}" for n in range(5)
    ]
    assert [entry["code"] for entry in record["refused"]] == ["GF-DATA-152"]
    made = [np.asarray(Image.open(tmp_path / "out" / "images" / f"p{n}.png")) for n in range(5)]
    sources = [np.asarray(Image.open(folders / "pictures" / f"p{n}.png")) for n in range(5)]
    assert record["closeness"] == closer_to_source(model.encoder, sources, made, 5)
    # p3 is made again among other neighbours: the same bytes
    (tmp_path / "few").mkdir()
    for name in ("p3.png", "p1.png"):
        (tmp_path / "few" / name).write_bytes((folders / "pictures" / name).read_bytes())
    generate(model, decoder, [tmp_path / "few"], tmp_path / "again", SAMPLING, 5)
    for name in ("p1", "p3"):
        paths = [tmp_path / folder / "images" / f"{name}.png" for folder in ("again", "out")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(DataError, match="none of 1 pictures could be read"):
        generate(model, decoder, [tmp_path / "bad.png"], tmp_path / "none", SAMPLING)


def test_a_stop_leaves_no_record(model, decoder, folders, tmp_path):
    token = StopToken()
    token.set()
    (tmp_path / "generation.json").write_text("{}")
    with pytest.raises(Stopped, match="0 of 5 pictures"):
        generate(model, decoder, [folders / "pictures"], tmp_path, SAMPLING, stop=token)
    assert not (tmp_path / "generation.json").exists()


def test_the_commands_from_pictures_to_pictures(model, folders, tmp_path):
    source = model.save_pretrained(tmp_path / "model")
    options = []
    values = {
        "models.generator": folders / "generator", "decoder.steps": 2, "decoder.batch_size": 2,
        "decoder.sampling.steps": 2, "decoder.sampling.batch_size": 3, "device": "cpu", "seed": 4,
    }  # fmt: skip
    for key, value in values.items():
        options += ["--set", f"{key}={value}"]
    options += ["--progress", "none"]
    pictures = str(folders / "pictures")
    runner = CliRunner()

    def call(*arguments: str):
        return runner.invoke(app, [*arguments, *options])

    out = str(tmp_path / "out")
    refused = call("generate", pictures, "--model", str(source), "--out", out)
    assert isinstance(refused.exception, EnvironmentProblem) and refused.exception.code == "GF-MODEL-057"
    same = call("train-decoder", pictures, "--model", str(source), "--out", str(source))
    assert isinstance(same.exception, ConfigError) and same.exception.code == "GF-CONFIG-214"
    trained = call("train-decoder", pictures, "--model", str(source), "--out", str(tmp_path / "full"))
    assert trained.exit_code == 0, trained.exception
    assert json.loads(trained.stdout) == {"model": str(tmp_path / "full")}
    done = call("generate", pictures, "--model", str(tmp_path / "full"), "--out", out)
    assert done.exit_code == 0, done.exception
    record = json.loads(done.stdout)
    assert (
        record["images"] == 5 and record["seed"] == 4 and math.isfinite(record["closeness"]["patch"]["own"])
    )
    assert Image.open(tmp_path / "out" / "sheet.png").size == (5 * 72 + 4, 40)
