"""The op ``matching`` against SciPy and against hand-computed cases, on every backend."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from glass_fast import kernels, native
from glass_fast.errors import NumericsError
from tests.kernels import spec_checks as checks

needs_native = pytest.mark.skipif(
    native.ops_missing() is not None, reason=f"needs the native library: {native.ops_missing()}"
)
BACKENDS = checks.backends("matching", "float64")


def total(cost: np.ndarray, match: np.ndarray) -> float:
    """Cost of the pairs of one problem, summed in order of the segments."""
    return float(sum(cost[slot, segment] for segment, slot in enumerate(match) if slot >= 0))


def check_is_optimal(cost: np.ndarray, counts: list[int] | None, match: np.ndarray) -> None:
    """A full matching of distinct slots whose cost is SciPy's."""
    batch, slots, segments = cost.shape
    assert match.shape == (batch, segments)
    for b in range(batch):
        count = segments if counts is None else counts[b]
        taken = match[b][match[b] >= 0]
        assert (match[b, count:] == -1).all(), "segments that are not valid stay unmatched"
        assert len(taken) == min(slots, count), "as many pairs as the smaller side allows"
        assert len(set(taken.tolist())) == len(taken), "a slot is used once"
        assert ((match[b] >= -1) & (match[b] < slots)).all()
        valid = cost[b, :, :count]
        best = float(valid[linear_sum_assignment(valid)].sum())
        # Both sums have at most 64 float64 terms below 1e3 in magnitude: their rounding is far below 1e-9.
        assert total(cost[b], match[b]) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(backend: str) -> None:
    cost = torch.tensor([[[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]])
    # segment 0 -> slot 1 (2), segment 1 -> slot 0 (1), segment 2 -> slot 2 (2): 5, the least of the six ways
    ways = {p: sum(float(cost[0, p[k], k]) for k in range(3)) for p in itertools.permutations(range(3))}
    assert min(ways, key=ways.__getitem__) == (1, 0, 2)
    assert kernels.matching(cost, backend=backend).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slots, segments", [(7, 3), (3, 7), (1, 1), (1, 5), (5, 1), (64, 63), (13, 17)])
def test_rectangular(backend: str, slots: int, segments: int) -> None:
    cost = np.random.default_rng(0).random((5, slots, segments))
    check_is_optimal(cost, None, kernels.matching(torch.from_numpy(cost), backend=backend).numpy())


@needs_native
@given(data=st.data())
def test_property_against_scipy(data: st.DataObject) -> None:
    """Small integers make ties common; float64 keeps sums exact."""
    batch, slots, segments = (data.draw(st.integers(0, top)) for top in (3, 9, 9))
    values = data.draw(st.sampled_from([st.integers(-3, 3), st.floats(-1e3, 1e3)]))
    cost = data.draw(hnp.arrays(np.float64, (batch, slots, segments), elements=values.map(float)))
    counts = data.draw(st.none() | st.lists(st.integers(0, segments), min_size=batch, max_size=batch))
    found = kernels.matching(torch.from_numpy(cost), counts, backend="cpu").numpy()
    check_is_optimal(cost, counts, found)


@needs_native
def test_float32_is_compared_exactly() -> None:
    """Costs that differ by one float32 rounding decide the matching."""
    one = np.float32(1.0)
    above = np.nextafter(one, np.float32(2.0))
    cost = torch.tensor(np.array([[[above, one], [one, one]]]))
    assert kernels.matching(cost, backend="cpu").tolist() == [[1, 0]]


@needs_native
def test_ties_are_deterministic_for_any_thread_count() -> None:
    cost = torch.randint(0, 2, (300, 8, 8)).float()
    first = kernels.matching(cost, backend="cpu")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for _ in range(20):
                assert torch.equal(kernels.matching(cost, backend="cpu"), first)
    finally:
        torch.set_num_threads(threads)
    same = kernels.matching(torch.zeros(1, 5, 3), backend="cpu")
    assert same.tolist() == [[0, 1, 2]], "all equal: the lowest slots in order"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_an_error_that_names_the_place(backend: str, bad: float) -> None:
    cost = torch.rand(3, 4, 5)
    cost[1, 2, 3] = bad
    with pytest.raises(NumericsError, match=r"GF-NUM-920.*1.*2.*3") as caught:
        kernels.matching(cost, backend=backend)
    assert caught.value.exit_code == 6
    counts = [5, 3, 5]  # segment 3 of problem 1 is not valid, so its cost is not read
    check_is_optimal(cost.numpy(), counts, kernels.matching(cost, counts, backend=backend).numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_magnitudes_that_could_overflow(backend: str) -> None:
    """Up to 1e300 the optimum is found; beyond, differences could overflow float64 and the error says so."""
    cost = torch.tensor([[[1e300, -1e300], [-1e300, 1e300]]], dtype=torch.float64)
    assert kernels.matching(cost, backend=backend).tolist() == [[1, 0]]
    cost[0, 1, 0] = -1.7e308
    with pytest.raises(NumericsError, match=r"GF-NUM-921.*0.*1.*0"):
        kernels.matching(cost, backend=backend)


@needs_native
@pytest.mark.parametrize("counts", [None, torch.tensor([2, 0, 3])])
def test_opcheck_in_float64(counts: torch.Tensor | None) -> None:
    """Schema, fake tensors and dispatch registration of the torch operator."""
    cost = torch.rand(3, 4, 3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.glass_fast.matching.default, (cost, counts))


def test_gradient_is_not_tracked() -> None:
    cost = torch.rand(2, 3, 3, requires_grad=True)
    assert not kernels.matching(cost).requires_grad
