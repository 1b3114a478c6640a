"""`check_runtime` on the doubles, over both DLLs and both isolations."""

from __future__ import annotations

import msgspec
import pytest

from hcs.world import HcsWorld
from lighterman.spec import ConsoleSize, ProcessConfig, Spec
from lighterman.testing.conformance import CHECKS, PROGRAMS, Subject, check_runtime

OURS: dict[tuple[str, ...], tuple[str, ...]] = {
    PROGRAMS["exit 3"]: ("prog", "exit", "3"),
    PROGRAMS["exit 0"]: ("prog", "exit", "0"),
    PROGRAMS["both"]: ("prog", "both"),
    PROGRAMS["cat"]: ("prog", "cat"),
    PROGRAMS["sleep"]: ("prog", "sleep", "1000"),
    PROGRAMS["trap"]: ("prog", "ignore-term"),
    PROGRAMS["size"]: ("prog", "size"),
    PROGRAMS["grandchild"]: ("prog", "grandchild"),
    PROGRAMS["missing"]: ("no-such-program",),
}


def subject(world: HcsWorld, *, hyper_v: bool) -> Subject:
    async def make_spec(id: str, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> Spec:
        spec = world.spec("exit", hyper_v=hyper_v)
        size = ConsoleSize(height=24, width=80) if terminal else None
        process = ProcessConfig(args=OURS[args], stdin=stdin, terminal=terminal, console_size=size)
        return msgspec.structs.replace(spec, process=process)

    async def make_exec(spec: Spec, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> ProcessConfig:
        return ProcessConfig(args=OURS[args], stdin=stdin, terminal=terminal)

    return Subject(world.runtime(hyper_v=hyper_v, pending_updates=True), make_spec, make_exec)


@pytest.mark.parametrize("check", CHECKS)
async def test_conformance(check: str, either: HcsWorld) -> None:
    await check_runtime(subject(either, hyper_v=False), check)


@pytest.mark.parametrize("check", CHECKS)
async def test_conformance_hyper_v(check: str, world: HcsWorld) -> None:
    await check_runtime(subject(world, hyper_v=True), check)


async def test_conformance_all_on_one_runtime(world: HcsWorld) -> None:
    await check_runtime(subject(world, hyper_v=False))


def test_every_program_is_there() -> None:
    assert set(OURS) == set(PROGRAMS.values())
