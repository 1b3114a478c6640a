"""A container's pause, where asking for it twice is an error. Blocking."""

from __future__ import annotations

from lighterman.errors import InvalidState
from lighterman.runtimes.oci.cgroups import Cgroup

__all__ = ["freeze", "thaw"]


def freeze(cgroup: Cgroup, container: str) -> None:
    """Raises: InvalidState if it is paused; as `Cgroup.freeze`."""
    if cgroup.is_frozen():
        raise InvalidState(f"container {container} is paused already", container=container)
    cgroup.freeze()


def thaw(cgroup: Cgroup, container: str) -> None:
    """Raises: InvalidState if it is not paused; as `Cgroup.thaw`."""
    if not cgroup.is_frozen():
        raise InvalidState(f"container {container} is not paused", container=container)
    cgroup.thaw()
