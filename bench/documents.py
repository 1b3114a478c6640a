"""The config.json that the engine would write, for a peer: the same, with the seccomp profile not yet compiled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from bench.workspace import Workspace
from lighterman.runtimes.oci.document import EtcFiles, HostFacts, build_spec, encode_config
from lighterman.spec import ContainerSpec, PlainRoot

__all__ = ["write_bundle"]


def write_bundle(workspace: Workspace, id: str, argv: Sequence[str], *, seccomp: bool = True) -> str:
    """Make `bundles/ID` with config.json and the files of /etc; its path."""
    bundle = workspace.directory(f"bundles/{id}")
    files = EtcFiles(hosts=f"{bundle}/hosts", hostname=f"{bundle}/hostname", resolv_conf=f"{bundle}/resolv.conf")
    for path in (files.hosts, files.hostname, files.resolv_conf):
        with open(path, "w") as file:
            file.write("127.0.0.1\tlocalhost\n")
        os.chmod(path, 0o644)
    wanted = ContainerSpec(image="busybox", argv=tuple(argv), seccomp="default" if seccomp else "unconfined")
    spec = build_spec(
        wanted,
        workspace.image.config,
        rootfs=PlainRoot(path=workspace.root),
        root_lookup=None,
        id=id,
        files=files,
        host=_facts(),
    )
    document: dict[str, Any] = msgspec.json.decode(encode_config(spec))
    document["linux"]["cgroupsPath"] = f"{workspace.cgroup}/{id}"
    with open(f"{bundle}/config.json", "wb") as config:
        config.write(msgspec.json.encode(document))
    return bundle


@cache
def _facts() -> HostFacts:
    return HostFacts.detect()
