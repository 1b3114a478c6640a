"""The options of `Client.create`: frozen values, handed to the runtime, which rejects those that it can't honour."""

from __future__ import annotations

from collections.abc import Callable

from lighterman.runtimes.base import CreateOption, KnownExec
from lighterman.spec import LogPolicy, RestartPolicy

__all__ = [
    "Credentials",
    "FirstRun",
    "Flush",
    "HyperVIsolation",
    "Layers",
    "NetworkEndpoints",
    "OutputSegments",
    "Servicing",
    "WithCheckpoint",
    "WithLease",
    "WithRestartPolicy",
    "unfinished",
]


class Servicing(CreateOption, frozen=True):
    """The container services an image: `create` waits for its end."""


class Flush(CreateOption, frozen=True):
    """Windows: whether flushes are ignored while the guest boots."""

    ignore_flushes_during_boot: bool


class HyperVIsolation(CreateOption, frozen=True):
    """Windows: run in a utility virtual machine, whose scratch space is at `sandbox_path`."""

    sandbox_path: str


class Layers(CreateOption, frozen=True):
    """Windows: the writable layer's folder and the read-only layers' paths, the topmost first."""

    layer_folder_path: str
    layer_paths: tuple[str, ...]


class NetworkEndpoints(CreateOption, frozen=True):
    """Windows: endpoint ids, and whether names without a dot may be asked of DNS."""

    endpoints: tuple[str, ...]
    allow_unqualified_dns_query: bool = False


class Credentials(CreateOption, frozen=True):
    """Windows: a group managed service account's credential specification, as JSON text."""

    spec: str


class WithRestartPolicy(CreateOption, frozen=True):
    """Start it again when it has ended, as the policy says. The lifecycle's own; no runtime sees it.

    Attributes: policy: or a function, see `lifecycle.restart.RestartRule`.
    """

    policy: RestartPolicy | Callable[..., float | None]


class WithCheckpoint(CreateOption, frozen=True):
    """Start from the checkpoint `name` in `directory`; the first run only."""

    name: str
    directory: str


def unfinished(name: str) -> str:
    """What the directory of a checkpoint is called until it is whole; no checkpoint can have such a name."""
    return f".part-{name}"


class FirstRun(CreateOption, frozen=True):
    """The number of the first run, where a container has had runs before. The lifecycle's own; no runtime sees it.

    Attributes:
        manually_stopped, oom_kills: with `restore`, of the run that is taken up: whether it was asked to end, and how
            many of its processes were told to have been killed for memory.
        restart_reason: likewise: why another run is to follow it whatever the policy.
        restarts: of the runs before, as they were told (`StateInfo.restarts`); empty begins anew.
        execs: with `restore`, the exec processes that were told to have started, and not to have ended.
    """

    generation: int
    manually_stopped: bool = False
    oom_kills: int = 0
    restarts: bytes = b""
    execs: tuple[KnownExec, ...] = ()
    restart_reason: str | None = None


class WithLease(CreateOption, frozen=True):
    """Linux: the name of a lease of the keeper: all of the container is killed when the lease's owner has died."""

    name: str


class OutputSegments(CreateOption, frozen=True):
    """Linux: where a keeper puts output while no engine is connected; the bounds are those of each process.

    Attributes:
        directory: the container's own. generation: the run; set by the lifecycle. policy: see `ContainerSpec`.
    """

    directory: str
    max_bytes: int
    max_files: int
    generation: int = 1
    policy: LogPolicy = "block"

    def of(self, process_id: str) -> str:
        """The directory of one process's segments."""
        if process_id == "init":
            return f"{self.directory}/logs/{self.generation}"
        return f"{self.directory}/execs/{process_id}/1"
