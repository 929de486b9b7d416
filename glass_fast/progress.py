"""Progress with rate and ETA (rich on a terminal, a plain line now and then otherwise) and the stop token."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from glass_fast.errors import ConfigError, Stopped


class StopToken:
    """Set by the first SIGTERM or SIGINT; jobs look at it between micro-batches. The second signal ends at once.

    Use as a context manager around a job; outside the main thread it only reacts to :meth:`set`.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: dict[int, Any] = {}

    @property
    def stopped(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    def check(self, what: str, hint: str = "run the same command again to continue") -> None:
        """Raise :class:`Stopped` when a stop was asked for; ``what`` names what has been saved."""
        if self.stopped:
            raise Stopped("GF-STOP-001", f"stopped on request; {what}", hint)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._event.set()

    def __enter__(self) -> StopToken:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


class Progress:
    """Silent progress; the base of the visible ones, and what library callers get by default."""

    label = ""
    unit = "items"
    total = 0
    done = 0

    def start(self, total: int, unit: str = "items", label: str = "", done: int = 0) -> None:
        """Begin a phase of ``total`` units of which ``done`` were finished by an earlier run."""
        self.total, self.unit, self.label, self.done = total, unit, label, done
        self._first_done = done
        self._begin = time.monotonic()

    def advance(self, count: int = 1, **fields: Any) -> None:
        """Count ``count`` more units; ``fields`` are shown beside the rate (loss, yield, ...)."""
        self.done += count

    def finish(self) -> None:
        """End the phase."""

    def rate(self) -> float:
        """Units a second since ``start``."""
        return (self.done - self._first_done) / max(time.monotonic() - self._begin, 1e-9)

    def line(self, fields: dict[str, Any]) -> str:
        """One plain line: done, total, rate, ETA in seconds and the extra fields."""
        rate = self.rate()
        eta = (self.total - self.done) / rate if rate > 0 else float("nan")
        extra = "".join(
            f" {key}={value:.4g}" if isinstance(value, float) else f" {key}={value}"
            for key, value in fields.items()
        )
        return f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {eta:.0f} s left{extra}"


class PlainProgress(Progress):
    """A line on stderr at most every ``period_s`` seconds, and one at the end."""

    def __init__(self, period_s: float = 15.0) -> None:
        self.period_s = period_s
        self._last = 0.0
        self._fields: dict[str, Any] = {}

    def start(self, total: int, unit: str = "items", label: str = "", done: int = 0) -> None:
        super().start(total, unit, label, done)
        self._last = time.monotonic()
        self._fields = {}

    def advance(self, count: int = 1, **fields: Any) -> None:
        super().advance(count, **fields)
        self._fields = fields
        if time.monotonic() - self._last >= self.period_s:
            self._last = time.monotonic()
            sys.stderr.write(self.line(fields) + "\n")
            sys.stderr.flush()

    def finish(self) -> None:
        sys.stderr.write(self.line(self._fields) + "\n")
        sys.stderr.flush()


class RichProgress(Progress):
    """A rich progress bar on stderr."""

    def start(self, total: int, unit: str = "items", label: str = "", done: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        super().start(total, unit, label, done)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(label, total=total, completed=done, info="")

    def advance(self, count: int = 1, **fields: Any) -> None:
        super().advance(count, **fields)
        extra = "".join(f" {k}={v:.4g}" if isinstance(v, float) else f" {k}={v}" for k, v in fields.items())
        self._bar.update(self._task, completed=self.done, info=f"{self.rate():.3g} {self.unit}/s{extra}")

    def finish(self) -> None:
        self._bar.stop()


def make_progress(mode: str = "auto") -> Progress:
    """``auto`` (bar on a terminal, plain lines otherwise), ``plain`` or ``none``."""
    if mode not in ("auto", "plain", "none"):
        raise ConfigError("GF-CONFIG-220", f"progress {mode!r} is unknown; expected auto, plain or none")
    if mode == "none":
        return Progress()
    if mode == "auto" and sys.stderr.isatty():
        return RichProgress()
    return PlainProgress()
