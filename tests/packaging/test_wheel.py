"""What an install contains: wheel, source archive, the modes of ``GLASS_FAST_BUILD`` and their failures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from glass_fast import kernels


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A clean copy of the files that git knows or would add: what a fresh clone holds, without builds."""
    root = Path(__file__).resolve().parents[2]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    folder = tmp_path_factory.mktemp("clone")
    for name in filter(None, listed):
        if (root / name).is_file() and not name.startswith(("tests/", "benchmarks/results")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PIP_NO_INDEX": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def build_wheel(source: Path, out: Path, **environment: str) -> tuple[Path, str]:
    done = run(
        *(
            "-m",
            "pip",
            "wheel",
            "-v",
            "--no-build-isolation",
            "--no-deps",
            "--wheel-dir",
            str(out),
            str(source),
        ),
        cwd=out,
        **environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def pure_wheel(source, tmp_path_factory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"), GLASS_FAST_BUILD="off")[0]


def test_wheel_holds_the_package_and_nothing_else(pure_wheel, source) -> None:
    names = zipfile.ZipFile(pure_wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"glass_fast"}
    assert "glass_fast/py.typed" in names
    for op in kernels.ops():
        for part in ("__init__.py", "api.py", "reference.py"):
            assert f"glass_fast/kernels/{op}/{part}" in names
    for path in (source / "glass_fast").rglob("*.py"):
        assert str(path.relative_to(source)) in names, "every module of the checkout is in the wheel"
    for path in (source / "glass_fast").rglob("*"):
        if path.suffix in (".yaml", ".j2", ".safetensors") and not path.name.startswith("."):
            assert str(path.relative_to(source)) in names, "package data is in the wheel"
    assert not [
        name for name in names if "test" in Path(name).name.split("_") or name.endswith((".cpp", ".so"))
    ]
    assert pure_wheel.name.endswith("py3-none-any.whl"), "a pure install says so in its tag"
    text = zipfile.ZipFile(pure_wheel)
    info = json.loads(text.read("glass_fast/build_info.json"))
    assert info["native"] is False and info["reason"] == "GLASS_FAST_BUILD=off"
    (metadata,) = [name for name in names if name.endswith("METADATA")]
    assert "License-Expression: Apache-2.0" in text.read(metadata).decode()


def test_pure_wheel_runs_every_native_op_on_another_backend(pure_wheel, tmp_path) -> None:
    """Installed without a compiler, outside the checkout: the ops work and say why they are not native."""
    done = run(
        "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), str(pure_wheel), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    code = (
        "import json, torch, glass_fast\n"
        "from glass_fast import kernels\n"
        "match = kernels.matching(torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])).tolist()\n"
        "labels = torch.tensor([[3]], dtype=torch.uint8)\n"
        "mask = kernels.mask_labels(torch.ones(1, 1, 2, 2), labels, (2, 2), .6, .5).tolist()\n"
        "reason = kernels.backends('matching')[0].reason\n"
        "found = [glass_fast.__file__, match, mask, kernels.choices(), list(kernels.ops()), reason]\n"
        "print(json.dumps(found))\n"
    )
    # -I keeps the checkout and PYTHONPATH out; the site folder comes first by hand.
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    done = run("-I", "-c", start + code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    origin, match, mask, choices, ops, reason = json.loads(done.stdout)
    assert Path(origin).is_relative_to(tmp_path)
    assert match == [[1, 0]] and mask == [[[3, 3], [3, 3]]]
    assert choices == {"matching:cpu": "reference", "mask_labels:cpu": "torch"}
    assert ops == list(kernels.ops())
    assert reason == "not built: GLASS_FAST_BUILD=off"


def test_source_archive_can_be_built_from(source, tmp_path) -> None:
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    done = run("-c", code, cwd=source, GLASS_FAST_BUILD="off")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    native = [str(path.relative_to(source)) for path in (source / "csrc").rglob("*") if path.is_file()]
    assert len(native) > 8 and set(native) <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE"} <= names
    assert {f"kernels/{op}/api.py" for op in kernels.ops()} <= names


def test_modes_that_cannot_be_served(source) -> None:
    done = run("setup.py", "--version", cwd=source, GLASS_FAST_BUILD="fast")
    assert done.returncode != 0 and "expected one of auto, cpu, cuda, off" in done.stderr
    if not list((source / "csrc").glob("cuda/*.cu")):
        done = run("setup.py", "--version", cwd=source, GLASS_FAST_BUILD="cuda")
        assert done.returncode != 0 and "no CUDA kernels exist yet" in done.stderr


def test_without_a_compiler(source, tmp_path) -> None:
    """auto installs pure Python and says so; cpu refuses."""
    for tool in ("git", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    bare = {"PATH": str(tmp_path), "CXX": ""}
    done = run("setup.py", "--version", cwd=source, GLASS_FAST_BUILD="auto", **bare)
    assert done.returncode == 0, done.stderr
    assert (
        "a C++20 compiler and CMake not found" in done.stderr and "without the native library" in done.stderr
    )
    done = run("setup.py", "--version", cwd=source, GLASS_FAST_BUILD="cpu", **bare)
    assert done.returncode != 0 and "GLASS_FAST_BUILD=cpu, but a C++20 compiler and CMake" in done.stderr


def test_a_failing_build(source, tmp_path) -> None:
    """auto goes on with the reason on record; cpu fails."""
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    wheel, text = build_wheel(source, out, GLASS_FAST_BUILD="auto", CXX=str(broken))
    assert "the native build failed" in text and "installing without it" in text
    info = json.loads(zipfile.ZipFile(wheel).read("glass_fast/build_info.json"))
    assert info["native"] is False and "native build failed" in info["reason"]
    done = run(
        *("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(out), str(source)),
        cwd=out,
        GLASS_FAST_BUILD="cpu",
        CXX=str(broken),
    )
    assert done.returncode != 0 and "the native build failed" in done.stdout + done.stderr


@pytest.mark.slow
def test_native_wheel_works_outside_the_checkout(source, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    wheel, _ = build_wheel(source, out, GLASS_FAST_BUILD="cpu", CMAKE_BUILD_PARALLEL_LEVEL="1")
    names = zipfile.ZipFile(wheel).namelist()
    assert "glass_fast/_ops.so" in names and any(name.startswith("glass_fast/_core.") for name in names)
    assert "none-any" not in wheel.name
    done = run(
        "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import torch\nfrom glass_fast import kernels, native\n"
        "kernels.matching(torch.rand(2, 3, 3)); print(kernels.choices(), native.core_or_reason().__file__)\n"
    )
    done = run("-I", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'matching:cpu': 'cpu'" in done.stdout and str(tmp_path / "site") in done.stdout
