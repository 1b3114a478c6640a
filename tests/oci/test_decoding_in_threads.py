"""What many threads decode at once, each for its first time: msgspec 0.22 crashes where it then meets a new type."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each of these is called in threads.
FIRST_USE = """
import sys, threading
from pathlib import Path
from lighterman.arguments import exec_arguments
from lighterman.asking import container_spec
from lighterman.journal import _decoded as event_of
from lighterman.logs.feeds import _load
from lighterman.recovery import decoded as record_of
from lighterman.runtimes.oci.adoption import _init_process
from lighterman.runtimes.oci.calls import decode_meta
from lighterman.runtimes.oci.failures import _binds
from lighterman.runtimes.oci.probe import _read
from lighterman.runtimes.oci.runtime import _read_document
from lighterman.runtimes.oci.seccomp.resolve import decode_profile
from lighterman.store.base import StoredEvent
directory = sys.argv[1]
nothing = dict(env=None, workdir=None, user=None, stdin=False, terminal=False, console_size=None)
record = b'{"id": "a", "name": "b", "spec": {"image": "c", "argv": []}, "created_at": 1.0}'
calls = [
    lambda: record_of(record),
    lambda: event_of(StoredEvent(1, 1.0, b'{"kind": "exit"}')),
    lambda: decode_meta(b"{}"),
    lambda: _read_document(b"{}"),
    lambda: container_spec("busybox", ["true"], stdin=False, options={}),
    lambda: exec_arguments(["true"], **nothing),
    lambda: decode_profile(b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}', "x"),
    lambda: _init_process(directory),
    lambda: _binds(directory + "/config.json"),
    lambda: _read(directory + "/verdicts.json"),
    lambda: _load(Path(directory) / "cursor"),
]
sys.setswitchinterval(1e-6)
for call in calls:
    together = threading.Barrier(4)
    def run():
        together.wait()
        call()
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("turn", range(4))
def test_the_first_use_in_many_threads(tmp_path_factory: pytest.TempPathFactory, turn: int) -> None:
    directory = tmp_path_factory.mktemp("states")
    (directory / "status").write_text('{"pid": 1, "process-start-time": 2}')
    (directory / "config.json").write_text('{"mounts": [{"destination": "/a", "type": "bind", "source": "/b"}]}')
    (directory / "verdicts.json").write_text('{"key": "x", "probed": []}')
    (directory / "cursor").write_text('{"generation": 1, "offset": 2}')
    done = subprocess.run([sys.executable, "-c", FIRST_USE, str(directory)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
