"""What an engine has of a Windows host: the service's runtime, layers, and the way from wishes to a spec.

The same face as `linux_host` where that makes sense. There is no keeper: nothing is held, nothing is taken over.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import msgspec

from lighterman.errors import InvalidSpec, NotSupported
from lighterman.images.image import Image, ImageConfig
from lighterman.runtimes.base import CreateOption, RuntimeVersion
from lighterman.runtimes.hcs import HcsRuntime, TerminateWithEngine
from lighterman.runtimes.hcs.load import BindingName, load_runtime
from lighterman.runtimes.options import Layers
from lighterman.spec import ConsoleSize, ContainerSpec, LeaseKind, Mount, ProcessConfig, Resources, Spec, User

__all__ = ["WindowsHost", "open_host"]

NAME = "hcs"
LAYER_CHAIN = "layerchain.json"  # docker's: a JSON list of the parents' folders, the nearest first
DEFAULT_STOP_SIGNAL = 15

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


async def open_host(
    store: str, *, owner: str, binding: BindingName = "vmcompute", hyper_v: bool = False
) -> WindowsHost:
    """Find the service, end what an earlier engine of this owner left, go on removing its layers.

    Args: store: where writable layers are. owner: tells this state root's compute systems from others'.
    Raises: RuntimeUnavailable.
    """
    runtime = await load_runtime(binding, owner=owner, hyper_v=hyper_v)
    await runtime.sweep(store)
    return WindowsHost(runtime, await runtime.version(), store)


class WindowsHost:
    """Made by `open_host`."""

    def __init__(self, runtime: HcsRuntime, version: RuntimeVersion, store: str) -> None:
        self.version = version
        self._runtime = runtime
        self._store = store

    # ---- runtimes ----

    async def runtime(self, name: str | None) -> HcsRuntime:
        """The only one. Raises: NotSupported."""
        if name not in (None, NAME):
            raise NotSupported(f"runtime {name!r}: on Windows there is only {NAME}")
        return self._runtime

    def opened(self, name: str) -> HcsRuntime:
        """As `runtime`."""
        return self._runtime

    def start_times(self, runtime: str, id: str) -> tuple[float, float] | None:
        """The runtime knows no better than its caller."""
        return None

    # ---- the keeper, which is not there ----

    async def watch_keeper(self, grant_again: object = None) -> None:
        """Nothing can be lost: waits until it is cancelled."""
        await asyncio.Event().wait()

    async def held_jobs(self) -> list[Any]:
        """None: the sweep has ended what an earlier engine left."""
        return []

    # ---- from wishes to a spec ----

    async def image(self, name: str | None, rootfs: str | None) -> Image:
        """The layers below the folder of the topmost read-only one, by docker's chain file.

        Raises: NotSupported, InvalidSpec.
        """
        if rootfs is None:
            raise NotSupported(f"image {name!r}: on Windows give the folder of an unpacked layer as rootfs")
        return Image(name=rootfs, id=rootfs, layers=await asyncio.to_thread(_chain, rootfs), config=ImageConfig())

    def create_options(self, id: str, image: Image, lease: LeaseKind | None) -> tuple[CreateOption, ...]:
        """What `create` needs besides the spec; a lease on us makes the service end the container with our handles."""
        options: tuple[CreateOption, ...] = (Layers(self._folder(id), image.layers),)
        return (*options, TerminateWithEngine()) if lease is not None else options

    async def spec(self, id: str, wanted: ContainerSpec, image: Image) -> Spec:
        """Check and encode. Raises: NotSupported what Windows has no word for, InvalidSpec."""
        unwished = ContainerSpec()
        for name in _LINUX_ONLY:
            if getattr(wanted, name) != getattr(unwished, name):
                raise NotSupported(f"{name} {getattr(wanted, name)!r}: Windows has no such thing")
        if wanted.network != "none":
            raise NotSupported(f"network {wanted.network!r}: on Windows only none, or the option NetworkEndpoints")
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
        root: str = "",
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

    # ---- the end ----

    def remove(self, id: str) -> None:
        """Remove a container's writable layer, in the background, as often as it takes."""
        self._runtime.layers.remove(self._folder(id))

    async def close(self, *, by_force: bool = False) -> bool:
        """Finish unmounting. Returns: True, for no keeper stays."""
        await self._runtime.close()
        return True

    def _folder(self, id: str) -> str:
        return os.path.join(self._store, id)


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
