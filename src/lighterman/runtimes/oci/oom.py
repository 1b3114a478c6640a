"""OOM kills of one container, told while it runs.

It begins once the start is told. With version 2 every container is heard, since that costs 2 us at its start (Linux
6.18); with version 1, 14 us and a descriptor, only those with a limit: of others it has nothing to tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from lighterman.runtimes.oci.cgroups import Cgroup, OomEar, OomEars
from lighterman.runtimes.oci.process import OciProcess
from lighterman.runtimes.oci.processes import is_dying

__all__ = ["OomWatch"]

log = logging.getLogger(__name__)


class OomWatch:
    """Of one compute system. Args: limited: whether it has a memory limit, as far as is known."""

    def __init__(self, cgroup: Cgroup, ears: OomEars, *, limited: bool) -> None:
        self._cgroup = cgroup
        self._ears = ears
        self._limited = limited
        self._ear: OomEar | None = None
        self._asked: tuple[OciProcess, int, Callable[[int], None]] | None = None

    def begin(self, init: OciProcess, told: int, tell: Callable[[int], None]) -> None:
        """See `ComputeSystem.watch_oom`."""
        self._asked = init, told, tell
        self._listen()

    def has_a_limit(self) -> None:
        """It was given one while it runs."""
        self._limited = True
        self._listen()

    def _listen(self) -> None:
        if self._asked is None or self._ear is not None:
            return
        init, told, tell = self._asked

        def is_ending() -> bool:
            return init.has_exited or is_dying(init.pid)

        try:
            self._ear = self._ears.listen(
                self._cgroup, limited=self._limited, told=told, is_ending=is_ending, tell=tell
            )
        except OSError as failed:
            log.warning("cgroup %s: OOM kills in it are told at its end only: %s", self._cgroup.path, failed)
            return
        if self._ear is not None and self._limited:
            # What was killed before.
            self._ear.look()

    def end(self) -> None:
        """Again is nothing."""
        ear, self._ear, self._asked = self._ear, None, None
        if ear is not None:
            ear.close()
