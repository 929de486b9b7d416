"""Loading pretrained parts: local path first, hub id second, safetensors only, checksum recorded.

Every loader accepts a *reference*: ``partworld:NAME`` (weights shipped with the package), a local folder, or
a hub id. The heavy libraries are imported inside the functions, after :func:`ensure_torchvision`.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.models.weights import (
    GENERATOR_PARTS,
    check_safetensors,
    folder_checksum,
    read_json,
    weight_files,
    weight_variant,
)

if TYPE_CHECKING:
    import torch

    from glass_fast.models.encoder import Encoder

__all__ = [
    "Generator",
    "ModelSource",
    "check_safetensors",
    "ensure_torchvision",
    "folder_checksum",
    "load_captioner",
    "load_encoder",
    "load_generator",
    "load_tokenizer",
    "offline",
    "read_json",
    "resolve_device",
    "resolve_dtype",
    "resolve_model",
    "weight_files",
]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WITHDRAWN = ("stabilityai/stable-diffusion-2",)
_shim: Any = None


def ensure_torchvision() -> str:
    """Make ``import torchvision`` work beside a CPU build of torch; call before transformers, diffusers or
    timm.

    torchvision's Linux wheel is linked against CUDA. Beside CPU torch its operators do not load and the
    import dies while it registers shape functions for ``torchvision::nms``; declaring those operators is
    enough for all that transformers, diffusers and timm use. Does nothing where torchvision works.

    Returns:
        ``native``, ``shimmed`` or ``absent``.
    """
    global _shim
    try:
        import torchvision

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
    return any(
        os.environ.get(n, "").upper() in ("1", "TRUE", "YES", "ON")
        for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


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
            "GF-ENV-010",
            f"device={device!r}, but torch {torch.__version__} sees no CUDA device",
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
            return Path(
                snapshot_download(str(self.hub_id), allow_patterns=patterns, ignore_patterns=["*.ckpt"])
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise EnvironmentProblem(
                "GF-MODEL-004",
                f"model {self.ref!r} could not be fetched from the hub: {type(error).__name__}: {error}",
                _missing_hint(self.ref),
            ) from error


def _missing_hint(ref: str) -> str:
    if ref.startswith(_WITHDRAWN):
        return (
            "the stabilityai Stable Diffusion 2.x repositories were withdrawn from the hub: pass a local "
            "folder in "
            "diffusers layout (tokenizer/, text_encoder/, unet/, vae/, scheduler/) or the id of a mirror "
            "that you trust"
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
            raise ConfigError(
                "GF-MODEL-002", f"model {text!r}: expected partworld:NAME with NAME of a-z, 0-9, _ and -"
            )
        folder = Path(str(importlib.resources.files("glass_fast") / "partworld" / "weights" / name))
        if not folder.is_dir():
            present = (
                sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
                if folder.parent.is_dir()
                else []
            )
            raise EnvironmentProblem(
                "GF-MODEL-003",
                f"model {text!r} is not among the shipped ones ({', '.join(present) or 'none'})",
                "reinstall glass-fast, or rebuild the shipped models with `glass-fast partworld build`",
            )
        return ModelSource(text, folder)
    path = Path(text).expanduser()
    if path.exists():
        return ModelSource(text, path.resolve())
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1
    if looks_local or not _HUB_ID.fullmatch(text):
        raise EnvironmentProblem(
            "GF-MODEL-003",
            f"model {text!r}: no such file or folder (working directory {Path.cwd()})",
            "expected an existing folder, partworld:NAME, or a hub id of the form owner/name",
        )
    if offline():
        raise EnvironmentProblem(
            "GF-MODEL-004",
            f"model {text!r} is not a local folder, and the hub is switched off (HF_HUB_OFFLINE)",
            _missing_hint(text) + "; to use a hub id unset HF_HUB_OFFLINE",
        )
    return ModelSource(text, None, text)


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


def load_tokenizer(ref: str | Path) -> Any:
    """The CLIP tokenizer of a Stable Diffusion folder, without its networks.

    Raises:
        EnvironmentProblem: not found, or the folder has no tokenizer/.
    """
    ensure_torchvision()
    from transformers import CLIPTokenizer

    source = resolve_model(ref)
    folder = source.folder() / "tokenizer"
    if not folder.is_dir():
        raise EnvironmentProblem(
            "GF-MODEL-009",
            f"generator {source.ref!r} ({folder.parent}) lacks tokenizer/",
            "expected a Stable Diffusion folder in diffusers layout",
        )
    return _guarded(CLIPTokenizer, folder, {"local_files_only": True})


def load_generator(
    ref: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32"
) -> Generator:
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
            "GF-MODEL-009",
            f"generator {source.ref!r} ({folder}) lacks {', '.join(p + '/' for p in absent)}",
            "expected a Stable Diffusion folder in diffusers layout: tokenizer/, text_encoder/, unet/, "
            "vae/, scheduler/",
        )
    common: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    parts: dict[str, Any] = {}
    for part, model_class, stem, key in (
        ("text_encoder", CLIPTextModel, "model", "dtype"),
        ("unet", UNet2DConditionModel, "diffusion_pytorch_model", "torch_dtype"),
        ("vae", AutoencoderKL, "diffusion_pytorch_model", "torch_dtype"),
    ):
        variant = weight_variant(folder / part, stem)
        weight_files(folder / part, stem, variant)
        options = {**common, key: kind, **({"variant": variant} if variant else {})}
        parts[part] = _guarded(model_class, folder / part, options).to(target).requires_grad_(False).eval()
    tokenizer = _guarded(CLIPTokenizer, folder / "tokenizer", {"local_files_only": True})
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return Generator(
        tokenizer,
        parts["text_encoder"],
        parts["unet"],
        parts["vae"],
        scheduler,
        source,
        folder_checksum(folder),
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """No weight-loading bars of transformers on stderr, which belongs to our own progress."""
    from transformers.utils import logging as library

    was_on = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            library.enable_progress_bar()


def _guarded(model_class: Any, folder: Path, options: dict[str, Any]) -> Any:
    """``from_pretrained`` of a local folder with the library's failures turned into :class:`DataError`."""
    try:
        with _without_bars():
            return model_class.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise DataError(
            "GF-MODEL-010",
            f"{folder} cannot be loaded as {model_class.__name__}: {type(error).__name__}: {error}",
            "the folder does not hold what its place says; compare config.json with the weights",
        ) from error


def load_captioner(
    ref: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32"
) -> tuple[Any, Any]:
    """BLIP or BLIP-2 (by ``model_type`` in ``config.json``) with its processor.

    The image processor uses the PIL backend, so torchvision is not needed and results do not depend on it.

    Returns:
        (model, processor); the model is frozen and in eval mode.
    """
    ensure_torchvision()
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipForConditionalGeneration,
        BlipProcessor,
    )

    source = resolve_model(ref)
    target, kind = resolve_device(device), resolve_dtype(dtype)
    folder = source.folder()
    classes = {
        "blip": (BlipForConditionalGeneration, BlipProcessor),
        "blip-2": (Blip2ForConditionalGeneration, Blip2Processor),
    }
    model_type = str(read_json(folder / "config.json").get("model_type"))
    if model_type not in classes:
        raise DataError(
            "GF-MODEL-011",
            f"captioner {source.ref!r} has model_type {model_type!r}; expected one of {', '.join(classes)}",
            "use a BLIP or BLIP-2 folder, or captions.source=provided with a captions file",
        )
    weight_files(folder)
    options = {"use_safetensors": True, "local_files_only": True, "dtype": kind}
    model_class, processor_class = classes[model_type]
    model = _guarded(model_class, folder, options).to(target).requires_grad_(False).eval()
    image_processor = _guarded(AutoImageProcessor, folder, {"local_files_only": True, "backend": "pil"})
    tokenizer = _guarded(AutoTokenizer, folder, {"local_files_only": True})
    extra = {}
    if model_type == "blip-2" and (folder / "processor_config.json").is_file():
        extra["num_query_tokens"] = read_json(folder / "processor_config.json").get("num_query_tokens")
    return model, processor_class(image_processor, tokenizer, **extra)


def load_encoder(
    ref: str | Path, device: str | torch.device = "auto", resolution: int | None = None
) -> Encoder:
    """The frozen encoder; :func:`glass_fast.models.encoder.build_encoder` says what ``ref`` may be."""
    from glass_fast.models.encoder import build_encoder

    return build_encoder(ref, device, resolution)
