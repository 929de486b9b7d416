"""Contract of the op ``propagation``; drives its tests and benchmark rows."""

from __future__ import annotations

from typing import Any

import torch

from glass_fast.kernels.propagation.api import propagation
from glass_fast.kernels.spec import Case, OpSpec, Tolerance, Work


def _case(batch: int, tokens: int, classes: int, tau: int, *tags: str, strided: bool = False) -> Case:
    options: dict[str, Any] = {"tau": tau} | ({"strided": True} if strided else {})
    return Case({"B": batch, "N": tokens, "C": classes}, options, frozenset(tags))


def _make(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """Rows of the self map sum to one, as attention does; ``strided`` gives transposed memory."""
    batch, tokens, classes = (case.sizes[letter] for letter in "BNC")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, tokens, tokens, generator=generator, dtype=torch.float64)
    self_map = logits.mul_(2).softmax(-1).to(dtype)
    class_maps = torch.rand(batch, tokens, classes, generator=generator, dtype=torch.float64).to(dtype)
    if case.options.get("strided"):
        self_map = self_map.transpose(1, 2).contiguous().transpose(1, 2)
        class_maps = class_maps.transpose(1, 2).contiguous().transpose(1, 2)
    return {"self_map": self_map.to(device), "class_maps": class_maps.to(device), "tau": case.options["tau"]}


def _work(case: Case) -> Work:
    batch, tokens, classes = (case.sizes[letter] for letter in "BNC")
    tau = case.options["tau"]
    return Work(2.0 * batch * tau * tokens**2 * classes, 4.0 * batch * (tokens**2 + 2 * tokens * classes))


SPEC = OpSpec(
    op="propagation",
    function=propagation,
    source="GLASS (CVPR 2025), section 3, after Dataset Diffusion (NeurIPS 2023)",
    tests=(
        _case(2, 64, 4, 4, "compile"), _case(1, 1, 1, 4), _case(3, 7, 1, 1), _case(1, 31, 5, 0), _case(2, 97, 11, 2),
        _case(1, 256, 3, 4), _case(1, 257, 16, 3), _case(1, 1024, 4, 4), _case(0, 16, 2, 2), _case(2, 16, 0, 2),
        _case(2, 0, 3, 2), _case(2, 53, 6, 3, strided=True),
        _case(1, 4096, 1, 1),
    ),
    benchmarks=(_case(1, 1024, 4, 4, "gate"), _case(8, 1024, 4, 4), _case(1, 4096, 4, 4)),
    make=_make,
    tolerance={
        "float32": Tolerance(1e-5, 0, "design page: fp32 forward; sums of 4096 positive terms stay below 1e-6"),
        "float16": Tolerance(1e-5, 0, "cast to float32, which is exact"),
        "float64": Tolerance(1e-13, 0, "rounding of float64 (1e-16) in sums of up to 1024 positive terms"),
    },
    work=_work,
    invalid={
        "tokens": (lambda a: a | {"class_maps": a["class_maps"][:, 1:]}, "class_maps is torch.float32 (2, 63, 4)"),
        "not square": (lambda a: a | {"self_map": a["self_map"][:, 1:]}, "self_map is torch.float32 (2, 63, 64)"),
        "batch": (lambda a: a | {"self_map": a["self_map"][:1]}, "self_map is torch.float32 (1, 64, 64)"),
        "rank": (lambda a: a | {"self_map": a["self_map"][0]}, "self_map is torch.float32 (64, 64)"),
        "integers": (lambda a: a | {"self_map": a["self_map"].int()}, "self_map is torch.int32"),
        "tau": (lambda a: a | {"tau": -1}, "tau is -1; expected 0 or more"),
    },
)  # fmt: skip
