"""No time without a correct result; rows carry what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import baselines, ops
from benchmarks.baselines import BASELINE, OURS, Provider, providers
from benchmarks.ops import Job, measure, problem, reference_result, relative_error, rows_of, work_of
from benchmarks.schema import OK, SKIPPED, WRONG
from benchmarks.timing import Ceilings, HostClock
from glass_fast import kernels
from glass_fast.kernels.spec import load_specs

SPECS = [spec for op in kernels.ops() for spec in load_specs(op)]
ENVIRONMENT = {"device": "cpu", "device_name": "test CPU", "threads": 1}


def small(name: str, mode: str = "forward") -> Job:
    """The first test case of a function: small and in float32."""
    spec = next(spec for spec in SPECS if spec.name == name)
    return Job(spec, spec.tests[0], mode)  # type: ignore[arg-type]


def plain(job: Job) -> list[Provider]:
    """Providers that do not compile."""
    return [provider for provider in providers(job.spec, "cpu") if "compile" not in provider.name]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_provider_of_a_small_case_is_right(spec: Any) -> None:
    for mode in ("forward", "full") if spec.differentiable else ("forward",):
        job = Job(spec, spec.tests[0], mode)
        expected = reference_result(job) if spec.compare is None else (None, {})
        found = {provider.name: problem(job, provider, expected) for provider in plain(job)}
        assert not any(found.values()), found
        assert baselines.MAIN[spec.name] in found, "the main baseline must exist"
        assert set(found) <= set(baselines.MEANING)


def off_by(share: float, job: Job) -> Provider:
    """Slot attention whose slots are wrong by a relative error."""

    def prepare(arguments: dict[str, Any]) -> Any:
        def call() -> Any:
            slots, attention = job.spec.function(**arguments, backend="reference")
            return slots * (1 + share), attention

        return call

    return Provider("wrong", OURS, prepare)


def test_a_wrong_provider_gets_no_time() -> None:
    job = small("slot_attention")
    chosen = [*plain(job), off_by(1e-3, job)]
    found = measure(job, chosen, HostClock(1), rounds=2, memory=False)
    rows = {row.provider: row for row in rows_of(job, found, Ceilings(1e9, 1e9), ENVIRONMENT, 2)}
    assert rows["wrong"].status == WRONG and rows["wrong"].p50_ms is None and rows["wrong"].ratio_p50 is None
    assert "slots: relative error 0.001" in rows["wrong"].note
    eager = rows["eager"]
    assert (eager.status, eager.role, eager.ratio_p50, eager.ratio_to) == (OK, BASELINE, 1.0, "eager")
    assert rows["torch"].ratio_to == "eager" and rows["torch"].floor_share is not None


def test_a_provider_with_wrong_gradients_gets_no_time() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient / 2

    job = small("slot_attention", "full")

    def prepare(arguments: dict[str, Any]) -> Any:
        changed = arguments | {"inputs": Halved.apply(arguments["inputs"])}
        return lambda: job.spec.function(**changed, backend="reference")

    assert problem(job, Provider("halved", OURS, prepare), reference_result(job)).startswith(
        "gradient of inputs"
    )


def test_the_tolerance_grows_only_where_the_textbook_form_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    job = small("slot_attention")
    expected = reference_result(job)
    assert "at most 1e-05" in problem(job, off_by(1e-3, job), expected)
    own = {"slots": 5e-4, "attention": 0.0}
    monkeypatch.setattr(ops, "_textbook_errors", lambda job, expected: own)
    assert problem(job, off_by(1e-3, job), expected) == ""
    assert "at most 0.002" in problem(job, off_by(3e-3, job), expected)
    own["slots"] = 1.0
    assert "at most 0.01" in problem(job, off_by(0.02, job), expected)


def test_not_a_number_and_other_shapes_are_wrong() -> None:
    good = torch.ones(3)
    assert relative_error(torch.full((3,), torch.nan), good) == float("inf")
    assert relative_error(torch.ones(2), good) == float("inf")
    assert relative_error(good, good) == 0.0


def test_a_provider_that_raises_is_wrong() -> None:
    def prepare(arguments: dict[str, Any]) -> Any:
        raise RuntimeError("no such thing")

    job = small("matching")
    assert problem(job, Provider("broken", OURS, prepare), (None, {})) == "RuntimeError: no such thing"


def test_a_matching_that_costs_more_is_wrong() -> None:
    job = small("matching")

    def prepare(arguments: dict[str, Any]) -> Any:
        batch, _, segments = arguments["cost"].shape
        return lambda: torch.arange(segments).expand(batch, -1).contiguous()

    assert "total cost" in problem(job, Provider("identity", OURS, prepare), (None, {}))


def test_a_job_beyond_the_limit_is_skipped_with_the_reason() -> None:
    job = small("matching")
    found = measure(job, plain(job), HostClock(1), rounds=2, limit=0.0, memory=False)
    rows = list(rows_of(job, found, Ceilings(1e9, 1e9), ENVIRONMENT, 2))
    assert {row.status for row in rows} == {SKIPPED} and "the limit is 0 s" in rows[0].note


def test_backward_counts_more_work() -> None:
    forward, full = work_of(small("slot_attention")), work_of(small("slot_attention", "full"))
    assert full[0] == 3 * forward[0] and full[1] > forward[1]


def test_providers_get_the_same_values_in_float64() -> None:
    job = small("propagation")
    single, double = job.arguments(), job.arguments("float64")
    assert double["self_map"].dtype == torch.float64
    assert torch.equal(single["self_map"].double(), double["self_map"])
