"""`python -m vm test [--host NAME] [--smoke] [PYTEST ARGUMENTS]`, `... shell [--host NAME]`, `... rest`, `... again`,
`... table`.

`table` writes docs/hosts.md of what the last runs of all hosts brought back; `again` tries once more what failed in
them, and says so there. A whole `test` does both. `rest` goes on with a whole run that its bound has cut short, and
then does both too.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from xml.etree.ElementTree import ParseError

from vm import image, machine, results, runs
from vm.bounds import Bounds
from vm.errors import Failed
from vm.hosts import HERE, HOSTS, SMOKE, Host, taken
from vm.locking import alone
from vm.runs import BUILD, ROOT

TABLE = ROOT / "docs" / "hosts.md"
BOUND_S = 3 * 3600.0  # one host
SMOKE_BOUND_S = 1200.0
WHOLE_S = 5 * 3600.0  # emulated, and with what failed once more, three hours


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vm", description=__doc__, allow_abbrev=False)
    parser.add_argument("verb", choices=("test", "rest", "again", "shell", "table"))
    parser.add_argument("--host", choices=[host.name for host in HOSTS], action="append", help="only this one")
    parser.add_argument("--smoke", action="store_true", help="the selection that every change has to pass; no table")
    parser.add_argument("--timeout-s", type=float, help="for each host")
    parser.add_argument("--whole-timeout-s", type=float, default=WHOLE_S, help="for all hosts (default: %(default)g)")
    options, selection = parser.parse_known_args()
    default_s = SMOKE_BOUND_S if options.smoke else BOUND_S
    bounds = Bounds(default_s if options.timeout_s is None else options.timeout_s, options.whole_timeout_s)
    hosts = [host for host in HOSTS if host.name in options.host] if options.host else list(taken())
    if options.verb == "shell" and options.host and hosts != [host for host in hosts[:1] if host is not HERE]:
        raise Failed(f"shell --host {' --host '.join(options.host)} names no virtual machine, or several: name one")
    if os.geteuid() != 0:
        raise Failed("making the image and running containers need root")

    # As Ctrl-C: what was made on the way is taken away. Not where it is ignored, as under nohup(1).
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    BUILD.mkdir(parents=True, exist_ok=True)
    with alone(BUILD / "lock"):
        # A wait for another run is no part of it.
        bounds = Bounds(bounds.host_s, bounds.whole_s)
        if options.verb == "shell":
            return shell(hosts[0] if options.host else next(host for host in HOSTS if host.name == "v2-systemd"))
        if options.verb == "table":
            problems = table()
        elif options.verb == "rest":
            problems = runs.finish(hosts, bounds)
            problems = (runs.again(hosts, bounds) if problems else []) + table()
        elif options.verb == "again":
            problems = runs.again(hosts, bounds) + table()
        else:
            problems = test(hosts, selection, bounds, smoke=options.smoke, chosen=bool(options.host))
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0


def test(hosts: list[Host], selection: list[str], bounds: Bounds, *, smoke: bool, chosen: bool) -> list[str]:
    """`python -m vm test`. `chosen`: the hosts were named."""
    if smoke:
        hosts = [host for host in hosts if host is not HERE and (chosen or not host.stands_in)]
        if not hosts:
            raise Failed("--smoke is for the virtual machines: name one of them, or none for all")
    whole = not selection and not smoke
    required = SMOKE if smoke and not selection else ()
    asked = selection or list(required) or runs.everything()
    problems = runs.test(hosts, asked, bounds, whole=whole)
    if whole and problems:
        problems = runs.again(hosts, bounds)
    if whole and not chosen:
        return problems + table()
    nowhere = runs.ran_nowhere(hosts, required)
    if not chosen:
        return problems + nowhere
    # Who names a host knows that others are not asked. That nothing at all has run is no run.
    for line in nowhere:
        print(f"not on {', '.join(host.name for host in hosts)}: {line}")
    return problems + runs.nothing_ran(hosts)


def shell(host: Host) -> int:
    """A prompt as root in a machine with this checkout in it."""
    made = image.ready(BUILD)
    given, returned = BUILD / "given.tar", BUILD / "results.tar"
    try:
        runs.pack(given, [], 0)
        machine.interact(made, host.kernel_arguments or "", given, returned)
    finally:
        given.unlink(missing_ok=True)
        returned.unlink(missing_ok=True)
    return 0


def table() -> list[str]:
    """Write the table of what each host's last run brought back; what is wrong with that as a whole."""
    brought: dict[Host, list[results.Case]] = {}
    facts: dict[Host, dict[str, str]] = {}
    parts: dict[Host, str] = {}
    left: dict[Host, list[str]] = {}
    problems: list[str] = []
    for host in taken():
        folder = runs.RESULTS / host.name
        try:
            cases = results.read_junit(folder / "junit.xml")
            if (folder / "again/junit.xml").exists():
                cases = results.merged(cases, results.read_junit(folder / "again/junit.xml"))
            facts[host] = {**results.read_facts(folder / "facts"), "ran": (folder / "of").read_text()}
            part = (folder / "part").read_text()
        except (OSError, ValueError, ParseError) as error:
            problems.append(f"{host.name} is not in the table: {error}")
            continue
        brought[host] = cases
        left[host] = results.left_behind(folder / "console")
        if part:
            parts[host] = part
            problems.append(f"{host.name}: only a part was run there: {part}")
    problems += results.told_nowhere(brought)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(results.table(brought, facts, parts, left))
    print(f"\nwritten: {TABLE.relative_to(ROOT)}")
    return problems


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, subprocess.CalledProcessError) as error:
        sys.exit(f"vm: {error}")
