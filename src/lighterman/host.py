"""What an engine needs of the host it is on; `linux_host` and `windows_host` have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lighterman.images.image import Image
from lighterman.runtimes.base import CreateOption, Runtime, RuntimeVersion
from lighterman.spec import ConsoleSize, ContainerSpec, ProcessConfig, Resources, RestartPolicy, Spec

if TYPE_CHECKING:
    from lighterman.keeper.client import KeeperClient
    from lighterman.runtimes.oci.reach import Reach
    from lighterman.runtimes.oci.tree import Members

__all__ = ["Host"]


class Poke(Protocol):
    """A run is about to be asked for."""

    def __call__(self) -> None: ...


class Host(Protocol):
    """Its runtimes, and the way from wishes to what a runtime is given.

    Attributes:
        version: of the runtime that is used by default.
        is_left: something runs that can't be ended; since `close` it is the keeper's to end, and the root with it.
    """

    version: RuntimeVersion
    is_left: bool

    @property
    def poke(self) -> Poke: ...

    @property
    def keeper(self) -> KeeperClient:
        """Raises: NotSupported where there is none."""

    # ---- runtimes ----

    async def runtime(self, name: str | None) -> Runtime:
        """The runtime of that name, or the default one. Raises: RuntimeUnavailable, NotSupported."""

    def opened(self, name: str) -> Runtime:
        """One that `runtime` gave before."""

    def start_times(self, runtime: str, id: str) -> tuple[float, float] | None:
        """When the runtime was asked to start a container, and had; CLOCK_MONOTONIC, None where nobody knows."""

    def members(self, runtime: str, id: str, pid: int) -> Members | None:
        """What an exec process has started; None where killing it ends all of that."""

    def reach(self, runtime: str, id: str) -> Reach | None:
        """The way into a container's namespaces; None where there is none."""

    # ---- from wishes to a spec ----

    async def image(self, name: str | None, rootfs: str | None) -> Image:
        """Raises: NotFound, NotSupported, InvalidSpec."""

    async def spec(self, id: str, wanted: ContainerSpec, image: Image) -> Spec:
        """Check and encode. Raises: InvalidSpec, NotSupported for what this host has no word for."""

    def create_options(
        self, id: str, wanted: ContainerSpec, image: Image | None, lease: str | None
    ) -> list[CreateOption]:
        """What `create` and `restore` get beside the spec. Args: lease: of the job, by `Leases.job_lease`."""

    async def exec_process(
        self,
        base: ProcessConfig,
        args: tuple[str, ...],
        *,
        pid: int,
        env: dict[str, str] | None,
        workdir: str | None,
        user: str | None,
        terminal: bool,
        console_size: ConsoleSize | None,
        stdin: bool,
    ) -> ProcessConfig:
        """A further process of a container whose init process is `pid`. Raises: InvalidSpec, NotFound."""

    def check_resources(self, resources: Resources) -> None:
        """Blocking. Raises: InvalidSpec, NotSupported for a limit that can't be changed, or enforced, here."""

    def check_restart(self, policy: RestartPolicy) -> None:
        """Raises: NotSupported for one that waits for an end that no program comes to here."""

    async def copy_checkpoint(self, id: str, name: str, source: str, target: str, runtime: str | None) -> None:
        """Copy one of container `id` from one directory to another.

        Args: runtime: of the container that will be started from it; None: the one that was chosen.

        If cancelled: nothing writes there any more. Raises: NotFound, NotSupported, RuntimeUnavailable, StoreError.
        """

    # ---- the end ----

    def forget(self, id: str) -> None:
        """A container is removed: begin to take away what the host keeps of it beside its directory."""

    async def close(self, *, by_force: bool, lives: bool = False) -> bool:
        """Finish what goes on in the background. Returns: whether nothing of ours runs any more.

        Args: lives: whether a container lives on.
        """
