"""Every timeout and size, each with its unit in the name and its reason beside it.

A number here can be overridden by the environment variable `LIGHTERMAN_<NAME>`, read once at import.
"""

from __future__ import annotations

import os
import sys


def _number(name: str, default: float) -> float:
    text = os.environ.get(f"LIGHTERMAN_{name}")
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    # A NaN fails this comparison too.
    if not value >= 0:
        from lighterman.errors import InvalidSpec

        raise InvalidSpec(f"LIGHTERMAN_{name}={text!r}: must be a number of 0 or more")
    return value


def _count(name: str, default: int) -> int:
    value = float(_number(name, default))
    # Infinity is no integer either.
    if not value.is_integer() or value < 1:
        from lighterman.errors import InvalidSpec

        raise InvalidSpec(
            f"LIGHTERMAN_{name}={os.environ.get(f'LIGHTERMAN_{name}')!r}: must be a whole number from 1 on"
        )
    return int(value)


# ---- the lifecycle ----
STOP_GRACE_S = _number("STOP_GRACE_S", 10.0)  # docker's default between the stop signal and SIGKILL
SHUTDOWN_S = _number("SHUTDOWN_S", 300.0)  # 5 minutes, from the 2016 library: a Windows guest may install updates
TERMINATE_S = _number("TERMINATE_S", 300.0)  # likewise
SERVICING_EXIT_S = _number("SERVICING_EXIT_S", 300.0)  # likewise, after the servicing process has ended
DRAIN_S = _number("DRAIN_S", 10.0)  # bounds only a consumer of output that makes no progress
SETTLE_S = _number("SETTLE_S", 5.0)  # how long EXIT waits for the old run's clean-up
CANCEL_S = _number("CANCEL_S", 10.0)  # how long a cancelled create waits until its container is gone
CLOSE_S = _number("CLOSE_S", 60.0)  # how long an engine that is closed waits for removals under way; a disk may hang
KILL_WAIT_S = _number("KILL_WAIT_S", 10.0)  # from SIGKILL until a process is called unkillable
# The whole of one start: a loaded host needs seconds, a first boot of a Windows guest minutes, a hung runtime for ever.
START_S = _number("START_S", 300.0 if sys.platform == "win32" else 60.0)
START_SLOW_S = _number("START_SLOW_S", 5.0)  # a start slower than this gives its concurrency slot back
EXEC_TERM_S = _number("EXEC_TERM_S", 0.5)  # from SIGTERM to SIGKILL of an exec whose time is over
EXEC_START_S = _number("EXEC_START_S", 60.0)  # from the request to the exec's pid
OOM_DEATH_S = _number("OOM_DEATH_S", 2.0)  # from the notice of an OOM kill to the end of who was killed, on a busy host
RESTART_BACKOFF_FIRST_S = 0.1  # 2016's, kept
RESTART_BACKOFF_MAX_S = 60.0  # 2016 had no ceiling
RESTART_RESET_S = 10.0  # a run this long resets the back-off
RESTART_ENDS_KEPT = 100  # ends that are remembered of one container, for its start limit and for policies as code
PROBE_END_S = 1.0  # for the end of a container that has made its probe fail to become known
HEALTH_RESULTS_KEPT = 5  # results of probes that are kept, docker's number
PROBE_OUTPUT_BYTES = 4096  # kept of one probe, likewise
READY_LINE_BYTES = 65536  # of one line that a log pattern is tried on
NOTIFY_BYTES = 4096  # one datagram of sd_notify; systemd takes a page too
NOTIFY_SETTLE_S = 5.0  # until that a container is ready is written down; then it may be lost with the engine
NOTIFY_PAUSE_S = 0.01  # between datagrams: who floods the socket costs us 100 wake-ups a second, no more

# ---- the runtime and the keeper ----
RUNTIME_CALL_S = _number("RUNTIME_CALL_S", 30.0)  # pause, resume, update, delete: milliseconds when all is well
CHECKPOINT_S = _number("CHECKPOINT_S", 3600.0)  # making or starting from one: as long as its memory takes to disk
KEEPER_CALL_S = _number("KEEPER_CALL_S", 10.0)  # one round trip; measured 13 us
KEEPER_START_S = _number("KEEPER_START_S", 20.0)  # measured 10 ms; a swapping host needs longer
KEEPER_IDLE_S = _number("KEEPER_IDLE_S", 60.0)  # without containers and clients it leaves after this
KEEPER_UPGRADE_S = _number("KEEPER_UPGRADE_S", 60.0)  # until it is another program; measured 0.1 s
KEEPER_RETRY_S = _number("KEEPER_RETRY_S", 1.0)  # between attempts to start another one after it was lost
KEEPER_MESSAGE_BYTES = 65536  # one datagram of the keeper's wire
LEASE_RECONNECT_S = _number("LEASE_RECONNECT_S", 10.0)  # for a connection lease across an engine restart
HOST_FILES_S = _number("HOST_FILES_S", 30.0)  # for files that a caller names; a hung NFS server never answers
HUNG_THREADS_KEPT = _count("HUNG_THREADS_KEPT", 64)  # that wait for such files; 8 MiB of address space each
THREADS_KEPT = _count("THREADS_KEPT", 16)  # for what blocks shortly: the kernel lets few of it run at the same time
REMOVING_THREADS_KEPT = _count("REMOVING_THREADS_KEPT", 4)  # of what containers have written: the disk is what is slow
# Beyond this only latency grows (measured: throughput is flat from 4 to 16 at a time on 2 cores).
CONCURRENT_STARTS = _count("CONCURRENT_STARTS", 4 * (os.cpu_count() or 1))

# ---- the Host Compute Service ----
HCS_CREATE_S = _number("HCS_CREATE_S", 240.0)  # hcsshim's four minutes, for this and the next two
HCS_START_S = _number("HCS_START_S", 240.0)  # the guest boots: a first start on a slow disk takes minutes
HCS_PAUSE_S = _number("HCS_PAUSE_S", 240.0)  # pause and resume
HCS_CALL_WARN_S = _number("HCS_CALL_WARN_S", 240.0)  # hcsshim's: a call that has not returned by then is logged
HCS_UNHEARD_S = _number("HCS_UNHEARD_S", 1.0)  # hcsshim's: for the notice of an end that is known to have happened
HCS_SWEEP_S = _number("HCS_SWEEP_S", 120.0)  # moby's two minutes for a terminate on restore
HCS_ENUMERATE_S = _number("HCS_ENUMERATE_S", 5.0)  # moby's 500 tries, 10 ms apart, on builds before 16299
HCS_ENUMERATE_POLL_S = 0.01  # moby's
LAYER_REMOVAL_FIRST_S = 0.5  # between tries to remove a layer that Windows still holds (moby#40162); doubling
LAYER_REMOVAL_MAX_S = 60.0  # ... at most

# ---- what is kept ----
TOMBSTONE_S = _number("TOMBSTONE_S", 600.0)  # how long a removed container's exit can still be asked for
TOMBSTONES = _count("TOMBSTONES", 1000)  # of them; who runs thousands a second asks at once or never
EXECS_KEPT = _count("EXECS_KEPT", 100)  # of one container, whose output and exit can still be asked for
EVENTS_KEPT = _count("EVENTS_KEPT", 100_000)  # events; about 20 MB on disk
EVENTS_TRIM_S = _number("EVENTS_TRIM_S", 3600.0)  # between two looks for what is older than the next one
EVENTS_KEPT_S = _number("EVENTS_KEPT_S", 30 * 86400.0)  # a month of history, where there is room
REMOVAL_RETRY_MAX_S = 60.0  # between attempts to remove a container's files, which begin at STORE_RETRY_S; at most
STORE_RETRY_S = _number("STORE_RETRY_S", 1.0)  # between attempts to commit an exit while the disk is full

# ---- log sinks ----
SINK_SEND_S = _number("SINK_SEND_S", 10.0)  # for one record; a daemon that takes nothing for so long is hung
SINK_RETRY_FIRST_S = _number("SINK_RETRY_FIRST_S", 0.1)  # after a failure; doubling
SINK_RETRY_MAX_S = _number("SINK_RETRY_MAX_S", 30.0)  # ... at most
SINK_SAVE_S = _number("SINK_SAVE_S", 1.0)  # between two times that a sink's place is written down
SINK_CANCEL_S = _number("SINK_CANCEL_S", 2.0)  # for a coroutine function to end when it is cancelled
SINK_DRAIN_S = _number("SINK_DRAIN_S", 2.0)  # for the last records of a container that is removed

# ---- sizes ----
MAX_OUTPUT_BYTES = 16 * 1024 * 1024  # captured by run() and exec(), each stream
SEGMENT_BYTES = _count("SEGMENT_BYTES", 10_000_000)  # rotated by default: 5 x 10 MB
SEGMENT_FILES = _count("SEGMENT_FILES", 5)
SPEC_BYTES = 64 * 1024 * 1024  # an encoded OCI document; the kernel's own bounds come far earlier
ARGV_BYTES = 2 * 1024 * 1024  # execve refuses more than a quarter of the stack limit (8 MiB) for argv and environ
ARGUMENT_BYTES = 131072 - 1  # MAX_ARG_STRLEN of Linux less the NUL: one string of argv or environ
NAME_CHARS = 128  # container names and ids: they are parts of paths and cgroup names
LAST_WORDS_BYTES = 2048  # of a failing runtime's log
LAST_WORDS_SEARCH_BYTES = 8 * 1024 * 1024  # of both streams, for a program's last words on one: 20 ms of reading
