"""An OCI document out of a user's wishes, an image's defaults and what this host is.

On the hot path of every start: what does not depend on the container is encoded once and joined as bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lighterman.checks import SdNotify
from lighterman.errors import InvalidSpec, NotSupported
from lighterman.images.image import ImageConfig
from lighterman.runtimes.oci.cgroups import PARENT, cgroup_host, check_resources
from lighterman.runtimes.oci.document_checks import (
    check_annotations,
    check_arguments,
    check_environment,
    check_hostname,
    check_id,
    check_workdir,
    shown,
)
from lighterman.runtimes.oci.document_host import HostFacts
from lighterman.runtimes.oci.document_linux import encode_linux
from lighterman.runtimes.oci.document_mounts import NOTIFY_DIRECTORY, EtcFiles, encode_mounts
from lighterman.runtimes.oci.document_process import (
    DEFAULT_PATH,
    INIT_INSIDE,
    capability_sets,
    check_console,
    check_oom_score,
    encode_process,
    pick_capabilities,
    rlimits,
)
from lighterman.runtimes.oci.rooted import Root
from lighterman.runtimes.oci.seccomp.resolve import default_section, load_profile, native_architecture, resolve
from lighterman.runtimes.oci.users import is_root_by_default, lookup_user
from lighterman.spec import ConsoleSize, ContainerSpec, PlainRoot, ProcessConfig, Resources, Rootfs, Spec, User

__all__ = [
    "ROOT_IN_BUNDLE",
    "EtcFiles",
    "HostFacts",
    "build_spec",
    "check_document",
    "encode_config",
    "encode_process",
    "exec_process",
    "hostname_of",
    "touches_files",
]

ROOT_IN_BUNDLE = "rootfs"
"""Where in the bundle an overlay is attached, for `root.path`."""

_OCI_VERSION = b"1.0.2"
_UNLIMITED = Resources()
_NETWORKS = ("none", "host")


def touches_files(wanted: ContainerSpec, image: ImageConfig) -> bool:
    """Whether `build_spec` will look at files, which can block: then it belongs into a thread."""
    return bool(
        wanted.mounts
        or wanted.devices
        or wanted.privileged
        or wanted.resources != _UNLIMITED
        or wanted.seccomp not in ("default", "unconfined")
        or not is_root_by_default(wanted.user or image.user)
    )


def build_spec(
    wanted: ContainerSpec,
    image: ImageConfig,
    *,
    rootfs: Rootfs,
    root_lookup: Root | None,
    id: str,
    files: EtcFiles | None,
    host: HostFacts,
    forbidden_sources: tuple[str, ...] = (),
    cgroup_parent: str = PARENT,
) -> Spec:
    """Check everything and encode it, with Docker's posture as the default.

    Args:
        rootfs: goes into the `Spec`; an overlay is `rootfs` in the bundle to the document, a plain root itself.
        root_lookup: the root, as a descriptor or a path, to look users up in; not used for the default user.
        files: what to put at /etc/hosts, /etc/hostname and /etc/resolv.conf; None puts nothing there.
        forbidden_sources: absolute paths (STATE and RUN) that no bind source may touch.
        cgroup_parent: below which its cgroup will be.

    Raises: InvalidSpec, NotFound (a user, a group, a seccomp profile), NotSupported (what this host can't enforce or
        give).
    """
    check_id(id)
    if wanted.network not in _NETWORKS:
        raise InvalidSpec(f"network {shown(wanted.network)}: must be one of {', '.join(_NETWORKS)}")
    if wanted.resources != _UNLIMITED:
        check_resources(wanted.resources, cgroup_host(), parent=cgroup_parent)
    bounding = pick_capabilities(wanted.cap_add, wanted.cap_drop, privileged=wanted.privileged, host=host)
    hostname = hostname_of(wanted, id)
    user, home = lookup_user(wanted.user or image.user, root_lookup)
    args, size = _arguments(wanted, image, host)
    process = ProcessConfig(
        args=args,
        env=_environment(wanted, image, hostname, home, beside=size),
        cwd=_workdir(wanted.workdir or image.workdir or "/"),
        user=user,
        terminal=wanted.terminal,
        console_size=wanted.console_size,
        stdin=wanted.stdin,
        oci=_process_extras(wanted, bounding, user, host),
    )
    check_console(process.console_size)

    mounts = encode_mounts(
        wanted.mounts,
        files,
        shm_bytes=wanted.shm_bytes,
        init=wanted.init,
        read_only=wanted.read_only,
        privileged=wanted.privileged,
        forbidden_sources=forbidden_sources,
        host=host,
    )
    linux = encode_linux(
        id=id,
        network=wanted.network,
        own_cgroup_namespace=host.own_cgroup_namespace,
        privileged=wanted.privileged,
        resources=wanted.resources,
        devices=wanted.devices,
        sysctls=wanted.sysctls,
        seccomp=_seccomp(wanted, bounding, host),
    )
    root_path = msgspec.json.encode(rootfs.path) if isinstance(rootfs, PlainRoot) else b'"rootfs"'
    document = b'{"ociVersion":"%s","root":{"path":%s,"readonly":%s},"hostname":"%s","mounts":%s,"linux":%s}' % (
        _OCI_VERSION,
        root_path,
        b"true" if wanted.read_only else b"false",
        hostname.encode(),
        mounts,
        linux,
    )
    return Spec(
        process=process,
        document=document,
        rootfs=rootfs,
        stop_signal=_stop_signal(wanted.stop_signal, image.stop_signal),
    )


def exec_process(
    base: ProcessConfig,
    args: tuple[str, ...],
    *,
    env: dict[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    root_lookup: Root | None = None,
    terminal: bool = False,
    console_size: ConsoleSize | None = None,
    stdin: bool = False,
) -> ProcessConfig:
    """A further process beside the init `base`: what is not given, it has from there.

    `env` is laid over the init's. Another user brings its HOME, unless `env` has one, and the capabilities that it
    may have of the same bounding set.

    Raises: as `build_spec` for arguments, environment, directory and user.
    """
    size = check_arguments(args)
    merged = {**base.env, **(env or {})}
    whom, oci = base.user, base.oci
    if user:
        whom, home = lookup_user(user, root_lookup)
        if not (env and "HOME" in env):
            merged["HOME"] = home
        bounding = tuple(oci.get("capabilities", {}).get("bounding", ()))
        oci = {**oci, "capabilities": capability_sets(bounding, root=whom.uid == 0)}
    if terminal:
        merged.setdefault("TERM", "xterm")
    check_environment(merged, beside=size)
    check_console(console_size)
    return ProcessConfig(
        args=args,
        env=merged,
        cwd=_workdir(workdir) if workdir else base.cwd,
        user=whom,
        terminal=terminal,
        console_size=console_size,
        stdin=stdin,
        oci=oci,
    )


def encode_config(spec: Spec) -> bytes:
    """The whole config.json: the document with the process in it.

    Raises: InvalidSpec if the document is not a JSON object.
    """
    if spec.document[:1] != b"{":
        raise InvalidSpec("the OCI document is not a JSON object")
    rest = spec.document[1:].lstrip()
    return b'{"process":%s%s%s' % (encode_process(spec.process), b"" if rest[:1] == b"}" else b",", rest)


def check_document(document: bytes) -> None:
    """Refuse a caller's own document that is no JSON object, has a `process`, or an annotation that is the engine's.

    Raises: InvalidSpec.
    """
    try:
        members = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
        annotations = msgspec.json.decode(members.get("annotations", b"{}"), type=dict[str, str] | None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise InvalidSpec(f"the OCI document can't be read: {wrong}") from wrong
    if "process" in members:
        raise InvalidSpec("the OCI document has a `process` of its own beside the one given")
    check_annotations(annotations or ())


def hostname_of(wanted: ContainerSpec, id: str) -> str:
    """The container's host name: the one asked for, else the first 12 characters of its id. Raises: InvalidSpec."""
    if wanted.hostname is None:
        return id[:12].replace(".", "-").strip("-_")
    check_hostname(wanted.hostname)
    return wanted.hostname


# ---- the parts of the process ------------------------------------------------------------------------------------


def _arguments(wanted: ContainerSpec, image: ImageConfig, host: HostFacts) -> tuple[tuple[str, ...], int]:
    """The argument vector, and its size."""
    args = image.entrypoint + (wanted.argv or image.cmd)
    size = check_arguments(args)
    if not wanted.init:
        return args, size
    if host.init_path is None:
        raise NotSupported("init: catatonit is not installed on this host: apt-get install catatonit")
    return (INIT_INSIDE, "--", *args), size


def _environment(wanted: ContainerSpec, image: ImageConfig, hostname: str, home: str, *, beside: int) -> dict[str, str]:
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if wanted.terminal:
        env["TERM"] = "xterm"
    env["HOME"] = home
    env |= image.env
    env |= wanted.env
    if isinstance(wanted.ready, SdNotify):
        env["NOTIFY_SOCKET"] = f"{NOTIFY_DIRECTORY}/notify.sock"
    check_environment(env, beside=beside)
    return env


def _workdir(path: str) -> str:
    check_workdir(path)
    return path


def _process_extras(wanted: ContainerSpec, bounding: tuple[str, ...], user: User, host: HostFacts) -> dict[str, Any]:
    extras: dict[str, Any] = {
        "capabilities": capability_sets(bounding, root=user.uid == 0),
        "noNewPrivileges": wanted.no_new_privileges,
    }
    if wanted.ulimits:
        extras["rlimits"] = rlimits(wanted.ulimits, host)
    if wanted.oom_score_adj is not None:
        check_oom_score(wanted.oom_score_adj, host)
        extras["oomScoreAdj"] = wanted.oom_score_adj
    if host.apparmor_profile is not None and not wanted.privileged:
        extras["apparmorProfile"] = host.apparmor_profile
    return extras


def _seccomp(wanted: ContainerSpec, bounding: tuple[str, ...], host: HostFacts) -> bytes | None:
    """The encoded section; None where nothing is to be filtered."""
    if wanted.seccomp == "default":
        return None if wanted.privileged else default_section(bounding, host.kernel)
    if wanted.seccomp == "unconfined":
        return None
    if not wanted.seccomp.startswith("/"):
        raise InvalidSpec(f"seccomp {shown(wanted.seccomp)}: must be default, unconfined or an absolute path")
    profile = load_profile(wanted.seccomp)
    return msgspec.json.encode(resolve(profile, bounding, native_architecture(), host.kernel, name=wanted.seccomp))


def _stop_signal(wanted: int | None, image: int | None) -> int:
    number = next((one for one in (wanted, image) if one is not None), 15)
    if not 1 <= number <= 64:
        raise InvalidSpec(f"stop signal {number}: must be 1 to 64")
    return number
