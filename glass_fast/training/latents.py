"""What phase 2 reads: frozen features and VAE latents of a fixed list of pictures; no mask is looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.config.schema import DecoderConfig
from glass_fast.data import atomic
from glass_fast.data.images import decode_image, list_images
from glass_fast.data.shards import ShardDataset
from glass_fast.errors import DataError
from glass_fast.models.diffusion_decoder import DiffusionDecoder, FrozenVAE, fit_picture
from glass_fast.models.encoder import Encoder
from glass_fast.progress import Progress, StopToken
from glass_fast.training.data import ENCODE_BATCH, Chosen, data_hash, feature_store, put_features, select
from glass_fast.training.store import ArrayStore


class PictureFolder:
    """Plain pictures as training data, in the order of their paths.

    Args:
        folder: searched to any depth; see :func:`glass_fast.data.images.list_images`.

    Raises:
        DataError: no picture there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.paths = list_images(self.folder)

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """SHA-256 of all names and contents."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path.relative_to(self.folder)}\0{atomic.sha256_file(path)}\n".encode())
        return digest.hexdigest()


@dataclass
class LatentData:
    """Everything a phase-2 run indexes into.

    Attributes:
        features: ``(views, images, tokens, dim)``; view 1 is the mirrored picture.
        latents: ``(views, images, 2, channels, h, w)``: mean and deviation of the scaled VAE latents.
        record: what ``run.json`` says about the data.
    """

    features: torch.Tensor
    latents: torch.Tensor
    record: dict[str, Any]

    def __len__(self) -> int:
        return self.features.shape[1]

    def batch(
        self, rows: torch.Tensor, flips: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gather a batch.

        Args:
            rows: int64 ``(batch,)`` picture indices.
            flips: bool ``(batch,)``: take the mirrored view.
            device: where the batch goes.

        Returns:
            float32 features ``(batch, tokens, dim)``, mean and deviation of latents ``(batch, channels, h, w)``.
        """
        views = flips.long() if self.features.shape[0] > 1 else torch.zeros_like(rows)
        features = self.features[views, rows].to(device, torch.float32)
        moments = self.latents[views, rows].to(device, torch.float32)
        return features, moments[:, 0], moments[:, 1]


def choose_pictures(data: ShardDataset | PictureFolder, reject: Sequence[str]) -> Chosen:
    """Which pictures a run trains on: all of a folder, all samples of shards without a rejecting flag.

    Raises:
        DataError: GF-TRAIN-004, none is left.
    """
    if isinstance(data, ShardDataset):
        rows, digest = select(data, reject), data_hash(data)
    else:
        rows, digest = list(range(len(data))), data.digest()
    return Chosen(rows, digest, hashlib.sha256(json.dumps(rows).encode()).hexdigest())


def _picture(data: ShardDataset | PictureFolder, row: int) -> NDArray[np.uint8]:
    return data[row].image if isinstance(data, ShardDataset) else decode_image(data.paths[row])


def prepare_latents(
    config: DecoderConfig,
    data: ShardDataset | PictureFolder,
    chosen: Chosen,
    encoder: Encoder,
    decoder: DiffusionDecoder,
    cache: Path | None = None,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> LatentData:
    """Encode all pictures once with the frozen encoder and the frozen VAE.

    Args:
        config: ``flip`` asks for the mirrored views.
        data: shards or plain pictures.
        chosen: result of :func:`choose_pictures`.
        encoder: frozen encoder.
        decoder: its VAE and picture size are used.
        cache: folder for arrays that exceed 4 GiB.
        progress: shows pictures, rate and time left.
        stop: looked at between batches.

    Raises:
        DataError: a damaged sample or picture, or values that are not finite.
    """
    progress, rows = progress or Progress(), chosen.rows
    views, vae, side = 2 if config.flip else 1, decoder.vae, decoder.resolution
    features = feature_store(encoder, len(rows), views, cache, chosen.digest, chosen.rows_hash)
    key = json.dumps([chosen.digest, vae.checksum, side, views, chosen.rows_hash])
    channels, size = int(decoder.unet.config.in_channels), decoder.latent_size
    latents = ArrayStore("latents", (views, len(rows), 2, channels, size, size), cache, key)
    progress.start(len(rows), "images", "features and latents")
    for start in range(0, len(rows), ENCODE_BATCH):
        batch = rows[start : start + ENCODE_BATCH]
        if not (features.complete and latents.complete):
            images = [_picture(data, row) for row in batch]
            if not features.complete:
                put_features(features, encoder, start, images)
            if not latents.complete:
                _put_latents(latents, vae, start, [fit_picture(image, side) for image in images])
        progress.advance(len(batch))
        if stop is not None:
            stop.check("training had not begun")
    progress.finish()
    record = {
        "kind": "shards" if isinstance(data, ShardDataset) else "pictures",
        "name": (data.directory if isinstance(data, ShardDataset) else data.folder).name,
        "hash": chosen.digest,
        "samples": len(rows),
        "rows": chosen.rows_hash,
        "rejected": len(data) - len(rows),
    }
    return LatentData(features.finish(), latents.finish(), record)


def _put_latents(store: ArrayStore, vae: FrozenVAE, first: int, images: list[NDArray[np.uint8]]) -> None:
    for view in range(store.array.shape[0]):
        pixels = np.stack([image[:, ::-1] if view else image for image in images])
        mean, deviation = vae.moments(pixels)
        if mean.shape[1:] != store.array.shape[3:]:
            raise DataError(
                "GF-TRAIN-020",
                f"the VAE of {vae.ref!r} gives latents {tuple(mean.shape[1:])}; the UNet takes "
                f"{tuple(store.array.shape[3:])}",
                "UNet and VAE belong to different models: use one Stable Diffusion folder",
            )
        store.put(view, first, torch.stack([mean, deviation], 1))
