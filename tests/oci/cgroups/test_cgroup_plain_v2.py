"""Version 2 as plain files: what is read from where, on a machine that has another version."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from cgroup_support import plain_v2, running

from lighterman.errors import InvalidSpec, NotFound, OperationTimeout
from lighterman.runtimes.oci.cgroups import Cgroup, files
from lighterman.spec import Pressure


def test_kill_of_a_threaded_cgroup_goes_by_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the kernel refuses cgroup.kill, and lists no processes."""
    with running("sleep", "1000") as process:
        host = plain_v2(tmp_path, cgroup__kill="", cgroup__threads=f"{process.pid}\n4194304\n")
        write = files.write

        def refuses(directory: int, name: str, text: str) -> bool:
            if name == "cgroup.kill":
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            return write(directory, name, text)

        monkeypatch.setattr(files, "write", refuses)
        cgroup = Cgroup("/lighterman/c1", host)
        assert cgroup.pids() == {process.pid}
        cgroup.kill(wait_s=0)
        assert process.wait() == -9


def test_statistics_are_read_from_the_documented_files(tmp_path: Path) -> None:
    host = plain_v2(
        tmp_path,
        cpu__stat="usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_throttled 1\nthrottled_usec 7\n",
        memory__current="1000\n",
        memory__peak="2000\n",
        memory__max="max\n",
        memory__stat="anon 1\ninactive_file 300\n",
        memory__events="low 0\nhigh 0\nmax 0\noom 2\noom_kill 1\noom_group_kill 0\n",
        pids__current="3\n",
        pids__max="64\n",
        io__stat="8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=6 rios=3 wios=4\n7:0 \n",
        cpu__pressure="some avg10=1.50 avg60=0.25 avg300=0.00 total=12\n",
        memory__pressure="some avg10=0 avg60=0.00 avg300=0.01 total=7\nfull avg10=0 avg60=2.00 avg300=0.00 total=3\n",
        io__pressure="nothing that is known\n",
    )
    read = Cgroup("/lighterman/c1", host).statistics()
    assert (read.cpu_ns, read.cpu_user_ns, read.cpu_system_ns) == (5_000_000, 3_000_000, 2_000_000)
    assert read.cpu_throttled_ns == 7000
    assert (read.memory_bytes, read.memory_peak_bytes, read.memory_limit_bytes) == (1000, 2000, None)
    assert read.memory_inactive_file_bytes == 300
    assert (read.memory_limit_events, read.oom_events, read.oom_kills) == (0, 2, 1)
    assert (read.pids, read.pids_limit) == (3, 64)
    assert read.cpu_pressure == Pressure(some_avg10=1.5, some_avg60=0.25, some_avg300=0.0, some_total_ns=12_000)
    assert read.memory_pressure == Pressure(
        some_avg10=0.0,
        some_avg60=0.0,
        some_avg300=0.01,
        some_total_ns=7000,
        full_avg10=0.0,
        full_avg60=2.0,
        full_avg300=0.0,
        full_total_ns=3000,
    )
    assert read.io_pressure is None
    assert (read.read_bytes, read.write_bytes, read.read_operations, read.write_operations) == (15, 26, 4, 6)


def test_statistics_are_none_where_a_controller_is_off(tmp_path: Path) -> None:
    host = plain_v2(tmp_path, cpu__stat="usage_usec 5\n", memory__peak="nonsense")
    read = Cgroup("/lighterman/c1", host).statistics()
    assert read.cpu_ns == 5000
    assert read.memory_bytes is read.memory_peak_bytes is read.pids is read.read_bytes is read.oom_kills is None
    assert read.cpu_pressure is read.memory_pressure is read.io_pressure is None
    assert read.oom_events is None
    with pytest.raises(NotFound):
        Cgroup("/lighterman/other", host).statistics()


def test_the_largest_pids_limit_is_none(tmp_path: Path) -> None:
    host = plain_v2(tmp_path, pids__max="4194304\n")
    assert Cgroup("/lighterman/c1", host).statistics().pids_limit is None


def test_kill_writes_the_file_and_says_no_while_it_is_populated(tmp_path: Path) -> None:
    host = plain_v2(tmp_path, cgroup__kill="", cgroup__events="populated 1\nfrozen 0\n", cgroup__procs="")
    cgroup = Cgroup("/lighterman/c1", host)
    assert not cgroup.kill(0)
    assert (tmp_path / "lighterman/c1/cgroup.kill").read_text() == "1"
    (tmp_path / "lighterman/c1/cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert cgroup.kill(0)


def test_freeze_that_does_not_come_about_is_undone(tmp_path: Path) -> None:
    host = plain_v2(tmp_path, cgroup__freeze="0\n", cgroup__events="populated 1\nfrozen 0\n")
    cgroup = Cgroup("/lighterman/c1", host)
    with pytest.raises(OperationTimeout, match="/lighterman/c1"):
        cgroup.freeze(0)
    assert (tmp_path / "lighterman/c1/cgroup.freeze").read_text().startswith("0")
    (tmp_path / "lighterman/c1/cgroup.events").write_text("populated 1\nfrozen 1\n")
    cgroup.freeze(0)
    assert cgroup.is_frozen()


def test_pids_that_a_namespace_hides_are_no_pids_and_not_empty(tmp_path: Path) -> None:
    cgroup = Cgroup("/lighterman/c1", plain_v2(tmp_path, cgroup__procs="0\n0\n"))
    assert cgroup.pids() == set()
    assert not cgroup.is_empty()


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    host = plain_v2(tmp_path / "root", memory__current="1\n")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "cgroup.procs").write_text("4242\n")
    (tmp_path / "root/lighterman/link").symlink_to(outside)
    (tmp_path / "root/lighterman/c1/below").symlink_to(outside)
    assert not Cgroup("/lighterman/link", host).exists()
    assert Cgroup("/lighterman/c1", host).pids() == set()


@pytest.mark.parametrize(
    "path",
    ["", "/", "lighterman/x", "/lighterman/../x", "/lighterman/.", "//x", "/x/", "/a\0b", "/a\nb", "/" + "n" * 256],
)
def test_a_path_that_could_climb_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="cgroup path"):
        Cgroup(path, plain_v2(tmp_path))
