"""A short run of the chaos program: random verbs, everything killed at random instants, no promise broken."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from support import PATIENCE

HERE = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.real


async def chaos(*arguments: str) -> tuple[int | None, str]:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "chaos",
        *arguments,
        cwd=HERE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await program.communicate()
    return program.returncode, said.decode()


async def test_P01_P03_P08_P10_chaos_short_run_has_no_violation(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    code, said = await chaos(
        "--rounds",
        "6",
        "--for",
        str(25 * PATIENCE),
        "--faults",
        "20",
        "--containers",
        "6",
        "--seed",
        "7",
        "--json",
        str(figures),
    )
    assert code == 0, said
    counted = json.loads(figures.read_text())
    assert sum(counted["faults"].values()) > 0
    assert counted["exits"] > 0
    assert counted["lines"] > 0


async def test_chaos_plan_is_the_same_for_the_same_seed() -> None:
    script = "from chaos.plan import make_plan as m; print(m(3, 4, 20, 6, ('crun',)), m(3, 5, 20, 6, ('crun',)))"
    said = []
    for _ in range(2):
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, cwd=HERE, stdout=asyncio.subprocess.PIPE
        )
        said.append((await program.communicate())[0])
    assert said[0] == said[1]
    first, _, second = said[0].partition(b") Plan(")
    assert first != second
