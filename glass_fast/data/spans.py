"""Prompt text and the token columns of its class names.

A cross-attention map has one column per text token, so a class has as many columns as the tokenizer cuts
its name into: CLIP cuts "aeroplane" into two and writes "hot dog" as two words. Dataset Diffusion assumed
one token a word and a hand-made list of compounds (method notes 2.3); here the columns come from the
tokenizer's own character offsets, and the pieces are decoded again and compared with the name before anyone
reads a map through them.

Formats (Dataset Diffusion, method notes 1.1 row 3): the prompt is ``caption; c1 c2 ...``, the class prompt
``c1 c2 ...``. A prompt too long for the text encoder is written ``c1 c2 ...; caption`` by
:func:`fit_prompt`, so that the cut falls into the caption and not into a class.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from glass_fast.errors import DataError

SEPARATOR = "; "
CLIP_LENGTH = 77
"""Positions of CLIP's text encoder, start and end token included; used where a tokenizer states no limit."""


def join_classes(classes: Sequence[str]) -> str:
    """The class prompt: the names in order, separated by a space."""
    return " ".join(classes)


def join_prompt(caption: str, classes: Sequence[str]) -> str:
    """The prompt ``caption; c1 c2 ...``; without a caption or classes there is nothing to separate."""
    return SEPARATOR.join(part for part in (caption, join_classes(classes)) if part)


def token_limit(tokenizer: Any, max_length: int | None = None) -> int:
    """Tokens of an encoded text, special tokens included.

    Args:
        tokenizer: a transformers tokenizer. One saved without a limit reports an astronomically large one;
            then CLIP's 77 hold.
        max_length: overrides the tokenizer's own limit.
    """
    limit = int(max_length if max_length is not None else tokenizer.model_max_length)
    return limit if limit <= 1_000_000 else CLIP_LENGTH


def token_offsets(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Character interval ``[start, end)`` of every token of ``text``, special tokens as empty intervals.

    The text is encoded without truncation, start and end tokens included, so the list index is the token
    column.

    Raises:
        DataError: GF-DATA-061, the tokenizer gives no offsets and does not cut texts at spaces either.
    """
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, return_offsets_mapping=True, truncation=False, padding=False, verbose=False)
        special = tokenizer.get_special_tokens_mask(encoded["input_ids"], already_has_special_tokens=True)
        pairs = encoded["offset_mapping"]
        return [(0, 0) if skip else (int(a), int(b)) for (a, b), skip in zip(pairs, special, strict=True)]
    return _word_offsets(tokenizer, text)


def _word_offsets(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Offsets by words for a tokenizer without them: words are encoded alone and compared with the whole."""
    whole = list(tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"])
    pieces: list[int] = []
    offsets: list[tuple[int, int]] = []
    position = 0
    for word in text.split():
        start = text.index(word, position)
        position = start + len(word)
        ids = tokenizer(word, truncation=False, padding=False, verbose=False, add_special_tokens=False)[
            "input_ids"
        ]
        pieces += ids
        offsets += [(start, position)] * len(ids)
    for before in range(len(whole) - len(pieces) + 1):
        if whole[before : before + len(pieces)] == pieces:
            after = len(whole) - before - len(pieces)
            return [(0, 0)] * before + offsets + [(0, 0)] * after
    raise DataError(
        "GF-DATA-061",
        f"tokenizer {type(tokenizer).__name__} gives no character offsets and encodes {text!r} "
        "differently from its words",
        "use the fast (tokenizers-backed) tokenizer of the model, e.g. transformers.CLIPTokenizer",
    )


def _class_starts(text: str, classes: Sequence[str]) -> list[int]:
    """Where in ``text`` the class list can begin, in the order in which the places are tried."""
    names = join_classes(classes)
    starts = []
    if text == names:
        starts.append(0)
    if text.endswith(SEPARATOR + names):
        starts.append(len(text) - len(names))
    if text.startswith(names + SEPARATOR):
        starts.append(0)
    return starts


def _squash(text: str) -> str:
    """Form in which a class name and its decoded tokens must agree: NFC, lower case, no spaces."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())


def _columns(offsets: Sequence[tuple[int, int]], start: int, classes: Sequence[str]) -> list[list[int]]:
    """Columns whose characters overlap each name of the class list that begins at ``start``."""
    spans = []
    for name in classes:
        stop = start + len(name)
        spans.append([column for column, (a, b) in enumerate(offsets) if a < stop and b > start and a < b])
        start = stop + 1
    return spans


def _first_cut(spans: Sequence[Sequence[int]], limit: int) -> int | None:
    """Index of the first class that loses a token when the text is cut to ``limit`` tokens, or None.

    The last position goes to the end token, so the columns that survive are below ``limit - 1``.
    """
    return next(
        (index for index, span in enumerate(spans) if any(column >= limit - 1 for column in span)), None
    )


def class_spans(
    tokenizer: Any, text: str, classes: Sequence[str], *, max_length: int | None = None
) -> list[list[int]]:
    """Token columns of each class name in a class prompt or in a whole prompt.

    Args:
        tokenizer: the text encoder's tokenizer.
        text: ``c1 c2``, ``caption; c1 c2`` (the list after the last separator is meant, even if the
            caption names a class too) or ``c1 c2; caption``.
        classes: the names in the order of the list.
        max_length: tokens that the text encoder takes, start and end token included; default the
            tokenizer's own.

    Returns:
        For each class its columns in rising order, counted with the start token as column 0.

    Raises:
        DataError: GF-DATA-060, the list is not in the text; GF-DATA-062, a class is cut off by the length
            limit; GF-DATA-063, the tokens do not spell the name (a vocabulary that cannot write it).
    """
    if not classes:
        return []
    starts = _class_starts(text, classes)
    if not starts:
        raise DataError(
            "GF-DATA-060",
            f"the prompt {text!r} does not hold its class list {join_classes(classes)!r}; "
            "expected 'c1 c2', 'caption; c1 c2' or 'c1 c2; caption'",
            "write prompts with glass_fast.data.spans.join_prompt",
        )
    offsets = token_offsets(tokenizer, text)
    limit = token_limit(tokenizer, max_length)
    candidates = [_columns(offsets, start, classes) for start in starts]
    spans = next((found for found in candidates if _first_cut(found, limit) is None), None)
    if spans is None:
        cut = classes[_first_cut(candidates[0], limit) or 0]
        raise DataError(
            "GF-DATA-062",
            f"class {cut!r} lies beyond the {limit} tokens of the text encoder "
            f"(the prompt has {len(offsets)}): {text!r}",
            "shorten the caption, keep fewer classes, or write the prompt with fit_prompt",
        )
    _check_spelling(tokenizer, text, classes, spans)
    return spans


def _check_spelling(
    tokenizer: Any, text: str, classes: Sequence[str], spans: Sequence[Sequence[int]]
) -> None:
    """Decode the columns of each class and compare with its name."""
    ids = tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"]
    for name, span in zip(classes, spans, strict=True):
        written = tokenizer.decode([ids[column] for column in span])
        if not span or _squash(written) != _squash(name):
            raise DataError(
                "GF-DATA-063",
                f"class {name!r} is read from the tokens {written!r}, which do not spell it",
                "the tokenizer's vocabulary does not cover this name; rename the class",
            )


def fit_prompt(tokenizer: Any, caption: str, classes: Sequence[str], *, max_length: int | None = None) -> str:
    """The prompt, with the class list moved before the caption where it would be cut off.

    Args:
        tokenizer: the text encoder's tokenizer.
        caption: text without the class list.
        classes: names in order.
        max_length: as in :func:`class_spans`.

    Returns:
        ``caption; c1 c2`` when all classes survive truncation, else ``c1 c2; caption`` (the caption is
        then cut).

    Raises:
        DataError: GF-DATA-062, the class names alone are longer than the text encoder takes; the first one
            that is cut off is named.
    """
    prompt = join_prompt(caption, classes)
    if not classes or not caption:
        class_spans(tokenizer, prompt, classes, max_length=max_length)
        return prompt
    start = len(prompt) - len(join_classes(classes))
    columns = _columns(token_offsets(tokenizer, prompt), start, classes)
    if _first_cut(columns, token_limit(tokenizer, max_length)) is None:
        return prompt
    class_spans(tokenizer, join_classes(classes), classes, max_length=max_length)
    return join_classes(classes) + SEPARATOR + caption
