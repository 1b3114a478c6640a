"""`lighterman run`: its options, as docker calls them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import click

__all__ = ["command"]

Decorated = Callable[..., Any]

_PLAIN = (
    ("-w", "--workdir", "DIR", "Working directory inside the container."),
    ("-u", "--user", "USER[:GROUP]", "Name or number, looked up inside the container."),
    ("-h", "--hostname", "NAME", "Host name of the container."),
    ("-m", "--memory", "SIZE", "Memory limit, as 256m."),
    ("--memory-swap", None, "SIZE", "Memory and swap together; -1 for no limit."),
    ("--memory-reservation", None, "SIZE", "Soft memory limit."),
    ("--shm-size", None, "SIZE", "Size of /dev/shm (64m)."),
    ("--cpus", None, "NUMBER", "CPUs, as 1.5."),
    ("--cpuset-cpus", None, "LIST", "CPUs that may be used, as 0-2,5."),
    ("--cpuset-mems", None, "LIST", "Memory nodes that may be used."),
    ("--stop-signal", None, "SIGNAL", "Signal that asks the program to end (TERM)."),
    ("--runtime", None, "NAME", "crun, runc or youki (the first that works)."),
    ("--restart", None, "POLICY", "no, on-failure[:max], always or unless-stopped."),
    ("--timeout", None, "TIME", "End it after this time, as 90s or 1h30m; also when this command is gone."),
    ("--health-cmd", None, "COMMAND", "For the container's shell: healthy if it exits with 0."),
    ("--health-interval", None, "TIME", "Between two looks (30s)."),
    ("--health-timeout", None, "TIME", "A look that takes longer has failed (30s)."),
    ("--health-start-period", None, "TIME", "Failures do not count so long after the start (0s)."),
    ("--health-start-interval", None, "TIME", "Between two looks in that time, and before the first (1s)."),
    ("--health-on-failure", None, "ACTION", "none, restart, stop or kill, when it is unhealthy (none)."),
    ("--log-policy", None, "POLICY", "When the disk takes no output: block, drop-oldest or drop-newest (block)."),
)
_NUMBERS = (
    ("--cpu-shares", "Relative CPU weight, 2 to 262144."),
    ("--pids-limit", "Most processes and threads; -1 for no limit."),
    ("--blkio-weight", "Relative block I/O weight, 10 to 1000."),
    ("--health-retries", "Failures in a row that make it unhealthy (3)."),
    ("--oom-score-adj", "-1000 to 1000: whom the kernel kills first."),
)
_MANY = (
    ("-e", "--env", "KEY[=VALUE]", "Environment variable; without a value, that of this shell."),
    ("--env-file", None, "FILE", "File of KEY[=VALUE] lines."),
    ("-l", "--label", "KEY[=VALUE]", "Label of the container."),
    ("-v", "--volume", "SOURCE:TARGET[:ro]", "Directory or file of this host inside the container."),
    ("--tmpfs", None, "TARGET[:OPTIONS]", "Memory file system; options size=64m, mode=1777, ro."),
    ("--device", None, "DEVICE[:TARGET[:rwm]]", "Device of this host inside the container."),
    ("--sysctl", None, "KEY=VALUE", "Kernel parameter of the container's namespaces."),
    ("--ulimit", None, "NAME=SOFT[:HARD]", "Resource limit of its processes; -1 is unlimited."),
    ("--cap-add", None, "NAME", "Capability to add, or ALL."),
    ("--cap-drop", None, "NAME", "Capability to drop, or ALL."),
    ("--security-opt", None, "OPTION", "no-new-privileges, seccomp=unconfined or seccomp=FILE."),
    (
        "--restart-opt",
        None,
        "KEY=VALUE",
        "delay, max-delay, multiplier, jitter, reset-after, burst, interval, on (code or SIGNAME), never-on.",
    ),
    ("--log-sink", None, "SINK", "Also send the log there: journald[:SOCKET] or syslog[:SOCKET|udp://IP:PORT]."),
    ("--device-read-bps", None, "DEVICE:SIZE", "Bytes read a second."),
    ("--device-write-bps", None, "DEVICE:SIZE", "Bytes written a second."),
    ("--device-read-iops", None, "DEVICE:NUMBER", "Reads a second."),
    ("--device-write-iops", None, "DEVICE:NUMBER", "Writes a second."),
)
_FLAGS = (
    ("-d", "--detach", "Leave it running in --root, and print its id."),
    ("--rm", None, "Remove the container at its end (without --root it always is)."),
    ("-i", "--interactive", "Pass stdin on, to its end of file; with -d what is attached later does."),
    ("-t", "--tty", "Give the program a terminal. There are no keys to detach with; -d and `attach` do."),
    ("--privileged", None, "All capabilities and devices, no confinement."),
    ("--read-only", None, "The root can't be written."),
    ("--init", None, "An init process that reaps and forwards signals."),
    ("--rw", None, "What is written to --rootfs stays there."),
    ("--timings", None, "At the end show on stderr where the time went."),
)


def _options(function: Decorated) -> Decorated:
    parts: list[Callable[[Decorated], Decorated]] = []
    for short, long, metavar, text in _PLAIN:
        parts.append(click.option(*filter(None, (short, long)), metavar=metavar, help=text))
    for name, text in _NUMBERS:
        parts.append(click.option(name, type=int, help=text))
    for short, long, metavar, text in _MANY:
        parts.append(click.option(*filter(None, (short, long)), metavar=metavar, multiple=True, help=text))
    for short, long, text in _FLAGS:
        parts.append(click.option(*filter(None, (short, long)), is_flag=True, help=text))
    parts += [
        click.option("--name", metavar="NAME", help="Name of the container."),
        click.option("--network", "--net", "network", metavar="none|host", default="none", help="Network (none)."),
        click.option("--rootfs", metavar="DIR", help="A directory in place of an image; unchanged, unless --rw."),
        click.option(
            "--root", metavar="DIR", help="State of the engine; by default a private one, removed at the end."
        ),
        click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="IMAGE|DIR [COMMAND...]"),
    ]
    for part in reversed(parts):
        function = part(function)
    return function


@click.command(
    "run",
    help="Run a command in a new container, in the foreground. A DIR is a path with a slash, as ./rootfs. "
    "Options after IMAGE are the command's.",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]},
)
@_options
def command(**given: Any) -> int:
    """Returns the exit code."""
    # asyncio does without it where it can't be imported; that saves 3.5 of 154 ms of CPU (median of 30 pairs of
    # processes that import what this does), and there is no TLS here.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    from lighterman.cli.asked import Asked
    from lighterman.cli.lasting import Lasting

    lasting = Lasting(**{name: given.pop(name) for name in Lasting.__struct_fields__})
    asked = Asked(lasting=lasting, **given)
    gc.freeze()
    gc.enable()
    if asked.detach:
        from lighterman.cli.at_root import run_detached

        return run_detached(asked)
    from lighterman.cli.foreground import run_in_foreground

    return run_in_foreground(asked)
