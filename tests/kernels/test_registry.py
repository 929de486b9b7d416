"""The op registry: discovery, choice with reasons, identity, operation without the native library."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from glass_fast import kernels
from glass_fast.errors import ConfigError, EnvironmentProblem


def test_every_op_folder_is_found_and_complete(repo_root) -> None:
    folders = {entry.name for entry in (repo_root / "kernels").iterdir() if (entry / "__init__.py").exists()}
    assert set(kernels.ops()) == folders
    for op in kernels.ops():
        module = importlib.import_module(f"glass_fast.kernels.{op}")
        names = [backend.name for backend in module.BACKENDS]
        assert "reference" in names, f"{op} has no reference, which defines its meaning"
        assert len(set(names)) == len(names)
        assert (repo_root / "kernels" / op / "README.md").exists(), f"{op} has no README"
        for backend in module.BACKENDS:
            assert backend.why, f"{op}: backend {backend.name} does not say when it is preferred"
            if backend.probe() is None:
                assert callable(backend.load())


def test_attribute_is_the_function_in_whatever_order_it_is_reached() -> None:
    """A sub-package import binds the module to the parent; the registry keeps the function there."""
    code = (
        "import {first}\n"
        "from glass_fast import kernels\n"
        "from glass_fast.kernels.matching import reference, matching\n"
        "assert kernels.matching is matching and callable(matching), kernels.matching\n"
        "assert reference.__name__ == 'glass_fast.kernels.matching.reference'\n"
    )
    for first in (
        "glass_fast.kernels",
        "glass_fast.kernels.matching",
        "glass_fast.kernels.matching.reference",
    ):
        subprocess.run([sys.executable, "-c", code.format(first=first)], check=True, timeout=120)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="matching"):
        kernels.no_such_op
    with pytest.raises(ConfigError, match="no_such_op"):
        kernels.choose("no_such_op", "cpu")
    with pytest.raises(ConfigError, match=r"cuda_graphs.*reference"):
        kernels.choose("matching", "cpu", "cuda_graphs")


def test_refusal_lists_every_candidate_with_its_reason(fresh_backends) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        kernels.choose("mask_labels", "cuda", "cpu")
    message = str(caught.value)
    assert "cpu: serves cpu only" in message
    assert "torch: could run, but 'cpu' was requested" in message and "reference:" in message
    assert "doctor" in message


def test_choice_is_recorded_and_logged(fresh_backends, caplog) -> None:
    with caplog.at_level("INFO", logger="glass_fast.kernels"):
        assert kernels.choose("attention_capture", torch.device("cpu")) == "torch"
    assert kernels.choices() == {"attention_capture:cpu": "torch"}
    assert "attention_capture" in caplog.text and "torch" in caplog.text
    assert kernels.choose("propagation", "cuda:1") == "torch"
    assert kernels.choices()["propagation:cuda"] == "torch"
    assert kernels.choose("propagation", "cpu", dtype=torch.float64) == "torch"
    assert kernels.choices()["propagation:cpu:float64"] == "torch"


def test_environment_variable_overrides(fresh_backends, monkeypatch) -> None:
    monkeypatch.setenv("GLASS_FAST_BACKENDS", "propagation=reference, mask_labels=torch")
    assert kernels.choose("propagation", "cpu") == "reference"
    assert kernels.choose("mask_labels", "cpu") == "torch"
    assert kernels.choose("propagation", "cpu", "torch") == "torch", (
        "an argument is more specific than the variable"
    )
    monkeypatch.setenv("GLASS_FAST_BACKENDS", "propagaton=torch")
    with pytest.raises(ConfigError, match="propagaton"):
        kernels.choose("propagation", "cpu")


def test_without_the_native_library_everything_runs_and_says_so() -> None:
    """GLASS_FAST_NATIVE=off stands for an install without a compiler."""
    code = (
        "import json, torch\n"
        "from glass_fast import doctor, kernels, native\n"
        "m = kernels.matching(torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]))\n"
        "labels = torch.tensor([[3]], dtype=torch.uint8)\n"
        "l = kernels.mask_labels(torch.ones(1, 1, 2, 2), labels, (4, 4), .6, .5)\n"
        "states = {s.name: s.reason for s in kernels.backends('mask_labels')}\n"
        "text = doctor.render(doctor.collect())\n"
        "print(json.dumps([m.tolist(), l.unique().tolist(), kernels.choices(), states, text]))\n"
    )
    environment = {**os.environ, "GLASS_FAST_NATIVE": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=300
    )
    match, labels, choices, states, text = json.loads(done.stdout)
    assert match == [[1, 0]] and labels == [3]
    assert choices["matching:cpu"] == "reference" and choices["mask_labels:cpu"] == "torch"
    assert states["cpu"] == "switched off by GLASS_FAST_NATIVE=off"
    assert "x cpu (cpu): cannot run: switched off by GLASS_FAST_NATIVE=off" in text


def test_requesting_the_native_backend_without_it_fails_with_the_reason() -> None:
    code = (
        "import torch; from glass_fast import kernels; kernels.matching(torch.rand(1, 2, 2), backend='cpu')"
    )
    environment = {**os.environ, "GLASS_FAST_NATIVE": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "GF-ENV-920" in done.stderr and "GLASS_FAST_NATIVE=off" in done.stderr
