"""Arguments that no verb can take: one clear line of the right class for each, and nothing is left of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lighterman import Engine, InvalidSpec, LightermanError, Resources

NAN = math.nan
HALF = "\ud800"  # of a surrogate pair: text that no file or argument can hold

RUN: list[dict[str, Any]] = [
    *({"timeout_s": value} for value in (NAN, -1, math.inf, "5", True, 10**400, 10**5000)),
    *({"max_output": value} for value in (-1, "1", 1.5, True, 10**5000)),
    *({"stdin": value} for value in ("text", 5, True)),
    *({"env": value} for value in (["A=B"], {"A": 1}, {"A\0": "x"}, {"A=": "x"}, {"A": HALF}, 5)),
    *({"labels": value} for value in ({"a\0b": "x"}, {"": "x"}, {HALF: "x"}, {"a": HALF}, {"a": 1}, 5, ["a"])),
    *({"memory": value} for value in (NAN, -1, "many", [1], True)),
    *({"cpus": value} for value in (NAN, -1, "two", [1], True)),
    *({"mounts": value} for value in ([5], 5, "/a:/b", ["/a"], [None])),
    *({"devices": value} for value in ([5], 5, "/dev/null", ["/dev/null:::"])),
    *({"ulimits": value} for value in ([5], "nofile", ["nofile"])),
    *({"console_size": value} for value in (5, (1,), ("a", "b"), (0, 0), (-1, 5), (1.5, 2), (70000, 1))),
    *({"rootfs": value} for value in (5, b"/", "/a\0", "/" + HALF)),
    *({"restart": value} for value in (5, "sometimes", "on-failure:x")),
    *({"log_sinks": value} for value in (5, [5], "journald")),
    *({"log_policy": value} for value in ("forget", 5)),
    *({"ready": value} for value in (5, "soon")),
    *({"health": value} for value in (5, "well")),
    *({"stop_signal": value} for value in (0, -1, 65, "TERM", 1.5)),
    *({"hostname": value} for value in ("a\0", 5, HALF, "")),
    *({"user": value} for value in (5, "a\0", HALF, "nobody-at-all")),
    *({"workdir": value} for value in ("relative", 5, "/a\0", "/" + HALF)),
    *({"network": value} for value in ("world", 5)),
    *({"cap_add": value} for value in ("NET_ADMIN", ["FLY"], [5])),
    *({"sysctls": value} for value in ({"a": 5}, 5)),
    *({"oom_score_adj": value} for value in (5000, "x")),
    *({"ttl_s": value} for value in (NAN, -1, 0, "5", True)),
    *({"seccomp": value} for value in (5, "/no/such/profile")),
    *({"name": value} for value in (5, "", "a/b", "..", "a\0", HALF, "x" * 129)),
    *({"argv": value} for value in ("true", [5], [b"true"], ["a\0"], 5, None, [""], [HALF], {"a": 1})),
    *({"pids_limit": value} for value in ("x", -5, 1.5)),
    *({"shm_size": value} for value in (-1, "x")),
    *({"image": value} for value in (5, "", "a\0", "../x", "x" * 5000, b"busybox", HALF)),
]

EXEC: list[dict[str, Any]] = [
    *(wrong for wrong in RUN if wrong.keys() & {"timeout_s", "max_output", "stdin", "env", "user", "workdir", "argv"}),
    {"argv": []},
]

START_EXEC: list[dict[str, Any]] = [
    *({"timeout_s": value} for value in (NAN, -1, "5", 10**400, 10**5000)),
    *({"console_size": value, "terminal": True} for value in (5, (0, 0), ("a", 1), 10**5000, (10**5000, 1))),
    {"terminal": "yes"},
    {"stdin": 5},
]


def shown(wrong: dict[str, Any]) -> str:
    huge = 10**5000
    words = {
        name: "huge" if huge in (value, *(value if isinstance(value, tuple) else ())) else ascii(value)
        for name, value in wrong.items()
    }
    return " ".join(f"{name}={word}"[:40] for name, word in words.items())


async def _answers_later(_: object) -> float:
    return 0.1


def one_clear_line(error: LightermanError) -> bool:
    return bool(str(error)) and "\n" not in str(error) and len(str(error)) < 1000


async def refused(verb: Any, wrong: dict[str, Any]) -> None:
    __tracebackhide__ = True
    with pytest.raises(LightermanError) as caught:
        await verb(**wrong)
    assert one_clear_line(caught.value), caught.value


async def test_run_refuses(engine: Engine) -> None:
    async def run(image: Any = "busybox", argv: Any = ("true",), **options: Any) -> None:
        await engine.run(image, argv, **options)

    for wrong in RUN:
        try:
            await refused(run, wrong)
        except BaseException as other:
            raise AssertionError(f"run {shown(wrong)}") from other
    assert await engine.containers() == []


async def test_exec_refuses(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:

        async def exec(argv: Any = ("true",), **options: Any) -> None:
            await box.exec(argv, **options)

        async def start_exec(**options: Any) -> None:
            await box.start_exec(["true"], **options)

        for verb, wrongs in ((exec, EXEC), (start_exec, START_EXEC)):
            for wrong in wrongs:
                try:
                    await refused(verb, wrong)
                except BaseException as other:
                    raise AssertionError(f"{verb.__name__} {shown(wrong)}") from other
        assert await box.execs() == []
        assert [process.pid for process in await box.top()] == [box.pid]


async def test_other_verbs_refuse(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], ttl_s=1000) as box:

        async def logs(**asked: Any) -> None:
            async for _ in box.logs(**asked):
                pass

        async def events(after: Any, **asked: Any) -> None:
            async for _ in engine.events(after=after, follow=False, **asked):
                pass

        tried: list[tuple[Any, dict[str, Any]]] = [
            *((box.wait, {"timeout_s": value}) for value in (NAN, -1, "x", True, math.inf, 10**400)),
            *((box.wait, {"until": value}) for value in ("later", 5)),
            *((box.stop, {"grace_s": value}) for value in (NAN, -1, "x", None, math.inf)),
            *((box.kill, {"signal": value}) for value in (0, -1, 65, 10**5000, "FOO", NAN, None, True, b"TERM", 1.5)),
            *((box.resize, {"height": value, "width": 1}) for value in (0, -1, "a", 70000, 1.5, None, 10**5000)),
            *((box.update, {"resources": value}) for value in (None, 5, {"cpus": 1}, "x", Resources(memory_bytes=-5))),
            *((box.update, {"resources": value}) for value in (Resources(cpus=NAN), Resources(cpus=-1))),
            (box.update, {"resources": Resources(memory_bytes="64M")}),  # type: ignore[arg-type]
            *(
                (box.set_restart_policy, {"policy": value})
                for value in (5, None, "sometimes", "on-failure:x", _answers_later)
            ),
            *((box.renew, {"ttl_s": value}) for value in (NAN, -1, "x", math.inf)),
            *((box.get_exec, {"id": value}) for value in (5, None, "\0", HALF, [1])),
            *((logs, {"after": value}) for value in (5, "x")),
            *((logs, {"since": value}) for value in ("x", NAN, math.inf)),
            *((logs, {"until": value}) for value in ("x", NAN)),
            *((logs, {"tail": value}) for value in (-1, "x", 1.5)),
            *((logs, {"streams": value}) for value in ("stdin", 5, [5], [])),
            *((events, {"after": value}) for value in (-1, "x", 10**30, NAN, 1.5)),
            *((events, {"after": 0, "kinds": value}) for value in ("exit", 5)),
            *((engine.get, {"name_or_id": value}) for value in (5, None, b"x", "\0", HALF, [1])),
        ]
        for verb, wrong in tried:
            try:
                await refused(verb, wrong)
            except BaseException as other:
                raise AssertionError(f"{verb.__name__} {shown(wrong)}") from other
        assert box.status == "running"


async def test_text_for_stdin_is_refused_by_its_writer(engine: Engine) -> None:
    async with engine.container("busybox", ["cat"], stdin=True) as box:
        for wrong in ("text", 5, None, [1]):
            with pytest.raises(TypeError):
                box.stdin.write(wrong)  # type: ignore[arg-type]
        box.stdin.write(b"bytes")
        box.stdin.write_eof()
        assert await box.stdout.read() == b"bytes"


async def test_missing_command_is_not_taken_for_a_bad_argument(engine: Engine) -> None:
    with pytest.raises(InvalidSpec):
        await engine.run("busybox", "no list")
    with pytest.raises(LightermanError) as caught:
        await engine.run("busybox", ["no-such-command"])
    assert not isinstance(caught.value, InvalidSpec)
