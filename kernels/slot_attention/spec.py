"""Contract of the op ``slot_attention``; drives its tests and benchmark rows."""

from __future__ import annotations

from typing import Any

import torch

from glass_fast.kernels.slot_attention.api import SlotAttentionWeights, slot_attention
from glass_fast.kernels.spec import Case, OpSpec, Tolerance, Work

LETTERS = "BNCSDH"


def _case(sizes: tuple[int, ...], iterations: int, *tags: str, **options: Any) -> Case:
    return Case(dict(zip(LETTERS, sizes, strict=True)), {"iterations": iterations} | options, frozenset(tags))


def _weights(channels: int, width: int, hidden: int, draw: torch.Generator) -> SlotAttentionWeights:
    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64) * max(1, shape[-1]) ** -0.5

    return SlotAttentionWeights(
        1 + randn(channels), randn(channels), 1 + randn(width), randn(width), 1 + randn(width), randn(width),
        randn(width, width), randn(width, channels), randn(width, channels),
        randn(3 * width, width), randn(3 * width, width), randn(3 * width), randn(3 * width),
        randn(hidden, width), randn(hidden), randn(width, hidden), randn(width),
    )  # fmt: skip


def _make(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """Normal values; ``active`` switches about a third of the slots off, and all of them in the last image."""
    batch, tokens, channels, count, width, hidden = (case.sizes[letter] for letter in LETTERS)
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, tokens, channels, generator=draw, dtype=torch.float64)
    slots = torch.randn(batch, count, width, generator=draw, dtype=torch.float64)
    weights = _weights(channels, width, hidden, draw)
    arguments = dict(case.options) | {
        "inputs": inputs.to(device, dtype),
        "slots": slots.to(device, dtype),
        "weights": SlotAttentionWeights(*(value.to(device, dtype) for value in weights)),
    }
    if case.options.get("active"):
        active = torch.rand(batch, count, generator=draw) < 0.67
        active[-1:] = False
        arguments["active"] = active.to(device)
    return arguments


def _work(case: Case) -> Work:
    batch, tokens, channels, count, width, hidden = (case.sizes[letter] for letter in LETTERS)
    iterations, heads = case.options["iterations"], case.options.get("heads", 1)
    rows = batch * count * iterations
    # logits and read on the tokens themselves, a product of (heads S) x C x N each ...
    absorbed = 4.0 * rows * (heads * tokens * channels + width * channels)
    # ... or on keys and values, which are made once
    projected = 4.0 * batch * tokens * channels * width + 4.0 * rows * tokens * width
    gru_and_mlp = rows * (2.0 * width**2 + 12.0 * width**2 + 4.0 * width * hidden)  # with W_q
    weights = 2 * channels + 8 * width**2 + 2 * width * channels + 2 * width * hidden + hidden + 11 * width
    values = batch * (tokens * channels + 2 * count * width + count * tokens) + weights
    return Work(min(absorbed, projected) + gru_and_mlp, 4.0 * values)


def _with(**change: Any) -> Any:
    return lambda arguments: arguments | change


def _first_weight_short(arguments: dict[str, Any]) -> dict[str, Any]:
    weights = arguments["weights"]
    return arguments | {"weights": weights._replace(norm_inputs_weight=weights.norm_inputs_weight[:-1])}


SPEC = OpSpec(
    op="slot_attention",
    function=slot_attention,
    source="Locatello et al. 2020; GLASS (CVPR 2025), section 3; BO-QSA (Jia et al. 2023) for bi_level",
    tests=(
        _case((2, 37, 8, 5, 12, 16), 3, "gradient", "compile"),
        _case((1, 1, 3, 1, 2, 5), 1, "gradient"),
        _case((3, 31, 7, 7, 6, 5), 3, "gradient", heads=3),
        _case((2, 17, 4, 64, 3, 5), 2, "gradient", active=True),
        _case((3, 129, 16, 11, 32, 24), 2, "gradient", heads=4, active=True),
        _case((2, 63, 5, 2, 4, 1), 4, "gradient", bi_level=True),
        _case((2, 64, 16, 7, 16, 16), 1, "gradient", bi_level=True, heads=2, active=True),
        _case((1, 127, 13, 17, 19, 23), 2, "gradient", epsilon=0.05),
        _case((1, 65, 8, 3, 8, 8), 3, "gradient", epsilon=0.0),
        _case((0, 16, 4, 3, 4, 4), 2, "gradient"),
        _case((2, 1024, 256, 7, 256, 256), 3, "gradient"),
        _case((1, 1025, 32, 33, 31, 64), 5, "gradient"),
        _case((1, 4096, 16, 64, 16, 16), 2, "gradient"),
    ),
    benchmarks=(
        _case((8, 1024, 256, 7, 256, 256), 3, "gate"),
        _case((8, 1369, 256, 7, 256, 256), 3, "gate"),
        _case((8, 1024, 768, 7, 768, 768), 5),
    ),
    make=_make,
    tolerance={
        "float32": Tolerance(1e-5, 5e-5, "design page: ceilings of fp32; five iterations at D = 768 stay below"),
        "float64": Tolerance(1e-12, 1e-11, "rounding of float64 (1e-16), grown by five iterations"),
    },
    work=_work,
    differentiable=("inputs", "slots", "weights"),
    outputs=("slots", "attention"),
    invalid={
        "65 slots": (lambda a: a | {"slots": a["slots"].new_zeros(2, 65, 12)}, "65 slots; expected 1 to 64"),
        "no slot": (lambda a: a | {"slots": a["slots"][:, :0]}, "0 slots; expected 1 to 64"),
        "other batch": (lambda a: a | {"slots": a["slots"][:1]}, "expected (B, N, C) and (B, S, D)"),
        "rank": (lambda a: a | {"inputs": a["inputs"][0]}, "expected (B, N, C) and (B, S, D)"),
        "no tokens": (lambda a: a | {"inputs": a["inputs"][:, :0]}, "no tokens; expected at least one"),
        "no iterations": (_with(iterations=0), "iterations=0; expected at least 1"),
        "heads": (_with(heads=5), "heads=5 does not divide the slot width 12"),
        "channels": (lambda a: a | {"inputs": a["inputs"][..., 1:]}, "weights.norm_inputs_weight has shape (8,)"),
        "weight": (_first_weight_short, "weights.norm_inputs_weight has shape (7,); expected (8,)"),
        "dtype": (lambda a: a | {"inputs": a["inputs"].double()}, "is torch.float32 on cpu; inputs are torch.float64"),
        "slot dtype": (lambda a: a | {"slots": a["slots"].double()}, "slots are torch.float64 on cpu; inputs are"),
        "active": (_with(active=torch.ones(2, 5)), "active is torch.float32 (2, 5); expected bool (2, 5)"),
        "active shape": (_with(active=torch.ones(2, 4, dtype=torch.bool)), "(2, 4); expected bool (2, 5)"),
    },
    # It shifts the logits of a token equally for all slots, and their softmax does not see that.
    zero_gradients=("weights.norm_slots_bias",),
)  # fmt: skip
