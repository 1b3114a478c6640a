"""An OCI runtime called by itself, on the document that the engine would give it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence

from bench.documents import write_bundle
from bench.spawn import many, succeed, timed
from bench.trouble import Trouble
from bench.workspace import Workspace

__all__ = ["RawRuntime"]

_numbers = itertools.count()


class RawRuntime:
    """Raises Trouble when it is made, if it is not installed or runs no container here."""

    def __init__(self, name: str, workspace: Workspace) -> None:
        path = shutil.which(name)
        if path is None:
            raise Trouble(f"{name} is not installed")
        self.name = name
        self._path = path
        self._workspace = workspace
        self._root = workspace.directory(f"state/{name}")
        self._detached: list[str] = []
        self.run_once(["/bin/true"], log=f"{workspace.path}/{name}.log")

    def run_once(self, argv: Sequence[str], *, seccomp: bool = True, log: str | None = None) -> float:
        """Seconds of `run` with everything removed at its end; bundle and document are there before."""
        id, bundle = self.prepare(argv, seccomp=seccomp)
        return timed(self._argv("run", "--bundle", bundle, id), log=log)

    def run_many(self, argv: Sequence[str], count: int, at_a_time: int) -> float:
        """Seconds for `count` runs."""
        prepared = [self.prepare(argv) for _ in range(count)]
        return many([self._argv("run", "--bundle", bundle, id) for id, bundle in prepared], at_a_time)

    def start(self, argv: Sequence[str]) -> tuple[str, float]:
        """`run --detach`: the id, and the seconds."""
        id, bundle = self.prepare(argv)
        self._detached.append(id)
        return id, timed(self._argv("run", "--detach", "--bundle", bundle, id))

    def start_many(self, argv: Sequence[str], count: int, at_a_time: int) -> float:
        """Seconds for `count` times `run --detach`."""
        prepared = [self.prepare(argv) for _ in range(count)]
        self._detached += [id for id, _ in prepared]
        return many([self._argv("run", "--detach", "--bundle", bundle, id) for id, bundle in prepared], at_a_time)

    def exec_once(self, id: str, argv: Sequence[str]) -> float:
        """Seconds of `exec`."""
        return timed(self._argv("exec", id, *argv))

    def exec_at_once(self, id: str, argv: Sequence[str], count: int) -> float:
        """Seconds for `count` times `exec`, all started at once."""
        return many([self._argv("exec", id, *argv)] * count, count)

    def list_all(self) -> float:
        """Seconds of `list`, which looks at every container of this root."""
        return timed(self._argv("list"))

    def delete(self, id: str) -> None:
        """Kill and remove one that `start` gave."""
        self._detached.remove(id)
        succeed(self._argv("delete", "--force", id))

    def delete_all(self, at_a_time: int = 8) -> float:
        """Kill and remove all that are detached; seconds."""
        ids, self._detached = self._detached, []
        return many([self._argv("delete", "--force", id) for id in ids], at_a_time)

    def prepare(self, argv: Sequence[str], *, seccomp: bool = True) -> tuple[str, str]:
        """A fresh id and its bundle."""
        id = f"bench-{self.name}-{next(_numbers)}"
        return id, write_bundle(self._workspace, id, argv, seccomp=seccomp)

    def command(self, bundle: str, id: str) -> list[str]:
        """The argument vector of a run in the foreground."""
        return self._argv("run", "--bundle", bundle, id)

    def _argv(self, *words: str) -> list[str]:
        return [self._path, "--root", self._root, *words]
