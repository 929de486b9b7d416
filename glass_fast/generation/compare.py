"""Is a generated picture closer to its own source than to another picture, as the encoder sees them?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.data.prompts import sample_seed
from glass_fast.errors import DataError

if TYPE_CHECKING:
    from glass_fast.models.encoder import Encoder


def derangement(count: int, seed: int) -> NDArray[np.int64]:
    """A random partner for each of ``count`` items that is never the item itself: one cycle through all of them.

    Raises:
        DataError: GF-GEN-010, fewer than two items.
    """
    if count < 2:
        raise DataError(
            "GF-GEN-010", f"{count} pictures; a comparison with another picture needs at least two"
        )
    generator = np.random.default_rng(sample_seed(seed, "partners", "closeness"))
    order = generator.permutation(count)
    partners = np.empty(count, np.int64)
    partners[order] = np.roll(order, -1)
    return partners


def closer_to_source(
    encoder: Encoder,
    sources: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    generated: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Mean squared distance in encoder features to the own source and to a random other source.

    Args:
        encoder: frozen encoder; scales the pictures itself.
        sources: uint8 ``(height, width, 3)`` pictures that slots were taken from.
        generated: the pictures made from them, in the same order.
        seed: chooses the other source of each picture.
        batch_size: pictures that the encoder sees at once.

    Returns:
        ``images``, ``seed`` and, for ``patch`` (token by token, so places count) and ``pooled`` (mean over tokens,
        places do not count): ``share`` of pictures that are strictly closer to their own source, mean distance to
        the ``own`` and to the ``other`` source.

    Raises:
        DataError: GF-GEN-010, fewer than two pictures; GF-GEN-011, another number of sources than pictures.
    """
    if len(sources) != len(generated):
        raise DataError("GF-GEN-011", f"{len(generated)} generated pictures for {len(sources)} sources")
    count = len(sources)
    partners = derangement(count, seed)
    distances: dict[str, list[torch.Tensor]] = {"patch": [], "pooled": []}
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        made, own, other = (
            encoder.features([pictures[int(row)] for row in chosen]).cpu().double()
            for pictures, chosen in (
                (generated, rows),
                (sources, rows),
                (sources, partners[start : rows.stop]),
            )
        )
        for name, reduce in (("patch", lambda x: x), ("pooled", lambda x: x.mean(1, keepdim=True))):
            pair = [(reduce(made) - reduce(source)).square().mean((1, 2)) for source in (own, other)]
            distances[name].append(torch.stack(pair))
    result: dict[str, Any] = {"images": count, "seed": seed}
    for name, parts in distances.items():
        near, far = torch.cat(parts, 1)
        result[name] = {
            "share": float((near < far).double().mean()),
            "own": float(near.mean()),
            "other": float(far.mean()),
        }
    return result
