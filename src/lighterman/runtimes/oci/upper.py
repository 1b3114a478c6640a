"""The writable directories of an overlay. Blocking."""

from __future__ import annotations

import os
import shutil

from lighterman.disks import refusal
from lighterman.errors import StoreError
from lighterman.spec import Overlay

__all__ = ["make_upper"]


def make_upper(overlay: Overlay) -> None:
    """Make `upper` and `work` where they are missing; a new `upper` gets the topmost layer's mode and owner.

    The merged root shows the upper directory's own attributes: what a user without rights may do in `/` hangs on them.

    Raises: StoreError.
    """
    try:
        os.makedirs(overlay.work, mode=0o700, exist_ok=True)
        if overlay.volatile:
            # The kernel's mark that an earlier mount was never synced. It guards against the loss of power; all that
            # our earlier run wrote is there, since the host is still up.
            shutil.rmtree(f"{overlay.work}/work/incompat", ignore_errors=True)
        try:
            os.mkdir(overlay.upper)
        except FileExistsError:
            return
        like = os.stat(overlay.lowers[0])
        os.chown(overlay.upper, like.st_uid, like.st_gid)
        os.chmod(overlay.upper, like.st_mode & 0o7777)
    except OSError as failed:
        raise StoreError(refusal(overlay.upper, failed)) from failed
