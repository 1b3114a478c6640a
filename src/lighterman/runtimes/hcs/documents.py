"""The JSON that the service takes: a container's configuration in both schemas, a process, its changes, queries.

Field names and order as hcsshim's `internal/hcs/schema1` and `schema2` have them; what is 0 or empty is left out
unless the field is always written.
"""

from __future__ import annotations

import json
import ntpath
from collections.abc import Sequence
from typing import Any

from lighterman.errors import InvalidSpec, NotSupported
from lighterman.runtimes.hcs.command_line import command_line_of
from lighterman.runtimes.hcs.wanted import Wanted
from lighterman.spec import ProcessConfig

__all__ = [
    "CLOSE_STDIN",
    "basic_query",
    "console_size_change",
    "container_config",
    "endpoint_change",
    "process_config",
    "property_query",
    "systems_query",
]

Layer = tuple[str, str]
"""A read-only layer's GUID and folder."""

CLOSE_STDIN = json.dumps({"Operation": "CloseHandle", "CloseHandle": {"Handle": "StdIn"}})
DEFAULT_CWD = "C:\\"
basic_query = "{}"


def container_config(schema: int, id: str, owner: str, wanted: Wanted, layers: Sequence[Layer]) -> str:
    """The configuration for `create`. Raises: NotSupported what the schema has no word for."""
    return json.dumps(_schema_1(id, owner, wanted, layers) if schema == 1 else _schema_2(owner, wanted, layers))


def _schema_1(id: str, owner: str, wanted: Wanted, layers: Sequence[Layer]) -> dict[str, Any]:
    document = {
        "SystemType": "Container",
        "Name": id,
        "Owner": owner,
        "VolumePath": wanted.volume_path,
        "IgnoreFlushesDuringBoot": wanted.ignore_flushes,
        "LayerFolderPath": wanted.layer_folder,
        "Layers": [{"ID": guid, "Path": path} for guid, path in layers],
        "Credentials": wanted.credentials,
        "ProcessorCount": wanted.processor_count,
        "ProcessorWeight": wanted.processor_weight,
        "ProcessorMaximum": wanted.processor_maximum,
        "StorageIOPSMaximum": wanted.iops,
        "StorageBandwidthMaximum": wanted.bandwidth_bytes,
        "StorageSandboxSize": wanted.sandbox_size_bytes,
        "MemoryMaximumInMB": wanted.memory_mb,
        "HostName": wanted.hostname,
        "MappedDirectories": [
            {
                "HostPath": each.host_path,
                "ContainerPath": each.container_path,
                "ReadOnly": each.read_only,
                "BandwidthMaximum": 0,
                "IOPSMaximum": 0,
            }
            for each in wanted.directories
        ],
        "MappedPipes": [{"HostPath": each.host_path, "ContainerPipeName": each.name} for each in wanted.pipes],
        "SandboxPath": wanted.sandbox_path,
        "HvPartition": wanted.hyper_v,
        "EndpointList": list(wanted.endpoints),
        "NetworkSharedContainerName": wanted.shared_network,
        "HvRuntime": {"ImagePath": wanted.utility_vm} if wanted.hyper_v else None,
        "Servicing": wanted.servicing,
        "AllowUnqualifiedDNSQuery": wanted.unqualified_dns,
        "DNSSearchList": ",".join(wanted.dns_search),
        "TerminateOnLastHandleClosed": wanted.terminate_with_engine,
        "AssignedDevices": [{"InterfaceClassGuid": guid} for guid in wanted.devices],
    }
    return _without_empty(document, keep=("SystemType", "Name", "Layers", "HvPartition"))


def _schema_2(owner: str, wanted: Wanted, layers: Sequence[Layer]) -> dict[str, Any]:
    for unknown, asked in (
        ("Hyper-V isolation", wanted.hyper_v),
        ("servicing", wanted.servicing),
        ("credentials", bool(wanted.credentials)),
        ("a sandbox size", bool(wanted.sandbox_size_bytes)),
    ):
        if asked:
            raise NotSupported(f"hcs: {unknown} with schema 2: use the vmcompute binding", operation="create")
    container = {
        "GuestOs": _without_empty({"HostName": wanted.hostname}),
        "Storage": _without_empty(
            {
                "Layers": [{"Id": guid, "Path": path} for guid, path in layers],
                "Path": f"{wanted.volume_path}\\",
                "QoS": _without_empty({"IopsMaximum": wanted.iops, "BandwidthMaximum": wanted.bandwidth_bytes}),
            }
        ),
        "MappedDirectories": [
            {"HostPath": each.host_path, "ContainerPath": each.container_path, "ReadOnly": each.read_only}
            for each in wanted.directories
        ],
        "MappedPipes": [{"ContainerPipeName": each.name, "HostPath": each.host_path} for each in wanted.pipes],
        "Memory": _without_empty({"SizeInMB": wanted.memory_mb}),
        "Processor": _without_empty(
            {
                "Count": wanted.processor_count,
                "Weight": wanted.processor_weight,
                "Maximum": wanted.processor_maximum,
            }
        ),
        "Networking": _without_empty(
            {
                "Namespace": wanted.namespace,
                "NetworkAdapters": list(wanted.endpoints),
                "AllowUnqualifiedDnsQuery": wanted.unqualified_dns,
                "DnsSearchList": ",".join(wanted.dns_search),
                "NetworkSharedContainerName": wanted.shared_network,
            }
        ),
        "AssignedDevices": [{"Type": "ClassGuid", "InterfaceClassGuid": guid} for guid in wanted.devices],
    }
    return {
        "Owner": owner,
        "SchemaVersion": {"Major": 2, "Minor": 1},
        **({"ShouldTerminateOnLastHandleClosed": True} if wanted.terminate_with_engine else {}),
        "Container": _without_empty(container),
    }


def process_config(process: ProcessConfig, *, piped: bool) -> str:
    """`ProcessConfig`, alike in both schemas: stderr exactly without a terminal; no pipes for a servicing process.

    Raises: InvalidSpec.
    """
    for name, value in process.env.items():
        if not name or "=" in name[1:] or "\0" in name + value:
            raise InvalidSpec(f"environment variable {name!r}: a name has no `=`, and neither part a NUL")
    size = process.console_size if process.terminal else None
    document = {
        "CommandLine": command_line_of(process),
        "User": process.user.username or "",
        "WorkingDirectory": _cwd(process.cwd),
        "Environment": dict(process.env),
        "EmulateConsole": process.terminal,
        "CreateStdInPipe": piped,
        "CreateStdOutPipe": piped,
        "CreateStdErrPipe": piped and not process.terminal,
        # Height first, and always there: 0, 0 without a console.
        "ConsoleSize": [size.height, size.width] if size else [0, 0],
    }
    return json.dumps(_without_empty(document, keep=("ConsoleSize",)))


def _cwd(path: str) -> str:
    if path in ("", "/"):
        return DEFAULT_CWD
    if "\0" in path or not (ntpath.isabs(path) or ntpath.splitdrive(path)[0]):
        raise InvalidSpec(f"working directory {path!r}: must be absolute, as C:\\app")
    return path


def console_size_change(height: int, width: int) -> str:
    """For modify-process."""
    return json.dumps({"Operation": "ConsoleSize", "ConsoleSize": {"Height": height, "Width": width}})


def property_query(*types: str) -> str:
    """Which properties besides the basic ones: `Statistics`, `ProcessList`, `PendingUpdates`."""
    return json.dumps({"PropertyTypes": list(types)})


def systems_query(*, owner: str | None = None, ids: Sequence[str] = ()) -> str:
    """For enumerate: of one owner, of these ids, or all."""
    query: dict[str, Any] = {}
    if owner is not None:
        query["Owners"] = [owner]
    if ids:
        query["Ids"] = list(ids)
    return json.dumps(query)


def endpoint_change(endpoint: str, *, add: bool) -> str:
    """For modify-system, schema 1: an endpoint of a running container."""
    return json.dumps({"ResourceType": "Network", "RequestType": "Add" if add else "Remove", "Settings": endpoint})


def _without_empty(document: dict[str, Any], keep: Sequence[str] = ()) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key in keep or value not in (None, "", 0, False, [], {})}
