"""How a lease that has ended is enforced: all is killed first, then tidied in pieces, the rarer the less of it goes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import pytest

from lighterman.keeper import cgroup, leases, wire
from lighterman.keeper.leases import Lease, Leases
from lighterman.keeper.table import Table

JOBS = 300


class World:
    """A table of jobs that runs nothing, on a clock of its own: which were killed, and which groups were looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.look_s = 0.0
        self.killed: list[int] = []
        self.looked: list[tuple[float, str]] = []
        self.gone: Callable[[str], bool] = lambda _path: False
        self.table = Table()
        self.leases = Leases(self.table, lambda *_: None, lambda *_: None, lambda *_: None)
        monkeypatch.setattr(os, "kill", lambda pid, _signal: self.killed.append(pid))
        monkeypatch.setattr(leases, "monotonic", lambda: self.now)
        monkeypatch.setattr(leases, "clock_gettime", lambda _clock: self.now)
        monkeypatch.setattr(cgroup, "mounts", lambda _controller=None: [])
        monkeypatch.setattr(cgroup, "kill", lambda path, _mounts: self.looked.append((self.now, f"kill {path}")))
        monkeypatch.setattr(cgroup, "end", self._end)

    def _end(self, path: str, _mounts: list[str]) -> bool:
        self.looked.append((self.now, path))
        self.now += self.look_s
        return self.gone(path)

    def begin(self, jobs: int, groups: tuple[str, ...] = ()) -> None:
        for number in range(jobs):
            recipe = wire.encode({"cgroup": f"/lighterman/a/{number}"})
            row = self.table.add(f"j{number}", number, {}, None, recipe, b"")
            row.lease = "mine"
            self.table.started(row, 1000 + number, 1)
        self.leases.grant(Lease("mine", None, 1.0, [], list(groups)))

    def turns(self, until: float) -> list[Lease]:
        """The loop of a keeper without anything else to do."""
        over: list[Lease] = []
        while (due := self.leases.next_due()) is not None and max(due, self.now) <= until:
            self.now = max(due, self.now)
            over += self.leases.enforce(attended=False)
        return over


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_all_are_killed_before_anything_is_tidied(world: World) -> None:
    world.begin(JOBS)
    world.look_s = 0.01
    world.turns(1.0)
    assert (sorted(world.killed), world.looked) == ([1000 + number for number in range(JOBS)], [])
    assert all(row.lease_ended for row in world.table.rows())


def test_all_groups_of_a_lost_keeper_are_killed_before_any_is_tidied(world: World) -> None:
    groups = tuple(f"/lighterman/a/{number}" for number in range(JOBS))
    world.begin(0, groups)
    world.look_s, world.gone = 0.001, lambda _path: True
    assert [lease.name for lease in world.turns(10.0)] == ["mine"]
    assert [what for _, what in world.looked[:JOBS]] == [f"kill {path}" for path in reversed(groups)]
    assert {what for _, what in world.looked[JOBS:]} == set(groups)


def test_a_turn_of_the_loop_is_a_piece(world: World) -> None:
    world.begin(JOBS)
    world.look_s = 0.001
    world.turns(1.01)
    world.now = world.leases.next_due() or 0.0
    while len(world.looked) < JOBS:
        before = world.now
        world.leases.enforce(attended=False)
        assert 0 < world.now - before <= leases._PIECE_S + 2 * world.look_s
        # At once again, as long as this round lasts: what has come meanwhile is served in between.
        due = world.leases.next_due()
        assert due is not None
        world.now = max(due, world.now)
    assert len({path for _, path in world.looked}) == JOBS


def test_what_does_not_die_is_looked_at_ever_more_rarely(world: World) -> None:
    world.begin(2)
    world.turns(100.0)
    times = sorted({at for at, _ in world.looked})
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[0] < 0.05
    assert gaps[-1] == pytest.approx(leases._AGAIN_MAX_S)
    assert len(times) < 120
    # Something has gone: the rest may follow soon.
    world.looked.clear()
    row = world.table.get("j0")
    assert row is not None
    world.table.ended(row, 9, 0, 0)
    world.gone = lambda path: path.endswith("/0")
    world.turns(102.0)
    times = sorted({at for at, path in world.looked if path.endswith("/1")})
    assert min(after - before for before, after in itertools.pairwise(times)) < 0.05


def test_what_was_acknowledged_meanwhile_is_not_handed_over(world: World) -> None:
    world.begin(3)
    world.turns(50.0)
    row = world.table.get("j1")
    assert row is not None
    world.table.remove(row)
    assert [[row.job for row in lease.rows] for lease in world.leases.ending()] == [["j0", "j2"]]
