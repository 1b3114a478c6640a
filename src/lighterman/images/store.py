"""From the name of an image, or a directory, to layers and defaults."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from lighterman.errors import InvalidSpec, NotFound
from lighterman.images.builtin import busybox_image
from lighterman.images.image import Image, ImageConfig

__all__ = ["ImageStore", "directory_image"]


class ImageStore:
    """The images of a user. This build knows one, the built-in `busybox`.

    Args: layers: the directory of unpacked layers, made on first use; shared by all state roots of a user.
    """

    def __init__(self, layers: str | os.PathLike[str]) -> None:
        self.layers = Path(layers)
        self._resolved: dict[str, Image] = {}
        self._making = threading.Lock()

    def resolve(self, name: str) -> Image:
        """The image of that name. It blocks, unless `cached` has it: not for the event loop.

        Raises: NotFound; NotSupported where the host lacks what the image is made from; StoreError.
        """
        if name not in ("busybox", "busybox:latest"):
            raise NotFound(
                f"no image {_shown(name)}: this build knows only the built-in `busybox`; "
                "run a directory with --rootfs DIR"
            )
        with self._making:
            image = self.cached(name)
            if image is None:
                image = self._resolved["busybox"] = busybox_image(self.layers)
            return image

    def cached(self, name: str) -> Image | None:
        """What `resolve` found before in this process, without looking at the disk."""
        return self._resolved.get("busybox") if name in ("busybox", "busybox:latest") else None


def directory_image(path: str, *, forbidden: tuple[str, ...] = ()) -> Image:
    """A plain directory as an image of one layer, without defaults. It blocks.

    Args: path: relative to the working directory, or absolute. forbidden: STATE and RUN, which it must not touch.
    Raises: InvalidSpec where it is no directory, or is equal to, inside or above one of `forbidden`.
    """
    if not path or "\0" in path:
        raise InvalidSpec(f"rootfs {_shown(path)}: must be the path of a directory")
    try:
        real = os.path.realpath(path, strict=True)
    except (OSError, ValueError) as missing:
        raise InvalidSpec(f"rootfs {_shown(path)}: no such directory") from missing
    if not os.path.isdir(real):
        raise InvalidSpec(f"rootfs {_shown(path)}: is not a directory")
    for own in map(os.path.realpath, forbidden):
        if os.path.commonpath((real, own)) in (real, own):
            raise InvalidSpec(f"rootfs {_shown(path)}: touches the engine's own {own}")
    return Image(name=path, id=real, layers=(real,), config=ImageConfig())


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:77]!r}..."
