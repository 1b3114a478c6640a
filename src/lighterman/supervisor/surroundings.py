"""What a container is given to live in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lighterman.clock import Clock
from lighterman.lifecycle.events import StateInfo
from lighterman.lifecycle.restart import RestartRate
from lighterman.runtimes.base import Runtime
from lighterman.supervisor.backend import Backend
from lighterman.supervisor.delivery import Spawn, Then

if TYPE_CHECKING:
    from lighterman.supervisor.container import Container

__all__ = ["Surroundings"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """By its client."""

    runtime: Runtime
    backend: Backend
    clock: Clock
    watch: Spawn  # a task that ends early when nobody watches any more
    finish: Spawn  # a task that goes on to its end
    tell: Callable[[StateInfo, Then | None], None]
    unregister: Callable[[Container], None]
    jitter: Callable[[], float]  # from -1 to 1
    restart_rate: RestartRate | None = None
