"""Loading pretrained parts: local path first, hub id second, safetensors only, checksum recorded.

Every loader accepts a *reference*: ``partworld:NAME`` (weights shipped with the package), a local folder, or a
hub id. The heavy libraries are imported inside the functions, after :func:`ensure_torchvision`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import logging
import os
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.errors import ConfigError, DataError, EnvironmentProblem

if TYPE_CHECKING:
    import torch

    from glass_fast.models.encoder import Encoder

log = logging.getLogger(__name__)

GENERATOR_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HASHED_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
_UNHASHED_NAMES = ("run.json",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WITHDRAWN = ("stabilityai/stable-diffusion-2",)
_MAX_HEADER = 16 * 2**20
_shim: Any = None


def ensure_torchvision() -> str:
    """Make ``import torchvision`` work beside a CPU build of torch; call before transformers, diffusers or timm.

    torchvision's Linux wheel is linked against CUDA. Beside CPU torch its operators do not load and the import dies
    while it registers shape functions for ``torchvision::nms``; declaring those operators is enough for all that
    transformers, diffusers and timm use. Does nothing where torchvision works.

    Returns:
        ``native``, ``shimmed`` or ``absent``.
    """
    global _shim
    try:
        import torchvision  # noqa: F401

        return "native" if _shim is None else "shimmed"
    except ImportError:
        return "absent"
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    import torch

    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    _shim = torch.library.Library("torchvision", "DEF")  # dropping the object would undeclare the operators
    _shim.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _shim.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401

    return "shimmed"


def offline() -> bool:
    """Whether the user forbade network access (``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE``)."""
    return any(os.environ.get(n, "").upper() in ("1", "TRUE", "YES", "ON") for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """``auto`` -> CUDA when present, else CPU.

    Raises:
        EnvironmentProblem: CUDA was asked for but torch sees no CUDA device.
    """
    import torch

    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "GF-ENV-010", f"device={device!r}, but torch {torch.__version__} sees no CUDA device",
            "use device=auto or device=cpu, or install a CUDA build of torch and a driver",
        )
    return torch.device(device)


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``float32``, ``float16`` or ``bfloat16`` -> torch dtype."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise ConfigError("GF-MODEL-001", f"dtype={dtype!r}; expected one of {', '.join(known)}")
    return known[dtype]


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: ``path`` when it lies on disk, else ``hub_id``."""

    ref: str
    path: Path | None
    hub_id: str | None = None

    def folder(self) -> Path:
        """The local folder; fetches JSON, text and safetensors files (never pickles) of a hub id first."""
        if self.path is not None:
            return self.path
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
        try:
            return Path(snapshot_download(str(self.hub_id), allow_patterns=patterns, ignore_patterns=["*.ckpt"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise EnvironmentProblem(
                "GF-MODEL-004", f"model {self.ref!r} could not be fetched from the hub: {type(error).__name__}: {error}",
                _missing_hint(self.ref),
            ) from error


def _missing_hint(ref: str) -> str:
    if ref.startswith(_WITHDRAWN):
        return (
            "the stabilityai Stable Diffusion 2.x repositories were withdrawn from the hub: pass a local folder in "
            "diffusers layout (tokenizer/, text_encoder/, unet/, vae/, scheduler/) or the id of a mirror that you trust"
        )
    return "pass a local folder, or download the model once while online and pass its path"


def resolve_model(ref: str | Path) -> ModelSource:
    """Reference -> source: ``partworld:NAME`` (package data), then an existing local path, then a hub id.

    Raises:
        EnvironmentProblem: nothing on disk has that name, and it is no hub id or the hub is switched off.
    """
    text = str(ref)
    if text.startswith("partworld:"):
        name = text.partition(":")[2]
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise ConfigError("GF-MODEL-002", f"model {text!r}: expected partworld:NAME with NAME of a-z, 0-9, _ and -")
        folder = Path(str(importlib.resources.files("glass_fast") / "partworld" / "weights" / name))
        if not folder.is_dir():
            present = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            raise EnvironmentProblem(
                "GF-MODEL-003", f"model {text!r} is not among the shipped ones ({', '.join(present) or 'none'})",
                "reinstall glass-fast, or rebuild the shipped models with `glass-fast partworld build`",
            )
        return ModelSource(text, folder)
    path = Path(text).expanduser()
    if path.exists():
        return ModelSource(text, path.resolve())
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_local or not _HUB_ID.fullmatch(text):
        raise EnvironmentProblem(
            "GF-MODEL-003", f"model {text!r}: no such file or folder (working directory {Path.cwd()})",
            "expected an existing folder, partworld:NAME, or a hub id of the form owner/name",
        )
    if offline():
        raise EnvironmentProblem(
            "GF-MODEL-004", f"model {text!r} is not a local folder, and the hub is switched off (HF_HUB_OFFLINE)",
            _missing_hint(text) + "; to use a hub id unset HF_HUB_OFFLINE",
        )
    return ModelSource(text, None, text)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def folder_checksum(path: str | Path) -> str:
    """SHA-256 over the sorted relative names and file hashes of everything that decides what a model computes.

    Counts JSON, safetensors and tokenizer files; in a diffusers folder only the five parts that are loaded, so an
    extra variant file beside them does not change it. Cards, licences, hidden files and ``run.json`` do not count.
    """
    root = Path(path)
    if root.is_file():
        return _sha256(root)
    roots = [root / part for part in GENERATOR_PARTS if (root / part).is_dir()] if (root / "unet").is_dir() else [root]
    files = [f for r in roots for f in r.rglob("*") if f.suffix in _HASHED_SUFFIXES and f.name not in _UNHASHED_NAMES]
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
        raise DataError("GF-MODEL-005", f"{path} is missing", "the model folder is incomplete: copy it again") from None
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
        return DataError("GF-MODEL-006", f"{path}: {what}", "the file is damaged or cut short: copy or download it again")

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
    index = folder / (f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json")
    files = [folder / f"{name}.safetensors"]
    if not files[0].is_file() and index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if any("/" in str(n) or "\\" in str(n) for n in names):
            raise DataError("GF-MODEL-006", f"{index} names a file outside its folder")
        files = [folder / str(n) for n in names]
    missing = [f for f in files if not f.is_file()]
    if missing or not files:
        pickles = sorted(f.name for f in folder.glob("*") if f.suffix in _PICKLE_SUFFIXES) if folder.is_dir() else []
        if pickles:
            raise DataError(
                "GF-MODEL-007", f"{folder} holds its weights as pickle ({', '.join(pickles)}); expected {name}.safetensors",
                "pickled weights can run code when loaded and are refused: use the safetensors files of the model, or convert "
                "them in a sandbox (torch.load(..., weights_only=True) and safetensors.torch.save_file)",
            )
        raise EnvironmentProblem(
            "GF-MODEL-008", f"{folder}: {missing[0].name if missing else name + '.safetensors'} is missing",
            "expected a folder with safetensors weights; copy or download the model again",
        )
    for file in files:
        check_safetensors(file)
    return files


def _variant(folder: Path, stem: str) -> str | None:
    """None for plain weights; ``fp16`` when only that variant is in the folder."""
    def there(name: str) -> bool:
        return any((folder / n).is_file() for n in (f"{stem}{name}.safetensors", f"{stem}.safetensors.index{name}.json"))

    return "fp16" if not there("") and there(".fp16") else None


@dataclass
class Generator:
    """The parts of a Stable Diffusion model, frozen and in eval mode.

    Attributes:
        tokenizer: CLIP tokenizer (with character offsets).
        text_encoder: ``CLIPTextModel``.
        unet: ``UNet2DConditionModel``.
        vae: ``AutoencoderKL``.
        scheduler_config: contents of ``scheduler/scheduler_config.json``.
        source: where it came from.
        checksum: :func:`folder_checksum` of the folder.
    """

    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    source: ModelSource
    checksum: str


def load_generator(ref: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32") -> Generator:
    """A Stable Diffusion folder in diffusers layout (``model_index.json`` is not needed).

    Args:
        ref: ``partworld:generator``, a local folder or a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        dtype: dtype of the weights of all three networks.

    Raises:
        EnvironmentProblem: not found, or a part is missing.
        DataError: pickled or damaged weights.
    """
    ensure_torchvision()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    source = resolve_model(ref)
    target, kind = resolve_device(device), resolve_dtype(dtype)
    folder = source.folder()
    absent = [part for part in GENERATOR_PARTS if not (folder / part).is_dir()]
    if absent:
        raise EnvironmentProblem(
            "GF-MODEL-009", f"generator {source.ref!r} ({folder}) lacks {', '.join(p + '/' for p in absent)}",
            "expected a Stable Diffusion folder in diffusers layout: tokenizer/, text_encoder/, unet/, vae/, scheduler/",
        )
    common: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    parts: dict[str, Any] = {}
    for part, model_class, stem, key in (
        ("text_encoder", CLIPTextModel, "model", "dtype"),
        ("unet", UNet2DConditionModel, "diffusion_pytorch_model", "torch_dtype"),
        ("vae", AutoencoderKL, "diffusion_pytorch_model", "torch_dtype"),
    ):
        variant = _variant(folder / part, stem)
        weight_files(folder / part, stem, variant)
        options = {**common, key: kind, **({"variant": variant} if variant else {})}
        parts[part] = _guarded(model_class, folder / part, options).to(target).requires_grad_(False).eval()
    tokenizer = _guarded(CLIPTokenizer, folder / "tokenizer", {"local_files_only": True})
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return Generator(tokenizer, parts["text_encoder"], parts["unet"], parts["vae"], scheduler, source, folder_checksum(folder))


def _guarded(model_class: Any, folder: Path, options: dict[str, Any]) -> Any:
    """``from_pretrained`` of a local folder with the library's failures turned into :class:`DataError`."""
    try:
        return model_class.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise DataError(
            "GF-MODEL-010", f"{folder} cannot be loaded as {model_class.__name__}: {type(error).__name__}: {error}",
            "the folder does not hold what its place says; compare config.json with the weights",
        ) from error


def load_captioner(ref: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32") -> tuple[Any, Any]:
    """BLIP or BLIP-2 (by ``model_type`` in ``config.json``) with its processor.

    The image processor uses the PIL backend, so torchvision is not needed and results do not depend on it.

    Returns:
        (model, processor); the model is frozen and in eval mode.
    """
    ensure_torchvision()
    from transformers import AutoProcessor, Blip2ForConditionalGeneration, BlipForConditionalGeneration

    source = resolve_model(ref)
    target, kind = resolve_device(device), resolve_dtype(dtype)
    folder = source.folder()
    classes = {"blip": BlipForConditionalGeneration, "blip-2": Blip2ForConditionalGeneration}
    model_type = str(read_json(folder / "config.json").get("model_type"))
    if model_type not in classes:
        raise DataError(
            "GF-MODEL-011", f"captioner {source.ref!r} has model_type {model_type!r}; expected one of {', '.join(classes)}",
            "use a BLIP or BLIP-2 folder, or captions.source=provided with a captions file",
        )
    weight_files(folder)
    options = {"use_safetensors": True, "local_files_only": True, "dtype": kind}
    model = _guarded(classes[model_type], folder, options).to(target).requires_grad_(False).eval()
    return model, _guarded(AutoProcessor, folder, {"local_files_only": True, "backend": "pil"})


def load_encoder(ref: str | Path, device: str | torch.device = "auto", resolution: int | None = None) -> Encoder:
    """The frozen feature encoder; see :func:`glass_fast.models.encoder.build_encoder` for what ``ref`` may be."""
    from glass_fast.models.encoder import build_encoder

    return build_encoder(ref, device, resolution)
