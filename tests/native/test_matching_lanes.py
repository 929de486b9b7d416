"""Small matching problems, solved side by side in vector lanes: optimum, tie rule, independence of neighbours."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from glass_fast import native

core = native.core_or_reason()
pytestmark = pytest.mark.skipif(isinstance(core, str), reason=f"needs the native library: {core}")

LANES = 8
LANE_SIDE = 9  # kLaneSide of csrc/core/matching_lanes.h; sizes around it take both ways


def total(cost: np.ndarray, match: np.ndarray) -> float:
    """Cost of the pairs as the contract sums it: in float64, from the last segment to the first."""
    sum_ = 0.0
    for segment in reversed(range(len(match))):
        if match[segment] >= 0:
            sum_ = float(cost[match[segment], segment]) + sum_
    return sum_


def scipy_match(cost: np.ndarray) -> np.ndarray:
    match = np.full(cost.shape[1], -1)
    rows, columns = linear_sum_assignment(cost)
    match[columns] = rows
    return match


def check(cost: np.ndarray, counts: np.ndarray | None, match: np.ndarray, exact: bool) -> None:
    for b, (one, found) in enumerate(zip(cost, match, strict=True)):
        count = cost.shape[2] if counts is None else counts[b]
        taken = found[found >= 0]
        assert (found[count:] == -1).all() and (found < cost.shape[1]).all()
        assert len(taken) == len(set(taken)) == min(cost.shape[1], count)
        valid = one[:, :count].astype(np.float64)
        ours, theirs = total(valid, found[:count]), total(valid, scipy_match(valid))
        if exact:
            assert ours == theirs
        else:
            assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("slots", range(11))
@pytest.mark.parametrize("segments", range(11))
def test_equals_scipy(slots: int, segments: int) -> None:
    """Float32 values in [0, 1) with 20 bits and small integers: float64 sums are exact, so are the totals."""
    random = np.random.default_rng([slots, segments])
    shape = (2 * LANES + 3, slots, segments)
    counts = random.integers(0, segments + 1, shape[0])
    twentieths = (random.integers(0, 2**20, shape) / 2**20).astype(np.float32)
    ties = random.integers(-2, 3, shape).astype(np.float64)
    for cost, chosen in itertools.product((twentieths, ties), (None, counts)):
        check(cost, chosen, core.matching(cost, chosen), exact=True)
    normal = random.normal(size=shape)
    check(normal, counts, core.matching(normal, counts), exact=False)


def first_of_the_best(cost: np.ndarray) -> list[int]:
    """The tie rule by enumeration: smallest total, then lexicographically, no slot counting as the highest."""
    slots, segments = cost.shape
    members = [*range(slots), *([slots] * max(0, segments - slots))]
    ways = {
        way
        for way in itertools.permutations(members, segments)
        if len({*way} - {slots}) == min(slots, segments)
    }
    best = min((total(cost, np.array([s if s < slots else -1 for s in way])), way) for way in ways)
    return [s if s < slots else -1 for s in best[1]]


@pytest.mark.parametrize("slots, segments", [(1, 1), (3, 3), (5, 2), (2, 5), (4, 3), (5, 5), (3, 6)])
def test_tie_rule(slots: int, segments: int) -> None:
    cost = np.random.default_rng(5).integers(0, 2, (40, slots, segments)).astype(np.float32)
    cost[0] = 0.0
    assert core.matching(cost).tolist() == [first_of_the_best(one) for one in cost]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_problem_does_not_see_its_neighbours(dtype: type) -> None:
    """Alone, padded with NaN segments, in any order and for any number of threads the result is the same."""
    random = np.random.default_rng(6)
    for slots, segments in ((7, 7), (3, 8), (9, 4), (6, LANE_SIDE + 3)):
        cost = random.integers(0, 3, (61, slots, segments)).astype(dtype)
        counts = random.integers(0, segments + 1, len(cost))
        for one, count in zip(cost, counts, strict=True):
            one[:, count:] = random.choice([np.nan, np.inf, 0.0])
        together = core.matching(cost, counts)
        for b, count in enumerate(counts):
            alone = core.matching(np.ascontiguousarray(cost[b : b + 1, :, :count]))
            assert np.array_equal(alone[0], together[b, :count]), (slots, segments, b)
        order = random.permutation(len(cost))
        assert np.array_equal(core.matching(cost[order], counts[order]), together[order])
    many = random.integers(0, 2, (4000, 7, 7)).astype(dtype)
    once = core.matching(many, threads=1)
    for threads in (2, 3, 7):
        assert np.array_equal(core.matching(many, threads=threads), once)


def test_results_are_equal_for_every_instruction_set() -> None:
    code = (
        "import numpy as np; from glass_fast import native; core = native.core_or_reason()\n"
        "random = np.random.default_rng(7)\n"
        "for side in range(1, 10):\n"
        "    for cost in (random.normal(size=(37, side, 7)), random.integers(0, 3, (37, 7, side)) / 1.0):\n"
        "        print(core.matching(cost).tolist())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "GLASS_FAST_CPU": cpu},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        for cpu in ("base", "avx2", "avx512")
    }
    assert len(outputs) == 1 and outputs.pop().count("\n") == 18


@pytest.mark.parametrize("side", [1, 4, LANE_SIDE, LANE_SIDE + 2])
def test_values_at_the_ends_of_the_range(side: int) -> None:
    random = np.random.default_rng(8)
    cheap = np.argsort(random.random((12, side)), axis=1)
    for high, low in ((1e300, -1e300), (1e300, 0.0), (5e-324, 0.0), (1e-310, 5e-324), (0.0, -5e-324)):
        cost = np.full((12, side, side), high)
        for one, slots in zip(cost, cheap, strict=True):
            one[slots, np.arange(side)] = low
        assert np.array_equal(core.matching(cost), cheap), (high, low)
    assert np.array_equal(
        core.matching(np.full((3, side, side), np.finfo(np.float32).max, np.float32)),
        np.tile(np.arange(side), (3, 1)),
    )


def test_negative_zero_is_zero() -> None:
    signs = np.random.default_rng(9).integers(0, 2, (30, 5, 5))
    assert (core.matching(np.where(signs == 1, -0.0, 0.0)) == np.arange(5)).all()


@pytest.mark.parametrize(
    "dtype, value, code",
    [
        (np.float32, np.nan, "920"),
        (np.float32, -np.inf, "920"),
        (np.float64, np.nan, "920"),
        (np.float64, np.inf, "920"),
        (np.float64, -1.1e300, "921"),
    ],
)
def test_the_first_bad_value_is_named(dtype: type, value: float, code: str) -> None:
    cost = np.zeros((LANES + 2, 4, 5), dtype)
    cost[LANES, 2, 3] = cost[LANES + 1, 0, 0] = value
    with pytest.raises(ValueError, match=rf"GF-NUM-{code}.*batch {LANES}, row 2, column 3"):
        core.matching(cost)
    counts = np.full(len(cost), 5)
    counts[LANES:] = 3, 0
    assert core.matching(cost, counts).shape == (LANES + 2, 5), "segments that are not valid are not read"
