"""What a workload makes must not keep anybody from cleaning up after it."""

from __future__ import annotations

from pathlib import Path

from lighterman import Engine

DEEP = "i=0; while mkdir d 2>/dev/null && cd d; do i=$((i+1)); [ $i -lt 1500 ] || break; done; [ $i -gt 1000 ]"


async def test_a_tree_deeper_than_python_recurses_is_removed_with_its_container(root: Path) -> None:
    async with Engine(root=root) as engine:
        for _ in range(2):
            # The shell knows where it is only up to PATH_MAX.
            done = await engine.run("busybox", ["sh", "-c", DEEP], workdir="/tmp")
            assert done.exit.code == 0, done.stderr
    assert list((root / "containers").iterdir()) == []
