"""The `process` object: command, environment, user, capabilities, limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from lighterman.arguments import shown as shown_value
from lighterman.errors import InvalidSpec, NotSupported
from lighterman.runtimes.oci.document_checks import shown
from lighterman.runtimes.oci.document_host import CAPABILITIES, HostFacts
from lighterman.spec import ConsoleSize, ProcessConfig, Ulimit

__all__ = [
    "DEFAULT_CAPABILITIES",
    "DEFAULT_PATH",
    "INIT_INSIDE",
    "capability_sets",
    "check_console",
    "check_oom_score",
    "encode_process",
    "pick_capabilities",
    "rlimits",
]

# Docker's, which every image is written for.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT_INSIDE = "/sbin/lighterman-init"

# Docker's 14.
DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

# asm-generic/resource.h, by the names that shells and docker use.
_RLIMITS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
_INFINITY = 2**64 - 1


# ---- capabilities ------------------------------------------------------------------------------------------------


def pick_capabilities(add: Sequence[str], drop: Sequence[str], *, privileged: bool, host: HostFacts) -> tuple[str, ...]:
    """The bounding set: Docker's 14, less `drop`, plus `add`; `ALL` means all that the host has.

    A default one that the host lacks itself is left out; one that was asked for is not.

    Raises: InvalidSpec for a name that is none; NotSupported for one in `add` that we do not have to give.
    """
    if not add and not drop:
        return host.capabilities if privileged else _default_capabilities(host.capabilities)
    (add_all, added), (drop_all, dropped) = _named(add), _named(drop)
    if add_all and drop_all:
        raise InvalidSpec("capabilities: ALL can't be both added and dropped")
    for name in sorted(added):
        if name not in host.capabilities:
            raise NotSupported(f"capability {name}: this host does not have it to give")
    base: Iterable[str] = DEFAULT_CAPABILITIES
    if drop_all:
        base = ()
    elif add_all or privileged:
        base = host.capabilities
    asked = (set(base) - dropped) | added
    return tuple(name for name in host.capabilities if name in asked)


@lru_cache(maxsize=4)
def _default_capabilities(available: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in available if name in DEFAULT_CAPABILITIES)


def _named(names: Iterable[str]) -> tuple[bool, set[str]]:
    """Whether ALL is among them, and the others by their full names."""
    every, found = False, set()
    for name in names:
        full = name.upper()
        if full == "ALL":
            every = True
            continue
        full = full if full.startswith("CAP_") else f"CAP_{full}"
        if full not in CAPABILITIES:
            raise InvalidSpec(f"capability {shown(name)}: there is none of that name")
        found.add(full)
    return every, found


@lru_cache(maxsize=64)
def capability_sets(bounding: tuple[str, ...], *, root: bool) -> dict[str, tuple[str, ...]]:
    """The OCI object. A user other than root gets the bounding set alone, which is what execve leaves it anyway."""
    if root:
        return {"bounding": bounding, "effective": bounding, "permitted": bounding}
    return {"bounding": bounding}


# ---- limits ------------------------------------------------------------------------------------------------------


def rlimits(ulimits: Sequence[Ulimit], host: HostFacts) -> list[dict[str, Any]]:
    """The OCI list.

    Raises: InvalidSpec for an unknown name, one given twice, or a soft limit above the hard one; NotSupported for a
        hard limit above what we may set.
    """
    entries: list[dict[str, Any]] = []
    seen: set[str] = set()
    for wanted in ulimits:
        number = _RLIMITS.get(wanted.name)
        if number is None:
            raise InvalidSpec(f"ulimit {shown(wanted.name)}: must be one of {', '.join(sorted(_RLIMITS))}")
        if wanted.name in seen:
            raise InvalidSpec(f"ulimit {wanted.name}: given twice")
        seen.add(wanted.name)
        soft, hard = (_limit(wanted.name, value) for value in (wanted.soft, wanted.hard))
        if soft > hard:
            raise InvalidSpec(f"ulimit {wanted.name}: soft {wanted.soft} is above hard {wanted.hard}")
        _check_settable(wanted.name, number, hard, host)
        entries.append({"type": f"RLIMIT_{wanted.name.upper()}", "soft": soft, "hard": hard})
    return entries


def _limit(name: str, value: int) -> int:
    if not -1 <= value < _INFINITY:
        raise InvalidSpec(f"ulimit {name}: {value} must be -1 (unlimited) or 0 and more, in 64 bits")
    return _INFINITY if value == -1 else value


def _check_settable(name: str, number: int, hard: int, host: HostFacts) -> None:
    own = host.hard_limits.get(number, -1)
    ceiling = _INFINITY if own == -1 else own
    why = f"this host's hard limit is {own}, and raising it needs CAP_SYS_RESOURCE"
    if "CAP_SYS_RESOURCE" in host.capabilities:
        ceiling, why = (host.nr_open, f"fs.nr_open is {host.nr_open}") if name == "nofile" else (_INFINITY, "")
    if hard > ceiling:
        value = "unlimited" if hard == _INFINITY else hard
        raise NotSupported(f"ulimit {name}={value}: {why}")


def check_oom_score(value: int, host: HostFacts) -> None:
    """Raises: InvalidSpec outside -1000 to 1000; NotSupported for a negative one without CAP_SYS_RESOURCE."""
    if not -1000 <= value <= 1000:
        raise InvalidSpec(f"oom score adjustment {value}: must be -1000 to 1000")
    if value < 0 and "CAP_SYS_RESOURCE" not in host.capabilities:
        raise NotSupported(f"oom score adjustment {value}: below 0 needs CAP_SYS_RESOURCE, which this host lacks")


def check_console(size: ConsoleSize | None) -> None:
    """Raises: InvalidSpec where it does not fit into the kernel's 16 bits."""
    if size is not None and not (1 <= size.height <= 65535 and 1 <= size.width <= 65535):
        cells = f"{shown_value(size.height)}x{shown_value(size.width)}"
        raise InvalidSpec(f"console size {cells}: each must be 1 to 65535 cells")


# ---- encoding ----------------------------------------------------------------------------------------------------


def encode_process(process: ProcessConfig) -> bytes:
    """The OCI `process` object: part of a config.json, and by itself the file of `RUNTIME exec --process`."""
    user: dict[str, Any] = {"uid": process.user.uid, "gid": process.user.gid}
    if process.user.additional_gids:
        user["additionalGids"] = process.user.additional_gids
    if process.user.umask is not None:
        user["umask"] = process.user.umask
    encoded: dict[str, Any] = {
        **process.oci,
        "terminal": process.terminal,
        "user": user,
        "args": process.args,
        "env": [f"{name}={value}" for name, value in process.env.items()],
        "cwd": process.cwd,
    }
    if process.terminal and process.console_size is not None:
        encoded["consoleSize"] = {"height": process.console_size.height, "width": process.console_size.width}
    return msgspec.json.encode(encoded)
