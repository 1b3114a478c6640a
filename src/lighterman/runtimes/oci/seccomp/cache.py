"""Compiled seccomp filters, made once for each profile and runtime build: libseccomp takes longer than a whole start.

The runtime compiles by itself, in a throwaway container; its filter is taken from its state directory and handed back
to it with later containers, by crun's annotation. So what is in force is, byte for byte, what it would have compiled.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shutil
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from lighterman import limits
from lighterman.errors import LightermanError, NotSupported, RuntimeFailed
from lighterman.images.builtin import find_static_busybox
from lighterman.images.cache_lock import cache_lock
from lighterman.runtimes.oci.document_host import HostFacts
from lighterman.runtimes.oci.document_process import DEFAULT_CAPABILITIES
from lighterman.runtimes.oci.seccomp.files import read_regular
from lighterman.runtimes.oci.seccomp.resolve import default_section
from lighterman.runtimes.oci.seccomp.section import is_precompilable, reduced
from lighterman.runtimes.oci.seccomp.throwaway import observe

__all__ = ["ANNOTATION", "FilterCache"]

ANNOTATION = "run.oci.seccomp_bpf_data"
"""crun's (crun(1)): base64 of an array of `struct sock_filter`, used instead of compiling the section."""

_FORMAT = 1  # of the files here; part of the key
_INSTRUCTION_BYTES = 8  # struct sock_filter
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS of the kernel
_KEPT = 64  # filters in memory; each has some 10 kB
_CHECKSUM_BYTES = 32

_LIBRARY_DIRECTORIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")

# The filter of the probe refuses these and nothing else that a container of default posture may do.
_PROBED = frozenset(("mkdir", "mkdirat"))
_PROBE_ERRNO = 95
_PROBE_SCRIPT = (
    "$B touch /f && ! $B mkdir /d 2>/dev/null && [ ! -e /d ] && $B grep -q '^Seccomp:[[:space:]]*2$' /proc/self/status"
    " && echo refused || echo allowed"
)

log = logging.getLogger(__name__)


class FilterCache:
    """The filters of one runtime build.

    `apply` is for the hot path: memory only. What it does not know yet, `prepare` finds out in a thread.

    Args:
        directory: `STATE/cache/seccomp`, made on first use. runtime_path, runtime_version: of the runtime; with size
            and time of the file they say which build it is.
        busybox: a static one to try filters with; the host's by default.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        runtime_path: str,
        runtime_version: str,
        *,
        busybox: str | None = None,
        timeout_s: float = limits.RUNTIME_CALL_S,
    ) -> None:
        self.directory = Path(directory)
        self._runtime = runtime_path
        self._version = runtime_version
        self._busybox = busybox
        self._timeout_s = timeout_s
        self._build = _build(runtime_path, runtime_version)
        self._preparing = threading.Lock()
        # Section -> (reduced section, filter in base64); None: not to be precompiled.
        self._known: OrderedDict[bytes, tuple[bytes, str] | None] = OrderedDict()
        self._verdict: bool | None = None

    # ---- the hot path --------------------------------------------------------------------------------------------

    def apply(self, document: bytes) -> bytes:
        """The document with the filter in place of the section; the same object where there is none to give."""
        if not self._known:
            return document
        members, linux, section = _take_apart(document)
        known = self._known.get(section) if section is not None else None
        if known is None:
            return document
        annotations = msgspec.json.decode(members.get("annotations", b"{}"), type=dict[str, str] | None) or {}
        linux["seccomp"] = msgspec.Raw(known[0])
        members["linux"] = msgspec.Raw(msgspec.json.encode(linux))
        members["annotations"] = msgspec.Raw(msgspec.json.encode({**annotations, ANNOTATION: known[1]}))
        return msgspec.json.encode(members)

    def is_worth_preparing(self, document: bytes) -> bool:
        """Whether `prepare` could make a difference for the next document like this one."""
        section = _take_apart(document)[2]
        return section is not None and section not in self._known and self._verdict is not False

    # ---- off the hot path ----------------------------------------------------------------------------------------

    def prepare(self, document: bytes) -> bool:
        """Make sure that `apply` knows about the section of `document`, by the cache or by compiling; it blocks.

        Returns: whether `apply` will have a filter. Never raises for a filter that can't be had: it is a matter of
        speed only, and the reason is logged.
        """
        section = _take_apart(document)[2]
        if section is None:
            return False
        with self._preparing:
            if section not in self._known:
                self._remember(section, self._obtain(section))
            return self._known.get(section) is not None

    def lookup(self, section: bytes) -> bytes | None:
        """The filter of an encoded section, in base64, from memory or disk; None where it has not been compiled."""
        known = self._known.get(section)
        if known is not None:
            return known[1].encode()
        filter = self._load(section)
        return base64.b64encode(filter) if filter is not None else None

    def compile(self, section: bytes) -> bytes:
        """Have the runtime compile an encoded section, keep the filter, and return it (not encoded); it blocks.

        Raises: RuntimeFailed where the runtime shows no filter; NotSupported without a static busybox, or where the
            runtime has been replaced meanwhile.
        """
        with self._exclusive():
            return self._load(section) or self._compile(section)

    def is_trusted(self) -> bool:
        """Whether this runtime build takes a filter: tried once, with a call that only the filter refuses; it blocks.

        Raises: as `compile`.
        """
        if self._verdict is None:
            path = self.directory / f"{self._key(b'verdict')}.trusted"
            if path.exists():
                self._verdict = True
            else:
                with self._exclusive():
                    self._verdict = self._probe()
                    if self._verdict:
                        self._write(path, b"")
        return self._verdict

    def _obtain(self, section: bytes) -> tuple[bytes, str] | None:
        if not is_precompilable(section):
            return None
        try:
            if not self.is_trusted():
                log.warning("%s does not take a compiled seccomp filter: it compiles one at each start", self._runtime)
                return None
            filter = self.compile(section)
        except (LightermanError, OSError) as failed:
            log.warning("no compiled seccomp filter for %s: %s", self._runtime, failed)
            self._verdict = bool(self._verdict)
            return None
        return reduced(section), base64.b64encode(filter).decode()

    def _remember(self, section: bytes, known: tuple[bytes, str] | None) -> None:
        self._known[section] = known
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def _compile(self, section: bytes) -> bytes:
        seen = observe(
            self._runtime,
            self._busybox or find_static_busybox(),
            "echo up",
            directory=self.directory,
            seccomp=section,
            timeout_s=self._timeout_s,
        )
        filter = seen.filter
        if filter is None or not _is_filter(filter):
            raise RuntimeFailed(
                f"{self._runtime} keeps no compiled seccomp filter in its state",
                runtime=os.path.basename(self._runtime),
                operation="seccomp",
            )
        self._write(self._path(section), hashlib.sha256(filter).digest() + filter)
        return filter

    def _probe(self) -> bool:
        section = _probe_section()
        filter = self._load(section) or self._compile(section)
        seen = observe(
            self._runtime,
            self._busybox or find_static_busybox(),
            _PROBE_SCRIPT,
            directory=self.directory,
            seccomp=reduced(section),
            annotations={ANNOTATION: base64.b64encode(filter).decode()},
            timeout_s=self._timeout_s,
        )
        return seen.line == "refused" and seen.filter == filter

    # ---- files ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Alone in the directory, without what a maker that was killed has left there.

        Raises: NotSupported if the runtime is not the build any more that it was at first.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with cache_lock(self.directory):
            for stale in (*self.directory.glob(".work-*"), *self.directory.glob(".new-*")):
                if stale.is_dir() and not stale.is_symlink():
                    shutil.rmtree(stale, ignore_errors=True)
                else:
                    stale.unlink()
            if _build(self._runtime, self._version) != self._build:
                raise NotSupported(f"{self._runtime} has been replaced since this engine started: restart the engine")
            yield

    def _key(self, section: bytes) -> str:
        return hashlib.sha256(b"%d\0%s\0%s" % (_FORMAT, self._build, section)).hexdigest()

    def _path(self, section: bytes) -> Path:
        return self.directory / f"{self._key(section)}.bpf"

    def _load(self, section: bytes) -> bytes | None:
        """From disk; None for what is missing, damaged, or could have been written by somebody else."""
        most = _CHECKSUM_BYTES + _INSTRUCTION_BYTES * _MAX_INSTRUCTIONS
        try:
            found = read_regular(self._path(section), most + 1, os.O_NOFOLLOW)
        except OSError:
            return None
        if found is None:
            return None
        content, status = found
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        checksum, filter = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        whole = _is_filter(filter) and hashlib.sha256(filter).digest() == checksum
        return filter if whole else None

    def _write(self, path: Path, content: bytes) -> None:
        work = path.with_name(f".new-{os.getpid()}-{path.name}")
        descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
        work.rename(path)


def _take_apart(document: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, msgspec.Raw], bytes | None]:
    """The members of the document, those of its `linux`, and the encoded seccomp section if it has one."""
    members = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
    linux = msgspec.json.decode(members.get("linux", b"{}"), type=dict[str, msgspec.Raw])
    section = linux.get("seccomp")
    return members, linux, bytes(section) if section is not None else None


def _is_filter(content: bytes) -> bool:
    return 0 < len(content) <= _INSTRUCTION_BYTES * _MAX_INSTRUCTIONS and len(content) % _INSTRUCTION_BYTES == 0


def _probe_section() -> bytes:
    section = msgspec.json.decode(default_section(DEFAULT_CAPABILITIES, HostFacts.detect().kernel))
    for rule in section["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in _PROBED]
    section["syscalls"].append({"names": sorted(_PROBED), "action": "SCMP_ACT_ERRNO", "errnoRet": _PROBE_ERRNO})
    return msgspec.json.encode(section)


def _build(runtime_path: str, runtime_version: str) -> bytes:
    """All that a filter depends on beside the section: the runtime, libseccomp, the kernel (which libseccomp asks).

    Raises: NotSupported if the runtime is not there.
    """
    try:
        parts = [_file_identity(os.path.realpath(runtime_path, strict=True))]
    except OSError as missing:
        raise NotSupported(f"runtime {runtime_path!r}: {missing.strerror}") from missing
    triplet = f"{os.uname().machine}-linux-gnu"
    for directory in _LIBRARY_DIRECTORIES:
        for place in (directory, f"{directory}/{triplet}"):
            try:
                parts.append(_file_identity(os.path.realpath(f"{place}/libseccomp.so.2", strict=True)))
            except OSError:
                continue  # not in this place
    return "\n".join([runtime_version, os.uname().release, os.uname().machine, *parts]).encode()


def _file_identity(path: str) -> str:
    status = os.stat(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"
