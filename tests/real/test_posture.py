"""What a container may and sees by default: Docker's posture, on every runtime, for the init and for an exec."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_support import inside

import lighterman
from lighterman import Container, Engine, InvalidSpec, LightermanError, NotFound
from support import eventually

pytestmark = pytest.mark.real

# Docker's fourteen: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
# sys_chroot, mknod, audit_write, setfcap.
DOCKER_CAPABILITIES = 0xA80425FB
HOST_RESOLV_CONF = Path("/etc/resolv.conf").read_text()


exists = os.path.exists


def of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def status(pid: int) -> dict[str, str]:
    lines = of_process(pid, "status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def both(box: Container, *, stdin: bool = False, terminal: bool = False) -> tuple[int, int]:
    """The host's numbers of the init and of an exec, both `sleep`; the runtime may return before its execve."""
    process = await box.start_exec(["sleep", "1000"], stdin=stdin, terminal=terminal)
    pids = box.pid, process.pid
    await eventually(lambda: all(of_process(pid, "comm") == "sleep\n" for pid in pids))
    return pids


# ---- rights ------------------------------------------------------------------------------------------------------


async def test_capabilities_are_dockers(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        for pid in await both(box):
            found = status(pid)
            assert {name: int(found[name], 16) for name in ("CapBnd", "CapEff", "CapPrm")} == {
                "CapBnd": DOCKER_CAPABILITIES,
                "CapEff": DOCKER_CAPABILITIES,
                "CapPrm": DOCKER_CAPABILITIES,
            }
            assert (int(found["CapInh"], 16), int(found["CapAmb"], 16)) == (0, 0)


async def test_capabilities_added_and_dropped(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], cap_add=["SYS_PTRACE"], cap_drop=["ALL"]) as box:
        assert int(status(box.pid)["CapEff"], 16) == 1 << 19


async def test_seccomp_filter_is_in_force(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        for pid in await both(box):
            assert (status(pid)["Seccomp"], status(pid)["Seccomp_filters"]) == ("2", "1")
        refused = await box.exec(["sh", "-c", "unshare -m true; echo $?"])
        assert refused.stdout != b"0\n"


async def test_seccomp_unconfined_is_none(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], seccomp="unconfined") as box:
        assert [status(pid)["Seccomp"] for pid in await both(box)] == ["0", "0"]


@pytest.mark.parametrize("wanted", [True, False])
async def test_no_new_privileges_as_asked(engine: Engine, wanted: bool) -> None:
    async with engine.container("busybox", ["sleep", "1000"], no_new_privileges=wanted) as box:
        assert [status(pid)["NoNewPrivs"] for pid in await both(box)] == [str(int(wanted))] * 2


async def test_privileged_has_all_that_the_host_gives(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], privileged=True) as box:
        found = status(box.pid)
        assert int(found["CapEff"], 16) == int(status(os.getpid())["CapEff"], 16)
        assert found["Seccomp"] == "0"


# ---- what it sees ------------------------------------------------------------------------------------------------


async def test_namespaces_are_its_own(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        init, further = await both(box)
        for kind in ("pid", "mnt", "ipc", "uts", "net"):
            own = os.readlink(f"/proc/{init}/ns/{kind}")
            assert own != os.readlink(f"/proc/self/ns/{kind}"), kind
            assert os.readlink(f"/proc/{further}/ns/{kind}") == own, kind


async def test_network_none_has_loopback_alone_and_up(engine: Engine) -> None:
    text = await inside(
        engine, "ls /sys/class/net; cat /sys/class/net/lo/flags; ping -c1 -W5 127.0.0.1 >/dev/null && echo up"
    )
    assert text.split() == ["lo", "0x9", "up"]


async def test_network_host_is_the_hosts(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], network="host") as box:
        assert os.readlink(f"/proc/{box.pid}/ns/net") == os.readlink("/proc/self/ns/net")


async def test_processes_only_its_own_are_seen(engine: Engine) -> None:
    pids = await inside(engine, "ls /proc | grep -E '^[0-9]+$'")
    assert "1" in pids.split()
    assert len(pids.split()) <= 4


async def test_host_mounts_are_not_seen(engine: Engine) -> None:
    mounts = await inside(engine, "cat /proc/self/mountinfo")
    assert not re.search(r" /var/lib/lighterman/\S+ ", re.sub(r"^(\S+ ){4}", "", mounts, flags=re.M).split(" - ")[0])
    assert {line.split()[4] for line in mounts.splitlines()} >= {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/sys"}
    propagation = [line.split(" - ")[0].split()[6:] for line in mounts.splitlines()]
    assert not any(tag.startswith(("shared", "master")) for tags in propagation for tag in tags)


MASKED = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/acpi",
    "/proc/scsi",
    "/sys/firmware",
]


async def test_masked_paths_are_empty(engine: Engine) -> None:
    script = "; ".join(f"[ ! -e {path} ] || ([ -d {path} ] && ls -A {path} || cat {path})" for path in MASKED)
    assert await inside(engine, f"{script}; true") == ""


async def test_read_only_paths_can_not_be_written(engine: Engine) -> None:
    paths = [
        "/proc/sys/kernel/domainname",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/mm/ksm/run",
    ]
    for path in filter(exists, paths):
        done = await engine.run("busybox", ["sh", "-c", f"echo x > {path}"])
        assert done.exit.code != 0, path
        assert b"Read-only" in done.stderr or b"ermission" in done.stderr, path


async def test_cgroup_tree_can_not_be_written(engine: Engine) -> None:
    # On cgroup v1 the root of the tree is a tmpfs of the container's own.
    done = await engine.run(
        "busybox",
        ["sh", "-c", "find /sys/fs/cgroup -mindepth 1 -type d | while read d; do mkdir $d/x && echo made; done"],
    )
    assert b"made" not in done.stdout


async def test_root_read_only_nothing_can_be_written_but_tmp_parts(engine: Engine) -> None:
    script = "for d in / /etc /usr /tmp /root /var; do touch $d/x 2>/dev/null && echo wrong $d; done"
    assert await inside(engine, f"{script}; touch /dev/shm/x && echo fine", read_only=True) == "fine\n"


async def test_root_written_by_one_is_not_seen_by_the_next(engine: Engine) -> None:
    await inside(engine, "echo x > /etc/passwd; rm -rf /home; touch /new")
    assert "root" in await inside(engine, "cat /etc/passwd; ls -d /home; [ ! -e /new ]")


# ---- devices -----------------------------------------------------------------------------------------------------


async def test_devices_are_the_usual_ones_and_work(engine: Engine) -> None:
    names = set((await inside(engine, "ls /dev")).split())
    assert {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "ptmx",
        "pts",
        "shm",
        "fd",
        "stdin",
        "stdout",
        "stderr",
    } <= names
    assert names <= {
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "console"),
        *("fd", "stdin", "stdout", "stderr", "core"),
    }
    assert await inside(
        engine, "echo gone > /dev/null; head -c 3 /dev/urandom | wc -c; head -c2 /dev/zero | od -An -tx1"
    ) == ("3\n 00 00\n")


async def test_devices_made_by_hand_can_not_be_opened(engine: Engine) -> None:
    # mknod is among Docker's capabilities; the device cgroup refuses the use.
    done = await engine.run(
        "busybox", ["sh", "-c", "mknod /mem c 1 1 && echo made; head -c1 /mem; mknod /kmsg c 1 11; head -c1 /kmsg"]
    )
    assert done.stdout == b"made\n"
    assert done.stderr.count(b"not permitted") == 2


async def test_device_asked_for_is_there_with_its_rights(engine: Engine) -> None:
    if not exists("/dev/kmsg"):
        pytest.skip("no /dev/kmsg on this host")
    done = await engine.run(
        "busybox",
        ["sh", "-c", "[ -c /dev/mykmsg ] && echo there; echo x > /dev/mykmsg"],
        devices=["/dev/kmsg:/dev/mykmsg:r"],
    )
    assert done.stdout == b"there\n"
    assert done.exit.code != 0


# ---- identity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        (None, "0:0"),
        ("nobody", "65534:65534"),
        ("1234", "1234:0"),
        ("1234:5678", "1234:5678"),
        ("root:nogroup", "0:65534"),
    ],
)
async def test_user_is_as_asked(engine: Engine, user: str | None, wanted: str) -> None:
    assert (await inside(engine, "echo $(id -u):$(id -g)", user=user)).strip() == wanted


async def test_user_without_rights_has_no_effective_capabilities(engine: Engine) -> None:
    text = await inside(engine, "grep -E '^Cap(Eff|Prm|Amb)' /proc/self/status", user="1000:1000")
    assert {line.split()[1] for line in text.splitlines()} == {"0" * 16}


async def test_user_unknown_is_not_found(engine: Engine) -> None:
    with pytest.raises(NotFound, match="nosuchuser"):
        await engine.run("busybox", ["true"], user="nosuchuser")
    assert await engine.containers() == []


async def test_environment_is_its_own(engine: Engine) -> None:
    os.environ["LEAKED_FROM_HOST"] = "1"
    try:
        lines = (await inside(engine, "env", env={"A": "b=c", "EMPTY": ""}, hostname="box")).splitlines()
    finally:
        del os.environ["LEAKED_FROM_HOST"]
    found = dict(line.split("=", 1) for line in lines)
    assert (found["A"], found["EMPTY"], found["HOSTNAME"], found["HOME"]) == ("b=c", "", "box", "/root")
    assert found["PATH"].split(":")[:2] == ["/usr/local/sbin", "/usr/local/bin"]
    # The shell's own three besides.
    assert set(found) - {"SHLVL", "PWD", "OLDPWD", "_"} == {"A", "EMPTY", "HOSTNAME", "HOME", "PATH"}


async def test_terminal_sets_term(engine: Engine) -> None:
    done = await engine.run("busybox", ["sh", "-c", "echo $TERM"], terminal=True)
    assert done.stdout == b"xterm\r\n"


@pytest.mark.parametrize("network", ["none", "host"])
async def test_files_in_etc_are_provided(engine: Engine, network: str) -> None:
    text = await inside(engine, "hostname; cat /etc/hostname; cat /etc/hosts", hostname="mybox", network=network)
    lines = text.splitlines()
    assert lines[:2] == ["mybox", "mybox"] if network == "none" else lines[1:2] == ["mybox"]
    assert "127.0.0.1\tlocalhost" in re.sub(r"[ \t]+", "\t", text)
    resolv = await inside(engine, "cat /etc/resolv.conf", network=network)
    assert resolv == (HOST_RESOLV_CONF if network == "host" else "")


async def test_hostname_is_the_beginning_of_the_id(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        assert (await box.exec(["hostname"])).stdout.decode().strip() == box.id[:12]


async def test_sysctl_of_its_namespaces_is_set(engine: Engine) -> None:
    text = await inside(
        engine,
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax",
        sysctls={"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "9000"},
    )
    assert text.split() == ["80", "9000"]


async def test_sysctl_of_the_host_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidSpec):
        await engine.run("busybox", ["true"], sysctls={"kernel.panic": "1"})
    with pytest.raises(InvalidSpec):
        await engine.run("busybox", ["true"], network="host", sysctls={"net.ipv4.ip_forward": "1"})


# ---- what it inherits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stdin", [False, True])
async def test_descriptors_of_init_and_exec_are_exactly_three(engine: Engine, stdin: bool) -> None:
    async with engine.container("busybox", ["sleep", "1000"], stdin=stdin) as box:
        for pid in await both(box, stdin=stdin):
            found = {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
            assert set(found) == {0, 1, 2}, found
            assert all(target.startswith(("pipe:", "/dev/null")) for target in found.values()), found
            # None of them leads to a directory of the host, as in CVE-2024-21626; nor does the working directory.
            assert os.stat(f"/proc/{pid}/cwd").st_dev == os.stat(f"/proc/{pid}/root").st_dev
            assert (os.stat(f"/proc/{pid}/root").st_dev, os.stat(f"/proc/{pid}/root").st_ino) != (
                os.stat("/").st_dev,
                os.stat("/").st_ino,
            )


async def test_descriptors_with_terminal_are_three(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], terminal=True) as box:
        for pid in await both(box, terminal=True):
            found = {int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
            assert set(found) == {0, 1, 2}, found
            assert all(target.startswith("/dev/pts/") for target in found.values()), found


async def test_workdir_through_proc_self_fd_is_refused_or_inside(engine: Engine) -> None:
    # CVE-2024-21626: a working directory of /proc/self/fd/N led to the host's file system.
    inside_root = (await engine.run("busybox", ["ls", "-a", "/"])).stdout
    for number in range(3, 12):
        try:
            done = await engine.run("busybox", ["ls", "-a", "../../.."], workdir=f"/proc/self/fd/{number}")
        except LightermanError:
            continue
        assert b"etc" not in done.stdout or done.stdout == inside_root


ODD_OWNER = """
import asyncio, os, resource, signal, sys
runtime, source = sys.argv[1:]
sys.path.insert(0, source)
os.umask(0o077)
os.nice(5)
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("321")
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGALRM])
os.chdir("/tmp")
os.set_inheritable(os.open("/", os.O_RDONLY), True)
from lighterman import Engine

def runs_its_program(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().startswith("sleep")

async def show(pid):
    # The runtime has let go of it a moment before it becomes the program.
    while not runs_its_program(pid):
        await asyncio.sleep(0.001)
    with open(f"/proc/{pid}/status") as file:
        found = dict(line.rstrip().split(":\\t", 1) for line in file)
    with open(f"/proc/{pid}/oom_score_adj") as file:
        oom = file.read().strip()
    # glibc's posix_spawn leaves its own two signals, 32 and 33, ignored.
    ignored = int(found["SigIgn"], 16) & ~(3 << 31)
    print(int(found["SigBlk"], 16), ignored, found["Umask"], oom, os.getpriority(os.PRIO_PROCESS, pid),
          *sorted(os.listdir(f"/proc/{pid}/fd")))

async def main():
    async with Engine(runtime=runtime) as engine:
        async with engine.container("busybox", ["sleep", "1000"]) as box:
            await show(box.pid)
            await show((await box.start_exec(["sleep", "1000"])).pid)
asyncio.run(main())
"""


def test_owner_of_odd_habits_passes_none_of_them_on(real_runtime: str) -> None:
    source = str(Path(lighterman.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", ODD_OWNER, real_runtime, source], capture_output=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()
    # Signals blocked and ignored, umask, oom_score_adj, nice, descriptors: docker's defaults.
    assert ran.stdout.decode().splitlines() == ["0 0 0022 0 0 0 1 2"] * 2


@pytest.mark.parametrize("wanted", [None, 0, 500])
async def test_oom_score_adj_is_as_asked(engine: Engine, wanted: int | None) -> None:
    async with engine.container("busybox", ["sleep", "1000"], oom_score_adj=wanted) as box:
        assert int(of_process(box.pid, "oom_score_adj")) == (wanted or 0)


async def test_oom_score_adj_holds_for_an_exec(engine: Engine, request: pytest.FixtureRequest) -> None:
    if (await engine.version()).name == "crun":
        request.applymarker(pytest.mark.xfail(reason="crun 1.8 does not apply oomScoreAdj to an exec", strict=True))
    async with engine.container("busybox", ["sleep", "1000"], oom_score_adj=500) as box:
        process = await box.start_exec(["sleep", "1000"])
        await eventually(lambda: of_process(process.pid, "oom_score_adj") == "500\n", 5)


async def test_session_is_its_own(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        for pid in await both(box):
            assert os.getsid(pid) != os.getsid(0)


async def test_cgroup_is_below_ours(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        for pid in await both(box):
            for line in of_process(pid, "cgroup").splitlines():
                controllers, path = line.split(":", 2)[1:]
                if controllers:
                    assert path == f"/lighterman/{box.id}", line
