"""The runs on the hosts: how they are bounded and ended, and what counts as a problem of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import eventually_sync

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
if sys.platform != "linux":
    pytest.skip("machines are made on Linux", allow_module_level=True)

from vm import __main__ as program  # noqa: E402
from vm import here, image, machine, results, runs  # noqa: E402
from vm.bounds import LEAST_S, Bounds  # noqa: E402
from vm.errors import Failed  # noqa: E402
from vm.hosts import HERE, HOSTS, SMOKE, Host, taken  # noqa: E402
from vm.locking import alone  # noqa: E402

MACHINES = [host for host in HOSTS if host is not HERE and not host.stands_in]
LEFT = "==== LEFT BEHIND BY THIS TEST RUN ====\nmounts: /run/x\n==== 1 passed in 1s ====\n"
Case = tuple[str, str]

needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")


def junit(folder: Path, *cases: Case) -> None:
    """A file with cases of (name, what is in its element)."""
    inside = "".join(
        f'<testcase classname="tests.real.test_run" name="{name}">{what}</testcase>' for name, what in cases
    )
    (folder / "junit.xml").write_text(f"<testsuite>{inside}</testsuite>")


PASSED, FAILED = "", '<failure message="assert 1"/>'
SKIPPED = '<skipped message="no runtime"/>'


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(image, "ready", lambda _: image.Image(Path("k"), Path("r")))
    return tmp_path / "results"


def ran(folder: Path, code: int, *cases: Case, console: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "exit").write_text(str(code))
    (folder / "console").write_text(console)
    junit(folder, *cases)


def bounds() -> Bounds:
    return Bounds(LEAST_S, 10 * LEAST_S)


# ---- what is a problem -----------------------------------------------------------------------------------------------


def test_left_behind_without_a_failed_test_stays_a_problem_and_is_shown(kept: Path) -> None:
    ran(kept / "here", 1, ("test_a", PASSED), console=LEFT)
    [problem] = runs.again([HERE], bounds())
    assert problem.startswith("here: no test failed, but pytest ended with 1, and left behind: ")
    assert problem.endswith("\n  mounts: /run/x")


def test_a_failed_test_is_tried_again_and_has_to_pass_there(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def second(outcome: str, code: int) -> None:
        def fake(selection: list[str], folder: Path, bound_s: float) -> None:
            tried.append(selection)
            ran(folder, code, ("test_b", outcome), console=LEFT if code else "")

        monkeypatch.setattr(runs, "_run_here", fake)

    ran(kept / "here", 1, ("test_a", PASSED), ("test_b", FAILED), ("test_b", FAILED))
    second(PASSED, 0)
    assert runs.again([HERE], bounds()) == []
    assert tried == [["tests/real/test_run.py::test_b"]]
    second(SKIPPED, 0)
    [problem] = runs.again([HERE], bounds())
    assert problem == "here: failed, and did not run once more: tests/real/test_run.py::test_b"
    second(FAILED, 1)
    [problem] = runs.again([HERE], bounds())
    assert problem.startswith("here: once more, pytest ended with 1, and left behind")


def test_left_behind_beside_a_failed_test_stays_a_problem_when_that_passes(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_run_here", lambda _, folder, __: ran(folder, 0, ("test_b", PASSED)))
    ran(kept / "here", 1, ("test_b", FAILED), console=LEFT)
    assert runs.again([HERE], bounds()) == [f"here: left behind: see {kept / 'here'}\n  mounts: /run/x"]


def test_what_kept_a_host_from_running_is_told_by_the_second_try_too(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise Failed("no such luck")

    monkeypatch.setattr(runs, "_run_here", broken)
    assert runs.test([HERE], ["x"], bounds(), whole=True) == ["here: no such luck"]
    assert runs.again([HERE], bounds()) == ["here: no such luck"]
    assert (kept / "here/part").read_text() == "all, interrupted"


@pytest.mark.parametrize("code", [124, 137])
def test_cut_short_is_said_and_is_a_part(kept: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(runs, "_run_here", lambda _, folder, __: ran(folder, code, ("test_a", PASSED)))
    [problem] = runs.test([HERE], ["x"], bounds(), whole=True)
    assert problem.startswith(f"here: cut short: not all was done in {LEAST_S:.0f} s")
    assert (kept / "here/part").read_text() == f"all, as far as it came in {LEAST_S:.0f} s"
    assert (kept / "here/of").read_text().startswith(time.strftime("%Y-"))


def cut(folder: Path, code: int, *cases: Case, console: str = "") -> None:
    ran(folder, code, *cases, console=console)
    (folder / "part").write_text("all, as far as it came in 240 s")
    (folder / "of").write_text("2026-01-01 of abc")


def going_on(monkeypatch: pytest.MonkeyPatch, code: int, *cases: Case, console: str = "") -> list[list[str]]:
    """What is asked for when a run is gone on with, and what that brings."""
    asked: list[list[str]] = []

    def fake(host: Host, _made: object, selection: list[str], folder: Path, *_: object, whole: bool) -> None:
        assert whole
        asked.append(selection)
        ran(folder, code, *cases, console=console)

    monkeypatch.setattr(runs, "_run_there", fake)
    monkeypatch.setattr(runs, "everything", lambda: ["tests/real"])
    monkeypatch.setattr(runs, "_commit", lambda: "def")
    return asked


def test_a_whole_run_that_was_cut_short_is_gone_on_with(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = MACHINES[0]
    folder = kept / host.name
    cut(folder, 124, ("test_a[crun]", PASSED), ("", ""), console="first\n")
    asked = going_on(monkeypatch, 124, ("test_b", PASSED), console="second\n")
    [problem] = runs.finish([HERE, host], bounds())
    assert problem.startswith(f"{host.name}: cut short once more, after 240 s")
    assert asked == [["tests/real", "--deselect=tests/real/test_run.py::test_a[crun]"]]
    asked = going_on(monkeypatch, 0, ("test_c", PASSED), console="third\n")
    assert runs.finish([HERE, host], bounds()) == []
    assert asked[0][1:] == [f"--deselect=tests/real/test_run.py::test_{name}" for name in ("a[crun]", "b")]
    assert [case.name[-1:] for case in results.read_junit(folder / "junit.xml")] == ["]", "b", "c"]
    assert (folder / "console").read_text() == "first\nsecond\nthird\n"
    assert (folder / "part").read_text() == ""
    today = time.strftime("%Y-%m-%d")
    assert (folder / "of").read_text() == f"2026-01-01 of abc, the rest {today} of def, the rest {today} of def"
    # It is whole now.
    [problem] = runs.finish([HERE, host], bounds())
    assert problem == f"no whole run was cut short, and could be gone on with, on here, {host.name}"


@pytest.mark.parametrize(
    ("first", "rest", "console", "code", "problems"),
    [
        (PASSED, None, "", 5, 0),
        (FAILED, PASSED, "", 0, 1),
        (PASSED, FAILED, "", 1, 1),
        (PASSED, PASSED, LEFT, 0, 1),
        (PASSED, PASSED, "", 2, 1),
    ],
)
def test_what_was_wrong_in_either_part_is_wrong_with_the_whole(
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    rest: str | None,
    console: str,
    code: int,
    problems: int,
) -> None:
    host = MACHINES[0]
    cut(kept / host.name, 124, ("test_a", first), console=console)
    going_on(monkeypatch, code, *([] if rest is None else [("test_b", rest)]))
    assert len(runs.finish([host], bounds())) == problems
    assert (int((kept / host.name / "exit").read_text()) == 0) is (problems == 0)


def test_a_part_that_was_chosen_is_not_gone_on_with(kept: Path) -> None:
    cut(kept / "here", 124, ("test_a", PASSED))
    (kept / "here" / "part").write_text("tests/oci, as far as it came in 240 s")
    assert len(runs.finish([HERE], bounds())) == 1


def there(monkeypatch: pytest.MonkeyPatch, what: Callable[[Host], list[Case]]) -> None:
    def fake(host: Host, _made: object, _selection: object, folder: Path, *_: object, whole: bool) -> None:
        ran(folder, 0, *what(host))

    monkeypatch.setattr(runs, "_run_there", fake)


def test_a_selection_that_is_skipped_on_each_machine_is_a_problem(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, lambda _: [("test_a", SKIPPED)])
    assert runs.test(MACHINES, ["x"], bounds(), whole=False) == []
    [problem] = runs.ran_nowhere(MACHINES)
    assert problem.startswith("ran nowhere: tests.real.test_run.test_a: v2-cgroupfs: no runtime; ")
    assert runs.nothing_ran(MACHINES) == ["no test ran on v2-cgroupfs, v2-systemd: all were skipped"]


def test_each_required_test_has_passed_on_some_machine(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def what(host: Host) -> list[Case]:
        first = host is MACHINES[0]
        return [("test_a[crun]", PASSED if first else SKIPPED), ("test_b", FAILED)]

    there(monkeypatch, what)
    runs.test(MACHINES, ["x"], bounds(), whole=False)
    module = "tests/real/test_run.py"
    required = [f"{module}::{name}" for name in ("test_a", "test_a[crun]", "test_a[runc]", "test_b", "test_c")]
    assert runs.ran_nowhere(MACHINES, required) == [f"passed nowhere: {node_id}" for node_id in required[2:]]
    assert runs.nothing_ran(MACHINES) == []


def test_a_smoke_run_in_which_all_is_skipped_fails(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there(monkeypatch, lambda _: [("test_a", SKIPPED)])
    hosts = list(taken())
    problems = program.test(hosts, [], bounds(), smoke=True, chosen=False)
    assert problems[0].startswith("ran nowhere: tests.real.test_run.test_a: ")
    assert problems[1:] == [f"passed nowhere: {node_id}" for node_id in SMOKE]
    assert program.test(MACHINES[:1], [], bounds(), smoke=True, chosen=True) == [
        "no test ran on v2-cgroupfs: all were skipped"
    ]
    there(monkeypatch, lambda _: [("test_a", SKIPPED), ("test_b", PASSED)])
    assert program.test(MACHINES[:1], ["x"], bounds(), smoke=False, chosen=True) == []


def test_the_table_says_of_what_and_when_and_what_was_cut(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "TABLE", tmp_path / "docs/hosts.md")
    ran(kept / "here", 1, ("test_a", PASSED), console=LEFT)
    for name, content in {"facts": "kernel=1\n", "of": "2026-01-02 of abc", "part": "all, interrupted"}.items():
        (kept / "here" / name).write_text(content)
    problems = program.table()
    assert problems[0] == "here: only a part was run there: all, interrupted"
    assert [problem.partition(" ")[0] for problem in problems[1:]] == [host.name for host in taken()[1:]]
    text = (tmp_path / "docs/hosts.md").read_text()
    assert "| 2026-01-02 of abc |" in text
    assert "**Only a part was run on `here`:** `all, interrupted`" in text
    assert "- `here`: mounts: /run/x" in text


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["120", "0", "-1", "nan", "inf"])
@pytest.mark.parametrize("option", ["--timeout-s", "--whole-timeout-s"])
def test_a_bound_that_is_no_useful_time_is_refused(option: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vm", "test", "--smoke", option, value],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"vm: {option} {value} is not between {LEAST_S:.0f} and ")


def test_no_shell_on_the_host_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vm", "shell", "--host", "here"], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("vm: shell --host here names no virtual machine")


def test_what_the_bound_of_the_whole_cuts_is_said(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    limited = bounds()
    monkeypatch.setattr(time, "monotonic", lambda: now + 9.5 * LEAST_S)
    (kept / "here").mkdir(parents=True)
    junit(kept / "here", ("test_of_an_earlier_run", PASSED))
    [problem] = runs.test([HERE], ["x"], limited, whole=True)
    assert problem == f"here: cut: not run, for the {10 * LEAST_S:.0f} s of the whole (--whole-timeout-s) were over"
    assert not (kept / "here/junit.xml").exists()
    assert runs.again([HERE], limited) == [problem]


def test_who_waits_for_another_run_says_so_and_gives_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    with alone(path):
        refused = pytest.raises(Failed, match=rf"was not over within 1 s: pid {os.getpid()}, .* holds {path}")
        with refused, alone(path, wait_s=0.6, said_after_s=0.1):
            pass
        assert capsys.readouterr().err.count(f"waiting for another run, at most 1 s: pid {os.getpid()}, ") == 1
    with alone(path, wait_s=0):
        assert path.read_text().count("pid ") == 1


# ---- here ------------------------------------------------------------------------------------------------------------

SETUP = """#!/bin/bash
trap 'echo undone >>"$MADE/undone"' EXIT
status=0
"$@" || status=$?
exit $status
"""


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As tools/cgroup-setup.sh: what it has done is undone by its trap."""
    script = tmp_path / "set-up"
    script.write_text(SETUP)
    script.chmod(0o755)
    monkeypatch.setenv("MADE", str(tmp_path))
    return str(script)


def test_here_the_code_and_what_is_shown_are_kept(setup: str, tmp_path: Path) -> None:
    # What is left behind with the pipe in its hands is not waited for.
    here.run([setup, "sh", "-c", "sleep 1000 & echo $! >$MADE/left; echo shown; exit 3"], tmp_path, 60)
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    assert (tmp_path / "exit").read_text() == "3"
    assert (tmp_path / "console").read_text() == "shown\n"
    assert (tmp_path / "undone").exists()


def test_here_the_bound_interrupts_and_the_set_up_is_undone(setup: str, tmp_path: Path) -> None:
    tests = "trap 'echo >$MADE/partial; exit 2' INT; while :; do sleep 0.1; done"
    # As it is under `nohup` or behind a shell's `&`.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        here.run([setup, "sh", "-c", tests], tmp_path, 3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "partial").exists()
    assert (tmp_path / "exit").read_text() == "124"
    assert (tmp_path / "undone").read_text() == "undone\n"


def test_here_what_ignores_the_interrupt_is_killed_and_the_set_up_is_undone(setup: str, tmp_path: Path) -> None:
    here.run([setup, "sh", "-c", "trap '' INT; echo $$ >$MADE/it; while :; do sleep 1; done"], tmp_path, 3, 0.5, 30)
    assert (tmp_path / "exit").read_text() == "124"
    assert (tmp_path / "undone").read_text() == "undone\n"
    assert not Path(f"/proc/{(tmp_path / 'it').read_text().strip()}").exists()


def test_here_the_end_of_this_program_interrupts_too(setup: str, tmp_path: Path) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from vm import here\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "here.run([sys.argv[1], 'sh', '-c', 'echo >$MADE/begun; exec sleep 1000'], Path(sys.argv[2]), 1000)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", program, setup, str(tmp_path)], cwd=ROOT)
    try:
        eventually_sync((tmp_path / "begun").exists)
        running.terminate()
        assert running.wait(60) == 143
    finally:
        running.kill()
        running.wait()
    assert (tmp_path / "undone").read_text() == "undone\n"
    assert not (tmp_path / "exit").exists()


# ---- machines --------------------------------------------------------------------------------------------------------


def boot(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_qemu", lambda *_: ["sh", "-c", script])
    made = image.Image(tmp_path / "kernel", tmp_path / "root")
    machine.boot(made, "", tmp_path / "given", tmp_path / "returned", tmp_path / "console", 60)


def test_a_disk_that_is_full_ends_the_machine_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "for i in 1 2 3 4 5 6; do echo 'qemu: aio failed: No space left on device' >&2; done; exec sleep 1000"
    with pytest.raises(Failed, match=r"could not be written to: qemu: aio failed: No space left on device: .*TMPDIR"):
        boot(script, tmp_path, monkeypatch)
    assert capsys.readouterr().out.count("No space left") == 1


def test_a_test_about_a_full_disk_ends_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot("echo 'qemu: aio failed: No space left on device'", tmp_path, monkeypatch)
    assert "No space left" in (tmp_path / "console").read_text()


def test_what_qemu_said_is_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match="QEMU ended with 1: no such machine: see "):
        boot("echo no such machine >&2; exit 1", tmp_path, monkeypatch)


def test_a_machine_without_results_is_said_with_its_last_lines(tmp_path: Path) -> None:
    returned = tmp_path / "returned"
    returned.write_bytes(bytes(1 << 16))
    (tmp_path / "console").write_text("first\n" * 20 + "\nKernel panic - not syncing\r\n")
    with pytest.raises(
        Failed, match=r"ended without results; the last it showed:(?s:.*)\n  Kernel panic - not syncing$"
    ):
        runs.unpack(returned, tmp_path)


def test_a_link_among_the_results_brings_nothing(tmp_path: Path) -> None:
    returned, folder = tmp_path / "returned", tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "exit").write_text("0")
    (tmp_path / "dangling").symlink_to("nowhere")
    with tarfile.open(returned, "w") as archive:
        for name in ("dangling", "exit"):
            archive.add(tmp_path / name, name)
    runs.unpack(returned, folder)
    assert [path.name for path in folder.iterdir()] == ["exit"]


# ---- the image -------------------------------------------------------------------------------------------------------


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what goes into the image."""
    shutil.copytree(image.GUEST, tmp_path / "guest")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(image, "GUEST", tmp_path / "guest")
    monkeypatch.setattr(image, "ROOT", tmp_path)
    return tmp_path / "guest"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda guest: edit(guest / "kernel.sh", "depmod", "true"),
        lambda guest: edit(guest / "image/etc/hostname", "vm", "mv"),
        lambda guest: (guest / "image/etc/hostname").rename(guest / "image/etc/hostnamf"),
        lambda guest: (guest / "image/etc/hosts").rename(guest / "image/hosts"),
        lambda guest: (guest / "image/usr/local/sbin/vm-run").chmod(0o644),
        lambda guest: (guest / "image/etc/link").symlink_to("hosts"),
        lambda guest: edit(guest.parent / "pyproject.toml", "lighterman = ", "lighterwoman = "),
        lambda guest: edit(guest.parent / "pyproject.toml", '"msgspec>=0.18"', '"msgspec>=0.19"'),
    ],
)
def test_an_image_is_made_again_when_something_of_it_changes(guest: Path, change: Callable[[Path], object]) -> None:
    before = image._key()
    edit(guest / "run.sh", "pytest", "pytest ")  # comes with the checkout
    assert image._key() == before
    change(guest)
    assert image._key() != before


@needs_setpriv
def test_an_image_is_made_within_a_bound() -> None:
    with pytest.raises(Failed, match=r"was not made within 1 s, `sleep` was ended: is http"):
        image._Steps(0.6).run("sleep", "1000")


@needs_setpriv
def test_a_step_ends_with_the_program_however_that_ends(tmp_path: Path) -> None:
    step = "'sh', '-c', 'echo $$ >$0; exec sleep 1000', sys.argv[1]"
    program = f"import sys; from vm.image import _Steps; _Steps(1000).run({step})"
    said = tmp_path / "pid"
    running = subprocess.Popen([sys.executable, "-c", program, str(said)], cwd=ROOT)
    try:
        pid = eventually_sync(lambda: said.exists() and said.read_text().strip())
    finally:
        running.kill()
        running.wait()
    eventually_sync(lambda: not _runs(Path(f"/proc/{pid}/stat")))


def _runs(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
