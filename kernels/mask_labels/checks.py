"""Value checks that the torch backends share; the native backend makes the same ones in C++."""

from __future__ import annotations

import torch

from glass_fast.errors import DataError, NumericsError


def check_values(maps: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse label 255 and non-finite values in the maps of real classes; one device synchronisation.

    Args:
        maps: ``(batch, classes, h, w)`` float32.
        labels: ``(batch, classes)`` uint8 on the device of ``maps``.

    Raises:
        DataError: GF-DATA-921, a label is 255.
        NumericsError: GF-NUM-920, a map of a class holds NaN or infinity.
    """
    reserved = labels == 255
    broken = ~torch.isfinite(maps).flatten(2).all(dim=2) & (labels != 0)
    if not bool((reserved | broken).any()):
        return
    if bool(reserved.any()):
        b, k = reserved.nonzero()[0].tolist()
        raise DataError(
            "GF-DATA-921",
            f"mask_labels: labels[{b}, {k}] is 255, which is reserved for uncertain pixels;"
            " expected 0 to 254",
        )
    b, k = broken.nonzero()[0].tolist()
    raise NumericsError(
        "GF-NUM-920", f"mask_labels: map {k} of batch {b} holds NaN or infinity; expected finite values"
    )
