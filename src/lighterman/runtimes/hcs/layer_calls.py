"""The layer functions of vmcompute.dll, each one blocking call. Layers are addressed by their full path.

Prototypes as hcsshim's `internal/wclayer` has them; counts are passed as `size_t`, which is right for 32 bits too.
"""

from __future__ import annotations

import ctypes
import ntpath
import uuid
from collections.abc import Sequence

from lighterman.runtimes.hcs.codes import is_failure
from lighterman.runtimes.hcs.failures import failure
from lighterman.runtimes.hcs.native import Answer, Function, Guid, Library
from lighterman.runtimes.hcs.text import wide

__all__ = ["FUNCTIONS", "DriverInfo", "LayerCalls", "LayerDescriptor"]

FILTER_DRIVER = 1

_ON_LAYER = Function(("pointer", "text"))
FUNCTIONS = {
    "NameToGuid": Function(("text", "pointer")),
    "CreateSandboxLayer": Function(("pointer", "text", "text", "pointer", "size")),
    "ExpandSandboxSize": Function(("pointer", "text", "u64")),
    "ActivateLayer": _ON_LAYER,
    "PrepareLayer": Function(("pointer", "text", "pointer", "size")),
    "GetLayerMountPath": Function(("pointer", "text", "pointer", "pointer")),
    "UnprepareLayer": _ON_LAYER,
    "DeactivateLayer": _ON_LAYER,
    "DestroyLayer": _ON_LAYER,
    "LayerExists": Function(("pointer", "text", "pointer")),
}


class DriverInfo(ctypes.Structure):
    """16 bytes: which driver, and a home directory that may be empty but not NULL."""

    _fields_ = (("Flavour", ctypes.c_int32), ("HomeDir", ctypes.c_void_p))


class LayerDescriptor(ctypes.Structure):
    """WC_LAYER_DESCRIPTOR: 32 bytes."""

    _fields_ = (("LayerId", Guid), ("Flags", ctypes.c_uint32), ("Path", ctypes.c_void_p))


class LayerCalls:
    """See `layers.LayerFunctions`. Each raises by the code."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._home = wide("")
        self._info = DriverInfo(FILTER_DRIVER, ctypes.addressof(self._home))
        self._driver = ctypes.addressof(self._info)

    def guid_of(self, path: str) -> str:
        """The layer's id: of the last part of its path. Lower-case, with dashes."""
        return str(self._guid(path))

    def _guid(self, path: str) -> uuid.UUID:
        guid = Guid()
        self._call("NameToGuid", path, ntpath.basename(path.rstrip("\\/")), ctypes.addressof(guid))
        return uuid.UUID(bytes_le=bytes(guid))

    def exists(self, path: str) -> bool:
        """Whether the driver knows such a layer."""
        found = ctypes.c_uint32()
        self._call("LayerExists", path, self._driver, path, ctypes.addressof(found))
        return bool(found.value)

    def create_sandbox(self, path: str, parents: Sequence[str]) -> None:
        """Make the folder with an empty writable disk."""
        descriptors, _kept = self._descriptors(parents)
        self._call("CreateSandboxLayer", path, self._driver, path, None, ctypes.addressof(descriptors), len(parents))

    def expand(self, path: str, size_bytes: int) -> None:
        """Let the writable disk grow to at least so much."""
        self._call("ExpandSandboxSize", path, self._driver, path, size_bytes)

    def activate(self, path: str) -> None:
        """Attach the disk."""
        self._call("ActivateLayer", path, self._driver, path)

    def prepare(self, path: str, parents: Sequence[str]) -> None:
        """Turn the union filter on; one at a time in a process."""
        descriptors, _kept = self._descriptors(parents)
        self._call("PrepareLayer", path, self._driver, path, ctypes.addressof(descriptors), len(parents))

    def mount_path(self, path: str) -> str:
        """The volume, without a trailing backslash."""
        units = ctypes.c_size_t(0)
        self._call("GetLayerMountPath", path, self._driver, path, ctypes.addressof(units), None)
        buffer = (ctypes.c_uint16 * max(units.value, 1))()
        self._call("GetLayerMountPath", path, self._driver, path, ctypes.addressof(units), ctypes.addressof(buffer))
        text = bytes(buffer).decode("utf-16-le").partition("\0")[0]
        return text.rstrip("\\")

    def unprepare(self, path: str) -> None:
        """Turn the filter off."""
        self._call("UnprepareLayer", path, self._driver, path)

    def deactivate(self, path: str) -> None:
        """Detach the disk."""
        self._call("DeactivateLayer", path, self._driver, path)

    def destroy(self, path: str) -> None:
        """Delete the folder and all in it; plain deletion fails on the access lists."""
        self._call("DestroyLayer", path, self._driver, path)

    def _descriptors(self, parents: Sequence[str]) -> tuple[ctypes.Array[LayerDescriptor], list[object]]:
        """The topmost first; what comes second has to live as long as the first is used."""
        texts = [wide(parent) for parent in parents]
        array = (LayerDescriptor * max(len(parents), 1))()
        for at, (parent, text) in enumerate(zip(parents, texts, strict=True)):
            array[at].LayerId = Guid.from_buffer_copy(self._guid(parent).bytes_le)
            array[at].Path = ctypes.addressof(text)
        return array, list(texts)

    def _call(self, function: str, path: str, *given: object) -> Answer:
        answer = self._library.call(function, *given)
        if is_failure(answer.value):
            raise failure(answer.value, function, None, about=f"layer {path}")
        return answer
