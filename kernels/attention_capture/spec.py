"""Contracts of the two functions of the op ``attention_capture``; drive their tests and benchmark rows."""

from __future__ import annotations

from typing import Any

import torch

from glass_fast.kernels.attention_capture.api import cross_capture, self_capture
from glass_fast.kernels.spec import Case, OpSpec, Tolerance, Work

_SOURCE = "Dataset Diffusion (NeurIPS 2023), attention aggregation; GLASS (CVPR 2025), section 3"
_FULL = Tolerance(1e-5, 0, "design page: ceiling of fp32, which all logits and sums are computed in")
_TOLERANCE = {
    "float32": _FULL,
    "float16": _FULL,
    "bfloat16": _FULL,
    "float64": Tolerance(1e-12, 0, "rounding of float64 (1e-16) in sums of up to 4096 terms"),
}


def _cross(sizes: tuple[int, ...], *tags: str, **options: Any) -> Case:
    return Case(dict(zip("BHNLdK", sizes, strict=True)), options, frozenset(tags))


def _self(sizes: tuple[int, ...], *tags: str, **options: Any) -> Case:
    return Case(dict(zip("BHNd", sizes, strict=True)), options, frozenset(tags))


def _make(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """Logits with a standard deviation near 4, as trained attention has; ``accumulate`` gives ``out``.

    A case without L is one of ``self_capture``.
    """
    batch, heads, tokens, width = (case.sizes[letter] for letter in "BHNd")
    keys = case.sizes.get("L", tokens)
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    arguments = {name: value for name, value in case.options.items() if name != "accumulate"}
    arguments["query"] = (2 * randn(batch, heads, tokens, width)).to(device, dtype)
    arguments["key"] = (2 * randn(batch, heads, keys, width)).to(device, dtype)
    if (classes := case.sizes.get("K")) is not None:
        columns = torch.rand(batch, keys, classes, generator=draw, dtype=torch.float64)
        arguments["columns"] = columns.to(device, dtype)
    if case.options.get("accumulate"):
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        arguments["out"] = randn(batch, tokens, keys if classes is None else classes).abs().to(device, kept)
    return arguments


def _work(case: Case) -> Work:
    batch, heads, tokens, width = (case.sizes[letter] for letter in "BHNd")
    keys = case.sizes.get("L", tokens)
    classes = case.sizes.get("K", 0)
    outputs = tokens * (classes or keys) * (2 if case.options.get("accumulate") else 1)
    # logits; softmax (greatest, difference, exponential, sum, quotient) and mean of the heads; columns
    flops = batch * tokens * keys * (heads * (2.0 * width + 6.0) + 2.0 * classes)
    values = batch * (heads * (tokens + keys) * width + keys * classes + outputs)
    return Work(flops, 4.0 * values)


_INVALID: dict[str, Any] = {
    "rank": (lambda a: a | {"query": a["query"][0]}, "query has shape (3, 7, 8)"),
    "no query": (lambda a: a | {"query": a["query"][:, :, :0]}, "query has shape (2, 3, 0, 8)"),
    "no key": (lambda a: a | {"key": a["key"][:, :, :0]}, "key has shape (2, 3, 0, 8)"),
    "channels": (
        lambda a: a | {"key": a["key"][..., 1:]},
        "(torch.float32 on cpu); expected (2, 3, keys, 8)",
    ),
    "integers": (lambda a: a | {"query": a["query"].long()}, "(torch.int64 on cpu); expected floating point"),
    "dtype": (lambda a: a | {"key": a["key"].half()}, "(torch.float16 on cpu); expected torch.float32"),
    "out shape": (lambda a: a | {"out": torch.zeros(2, 7, 9)}, "out has shape (2, 7, 9)"),
    "weight": (lambda a: a | {"weight": float("nan")}, "weight is nan; expected a finite float32"),
    "scale": (lambda a: a | {"scale": 1e39}, "scale is 1e+39; expected a finite float32"),
    "out dtype": (lambda a: a | {"out": torch.zeros(2, 7, 5).half()}, "of torch.float32"),
}

_CROSS = OpSpec(
    op="attention_capture",
    function=cross_capture,
    source=_SOURCE,
    tests=(
        _cross((2, 3, 7, 11, 8, 5), "compile"), _cross((1, 1, 1, 1, 1, 1)), _cross((2, 8, 64, 77, 5, 3)),
        _cross((1, 5, 131, 77, 7, 6), accumulate=True), _cross((3, 2, 257, 16, 3, 1), weight=0.25),
        _cross((1, 2, 31, 33, 8, 4), scale=0.05), _cross((1, 3, 17, 13, 4, 2), accumulate=True, weight=-2.0, scale=1.0),
        _cross((2, 2, 9, 5, 4, 0)), _cross((1, 1, 4096, 77, 8, 2)),
    ),
    benchmarks=(_cross((1, 8, 256, 77, 160, 4)), _cross((1, 8, 1024, 77, 80, 4))),
    make=_make,
    tolerance=_TOLERANCE,
    work=_work,
    outputs=("out",),
    invalid=_INVALID | {
        "columns": (lambda a: a | {"columns": a["columns"][:, 1:]}, "columns has shape (2, 10, 5)"),
        "columns rank": (lambda a: a | {"columns": a["columns"][0]}, "columns has shape (11, 5)"),
    },
)  # fmt: skip

_SELF = OpSpec(
    op="attention_capture",
    function=self_capture,
    source=_SOURCE,
    tests=(
        _self((2, 3, 7, 8), "compile"), _self((1, 1, 1, 1)), _self((2, 8, 64, 5), accumulate=True),
        _self((1, 5, 131, 7), weight=0.25), _self((3, 2, 257, 3), scale=0.05),
        _self((1, 2, 63, 4), accumulate=True, weight=-2.0, scale=1.0), _self((1, 2, 1024, 8)),
        # more rows than one block of queries holds, and no multiple of it
        _self((2, 1, 1031, 4)), _self((1, 1, 4096, 2)),
    ),
    benchmarks=(_self((1, 8, 256, 160)), _self((1, 8, 1024, 80))),
    make=_make,
    tolerance=_TOLERANCE,
    work=_work,
    outputs=("out",),
    invalid=_INVALID | {
        "keys": (lambda a: a | {"key": a["key"][:, :, 1:]}, "key has shape (2, 3, 6, 8)"),
    },
)  # fmt: skip

SPEC = (_CROSS, _SELF)
