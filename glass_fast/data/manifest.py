"""``manifest.json``: what a folder of shards is and which configuration made it.

The manifest is written before the first shard and never changed. It holds no time, host or attempt, so two
runs of one configuration write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glass_fast.data import atomic
from glass_fast.errors import ConfigError, DataError

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
_MISSING = "(absent)"
_LOGS = ("run.jsonl",)
"""Files of ours that may be there before the manifest, because a run that failed early left them."""


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a configuration, hexadecimal."""
    return hashlib.sha256(atomic.canonical_json(config)).hexdigest()


def codec_versions() -> dict[str, str]:
    """Versions of the libraries that decide the bytes of a shard."""
    import numpy
    import PIL
    import pyarrow
    from PIL import features

    zlib = str(features.version("zlib_ng") or features.version("zlib") or "unknown")
    return {
        "pillow": PIL.__version__,
        "zlib": zlib,
        "pyarrow": pyarrow.__version__,
        "numpy": numpy.__version__,
    }


def write_manifest(
    directory: str | os.PathLike[str],
    *,
    kind: str,
    config: Mapping[str, Any],
    plan: Mapping[str, int] | None = None,
    labels: Sequence[str] = (),
    generator: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Claim an output folder for one configuration, or confirm that it is already claimed for the same one.

    Args:
        directory: created when absent.
        kind: what the folder holds, such as ``shards``.
        config: JSON-able configuration of the job; its hash is stored beside it.
        plan: ``ShardPlan.as_dict()``.
        labels: class names; label id of ``labels[i]`` is ``i + 1``.
        generator: provenance of the model (reference, checksum, scheduler, ...).
        versions: versions of libraries and of this package that decide the bits of the result.

    Returns:
        The manifest.

    Raises:
        ConfigError: GF-CONFIG-120, the folder belongs to another configuration (the differing keys are
            named); GF-CONFIG-121, the folder holds files but no manifest, so it is not ours.
        DataError: the existing manifest is damaged.
        EnvironmentProblem: the folder cannot be created or written.
    """
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": kind,
        "config": dict(config),
        "config_hash": config_hash(config),
        "plan": dict(plan) if plan is not None else None,
        "labels": list(labels),
        "generator": dict(generator) if generator is not None else None,
        "versions": dict(versions) if versions is not None else {},
    }
    manifest = atomic.seal(manifest)
    folder = atomic.make_directory(directory)
    with atomic.storage_errors(folder, "list the folder"):
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if MANIFEST_NAME in names:
        _require_equal(read_manifest(folder), manifest, folder)
        return manifest
    names = [name for name in names if name not in _LOGS]
    if names:
        raise ConfigError(
            "GF-CONFIG-121",
            f"{folder} is not empty and has no {MANIFEST_NAME} (it holds {names[0]!r})",
            "choose a new or empty output folder; nothing is ever deleted to make room",
        )
    atomic.write_bytes(folder / MANIFEST_NAME, atomic.canonical_json(manifest))
    return manifest


def _require_equal(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    differing = list(_differences(_plain(old), _plain(new)))
    if differing:
        shown = "; ".join(f"{key}: there {there!r}, now {now!r}" for key, there, now in differing[:4])
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ConfigError(
            "GF-CONFIG-120",
            f"{folder} was made with another configuration: {shown}{more}",
            "repeat the original settings to continue, or choose another output folder",
        )


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a folder's manifest.

    Raises:
        DataError: GF-DATA-131, absent, damaged, of a newer schema, or its configuration hash does not fit.
    """
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise DataError(
            "GF-DATA-131",
            f"{os.fspath(directory)} holds no {MANIFEST_NAME}",
            "give a folder written by glass-fast synthesize",
        )
    manifest = atomic.read_sealed(path, "manifest")
    problem = _problem(manifest)
    if problem:
        raise DataError("GF-DATA-131", f"manifest {path}: {problem}", "it is damaged; restore it from a copy")
    return manifest


def _problem(manifest: dict[str, Any]) -> str:
    if manifest.get("schema") != SCHEMA:
        return f"schema = {manifest.get('schema')!r}; this version reads schema {SCHEMA}"
    labels = manifest.get("labels")
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        return "'labels' must be a list of names"
    if not isinstance(manifest.get("config"), dict) or not isinstance(manifest.get("kind"), str):
        return "'config' and 'kind' are missing"
    if manifest.get("config_hash") != config_hash(manifest["config"]):
        return "'config_hash' does not fit 'config'"
    plan = manifest.get("plan")
    if plan is not None:
        keys = ("num", "shard_size", "batch_size")
        if not isinstance(plan, dict) or any(
            isinstance(plan.get(key), bool) or not isinstance(plan.get(key), int) or plan[key] < 1
            for key in keys
        ):
            return f"'plan' must hold whole numbers {', '.join(keys)}"
    return ""


def _plain(value: Any) -> Any:
    """Through JSON once, so that tuples and lists compare equal."""
    return json.loads(atomic.canonical_json(value))


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys at which two JSON values differ, in sorted order; the configuration hash itself is left
    out."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            name = f"{prefix}.{key}" if prefix else key
            if name in ("config_hash", "checksum"):
                continue
            if key not in old or key not in new:
                yield name, old.get(key, _MISSING), new.get(key, _MISSING)
            else:
                yield from _differences(old[key], new[key], name)
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield prefix, old, new
