"""What the service is told: documents of both schemas, and what is refused before it is asked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from hcs.world import BASE, VOLUME, WRITABLE, HcsWorld, document, process
from lighterman.errors import AlreadyExists, InvalidSpec, LightermanError, NotFound, NotSupported, RuntimeUnavailable
from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.hcs import HostFacts, SandboxSize, TerminateWithEngine
from lighterman.runtimes.hcs.command_line import command_line_of
from lighterman.runtimes.hcs.documents import container_config, process_config
from lighterman.runtimes.hcs.load import check_build, checked, load_runtime
from lighterman.runtimes.hcs.wanted import Wanted, wanted
from lighterman.runtimes.options import (
    Credentials,
    Flush,
    HyperVIsolation,
    Layers,
    NetworkEndpoints,
    Servicing,
    WithCheckpoint,
)
from lighterman.spec import ConsoleSize, PlainRoot, ProcessConfig, Spec, User

HOST = HostFacts(build=20348, processors=4)
GUIDS = (("2d9e7a55-9b7c-5d10-a3f4-6e8c0b1a2f3d", BASE),)


def asked(
    *options: CreateOption, host: HostFacts = HOST, hyper_v: bool = False, spec: Spec | None = None, **sections: Any
) -> Wanted:
    return wanted("c1", spec or Spec(process=process(), document=document(**sections)), options, host, hyper_v=hyper_v)


def configured(*options: CreateOption, schema: int = 1, **sections: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(container_config(schema, "c1", "lighterman", asked(*options, **sections), GUIDS))
    return made


FULL: dict[str, Any] = {
    "hostname": "web-1",
    "mounts": [
        {"source": "D:\\data", "destination": "C:\\data", "options": ["RO"]},
        {"source": "\\\\.\\pipe\\engine", "destination": "\\\\.\\pipe\\engine"},
    ],
    "windows": {
        "resources": {
            "cpu": {"maximum": 2500},
            "memory": {"limit": 1024 * 1024 * 1024 + 1},
            "storage": {"iops": 500, "bps": 10485760, "sandboxSize": 20 << 30},
        },
        "network": {
            "endpointList": ["7be0a5f9-6d3a-4f0e-9a3f-1c2d3e4f5061"],
            "allowUnqualifiedDNSQuery": True,
            "DNSSearchList": ["corp.example", "example"],
            "networkSharedContainerName": "other",
            "networkNamespace": "3f0a1f5e-92d9-4c55-8a55-0c6d0c2d7b11",
        },
        "devices": [{"id": "5b45201d-f2f2-4f3b-85bb-30ff1f953599", "idType": "class"}],
    },
}


def test_schema_1_of_everything() -> None:
    options = (Flush(True), Credentials('{"a": 1}'), TerminateWithEngine())
    made = configured(*options, **FULL)
    assert made == {
        "SystemType": "Container",
        "Name": "c1",
        "Owner": "lighterman",
        "VolumePath": VOLUME,
        "IgnoreFlushesDuringBoot": True,
        "LayerFolderPath": WRITABLE,
        "Layers": [{"ID": GUIDS[0][0], "Path": BASE}],
        "Credentials": '{"a": 1}',
        "ProcessorMaximum": 2500,
        "StorageIOPSMaximum": 500,
        "StorageBandwidthMaximum": 10485760,
        "StorageSandboxSize": 20 << 30,
        "MemoryMaximumInMB": 1024,
        "HostName": "web-1",
        "MappedDirectories": [
            {
                "HostPath": "D:\\data",
                "ContainerPath": "C:\\data",
                "ReadOnly": True,
                "BandwidthMaximum": 0,
                "IOPSMaximum": 0,
            }
        ],
        "MappedPipes": [{"HostPath": "\\\\.\\pipe\\engine", "ContainerPipeName": "engine"}],
        "HvPartition": False,
        "EndpointList": ["7be0a5f9-6d3a-4f0e-9a3f-1c2d3e4f5061"],
        "NetworkSharedContainerName": "other",
        "AllowUnqualifiedDNSQuery": True,
        "DNSSearchList": "corp.example,example",
        "TerminateOnLastHandleClosed": True,
        "AssignedDevices": [{"InterfaceClassGuid": "5b45201d-f2f2-4f3b-85bb-30ff1f953599"}],
    }


def test_schema_1_of_the_least() -> None:
    assert configured() == {
        "SystemType": "Container",
        "Name": "c1",
        "Owner": "lighterman",
        "VolumePath": VOLUME,
        "LayerFolderPath": WRITABLE,
        "Layers": [{"ID": GUIDS[0][0], "Path": BASE}],
        "HvPartition": False,
    }


def test_schema_2_of_everything() -> None:
    sections = dict(FULL)
    sections["windows"] = dict(FULL["windows"], resources=dict(FULL["windows"]["resources"]))
    sections["windows"]["resources"]["storage"] = {"iops": 500, "bps": 10485760}
    made = configured(TerminateWithEngine(), schema=2, **sections)
    assert made == {
        "Owner": "lighterman",
        "SchemaVersion": {"Major": 2, "Minor": 1},
        "ShouldTerminateOnLastHandleClosed": True,
        "Container": {
            "GuestOs": {"HostName": "web-1"},
            "Storage": {
                "Layers": [{"Id": GUIDS[0][0], "Path": BASE}],
                "Path": f"{VOLUME}\\",
                "QoS": {"IopsMaximum": 500, "BandwidthMaximum": 10485760},
            },
            "MappedDirectories": [{"HostPath": "D:\\data", "ContainerPath": "C:\\data", "ReadOnly": True}],
            "MappedPipes": [{"ContainerPipeName": "engine", "HostPath": "\\\\.\\pipe\\engine"}],
            "Memory": {"SizeInMB": 1024},
            "Processor": {"Maximum": 2500},
            "Networking": {
                "Namespace": "3f0a1f5e-92d9-4c55-8a55-0c6d0c2d7b11",
                "NetworkAdapters": ["7be0a5f9-6d3a-4f0e-9a3f-1c2d3e4f5061"],
                "AllowUnqualifiedDnsQuery": True,
                "DnsSearchList": "corp.example,example",
                "NetworkSharedContainerName": "other",
            },
            "AssignedDevices": [{"Type": "ClassGuid", "InterfaceClassGuid": "5b45201d-f2f2-4f3b-85bb-30ff1f953599"}],
        },
    }


@pytest.mark.parametrize("option", [Servicing(), HyperVIsolation("D:\\x"), Credentials("{}"), SandboxSize(1)])
def test_schema_2_refuses_what_it_lacks(option: CreateOption) -> None:
    sections: dict[str, Any] = {"root": {}} if isinstance(option, HyperVIsolation) else {}
    with pytest.raises(NotSupported, match="vmcompute"):
        configured(option, schema=2, **sections)


async def test_hyper_v_document(world: HcsWorld) -> None:
    runtime = world.runtime()
    top, base, writable = world.layer_folders()
    options = (Layers(writable, (top, base)), HyperVIsolation("D:\\store"), NetworkEndpoints(("e",), True), Servicing())
    spec = Spec(process=process("sleep"), document=b'{"windows": {}}')
    system = await runtime.create("c1", spec, options)
    told = json.loads(world.core.calls("HcsCreateComputeSystem")[0][2])
    assert told["HvPartition"] is True
    assert told["HvRuntime"] == {"ImagePath": str(world.scratch / "base" / "UtilityVM")}
    assert "VolumePath" not in told
    assert told["LayerFolderPath"] == writable
    assert [layer["Path"] for layer in told["Layers"]] == [top, base]
    assert told["SandboxPath"] == "D:\\store"
    assert told["Servicing"] is True
    assert told["EndpointList"] == ["e"]
    assert "PrepareLayer" not in world.layers.functions(), "under Hyper-V the VM mounts the layer"
    with pytest.raises(LightermanError):
        await system.terminate()
    await system.wait()
    await system.close()


async def test_hyper_v_without_a_utility_vm(world: HcsWorld) -> None:
    (world.scratch / "base").mkdir()
    folders = [str(world.scratch / "base"), str(world.scratch / "writable")]
    spec = Spec(process=process(), document=json.dumps({"windows": {"layerFolders": folders}}).encode())
    with pytest.raises(NotFound, match="no layer has a utility VM"):
        await world.runtime(hyper_v=True).create("c1", spec)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "kind", "why"),
    [
        ({"windows": {"layerFolders": [BASE]}}, InvalidSpec, "at least two"),
        ({"windows": {"layerFolders": []}}, InvalidSpec, "at least two"),
        ({"windows": {"layerFolders": "x"}}, InvalidSpec, "list of texts"),
        ({"windows": {"layerFolders": [BASE, "D:\\"]}}, InvalidSpec, "folder's path"),
        ({"root": {"path": f"{VOLUME}\\", "readonly": True}}, NotSupported, "read-only"),
        ({"root": {"path": "C:\\root"}}, InvalidSpec, "must be a volume"),
        ({"root": {"path": f"{VOLUME}\\x"}}, InvalidSpec, "must be a volume"),
        ({"root": {"path": "\\\\?\\Volume{8b1d9d0e}\\"}}, InvalidSpec, "must be a volume"),
        ({"windows": {"hyperv": {}}}, InvalidSpec, "must be empty"),
        ({"mounts": [{"source": "D:\\a", "destination": "C:\\a", "type": "bind"}]}, NotSupported, "type 'bind'"),
        ({"mounts": [{"destination": "C:\\a"}]}, InvalidSpec, "source"),
        ({"mounts": [{"source": "D:\\a", "destination": "/a"}]}, InvalidSpec, "begin with a drive"),
        ({"mounts": {}}, None, ""),
        ({"mounts": {"a": 1}}, InvalidSpec, "not a list"),
        ({"windows": {"devices": [{"id": "x", "idType": "vpci"}]}}, NotSupported, "device"),
        ({"windows": {"resources": {"cpu": {"shares": 10001}}}}, InvalidSpec, "0 to 10000"),
        ({"windows": {"resources": {"cpu": {"count": -1}}}}, InvalidSpec, "0 or more"),
        ({"windows": {"resources": {"memory": {"limit": True}}}}, InvalidSpec, "0 or more"),
        ({"windows": {"resources": []}}, InvalidSpec, "not an object"),
        ({"hostname": "a\0b"}, InvalidSpec, "NUL"),
        ({"linux": {}}, InvalidSpec, "Linux container's spec"),
    ],
)
def test_bad_documents(sections: dict[str, Any], kind: type[LightermanError] | None, why: str) -> None:
    if kind is None:
        asked(**sections)
        return
    with pytest.raises(kind, match=why) as raised:
        asked(**sections)
    assert "\n" not in str(raised.value)


def test_a_linux_root_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="Linux container's spec"):
        asked(spec=Spec(process=process(), document=b"{}", rootfs=PlainRoot(path="/srv")))


@pytest.mark.parametrize("text", [b"{", b"[]", b"7"])
def test_a_document_that_is_none(text: bytes) -> None:
    with pytest.raises(InvalidSpec, match="JSON"):
        asked(spec=Spec(process=process(), document=text))


def test_unknown_option_is_refused() -> None:
    with pytest.raises(NotSupported, match="WithCheckpoint"):
        asked(WithCheckpoint("a", "b"))


def test_under_hyper_v_some_things_do_not_go() -> None:
    for windows, why in (
        ({"devices": [{"id": "x", "idType": "class"}]}, "devices"),
        ({"network": {"networkSharedContainerName": "other"}}, "shared network"),
    ):
        with pytest.raises(NotSupported, match=why):
            asked(hyper_v=True, root={}, windows=windows)


def test_old_builds_lack_things() -> None:
    old = HostFacts(build=14393, processors=4)
    pipe = {"source": "\\\\.\\pipe\\a", "destination": "\\\\.\\PIPE\\a"}
    with pytest.raises(NotSupported, match="need build 16299"):
        asked(host=old, mounts=[pipe])
    with pytest.raises(NotSupported, match="need build 17763"):
        asked(host=old, windows={"devices": [{"id": "x", "idType": "class"}]})


@pytest.mark.parametrize(
    ("cpu", "hyper_v", "expected"),
    [
        ({"count": 8}, False, (4, 0, 0)),
        ({"count": 2, "shares": 500, "maximum": 100}, False, (2, 0, 0)),
        ({"shares": 500, "maximum": 100}, False, (0, 500, 0)),
        ({"count": 2, "shares": 500, "maximum": 100}, True, (2, 500, 100)),
    ],
)
def test_processors(
    cpu: dict[str, int], hyper_v: bool, expected: tuple[int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        root = {} if hyper_v else {"path": f"{VOLUME}\\"}
        made = asked(hyper_v=hyper_v, windows={"resources": {"cpu": cpu}}, root=root)
    assert (made.processor_count, made.processor_weight, made.processor_maximum) == expected
    assert bool(caplog.records) is not hyper_v


@pytest.mark.parametrize("id", ["", "-a", "a/b", "a\\b", "..", "a b", "a\0", "x" * 129, "ä"])
async def test_bad_ids(id: str, world: HcsWorld) -> None:
    with pytest.raises(InvalidSpec, match="id "):
        await world.runtime().create(id, world.spec("sleep"))
    assert world.core.calls() == []


async def test_id_in_use_is_one_clear_line(either: HcsWorld) -> None:
    either.core.left_over("c1", "somebody")
    with pytest.raises(AlreadyExists, match=r"container c1 .* the id is in use") as raised:
        await either.runtime().create("c1", either.spec("sleep"))
    assert "\n" not in str(raised.value)
    either.leaves_something = True


# ---- processes ---------------------------------------------------------------------------------------------------


def test_process_document() -> None:
    config = ProcessConfig(
        args=("prog", "a b", 'c"d', "e\\"),
        env={"A": "b=c=d", "=C:": "C:\\x"},
        cwd="",
        user=User(username="ContainerUser"),
        terminal=True,
        console_size=ConsoleSize(height=30, width=120),
    )
    assert json.loads(process_config(config, piped=True)) == {
        "CommandLine": 'prog "a b" c\\"d e\\',
        "User": "ContainerUser",
        "WorkingDirectory": "C:\\",
        "Environment": {"A": "b=c=d", "=C:": "C:\\x"},
        "EmulateConsole": True,
        "CreateStdInPipe": True,
        "CreateStdOutPipe": True,
        "ConsoleSize": [30, 120],
    }


def test_process_document_without_a_terminal_asks_for_stderr() -> None:
    made = json.loads(
        process_config(ProcessConfig(command_line="cmd /c x", console_size=ConsoleSize(height=1, width=2)), piped=True)
    )
    assert made["CommandLine"] == "cmd /c x"
    assert made["CreateStdErrPipe"] is True
    assert made["ConsoleSize"] == [0, 0]


def test_process_document_of_a_servicing_run_has_no_pipes() -> None:
    assert not [key for key in json.loads(process_config(process("x"), piped=False)) if key.startswith("CreateStd")]


@pytest.mark.parametrize(
    "config",
    [
        ProcessConfig(),
        ProcessConfig(args=("a\0b",)),
        ProcessConfig(command_line="  "),
        ProcessConfig(args=("a",), cwd="relative"),
        ProcessConfig(args=("a",), env={"A=B": "c"}),
        ProcessConfig(args=("a",), env={"A": "b\0c"}),
        ProcessConfig(args=("a",), env={"": "c"}),
    ],
)
def test_bad_processes(config: ProcessConfig) -> None:
    with pytest.raises(InvalidSpec):
        process_config(config, piped=True)


HARD = ("", " ", 'a"b', "a\\", 'a\\"', "a b\\", "\\\\", "tab\there", 'x" y', "ä€😀", "%PATH%", "a^b&c")


def test_L09_the_program_gets_the_same_arguments(built: Any) -> None:
    assert command_line_of(process(*HARD)) == subprocess.list2cmdline(("prog", *HARD))


async def test_L09_arguments_arrive(either: HcsWorld) -> None:
    from hcs.world import all_of, end

    hard = tuple(word for word in HARD if word) if sys.platform != "win32" else ("a b", 'a"b', "a\\", 'x" y', "a b\\")
    system, init = await either.started("args", *hard)
    got = (await all_of((await init.stdio()).stdout)).decode().splitlines()
    assert tuple(got) == hard
    await init.wait()
    await end(system, init)


# ---- the host ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the line for another system than Windows")
async def test_not_windows() -> None:
    with pytest.raises(RuntimeUnavailable, match="is a part of Windows, this is "):
        await load_runtime()


@pytest.mark.skipif(sys.platform != "win32", reason="needs a Windows without the Containers feature, as Wine is one")
async def test_no_service_on_this_windows() -> None:
    with pytest.raises(RuntimeUnavailable, match="install the Containers feature"):
        await load_runtime(host=HOST)


def test_build_too_old() -> None:
    with pytest.raises(RuntimeUnavailable, match=r"build 10586 is too old: vmcompute\.dll needs 14393"):
        check_build(HostFacts(build=10586, processors=1), "vmcompute")
    with pytest.raises(RuntimeUnavailable, match="needs 17763"):
        check_build(HostFacts(build=14393, processors=1), "computecore")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("0x80070005", "run as administrator"),
        ("0x8037011B", "run as administrator"),
        ("0x800706BA", "does not run"),
        ("0x80370114", "does not answer"),
    ],
)
async def test_service_that_can_not_be_reached(code: str, why: str, world: HcsWorld) -> None:
    world.core.script("HcsEnumerateComputeSystems", code=code)
    with pytest.raises(RuntimeUnavailable, match=why) as raised:
        await checked(world.runtime(), "vmcompute")
    assert "\n" not in str(raised.value)


async def test_unknown_schema(either: HcsWorld) -> None:
    only = '{"Properties":[{"SupportedSchemaVersions":[{"Major":9,"Minor":0}]}]}'
    either.core.script("HcsGetServiceProperties", out=only)
    with pytest.raises(RuntimeUnavailable, match=r"knows the schemas 9\.0"):
        await checked(either.runtime(), either.name)


async def test_old_builds_enumerate_again(world: HcsWorld) -> None:
    world.core.script("HcsEnumerateComputeSystems", code="0xC0370105", times=3)
    assert await world.runtime(build=14393).list() == []
    assert world.core.functions().count("HcsEnumerateComputeSystems") == 4


async def test_version_tells_the_build_and_the_schema(either: HcsWorld) -> None:
    version = await either.runtime().version()
    assert (version.name, version.version, version.path) == ("hcs", "20348", f"{either.name}.dll")
