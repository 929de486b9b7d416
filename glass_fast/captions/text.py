"""Caption text: cleaning, the caption of a class list, and sample ids.

Captions come from models, files and strangers. They end up in file names of shards (as ids), in prompts
and in reports, so every caption passes :func:`clean_caption` once, at the door.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from glass_fast.captions.vocabulary import ALWAYS_PLURAL
from glass_fast.data.prompts import MAX_TEXT_BYTES
from glass_fast.errors import DataError

MAX_CAPTION_BYTES = 3072
"""Captions are kept shorter than the 4 kB limit of a prompt, so that the class names fit behind them."""
_SPECIAL = re.compile(r"<\|[^<>|]*\|>")
_UNWANTED = ("Cc", "Cf", "Cs", "Co", "Cn")
_ID_ALLOWED = re.compile(r"[0-9a-z_-]{1,48}\Z")


def clean_caption(text: str) -> str:
    """One line of NFC text without control, format, surrogate or unassigned characters.

    White space of any kind becomes a single space. Text in the form of the tokenizer's special tokens
    (``<|endoftext|>``) is removed: inside a caption it would end the prompt for the text encoder. A final
    full stop or separator goes, because the class list follows after ``; ``. Cleaning a clean caption
    changes nothing.

    Raises:
        DataError: GF-CAP-001, nothing is left; GF-CAP-002, more than 3 kB are left.
    """
    plain = "".join(
        " " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _UNWANTED
    )
    plain = unicodedata.normalize("NFC", plain)
    while _SPECIAL.search(plain):
        plain = _SPECIAL.sub(" ", plain)
    plain = unicodedata.normalize("NFC", " ".join(plain.split()).rstrip(" .;,"))
    if not plain:
        raise DataError("GF-CAP-001", "the caption is empty after cleaning; expected some text")
    size = len(plain.encode("utf-8"))
    if size > MAX_CAPTION_BYTES:
        raise DataError(
            "GF-CAP-002",
            f"the caption has {size} bytes ({plain[:40]!r}...); expected at most {MAX_CAPTION_BYTES}",
            "text encoders read 77 tokens, about 300 characters; shorten it",
        )
    return plain


def fits_table(prompt: str) -> bool:
    """Whether a prompt is within the prompt table's limit."""
    return len(prompt.encode("utf-8")) <= MAX_TEXT_BYTES


def with_article(name: str) -> str:
    """``a dog``, ``an umbrella``, ``skis``."""
    if name.split()[-1] in ALWAYS_PLURAL:
        return name
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def caption_of_classes(names: Sequence[str]) -> str:
    """``a photo of a dog, a cat and an umbrella``: the caption where only classes are known (Dataset
    Diffusion)."""
    parts = [with_article(name) for name in names]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"a photo of {listed}"


def image_key(name: str) -> str:
    """Stable id of a source image or row: its own name where that is a legal id, else a readable part and
    a hash.

    ``000000000139`` stays; ``Holiday/IMG 1.JPG`` becomes ``img-1-`` and 12 hexadecimal digits of its hash,
    so that two files that differ only in case, folder or forbidden characters never share an id.

    Args:
        name: relative path without suffix, or the id given by the data set.

    Returns:
        1 to 48 characters of ``0-9a-z_-``; 16 stay free for a number behind it.
    """
    if _ID_ALLOWED.match(name):
        return name
    last = unicodedata.normalize("NFKD", name.replace("\\", "/").rsplit("/", 1)[-1]).lower()
    last = "".join(c for c in last if not unicodedata.combining(c))
    readable = re.sub(r"[^0-9a-z]+", "-", last).strip("-")[:32].strip("-")
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{readable}-{digest}" if readable else digest
