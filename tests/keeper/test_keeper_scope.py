"""The names of scopes: what a keeper makes, and where it may kill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lighterman.keeper import cgroup, scope
from lighterman.runtimes.oci.cgroups import group_of, group_parent


def test_path_is_the_roots_own_and_always_the_same() -> None:
    one, other = scope.path_of("/run/lighterman/roots/a"), scope.path_of("/run/lighterman/roots/b")
    assert one == scope.path_of("/run/lighterman/roots/a") != other
    assert scope.is_one(one)
    assert scope.is_one(scope.path_of("/run/\udcff"))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/system.slice",
        "/system.slice/lighterman-.scope",
        "/system.slice/lighterman-0123456.scope",
        "/system.slice/lighterman-0123456g.scope",
        "/system.slice/lighterman-01234567.service",
        "/system.slice/lighterman-01234567.scope/",
        "/system.slice/lighterman-../../x.scope",
        "/user.slice/lighterman-01234567.scope",
        "system.slice/lighterman-01234567.scope",
    ],
)
def test_what_is_no_scope_of_ours(path: str) -> None:
    assert not scope.is_one(path)
    assert not cgroup.is_a_container(f"{path}/lighterman/box") or path == ""


def test_containers_of_a_scope_may_be_ended_and_nothing_else_there() -> None:
    path = scope.path_of("/run/x")
    assert cgroup.is_a_container(f"{path}/lighterman/box")
    for below in ("", "/lighterman", "/lighterman/", "/lighterman-keeper", "/lighterman/../lighterman-keeper", "/x/y"):
        assert not cgroup.is_a_container(path + below), below


def test_group_of_a_container_that_is_nowhere_is_at_the_top(tmp_path: Path) -> None:
    assert group_of(str(tmp_path), "box") == "/lighterman/box"


def test_parent_is_beside_the_keeper(tmp_path: Path) -> None:
    # This process is in no scope of a root, and there is no process of that number.
    assert group_parent(str(tmp_path), os.getpid()) == "/lighterman"
    assert group_parent(str(tmp_path), 2**31 - 1) == "/lighterman"
