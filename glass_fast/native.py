"""Lazy access to the native library: the torch operators (``_ops``) and the numpy module (``_core``).

Nothing is loaded at import. A failure to load is remembered and told the same way each time, with both
sides of the story: what the library was built for and what was found here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from glass_fast.errors import DataError, EnvironmentProblem, GlassError, NumericsError

_PACKAGE = Path(__file__).resolve().parent
_CODED = re.compile(r"\[(GF-[A-Z]+-\d+)\] (.*)")
_FAMILY: dict[str, type[GlassError]] = {"NUM": NumericsError, "DATA": DataError}


def build_info() -> dict[str, Any]:
    """What the build wrote: compiler, flags, torch, commit; or ``native`` False and the ``reason``."""
    path = _PACKAGE / "build_info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"native": False, "reason": "glass-fast runs from a checkout that was not installed"}
    except (OSError, ValueError) as error:
        return {"native": False, "reason": f"{path.name} is unreadable: {error}"}
    return info


def _switched_off() -> str | None:
    value = os.environ.get("GLASS_FAST_NATIVE", "auto").lower()
    if value in ("auto", "on", "1", ""):
        return None
    if value in ("off", "0"):
        return "switched off by GLASS_FAST_NATIVE=" + os.environ["GLASS_FAST_NATIVE"]
    return f"GLASS_FAST_NATIVE is {value!r}; expected auto or off"


def _explain(part: str, error: BaseException | None) -> str:
    info = build_info()
    if not info.get("native"):
        return f"not built: {info.get('reason', 'unknown reason')}"
    if error is not None and error.__cause__ is not None:
        error = RuntimeError(f"{error} ({error.__cause__})")  # the loader's own words are in the cause
    built = f"torch {info.get('torch') or '-'}, Python {info.get('python') or '-'} ({info.get('platform')})"
    return f"{part} could not be loaded: {error}; built for {built}, {_here()}"


def _here() -> str:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "none"
    return (
        f"found torch {torch}, Python {platform.python_version()} ({platform.system()} {platform.machine()})"
    )


@cache
def core_or_reason() -> ModuleType | str:
    """The numpy module ``glass_fast._core``, or the reason why it cannot be used. Loads no torch."""
    if (off := _switched_off()) is not None:
        return off
    try:
        return import_module("glass_fast._core")
    except ImportError as error:
        return _explain("glass_fast._core", error)


@cache
def _load_ops() -> str | None:
    if (off := _switched_off()) is not None:
        return off
    path = _PACKAGE / "_ops.so"
    if not path.exists():
        return _explain("glass_fast/_ops.so", FileNotFoundError(f"no file {path}"))
    import torch

    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return _explain("glass_fast/_ops.so", error)
    from glass_fast import native_ops

    native_ops.register()
    return None


def ops_missing() -> str | None:
    """None when the operators ``torch.ops.glass_fast.*`` are loaded, else why they cannot be."""
    return _load_ops()


# A constant of a compiled graph: tracing it would look for the library's file. See glass_fast.kernels._loaded.
ops_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def op(name: str) -> Callable[..., Any]:
    """Operator ``torch.ops.glass_fast.<name>`` whose coded failures arrive as glass-fast's typed errors.

    Raises:
        EnvironmentProblem: GF-ENV-921, the library is not there or does not load; the message says why.
    """
    if (missing := ops_missing()) is not None:
        raise EnvironmentProblem(
            "GF-ENV-921",
            f"the native operator {name!r} cannot be used: {missing}",
            "install with GLASS_FAST_BUILD=cpu to see why the build fails, or choose another backend",
        )
    import torch

    operator = getattr(torch.ops.glass_fast, name).default

    def call(*args: Any) -> Any:
        try:
            return operator(*args)
        except RuntimeError as error:
            raise typed(error) from None

    return call


def typed(error: Exception) -> Exception:
    """The typed error for a native failure with ``[GF-AREA-NNN]`` in its text, else the error itself."""
    found = _CODED.search(str(error))
    if found is None:
        return error
    code, message = found.groups()
    family = _FAMILY.get(code.split("-")[1], GlassError)
    return family(code, message, "check the input that is named here")
