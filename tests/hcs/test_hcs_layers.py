"""Layers in their order, shared, removed for certain; and what an earlier engine left."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from hcs.world import HcsWorld, end, process
from lighterman.errors import LightermanError, RuntimeFailed
from lighterman.runtimes.hcs import HcsRuntime, SandboxSize
from lighterman.runtimes.hcs.system import HcsSystem
from lighterman.runtimes.options import Layers
from lighterman.spec import Spec
from lighterman.testing import FakeClock
from support import eventually

UP = ["LayerExists", "CreateSandboxLayer", "ActivateLayer", "PrepareLayer", "GetLayerMountPath", "GetLayerMountPath"]
DOWN = ["UnprepareLayer", "DeactivateLayer"]


def layer_calls(world: HcsWorld) -> list[str]:
    return [name for name in world.layers.functions() if "Layer" in name or name == "ExpandSandboxSize"]


async def created(world: HcsWorld, runtime: HcsRuntime, *extra: SandboxSize, id: str = "c1") -> HcsSystem:
    options = (Layers(str(world.scratch / "rw"), (str(world.scratch / "top"), str(world.scratch / "base"))), *extra)
    return await runtime.create(id, Spec(process=process("sleep"), document=b"{}"), options)


async def test_up_and_down(either: HcsWorld) -> None:
    runtime = either.runtime()
    system = await created(either, runtime)
    assert layer_calls(either) == UP
    told = json.loads(either.core.calls("HcsCreateComputeSystem")[0][2])
    path = told["VolumePath"] if either.name == "vmcompute" else told["Container"]["Storage"]["Path"]
    assert path.startswith("\\\\?\\Volume{")
    assert path.endswith("\\") is (either.name == "computecore")
    await end(system)
    await runtime.layers.idle()
    assert layer_calls(either) == UP + DOWN


async def test_down_only_after_the_handle_is_closed(world: HcsWorld) -> None:
    runtime = world.runtime()
    await end(await created(world, runtime))
    await runtime.layers.idle()
    names = world.layers.functions()
    assert names.index("HcsCloseComputeSystem") < names.index("UnprepareLayer")


async def test_a_layer_that_is_there_is_not_made_again(world: HcsWorld) -> None:
    runtime = world.runtime()
    for _ in range(2):
        await end(await created(world, runtime))
    await runtime.layers.idle()
    assert layer_calls(world).count("CreateSandboxLayer") == 1


async def test_larger_layer(world: HcsWorld) -> None:
    await end(await created(world, world.runtime(), SandboxSize(30 << 30)))
    assert "ExpandSandboxSize" in layer_calls(world)


@pytest.mark.parametrize(
    ("function", "then"),
    [
        ("ActivateLayer", []),
        ("PrepareLayer", ["DeactivateLayer"]),
        ("GetLayerMountPath", ["UnprepareLayer", "DeactivateLayer"]),
    ],
)
async def test_failing_mount_is_undone(function: str, then: list[str], world: HcsWorld) -> None:
    world.layers.script(function, code="0xC0370112")
    with pytest.raises(RuntimeFailed, match=r"layer .*rw encountered an error during"):
        await created(world, world.runtime())
    calls = layer_calls(world)
    assert calls[calls.index(function) + 1 :] == then


async def test_failing_create_unmounts(world: HcsWorld) -> None:
    world.core.script("HcsCreateComputeSystem", code="0xC0370112")
    runtime = world.runtime()
    with pytest.raises(LightermanError):
        await created(world, runtime)
    await runtime.layers.idle()
    assert layer_calls(world)[-2:] == DOWN


async def test_one_prepare_at_a_time(world: HcsWorld) -> None:
    runtime = world.runtime()
    folders = [str(world.scratch / f"rw{number}") for number in range(6)]
    mounts = await asyncio.gather(*(runtime.layers.mount(folder, (str(world.scratch / "base"),)) for folder in folders))
    for mount in mounts:
        mount.release()
    await runtime.layers.idle()


async def test_shared_layer_is_mounted_once(world: HcsWorld) -> None:
    runtime = world.runtime()
    folder, parents = str(world.scratch / "rw"), (str(world.scratch / "base"),)
    one, two = await asyncio.gather(runtime.layers.mount(folder, parents), runtime.layers.mount(folder, parents))
    one.release()
    one.release()
    await runtime.layers.idle()
    assert DOWN[0] not in layer_calls(world)
    two.release()
    await runtime.layers.idle()
    assert layer_calls(world) == UP + DOWN


async def test_cancelled_mount_leaves_nothing_mounted(world: HcsWorld) -> None:
    world.layers.script("PrepareLayer", delay_ms=100)
    runtime = world.runtime()
    asked = asyncio.create_task(runtime.layers.mount(str(world.scratch / "rw"), (str(world.scratch / "base"),)))
    await eventually(lambda: "PrepareLayer" in layer_calls(world))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await runtime.layers.idle()
    assert layer_calls(world) == UP + DOWN


async def test_layer_ids_are_the_functions_own(world: HcsWorld) -> None:
    runtime = world.runtime()
    pairs = await runtime.layers.identified(["D:\\a\\layer", "E:\\b\\layer\\", "/c/layer", "D:\\a\\other"])
    guids = [uuid.UUID(guid) for guid, _ in pairs]
    assert guids[0] == guids[1] == guids[2] != guids[3], "only the last part of the path counts"
    assert guids[0].version == 5
    assert world.layers.calls("NameToGuid")[0][1] == "layer"


# ---- away --------------------------------------------------------------------------------------------------------


async def test_removal_is_tried_until_windows_lets_go(world: HcsWorld) -> None:
    clock = FakeClock()
    runtime = world.runtime(clock=clock)
    folder = world.scratch / "rw"
    folder.mkdir()
    (folder / "sandbox.vhdx").touch()
    world.layers.script("DestroyLayer", code="0x80070020", times=4)
    async with clock.autojump():
        removing = runtime.layers.remove(str(folder))
        assert runtime.layers.remove(str(folder)) is removing
        await removing
    assert not folder.exists()
    assert not (world.scratch / "rw-removing").exists()
    assert layer_calls(world) == ["DestroyLayer"] * 5
    assert world.layers.calls("DestroyLayer")[0][1].endswith("rw-removing")


async def test_sweep_goes_on_with_removals(world: HcsWorld) -> None:
    (world.scratch / "store" / "c7-removing").mkdir(parents=True)
    (world.scratch / "store" / "c8").mkdir()
    runtime = world.runtime()
    await runtime.sweep(str(world.scratch / "store"))
    await eventually(lambda: not (world.scratch / "store" / "c7-removing").exists())
    assert (world.scratch / "store" / "c8").exists()


async def test_closing_gives_removals_up(world: HcsWorld) -> None:
    folder = world.scratch / "rw"
    folder.mkdir()
    world.layers.script("DestroyLayer", code="0x80070020")
    runtime = world.runtime()
    removing = runtime.layers.remove(str(folder))
    await eventually(lambda: "DestroyLayer" in layer_calls(world))
    await runtime.close()
    assert removing.cancelled()
    assert (world.scratch / "rw-removing").exists(), "the next engine's sweep finds it"


# ---- what an earlier engine left ---------------------------------------------------------------------------------


async def test_sweep_ends_our_own_and_nobody_elses(either: HcsWorld) -> None:
    for id, owner in (("old-1", "lighterman"), ("old-2", "lighterman"), ("theirs", "docker")):
        either.core.left_over(id, owner)
    runtime = either.runtime()
    assert sorted(await runtime.sweep()) == ["old-1", "old-2"]
    assert await runtime.list() == []
    assert [system.id for system in await runtime.systems("docker")] == ["theirs"]
    either.leaves_something = True


async def test_sweep_goes_on_after_a_failure(world: HcsWorld) -> None:
    for id in ("old-1", "old-2"):
        world.core.left_over(id, "lighterman")
    world.core.script("HcsTerminateComputeSystem", code="0x80004005", nth=1)
    assert len(await world.runtime().sweep()) == 1
    world.leaves_something = True


async def test_templates_on_a_layer_are_ended(world: HcsWorld) -> None:
    guid = "2d9e7a55-9b7c-5d10-a3f4-6e8c0b1a2f3d"
    world.core.left_over("template-1", "docker", template=True, image_path=f"D:\\layers\\{guid.upper()}\\UtilityVM")
    world.core.left_over("template-2", "docker", template=True, image_path="D:\\layers\\other\\UtilityVM")
    world.core.left_over("no-template", "docker", image_path=f"D:\\layers\\{guid}\\UtilityVM")
    assert await world.runtime().end_template_vms(guid) == ["template-1"]
    world.leaves_something = True


async def test_endpoint_of_a_running_container(world: HcsWorld) -> None:
    system, init = await world.started("sleep")
    await system.add_endpoint("e-1")
    await system.remove_endpoint("e-1")
    requests = [json.loads(told)["RequestType"] for _, _, told in world.core.calls("HcsModifyComputeSystem")]
    assert requests == ["Add", "Remove"]
    await end(system, init)
