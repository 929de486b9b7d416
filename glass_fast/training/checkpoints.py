"""Checkpoints, whole or absent: ``step-0000500/`` with safetensors, state and a record of their hashes."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glass_fast.data import atomic
from glass_fast.errors import DataError, GlassError
from glass_fast.models.folders import atomic_folder
from glass_fast.models.weights import check_safetensors

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{7,})")
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class Checkpoint:
    """What a run needs to go on.

    Attributes:
        step: number of finished steps.
        model: parameter name -> tensor.
        optimizer: flat ``parameter.key`` -> tensor.
        state: JSON-able rest (fingerprint, running sums).
    """

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """Optimizer tensors under ``parameter.key`` names.

    Args:
        optimizer: its parameters are in the order of ``names``.
        names: parameter names.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{names[number]}.{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for number, entries in state.items()
        for key, value in entries.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, torch.Tensor]
) -> None:
    """Inverse of :func:`flatten_optimizer`; hyperparameters stay those of ``optimizer``."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for number, name in enumerate(names):
        prefix = f"{name}."
        entries = {k.removeprefix(prefix): v for k, v in tensors.items() if k.rpartition(".")[0] == name}
        if entries:
            state[number] = entries
    content = optimizer.state_dict()
    content["state"] = state
    optimizer.load_state_dict(content)


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def save(root: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``root/step-N`` and drop all but the ``keep`` newest.

    Raises:
        EnvironmentProblem: disk full or not writable; earlier checkpoints are untouched.
    """
    from safetensors.torch import save_file

    path = root / f"step-{checkpoint.step:07d}"
    with atomic_folder(path) as folder:
        for name, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            with atomic.storage_errors(path, "write the checkpoint"):
                save_file(plain, folder / f"{name}.safetensors")
        atomic.write_json(folder / "state.json", {"step": checkpoint.step, **checkpoint.state})
        atomic.write_json(
            folder / "record.json", {name: atomic.sha256_file(folder / name) for name in _FILES}
        )
    for old in _folders(root)[keep:]:
        if old != path:
            shutil.rmtree(old, ignore_errors=True)  # a left-over folder is harmless: it is complete
    for stale in root.glob(".tmp-step-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return path


def load(path: Path) -> Checkpoint:
    """Read one checkpoint after its hashes were compared.

    Raises:
        DataError: a file is missing or was changed.
    """
    from safetensors.torch import load_file

    record = atomic.read_json(path / "record.json", "checkpoint record")
    for name in _FILES:
        file = path / name
        if not file.is_file() or not isinstance(record, dict) or atomic.sha256_file(file) != record.get(name):
            raise DataError("GF-TRAIN-010", f"checkpoint {path}: {name} is missing or does not fit its hash")
    check_safetensors(path / "model.safetensors")
    check_safetensors(path / "optimizer.safetensors")
    state = atomic.read_json(path / "state.json", "checkpoint state")
    step = int(state.pop("step"))
    return Checkpoint(
        step, load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), state
    )


def latest(root: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; a damaged one is named in a warning and skipped."""
    for path in _folders(root):
        try:
            return load(path)
        except GlassError as error:
            log.warning("checkpoint %s is damaged and skipped: %s", path, error.message)
    return None
