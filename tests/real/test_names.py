"""Names, ids and prefixes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from lighterman import AlreadyExists, Engine, InvalidSpec, NotFound
from lighterman.lifecycle.status import Status

pytestmark = pytest.mark.real


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """Names do not depend on the runtime."""
    async with Engine() as engine:
        yield engine


async def test_get_by_name_id_and_prefix(engine: Engine) -> None:
    box = await engine.create("busybox", ["true"], name="my.box_1-a")
    for text in ("my.box_1-a", box.id, box.id[:12], box.id[:4]):
        assert (await engine.get(text)).id == box.id
    for text in (box.id[:3], "my.box", "", box.id + "0", "MY.BOX_1-A"):
        with pytest.raises(NotFound):
            await engine.get(text)
    await box.remove()


async def test_get_ambiguous_prefix_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    random, ids = os.urandom, iter((b"\xab\xcd" + bytes(14), b"\xab\xcd" + b"\x11" * 14))
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", lambda count: next(ids) if count == 16 else random(count))
        boxes = [await engine.create("busybox", ["true"]) for _ in range(2)]
    with pytest.raises(InvalidSpec, match="abcd"):
        await engine.get("abcd")
    assert (await engine.get("abcd1")).id == boxes[1].id
    for box in boxes:
        await box.remove()


async def test_get_name_wins_over_a_prefix(engine: Engine) -> None:
    first = await engine.create("busybox", ["true"])
    second = await engine.create("busybox", ["true"], name=first.id[:6])
    assert (await engine.get(first.id[:6])).id == second.id
    await first.remove()
    await second.remove()


async def test_create_second_of_one_name_exists_and_leaves_nothing(engine: Engine) -> None:
    first = await engine.create("busybox", ["true"], name="box")
    with pytest.raises(AlreadyExists, match="box"):
        await engine.create("busybox", ["true"], name="box")
    with pytest.raises(AlreadyExists):
        await engine.run("busybox", ["true"], name="box")
    assert [box.id for box in await engine.containers()] == [first.id]
    await first.remove()
    await (await engine.create("busybox", ["true"], name="box")).remove()


async def test_create_two_of_one_name_at_once_one_wins(engine: Engine) -> None:
    ends = await asyncio.gather(
        *(engine.create("busybox", ["true"], name="box") for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(end, AlreadyExists) for end in ends) == 4
    assert len(await engine.containers()) == 1
    await (await engine.get("box")).remove()


async def test_create_failed_its_name_is_free(engine: Engine) -> None:
    with pytest.raises(NotFound):
        await engine.create("nosuchimage", ["true"], name="box")
    await (await engine.create("busybox", ["true"], name="box")).remove()


async def test_run_with_a_name_is_found_while_it_runs(engine: Engine) -> None:
    running = asyncio.create_task(engine.run("busybox", ["cat"], name="box", stdin=None, terminal=True, timeout_s=60))
    while not running.done():
        try:
            box = await engine.get("box")
        except NotFound:
            await asyncio.sleep(0)
            continue
        if box.pid:
            await box.kill()
            break
        await asyncio.sleep(0.005)
    assert (await running).exit.signal == 9
    # A tombstone keeps how it ended; the name is free.
    assert (await engine.get("box")).status is Status.REMOVED
    assert await engine.containers() == []
    assert (await engine.run("busybox", ["true"], name="box")).ok


async def test_two_engines_same_name_do_not_meet(engine: Engine) -> None:
    async with Engine() as other:
        one = await engine.create("busybox", ["true"], name="box")
        two = await other.create("busybox", ["true"], name="box")
        assert one.id != two.id
        with pytest.raises(NotFound):
            await other.get(one.id)
        await one.remove()
        await two.remove()
