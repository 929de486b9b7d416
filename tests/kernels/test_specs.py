"""The matrix generated from the specs: every case of every op on every backend that can run here.

Against ``reference`` in float64, backwards too; with memory that holds garbage, a second time, from views; as
torch operators and under ``torch.compile``. Cases with a meaning of their own are in the files of the ops.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest
import torch

from glass_fast import kernels
from glass_fast.errors import GlassError
from glass_fast.kernels.spec import Case, OpSpec, load_specs
from tests.kernels import spec_checks as checks
from tests.kernels.spec_checks import Trial, parametrize, specs


def elements(trial: Trial) -> int:
    """Of inputs and outputs."""
    return int(trial.spec.work(trial.case).bytes / 4)


def every_trial(tag: str | None = None) -> list[Trial]:
    """All cases (that carry a tag) in float32, the small ones in the other types of the spec too."""
    found = []
    for spec in specs():
        for case in spec.tests:
            for dtype in spec.tolerance:
                for backend in checks.backends(spec.op, dtype):
                    trial = Trial(spec, case, backend, dtype)
                    itself = backend == "reference" and (dtype == "float64" or spec.compare is not None)
                    small = dtype == "float32" or elements(trial) <= checks.SMALL
                    if not itself and small and (tag is None or tag in case.tags):
                        found.append(trial)
    return found


def small_trials(*without: str) -> list[Trial]:
    """Small cases in float32."""
    return [
        trial
        for trial in every_trial()
        if trial.dtype == "float32" and trial.backend not in without and elements(trial) <= checks.SMALL
    ]


def first_of_each_option(spec: OpSpec) -> list[Case]:
    """The first case, and the first one that uses each option."""
    first: dict[str, Case] = {"": spec.tests[0]}
    for case in spec.tests:
        for option in case.options:
            first.setdefault(option, case)
    return list({case.name: case for case in first.values()}.values())


def outputs_and_gradients(trial: Trial) -> dict[str, torch.Tensor]:
    """Everything the op computes for a trial, by name."""
    spec = trial.spec
    if "gradient" in trial.case.tags:
        outputs, gradients = checks.run_with_gradients(spec, checks.arguments_of(trial), trial.backend)
    else:
        outputs, gradients = checks.run(spec, checks.arguments_of(trial), trial.backend), {}
    return dict(zip(spec.outputs, outputs, strict=True)) | {
        f"gradient of {p}": g for p, g in gradients.items()
    }


@parametrize(every_trial())
def test_forward(trial: Trial) -> None:
    found = checks.run(trial.spec, checks.arguments_of(trial), trial.backend)
    checks.check_outputs(trial, found)


@parametrize(every_trial("gradient"))
def test_gradient(trial: Trial) -> None:
    outputs, gradients = checks.run_with_gradients(trial.spec, checks.arguments_of(trial), trial.backend)
    checks.check_outputs(trial, outputs)  # a backend may take another way when it is trained
    checks.check_gradients(trial, gradients)


DIFFERENTIABLE = [spec for spec in specs() if spec.differentiable]


@parametrize(
    [
        Trial(spec, spec.tests[0], backend, "float64")
        for spec in DIFFERENTIABLE
        for backend in checks.backends(spec.op, "float64")
    ]
)
def test_gradcheck(trial: Trial) -> None:
    """Gradients against finite differences, whatever ``reference`` says."""
    arguments = checks.arguments_of(trial)
    leaves = {
        path: tensor.requires_grad_()
        for path, tensor in checks.tensors_of(arguments).items()
        if path.partition(".")[0] in trial.spec.differentiable
    }

    def call(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(leaves, values, strict=True))
        return checks.run(
            trial.spec, checks.map_tensors(lambda path, t: given.get(path, t), arguments), trial.backend
        )

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=lambda spec: spec.name)
def test_zero_gradients_are_the_named_ones(spec: Any) -> None:
    wanted = checks.expected_gradients(spec.name, spec.tests[0].name, "float32")
    assert checks.vanishing(wanted) == set(spec.zero_gradients)


@parametrize(
    [
        Trial(spec, spec.tests[0], backend)
        for spec in specs()
        for backend in checks.backends(spec.op)
        if not spec.differentiable
    ]
)
def test_no_gradient_is_lost_in_silence(trial: Trial) -> None:
    """An op that promises no gradients returns what has none, or gives the right ones all the same."""
    spec, arguments = trial.spec, checks.arguments_of(trial)
    names = tuple(
        key
        for key, value in arguments.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    )
    tracked = checks.map_tensors(
        lambda path, t: t.requires_grad_() if path in names else t, checks.arguments_of(trial)
    )
    if not any(output.requires_grad for output in checks.run(spec, tracked, trial.backend)):
        return
    _, found = checks.run_with_gradients(spec, arguments, trial.backend, names)
    _, wanted = checks.run_with_gradients(spec, checks.cast_up(arguments), "reference", names)
    for path, gradient in found.items():
        assert checks.difference(gradient, wanted[path]) <= 5e-5, f"gradient of {path}"  # the ceiling of fp32


@pytest.mark.parametrize("layout", [checks.gapped, checks.transposed], ids=["gapped", "transposed"])
@parametrize(small_trials())
def test_views(trial: Trial, layout: Any) -> None:
    """Strided inputs, NaN between their values: the same result within the tolerance."""
    strided = checks.map_tensors(lambda _, tensor: layout(tensor), checks.arguments_of(trial))
    found = checks.run(trial.spec, strided, trial.backend)
    checks.check_outputs(trial, found)
    if "gradient" in trial.case.tags:
        strided = checks.map_tensors(lambda _, tensor: layout(tensor), checks.arguments_of(trial))
        checks.check_gradients(trial, checks.run_with_gradients(trial.spec, strided, trial.backend)[1])


@parametrize(small_trials())
def test_every_element_is_written(trial: Trial) -> None:
    """Garbage in uninitialised memory changes no bit of outputs and gradients."""
    with checks.deterministic(fill=False):
        clean = outputs_and_gradients(trial)
    with checks.deterministic(fill=True):
        assert torch.empty(3).isnan().all() and torch.empty(1, dtype=torch.int64) == 2**63 - 1
        assert torch.empty(1, dtype=torch.uint8) == 255
        poisoned = outputs_and_gradients(trial)
    checks.check_same_bits(clean, poisoned)


def test_an_unwritten_element_is_seen() -> None:
    def forgetful() -> dict[str, torch.Tensor]:
        output = torch.empty(4)
        output[:3] = 1.0
        return {"output": output}

    with checks.deterministic(fill=True), pytest.raises(AssertionError, match="output differs"):
        checks.check_same_bits(forgetful(), forgetful())
    assert not torch.are_deterministic_algorithms_enabled()


@parametrize(
    [
        trial
        for trial in every_trial()
        if trial.dtype == "float32" and trial.spec.deterministic and elements(trial) <= 10 * checks.SMALL
    ]
)
def test_a_second_run_gives_the_same_bits(trial: Trial) -> None:
    checks.check_same_bits(outputs_and_gradients(trial), outputs_and_gradients(trial))


@parametrize(
    [
        Trial(spec, case, backend)
        for spec in specs()
        for backend in checks.backends(spec.op)
        if backend not in ("torch", "reference")
        for case in first_of_each_option(spec)
    ]
)
def test_operators_are_registered_in_full(trial: Trial) -> None:
    """Schema, fake tensors and dispatch of every torch operator that the backend calls, backwards too."""
    recorder = checks.Recorder()
    with recorder:
        outputs_and_gradients(trial)
    assert recorder.calls, "a native backend calls torch operators, so that it works under torch.compile"
    for function, args, kwargs in recorder.calls.values():
        torch.library.opcheck(function, args, kwargs)


COMPILED = [
    Trial(spec, case, backend)
    for spec in specs()
    for case in spec.tests
    if "compile" in case.tags
    for backend in checks.backends(spec.op)
    if backend in ("torch", "cpu")
]


def check_compiled(trial: Trial, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public function as one graph, with the choice of the backend; forward and (where it has one) backward."""
    spec = trial.spec
    torch._dynamo.reset()
    compiled = torch.compile(spec.function, fullgraph=True, backend=compiler)
    found = compiled(**checks.arguments_of(trial), backend=trial.backend)
    checks.check_outputs(trial, found if isinstance(found, tuple) else (found,))
    if spec.differentiable:
        monkeypatch.setattr(
            checks, "run", lambda spec, arguments, backend: compiled(**arguments, backend=backend)
        )
        gradients = checks.run_with_gradients(spec, checks.arguments_of(trial), trial.backend)[1]
        monkeypatch.undo()
        checks.check_gradients(trial, gradients)


@parametrize(COMPILED)
def test_traces_as_one_graph(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of ``torch.compile`` but the code generation, which takes most of its time."""
    check_compiled(trial, "aot_eager", monkeypatch)


@pytest.mark.slow
@parametrize(COMPILED)
def test_compiles_as_one_graph(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiled(trial, "inductor", monkeypatch)


WRONG = [
    (spec, name, backend) for spec in specs() for name in spec.invalid for backend in checks.backends(spec.op)
]


@pytest.mark.parametrize(("spec", "name", "backend"), WRONG, ids=[f"{s.name}-{b}-{n}" for s, n, b in WRONG])
def test_wrong_calls_are_named(spec: Any, name: str, backend: str) -> None:
    change, words = spec.invalid[name]
    arguments = change(checks.arguments_of(Trial(spec, spec.tests[0], backend)))
    with pytest.raises(GlassError) as caught:
        spec.function(**arguments, backend=backend)
    assert words in str(caught.value)
    assert caught.value.code in spec.function.__doc__, "the docstring lists the error"


def test_every_op_has_specs() -> None:
    for op in kernels.ops():
        module = import_module(f"glass_fast.kernels.{op}")
        public = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
        assert {spec.name for spec in load_specs(op)} == public
        for spec in load_specs(op):
            assert spec.op == op and spec.benchmarks and spec.source
            for cases in (spec.tests, spec.benchmarks):
                names = [case.name for case in cases]
                assert len(set(names)) == len(names), f"{spec.name}: two cases of one name"


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.name)
def test_cases_reach_the_ends(spec: Any) -> None:
    """1 and 64 slots, one token and 4096, an empty size; backward where there is one."""
    sizes: dict[str, set[int]] = {}
    for case in spec.tests:
        for letter, size in case.sizes.items():
            sizes.setdefault(letter, set()).add(size)
    if spec.op in ("slot_attention", "mlp_decoder", "matching"):
        assert {1, 64} <= sizes["S"]
    tokens = (
        sizes.get("N") or sizes.get("P") or {h * w for h in sizes.get("H", ()) for w in sizes.get("W", ())}
    )
    if tokens:
        assert 1 in tokens and max(tokens) >= 4096
    if spec.name != "self_capture":  # no size of it may be 0
        assert any(0 in case.sizes.values() for case in spec.tests)
    assert any("gradient" in case.tags for case in spec.tests) == bool(spec.differentiable)
    assert all(spec.work(case).flops > 0 and spec.work(case).bytes > 0 for case in spec.benchmarks)


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.name)
def test_inputs_follow_from_the_seed(spec: Any) -> None:
    case = spec.tests[0]
    first, again, other = (
        checks.tensors_of(spec.make(case, torch.float32, "cpu", seed)) for seed in (0, 0, 1)
    )
    checks.check_same_bits(first, again)
    assert any(not torch.equal(tensor, other[path]) for path, tensor in first.items())
