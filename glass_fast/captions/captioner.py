"""Captioning of real images with BLIP or BLIP-2: batched, deterministic, resumable.

The paper uses BLIP-2 and publishes neither size nor decoding settings (method notes 1.0); greedy decoding
of at most 30 tokens is the default. Images are decoded in threads while the model works on the batch before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.captions.cache import CaptionCache
from glass_fast.captions.sources import Item, Rejects
from glass_fast.captions.text import clean_caption, image_key
from glass_fast.config.schema import CaptionsConfig
from glass_fast.data.images import decode_image, list_images
from glass_fast.errors import ConfigError, DataError, EnvironmentProblem, NumericsError
from glass_fast.progress import Progress, StopToken


class Captioner:
    """A captioning model with fixed decoding settings.

    Args:
        model: ``BlipForConditionalGeneration`` or ``Blip2ForConditionalGeneration``, in eval mode.
        processor: its processor.
        max_new_tokens: longest caption in tokens; at most what the model has positions for.
        num_beams: 1 for greedy decoding.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 30, num_beams: int = 1) -> None:
        self.model = model
        self.processor = processor
        self.max_new_tokens = min(max_new_tokens, _room(model))
        self.num_beams = num_beams
        if getattr(model.config, "model_type", "") == "blip-2":
            _complete_blip2(model, processor)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        """Caption images.

        Args:
            images: uint8 ``(height, width, 3)`` each, of any size.

        Returns:
            A caption for each, as decoded (not cleaned).

        Raises:
            NumericsError: GF-CAP-040, out of memory even for a single image.
        """
        import torch

        if not images:
            return []
        try:
            return self._generate(images)
        except torch.OutOfMemoryError as error:
            problem = str(error)
        if len(images) == 1:
            raise NumericsError(
                "GF-CAP-040",
                f"out of memory while captioning a single image: {problem}",
                "use a smaller captioner, set captions.num_beams=1, or run with --set device=cpu",
            )
        torch.cuda.empty_cache()
        half = len(images) // 2
        return self(images[:half]) + self(images[half:])

    def _generate(self, images: Sequence[NDArray[np.uint8]]) -> list[str]:
        import torch
        from PIL import Image

        # PIL images, since an array of 3 rows would be taken for channels first
        inputs = self.processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        parameter = next(self.model.parameters())
        pixels = inputs["pixel_values"].to(parameter.device, parameter.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(
                pixel_values=pixels,
                do_sample=False,
                num_beams=self.num_beams,
                max_new_tokens=self.max_new_tokens,
            )
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


def _room(model: Any) -> int:
    """Tokens that BLIP's text decoder has positions for, less the one it starts with; BLIP-2's are not the limit."""
    if getattr(model.config, "model_type", "") != "blip":
        return 2**31
    return int(model.config.text_config.max_position_embeddings) - 1


def _complete_blip2(model: Any, processor: Any) -> None:
    """Give BLIP-2 folders from before the image token existed the token that the processor has added."""
    if getattr(model.config, "image_token_index", None) is not None:
        return
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    rows = model.get_input_embeddings().num_embeddings
    if token is None or token >= rows:
        raise DataError(
            "GF-CAP-041",
            f"this BLIP-2 folder names no image token and has no row for one (its embedding has {rows})",
            "use a revision of the model with image_token_index in config.json",
        )
    model.config.image_token_index = token


@dataclass(frozen=True)
class _Picture:
    """A decoded source image, or why there is none."""

    key: str
    digest: str = ""
    pixels: NDArray[np.uint8] | None = None
    problem: DataError | None = None


def image_keys(paths: Sequence[Path], root: Path) -> list[str]:
    """Stable keys of images: the path below ``root`` without suffix; with it where two would be the same."""
    keys: list[str] = []
    seen: set[str] = set()
    for path in paths:
        relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        key = image_key(relative.with_suffix("").as_posix())
        if key in seen:
            key = image_key(relative.as_posix())
        seen.add(key)
        keys.append(key)
    return keys


def _load(path: Path, key: str, config: CaptionsConfig, known: CaptionCache) -> _Picture:
    """Read, hash and (unless its caption is known) decode one image."""
    try:
        if path.stat().st_size > config.max_bytes:
            raise DataError(
                "GF-CAP-042",
                f"{path} has {path.stat().st_size} bytes; at most {config.max_bytes} are accepted",
                "raise captions.max_bytes",
            )
        data = path.read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        if digest in known.captions:
            return _Picture(key, digest)
        pixels = decode_image(data, max_pixels=config.max_pixels, max_bytes=config.max_bytes, name=str(path))
        return _Picture(key, digest, pixels)
    except DataError as error:
        return _Picture(key, problem=error)
    except OSError as error:
        reason = f"cannot read {path}: {error.strerror or error}"
        return _Picture(key, problem=DataError("GF-CAP-042", reason, "check the file and its permissions"))


def _batches(
    paths: Sequence[Path], keys: Sequence[str], config: CaptionsConfig, known: CaptionCache
) -> Iterator[list[_Picture]]:
    """Decoded batches in order; the next one is decoded by threads while this one is used.

    Batches are cut from the list of images, not from what is left to do, and are kept whole by the cache: a
    resumed run gives the model the same tensors as an undisturbed one.
    """
    workers = min(8, os.cpu_count() or 1)
    size = config.batch_size
    with ThreadPoolExecutor(workers, thread_name_prefix="caption-decode") as pool:

        def submit(start: int) -> list[Any]:
            chosen = range(start, min(start + size, len(paths)))
            return [pool.submit(_load, paths[index], keys[index], config, known) for index in chosen]

        pending = submit(0)
        for start in range(0, len(paths), size):
            ready, pending = pending, submit(start + size)
            yield [future.result() for future in ready]


def caption_images(
    config: CaptionsConfig,
    cache_path: Path,
    captioner_ref: str,
    device: str,
    rejects: Rejects,
    progress: Progress,
    stop: StopToken,
    captioner: Captioner | None = None,
) -> tuple[list[Item], dict[str, Any]]:
    """Caption the images of ``config.images``; images captioned by an earlier run are not captioned again.

    Args:
        config: images, limit, batch size, decoding settings and limits of the decoder.
        cache_path: the resumable JSONL file.
        captioner_ref: model folder, ``partworld:NAME`` or hub id; loaded only when something is left to do.
        device: ``auto``, ``cpu`` or ``cuda``.
        rejects: receives unreadable images and unusable captions.
        progress: counts images.
        stop: looked at between batches; what is captioned by then is kept.
        captioner: use this one instead of loading ``captioner_ref`` (its captions are then cached under
            the ref).

    Returns:
        The items in the order of the images, and ``{"images", "captioned", "reused", "captioner"}``.

    Raises:
        ConfigError: GF-CAP-022, no images are configured.
        Stopped: on request.
    """
    if not config.images:
        raise ConfigError(
            "GF-CAP-022",
            "captions.images is not set; source=captioner needs a folder of real images",
            "--set captions.images=FOLDER, or captions.source=provided with a captions file",
        )
    root = Path(config.images)
    paths = list_images(root)[: config.limit]
    keys = image_keys(paths, root)
    checksum = "given" if captioner is not None else _checksum(captioner_ref)
    known = CaptionCache(
        cache_path,
        {
            "captioner": checksum if captioner is None else captioner_ref,
            "max_new_tokens": config.max_new_tokens,
            "num_beams": config.num_beams,
        },
    )
    items: list[Item] = []
    counts = {"images": len(paths), "captioned": 0, "reused": 0}
    progress.start(len(paths), "images", "captions")
    try:
        for batch in _batches(paths, keys, config, known):
            stop.check(f"{counts['captioned'] + counts['reused']} of {len(paths)} images are captioned")
            fresh = [picture for picture in batch if picture.pixels is not None]
            if fresh:
                if captioner is None:
                    captioner = load(captioner_ref, device, config)
                captions = captioner([picture.pixels for picture in fresh if picture.pixels is not None])
                known.append([(picture.digest, text) for picture, text in zip(fresh, captions, strict=True)])
            counts["captioned"] += len(fresh)
            for picture in batch:
                if picture.problem is not None:
                    rejects.add(picture.key, picture.problem.code, picture.problem.message)
                    continue
                counts["reused"] += picture.pixels is None
                try:
                    text = clean_caption(known.captions[picture.digest])
                except DataError as error:
                    rejects.add(picture.key, error.code, error.message)
                else:
                    items.append(Item(picture.key, text, picture.key))
            progress.advance(len(batch))
    finally:
        progress.finish()
    return items, {**counts, "captioner": checksum}


def _checksum(captioner_ref: str) -> str:
    """Checksum of the captioner's files without loading it."""
    from glass_fast.models.loading import folder_checksum, resolve_model

    return str(folder_checksum(resolve_model(captioner_ref).folder()))


def load(captioner_ref: str, device: str, config: CaptionsConfig) -> Captioner:
    """Load a captioner with the decoding settings of ``config``."""
    try:
        from glass_fast.models.loading import load_captioner
    except ImportError as error:
        raise EnvironmentProblem(
            "GF-CAP-043", f"the captioner needs torch and transformers: {error}", "pip install glass-fast"
        ) from error
    model, processor = load_captioner(captioner_ref, device)
    return Captioner(model, processor, config.max_new_tokens, config.num_beams)
