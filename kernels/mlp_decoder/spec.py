"""Contract of the op ``mlp_decoder``; drives its tests and benchmark rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from glass_fast.kernels.mlp_decoder.api import mlp_decoder
from glass_fast.kernels.spec import Case, OpSpec, Tolerance, Work

LETTERS = "BSPdHD"


def _case(sizes: tuple[int, ...], hidden_layers: int, *tags: str, **options: Any) -> Case:
    """Letters of the op, and H: width of the hidden layers."""
    options = {"hidden_layers": hidden_layers} | options
    return Case(dict(zip(LETTERS, sizes, strict=True)), options, frozenset(tags))


def _make(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """Normal values; ``active`` switches about a third of the slots off, and all of them in the last image."""
    batch, count, patches, width, hidden, features = (case.sizes[letter] for letter in LETTERS)
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    sizes = [width, *[hidden] * case.options["hidden_layers"], features + 1]
    arguments: dict[str, Any] = {
        "slots": randn(batch, count, width).to(device, dtype),
        "positions": randn(patches, width).to(device, dtype),
        "layers": [
            ((randn(o, i) * i**-0.5).to(device, dtype), (0.1 * randn(o)).to(device, dtype))
            for i, o in pairwise(sizes)
        ],
    }
    if case.options.get("active"):
        active = torch.rand(batch, count, generator=draw) < 0.67
        active[-1:] = False
        arguments["active"] = active.to(device)
    return arguments


def _work(case: Case) -> Work:
    batch, count, patches, width, hidden, features = (case.sizes[letter] for letter in LETTERS)
    deep = case.options["hidden_layers"] - 1
    rows = batch * count * patches
    # first layer on slots and positions apart, last one after the mixture: both are linear
    first = 2.0 * (batch * count + patches) * width * hidden
    last = 2.0 * batch * patches * hidden * features
    weights = hidden * (width + 1) + deep * hidden * (hidden + 1) + (features + 1) * (hidden + 1)
    values = batch * (count * width + patches * features + count * patches) + patches * width + weights
    # on every slot and patch: the layers between, the alpha row, the mixture
    return Work(first + rows * (2.0 * deep * hidden**2 + 4.0 * hidden) + last, 4.0 * values)


def _last_layer(outputs: int, inputs: int) -> Any:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {
            "layers": [*arguments["layers"][:-1], (torch.zeros(outputs, inputs), torch.zeros(outputs))]
        }

    return change


SPEC = OpSpec(
    op="mlp_decoder",
    function=mlp_decoder,
    source="DINOSAUR (Seitzer et al. 2023), MLP decoder; GLASS (CVPR 2025), instance guidance",
    tests=(
        _case((2, 7, 9, 5, 11, 6), 3, "gradient", "compile"),
        _case((1, 1, 1, 2, 3, 1), 1, "gradient"),
        _case((3, 64, 3, 7, 5, 4), 2, "gradient"),
        _case((3, 5, 31, 4, 8, 3), 2, "gradient", active=True),
        _case((2, 11, 33, 16, 32, 31), 3, "gradient", active=True),
        _case((2, 2, 127, 8, 33, 8), 2, "gradient"),
        _case((0, 3, 7, 4, 5, 3), 2, "gradient"),
        # Forward only: of 10^6 hidden units one lies so near to 0 that float32 and float64 disagree about its
        # sign, and then their gradients differ by 10^-3 with nothing wrong in either.
        _case((2, 7, 256, 96, 128, 96), 3),
        _case((5, 2, 1023, 8, 127, 8), 2, active=True),
        _case((1, 3, 4096, 4, 8, 5), 1),
    ),
    benchmarks=(
        # two images, since a pass over eight takes 250 GFLOP: more than 10 s on the CPU with gradients
        _case((2, 7, 1024, 256, 1024, 768), 3, "gate"),
        _case((32, 7, 256, 128, 256, 128), 3),
        _case((1, 7, 1024, 768, 2048, 768), 3),
    ),
    make=_make,
    tolerance={
        "float32": Tolerance(1e-5, 5e-5, "design page: ceilings of fp32"),
        "float64": Tolerance(1e-12, 1e-11, "rounding of float64 (1e-16) in sums of up to 1e5 terms"),
    },
    work=_work,
    differentiable=("slots", "positions", "layers"),
    outputs=("reconstruction", "alpha"),
    invalid={
        "width": (lambda a: a | {"positions": a["positions"][:, 1:]}, "positions (9, 4); expected (B, S, d), (P, d)"),
        "rank": (lambda a: a | {"slots": a["slots"][0]}, "slots (7, 5), positions (9, 5); expected (B, S, d)"),
        "65 slots": (lambda a: a | {"slots": torch.zeros(1, 65, 5)}, "65 slots; expected 1 to 64"),
        "no slot": (lambda a: a | {"slots": a["slots"][:, :0]}, "0 slots; expected 1 to 64"),
        "no patch": (lambda a: a | {"positions": a["positions"][:0]}, "no patches; expected at least one"),
        "one layer": (lambda a: a | {"layers": a["layers"][:1]}, "1 layers; expected at least 2"),
        "layers that do not fit": (_last_layer(7, 10), "layer 3 has weight (7, 10), bias (7,); input is 11"),
        "no features": (_last_layer(1, 11), "the last layer has 1 outputs; expected feature channels + 1"),
        "dtype": (lambda a: a | {"slots": a["slots"].double()}, "is torch.float32 on cpu; slots are torch.float64"),
        "integers": (lambda a: a | {"slots": a["slots"].long()}, "slots are torch.int64; expected floating point"),
        "active": (lambda a: a | {"active": torch.ones(2, 6, dtype=torch.bool)}, "(2, 6); expected bool (2, 7)"),
    },
)  # fmt: skip
