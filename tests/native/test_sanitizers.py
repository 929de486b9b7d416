"""The core under AddressSanitizer and UndefinedBehaviorSanitizer, driven through numpy with random shapes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import _core
random = np.random.default_rng(0)
for case in range(200):
    batch, slots, segments = random.integers(0, 4), random.integers(0, 20), random.integers(0, 20)
    cost = random.random((batch, slots, segments)).astype([np.float32, np.float64][case % 2])
    counts = random.integers(0, segments + 1, batch) if case % 3 else None
    _core.matching(cost, counts, threads=1 + case % 2)
    classes, sides = random.integers(0, 5), random.integers(1, 40, 4)
    maps = random.random((batch, classes, *sides[:2])).astype(np.float32)
    labels = random.integers(0, 6, (batch, classes)).astype(np.uint8)
    _core.mask_labels(maps, labels, *map(int, sides[2:]), 0.6, 0.5, threads=1 + case % 2)
print("finished")
"""


@pytest.mark.slow
def test_no_report_from_address_or_undefined_behaviour_sanitizer(repo_root, tmp_path) -> None:
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("needs cmake and g++ to build the core with sanitizers")
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    library = Path(runtime.stdout.strip())
    if not library.is_absolute():
        pytest.skip("needs GCC's libasan.so")
    build = tmp_path / "build"
    arguments = [
        "-DGLASS_FAST_TORCH=OFF",
        "-DGLASS_FAST_SANITIZE=address,undefined",
        "-DCMAKE_CXX_COMPILER=g++",
    ]
    for command in (
        [
            "cmake",
            "-S",
            str(repo_root),
            "-B",
            str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            *arguments,
        ],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (module,) = build.glob("_core*.so")
    assert b"__asan_report" in module.read_bytes() and b"__ubsan_handle" in module.read_bytes()
    # Python itself leaks by design; everything else is on and ends the process.
    options = {
        "LD_PRELOAD": str(library.resolve()),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(build)],
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.strip() == "finished", done.stdout + done.stderr
    assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr
