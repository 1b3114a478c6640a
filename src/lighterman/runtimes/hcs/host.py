"""What of this host decides how containers are made."""

from __future__ import annotations

import os
import sys

import msgspec

from lighterman.errors import RuntimeUnavailable

__all__ = ["FIRST_BUILD", "FIRST_BUILD_COMPUTECORE", "FIRST_BUILD_DEVICES", "FIRST_BUILD_PIPES", "HostFacts"]

FIRST_BUILD = 14393  # Server 2016, Windows 10 1607: the handle-based API
FIRST_BUILD_PIPES = 16299  # 1709: mapped named pipes; enumeration no longer fails passingly
FIRST_BUILD_DEVICES = 17763  # 1809, Server 2019: assigned devices
FIRST_BUILD_COMPUTECORE = 17763  # computecore.dll, schema 2.1


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Build number of the host's Windows, and its processors."""

    build: int
    processors: int

    @classmethod
    def of_this_host(cls) -> HostFacts:
        """Of the Windows that runs this program; the interpreter's manifest makes the number true."""
        if sys.platform == "win32":
            return cls(build=sys.getwindowsversion().build, processors=os.cpu_count() or 1)
        raise RuntimeUnavailable(f"this is {sys.platform}, not Windows", runtime="hcs", operation="load")
