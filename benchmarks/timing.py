"""Interleaved timing: every round times each provider once, so that drifts of the machine hit all of them alike.

A provider's sample is the mean of a fixed number of calls that together last at least :data:`AT_LEAST`. Ratios are
paired: they compare samples of the same round. All percentiles are over rounds.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

AT_LEAST = 2e-3
"""Seconds that a sample lasts at least: a hundred times the resolution and call cost of the clocks."""
ROUNDS = 20
_FLUSH_BYTES = 256 * 2**20
_COPY_BYTES = 256 * 2**20
_FORK_SECONDS = 30.0


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: on the wall clock (GPU: between events) and of CPU time."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Spread:
    """Percentiles 20, 50 and 80."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Percentiles of at least one value, linear between neighbours."""
        return cls(*(_percentile(values, share) for share in (0.2, 0.5, 0.8)))


def _percentile(values: Sequence[float], share: float) -> float:
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class Clock(Protocol):
    """Times calls."""

    def sample(self, call: Callable[[], Any], repeats: int) -> Sample:
        """Mean seconds of ``repeats`` calls one after the other."""


class HostClock:
    """Times calls that are finished when they return.

    Args:
        threads: 1 counts the CPU time of the calling thread, so that a helper thread of a library does not; more
            count the CPU time of the process.
        wall: seconds.
        cpu: seconds; default: by ``threads``.
    """

    def __init__(
        self,
        threads: int = 1,
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] | None = None,
    ) -> None:
        self.wall = wall
        self.cpu = cpu or (time.thread_time if threads == 1 else time.process_time)

    def sample(self, call: Callable[[], Any], repeats: int) -> Sample:
        """See :class:`Clock`."""
        cpu, wall = self.cpu(), self.wall()
        for _ in range(repeats):
            call()
        wall, cpu = self.wall() - wall, self.cpu() - cpu
        return Sample(wall / repeats, cpu / repeats)


class CudaClock:
    """Times GPU work between events; the L2 cache is overwritten before every call."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def sample(self, call: Callable[[], Any], repeats: int) -> Sample:
        """See :class:`Clock`; the CPU time includes the launch of the flush."""
        pairs = []
        self.torch.cuda.synchronize()
        cpu = time.process_time()
        for _ in range(repeats):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        self.torch.cuda.synchronize()
        cpu = time.process_time() - cpu
        return Sample(sum(b.elapsed_time(e) for b, e in pairs) / 1e3 / repeats, cpu / repeats)


def make_clock(device: str, threads: int) -> Clock:
    """The clock of a device type."""
    return CudaClock() if device == "cuda" else HostClock(threads)


def repeats_for(call: Callable[[], Any], clock: Clock, at_least: float = AT_LEAST) -> int:
    """Warm up, then how many calls a sample needs to last ``at_least`` seconds."""
    clock.sample(call, 1)  # compiles, loads, fills caches
    fastest = clock.sample(call, 1).wall
    if fastest < 1.0:
        fastest = min(fastest, *(clock.sample(call, 1).wall for _ in range(3)))
    return max(1, math.ceil(at_least / max(fastest, 1e-9)))


def interleave(samplers: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Samples of every provider; the order is rotated by one each round.

    Args:
        samplers: takes one sample of a provider, by name.
        rounds: samples of each.
    """
    names = list(samplers)
    found: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names) if names else 0
        for name in names[turn:] + names[:turn]:
            found[name].append(samplers[name]())
    return found


def ratios(
    baseline: Sequence[Sample], provider: Sequence[Sample], which: Literal["wall", "cpu"] = "wall"
) -> Spread:
    """How many times faster the provider is: baseline over provider, round by round."""
    pairs = zip(baseline, provider, strict=True)
    return Spread.of([getattr(b, which) / max(getattr(p, which), 1e-12) for b, p in pairs])


def peak_memory(call: Callable[[], Any], device: str) -> tuple[int | None, str]:
    """Most memory in use during a call beyond what was in use before, and how it was measured.

    CUDA: torch's allocator. Linux: growth of the resident set of a forked process on one thread, in which the heap
    gives every freed block of 64 KiB or more back at once. So scratch memory that native code allocates by itself
    counts, to the page, and blocks that are kept for later do not. Elsewhere, and when the fork fails: None.
    """
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, "torch CUDA allocator"
    if not hasattr(os, "fork") or not Path("/proc/self/clear_refs").exists():
        return None, ""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, str(_resident_peak(call)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], _FORK_SECONDS)
    text = os.read(reader, 32) if ready else b""
    os.close(reader)
    if not text:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return (int(text), "resident set, 1 thread") if text else (None, "")


def _resident_peak(call: Callable[[], Any]) -> int:
    """In a process of its own: the growth of resident memory during a call."""
    import torch

    torch.set_num_threads(1)  # threads of a pool do not survive a fork
    heap = ctypes.CDLL(None)
    heap.mallopt(-3, 65536)  # M_MMAP_THRESHOLD
    call()  # what a first call keeps for later ones is not part of the peak
    gc.collect()
    heap.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


@dataclass(frozen=True)
class Ceilings:
    """What the machine reached in this run: FLOP a second of a matrix product, bytes a second of a copy."""

    flops: float
    bytes: float

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that the work needs at least at these ceilings."""
        return max(flops / self.flops, moved / self.bytes)


def measure_ceilings(device: str, clock: Clock, dtype: str = "float32", rounds: int = 7) -> Ceilings:
    """Best of a few square matrix products and of copies of an array that no cache holds."""
    import torch

    side = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    out = torch.empty_like(left)
    product = repeated(clock, lambda: torch.mm(left, right, out=out))
    copy = repeated(clock, lambda: target.copy_(source))
    with torch.inference_mode():
        found = interleave({"product": product, "copy": copy}, rounds)
    return Ceilings(
        2.0 * side**3 / min(sample.wall for sample in found["product"]),
        2.0 * _COPY_BYTES / min(sample.wall for sample in found["copy"]),
    )


def repeated(clock: Clock, call: Callable[[], Any]) -> Callable[[], Sample]:
    """A sampler that calls often enough; its attribute ``repeats`` says how often."""
    return Repeated(clock, call, repeats_for(call, clock))


@dataclass(frozen=True)
class Repeated:
    """A sampler with a fixed number of calls."""

    clock: Clock
    call: Callable[[], Any]
    repeats: int

    def __call__(self) -> Sample:
        return self.clock.sample(self.call, self.repeats)
