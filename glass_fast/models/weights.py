"""Checks of a weight folder before anything in it is trusted: safetensors, whole, with a checksum."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from glass_fast.errors import DataError, EnvironmentProblem

GENERATOR_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HASHED_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
_UNHASHED_NAMES = ("run.json",)
_MAX_HEADER = 16 * 2**20


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def folder_checksum(path: str | Path) -> str:
    """SHA-256 over the sorted relative names and file hashes of everything that decides what a model
    computes.

    Counts JSON, safetensors and tokenizer files; in a diffusers folder only the five parts that are loaded,
    so a safety checker or a single-file variant beside them does not change it; otherwise sub-folders do not
    count. Cards, licences, hidden files and ``run.json`` do not count.
    """
    root = Path(path)
    if root.is_file():
        return _sha256(root)
    if (root / "unet").is_dir():
        candidates = [file for part in GENERATOR_PARTS for file in (root / part).rglob("*")]
    else:
        candidates = list(root.glob("*"))
    files = [f for f in candidates if f.suffix in _HASHED_SUFFIXES and f.name not in _UNHASHED_NAMES]
    named = sorted((f.relative_to(root).as_posix(), f) for f in files if f.is_file())
    digest = hashlib.sha256()
    for name, file in named:
        if not any(part.startswith(".") for part in name.split("/")):
            digest.update(f"{name}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        DataError: absent, unreadable or not an object.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            value = json.load(stream)
    except FileNotFoundError:
        raise DataError(
            "GF-MODEL-005", f"{path} is missing", "the model folder is incomplete: copy it again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError("GF-MODEL-005", f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError("GF-MODEL-005", f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def check_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Header check before any byte is trusted: size limit, offsets inside the file, no gap or overlap.

    Returns:
        name -> (dtype name, shape).

    Raises:
        DataError: the file is truncated, padded or damaged.
    """

    def bad(what: str) -> DataError:
        return DataError(
            "GF-MODEL-006", f"{path}: {what}", "the file is damaged or cut short: copy or download it again"
        )

    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        if len(head) < 8:
            raise bad(f"{size} bytes is too short for a safetensors file")
        (length,) = struct.unpack("<Q", head)
        if length > min(_MAX_HEADER, size - 8):
            raise bad(f"header of {length} bytes is longer than the file or the limit of {_MAX_HEADER}")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise bad(f"header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise bad("header is not a JSON object")
    header.pop("__metadata__", None)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans = []
    for name, entry in header.items():
        try:
            begin, end = (int(v) for v in entry["data_offsets"])
            tensors[name] = (str(entry["dtype"]), tuple(int(v) for v in entry["shape"]))
        except (KeyError, TypeError, ValueError) as error:
            raise bad(f"entry {name!r} is malformed ({error})") from error
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position or end < begin:
            raise bad(f"tensor {name!r} occupies bytes {begin}..{end}, expected a start at {position}")
        position = end
    if position != size - 8 - length:
        raise bad(f"tensors need {position} bytes, the file holds {size - 8 - length}")
    return tensors


def weight_files(folder: Path, stem: str = "model", variant: str | None = None) -> list[Path]:
    """The checked safetensors files (one, or the shards that an index lists) of a weight called ``stem``.

    Raises:
        DataError: only pickled weights are there, or a file is damaged.
        EnvironmentProblem: no weights at all.
    """
    name = f"{stem}.{variant}" if variant else stem
    index = folder / (
        f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"
    )
    files = [folder / f"{name}.safetensors"]
    if not files[0].is_file() and index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any("/" in str(n) or "\\" in str(n) for n in names):
            raise DataError("GF-MODEL-006", f"{index} names a file outside its folder")
        files = [folder / str(n) for n in names]
    missing = [f for f in files if not f.is_file()]
    if missing or not files:
        pickles = (
            sorted(f.name for f in folder.glob("*") if f.suffix in _PICKLE_SUFFIXES)
            if folder.is_dir()
            else []
        )
        if pickles:
            raise DataError(
                "GF-MODEL-007",
                f"{folder} holds its weights as pickle ({', '.join(pickles)}); expected {name}.safetensors",
                "pickled weights can run code when loaded and are refused: use the safetensors files of "
                "the model, or convert "
                "them in a sandbox (torch.load(..., weights_only=True) and safetensors.torch.save_file)",
            )
        raise EnvironmentProblem(
            "GF-MODEL-008",
            f"{folder}: {missing[0].name if missing else name + '.safetensors'} is missing",
            "expected a folder with safetensors weights; copy or download the model again",
        )
    for file in files:
        check_safetensors(file)
    return files


def weight_variant(folder: Path, stem: str) -> str | None:
    """None for plain weights; ``fp16`` when only that variant is in the folder."""

    def there(name: str) -> bool:
        return any(
            (folder / n).is_file()
            for n in (f"{stem}{name}.safetensors", f"{stem}.safetensors.index{name}.json")
        )

    return "fp16" if not there("") and there(".fp16") else None
