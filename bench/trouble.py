"""What keeps a peer from taking part: said in the table, no failure of the benchmark."""

from __future__ import annotations

__all__ = ["Trouble"]


class Trouble(Exception):
    """A peer that is not installed, does not work here, or takes too long."""
