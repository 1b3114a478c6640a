"""`python -m vm test [--host NAME] [--smoke] [PYTEST ARGUMENTS]`, `... shell [--host NAME]`, `... again`, `... table`.

`table` writes docs/hosts.md of what the last runs of all hosts brought back; `again` tries once more what failed in
them, and says so there. A whole `test` does both.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree.ElementTree import ParseError

from vm import image, machine, results
from vm.hosts import HERE, HOSTS, MARK, NOT_THERE, SMOKE, SUITES, Host

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "vm"
RESULTS = BUILD / "results"
TABLE = ROOT / "docs" / "hosts.md"
NOT_INTO = {"build", "dist"}  # and what begins with a dot
# What Python and pytest have compiled here goes with it: the image has the same Python, and compiling there takes
# longer than many a test. Each names its source's time and size, so an old one does no harm.
COMPILED = f".{sys.implementation.cache_tag}"
TEST_TIMEOUT_S = 900  # one test; emulation is some 20 times slower than the processor
BOUND_S = 3 * 3600.0  # one host
SMOKE_BOUND_S = 1200.0
AROUND_S = 120.0  # of that for starting the machine, and for bringing back what was done when the rest is over
CUT_SHORT = 124  # timeout(1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vm", description=__doc__, allow_abbrev=False)
    parser.add_argument("verb", choices=("test", "again", "shell", "table"))
    parser.add_argument("--host", choices=[host.name for host in HOSTS], action="append", help="only this one")
    parser.add_argument("--smoke", action="store_true", help="the selection that every change has to pass; no table")
    parser.add_argument("--timeout-s", type=float, help="for each host")
    options, selection = parser.parse_known_args()
    if os.geteuid() != 0:
        print("vm: making the image and running containers need root", file=sys.stderr)
        return 1

    # As Ctrl-C: what was made on the way is taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machines = [host for host in HOSTS if host is not HERE]
    chosen = [host for host in HOSTS if host.name in options.host] if options.host else list(HOSTS)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if options.verb == "shell":
            return shell(chosen[0] if options.host else machines[-1])
        if options.verb == "table":
            problems = table()
        elif options.verb == "again":
            problems = again(chosen, options.timeout_s or BOUND_S) + table()
        elif options.smoke:
            there = [host for host in chosen if host is not HERE]
            problems = test(there, selection or list(SMOKE), options.timeout_s or SMOKE_BOUND_S, whole=False)
        else:
            whole = not selection
            bound_s = options.timeout_s or BOUND_S
            problems = test(chosen, selection or _files(), bound_s, whole=whole)
            if whole and problems:
                problems = again(chosen, bound_s)
            if not selection and not options.host:
                problems += table()
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0


def _files() -> list[str]:
    """The files with tests marked `MARK`, as pytest finds them here, and `SUITES`.

    Raises: machine.Failed if it can't read them all.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", MARK, "tests"]
    found = subprocess.run(command, check=False, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode:
        raise machine.Failed(f"the tests can't be collected:\n{found.stdout}{found.stderr}")
    # Lines `FILE: COUNT`.
    files = [
        name for name, _, count in (line.rpartition(": ") for line in found.stdout.splitlines()) if count.isdigit()
    ]
    # What depends most on the host goes first, for a run that is cut short.
    files.sort(key=lambda file: not file.startswith("tests/real/"))
    return [*(file for file in files if not _in(file, SUITES)), *SUITES]


def _in(file: str, paths: Iterable[str]) -> bool:
    return any(file == path or file.startswith(f"{path}/") for path in paths)


def shell(host: Host) -> int:
    """A prompt as root in a machine with this checkout in it."""
    made = image.ready(BUILD)
    given, returned = BUILD / "given.tar", BUILD / "results.tar"
    try:
        _pack(given, [], 0)
        machine.interact(made, host.kernel_arguments or "", given, returned)
    finally:
        given.unlink(missing_ok=True)
        returned.unlink(missing_ok=True)
    return 0


def test(hosts: list[Host], selection: list[str], bound_s: float, *, whole: bool) -> list[str]:
    """Run `selection`, pytest's arguments, on each host, and give back what went wrong. `whole`: it is all there is."""
    machines = [host for host in hosts if host is not HERE]
    made = image.ready(BUILD) if machines else None
    # Machines side by side: each has one processor's worth of work, since the tests run one after the other.
    together = len(machines) > 1 and (os.cpu_count() or 1) > 1

    def one(host: Host) -> list[str]:
        print(f"\n== {host.name}: {host.title}", flush=True)
        started = time.monotonic()
        folder = RESULTS / host.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "part").write_text("" if whole else " ".join(selection))
        try:
            if made is None or host is HERE:
                _run_here(selection, folder, bound_s)
            else:
                label = f"{host.name}: " if together else ""
                _run_there(host, made, selection, folder, bound_s, label, whole=whole)
            code = int((folder / "exit").read_text())
        except (machine.Failed, subprocess.TimeoutExpired, OSError, ValueError, tarfile.TarError) as error:
            return [f"{host.name}: {error}"]
        print(f"== {host.name}: {time.monotonic() - started:.0f} s", flush=True)
        if code == CUT_SHORT:
            part = (folder / "part").read_text()
            (folder / "part").write_text(f"{part or 'all'}, as far as it came in {bound_s:.0f} s")
        return [f"{host.name}: pytest ended with {code}: see {folder}"] if code else []

    problems = [problem for host in hosts if host is HERE for problem in one(host)]
    with ThreadPoolExecutor(os.cpu_count() if together else 1) as pool:
        try:
            for found in pool.map(one, machines):
                problems += found
        except BaseException:
            machine.end_all()
            raise
    return problems


def again(hosts: list[Host], bound_s: float) -> list[str]:
    """Once more what failed on each of these hosts; what still goes wrong, and what could not be tried."""
    problems: list[str] = []
    made = image.ready(BUILD) if hosts != [HERE] else None
    for host in hosts:
        folder = RESULTS / host.name
        try:
            code = int((folder / "exit").read_text())
            failed = [case.node_id for case in results.read_junit(folder / "junit.xml") if case.outcome == "failed"]
        except (OSError, ValueError, ParseError) as error:
            problems.append(f"{host.name}: there is no run whose failures could be tried again: {error}")
            continue
        if code not in (0, 1):
            problems.append(f"{host.name}: pytest ended with {code}: see {folder}")
        elif failed:
            print(f"\n== {host.name}: {len(failed)} once more", flush=True)
            second = folder / "again"
            second.mkdir(exist_ok=True)
            try:
                if made is None or host is HERE:
                    _run_here(failed, second, bound_s)
                else:
                    _run_there(host, made, failed, second, bound_s, "", whole=False)
                if code := int((second / "exit").read_text()):
                    problems.append(f"{host.name}: once more, pytest ended with {code}: see {second}")
            except (machine.Failed, subprocess.TimeoutExpired, OSError, ValueError, tarfile.TarError) as error:
                problems.append(f"{host.name}: {error}")
    return problems


def table() -> list[str]:
    """Write the table of what each host's last run brought back; what is wrong with that as a whole."""
    runs: dict[Host, list[results.Case]] = {}
    facts: dict[Host, dict[str, str]] = {}
    parts: dict[Host, str] = {}
    problems: list[str] = []
    for host in HOSTS:
        folder = RESULTS / host.name
        try:
            runs[host] = results.read_junit(folder / "junit.xml")
            if (folder / "again/junit.xml").exists():
                runs[host] = results.merged(runs[host], results.read_junit(folder / "again/junit.xml"))
            part = (folder / "part").read_text()
            if part:
                parts[host] = part
                problems.append(f"{host.name}: only a part was run there: {part}")
            facts[host] = dict(line.split("=", 1) for line in (folder / "facts").read_text().splitlines())
        except (OSError, ParseError) as error:
            runs.pop(host, None)
            problems.append(f"{host.name} is not in the table: {error}")
    for name, reasons in results.nowhere(runs).items():
        problems.append(f"ran nowhere: {name}: " + "; ".join(f"{host}: {why}" for host, why in reasons.items()))
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(results.table(runs, facts, parts))
    print(f"\nwritten: {TABLE.relative_to(ROOT)}")
    return problems


def _run_here(selection: list[str], folder: Path, bound_s: float) -> None:
    facts = subprocess.run([ROOT / "vm/guest/facts.sh"], check=True, stdout=subprocess.PIPE, env=_environment())
    (folder / "facts").write_bytes(facts.stdout)
    command = [
        "tools/cgroup-setup.sh",
        sys.executable,
        "-m",
        "pytest",
        f"--junitxml={folder / 'junit.xml'}",
        *selection,
    ]
    done = subprocess.run(command, check=False, cwd=ROOT, timeout=bound_s, stdin=subprocess.DEVNULL)
    (folder / "exit").write_text(str(done.returncode))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable}


def _run_there(
    host: Host, made: image.Image, selection: list[str], folder: Path, bound_s: float, label: str, *, whole: bool
) -> None:
    given, returned = BUILD / f"given-{host.name}.tar", BUILD / f"results-{host.name}.tar"
    try:
        # pytest ignores only what it finds in a directory, not what it is told by name.
        ignored = [f"--ignore={path}" for path in NOT_THERE]
        named = [word for word in selection if not _in(word, NOT_THERE)] if whole else selection
        arguments = [f"--timeout={TEST_TIMEOUT_S}", "--color=no", "-p", "no:cacheprovider", *ignored, *named]
        _pack(given, arguments, max(1.0, bound_s - AROUND_S))
        machine.boot(made, host.kernel_arguments or "", given, returned, folder / "console", bound_s, label)
        with tarfile.open(returned) as archive:
            for member in archive:
                # Flat and by name: what comes out of the machine chooses no path here.
                content = archive.extractfile(member)
                if content is not None:
                    (folder / Path(member.name).name).write_bytes(content.read())
    finally:
        given.unlink(missing_ok=True)
        returned.unlink(missing_ok=True)


def _pack(given: Path, arguments: list[str], bound_s: float) -> None:
    """What goes into the machine: `/checkout`; pytest's arguments in `/arguments`, one a line; seconds in `/bound`."""
    files = {"arguments": "".join(f"{argument}\n" for argument in arguments), "bound": f"{bound_s:.0f}"}
    with tarfile.open(given, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
        for path in _checkout(ROOT):
            archive.add(path, Path("checkout") / path.relative_to(ROOT), recursive=False)


def _checkout(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.name in NOT_INTO or path.name.startswith("."):
            continue
        if path.suffix == ".pyc" and COMPILED not in path.name:
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _checkout(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (machine.Failed, subprocess.CalledProcessError) as error:
        sys.exit(f"vm: {error}")
