"""What a container needs, gathered from the OCI document's `windows` section and the create options, and checked.

The checks are those that moby makes before it asks the service, and some that it meant to make.
"""

from __future__ import annotations

import json
import logging
import ntpath
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lighterman.errors import InvalidSpec, NotFound, NotSupported
from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.hcs.host import FIRST_BUILD_DEVICES, FIRST_BUILD_PIPES, HostFacts
from lighterman.runtimes.hcs.options import SandboxSize, TerminateWithEngine
from lighterman.runtimes.options import (
    Credentials,
    Flush,
    HyperVIsolation,
    Layers,
    NetworkEndpoints,
    OutputSegments,
    Servicing,
)
from lighterman.spec import Spec

__all__ = ["OPTIONS", "MappedDirectory", "MappedPipe", "Wanted", "utility_vm_of", "wanted"]

log = logging.getLogger(__name__)

T = TypeVar("T")

OPTIONS = frozenset(
    kind.__name__
    for kind in (
        Credentials,
        Flush,
        HyperVIsolation,
        Layers,
        NetworkEndpoints,
        SandboxSize,
        Servicing,
        TerminateWithEngine,
    )
)
PIPE_PREFIX = "\\\\.\\pipe\\"
_VOLUME = re.compile(r"\\\\\?\\Volume\{[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}\\?", re.ASCII)
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MappedDirectory:
    """A directory of the host in the container."""

    host_path: str
    container_path: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class MappedPipe:
    """A named pipe of the host in the container; `name` is without the prefix."""

    host_path: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One container's configuration, checked, in the units of the service's documents.

    Attributes:
        volume_path: of the writable layer, without a trailing backslash; None under Hyper-V, or if the layers are
            still to be mounted.
        layer_folder: the writable layer's. layers: the read-only ones, the topmost first, the base last.
        processor_maximum: percent times 100. memory_mb: a commit limit.
    """

    hyper_v: bool = False
    servicing: bool = False
    terminate_with_engine: bool = False
    ignore_flushes: bool = False
    hostname: str = ""
    volume_path: str | None = None
    layer_folder: str = ""
    layers: tuple[str, ...] = ()
    utility_vm: str | None = None
    sandbox_path: str = ""
    sandbox_size_bytes: int = 0
    credentials: str = ""
    processor_count: int = 0
    processor_weight: int = 0
    processor_maximum: int = 0
    memory_mb: int = 0
    iops: int = 0
    bandwidth_bytes: int = 0
    directories: tuple[MappedDirectory, ...] = ()
    pipes: tuple[MappedPipe, ...] = ()
    devices: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    namespace: str = ""
    shared_network: str = ""
    unqualified_dns: bool = False
    dns_search: tuple[str, ...] = field(default=())


def wanted(id: str, spec: Spec, options: Sequence[CreateOption], host: HostFacts, *, hyper_v: bool) -> Wanted:
    """Gather and check. An option counts more than the document.

    Args: hyper_v: what the runtime was told to use where neither asks for an isolation.
    Raises: InvalidSpec, NotSupported.
    """
    for option in options:
        # Where a keeper's output goes matters to nobody here: there is no keeper.
        if type(option).__name__ not in OPTIONS and not isinstance(option, OutputSegments):
            raise NotSupported(f"hcs: create option {type(option).__name__}", operation="create", container=id)
    document = _document(spec)
    windows = _section(document, "windows")
    network = _section(windows, "network")
    isolated = _option(options, HyperVIsolation)
    hyper_v = hyper_v or isolated is not None or isinstance(windows.get("hyperv"), dict)
    layers = _layers(windows, _option(options, Layers))
    endpoints = _option(options, NetworkEndpoints)
    flush = _option(options, Flush)
    count, weight, maximum = _processor(id, windows, host, hyper_v)
    resources = _section(windows, "resources")
    storage = _section(resources, "storage")
    sandbox = _option(options, SandboxSize)
    directories, pipes = _mounts(document, host)
    made = Wanted(
        hyper_v=hyper_v,
        servicing=_option(options, Servicing) is not None or windows.get("servicing") is True,
        terminate_with_engine=_option(options, TerminateWithEngine) is not None,
        ignore_flushes=flush.ignore_flushes_during_boot if flush else windows.get("ignoreFlushesDuringBoot") is True,
        hostname=_text(document, "hostname"),
        volume_path=_volume(document, hyper_v),
        layer_folder=layers[0],
        layers=layers[1],
        utility_vm=_text(_section(windows, "hyperv"), "utilityVMPath") or None,
        sandbox_path=isolated.sandbox_path if isolated else "",
        sandbox_size_bytes=sandbox.size_bytes if sandbox else _number(storage, "sandboxSize"),
        credentials=_credentials(windows, _option(options, Credentials)),
        processor_count=count,
        processor_weight=weight,
        processor_maximum=maximum,
        memory_mb=_number(_section(resources, "memory"), "limit") // _MIB,
        iops=_number(storage, "iops"),
        bandwidth_bytes=_number(storage, "bps"),
        directories=directories,
        pipes=pipes,
        devices=_devices(windows, host, hyper_v),
        endpoints=endpoints.endpoints if endpoints else _texts(network, "endpointList"),
        namespace=_text(network, "networkNamespace"),
        shared_network=_text(network, "networkSharedContainerName"),
        unqualified_dns=(
            endpoints.allow_unqualified_dns_query if endpoints else network.get("allowUnqualifiedDNSQuery") is True
        ),
        dns_search=_texts(network, "DNSSearchList"),
    )
    if made.shared_network and hyper_v:
        raise NotSupported("hcs: a shared network under Hyper-V isolation", operation="create", container=id)
    return made


def utility_vm_of(layers: Sequence[str]) -> str:
    """The `UtilityVM` folder of the topmost layer that has one. Raises: NotFound. Looks at the disk."""
    for layer in layers:
        candidate = os.path.join(layer, "UtilityVM")
        if os.path.isdir(candidate):
            return candidate
    raise NotFound(f"no layer has a utility VM, so Hyper-V isolation can't be used: looked in {', '.join(layers)}")


# ---- one part each -----------------------------------------------------------------------------------------------


def _document(spec: Spec) -> dict[str, Any]:
    try:
        document = json.loads(spec.document)
    except ValueError as wrong:
        raise InvalidSpec(f"the OCI document is not JSON: {wrong}") from wrong
    if not isinstance(document, dict):
        raise InvalidSpec("the OCI document is not a JSON object")
    if document.get("linux") is not None or spec.rootfs is not None:
        raise InvalidSpec("this is a Linux container's spec: Windows needs a `windows` section and layers")
    return document


def _volume(document: dict[str, Any], hyper_v: bool) -> str | None:
    root = _section(document, "root")
    if root.get("readonly") is True:
        raise NotSupported("hcs: a read-only root")
    path = _text(root, "path")
    if hyper_v:
        if path:
            raise InvalidSpec(f"root path {path!r}: must be empty under Hyper-V isolation")
        return None
    if not path:
        return None
    if not _VOLUME.fullmatch(path):
        raise InvalidSpec(f"root path {path!r}: must be a volume, \\\\?\\Volume{{8-4-4-4-12 hex digits}}\\")
    return path.rstrip("\\")


def _layers(windows: dict[str, Any], option: Layers | None) -> tuple[str, tuple[str, ...]]:
    if option is not None:
        folder, parents = option.layer_folder_path, option.layer_paths
    else:
        folders = _texts(windows, "layerFolders")
        folder, parents = (folders[-1], folders[:-1]) if folders else ("", ())
    if not folder or not parents:
        raise InvalidSpec(
            f"layer folders {[*parents, folder]!r}: needs at least two, the read-only ones, the topmost first, "
            "and the writable one"
        )
    for each in (folder, *parents):
        if not ntpath.basename(each) or "\0" in each:
            raise InvalidSpec(f"layer folder {each!r}: must be a folder's path")
    return folder, parents


def _processor(id: str, windows: dict[str, Any], host: HostFacts, hyper_v: bool) -> tuple[int, int, int]:
    cpu = _section(_section(windows, "resources"), "cpu")
    count, weight, maximum = (_number(cpu, key) for key in ("count", "shares", "maximum"))
    if weight > 10000 or maximum > 10000:
        raise InvalidSpec(f"cpu shares {weight}, maximum {maximum}: each must be 0 to 10000")
    if count > host.processors:
        log.warning("container %s: %d processors asked for, the host has %d", id, count, host.processors)
        count = host.processors
    if hyper_v:
        return count, weight, maximum
    # Under process isolation one of them counts, in this order.
    if count and (weight or maximum):
        log.warning("container %s: cpu count is set, so shares and maximum are ignored", id)
        return count, 0, 0
    if weight and maximum:
        log.warning("container %s: cpu shares are set, so the maximum is ignored", id)
        return 0, weight, 0
    return count, weight, maximum


def _mounts(document: dict[str, Any], host: HostFacts) -> tuple[tuple[MappedDirectory, ...], tuple[MappedPipe, ...]]:
    directories: list[MappedDirectory] = []
    pipes: list[MappedPipe] = []
    mounts = document.get("mounts") or []
    if not isinstance(mounts, list):
        raise InvalidSpec("`mounts` of the OCI document is not a list")
    for mount in mounts:
        if not isinstance(mount, dict):
            raise InvalidSpec(f"mount {mount!r} is not an object")
        source, target = _text(mount, "source"), _text(mount, "destination")
        if not source or not target:
            raise InvalidSpec(f"mount {mount!r}: needs a source and a destination")
        if target.lower().startswith(PIPE_PREFIX):
            if host.build < FIRST_BUILD_PIPES:
                raise NotSupported(f"hcs: mapped pipes need build {FIRST_BUILD_PIPES}, this is {host.build}")
            pipes.append(MappedPipe(source, target[len(PIPE_PREFIX) :]))
            continue
        if _text(mount, "type"):
            raise NotSupported(f"hcs: mount of type {mount['type']!r} at {target!r}: only directories and pipes")
        if not ntpath.splitdrive(target)[0]:
            raise InvalidSpec(f"mount destination {target!r}: must begin with a drive, as C:\\data")
        read_only = any(option.lower() == "ro" for option in _texts(mount, "options"))
        directories.append(MappedDirectory(source, target, read_only))
    return tuple(directories), tuple(pipes)


def _devices(windows: dict[str, Any], host: HostFacts, hyper_v: bool) -> tuple[str, ...]:
    devices = windows.get("devices") or []
    if not devices:
        return ()
    if hyper_v:
        raise NotSupported("hcs: devices under Hyper-V isolation")
    if host.build < FIRST_BUILD_DEVICES:
        raise NotSupported(f"hcs: devices need build {FIRST_BUILD_DEVICES}, this is {host.build}")
    ids: list[str] = []
    for device in devices if isinstance(devices, list) else ():
        if not isinstance(device, dict) or device.get("idType") != "class" or not _text(device, "id"):
            raise NotSupported(f"hcs: device {device!r}: only an interface class GUID (idType `class`)")
        ids.append(_text(device, "id"))
    return tuple(ids)


def _credentials(windows: dict[str, Any], option: Credentials | None) -> str:
    if option is not None:
        return option.spec
    given = windows.get("credentialSpec")
    if given is None:
        return ""
    return given if isinstance(given, str) else json.dumps(given)


def _option(options: Sequence[CreateOption], kind: type[T]) -> T | None:
    return next((option for option in reversed(options) if isinstance(option, kind)), None)


def _section(of: dict[str, Any], key: str) -> dict[str, Any]:
    value = of.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidSpec(f"`{key}` of the OCI document is not an object: {value!r}")
    return value


def _text(of: dict[str, Any], key: str) -> str:
    value = of.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidSpec(f"`{key}` of the OCI document is not a text without NULs: {value!r}")
    return value


def _texts(of: dict[str, Any], key: str) -> tuple[str, ...]:
    value = of.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) and "\0" not in each for each in value):
        raise InvalidSpec(f"`{key}` of the OCI document is not a list of texts: {value!r}")
    return tuple(value)


def _number(of: dict[str, Any], key: str) -> int:
    value = of.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise InvalidSpec(f"`{key}` of the OCI document is not a number of 0 or more: {value!r}")
    return value
