"""The tests on each host: a first run, the rest of one that was cut short, what failed there once more, and what is
wrong with them as a whole.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree.ElementTree import ParseError

from vm import here, image, machine, results
from vm.bounds import AROUND_S, Bounds
from vm.errors import Failed
from vm.hosts import HERE, MARK, NOT_THERE, SUITES, Host

__all__ = [
    "BUILD",
    "RESULTS",
    "ROOT",
    "again",
    "everything",
    "finish",
    "nothing_ran",
    "pack",
    "ran_nowhere",
    "test",
    "unpack",
]

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "vm"
RESULTS = BUILD / "results"
NOT_INTO = {"build", "dist"}  # and what begins with a dot
# What Python and pytest have compiled here goes with it: the image has the same Python, and compiling there takes
# longer than many a test. Each names its source's time and size, so an old one does no harm.
COMPILED = f".{sys.implementation.cache_tag}"
TEST_TIMEOUT_S = 900  # one test; emulation is some 20 times slower than the processor
CUT_SHORT = {here.CUT_SHORT, 137}  # the latter of timeout(1), when it had to kill
ALL = "all"  # how the words begin that say how far a whole run came
NO_TESTS = 5  # pytest's
LAST_LINES = 8
# What `_run_here` and `_run_there` end with when they could not do what they are for.
BROKEN = (Failed, subprocess.SubprocessError, OSError, ValueError, tarfile.TarError)


def everything() -> list[str]:
    """The files with tests marked `MARK`, as pytest finds them here, and `SUITES`.

    Raises: Failed if it can't read them all.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-m", MARK, "tests"]
    found = subprocess.run(command, check=False, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode:
        raise Failed(f"the tests can't be collected:\n{found.stdout}{found.stderr}")
    # Lines `FILE: COUNT`.
    files = [
        name for name, _, count in (line.rpartition(": ") for line in found.stdout.splitlines()) if count.isdigit()
    ]
    # What depends most on the host goes first, for a run that is cut short.
    files.sort(key=lambda file: not file.startswith("tests/real/"))
    return [*(file for file in files if not _in(file, SUITES)), *SUITES]


def _in(file: str, paths: Iterable[str]) -> bool:
    return any(file == path or file.startswith(f"{path}/") for path in paths)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test(hosts: list[Host], selection: list[str], bounds: Bounds, *, whole: bool) -> list[str]:
    """Run `selection`, pytest's arguments, on each host, and give back what went wrong. `whole`: it is all there is."""
    machines = [host for host in hosts if host is not HERE]
    for host in hosts:
        shutil.rmtree(RESULTS / host.name, ignore_errors=True)
        (RESULTS / host.name).mkdir(parents=True)
    made = image.ready(BUILD) if machines else None

    def one(host: Host, label: str) -> list[str]:
        folder = RESULTS / host.name
        problem = _one(host, made, selection, folder, bounds, label, whole=whole)
        if problem:
            (folder / "problem").write_text(problem)
        return [f"{host.name}: {problem}"] if problem else []

    return _on_each(hosts, one)


def _on_each(hosts: list[Host], one: Callable[[Host, str], list[str]]) -> list[str]:
    """What `one` finds wrong on each host; its second argument is what its lines begin with."""
    problems = [problem for host in hosts if host is HERE for problem in one(host, "")]
    machines = [host for host in hosts if host is not HERE]
    # Machines side by side: each has one processor's worth of work, since the tests run one after the other.
    together = len(machines) > 1 and (os.cpu_count() or 1) > 1
    with ThreadPoolExecutor(os.cpu_count() if together else 1) as pool:
        try:
            for found in pool.map(lambda host: one(host, f"{host.name}: " if together else ""), machines):
                problems += found
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            machine.end_all()
            raise
    return problems


def _one(
    host: Host,
    made: image.Image | None,
    selection: list[str],
    folder: Path,
    bounds: Bounds,
    label: str,
    *,
    whole: bool,
) -> str:
    """What went wrong, or nothing."""
    part = "" if whole else " ".join(selection)
    try:
        bound_s = bounds.next_s()
        print(f"\n== {host.name}: {host.title}", flush=True)
        started = time.monotonic()
        # Until it has come to its end, it is a part: it may be interrupted.
        (folder / "part").write_text(f"{part or ALL}, interrupted")
        (folder / "of").write_text(f"{time.strftime('%Y-%m-%d')} of {_commit()}")
        code = _run(host, made, selection, folder, bound_s, label, whole=whole)
        (folder / "part").write_text(part)
    except BROKEN as error:
        return str(error)
    print(f"== {host.name}: {time.monotonic() - started:.0f} s", flush=True)
    if code in CUT_SHORT:
        (folder / "part").write_text(f"{part or ALL}, as far as it came in {bound_s:.0f} s")
        return f"cut short: not all was done in {bound_s:.0f} s (--timeout-s, --whole-timeout-s): see {folder}"
    return _ended_with(code, folder) if code else ""


def _run(
    host: Host,
    made: image.Image | None,
    selection: list[str],
    folder: Path,
    bound_s: float,
    label: str = "",
    *,
    whole: bool = False,
) -> int:
    """Pytest's exit code. Raises: `BROKEN`."""
    if made is None or host is HERE:
        _run_here(selection, folder, bound_s)
    else:
        _run_there(host, made, selection, folder, bound_s, label, whole=whole)
    return int((folder / "exit").read_text())


def _ended_with(code: int, folder: Path) -> str:
    """The words for an exit code that is not 0, and for what the run has left behind."""
    left = results.left_behind(folder / "console")
    return "\n  ".join([f"pytest ended with {code}{', and left behind' if left else ''}: see {folder}", *left])


def finish(hosts: list[Host], bounds: Bounds) -> list[str]:
    """Run what the last whole run of each host did not come to, and take both for one; what went wrong."""
    begun = [host for host in hosts if _is_cut_short(RESULTS / host.name)]
    if not begun:
        return [f"no whole run was cut short, and could be gone on with, on {', '.join(host.name for host in hosts)}"]
    made = image.ready(BUILD) if any(host is not HERE for host in begun) else None
    asked = everything()

    def one(host: Host, label: str) -> list[str]:
        folder = RESULTS / host.name
        rest = folder / "rest"
        shutil.rmtree(rest, ignore_errors=True)
        rest.mkdir()
        print(f"\n== {host.name}: the rest", flush=True)
        try:
            bound_s = bounds.next_s()
            done = [f"--deselect={case.node_id}" for case in results.read_junit(folder / "junit.xml")]
            code = _run(host, made, [*asked, *done], rest, bound_s, label, whole=True)
            results.join(folder, rest)
        except (*BROKEN, ParseError) as error:
            return [f"{host.name}: the rest: {error}"]
        before = (folder / "of").read_text()
        (folder / "of").write_text(f"{before}, the rest {time.strftime('%Y-%m-%d')} of {_commit()}")
        if code in CUT_SHORT:
            return [f"{host.name}: cut short once more, after {bound_s:.0f} s: see {rest}"]
        (folder / "part").write_text("")
        (folder / "problem").unlink(missing_ok=True)
        cases = results.read_junit(folder / "junit.xml")
        is_good = code in (0, NO_TESTS) and all(case.outcome != "failed" for case in cases)
        code = 0 if is_good and not results.left_behind(folder / "console") else max(code, 1)
        (folder / "exit").write_text(str(code))
        return [f"{host.name}: {_ended_with(code, folder)}"] if code else []

    return _on_each(begun, one)


def _is_cut_short(folder: Path) -> bool:
    try:
        code, part = int((folder / "exit").read_text()), (folder / "part").read_text()
    except (OSError, ValueError):
        return False
    return code in CUT_SHORT and part.startswith(ALL) and (folder / "junit.xml").exists()


def again(hosts: Iterable[Host], bounds: Bounds) -> list[str]:
    """Once more what failed on each of these hosts; what still goes wrong, and what could not be tried."""
    problems: list[str] = []
    made: image.Image | None = None
    for host in hosts:
        folder = RESULTS / host.name
        try:
            code = int((folder / "exit").read_text())
            cases = results.read_junit(folder / "junit.xml")
        except (OSError, ValueError, ParseError) as error:
            why = _kept(folder) or f"there is no run whose failures could be tried again: {error}"
            problems.append(f"{host.name}: {why}")
            continue
        failed = sorted(case.node_id for case in cases if case.outcome == "failed")
        if code not in (0, 1):
            problems.append(f"{host.name}: {_kept(folder) or _ended_with(code, folder)}")
        elif failed:
            if left := results.left_behind(folder / "console"):
                # No second try makes up for that.
                problems.append("\n  ".join([f"{host.name}: left behind: see {folder}", *left]))
            print(f"\n== {host.name}: {len(failed)} once more", flush=True)
            second = folder / "again"
            shutil.rmtree(second, ignore_errors=True)
            second.mkdir()
            try:
                bound_s = bounds.next_s()
                made = made or (image.ready(BUILD) if host is not HERE else None)
                code = _run(host, made, failed, second, bound_s)
                passed = {case.node_id for case in results.read_junit(second / "junit.xml") if case.outcome == "passed"}
            except (*BROKEN, ParseError) as error:
                problems.append(f"{host.name}: once more: {error}")
                continue
            if code:
                problems.append(f"{host.name}: once more, {_ended_with(code, second)}")
            elif not_passed := sorted(set(failed) - passed):
                problems.append(f"{host.name}: failed, and did not run once more: {', '.join(not_passed)}")
        elif code:
            # No test to try again, so nothing can make up for it.
            problems.append(f"{host.name}: no test failed, but {_ended_with(code, folder)}")
    return problems


def _kept(folder: Path) -> str:
    try:
        return (folder / "problem").read_text()
    except FileNotFoundError:
        return ""


def ran_nowhere(hosts: Iterable[Host], required: Iterable[str] = ()) -> list[str]:
    """The tests that none of `hosts` ran, without those that are explained, and those of `required` that none passed.

    Args:
        required: pytest's node ids; without parameters they are about the test with any.
    """
    runs = _brought(hosts)
    problems = results.told_nowhere(runs)
    passed = {case.node_id for cases in runs.values() for case in cases if case.outcome == "passed"}
    passed |= {node_id.partition("[")[0] for node_id in passed}
    return [*problems, *(f"passed nowhere: {node_id}" for node_id in required if node_id not in passed)]


def nothing_ran(hosts: list[Host]) -> list[str]:
    """A problem if every test was skipped on each of `hosts`."""
    runs = _brought(hosts)
    if any(case.outcome != "skipped" for cases in runs.values() for case in cases):
        return []
    return [f"no test ran on {', '.join(host.name for host in hosts)}: all were skipped"]


def _brought(hosts: Iterable[Host]) -> dict[Host, list[results.Case]]:
    runs: dict[Host, list[results.Case]] = {}
    for host in hosts:
        try:
            runs[host] = results.read_junit(RESULTS / host.name / "junit.xml")
        except (OSError, ParseError):
            continue  # a problem of its own, which its run has told
    return runs


# ---- one run ---------------------------------------------------------------------------------------------------------


def _run_here(selection: list[str], folder: Path, bound_s: float) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    facts = subprocess.run(
        [ROOT / "vm/guest/facts.sh"], check=True, stdout=subprocess.PIPE, env=environment, timeout=60
    )
    (folder / "facts").write_bytes(facts.stdout)
    pytest = [sys.executable, "-u", "-m", "pytest", f"--junitxml={folder / 'junit.xml'}", "--color=no", *selection]
    here.run(["tools/cgroup-setup.sh", *pytest], folder, bound_s)


def _run_there(
    host: Host, made: image.Image, selection: list[str], folder: Path, bound_s: float, label: str, *, whole: bool
) -> None:
    given, returned = BUILD / f"given-{host.name}.tar", BUILD / f"results-{host.name}.tar"
    try:
        # pytest ignores only what it finds in a directory, not what it is told by name.
        ignored = [f"--ignore={path}" for path in NOT_THERE]
        named = [word for word in selection if not _in(word, NOT_THERE)] if whole else selection
        arguments = [f"--timeout={TEST_TIMEOUT_S}", "--color=no", "-p", "no:cacheprovider", *ignored, *named]
        pack(given, arguments, bound_s - AROUND_S)
        machine.boot(made, host.kernel_arguments or "", given, returned, folder / "console", bound_s, label)
        unpack(returned, folder)
    finally:
        given.unlink(missing_ok=True)
        returned.unlink(missing_ok=True)


def unpack(returned: Path, folder: Path) -> None:
    """What a machine brought back. Raises: Failed if it has not come to its end; tarfile.TarError, OSError."""
    with tarfile.open(returned) as archive:
        for member in archive:
            # Flat and by name: what comes out of the machine chooses no path here. A link brings nothing.
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                (folder / Path(member.name).name).write_bytes(content.read())
    if not (folder / "exit").exists():
        console = folder / "console"
        lines = console.read_text(errors="replace").splitlines() if console.exists() else []
        shown = [line for line in lines if line.strip()]
        # What comes after it is registers.
        panic = [line for line in shown[:-LAST_LINES] if "Kernel panic" in line]
        last = [*panic, *shown[-LAST_LINES:]]
        raise Failed("\n  ".join(["the machine ended without results; the last it showed:", *last]))


def pack(given: Path, arguments: list[str], bound_s: float) -> None:
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


def _commit() -> str:
    """The checkout's, and whether it is what was committed; the table itself does not count."""
    asked = []
    for question in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--", ".", ":!docs/hosts.md"]):
        try:
            asked.append(
                subprocess.run(["git", *question], check=True, cwd=ROOT, capture_output=True, text=True).stdout
            )
        except (OSError, subprocess.CalledProcessError):
            return "an unknown commit"
    return asked[0].strip() + (" with changes" if asked[1].strip() else "")
