"""AppArmor, where the host has it on: which loaded profile confines a container."""

from __future__ import annotations

__all__ = ["explain", "is_enabled", "loaded_profile"]

# Ours first; docker's own, loaded by a dockerd on the same host, says the same.
PROFILES = ("lighterman-default", "docker-default")

_ENABLED = "/sys/module/apparmor/parameters/enabled"
_LOADED = "/sys/kernel/security/apparmor/profiles"


def is_enabled() -> bool:
    """Whether the kernel enforces AppArmor."""
    return _read(_ENABLED).strip() == "Y"


def loaded_profile() -> str | None:
    """The name of the profile to set; None where AppArmor is off, or none of ours is loaded."""
    if not is_enabled():
        return None
    loaded = {line.partition(" ")[0] for line in _read(_LOADED).splitlines()}
    return next((name for name in PROFILES if name in loaded), None)


def explain() -> str:
    """One line for `version` and `doctor`."""
    if not is_enabled():
        return "apparmor: off on this host"
    profile = loaded_profile()
    if profile is not None:
        return f"apparmor: {profile}"
    return f"apparmor: on, and none of {', '.join(PROFILES)} is loaded: containers run unconfined by it"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
