"""Statistics and interleaving on clocks that are told the time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.timing import (
    Ceilings,
    HostClock,
    Sample,
    Spread,
    interleave,
    peak_memory,
    ratios,
    repeated,
    repeats_for,
)


class FakeTime:
    """A clock that only work moves: on the wall by ``seconds``, on the CPU by half of it."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> HostClock:
        return HostClock(1, wall=lambda: self.now, cpu=lambda: self.now / 2)


def test_percentiles_are_linear_between_neighbours() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (spread.p20, spread.p50, spread.p80) == pytest.approx((2.0, 3.5, 5.0))
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_a_sample_is_the_mean_of_its_calls() -> None:
    time = FakeTime()
    sample = time.clock().sample(lambda: time.work(0.25), 4)
    assert sample == Sample(0.25, 0.125)


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    time = FakeTime()
    assert repeats_for(lambda: time.work(0.0003), time.clock(), at_least=0.002) == 7
    assert repeats_for(lambda: time.work(5.0), time.clock(), at_least=0.002) == 1


def test_warming_up_is_not_mistaken_for_the_speed() -> None:
    time, calls = FakeTime(), []

    def call() -> None:
        calls.append(1)
        time.work(30.0 if len(calls) == 1 else 0.001)

    assert repeats_for(call, time.clock(), at_least=0.002) == 2


def test_every_round_times_all_in_rotated_order() -> None:
    order: list[str] = []

    def sampler(name: str):
        def take() -> Sample:
            order.append(name)
            return Sample(1.0, 1.0)

        return take

    found = interleave({name: sampler(name) for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(samples) for name, samples in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert interleave({}, 3) == {}


def test_paired_ratios_do_not_see_a_machine_that_slows_down() -> None:
    time = FakeTime()
    load = [1.0]

    def work(seconds: float):
        def call() -> None:
            time.work(seconds * load[0])

        return call

    clock = time.clock()
    slow, fast = repeated(clock, work(0.006)), repeated(clock, work(0.002))

    def drift() -> Sample:
        load[0] += 1.0
        return slow()

    found = interleave({"slow": slow, "fast": fast}, 6)
    assert ratios(found["slow"], found["fast"]) == Spread(*[pytest.approx(3.0)] * 3)
    load[0] = 1.0
    found = interleave({"drift": drift, "fast": fast}, 2)
    # round 1: drift first (load 2), then fast at load 2; round 2: fast still at load 2, then drift at load 3
    assert [s.wall for s in found["drift"]] == pytest.approx([0.012, 0.018])
    assert ratios(found["drift"], found["fast"]).p50 == pytest.approx((3.0 + 4.5) / 2)
    assert ratios(found["drift"], found["fast"], "cpu").p50 == pytest.approx((3.0 + 4.5) / 2)


def test_cpu_time_is_of_the_thread_only_with_one_thread() -> None:
    import time

    assert HostClock(1).cpu is time.thread_time
    assert HostClock(2).cpu is time.process_time


def test_floor_is_the_larger_of_work_and_traffic() -> None:
    ceilings = Ceilings(flops=100.0, bytes=10.0)
    assert ceilings.floor(200.0, 5.0) == 2.0
    assert ceilings.floor(200.0, 50.0) == 5.0


def test_peak_memory_sees_what_is_freed_again() -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(2**22)  # 16 MiB, freed at once

    peak, method = peak_memory(call, "cpu")
    if peak is None:
        pytest.skip("no resettable high-water mark of resident memory on this system")
    assert method == "resident set, 1 thread"
    assert 15 * 2**20 <= peak < 18 * 2**20


def test_peak_memory_of_a_backward_pass_and_of_a_call_that_fails() -> None:
    value = torch.ones(2**20, requires_grad=True)

    def call() -> None:
        (value * 2).exp().sum().backward()

    def fail() -> None:
        raise RuntimeError

    call()
    peak, _ = peak_memory(call, "cpu")
    assert peak is None or 4 * 2**20 <= peak < 24 * 2**20
    assert peak_memory(fail, "cpu") == (None, "")
