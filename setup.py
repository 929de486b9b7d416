"""Builds the native parts by calling CMake and maps ``kernels/<op>`` to ``glass_fast.kernels.<op>``.

``GLASS_FAST_BUILD`` says what is built:

* ``auto`` (default): the CPU library if a C++ compiler and CMake are found; a missing tool or a failing build
  is reported and the install goes on in pure Python, where every op runs on its reference or torch backend;
* ``cpu``: the CPU library, and a failure fails the install;
* ``cuda``: the CPU library and the CUDA kernels, and a failure fails the install;
* ``off``: pure Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "off")


def say(text: str) -> None:
    print(f"glass-fast: {text}", file=sys.stderr, flush=True)


def compiler() -> str | None:
    named = os.environ.get("CXX", "").split()
    return next(
        (found for name in [*named[:1], "c++", "g++", "clang++"] if (found := shutil.which(name))), None
    )


def plan() -> tuple[str, str]:
    """Mode to build in (``cpu``, ``cuda`` or ``off``) and, for ``off``, the reason."""
    asked = os.environ.get("GLASS_FAST_BUILD") or "auto"
    if asked not in MODES:
        sys.exit(f"glass-fast: GLASS_FAST_BUILD is {asked!r}; expected one of {', '.join(MODES)}")
    if asked == "off":
        return "off", "GLASS_FAST_BUILD=off"
    if asked == "cuda" and not list((ROOT / "csrc" / "cuda").glob("*.cu")):
        sys.exit(
            "glass-fast: GLASS_FAST_BUILD=cuda, but no CUDA kernels exist yet (no csrc/cuda/*.cu). "
            "Use GLASS_FAST_BUILD=cpu; on a GPU the torch backends run."
        )
    missing = [
        name
        for name, found in (("a C++20 compiler", compiler()), ("CMake", shutil.which("cmake")))
        if not found
    ]
    if missing:
        reason = f"{' and '.join(missing)} not found when glass-fast was installed"
        if asked != "auto":
            sys.exit(f"glass-fast: GLASS_FAST_BUILD={asked}, but {reason}; install it and try again")
        say(
            f"{reason}: installing without the native library;"
            " every op runs on its reference or torch backend"
        )
        return "off", reason
    return ("cpu" if asked == "auto" else asked), ""


MODE, OFF_REASON = plan()
MAY_FAIL = (os.environ.get("GLASS_FAST_BUILD") or "auto") == "auto"


def commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def write_pure_info(folder: Path, reason: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = {"native": False, "mode": "off", "reason": reason, "commit": commit()}
    (folder / "build_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def remove_native(folder: Path) -> None:
    """Drops libraries of an earlier in-place build, so that an install without them is what it says."""
    for old in [*folder.glob("_core*.so"), *folder.glob("_ops*.so")]:
        old.unlink()


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if MODE == "off":
            editable = bool(getattr(self, "editable_mode", False))
            folder = ROOT / "glass_fast" if editable else Path(self.build_lib) / "glass_fast"
            remove_native(folder)
            write_pure_info(folder, OFF_REASON)


class CMakeBuild(build_ext):
    """Runs CMake; every file that ``cmake --install`` writes goes into the package."""

    def run(self) -> None:
        target = Path(self.build_lib).resolve() / "glass_fast"
        try:
            self._cmake(target)
        except (OSError, subprocess.CalledProcessError) as error:
            if not MAY_FAIL:
                raise SystemExit(f"glass-fast: the native build failed: {error}") from error
            say(f"the native build failed ({error}); see the compiler's output above")
            say(
                "installing without it: every op runs on its reference or torch backend"
                " (GLASS_FAST_BUILD=cpu insists)"
            )
            remove_native(target)
            write_pure_info(target, f"the native build failed when glass-fast was installed: {error}")
        if self.inplace or getattr(self, "editable_mode", False):
            source = ROOT / "glass_fast"
            remove_native(source)
            for built in self._built(target):
                # Replaced, not overwritten: a running process may have the old library mapped.
                fresh = source / f".{built.name}.new"
                shutil.copy2(built, fresh)
                fresh.replace(source / built.name)

    def _cmake(self, target: Path) -> None:
        # CMake's cache remembers compiler and torch; an isolated build brings another torch each time.
        torch = find_spec("torch")
        stamp = hashlib.sha256(
            f"{sys.executable}|{torch.origin if torch else ''}|{compiler()}".encode()
        ).hexdigest()[:12]
        build = Path(self.build_temp).resolve() / f"cmake-{stamp}"
        build.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DGLASS_FAST_BUILD_MODE={MODE}",
            f"-DGLASS_FAST_COMMIT={commit()}",
        ]
        if ninja := self._ninja():
            arguments += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *arguments], check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(min(8, os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        remove_native(target)
        subprocess.run(["cmake", "--install", str(build)], check=True)

    @staticmethod
    def _ninja() -> str | None:
        if found := shutil.which("ninja"):
            return found
        try:
            import ninja
        except ImportError:
            return None
        candidate = Path(ninja.BIN_DIR) / "ninja"
        return str(candidate) if candidate.exists() else None

    @staticmethod
    def _built(folder: Path) -> list[Path]:
        return [*folder.glob("_core*.so"), *folder.glob("_ops*.so"), folder / "build_info.json"]

    def get_outputs(self) -> list[str]:
        return [str(path) for path in self._built(Path(self.build_lib) / "glass_fast")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()]


OPS = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/api.py"))

setup(
    packages=[
        *find_packages(include=["glass_fast", "glass_fast.*"]),
        *(f"glass_fast.kernels.{op}" for op in OPS),
    ],
    package_dir={f"glass_fast.kernels.{op}": f"kernels/{op}" for op in OPS},
    package_data={
        "glass_fast": [
            "py.typed",
            *(
                f"**/*.{suffix}"
                for suffix in ("yaml", "json", "txt", "j2", "html", "css", "js", "md", "safetensors")
            ),
            "partworld/weights/**",
        ]
    },
    include_package_data=False,
    ext_modules=[] if MODE == "off" else [Extension("glass_fast._core", sources=[])],
    cmdclass={"build_py": BuildPy, "build_ext": CMakeBuild},
)
