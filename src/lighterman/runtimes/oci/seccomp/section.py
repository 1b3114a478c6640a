"""A resolved `linux.seccomp` section: may its filter be precompiled, and what is left of it beside one."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["is_precompilable", "reduced"]

# Actions by which a call that is not named is refused. Others would leave a container open, were the filter lost.
_REFUSING = frozenset(
    ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP")
)
_RULE_ACTIONS = _REFUSING | {"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"}
# crun passes these to seccomp(2) with a precompiled filter too; it knows no others.
_FLAGS = frozenset(f"SECCOMP_FILTER_FLAG_{name}" for name in ("LOG", "SPEC_ALLOW", "TSYNC"))
_KNOWN = frozenset(("architectures", "defaultAction", "defaultErrnoRet", "flags", "syscalls"))


def is_precompilable(section: bytes) -> bool:
    """Whether a filter made of it beforehand is as good: refuses by default, notifies nobody, has no unknown part."""
    try:
        members = msgspec.json.decode(section, type=dict[str, Any])
        return (
            members.keys() <= _KNOWN
            and members["defaultAction"] in _REFUSING
            and _FLAGS.issuperset(members.get("flags", ()))
            and all(rule["action"] in _RULE_ACTIONS for rule in members.get("syscalls", ()))
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return False


def reduced(section: bytes) -> bytes:
    """What stands in the document beside a filter: the default action, which refuses everything, and the flags.

    A runtime that does not take the filter then refuses every call, and so the container.
    """
    members = msgspec.json.decode(section, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(
        {name: members[name] for name in ("defaultAction", "defaultErrnoRet", "flags") if name in members}
    )
