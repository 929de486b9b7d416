"""Shares with their counts and 95 % intervals, as every measured quality states them."""

from __future__ import annotations

import math
from typing import Any

Z95 = 1.959964
"""Standard deviations of a two-sided 95 % interval."""


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a binomial share (Wilson 1927); (0, 1) without a trial."""
    if total <= 0:
        return 0.0, 1.0
    share, spread = count / total, Z95 * Z95 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def share(count: int, total: int) -> dict[str, Any]:
    """``{"count", "total", "share", "low", "high"}``; the share is None without a trial."""
    low, high = wilson(int(count), int(total))
    return {
        "count": int(count),
        "total": int(total),
        "share": round(int(count) / int(total), 4) if total else None,
        "low": round(low, 4),
        "high": round(high, 4),
    }
