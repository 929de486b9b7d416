"""The exception tree: every failure a user can cause has a class, a stable code and an exit code."""

from __future__ import annotations

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_ENVIRONMENT = 4
EXIT_REJECTS = 5
EXIT_NUMERICS = 6
EXIT_STOPPED = 75


class GlassError(Exception):
    """Base of all errors raised on purpose.

    Args:
        code: stable identifier such as ``GF-DATA-003``; never reused for another meaning.
        message: what was wrong (name and value) and what was expected.
        hint: what to do about it.
    """

    exit_code = EXIT_BUG

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        text = f"[{self.code}] {self.message}"
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class ConfigError(GlassError):
    """A configuration value, option or argument is wrong (exit code 2)."""

    exit_code = EXIT_USAGE


class DataError(GlassError):
    """An input file or data set is damaged or not of the expected form (exit code 3)."""

    exit_code = EXIT_DATA


class EnvironmentProblem(GlassError):
    """The machine lacks something: a package, a model, disk space, a permission (exit code 4)."""

    exit_code = EXIT_ENVIRONMENT


class RejectsError(GlassError):
    """The job finished but rejected a larger share than allowed (exit code 5)."""

    exit_code = EXIT_REJECTS


class NumericsError(GlassError):
    """Out of memory at the smallest batch, or a non-finite value (exit code 6)."""

    exit_code = EXIT_NUMERICS


class Stopped(GlassError):
    """Stopped on request with everything saved; run the same command again to continue (exit code 75)."""

    exit_code = EXIT_STOPPED
