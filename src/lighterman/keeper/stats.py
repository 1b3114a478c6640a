"""What the keeper costs."""

from __future__ import annotations

import os


def memory() -> tuple[int, int]:
    """`(resident, private)` bytes of this process (proc(5), smaps_rollup)."""
    rss = private = 0
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Rss:"):
                rss = int(line.split()[1])
            elif line.startswith(("Private_Clean:", "Private_Dirty:")):
                private += int(line.split()[1])
    return rss * 1024, private * 1024


def descriptors() -> int:
    """How many are open, the one of this look at them not counted."""
    return len(os.listdir("/proc/self/fd")) - 1
