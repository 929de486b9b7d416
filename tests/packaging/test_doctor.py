"""``glass-fast doctor``: complete, honest about what is missing, and never brought down by what it reports on."""

from __future__ import annotations

import json
import tomllib

import pytest
from packaging.requirements import Requirement

from glass_fast import doctor, kernels


@pytest.fixture(scope="module")
def report() -> dict:
    return doctor.collect()


def test_it_is_plain_data_and_renders(report) -> None:
    assert json.loads(json.dumps(report)) == report
    text = doctor.render(report)
    for op in kernels.ops():
        assert f"\n  {op}: " in text
    assert "torchvision: " in text and "native library" in text and "GPU" in text


def test_every_declared_package_is_listed(report, repo_root) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {Requirement(text).name for text in project["dependencies"]}
    assert required <= set(report["packages"])
    for name in required:
        entry = report["packages"][name]
        assert entry["installed"] and entry["extra"] == "" and entry["note"] == "", f"{name}: {entry}"
    for extra in ("onnx", "tensorrt", "ray", "eval"):
        assert extra in {entry["extra"] for entry in report["packages"].values()}
    for entry in report["packages"].values():
        if entry["installed"] is None:
            assert entry["note"] == f"install glass-fast[{entry['extra']}]"


def test_every_backend_has_a_reason_and_one_is_chosen(report) -> None:
    assert set(report["ops"]) == set(kernels.ops())
    for op, entry in report["ops"].items():
        assert "error" not in entry, f"{op}: {entry}"
        names = [backend["name"] for backend in entry["backends"]]
        assert entry["chosen"]["cpu"] in names
        assert all(backend["reason"] for backend in entry["backends"])


def test_a_version_outside_the_tested_range_is_marked(monkeypatch) -> None:
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["torch>=99", 'numpy; extra == "onnx"', "no-such-package-x"]
    )
    found = doctor._packages()
    assert found["torch"]["note"] == "outside the tested range"
    assert found["numpy"]["extra"] == "onnx" and found["numpy"]["note"] == ""
    assert found["no-such-package-x"] == {
        "installed": None,
        "range": "",
        "extra": "",
        "note": "missing: required",
    }


def test_a_broken_op_does_not_hide_the_others(monkeypatch) -> None:
    real = kernels.backends

    def backends(op: str) -> list:
        if op == "matching":
            raise ImportError("no module named x")
        return real(op)

    monkeypatch.setattr(kernels, "backends", backends)
    report = doctor.collect()
    assert report["ops"]["matching"]["error"] == "ImportError: no module named x"
    assert report["ops"]["attention_capture"]["chosen"]["cpu"] == "torch"
    assert "matching: broken: ImportError: no module named x" in doctor.render(report)


def test_without_a_gpu_it_says_why(report) -> None:
    if report["gpu"]["available"]:
        assert report["gpu"]["devices"] and "GiB" in doctor.render(report)
    else:
        assert report["gpu"]["reason"] in doctor.render(report)
