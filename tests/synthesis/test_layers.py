"""Layer discovery: sizes against a real forward pass, and errors that say what the UNet has."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from glass_fast.config.schema import CaptureConfig
from glass_fast.errors import ConfigError
from glass_fast.synthesis.layers import attention_layers, choose_layers


def observed_sizes(unet: Any, latent: tuple[int, int]) -> dict[str, int]:
    """Query tokens that reach each attention module, seen by hooks in a forward pass."""
    from diffusers.models.attention_processor import Attention

    seen: dict[str, int] = {}
    hooks = []
    for name, module in unet.named_modules():
        if isinstance(module, Attention):

            def hook(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                states = args[0] if args else kwargs["hidden_states"]
                seen[name] = states.shape[1]

            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    with torch.inference_mode():
        unet(
            torch.zeros(1, 4, *latent),
            5,
            encoder_hidden_states=torch.zeros(1, 3, unet.config.cross_attention_dim),
        )
    for handle in hooks:
        handle.remove()
    return seen


@pytest.mark.parametrize("latent", [(16, 16), (24, 16), (10, 14)])
@pytest.mark.parametrize("shape", ["sd15", "sd21", "tiny"])
def test_sizes_equal_what_a_forward_pass_sees(
    tiny_sd: ModuleType, shape: str, latent: tuple[int, int]
) -> None:
    config = None if shape == "tiny" else tiny_sd.unet_config(shape, (40, 80, 80, 80), 16, 16, groups=8)
    unet = tiny_sd.generator(config).unet
    layers = attention_layers(unet, latent)
    assert {layer.name: layer.size[0] * layer.size[1] for layer in layers} == observed_sizes(unet, latent)
    assert f"{layers[0].name}.processor" in unet.attn_processors


def test_default_sizes_are_half_and_quarter_of_the_latent_with_five_layers_each(tiny_sd: ModuleType) -> None:
    """Method notes 2.1 item 5: 2 down + 3 up layers at each of the two sizes."""
    unet = tiny_sd.generator(tiny_sd.unet_config("sd15", (32, 32, 32, 32), 16, 64)).unet
    choice = choose_layers(attention_layers(unet, (64, 64)), (64, 64), CaptureConfig())
    assert (choice.self_size, choice.cross_size) == ((32, 32), (16, 16))
    for layers, block, kind in ((choice.self_, "1", "attn1"), (choice.cross, "2", "attn2")):
        names = [layer.name for layer in layers]
        assert len(names) == 5 and all(name.endswith(kind) for name in names)
        assert sum(name.startswith(f"down_blocks.{block}.") for name in names) == 2


def test_missing_size_lists_what_the_unet_has(tiny: Any) -> None:
    layers = attention_layers(tiny.unet, (16, 16))
    with pytest.raises(ConfigError) as caught:  # default cross = 16 / 4 = 4, which this UNet has not
        choose_layers(layers, (16, 16), CaptureConfig())
    assert "4x4" in caught.value.message
    assert "16x16 (3 layers), 8x8 (4 layers)" in caught.value.message
    assert "capture.cross_size" in caught.value.hint


def test_filter_that_matches_nothing_lists_the_names(tiny: Any) -> None:
    layers = attention_layers(tiny.unet, (16, 16))
    config = CaptureConfig(self_size=16, cross_size=8, cross_layers=("down_blocks.0",))
    with pytest.raises(ConfigError, match=r"down_blocks\.1\.attentions\.0"):
        choose_layers(layers, (16, 16), config)


def test_filters_keep_matching_layers_only(tiny: Any) -> None:
    config = CaptureConfig(
        self_size=16,
        cross_size=16,
        cross_layers=("down_blocks.0", "up_blocks.1.attentions.0"),
        self_layers=("up_blocks.1.attentions.1",),
    )
    choice = choose_layers(attention_layers(tiny.unet, (16, 16)), (16, 16), config)
    assert [layer.name.split(".transformer")[0] for layer in choice.cross] == [
        "down_blocks.0.attentions.0",
        "up_blocks.1.attentions.0",
    ]
    assert [layer.name.split(".transformer")[0] for layer in choice.self_] == ["up_blocks.1.attentions.1"]


def test_self_layers_are_not_needed_without_propagation(tiny: Any) -> None:
    config = CaptureConfig(self_size=5, cross_size=16)
    choice = choose_layers(attention_layers(tiny.unet, (16, 16)), (16, 16), config, want_self=False)
    assert choice.self_ == () and len(choice.cross) == 3
