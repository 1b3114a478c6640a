"""What the runs brought back, and the table made of it."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from vm.hosts import EXPLAINED, NOT_THERE, NOWHERE, RUNTIMES, Host

__all__ = [
    "Case",
    "Outcome",
    "explained",
    "join",
    "left_behind",
    "merged",
    "nowhere",
    "read_facts",
    "read_junit",
    "table",
    "told_nowhere",
]

_COLUMNS = ("passed", "failed", "known to fail", "skipped")
Outcome = Literal["passed", "failed", "skipped", "known to fail"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One test on one host.

    Attributes:
        name: as pytest's node id says it, with dots: `tests.oci.test_mounts.test_copy[crun]`.
        reason: why it was skipped, or is known to fail, or the first line of its failure; empty for a passed one.
        at_first: the first line of the failure before it was tried again; empty if it was not.
    """

    name: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    at_first: str = ""

    @property
    def node_id(self) -> str:
        """Pytest's: `tests/oci/test_mounts.py::test_copy[crun]`."""
        plain, bracket, parameters = self.name.partition("[")
        module, _, function = plain.rpartition(".")
        return f"{module.replace('.', '/')}.py::{function}{bracket}{parameters}"

    @property
    def suite(self) -> str:
        """The folder or module below `tests`."""
        return self.name.split(".")[1]

    @property
    def runtime(self) -> str:
        """Which of the runtimes its parameters name, or `-`."""
        parameters = re.split(r"[\[\]-]", self.name.partition("[")[2])
        return next((runtime for runtime in RUNTIMES if runtime in parameters), "-")


def read_junit(path: Path) -> list[Case]:
    """The cases of a junit file as pytest writes it, one for each test.

    Raises: OSError, xml.etree.ElementTree.ParseError.
    """
    cases: dict[str, Case] = {}
    # The test that an interrupt met while it was taken down has an element without a name.
    for case in (_case(element) for element in ElementTree.parse(path).iter("testcase") if element.get("name")):
        # One that failed in itself and when it was taken down has two: the first says why.
        known = cases.setdefault(case.name, case)
        if known.outcome != "failed":
            cases[case.name] = case
    return list(cases.values())


def read_facts(path: Path) -> dict[str, str]:
    """Lines NAME=VALUE. Raises: OSError, ValueError."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def left_behind(console: Path) -> list[str]:
    """What pytest said at the end of the run that it had left behind (tests/conftest.py)."""
    try:
        lines = console.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    sections = [
        number for number, line in enumerate(lines) if re.fullmatch(r"=+ LEFT BEHIND BY THIS TEST RUN =+", line)
    ]
    if not sections:
        return []
    after = (line.strip() for line in lines[sections[-1] + 1 :])
    return [line for line in itertools.takewhile(lambda line: not line.startswith("="), after) if line]


def merged(first: Iterable[Case], again: Iterable[Case]) -> list[Case]:
    """The cases of a whole run, with what came of those that were tried again."""
    second = {case.name: case for case in again}
    return [
        dataclasses.replace(second[case.name], at_first=case.reason) if case.name in second else case for case in first
    ]


def join(first: Path, rest: Path) -> None:
    """Put what a run brought back behind what the one brought that it goes on with, and was cut short.

    Args: both are folders with `junit.xml` and `console`. Raises: OSError, xml.etree.ElementTree.ParseError.
    """
    tree = ElementTree.parse(first / "junit.xml")
    root = tree.getroot()
    suite = root if root.tag == "testsuite" else next(root.iter("testsuite"))
    # An element without a name is of the test that was interrupted, which has been run again.
    for element in [element for element in suite if element.tag == "testcase" and not element.get("name")]:
        suite.remove(element)
    suite.extend(ElementTree.parse(rest / "junit.xml").iter("testcase"))
    joined = first / "junit.joined"
    tree.write(joined)
    # Whoever is killed meanwhile has the one or the other, and no half of it.
    joined.replace(first / "junit.xml")
    with (first / "console").open("ab") as console:
        console.write((rest / "console").read_bytes())


def _case(element: ElementTree.Element) -> Case:
    name = f"{element.get('classname')}.{element.get('name')}"
    seconds = float(element.get("time", 0))
    for tag in ("error", "failure"):
        found = element.find(tag)
        if found is not None:
            return Case(name, "failed", _first_line(found), seconds)
    found = element.find("skipped")
    if found is not None:
        # An expected failure has run, and shown that what it is about does not work yet.
        known = found.get("type") == "pytest.xfail"
        return Case(name, "known to fail" if known else "skipped", _first_line(found), seconds)
    return Case(name, "passed", seconds=seconds)


def _first_line(element: ElementTree.Element) -> str:
    message = element.get("message", "").strip()
    return message.splitlines()[0] if message else "no reason given"


def nowhere(runs: Mapping[Host, Iterable[Case]]) -> dict[str, dict[str, str]]:
    """Tests that no host ran: `{test: {host: why}}`."""
    ran: set[str] = set()
    skipped: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for host, cases in runs.items():
        for case in cases:
            if case.outcome == "skipped":
                skipped[case.name][host.name] = case.reason
            else:
                ran.add(case.name)
    return {name: reasons for name, reasons in sorted(skipped.items()) if name not in ran}


def explained(reasons: Iterable[str]) -> str:
    """Why it is right that a test which was skipped with these reasons ran nowhere; empty if it is not."""
    asked = list(reasons)
    return next((why for wanted, why in NOWHERE.items() if all(wanted in reason for reason in asked)), "")


def told_nowhere(runs: Mapping[Host, Iterable[Case]]) -> list[str]:
    """A line for each test that no host ran, and that is not explained."""
    return [
        f"ran nowhere: {name}: " + "; ".join(f"{host}: {why}" for host, why in reasons.items())
        for name, reasons in nowhere(runs).items()
        if not explained(reasons.values())
    ]


# ---- the table -------------------------------------------------------------------------------------------------------


def table(
    runs: Mapping[Host, list[Case]],
    facts: Mapping[Host, Mapping[str, str]],
    parts: Mapping[Host, str],
    left: Mapping[Host, list[str]],
) -> str:
    """`docs/hosts.md`.

    Args:
        parts: the hosts where not all was run, and pytest's arguments there. left: what each run has left behind.
    """
    return "\n".join(_lines(runs, facts, parts, left)) + "\n"


def _lines(
    runs: Mapping[Host, list[Case]],
    facts: Mapping[Host, Mapping[str, str]],
    parts: Mapping[Host, str],
    left: Mapping[Host, list[str]],
) -> Iterator[str]:
    yield "# Hosts"
    yield ""
    yield "Where the tests of real containers ran, and what came of it. Written by `make test-vm`, not by hand."
    yield ""
    for host, arguments in parts.items():
        yield f"**Only a part was run on `{host.name}`:** `{arguments}`"
        yield ""
    yield "| host | what it is | system | kernel | cgroup | init | runtimes | when, and what of |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for host in runs:
        of = collections.defaultdict(lambda: "?", facts[host])
        runtimes = ", ".join(of[runtime].replace(" version", "") or f"no {runtime}" for runtime in RUNTIMES)
        yield (
            f"| `{host.name}` | {host.title} | {of['system']} | {of['kernel']} | {of['cgroup']} | {of['init']} "
            f"| {runtimes} | {of['ran']} |"
        )
    yield ""
    yield "| host | runtime | suite | passed | failed | known to fail | skipped |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for host, cases in runs.items():
        counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for case in cases:
            counts[case.runtime, case.suite][case.outcome] += 1
        for (runtime, suite), count in sorted(counts.items()):
            numbers = " | ".join(str(count[outcome]) for outcome in _COLUMNS)
            yield f"| `{host.name}` | {runtime} | {suite} | {numbers} |"
    yield ""
    yield "A test that names no runtime (`-`) uses the default one, or none."
    yield from _section("Failed", _failed(runs))
    yield from _section("Failed, and passed when tried again", _at_first(runs))
    yield from _section("Left behind", _left(left))
    yield from _section("Known to fail", _grouped(runs, "known to fail"))
    yield from _section("Skipped", _grouped(runs, "skipped"))
    yield from _section("Skipped on every host, and explained", _explained_nowhere(runs))
    yield from _section("Not run in the machines", (f"- `{path}`: {why}" for path, why in NOT_THERE.items()))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    yield from list(lines) or ["None."]


def _failed(runs: Mapping[Host, list[Case]]) -> Iterator[str]:
    for host, cases in runs.items():
        for case in cases:
            if case.outcome == "failed":
                why = EXPLAINED.get(case.name.partition("[")[0], "not explained")
                yield f"- `{host.name}`: `{case.name}`: {_escaped(case.reason)} ({why})"


def _at_first(runs: Mapping[Host, list[Case]]) -> Iterator[str]:
    for host, cases in runs.items():
        for case in cases:
            if case.at_first and case.outcome == "passed":
                yield f"- `{host.name}`: `{case.name}`: {_escaped(case.at_first)}"


def _left(left: Mapping[Host, list[str]]) -> Iterator[str]:
    for host, lines in left.items():
        for line in lines:
            yield f"- `{host.name}`: {_escaped(line)}"


def _explained_nowhere(runs: Mapping[Host, list[Case]]) -> Iterator[str]:
    for name, reasons in nowhere(runs).items():
        why = explained(reasons.values())
        if why:
            yield f"- `{name.removeprefix('tests.')}`: {', '.join(sorted(set(reasons.values())))}: {why}"


def _grouped(runs: Mapping[Host, list[Case]], outcome: Outcome) -> Iterator[str]:
    """By their reasons."""
    for host, cases in runs.items():
        reasons: dict[str, list[Case]] = collections.defaultdict(list)
        for case in cases:
            if case.outcome == outcome:
                reasons[case.reason].append(case)
        for reason, those in sorted(reasons.items()):
            names = sorted({f"`{case.name.removeprefix('tests.')}`" for case in those})
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            yield f"- `{host.name}`: {_escaped(reason)}: {shown}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")[:300]
