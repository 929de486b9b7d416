"""Modules around one op: the backend is chosen when the module is built, and again when it is moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from glass_fast.kernels import choose


class OpModule(nn.Module):
    """Base of a module whose work is done by one op.

    Args:
        op: name of the op.
        backend: backend that must be used; None: the registry's choice for the device and dtype of the parameters.

    Attributes:
        backend: what was asked for.
        chosen: backend that ``forward`` uses; None on a device without ops (``meta``).
    """

    def __init__(self, op: str, backend: str | None) -> None:
        super().__init__()
        self.op, self.backend = op, backend
        self.chosen: str | None = backend

    def choose_backend(self) -> None:
        """Settle ``chosen``; called at the end of ``__init__`` and after every move.

        Raises:
            ConfigError: no backend of that name.
            EnvironmentProblem: it does not serve this device or dtype; the message lists all with their reasons.
        """
        where = next(self.parameters())
        if where.device.type == "meta":
            self.chosen = self.backend
        else:
            self.chosen = choose(self.op, where.device, self.backend, where.dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> OpModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.choose_backend()
        return self
