"""Named evaluation protocols as data: every choice that changes a number is a field printed beside it.

``glass`` is what the released GLASS script does on COCO (its switch ``ignore_background`` off, as its shell
script runs it); ``spot`` is the convention of SPOT and the object-centric-learning framework. Numbers of
different protocols must not be compared: with one 20 x 20 object in a 256 x 256 image and one slot covering
everything, mIoU is 0.497 with the background counted and 0.006 without it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from glass_fast.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """How masks are prepared and scored.

    Attributes:
        name: what users ask for.
        resolution: side of the square, in pixels, at which masks are compared.
        crop: ``centre``: shorter side to ``resolution``, then the centre square; truth and prediction alike.
        long_side: rounding of the longer side after the resize (``round`` or ``floor``).
        crop_offset: rounding of the crop's corner (``floor`` or ``round``, half to even).
        mask_sampling: nearest-neighbour rule for label maps: ``corner`` reads source pixel
            ``floor(i * scale)`` (OpenCV), ``centre`` reads ``floor((i + 0.5) * scale)`` (Pillow).
        overlaps: pixels inside two or more annotations: ``kept`` or ``ignored``.
        overwrite: which annotation owns such a pixel: the ``last`` or the ``first`` in file order.
        crowd: crowd annotations become ``background`` or count as a ``segment``.
        void: pixels marked void (VOC 255) become ``background`` or are ``ignored``.
        background_miou, background_mbo, background_recovery, background_corloc: whether the background
            counts as a segment of that metric.
        renumber: labels of a crop are renumbered 0..n-1 in sorted order; in a crop without any background
            pixel the lowest label thereby becomes 0 = background.
        interpolation: how slot maps reach ``resolution`` before the arg-max over slots.
        mask_source: which maps of the model are scored.
        averaging: ``image``: mean over the segments of an image, then over images.
        empty_segments: what an image without a counted segment does to mIoU, mBO, recovery, CorLoc.
        empty_fg_ari: FG-ARI of an image without foreground pixels.
        source: where the choices come from.
    """

    name: str
    resolution: int
    long_side: Literal["round", "floor"]
    crop_offset: Literal["floor", "round"]
    mask_sampling: Literal["corner", "centre"]
    overlaps: Literal["kept", "ignored"]
    overwrite: Literal["last", "first"]
    crowd: Literal["background", "segment"]
    void: Literal["background", "ignored"]
    background_miou: bool
    background_mbo: bool
    background_recovery: bool
    background_corloc: bool
    renumber: bool
    source: str
    crop: Literal["centre"] = "centre"
    interpolation: Literal["bilinear"] = "bilinear"
    mask_source: Literal["slot attention"] = "slot attention"
    averaging: Literal["image"] = "image"
    empty_segments: Literal["image skipped"] = "image skipped"
    empty_fg_ari: float = 1.0

    def fields(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return asdict(self)

    def label(self) -> str:
        """One line with the choices that move numbers most, for printing beside them."""
        counted = {
            name
            for name, on in (
                ("mIoU", self.background_miou),
                ("mBO", self.background_mbo),
                ("recovery", self.background_recovery),
                ("CorLoc", self.background_corloc),
            )
            if on
        }
        background = "background counted" if len(counted) == 4 else "background excluded"
        if 0 < len(counted) < 4:
            background = "background counted in " + ", ".join(sorted(counted))
        return (
            f"{self.name}: {self.resolution} px {self.crop} crop, {background}, overlaps {self.overlaps} "
            f"({self.overwrite} wins), crowd = {self.crowd}, void = {self.void}, {self.mask_source} masks, "
            f"mean per {self.averaging}"
        )


_PROTOCOLS = (
    Protocol(
        name="glass",
        resolution=256,
        long_side="round",
        crop_offset="floor",
        mask_sampling="corner",
        overlaps="kept",
        overwrite="last",
        crowd="background",
        void="background",
        background_miou=True,
        background_mbo=True,
        background_recovery=True,
        background_corloc=True,
        renumber=True,
        source="released GLASS evaluation script (COCO; it has no VOC code, void follows its rule for crowd)",
    ),
    Protocol(
        name="spot",
        resolution=320,
        long_side="floor",
        crop_offset="round",
        mask_sampling="centre",
        overlaps="ignored",
        overwrite="first",
        crowd="segment",
        void="background",
        background_miou=False,
        background_mbo=False,
        background_recovery=False,
        background_corloc=False,
        renumber=False,
        source="SPOT evaluation script / object-centric-learning framework",
    ),
)


def protocol_names() -> tuple[str, ...]:
    """Names that :func:`get_protocol` knows."""
    return tuple(protocol.name for protocol in _PROTOCOLS)


def get_protocol(protocol: str | Protocol) -> Protocol:
    """The protocol of that name (a :class:`Protocol` passes through).

    Raises:
        ConfigError: unknown name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    for known in _PROTOCOLS:
        if known.name == protocol:
            return known
    raise ConfigError(
        "GF-EVAL-001",
        f"evaluation protocol {protocol!r} is unknown; expected one of {', '.join(protocol_names())}",
        "set evaluation.protocols, or pass a glass_fast.metrics.Protocol",
    )
