"""The op ``mask_labels``: native and torch backends against the reference, hand-computed cases, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from glass_fast import kernels, native
from glass_fast.errors import NumericsError
from tests.kernels import spec_checks as checks

needs_native = pytest.mark.skipif(
    native.ops_missing() is not None, reason=f"needs the native library: {native.ops_missing()}"
)
BACKENDS = checks.backends("mask_labels")
FAST = [backend for backend in BACKENDS if backend != "reference"]


def test_hand_computed_without_resizing() -> None:
    """At equal size bicubic weights are (0, 1, 0, 0), so the rule can be read off the maps."""
    maps = torch.tensor([[[[0.9, 0.55, 0.2, 0.6]], [[0.1, 0.50, 0.4999, 0.6]]]])
    labels = torch.tensor([[7, 9]], dtype=torch.uint8)
    for backend in BACKENDS:
        found = kernels.mask_labels(maps, labels, (1, 4), 0.6, 0.5, backend=backend)
        # certain; uncertain (0.55); background (0.4999 < 0.5); tie at the threshold: lowest class, certain
        assert found.tolist() == [[[7, 255, 0, 7]]], backend


def test_reference_resizes_like_a_float64_derivation() -> None:
    """The reference's upsampled values against cubic convolution written out in numpy float64."""

    def weight(x: np.ndarray, a: float = -0.75) -> np.ndarray:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    def matrix(source: int, out: int) -> np.ndarray:
        rows = np.zeros((out, source))
        for i in range(out):
            centre = (i + 0.5) * source / out - 0.5
            for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                rows[i, min(max(j, 0), source - 1)] += weight(np.array(centre - j))
        return rows

    grid = np.random.default_rng(0).random((7, 5))
    expected = matrix(7, 23) @ grid @ matrix(5, 31).T
    threshold = 0.5
    clear = np.abs(expected - threshold) > 1e-5  # float32 rounding of a sum of 16 terms below 2 is under 1e-6
    found = kernels.mask_labels(
        torch.from_numpy(grid).float()[None, None],
        torch.ones(1, 1, dtype=torch.uint8),
        (23, 31),
        threshold,
        threshold,
        backend="reference",
    )[0].numpy()
    assert clear.mean() > 0.99
    assert np.array_equal(found[clear], (expected >= threshold).astype(np.uint8)[clear])


@pytest.mark.parametrize("backend", FAST)
@given(data=st.data())
def test_property_against_reference(backend: str, data: st.DataObject) -> None:
    """Odd sizes, enlarging and shrinking, padding, repeated labels, plateaus exactly at a threshold."""
    batch, classes = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
    h, w, height, width = (data.draw(st.integers(1, top)) for top in (17, 17, 75, 75))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    maps = random.integers(0, 256, (batch, classes, h, w)) / 255
    if data.draw(st.booleans()):
        maps = np.where(random.random(maps.shape) < 0.7, 153 / 255, maps)
    labels = random.integers(0, 4, (batch, classes)).astype(np.uint8)
    given_maps, given_labels = torch.from_numpy(maps).float(), torch.from_numpy(labels)
    run = [
        kernels.mask_labels(given_maps, given_labels, (height, width), 0.6, 0.5, backend=name)
        for name in (backend, "reference")
    ]
    assert run[0].shape == (batch, height, width) and run[0].dtype == torch.uint8
    if backend == "cpu" and not same_arithmetic():
        assert (run[0] != run[1]).float().mean().nan_to_num() <= 0.05, "one rounding decides plateaus only"
    else:
        assert torch.equal(run[0], run[1])


def same_arithmetic() -> bool:
    """Whether PyTorch runs its AVX2-or-later code here, which the native kernel reproduces bit by bit."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("size", [(512, 512), (333, 517), (31, 29), (1, 700)])
def test_large_against_reference(backend: str, size: tuple[int, int]) -> None:
    maps = functional.interpolate(torch.rand(2, 5, 6, 6), size=(32, 32), mode="bilinear")
    labels = torch.tensor([[3, 1, 20, 5, 0], [2, 2, 254, 0, 0]], dtype=torch.uint8)
    found = kernels.mask_labels(maps, labels, size, 0.6, 0.5, backend=backend)
    expected = kernels.mask_labels(maps, labels, size, 0.6, 0.5, backend="reference")
    # style: mask ops differ in at most one pixel in a million; exact where the arithmetic is PyTorch's own
    allowed = 0 if backend == "torch" or same_arithmetic() else max(1, int(1e-6 * found.numel()))
    assert int((found != expected).sum()) <= allowed
    assert found.unique().numel() > 2, "the case has labels, uncertain pixels and background"


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_never_read(backend: str) -> None:
    maps = torch.rand(1, 3, 4, 4)
    labels = torch.tensor([[5, 0, 6]], dtype=torch.uint8)
    expected = kernels.mask_labels(maps[:, ::2], labels[:, ::2], (16, 16), 0.6, 0.5, backend=backend)
    maps[:, 1] = float("nan")
    assert torch.equal(kernels.mask_labels(maps, labels, (16, 16), 0.6, 0.5, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_class_at_all_is_background(backend: str) -> None:
    for classes in (0, 2):
        labels = torch.zeros(2, classes, dtype=torch.uint8)
        found = kernels.mask_labels(torch.rand(2, classes, 3, 3), labels, (5, 7), 0.0, -1.0, backend=backend)
        assert found.shape == (2, 5, 7) and not found.any()


@needs_native
def test_threads_and_garbage_memory_change_nothing() -> None:
    maps, labels = torch.rand(3, 4, 16, 16), torch.tensor([[1, 2, 3, 4]] * 3, dtype=torch.uint8)
    first = kernels.mask_labels(maps, labels, (130, 131), 0.6, 0.5, backend="cpu")
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(kernels.mask_labels(maps, labels, (130, 131), 0.6, 0.5, backend="cpu"), first)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_an_error_that_names_the_place(backend: str, bad: float) -> None:
    maps, labels = torch.rand(2, 3, 4, 4), torch.ones(2, 3, dtype=torch.uint8)
    maps[1, 2, 3, 0] = bad
    with pytest.raises(NumericsError, match="GF-NUM-920") as caught:
        kernels.mask_labels(maps, labels, (8, 8), 0.6, 0.5, backend=backend)
    assert "1" in caught.value.message and "2" in caught.value.message


@needs_native
def test_real_annotation_survives_a_round_trip(real_data) -> None:
    """Maps made from a real VOC class mask give that mask back where it was certain."""
    files = sorted(real_data.rglob("SegmentationClass/*.png"))
    if not files:
        pytest.skip(f"no SegmentationClass/*.png under {real_data}")
    truth = np.asarray(Image.open(files[0]))
    names = [value for value in np.unique(truth) if value not in (0, 255)]
    maps = torch.stack([torch.from_numpy((truth == value).astype(np.float32)) for value in names])[None]
    labels = torch.tensor([names], dtype=torch.uint8)
    found = kernels.mask_labels(maps, labels, truth.shape, 0.6, 0.5, backend="cpu")[0].numpy()
    assert np.array_equal(found, np.where(truth == 255, 0, truth))
