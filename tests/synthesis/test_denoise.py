"""Denoising against diffusers' own pipeline, and the promises about seeds, neighbours, memory and numerics."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from glass_fast.config.schema import CaptureConfig, SynthesisConfig
from glass_fast.errors import ConfigError, DataError, EnvironmentProblem, NumericsError
from glass_fast.models.denoising import decode, denoise, encode, initial_noise
from glass_fast.models.schedulers import CLASSES, build_scheduler, identity, set_steps
from glass_fast.synthesis import batches
from glass_fast.synthesis.batches import BatchRunner, Request
from glass_fast.synthesis.networks import latent_size
from glass_fast.synthesis.text import encode_text, text_row

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers under numpy 2

CAPTURE = CaptureConfig(self_size=16, cross_size=8)


def config(**changes: Any) -> SynthesisConfig:
    return SynthesisConfig(
        **{"batch_size": 4, "steps": 3, "capture": CAPTURE, "guidance_scale": 3.0, **changes}
    )


def requests(parts: Any, tiny_sd: ModuleType, indices: tuple[int, ...] = (0, 1, 2, 3)) -> list[Request]:
    prompts = tiny_sd.prompts()
    return [Request(10 + i, text_row(parts.tokenizer, 16, prompts[i], "class_prompt")) for i in indices]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["default", *CLASSES])
@torch.inference_mode()
def test_latents_equal_the_diffusers_pipeline(tiny_sd: ModuleType, name: str, prediction: str) -> None:
    shipped = {
        **tiny_sd.SD_SCHEDULER,
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "prediction_type": prediction,
    }
    parts = tiny_sd.generator(scheduler=shipped)
    from diffusers import (
        StableDiffusionPipeline,
    )  # after the generator: beside CPU torch it needs the torchvision shim

    scheduler = build_scheduler(name, shipped)
    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=build_scheduler(name, shipped),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    texts = ["a car", "a photo of a tree"]
    noise = initial_noise([torch.Generator().manual_seed(i) for i in range(2)], 4, (16, 16))

    def noise_of_steps() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(100 + i) for i in range(2)]

    wanted = pipeline(
        texts,
        num_inference_steps=5,
        guidance_scale=4.0,
        guidance_rescale=0.3,
        negative_prompt=["ugly"] * 2,
        latents=noise,
        generator=noise_of_steps(),
        output_type="latent",
    ).images
    set_steps(scheduler, 5, "cpu")
    encoded = [encode_text(parts.tokenizer, parts.text_encoder, text, 16) for text in (texts, ["ugly"])]
    got = denoise(
        parts.unet,
        scheduler,
        noise,
        encoded[0],
        encoded[1],
        noise_of_steps(),
        guidance_scale=4.0,
        guidance_rescale=0.3,
    )
    # the same operations in the same order; only the text batch differs (1 negative row instead of 2)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_velocity_and_noise_prediction_differ(tiny_sd: ModuleType) -> None:
    """The prediction type must come from the shipped configuration under every scheduler name."""
    for name in CLASSES:
        built = build_scheduler(name, {**tiny_sd.SD_SCHEDULER, "prediction_type": "v_prediction"})
        assert built.config.prediction_type == "v_prediction"
        assert built.config.beta_schedule == "scaled_linear"


def test_scheduler_identity_sees_class_and_configuration(tiny_sd: ModuleType) -> None:
    base = identity(build_scheduler("ddim", tiny_sd.SD_SCHEDULER))
    assert base == identity(build_scheduler("default", dict(reversed(tiny_sd.SD_SCHEDULER.items()))))
    assert (
        base["config_sha256"]
        != identity(build_scheduler("ddim", {**tiny_sd.SD_SCHEDULER, "beta_end": 0.02}))["config_sha256"]
    )
    assert identity(build_scheduler("euler", tiny_sd.SD_SCHEDULER))["class"] == "EulerDiscreteScheduler"


def test_unknown_schedulers_are_refused_with_the_known_names(tiny_sd: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"'ddimm'; expected one of default, ddim, ddpm, dpmsolver\+\+"):
        build_scheduler("ddimm", tiny_sd.SD_SCHEDULER)
    with pytest.raises(ConfigError, match="NopeScheduler"):
        build_scheduler("default", {**tiny_sd.SD_SCHEDULER, "_class_name": "NopeScheduler"})
    with pytest.raises(ConfigError, match="steps=1001"):
        set_steps(build_scheduler("ddim", tiny_sd.SD_SCHEDULER), 1001, "cpu")


def test_image_sizes(tiny: Any) -> None:
    assert latent_size(tiny, None, None) == (16, 16)
    assert latent_size(tiny, 32, 48) == (16, 24)
    with pytest.raises(ConfigError, match="height=33; expected a multiple of 2"):
        latent_size(tiny, 33, None)


@torch.inference_mode()
def test_vae_round_trip_uses_scaling_and_rounds(tiny: Any) -> None:
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    latents = encode(tiny.vae, images)
    wanted = (
        tiny.vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
        * tiny.vae.config.scaling_factor
    )
    torch.testing.assert_close(latents, wanted)
    pixels = tiny.vae.decode(latents / tiny.vae.config.scaling_factor).sample
    wanted_image = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    got, finite = decode(tiny.vae, latents)
    assert finite.all() and (got.int() - wanted_image.int()).abs().max() <= 1  # ties of rounding


def same(first: Any, second: Any) -> bool:
    return bool(
        (first.image == second.image).all()
        and (first.maps == second.maps).all()
        and first.peaks == second.peaks
    )


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral", "ddpm"])
def test_bytes_do_not_depend_on_neighbours_or_place(tiny_sd: ModuleType, tiny: Any, scheduler: str) -> None:
    runner = BatchRunner(tiny, config(scheduler=scheduler), 2)
    together = runner.run(requests(tiny, tiny_sd))
    assert [len(made.maps) for made in together] == [2, 1, 0, 2]
    shuffled = runner.run(requests(tiny, tiny_sd, (3, 0)))
    alone = runner.run(requests(tiny, tiny_sd, (0,)))
    assert same(together[0], shuffled[1]) and same(together[3], shuffled[0]) and same(together[0], alone[0])
    assert not (together[0].image == together[1].image).all()


def test_global_random_state_is_neither_used_nor_changed(tiny_sd: ModuleType, tiny: Any) -> None:
    runner = BatchRunner(tiny, config(scheduler="ddpm"), 2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = runner.run(requests(tiny, tiny_sd))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(first[0], runner.run(requests(tiny, tiny_sd))[0])


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_no_unconditional_half_without_guidance(
    tiny_sd: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    seen = watch(tiny, monkeypatch)
    BatchRunner(tiny, config(guidance_scale=guidance), 2).run(requests(tiny, tiny_sd))
    assert set(seen) == {4}
    seen.clear()
    BatchRunner(tiny, config(guidance_scale=2.0), 2).run(requests(tiny, tiny_sd, (0,)))
    assert set(seen) == {8}, "a short micro-batch is padded to its planned rows"


def watch(parts: Any, monkeypatch: pytest.MonkeyPatch, limit: int = 10**9) -> list[int]:
    """Record the batch of every UNet call; above ``limit`` raise torch's out-of-memory error."""
    rows: list[int] = []
    forward = parts.unet.forward

    def counted(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        if len(sample) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore text")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(parts.unet, "forward", counted)
    return rows


def test_out_of_memory_halves_the_rows_and_loses_nothing(
    tiny_sd: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = BatchRunner(tiny, config(), 2).run(requests(tiny, tiny_sd))
    notes: list[dict[str, Any]] = []
    monkeypatch.setattr(batches, "GROW_AFTER", 2)
    runner = BatchRunner(tiny, config(), 2, note=notes.append)
    with monkeypatch.context() as patch:
        rows = watch(tiny, patch, limit=4)
        made = runner.run(requests(tiny, tiny_sd))
        assert rows[0] == 8 and set(rows[1:]) == {4} and runner.rows == 2
    assert [note["event"] for note in notes] == ["out_of_memory"] and notes[0]["rows"] == 2
    assert "more text" not in notes[0]["reason"]
    for first, second in zip(plain, made, strict=True):
        # other batch size, other rounding: close, not equal
        assert np.abs(first.image.astype(int) - second.image.astype(int)).mean() < 1.0
    runner.run(requests(tiny, tiny_sd))
    assert runner.rows == 4 and notes[-1]["event"] == "grow", (
        "tries the planned rows again after good batches"
    )


def test_out_of_memory_with_one_row_is_an_error_with_advice(
    tiny_sd: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(tiny, monkeypatch, limit=0)
    with pytest.raises(NumericsError, match="one row: CUDA out of memory") as caught:
        BatchRunner(tiny, config(), 2).run(requests(tiny, tiny_sd))
    assert caught.value.exit_code == 6 and "float16" in caught.value.hint


def test_other_runtime_errors_are_not_taken_for_out_of_memory(
    tiny_sd: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access; out of memory")

    monkeypatch.setattr(tiny.unet, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        BatchRunner(tiny, config(), 2).run(requests(tiny, tiny_sd))


def poison(parts: Any, monkeypatch: pytest.MonkeyPatch, row: int, also_float32: bool) -> None:
    """Make the UNet return NaN for one conditional row, in bfloat16 only or always."""
    forward = parts.unet.forward

    def poisoned(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = forward(sample, *args, **kwargs)[0].clone()
        if sample.dtype == torch.bfloat16 or also_float32:
            output[len(sample) // 2 + row] = float("nan")
        return (output,)

    monkeypatch.setattr(parts.unet, "forward", poisoned)


def in_bfloat16(parts: Any) -> Any:
    for part in (parts.unet, parts.vae, parts.text_encoder):
        part.to(torch.bfloat16)
    return parts


def test_non_finite_sample_is_made_again_in_float32(
    tiny_sd: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = BatchRunner(in_bfloat16(tiny), config(), 2).run(requests(tiny, tiny_sd))
    notes: list[dict[str, Any]] = []
    poison(tiny, monkeypatch, 1, also_float32=False)
    made = BatchRunner(tiny, config(), 2, note=notes.append).run(requests(tiny, tiny_sd))
    assert [sample.retried for sample in made] == [False, True, False, False]
    assert made[1].finite and made[1].image.std() > 0
    assert notes == [{"event": "retry_float32", "rows": [1]}]
    assert all(same(clean[i], made[i]) for i in (0, 2, 3)), "neighbours keep their bits"
    assert tiny.unet.dtype == tiny.vae.dtype == torch.bfloat16


def test_sample_that_stays_non_finite_is_marked(
    tiny_sd: ModuleType, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(tiny, monkeypatch, 0, also_float32=True)
    made = BatchRunner(tiny, config(), 2).run(requests(tiny, tiny_sd))
    assert [sample.finite for sample in made] == [False, True, True, True]
    assert not made[0].image.any() and not made[0].maps.any() and made[0].peaks == (0.0, 0.0)


def test_class_cut_off_by_the_text_encoder_is_named(tiny_sd: ModuleType, tiny: Any) -> None:
    from dataclasses import replace

    prompt = replace(tiny_sd.prompts()[3], prompt="a photo of " * 5 + "an; potted plant cup")
    with pytest.raises(DataError, match=r"prompt 'p3': class 'potted plant' lies beyond the 16 tokens"):
        text_row(tiny.tokenizer, 16, prompt, "class_prompt")
    with pytest.raises(DataError, match=r"prompt 'p0': .*does not hold its class list"):
        text_row(tiny.tokenizer, 16, replace(tiny_sd.prompts()[0], class_prompt="car"), "class_prompt")


def test_a_cut_caption_is_tolerated_where_the_classes_survive(tiny_sd: ModuleType, tiny: Any) -> None:
    """The form that fit_prompt writes: classes first, then a caption that may be cut."""
    from dataclasses import replace

    prompt = replace(tiny_sd.prompts()[0], prompt="car boat; " + "a photo of the tree " * 4)
    assert text_row(tiny.tokenizer, 16, prompt, "class_prompt").spans == ((1,), (2,))
    assert text_row(tiny.tokenizer, 16, prompt, "prompt").spans == ((1,), (2,))
    assert encode_text(tiny.tokenizer, tiny.text_encoder, [prompt.prompt], 16).shape == (1, 16, 16)


def test_too_long_negative_prompt_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="negative_prompt has 22 tokens; the text encoder takes 16"):
        BatchRunner(tiny, config(negative_prompt="ugly " * 20), 2)


def test_xformers_without_cuda_names_what_is_missing(tiny: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("the error is about machines without CUDA")
    with pytest.raises(EnvironmentProblem, match=r"a CUDA device \(the generator is on cpu\)"):
        BatchRunner(tiny, config(attention="xformers"), 2)
