"""What an engine has of a Windows host: the service's runtime, layers, and the way from wishes to a spec.

See `host.Host`. There is no keeper: nothing is held, nothing is taken over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from lighterman import limits
from lighterman.checks import Exec, HealthCheck, LogPattern
from lighterman.errors import InvalidSpec, LightermanError, NotSupported
from lighterman.host import Poke
from lighterman.images.image import Image, ImageConfig
from lighterman.roots import StateRoot, abandoned
from lighterman.runtimes.base import CreateOption, RuntimeVersion
from lighterman.runtimes.hcs import HcsRuntime, TerminateWithEngine
from lighterman.runtimes.hcs.load import BindingName, load_runtime
from lighterman.runtimes.options import Layers
from lighterman.spec import (
    ConsoleSize,
    ContainerSpec,
    JournaldSink,
    Mount,
    ProcessConfig,
    Resources,
    RestartPolicy,
    Spec,
    User,
)
from lighterman.threads import in_thread
from lighterman.trees import remove_tree

if TYPE_CHECKING:
    from lighterman.keeper.client import KeeperClient

__all__ = ["Loader", "WindowsHost", "load", "open_host", "owner_of"]

log = logging.getLogger(__name__)

Loader = Callable[[BindingName, str], Awaitable[HcsRuntime]]
"""Finds the service by one of its DLLs, for the compute systems of one owner. Raises: RuntimeUnavailable."""

NAME = "hcs"
BINDINGS: dict[str | None, BindingName] = {
    None: "vmcompute",
    NAME: "vmcompute",
    "vmcompute": "vmcompute",
    "computecore": "computecore",
}
LAYER_CHAIN = "layerchain.json"  # docker's: a JSON list of the parents' folders, the nearest first
DEFAULT_STOP_SIGNAL = 15
_BOOTS = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"

# Wishes that Windows has no word for, with what they are when nobody wished.
_LINUX_ONLY = (
    "cap_add",
    "cap_drop",
    "devices",
    "init",
    "no_new_privileges",
    "oom_score_adj",
    "privileged",
    "read_only",
    "rootfs_rw",
    "seccomp",
    "shm_bytes",
    "sysctls",
    "ulimits",
)
_LIMITS = frozenset({"memory_bytes", "cpus", "cpu_shares"})


async def load(binding: BindingName, owner: str) -> HcsRuntime:
    """See `Loader`; the DLL of this Windows."""
    return await load_runtime(binding, owner=owner)


async def open_host(root: StateRoot, wanted: str | None, load: Loader = load) -> WindowsHost:
    """Find the service, and sweep what private engines left that were killed.

    Args: wanted: `hcs`, or one of its DLLs: `vmcompute` (the same), `computecore`.
    Raises: RuntimeUnavailable, NotSupported.
    """
    if wanted not in BINDINGS:
        raise NotSupported(f"runtime {wanted!r:.80}: on Windows there are hcs, vmcompute and computecore")
    runtime = await load(BINDINGS[wanted], owner_of(root))
    try:
        await in_thread(os.makedirs, _layers(root), exist_ok=True)
        host = WindowsHost(root, runtime, await runtime.version())
        await host.sweep_abandoned()
    except BaseException:
        await runtime.close()
        raise
    return host


def owner_of(root: StateRoot) -> str:
    """What its compute systems are tagged with: two engines on one host leave each other's alone."""
    return f"lighterman-{uuid.uuid5(uuid.NAMESPACE_URL, os.path.realpath(root.state)).hex[:16]}"


def _layers(root: StateRoot) -> str:
    return os.path.join(root.state, "layers")


def _nobody_waits() -> None:
    return


class WindowsHost:
    """Made by `open_host`."""

    def __init__(self, root: StateRoot, runtime: HcsRuntime, version: RuntimeVersion) -> None:
        self.version = version
        self._root = root
        self._runtime = runtime

    @property
    def poke(self) -> Poke:
        """Nothing here is worth being woken."""
        return _nobody_waits

    @property
    def keeper(self) -> KeeperClient:
        """Raises: NotSupported."""
        raise NotSupported("there is no keeper on Windows")

    # ---- runtimes ----

    async def runtime(self, name: str | None) -> HcsRuntime:
        """The only one. Raises: NotSupported."""
        if name not in (None, NAME):
            raise NotSupported(f"runtime {name!r:.80}: on Windows there is only {NAME}")
        return self._runtime

    def opened(self, name: str) -> HcsRuntime:
        """As `runtime`."""
        return self._runtime

    def start_times(self, runtime: str, id: str) -> tuple[float, float] | None:
        """The runtime knows no better than its caller."""
        return None

    def members(self, runtime: str, id: str, pid: int) -> None:
        """What an exec has started ends with its container."""

    def reach(self, runtime: str, id: str) -> None:
        """Nothing of a container can be entered from here."""

    # ---- what an earlier engine left ----

    @staticmethod
    def boot_id() -> str:
        """Of the host's present life; empty where Windows does not number them. Blocking."""
        if sys.platform != "win32":
            return ""
        import winreg

        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _BOOTS) as key:
                return str(winreg.QueryValueEx(key, "BootId")[0])
        except OSError:
            return ""

    async def end_left(self, id: str) -> None:
        """End what there is of a container of an earlier engine: its compute system, the mount of its layer."""
        await self._runtime.end_left(id)
        await self._runtime.layers.unmount_left(os.path.join(_layers(self._root), id))

    async def sweep(self, *, known: set[str]) -> None:
        """End what of ours nobody has taken up, and go on removing layers. Args: known: the containers in the books."""
        await self._runtime.sweep(_layers(self._root))
        for name in await in_thread(_listed, _layers(self._root)) - known:
            folder = os.path.join(_layers(self._root), name)
            await self._runtime.layers.unmount_left(folder)
            self._runtime.layers.remove(folder)

    def remove_directories(self, *, except_of: set[str]) -> None:
        """Take away what containers have written that are in no book. Blocking."""
        for id in _listed(os.path.join(self._root.state, "containers")) - except_of:
            remove_quietly(self._root.container(id))

    async def sweep_abandoned(self) -> None:
        """End and remove what private engines left that were killed."""
        for root in await in_thread(abandoned):
            try:
                await self._runtime.sweep(owner=owner_of(root))
                if await self._remove_layers(root, limits.HCS_SWEEP_S):
                    await in_thread(root.remove)
                    log.info("removed what a killed engine left in %s", root.state)
                else:
                    log.warning("layers of a killed engine in %s can't be removed yet", root.state)
            except LightermanError as failed:
                log.warning("what a killed engine left in %s can't be removed: %s", root.state, failed)
            finally:
                root.release()

    async def _remove_layers(self, root: StateRoot, within_s: float) -> bool:
        """Whether all of them are gone."""
        folders = [os.path.join(_layers(root), name) for name in await in_thread(_listed, _layers(root))]
        for folder in folders:
            await self._runtime.layers.unmount_left(folder)
        removals = [self._runtime.layers.remove(folder) for folder in folders]
        if removals:
            await asyncio.wait(removals, timeout=within_s)
        return all(removal.done() for removal in removals)

    # ---- from wishes to a spec ----

    async def image(self, name: str | None, rootfs: str | None) -> Image:
        """The layers below the folder of the topmost read-only one, by docker's chain file.

        Raises: NotSupported, InvalidSpec.
        """
        if rootfs is None:
            raise NotSupported(f"image {name!r}: on Windows give the folder of an unpacked layer as rootfs")
        return Image(name=rootfs, id=rootfs, layers=await in_thread(_chain, rootfs), config=ImageConfig())

    def create_options(
        self, id: str, wanted: ContainerSpec, image: Image | None, lease: str | None
    ) -> list[CreateOption]:
        """What `create` needs besides the spec; a lease on us makes the service end the container with our handles."""
        if image is None:
            return []
        options: list[CreateOption] = [Layers(os.path.join(_layers(self._root), id), image.layers)]
        return [*options, TerminateWithEngine()] if lease is not None else options

    async def spec(self, id: str, wanted: ContainerSpec, image: Image) -> Spec:
        """Check and encode. Raises: NotSupported what Windows has no word for, InvalidSpec."""
        unwished = ContainerSpec()
        for name in _LINUX_ONLY:
            if getattr(wanted, name) != getattr(unwished, name):
                raise NotSupported(f"{name} {getattr(wanted, name)!r:.140}: Windows has no such thing")
        if wanted.network != "none":
            raise NotSupported(f"network {wanted.network!r:.80}: on Windows only none, or the option NetworkEndpoints")
        _check_logs(wanted)
        _check_checks(wanted)
        self.check_restart(wanted.restart)
        document: dict[str, Any] = {
            "hostname": wanted.hostname or "",
            "mounts": [_mount(mount) for mount in wanted.mounts],
            "windows": {"resources": _resources(wanted.resources)},
        }
        args = wanted.argv or image.config.cmd
        process = ProcessConfig(
            args=(*image.config.entrypoint, *args),
            env={**image.config.env, **wanted.env},
            cwd=wanted.workdir or image.config.workdir or "",
            user=User(username=wanted.user or image.config.user),
            terminal=wanted.terminal,
            console_size=wanted.console_size,
            stdin=wanted.stdin,
        )
        stop_signal = wanted.stop_signal or image.config.stop_signal or DEFAULT_STOP_SIGNAL
        return Spec(process=process, document=msgspec.json.encode(document), stop_signal=stop_signal)

    async def exec_process(
        self,
        base: ProcessConfig,
        args: tuple[str, ...],
        *,
        pid: int = 0,
        env: dict[str, str] | None,
        workdir: str | None,
        user: str | None,
        terminal: bool,
        console_size: ConsoleSize | None,
        stdin: bool,
    ) -> ProcessConfig:
        """A further process: what is not given is the init process's."""
        return ProcessConfig(
            args=args,
            env={**base.env, **(env or {})},
            cwd=workdir or base.cwd,
            user=User(username=user) if user else base.user,
            terminal=terminal,
            console_size=console_size,
            stdin=stdin,
        )

    def check_resources(self, resources: Resources) -> None:
        """Raises: NotSupported: the limits of a running container can't be changed."""
        raise NotSupported("on Windows the limits of a running container can't be changed")

    def check_restart(self, policy: RestartPolicy) -> None:
        """Raises: NotSupported for an end that no program of Windows comes to."""
        _check_restart(policy)

    async def copy_checkpoint(self, id: str, name: str, source: str, target: str, runtime: str | None) -> None:
        """Raises: NotSupported: there are no checkpoints."""
        raise NotSupported("on Windows there are no checkpoints")

    # ---- the end ----

    def forget(self, id: str) -> None:
        """Remove a container's writable layer, in the background, as often as it takes."""
        folder = os.path.join(_layers(self._root), id)
        self._runtime.layers.remove(folder)

    is_left = False

    async def close(self, *, by_force: bool = False, lives: bool = False) -> bool:
        """Finish unmounting. Returns: True, for no keeper stays.

        Args: by_force: the root goes as well: its layers have a while to be removed.
        """
        if by_force and not await self._remove_layers(self._root, limits.HCS_SWEEP_S):
            log.warning("layers in %s can't be removed yet", self._root.state)
        await self._runtime.close()
        return True


def _check_restart(policy: RestartPolicy) -> None:
    for code in (*policy.force_codes, *policy.prevent_codes):
        if isinstance(code, str):
            raise NotSupported(f"restart policy: {code!r}: no program of Windows ends by a signal: use exit codes")


def _check_logs(wanted: ContainerSpec) -> None:
    if wanted.log_policy != "block":
        raise NotSupported(f"log_policy {wanted.log_policy!r}: on Windows only block")
    for sink in wanted.log_sinks:
        if isinstance(sink, JournaldSink):
            raise NotSupported("log sink journald: Windows has no journal")


def _check_checks(wanted: ContainerSpec) -> None:
    """What has to reach into a container from outside has no way here."""
    if wanted.ready is not None and not isinstance(wanted.ready, LogPattern):
        raise NotSupported(f"ready {wanted.ready!r:.140}: on Windows only LogPattern")
    for probe in _probes(wanted.health):
        if not isinstance(probe, Exec) and not callable(probe):
            raise NotSupported(f"health {probe!r:.140}: on Windows only Exec, or a function")


def _probes(check: HealthCheck | None) -> Iterable[object]:
    return (probe for probe in (check.probe, check.startup) if probe is not None) if check is not None else ()


def _listed(directory: str) -> set[str]:
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()


def remove_quietly(path: str) -> None:
    """What can't be removed now, the next engine tries again. Blocking."""
    try:
        remove_tree(path)
    except OSError as failed:
        log.warning("%s can't be removed yet: %s", path, failed)


def _chain(top: str) -> tuple[str, ...]:
    try:
        with open(os.path.join(top, LAYER_CHAIN), encoding="utf-8") as file:
            parents = json.load(file)
    except FileNotFoundError:
        # The base layer has none.
        parents = []
    except (OSError, ValueError) as wrong:
        raise InvalidSpec(f"{os.path.join(top, LAYER_CHAIN)} can't be read: {wrong}") from wrong
    if not os.path.isdir(top) or not _is_texts(parents or []):
        raise InvalidSpec(f"layer {top!r}: must be a folder whose {LAYER_CHAIN} lists its parents")
    return (top, *(parents or []))


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _mount(mount: Mount) -> dict[str, Any]:
    if mount.type != "bind" or mount.source is None:
        raise NotSupported(f"mount {mount.type!r} at {mount.target!r}: on Windows only what the host has")
    options = ["ro"] if mount.read_only else []
    return {"source": mount.source, "destination": mount.target, "options": options}


def _resources(resources: Resources) -> dict[str, Any]:
    unlimited = Resources()
    for name in Resources.__struct_fields__:
        if name not in _LIMITS and getattr(resources, name) != getattr(unlimited, name):
            raise NotSupported(f"{name} {getattr(resources, name)!r}: Windows has no such limit")
    made: dict[str, Any] = {}
    if resources.memory_bytes is not None:
        made["memory"] = {"limit": resources.memory_bytes}
    processors = os.cpu_count() or 1
    if resources.cpus is not None:
        # Percent of the whole host, times 100.
        made["cpu"] = {"maximum": max(1, min(10000, round(resources.cpus / processors * 10000)))}
    elif resources.cpu_shares is not None:
        made["cpu"] = {"shares": max(1, min(10000, resources.cpu_shares))}
    return made
