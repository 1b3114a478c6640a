"""`lighterman version`: what runs containers here, and what confines them."""

from __future__ import annotations

import os
import sys

import click

from lighterman import __version__

__all__ = ["command"]


@click.command("version", help="Show the version, the runtimes of this host, and which of them is used and why.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(as_json: bool) -> int:
    """Returns the exit code: 0 although nothing here may run containers; `doctor` judges."""
    found = _look()
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return 0
    for name, value in found.items():
        if name != "runtimes":
            click.echo(f"{name:<11} {value}")
            continue
        assert isinstance(value, list)
        for number, one in enumerate(value):
            works = "works here" if one["works"] else f"does not work here: {one['reason']}"
            click.echo(
                f"{'runtimes' if number == 0 else '':<11} {one['name']} {one['version']} ({one['path']}): {works}"
            )
    return 0


def _look() -> dict[str, object]:
    found: dict[str, object] = {
        "lighterman": __version__,
        "python": ".".join(str(number) for number in sys.version_info[:3]),
        "kernel": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
    }
    if sys.platform != "linux":
        return {**found, "runtimes": [], "used": f"none: no container runtime for {sys.platform} in this version"}
    from lighterman.errors import LightermanError
    from lighterman.roots import default_state
    from lighterman.runtimes.oci.cgroups import cgroup_host
    from lighterman.runtimes.oci.document_apparmor import explain
    from lighterman.runtimes.oci.probe import pick, probe_all

    if os.geteuid() == 0:
        probed = probe_all(f"{default_state()}/cache/runtimes.json")
        try:
            chosen, reason = pick(probed)
            used = f"{chosen.name}, {reason}"
        except LightermanError as refused:
            used = f"none: {refused}"
        found["runtimes"] = [
            {
                "name": one.name,
                "version": one.version,
                "path": one.path,
                "works": one.refusal is None,
                "reason": one.refusal,
            }
            for one in probed
        ]
    else:
        found["runtimes"] = []
        used = "none: running containers without root is not supported in this version: run it as root"
    found["used"] = used
    try:
        host = cgroup_host()
        found["cgroups"] = host.layout + (
            f" (left to version 2: {', '.join(host.left_over)})" if host.left_over else ""
        )
    except LightermanError as refused:
        found["cgroups"] = f"none: {refused}"
    found["seccomp"] = _seccomp()
    found["apparmor"] = explain().removeprefix("apparmor: ")
    return found


def _seccomp() -> str:
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            available = "errno" in file.read().split()
    except OSError:
        available = False
    return "on, with our default profile" if available else "off: this kernel has no filters"
