"""From a profile in Docker's format to the `linux.seccomp` section of one container.

Docker's format adds conditions to OCI's: `includes` and `excludes` by capability, architecture and kernel, and
`archMap` from an architecture to those that its kernel also runs. Resolving takes them away.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import msgspec

from lighterman.errors import InvalidSpec, NotFound
from lighterman.runtimes.oci.seccomp.files import read_regular
from lighterman.runtimes.oci.seccomp.profile import DEFAULT_PROFILE

__all__ = ["Architecture", "Kernel", "Profile", "default_section", "load_profile", "native_architecture", "resolve"]

Kernel = tuple[int, int]

PROFILE_BYTES = 1024 * 1024  # Docker's own has 13 kB

_ACTIONS = frozenset(
    "SCMP_ACT_" + name
    for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRACE", "TRAP")
)
_OPERATORS = frozenset("SCMP_CMP_" + name for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_NAME = re.compile(r"[a-z0-9_]{1,64}")
_FLAG = re.compile(r"SECCOMP_FILTER_FLAG_[A-Z_]{1,40}")
_ARCHITECTURE = re.compile(r"SCMP_ARCH_[A-Z0-9_]{1,20}")


class Architecture(msgspec.Struct, frozen=True):
    """One machine under its two names: `amd64` and `SCMP_ARCH_X86_64`."""

    go: str
    scmp: str


_ARCHITECTURES = {
    "x86_64": Architecture("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": Architecture("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": Architecture("arm", "SCMP_ARCH_ARM"),
    "i686": Architecture("386", "SCMP_ARCH_X86"),
    "ppc64le": Architecture("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": Architecture("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": Architecture("s390x", "SCMP_ARCH_S390X"),
}


def native_architecture() -> Architecture | None:
    """This machine's; None for one that no profile here names: the runtime then filters for its own."""
    return _ARCHITECTURES.get(platform.machine())


class _Argument(msgspec.Struct, rename="camel"):
    index: int
    value: int
    op: str
    value_two: int = 0


class _Condition(msgspec.Struct, rename="camel"):
    caps: list[str] | None = None
    arches: list[str] | None = None
    min_kernel: str | None = None


class _Rule(msgspec.Struct, rename="camel"):
    action: str
    names: list[str] | None = None
    name: str | None = None
    errno_ret: int | None = None
    args: list[_Argument] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchitectureMap(msgspec.Struct, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class Profile(msgspec.Struct, rename="camel"):
    """A checked profile; made by `load_profile` or `profile_of`."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[_ArchitectureMap] | None = None
    flags: list[str] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: list[_Rule] = []


# Made here: msgspec crashes where two threads decode a type for the first time at once.
_DECODER = msgspec.json.Decoder(Profile)


def load_profile(path: str) -> Profile:
    """Read a profile from a file of the host. It blocks: not for the event loop.

    Raises: NotFound, InvalidSpec (not a regular file, larger than 1 MiB, not a profile).
    """
    try:
        found = read_regular(path, PROFILE_BYTES + 1)
    except FileNotFoundError as missing:
        raise NotFound(f"seccomp profile {path!r}: no such file") from missing
    except (OSError, ValueError) as failed:
        raise InvalidSpec(f"seccomp profile {path!r}: can't be opened ({failed})") from failed
    if found is None:
        raise InvalidSpec(f"seccomp profile {path!r}: not a regular file")
    content = found[0]
    if len(content) > PROFILE_BYTES:
        raise InvalidSpec(f"seccomp profile {path!r}: larger than {PROFILE_BYTES} bytes")
    return decode_profile(content, path)


def decode_profile(content: bytes, name: str) -> Profile:
    """Decode and check; `name` is for the error. Raises: InvalidSpec."""
    try:
        profile = _DECODER.decode(content)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as wrong:
        raise InvalidSpec(f"seccomp profile {name!r}: {wrong}") from wrong
    fault = _fault(profile)
    if fault is not None:
        raise InvalidSpec(f"seccomp profile {name!r}: {fault}")
    return profile


def resolve(
    profile: Profile, caps: Collection[str], arch: Architecture | None, kernel: Kernel, *, name: str = "profile"
) -> dict[str, Any]:
    """The OCI section for a container with these capabilities (bounding set) on this machine.

    Raises: InvalidSpec where a condition of the profile can't be read.
    """
    section: dict[str, Any] = {"defaultAction": profile.default_action}
    if profile.default_errno_ret is not None:
        section["defaultErrnoRet"] = profile.default_errno_ret
    architectures = _architectures(profile, arch)
    if architectures:
        section["architectures"] = architectures
    if profile.flags:
        section["flags"] = profile.flags
    if profile.listener_path:
        section["listenerPath"] = profile.listener_path
    if profile.listener_metadata:
        section["listenerMetadata"] = profile.listener_metadata
    syscalls = [_encoded(rule) for rule in profile.syscalls if _applies(rule, frozenset(caps), arch, kernel, name)]
    if syscalls:
        section["syscalls"] = syscalls
    return section


@lru_cache(maxsize=64)
def default_section(caps: tuple[str, ...], kernel: Kernel) -> bytes:
    """The default profile, resolved and encoded; kept, because nearly every container asks for the same."""
    return msgspec.json.encode(resolve(_default_profile(), caps, native_architecture(), kernel, name="default"))


@lru_cache(maxsize=1)
def _default_profile() -> Profile:
    return decode_profile(msgspec.json.encode(DEFAULT_PROFILE), "default")


def _architectures(profile: Profile, arch: Architecture | None) -> list[str]:
    if profile.architectures:
        return profile.architectures
    for entry in profile.arch_map or ():
        if arch is not None and entry.architecture == arch.scmp:
            return [entry.architecture, *(entry.sub_architectures or ())]
    return []


def _applies(rule: _Rule, caps: frozenset[str], arch: Architecture | None, kernel: Kernel, name: str) -> bool:
    go = arch.go if arch is not None else ""
    wanted, unwanted = rule.includes, rule.excludes
    if unwanted is not None:
        if any(cap in caps for cap in unwanted.caps or ()) or go in (unwanted.arches or ()):
            return False
        if unwanted.min_kernel and kernel >= _version(unwanted.min_kernel, name):
            return False
    if wanted is not None:
        if not all(cap in caps for cap in wanted.caps or ()):
            return False
        if wanted.arches and go not in wanted.arches:
            return False
        if wanted.min_kernel and kernel < _version(wanted.min_kernel, name):
            return False
    return True


def _encoded(rule: _Rule) -> dict[str, Any]:
    encoded: dict[str, Any] = {"names": rule.names or [rule.name], "action": rule.action}
    if rule.errno_ret is not None:
        encoded["errnoRet"] = rule.errno_ret
    # Runtimes differ on an empty list; without the key all agree that the rule has no condition.
    if rule.args:
        encoded["args"] = [
            {"index": each.index, "value": each.value, "valueTwo": each.value_two, "op": each.op} for each in rule.args
        ]
    return encoded


def _version(text: str, name: str) -> Kernel:
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text)
    if match is None:
        raise InvalidSpec(f"seccomp profile {name!r}: minKernel {text!r} must be like 4.8")
    return int(match[1]), int(match[2])


def _fault(profile: Profile) -> str | None:
    """What is wrong with it, in words; None if nothing is."""
    if profile.default_action not in _ACTIONS:
        return f"unknown defaultAction {profile.default_action!r}"
    if profile.architectures and profile.arch_map:
        return "has both architectures and archMap: use one"
    for architecture in profile.architectures or ():
        if not _ARCHITECTURE.fullmatch(architecture):
            return f"unknown architecture {architecture!r}"
    for flag in profile.flags or ():
        if not _FLAG.fullmatch(flag):
            return f"unknown flag {flag!r}"
    if profile.listener_path and not profile.listener_path.startswith("/"):
        return f"listenerPath {profile.listener_path!r} must be absolute"
    for rule in profile.syscalls:
        fault = _rule_fault(rule)
        if fault is not None:
            return fault
    return None


def _rule_fault(rule: _Rule) -> str | None:
    if rule.action not in _ACTIONS:
        return f"unknown action {rule.action!r}"
    if bool(rule.names) == bool(rule.name):
        return "each rule needs names (or the old name), and not both"
    for call in rule.names or (rule.name or "",):
        if not _NAME.fullmatch(call):
            return f"{call!r} is not the name of a system call"
    for argument in rule.args or ():
        if argument.op not in _OPERATORS:
            return f"unknown operator {argument.op!r}"
        if not 0 <= argument.index <= 5:
            return f"argument index {argument.index} must be 0 to 5"
        if not (0 <= argument.value < 2**64 and 0 <= argument.value_two < 2**64):
            return f"argument value {argument.value} must fit into 64 bits"
    return None
