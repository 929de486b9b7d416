"""Captions that somebody already has: COCO captions JSON, a text file, parquet, or a list of class names.

Every reader gives :class:`Item` objects in an order that does not depend on the machine, and reports what
it could not use through a :class:`Rejects` list instead of stopping.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glass_fast.captions.matching import ClassMatcher
from glass_fast.captions.text import caption_of_classes, clean_caption, image_key
from glass_fast.data.atomic import read_json
from glass_fast.errors import ConfigError, DataError

MAX_COMBINATIONS = 1_000_000
MAX_JSON_BYTES = 2**33


@dataclass(frozen=True)
class Item:
    """One caption before its classes are looked up.

    Attributes:
        id: sample id.
        caption: clean caption.
        image_id: id of the source image, empty when there is none.
        classes: class names of the label set where the source knows them, None where the caption decides.
    """

    id: str
    caption: str
    image_id: str = ""
    classes: tuple[str, ...] | None = None


@dataclass
class Rejects:
    """Inputs that gave no prompt, each with the reason.

    Attributes:
        rows: ``{"id": ..., "code": ..., "reason": ...}`` in the order of the input.
    """

    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, identifier: str, code: str, reason: str) -> None:
        self.rows.append({"id": identifier, "code": code, "reason": reason})

    def counts(self) -> dict[str, int]:
        """Number of rejects per code."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row["code"]] = found.get(row["code"], 0) + 1
        return dict(sorted(found.items()))


def rows_of(
    document: Any, key: str, path: Path, fields: dict[str, type | tuple[type, ...]]
) -> list[dict[str, Any]]:
    """The list ``document[key]``, each row checked to have ``fields`` of the given types.

    Raises:
        DataError: GF-CAP-011, naming the file, the key, the row and the field.
    """
    rows = document.get(key) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise DataError(
            "GF-CAP-011",
            f"{path}: no list {key!r} at the top level",
            "expected a COCO captions or instances file",
        )
    for number, row in enumerate(rows):
        for name, kind in fields.items():
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise DataError(
                    "GF-CAP-011",
                    f"{path}: {key}[{number}] has {name} = {value!r}; expected "
                    f"{' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))}",
                    "the file is not in COCO format, or it is damaged",
                )
    return rows


def coco_image_key(image_id: int | str) -> str:
    """COCO image ids as in its file names (12 digits); other ids through :func:`image_key`."""
    return f"{image_id:012d}" if isinstance(image_id, int) and image_id >= 0 else image_key(str(image_id))


def _cleaned(identifier: str, caption: str, rejects: Rejects) -> str | None:
    try:
        return clean_caption(caption)
    except DataError as error:
        rejects.add(identifier, error.code, error.message)
        return None


def read_coco_captions(path: Path, rejects: Rejects) -> list[Item]:
    """COCO captions: first captions of all images, then second captions, ..., each by image id.

    So the first N prompts show as many different images as possible. Ids are ``<image id>-<rank of the
    caption>``.
    """
    annotations = rows_of(
        read_json(path, "captions", MAX_JSON_BYTES),
        "annotations",
        path,
        {"image_id": (int, str), "id": (int, str), "caption": str},
    )
    by_image: dict[str, list[tuple[str, str]]] = {}
    for row in annotations:
        by_image.setdefault(coco_image_key(row["image_id"]), []).append((f"{row['id']:>20}", row["caption"]))
    keyed = []
    for key, captions in by_image.items():
        for rank, (_, caption) in enumerate(sorted(captions)):
            keyed.append((rank, key, caption))
    items = []
    for rank, key, caption in sorted(keyed):
        plain = _cleaned(f"{key}-{rank}", caption, rejects)
        if plain is not None:
            items.append(Item(f"{key}-{rank}", plain, key))
    return items


def read_text(path: Path, rejects: Rejects) -> list[Item]:
    """A UTF-8 text file, a caption a line; empty lines are skipped, ids are line numbers (from 1, eight
    digits).

    Raises:
        DataError: GF-CAP-012, the file is not UTF-8 (the line is named).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            "GF-CAP-010", f"cannot read {path}: {error.strerror or error}", "check the path"
        ) from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    items = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                "GF-CAP-012",
                f"{path}:{number} is not UTF-8: {error.reason} at byte {error.start} of the line",
                "save the file as UTF-8",
            ) from error
        if text.strip():
            plain = _cleaned(f"{number:08d}", text, rejects)
            if plain is not None:
                items.append(Item(f"{number:08d}", plain))
    return items


def read_parquet(path: Path, matcher: ClassMatcher, rejects: Rejects) -> list[Item]:
    """A parquet file with ``caption`` and optionally ``id``, ``image_id`` and ``classes`` (list of names).

    Classes given in the table are used instead of the caption's words; each must be in the label set or a
    synonym.

    Raises:
        DataError: GF-CAP-013, not parquet or no text column ``caption``; GF-CAP-014, a value is wrong (row
            and column named).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(
            "GF-CAP-013", f"{path} cannot be read as parquet: {error}", "check the file"
        ) from error
    if "caption" not in table.column_names:
        raise DataError(
            "GF-CAP-013",
            f"{path} has no column 'caption'; found {', '.join(table.column_names) or 'none'}",
            "rename the column that holds the captions",
        )
    columns = [name for name in ("id", "image_id", "caption", "classes") if name in table.column_names]
    items = []
    for number, row in enumerate(table.select(columns).to_pylist()):
        identifier = f"{number:08d}" if row.get("id") is None else image_key(str(row["id"]))
        image = "" if row.get("image_id") is None else coco_image_key(row["image_id"])
        if not isinstance(row["caption"], str):
            raise _wrong(path, number, "caption", row["caption"], "text")
        plain = _cleaned(identifier, row["caption"], rejects)
        if plain is not None:
            items.append(
                Item(identifier, plain, image, _given_classes(path, number, row.get("classes"), matcher))
            )
    return items


def _given_classes(path: Path, number: int, value: Any, matcher: ClassMatcher) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(path, number, "classes", value, "a list of class names")
    found = []
    for name in value:
        known = matcher.resolve(name)
        if known is None:
            raise _wrong(path, number, "classes", name, f"names out of: {', '.join(matcher.names)}")
        found.append(known)
    return tuple(dict.fromkeys(found))


def _wrong(path: Path, row: int, column: str, value: Any, expected: str) -> DataError:
    return DataError(
        "GF-CAP-014",
        f"{path}: row {row}, column {column!r}: {str(value)[:80]!r}; expected {expected}",
        "correct that row",
    )


def read_provided(path: Path, matcher: ClassMatcher, rejects: Rejects) -> list[Item]:
    """Captions from a file, by its suffix: ``.json`` COCO captions, ``.parquet``, anything else text.

    Raises:
        ConfigError: GF-CAP-020, there is no such file.
        DataError: the file is damaged or of another form.
    """
    if not path.is_file():
        raise ConfigError(
            "GF-CAP-020",
            f"captions.file={str(path)!r}: no such file",
            "expected COCO captions JSON, text with a caption a line, or parquet with a caption column",
        )
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_coco_captions(path, rejects)
    if suffix in (".parquet", ".pq"):
        return read_parquet(path, matcher, rejects)
    return read_text(path, rejects)


def read_list(
    entries: Sequence[str], matcher: ClassMatcher, combine: int, limit: int | None, seed: int
) -> list[Item]:
    """Prompts from a user's names: every entry (``dog`` or ``dog + cat``), and combinations of the single
    names.

    Args:
        entries: names of the label set or synonyms; ``+`` joins names into one prompt.
        combine: also every combination of 2 to ``combine`` of the single names, in the order of the list.
        limit: at most so many prompts; where there are more, the single entries come first and
            combinations are drawn with the seed.
        seed: of the draw.

    Raises:
        ConfigError: GF-CAP-021, no entry, an unknown name, or more than a million combinations without a
            limit.
    """
    if not entries:
        raise ConfigError(
            "GF-CAP-021",
            "captions.classes is empty; source=list needs class names",
            "e.g. --set captions.classes=[dog,cat,dog + cat]",
        )
    sets = list(dict.fromkeys(_entry(entry, matcher) for entry in entries))
    singles = [names[0] for names in sets if len(names) == 1]
    total = sum(math.comb(len(singles), size) for size in range(2, combine + 1))
    wanted = total if limit is None else max(min(total, limit - len(sets)), 0)
    if wanted > MAX_COMBINATIONS:
        raise ConfigError(
            "GF-CAP-021",
            f"captions.combine={combine} of {len(singles)} names gives {total} combinations",
            f"set captions.limit (at most {MAX_COMBINATIONS})",
        )
    known = set(sets)
    sets += [names for names in _combinations(singles, combine, wanted, total, seed) if names not in known]
    return [
        Item(
            f"list-{image_key('_'.join(name.replace(' ', '-') for name in names))}",
            clean_caption(caption_of_classes(names)),
            "",
            names,
        )
        for names in sets
    ]


def _entry(entry: str, matcher: ClassMatcher) -> tuple[str, ...]:
    names = []
    for part in entry.split("+"):
        known = matcher.resolve(part.strip())
        if known is None:
            raise ConfigError(
                "GF-CAP-021",
                f"captions.classes: {part.strip()!r} is not in the label set",
                f"known: {', '.join(matcher.names)}",
            )
        names.append(known)
    return tuple(dict.fromkeys(names))


def _combinations(
    names: Sequence[str], most: int, wanted: int, total: int, seed: int
) -> Iterable[tuple[str, ...]]:
    """``wanted`` of the ``total`` combinations of 2 to ``most`` names: all in order, or a draw without
    repeats."""
    sizes = range(2, min(most, len(names)) + 1)
    if wanted >= total:
        return list(itertools.chain.from_iterable(itertools.combinations(names, size) for size in sizes))
    generator = random.Random(seed)
    place = {name: index for index, name in enumerate(names)}
    if wanted * 2 > total and total <= MAX_COMBINATIONS:
        everything = list(
            itertools.chain.from_iterable(itertools.combinations(names, size) for size in sizes)
        )
        return generator.sample(everything, wanted)
    weights = [math.comb(len(names), size) for size in sizes]
    drawn: dict[tuple[str, ...], None] = {}
    while len(drawn) < wanted:
        size = generator.choices(sizes, weights)[0]
        drawn[tuple(sorted(generator.sample(list(names), size), key=place.__getitem__))] = None
    return list(drawn)


def unique_ids(items: Iterable[Item], rejects: Rejects) -> Iterator[Item]:
    """Drop every item whose id was seen before, with a reason; two rows must never share a seed and a file
    name."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            rejects.add(
                item.id, "GF-CAP-015", f"the id {item.id!r} occurs more than once; the first one is kept"
            )
            continue
        seen.add(item.id)
        yield item
