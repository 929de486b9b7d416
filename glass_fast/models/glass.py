"""The Glass model: frozen encoder, slot attention and MLP decoder as one folder on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from glass_fast import __version__
from glass_fast.data import atomic
from glass_fast.data.prompts import sample_seed
from glass_fast.errors import ConfigError, DataError
from glass_fast.models import loading
from glass_fast.models.card import model_card
from glass_fast.models.encoder import Encoder
from glass_fast.models.folders import atomic_folder
from glass_fast.models.mlp_decoder import MLPDecoder, MLPDecoderConfig
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig
from glass_fast.models.weights import check_safetensors, read_json, weight_files

if TYPE_CHECKING:
    import os

SCHEMA = 1
_CONFIG_KEYS = {"schema", "class", "version", "slot_attention", "decoder", "encoder", "grid"}


class SlotOutput(NamedTuple):
    """What slot attention gives for a batch."""

    slots: torch.Tensor
    """``(batch, slots, slot_size)`` raw slots."""
    projected: torch.Tensor
    """``(batch, slots, out_size)`` slots projected for the diffusion decoder."""
    masks: torch.Tensor
    """``(batch, slots, tokens)`` soft masks that sum to one over slots."""


class Glass(nn.Module):
    """Images -> slots and masks (GLASS, inference stages 6 and 7).

    Args:
        encoder: frozen feature encoder.
        slot_attention: slots from features.
        decoder: MLP decoder (needed to train on, not to find objects).
        labels: class names of the training data; label id of ``labels[i]`` is ``i + 1``.
        run: training record; written to ``run.json``.
    """

    def __init__(
        self,
        encoder: Encoder,
        slot_attention: SlotAttention,
        decoder: MLPDecoder | None = None,
        labels: Sequence[str] = (),
        run: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if encoder.dim != slot_attention.config.input_size:
            raise ConfigError(
                "GF-MODEL-040",
                f"the encoder gives {encoder.dim} channels, slot attention expects "
                f"{slot_attention.config.input_size}",
                "use the encoder that the model was trained with",
            )
        self.encoder, self.slot_attention, self.decoder = encoder, slot_attention, decoder
        self.labels = tuple(labels)
        self.run = run

    @property
    def device(self) -> torch.device:
        return self.slot_attention.slot_mu.device

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of the masks."""
        return self.encoder.grid

    @property
    def num_slots(self) -> int:
        return self.slot_attention.config.num_slots

    def encode(self, images: Any) -> torch.Tensor:
        """Features ``(batch, tokens, dim)``; ``images`` as :meth:`Encoder.features` takes them."""
        return self.encoder.features(images)

    def noise(
        self, batch: int, seed: int = 0, ids: Sequence[str] | None = None, slots: int | None = None
    ) -> torch.Tensor:
        """Noise of the initial slots.

        Without ``ids`` every image gets the same noise, and with them noise that depends on seed and id only;
        so the masks of an image never depend on the images beside it in a batch.

        Returns:
            ``(batch, slots, slot_size)``.
        """
        seeds = [seed] * batch if ids is None else [sample_seed(seed, name, "slots") for name in ids]
        if len(seeds) != batch:
            raise ConfigError("GF-MODEL-041", f"{len(seeds)} ids for {batch} images")
        drawn: dict[int, torch.Tensor] = {}
        for value in seeds:
            if value not in drawn:
                generator = torch.Generator().manual_seed(value)
                drawn[value] = self.slot_attention.draw_noise(1, slots, generator)
        if not seeds:
            return self.slot_attention.draw_noise(0, slots)
        return torch.cat([drawn[value] for value in seeds])

    @torch.no_grad()
    def slots(
        self, inputs: Any, seed: int = 0, ids: Sequence[str] | None = None, num_slots: int | None = None
    ) -> SlotOutput:
        """Slots of images or of features.

        Args:
            inputs: features ``(batch, tokens, dim)`` (a three-dimensional float tensor) or images.
            seed: seed of the initial slots.
            ids: one name an image; see :meth:`noise`.
            num_slots: use another number of slots than in training (1 to 64).
        """
        is_features = isinstance(inputs, torch.Tensor) and inputs.is_floating_point() and inputs.ndim == 3
        features = inputs.to(self.device, torch.float32) if is_features else self.encode(inputs)
        grid = self.grid if features.shape[1] == math.prod(self.grid) else None
        if self.slot_attention.config.learnable_slot_init:
            return SlotOutput(*self.slot_attention(features, num_slots=num_slots, grid=grid))
        noise = self.noise(len(features), seed, ids, num_slots)
        return SlotOutput(*self.slot_attention(features, noise, num_slots, grid=grid))

    def masks(
        self, images: Any, seed: int = 0, ids: Sequence[str] | None = None, num_slots: int | None = None
    ) -> torch.Tensor:
        """Soft masks ``(batch, slots, rows, columns)`` of images (or features) at the token grid."""
        masks = self.slots(images, seed, ids, num_slots).masks
        rows, columns = self.grid
        if masks.shape[2] != rows * columns:
            rows = columns = math.isqrt(masks.shape[2])
        return masks.unflatten(2, (rows, columns))

    def forward(self, images: Any, seed: int = 0) -> torch.Tensor:
        """Same as :meth:`masks`."""
        return self.masks(images, seed)

    def discover(self, images: Any, *args: Any, **options: Any) -> Any:
        """Find objects in pictures; see :func:`glass_fast.engine.discover.discover`."""
        from glass_fast.engine.discover import discover

        return discover(self, images, *args, **options)

    def config_dict(self) -> dict[str, Any]:
        """Contents of ``config.json``."""
        source = self.encoder.source
        return {
            "schema": SCHEMA,
            "class": "Glass",
            "version": __version__,
            "slot_attention": self.slot_attention.config.to_dict(),
            "decoder": None if self.decoder is None else self.decoder.config.to_dict(),
            "encoder": {
                "ref": source.ref if source else "",
                "checksum": self.encoder.checksum,
                "resolution": self.encoder.resolution,
            },
            "grid": list(self.grid),
        }

    def save_pretrained(self, path: str | os.PathLike[str], run: dict[str, Any] | None = None) -> Path:
        """Write the model folder; it appears whole or not at all (``config.json`` comes last).

        Files: ``config.json``, ``model.safetensors`` (``slot_attention.*``, ``decoder.*``),
        ``preprocess.json``, ``label_map.json``, ``README.md`` and, for a trained model, ``run.json``. The
        encoder is named with its checksum, not copied.

        Returns:
            The folder.
        """
        from safetensors.torch import save_file

        config = self.config_dict()
        run = run if run is not None else self.run
        tensors = {f"slot_attention.{k}": v for k, v in self.slot_attention.state_dict().items()}
        if self.decoder is not None:
            tensors |= {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        final = Path(path)
        with atomic_folder(final, merge_last="config.json") as folder:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            atomic.write_json(folder / "config.json", config)
            atomic.write_json(folder / "preprocess.json", self.encoder.describe())
            atomic.write_json(
                folder / "label_map.json",
                {
                    "background": 0,
                    "uncertain": 255,
                    "labels": {str(i + 1): n for i, n in enumerate(self.labels)},
                },
            )
            if run is not None:
                atomic.write_json(folder / "run.json", run)
            atomic.write_bytes(folder / "README.md", model_card(config, self.labels, run).encode())
        return final

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "auto",
        encoder: Encoder | str | os.PathLike[str] | None = None,
    ) -> Glass:
        """Load a model folder, ``partworld:NAME`` or a hub id.

        Args:
            path: reference of the model.
            device: ``auto``, ``cpu``, ``cuda`` or a torch device.
            encoder: a loaded encoder to share, or where the encoder lies now; default: the recorded
                reference.

        Raises:
            EnvironmentProblem: the model or its encoder is not found.
            DataError: damaged, or the encoder is not the one that the model was trained with.
            ConfigError: unknown keys in the configuration.
        """
        folder = loading.resolve_model(str(path)).folder()
        config = read_json(folder / "config.json")
        _check_config(folder, config)
        target = loading.resolve_device(device)
        wanted = config["encoder"]
        if not isinstance(encoder, Encoder):
            encoder = loading.load_encoder(str(encoder or wanted["ref"]), target, int(wanted["resolution"]))
        if encoder.checksum != wanted["checksum"]:
            raise DataError(
                "GF-MODEL-042",
                f"{folder} was trained with encoder {wanted['ref']!r} of checksum "
                f"{wanted['checksum'][:16]}, got "
                f"{encoder.checksum[:16]}",
                "slots trained on other features mean nothing: pass the original encoder folder "
                "(encoder=...)",
            )
        if encoder.resolution != wanted["resolution"]:
            raise DataError(
                "GF-MODEL-042",
                f"{folder} was trained at resolution {wanted['resolution']}, the encoder is set to "
                f"{encoder.resolution}",
                "load the encoder with that resolution",
            )
        slot_attention = SlotAttention(SlotAttentionConfig.from_dict(config["slot_attention"]))
        decoder = MLPDecoder(MLPDecoderConfig.from_dict(config["decoder"])) if config["decoder"] else None
        label_map = read_json(folder / "label_map.json").get("labels", {})
        labels = [label_map[key] for key in sorted(label_map, key=int)]
        run = read_json(folder / "run.json") if (folder / "run.json").is_file() else None
        model = cls(encoder, slot_attention, decoder, labels, run)
        model._load_weights(folder)
        slot_attention.to(target)
        if decoder is not None:
            decoder.to(target)
        return model.eval()

    def _load_weights(self, folder: Path) -> None:
        """Read ``model.safetensors`` after its names and shapes were compared with the configuration."""
        from safetensors.torch import load_file

        (file,) = weight_files(folder)
        found = {name: shape for name, (_, shape) in check_safetensors(file).items()}
        parts: dict[str, nn.Module] = {"slot_attention": self.slot_attention}
        if self.decoder is not None:
            parts["decoder"] = self.decoder
        expected = {
            f"{part}.{name}": tuple(tensor.shape)
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        if found != expected:
            names = sorted(n for n in set(found) | set(expected) if found.get(n) != expected.get(n))
            first = names[0]
            raise DataError(
                "GF-MODEL-043",
                f"{file} does not fit config.json: {len(names)} tensors differ, first {first!r} is "
                f"{found.get(first, 'absent')}, expected {expected.get(first, 'none')}",
                "the folder mixes files of two models: copy it again",
            )
        tensors = load_file(file)
        for part, module in parts.items():
            prefix = f"{part}."
            module.load_state_dict(
                {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            )


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    if config.get("class") != "Glass":
        raise DataError(
            "GF-MODEL-044",
            f"{folder / 'config.json'} has class {config.get('class')!r}; expected 'Glass'",
            "this is no Glass model folder",
        )
    if config.get("schema") != SCHEMA:
        raise DataError(
            "GF-MODEL-044",
            f"{folder / 'config.json'} has schema {config.get('schema')!r}; this version reads schema "
            f"{SCHEMA}",
            "use the version of glass-fast that wrote it, or train again",
        )
    if set(config) != _CONFIG_KEYS:
        different = sorted(set(config) ^ _CONFIG_KEYS)
        raise ConfigError(
            "GF-MODEL-031", f"{folder / 'config.json'}: unknown or missing keys {', '.join(different)}"
        )
