"""The torch-free native module ``glass_fast._core`` (numpy in, numpy out)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from glass_fast import kernels, native

core = native.core_or_reason()
pytestmark = pytest.mark.skipif(isinstance(core, str), reason=f"needs the native library: {core}")


def test_it_loads_without_torch() -> None:
    code = (
        "import sys; from glass_fast import native\n"
        "core = native.core_or_reason()\n"
        "assert not isinstance(core, str), core\n"
        "import numpy as np; assert core.matching(1 - np.eye(3)[None]).tolist() == [[0, 1, 2]]\n"
        "assert 'torch' not in sys.modules, 'the numpy module must not need torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_matching_equals_the_torch_operator(dtype) -> None:
    cost = (100 * np.random.default_rng(1).random((6, 5, 8))).astype(dtype)
    counts = np.array([8, 0, 3, 5, 6, 1])
    expected = kernels.matching(
        torch.from_numpy(cost).double(), torch.from_numpy(counts), backend="cpu"
    ).numpy()
    for order in ("C", "F"):
        found = core.matching(np.asarray(cost, order=order), counts, threads=2)
        assert found.dtype == np.int64 and np.array_equal(found, expected)


def test_mask_labels_equals_the_torch_operator() -> None:
    random = np.random.default_rng(2)
    maps = random.random((2, 3, 9, 11)).astype(np.float32)
    labels = random.integers(0, 5, (2, 3)).astype(np.uint8)
    found = core.mask_labels(maps, labels, 37, 41, 0.6, 0.5, threads=2)
    expected = kernels.mask_labels(
        torch.from_numpy(maps), torch.from_numpy(labels), (37, 41), 0.6, 0.5, backend="cpu"
    )
    assert found.dtype == np.uint8 and np.array_equal(found, expected.numpy())


def test_inputs_are_not_changed() -> None:
    cost = np.random.default_rng(3).random((2, 4, 4))
    copy = cost.copy()
    core.matching(cost)
    assert np.array_equal(cost, copy)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: core.matching(np.zeros((3, 3))), "batch, slots, segments"),
        (lambda: core.matching(np.full((1, 2, 2), np.nan)), "GF-NUM-920"),
        (lambda: core.matching(np.zeros((1, 2, 2)), np.array([3])), "GF-DATA-920"),
        (lambda: core.matching(np.zeros((2, 2, 2)), np.array([1])), "counts"),
        (lambda: core.mask_labels(np.zeros((2, 2)), np.zeros((1, 1)), 4, 4, 0.6, 0.5), "maps"),
        (lambda: core.mask_labels(np.zeros((1, 2, 3, 3)), np.ones((1, 1)), 4, 4, 0.6, 0.5), "labels"),
        (lambda: core.mask_labels(np.zeros((1, 1, 3, 3)), np.ones((1, 1)), 0, 4, 0.6, 0.5), "at least 1"),
        (lambda: core.mask_labels(np.zeros((1, 1, 0, 3)), np.ones((1, 1)), 4, 4, 0.6, 0.5), "GF-DATA-922"),
        (
            lambda: core.mask_labels(np.zeros((1, 1, 3, 3)), np.full((1, 1), 255), 4, 4, 0.6, 0.5),
            "GF-DATA-921",
        ),
        (
            lambda: core.mask_labels(np.full((1, 1, 3, 3), np.inf), np.ones((1, 1)), 4, 4, 0.6, 0.5),
            "GF-NUM-920",
        ),
    ],
)
def test_bad_input_is_an_error_not_a_crash(call, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_build_info_tells_what_was_built() -> None:
    info = native.build_info()
    assert info["native"] is True and info["mode"] in ("cpu", "cuda")
    for key in ("compiler", "flags", "torch", "python", "platform"):
        assert info[key], f"build_info.json has no {key}"
    assert info["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
