"""How a time is shown."""

from __future__ import annotations

import datetime

__all__ = ["shown_time"]


def shown_time(at: float) -> str:
    """Unix seconds as 2026-01-31T12:00:00.000000Z."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
