"""`lighterman inspect` on a root in which containers live on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_support import lighterman, one_line, ran

pytestmark = pytest.mark.real


def inspected(root: str, *names: str) -> list[dict[str, Any]]:
    found = json.loads(ran("inspect", "--root", root, *names))
    assert isinstance(found, list)
    return found


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
