"""A dockerd of our own on a private socket and root, by its HTTP API and by the docker program."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bench.peers.image import image_tar
from bench.spawn import DEADLINE_S, succeed, timed, words_of
from bench.trouble import Trouble
from bench.workspace import Workspace

__all__ = ["Docker"]

_START_S = 60.0
_STOP_S = 30.0
_IMAGE = "lighterman-bench"


class Docker:
    """Raises Trouble when it is made, if there is no dockerd or it runs no container here.

    `live_restore`: its containers outlive it; then `remove_all` is the caller's duty.
    """

    def __init__(self, workspace: Workspace, name: str = "docker", *, live_restore: bool = False) -> None:
        program = shutil.which("dockerd")
        if program is None:
            raise Trouble("dockerd is not installed")
        self._directory = workspace.directory(name)
        self._socket = f"{self._directory}/docker.sock"
        self._log = f"{self._directory}/dockerd.log"
        self._env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "DOCKER_HOST": f"unix://{self._socket}",
            "DOCKER_CONFIG": self._directory,
            "HOME": self._directory,
        }
        self._connection = _Connection(self._socket)
        self._argv = self._arguments(program, workspace.cgroup, live_restore=live_restore)
        self._daemon = self._spawn()
        try:
            self._await_start()
            self._import(workspace)
            self.cycle(["/bin/true"])
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> str | None:
        """Path of the docker program."""
        return shutil.which("docker")

    def cycle(self, argv: Sequence[str]) -> float:
        """Seconds of create, start, wait and delete, over one kept connection."""
        began = time.perf_counter()
        body = {"Image": _IMAGE, "Cmd": list(argv), "HostConfig": {"NetworkMode": "none"}}
        id = self._ask("POST", "/containers/create", body)["Id"]
        self._ask("POST", f"/containers/{id}/start")
        code = self._ask("POST", f"/containers/{id}/wait")["StatusCode"]
        self._ask("DELETE", f"/containers/{id}")
        seconds = time.perf_counter() - began
        if code != 0:
            raise Trouble(f"docker: the container ended with {code}")
        return seconds

    def start(self, argv: Sequence[str], *, stdin: bool = False) -> str:
        """The id of a container that runs."""
        body: dict[str, Any] = {"Image": _IMAGE, "Cmd": list(argv), "HostConfig": {"NetworkMode": "none"}}
        if stdin:
            body |= {"OpenStdin": True, "StdinOnce": True, "AttachStdin": True}
        id: str = self._ask("POST", "/containers/create", body)["Id"]
        self._ask("POST", f"/containers/{id}/start")
        return id

    def write_and_wait(self, id: str, data: bytes) -> float:
        """Seconds from what is written to its stdin until its end is known; then it is removed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stdin:
            stdin.settimeout(DEADLINE_S)
            stdin.connect(self._socket)
            asked = f"POST /containers/{id}/attach?stdin=1&stream=1 HTTP/1.1\r\nHost: docker\r\n"
            stdin.sendall(f"{asked}Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode())
            answer = stdin.recv(4096)
            if b" 101 " not in answer.split(b"\r\n", 1)[0]:
                raise Trouble(f"docker: attach: {answer[:80]!r}")
            began = time.perf_counter()
            stdin.sendall(data)
            code = self._ask("POST", f"/containers/{id}/wait")["StatusCode"]
            seconds = time.perf_counter() - began
        self._ask("DELETE", f"/containers/{id}?force=1")
        if code != 0:
            raise Trouble(f"docker: the container ended with {code}")
        return seconds

    def crash(self) -> None:
        """kill -9 of the daemon; its containerd dies with it."""
        self._connection.close()
        self._daemon.kill()
        self._daemon.wait()

    def come_back(self, count: int) -> float:
        """Seconds from the start of another daemon until it says that `count` containers run."""
        began = time.perf_counter()
        self._daemon = self._spawn()
        self._await_start()
        running = len(self._ask("GET", "/containers/json"))
        seconds = time.perf_counter() - began
        if running != count:
            raise Trouble(f"docker: of {count} containers {running} run after a restart of the daemon")
        return seconds

    def end_with_containers(self) -> None:
        """`remove_all` and `close`; of a daemon that is not there the containers are killed."""
        try:
            self.remove_all()
        except (OSError, Trouble):
            for pid in self._shims():
                os.kill(pid, signal.SIGKILL)
        finally:
            self.close()

    def _shims(self) -> list[int]:
        """The processes between containerd and each container; those end with the cgroups of the workspace."""
        found = []
        for entry in os.listdir("/proc"):
            with suppress(OSError):
                if entry.isdigit():
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        words = file.read().split(b"\0")
                    if b"containerd-shim" in words[0] and any(os.fsencode(self._directory) in word for word in words):
                        found.append(int(entry))
        return found

    def remove_all(self) -> None:
        """Kill and remove every container."""
        for container in self._ask("GET", "/containers/json?all=1"):
            self._ask("DELETE", f"/containers/{container['Id']}?force=1")

    def run_program(self, argv: Sequence[str]) -> float:
        """Seconds of `docker run --rm --network none`."""
        return timed(self._run(argv), env=self._env, log=self._log)

    def output_of(self, argv: Sequence[str]) -> str:
        """What a container writes."""
        done = subprocess.run(self._run(argv), env=self._env, capture_output=True, text=True, timeout=DEADLINE_S)
        if done.returncode != 0:
            raise Trouble(f"docker: {done.stderr.strip()[-200:]}")
        return done.stdout

    def close(self) -> None:
        """End the daemon, which ends its containerd."""
        self._connection.close()
        if self._daemon.poll() is not None:
            return
        self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
            self._end_containerd()

    def _end_containerd(self) -> None:
        """Only a dockerd that was killed leaves it."""
        try:
            with open(f"{self._directory}/exec/containerd/containerd.pid") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline") as file:
                ours = self._directory in file.read()
        except (FileNotFoundError, ValueError):
            return
        if ours:
            os.kill(pid, signal.SIGKILL)

    def _run(self, argv: Sequence[str]) -> list[str]:
        if self.client is None:
            raise Trouble("the docker program is not installed")
        return [self.client, "run", "--rm", "--network", "none", _IMAGE, *argv]

    def _arguments(self, program: str, cgroup: str, *, live_restore: bool) -> list[str]:
        with open(f"{self._directory}/daemon.json", "w") as file:
            file.write("{}")
        argv = [program, "--config-file", f"{self._directory}/daemon.json", "--host", f"unix://{self._socket}"]
        argv += ["--data-root", f"{self._directory}/data", "--exec-root", f"{self._directory}/exec"]
        argv += ["--pidfile", f"{self._directory}/pid", "--cgroup-parent", cgroup, "--log-level", "error"]
        argv += ["--iptables=false", "--bridge=none", "--ip-masq=false", "--exec-opt", "native.cgroupdriver=cgroupfs"]
        return [*argv, "--live-restore"] if live_restore else argv

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as log:
            # A session of its own: Ctrl-C at the terminal is ours to act on.
            return subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def _await_start(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self._ask("GET", "/version")
                return
            except (OSError, Trouble) as waiting:
                if self._daemon.poll() is not None:
                    raise Trouble(f"dockerd does not run here: {words_of(self._log)}") from waiting
                if time.monotonic() > deadline:
                    raise Trouble(f"dockerd had not started after {_START_S:g} s") from waiting
            time.sleep(0.005)

    def _import(self, workspace: Workspace) -> None:
        tar = image_tar(workspace)
        if self.client is not None:
            succeed([self.client, "import", tar, _IMAGE], env=self._env, log=self._log)
            return
        with open(tar, "rb") as file:
            self._connection.ask("POST", f"/images/create?fromSrc=-&repo={_IMAGE}", file.read(), "application/x-tar")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        encoded = json.dumps(body).encode() if body is not None else b""
        answer = self._connection.ask(method, path, encoded, "application/json")
        return json.loads(answer) if answer else None


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(self._path)

    def ask(self, method: str, path: str, body: bytes, kind: str) -> bytes:
        """The answer's body. Raises: Trouble for an error, OSError."""
        try:
            self.request(method, path, body, {"Content-Type": kind})
            answer = self.getresponse()
            content = answer.read()
        except (http.client.HTTPException, OSError):
            self.close()
            raise
        if answer.status >= 400:
            raise Trouble(f"docker: {method} {path}: {content.decode(errors='replace').strip()[:200]}")
        return content
