"""`lighterman version` and `lighterman doctor`, and what every invocation has in common."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import lighterman, one_line

import lighterman as package
from support import PATIENCE

HEAVY = ("asyncio", "msgspec", "ctypes", "lighterman.engine", "lighterman.doctor")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["version", "--help"], []])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = """
import sys
from lighterman.cli.app import invoke
code = invoke(sys.argv[1:])
print([name for name in %r if name in sys.modules], code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program % (HEAVY,), *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert done.stdout.startswith(("Usage: lighterman", "lighterman "))


def test_help_names_every_command_and_option_once() -> None:
    said = lighterman("--help").stdout.decode()
    assert re.findall(r"^  (run|version|doctor) ", said, re.MULTILINE) == ["run", "version", "doctor"]
    said = lighterman("run", "--help").stdout.decode()
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", said, re.MULTILINE)
    assert len(options) == len(set(options))
    assert {"--rm", "--interactive", "--tty", "--env", "--volume", "--memory", "--rootfs", "--timings"} <= set(options)


def test_unknown_command() -> None:
    done = lighterman("rnu")
    assert (done.returncode, "'rnu'" in one_line(done)) == (125, True)


@pytest.mark.real
def test_version_says_what_runs_containers_and_why() -> None:
    said = lighterman("version")
    assert (said.returncode, said.stderr) == (0, b"")
    text = said.stdout.decode()
    found = json.loads(lighterman("version", "--json").stdout)
    assert found["lighterman"] == package.__version__
    assert found["kernel"].startswith(f"Linux {os.uname().release}")
    for name in ("lighterman", "python", "kernel", "used", "cgroups", "seccomp", "apparmor"):
        assert re.search(rf"^{name} +{re.escape(found[name])}$", text, re.MULTILINE)
    working = [one["name"] for one in found["runtimes"] if one["works"]]
    assert working
    assert found["used"].startswith(working[0])
    assert all(one["reason"] for one in found["runtimes"] if not one["works"])


@pytest.mark.real
def test_version_without_a_runtime(tmp_path: Path) -> None:
    said = lighterman("version", "--json", env={**os.environ, "PATH": str(tmp_path)})
    found = json.loads(said.stdout)
    assert (said.returncode, found["runtimes"]) == (0, [])
    assert found["used"].startswith("none: ")


@pytest.mark.real
def test_doctor() -> None:
    said = lighterman("doctor")
    findings = json.loads(lighterman("doctor", "--json").stdout)["findings"]
    assert {"name", "status", "text"} <= set(findings[0])
    missing = [finding for finding in findings if finding["status"] == "missing"]
    assert said.returncode == (1 if missing else 0)
    assert said.stderr == b""
    for finding in findings:
        assert re.search(rf"^{finding['status']} +{re.escape(finding['name'])} ", said.stdout.decode(), re.MULTILINE)


@pytest.mark.real
def test_doctor_tells_a_root_where_nothing_can_be() -> None:
    # A path below a file of /proc is on no disk.
    said = lighterman("doctor", "--root", "/proc/x/y")
    assert b"state root" in said.stdout


@pytest.mark.real
@pytest.mark.parametrize("command", ["version", "doctor", "--help"])
def test_output_that_nobody_reads(command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m lighterman.cli {command} | true', sys.executable],
        capture_output=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert done.stderr == b""
