"""Object discovery: pictures of any size and origin -> label maps, objects, overlays.

Written below the output folder:

* ``masks/NAME.png``: palette PNG of the picture's size, pixel value = slot index (VOC colours);
* ``overlays/NAME.jpg``: the photo (longer side at most 1024 px) with tinted, outlined segments;
* ``objects.jsonl``: a line per picture: ``file``, ``name``, ``width``, ``height``, ``mask``, ``overlay``,
  ``background_slot``, ``border_share`` and ``objects`` (largest first, each as
  :meth:`~glass_fast.engine.masks.DiscoveredObject.to_dict` gives it);
* ``quarantine.jsonl``: a line per refused picture: ``file``, ``code``, ``reason``;
* ``summary.json``: counts, settings, model.

``NAME`` is the file's stem; equal stems get ``-2``, ``-3``, ... in input order.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from glass_fast.config.schema import DiscoverConfig
from glass_fast.data import atomic, png
from glass_fast.data.images import decode_image, list_images
from glass_fast.engine.masks import Discovery, find_objects, upsample_labels
from glass_fast.engine.overlay import draw_overlay, encode_jpeg, shrink
from glass_fast.engine.session import Session, open_session
from glass_fast.errors import DataError, NumericsError
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    from glass_fast.models.glass import Glass

SCHEMA = 1
_MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class _Source:
    """One input: what to call it in results, a safe file name, and the data itself."""

    label: str
    name: str
    data: Any


@dataclass
class _Prepared:
    """A decoded picture reduced to what is still needed."""

    source: _Source
    inputs: NDArray[np.float32]
    preview: NDArray[np.uint8] | None
    height: int
    width: int


@overload
def discover(
    model: Glass | Session, images: Any, out: None = None, config: DiscoverConfig = ..., *,
    engine: str = ..., seed: int = ..., progress: Progress | None = ..., stop: StopToken | None = ...,
) -> list[Discovery]: ...  # fmt: skip


@overload
def discover(
    model: Glass | Session, images: Any, out: str | os.PathLike[str], config: DiscoverConfig = ..., *,
    engine: str = ..., seed: int = ..., progress: Progress | None = ..., stop: StopToken | None = ...,
) -> dict[str, Any]: ...  # fmt: skip


def discover(
    model: Glass | Session,
    images: Any,
    out: str | os.PathLike[str] | None = None,
    config: DiscoverConfig | None = None,
    *,
    engine: str = "torch",
    seed: int = 0,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> list[Discovery] | dict[str, Any]:
    """Find the objects of pictures.

    The whole picture is scaled to the model's square input and the masks are scaled back, so every pixel of
    any aspect ratio belongs to a slot. With ``out`` unreadable pictures are quarantined and the run goes on;
    without ``out`` the first unreadable picture raises.

    Args:
        model: a trained model or an open session.
        images: a file, a folder, or a sequence of files, folders, encoded bytes, uint8 ``(height, width, 3)``
            arrays and PIL pictures.
        out: folder for the results; None: return them instead.
        config: limits and batch size; default: no limit on the number of pictures, else the defaults of
            :class:`~glass_fast.config.schema.DiscoverConfig`.
        engine: inference backend.
        seed: seed of the slot noise.
        progress: told about every picture.
        stop: looked at between batches.

    Returns:
        A list of :class:`~glass_fast.engine.masks.Discovery` in input order, or with ``out`` the summary
        (contents of ``summary.json``).

    Raises:
        DataError: nothing to read; with ``out`` when every picture was refused.
        NumericsError: the model gives masks that are not finite.
        Stopped: a stop was asked for; what is finished has been written.
    """
    config = config or DiscoverConfig(limit=None)
    progress, stop = progress or Progress(), stop or StopToken()
    sources = _sources(images)[: config.limit]
    session = open_session(model, engine)
    run = _Run(session, config, seed, progress, stop)
    if out is None:
        return [discovery for _, discovery in run.results(sources, refused=None)]
    return run.write(sources, Path(out))


class _Run:
    """One discovery job."""

    def __init__(
        self, session: Session, config: DiscoverConfig, seed: int, progress: Progress, stop: StopToken
    ) -> None:
        self.session, self.config, self.seed = session, config, seed
        self.progress, self.stop = progress, stop

    def results(
        self, sources: Sequence[_Source], refused: list[dict[str, str]] | None
    ) -> Iterator[tuple[_Prepared, Discovery]]:
        """Discoveries in input order; unreadable pictures go to ``refused``, or raise when it is None."""
        self.progress.start(len(sources), "images", "discover")
        try:
            for start in range(0, len(sources), self.config.batch_size):
                self.stop.check(
                    f"{start} of {len(sources)} pictures are finished and listed",
                    "the same command starts again with the first picture; give it the others to go on",
                )
                batch = sources[start : start + self.config.batch_size]
                prepared = list(self._prepare(batch, refused))
                if prepared:
                    yield from zip(prepared, self._find(prepared), strict=True)
                self.progress.advance(len(batch), quarantined=len(refused or ()))
        finally:
            self.progress.finish()

    def _prepare(self, batch: Sequence[_Source], refused: list[dict[str, str]] | None) -> Iterator[_Prepared]:
        for source in batch:
            try:
                image = _decode(source, self.config)
            except DataError as error:
                if refused is None:
                    raise
                refused.append({"file": source.label, "code": error.code, "reason": error.message})
                continue
            height, width = image.shape[:2]
            preview = None if refused is None else shrink(image)
            yield _Prepared(source, self.session.prepare(image), preview, height, width)

    def _find(self, prepared: Sequence[_Prepared]) -> Iterator[Discovery]:
        masks = self.session.masks([item.inputs for item in prepared], self.seed)
        finite = np.isfinite(masks).reshape(len(prepared), -1).all(axis=1)
        if not finite.all():
            bad = prepared[int(np.argmin(finite))].source.label
            raise NumericsError(
                "GF-NUM-031",
                f"the model gave masks that are not finite for {bad}",
                "the weights are damaged or the model diverged in training",
            )
        for item, soft in zip(prepared, masks, strict=True):
            yield find_objects(item.source.label, soft, item.height, item.width, self.config.min_area)

    def write(self, sources: Sequence[_Source], out: Path) -> dict[str, Any]:
        """Write all results below ``out`` and return the summary."""
        for folder in (out, out / "masks", out / "overlays"):
            atomic.make_directory(folder)
            atomic.clean_temps(folder)
        refused: list[dict[str, str]] = []
        found = objects = 0
        try:
            with _LineFile(out / "objects.jsonl") as lines:
                for item, discovery in self.results(sources, refused):
                    lines.add(self._write_picture(item, discovery, out))
                    found += 1
                    objects += len(discovery.foreground)
        finally:
            # also on a stop or an error: what was refused so far is part of what is finished
            with _LineFile(out / "quarantine.jsonl") as lines:
                for entry in refused:
                    lines.add(entry)
        summary = {
            "schema": SCHEMA,
            "kind": "discover",
            "images": len(sources),
            "discovered": found,
            "quarantined": len(refused),
            "objects": objects,
            "seed": self.seed,
            "config": self.config.model_dump(),
            "model": {"num_slots": self.session.num_slots, **self.session.describe()},
        }
        atomic.write_json(out / "summary.json", summary)
        if not found:
            raise DataError(
                "GF-DISC-002",
                f"none of {len(sources)} pictures could be read; the first: {refused[0]['reason']}",
                f"all reasons are in {out / 'quarantine.jsonl'}",
            )
        return summary

    def _write_picture(self, item: _Prepared, discovery: Discovery, out: Path) -> dict[str, Any]:
        name = item.source.name
        atomic.write_bytes(out / "masks" / f"{name}.png", png.encode_labels(discovery.label_map))
        assert item.preview is not None
        small, _ = upsample_labels(discovery.soft_masks, *item.preview.shape[:2])
        overlay = draw_overlay(item.preview, small, discovery.background_slot)
        atomic.write_bytes(out / "overlays" / f"{name}.jpg", encode_jpeg(overlay))
        return {
            "file": item.source.label,
            "name": name,
            "width": item.width,
            "height": item.height,
            "mask": f"masks/{name}.png",
            "overlay": f"overlays/{name}.jpg",
            "background_slot": discovery.background_slot,
            "border_share": round(discovery.border_share, 6),
            "objects": [found.to_dict() for found in discovery.objects],
        }


class _LineFile:
    """JSON lines written to a temporary file that takes its name when the block is left, in whatever way.

    On an error the finished lines are kept: they describe pictures whose files are already there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _LineFile:
        with atomic.storage_errors(self.path, "write"):
            descriptor, self._temp = atomic.new_temp(self.path.parent)
            self._stream = os.fdopen(descriptor, "wb")
        return self

    def add(self, value: dict[str, Any]) -> None:
        with atomic.storage_errors(self.path, "write"):
            line = json.dumps(value, ensure_ascii=False, allow_nan=False)
            self._stream.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def __exit__(self, *error: object) -> None:
        try:
            with atomic.storage_errors(self.path, "write"):
                self._stream.flush()
                os.fsync(self._stream.fileno())
                os.replace(self._temp, self.path)
                atomic.fsync_directory(self.path.parent)
        finally:
            with contextlib.suppress(OSError):
                self._stream.close()
            with contextlib.suppress(OSError):
                os.unlink(self._temp)


def _sources(images: Any) -> list[_Source]:
    """Inputs with labels and unique file names, in order."""
    if isinstance(images, (str, os.PathLike, bytes, np.ndarray)) or hasattr(images, "convert"):
        images = [images]
    pairs: list[tuple[str, str, Any]] = []
    for number, entry in enumerate(images):
        if isinstance(entry, (str, os.PathLike)):
            pairs += [(os.fspath(path), path.stem, path) for path in list_images(entry)]
        else:
            pairs.append((f"image-{number:06d}", f"image-{number:06d}", entry))
    if not pairs:
        raise DataError("GF-DISC-003", "no picture was given; expected at least one")
    names = unique_names([stem for _, stem, _ in pairs])
    return [_Source(label, name, data) for (label, _, data), name in zip(pairs, names, strict=True)]


def unique_names(stems: Sequence[str]) -> list[str]:
    """File names without repeats, also on file systems that ignore case; the first keeps its stem."""
    wanted = [_short(stem) for stem in stems]
    reserved = {name.casefold() for name in wanted}
    taken: set[str] = set()
    names = []
    for stem in wanted:
        name, number = stem, 1
        while name.casefold() in taken or (number > 1 and name.casefold() in reserved):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _short(stem: str) -> str:
    """``stem`` cut so that suffixes still fit into the 255 bytes of a file name."""
    data = os.fsencode(stem)
    if len(data) <= _MAX_NAME_BYTES:
        return stem
    return data[:_MAX_NAME_BYTES].decode("utf-8", "ignore") or "image"


def _decode(source: _Source, config: DiscoverConfig) -> NDArray[np.uint8]:
    """RGB pixels of any kind of input, within the limits of ``config``."""
    data = source.data
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape:
            raise DataError(
                "GF-DISC-004",
                f"{source.label} is a {data.dtype} array of shape {data.shape}",
                "expected uint8 (height, width, 3) in RGB order",
            )
        return data
    if hasattr(data, "convert"):
        data = _png_bytes(data)
    elif not isinstance(data, (bytes, Path)):
        raise DataError(
            "GF-DISC-004",
            f"{source.label} is a {type(data).__name__}",
            "expected a path, encoded bytes, a uint8 array or a PIL picture",
        )
    return decode_image(data, max_pixels=config.max_pixels, max_bytes=config.max_bytes, name=source.label)


def _png_bytes(picture: Any) -> bytes:
    """A PIL picture as PNG, so that orientation, alpha and depth are treated as for files."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"):
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
