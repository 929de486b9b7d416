"""Contract of the op ``matching``; drives its tests and benchmark rows."""

from __future__ import annotations

from math import fsum
from typing import Any

import torch

from glass_fast.kernels.matching.api import matching
from glass_fast.kernels.spec import Case, OpSpec, Tolerance, Work


def _case(batch: int, slots: int, segments: int, *tags: str, **options: Any) -> Case:
    return Case({"B": batch, "S": slots, "K": segments}, options, frozenset(tags))


def _make(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """Costs between -1 and 1; ``ties`` draws them from three values; ``counts`` goes through all counts."""
    shape = tuple(case.sizes[letter] for letter in "BSK")
    draw = torch.Generator().manual_seed(seed)
    if case.options.get("ties"):
        cost = torch.randint(-1, 2, shape, generator=draw, dtype=torch.float64)
    else:
        cost = torch.rand(shape, generator=draw, dtype=torch.float64) * 2 - 1
    arguments: dict[str, Any] = {"cost": cost.to(device, dtype)}
    if case.options.get("counts"):
        arguments["counts"] = torch.arange(shape[0]) % (shape[2] + 1)
    return arguments


def _work(case: Case) -> Work:
    batch, slots, segments = (case.sizes[letter] for letter in "BSK")
    # No bound for finding a matching is known; proving one optimal takes the reduced cost of every entry.
    return Work(2.0 * batch * slots * segments, 4.0 * batch * slots * segments + 8.0 * batch * segments)


def _compare(arguments: dict[str, Any], found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Equally cheap matchings may differ, so what is compared is the form of the matching and its total cost."""
    cost = arguments["cost"]
    batch, slots, segments = cost.shape
    if tuple(found.shape) != (batch, segments) or found.dtype != torch.int64 or found.device != cost.device:
        return f"{found.dtype} {tuple(found.shape)} on {found.device}; expected int64 {(batch, segments)}"
    values = cost.double().cpu()
    counts = arguments.get("counts")
    for b in range(batch):
        count = segments if counts is None else int(counts[b])
        match, wanted = found[b].tolist(), expected[b].tolist()
        taken = [slot for slot in match if slot != -1]
        if any(slot != -1 for slot in match[count:]):
            return f"problem {b}: a segment from {count} on is matched: {match}"
        if len(taken) != min(slots, count) or len(set(taken)) != len(taken):
            return f"problem {b}: {match} is no matching of {min(slots, count)} pairs"
        if any(not 0 <= slot < slots for slot in taken):
            return f"problem {b}: {match} names a slot that is none of 0 to {slots - 1}"
        total, best = (
            fsum(float(values[b, slot, k]) for k, slot in enumerate(pairs) if slot != -1)
            for pairs in (match, wanted)
        )
        # fsum is exact; the solvers compare float64 sums of at most 64 terms up to 1, which round by 1e-14
        if abs(total - best) > 1e-12:
            return f"problem {b}: total cost {total}; the reference finds {best}"
    return None


SPEC = OpSpec(
    op="matching",
    function=matching,
    source="GLASS (CVPR 2025), section 3: Hungarian matching of slots and segments; Jonker and Volgenant 1987",
    tests=(
        _case(4, 7, 7), _case(3, 1, 1), _case(2, 1, 5), _case(2, 5, 1), _case(5, 7, 3), _case(5, 3, 7),
        _case(3, 13, 17), _case(2, 31, 32), _case(2, 64, 63), _case(1, 64, 65), _case(1, 64, 64),
        _case(257, 7, 7, counts=True), _case(16, 3, 5, counts=True), _case(50, 8, 8, ties=True),
        _case(20, 5, 9, ties=True, counts=True), _case(0, 3, 2), _case(0, 3, 2, counts=True), _case(2, 0, 3),
        _case(2, 3, 0), _case(0, 0, 0), _case(1, 2, 4096),
    ),
    benchmarks=(_case(256, 7, 7, "gate"), _case(64, 11, 11), _case(64, 20, 20)),
    make=_make,
    tolerance={
        "float32": Tolerance(0, 0, "see compare: the same total cost"),
        "float64": Tolerance(0, 0, "see compare: the same total cost"),
        "bfloat16": Tolerance(0, 0, "see compare: costs are cast to float32, which is exact"),
    },
    work=_work,
    outputs=("match",),
    invalid={
        "rank": (lambda a: {"cost": a["cost"][0]}, "cost is torch.float32 of shape (7, 7); expected floating point"),
        "integers": (lambda a: {"cost": a["cost"].long()}, "cost is torch.int64 of shape (4, 7, 7); expected"),
        "number of counts": (lambda a: a | {"counts": [1, 2, 3]}, "counts has shape (3,); expected (4,)"),
        "count above": (lambda a: a | {"counts": [1, 8, 3, 4]}, "[GF-DATA-920]"),
        "count below": (lambda a: a | {"counts": [1, 2, 3, -1]}, "[GF-DATA-920]"),
        "fractions": (lambda a: a | {"counts": [1.5, 2, 3, 1]}, "counts is torch.float32 on cpu; expected integers"),
        "not finite": (lambda a: {"cost": a["cost"] / 0.0}, "[GF-NUM-920]"),
        "too large": (lambda a: {"cost": a["cost"].double() * 1e302}, "[GF-NUM-921]"),
    },
    compare=_compare,
)  # fmt: skip
