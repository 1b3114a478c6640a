"""The table of hosts: what is read from the runs, what is written, and when a test ran nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from vm.hosts import HERE, HOSTS, NOT_THERE, RUNTIMES, SMOKE, Host, taken  # noqa: E402
from vm.results import (  # noqa: E402
    Case,
    explained,
    left_behind,
    merged,
    nowhere,
    read_junit,
    table,
    told_nowhere,
)

OLD, NEW = (Host(name=name, title=f"the {name} one", kernel_arguments="") for name in ("old", "new"))
JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest">
<testcase classname="tests.real.test_run" name="test_code[crun]" time="1.5" />
<testcase classname="tests.real.test_run" name="test_code[runc-3]" time="0.5">
<failure message="assert 1 == 2&#10;more">x</failure></testcase>
<testcase classname="tests.test_readme" name="test_first" time="0.1"><skipped message="no root"/></testcase>
<testcase classname="tests.oci.test_mounts" name="test_m"><error message="failed on setup"/></testcase>
<testcase time="3.0" />
</testsuite></testsuites>"""


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    return read_junit(path)


def test_cases_of_a_junit_file(cases: list[Case]) -> None:
    assert cases == [
        Case("tests.real.test_run.test_code[crun]", "passed", seconds=1.5),
        Case("tests.real.test_run.test_code[runc-3]", "failed", "assert 1 == 2", 0.5),
        Case("tests.test_readme.test_first", "skipped", "no root", 0.1),
        Case("tests.oci.test_mounts.test_m", "failed", "failed on setup"),
    ]
    assert [(case.suite, case.runtime) for case in cases] == [
        ("real", "crun"),
        ("real", "runc"),
        ("test_readme", "-"),
        ("oci", "-"),
    ]


def test_a_test_that_failed_in_itself_and_when_it_was_taken_down_is_one(tmp_path: Path) -> None:
    case = '<testcase classname="tests.s" name="test_a" time="1.0">{}</testcase>'
    both = case.format('<failure message="assert 1 == 2"/>') + case.format('<error message="left behind"/>')
    (tmp_path / "junit.xml").write_text(f"<testsuite>{both}</testsuite>")
    assert read_junit(tmp_path / "junit.xml") == [Case("tests.s.test_a", "failed", "assert 1 == 2", 1.0)]
    passed = case.format("") + case.format('<error message="left behind"/>')
    (tmp_path / "junit.xml").write_text(f"<testsuite>{passed}</testsuite>")
    assert read_junit(tmp_path / "junit.xml") == [Case("tests.s.test_a", "failed", "left behind", 1.0)]


@pytest.mark.parametrize(
    ("name", "runtime"),
    [("t.s.f[a-runc]", "runc"), ("t.s.f[runcible]", "-"), ("t.s.test_crun", "-"), ("t.s.f[x-crun-y]", "crun")],
)
def test_runtime_is_a_parameter_and_no_part_of_a_word(name: str, runtime: str) -> None:
    assert Case(name, "passed").runtime == runtime


def test_an_expected_failure_has_run_and_is_shown(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        '<testsuite><testcase classname="tests.real.test_x" name="test_y[crun]" time="0.1">'
        '<skipped type="pytest.xfail" message="crun can not"/></testcase></testsuite>'
    )
    cases = read_junit(tmp_path / "junit.xml")
    assert cases == [Case("tests.real.test_x.test_y[crun]", "known to fail", "crun can not", 0.1)]
    assert nowhere({OLD: cases}) == {}
    text = table({OLD: cases}, {OLD: {}}, {}, {})
    assert f"| `{OLD.name}` | crun | real | 0 | 0 | 1 | 0 |" in text
    assert f"- `{OLD.name}`: crun can not: `real.test_x.test_y[crun]`" in text


def test_skipped_on_every_host_is_nowhere_and_a_failure_is_somewhere() -> None:
    runs = {
        OLD: [Case("t.s.a", "passed"), Case("t.s.b", "skipped", "no v2"), Case("t.s.c", "skipped", "no disk")],
        NEW: [Case("t.s.a", "skipped", "no v1"), Case("t.s.b", "failed", "x"), Case("t.s.c", "skipped", "no lamp")],
    }
    assert nowhere(runs) == {"t.s.c": {"old": "no disk", "new": "no lamp"}}


def test_missing_on_one_host_and_skipped_on_the_other_is_nowhere() -> None:
    assert list(nowhere({OLD: [], NEW: [Case("t.s.a", "skipped", "why")]})) == ["t.s.a"]


def test_what_no_host_can_give_is_explained_and_the_rest_is_a_problem() -> None:
    kernel, other = "needs Linux 6.7, this is 6.1", "is about cgroups of a v1 host, this one has v2"
    runs = {
        OLD: [Case("tests.s.a", "skipped", kernel), Case("tests.s.b", "skipped", other)],
        NEW: [Case("tests.s.a", "skipped", kernel), Case("tests.s.b", "skipped", kernel)],
    }
    assert told_nowhere(runs) == [f"ran nowhere: tests.s.b: old: {other}; new: {kernel}"]
    text = table(runs, {OLD: {}, NEW: {}}, {}, {})
    shown = text[text.index("## Skipped on every host, and explained") : text.index("## Not run in the machines")]
    assert f"- `s.a`: {kernel}: {explained([kernel])}" in shown
    assert "s.b" not in shown


def test_left_behind_is_read_from_what_pytest_showed(tmp_path: Path) -> None:
    console = tmp_path / "console"
    assert left_behind(console) == []
    console.write_bytes(b"LEFT BEHIND BY THIS TEST RUN\r\n")
    assert left_behind(console) == []
    section = b"=== LEFT BEHIND BY THIS TEST RUN ===\r\nmounts: /a\r\nthreads: b\r\n=== 3 passed in 1s ===\r\n"
    console.write_bytes(b"boot\xff\r\n" + section)
    assert left_behind(console) == ["mounts: /a", "threads: b"]


def test_table_counts_by_host_runtime_and_suite_and_gives_the_reasons(cases: list[Case]) -> None:
    facts = {"kernel": "6.1", "cgroup": "v2", "init": "systemd", "system": "D", "crun": "crun version 1", "runc": ""}
    facts["ran"] = "2026-01-02 of abc with changes"
    text = table({OLD: cases, NEW: []}, {OLD: facts, NEW: {}}, {NEW: "tests/real -k x"}, {NEW: ["processes: 7 keeper"]})
    assert "**Only a part was run on `new`:** `tests/real -k x`" in text
    assert "| `old` | the old one | D | 6.1 | v2 | systemd | crun 1, no runc | 2026-01-02 of abc with changes |" in text
    assert "| `old` | crun | real | 1 | 0 | 0 | 0 |" in text
    assert "| `old` | runc | real | 0 | 1 | 0 | 0 |" in text
    assert "| `old` | - | test_readme | 0 | 0 | 0 | 1 |" in text
    assert "- `old`: `tests.real.test_run.test_code[runc-3]`: assert 1 == 2 (not explained)" in text
    assert "- `old`: no root: `test_readme.test_first`" in text
    assert text.index("## Left behind") < text.index("- `new`: processes: 7 keeper")
    for path, why in NOT_THERE.items():
        assert f"- `{path}`: {why}" in text


def test_what_was_tried_again_is_said_to_be_so(cases: list[Case]) -> None:
    failed = next(case for case in cases if case.outcome == "failed")
    assert failed.node_id == "tests/real/test_run.py::test_code[runc-3]"
    text = table({OLD: merged(cases, [Case(failed.name, "passed")])}, {OLD: {}}, {}, {})
    assert "| `old` | runc | real | 1 | 0 | 0 | 0 |" in text
    assert text.index("## Failed, and passed") < text.index(
        "- `old`: `tests.real.test_run.test_code[runc-3]`: assert 1"
    )
    text = table({OLD: merged(cases, [Case(failed.name, "failed", "assert 3 == 4")])}, {OLD: {}}, {}, {})
    assert "assert 3 == 4" in text
    assert "assert 1 == 2" not in text


def test_hosts_are_told_apart_by_their_names() -> None:
    assert len({host.name for host in HOSTS}) == len(HOSTS)
    assert [host for host in HOSTS if host.kernel_arguments is None] == [HERE]


def test_a_host_with_v1_is_made_only_where_this_one_has_none(tmp_path: Path) -> None:
    assert not [host for host in taken(tmp_path) if host.stands_in]
    (tmp_path / "cgroup.controllers").touch()
    assert taken(tmp_path) == HOSTS


def test_what_is_not_run_there_is_there_at_all() -> None:
    for path in NOT_THERE:
        assert (ROOT / path).exists(), path


def test_smoke_selection_names_tests_that_are_there() -> None:
    for node in SMOKE:
        path, _, name = node.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(), node
    assert len(RUNTIMES) == 2
