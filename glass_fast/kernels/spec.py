"""What an op promises, as data: ``kernels/<op>/spec.py`` holds ``SPEC``, an :class:`OpSpec` or a tuple of them.

An op with several public functions (``attention_capture``) has one :class:`OpSpec` for each.

Tests (``tests/kernels/test_specs.py``) and benchmark rows (``benchmarks/ops.py``) are generated from it, so that
shapes, inputs, tolerances and work counts are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from glass_fast.kernels import ops

if TYPE_CHECKING:
    import torch

__all__ = ["Case", "OpSpec", "Tolerance", "Work", "load_specs"]


@dataclass(frozen=True)
class Case:
    """One set of sizes and options of an op.

    Attributes:
        sizes: size by letter of the op's docstring, for example ``{"B": 8, "N": 1024}``.
        options: keyword arguments of the public function that are no tensors, and switches of ``make``.
        tags: ``gradient`` (also tested backward), ``compile`` (also under ``torch.compile(fullgraph=True)``),
            ``gate`` (benchmark row with a goal).
    """

    sizes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """``B8-N1024-S7-iterations3``; names the test and the benchmark row."""
        parts = [f"{letter}{size}" for letter, size in self.sizes.items()]
        return "-".join(parts + [f"{key}{value}" for key, value in self.options.items()])


@dataclass(frozen=True)
class Tolerance:
    """Largest relative RMS error against ``reference`` in float64; 0 means equal.

    Attributes:
        forward: of every output.
        gradient: of the gradient of every differentiable input; 0 for ops without gradients.
        reason: where the figures come from.
    """

    forward: float
    gradient: float
    reason: str


@dataclass(frozen=True)
class Work:
    """The least work that any implementation of the op has to do for a case.

    Attributes:
        flops: floating-point operations (a multiply-add counts as two).
        bytes: inputs read once and outputs written once.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class OpSpec:
    """The contract of an op.

    Attributes:
        op: name of the op, also of its folder.
        function: public function; takes what ``make`` returns as keyword arguments, and ``backend``.
        source: where the op comes from: paper, section or equation.
        tests: cases of the test matrix: odd, prime and empty sizes, every option.
        benchmarks: cases of the benchmark rows.
        make: ``make(case, dtype, device, seed)`` returns keyword arguments of ``function``; the same seed gives the
            same values. Tensors may lie in tuples, lists and named tuples.
        tolerance: by dtype name (``float32``).
        work: least work of a case, forward only, float32.
        differentiable: names of the arguments whose floating-point tensors get gradients; empty: no backward.
        gradient_factor: FLOPs of forward and backward over those of the forward pass.
        outputs: names of the outputs, for messages.
        invalid: name of a wrong call, change of the arguments of the first test case that makes it, and the words
            that its error has to hold.
        zero_gradients: differentiable leaves whose gradient is zero in exact arithmetic, and therefore compared
            absolutely.
        deterministic: equal bits for equal input and thread count.
        compare: for ops whose results are no real numbers: ``compare(arguments, found, expected)`` says what is
            wrong with ``found``, given the arguments of the call and the result of ``reference``; None: nothing.
            It replaces the forward tolerance.
    """

    op: str
    function: Callable[..., Any]
    source: str
    tests: tuple[Case, ...]
    benchmarks: tuple[Case, ...]
    make: Callable[[Case, torch.dtype, str, int], dict[str, Any]]
    tolerance: Mapping[str, Tolerance]
    work: Callable[[Case], Work]
    differentiable: tuple[str, ...] = ()
    gradient_factor: float = 3.0
    outputs: tuple[str, ...] = ("output",)
    invalid: Mapping[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = field(
        default_factory=dict
    )
    zero_gradients: tuple[str, ...] = ()
    deterministic: bool = True
    compare: Callable[[dict[str, Any], Any, Any], str | None] | None = None

    @property
    def name(self) -> str:
        """Name of the public function; differs from the op's where an op has several."""
        return self.function.__name__


def load_specs(op: str) -> tuple[OpSpec, ...]:
    """The specs of an op, one for each public function.

    Raises:
        ModuleNotFoundError: the op has no ``spec.py``; a test forbids that.
    """
    if op not in ops():
        raise ModuleNotFoundError(f"no op named {op!r}; known: {', '.join(ops())}")
    found: OpSpec | tuple[OpSpec, ...] = import_module(f"glass_fast.kernels.{op}.spec").SPEC
    return found if isinstance(found, tuple) else (found,)
