"""Full-size architectures with random weights through the production loaders."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from glass_fast.models.loading import load_captioner, load_encoder, load_generator
from tests.models import full_size


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def needs_disk(folder, gigabytes: float) -> None:
    free = full_size.free_gb(folder)
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free disk at {folder}; {free:.1f} GB are free")


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
@torch.inference_mode()
def test_stable_diffusion(tmp_path, kind):
    """Released key names, half precision on disk, one small step of the UNet, text encoder and VAE decoder."""
    needs_disk(tmp_path, 8)
    folder = full_size.build_sd_folder(tmp_path / kind, kind)
    try:
        generator = load_generator(folder, "cpu", "float32")
    finally:
        shutil.rmtree(folder)
    assert parameters(generator.unet) == full_size.UNET_PARAMETERS[kind]
    assert parameters(generator.text_encoder) == full_size.TEXT_PARAMETERS[kind]
    assert parameters(generator.vae) == full_size.VAE_PARAMETERS
    for module in (generator.unet, generator.text_encoder, generator.vae):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    # what was written is what was loaded, under the new names
    want = full_size.noise_block()[:10]
    width = generator.text_encoder.config.hidden_size
    got = dict(generator.text_encoder.named_parameters())
    found = next(v for k, v in got.items() if k.endswith("token_embedding.weight")).flatten()[:10]
    assert torch.equal(found, (want / width**0.5).half().float())
    found = generator.vae.decoder.mid_block.attentions[0].to_q.weight.flatten()[:10]
    assert torch.equal(found, (want / 512**0.5).half().float())
    assert generator.tokenizer.model_max_length == 77 and generator.scheduler_config["beta_end"] == 0.012
    tokens = generator.tokenizer(["a car"], padding="max_length", return_tensors="pt").input_ids
    context = generator.text_encoder(tokens).last_hidden_state
    assert context.shape == (1, 77, width)
    noise = generator.unet(torch.randn(1, 4, 8, 8), 500, context).sample
    assert noise.shape == (1, 4, 8, 8) and bool(torch.isfinite(noise).all()) and float(noise.std()) > 0
    picture = generator.vae.decode(noise[:, :, :4, :4]).sample
    assert picture.shape == (1, 3, 32, 32) and bool(torch.isfinite(picture).all())


def test_dinov2_base(tmp_path):
    """448 px as GLASS uses it: 32 x 32 tokens of width 768 from weights trained at 518 px."""
    needs_disk(tmp_path, 2)
    folder = full_size.build_dinov2_folder(tmp_path / "dinov2")
    encoder = load_encoder(folder, "cpu", resolution=448)
    # published size without the mask token of its training; positions shrink from 37 x 37 to 32 x 32
    assert parameters(encoder) == 86_580_480 - 768 - (37 * 37 - 32 * 32) * 768
    assert encoder.grid == (32, 32) and encoder.dim == 768 and encoder.resolution == 448
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    features = encoder.features([image])
    assert features.shape == (1, 1024, 768) and bool(torch.isfinite(features).all())
    # final-norm tokens: weight 1 and bias 0, so each token has mean 0 and variance 1
    assert float(features.mean(2).abs().max()) < 1e-4
    assert torch.allclose(features.var(2, unbiased=False), torch.ones(1, 1024), atol=1e-3)
    native = load_encoder(folder, "cpu")
    assert native.grid == (37, 37) and native.resolution == 518
    assert native.checksum == encoder.checksum


def test_dinov2_from_bare_weights(tmp_path):
    """``NAME@FOLDER``: weights without a configuration, as a plain download has them."""
    needs_disk(tmp_path, 2)
    folder = full_size.build_dinov2_folder(tmp_path / "dinov2")
    (folder / "config.json").unlink()
    encoder = load_encoder(f"vit_base_patch14_dinov2@{folder}", "cpu", resolution=28)
    want = full_size.noise_block()[:10] / (3 * 14 * 14) ** 0.5
    assert torch.equal(encoder.model.patch_embed.proj.weight.flatten()[:10], want)
    assert encoder.grid == (2, 2)


def test_blip2_full_size_on_the_meta_device():
    """Parameter count of Salesforce/blip2-opt-2.7b from its formulas."""
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(full_size.blip2_config())

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def norm(width: int) -> int:
        return 2 * width

    width = 1408  # EVA ViT-g/14 at 224 px; query and value biases are one vector with the key's
    block = (
        2 * norm(width)
        + linear(width, 3 * width)
        + linear(width, width)
        + linear(width, 6144)
        + linear(6144, width)
    )
    vision = linear(3 * 14 * 14, width) + width + 257 * width + 39 * block + norm(width)
    width = 768  # Q-Former: 12 layers, every second one with cross-attention to the vision tower
    attention = 4 * linear(width, width) + norm(width)
    cross = 2 * linear(width, width) + 2 * linear(1408, width) + norm(width)
    qformer = (
        norm(width) + 12 * (attention + linear(width, 3072) + linear(3072, width) + norm(width)) + 6 * cross
    )
    width = 2560  # OPT 2.7B, input and output embeddings tied
    layer = 4 * linear(width, width) + 2 * norm(width) + linear(width, 10240) + linear(10240, width)
    language = 50272 * width + 2050 * width + 32 * layer + norm(width)
    assert parameters(model.vision_model) == vision
    assert parameters(model.qformer) == qformer
    assert parameters(model.language_model) == language == 2_651_596_800
    assert parameters(model) == vision + qformer + language + linear(768, 2560) + 32 * 768 == 3_744_679_936


@torch.inference_mode()
def test_blip2_true_widths_saved_and_loaded(tmp_path):
    needs_disk(tmp_path, 3)
    folder = full_size.build_blip2_folder(tmp_path / "blip2")
    model, processor = load_captioner(folder, "cpu")
    assert type(model).__name__ == "Blip2ForConditionalGeneration" and not model.training
    vision = model.vision_model.encoder.layers
    assert len(vision) == len(model.qformer.encoder.layer) == 2
    assert model.language_model.config.num_hidden_layers == 2
    want = full_size.noise_block()[:10] / 1408**0.5
    assert torch.equal(vision[0].mlp.fc1.weight.flatten()[:10], want.half().float())
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    inputs = processor(images=[image], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokens.shape[0] == 1
    assert len(processor.batch_decode(tokens, skip_special_tokens=True)) == 1
