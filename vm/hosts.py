"""The hosts that the tests run on. One more host is one more row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = [
    "EXPLAINED",
    "HERE",
    "HOSTS",
    "MARK",
    "NOT_THERE",
    "NOWHERE",
    "RUNTIMES",
    "SMOKE",
    "SUITES",
    "Host",
    "taken",
]


@dataclasses.dataclass(frozen=True)
class Host:
    """One row.

    Attributes:
        name: one word, for `--host` and the table. title: what it is, for people.
        kernel_arguments: what the virtual machine's kernel is told; None for the machine that this runs on.
        stands_in: taken only where the machine that this runs on has no cgroup v1, or when it is named.
    """

    name: str
    title: str
    kernel_arguments: str | None
    stands_in: bool = False


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
        # No further than basic.target: what a server starts beside it only costs time.
        kernel_arguments="systemd.show_status=false systemd.unit=basic.target systemd.wants=vm.service "
        "systemd.mask=timers.target",
    ),
    Host(
        name="hybrid",
        title="cgroup v1 with v2 beside it, an init that does nothing else; only where `here` has no v1",
        kernel_arguments="init=/usr/local/sbin/vm-init vm.hybrid",
        stands_in=True,
    ),
)


def taken(cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[Host, ...]:
    """The hosts of a whole run: one with cgroup v1 is enough, and each takes an hour."""
    v2_alone = (cgroups / "cgroup.controllers").exists()
    return tuple(host for host in HOSTS if v2_alone or not host.stands_in)


RUNTIMES = ("crun", "runc")

# What runs on every host: each file with a test of real containers, and what below them depends on the kernel.
MARK = "real"
SUITES = ("tests/keeper", "tests/logs")
# Not in the machines, where everything takes some 20 times as long; each with the reason, for the table.
NOT_THERE = {
    "tests/keeper/test_keeper_many.py": "tens of thousands of processes one after the other: minutes here, hours there",
    "tests/real/test_bad_input.py": "what is refused, nearly all of it before anything of the host is asked",
    "tests/cli/test_cli_bad_input.py": "what is refused, nearly all of it before anything of the host is asked",
    "tests/cli/test_cli_attach.py": "words to calls of the engine, which is tested itself",
    "tests/cli/test_cli_known.py": "words to calls of the engine, which is tested itself",
    "tests/test_sync.py": "the engine behind a thread; nothing of it is the host's",
    "tests/keeper/test_keeper_wire.py": "bytes in memory, the same on every Linux",
    "tests/logs/test_export.py": "bytes in files, the same on every Linux",
    "tests/logs/test_query.py": "bytes in files, the same on every Linux",
}

# Why a test may be skipped on every host: what its reason says there, and what is thought of it.
NOWHERE = {
    "needs Linux ": "no host here has a kernel as new; one that has runs it",
    "checkpoints are possible here": "is about a host without CRIU, and no host here is one",
}

# What a change has to pass in a virtual machine: pytest's node ids; one that is missing is an error.
SMOKE = (
    "tests/real/test_run.py::test_run_both_streams_are_kept_apart",
    "tests/real/test_limits_in_force.py::test_memory_limit_is_in_force",
    "tests/real/test_limits_in_force.py::test_cpus_are_in_force",
    "tests/real/test_limits_in_force.py::test_pids_limit_is_in_force",
    "tests/real/test_limits_in_force.py::test_oom_of_the_init_is_the_reason",
    "tests/real/test_pause_stats_top_update.py::test_pause_nothing_runs_and_resume_goes_on",
    "tests/real/test_pause_stats_top_update.py::test_stats_count_what_was_used",
    "tests/real/test_exec.py::test_exec_timeout_its_whole_tree_is_gone",
    "tests/real/test_exec_cgroups.py::test_P04_killing_ends_its_daemons_too",
    "tests/real/test_oom_events.py::test_P12_kills_are_told_while_it_runs",
    "tests/real/test_stop.py::test_stop_term_ignored_is_killed_after_the_grace",
    "tests/real/test_engine_killed.py::test_engine_killed_containers_end_meanwhile_codes_are_exact",
    "tests/real/test_checkpoints.py::test_checkpoint_ends_it_and_it_goes_on_from_there",
    "tests/real/test_systemd.py::test_end_of_the_engines_unit_ends_neither_keeper_nor_container[service-crun]",
    "tests/real/test_systemd.py::test_reload_of_systemd_takes_no_limit_away[crun]",
    "tests/oci/test_mounts.py::test_overlay_of_many_layers",
    "tests/keeper/test_keeper_takeover.py::test_a_spawn_whose_engine_died_is_found",
    "tests/keeper/test_keeper_takeover.py::test_a_keeper_in_groups_of_its_own",
)

# What is thought of a failure, for the table; the run fails all the same.
EXPLAINED = {
    "tests.real.test_limits_in_force.test_ulimits_hold_for_an_exec": "seen on hybrid and on v2, not in each run; the "
    "soft limit found is the hard one, as in the race of `runc exec` with Go's start-up of opencontainers/runc#4195; "
    "not tried with a runc that has it mended",
}
