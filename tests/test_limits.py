"""Every limit: its unit in the name, its reason beside it, its override read with care."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lighterman import limits

NAMES = [name for name in vars(limits) if name.isupper()]
UNITS = ("_S", "_BYTES", "_CHARS", "_FILES", "_STARTS", "_KEPT", "TOMBSTONES")
SOURCE = Path(limits.__file__).read_text().splitlines()


def _asked(expression: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"from lighterman import limits; print({expression})"
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", NAMES)
def test_name_carries_the_unit(name: str) -> None:
    assert name.endswith(UNITS)
    assert getattr(limits, name) > 0


@pytest.mark.parametrize("name", NAMES)
def test_reason_stands_beside_it(name: str) -> None:
    (number,) = (number for number, line in enumerate(SOURCE) if re.match(rf"{name}\b", line))
    assert "#" in SOURCE[number] or SOURCE[number - 1].startswith("#") or SOURCE[number - 1].startswith(name[:7])


def test_environment_overrides() -> None:
    done = _asked(
        "limits.STOP_GRACE_S, limits.SEGMENT_FILES", LIGHTERMAN_STOP_GRACE_S="2.5", LIGHTERMAN_SEGMENT_FILES="7"
    )
    assert done.stdout == "2.5 7\n", done.stderr


@pytest.mark.parametrize("text", ["", "ten", "-1", "nan", "1 s"])
def test_environment_override_that_is_no_number_is_refused(text: str) -> None:
    done = _asked("limits.STOP_GRACE_S", LIGHTERMAN_STOP_GRACE_S=text)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("lighterman.errors.InvalidSpec: LIGHTERMAN_STOP_GRACE_S=")


@pytest.mark.parametrize("text", ["inf", "0", "1.5"])
def test_environment_override_of_a_count_is_a_whole_number(text: str) -> None:
    done = _asked("limits.SEGMENT_FILES", LIGHTERMAN_SEGMENT_FILES=text)
    assert done.stderr.splitlines()[-1].startswith("lighterman.errors.InvalidSpec: LIGHTERMAN_SEGMENT_FILES=")
