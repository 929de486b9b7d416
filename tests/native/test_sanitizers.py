"""The core under AddressSanitizer with UndefinedBehaviorSanitizer and under ThreadSanitizer, with random input.

``fuzz_core`` (csrc/tests/fuzz_core.cpp) checks results itself; here it is built with sanitizers and run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
REPORTS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error", "WARNING: ThreadSanitizer")
OPS = (
    "matching_float",
    "matching_double",
    "mask_labels",
    "propagation",
    "slot_attention",
    "slot_attention_backward",
)
# On a loaded machine with two cores each of these takes 10 to 20 s; thread builds start threads for every call.
SAMPLE = {"address": 2000, "thread": 600}
FULL = 100_000
FULL_SECONDS = 3600

Build = Callable[..., Path]


def missing(kind: str) -> str | None:
    """What this machine lacks to build with the sanitizers, or ``None``."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            return f"needs {tool} to build the core with sanitizers"
    for library in {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}[kind]:
        found = subprocess.run(
            ["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True
        )
        if not Path(found.stdout.strip()).is_absolute():
            return f"needs GCC's {library}"
    return None


@pytest.fixture(scope="module")
def build(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builder of ``fuzz_core``, once per sanitizer; ``planted`` builds add a bug that has to be found."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in SANITIZERS}
    binaries: dict[tuple[str, bool], Path] = {}

    def built(kind: str, planted: bool = False) -> Path:
        if (kind, planted) in binaries:
            return binaries[kind, planted]
        if reason := missing(kind):
            pytest.skip(reason)
        folder = folders[kind]
        options = [
            "-DCMAKE_CXX_COMPILER=g++",
            "-DCMAKE_BUILD_TYPE=None",  # -O1 builds in half the time and keeps the reports readable
            "-DCMAKE_CXX_FLAGS=-O1",
            "-DGLASS_FAST_TORCH=OFF",
            "-DGLASS_FAST_PYTHON=OFF",
            "-DGLASS_FAST_FUZZ=ON",
            f"-DGLASS_FAST_FUZZ_PLANT_BUG={'ON' if planted else 'OFF'}",
            f"-DGLASS_FAST_SANITIZE={SANITIZERS[kind]}",
        ]
        for command in (
            ["cmake", "-S", str(repo_root), "-B", str(folder), *options],
            ["cmake", "--build", str(folder), "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        marker = {"address": b"__asan_report", "thread": b"__tsan_write"}[kind]
        assert marker in (folder / "libglass_core.a").read_bytes(), "the core itself must be instrumented"
        binary = folder / f"fuzz_core_{'planted' if planted else 'clean'}"
        shutil.copy2(folder / "fuzz_core", binary)
        binaries[kind, planted] = binary
        return binary

    return built


def run(binary: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    options = {
        # GCC before 13.2 aligns this check's own stack frames to 32 bytes, too little for AVX-512 (PR 110027).
        "ASAN_OPTIONS": "detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    return subprocess.run(
        [str(binary), *map(str, arguments)],
        env={**os.environ, **options, **environment},
        capture_output=True,
        text=True,
        timeout=FULL_SECONDS,
        check=False,
    )


def check_clean(done: subprocess.CompletedProcess[str], inputs: int) -> dict:
    """No report, no violation, and every op got its share of inputs; the parsed line of counts."""
    assert done.returncode == 0, done.stderr
    assert not any(text in done.stderr for text in REPORTS), done.stderr
    counts = json.loads(done.stdout)
    for op in OPS:
        by_status = {status: n for status, n in counts[op].items() if status != "digest"}
        assert sum(by_status.values()) >= inputs // len(OPS), op
        assert by_status["ok"] > 0 and by_status["bad_shape"] > 0, (
            f"{op} saw one kind of input only: {by_status}"
        )
    return counts


@pytest.mark.parametrize("kind", SANITIZERS)
def test_no_report_on_a_sample(kind: str, build: Build) -> None:
    check_clean(run(build(kind), "--inputs", SAMPLE[kind], "--seed", 1), SAMPLE[kind])


@pytest.mark.slow
@pytest.mark.timeout(2 * FULL_SECONDS)
@pytest.mark.parametrize("kind", SANITIZERS)
def test_no_report_on_100000_inputs(kind: str, build: Build) -> None:
    check_clean(run(build(kind), "--inputs", FULL, "--seed", 2), FULL)


def test_results_do_not_depend_on_fresh_memory_or_on_threads(build: Build) -> None:
    """Reading memory that nobody has written shows when the allocator fills it with two different bytes."""
    first, second = (
        check_clean(
            run(
                build("address"),
                *("--inputs", 600, "--seed", 3, "--threads", threads),
                ASAN_OPTIONS=f"max_malloc_fill_size=268435456:malloc_fill_byte={fill}",
            ),
            600,
        )
        for fill, threads in ((0, 2), (255, 5))
    )
    assert first == second


def test_matching_is_equal_for_every_instruction_set(build: Build) -> None:
    found = {
        cpu: check_clean(run(build("address"), "--inputs", 600, "--seed", 4, GLASS_FAST_CPU=cpu), 600)
        for cpu in ("base", "avx2", "avx512")
    }
    for op in ("matching_float", "matching_double"):
        assert len({counts[op]["digest"] for counts in found.values()}) == 1, op


@pytest.mark.parametrize("kind, report", [("address", REPORTS[0]), ("thread", REPORTS[3])])
def test_a_planted_bug_is_reported(kind: str, report: str, build: Build) -> None:
    """A read of one element too far, and a race between threads of ``parallel_tasks``."""
    done = run(build(kind, planted=True), "--inputs", 20, "--seed", 1, "--op", "matching_float")
    assert done.returncode != 0 and report in done.stderr


def test_a_seed_names_one_input_and_usage_is_an_error(build: Build) -> None:
    fuzz = build("address")
    one = run(fuzz, "--inputs", 1, "--first", 17, "--seed", 9, "--op", "mask_labels")
    assert one.returncode == 0 and run(fuzz, *one.args[1:]).stdout == one.stdout
    for wrong in ((), ("--inputs", 1, "--seed", 1, "--op", "no_such_op"), ("--inputs",)):
        done = run(fuzz, *wrong)
        assert done.returncode == 2 and "usage" in done.stderr
