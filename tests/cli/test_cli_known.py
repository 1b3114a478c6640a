"""`lighterman inspect` and `events` on a root in which containers live on."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_support import lighterman, one_line, ran, start

pytestmark = pytest.mark.real


def inspected(root: str, *names: str) -> list[dict[str, Any]]:
    found = json.loads(ran("inspect", "--root", root, *names))
    assert isinstance(found, list)
    return found


def told(root: str, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran("events", "--json", "--root", root, *options).splitlines()]


# ---- inspect -----------------------------------------------------------------------------------------------------


def test_inspect_tells_what_was_asked_for_and_what_is(root: str) -> None:
    options = ["-e", "A=b", "-l", "k=v", "--health-cmd", "true", "--log-sink", "syslog:/no/such/socket"]
    id = ran("run", "-d", "--root", root, "--name", "box", *options, "busybox", "sleep", "1000").strip()
    lighterman("run", "--root", root, "--name", "old", "busybox", "sh", "-c", "printf '\\377x' >&2; exit 3")
    old, box = inspected(root, "old", id[:12])
    assert (box["id"], box["name"], box["status"], box["generation"], box["exit"]) == (id, "box", "running", 1, None)
    assert Path(f"/proc/{box['pid']}/comm").read_text() == "sleep\n"
    assert box["runtime"] in ("crun", "runc", "youki")
    assert box["lease"]["kind"] is None
    spec = box["spec"]
    assert (spec["image"], spec["argv"], spec["env"]["A"]) == ("busybox", ["sleep", "1000"], "b")
    assert (spec["labels"], spec["read_only"], spec["restart"]["name"]) == ({"k": "v"}, False, "no")
    assert (spec["health"]["probe"]["kind"], spec["log_sinks"][0]["type"]) == ("exec", "syslog")
    assert (old["status"], old["exit"]["code"], old["exit"]["signal"], old["pid"]) == ("exited", 3, None, 0)
    assert old["exit"]["last_words"] == "\\xffx"
    assert set(old) == set(box)
    assert set(old["spec"]) == set(spec)


def test_inspect_goes_on_after_what_is_not_there(root: str) -> None:
    lighterman("run", "--root", root, "--name", "box", "busybox", "true")
    done = lighterman("inspect", "--root", root, "nosuch", "box")
    assert done.returncode == 125
    assert "nosuch" in one_line(done)
    assert [one["name"] for one in json.loads(done.stdout)] == ["box"]
    ran("rm", "--root", root, "box")
    done = lighterman("inspect", "--root", root, "box")
    assert (done.returncode, json.loads(done.stdout), "removed" in one_line(done)) == (125, [], True)


# ---- events ------------------------------------------------------------------------------------------------------


def test_events_in_order_from_a_number_on_and_of_one(root: str) -> None:
    lighterman("run", "--root", root, "--name", "a", "busybox", "sh", "-c", "exit 3")
    lighterman("run", "--root", root, "--name", "b", "busybox", "true")
    events = told(root)
    assert [(event["name"], event["kind"]) for event in events] == [
        (name, kind) for name in "ab" for kind in ("create", "start", "exit")
    ]
    assert [event["seq"] for event in events] == sorted({event["seq"] for event in events})
    assert told(root, "--after", str(events[1]["seq"])) == events[2:]
    assert told(root, "--container", "b") == events[3:]
    assert told(root, "--container", events[0]["container"][:8]) == events[:3]

    lines = ran("events", "--root", root).splitlines()
    number, time, kind, name, id, *more = lines[2].split(" ", 5)
    assert (int(number), kind, name, id) == (events[2]["seq"], "exit", "a", events[0]["container"][:12])
    assert re.fullmatch(r"[-\d]{10}T[:.\d]{15}Z", time)
    assert "exit='exit code 3'" in more[0]
    assert len(lines) == 6

    ran("rm", "--root", root, "a", "b")
    assert [event["kind"] for event in told(root, "--container", "a")] == ["create", "start", "exit", "remove"]


def test_events_outlive_a_container_and_its_tombstone(root: str) -> None:
    for code in (1, 2):
        lighterman("run", "--rm", "--root", root, "--name", "box", "busybox", "sh", "-c", f"exit {code}")
    assert len({event["container"] for event in told(root)}) == 2
    late = {**os.environ, "LIGHTERMAN_TOMBSTONE_S": "0"}
    lines = ran("events", "--json", "--root", root, "--container", "box", env=late).splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["exit"]["code"] for event in events if event["kind"] == "exit"] == [2]


def test_events_are_followed_until_ctrl_c(root: str, tmp_path: Path) -> None:
    flags = tmp_path / "flags"
    flags.mkdir()
    script = "while ! test -e /flags/$0; do sleep 0.05; done; exit 5"
    for name in ("one", "two"):
        words = ["-v", f"{flags}:/flags", "busybox", "sh", "-c", script, name]
        ran("run", "-d", "--root", root, "--name", name, *words)
    last = told(root)[-1]["seq"]
    with start("events", "-f", "--json", "--after", str(last), "--container", "one", "--root", root) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert json.loads(program.stdout.readline())["kind"] == "restore"
        (flags / "one").touch()
        event = json.loads(program.stdout.readline())
        assert (event["kind"], event["name"], event["exit"]["code"]) == ("exit", "one", 5)
        program.send_signal(signal.SIGINT)
        # click ends the line in which a terminal shows ^C.
        assert (program.wait(60), program.stdout.read(), program.stderr.read().strip()) == (130, b"", b"")
    with start("events", "-f", "--root", root) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        while b" restore two " not in program.stdout.readline():
            continue
        program.stdout.close()
        (flags / "two").touch()
        assert (program.wait(60), program.stderr.read()) == (141, b"")


def test_what_can_not_be_is_one_line(root: str) -> None:
    lighterman("run", "--root", root, "--name", "box", "busybox", "true")
    for options, said in (
        (["--container", "nosuch"], "nosuch"),
        (["--after", "few"], "few"),
        (["--after=-1"], "-1"),
        (["--after", "9" * 30], "9999"),
    ):
        done = lighterman("events", "--root", root, *options)
        assert (done.returncode, done.stdout) == (125, b"")
        assert said in one_line(done)
