"""What the containers run: programs that know their own exit code and keep, outside of their output, a count of it.

Each run has an id of its own. It writes numbered lines to stdout and stderr, and after each one notes in the file
`/truth/ID` what it has written; its last note before it ends by itself is `x CODE`. A run that is killed between a
line and its note has written one more than it noted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Run", "exec_script", "read_runs", "script"]

_PREAMBLE = """
read id < /proc/sys/kernel/random/uuid
exec 3>>/truth/$id
o=0; e=0
say() { echo "$id o $o"; echo o >&3; o=$((o+1)); }
err() { echo "$id e $e" >&2; echo e >&3; e=$((e+1)); }
leave() { echo "x $1" >&3; exit $1; }
"""

_KINDS = {
    # Writes as fast as it can, and ends.
    "burst": "while [ $o -lt LINES ]; do say; [ $((o % 3)) = 0 ] && err; done; leave CODE",
    # Writes now and then, and ends.
    "slow": "while [ $o -lt SHORT ]; do say; err; usleep 40000; done; leave CODE",
    # Ends when it is asked to, with its own code.
    # The trap itself says nothing: it may come between a line and its count.
    "server": "t=; trap 't=1' TERM; while [ -z \"$t\" ]; do say; err; usleep 100000; done; say; leave CODE",
    # Is deaf to the stop signal.
    "deaf": "trap '' TERM; while :; do say; usleep 150000; done",
    # Ends while a grandchild still holds its output.
    "orphan": "say; err; (usleep 400000) & leave CODE",
}
FINITE = ("burst", "slow", "orphan")
ENDLESS = ("server", "deaf")


def script(kind: str, code: int, lines: int) -> str:
    """The shell program of a container."""
    body = _KINDS[kind].replace("LINES", str(lines)).replace("SHORT", str(lines // 50 + 1))
    return _PREAMBLE + body.replace("CODE", str(code))


def exec_script(code: int, lines: int) -> str:
    """The shell program of an exec or of a `run`: `lines` lines, then `code`."""
    return f"i=0; while [ $i -lt {lines} ]; do echo x $i; i=$((i+1)); done; exit {code}"


@dataclass
class Run:
    """What one run noted: how many lines of each stream, when last (Unix time), and the code that it was to have."""

    id: str
    lines: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    code: int | None = None
    noted_at: float = 0.0


def read_runs(directory: Path) -> dict[str, Run]:
    """Every run that came as far as its first note or line."""
    runs = {}
    for path in directory.iterdir():
        run = runs[path.name] = Run(path.name, noted_at=path.stat().st_mtime)
        for note in path.read_text().splitlines():
            if note.startswith("x "):
                run.code = int(note[2:])
            elif note in ("o", "e"):
                run.lines["stdout" if note == "o" else "stderr"] += 1
    return runs
