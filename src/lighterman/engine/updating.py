"""Changing the limits of what runs: what holds afterwards, and what a runtime is told for that. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from lighterman.spec import Resources

__all__ = ["merged", "to_send", "to_undo"]

# The kernel sets swap apart from memory, and docker's number is the sum of both: none of them stands for itself.
_MEMORY = ("memory_bytes", "memory_swap_bytes", "memory_reservation_bytes")
_LIFTED = {"memory_bytes": -1, "memory_swap_bytes": -1, "pids_limit": -1}  # OCI's for no limit


def merged(before: Resources, asked: Resources) -> Resources:
    """What holds once `asked` is in force."""
    return msgspec.structs.replace(before, **_asked(asked))


def to_send(asked: Resources, before: Resources) -> Resources:
    """What a runtime is told: the limits that were asked for, and those which only hold together with them."""
    after = merged(before, asked)
    return Resources(**{name: getattr(after, name) for name in _names(asked)})


def to_undo(asked: Resources, before: Resources) -> Resources:
    """What a runtime is told to get back to `before`; of what was not limited, as much as can be lifted."""
    found: dict[str, Any] = {name: getattr(before, name) or _LIFTED.get(name) for name in _names(asked)}
    return Resources(**{name: value for name, value in found.items() if value is not None})


def _names(asked: Resources) -> set[str]:
    names = set(_asked(asked))
    return names | set(_MEMORY) if names & set(_MEMORY) else names


def _asked(resources: Resources) -> dict[str, Any]:
    """As for docker, 0 leaves a limit as it is. False is no number: its check refuses it."""
    values = {name: getattr(resources, name) for name in resources.__struct_fields__}
    return {name: value for name, value in values.items() if value or value is False}
