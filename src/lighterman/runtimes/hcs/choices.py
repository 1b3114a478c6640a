"""The one place of every choice that the public sources leave open; each is a fact to confirm on a real Windows."""

from __future__ import annotations

__all__ = [
    "COMPUTECORE_FREE",
    "EXIT_CODE_FROM_NOTIFICATION",
    "KILL_BY_SECOND_HANDLE",
    "OPTIONS",
    "TERMINATED_IS_CLEAN",
]

# `options` of start, shutdown, terminate ...: one public binding passes the empty text, another NULL; both work.
OPTIONS = ""

# Documented is LocalFree; a well-known binding calls CoTaskMemFree and gets away with it.
COMPUTECORE_FREE = "LocalFree"

# The service carries out signals one after the other for each system handle, so a kill through a handle of its own
# does not wait behind another call. In 2016 a second handle on a living process met a Windows bug.
KILL_BY_SECOND_HANDLE = True

# The data of the ProcessExited notification holds the status; it may be NULL, then the properties are asked for.
EXIT_CODE_FROM_NOTIFICATION = True

# After a terminate the system's exit status is said to be 0; "was forcefully ended" is taken for the same.
TERMINATED_IS_CLEAN = True
