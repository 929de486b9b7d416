"""What the ops are compared with, and every implementation of an op that is timed.

A baseline is what a careful user would run without this package; each says in its docstring what it stands for. The
textbook forms are the ops' ``reference`` backends, which also define what is correct, so they are not written twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from glass_fast import kernels
from glass_fast.kernels.mlp_decoder import reference as mlp_textbook
from glass_fast.kernels.mlp_decoder import torch_split as mlp_split
from glass_fast.kernels.slot_attention import reference as slots_textbook
from glass_fast.kernels.slot_attention import torch_absorbed as slots_absorbed
from glass_fast.kernels.spec import OpSpec

Call = Callable[[], Any]
BASELINE, OURS = "baseline", "ours"


@dataclass(frozen=True)
class Provider:
    """One implementation of an op.

    Attributes:
        name: in rows.
        role: ``baseline`` or ``ours``.
        prepare: makes the call that is timed from the arguments of the public function.
        adapt: brings what the call returns into the form of the public function; not timed.
    """

    name: str
    role: str
    prepare: Callable[[dict[str, Any]], Call]
    adapt: Callable[[dict[str, Any], Any], Any] = lambda arguments, result: result


MAIN: Mapping[str, str] = {
    "slot_attention": "eager",
    "mlp_decoder": "eager",
    "cross_capture": "eager",
    "self_capture": "eager",
    "propagation": "matrix_power",
    "matching": "scipy_loop",
    "mask_labels": "interpolate_argmax",
}
"""Baseline that the ratios of a function's rows compare with."""

_TEXTBOOK: Mapping[str, str] = {
    "slot_attention": "eager",
    "mlp_decoder": "eager",
    "cross_capture": "eager",
    "self_capture": "eager",
    "propagation": "matrix_power",
}
"""Functions whose ``reference`` backend is a baseline, and the name of that baseline."""

_TUNED_BACKENDS: Mapping[str, tuple[str, ...]] = {"propagation": ("torch",), "mask_labels": ("torch",)}
"""Backends that only order torch calls well, as a careful user would: tuned baselines, no gain of this package."""


def providers(spec: OpSpec, device: str) -> list[Provider]:
    """Every implementation of a function that can run here: baselines first, then backends in registry order."""
    written = list(_WRITTEN.get(spec.name, ()))
    found = []
    for state in kernels.backends(spec.op):
        if not state.available or device not in state.devices:
            continue
        textbook = _TEXTBOOK.get(spec.name) if state.name == "reference" else None
        tuned = state.name in _TUNED_BACKENDS.get(spec.name, ())
        role = BASELINE if textbook or tuned else OURS
        found.append(Provider(textbook or state.name, role, _backend(spec, state.name)))
    return sorted([*written, *found], key=lambda provider: provider.role != BASELINE)


def _backend(spec: OpSpec, name: str) -> Callable[[dict[str, Any]], Call]:
    """The public function with a fixed backend, so that checks and dispatch are timed as users meet them."""

    def prepare(arguments: dict[str, Any]) -> Call:
        return lambda: spec.function(**arguments, backend=name)

    return prepare


def _compiled(
    implementation: Callable[..., Any], order: Callable[[dict[str, Any]], tuple[Any, ...]]
) -> Callable[[dict[str, Any]], Call]:
    """``torch.compile`` of a bare implementation for fixed shapes, without this package's checks and dispatch."""

    def prepare(arguments: dict[str, Any]) -> Call:
        compiled = torch.compile(implementation, dynamic=False)
        positional = order(arguments)
        return lambda: compiled(*positional)

    return prepare


def forget_compiled() -> None:
    """Drop compiled code: a function compiled for too many shapes would silently run eager."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _slot_arguments(a: dict[str, Any]) -> tuple[Any, ...]:
    return (
        a["inputs"], a["slots"], a["weights"], a["iterations"], a.get("heads", 1), a.get("epsilon", 1e-6),
        a.get("active"), a.get("bi_level", False),
    )  # fmt: skip


def _decoder_arguments(a: dict[str, Any]) -> tuple[Any, ...]:
    return a["slots"], a["positions"], list(a["layers"]), a.get("active")


def scipy_loop(problems: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A loop over SciPy's solver on numpy arrays: the least Python that solves many problems; no checks, no torch."""
    return [linear_sum_assignment(problem) for problem in problems]


def detr_loop(cost: torch.Tensor, sizes: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The matcher as DETR's repository writes it (``models/matcher.py``), which many object-centric models copy.

    Args:
        cost: (images, queries, sum of sizes): costs of all images' targets, of which each image needs its own.
        sizes: targets of each image.
    """
    found = [linear_sum_assignment(c[i]) for i, c in enumerate(cost.cpu().split(list(sizes), -1))]
    return [(torch.as_tensor(i, dtype=torch.int64), torch.as_tensor(j, dtype=torch.int64)) for i, j in found]


def _sizes(arguments: dict[str, Any]) -> list[int]:
    batch, _, segments = arguments["cost"].shape
    counts = arguments.get("counts")
    return [segments] * batch if counts is None else [int(count) for count in counts]


def _prepare_scipy(arguments: dict[str, Any]) -> Call:
    cost = arguments["cost"].double().cpu().numpy()
    problems = [cost[b, :, :size].copy() for b, size in enumerate(_sizes(arguments))]
    return lambda: scipy_loop(problems)


def _prepare_detr(arguments: dict[str, Any]) -> Call:
    cost, sizes = arguments["cost"], _sizes(arguments)
    wide = cost.new_zeros(*cost.shape[:2], sum(sizes))
    for b, columns in enumerate(wide.split(sizes, -1)):
        columns[b] = cost[b, :, : sizes[b]]
    return lambda: detr_loop(wide, sizes)


def _pairs_to_match(arguments: dict[str, Any], pairs: Sequence[tuple[Any, Any]]) -> torch.Tensor:
    cost = arguments["cost"]
    match = torch.full((cost.shape[0], cost.shape[2]), -1, dtype=torch.int64)
    for b, (slots, segments) in enumerate(pairs):
        match[b, torch.as_tensor(segments)] = torch.as_tensor(slots, dtype=torch.int64)
    return match.to(cost.device)


def interpolate_argmax(
    maps: torch.Tensor,
    labels: torch.Tensor,
    size: tuple[int, int],
    threshold: float,
    uncertain_threshold: float,
) -> torch.Tensor:
    """Upsample, maximum over classes, thresholds: what one writes by hand, without checks, padding and tie rule."""
    best, index = functional.interpolate(maps, size=size, mode="bicubic", align_corners=False).max(1)
    label = labels.gather(1, index.flatten(1)).view_as(index)
    uncertain = torch.where(best >= uncertain_threshold, 255, 0).to(torch.uint8)
    return torch.where(best >= threshold, label, uncertain)


_WRITTEN: Mapping[str, tuple[Provider, ...]] = {
    "slot_attention": (
        Provider("compile", BASELINE, _compiled(slots_textbook.slot_attention, _slot_arguments)),
        Provider("torch+compile", OURS, _compiled(slots_absorbed.slot_attention, _slot_arguments)),
    ),
    "mlp_decoder": (
        Provider("compile", BASELINE, _compiled(mlp_textbook.mlp_decoder, _decoder_arguments)),
        Provider("torch+compile", OURS, _compiled(mlp_split.mlp_decoder, _decoder_arguments)),
    ),
    "matching": (
        Provider("scipy_loop", BASELINE, _prepare_scipy, _pairs_to_match),
        Provider("detr_loop", BASELINE, _prepare_detr, _pairs_to_match),
    ),
    "mask_labels": (Provider("interpolate_argmax", BASELINE, lambda a: lambda: interpolate_argmax(**a)),),
}
"""Implementations that are no backend of the registry, by public function."""


MEANING: Mapping[str, str] = {
    "eager": "textbook form, eager PyTorch",
    "compile": "`torch.compile` of the textbook form, warm",
    "torch+compile": "`torch.compile` of the rewritten form, warm",
    "matrix_power": "`torch.linalg.matrix_power`, then one product",
    "scipy_loop": "loop over `scipy.optimize.linear_sum_assignment` on numpy arrays",
    "detr_loop": "the matcher of DETR's repository: split, SciPy per image, pairs as tensors",
    "interpolate_argmax": "bicubic `interpolate`, `max`, thresholds in PyTorch",
    "reference": "backend `reference`",
    "torch": "backend `torch`",
    "cpu": "backend `cpu`: native code",
    "triton": "backend `triton`",
    "cuda": "backend `cuda`",
    "default": "what the registry chooses here",
}
"""What a provider is, in words."""
