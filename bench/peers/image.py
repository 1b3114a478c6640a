"""The engine's root file system as a tar archive, for the engines that import one."""

from __future__ import annotations

import os
import tarfile

from bench.workspace import Workspace

__all__ = ["image_tar"]


def image_tar(workspace: Workspace) -> str:
    """Path of the archive; made once."""
    path = f"{workspace.path}/image.tar"
    if not os.path.exists(path):
        with tarfile.open(path, "w") as archive:
            archive.add(workspace.image.layers[0], arcname=".")
    return path
