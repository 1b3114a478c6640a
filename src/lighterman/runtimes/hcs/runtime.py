"""Windows containers: the ports of `runtimes.base` over one of the service's DLLs."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from lighterman import limits
from lighterman.clock import Clock, SystemClock
from lighterman.errors import AlreadyStopped, InvalidSpec, LightermanError, NotFound, NotSupported, RuntimeUnavailable
from lighterman.runtimes.base import CreateOption, Features, RuntimeVersion
from lighterman.runtimes.hcs.answers import SystemProperties, decode_schemas, decode_systems
from lighterman.runtimes.hcs.binding import Binding
from lighterman.runtimes.hcs.codes import Meaning, meaning_of
from lighterman.runtimes.hcs.documents import container_config, systems_query
from lighterman.runtimes.hcs.failures import code_behind
from lighterman.runtimes.hcs.host import FIRST_BUILD_PIPES, HostFacts
from lighterman.runtimes.hcs.layers import LayerStore, MountedLayer
from lighterman.runtimes.hcs.std import StdPipes
from lighterman.runtimes.hcs.system import HcsSystem, Isolation
from lighterman.runtimes.hcs.threads import CallThreads
from lighterman.runtimes.hcs.wanted import OPTIONS, Wanted, utility_vm_of, wanted
from lighterman.spec import Spec

__all__ = ["OWNER", "HcsRuntime"]

log = logging.getLogger(__name__)

OWNER = "lighterman"
SERVICE_QUERY = '{"PropertyTypes": ["Basic"]}'
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)


class HcsRuntime:
    """Drives the Host Compute Service; made by `load.load_runtime`, or by a test over a double of the DLL.

    Args:
        owner: the tag that every compute system of ours carries; `list` and the sweep go by it, so two engines on
            one host need two.
        hyper_v: the isolation of containers that ask for none.
        pending_updates: ask for pending updates; only images of 2016 know them.
    """

    def __init__(
        self,
        binding: Binding,
        layers: LayerStore,
        std: StdPipes,
        host: HostFacts,
        threads: CallThreads,
        *,
        owner: str = OWNER,
        hyper_v: bool = False,
        pending_updates: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._binding = binding
        self._layers = layers
        self._std = std
        self._host = host
        self._owner = owner
        self._hyper_v = hyper_v
        self._pending_updates = pending_updates
        self._threads = threads
        self._systems: set[HcsSystem] = set()  # whose handles are open
        self._clock = clock or SystemClock()

    @property
    def name(self) -> str:
        return "hcs"

    @property
    def layers(self) -> LayerStore:
        """The layers of this host."""
        return self._layers

    def features(self) -> Features:
        return Features(
            signals=False,
            pause=self._hyper_v,
            update_resources=False,
            reattach=False,
            pending_updates=self._pending_updates,
            create_options=OPTIONS,
        )

    async def version(self) -> RuntimeVersion:
        """Asks the service, so it tells whether the service can be reached. Raises: RuntimeFailed."""
        schemas = decode_schemas(await self._binding.service_properties(SERVICE_QUERY))
        known = ", ".join(f"{major}.{minor}" for major, minor in schemas) or "1.0"
        return RuntimeVersion(
            name=self.name,
            version=str(self._host.build),
            path=f"{self._binding.name}.dll",
            reason=f"schema {self._binding.schema} of {known}",
        )

    async def check_schema(self) -> None:
        """Raises: RuntimeUnavailable if the service does not know the schema that the binding speaks."""
        try:
            schemas = decode_schemas(await self._binding.service_properties(SERVICE_QUERY))
        except NotSupported:
            return  # the first builds have no such question, and schema 1
        wants = self._binding.schema
        if schemas and not any(major == wants for major, _ in schemas):
            known = ", ".join(f"{major}.{minor}" for major, minor in schemas)
            raise RuntimeUnavailable(
                f"the Host Compute Service knows the schemas {known}, {self._binding.name}.dll is spoken to in "
                f"{wants}: configure the other binding",
                runtime="hcs",
                operation="load",
            )

    async def list(self) -> Sequence[str]:
        return [system.id for system in await self.systems()]

    async def systems(self, owner: str | None = None) -> Sequence[SystemProperties]:
        """What exists of an owner, ours by default; on old builds the question may fail passingly."""
        query = systems_query(owner=owner or self._owner)
        return decode_systems(await self._enumerated(query))

    async def _enumerated(self, query: str) -> str:
        give_up = self._clock.mono() + limits.HCS_ENUMERATE_S
        while True:
            try:
                return await self._binding.enumerate(query)
            except LightermanError as failed:
                passing = meaning_of(code_behind(failed) or 0) in (Meaning.INVALID_STATE, Meaning.ACCESS_DENIED)
                if not passing or self._host.build >= FIRST_BUILD_PIPES or self._clock.mono() >= give_up:
                    raise
            await self._clock.sleep(limits.HCS_ENUMERATE_POLL_S)

    # ---- containers ----

    async def create(self, id: str, spec: Spec, options: Sequence[CreateOption] = ()) -> HcsSystem:
        """Raises: as the port says. If cancelled: what was made is ended, and waited for."""
        check_id(id)
        asked = wanted(id, spec, options, self._host, hyper_v=self._hyper_v)
        if asked.hyper_v and asked.utility_vm is None:
            asked = replace(asked, utility_vm=await asyncio.to_thread(utility_vm_of, asked.layers))
        layers = await self._layers.identified(asked.layers)
        mounted = await self._mounted(asked)
        try:
            if mounted is not None and mounted.volume_path is not None:
                asked = replace(asked, volume_path=mounted.volume_path)
            document = container_config(self._binding.schema, id, self._owner, asked, layers)
            handle = await self._binding.create(id, document)
        except BaseException:
            if mounted is not None:
                mounted.release()
            raise
        isolation = Isolation(asked.hyper_v, asked.servicing, self._pending_updates)
        made = HcsSystem(
            handle, self._std, self._clock, isolation, ours=True, layer=mounted, closed=self._systems.discard
        )
        self._systems.add(made)
        return made

    async def _mounted(self, asked: Wanted) -> MountedLayer | None:
        """Mount the layers where the document names no volume, and nobody else (a utility VM) does it."""
        if asked.hyper_v:
            await self._layers.ensure(asked.layer_folder, asked.layers, asked.sandbox_size_bytes)
            return None
        if asked.volume_path is not None:
            return None
        return await self._layers.mount(asked.layer_folder, asked.layers, asked.sandbox_size_bytes)

    async def open(self, id: str) -> HcsSystem:
        """For ending what an earlier engine left: its processes' pipes can't be taken over. Raises: NotFound."""
        check_id(id)
        handle = await self._binding.open(id)
        return HcsSystem(handle, self._std, self._clock, Isolation(), ours=False)

    # ---- what an earlier engine left ----

    async def sweep(self, layer_root: str | None = None, *, owner: str | None = None) -> Sequence[str]:
        """End the compute systems of an owner, ours by default, that nobody has taken up, and go on removing layers.

        To be called before anything is created. Returns the ids that were ended.
        """
        ended: list[str] = []
        for system in await self.systems(owner):
            if await self.end_left(system.id):
                ended.append(system.id)
        if layer_root is not None:
            await self._layers.sweep(layer_root)
        return ended

    async def end_template_vms(self, layer_guid: str) -> Sequence[str]:
        """End the template VMs that sit on a layer, whoever owns them: to be done before the layer is removed."""
        ended: list[str] = []
        for system in decode_systems(await self._enumerated(systems_query())):
            on_it = system.is_template and layer_guid.lower() in system.image_path.lower()
            if on_it and await self.end_left(system.id):
                ended.append(system.id)
        return ended

    async def end_left(self, id: str) -> bool:
        """End one that an earlier engine left; False if there is none, or it does not end."""
        check_id(id)
        try:
            handle = await self._binding.open(id)
        except NotFound:
            return False
        try:
            async with self._clock.timeout(limits.HCS_SWEEP_S):
                await handle.terminate()
                await handle.wait_exit()
        except (AlreadyStopped, NotFound):
            return True
        except (LightermanError, TimeoutError) as failed:
            log.warning("container %s of an earlier engine could not be ended: %r", id, failed)
            return False
        finally:
            await handle.close()
        return True

    async def close(self) -> None:
        """Finish what goes on in the background. Compute systems are left as they are, without a handle of ours."""
        for system in list(self._systems):
            try:
                async with self._clock.timeout(limits.RUNTIME_CALL_S):
                    await system.let_go()
            except (LightermanError, TimeoutError) as failed:
                log.warning("container %s: closing its handles failed: %r", system.id, failed)
        await self._layers.close()
        self._threads.close()


def check_id(id: str) -> None:
    """Raises: InvalidSpec for an id that is not a name."""
    if len(id) > limits.NAME_CHARS or not _ID.fullmatch(id):
        raise InvalidSpec(f"id {id[:200]!r}: must be 1 to {limits.NAME_CHARS} of letters, digits, `_`, `.`, `-`")
