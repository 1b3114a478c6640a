"""The README's examples are run as they stand, and what they print is what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
CONSOLE = re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _commands() -> list[tuple[str, str]]:
    """Each `$ ` line with the output that follows it."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(CONSOLE), re.MULTILINE)


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    # `lighterman` is the one beside the Python that runs this test.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        argv, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
    )


def test_readme_has_five_examples() -> None:
    assert len(PROGRAMS) + len(CONSOLE) == 5
    assert len(_commands()) >= 3
    assert all("# -> " in program for program in PROGRAMS)


@pytest.mark.real
@pytest.mark.parametrize("program", PROGRAMS, ids=range(1, len(PROGRAMS) + 1))
def test_python_example_prints_what_it_says(program: str) -> None:
    done = _run([sys.executable, "-W", "error", "-c", program])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == re.findall(r"# -> (.*)$", program, re.MULTILINE)


@pytest.mark.real
@pytest.mark.parametrize(("command", "output"), _commands(), ids=[command for command, _ in _commands()])
def test_shell_example_prints_what_it_says(command: str, output: str) -> None:
    assert Path(sys.executable).with_name("lighterman").exists(), "the package is not installed: make install"
    done = _run(["sh", "-c", command])
    assert (done.stdout, done.stderr) == (output, "")
