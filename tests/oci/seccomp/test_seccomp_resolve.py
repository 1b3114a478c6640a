"""The default profile, and resolving profiles in Docker's format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman.errors import InvalidSpec, NotFound
from lighterman.runtimes.oci.document_host import CAPABILITIES
from lighterman.runtimes.oci.document_process import DEFAULT_CAPABILITIES
from lighterman.runtimes.oci.seccomp.profile import DEFAULT_PROFILE
from lighterman.runtimes.oci.seccomp.resolve import (
    Architecture,
    decode_profile,
    default_section,
    load_profile,
    resolve,
)

AMD64 = Architecture("amd64", "SCMP_ARCH_X86_64")
S390X = Architecture("s390x", "SCMP_ARCH_S390X")
KERNEL = (6, 1)
PODMANS = Path("/usr/share/containers/seccomp.json")

# What Docker's default refuses, and containers-common's allows.
_DOCKER_REFUSES = """
    keyctl add_key request_key mount umount2 unshare setns bpf perf_event_open kexec_load init_module delete_module
    swapon swapoff reboot settimeofday clock_settime iopl ioperm pivot_root userfaultfd io_uring_setup io_uring_enter
    io_uring_register open_by_handle_at move_pages nfsservctl quotactl acct sysfs uselib ustat vm86 lookup_dcookie
    kcmp fsopen fsmount move_mount open_tree pidfd_getfd get_mempolicy mbind syslog sethostname
"""
DOCKER_REFUSES = set(_DOCKER_REFUSES.split())

_NEWER = """
    cachestat fchmodat2 futex_requeue futex_wait futex_waitv futex_wake getxattrat io_pgetevents io_pgetevents_time64
    listmount listxattrat map_shadow_stack mseal removexattrat riscv_hwprobe setxattrat statmount uretprobe vmsplice
"""
NEWER = set(_NEWER.split())


def resolved(profile: dict[str, Any], caps: Any = (), arch: Architecture | None = AMD64) -> dict[str, Any]:
    return resolve(decode_profile(json.dumps(profile).encode(), "test"), caps, arch, KERNEL)


def allowed(caps: Any, arch: Architecture = AMD64) -> set[str]:
    """Names that are allowed whatever their arguments."""
    rules = resolved(DEFAULT_PROFILE, caps, arch)["syscalls"]
    return {
        name for rule in rules if "args" not in rule and rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    }


# ---- the default -------------------------------------------------------------------------------------------------


def test_default_refuses_what_docker_refuses() -> None:
    names = allowed(DEFAULT_CAPABILITIES)
    assert not names & DOCKER_REFUSES
    assert {"read", "openat", "execve", "chroot", "futex", "ptrace", "rseq", "arch_prctl", "statx"} <= names
    assert resolved(DEFAULT_PROFILE)["defaultAction"] == "SCMP_ACT_ERRNO"
    assert resolved(DEFAULT_PROFILE)["defaultErrnoRet"] == 1
    assert len(names) > 300


def test_nothing_is_allowed_twice_by_accident() -> None:
    for rule in DEFAULT_PROFILE["syscalls"]:
        assert rule["names"] == sorted(set(rule["names"]))


@pytest.mark.parametrize(
    ("cap", "call"),
    [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_SYS_ADMIN", "unshare"),
        ("CAP_SYS_ADMIN", "clone3"),
        ("CAP_SYS_MODULE", "init_module"),
        ("CAP_SYS_TIME", "settimeofday"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_SYS_NICE", "mbind"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ],
)
def test_a_capability_opens_its_calls(cap: str, call: str) -> None:
    assert call not in allowed(())
    assert call in allowed((cap,))


def test_all_capabilities_open_more_and_close_nothing() -> None:
    assert allowed(CAPABILITIES) > allowed(())


def _conditions(call: str, caps: Any, arch: Architecture = AMD64) -> list[dict[str, Any]]:
    rules = resolved(DEFAULT_PROFILE, caps, arch)["syscalls"]
    return [rule for rule in rules if call in rule["names"]]


def test_clone_makes_no_namespaces_without_sys_admin() -> None:
    (rule,) = _conditions("clone", ())
    assert rule["args"] == [{"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    (rule,) = _conditions("clone", (), S390X)
    assert rule["args"][0]["index"] == 1
    assert all("args" not in rule for rule in _conditions("clone", ("CAP_SYS_ADMIN",)))
    (rule,) = _conditions("clone3", ())
    assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def _socket_is_allowed(family: int) -> bool:
    return any(family & rule["args"][0]["value"] == rule["args"][0]["valueTwo"] for rule in _conditions("socket", ()))


def test_sockets_of_every_family_but_those_that_reach_past_the_namespace() -> None:
    vsock, alg = 40, 38
    assert {family for family in range(48) if not _socket_is_allowed(family)} == {vsock}
    assert _socket_is_allowed(alg)
    # The kernel takes an int: the upper half does not count for it, so it must not count for the filter.
    assert not _socket_is_allowed(0x1_0000_0000 | vsock)
    assert not _socket_is_allowed(0xFFFF_FFFF_0000_0000 | vsock)


def test_personalities() -> None:
    values = {rule["args"][0]["value"] for rule in _conditions("personality", ())}
    assert values == {0, 8, 0x20000, 0x20008, 0xFFFFFFFF}


def test_architectures() -> None:
    assert resolved(DEFAULT_PROFILE)["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert resolved(DEFAULT_PROFILE, (), S390X)["architectures"] == ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"]
    assert "architectures" not in resolved(DEFAULT_PROFILE, (), None)
    assert "arch_prctl" not in allowed((), S390X)
    assert "s390_pci_mmio_read" in allowed((), S390X)


def test_the_encoded_default_is_the_resolved_one() -> None:
    section = json.loads(default_section(DEFAULT_CAPABILITIES, KERNEL))
    assert section["defaultAction"] == "SCMP_ACT_ERRNO"
    assert default_section(DEFAULT_CAPABILITIES, KERNEL) is default_section(DEFAULT_CAPABILITIES, KERNEL)


# ---- profiles of users -------------------------------------------------------------------------------------------


def test_conditions_of_dockers_format() -> None:
    def names(rule: dict[str, Any], caps: Any = ("CAP_A",)) -> bool:
        rule = {"names": ["x"], "action": "SCMP_ACT_ALLOW", **rule}
        return "syscalls" in resolved({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}, caps)

    assert names({})
    assert names({"includes": {"caps": ["CAP_A"]}})
    assert not names({"includes": {"caps": ["CAP_A", "CAP_B"]}})
    assert not names({"excludes": {"caps": ["CAP_A", "CAP_B"]}})
    assert names({"includes": {"arches": ["amd64"]}})
    assert not names({"includes": {"arches": ["arm64"]}})
    assert not names({"excludes": {"arches": ["amd64"]}})
    assert names({"includes": {"minKernel": "4.8"}})
    assert not names({"includes": {"minKernel": "99.0"}})
    assert not names({"excludes": {"minKernel": "4.8"}})
    assert names({"includes": {}, "excludes": {}, "args": [], "comment": "unknown members do no harm"})


def test_the_old_form_with_one_name() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"name": "read", "action": "SCMP_ACT_ALLOW", "args": None}],
    }
    assert resolved(profile)["syscalls"] == [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]


@pytest.mark.skipif(not PODMANS.exists(), reason="containers-common is not installed")
def test_podmans_profile_is_read() -> None:
    section = resolve(load_profile(str(PODMANS)), DEFAULT_CAPABILITIES, AMD64, KERNEL)
    theirs = {name for rule in section["syscalls"] for name in rule["names"] if rule["action"] == "SCMP_ACT_ALLOW"}
    # Theirs allows mounting, unsharing and keyrings: ours is the narrower one, but for calls newer than their file.
    assert allowed(DEFAULT_CAPABILITIES) - theirs <= NEWER
    assert theirs - allowed(DEFAULT_CAPABILITIES) >= {"keyctl", "mount", "unshare"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"defaultAction": "SCMP_ACT_NONSENSE"}',
        b'{"defaultAction": 1}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "flags": ["X"]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["../x"]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "x"}]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "relative"}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["a b"]}]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["a"], "name": "b"}]}',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "ALLOW", "names": ["a"]}]}',
        b'{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"action":"SCMP_ACT_ALLOW","names":["a"],'
        b'"args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}',
        b'{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"action":"SCMP_ACT_ALLOW","names":["a"],'
        b'"args":[{"index":0,"value":-1,"op":"SCMP_CMP_EQ"}]}]}',
        b'{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"action":"SCMP_ACT_ALLOW","names":["a"],'
        b'"args":[{"index":0,"value":0,"op":"EQ"}]}]}',
    ],
)
def test_what_is_no_profile(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "profile").write_bytes(content)
    with pytest.raises(InvalidSpec, match="seccomp profile"):
        load_profile(str(tmp_path / "profile"))


def test_a_version_that_can_not_be_read() -> None:
    rule = {"names": ["x"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}
    with pytest.raises(InvalidSpec, match="minKernel"):
        resolved({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]})


def test_what_is_no_profile_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_profile(str(tmp_path / "missing"))
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(InvalidSpec):
            load_profile(str(path))
    (tmp_path / "large").write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(InvalidSpec, match="larger than"):
        load_profile(str(tmp_path / "large"))


KEYS = st.sampled_from(["names", "action", "args", "index", "value", "op", "includes", "caps"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(syscalls=JSON)
def test_any_json_is_read_or_refused(syscalls: Any) -> None:
    try:
        section = resolved({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls})
    except InvalidSpec:
        return
    json.dumps(section)
