"""What was asked for is stored: what a later engine could not read of it is refused when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from lighterman.asking import as_stored, container_spec, split_restart, split_sinks
from lighterman.checks import Exec, File, HealthCheck, LogPattern, Tcp
from lighterman.errors import InvalidSpec
from lighterman.lifecycle.restart import RunEnd
from lighterman.spec import (
    BlkioLimit,
    ContainerSpec,
    Device,
    JournaldSink,
    Mount,
    Resources,
    RestartPolicy,
    SyslogSink,
    Ulimit,
)


def changed(value: msgspec.Struct, name: str, wrong: object) -> Any:
    """As a value is that was made by who knows how: nothing has checked it."""
    msgspec.structs.force_setattr(value, name, wrong)
    return value


WRONG: list[tuple[str, Callable[[], object], str]] = [
    ("restart", lambda: changed(RestartPolicy(), "name", "sometimes"), "sometimes"),
    ("restart", lambda: changed(RestartPolicy(), "force_codes", (3.5,)), r"3\.5"),
    ("restart", lambda: changed(RestartPolicy(), "initial_delay_s", math.inf), "inf"),
    ("health", lambda: HealthCheck(changed(Exec(["sleep"]), "argv", ("sleep", 1))), "'sleep', 1"),
    ("health", lambda: HealthCheck(changed(Tcp(80), "port", "80")), "'80'"),
    ("health", lambda: changed(HealthCheck(Tcp(80)), "retries", 1.5), r"1\.5"),
    ("ready", lambda: changed(LogPattern("x"), "stream", "stdin"), "stdin"),
    ("mounts", lambda: [Mount(target=5)], "target=5"),  # type: ignore[arg-type]
    ("mounts", lambda: [Mount(target="/x", type="nfs")], "nfs"),  # type: ignore[arg-type]
    ("devices", lambda: [Device(path_on_host=b"/dev/null")], "/dev/null"),  # type: ignore[arg-type]
    ("ulimits", lambda: [Ulimit(name="nofile", soft=1.5, hard=2)], r"1\.5"),  # type: ignore[arg-type]
    ("device_read_bps", lambda: [BlkioLimit(path="/dev/sda", rate="1M")], "1M"),  # type: ignore[arg-type]
    ("log_sinks", lambda: [JournaldSink(path=5)], "path 5"),  # type: ignore[arg-type]
    ("log_sinks", lambda: [SyslogSink(facility="user")], "facility 'user'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("option", "make", "named"), WRONG, ids=[f"{at}-{one[0]}" for at, one in enumerate(WRONG)])
def test_value_that_could_not_be_read_again_is_refused(option: str, make: Callable[[], object], named: str) -> None:
    options: Any = {option: make()}
    with pytest.raises(InvalidSpec, match=named) as caught:
        container_spec("busybox", ["true"], stdin=False, options=options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000


def test_what_is_taken_is_read_again() -> None:
    options: Any = {
        "restart": RestartPolicy(name="always", reset_after_s=math.inf, force_codes=(3, "SIGTERM")),
        "health": HealthCheck(Exec(["sleep", "1"]), startup=File("/x", max_age_s=5), on_unhealthy="restart"),
        "ready": LogPattern("up"),
        "mounts": ["/a:/b:ro", Mount(type="tmpfs", target="/x", size_bytes=4096)],
        "device_read_bps": [],
        "log_sinks": [JournaldSink(), SyslogSink(facility=3)],
    }
    spec = container_spec("busybox", ["true"], stdin=False, options=options)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ContainerSpec) == spec
    assert spec.restart.reset_after_s is None


@pytest.mark.parametrize("words", [["sleep", 1], [b"sleep"], 5, [None]])
def test_probe_command_must_be_texts(words: Any) -> None:
    with pytest.raises(InvalidSpec, match="probe command"):
        Exec(words)


def test_file_that_may_be_of_any_age() -> None:
    check = HealthCheck(File("/x", max_age_s=math.inf))
    assert container_spec("busybox", [], stdin=False, options={"health": check}).health == HealthCheck(File("/x"))


@pytest.mark.parametrize(
    ("resources", "named"),
    [
        (Resources(memory_bytes="64M"), "memory_bytes '64M'"),  # type: ignore[arg-type]
        (Resources(cpus=math.nan), "cpus nan"),
        (Resources(device_read_bps=("/dev/sda",)), "device_read_bps"),  # type: ignore[arg-type]
    ],
)
def test_resources_that_could_not_be_read_again_are_refused(resources: Resources, named: str) -> None:
    with pytest.raises(InvalidSpec, match=named):
        as_stored("resources", resources)


def test_lists_in_resources_are_taken() -> None:
    given: Any = Resources(device_read_bps=[BlkioLimit(path="/dev/sda", rate=5)], device_write_bps=[])  # type: ignore[arg-type]
    assert as_stored("resources", given).device_read_bps == (BlkioLimit(path="/dev/sda", rate=5),)


def test_changed_policy_that_could_not_be_read_again_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="sometimes"):
        split_restart(changed(RestartPolicy(), "name", "sometimes"))


async def _soon(_: Sequence[RunEnd]) -> float:
    return 0.1


class _Soon:
    async def __call__(self, _: Sequence[RunEnd]) -> float:
        return 0.1


@pytest.mark.parametrize("rule", [_soon, _Soon()])
def test_policy_that_answers_later_is_refused(rule: Any) -> None:
    with pytest.raises(InvalidSpec, match="not a coroutine"):
        split_restart(rule)


def test_sinks_are_checked_before_they_are_looked_at() -> None:
    with pytest.raises(InvalidSpec, match="address 5"):
        split_sinks([SyslogSink(address=5)])  # type: ignore[arg-type]
