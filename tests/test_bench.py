"""The benchmark's own parts that need no container: its arguments, its arithmetic, its tables."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.arguments import FULL, QUICK, SUITES, parse  # noqa: E402
from bench.interleave import Contender, take_turns  # noqa: E402
from bench.numbers import Samples, percentile, ratio  # noqa: E402
from bench.report import Goal, Report  # noqa: E402
from bench.tables import markdown, text  # noqa: E402
from bench.trouble import Trouble  # noqa: E402

MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "bench").rglob("*.py"))


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark needs Linux")
@pytest.mark.parametrize("module", MODULES)
def test_module_imports(module: str) -> None:
    importlib.import_module(module)


# ---- arguments ----


def test_parse_nothing_measures_everything() -> None:
    options = parse([])
    assert (options.only, options.effort, options.json, options.readme) == (SUITES, FULL, None, False)
    assert options.docker
    assert options.podman


def test_parse_only_keeps_the_order_of_the_suites() -> None:
    assert parse(["--only", "exec", "--only", "run"]).only == ("run", "exec")


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark needs Linux")
def test_every_suite_that_can_be_asked_for_is_there() -> None:
    assert set(importlib.import_module("bench.__main__")._SUITES) == set(SUITES)


def test_parse_json_without_file_is_standard_output() -> None:
    assert parse(["--json"]).json == "-"
    assert parse(["--quick", "--json", "out.json"]).json == "out.json"


def test_parse_quick_takes_less_of_everything() -> None:
    effort = parse(["--quick", "--no-docker"]).effort
    assert effort is QUICK
    assert effort.rounds < FULL.rounds
    assert effort.sleepers < FULL.sleepers
    assert effort.recovered < FULL.recovered
    assert effort.log_bytes < FULL.log_bytes


@pytest.mark.parametrize("wrong", [["--only", "nonsense"], ["--fast"], ["run"]])
def test_parse_wrong_argument_ends(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(wrong)
    assert wrong[-1] in capsys.readouterr().err


# ---- arithmetic ----


def test_percentile_interpolates_between_neighbours() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0) == 1.0
    assert percentile(values, 50) == 2.5
    assert percentile(values, 95) == pytest.approx(3.85)
    assert percentile(values, 100) == 4.0
    assert percentile([7.0], 95) == 7.0


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_of_nothing_or_out_of_range_is_an_error(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile(values, percent)


def test_samples_tell_median_and_both_ends() -> None:
    samples = Samples.of(float(number) for number in range(1, 102))
    assert (samples.median, samples.p5, samples.p95, len(samples)) == (51.0, 6.0, 96.0, 101)
    assert (samples.lowest, samples.highest) == (1.0, 101.0)


def test_ratio_of_what_was_not_measured_is_none() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(None, 2.0) is None
    assert ratio(3.0, None) is None
    assert ratio(3.0, 0.0) is None


# ---- turns ----


async def test_take_turns_gives_up_who_fails_and_no_other() -> None:
    order: list[str] = []

    def contender(name: str, seconds: float | None, every: int = 1) -> Contender:
        async def once() -> float:
            order.append(name)
            if seconds is None:
                raise Trouble(f"{name} is not there")
            return seconds

        return Contender(name, once, every=every)

    contenders = [contender("a", 1.0), contender("broken", None), contender("slow", 9.0, every=4)]
    await take_turns(contenders, rounds=8)
    a, broken, slow = contenders
    assert a.times == [1.0] * 8
    assert (broken.times, broken.failed, order.count("broken")) == ([], "broken is not there", 1)
    assert slow.times == [9.0] * 2
    assert order.count("a") > 8, "it was not warmed up"


# ---- report ----


def _report() -> Report:
    report = Report(facts={"Linux": "6.1"})

    async def never() -> float:
        raise NotImplementedError

    ours, peer = Contender("lighterman", never, times=[0.004, 0.005]), Contender("raw crun", never, times=[0.01])
    gone = Contender("docker", never, failed="dockerd is not installed")
    report.contenders("run", [ours, gone, peer], against="raw crun")
    report.goal("run / raw crun", ratio(report.median("run", "lighterman"), report.median("run", "raw crun")), 0.55)
    report.goal("run / docker", None, 0.08)
    report.isolation["lighterman"] = {"seccomp": "mode 2"}
    return report


def test_report_compares_with_the_peer_whatever_the_order() -> None:
    peer, ours = _report().rows
    assert (peer.name, peer.ratio) == ("raw crun", None)
    assert (ours.name, ours.against) == ("lighterman", "raw crun")
    assert ours.ratio == pytest.approx(0.45)
    assert ours.median == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("x", 0.55, reached=0.55), True),
        (Goal("x", 0.55, reached=0.56), False),
        (Goal("x", 1.4, at_least=True, reached=1.5), True),
        (Goal("x", 1.4, at_least=True, reached=1.3), False),
        (Goal("x", 1.4), None),
    ],
)
def test_goal_is_met_on_its_side(goal: Goal, met: bool | None) -> None:
    assert goal.met is met


def test_tables_tell_goals_ratios_and_who_is_absent() -> None:
    shown = text(_report())
    assert "dockerd is not installed" in shown
    assert "at most 0.55" in shown
    assert "not measured" in shown
    readme = markdown(_report())
    assert "| run / raw crun | at most 0.55 | 0.45 | yes |" in readme
    assert all(line.startswith("|") for line in readme.splitlines()[1:] if line)


def test_json_holds_goals_with_their_verdict() -> None:
    written = json.loads(msgspec.json.encode(_report().as_json()))
    assert [goal["met"] for goal in written["goals"]] == [True, None]
    assert written["absent"] == {"run: docker": "dockerd is not installed"}
    assert {row["name"] for row in written["rows"]} == {"raw crun", "lighterman"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self of Linux")
def test_isolation_is_read_from_what_a_container_sees() -> None:
    describe = importlib.import_module("bench.suites.isolation").describe
    seen = """\
@status
CapEff:\t00000000a80425fb
CapBnd:\t00000000a80425fb
NoNewPrivs:\t0
Seccomp:\t2
Seccomp_filters:\t1
@ns
pid pid:[1]
@cgroup
4000:memory:/lighterman/x
@mountinfo
1 0 0:1 / / rw,relatime - overlay overlay rw
2 1 0:2 / /proc rw - proc proc rw
3 2 0:3 / /proc/acpi ro,relatime - tmpfs tmpfs ro
4 2 0:4 /null /proc/kcore rw,nosuid - tmpfs tmpfs rw
5 2 0:2 /bus /proc/bus ro - proc proc rw
@dev
null
zero
"""
    described = describe(seen)
    assert described["own namespaces"] == "pid"
    assert described["capabilities effective"] == "14 (a80425fb)"
    assert (described["cgroup hierarchies"], described["cgroups of its own"]) == ("1", "1")
    assert described["seccomp"] == "mode 2, filters 1"
    assert (described["mounts"], described["masked paths"], described["devices"]) == ("5", "2", "2")
    assert described["read-only below /proc and /sys"] == "2"


# ---- suites, as far as they need no container ----


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark needs Linux")
async def test_state_suite_compares_the_store_with_bare_sqlite(tmp_path: Path) -> None:
    suite = importlib.import_module("bench.suites.state")
    workspace = SimpleNamespace(directory=lambda _name: str(tmp_path))
    effort = SimpleNamespace(state_changes=40)
    report = Report()
    await suite.measure(SimpleNamespace(workspace=workspace, effort=effort, report=report))
    rows = {row.name: row for row in report.rows}
    assert rows[suite.BARE].ratio is None
    assert rows[suite.OURS].ratio is not None
    assert rows[suite.OURS].unit == "us"
    assert report.absent == {}


@pytest.mark.skipif(sys.platform != "linux", reason="pidfds are Linux's")
def test_lease_suite_sees_the_death_of_who_was_killed_and_of_nobody_else() -> None:
    suite = importlib.import_module("bench.suites.lease")
    with subprocess.Popen(["sleep", "60"]) as watched:
        assert suite._seconds_to_die(watched.pid, watched.pid) > 0
        assert watched.wait() == -9


@pytest.mark.skipif(sys.platform != "linux", reason="runs sh, dd, yes and head")
def test_log_suite_writes_as_many_bytes_as_it_divides_by() -> None:
    suite = importlib.import_module("bench.suites.logs")
    for load in suite.LOADS:
        wrote = subprocess.run(["sh", "-c", load.command(1_310_720)], capture_output=True, check=True).stdout
        assert load.size(1_310_720) == len(wrote)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark needs Linux")
@pytest.mark.parametrize(("running", "killed", "true"), [(49, 1, True), (50, 0, False), (48, 2, False), (49, 0, False)])
def test_recovery_suite_takes_only_the_true_states_for_true(running: int, killed: int, true: bool) -> None:
    returning = importlib.import_module("bench.returning")
    assert returning._is_true(returning.Returned(running, killed), 50) is true
