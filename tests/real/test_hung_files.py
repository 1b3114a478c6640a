"""A mount of the host that never answers: its verb is given up, and no other waits for it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from lighterman import Engine, Mount, OperationTimeout, limits
from lighterman.runtimes.oci.document import build_spec
from lighterman.spec import ContainerSpec, Spec
from support import eventually

pytestmark = pytest.mark.real


async def test_P06_hung_bind_sources_hold_no_other_verb_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers, hanging = threading.Event(), 0

    def hung(wanted: ContainerSpec, *arguments: Any, **options: Any) -> Spec:
        nonlocal hanging
        if wanted.mounts:
            hanging += 1
            answers.wait()
        return build_spec(wanted, *arguments, **options)

    monkeypatch.setattr("lighterman.linux_host.build_spec", hung)
    monkeypatch.setattr(limits, "HOST_FILES_S", 5.0)
    mount = Mount(source=str(tmp_path), target="/x")
    creating = [asyncio.ensure_future(engine.create("busybox", ["true"], mounts=[mount])) for _ in range(40)]
    try:
        await eventually(lambda: hanging == 40)
        assert (await engine.run("busybox", ["sh", "-c", "exit 3"])).exit.code == 3
        assert not any(one.done() for one in creating)
        for failed in await asyncio.gather(*creating, return_exceptions=True):
            assert isinstance(failed, OperationTimeout)
            assert "the mounts of container" in str(failed)
        assert await engine.containers() == []
    finally:
        answers.set()
