"""The hosts that the tests run on. One more host is one more row."""

from __future__ import annotations

import dataclasses

__all__ = ["HERE", "HOSTS", "MARK", "NOT_THERE", "RUNTIMES", "SMOKE", "SUITES", "Host"]


@dataclasses.dataclass(frozen=True)
class Host:
    """One row.

    Attributes:
        name: one word, for `--host` and the table. title: what it is, for people.
        kernel_arguments: what the virtual machine's kernel is told; None for the machine that this runs on.
    """

    name: str
    title: str
    kernel_arguments: str | None


HERE = Host(name="here", title="the machine that ran `make test-vm`", kernel_arguments=None)

HOSTS = (
    HERE,
    Host(
        name="v2-cgroupfs",
        title="cgroup v2 alone, an init that does nothing else, the runtimes' cgroupfs driver",
        kernel_arguments="init=/usr/local/sbin/vm-init",
    ),
    Host(
        name="v2-systemd",
        title="cgroup v2 with systemd as init and cgroup manager; the tests are a unit with `Delegate=yes`",
        kernel_arguments="systemd.unit=basic.target systemd.wants=vm.service systemd.mask=timers.target",
    ),
)

RUNTIMES = ("crun", "runc")

# What runs on every host: each file with a test of real containers, and what below them depends on the kernel.
MARK = "real"
SUITES = ("tests/keeper", "tests/logs")
# Tens of thousands of processes one after the other: minutes here, an hour and more in an emulated machine.
NOT_THERE = ("tests/keeper/test_keeper_many.py",)

# What a change has to pass in a virtual machine: pytest's node ids; one that is missing is an error.
SMOKE: tuple[str, ...] = ()
