"""Guarded decoding of pictures from outside: header first, limits before decoding, every failure a
``DataError``."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from glass_fast.data.png import is_whole
from glass_fast.errors import DataError

MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _sniff(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def decode_image(
    source: bytes | str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    apply_orientation: bool = True,
    name: str | None = None,
) -> NDArray[np.uint8]:
    """Decode one JPEG, PNG or WebP picture to RGB.

    Grey, palette, CMYK and 16-bit pictures are converted (16 bit by rounding ``value / 257``); transparent
    pixels are laid over white; embedded colour profiles are ignored. An EXIF orientation is applied once;
    EXIF data that cannot be read are ignored, as viewers do.

    Args:
        source: the file's bytes or its path.
        max_pixels: largest width x height, compared before anything is decoded.
        max_bytes: largest file size, compared before anything is read.
        apply_orientation: False keeps the stored orientation (annotations of COCO and VOC refer to it).
        name: what to call the picture in errors; default the path.

    Returns:
        uint8 ``(height, width, 3)``.

    Raises:
        DataError: GF-DATA-150 cannot be read, GF-DATA-151 too many bytes, GF-DATA-152 another format,
            GF-DATA-153 too many pixels, GF-DATA-154 damaged or truncated, GF-DATA-155 an animation.
    """
    label = name or ("picture" if isinstance(source, bytes) else os.fspath(source))
    data = source if isinstance(source, bytes) else _read(source, label, max_bytes)
    if len(data) > max_bytes:
        raise _too_many_bytes(label, len(data), max_bytes)
    kind = _sniff(data)
    if kind is None:
        raise DataError(
            "GF-DATA-152",
            f"{label} is neither JPEG, PNG nor WebP (it starts with {data[:8].hex(' ') or 'nothing'})",
            "convert it to one of these formats",
        )
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # another library may have switched Pillow's check off
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, kind, label, max_pixels, apply_orientation)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            "GF-DATA-153", f"{label}: {error}", f"at most {max_pixels} pixels are accepted"
        ) from error
    except (
        Exception
    ) as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, ... for damaged files
        raise DataError(
            "GF-DATA-154",
            f"{label} is damaged or truncated: {type(error).__name__}: {error}",
            "restore the file",
        ) from error


def _too_many_bytes(label: str, size: int, limit: int) -> DataError:
    return DataError(
        "GF-DATA-151",
        f"{label} has {size} bytes; at most {limit} are accepted",
        "shrink it or raise max_bytes",
    )


def _read(path: str | os.PathLike[str], label: str, max_bytes: int) -> bytes:
    try:
        if not os.path.isfile(path):  # a pipe or device would block or never end
            reason = "it is not a regular file" if os.path.lexists(path) else "no such file"
            raise DataError("GF-DATA-150", f"cannot read {label}: {reason}", "check the path")
        size = os.path.getsize(path)
        if size > max_bytes:
            raise _too_many_bytes(label, size, max_bytes)
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise DataError(
            "GF-DATA-150", f"cannot read {label}: {error}", "check the path and its permissions"
        ) from error


def _decode(
    data: bytes, kind: str, label: str, max_pixels: int, apply_orientation: bool
) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data), formats=(kind,))
    if kind == "PNG" and not is_whole(data):
        raise DataError(
            "GF-DATA-154", f"{label} is truncated: its last PNG chunk is missing", "restore the file"
        )
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            "GF-DATA-153",
            f"{label} has {width} x {height} pixels; at most {max_pixels} are accepted",
            "shrink it or raise max_pixels",
        )
    # a JPEG may carry further pictures (MPO: depth, gain map); only its first one is the photo
    frames = getattr(image, "n_frames", 1)
    if kind != "JPEG" and frames > 1:
        raise DataError("GF-DATA-155", f"{label} is an animation of {frames} pictures; expected one")
    orientation = _orientation(image) if apply_orientation else 1
    image.load()
    rgb = _to_rgb(image)
    if orientation in _TRANSPOSITIONS:
        rgb = rgb.transpose(_TRANSPOSITIONS[orientation])
    return np.array(rgb, dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF in a sound picture
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
        key = image.info.get("transparency")
        if isinstance(key, int):
            grey.putalpha(Image.fromarray(np.where(wide == key, 0, 255).astype(np.uint8)))
        image = grey
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        overlay = image.convert("RGBA")
        canvas = Image.new("RGBA", overlay.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, overlay).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def list_images(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Picture files of folders and files, sorted within each folder, each once.

    Folders are searched to any depth for ``.jpg``, ``.jpeg``, ``.png`` and ``.webp`` (any case); hidden files
    and folders are skipped and links to folders are not followed. A file that is named itself is always
    taken.

    Raises:
        DataError: GF-DATA-156, a path does not exist or there is no picture at all.
    """
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    found: dict[Path, None] = {}
    for entry in given:
        path = Path(entry)
        if path.is_dir():
            found.update(dict.fromkeys(_walk(path)))
        elif path.exists() or path.is_symlink():
            found[path] = None
        else:
            raise DataError("GF-DATA-156", f"no such file or folder: {path}", "check the path")
    if not found:
        raise DataError(
            "GF-DATA-156",
            f"no picture in {', '.join(os.fspath(entry) for entry in given) or 'an empty list'}",
            f"expected files ending in {', '.join(IMAGE_SUFFIXES)}",
        )
    return list(found)


def _walk(folder: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise DataError(
            "GF-DATA-156",
            f"cannot list the folder {error.filename}: {error.strerror}",
            "check its permissions",
        ) from error

    paths = []
    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            Path(root) / name
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(paths, key=lambda path: path.relative_to(folder).parts)
