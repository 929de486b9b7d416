"""What the generated op tests share: calls of an op from its spec, and comparisons that say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glass_fast import kernels
from glass_fast.kernels.spec import Case, OpSpec, load_specs

SMALL = 100_000
"""Elements of inputs and outputs up to which a case runs with every data type, layout and memory setting."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """One call that a test makes: which case of which function, on which backend, in which data type."""

    spec: OpSpec
    case: Case
    backend: str
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.spec.name}-{self.backend}-{self.dtype}-{self.case.name}"


def parametrize(trials: list[Trial]) -> pytest.MarkDecorator:
    """One test for each trial, named after it."""
    return pytest.mark.parametrize("trial", trials, ids=[trial.name for trial in trials])


@cache
def specs() -> tuple[OpSpec, ...]:
    """Specs of all public functions of all ops."""
    return tuple(spec for op in kernels.ops() for spec in load_specs(op))


@cache
def backends(op: str, dtype: str = "float32", device: str = "cpu") -> tuple[str, ...]:
    """Names of the backends that can run here and serve a data type, ``reference`` last."""
    available = {status.name for status in kernels.backends(op) if status.available}
    table = import_module(f"glass_fast.kernels.{op}").BACKENDS
    served = [
        backend.name
        for backend in table
        if backend.name in available
        and device in backend.devices
        and (backend.dtypes is None or dtype in backend.dtypes)
    ]
    return tuple(sorted(served, key="reference".__eq__))


def map_tensors(change: Callable[[str, torch.Tensor], torch.Tensor], value: Any, path: str = "") -> Any:
    """``value`` with every tensor in its dicts, lists, tuples and named tuples changed; paths join with dots."""

    def inner(key: Any, item: Any) -> Any:
        return map_tensors(change, item, f"{path}.{key}" if path else str(key))

    if isinstance(value, torch.Tensor):
        return change(path, value)
    if isinstance(value, dict):
        return {key: inner(key, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(inner, value._fields, value))
    if isinstance(value, tuple | list):
        return type(value)(inner(key, item) for key, item in enumerate(value))
    return value


def tensors_of(value: Any) -> Tensors:
    """Every tensor in ``value`` by its path."""
    found: Tensors = {}

    def keep(path: str, tensor: torch.Tensor) -> torch.Tensor:
        found[path] = tensor
        return tensor

    map_tensors(keep, value)
    return found


def arguments_of(trial: Trial) -> dict[str, Any]:
    """Fresh arguments, since some ops change theirs."""
    return trial.spec.make(trial.case, getattr(torch, trial.dtype), "cpu", 0)


def cast_up(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same values in float64."""
    return map_tensors(lambda _, t: t.double() if t.is_floating_point() else t, arguments)


def gapped(tensor: torch.Tensor) -> torch.Tensor:
    """The same values at every second place of a buffer that holds NaN (or the greatest integer) between."""
    fill = (
        torch.nan
        if tensor.is_floating_point()
        else 1
        if tensor.dtype == torch.bool
        else torch.iinfo(tensor.dtype).max
    )
    buffer = tensor.new_full([2 * size for size in tensor.shape], fill)
    view = buffer[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the order of the dimensions in memory reversed."""
    backwards = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(backwards).contiguous().permute(backwards)


def run(spec: OpSpec, arguments: dict[str, Any], backend: str | None) -> tuple[torch.Tensor, ...]:
    """Outputs of the public function, in the order of ``spec.outputs``."""
    found = spec.function(**arguments, backend=backend)
    outputs = found if isinstance(found, tuple) else (found,)
    assert len(outputs) == len(spec.outputs), (
        f"{spec.name} has {len(outputs)} outputs, its spec {spec.outputs}"
    )
    return outputs


def run_with_gradients(
    spec: OpSpec, arguments: dict[str, Any], backend: str | None, names: tuple[str, ...] = ()
) -> tuple[tuple[torch.Tensor, ...], Tensors]:
    """Outputs, and gradients of all differentiable leaves for random pulls on all outputs.

    Args:
        spec: of the public function.
        arguments: of the public function.
        backend: that is to run.
        names: arguments that get gradients instead of the spec's differentiable ones.
    """
    tracked: Tensors = {}
    names = names or spec.differentiable

    def track(path: str, tensor: torch.Tensor) -> torch.Tensor:
        if path.partition(".")[0] in names and tensor.is_floating_point():
            tensor = tracked[path] = tensor.detach().requires_grad_()
        return tensor

    outputs = run(spec, map_tensors(track, arguments), backend)
    draw = torch.Generator().manual_seed(1)
    # float32 values in whatever type, so that all backends are pulled alike
    pulls = [torch.randn(output.shape, generator=draw).to(output.dtype) for output in outputs]
    gradients = torch.autograd.grad(outputs, list(tracked.values()), pulls, allow_unused=True)
    filled = [
        torch.zeros_like(t) if g is None else g for t, g in zip(tracked.values(), gradients, strict=True)
    ]
    return tuple(output.detach() for output in outputs), dict(zip(tracked, filled, strict=True))


@lru_cache(maxsize=4)
def expected(spec_name: str, case_name: str, dtype: str) -> tuple[torch.Tensor, ...]:
    """Outputs of ``reference`` in float64 for the values that ``dtype`` holds."""
    trial = find(spec_name, case_name, dtype)
    return run(trial.spec, cast_up(arguments_of(trial)), "reference")


@lru_cache(maxsize=4)
def expected_gradients(spec_name: str, case_name: str, dtype: str) -> Tensors:
    """Gradients of ``reference`` in float64 for the values that ``dtype`` holds."""
    trial = find(spec_name, case_name, dtype)
    return run_with_gradients(trial.spec, cast_up(arguments_of(trial)), "reference")[1]


def find(spec_name: str, case_name: str, dtype: str) -> Trial:
    """The trial of these names on ``reference``."""
    spec = next(spec for spec in specs() if spec.name == spec_name)
    return Trial(spec, next(case for case in spec.tests if case.name == case_name), "reference", dtype)


def rms(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """RMS of the difference over that of what is wanted; infinite where nothing but zero is wanted and found is not.

    Not-a-number stays so, and a comparison with it is false: test with ``<=``.
    """
    assert found.shape == wanted.shape, f"shape {tuple(found.shape)}; expected {tuple(wanted.shape)}"
    error, scale = rms(found.detach().double() - wanted.detach()), rms(wanted)
    if scale == 0.0:
        return 0.0 if error == 0.0 else float("nan") if error != error else float("inf")
    return error / scale


def check_outputs(trial: Trial, found: tuple[torch.Tensor, ...]) -> None:
    """Outputs against ``reference`` in float64, by the spec's tolerance or its own comparison."""
    spec = trial.spec
    wanted = expected(spec.name, trial.case.name, trial.dtype)
    if spec.compare is not None:
        problem = spec.compare(arguments_of(trial), *found, *wanted)
        assert problem is None, problem
        return
    bound = spec.tolerance[trial.dtype].forward
    for name, output, target in zip(spec.outputs, found, wanted, strict=True):
        error = difference(output, target)
        assert error <= bound, f"{name}: relative RMS error {error:.3g}; allowed {bound:.3g}"


def vanishing(gradients: Tensors) -> set[str]:
    """Leaves whose float64 gradient is rounding only."""
    scale = max(map(rms, gradients.values()), default=0.0)
    return {path for path, gradient in gradients.items() if rms(gradient) <= 1e-12 * scale}


def check_gradients(trial: Trial, found: Tensors) -> None:
    """Gradients against ``reference`` in float64.

    A gradient that is zero in exact arithmetic (named in the spec, or because of a size such as one slot) has no
    relative error; it may be as large as the same tolerance of the median leaf's gradient.
    """
    wanted = expected_gradients(trial.spec.name, trial.case.name, trial.dtype)
    bound = trial.spec.tolerance[trial.dtype].gradient
    zero = vanishing(wanted)
    sizes = sorted(rms(gradient) for path, gradient in wanted.items() if path not in zero)
    scale = sizes[len(sizes) // 2] if sizes else 0.0
    assert found.keys() == wanted.keys()
    for path, gradient in found.items():
        if path in zero:
            error = rms(gradient)
            assert error <= bound * scale, (
                f"{path}: gradient {error:.3g}, zero in exact arithmetic; scale {scale:.3g}"
            )
        else:
            error = difference(gradient, wanted[path])
            assert error <= bound, f"gradient of {path}: relative RMS error {error:.3g}; allowed {bound:.3g}"


@contextmanager
def deterministic(fill: bool) -> Iterator[None]:
    """Deterministic algorithms, with or without garbage (NaN, greatest integer) in uninitialised memory."""
    was = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0])
        torch.utils.deterministic.fill_uninitialized_memory = was[1]


def check_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal shapes and bits; NaN differs from everything, so it is an error here too."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs (or holds NaN)"


class Recorder(TorchDispatchMode):
    """Keeps the first call of each of the package's own torch operators, its tensors cut from their graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "glass_fast":
            first = not str(function).endswith("_backward.default")  # they refuse to be differentiated again
            kept = map_tensors(
                lambda _, t: t.detach().requires_grad_(first and t.requires_grad), (args, kwargs or {})
            )
            self.calls.setdefault(str(function), (function, *kept))
        return function(*args, **(kwargs or {}))
