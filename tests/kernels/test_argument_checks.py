"""Calls with arguments that nobody planned: an error that names them, or a result of the documented shape.

Each op starts from a correct call; the property-based test changes one tensor or number of it at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_fast.errors import ConfigError, DataError, GlassError
from glass_fast.kernels.spec import OpSpec
from tests.kernels import spec_checks as checks

SPECS = {spec.name: spec for spec in checks.specs()}
each_op = pytest.mark.parametrize("name", sorted(SPECS))


def shapes(name: str, given: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the outputs as the docstrings say."""
    if name == "slot_attention":
        (batch, tokens, _), (_, count, width) = given["inputs"].shape, given["slots"].shape
        return [(batch, count, width), (batch, count, tokens)]
    if name == "mlp_decoder":
        batch, count, _ = given["slots"].shape
        patches, features = len(given["positions"]), len(given["layers"][-1][0]) - 1
        return [(batch, patches, features), (batch, count, patches)]
    if name == "matching":
        return [(given["cost"].shape[0], given["cost"].shape[2])]
    if name == "mask_labels":
        return [(len(given["maps"]), *given["size"])]
    if name == "propagation":
        return [tuple(given["class_maps"].shape)]
    batch, _, queries, _ = given["query"].shape
    return [(batch, queries, given["columns"].shape[2] if name == "cross_capture" else given["key"].shape[2])]


def correct(name: str) -> dict[str, Any]:
    """Arguments of the first case, with every optional tensor."""
    spec = SPECS[name]
    arguments = spec.make(spec.tests[0], torch.float32, "cpu", 0)
    if name in ("slot_attention", "mlp_decoder"):
        arguments["active"] = torch.ones(arguments["slots"].shape[:2], dtype=torch.bool)
    elif name == "matching":
        arguments["counts"] = torch.tensor([7, 0, 3, 5])
    elif name.endswith("capture"):
        arguments["out"] = torch.zeros(shapes(name, arguments)[0])
    return arguments


def change_one(arguments: dict[str, Any], path: str, change: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """The arguments with one tensor changed."""
    return checks.map_tensors(lambda at, tensor: change(tensor) if at == path else tensor, arguments)


def call(name: str, arguments: dict[str, Any], backend: str | None = None) -> tuple[torch.Tensor, ...]:
    return checks.run(SPECS[name], arguments, backend)


PATHS = [(name, path) for name in sorted(SPECS) for path in checks.tensors_of(correct(name))]
each_tensor = pytest.mark.parametrize(("name", "path"), PATHS, ids=[f"{n}-{p}" for n, p in PATHS])


def said(error: GlassError, name: str) -> str:
    """The message, after a look at its form: it names the op."""
    assert isinstance(error, ConfigError | DataError), "an argument, not the machine or the numbers"
    assert error.code in (SPECS[name].function.__doc__ or "")
    op = SPECS[name].op
    assert error.message.startswith(f"{op}: ") or f"(op {op}, " in error.message
    return error.message


@each_op
def test_the_call_that_is_changed_is_correct(name: str) -> None:
    arguments = correct(name)
    assert [tuple(output.shape) for output in call(name, arguments)] == shapes(name, arguments)


@each_tensor
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int32, torch.complex64, torch.bool, torch.float16], ids=str
)
def test_other_dtype(name: str, path: str, dtype: torch.dtype) -> None:
    """Either the op takes the type, and says so in its docstring, or the message names it."""
    arguments = change_one(correct(name), path, lambda tensor: tensor.to(dtype))
    if checks.tensors_of(correct(name))[path].dtype == dtype:
        return
    # types that an op converts: any float of a lone input, any integer of counts, any real weight of columns
    converts = {
        "matching-cost": (torch.float64, torch.float16), "matching-counts": (torch.int32,),
        "mask_labels-maps": (torch.float64, torch.float16),
        "propagation-self_map": (torch.float64, torch.float16),
        "propagation-class_maps": (torch.float64, torch.float16),
        "cross_capture-columns": (torch.float64, torch.float16, torch.int32, torch.bool),
    }  # fmt: skip
    if dtype in converts.get(f"{name}-{path}", ()):
        assert [tuple(output.shape) for output in call(name, arguments)] == shapes(name, correct(name))
        return
    with pytest.raises(GlassError) as caught:
        call(name, arguments)
    assert str(dtype) in said(caught.value, name)


@each_tensor
@pytest.mark.parametrize("rank", ["scalar", "less", "more"])
def test_other_rank(name: str, path: str, rank: str) -> None:
    change = {"scalar": lambda t: t.new_zeros(()), "less": lambda t: t[0], "more": lambda t: t[None]}[rank]
    arguments = change_one(correct(name), path, change)
    with pytest.raises(GlassError) as caught:
        call(name, arguments)
    shape = tuple(checks.tensors_of(arguments)[path].shape)
    assert str(shape) in said(caught.value, name)


@each_tensor
def test_other_device(name: str, path: str) -> None:
    """One tensor on ``meta`` stands for one forgotten on another device."""
    with pytest.raises(GlassError) as caught:
        call(name, change_one(correct(name), path, lambda tensor: tensor.to("meta")))
    assert "meta" in caught.value.message
    documented = SPECS[name].function.__doc__ or ""
    assert caught.value.code in documented + "GF-ENV-920", "wrong argument, or no backend for the device"


@each_op
def test_a_device_that_no_backend_serves(name: str) -> None:
    """Dispatch lists every backend with its reason."""
    arguments = checks.map_tensors(lambda _, tensor: tensor.to("meta"), correct(name))
    with pytest.raises(GlassError) as caught:
        call(name, arguments)
    if caught.value.code == "GF-ENV-920":
        assert all(
            f"{backend}: serves" in caught.value.message for backend in checks.backends(SPECS[name].op)
        )
    else:
        assert "meta" in said(caught.value, name)


@each_tensor
@given(data=st.data())
@settings(max_examples=12)
def test_other_sizes(name: str, path: str, data: st.DataObject) -> None:
    """One dimension of one tensor shrinks (to nothing) or grows: an error about shapes, or a documented result."""
    arguments = correct(name)
    tensor = checks.tensors_of(arguments)[path]
    dimension = data.draw(st.integers(0, tensor.ndim - 1))
    size = data.draw(st.integers(0, 70))
    index = torch.arange(size) % tensor.shape[dimension]
    arguments = change_one(arguments, path, lambda t: t.index_select(dimension, index))
    backend = data.draw(st.sampled_from(checks.backends(SPECS[name].op)))
    try:
        found = call(name, arguments, backend)
    except GlassError as error:
        message = said(error, name)
        assert any(words in message for words in ("expected", "does not divide", "input is", "lies outside"))
    else:
        assert [tuple(output.shape) for output in found] == shapes(name, arguments)


@each_tensor
@given(data=st.data())
@settings(max_examples=12)
def test_values_that_are_no_numbers(name: str, path: str, data: st.DataObject) -> None:
    """NaN and infinities anywhere: a numerics error that says so, or a result of the documented shape."""
    arguments = correct(name)
    tensor = checks.tensors_of(arguments)[path]
    if not tensor.is_floating_point():
        return
    value = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    places = data.draw(st.lists(st.integers(0, tensor.numel() - 1), min_size=1, max_size=5))

    def spoil(t: torch.Tensor) -> torch.Tensor:
        t = t.clone()
        t.view(-1)[places] = value
        return t

    backend = data.draw(st.sampled_from(checks.backends(SPECS[name].op)))
    try:
        found = call(name, change_one(arguments, path, spoil), backend)
    except GlassError as error:
        assert error.code == "GF-NUM-920" and "finite" in error.message
    else:
        assert [tuple(output.shape) for output in found] == shapes(name, arguments)


NUMBERS = [
    ("slot_attention", "iterations"), ("slot_attention", "heads"), ("slot_attention", "epsilon"),
    ("cross_capture", "weight"), ("cross_capture", "scale"), ("self_capture", "weight"),
    ("self_capture", "scale"), ("mask_labels", "threshold"), ("mask_labels", "uncertain_threshold"),
    ("propagation", "tau"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "number"), NUMBERS)
@given(data=st.data())
@settings(max_examples=25)
def test_numbers(name: str, number: str, data: st.DataObject) -> None:
    """Whole ones from below to above what makes sense; the others NaN, infinite or huge too."""
    whole = number in ("iterations", "heads", "tau")
    value = data.draw(st.integers(-3, 20) if whole else st.floats())
    arguments = correct(name) | {number: value}
    try:
        found = call(name, arguments)
    except GlassError as error:
        assert str(value) in said(error, name)
        assert "expected" in error.message or "does not divide" in error.message
    else:
        assert [tuple(output.shape) for output in found] == shapes(name, arguments)
        assert value > 0 or number not in ("iterations", "heads")


@given(size=st.lists(st.integers(-2, 40), max_size=3))
def test_sizes_of_label_images(size: list[int]) -> None:
    arguments = correct("mask_labels") | {"size": tuple(size)}
    if len(size) == 2 and min(size) >= 1:
        assert call("mask_labels", arguments)[0].shape == (2, *size)
        return
    with pytest.raises(DataError, match="GF-DATA-922"):
        call("mask_labels", arguments)


@given(counts=st.lists(st.integers(-(2**40), 2**40) | st.sampled_from([0, 7]), min_size=3, max_size=5))
def test_counts_of_segments(counts: list[int]) -> None:
    arguments: dict[str, Any] = correct("matching") | {"counts": counts}
    spec: OpSpec = SPECS["matching"]
    if len(counts) == 4 and all(0 <= count <= 7 for count in counts):
        (found,) = call("matching", arguments)
        assert (found >= 0).sum().item() == sum(counts), "seven slots: every valid segment gets one"
        return
    for backend in checks.backends(spec.op):
        with pytest.raises(DataError, match=r"GF-DATA-92[02]"):
            call("matching", arguments, backend)
