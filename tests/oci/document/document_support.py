"""Building documents in tests, and running them by a runtime directly, without an engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from lighterman.errors import NotSupported
from lighterman.images import ImageConfig, ImageStore
from lighterman.runtimes.oci.document import EtcFiles, HostFacts, build_spec, encode_config
from lighterman.runtimes.oci.document_host import CAPABILITIES
from lighterman.spec import ContainerSpec, PlainRoot, Spec

RUN_S = 60.0
ID = "0123456789ab" + "c" * 52

HOST = HostFacts(
    own_cgroup_namespace=True,
    capabilities=CAPABILITIES,
    hard_limits={7: 4096},
    nr_open=1048576,
    kernel=(6, 1),
    init_path="/usr/bin/catatonit",
)


def built(
    *, host: HostFacts = HOST, image: ImageConfig | None = None, root: str | int | None = None, **wanted: Any
) -> Spec:
    """A spec of `wanted` on a host that has everything."""
    forbidden = wanted.pop("forbidden_sources", ())
    files = wanted.pop("files", None)
    id = wanted.pop("id", ID)
    asked = ContainerSpec(**{"image": "busybox", "argv": ("true",), **wanted})
    return build_spec(
        asked,
        image or ImageConfig(),
        rootfs=PlainRoot(path="/nowhere"),
        root_lookup=root,
        id=id,
        files=files,
        host=host,
        forbidden_sources=forbidden,
    )


def config_of(spec: Spec) -> dict[str, Any]:
    """The whole config.json, decoded."""
    config: dict[str, Any] = json.loads(encode_config(spec))
    return config


def busybox_root(directory: Path) -> Path:
    """A writable copy of the built-in image, in `directory`."""
    try:
        image = ImageStore(directory / "layers").resolve("busybox")
    except NotSupported as missing:
        pytest.skip(str(missing))
    root = directory / "root"
    shutil.copytree(image.layers[0], root, symlinks=True)
    return root


class Ran:
    """What a run left: its exit status and its output."""

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr

    def __repr__(self) -> str:
        return f"<{self.status}, {self.stdout!r}, {self.stderr!r}>"


def run_config(runtime: str, directory: Path, config: bytes, id: str) -> Ran:
    """`RUNTIME run` of an encoded config.json, to its end."""
    bundle = directory / f"bundle-{uuid.uuid4().hex[:8]}"
    bundle.mkdir()
    (bundle / "config.json").write_bytes(config)
    before = _lighterman_cgroups()
    try:
        done = subprocess.run(
            [runtime, "--root", str(directory / "state"), "run", "--bundle", str(bundle), id],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )
    finally:
        for path in _lighterman_cgroups() - before:
            # Others may have made containers there meanwhile.
            with contextlib.suppress(OSError):
                os.rmdir(path)
    return Ran(done.returncode, done.stdout, done.stderr)


def run_script(runtime: str, directory: Path, root: Path, script: str, **wanted: Any) -> Ran:
    """Run `script` by the image's shell in a container of default posture, changed by `wanted`."""
    id = f"test-{uuid.uuid4().hex}"
    files = EtcFiles(*(str(directory / name) for name in ("hosts", "hostname", "resolv.conf")))
    for path in (files.hosts, files.hostname, files.resolv_conf):
        Path(path).write_text(f"made for {os.path.basename(path)}\n")
    asked = ContainerSpec(**{"rootfs": str(root), "argv": ("sh", "-c", script), **wanted})
    spec = build_spec(
        asked,
        ImageConfig(),
        rootfs=PlainRoot(path=str(root)),
        root_lookup=str(root),
        id=id,
        files=files,
        host=HostFacts.detect(),
    )
    return run_config(runtime, directory, encode_config(spec), id)


def _lighterman_cgroups() -> set[Path]:
    return {path for path in Path("/sys/fs/cgroup").glob("*/lighterman") if path.is_dir()} | {
        path for path in (Path("/sys/fs/cgroup/lighterman"),) if path.is_dir()
    }
