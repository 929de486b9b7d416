"""COCO masks without pycocotools: run lengths, their compressed text, and polygon rasterisation.

Run lengths go down the columns (column-major) and begin with a run of zeros. The compressed text stores each
run (from the fourth on as the difference to the run two before) in groups of five bits, least significant
first; bit 5 of a character says that another group follows, bit 4 of the last group is the sign, and 48 is
added to make it printable.

Polygons follow COCO's rule: the outline is drawn on a grid five times as fine, every crossing from one fine
column to the next that lies on a pixel centre toggles the pixels below it, and the parity of the toggles is
the mask. Several polygons of one object are united.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glass_fast.errors import DataError

MAX_PIXELS = 2**28
_SCALE = 5.0


def _bad(problem: str) -> DataError:
    return DataError(
        "GF-DATA-160", f"run-length mask: {problem}", "the annotation is damaged; restore the file"
    )


def _to_counts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    flat = np.concatenate([[False], np.asarray(mask, dtype=bool).ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [flat.size - 1]]))


def _from_counts(counts: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    if counts.size and (counts.min() < 0 or counts.max() > height * width):
        raise _bad(f"a run of {int(counts.min())} or {int(counts.max())} pixels in {height} x {width}")
    if int(counts.sum()) != height * width:
        raise _bad(f"runs cover {int(counts.sum())} pixels; the size {height} x {width} has {height * width}")
    values = np.arange(counts.size) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def compress(counts: ArrayLike) -> str:
    """Run lengths -> COCO's compressed text."""
    runs = np.asarray(counts, dtype=np.int64).ravel()
    values = runs.copy()
    values[3:] -= runs[1:-2]
    if not values.size:
        return ""
    digits = [values & 31]
    lasts = []
    rest = values >> 5
    while True:
        sign = (digits[-1] & 16) != 0
        more = np.where(sign, rest != -1, rest != 0)
        lasts.append(more)
        if not more.any():
            break
        digits.append(rest & 31)
        rest = rest >> 5
    table = np.stack(digits, axis=1)
    going = np.stack(lasts, axis=1)
    continued = np.logical_and.accumulate(going, axis=1)
    alive = np.concatenate([np.ones((values.size, 1), bool), continued[:, :-1]], axis=1)
    characters = (table + np.where(continued, 32, 0) + 48).astype(np.uint8)
    return characters[alive].tobytes().decode("ascii")


def decompress(text: str | bytes) -> NDArray[np.int64]:
    """COCO's compressed text -> run lengths.

    Raises:
        DataError: GF-DATA-160, characters outside the code, an unfinished group or a number of over 7 groups.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError as error:
        raise _bad("its text is not ASCII") from error
    if not raw:
        return np.zeros(0, np.int64)
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63:
        raise _bad("its text holds a character outside the code")
    ends = (codes & 32) == 0
    if not ends[-1]:
        raise _bad("its text ends within a number")
    stops = np.flatnonzero(ends)
    starts = np.concatenate([[0], stops[:-1] + 1])
    lengths = stops - starts + 1
    if lengths.max() > 7:
        raise _bad("a number in its text is too long")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    negative = (codes[stops] & 16) != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    # from the fourth run on a difference to the run two before: odd and even places are summed apart
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Compressed RLE of a bool ``(height, width)`` mask: ``{"size": [height, width], "counts": text}``.

    Raises:
        DataError: GF-DATA-160, not two-dimensional.
    """
    if np.ndim(mask) != 2:
        raise _bad(f"a mask has two dimensions, not {np.ndim(mask)}")
    return {"size": [int(n) for n in mask.shape], "counts": compress(_to_counts(mask))}


def _size(rle: Any) -> tuple[int, int]:
    size = rle.get("size") if isinstance(rle, Mapping) else None
    if (
        not isinstance(size, (list, tuple))
        or len(size) != 2
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in size)
    ):
        raise _bad(f"size = {size!r}; expected [height, width]")
    if size[0] * size[1] > MAX_PIXELS:
        raise _bad(f"size {size[0]} x {size[1]} is above {MAX_PIXELS} pixels")
    return size[0], size[1]


def _counts(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        return decompress(counts)
    if isinstance(counts, (list, tuple)) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MAX_PIXELS for n in counts
    ):
        return np.asarray(counts, dtype=np.int64)
    raise _bad("counts must be text or a list of whole numbers >= 0")


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Bool ``(height, width)`` mask of a compressed (text) or uncompressed (list) RLE.

    Raises:
        DataError: GF-DATA-160, damaged counts or size.
    """
    height, width = _size(rle)
    return _from_counts(_counts(rle), height, width)


def area(rle: Mapping[str, Any]) -> int:
    """Number of set pixels."""
    return int(_counts(rle)[1::2].sum())


def to_bbox(rle: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Tight box ``(x, y, width, height)`` in pixels; all zero for an empty mask."""
    mask = decode(rle)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return 0, 0, 0, 0
    return (
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    )


def polygons_to_mask(polygons: Sequence[ArrayLike], height: int, width: int) -> NDArray[np.bool_]:
    """Mask of one object's polygons, pixel for pixel as COCO's tools draw it.

    Args:
        polygons: each a flat list ``x0, y0, x1, y1, ...`` in pixels; parts of one object are united.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        Bool ``(height, width)``.

    Raises:
        DataError: GF-DATA-161, a polygon with fewer than three points, an odd number of values, or a value
            that is not a finite number of reasonable size.
    """
    if height < 0 or width < 0 or height * width > MAX_PIXELS:
        raise DataError("GF-DATA-161", f"image size {height} x {width} is not usable")
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        mask |= _one_polygon(polygon, height, width)
    return mask


def _one_polygon(polygon: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("GF-DATA-161", f"a polygon is not a list of numbers: {error}") from error
    if points.ndim != 1 or points.size < 6 or points.size % 2:
        raise DataError(
            "GF-DATA-161", f"a polygon has {points.size} values; expected x, y of at least three points"
        )
    if not np.isfinite(points).all() or np.abs(points).max() > 2**20:
        raise DataError(
            "GF-DATA-161", "a polygon has a coordinate that is not a number or beyond 2**20 pixels"
        )
    # vertices on the fine grid; the conversion truncates towards zero
    fine = (_SCALE * points + 0.5).astype(np.int64).reshape(-1, 2)
    columns, rows = _outline(fine)
    # a step between neighbouring fine columns may cross a pixel centre
    step = np.flatnonzero(columns[1:] != columns[:-1])
    before, after = columns[step], columns[step + 1]
    crossing = np.where(after < before, after, after - 1)
    exact = (crossing + 0.5) / _SCALE - 0.5
    column = np.floor(exact)
    good = (column == exact) & (exact >= 0) & (exact <= width - 1)
    upper = np.minimum(rows[step], rows[step + 1])[good]
    row = np.ceil(np.clip((upper + 0.5) / _SCALE - 0.5, 0, height)).astype(np.int64)
    position = column[good].astype(np.int64) * height + row
    runs = np.diff(np.sort(position), prepend=0, append=height * width)
    return _from_counts(runs, height, width)


def _outline(fine: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns and rows of the closed outline on the fine grid, walked along the longer axis of each edge."""
    start, stop = fine, np.roll(fine, -1, axis=0)
    delta = np.abs(stop - start)
    horizontal = delta[:, 0] >= delta[:, 1]
    length = delta.max(axis=1)
    main = np.where(horizontal, 0, 1)
    edge = np.arange(len(fine))
    flipped = start[edge, main] > stop[edge, main]
    low = np.where(flipped[:, None], stop, start)
    high = np.where(flipped[:, None], start, stop)
    # an edge of length 0 is one point; its row is never used because the column does not change there
    slope = (high - low)[edge, 1 - main] / np.maximum(length, 1)
    which = np.repeat(edge, length + 1)
    first = np.concatenate([[0], np.cumsum(length + 1)[:-1]])
    walked = np.arange(which.size) - first[which]
    along = np.where(flipped[which], length[which] - walked, walked)
    major = low[which, main[which]] + along
    minor = (low[which, 1 - main[which]] + slope[which] * along + 0.5).astype(np.int64)
    is_horizontal = horizontal[which]
    return np.where(is_horizontal, major, minor), np.where(is_horizontal, minor, major)
