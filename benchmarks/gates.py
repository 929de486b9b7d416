"""Goals that CI defends: ratios of CPU time of one thread, on paired interleaved rounds.

    python -m benchmarks.gates            # all but the compiling gate
    python -m benchmarks.gates --slow     # all

A gate is set at 60 % of its goal, because a shared machine is noisier than the one that a goal is measured on; CPU
time of the thread does not count the time that other jobs take. A provider that does not exist is a failure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.baselines import providers
from benchmarks.ops import Job, Measured, Mode, measure
from benchmarks.timing import HostClock, ratios
from glass_fast.kernels.spec import Case, OpSpec, load_specs

SHARE = 0.6
"""Part of a goal that a gate asks for."""
ROUNDS = 9


@dataclass(frozen=True)
class Gate:
    """One goal.

    Attributes:
        op: op whose function has the same name.
        sizes: of the benchmark case; those that are named have to match.
        mode: forward or full (forward and backward).
        provider: what has to be fast.
        baseline: what it is compared with.
        goal: ratio of CPU times on a quiet machine.
        slow: takes tens of seconds.
    """

    op: str
    sizes: Mapping[str, int]
    mode: Mode
    provider: str
    baseline: str
    goal: float
    slow: bool = False

    @property
    def name(self) -> str:
        """``slot_attention-forward-cpu-over-eager``."""
        return f"{self.op}-{self.mode}-{self.provider}-over-{self.baseline}"

    @property
    def least(self) -> float:
        """Ratio below which the gate is red."""
        return SHARE * self.goal


_SLOTS = {"B": 8, "N": 1024, "C": 256, "S": 7, "D": 256}
_PROBLEMS = {"B": 256, "S": 7, "K": 7}

GATES = (
    Gate("slot_attention", _SLOTS, "forward", "cpu", "eager", 4.0),
    Gate("slot_attention", _SLOTS, "forward", "cpu", "compile", 3.0, slow=True),
    Gate("slot_attention", _SLOTS, "full", "cpu", "eager", 2.5),
    Gate("propagation", {"B": 1, "N": 1024, "C": 4}, "forward", "cpu", "matrix_power", 50.0),
    Gate("matching", _PROBLEMS, "forward", "cpu", "scipy_loop", 6.0),
    Gate("matching", _PROBLEMS, "forward", "cpu", "detr_loop", 40.0),
    Gate("mlp_decoder", {"B": 2, "P": 1024}, "forward", "torch", "eager", 1.4),
    Gate("mask_labels", {"B": 8, "H": 512}, "forward", "cpu", "torch", 1.0),
)


@dataclass(frozen=True)
class Outcome:
    """What was measured for a gate.

    Attributes:
        gate: the gate.
        ratio: median of the paired ratios; None when it could not be measured.
        low: their 20th percentile.
        high: their 80th percentile.
        problem: why there is no ratio.
    """

    gate: Gate
    ratio: float | None = None
    low: float = 0.0
    high: float = 0.0
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the measured ratio reaches the gate; a missing one does not."""
        return self.ratio is not None and self.ratio >= self.gate.least

    @property
    def line(self) -> str:
        """One line for people."""
        word = "passed" if self.passed else "FAILED"
        asked = f"gate {self.gate.least:.2f} = {SHARE:.0%} of goal {self.gate.goal:g}"
        if self.ratio is None:
            return f"{word} {self.gate.name}: {self.problem} ({asked})"
        return f"{word} {self.gate.name}: {self.ratio:.2f}x ({self.low:.2f} to {self.high:.2f}), {asked}"


def check(gates: Sequence[Gate] = GATES, rounds: int = ROUNDS) -> list[Outcome]:
    """Measure gates; those of one case and mode share their rounds.

    Raises:
        ValueError: fewer than 9 rounds, or torch uses several threads.
    """
    if rounds < ROUNDS:
        raise ValueError(f"{rounds} rounds; a gate needs at least {ROUNDS}")
    if torch.get_num_threads() != 1:
        raise ValueError(f"torch uses {torch.get_num_threads()} threads; gates compare the CPU time of one")
    outcomes: dict[str, Outcome] = {}
    groups: dict[tuple[str, str, Mode], tuple[Job, list[Gate]]] = {}
    for gate in gates:
        found = find_case(gate)
        if found is None:
            outcomes[gate.name] = Outcome(
                gate, problem=f"no benchmark case of {gate.op} has {dict(gate.sizes)}"
            )
            continue
        spec, case = found
        groups.setdefault((gate.op, case.name, gate.mode), (Job(spec, case, gate.mode), []))[1].append(gate)
    for job, members in groups.values():
        outcomes |= {outcome.gate.name: outcome for outcome in _measure(job, members, rounds)}
    return [outcomes[gate.name] for gate in gates]


def find_case(gate: Gate) -> tuple[OpSpec, Case] | None:
    """The first benchmark case of the op with the gate's sizes."""
    for spec in load_specs(gate.op):
        for case in spec.benchmarks:
            if spec.name == gate.op and all(case.sizes.get(k) == size for k, size in gate.sizes.items()):
                return spec, case
    return None


def _measure(job: Job, gates: Sequence[Gate], rounds: int) -> list[Outcome]:
    wanted = {name for gate in gates for name in (gate.provider, gate.baseline)}
    chosen = {p.name: p for p in providers(job.spec, job.device) if p.name in wanted}
    missing = {
        gate.name: f"{job.spec.op} has no provider {name!r} that can run here"
        for gate in gates
        for name in (gate.provider, gate.baseline)
        if name not in chosen
    }
    needed = {n for gate in gates if gate.name not in missing for n in (gate.provider, gate.baseline)}
    found = {}
    if needed:
        clock = HostClock(threads=1)
        found = measure(job, [chosen[name] for name in sorted(needed)], clock, rounds, memory=False)
    outcomes = []
    for gate in gates:
        problem = missing.get(gate.name, "") or _wrong(found, gate)
        if problem:
            outcomes.append(Outcome(gate, problem=problem))
            continue
        spread = ratios(found[gate.baseline].samples, found[gate.provider].samples, "cpu")
        outcomes.append(Outcome(gate, spread.p50, spread.p20, spread.p80))
    return outcomes


def _wrong(found: Mapping[str, Measured], gate: Gate) -> str:
    wrong = {name: found[name].wrong for name in (gate.provider, gate.baseline) if found[name].wrong}
    return "; ".join(f"{name} is wrong: {why}" for name, why in wrong.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 1 when a gate fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--slow", action="store_true", help="also gates that take tens of seconds")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    outcomes = check([gate for gate in GATES if options.slow or not gate.slow], options.rounds)
    for outcome in outcomes:
        print(outcome.line)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
