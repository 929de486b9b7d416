"""Rows of the ops, from their specs: every benchmark case, mode and provider; no time without a correct result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.baselines import BASELINE, MAIN, Provider, forget_compiled, providers
from benchmarks.schema import OK, SKIPPED, WRONG, Row
from benchmarks.timing import (
    Ceilings,
    Clock,
    Repeated,
    Sample,
    Spread,
    interleave,
    peak_memory,
    ratios,
    repeated,
)
from glass_fast.kernels import ops
from glass_fast.kernels.spec import Case, OpSpec, load_specs

Mode = Literal["forward", "full"]
SEED = 0
SLACK, SLACK_AT_MOST = 4.0, 1e-2
"""Where the textbook form itself misses a tolerance in the job's dtype, this many times its error is allowed, up to the
second number. In large decoders float32 rounding moves some of the 10^7 pre-activations across the kink of ReLU."""


@dataclass(frozen=True)
class Measured:
    """A provider's samples, or why there are none."""

    provider: Provider
    samples: Sequence[Sample] = ()
    repeats: int = 0
    peak: int | None = None
    peak_method: str = ""
    wrong: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Job:
    """One case of a function in one mode."""

    spec: OpSpec
    case: Case
    mode: Mode
    dtype: str = "float32"
    device: str = "cpu"

    def context(self) -> AbstractContextManager[Any]:
        """Inference mode for the forward pass alone, as a user without gradients runs it."""
        return torch.inference_mode() if self.mode == "forward" else torch.enable_grad()

    def arguments(self, dtype: str | None = None) -> dict[str, Any]:
        """Fresh arguments: of the job's dtype, or of another one with the very same values."""
        made = self.spec.make(self.case, getattr(torch, self.dtype), self.device, SEED)
        if dtype is not None:
            made = map_tensors(made, lambda t: t.to(getattr(torch, dtype)) if t.is_floating_point() else t)
        if self.mode == "full":
            for name in self.spec.differentiable:
                made[name] = map_tensors(
                    made[name], lambda t: t.detach().requires_grad_() if t.is_floating_point() else t
                )
        return made


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of dictionaries, (named) tuples and lists with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(item, change) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of a nest with their paths (``weights.project_q``, ``layers.0.1``)."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return
    for key, item in items:
        yield from named_tensors(item, f"{name}.{key}" if name else str(key))


def leaves(job: Job, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors that get gradients, by path."""
    chosen = {name: arguments[name] for name in job.spec.differentiable if name in arguments}
    return {name: tensor for name, tensor in named_tensors(chosen) if tensor.requires_grad}


def backward_call(job: Job, arguments: dict[str, Any], forward: Callable[[], Any]) -> Callable[[], Any]:
    """Forward and backward with fixed gradients of the outputs; returns outputs and gradients by path."""
    wanted = leaves(job, arguments)
    draw = torch.Generator().manual_seed(SEED + 1)
    with torch.no_grad():
        shapes = [tensor for _, tensor in named_tensors(forward())]
    gradients = [
        torch.randn(tensor.shape, generator=draw, dtype=torch.float64).to(tensor) for tensor in shapes
    ]

    def call() -> tuple[Any, dict[str, Tensor]]:
        result = forward()
        pairs = zip((tensor for _, tensor in named_tensors(result)), gradients, strict=True)
        outputs, seeds = zip(*((tensor, seed) for tensor, seed in pairs if tensor.requires_grad), strict=True)
        found = torch.autograd.grad(outputs, list(wanted.values()), seeds)
        return result, dict(zip(wanted, found, strict=True))

    return call


def reference_result(job: Job) -> tuple[Any, dict[str, Tensor]]:
    """Outputs and gradients of the ``reference`` backend in float64, on the very values that providers get."""
    return _run_reference(job, job.arguments("float64"))


def _run_reference(job: Job, arguments: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    def forward() -> Any:
        return job.spec.function(**arguments, backend="reference")

    with job.context():
        if job.mode == "full":
            result: tuple[Any, dict[str, Tensor]] = backward_call(job, arguments, forward)()
            return result
        return forward(), {}


def relative_error(found: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """RMS of the difference over the RMS of what is expected, or over ``scale``."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = (found.double() - expected.double()).square().mean().sqrt()
    size = expected.double().square().mean().sqrt() if scale is None else scale
    error = float(difference / size) if size else float(difference)
    return error if error == error else float("inf")


def problem(job: Job, provider: Provider, expected: tuple[Any, dict[str, Tensor]]) -> str:
    """What is wrong with a provider's result; empty: nothing. Anything it raises is wrong, too."""
    arguments = job.arguments()
    try:
        with job.context():
            call = provider.prepare(arguments)
            if job.mode == "full":
                call = backward_call(job, arguments, call)
                result, gradients = call()
            else:
                result, gradients = call(), {}
        return _difference(job, arguments, provider.adapt(arguments, result), gradients, expected)
    except Exception as error:  # one broken provider must not end the run of the others
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _difference(
    job: Job,
    arguments: dict[str, Any],
    result: Any,
    gradients: Mapping[str, Tensor],
    expected: tuple[Any, dict[str, Tensor]],
) -> str:
    spec, limit = job.spec, job.spec.tolerance[job.dtype]
    if spec.compare is not None:
        wanted = spec.function(**job.arguments(), backend="reference")
        return spec.compare(arguments, result, wanted) or ""
    limits = dict.fromkeys(spec.outputs, limit.forward)
    limits |= dict.fromkeys(map(_gradient_of, expected[1]), limit.gradient)
    found = _errors(job, result, gradients, expected)
    over = {name: error for name, error in found.items() if error > limits[name]}
    if over:
        own = _textbook_errors(job, expected)
        limits = {name: max(limits[name], min(SLACK * own[name], SLACK_AT_MOST)) for name in over}
    return "; ".join(
        f"{name}: relative error {error:.3g}; at most {limits[name]:.2g} is allowed"
        for name, error in over.items()
        if error > limits[name]
    )


def _errors(
    job: Job, result: Any, gradients: Mapping[str, Tensor], expected: tuple[Any, dict[str, Tensor]]
) -> dict[str, float]:
    """Relative error of every output and gradient."""
    pairs = zip(job.spec.outputs, named_tensors(result), named_tensors(expected[0]), strict=True)
    found = {name: relative_error(a.detach(), b.detach()) for name, (_, a), (_, b) in pairs}
    largest = max((float(g.square().mean().sqrt()) for g in expected[1].values() if g.numel()), default=0.0)
    for name, wanted in expected[1].items():
        scale = largest if name in job.spec.zero_gradients else None
        found[_gradient_of(name)] = relative_error(gradients[name], wanted, scale)
    return found


def _gradient_of(name: str) -> str:
    """An output and an argument may share their name."""
    return f"gradient of {name}"


def _textbook_errors(job: Job, expected: tuple[Any, dict[str, Tensor]]) -> dict[str, float]:
    """Errors of the ``reference`` backend in the job's own dtype."""
    arguments = job.arguments()
    result, gradients = _run_reference(job, arguments)
    return _errors(job, result, gradients, expected)


def measure(
    job: Job,
    chosen: Sequence[Provider],
    clock: Clock,
    rounds: int,
    limit: float = float("inf"),
    memory: bool = True,
) -> dict[str, Measured]:
    """Check, then time the providers of one job.

    Args:
        job: what is timed.
        chosen: providers.
        clock: times calls.
        rounds: samples of each provider.
        limit: seconds that all rounds may take together; jobs that would take longer are skipped.
        memory: also measure peak memory.

    Returns:
        By provider name; wrong providers have no samples.
    """
    forget_compiled()
    expected = reference_result(job) if job.spec.compare is None else (None, {})
    found = {p.name: Measured(p, wrong=problem(job, p, expected)) for p in chosen}
    del expected
    samplers: dict[str, Repeated] = {}
    for provider in (p for p in chosen if not found[p.name].wrong):
        arguments = job.arguments()
        with job.context():
            call = provider.prepare(arguments)
            call = backward_call(job, arguments, call) if job.mode == "full" else call
            samplers[provider.name] = repeated(clock, call)
    with job.context():
        seconds = rounds * sum(sampler().wall * sampler.repeats for sampler in samplers.values())
        if seconds > limit:
            note = f"{rounds} rounds would take {seconds:.0f} s; the limit is {limit:.0f} s"
            return {n: m if m.wrong else replace(m, skipped=note) for n, m in found.items()}
        samples = interleave(samplers, rounds)
        for name, sampler in samplers.items():
            # Compiled code keeps its number of threads, and a forked process has none of its parent's: it would hang.
            hangs = "compile" in name and torch.get_num_threads() > 1
            peak, method = peak_memory(sampler.call, job.device) if memory and not hangs else (None, "")
            found[name] = replace(
                found[name], samples=samples[name], repeats=sampler.repeats, peak=peak, peak_method=method
            )
    return found


def work_of(job: Job) -> tuple[float, float]:
    """Least FLOPs and bytes of a job; backward reads the outputs' gradients and writes those of the leaves."""
    work = job.spec.work(job.case)
    size = torch.empty(0, dtype=getattr(torch, job.dtype)).element_size()
    flops, moved = work.flops, work.bytes * size / 4
    if job.mode == "full":
        flops *= job.spec.gradient_factor
        moved += size * sum(tensor.numel() for tensor in leaves(job, job.arguments()).values())
    return flops, moved


def op_rows(
    names: Sequence[str],
    clock: Clock,
    ceilings: Mapping[str, Ceilings],
    environment: Mapping[str, Any],
    rounds: int,
    *,
    cases: str = "",
    modes: Sequence[str] = ("forward", "full"),
    without: Sequence[str] = (),
    limit: float = 300.0,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Rows of the named ops (none: all of them).

    Args:
        names: ops.
        clock: times calls.
        ceilings: by dtype; other dtypes are left out.
        environment: columns of :func:`benchmarks.schema.environment`.
        rounds: samples of each provider.
        cases: only cases whose name holds this.
        modes: ``forward`` and ``full``.
        without: providers that are left out.
        limit: see :func:`measure`.
        say: told about every job.
    """
    device = str(environment["device"])
    for op in names or ops():
        for spec in load_specs(op):
            chosen = [provider for provider in providers(spec, device) if provider.name not in without]
            for job in _jobs(spec, device, ceilings, cases, modes):
                say(
                    f"{spec.name} {job.case.name} {job.mode} {job.dtype}: {', '.join(p.name for p in chosen)}"
                )
                found = measure(job, chosen, clock, rounds, limit)
                yield from rows_of(job, found, ceilings[job.dtype], environment, rounds)


def _jobs(
    spec: OpSpec, device: str, ceilings: Mapping[str, Ceilings], cases: str, modes: Sequence[str]
) -> Iterator[Job]:
    for case in (case for case in spec.benchmarks if cases in case.name):
        for dtype in (dtype for dtype in ceilings if dtype in spec.tolerance):
            if "forward" in modes:
                yield Job(spec, case, "forward", dtype, device)
            if "full" in modes and spec.differentiable:
                yield Job(spec, case, "full", dtype, device)


def rows_of(
    job: Job,
    found: Mapping[str, Measured],
    ceilings: Ceilings,
    environment: Mapping[str, Any],
    rounds: int,
) -> Iterator[Row]:
    """Rows of one job: percentiles, paired ratios to the main and to the fastest baseline, share of the floor."""
    flops, moved = work_of(job)
    timed = {name: m for name, m in found.items() if m.samples}
    medians = {name: Spread.of([s.wall for s in m.samples]).p50 for name, m in timed.items()}
    main = MAIN[job.spec.name]
    baselines = [name for name, m in timed.items() if m.provider.role == BASELINE]
    tuned = min(baselines, key=medians.__getitem__, default=None)
    floor = ceilings.floor(flops, moved)
    for name, measured in found.items():
        row = Row(
            kind="op", name=job.spec.name, op=job.spec.op, case=job.case.name, provider=name,
            role=measured.provider.role, mode=job.mode, dtype=job.dtype, flops=flops, bytes=moved,
            ceiling_gflops=ceilings.flops / 1e9, ceiling_gbps=ceilings.bytes / 1e9, floor_ms=1e3 * floor,
            **environment,
        )  # fmt: skip
        if not measured.samples:
            status = WRONG if measured.wrong else SKIPPED
            yield replace(row, status=status, note=measured.wrong or measured.skipped)
            continue
        row = timed_columns(row, measured.samples, timed[main].samples if main in timed else None, main)
        if tuned is not None:
            ratio = ratios(timed[tuned].samples, measured.samples)
            row = replace(
                row,
                tuned_to=tuned,
                tuned_ratio_p20=ratio.p20,
                tuned_ratio_p50=ratio.p50,
                tuned_ratio_p80=ratio.p80,
            )
        yield replace(
            row, peak_bytes=measured.peak, peak_method=measured.peak_method, rounds=rounds,
            repeats=measured.repeats, floor_share=floor / medians[name],
        )  # fmt: skip


def timed_columns(row: Row, samples: Sequence[Sample], main: Sequence[Sample] | None, name: str) -> Row:
    """The row with its percentiles and, where the main baseline has samples, the ratios to it."""
    wall, cpu = Spread.of([s.wall for s in samples]), Spread.of([s.cpu for s in samples])
    row = replace(
        row, status=OK, p20_ms=1e3 * wall.p20, p50_ms=1e3 * wall.p50, p80_ms=1e3 * wall.p80,
        cpu_p50_ms=1e3 * cpu.p50,
    )  # fmt: skip
    if main is None:
        return row
    ratio = ratios(main, samples)
    return replace(
        row, ratio_to=name, ratio_p20=ratio.p20, ratio_p50=ratio.p50, ratio_p80=ratio.p80,
        cpu_ratio_p50=ratios(main, samples, "cpu").p50,
    )  # fmt: skip
