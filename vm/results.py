"""What the runs brought back, and the table made of it."""

from __future__ import annotations

import collections
import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from vm.hosts import EXPLAINED, RUNTIMES, Host

__all__ = ["Case", "Outcome", "merged", "nowhere", "read_junit", "table"]

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
    """The cases of a junit file as pytest writes it.

    Raises: OSError, xml.etree.ElementTree.ParseError.
    """
    return [_case(element) for element in ElementTree.parse(path).iter("testcase")]


def merged(first: Iterable[Case], again: Iterable[Case]) -> list[Case]:
    """The cases of a whole run, with what came of those that were tried again."""
    second = {case.name: case for case in again}
    return [
        dataclasses.replace(second[case.name], at_first=case.reason) if case.name in second else case for case in first
    ]


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


# ---- the table -------------------------------------------------------------------------------------------------------


def table(runs: Mapping[Host, list[Case]], facts: Mapping[Host, Mapping[str, str]], parts: Mapping[Host, str]) -> str:
    """`docs/hosts.md`. `parts`: the hosts where not all was run, and pytest's arguments there."""
    return "\n".join(_lines(runs, facts, parts)) + "\n"


def _lines(
    runs: Mapping[Host, list[Case]], facts: Mapping[Host, Mapping[str, str]], parts: Mapping[Host, str]
) -> Iterator[str]:
    yield "# Hosts"
    yield ""
    yield "Where the tests of real containers ran, and what came of it. Written by `make test-vm`, not by hand."
    yield ""
    for host, arguments in parts.items():
        yield f"**Only a part was run on `{host.name}`:** `{arguments}`"
        yield ""
    yield "| host | what it is | system | kernel | cgroup | init | runtimes |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for host in runs:
        of = collections.defaultdict(lambda: "?", facts[host])
        runtimes = ", ".join(of[runtime].replace(" version", "") or f"no {runtime}" for runtime in RUNTIMES)
        yield (
            f"| `{host.name}` | {host.title} | {of['system']} | {of['kernel']} | {of['cgroup']} | {of['init']} "
            f"| {runtimes} |"
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
    yield from _section("Known to fail", _grouped(runs, "known to fail"))
    yield from _section("Skipped", _grouped(runs, "skipped"))


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
