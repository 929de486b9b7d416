"""The frozen image encoder: patch tokens of a timm vision transformer (method notes 1.0, stage 6a)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.models import loading

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def crop_box(height: int, width: int) -> tuple[float, float, float, float]:
    """The centred square that the encoder sees: (left, top, right, bottom) in pixels, possibly half-integer.

    Resizing this box is the same as resizing the shorter side and cropping the centre, without a rounded crop
    offset; masks must be cut with the same box.
    """
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


class Encoder(nn.Module):
    """Frozen patch features of an image.

    Args:
        model: timm model whose ``forward_features`` gives tokens ``(batch, prefix + tokens, dim)`` or a map
            ``(batch, dim, h, w)``.
        resolution: side of the square input in pixels.
        mean: channel means of the normalised input.
        std: channel deviations of the normalised input.
        interpolation: resampling filter of :meth:`preprocess`.
        source: where the weights come from.
        checksum: checksum of the weights' folder.

    Attributes:
        grid: token rows and columns ``(h, w)``.
        dim: width of a token.
        resolution: side of the input in pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        resolution: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        source: loading.ModelSource | None = None,
        checksum: str = "",
    ) -> None:
        super().__init__()
        if interpolation not in _INTERPOLATIONS:
            raise DataError(
                "GF-MODEL-020",
                f"interpolation={interpolation!r}; expected one of {', '.join(_INTERPOLATIONS)}",
            )
        self.model = model.requires_grad_(False).eval()
        self.resolution = resolution
        self.interpolation = interpolation
        self.mean, self.std = tuple(float(v) for v in mean), tuple(float(v) for v in std)
        self.source, self.checksum = source, checksum
        self.register_buffer(
            "_scale", 1.0 / (255.0 * torch.tensor(self.std)).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "_shift", (torch.tensor(self.mean) / torch.tensor(self.std)).view(1, 3, 1, 1), persistent=False
        )
        with torch.no_grad():
            probe, grid = self._tokens(torch.zeros(1, 3, resolution, resolution))
        self.grid, self.dim = grid, int(probe.shape[-1])

    def train(self, mode: bool = True) -> Encoder:
        """Stays in eval mode: the encoder is frozen, and dropout in it would make cached features wrong."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return self._scale.device

    def preprocess(self, image: NDArray[np.uint8], fit: Literal["crop", "stretch"] = "crop") -> torch.Tensor:
        """Image -> normalised input.

        Args:
            image: uint8 ``(height, width, 3)``.
            fit: ``crop`` scales the shorter side to :attr:`resolution` and cuts the centre (the paper's
                transform); ``stretch`` scales both sides, so that the whole picture is seen.

        Returns:
            float32 ``(3, resolution, resolution)`` on the CPU.
        """
        pixels = torch.from_numpy(self._resize(image, fit)).permute(2, 0, 1).float()
        return pixels * self._scale[0].cpu() - self._shift[0].cpu()

    def _resize(self, image: NDArray[np.uint8], fit: str) -> NDArray[np.uint8]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(
                "GF-MODEL-021", f"image of {image.dtype} {image.shape}; expected uint8 (height, width, 3)"
            )
        height, width = image.shape[:2]
        if (height, width) == (self.resolution, self.resolution):
            return np.array(image, copy=True)
        from PIL import Image

        box = crop_box(height, width) if fit == "crop" else (0.0, 0.0, float(width), float(height))
        size = (self.resolution, self.resolution)
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(
            size, _INTERPOLATIONS[self.interpolation], box=box
        )
        return np.array(resized)

    def _batch(self, images: Any) -> torch.Tensor:
        """uint8 images (array, tensor or list) or a normalised float tensor -> normalised on the device."""
        if isinstance(images, torch.Tensor) and images.is_floating_point():
            expected = (3, self.resolution, self.resolution)
            if images.ndim != 4 or tuple(images.shape[1:]) != expected:
                raise DataError(
                    "GF-MODEL-021",
                    f"normalised images of shape {tuple(images.shape)}; expected (batch, {expected})",
                    "use preprocess() or pass uint8 (batch, height, width, 3)",
                )
            return images.to(self.device, torch.float32)
        arrays = [np.asarray(image) for image in images]
        if not arrays:
            return torch.zeros(0, 3, self.resolution, self.resolution, device=self.device)
        pixels = torch.from_numpy(np.stack([self._resize(a, "crop") for a in arrays])).to(self.device)
        return pixels.permute(0, 3, 1, 2).float() * self._scale - self._shift

    def _tokens(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        tokens = self.model.forward_features(pixels)
        if tokens.ndim == 4:
            grid = (int(tokens.shape[2]), int(tokens.shape[3]))
            return tokens.flatten(2).transpose(1, 2), grid
        tokens = tokens[:, getattr(self.model, "num_prefix_tokens", 0) :]
        late_norm = getattr(self.model, "fc_norm", None)
        if isinstance(getattr(self.model, "norm", None), nn.Identity) and isinstance(late_norm, nn.Module):
            tokens = late_norm(tokens)  # average-pooled models keep their final norm behind the pooling
        patch_embed: Any = getattr(self.model, "patch_embed", None)
        if hasattr(patch_embed, "dynamic_feat_size"):
            rows, columns = patch_embed.dynamic_feat_size(pixels.shape[-2:])
        else:
            rows = columns = round(tokens.shape[1] ** 0.5)
        if rows * columns != tokens.shape[1]:
            raise DataError(
                "GF-MODEL-022", f"encoder gives {tokens.shape[1]} tokens, which is no {rows} x {columns} grid"
            )
        return tokens, (int(rows), int(columns))

    @torch.no_grad()
    def features(self, images: Any) -> torch.Tensor:
        """Final-norm patch tokens, without class and register tokens.

        Args:
            images: uint8 ``(batch, height, width, 3)`` (array or tensor), a list of uint8 ``(height, width,
                3)`` of any sizes, or float ``(batch, 3, resolution, resolution)`` as :meth:`preprocess` makes
                them.

        Returns:
            float32 ``(batch, tokens, dim)`` on the encoder's device; tokens run row by row.
        """
        return self._tokens(self._batch(images))[0].float().contiguous()

    def forward(self, images: Any) -> torch.Tensor:
        """Same as :meth:`features`."""
        return self.features(images)

    def describe(self) -> dict[str, Any]:
        """What ``preprocess.json`` records: everything that fixes the input of the encoder."""
        return {
            "resolution": self.resolution,
            "grid": list(self.grid),
            "dim": self.dim,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "fit": "crop",
        }


def _locate(ref: str | Path) -> tuple[str, dict[str, Any], loading.ModelSource, Path]:
    """Reference -> (timm model name, extra arguments, source, folder or file to hash)."""
    text = str(ref)
    name, at, place = text.partition("@")
    import timm

    if at and timm.is_model(name):
        source = loading.resolve_model(place)
        folder = source.folder()
        file = folder if folder.is_file() else loading.weight_files(folder)[0]
        if file.suffix != ".safetensors":
            raise DataError(
                "GF-MODEL-007", f"{file} is no safetensors file", "pickled weights are refused: convert them"
            )
        loading.check_safetensors(file)
        return name, {"pretrained_cfg_overlay": {"file": str(file)}}, loading.ModelSource(text, file), file
    if not Path(text).exists() and ":" not in text and "/" not in text and timm.is_model(text.split(".")[0]):
        source = loading.resolve_model(f"timm/{text}")
    else:
        source = loading.resolve_model(ref)
    folder = source.folder()
    if not (folder / "config.json").is_file():
        raise EnvironmentProblem(
            "GF-MODEL-023",
            f"encoder {text!r} ({folder}) has no config.json",
            "expected a timm folder (config.json with `architecture`, model.safetensors), or "
            "MODEL_NAME@FOLDER with the "
            "timm name before the folder of bare weights, e.g. vit_base_patch14_dinov2@/models/dinov2",
        )
    config = loading.read_json(folder / "config.json")
    if "architecture" not in config:
        raise DataError(
            "GF-MODEL-023", f"{folder / 'config.json'} lacks `architecture`: not a timm model folder"
        )
    loading.weight_files(folder)
    return f"local-dir:{folder}", {}, source, folder


def _trained_size(model: Any) -> tuple[int, int] | None:
    """Input size of the weights by the folder's configuration; None when ``model_args`` fixed it already."""
    settings = model.pretrained_cfg
    if settings.get("source") == "local-dir":
        config = loading.read_json(Path(settings["file"]) / "config.json")
        if "img_size" in config.get("model_args", {}):
            return None
    size = settings.get("input_size")
    return (int(size[1]), int(size[2])) if size else None


def build_encoder(
    ref: str | Path, device: str | torch.device = "auto", resolution: int | None = None
) -> Encoder:
    """Load a frozen timm encoder.

    Args:
        ref: ``partworld:encoder``, a timm folder, ``MODEL_NAME@FOLDER_OR_FILE`` (bare safetensors weights), a
            timm model name or a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        resolution: side of the input in pixels, a multiple of the patch; position embeddings are
            interpolated. Default: what the weights were trained at.

    Raises:
        EnvironmentProblem: not found.
        DataError: pickled or damaged weights, or not a timm model.
        ConfigError: ``resolution`` does not fit the patch size.
    """
    loading.ensure_torchvision()
    import timm

    target = loading.resolve_device(device)
    name, extra, source, hashed = _locate(ref)
    options: dict[str, Any] = {"pretrained": True, "num_classes": 0, **extra}
    if resolution is not None:
        options["img_size"] = resolution
    try:
        model = timm.create_model(name, **options)
        native, built = _trained_size(model), getattr(getattr(model, "patch_embed", None), "img_size", None)
        if resolution is None and built is not None and native is not None and tuple(built) != native:
            # without `fixed_input_size` timm builds the architecture's default size, not that of the weights
            model = timm.create_model(name, **options, img_size=native)
    except AssertionError as error:
        raise ConfigError(
            "GF-MODEL-024", f"encoder {source.ref!r} does not take resolution={resolution}: {error}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise DataError(
            "GF-MODEL-024",
            f"encoder {source.ref!r} cannot be loaded by timm: {type(error).__name__}: {error}",
            "compare `architecture` and `model_args` in config.json with the weights",
        ) from error
    settings = model.pretrained_cfg
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    trained = getattr(getattr(model, "patch_embed", None), "img_size", None) or settings["input_size"][1:]
    side = int(resolution or trained[0])
    if side % patch[0]:
        raise ConfigError(
            "GF-MODEL-024",
            f"resolution={side} is no multiple of the patch size {patch[0]} of encoder {source.ref!r}",
            f"use {side // patch[0] * patch[0] or patch[0]} or {(side // patch[0] + 1) * patch[0]}",
        )
    encoder = Encoder(
        model,
        side,
        settings["mean"],
        settings["std"],
        settings.get("interpolation") or "bicubic",
        source,
        loading.folder_checksum(hashed),
    )
    return encoder.to(target)
