"""One virtual machine under QEMU: three disks (root, what goes in, what comes out) and a serial console."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from vm.errors import Failed
from vm.image import Image

__all__ = ["boot", "end_all", "interact"]

CPUS = 2
MEMORY = "3G"
RESULTS_BYTES = 256 << 20  # sparse
KVM_TRY_S = 10.0
SAID_LINES = 20
DISK_ERROR = "aio failed"  # QEMU's word for a read or write of a disk's file that failed, with the kernel's reason
# Emulated, a test takes some 15 times as long as on the processor. What was found to cost most of what can be had back:
# a clock that is read by leaving the machine, waiting for RCU, and AVX, of which the emulator has no counterpart.
FAST = "tsc=reliable clocksource=tsc rcupdate.rcu_expedited=1 mitigations=off"
EMULATED_CPU = "Nehalem"  # x86-64-v2; an engine's start, run and end take two thirds of what they take with `max`

_running: set[subprocess.Popen[bytes]] = set()
_over = threading.Event()


def boot(
    image: Image, arguments: str, given: Path, results: Path, console: Path, timeout_s: float, label: str = ""
) -> None:
    """Start a machine, show its console and keep it in `console`, and return when it has switched itself off.

    Args:
        label: before each line that is shown, where several run at the same time.
        arguments: for the kernel. given: a tar archive, the machine's second disk. results: made here, its third one;
        it writes a tar archive to it. timeout_s: it is ended then.

    Raises: Failed if it did not end in time, or QEMU could not run it.
    """
    with results.open("wb") as file:
        file.truncate(RESULTS_BYTES)
    # stdin is no terminal of QEMU's; a console that nobody reads would stop the machine, so it goes through here.
    process = subprocess.Popen(
        [*_qemu(image, arguments, given, results), "-serial", "stdio"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _running.add(process)
    if _over.is_set():
        process.kill()
    timed_out = threading.Event()

    def end() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(timeout_s, end)
    timer.start()
    assert process.stdout is not None
    assert process.stderr is not None
    said = _Said(process, process.stderr, label)
    said.start()
    try:
        with console.open("wb") as file:
            _copy(process.stdout, file, label)
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        said.join()
        process.stdout.close()
        process.stderr.close()
        _running.discard(process)
    if said.disk_error:
        raise Failed(
            f"the machine was ended, for its disk could not be written to: {said.disk_error}: what it writes is in "
            f"{os.environ.get('TMPDIR', '/var/tmp')} (TMPDIR) and {results.parent}"
        )
    if timed_out.is_set():
        raise Failed(f"the machine was not done within {timeout_s:.0f} s and was ended: see {console}")
    if code != 0:
        raise Failed(f"QEMU ended with {code}: {said.last or 'it said nothing'}: see {console}")


def end_all() -> None:
    """End every machine that `boot` has running, in whatever thread, and that it is about to start."""
    _over.set()
    for process in tuple(_running):
        process.kill()


def interact(image: Image, arguments: str, given: Path, results: Path) -> None:
    """As `boot`, with this terminal as its console and no bound; Ctrl-A X ends it by force."""
    with results.open("wb") as file:
        file.truncate(RESULTS_BYTES)
    command = [*_qemu(image, f"{arguments} vm.shell", given, results), "-serial", "mon:stdio"]
    subprocess.run(command, check=False)


class _Said(threading.Thread):
    """Shows what QEMU itself says, each line once, and ends it when its disks can't be written to.

    The machine would go on with errors instead of results, and QEMU say so thousands of times.

    Attributes:
        last: its last line. disk_error: why a disk could not be used; both are empty if there is none.
    """

    def __init__(self, process: subprocess.Popen[bytes], source: IO[bytes], label: str) -> None:
        super().__init__(name="what QEMU says", daemon=True)
        self.last = self.disk_error = ""
        self._process = process
        self._source = source
        self._label = label

    def run(self) -> None:
        shown: set[str] = set()
        while line := self._source.readline(4096):
            self.last = line.decode(errors="replace").strip()
            if self.last not in shown and len(shown) < SAID_LINES:
                shown.add(self.last)
                sys.stdout.write(f"{self._label}{self.last}\n")
                sys.stdout.flush()
            if DISK_ERROR in self.last and not self.disk_error:
                self.disk_error = self.last
                self._process.kill()


def _copy(source: IO[bytes], file: IO[bytes], label: str) -> None:
    """By pieces as they come: a row of dots is progress. With a label by lines."""
    while piece := source.readline(65536) if label else source.read1(65536):  # type: ignore[attr-defined]
        file.write(piece)
        file.flush()
        sys.stdout.write(label + piece.decode(errors="replace").replace("\r", ""))
        sys.stdout.flush()


def _qemu(image: Image, arguments: str, given: Path, results: Path) -> list[str]:
    command = _without_disks(image)
    command += ["-append", f"console=ttyS0 loglevel=1 panic=-1 root=/dev/nvme0n1 rw {FAST} {arguments}"]
    # NVMe because Debian's cloud kernel has it built in; what the machine writes to its root goes to a file without a
    # name that QEMU makes.
    command += ["-device", "nvme,id=nvme,serial=vm"]
    disks = (f"{image.root},snapshot=on", f"{given},readonly=on", str(results))
    for number, disk in enumerate(disks, 1):
        command += ["-drive", f"if=none,id=disk{number},format=raw,file={disk}"]
        command += ["-device", f"nvme-ns,drive=disk{number},bus=nvme,nsid={number}"]
    return command


def _without_disks(image: Image, accelerator: str | None = None) -> list[str]:
    # Whatever ends this process ends the machine.
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    accelerator = accelerator or _accelerator(image)
    command += ["-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else EMULATED_CPU]
    command += ["-smp", str(CPUS), "-m", MEMORY]
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"]
    return [*command, "-kernel", str(image.kernel)]


@functools.cache
def _accelerator(image: Image) -> str:
    """KVM if a kernel gets as far as its panic over the missing root there: a /dev/kvm may be there and not work."""
    if platform.machine() != "x86_64":
        raise Failed(f"the image is for x86_64, this is {platform.machine()}")
    if shutil.which("qemu-system-x86_64") is None:
        raise Failed("qemu-system-x86_64 is not installed: run tools/install-vm.sh")
    tcg = "tcg,thread=multi"
    if not Path("/dev/kvm").exists():
        return tcg
    command = [*_without_disks(image, "kvm"), "-append", "console=ttyS0 panic=-1", "-serial", "stdio"]
    try:
        tried = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=KVM_TRY_S)
    except subprocess.TimeoutExpired:
        return tcg
    return "kvm" if b"Kernel panic" in tried.stdout else tcg
