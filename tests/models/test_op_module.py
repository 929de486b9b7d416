"""The backend of an op is settled when its module is built, and again when the module is moved."""

from __future__ import annotations

import pytest
import torch

from glass_fast import kernels
from glass_fast.errors import ConfigError, EnvironmentProblem
from glass_fast.models.mlp_decoder import MLPDecoder, MLPDecoderConfig
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig

SMALL = SlotAttentionConfig(
    num_slots=3, input_size=8, slot_size=8, out_size=8, mlp_hidden_size=8, input_resolution=4
)


def first_available(op: str, dtype: str) -> str:
    table = kernels._table(op)
    return next(
        s.name
        for s in kernels.backends(op)
        if s.available
        and "cpu" in s.devices
        and (table[s.name].dtypes is None or dtype in table[s.name].dtypes)
    )


def test_choice_is_made_at_build_and_recorded(fresh_backends) -> None:
    assert kernels.choices() == {}
    module = SlotAttention(SMALL)
    assert module.chosen == first_available("slot_attention", "float32")
    assert kernels.choices() == {"slot_attention:cpu": module.chosen}


def test_choice_survives_a_change_of_the_environment(fresh_backends, monkeypatch) -> None:
    built = SlotAttention(SMALL)
    monkeypatch.setenv("GLASS_FAST_BACKENDS", "slot_attention=reference")
    assert SlotAttention(SMALL).chosen == "reference" != built.chosen


def test_another_dtype_chooses_again(fresh_backends) -> None:
    module = SlotAttention(SMALL).double()
    assert module.chosen == first_available("slot_attention", "float64") != "cpu"
    assert kernels.choices()["slot_attention:cpu:float64"] == module.chosen
    slots, _, _ = module(torch.randn(1, 16, 8, dtype=torch.float64))
    assert slots.dtype == torch.float64
    assert module.float().chosen == first_available("slot_attention", "float32")


def test_a_named_backend_that_does_not_serve_the_dtype_is_refused_on_the_move(fresh_backends) -> None:
    if kernels._missing("slot_attention", "cpu"):
        pytest.skip(f"no native backend: {kernels._missing('slot_attention', 'cpu')}")
    with pytest.raises(EnvironmentProblem, match="cpu: serves float32 only"):
        SlotAttention(SMALL, backend="cpu").double()


def test_an_unknown_backend_is_refused_at_build() -> None:
    config = MLPDecoderConfig(slot_size=4, num_patches=4, hidden_size=4, feature_size=4)
    with pytest.raises(ConfigError, match="no backend 'fast'"):
        MLPDecoder(config, backend="fast")


def test_modules_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        assert SlotAttention(SMALL).chosen is None
