"""What tests of leases share: programs that own containers, and seeing that these have gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from real_support import running_in

from support import eventually_sync

CGROUPS = Path("/sys/fs/cgroup")


class Owner:
    """A program with an engine of its own, in a session of its own; see lease_owner.py."""

    def __init__(self, root: Path | None, *options: dict[str, object]) -> None:
        leases = [one.get("lease") for one in options]
        script = Path(__file__).with_name("lease_owner.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(root or "-"), json.dumps(options)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=[lease["fd"] for lease in leases if isinstance(lease, dict)],
        )
        assert self.process.stdout is not None
        made = [self.process.stdout.readline().split() for _ in options]
        self.pids = [int(pid) for pid, _ in made]
        self.ids = [id for _, id in made]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def gone(id: str) -> bool:
    """No process of a container runs, and it has no control group any more."""
    groups = [hierarchy / "lighterman" / id for hierarchy in (CGROUPS, *CGROUPS.iterdir())]
    return not running_in(id) and not any(group.exists() for group in groups)


def ends_within(ids: list[str], end: Callable[[], None], what: str) -> None:
    """The promise is 1 s; the bound is generous, since the host may be busy, and what was measured is printed."""
    assert all(running_in(id) for id in ids)
    begun = time.monotonic()
    end()
    eventually_sync(lambda: not any(running_in(id) for id in ids))
    took_s = time.monotonic() - begun
    print(f"{what}: gone after {took_s * 1000:.0f} ms")
    eventually_sync(lambda: all(gone(id) for id in ids))
    assert took_s < 20
