"""What an image is to the engine: layers, and the defaults for the process."""

from __future__ import annotations

import msgspec

__all__ = ["Image", "ImageConfig"]


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The defaults of an image, as the OCI image configuration has them.

    Attributes:
        entrypoint: stands before every command. cmd: the arguments where the user gives none.
        user: as in `ContainerSpec.user`. stop_signal: a number; None means SIGTERM.
    """

    env: dict[str, str] = {}
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    stop_signal: int | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved image.

    Attributes:
        id: `sha256:` and 64 digits; for a plain directory its path.
        layers: absolute paths of the layers' directories, the topmost first.
    """

    name: str
    id: str
    layers: tuple[str, ...]
    config: ImageConfig = ImageConfig()
