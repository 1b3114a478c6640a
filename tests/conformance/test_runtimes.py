"""Every runtime, held to the same checks."""

from __future__ import annotations

import asyncio

import pytest

from conformance.subjects import fake_subject, oci_subject
from lighterman.errors import InvalidState
from lighterman.runtimes.base import Features
from lighterman.testing import CHECKS, LINUX, WINDOWS, ConformanceError, FakeLoop, Subject, check_runtime

VARIANTS = {
    "linux": (LINUX, False),
    "windows": (WINDOWS, False),
    "null stdin": (LINUX, True),
    "bare": (Features(update_resources=False, statistics=False, reattach=False), False),
}


def on_virtual_time(variant: str, *names: str) -> None:
    async def check() -> None:
        features, null_stdin = VARIANTS[variant]
        async with fake_subject(features, null_stdin=null_stdin) as subject:
            await check_runtime(subject, *names)

    with asyncio.Runner(loop_factory=FakeLoop) as runner:
        runner.run(check())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("check", CHECKS)
def test_fake(check: str, variant: str) -> None:
    on_virtual_time(variant, check)


def test_all_checks_together_on_one_runtime() -> None:
    on_virtual_time("linux")


@pytest.mark.real
@pytest.mark.parametrize("check", CHECKS)
async def test_oci(check: str, real_runtime: str) -> None:
    async with oci_subject(real_runtime) as subject:
        await check_runtime(subject, check)


def test_a_wrong_runtime_is_found() -> None:
    """A check that can't fail is none: each fault below must be reported by the check that is meant for it."""

    async def check() -> None:
        async with fake_subject(LINUX) as subject:
            await broken(subject)

    async def broken(subject: Subject) -> None:
        runtime = subject.runtime
        runtime.plan.at("exit_code", error=InvalidState("broken"))  # type: ignore[attr-defined]
        with pytest.raises(ConformanceError, match="exit_code: InvalidState"):
            await check_runtime(subject, "exit_code", "version")

    with asyncio.Runner(loop_factory=FakeLoop) as runner:
        runner.run(check())
