"""What the commands of `python -m vm` fail with."""

from __future__ import annotations

__all__ = ["Failed"]


class Failed(Exception):
    """What was asked for could not be done; the text says why, and where to look."""
