"""Prompts -> hidden states of the text encoder and the token columns of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glass_fast.data.prompts import Prompt
from glass_fast.data.spans import class_spans, token_limit
from glass_fast.errors import ConfigError, DataError

Spans = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TextRow:
    """One sample's text.

    Attributes:
        prompt: makes the image.
        probe: text whose keys are probed (the class prompt), or the prompt itself.
        spans: token columns of each class in ``probe``.
    """

    prompt: str
    probe: str
    spans: Spans


def text_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens that the text encoder takes, start and end token included."""
    positions = getattr(text_encoder.config, "max_position_embeddings", None)
    limit = token_limit(tokenizer)
    return min(limit, int(positions)) if positions else limit


def text_row(tokenizer: Any, length: int, prompt: Prompt, probe: str) -> TextRow:
    """Check that every class survives truncation and find its token columns.

    Args:
        tokenizer: CLIP tokenizer.
        length: from :func:`text_length`.
        prompt: row of the prompt table.
        probe: ``class_prompt`` or ``prompt`` (:class:`~glass_fast.config.schema.CaptureConfig`).

    Raises:
        DataError: a class is cut off or not in the text; the message names prompt id and class.
    """
    try:
        if probe == "prompt":
            spans = class_spans(tokenizer, prompt.prompt, prompt.classes, max_length=length)
            return TextRow(prompt.prompt, prompt.prompt, tuple(map(tuple, spans)))
        spans = class_spans(tokenizer, prompt.class_prompt, prompt.classes, max_length=length)
        if (
            len(tokenizer(prompt.prompt, truncation=False, padding=False, verbose=False)["input_ids"])
            > length
        ):
            # the image would silently lack a class whose name is cut off; a cut caption is tolerable
            class_spans(tokenizer, prompt.prompt, prompt.classes, max_length=length)
    except DataError as error:
        raise DataError(error.code, f"prompt {prompt.id!r}: {error.message}", error.hint) from error
    return TextRow(prompt.prompt, prompt.class_prompt, tuple(map(tuple, spans)))


def encode_text(tokenizer: Any, text_encoder: Any, texts: Sequence[str], length: int) -> Tensor:
    """Hidden states (batch, length, channels) of texts padded to ``length`` tokens.

    The padding is not masked: Stable Diffusion was trained that way, and its padding columns take up the attention
    of the background.
    """
    encoded = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    device = next(text_encoder.parameters()).device
    mask = None
    if getattr(text_encoder.config, "use_attention_mask", False):
        mask = encoded["attention_mask"].to(device)
    return text_encoder(encoded["input_ids"].to(device), attention_mask=mask)[0]


def check_negative(tokenizer: Any, text: str, length: int) -> None:
    """Refuse a negative prompt that would be cut.

    Raises:
        ConfigError: GF-SYN-020.
    """
    count = len(tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"])
    if count > length:
        raise ConfigError(
            "GF-SYN-020",
            f"synthesis.negative_prompt has {count} tokens; the text encoder takes {length}: {text!r}",
            "shorten the negative prompt",
        )


def class_columns(spans: Sequence[Spans], length: int, classes: int) -> Tensor:
    """Weights (batch, length, classes): each class averages the columns of its token span; padding classes are zero."""
    columns = torch.zeros(len(spans), length, classes)
    for row, sample in enumerate(spans):
        for index, span in enumerate(sample):
            columns[row, list(span), index] = 1.0 / len(span)
    return columns
