"""What stands in a document, and what is refused before there is one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from document_support import HOST, ID, built, config_of
from hypothesis import given
from hypothesis import strategies as st

from lighterman import limits
from lighterman.errors import InvalidSpec, LightermanError, NotSupported
from lighterman.images import ImageConfig
from lighterman.runtimes.oci.document import (
    EtcFiles,
    check_document,
    encode_config,
    encode_process,
    exec_process,
    touches_files,
)
from lighterman.runtimes.oci.document_process import DEFAULT_CAPABILITIES
from lighterman.spec import ConsoleSize, ContainerSpec, Device, Mount, ProcessConfig, Resources, Spec, Ulimit, User

# ---- the default posture -----------------------------------------------------------------------------------------


def test_default_is_dockers_posture() -> None:
    config = config_of(built())
    linux, process = config["linux"], config["process"]
    assert {each["type"] for each in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "network", "cgroup"}
    assert set(process["capabilities"]["bounding"]) == set(DEFAULT_CAPABILITIES)
    assert len(DEFAULT_CAPABILITIES) == 14
    assert process["capabilities"].keys() == {"bounding", "effective", "permitted"}
    assert process["noNewPrivileges"] is False
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(linux["readonlyPaths"])
    assert linux["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert linux["cgroupsPath"] == f"/lighterman/{ID}"
    assert config["hostname"] == ID[:12]
    assert config["root"] == {"path": "/nowhere", "readonly": False}
    assert "annotations" not in config
    options = {each["destination"]: each["options"] for each in config["mounts"]}
    assert list(options) == ["/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm"]
    assert "ro" in options["/sys"]
    assert "ro" in options["/sys/fs/cgroup"]
    assert "size=67108864" in options["/dev/shm"]


def test_host_network_shares_only_the_network() -> None:
    kinds = {each["type"] for each in config_of(built(network="host"))["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "cgroup"}


def test_no_cgroup_namespace_on_version_1() -> None:
    host = msgspec.structs.replace(HOST, own_cgroup_namespace=False)
    assert {"type": "cgroup"} not in config_of(built(host=host))["linux"]["namespaces"]


def test_privileged_has_all_and_hides_nothing() -> None:
    config = config_of(built(privileged=True))
    linux = config["linux"]
    assert "seccomp" not in linux
    assert "maskedPaths" not in linux
    assert "readonlyPaths" not in linux
    assert config["process"]["capabilities"]["effective"] == list(HOST.capabilities)
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "/dev/null" in {each["path"] for each in linux["devices"]}
    sys = next(each for each in config["mounts"] if each["destination"] == "/sys")
    assert "rw" in sys["options"]


def test_a_named_profile_holds_for_privileged_too(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}')
    assert config_of(built(privileged=True, seccomp=str(profile)))["linux"]["seccomp"] == {
        "defaultAction": "SCMP_ACT_ALLOW"
    }
    assert "seccomp" not in config_of(built(seccomp="unconfined"))["linux"]


def test_apparmor_only_where_the_host_has_it() -> None:
    assert "apparmorProfile" not in config_of(built())["process"]
    host = msgspec.structs.replace(HOST, apparmor_profile="docker-default")
    assert config_of(built(host=host))["process"]["apparmorProfile"] == "docker-default"
    assert "apparmorProfile" not in config_of(built(host=host, privileged=True))["process"]


# ---- capabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), ("ALL",), set()),
        (("NET_ADMIN",), ("all",), {"CAP_NET_ADMIN"}),
        (("cap_sys_admin",), ("CAP_CHOWN",), {*DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN"} - {"CAP_CHOWN"}),
        (("ALL",), ("SYS_ADMIN",), set(HOST.capabilities) - {"CAP_SYS_ADMIN"}),
        (("CHOWN",), ("CHOWN",), set(DEFAULT_CAPABILITIES)),
    ],
)
def test_capabilities_added_and_dropped(add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]) -> None:
    sets = config_of(built(cap_add=add, cap_drop=drop))["process"]["capabilities"]
    assert set(sets["bounding"]) == set(sets["effective"]) == expected


def test_dropping_holds_for_privileged() -> None:
    sets = config_of(built(privileged=True, cap_drop=("SYS_MODULE",)))["process"]["capabilities"]
    assert set(sets["bounding"]) == set(HOST.capabilities) - {"CAP_SYS_MODULE"}


def test_a_capability_that_the_host_lacks() -> None:
    host = msgspec.structs.replace(HOST, capabilities=("CAP_CHOWN",))
    assert config_of(built(host=host))["process"]["capabilities"]["bounding"] == ["CAP_CHOWN"]
    with pytest.raises(NotSupported, match="CAP_SYS_TIME"):
        built(host=host, cap_add=("SYS_TIME",))


def test_a_capability_opens_its_calls() -> None:
    def clones(**wanted: Any) -> bool:
        rules = config_of(built(**wanted))["linux"]["seccomp"]["syscalls"]
        return any("unshare" in rule["names"] for rule in rules)

    assert not clones()
    assert clones(cap_add=("SYS_ADMIN",))


def test_another_user_has_no_effective_capabilities(tmp_path: Path) -> None:
    process = config_of(built(user="1000", root=str(tmp_path)))["process"]
    assert process["user"] == {"uid": 1000, "gid": 0, "additionalGids": [0]}
    assert process["capabilities"].keys() == {"bounding"}


# ---- the process -------------------------------------------------------------------------------------------------


def test_environment_has_the_users_word_last() -> None:
    image = ImageConfig(env={"PATH": "/image", "A": "image", "B": "image"})
    process = built(image=image, env={"A": "user", "HOME": "/h"}, terminal=True).process
    assert process.env == {
        "PATH": "/image",
        "HOSTNAME": ID[:12],
        "TERM": "xterm",
        "HOME": "/h",
        "A": "user",
        "B": "image",
    }
    assert built().process.env["HOME"] == "/root"


def test_command_of_the_image() -> None:
    image = ImageConfig(entrypoint=("/entry",), cmd=("a", "b"), workdir="/w", stop_signal=3)
    spec = built(image=image, argv=())
    assert spec.process.args == ("/entry", "a", "b")
    assert spec.process.cwd == "/w"
    assert spec.stop_signal == 3
    assert built(image=image, argv=("c",)).process.args == ("/entry", "c")
    with pytest.raises(InvalidSpec, match="no command given and the image has none"):
        built(argv=())


def test_init_stands_before_the_command() -> None:
    spec = built(init=True)
    assert spec.process.args == ("/sbin/lighterman-init", "--", "true")
    mounts = {each["destination"]: each for each in config_of(spec)["mounts"]}
    assert mounts["/sbin/lighterman-init"]["source"] == "/usr/bin/catatonit"
    assert "ro" in mounts["/sbin/lighterman-init"]["options"]
    with pytest.raises(NotSupported, match="apt-get install catatonit"):
        built(init=True, host=msgspec.structs.replace(HOST, init_path=None))


def test_newlines_are_legal_where_execve_takes_them() -> None:
    process = config_of(built(argv=("sh", "-c", "a\nb"), env={"K": "x\ny"}))["process"]
    assert process["args"][2] == "a\nb"
    assert "K=x\ny" in process["env"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"argv": ("a\0b",)},
        {"argv": ("",)},
        {"argv": ("",), "init": True},
        {"argv": ("x", "\ud800")},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"env": {"A\0": "x"}},
        {"env": {"A": "x\0"}},
        {"env": {"A\nB": "x"}},
        {"env": {"A": "\udcff"}},
        {"workdir": "relative"},
        {"workdir": "/a\0"},
        {"hostname": ""},
        {"hostname": "a\nb"},
        {"hostname": "a b"},
        {"hostname": "-a"},
        {"hostname": "a..b"},
        {"hostname": "a" * 65},
        {"hostname": 'x","linux":{'},
        {"user": "a:b:c"},
        {"user": "4294967295"},
        {"user": "1:"},
        {"network": "bridge"},
        {"network": "none\0"},
        {"cap_add": ("NONSENSE",)},
        {"cap_add": ("ALL",), "cap_drop": ("ALL",)},
        {"seccomp": "nonsense"},
        {"stop_signal": 65},
        {"oom_score_adj": 1001},
        {"shm_bytes": 0},
        {"console_size": ConsoleSize(height=0, width=1), "terminal": True},
        {"ulimits": (Ulimit(name="nonsense", soft=1, hard=1),)},
        {"ulimits": (Ulimit(name="core", soft=2, hard=1),)},
        {"ulimits": (Ulimit(name="core", soft=-1, hard=1),)},
        {"ulimits": (Ulimit(name="core", soft=-2, hard=1),)},
        {"ulimits": (Ulimit(name="core", soft=1, hard=2**64),)},
        {"ulimits": (Ulimit(name="core", soft=1, hard=1), Ulimit(name="core", soft=2, hard=2))},
        {"sysctls": {"kernel.core_pattern": "|/x"}},
        {"sysctls": {"vm.swappiness": "1"}},
        {"sysctls": {"net.ipv4.ip_forward": "1\n2"}},
        {"sysctls": {"net.ipv4.ip_forward": ""}},
        {"sysctls": {"net/../kernel/core_pattern": "|/x"}},
        {"sysctls": {"net..": "1"}},
        {"sysctls": {"net.ipv4.ip_forward": "1"}, "network": "host"},
        {"devices": (Device(path_on_host="relative"),)},
        {"devices": (Device(path_on_host="/dev/nonsense"),)},
        {"devices": (Device(path_on_host="/etc/passwd"),)},
        {"devices": (Device(path_on_host="/dev/null", permissions="rx"),)},
        {"devices": (Device(path_on_host="/dev/null", permissions=""),)},
        {"devices": (Device(path_on_host="/dev/null", path_in_container="/a/../b"),)},
        {"mounts": (Mount(target="relative", source="/tmp"),)},
        {"mounts": (Mount(target="/a/../b", source="/tmp"),)},
        {"mounts": (Mount(target="/", source="/tmp"),)},
        {"mounts": (Mount(target="//", source="/tmp"),)},
        {"mounts": (Mount(target="/proc", source="/tmp"),)},
        {"mounts": (Mount(target="//proc/sys", source="/tmp"),)},
        {"mounts": (Mount(target="/a\nb", source="/tmp"),)},
        {"mounts": (Mount(target="/a\0b", source="/tmp"),)},
        {"mounts": (Mount(target="/a" * 2100, source="/tmp"),)},
        {"mounts": (Mount(target="/a"),)},
        {"mounts": (Mount(target="/a", source="tmp"),)},
        {"mounts": (Mount(target="/a", source="/nonsense/missing"),)},
        {"mounts": (Mount(target="/a", source="/tmp\0"),)},
        {"mounts": (Mount(target="/a", source="/tmp", size_bytes=1),)},
        {"mounts": (Mount(target="/a", source="/tmp"), Mount(target="/a/", type="tmpfs"))},
        {"mounts": (Mount(target="/a", type="tmpfs", source="/tmp"),)},
        {"mounts": (Mount(target="/a", type="tmpfs", size_bytes=0),)},
        {"mounts": (Mount(target="/a", type="tmpfs", mode=0o10000),)},
        {"id": "../x"},
        {"id": ""},
        {"id": "a/b"},
        {"id": "a" * 129},
        {"id": 'a"'},
        {"id": "a\n"},
    ],
    ids=repr,
)
def test_what_can_not_be_is_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        built(**wanted)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400


def test_sizes() -> None:
    most = "x" * limits.ARGUMENT_BYTES
    built(argv=("echo", most))
    with pytest.raises(InvalidSpec, match=str(limits.ARGUMENT_BYTES)):
        built(argv=("echo", most + "x"))
    with pytest.raises(InvalidSpec, match="the arguments are"):
        built(argv=("echo", *[most] * 17))
    with pytest.raises(InvalidSpec, match=r"^environment is 10\d{6} bytes"):
        built(env={f"V{number}": "x" * 100_000 for number in range(105)})
    with pytest.raises(InvalidSpec, match=r"^environment is 10485\d{3} bytes"):
        built(env={"BIG": "x" * 10_485_760})
    with pytest.raises(InvalidSpec, match="environment variable 'BIG' is"):
        built(env={"BIG": "x" * limits.ARGUMENT_BYTES})
    half = {f"V{number}": "x" * 100_000 for number in range(11)}
    built(env=half)
    with pytest.raises(InvalidSpec, match="arguments and environment are"):
        built(argv=("echo", *["x" * 100_000] * 11), env=half)
    # execve counts the pointers too.
    with pytest.raises(InvalidSpec, match="the arguments are"):
        built(argv=("x",) * (limits.ARGV_BYTES // 10 + 1))
    # Two bytes each in UTF-8.
    with pytest.raises(InvalidSpec, match="argument"):
        built(argv=("echo", "ä" * (limits.ARGUMENT_BYTES // 2 + 1)))


def test_ulimits_and_what_this_host_may_set() -> None:
    process = config_of(built(ulimits=(Ulimit(name="core", soft=0, hard=-1),)))["process"]
    assert process["rlimits"] == [{"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}]
    weak = msgspec.structs.replace(
        HOST, capabilities=tuple(name for name in HOST.capabilities if name != "CAP_SYS_RESOURCE")
    )
    built(host=weak, ulimits=(Ulimit(name="nofile", soft=4096, hard=4096),))
    for hard in (4097, -1):
        with pytest.raises(NotSupported, match="hard limit is 4096"):
            built(host=weak, ulimits=(Ulimit(name="nofile", soft=1, hard=hard),))
    built(ulimits=(Ulimit(name="nofile", soft=1, hard=1048576),))
    with pytest.raises(NotSupported, match="nr_open"):
        built(ulimits=(Ulimit(name="nofile", soft=1, hard=1048577),))
    with pytest.raises(NotSupported, match="CAP_SYS_RESOURCE"):
        built(host=weak, oom_score_adj=-1)
    assert config_of(built(host=weak, oom_score_adj=1))["process"]["oomScoreAdj"] == 1


# ---- mounts, devices, sysctls ------------------------------------------------------------------------------------


def test_parents_are_mounted_before_what_lies_in_them(tmp_path: Path) -> None:
    mounts = (
        Mount(target="/data/inner/deep", type="tmpfs", mode=0o700, size_bytes=4096),
        Mount(target="/data/", source=str(tmp_path), read_only=True),
        Mount(target="/dev/shm", type="tmpfs"),
    )
    config = config_of(built(mounts=mounts, files=EtcFiles("/h", "/n", "/r")))
    places = [each["destination"] for each in config["mounts"]]
    assert places.index("/data") < places.index("/data/inner/deep")
    assert places.count("/dev/shm") == 1
    assert {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} <= set(places)
    by_place = {each["destination"]: each for each in config["mounts"]}
    assert by_place["/data"]["options"] == ["rbind", "rprivate", "ro", "rro"]
    assert {"mode=700", "size=4096", "nosuid", "nodev"} <= set(by_place["/data/inner/deep"]["options"])


def test_our_files_are_read_only_with_the_root() -> None:
    for read_only, option in ((False, "rw"), (True, "ro")):
        config = config_of(built(read_only=read_only, files=EtcFiles("/h", "/n", "/r")))
        ours = [each["options"] for each in config["mounts"] if each["destination"].startswith("/etc/")]
        assert ours == [["rbind", "rprivate", option]] * 3
        assert config["root"]["readonly"] is read_only


def test_a_mount_of_the_users_replaces_our_file(tmp_path: Path) -> None:
    mounts = (Mount(target="/etc/hosts", source=str(tmp_path)),)
    config = config_of(built(mounts=mounts, files=EtcFiles("/h", "/n", "/r")))
    assert [each["source"] for each in config["mounts"] if each["destination"] == "/etc/hosts"] == [str(tmp_path)]


def test_the_engines_own_directories_are_no_source(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "inside").mkdir(parents=True)
    (tmp_path / "state-2").mkdir()
    (tmp_path / "link").symlink_to(state / "inside")
    for source in (state, state / "inside", tmp_path, Path("/"), tmp_path / "link", state / "inside" / ".."):
        with pytest.raises(InvalidSpec, match="the engine's own"):
            built(mounts=(Mount(target="/x", source=str(source)),), forbidden_sources=(str(state),))
    built(mounts=(Mount(target="/x", source=str(tmp_path / "state-2")),), forbidden_sources=(str(state),))


def test_a_source_is_mounted_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/usr")
    config = config_of(built(mounts=(Mount(target="/x", source=str(tmp_path / "link")),)))
    assert config["mounts"][-1]["source"] == os.path.realpath("/usr")


def test_devices() -> None:
    linux = config_of(built(devices=(Device(path_on_host="/dev/zero", path_in_container="/z", permissions="r"),)))[
        "linux"
    ]
    assert linux["devices"][0] | {"fileMode": 0} == {
        "path": "/z",
        "type": "c",
        "major": 1,
        "minor": 5,
        "fileMode": 0,
        "uid": 0,
        "gid": 0,
    }
    assert {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"} in linux["resources"]["devices"]
    assert linux["resources"]["devices"][0]["allow"] is False


def test_sysctls_of_its_own_namespaces() -> None:
    wanted = {"net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4", "fs.mqueue.msg_max": "5"}
    assert config_of(built(sysctls=wanted))["linux"]["sysctl"] == wanted


def test_resources_stand_beside_the_device_rules() -> None:
    try:
        resources = config_of(built(resources=Resources(memory_bytes=64 * 1024 * 1024)))["linux"]["resources"]
    except NotSupported as missing:
        pytest.skip(str(missing))
    assert resources["memory"]["limit"] == 64 * 1024 * 1024
    assert resources["devices"][0] == {"allow": False, "access": "rwm"}


def test_what_looks_at_files() -> None:
    quiet = ContainerSpec(image="busybox", argv=("true",))
    assert not touches_files(quiet, ImageConfig())
    assert touches_files(quiet, ImageConfig(user="www"))
    assert touches_files(msgspec.structs.replace(quiet, mounts=(Mount(target="/a", type="tmpfs"),)), ImageConfig())


# ---- encoding ----------------------------------------------------------------------------------------------------


def test_labels_never_become_annotations() -> None:
    config = config_of(built(labels={"run.oci.hooks.stderr": "/etc/passwd"}))
    assert "annotations" not in config
    assert "run.oci" not in json.dumps(config)


@pytest.mark.parametrize(
    "document",
    [
        b'{"annotations":{"run.oci.seccomp_bpf_data":""}}',
        b'{"annotations":{"org.systemd.property.After":"x"}}',
        b'{"annotations":{"org.criu.config":"/x"}}',
        b'{"annotations":{"a":1}}',
        b'{"annotations":{"a":"b","run.oci.x":"y"}}',
        b'{"process":{}}',
        b"[]",
        b"",
        b"{" * 100_000,
        b"\xff",
    ],
)
def test_a_document_of_the_callers_is_checked(document: bytes) -> None:
    with pytest.raises(InvalidSpec):
        check_document(document)


def test_a_harmless_document_passes() -> None:
    check_document(b'{"annotations":{"org.example":"x"},"linux":{}}')
    check_document(b'{"annotations":null}')
    check_document(built().document)


def test_config_is_document_and_process() -> None:
    assert json.loads(encode_config(Spec(process=ProcessConfig(args=("a",)), document=b"{}")))["process"]["args"] == [
        "a"
    ]
    with pytest.raises(InvalidSpec):
        encode_config(Spec(process=ProcessConfig(args=("a",)), document=b"[]"))


def test_extras_never_win_over_the_process() -> None:
    process = ProcessConfig(
        args=("a",), user=User(uid=5, umask=0o22), oci={"args": ["evil"], "user": {"uid": 0}, "x": 1}
    )
    encoded = json.loads(encode_process(process))
    assert encoded["args"] == ["a"]
    assert encoded["user"] == {"uid": 5, "gid": 0, "umask": 0o22}
    assert encoded["x"] == 1


def test_console_size_needs_a_terminal() -> None:
    size = ConsoleSize(height=24, width=80)
    assert "consoleSize" not in config_of(built(console_size=size))["process"]
    assert config_of(built(console_size=size, terminal=True))["process"]["consoleSize"] == {"height": 24, "width": 80}


def test_exec_inherits(tmp_path: Path) -> None:
    base = built(env={"A": "1"}, workdir="/w", no_new_privileges=True).process
    inherited = exec_process(base, ("ls",), env={"B": "2"})
    assert (inherited.cwd, inherited.user, inherited.oci) == ("/w", base.user, base.oci)
    assert inherited.env == {**base.env, "B": "2"}
    assert not inherited.terminal
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("joe:x:7:8::/home/joe:\n")
    other = exec_process(base, ("ls",), user="joe", root_lookup=str(tmp_path), terminal=True, workdir="/v")
    assert (other.user.uid, other.user.gid, other.cwd) == (7, 8, "/v")
    assert (other.env["HOME"], other.env["TERM"]) == ("/home/joe", "xterm")
    assert other.oci["capabilities"].keys() == {"bounding"}
    assert other.oci["noNewPrivileges"] is True
    back = exec_process(other, ("ls",), user="0")
    assert set(back.oci["capabilities"]["effective"]) == set(DEFAULT_CAPABILITIES)
    for bad in ({"args": ()}, {"args": ("a\0",)}, {"args": ("a",), "workdir": "x"}, {"args": ("a",), "env": {"=": ""}}):
        with pytest.raises(InvalidSpec):
            exec_process(base, **bad)


# ---- anything at all ---------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec=None), max_size=20)


@given(
    argv=st.lists(TEXT, max_size=3).map(tuple),
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    hostname=st.none() | TEXT,
    workdir=st.none() | TEXT.map(lambda text: "/" + text),
    target=TEXT.map(lambda text: "/" + text),
    sysctls=st.dictionaries(TEXT.map(lambda text: "net." + text), TEXT, max_size=2),
)
def test_any_text_is_refused_or_arrives_as_it_is(
    argv: tuple[str, ...],
    env: dict[str, str],
    hostname: str | None,
    workdir: str | None,
    target: str,
    sysctls: dict[str, str],
) -> None:
    mounts = (Mount(target=target, type="tmpfs"),)
    try:
        spec = built(argv=argv, env=env, hostname=hostname, workdir=workdir, mounts=mounts, sysctls=sysctls)
    except LightermanError:
        return
    config = config_of(spec)
    assert tuple(config["process"]["args"]) == argv
    assert {f"{name}={value}" for name, value in env.items()} <= set(config["process"]["env"])
    assert config["hostname"] == (hostname or ID[:12])
    assert config["linux"].get("sysctl", {}) == sysctls
    assert config.keys() == {"process", "ociVersion", "root", "hostname", "mounts", "linux"}
