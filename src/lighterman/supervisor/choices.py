"""What the options of a container's making come to: what is of the lifecycle, and what its runtime is given."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.options import (
    FirstRun,
    Flush,
    OutputSegments,
    Servicing,
    WithCheckpoint,
    WithRestartPolicy,
)
from lighterman.spec import RestartPolicy

__all__ = ["Chosen"]


class Chosen:
    """Of one container.

    Attributes:
        first: what its first run is to know of earlier ones. policy: the last that was given, or none.
        is_servicing: it runs to its end while it is created [L12].
    """

    def __init__(self, options: Sequence[CreateOption]) -> None:
        self.first = next((option for option in options if isinstance(option, FirstRun)), FirstRun(1))
        policies = [option.policy for option in options if isinstance(option, WithRestartPolicy)]
        self.policy = policies[-1] if policies else RestartPolicy()
        self.is_servicing = any(isinstance(option, Servicing) for option in options)
        self._options = tuple(option for option in options if not isinstance(option, WithRestartPolicy | FirstRun))

    def of_run(self, generation: int) -> list[CreateOption]:
        """What the runtime is given for one run."""
        return [
            msgspec.structs.replace(option, generation=generation) if isinstance(option, OutputSegments) else option
            for option in self._options
        ]

    @property
    def checkpoint(self) -> WithCheckpoint | None:
        """What its first run begins with."""
        return next((option for option in self._options if isinstance(option, WithCheckpoint)), None)

    def settle_for_another_run(self) -> None:
        """A restart begins anew: without the checkpoint, and without ignoring flushes [L36]."""
        self._options = tuple(
            Flush(ignore_flushes_during_boot=False) if isinstance(option, Flush) else option
            for option in self._options
            if not isinstance(option, WithCheckpoint)
        )
