"""A failing code as an exception of our tree: the class by the number, the service's own words beside it."""

from __future__ import annotations

from lighterman.errors import (
    AlreadyExists,
    AlreadyStopped,
    BrokenPipe,
    CommandNotExecutable,
    CommandNotFound,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    OperationPending,
    OperationTimeout,
    RuntimeFailed,
    RuntimeUnavailable,
)
from lighterman.runtimes.hcs.answers import ErrorEvent, decode_error
from lighterman.runtimes.hcs.codes import Meaning, code_of, describe, meaning_of

__all__ = ["EndedOrUnknown", "HcsFailed", "ServiceLost", "UnexpectedExit", "code_behind", "failure", "unexpected_exit"]


class EndedOrUnknown(AlreadyStopped, NotFound):
    """Element not found (1168): the service does not tell whether it has ended or never was; it is both."""


class HcsFailed(RuntimeFailed):
    """A failure that the lifecycle has no word of its own for."""


class UnexpectedExit(HcsFailed):
    """The compute system ended while something else was awaited, or by a crash."""


class ServiceLost(HcsFailed):
    """The service died or dropped us: nothing more will be heard of what it managed."""


_PLAIN: dict[Meaning, type[LightermanError]] = {
    Meaning.PENDING: OperationPending,
    Meaning.TIMEOUT: OperationTimeout,
    Meaning.ALREADY_STOPPED: AlreadyStopped,
    Meaning.NOT_FOUND: NotFound,
    Meaning.ENDED_OR_UNKNOWN: EndedOrUnknown,
    Meaning.ALREADY_EXISTS: AlreadyExists,
    Meaning.INVALID_STATE: InvalidState,
    Meaning.NOT_SUPPORTED: NotSupported,
    Meaning.BROKEN_PIPE: BrokenPipe,
}
_RUNTIME: dict[Meaning, type[RuntimeFailed]] = {
    Meaning.UNEXPECTED_EXIT: UnexpectedExit,
    Meaning.TERMINATED: UnexpectedExit,
    Meaning.SERVICE_LOST: ServiceLost,
    Meaning.UNAVAILABLE: RuntimeUnavailable,
}
# Of create-process only: elsewhere the same numbers are about other files (docker's 127 and 126).
_OF_CREATE_PROCESS: dict[Meaning, tuple[type[RuntimeFailed], int]] = {
    Meaning.FILE_NOT_FOUND: (CommandNotFound, 127),
    Meaning.ACCESS_DENIED: (CommandNotExecutable, 126),
}


def failure(
    hresult: int,
    operation: str,
    container: str | None,
    *,
    pid: int | None = None,
    about: str | None = None,
    result: str | None = None,
) -> LightermanError:
    """The exception for a failing HRESULT; `about` is for what is neither a container nor a process.

    It has the code as `code` and the result document's events as `events`; see `code_behind`.
    """
    code = code_of(hresult)
    meaning = meaning_of(code)
    said = decode_error(result)
    text = f"{about or _whom(container, pid)} encountered an error during {operation}: "
    text += f"failure in a Windows system call: {describe(code)}"
    if said.message:
        text += f": {said.message.splitlines()[0].rstrip('.')}"
    made = _made(meaning, text, operation, container, said.events)
    made.code = code  # type: ignore[attr-defined]
    made.events = said.events  # type: ignore[attr-defined]
    return made


def _made(
    meaning: Meaning, text: str, operation: str, container: str | None, events: tuple[ErrorEvent, ...]
) -> LightermanError:
    last_words = "\n".join(map(str, events))
    if operation == "create_process" and meaning in _OF_CREATE_PROCESS:
        kind, status = _OF_CREATE_PROCESS[meaning]
        return kind(
            text,
            runtime="hcs",
            operation=operation,
            container=container,
            exit_status=status,
            last_words=last_words,
        )
    if meaning in _PLAIN:
        return _PLAIN[meaning](text, operation=operation, container=container)
    kind = _RUNTIME.get(meaning, HcsFailed)
    return kind(text, runtime="hcs", operation=operation, container=container, last_words=last_words)


def unexpected_exit(operation: str, container: str) -> UnexpectedExit:
    """The compute system ended while the completion of `operation` was awaited."""
    return UnexpectedExit(
        f"{_whom(container, None)} encountered an error during {operation}: the compute system ended meanwhile",
        runtime="hcs",
        operation=operation,
        container=container,
    )


def code_behind(failed: BaseException) -> int | None:
    """The code (see `codes.code_of`) that an exception was made of; None if it is not of this making."""
    code = getattr(failed, "code", None)
    return code if isinstance(code, int) else None


def _whom(container: str | None, pid: int | None) -> str:
    if container is None:
        return "the host compute service"
    return f"container {container}" if pid is None else f"process {pid} in container {container}"
