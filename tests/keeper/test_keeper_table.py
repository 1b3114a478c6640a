"""Which exit belongs to which job: pids are used again, orders are arbitrary, an exit can be told twice."""

from __future__ import annotations

from lighterman.keeper.table import Row, Table, Unclaimed


def add(table: Table, job: str) -> Row:
    return table.add(job, 0, {}, None, b"", b"")


def test_an_exit_before_the_runtime_returned_is_claimed_once() -> None:
    unclaimed = Unclaimed()
    unclaimed.add(100, 7, mono_ns=50, oldest_call_ns=10)
    assert unclaimed.claim(100, spawned_ns=10) == (7, 50)
    assert unclaimed.claim(100, spawned_ns=10) is None


def test_a_stale_exit_of_the_same_pid_is_not_taken_for_a_new_job() -> None:
    unclaimed = Unclaimed()
    unclaimed.add(100, 9, mono_ns=50, oldest_call_ns=10)
    assert unclaimed.claim(100, spawned_ns=60) is None


def test_the_newer_exit_of_a_pid_counts() -> None:
    unclaimed = Unclaimed()
    unclaimed.add(100, 9, mono_ns=50, oldest_call_ns=10)
    unclaimed.add(100, 3, mono_ns=70, oldest_call_ns=10)
    assert unclaimed.claim(100, spawned_ns=60) == (3, 70)


def test_without_a_call_in_flight_nothing_is_kept() -> None:
    unclaimed = Unclaimed()
    unclaimed.add(100, 9, mono_ns=50, oldest_call_ns=10)
    unclaimed.add(101, 9, mono_ns=51, oldest_call_ns=None)
    assert len(unclaimed) == 0


def test_exits_older_than_the_oldest_call_are_pruned() -> None:
    unclaimed = Unclaimed()
    for number in range(10_000):
        unclaimed.add(number, 0, mono_ns=number, oldest_call_ns=number - 10)
    assert len(unclaimed) <= 128
    assert unclaimed.claim(9_999, spawned_ns=9_989) == (0, 9_999)


def test_exits_that_a_call_may_still_claim_are_never_pruned() -> None:
    unclaimed = Unclaimed()
    for number in range(1_000):
        unclaimed.add(number, number, mono_ns=number + 1, oldest_call_ns=1)
    assert [unclaimed.claim(number, spawned_ns=1) for number in range(1_000)] == [
        (number, number + 1) for number in range(1_000)
    ]


def test_a_pid_belongs_to_a_job_only_until_it_is_reaped() -> None:
    table = Table()
    first, second = add(table, "first"), add(table, "second")
    table.started(first, 100, 1)
    assert table.running(100) is first
    assert table.ended(first, 0, 5, 5)
    assert table.running(100) is None
    table.started(second, 100, 2)
    table.remove(first)
    assert table.running(100) is second


def test_an_exit_told_twice_changes_nothing() -> None:
    table = Table()
    row = add(table, "a")
    table.started(row, 100, 1)
    assert table.ended(row, 256, 5, 6)
    assert not table.ended(row, 0, 7, 8)
    assert (row.status, row.mono_ns, row.wall_ns) == (256, 5, 6)


def test_rows_come_in_the_order_of_their_spawns() -> None:
    table = Table()
    rows = [add(table, name) for name in ("c", "a", "b")]
    table.remove(rows[1])
    assert [row.job for row in table.after(0)] == ["c", "b"]
    assert [row.job for row in table.after(rows[0].serial)] == ["b"]
    again = add(table, "a")
    assert [row.job for row in table.after(rows[2].serial)] == ["a"]
    assert again.serial > rows[2].serial
