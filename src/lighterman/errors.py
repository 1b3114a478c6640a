"""Every error that Lighterman raises, one tree. The class says whose fault it was; code never reads an error's text.

    LightermanError                  operation, container
      UsageError                     the caller's: nothing was attempted
        InvalidSpec                  a value that can't be right
        NotFound                     no such container, process, image, user
        AlreadyExists                the id or the name is taken
        InvalidState                 not possible in the status it is in
        NotSupported                 this runtime or this host can't do it
        RootLocked                   another engine holds this state root
      AlreadyStopped                 the compute system has stopped: often the wanted result
      AlreadyClosed                  the handle was closed before
      OperationPending               the runtime goes on with it; wait for the end
      OperationTimeout               the runtime did not answer in time
      BrokenPipe                     the runtime's side of a process is gone
      RuntimeFailed                  the runtime's: its exit status and its last words
        RuntimeUnavailable           no runtime that works on this host
        CommandNotFound              the program is not in the root file system (127)
        CommandNotExecutable         it is there, and can't be executed (126)
      ServicingFailed                a servicing container ended with a non-zero code
      KeeperLost                     nobody's yet: the container may still run
      StoreError                     the disk's: the change did not happen
      LimitExceeded                  more than a limit allows, or later than a deadline
        Unkillable                   not even SIGKILL has ended a process
      InternalError                  ours: please report

A program that exits non-zero is data, never an error.
"""

from __future__ import annotations

__all__ = [
    "AlreadyClosed",
    "AlreadyExists",
    "AlreadyStopped",
    "BrokenPipe",
    "CommandNotExecutable",
    "CommandNotFound",
    "InternalError",
    "InvalidSpec",
    "InvalidState",
    "KeeperLost",
    "LightermanError",
    "LimitExceeded",
    "NotFound",
    "NotSupported",
    "OperationPending",
    "OperationTimeout",
    "RootLocked",
    "RuntimeFailed",
    "RuntimeUnavailable",
    "ServicingFailed",
    "StoreError",
    "Unkillable",
    "UsageError",
]


class LightermanError(Exception):
    """Base of all. `str()` is one line, lower case, without a full stop, that names what failed and the value.

    Attributes:
        operation: the verb that failed (`"start"`), or None.
        container: the id of the container it was about, or None.
    """

    def __init__(self, message: str, *, operation: str | None = None, container: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.operation = operation
        self.container = container

    def __str__(self) -> str:
        return self.message


class UsageError(LightermanError):
    """The caller asked for something that can't be; nothing was attempted."""


class InvalidSpec(UsageError):
    """A value that can't be right, whatever the host."""


class NotFound(UsageError):
    """There is no such container, process, image or user."""


class AlreadyExists(UsageError):
    """The id or the name is in use."""


class InvalidState(UsageError):
    """Not possible in the status that the container or the process is in."""


class NotSupported(UsageError):
    """This runtime, or this host, does not offer the operation."""


class RootLocked(UsageError):
    """Another engine holds the lock of this state root."""

    def __init__(self, message: str, *, holder_pid: int | None) -> None:
        super().__init__(message)
        self.holder_pid = holder_pid


class AlreadyStopped(LightermanError):
    """The compute system, or the process, has ended already."""


class AlreadyClosed(LightermanError):
    """The handle has been closed already."""


class OperationPending(LightermanError):
    """The runtime took the request and goes on with it; its end is seen by waiting."""


class OperationTimeout(LightermanError):
    """The runtime did not finish in the time allowed."""


class BrokenPipe(LightermanError):
    """The runtime's side of a process is gone; how a killed compute system looks."""


class RuntimeFailed(LightermanError):
    """The runtime failed.

    Attributes:
        runtime: its name (`"crun"`).
        exit_status: what it exited with; negative for a signal (as `subprocess` has it), None if it gave none.
        last_words: what it said last, for people; never to be parsed.
    """

    def __init__(
        self,
        message: str,
        *,
        runtime: str,
        operation: str,
        container: str | None = None,
        exit_status: int | None = None,
        last_words: str = "",
    ) -> None:
        super().__init__(message, operation=operation, container=container)
        self.runtime = runtime
        self.exit_status = exit_status
        self.last_words = last_words


class RuntimeUnavailable(RuntimeFailed):
    """No runtime on this host can run a container; the text has each one's reason."""


class CommandNotFound(RuntimeFailed):
    """The program to run does not exist inside the container's root (127 in a shell)."""


class CommandNotExecutable(RuntimeFailed):
    """The program exists inside the container's root and can't be executed (126 in a shell)."""


class ServicingFailed(LightermanError):
    """A servicing container ended with a code other than zero."""

    def __init__(self, message: str, *, exit_code: int, container: str | None = None) -> None:
        super().__init__(message, operation="servicing", container=container)
        self.exit_code = exit_code


class KeeperLost(LightermanError):
    """The keeper is gone; what it kept may still run."""


class StoreError(LightermanError):
    """The store could not be written or read; the change did not happen."""


class LimitExceeded(LightermanError):
    """A limit of this engine or of this host was reached.

    Attributes:
        limit: which one, as it is called in `limits.py` or on the host (`"ulimit -n"`).
    """

    def __init__(self, message: str, *, limit: str, operation: str | None = None, container: str | None = None) -> None:
        super().__init__(message, operation=operation, container=container)
        self.limit = limit


class Unkillable(LimitExceeded):
    """Not even SIGKILL has ended a process within limits.KILL_WAIT_S. It has its SIGKILL, and ends as soon as it can.

    Attributes:
        pid: the host's number; 0 where it is not known. since_s: how long ago SIGKILL was sent, seconds.
        where: what of the container hangs, and where in the kernel (`"pid 7 in nfs_wait_on_request"`), for showing;
            None where nothing is seen to.
    """

    def __init__(
        self,
        message: str,
        *,
        pid: int,
        since_s: float,
        where: str | None = None,
        operation: str | None = None,
        container: str | None = None,
    ) -> None:
        super().__init__(message, limit="KILL_WAIT_S", operation=operation, container=container)
        self.pid = pid
        self.since_s = since_s
        self.where = where


class InternalError(LightermanError):
    """A defect of ours; please report it with the text."""
