"""The generated documents in real containers: what a program inside them sees, and what it may not do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from document_support import busybox_root, run_script

from lighterman.runtimes.oci.document_host import CAPABILITIES, HostFacts
from lighterman.runtimes.oci.document_process import DEFAULT_CAPABILITIES
from lighterman.spec import Device, Mount, Resources, Ulimit

pytestmark = pytest.mark.real


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return busybox_root(tmp_path)


def _mask(names: tuple[str, ...]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def test_the_default_posture(real_runtime: str, tmp_path: Path, root: Path) -> None:
    script = """
        grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status
        for kind in pid ipc uts mnt net; do echo "ns $kind $(readlink /proc/self/ns/$kind)"; done
        echo "host $(hostname) pid $$"; id; pwd; env
        cat /proc/kcore 2>/dev/null | head -c 1 | wc -c
        ls /sys/firmware | wc -l
        echo 1 2>/dev/null > /proc/sys/kernel/panic || echo "sys read-only"
        touch /sys/x 2>/dev/null || echo "sysfs read-only"
        cgroup=/sys/fs/cgroup/pids; [ -d $cgroup ] || cgroup=/sys/fs/cgroup
        mkdir $cgroup/x 2>/dev/null || echo "cgroup read-only"
        ls /sys/class/net
        mount -t tmpfs x /mnt 2>/dev/null || echo "no mount"
        unshare -U true 2>/dev/null || echo "no user namespace"
        head -c 4 /dev/zero | wc -c
        mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk >/dev/null 2>&1 || echo "no disk"
        cat /etc/hosts /etc/hostname /etc/resolv.conf
        touch /written && echo written
        stat -c %a /dev/shm; df -k /dev/shm | tail -1
    """
    ran = run_script(real_runtime, tmp_path, root, script)
    assert ran.status == 0, ran
    host = HostFacts.detect()
    default = _mask(tuple(name for name in DEFAULT_CAPABILITIES if name in host.capabilities))
    sets = {name: int(value, 16) for name, value in re.findall(r"(Cap\w+):\s+([0-9a-f]+)", ran.stdout)}
    assert sets == {"CapInh": 0, "CapPrm": default, "CapEff": default, "CapBnd": default, "CapAmb": 0}
    assert re.search(r"^Seccomp:\s+2$", ran.stdout, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+0$", ran.stdout, re.MULTILINE)
    namespaces = re.findall(r"^ns (\w+) (\S+)$", ran.stdout, re.MULTILINE)
    assert len(namespaces) == 5
    for kind, inside in namespaces:
        assert inside != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert re.search(r"^host test-\w+ pid 1$", ran.stdout, re.MULTILINE)
    lines = ran.stdout.splitlines()
    assert any(line.startswith("uid=0(root) gid=0(root)") for line in lines)
    for expected in (
        "/",
        "HOME=/root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "sys read-only",
        "sysfs read-only",
        "cgroup read-only",
        "lo",
        "no mount",
        "no user namespace",
        "4",
        "no disk",
        "made for hosts",
        "made for hostname",
        "made for resolv.conf",
        "written",
        "1777",
    ):
        assert expected in lines, (expected, ran)
    assert lines.count("0") == 2, "kcore and firmware show nothing"
    assert "65536" in ran.stdout, "64 MiB of shared memory"
    assert not any(line in ("eth0", "docker0", "TERM=xterm") for line in lines)


def test_what_was_asked_for(real_runtime: str, tmp_path: Path, root: Path) -> None:
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    (data / "file").write_text("from the host\n")
    script = """
        echo "user $(id -u):$(id -g):$(id -G)"; echo "$HOME $PWD $GREETING $(hostname)"
        grep -E '^(CapEff|NoNewPrivs)' /proc/self/status
        cat /data/file; touch /data/x 2>/dev/null || echo "data read-only"
        touch /data/below/x 2>/dev/null || echo "below read-only"
        touch /x 2>/dev/null || echo "root read-only"
        touch /etc/hosts 2>/dev/null || echo "hosts read-only"
        touch /scratch/x && echo "scratch writable"; stat -c %a /scratch
        ulimit -n; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/self/oom_score_adj
        head -c 2 /z | wc -c
    """
    ran = run_script(
        real_runtime,
        tmp_path,
        root,
        script,
        user="www-data:users",
        env={"GREETING": "two words"},
        workdir="/tmp",
        hostname="asked.for",
        read_only=True,
        no_new_privileges=True,
        mounts=(
            Mount(target="/data", source=str(data), read_only=True),
            Mount(target="/scratch", type="tmpfs", size_bytes=1 << 20, mode=0o777),
        ),
        ulimits=(Ulimit(name="nofile", soft=77, hard=78),),
        sysctls={"net.ipv4.ip_unprivileged_port_start": "79"},
        oom_score_adj=80,
        devices=(Device(path_on_host="/dev/zero", path_in_container="/z"),),
        resources=Resources(pids_limit=50),
    )
    assert ran.status == 0, ran
    assert ran.stdout.splitlines() == [
        "user 33:100:100",
        "/var/www /tmp two words asked.for",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "from the host",
        "data read-only",
        "below read-only",
        "root read-only",
        "hosts read-only",
        "scratch writable",
        "777",
        "77",
        "79",
        "80",
        "2",
    ], ran


def test_privileged(real_runtime: str, tmp_path: Path, root: Path) -> None:
    script = """
        grep -E '^(CapEff|Seccomp:)' /proc/self/status
        mount -t tmpfs x /mnt && echo mounted; ls -d /dev/kmsg; test -w /proc/sys/kernel && echo "sys writable"
    """
    ran = run_script(real_runtime, tmp_path, root, script, privileged=True)
    assert ran.stdout.splitlines() == [
        f"CapEff:\t{_mask(HostFacts.detect().capabilities):016x}",
        "Seccomp:\t0",
        "mounted",
        "/dev/kmsg",
        "sys writable",
    ], ran


def test_host_network_and_no_seccomp(real_runtime: str, tmp_path: Path, root: Path) -> None:
    script = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; grep Seccomp: /proc/self/status"
    ran = run_script(real_runtime, tmp_path, root, script, network="host", seccomp="unconfined")
    network, pid, seccomp = ran.stdout.splitlines()
    assert network == os.readlink("/proc/self/ns/net")
    assert pid != os.readlink("/proc/self/ns/pid")
    assert seccomp.split() == ["Seccomp:", "0"]


def test_dropped_capabilities(real_runtime: str, tmp_path: Path, root: Path) -> None:
    script = "grep CapEff /proc/self/status; chown 5 /tmp 2>/dev/null || echo refused"
    ran = run_script(real_runtime, tmp_path, root, script, cap_drop=("ALL",), cap_add=("KILL",))
    assert ran.stdout.splitlines() == [f"CapEff:\t{_mask(('CAP_KILL',)):016x}", "refused"], ran


def test_init_reaps_and_passes_the_code_on(real_runtime: str, tmp_path: Path, root: Path) -> None:
    if HostFacts.detect().init_path is None:
        pytest.skip("catatonit is not installed")
    script = "echo pid $$; cat /proc/1/comm; exit 3"
    ran = run_script(real_runtime, tmp_path, root, script, init=True)
    assert ran.status == 3, ran
    number, init = ran.stdout.splitlines()
    assert number != "pid 1"
    assert init == "lighterman-init"
