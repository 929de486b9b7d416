"""Pictures -> slots -> new pictures.

Written below the output folder:

* ``images/NAME.png``: the new picture; ``NAME`` is the file's stem (equal stems get ``-2``, ``-3``, ...);
* ``sheet.png``: pairs of source and new picture, row by row;
* ``generation.json``: settings, model, a line per picture, refused pictures, and how close the new pictures are to
  their sources in encoder features (:func:`glass_fast.generation.compare.closer_to_source`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glass_fast.config.schema import SamplingConfig
from glass_fast.data import atomic
from glass_fast.data.images import decode_image, list_images
from glass_fast.data.prompts import sample_seed
from glass_fast.engine.discover import unique_names
from glass_fast.errors import DataError
from glass_fast.generation.compare import closer_to_source
from glass_fast.generation.sample import sample
from glass_fast.models.diffusion_decoder import fit_picture
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    from glass_fast.models.diffusion_decoder import DiffusionDecoder
    from glass_fast.models.glass import Glass

SCHEMA = 1
_SHEET_PAIRS = 8
"""Pairs in a row of the sheet."""
_GAP = 4


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A colour picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def contact_sheet(
    sources: Sequence[NDArray[np.uint8]], made: Sequence[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Pairs side by side (source left), eight in a row, on white.

    Args:
        sources: uint8 ``(side, side, 3)`` each.
        made: likewise, in the same order.

    Returns:
        uint8 ``(height, width, 3)``.
    """
    side = sources[0].shape[0]
    columns = min(_SHEET_PAIRS, len(sources))
    rows = -(-len(sources) // columns)
    cell_height, cell_width = side + _GAP, 2 * side + 2 * _GAP
    sheet = np.full((rows * cell_height + _GAP, columns * cell_width + _GAP, 3), 255, np.uint8)
    for number, pair in enumerate(zip(sources, made, strict=True)):
        row, column = divmod(number, columns)
        y, x = row * cell_height + _GAP, column * cell_width + _GAP
        for place, picture in enumerate(pair):
            sheet[y : y + side, x + place * (side + 1) : x + place * (side + 1) + side] = picture
    return sheet


def generate(
    model: Glass,
    decoder: DiffusionDecoder,
    images: Sequence[Path],
    out: Path,
    config: SamplingConfig,
    seed: int = 0,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> dict[str, Any]:
    """Take the slots of pictures and paint new pictures from them; see the module for what is written.

    A picture is cut to its centre square. Every batch has the same number of rows (the last one is filled up with
    copies), so the bytes of a picture depend on seed, name and batch size only, not on its neighbours.

    Args:
        model: finds the slots.
        decoder: paints; of the same model.
        images: pictures or folders of pictures; unreadable ones are named in the record and left out.
        out: output folder.
        config: sampling options.
        seed: of slots and noise; with a picture's name it fixes everything random about it.
        progress: told about every batch.
        stop: looked at between batches.

    Returns:
        Contents of ``generation.json``.

    Raises:
        DataError: GF-DATA-156, nothing to read; GF-GEN-012, no picture could be read.
        ConfigError: as :func:`glass_fast.generation.sample.sample`.
        Stopped: a stop was asked for; finished pictures are written, the record is not.
    """
    progress, stop, out = progress or Progress(), stop or StopToken(), Path(out)
    paths = list_images(images)
    names = unique_names([path.stem for path in paths])
    for folder in (out, out / "images"):
        atomic.make_directory(folder)
        atomic.clean_temps(folder)
    (out / "generation.json").unlink(
        missing_ok=True
    )  # of an earlier run; it vouches for the pictures beside it
    refused: list[dict[str, str]] = []
    sources: list[NDArray[np.uint8]] = []
    made: list[NDArray[np.uint8]] = []
    listed: list[dict[str, Any]] = []
    progress.start(len(paths), "images", "generate")
    for batch, seen in _batches(paths, names, config.batch_size, decoder.resolution, refused):
        stop.check(f"{len(made)} of {len(paths)} pictures are finished", "the same command starts again")
        if batch:
            for (path, name, source), picture in zip(
                batch, _paint(model, decoder, batch, config, seed), strict=True
            ):
                atomic.write_bytes(out / "images" / f"{name}.png", png_bytes(picture))
                listed.append({"file": str(path), "name": name, "image": f"images/{name}.png"})
                sources.append(source)
                made.append(picture)
        progress.advance(seen, refused=len(refused))
    progress.finish()
    if not made:
        raise DataError(
            "GF-GEN-012", f"none of {len(paths)} pictures could be read; the first: {refused[0]['reason']}"
        )
    if config.sheet:
        shown = contact_sheet(sources[: config.sheet], made[: config.sheet])
        atomic.write_bytes(out / "sheet.png", png_bytes(shown))
    record = {
        "schema": SCHEMA,
        "kind": "generate",
        "images": len(made),
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "decoder": decoder.config_dict() | {"parameters": sum(p.numel() for p in decoder.parameters())},
        "closeness": closer_to_source(model.encoder, sources, made, seed) if len(made) > 1 else None,
        "pictures": listed,
        "refused": refused,
    }
    atomic.write_json(out / "generation.json", record)
    return record


_Item = tuple[Path, str, NDArray[np.uint8]]


def _batches(
    paths: Sequence[Path], names: Sequence[str], size: int, side: int, refused: list[dict[str, str]]
) -> Iterator[tuple[list[_Item], int]]:
    """Readable pictures as (path, name, centre square), with the number of files that were looked at."""
    for start in range(0, len(paths), size):
        batch: list[_Item] = []
        for path, name in zip(paths[start : start + size], names[start : start + size], strict=True):
            try:
                batch.append((path, name, fit_picture(decode_image(path), side)))
            except DataError as error:
                refused.append({"file": str(path), "code": error.code, "reason": error.message})
        yield batch, min(size, len(paths) - start)


def _paint(
    model: Glass, decoder: DiffusionDecoder, batch: list[_Item], config: SamplingConfig, seed: int
) -> NDArray[np.uint8]:
    filled = batch + [batch[-1]] * (config.batch_size - len(batch))
    names = [name for _, name, _ in filled]
    slots = model.slots([source for _, _, source in filled], seed, names).projected
    painted = sample(
        decoder,
        slots,
        config.steps,
        config.guidance_scale,
        [sample_seed(seed, name, "generate") for name in names],
        scheduler=config.scheduler,
        guidance_rescale=config.guidance_rescale,
    )
    return painted[: len(batch)]
