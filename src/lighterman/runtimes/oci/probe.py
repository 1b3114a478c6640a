"""Which OCI runtimes are on this host, and which of them can run a container here. Blocking; call it in a thread."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal as signals
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

import msgspec

from lighterman.errors import NotSupported, RuntimeUnavailable
from lighterman.runtimes.oci.bundle import Bundle, read_last_words
from lighterman.runtimes.oci.cgroups import Cgroup, cgroup_host
from lighterman.runtimes.oci.checkpointing import criu_programs, why_no_checkpoints
from lighterman.trees import remove_tree

__all__ = ["KNOWN", "Probed", "Verdicts", "pick", "probe_all"]

KNOWN = ("crun", "youki", "runc")  # the fastest first: 3x between the first and the last
_CALL_S = 30
_PREFIX = "lighterman-probe-"
_ABANDONED_S = 60  # so old is no directory that its maker is about to lock
_BOUND = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/nix", "/gnu")


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What one runtime said.

    Attributes:
        refusal: None when it ran a container here, else its last words.
        no_checkpoints: why its containers can't be checkpointed here; None where they can.
        is_passing: something did not answer in time, or not at all: that holds for this moment only.
    """

    name: str
    path: str
    version: str
    refusal: str | None = None
    no_checkpoints: str | None = None
    is_passing: bool = False


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of earlier probes: valid for the same binaries, the same boot and the same cgroup mounts."""

    key: str
    probed: tuple[Probed, ...]


# Made here: msgspec crashes where two threads decode a type for the first time at once.
_RAN = b"lighterman"  # what the container says
_UNKNOWN = "unknown"  # the version of one that could not be asked
_VERDICTS = msgspec.json.Decoder(Verdicts)


def probe_all(cache_file: str | None = None, *, search: str | None = None) -> tuple[Probed, ...]:
    """Try every known runtime that is installed, in the order of preference.

    Args: cache_file: where verdicts are kept; a probe costs as much as a container. search: instead of PATH.
    """
    found = [(name, path) for name in KNOWN if (path := shutil.which(name, path=search))]
    key = _key(found)
    if cache_file is not None and (kept := _read(cache_file)) is not None and kept.key == key:
        return kept.probed
    _sweep()
    probed = tuple(_probe(name, path) for name, path in found)
    if cache_file is not None and probed and not any(one.is_passing for one in probed):
        _write(cache_file, Verdicts(key=key, probed=probed))
    return probed


def pick(probed: Sequence[Probed], wanted: str | None = None) -> tuple[Probed, str]:
    """The first that works, or the wanted one; and why it is this one.

    Raises: RuntimeUnavailable with each one's reason; NotSupported if the wanted one is not known at all.
    """
    if wanted is not None and wanted not in KNOWN:
        raise NotSupported(f"runtime {wanted!r} is not known: use one of {', '.join(KNOWN)}")
    if wanted is not None:
        probed = [one for one in probed if one.name == wanted]
    refused = [f"{one.name}: {one.refusal}" for one in probed if one.refusal is not None]
    for one in probed:
        if one.refusal is None:
            if wanted is not None:
                return one, "asked for"
            return one, "; ".join(["the first that works here", *(f"refused: {text}" for text in refused)])
    which = wanted or " or ".join(KNOWN)
    reason = "; ".join(refused) if refused else f"{which} is not installed (apt-get install {wanted or 'crun'})"
    raise RuntimeUnavailable(
        f"no runtime can run a container on this host: {reason}",
        runtime=wanted or "any",
        operation="probe",
        last_words="; ".join(refused),
    )


def _probe(name: str, path: str) -> Probed:
    try:
        said = _call(path, "--version")
        version = said.stdout.decode(errors="replace").partition("\n")[0].removeprefix(f"{name} version ").strip()
        refusal = _try_container(path)
    except (OSError, subprocess.TimeoutExpired) as failed:
        return Probed(name=name, path=path, version=_UNKNOWN, refusal=str(failed), is_passing=True)
    try:
        why_not, is_passing = why_no_checkpoints(name), False
    except (OSError, subprocess.TimeoutExpired) as failed:
        why_not, is_passing = f"`criu check` failed: {failed}", True
    return Probed(name=name, path=path, version=version, refusal=refusal, no_checkpoints=why_not, is_passing=is_passing)


def _try_container(path: str) -> str | None:
    """Run `echo` of the host in a container with a read-only view of the host's programs; None when it went well."""
    program = shutil.which("echo") or "/bin/echo"
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory, _locked(directory):
        os.mkdir(f"{directory}/rootfs")
        id = os.path.basename(directory)
        with open(f"{directory}/config.json", "wb") as file:
            file.write(msgspec.json.encode(_document(program, id)))
        log = f"{directory}/log.json"
        base = [path, "--root", f"{directory}/state", "--log", log, "--log-format", "json"]
        try:
            ran = _call(*base, "run", "--bundle", directory, id, state=directory)
        except subprocess.TimeoutExpired:
            _call(*base, "delete", "--force", id)
            raise
        # Not by its exit status: of that a host program which ignores SIGCHLD learns nothing.
        if ran.stdout.strip() == _RAN:
            return None
        _call(*base, "delete", "--force", id)
        # A runtime that gives up half-way leaves some of the cgroups that it has made.
        _cgroup(id).remove()
        said = read_last_words(log) or " ".join(ran.stderr.decode(errors="replace").split())
        return said[-500:] or f"exit status {ran.returncode}"


def _cgroup(id: str) -> Cgroup:
    return Cgroup(f"/lighterman/{id}", cgroup_host())


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """For as long as this process uses it. Raises: OSError, BlockingIOError if another one does."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _sweep() -> None:
    """Take away what probes have left that were killed: container, cgroup, directory."""
    try:
        entries = list(os.scandir(tempfile.gettempdir()))
    except OSError:
        return  # a probe that finds no room says so, as its runtime's refusal
    for entry in entries:
        if not entry.name.startswith(_PREFIX):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if not is_ours or time.time() - status.st_mtime < _ABANDONED_S:
                continue
            with _locked(entry.path):
                cgroup = _cgroup(entry.name)
                if not cgroup.remove() and cgroup.kill():
                    cgroup.remove()
                Bundle(entry.path).remove()  # a runtime's own binary may be mounted there
                remove_tree(entry.path)
        except OSError:
            continue  # it is in use, or went away; the next probe looks again


def _call(*argv: str, state: str | None = None) -> subprocess.CompletedProcess[bytes]:
    """Args: state: where the runtime puts what it makes outside of its root. Raises: OSError, TimeoutExpired."""
    return subprocess.run(
        argv,
        env={**os.environ, **({"_LIBCONTAINER_STATEDIR": state, "XDG_RUNTIME_DIR": state} if state else {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_CALL_S,
        check=False,
        # What the host program ignores or blocks, its children do too: crun waits for ever without SIGCHLD.
        preexec_fn=_plain_signals,
    )


def _plain_signals() -> None:
    for number in signals.valid_signals() - {signals.SIGKILL, signals.SIGSTOP}:
        with contextlib.suppress(OSError):
            signals.signal(number, signals.SIG_DFL)
    signals.pthread_sigmask(signals.SIG_SETMASK, ())


def _document(program: str, id: str) -> dict[str, object]:
    real = [
        {"destination": path, "source": path, "type": "bind", "options": ["rbind", "ro", "nosuid"]}
        for path in _BOUND
        if os.path.isdir(path)
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": [program, _RAN.decode()],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/bin:/usr/bin"],
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            *real,
        ],
        "linux": {
            "cgroupsPath": f"/lighterman/{id}",
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            "resources": {"pids": {"limit": 64}},
        },
    }


def _key(found: Sequence[tuple[str, str]]) -> str:
    """Everything that a verdict depends on."""
    parts = [" ".join(Probed.__struct_fields__)]  # what an older version has not looked for has to be looked for
    for name, path in [*found, *criu_programs()]:
        status = os.stat(path)
        parts.append(f"{name} {path} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/mountinfo"):
        try:
            with open(path) as file:
                lines = file.read().splitlines()
        except OSError:
            parts.append(f"no {path}")
            continue
        if path.endswith("mountinfo"):
            # Without the two ids: in another mount namespace the same mounts have others.
            lines = [line.split(" ", 2)[2] for line in lines if " - cgroup" in line]
        parts += lines
    return "\n".join(parts)


def _read(path: str) -> Verdicts | None:
    try:
        with open(path, "rb") as file:
            return _VERDICTS.decode(file.read(1024 * 1024))
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None  # no cache, or one of another version: probe again


def _write(path: str, verdicts: Verdicts) -> None:
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(verdicts))
        os.replace(temporary, path)
    except OSError:
        return  # a cache that can't be written costs a probe each time, and nothing else
