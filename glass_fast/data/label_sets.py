"""Label sets: class names with their label ids (0 is background, 255 uncertain or void)."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from glass_fast.errors import ConfigError, DataError

BACKGROUND = 0
UNCERTAIN = 255
MAX_LABELS = 254
"""Label ids are stored in one byte, of which 0 and 255 are taken."""


@dataclass(frozen=True)
class LabelSet:
    """Names of the classes; the label id of ``names[i]`` is ``i + 1``.

    Attributes:
        name: short name (``voc``, ``coco``, ``partworld``) or the file it was read from.
        names: class names as used in prompts and reports.
        official: spelling used by the data set's own files, in the same order.
        category_ids: the data set's own numbers (COCO's are not contiguous), in the same order.
    """

    name: str
    names: tuple[str, ...]
    official: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.official:
            object.__setattr__(self, "official", self.names)
        if not self.category_ids:
            object.__setattr__(self, "category_ids", tuple(range(1, len(self.names) + 1)))

    def __len__(self) -> int:
        return len(self.names)

    def label_of(self, name: str) -> int:
        """Label id of a class name in either spelling.

        Raises:
            DataError: GF-DATA-111, no such class.
        """
        for names in (self.names, self.official):
            if name in names:
                return names.index(name) + 1
        raise DataError(
            "GF-DATA-111",
            f"class {name!r} is not in the label set {self.name!r}",
            f"known: {', '.join(self.names)}",
        )

    def name_of(self, label: int) -> str:
        """Class name of a label id; ``background`` for 0 and ``uncertain`` for 255."""
        if label == BACKGROUND:
            return "background"
        if label == UNCERTAIN:
            return "uncertain"
        if not 1 <= label <= len(self.names):
            raise DataError("GF-DATA-111", f"label id {label} is not in the label set {self.name!r}")
        return self.names[label - 1]

    def label_of_category(self, category_id: int) -> int:
        """Label id of the data set's own category number.

        Raises:
            DataError: GF-DATA-111, no such category.
        """
        try:
            return self.category_ids.index(category_id) + 1
        except ValueError:
            raise DataError(
                "GF-DATA-111", f"category id {category_id} is not in the label set {self.name!r}"
            ) from None


_VOC = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
_VOC_OFFICIAL = tuple(_VOC.split(","))
_VOC_SPACED = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}

_COCO = (
    "1 person,2 bicycle,3 car,4 motorcycle,5 airplane,6 bus,7 train,8 truck,9 boat,10 traffic light,"
    "11 fire hydrant,13 stop sign,14 parking meter,15 bench,16 bird,17 cat,18 dog,19 horse,20 sheep,"
    "21 cow,22 elephant,23 bear,24 zebra,25 giraffe,27 backpack,28 umbrella,31 handbag,32 tie,"
    "33 suitcase,34 frisbee,35 skis,36 snowboard,37 sports ball,38 kite,39 baseball bat,"
    "40 baseball glove,41 skateboard,42 surfboard,43 tennis racket,44 bottle,46 wine glass,47 cup,"
    "48 fork,49 knife,50 spoon,51 bowl,52 banana,53 apple,54 sandwich,55 orange,56 broccoli,57 carrot,"
    "58 hot dog,59 pizza,60 donut,61 cake,62 chair,63 couch,64 potted plant,65 bed,67 dining table,"
    "70 toilet,72 tv,73 laptop,74 mouse,75 remote,76 keyboard,77 cell phone,78 microwave,79 oven,"
    "80 toaster,81 sink,82 refrigerator,84 book,85 clock,86 vase,87 scissors,88 teddy bear,"
    "89 hair drier,90 toothbrush"
)
_COCO_PAIRS = tuple(item.split(" ", 1) for item in _COCO.split(","))

_BUILT_IN = {
    "voc": LabelSet(
        "voc", tuple(_VOC_SPACED.get(name, name) for name in _VOC_OFFICIAL), official=_VOC_OFFICIAL
    ),
    "coco": LabelSet(
        "coco",
        tuple(name for _, name in _COCO_PAIRS),
        category_ids=tuple(int(number) for number, _ in _COCO_PAIRS),
    ),
    "partworld": LabelSet(
        "partworld",
        (
            "car",
            "boat",
            "aeroplane",
            "potted plant",
            "umbrella",
            "cup",
            "house",
            "tree",
            "snowman",
            "mushroom",
        ),
    ),
}
BUILT_IN_LABEL_SETS = tuple(sorted(_BUILT_IN))


def label_set(name_or_path: str | os.PathLike[str]) -> LabelSet:
    """A built-in label set (``voc``, ``coco``, ``partworld``) or one read from a text file, a class name a
    line.

    Empty lines and lines that start with ``#`` are skipped; white space is normalised, names are NFC.

    Raises:
        ConfigError: GF-CONFIG-111, neither a built-in name nor a file.
        DataError: GF-DATA-110, the file is not UTF-8 text, is empty, names a class twice or has over 254
            names.
    """
    key = os.fspath(name_or_path)
    if key in _BUILT_IN:
        return _BUILT_IN[key]
    path = Path(key)
    if not path.is_file():
        raise ConfigError(
            "GF-CONFIG-111",
            f"vocabulary {key!r} is neither a built-in label set nor a file",
            f"built in: {', '.join(BUILT_IN_LABEL_SETS)}; or a text file with one class name a line",
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("GF-DATA-110", f"label file {path} cannot be read as UTF-8 text: {error}") from error
    names: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name = " ".join(unicodedata.normalize("NFC", line).split())
        if not name or name.startswith("#"):
            continue
        if any(unicodedata.category(c) == "Cc" for c in name) or len(name) > 100:
            raise DataError("GF-DATA-110", f"{path}:{number}: {name[:100]!r} is not a usable class name")
        if name in names:
            raise DataError(
                "GF-DATA-110", f"{path}:{number}: class {name!r} is already in line {names[name]}"
            )
        names[name] = number
    if not 1 <= len(names) <= MAX_LABELS:
        raise DataError(
            "GF-DATA-110", f"label file {path} has {len(names)} class names; expected 1 to {MAX_LABELS}"
        )
    return LabelSet(key, tuple(names))
