"""The module: names, shapes and options of the released checkpoints."""

from __future__ import annotations

import pytest
import torch

from glass_fast.errors import ConfigError
from glass_fast.models.mlp_decoder import MLPDecoder, MLPDecoderConfig
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig, position_grid

D, H, OUT, R = 768, 768, 1024, 32
RELEASED = {
    "pos.projection.weight": (D, 4, 1, 1), "pos.projection.bias": (D,), "pos.pe": (1, 4, R, R),
    "in_layer_norm.weight": (D,), "in_layer_norm.bias": (D,),
    "in_mlp.0.weight": (D, D), "in_mlp.0.bias": (D,), "in_mlp.2.weight": (D, D), "in_mlp.2.bias": (D,),
    "slot_mu": (1, 1, D), "slot_log_sigma": (1, 1, D),
    "norm_inputs.weight": (D,), "norm_inputs.bias": (D,), "norm_slots.weight": (D,), "norm_slots.bias": (D,),
    "norm_mlp.weight": (D,), "norm_mlp.bias": (D,), "out_layer_norm.weight": (D,), "out_layer_norm.bias": (D,),
    "project_q.weight": (D, D), "project_k.weight": (D, D), "project_v.weight": (D, D),
    "gru.weight_ih": (3 * D, D), "gru.weight_hh": (3 * D, D), "gru.bias_ih": (3 * D,), "gru.bias_hh": (3 * D,),
    "mlp.0.weight": (H, D), "mlp.0.bias": (H,), "mlp.2.weight": (D, H), "mlp.2.bias": (D,),
    "out_linear.weight": (OUT, D), "out_linear.bias": (OUT,),
}  # fmt: skip
SMALL = {
    "input_size": 12,
    "slot_size": 8,
    "mlp_hidden_size": 10,
    "out_size": 6,
    "input_resolution": 4,
    "num_slots": 3,
}


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_names_shapes_and_count_of_the_released_checkpoint():
    with torch.device("meta"):
        module = SlotAttention()
    assert shapes(module) == RELEASED
    assert sum(parameter.numel() for parameter in module.parameters()) == 8_475_904


def test_the_released_configuration_is_read():
    released = {
        "_class_name": "MultiHeadSTEVESA", "_diffusers_version": "0.23.1", "bi_level": False, "epsilon": 1e-06,
        "input_resolution": 32, "input_size": 768, "learnable_slot_init": False, "mlp_hidden_size": 768,
        "num_heads": 1, "num_iterations": 5, "num_slots": 7, "slot_size": 768, "out_size": 1024,
    }  # fmt: skip
    assert SlotAttentionConfig.from_dict(released) == SlotAttentionConfig()
    with pytest.raises(ConfigError, match="unknown keys widht"):
        SlotAttentionConfig.from_dict(released | {"widht": 3})
    for bad in ({"num_slots": 65}, {"num_slots": 0}, {"num_heads": 5}, {"num_iterations": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            SlotAttentionConfig.from_dict(released | bad)


def test_names_of_the_options():
    with torch.device("meta"):
        learned = SlotAttention(SlotAttentionConfig(learnable_slot_init=True))
        boxes = SlotAttention(SlotAttentionConfig(init_mlp=True))
        decoder = MLPDecoder()
    rest = {k: v for k, v in RELEASED.items() if k != "slot_log_sigma"}
    assert shapes(learned) == rest | {"slot_mu": (1, 7, D)}
    assert shapes(boxes) == RELEASED | {
        "bbox_mlp.0.weight": (2 * D, 4), "bbox_mlp.0.bias": (2 * D,),
        "bbox_mlp.2.weight": (D, 2 * D), "bbox_mlp.2.bias": (D,),
    }  # fmt: skip
    hidden = 2048
    assert shapes(decoder) == {
        "pos_embed": (1, 1024, D), "decoder.0.weight": (hidden, D), "decoder.0.bias": (hidden,),
        "decoder.2.weight": (hidden, hidden), "decoder.2.bias": (hidden,),
        "decoder.4.weight": (hidden, hidden), "decoder.4.bias": (hidden,),
        "decoder.6.weight": (D + 1, hidden), "decoder.6.bias": (D + 1,),
    }  # fmt: skip


def test_position_channels():
    """2 x 2 cells: centres at 1/4 and 3/4; channel 0 is the row, 1 the column, 2 and 3 their complements."""
    grid = position_grid(2, 2)[0]
    assert grid[0].tolist() == [[0.25, 0.25], [0.75, 0.75]]
    assert grid[1].tolist() == [[0.25, 0.75], [0.25, 0.75]]
    assert torch.equal(grid[2], 1 - grid[0]) and torch.equal(grid[3], 1 - grid[1])


def test_initial_values():
    module = SlotAttention(SlotAttentionConfig())
    bound = (6 / (2 * D)) ** 0.5
    for parameter in (module.slot_mu, module.slot_log_sigma):
        assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound
    assert (
        torch.equal(module.norm_slots.weight, torch.ones(D))
        and float(module.mlp[0].bias.detach().abs().max()) == 0
    )


def test_forward_order_of_operations():
    """The whole module against its steps: position added, norm, MLP, op, output head."""
    module = SlotAttention(SlotAttentionConfig(**SMALL)).double()
    features, noise = torch.randn(2, 16, 12).double(), torch.randn(2, 3, 8).double()
    slots, projected, masks = module(features, noise)
    positions = torch.nn.functional.conv2d(
        module.pos.pe, module.pos.projection.weight, module.pos.projection.bias
    )
    inputs = features + positions.flatten(2).transpose(1, 2)
    inputs = torch.nn.functional.layer_norm(
        inputs, (12,), module.in_layer_norm.weight, module.in_layer_norm.bias
    )
    hidden = torch.relu(inputs @ module.in_mlp[0].weight.T + module.in_mlp[0].bias)
    inputs = hidden @ module.in_mlp[2].weight.T + module.in_mlp[2].bias
    from glass_fast.kernels.slot_attention import slot_attention

    first = module.slot_mu + module.slot_log_sigma.exp() * noise
    want = slot_attention(inputs, first, module.op_weights(), 5, backend="reference")
    assert torch.allclose(slots, want[0], atol=1e-12) and torch.allclose(masks, want[1], atol=1e-12)
    normed = torch.nn.functional.layer_norm(
        slots, (8,), module.out_layer_norm.weight, module.out_layer_norm.bias
    )
    assert torch.allclose(projected, normed @ module.out_linear.weight.T + module.out_linear.bias, atol=1e-12)
    assert masks.shape == (2, 3, 16) and projected.shape == (2, 3, 6)


def test_noise_is_seeded_and_fresh_otherwise():
    module = SlotAttention(SlotAttentionConfig(**SMALL))
    features = torch.randn(1, 16, 12)
    runs = [module(features, generator=torch.Generator().manual_seed(s))[2] for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert not torch.equal(module(features)[2], module(features)[2])


def test_number_of_slots_and_known_counts():
    module = SlotAttention(SlotAttentionConfig(**SMALL))
    features = torch.randn(4, 16, 12)
    assert module(features, num_slots=11)[2].shape == (4, 11, 16)
    masks = module(features, num_slots=torch.tensor([0, 1, 2, 9]))[2]
    used = (masks.sum(2) > 0).sum(1)
    assert used.tolist() == [1, 1, 2, 3] and bool(torch.isfinite(masks).all())
    with pytest.raises(ConfigError, match="num_slots=65"):
        module(features, num_slots=65)


def test_learned_slots_and_boxes():
    learned = SlotAttention(SlotAttentionConfig(**SMALL, learnable_slot_init=True))
    features = torch.randn(2, 16, 12)
    assert torch.equal(learned(features)[2], learned(features)[2])
    with pytest.raises(ConfigError, match="learned initial slots exist for 3"):
        learned(features, num_slots=4)
    boxed = SlotAttention(SlotAttentionConfig(**SMALL, init_mlp=True))
    boxes = torch.rand(2, 3, 4)
    assert torch.equal(boxed(features, boxes=boxes)[2], boxed(features, boxes=boxes)[2])
    with pytest.raises(ConfigError, match="boxes of shape"):
        boxed(features, boxes=boxes[:, :2])
    with pytest.raises(ConfigError, match="init_mlp=False"):
        SlotAttention(SlotAttentionConfig(**SMALL))(features, boxes=boxes)


def test_other_grids():
    module = SlotAttention(SlotAttentionConfig(**SMALL))
    assert module(torch.randn(1, 25, 12))[2].shape == (1, 3, 25)
    assert module(torch.randn(1, 15, 12), grid=(3, 5))[2].shape == (1, 3, 15)
    with pytest.raises(ConfigError, match="15 tokens are no 3 x 3 grid"):
        module(torch.randn(1, 15, 12))
    with pytest.raises(ConfigError, match="11 channels"):
        module(torch.randn(1, 16, 11))


def test_decoder_of_some_patches_is_a_part_of_the_whole():
    decoder = MLPDecoder(MLPDecoderConfig(8, 12, 16, 10, 2)).double()
    slots = torch.randn(2, 3, 8).double()
    whole, alpha = decoder(slots)
    some = torch.tensor([1, 5, 11])
    part, part_alpha = decoder(slots, patches=some)
    assert whole.shape == (2, 16, 12) and torch.allclose(part, whole[:, some], atol=1e-12)
    assert torch.allclose(part_alpha, alpha[:, :, some], atol=1e-12)
    with pytest.raises(ConfigError, match="unknown keys hidden"):
        MLPDecoderConfig.from_dict({"hidden": 3})
