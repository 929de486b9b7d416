"""Cleaning of captions, captions of class lists, and ids: for any text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glass_fast.captions.text import MAX_CAPTION_BYTES, caption_of_classes, clean_caption, image_key
from glass_fast.data.prompts import ID_PATTERN
from glass_fast.errors import DataError

ANY_TEXT = st.text(st.characters(), max_size=80)
"""Every code point, lone surrogates, controls and unassigned ones included."""


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A dog.", "A dog"),
        ("  two\tcats \n on\r\na mat ; ", "two cats on a mat"),
        ("cafe\u0301", "café"),
        ("a\u0000b\u0007c\u200bd\u202ee\ufefff", "abcdef"),
        ("a dog <|endoftext|> a cat", "a dog a cat"),
        ("<|end<|startoftext|>oftext|> a cat", "a cat"),
        ("what?", "what?"),
        ("a\u2028b\u0085c\u00a0d", "a b c d"),
        ("\ud800a cow", "a cow"),
        ("ein Fuß, 狗和猫 🐕", "ein Fuß, 狗和猫 🐕"),
    ],
)
def test_cleaning_cases(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


@pytest.mark.parametrize("empty", ["", " \t", ".", " ; , .", "\u200b\u0000", "<|endoftext|>"])
def test_nothing_left(empty: str) -> None:
    with pytest.raises(DataError, match="empty after cleaning"):
        clean_caption(empty)


def test_length_is_counted_in_bytes() -> None:
    assert len(clean_caption("é" * (MAX_CAPTION_BYTES // 2))) == MAX_CAPTION_BYTES // 2
    with pytest.raises(DataError, match=f"has {MAX_CAPTION_BYTES + 2} bytes") as info:
        clean_caption("é" * (MAX_CAPTION_BYTES // 2 + 1))
    assert info.value.code == "GF-CAP-002"


@settings(max_examples=400)
@given(ANY_TEXT)
@example("a\u00ad\u0301")
@example("<|a<|b|>|>")
@example("x.\u200b;")
def test_clean_text_properties(text: str) -> None:
    """Valid UTF-8, NFC, one line, no control characters, no special token, and cleaning again changes
    nothing."""
    try:
        clean = clean_caption(text)
    except DataError:
        return
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert unicodedata.is_normalized("NFC", clean)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in clean)
    assert " ".join(clean.split()) == clean and "<|endoftext|>" not in clean
    assert clean_caption(clean) == clean


@pytest.mark.parametrize(
    ("names", "caption"),
    [
        (["dog"], "a photo of a dog"),
        (["dog", "umbrella"], "a photo of a dog and an umbrella"),
        (["aeroplane", "hot dog", "skis"], "a photo of an aeroplane, a hot dog and skis"),
        (["scissors"], "a photo of scissors"),
    ],
)
def test_caption_of_classes(names: list[str], caption: str) -> None:
    assert caption_of_classes(names) == caption


def test_legal_names_are_kept() -> None:
    for name in ("000000000139", "2007_000032", "a-b_c", "x" * 48):
        assert image_key(name) == name


@settings(max_examples=400)
@given(ANY_TEXT, ANY_TEXT)
@example("IMG_1", "img_1")
@example("a/1", "b/1")
@example("", "-")
def test_keys_are_legal_and_distinct(first: str, second: str) -> None:
    """Different names, different keys: a collision would need 48 equal hash bits."""
    one, two = image_key(first), image_key(second)
    assert ID_PATTERN.match(one) and len(one) <= 48
    assert (one == two) == (first == second)
