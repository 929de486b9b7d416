"""Attention maps -> soft class maps -> label mask (method notes 2.1 items 6 and 7; GLASS section 3).

The mask is made from the *quantised* soft maps, so whoever re-thresholds the stored maps gets the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glass_fast.config.schema import MasksConfig
from glass_fast.errors import DataError
from glass_fast.kernels.mask_labels import mask_labels
from glass_fast.kernels.propagation import propagation
from glass_fast.synthesis.capture import AttentionMaps
from glass_fast.synthesis.refine import refine_maps

UNCERTAIN = 255


def class_maps(maps: AttentionMaps, tau: int) -> Tensor:
    """Class maps at the size of the self map, propagated ``tau`` times, before normalisation.

    ``R_k = A^tau . C_k`` as mat-vec passes, with C_k resized bicubic.

    Args:
        maps: mean maps of a batch.
        tau: power of the self map; 0 leaves the resized cross maps as they are.

    Returns:
        (B, K, h, w) float32.
    """
    cross = maps.cross
    batch, classes = cross.shape[:2]
    height, width = maps.self_size
    if not classes:
        return cross.new_zeros(batch, 0, height, width)
    if cross.shape[2:] != (height, width):
        cross = F.interpolate(cross, size=(height, width), mode="bicubic", align_corners=False)
    if tau == 0:
        return cross
    if maps.self_ is None:
        raise ValueError(f"tau={tau} needs self maps; they were not captured")
    columns = cross.flatten(2).transpose(1, 2).contiguous()
    refined = propagation(maps.self_, columns, tau)
    return refined.transpose(1, 2).reshape(batch, classes, height, width)


def soft_maps(raw: Tensor, config: MasksConfig, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantised soft maps, as they are stored, and the raw peak of every class.

    Each map is brought to [0, 1] by its own minimum and maximum; a flat map (range below a millionth of its size)
    becomes zero instead of amplified rounding noise. Options that Dataset Diffusion does not have, all off by
    default: the classes of an image compete (``competition``), maps are enlarged and refined with the pictures
    (``refine``), and a quantile takes the place of the minimum (``floor``). All that comes before the quantisation,
    so the label mask stays a function of what is stored.

    Args:
        raw: (B, K, h, w) float32 of :func:`class_maps`.
        config: the options.
        images: (B, H, W, 3) uint8, needed by ``config.refine`` other than none.

    Returns:
        (B, K, h, w) uint8, 255 = 1.0, at the size of the refinement when there is one; (B, K) float32 peaks of
        ``raw``, input of the absence guard.

    Raises:
        ValueError: a refinement without fitting images.
    """
    if not raw.shape[1]:
        return raw.to(torch.uint8), raw.flatten(2).sum(2)
    maps = compete(raw, config.competition)
    if config.refine != "none":
        if images is None:
            raise ValueError(f"refine={config.refine!r} needs the pictures")
        maps = refine_maps(stretch(maps), images, config)
    soft = stretch(maps, config.floor)
    return (soft * 255.0).round().to(torch.uint8), raw.amax(dim=(2, 3))


def compete(maps: Tensor, strength: float) -> Tensor:
    """``C_k / (sum_j C_j + strength * max C)`` in each image of (B, K, h, w); 0 leaves the maps as they are.

    The last term stands for the background, which has no map of its own.
    """
    if strength == 0:
        return maps
    maps = maps.clamp_min(0.0)  # bicubic enlargement of cross maps undershoots
    whole = maps.sum(dim=1, keepdim=True) + strength * maps.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(whole > 0, maps / torch.where(whole > 0, whole, 1.0), 0.0)


def stretch(maps: Tensor, floor: float = 0.0) -> Tensor:
    """Bring every map of (B, K, h, w) to [0, 1]; flat ones to zero.

    Args:
        maps: float32.
        floor: the lowest value and this share of the pixels become 0.
    """
    high = maps.amax(dim=(2, 3), keepdim=True)
    if floor == 0:
        low = maps.amin(dim=(2, 3), keepdim=True)
    else:
        # sorted, because torch.quantile refuses large inputs and kthvalue is not deterministic on a GPU
        ordered = maps.flatten(2).sort(dim=2).values
        low = ordered[..., int(floor * ordered.shape[2])][..., None, None]
    span = high - low
    flat = span <= 1e-6 * torch.maximum(high.abs(), low.abs())
    return torch.where(flat, 0.0, (maps - low) / torch.where(flat, 1.0, span)).clamp_(0.0, 1.0)


def absent(peaks: Sequence[float], classes: Sequence[str], config: MasksConfig) -> list[bool]:
    """Absence guard: which classes were probably not painted.

    Min-max stretches even a map without any peak, and would paint a missing class onto another object. A class is
    dropped when its raw peak is below ``absence_ratio`` times its usual peak (``absence_peaks``) or, when that is
    not known, times the highest peak in the image.
    """
    if config.absence_ratio == 0 or not peaks:
        return [False] * len(peaks)
    highest = max(peaks)
    usual = [config.absence_peaks.get(name, highest) for name in classes]
    return [peak < config.absence_ratio * level for peak, level in zip(peaks, usual, strict=True)]


def mask_from_maps(
    maps: NDArray[np.uint8] | Tensor,
    label_ids: Sequence[int],
    size: tuple[int, int],
    threshold: float,
    uncertain_threshold: float,
) -> NDArray[np.uint8]:
    """Label mask from stored soft maps: the same bits as at synthesis for the same thresholds.

    ``m = max_k``, ``a = argmax_k`` of the bicubically enlarged maps; ``m >= threshold`` -> label of ``a``,
    ``m >= uncertain_threshold`` -> 255, else 0. Classes with label id 0 (dropped by the absence guard) do not compete.

    Args:
        maps: (K, h, w) uint8 soft maps as stored in the shard.
        label_ids: label id 1..254 of each map, 0 for a dropped class.
        size: rows and columns of the mask.
        threshold: from here on a pixel belongs to its best class.
        uncertain_threshold: from here to ``threshold`` it is uncertain.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: GF-DATA-070, the number of maps and labels differ or a label is out of range.
    """
    tensor = torch.as_tensor(np.ascontiguousarray(maps) if isinstance(maps, np.ndarray) else maps.cpu())
    if (
        tensor.ndim != 3
        or tensor.shape[0] != len(label_ids)
        or not all(0 <= k < UNCERTAIN for k in label_ids)
    ):
        raise DataError(
            "GF-DATA-070",
            f"soft maps of shape {tuple(tensor.shape)} with label ids {list(label_ids)}; "
            "expected one label id in 0..254 a map",
            "read both from the same sample",
        )
    if not any(label_ids):
        return np.zeros(size, np.uint8)
    soft = tensor.to(torch.float32).div_(255.0).unsqueeze(0)
    labels = torch.tensor([list(label_ids)], dtype=torch.uint8)
    return mask_labels(soft, labels, size, threshold, uncertain_threshold)[0].numpy()
