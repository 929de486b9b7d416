"""The diffusion decoder: a Stable Diffusion UNet whose only context is slots (GLASS phase 2; method notes 4.1).

Folder, ``decoder/`` inside a Glass model folder (the released "st2" checkpoints also hold slots and a full UNet)::

    config.json   origin and checksum of the VAE, sizes, prediction type, checksum of the slot attention
    unet/         diffusers UNet2DConditionModel      null_context.safetensors   what replaces dropped slots
    scheduler/    scheduler_config.json               run.json, README.md        how it was trained

The VAE is never trained, so it is named and not copied.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from glass_fast import __version__
from glass_fast.data import atomic
from glass_fast.errors import ConfigError, DataError, EnvironmentProblem
from glass_fast.models import loading
from glass_fast.models.denoising import encode_moments, vae_factor
from glass_fast.models.encoder import crop_box
from glass_fast.models.folders import atomic_folder
from glass_fast.models.schedulers import NoiseSchedule
from glass_fast.models.weights import check_safetensors, folder_checksum, weight_files, weight_variant

if TYPE_CHECKING:
    import os

    from glass_fast.models.glass import Glass

SCHEMA = 1
FOLDER = "decoder"
"""Name of the decoder's folder inside a model folder."""
_WEIGHTS = "diffusion_pytorch_model"
_NULL = "null_context.safetensors"
_CONFIG_KEYS = {
    "schema", "class", "version", "generator", "slots_checksum", "out_size", "conditioning", "prediction_type",
    "latent_size",
}  # fmt: skip
_FOREIGN_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "time_cond_proj_dim")
"""Options that give a UNet further inputs beside noisy latents, timestep and context (SDXL and others)."""


@dataclass
class FrozenVAE:
    """The VAE of a generator and where it came from.

    Attributes:
        model: ``AutoencoderKL``, frozen.
        ref: reference of the generator's folder.
        checksum: :func:`folder_checksum` of its ``vae/``.
    """

    model: Any
    ref: str
    checksum: str

    @classmethod
    def of(cls, generator: loading.Generator) -> FrozenVAE:
        """The VAE of a loaded generator."""
        return cls(generator.vae, generator.source.ref, folder_checksum(generator.source.folder() / "vae"))

    @classmethod
    def load(cls, ref: str | Path, device: torch.device) -> FrozenVAE:
        """Load only ``vae/`` of a Stable Diffusion folder, in float32.

        Raises:
            EnvironmentProblem: not found, or the folder has no vae/.
            DataError: pickled or damaged weights.
        """
        loading.ensure_torchvision()
        from diffusers import AutoencoderKL

        source = loading.resolve_model(ref)
        folder = source.folder() / "vae"
        if not folder.is_dir():
            raise EnvironmentProblem(
                "GF-MODEL-009",
                f"generator {source.ref!r} ({folder.parent}) lacks vae/",
                "expected a Stable Diffusion folder in diffusers layout",
            )
        model = _load_network(AutoencoderKL, folder)
        return cls(model.to(device).requires_grad_(False).eval(), source.ref, folder_checksum(folder))

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return vae_factor(self.model)

    @torch.no_grad()
    def moments(self, images: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (batch, height, width, 3) -> mean and deviation of the scaled latents, float32 (batch, C, h, w)."""
        return encode_moments(self.model, torch.from_numpy(images))


def _load_network(model_class: Any, folder: Path) -> Any:
    variant = weight_variant(folder, _WEIGHTS)
    weight_files(folder, _WEIGHTS, variant)
    options = {"use_safetensors": True, "local_files_only": True, "torch_dtype": torch.float32}
    return loading._guarded(model_class, folder, options | ({"variant": variant} if variant else {}))


def module_checksum(module: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 bytes of all weights, so that it survives saving and loading."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\0".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def fit_picture(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale the shorter side to ``side`` and cut the centre (bicubic), as the encoder does.

    Args:
        image: uint8 (height, width, 3).
        side: pixels.

    Returns:
        uint8 (side, side, 3).
    """
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return np.ascontiguousarray(image)
    from PIL import Image

    box = crop_box(height, width)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((side, side), Image.Resampling.BICUBIC, box=box))


def _context_width(unet: Any) -> int:
    """Width of the UNet's context.

    Raises:
        ConfigError: GF-MODEL-050, the UNet wants further inputs, or several widths.
    """
    wants = [name for name in _FOREIGN_INPUTS if getattr(unet.config, name, None) is not None]
    widths = unet.config.cross_attention_dim
    widths = set(widths) if isinstance(widths, (list, tuple)) else {widths}
    if wants or len(widths) != 1:
        found = f"has {', '.join(wants)}" if wants else f"has cross_attention_dim={sorted(widths)}"
        raise ConfigError(
            "GF-MODEL-050",
            f"the UNet {found}; expected one whose inputs are latents, timestep and one context",
            "use a Stable Diffusion 1.x or 2.x folder for models.decoder",
        )
    return int(widths.pop())


class DiffusionDecoder(nn.Module):
    """Slots -> pictures.

    Slots replace the text embeddings in every cross-attention layer; nothing else is added. For classifier-free
    guidance dropped slots are replaced by the *null context*: one learned vector, repeated for every slot, that starts
    at zero (a UNet's cross-attention then adds only its output bias) and learns from the dropped samples. The paper
    does not say; the released sampling script takes SD's embedding of the empty prompt, which a UNet trained on slots
    has never seen.

    Args:
        unet: diffusers UNet2DConditionModel.
        vae: frozen VAE; not a part of the saved folder.
        scheduler_config: contents of ``scheduler_config.json``; fixes noise levels and prediction type.
        latent_size: side of the square latents.
        slots_checksum: :func:`module_checksum` of the slot attention whose slots it was trained on.
        context_dropout: share of samples that were trained on the null context.
        run: training record; written to ``run.json``.

    Raises:
        ConfigError: GF-MODEL-050, a UNet with other inputs.
    """

    def __init__(
        self,
        unet: Any,
        vae: FrozenVAE,
        scheduler_config: dict[str, Any],
        latent_size: int,
        slots_checksum: str = "",
        context_dropout: float = 0.0,
        run: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.out_size = _context_width(unet)
        self.unet = unet
        self.null_context = nn.Parameter(torch.zeros(self.out_size, device=unet.device))
        self.vae = vae
        self.scheduler_config = dict(scheduler_config)
        self.noise_schedule = NoiseSchedule(self.scheduler_config)
        self.latent_size = latent_size
        self.slots_checksum, self.context_dropout, self.run = slots_checksum, context_dropout, run

    @classmethod
    def from_generator(
        cls,
        generator: loading.Generator,
        out_size: int,
        init: Literal["generator", "scratch"] = "generator",
        seed: int = 0,
        resolution: int | None = None,
    ) -> DiffusionDecoder:
        """An untrained decoder on a copy of a generator's UNet; the generator is left as it is.

        Args:
            generator: Stable Diffusion parts.
            out_size: width of the projected slots.
            init: start from the generator's weights, or from random ones of the same shape.
            seed: of the random weights.
            resolution: side of the pictures in pixels; default: the UNet's native size.

        Raises:
            ConfigError: GF-MODEL-050, a UNet with other inputs; GF-MODEL-051, slots of another width than its
                context; GF-MODEL-052, a resolution that the VAE cannot make.
        """
        from diffusers import UNet2DConditionModel

        vae = FrozenVAE.of(generator)
        width = _context_width(generator.unet)
        if width != out_size:
            raise ConfigError(
                "GF-MODEL-051",
                f"the slots are {out_size} wide, the UNet of {vae.ref!r} takes a context of {width}",
                f"train slots with training.out_size={width}, or name another generator in models.decoder",
            )
        # hidden keys of the configuration would carry the path of the generator into the saved folder
        config = {k: v for k, v in dict(generator.unet.config).items() if not k.startswith("_")}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet = UNet2DConditionModel.from_config(config)
        if init == "generator":
            unet.load_state_dict(generator.unet.state_dict())
        unet = unet.to(generator.unet.device).eval()
        return cls(unet, vae, generator.scheduler_config, _latent_size(unet, vae, resolution))

    @property
    def device(self) -> torch.device:
        return self.null_context.device

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""
        return self.latent_size * self.vae.factor

    def null(self, batch: int, slots: int) -> torch.Tensor:
        """The null context ``(batch, slots, out_size)``."""
        return self.null_context.expand(batch, slots, -1)

    def context(self, slots: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
        """What cross-attention sees.

        Args:
            slots: projected slots ``(batch, slots, out_size)``.
            dropped: bool ``(batch,)``: these samples get the null context.

        Raises:
            ConfigError: GF-MODEL-051, slots of another width.
        """
        if slots.ndim != 3 or slots.shape[2] != self.out_size:
            raise ConfigError(
                "GF-MODEL-051",
                f"slots of shape {tuple(slots.shape)}; the decoder takes (batch, slots, {self.out_size})",
                "pass projected slots (SlotOutput.projected) of the model that the decoder was trained with",
            )
        if dropped is None:
            return slots
        return torch.where(dropped[:, None, None], self.null(*slots.shape[:2]), slots)

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        slots: torch.Tensor,
        dropped: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Prediction (noise, velocity or latents, as the scheduler says), shaped as ``noisy``.

        Args:
            noisy: ``(batch, channels, h, w)`` latents with noise.
            timesteps: int64 ``(batch,)``.
            slots: as :meth:`context`.
            dropped: as :meth:`context`.
        """
        context = self.context(slots, dropped)
        return self.unet(noisy, timesteps, encoder_hidden_states=context, return_dict=False)[0]

    def config_dict(self) -> dict[str, Any]:
        """Contents of ``config.json``."""
        return {
            "schema": SCHEMA,
            "class": "DiffusionDecoder",
            "version": __version__,
            "generator": {"ref": self.vae.ref, "vae_checksum": self.vae.checksum},
            "slots_checksum": self.slots_checksum,
            "out_size": self.out_size,
            "conditioning": {"context": "slots", "dropout": self.context_dropout},
            "prediction_type": self.noise_schedule.prediction_type,
            "latent_size": self.latent_size,
        }

    def save_pretrained(
        self, path: str | os.PathLike[str], dtype: Literal["float32", "float16"] = "float32"
    ) -> Path:
        """Write the decoder folder; a folder of that name is replaced as a whole.

        Args:
            path: usually ``MODEL/decoder``.
            dtype: of the saved weights; loading always gives float32.

        Raises:
            EnvironmentProblem: disk full or not writable; the old folder is then still there.
        """
        from safetensors.torch import save_file

        kind = loading.resolve_dtype(dtype)
        unet = copy.deepcopy(self.unet).half() if kind == torch.float16 else self.unet
        null = {"null_context": self.null_context.detach().to("cpu", kind).contiguous()}
        with atomic_folder(path) as folder:
            with atomic.storage_errors(path, "write the decoder"):
                unet.save_pretrained(folder / "unet", safe_serialization=True)
                save_file(null, folder / _NULL)
            atomic.make_directory(folder / "scheduler")
            atomic.write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler_config)
            if self.run is not None:
                atomic.write_json(folder / "run.json", self.run)
            atomic.write_bytes(folder / "README.md", self._card().encode())
            atomic.write_json(folder / "config.json", self.config_dict())
        return Path(path)

    def _card(self) -> str:
        lines = [
            "# Pictures from slots (GLASS, phase 2)\n",
            f"- VAE (not in this folder): `{self.vae.ref}`, sha256 `{self.vae.checksum[:16]}`",
            f"- slots: width {self.out_size}, slot attention sha256 `{self.slots_checksum[:16]}`",
            f"- pictures: {self.resolution} x {self.resolution} pixels",
        ]
        if self.run:
            options, data = self.run.get("config", {}), self.run.get("data", {})
            lines += [
                f"- data: {data.get('samples')} pictures ({data.get('kind')}), sha256 `{data.get('hash', '')[:16]}`",
                f"- steps x batch: {options.get('steps')} x {options.get('batch_size')}; slots "
                f"{options.get('slots')}; context dropout {self.context_dropout:g}; seed {self.run.get('seed')}",
            ]
        return (
            "\n".join(lines) + "\n\n`glass-fast generate PICTURES --model MODEL --out OUT` samples from it.\n"
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "auto",
        generator: str | os.PathLike[str] | None = None,
    ) -> DiffusionDecoder:
        """Load a decoder folder in float32, frozen.

        Args:
            path: the folder itself, ``MODEL/decoder``.
            device: ``auto``, ``cpu``, ``cuda`` or a torch device.
            generator: where the Stable Diffusion folder with the VAE lies now; default: the recorded reference.

        Raises:
            EnvironmentProblem: the folder or the generator is not found.
            DataError: damaged, or the VAE is not the one that the decoder was trained with.
            ConfigError: unknown keys in the configuration.
        """
        loading.ensure_torchvision()
        from diffusers import UNet2DConditionModel
        from safetensors.torch import load_file

        folder = Path(path)
        config = loading.read_json(folder / "config.json")
        _check_config(folder, config)
        target = loading.resolve_device(device)
        wanted = config["generator"]
        vae = FrozenVAE.load(str(generator or wanted["ref"]), target)
        if vae.checksum != wanted["vae_checksum"]:
            raise DataError(
                "GF-MODEL-053",
                f"{folder} was trained with a VAE of checksum {wanted['vae_checksum'][:16]} from {wanted['ref']!r}, "
                f"got {vae.checksum[:16]} from {vae.ref!r}",
                "latents of another VAE mean nothing: pass the original generator folder (generator=...)",
            )
        unet = _load_network(UNet2DConditionModel, folder / "unet").to(target)
        scheduler = loading.read_json(folder / "scheduler" / "scheduler_config.json")
        run = loading.read_json(folder / "run.json") if (folder / "run.json").is_file() else None
        decoder = cls(
            unet, vae, scheduler, int(config["latent_size"]), str(config["slots_checksum"]),
            float(config["conditioning"]["dropout"]), run,
        )  # fmt: skip
        found = {"out_size": decoder.out_size, "prediction_type": decoder.noise_schedule.prediction_type}
        differing = [
            f"{k} {config[k]!r} there, {v!r} in the parts" for k, v in found.items() if config[k] != v
        ]
        if (folder / _NULL).is_file():
            shapes = {name: shape for name, (_, shape) in check_safetensors(folder / _NULL).items()}
            if shapes != {"null_context": (decoder.out_size,)}:
                differing.append(f"{_NULL} holds {shapes}")
        else:
            differing.append(f"{_NULL} is missing")
        if differing:
            raise DataError(
                "GF-MODEL-054",
                f"{folder / 'config.json'} does not fit the folder: {'; '.join(differing)}",
                "the folder mixes files of two decoders: copy it again",
            )
        with torch.no_grad():
            decoder.null_context.copy_(load_file(folder / _NULL)["null_context"])
        return decoder.requires_grad_(False).eval()


def _latent_size(unet: Any, vae: FrozenVAE, resolution: int | None) -> int:
    if resolution is not None:
        if resolution % vae.factor:
            nearest = max(1, round(resolution / vae.factor)) * vae.factor
            raise ConfigError(
                "GF-MODEL-052",
                f"decoder.resolution={resolution}; expected a multiple of {vae.factor}, the VAE's factor",
                f"use {nearest}",
            )
        return resolution // vae.factor
    size = unet.config.sample_size
    if not isinstance(size, int):
        raise ConfigError(
            "GF-MODEL-052",
            f"the UNet's config.json has sample_size={size!r}; expected the side of its latents",
            "set decoder.resolution",
        )
    return size


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    if config.get("class") != "DiffusionDecoder" or config.get("schema") != SCHEMA:
        raise DataError(
            "GF-MODEL-055",
            f"{folder / 'config.json'} has class {config.get('class')!r} of schema {config.get('schema')!r}; "
            f"expected 'DiffusionDecoder' of schema {SCHEMA}",
            "this is no decoder folder, or another version of glass-fast wrote it",
        )
    if set(config) != _CONFIG_KEYS:
        different = ", ".join(sorted(set(config) ^ _CONFIG_KEYS))
        raise ConfigError("GF-MODEL-056", f"{folder / 'config.json'}: unknown or missing keys {different}")


def load_decoder(
    ref: str | os.PathLike[str],
    model: Glass,
    device: str | torch.device = "auto",
    generator: str | os.PathLike[str] | None = None,
) -> DiffusionDecoder:
    """The decoder of a model folder, after a check that it belongs to the model's slots.

    Args:
        ref: the model's reference (folder, ``partworld:NAME`` or hub id).
        model: the loaded model.
        device: as :meth:`DiffusionDecoder.from_pretrained`.
        generator: likewise.

    Raises:
        EnvironmentProblem: GF-MODEL-057, the model has no decoder.
        DataError: GF-MODEL-058, the decoder was trained on other slots; damaged files.
    """
    folder = loading.resolve_model(str(ref)).folder() / FOLDER
    if not (folder / "config.json").is_file():
        raise EnvironmentProblem(
            "GF-MODEL-057",
            f"model {str(ref)!r} has no {FOLDER}/: it finds objects but cannot make pictures",
            "train one with `glass-fast train-decoder SHARDS --model MODEL --out OUT`",
        )
    decoder = DiffusionDecoder.from_pretrained(folder, device, generator)
    found = module_checksum(model.slot_attention)
    if decoder.slots_checksum != found:
        raise DataError(
            "GF-MODEL-058",
            f"{folder} was trained on slots of checksum {decoder.slots_checksum[:16]}, the model's are {found[:16]}",
            "train the decoder of this model again (glass-fast train-decoder)",
        )
    return decoder
