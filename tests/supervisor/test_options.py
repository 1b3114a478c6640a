"""Create options: passed through, or refused; never ignored [L40]."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from lighterman.errors import InvalidSpec, NotSupported
from lighterman.runtimes.base import CreateOption, Features
from lighterman.runtimes.options import (
    Credentials,
    Flush,
    HyperVIsolation,
    Layers,
    NetworkEndpoints,
    Servicing,
    WithCheckpoint,
    WithRestartPolicy,
)
from lighterman.spec import RestartPolicy
from supervisor.world import World, policy

FOR_THE_RUNTIME: list[CreateOption] = [
    Flush(True),
    HyperVIsolation("/sandbox"),
    Layers("/layer", ("/base", "/more")),
    NetworkEndpoints(("e1", "e2"), True),
    Credentials("{}"),
]
ALL: list[CreateOption] = [
    *FOR_THE_RUNTIME,
    Servicing(),
    WithCheckpoint("one", "/checkpoints"),
    WithRestartPolicy(RestartPolicy()),
]


def name(option: CreateOption) -> str:
    return type(option).__name__


@pytest.mark.parametrize("option", ALL, ids=name)
def test_L40_options_are_frozen_and_compare_by_content(option: CreateOption) -> None:
    assert option == msgspec.structs.replace(option)
    for field in option.__struct_fields__:
        with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
            setattr(option, field, None)
    hash(option)


@pytest.mark.parametrize("option", FOR_THE_RUNTIME, ids=name)
async def test_L40_passed_through_as_they_are(world: World, option: CreateOption) -> None:
    await world.create("sleep", options=(option,))
    assert world.runtime.created_with[0][2] == (option,)


async def test_L40_order_is_kept(world: World) -> None:
    await world.create("sleep", options=tuple(FOR_THE_RUNTIME))
    assert world.runtime.created_with[0][2] == tuple(FOR_THE_RUNTIME)


@pytest.mark.parametrize("option", [*FOR_THE_RUNTIME, Servicing(), WithCheckpoint("one", "/checkpoints")], ids=name)
async def test_L40_what_the_runtime_can_not_honour_is_refused(world: World, option: CreateOption) -> None:
    world.use(features=Features(create_options=frozenset()))
    with pytest.raises(NotSupported):
        await world.create("sleep", options=(option,))
    assert world.client.containers() == ()
    assert world.states() == []


async def test_L40_restart_policy_is_the_lifecycles_own(world: World) -> None:
    world.use(features=Features(create_options=frozenset()))
    await world.create("sleep", options=(policy("always"),))
    assert world.runtime.created_with[0][2] == ()


async def test_L40_two_checkpoints_are_refused(world: World) -> None:
    with pytest.raises(InvalidSpec):
        await world.create("sleep", options=(WithCheckpoint("one", "/c"), WithCheckpoint("two", "/c")))
    assert world.runtime.count("create") == 0
    assert world.client.containers() == ()
