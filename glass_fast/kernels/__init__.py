"""Op registry and functional API: ``kernels.<op>(...)`` with a backend that is chosen for stated reasons.

An op is a folder ``kernels/<op>`` of the repository, importable only as ``glass_fast.kernels.<op>``
(``setup.py`` maps it there; from a checkout this module adds the folder to its search path). The top-level
folder has no ``__init__.py``, because it would shadow the PyPI package ``kernels`` that transformers imports.

What an op's ``__init__.py`` exports:

* a function named like the op (its public API; ops with several functions export those instead);
* ``BACKENDS``: a tuple of :class:`Backend`, best first. The first one that serves the device and whose probe
  finds nothing missing is chosen, unless the caller or ``GLASS_FAST_BACKENDS`` names another.

``from glass_fast import kernels; kernels.matching(cost)`` calls the function;
``from glass_fast.kernels.matching import reference`` reaches the modules inside an op.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from glass_fast.errors import ConfigError, EnvironmentProblem

__all__ = ["Backend", "BackendStatus", "backends", "choices", "choose", "forget", "implementation", "ops"]

logger = logging.getLogger(__name__)

_CHECKOUT_OPS = Path(__file__).resolve().parents[2] / "kernels"
if (_CHECKOUT_OPS.parent / "setup.py").is_file() and _CHECKOUT_OPS.is_dir():
    __path__.append(str(_CHECKOUT_OPS))


def _always() -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: ``reference``, ``torch``, ``cpu``, ``triton`` or ``cuda``.
        load: returns the callable; imports what it needs only when called.
        probe: returns None when the backend can run here, else the reason why it cannot.
        devices: torch device types that it serves.
        dtypes: floating-point types that it serves; None: all.
        why: why it is preferred over the backends after it, for ``glass-fast doctor``.
    """

    name: str
    load: Callable[[], Callable[..., Any]]
    probe: Callable[[], str | None] = _always
    devices: tuple[str, ...] = ("cpu", "cuda")
    why: str = ""
    dtypes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run here and why (not)."""

    op: str
    name: str
    available: bool
    reason: str
    devices: tuple[str, ...]


@cache
def ops() -> tuple[str, ...]:
    """Names of all ops, sorted: the folders with an ``api.py`` on the search path."""
    found = {entry.parent.name for folder in __path__ for entry in Path(folder).glob("*/api.py")}
    return tuple(sorted(found))


@cache
def _table(op: str) -> dict[str, Backend]:
    if op not in ops():
        raise ConfigError(
            "GF-CONFIG-920", f"no op named {op!r}; known: {', '.join(ops())}", "check the spelling"
        )
    module = import_module(f"{__name__}.{op}")
    return {backend.name: backend for backend in module.BACKENDS}


@cache
def _missing(op: str, name: str) -> str | None:
    return _table(op)[name].probe()


def backends(op: str) -> list[BackendStatus]:
    """State of every backend of an op, in order of preference.

    Raises:
        ConfigError: GF-CONFIG-920, no op of that name.
    """
    states = []
    for name, backend in _table(op).items():
        missing = _missing(op, name)
        states.append(
            BackendStatus(op, name, missing is None, missing or backend.why or "available", backend.devices)
        )
    return states


def _from_environment(op: str) -> str | None:
    """Backend named for this op in ``GLASS_FAST_BACKENDS`` (``matching=reference,mask_labels=torch``)."""
    for item in filter(None, os.environ.get("GLASS_FAST_BACKENDS", "").split(",")):
        key, separator, name = (part.strip() for part in item.partition("="))
        if not separator or not name or key not in ops():
            raise ConfigError(
                "GF-CONFIG-921",
                f"GLASS_FAST_BACKENDS has {item!r}; expected op=backend pairs, op one of {', '.join(ops())}",
                "for example GLASS_FAST_BACKENDS=matching=reference,mask_labels=torch",
            )
        if key == op:
            return name
    return None


def choose(op: str, device: Any, requested: str | None = None, dtype: Any = "float32") -> str:
    """Name of the backend that serves ``op`` on ``device`` in ``dtype``.

    Args:
        op: name of the op.
        device: torch device or its type (``"cpu"``, ``"cuda"``).
        requested: backend that must be used; default: the one in ``GLASS_FAST_BACKENDS``,
            else the first that can run.
        dtype: torch dtype of the computation or its name.

    Raises:
        ConfigError: GF-CONFIG-920, no such op; GF-CONFIG-921, malformed ``GLASS_FAST_BACKENDS``;
            GF-CONFIG-922, the op has no backend of the requested name.
        EnvironmentProblem: GF-ENV-920, the requested backend, or every backend, cannot run here; the message
            lists each candidate with its reason.
    """
    kind = str(getattr(device, "type", device)).partition(":")[0]
    return _choose(op, kind, requested or _from_environment(op), str(dtype).removeprefix("torch."))


@cache
def _choose(op: str, kind: str, requested: str | None, dtype: str) -> str:
    table = _table(op)
    if requested is not None and requested not in table:
        raise ConfigError(
            "GF-CONFIG-922",
            f"op {op!r} has no backend {requested!r}; it has {', '.join(table)}",
            "choose one of these or leave the choice open",
        )
    refused = []
    for name, backend in table.items():
        if kind not in backend.devices:
            problem: str | None = f"serves {', '.join(backend.devices)} only"
        elif backend.dtypes is not None and dtype not in backend.dtypes:
            problem = f"serves {', '.join(backend.dtypes)} only"
        else:
            problem = _missing(op, name)
        if problem is not None:
            refused.append(f"{name}: {problem}")
        elif requested in (None, name):
            logger.info(
                "op %s on %s uses backend %s%s", op, kind, name, f" ({'; '.join(refused)})" if refused else ""
            )
            _CHOICES[f"{op}:{kind}" if dtype == "float32" else f"{op}:{kind}:{dtype}"] = name
            return name
        else:
            refused.append(f"{name}: could run, but {requested!r} was requested")
    wanted = f"backend {requested!r} of op {op!r}" if requested else f"any backend of op {op!r}"
    raise EnvironmentProblem(
        "GF-ENV-920",
        f"cannot use {wanted} on device {kind!r} in {dtype}: " + "; ".join(refused),
        "run `glass-fast doctor` for the state of every backend",
    )


_CHOICES: dict[str, str] = {}


def choices() -> dict[str, str]:
    """Backends chosen so far in this process, ``{"op:device": backend}`` (``op:device:dtype`` for other types than
    float32); goes into every run record."""
    return dict(_CHOICES)


def forget() -> None:
    """Drop remembered probes and choices, so that the next call looks again."""
    for remembered in (ops, _missing, _choose):
        remembered.cache_clear()
    _CHOICES.clear()
    _LOADED.clear()


def implementation(
    op: str, device: Any, requested: str | None = None, dtype: Any = "float32"
) -> Callable[..., Any]:
    """The chosen backend's callable; same arguments and errors as :func:`choose`."""
    return _LOADED[_loaded(op, device, requested, dtype)]


def _loaded(op: str, device: Any, requested: str | None, dtype: Any) -> str:
    """Key of the chosen backend in ``_LOADED``."""
    name = choose(op, device, requested, dtype)
    key = f"{op}:{name}"
    if key not in _LOADED:
        _LOADED[key] = _table(op)[name].load()
    return key


# torch.compile takes the key as a constant of the graph instead of tracing the choice, which looks at files and the
# environment. This is what torch._dynamo.assume_constant_result sets; importing it would import torch.
_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]
_LOADED: dict[str, Callable[..., Any]] = {}


class _OpNamespace(ModuleType):
    """Makes ``kernels.<op>`` the op's function.

    The import system binds a sub-package to its parent under the same name as the op's function; without
    this, ``kernels.matching`` would be a function or a module depending on what was imported first.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in ops():
            import_module(f"{self.__name__}.{name}")
            return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}; ops: {', '.join(ops())}")

    def __dir__(self) -> list[str]:
        return sorted({*__all__, *ops()})


sys.modules[__name__].__class__ = _OpNamespace
