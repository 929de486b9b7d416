"""Failure to load the native library: the message names both sides and typed errors stay typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glass_fast import native
from glass_fast.errors import DataError, GlassError, NumericsError


def package_without_native(repo_root: Path, folder: Path) -> Path:
    """A copy of the Python package and the op folders, without compiled files."""
    shutil.copytree(
        repo_root / "glass_fast",
        folder / "glass_fast",
        ignore=shutil.ignore_patterns("__pycache__", "*.so", "build_info.json", "weights"),
    )
    for name in ("kernels", "setup.py"):
        source = repo_root / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)
    return folder


def reason(folder: Path) -> str:
    """``native.ops_missing()`` as the package in ``folder`` sees it."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("GLASS_FAST_NATIVE", None)
    code = (
        "import json; from glass_fast import native\n"
        "print(json.dumps([native.__file__, native.ops_missing()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    origin, text = json.loads(done.stdout.strip().splitlines()[-1])
    assert Path(origin).is_relative_to(folder), "the copy must be the one under test"
    return text


def test_reasons_for_a_missing_or_broken_library(repo_root, tmp_path) -> None:
    folder = package_without_native(repo_root, tmp_path)
    assert "was not installed" in reason(folder)

    info = {"native": False, "reason": "a C++20 compiler not found when glass-fast was installed"}
    (folder / "glass_fast" / "build_info.json").write_text(json.dumps(info))
    assert reason(folder) == "not built: a C++20 compiler not found when glass-fast was installed"

    info = {"native": True, "torch": "2.10.0", "python": "3.12.1", "platform": "Linux aarch64"}
    (folder / "glass_fast" / "build_info.json").write_text(json.dumps(info))
    assert "no file" in reason(folder)

    (folder / "glass_fast" / "_ops.so").write_bytes(b"not a library " * 500)
    text = reason(folder)
    assert "could not be loaded" in text and "invalid ELF header" in text
    assert "built for torch 2.10.0, Python 3.12.1 (Linux aarch64)" in text, "what it was built for"
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}" in text.split("found torch")[1]


@pytest.mark.parametrize(
    "text, kind, code",
    [
        ("x\n[GF-NUM-920] a value is NaN (op matching, batch 1)\nframe", NumericsError, "GF-NUM-920"),
        ("[GF-DATA-921] a label is 255", DataError, "GF-DATA-921"),
    ],
)
def test_native_failures_become_typed_errors(text: str, kind: type[GlassError], code: str) -> None:
    error = native.typed(RuntimeError(text))
    assert type(error) is kind and error.code == code
    assert "frame" not in error.message


def test_other_failures_stay_themselves() -> None:
    error = RuntimeError("expected a tensor on the CPU")
    assert native.typed(error) is error
