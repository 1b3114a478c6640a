"""One OCI runtime without the engine around it: for who embeds `Client` alone."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from lighterman.ends import to_its_end
from lighterman.errors import InvalidState, KeeperLost
from lighterman.keeper.client import KeeperClient
from lighterman.roots import StateRoot
from lighterman.runtimes.base import RuntimeVersion
from lighterman.runtimes.oci.binary import sealed_copy
from lighterman.runtimes.oci.calls import RuntimeCall
from lighterman.runtimes.oci.cgroups import Cgroup, cgroup_host, group_of
from lighterman.runtimes.oci.exec_cgroups import can_exec_into
from lighterman.runtimes.oci.probe import Probed, pick, probe_all
from lighterman.runtimes.oci.runtime import OciRuntime
from lighterman.runtimes.oci.seccomp.cache import FilterCache
from lighterman.threads import in_thread, let_go

__all__ = ["open_runtime"]

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_runtime(
    root: str | os.PathLike[str] | None = None, *, name: str | None = None
) -> AsyncIterator[OciRuntime]:
    """A runtime of this host, behind a keeper of its own, for `Client(runtime, backend)`.

    ```python
    async with open_runtime() as runtime, Client(runtime, backend) as client:
        await client.create("box", Spec.from_oci(config, rootfs=PlainRoot(path=config["root"]["path"])))
    ```

    Args:
        root: the directory of its state; what runs when it is left lives on there, and `Client.restore` takes it up.
            None: a private one; what is left is ended and removed.
        name: `crun`, `runc` or `youki`; None takes the first that works on this host.

    Raises: RuntimeUnavailable, NotSupported (an unknown name), RootLocked, StoreError, KeeperLost.
    """
    place = StateRoot.of(root)
    acquiring = asyncio.ensure_future(in_thread(place.acquire))
    starting: asyncio.Task[KeeperClient] | None = None
    try:
        await to_its_end(acquiring)
        probed = await in_thread(probe_all, f"{place.cache}/cache/runtimes.json")
        chosen, reason = pick(probed, name)
        starting = asyncio.ensure_future(KeeperClient.start_or_connect(place.run, place.state))
        keeper = await to_its_end(starting)
        runtime = await to_its_end(_made(place, keeper, chosen, reason))
        yield runtime
        await to_its_end(_left(place, keeper, runtime))
    finally:
        # Who is cancelled has them all the same: what was begun was waited for.
        if _came_well(acquiring):
            connected = starting.result() if starting is not None and _came_well(starting) else None
            await to_its_end(_given_back(place, connected))


def _came_well(begun: asyncio.Task[Any]) -> bool:
    return begun.done() and not begun.cancelled() and begun.exception() is None


async def _made(place: StateRoot, keeper: KeeperClient, chosen: Probed, reason: str) -> OciRuntime:
    binary = await in_thread(sealed_copy, chosen.name, chosen.path)
    if binary is not None:
        try:
            await keeper.register_binary(chosen.name, binary)
        finally:
            os.close(binary)
    filters = None
    if chosen.name == "crun":
        filters = FilterCache(f"{place.cache}/cache/seccomp", chosen.path, chosen.version)
    return OciRuntime(
        RuntimeCall(
            name=chosen.name,
            executable=chosen.path if binary is None else chosen.name,
            root=f"{place.run}/runtime/{chosen.name}",
            exec_cgroups=can_exec_into(chosen.name, chosen.version),
        ),
        RuntimeVersion(name=chosen.name, version=chosen.version, path=chosen.path, reason=reason),
        keeper=keeper,
        run_dir=place.run,
        exits_dir=f"{place.state}/exits",
        cgroups=cgroup_host(),
        filters=filters,
    )


async def _left(place: StateRoot, keeper: KeeperClient, runtime: OciRuntime) -> None:
    await runtime.close()
    if place.private:
        for id in await runtime.list():
            cgroup = Cgroup(group_of(place.run, id), cgroup_host())
            await in_thread(cgroup.kill)
            await in_thread(cgroup.remove)


async def _given_back(place: StateRoot, keeper: KeeperClient | None) -> None:
    if keeper is not None:
        try:
            await keeper.shutdown(force=place.private)
        except InvalidState:
            log.debug("the keeper of %s stays with what lives on", place.state)
        except KeeperLost:
            log.debug("the keeper of %s had ended already", place.state)
        await keeper.close()
    if place.private:
        await in_thread(place.remove)
    await in_thread(place.release)
    let_go()
