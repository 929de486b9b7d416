"""Speed goals on CPU time of one thread; the only tests that assert time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.gates import GATES, ROUNDS, Gate, check, find_case


@pytest.mark.parametrize(
    "slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["normal", "compiling"]
)
def test_gates_hold(slow: bool) -> None:
    outcomes = check([gate for gate in GATES if gate.slow == slow])
    lines = [outcome.line for outcome in outcomes]
    assert all(outcome.passed for outcome in outcomes), "\n" + "\n".join(lines)


def test_every_gate_has_a_case_and_a_name_of_its_own() -> None:
    assert all(find_case(gate) for gate in GATES)
    assert len({gate.name for gate in GATES}) == len(GATES)


MATCHING = next(gate for gate in GATES if gate.op == "matching")


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (replace(MATCHING, provider="warp"), "no provider 'warp'"),
        (replace(MATCHING, baseline="nothing"), "no provider 'nothing'"),
        (replace(MATCHING, sizes={"B": 255}), "no benchmark case"),
    ],
)
def test_what_does_not_exist_fails(gate: Gate, words: str) -> None:
    (outcome,) = check([gate])
    assert not outcome.passed and words in outcome.line and outcome.line.startswith("FAILED")


def test_a_wrong_provider_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gates
    from benchmarks.baselines import providers

    def broken(spec, device):
        return [
            replace(p, adapt=lambda arguments, result: torch.zeros(256, 7, dtype=torch.int64))
            if p.name == "cpu"
            else p
            for p in providers(spec, device)
        ]

    monkeypatch.setattr(gates, "providers", broken)
    (outcome,) = check([MATCHING])
    assert not outcome.passed and "cpu is wrong" in outcome.line


def test_a_gate_needs_rounds_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 9"):
        check([MATCHING], rounds=ROUNDS - 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ValueError, match="2 threads"):
        check([MATCHING])
