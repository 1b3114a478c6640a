"""From wishes to a running container on Windows: the host's seam, over the double."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hcs.world import HcsWorld, end
from lighterman.errors import InvalidSpec, NotSupported
from lighterman.roots import StateRoot
from lighterman.runtimes.hcs import TerminateWithEngine
from lighterman.spec import ContainerSpec, Mount, Resources, Ulimit
from lighterman.windows_host import WindowsHost
from support import eventually


async def host_of(world: HcsWorld) -> WindowsHost:
    runtime = world.runtime()
    (world.scratch / "root" / "layers").mkdir(parents=True, exist_ok=True)
    return WindowsHost(StateRoot.of(world.scratch / "root"), runtime, await runtime.version())


def layer(world: HcsWorld, chain: object | None) -> str:
    for name in ("top", "base"):
        (world.scratch / name).mkdir()
    if chain is not None:
        (world.scratch / "top" / "layerchain.json").write_text(json.dumps(chain))
    return str(world.scratch / "top")


async def test_a_container_from_its_wishes(world: HcsWorld) -> None:
    host = await host_of(world)
    top = layer(world, [str(world.scratch / "base")])
    wanted = ContainerSpec(
        rootfs=top,
        argv=("prog", "exit", "3"),
        env={"A": "1"},
        user="ContainerUser",
        resources=Resources(memory_bytes=1 << 30, cpu_shares=500),
        mounts=(Mount(source="D:\\data", target="C:\\data", read_only=True),),
    )
    image = await host.image(None, top)
    runtime = await host.runtime(None)
    spec = await host.spec("c1", wanted, image)
    system = await runtime.create("c1", spec, host.create_options("c1", wanted, image, "engine"))
    await system.start()
    init = await system.create_process(spec.process)
    await init.wait()
    assert (await init.exit_code()).code == 3
    told = json.loads(world.core.calls("HcsCreateComputeSystem")[0][2])
    assert told["TerminateOnLastHandleClosed"] is True
    assert (told["MemoryMaximumInMB"], told["ProcessorWeight"]) == (1024, 500)
    assert [each["Path"] for each in told["Layers"]] == [top, str(world.scratch / "base")]
    assert told["MappedDirectories"][0]["ReadOnly"] is True
    assert json.loads(world.core.calls("HcsCreateProcess")[0][2])["User"] == "ContainerUser"
    exec_process = await host.exec_process(
        spec.process, ("x",), env={"B": "2"}, workdir=None, user=None, terminal=False, console_size=None, stdin=False
    )
    assert exec_process.env == {"A": "1", "B": "2"}
    await end(system, init)
    await runtime.layers.idle()
    host.forget("c1")
    await eventually(lambda: not (world.scratch / "root" / "layers" / "c1").exists())
    await eventually(lambda: not (world.scratch / "root" / "layers" / "c1-removing").exists())
    assert await host.close()


async def test_no_lease_no_end(world: HcsWorld) -> None:
    host = await host_of(world)
    image = await host.image(None, layer(world, None))
    assert not [
        each
        for each in host.create_options("c1", ContainerSpec(), image, None)
        if isinstance(each, TerminateWithEngine)
    ]


@pytest.mark.parametrize(
    "wishes",
    [
        {"privileged": True},
        {"cap_add": ("NET_ADMIN",)},
        {"network": "host"},
        {"seccomp": "unconfined"},
        {"ulimits": (Ulimit(name="nofile", soft=1, hard=1),)},
        {"resources": Resources(pids_limit=5)},
        {"mounts": (Mount(type="tmpfs", target="C:\\tmp"),)},
    ],
)
async def test_wishes_that_windows_has_no_word_for(wishes: dict[str, Any], world: HcsWorld) -> None:
    host = await host_of(world)
    image = await host.image(None, layer(world, None))
    with pytest.raises(NotSupported):
        await host.spec("c1", ContainerSpec(argv=("x",), **wishes), image)


@pytest.mark.parametrize("chain", [7, [7], {"a": 1}])
async def test_bad_chains(chain: object, world: HcsWorld) -> None:
    host = await host_of(world)
    with pytest.raises(InvalidSpec, match=r"layerchain\.json"):
        await host.image(None, layer(world, chain))


async def test_images_by_name_and_other_runtimes_are_not_there(world: HcsWorld) -> None:
    host = await host_of(world)
    with pytest.raises(NotSupported, match="folder of an unpacked layer"):
        await host.image("busybox", None)
    with pytest.raises(NotSupported, match="only hcs"):
        await host.runtime("crun")
    with pytest.raises(NotSupported):
        host.check_resources(Resources())
