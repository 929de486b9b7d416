"""Text and numbers for the page: foreign text is made harmless to read, numbers are short."""

from __future__ import annotations

import math
import unicodedata
from typing import Any, TypeGuard

DASH = "–"

# Explicit directional controls can make a caption read as something else (the file name trick); letters of
# right-to-left scripts are ordinary text and stay. The controls are shown by code instead of obeyed.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean(value: Any, limit: int = 300) -> str:
    """Foreign text as one printable line.

    Args:
        value: anything; ``None`` gives the empty string.
        limit: longest result in characters; longer text ends with an ellipsis.

    Returns:
        Text without control characters and lone surrogates. Directional controls appear as ``<U+202E>``.
        It is *not* HTML-escaped: the template engine does that.
    """
    if value is None:
        return ""
    out: list[str] = []
    for char in str(value)[: limit + 1]:
        kind = unicodedata.category(char)
        if char in _BIDI:
            out.append(f"<U+{ord(char):04X}>")
        elif kind == "Cs":
            out.append("\ufffd")
        elif kind == "Cc" or char in "\u2028\u2029":
            out.append(" ")
        else:
            out.append(char)
    text = " ".join("".join(out).split())
    return text if len(text) <= limit else text[: max(limit - 1, 0)].rstrip() + "…"


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite int or float (bool does not count)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: Any) -> str:
    """``12345`` -> ``12,345``; anything that is no number -> a dash."""
    return f"{int(value):,}" if is_number(value) else DASH


def number(value: Any, digits: int = 4) -> str:
    """Up to ``digits`` significant digits, without exponent for everyday sizes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(value) or DASH
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}g}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def percent(fraction: Any, digits: int = 1) -> str:
    """``0.5583`` -> ``55.8`` (points, no sign); a dash when there is no number."""
    return f"{100 * fraction:.{digits}f}" if is_number(fraction) else DASH


def signed_percent(fraction: Any, digits: int = 1) -> str:
    """``0.234`` -> ``+23.4 %`` with a real minus sign."""
    if not is_number(fraction):
        return DASH
    return f"{100 * fraction:+.{digits}f} %".replace("-", "−")


def seconds(value: Any) -> str:
    """``75`` -> ``1 min 15 s``."""
    if not is_number(value) or value < 0:
        return DASH
    if value < 10:
        return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: Any) -> str:
    """Bytes in units of 1024."""
    if not is_number(value):
        return DASH
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")
