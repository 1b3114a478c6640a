"""What a failed runtime call was: found by looking ourselves, never by reading the runtime's words."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from lighterman.errors import (
    CommandNotExecutable,
    CommandNotFound,
    InvalidSpec,
    LightermanError,
    NotSupported,
    OperationTimeout,
    RuntimeFailed,
)
from lighterman.keeper.client import Spawned
from lighterman.runtimes.oci.bundle import read_last_words
from lighterman.runtimes.oci.document_process import INIT_INSIDE
from lighterman.runtimes.oci.lookup import find_command
from lighterman.spec import ProcessConfig

__all__ = ["check_behind_init", "runtime_failed"]


class _Mount(msgspec.Struct, frozen=True):
    destination: str
    type: str = ""
    source: str = ""


class _Config(msgspec.Struct, frozen=True):
    mounts: tuple[_Mount, ...] = ()


# Made here: msgspec crashes where two threads decode a type for the first time at once.
_CONFIG = msgspec.json.Decoder(_Config)


def runtime_failed(
    *,
    runtime: str,
    operation: str,
    container: str,
    process: ProcessConfig,
    spawned: Spawned,
    log: str,
    root: int | str | None,
    config: str | None = None,
) -> LightermanError:
    """The error to raise. Blocking.

    Args:
        root: where to look the command up; None for a call that starts none.
        config: the config.json with the bind mounts that `root` does not show.
    """
    words = read_last_words(log)
    status = os.waitstatus_to_exitcode(spawned.status)
    if spawned.timed_out:
        return OperationTimeout(
            f"{runtime} {operation} of container {container} was killed because it did not answer in time: "
            f"{words or 'it said nothing'}",
            operation=operation,
            container=container,
        )
    if spawned.claimed is not None:
        return RuntimeFailed(
            f"{runtime} {operation} of container {container} named process {spawned.claimed} as the one that it has "
            "started, which is none of its own",
            runtime=runtime,
            operation=operation,
            container=container,
            exit_status=status,
            last_words=words,
        )
    kind: type[RuntimeFailed] = RuntimeFailed
    if operation in ("run", "exec") and process.args and root is not None:
        kind = _command_failed(process, root, _binds(config) if config is not None else {})
    text = _command_text(kind, process.args[0] if process.args else "", container)
    if text is None:
        how = f"exit status {status}" if status >= 0 else f"signal {-status}"
        text = f"{runtime} {operation} of container {container} failed with {how}: {words or 'it said nothing'}"
    return kind(text, runtime=runtime, operation=operation, container=container, exit_status=status, last_words=words)


def check_behind_init(process: ProcessConfig, *, root: int | str, config: str, runtime: str, container: str) -> None:
    """The command that an init is to start: it would begin, fail, and leave an exit code of its own. Blocking.

    Raises: CommandNotFound, CommandNotExecutable.
    """
    if process.args[:2] != (INIT_INSIDE, "--"):
        return
    process = msgspec.structs.replace(process, args=process.args[2:])
    kind = _command_failed(process, root, _binds(config))
    text = _command_text(kind, process.args[0], container)
    if text is not None:
        raise kind(text, runtime=runtime, operation="run", container=container)


def _command_text(kind: type[RuntimeFailed], command: str, container: str) -> str | None:
    if kind is CommandNotFound:
        return f"command {command!r} is not in the container's root file system (container {container})"
    if kind is CommandNotExecutable:
        return f"command {command!r} in the container can't be executed (container {container})"
    return None


def _binds(config: str) -> dict[str, str]:
    try:
        with open(config, "rb") as file:
            mounts = _CONFIG.decode(file.read()).mounts
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return {}  # the bundle is gone already
    return {mount.destination.rstrip("/"): mount.source for mount in mounts if mount.type == "bind"}


def _command_failed(process: ProcessConfig, root: int | str, binds: Mapping[str, str]) -> type[RuntimeFailed]:
    path = process.env.get("PATH")
    try:
        found = find_command(process.args[0], path, process.cwd or "/", root, process.user, binds)
    except (InvalidSpec, NotSupported):
        return RuntimeFailed  # the root is gone already: the runtime's words are all there is
    return {"not-found": CommandNotFound, "not-executable": CommandNotExecutable}.get(found, RuntimeFailed)
