"""One posix_spawn: what the new process gets, and nothing that is the keeper's own."""

from __future__ import annotations

import os
import resource
import sys
from _collections_abc import Mapping, Sequence

from . import linux

# 32 and 33 are the C library's own; 9 and 19 (KILL, STOP) can't be set.
_ALL_SIGNALS = tuple(number for number in range(1, 65) if number not in (9, 19, 32, 33))
_PROTECTED = b"-999"
_NEUTRAL = b"0"
CHILD_UMASK = 0o022


class SpawnPlan:
    """What to execute; the descriptors are the keeper's numbers, `descriptors` maps the child's number to them."""

    __slots__ = ("argv", "cwd", "descriptors", "env", "executable", "mount_fd", "mount_target")

    def __init__(
        self,
        executable: str,
        argv: list[str],
        env: Mapping[str, str],
        cwd: str,
        descriptors: Mapping[int, int],
        mount_fd: int | None,
        mount_target: str,
    ) -> None:
        self.executable = executable
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.descriptors = descriptors
        self.mount_fd = mount_fd
        self.mount_target = mount_target


class Spawner:
    """Keeps what has to be set back around each spawn."""

    def __init__(self) -> None:
        self._own_mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._owner_nofile = (soft, hard)
        self._own_nofile = (hard, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._own_nofile)
        self.descriptor_limit = hard
        self._oom_fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        self._protected = self._set_oom(_PROTECTED)
        if not self._protected:
            # Containers must not inherit the owner's, above 0 or below; so the keeper gives it up as well.
            self._set_oom(_NEUTRAL)
        try:
            # As for the rest: docker's containers run at 0, whatever the priority of who asks for them.
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except PermissionError:
            sys.stderr.write("no CAP_SYS_NICE: containers inherit the nice value of the engine that came first\n")
        self._lost_mounts = False

    @classmethod
    def resumed(cls, own_mounts: int, oom_fd: int, settings: Sequence[int]) -> Spawner:
        """With what the program before this one had found out: now the limits and the priority are our own."""
        spawner = cls.__new__(cls)
        spawner._own_mounts, spawner._oom_fd = own_mounts, oom_fd
        soft, hard, protected, lost_mounts = settings
        spawner._owner_nofile, spawner._own_nofile = (soft, hard), (hard, hard)
        spawner.descriptor_limit = hard
        spawner._protected, spawner._lost_mounts = bool(protected), bool(lost_mounts)
        return spawner

    @property
    def descriptors(self) -> tuple[int, int]:
        """For `resumed`."""
        return self._own_mounts, self._oom_fd

    @property
    def settings(self) -> list[int]:
        """For `resumed`."""
        return [*self._owner_nofile, int(self._protected), int(self._lost_mounts)]

    def spawn(self, plan: SpawnPlan) -> int:
        """Execute; the pid. Raises: OSError (the executable's too), ValueError (a NUL in a text)."""
        if self._lost_mounts:
            # Another try to get home: a spawn from a foreign namespace would see other roots.
            self._go_home()
        if plan.mount_fd is None:
            return self._spawn_with_attributes(plan)
        linux.unshare_mounts()
        try:
            linux.make_everything_slave()
            linux.attach_mount(plan.mount_fd, plan.mount_target)
            return self._spawn_with_attributes(plan)
        finally:
            self._go_home()

    def _go_home(self) -> None:
        self._lost_mounts = True
        linux.enter_mounts(self._own_mounts)
        self._lost_mounts = False

    def _spawn_with_attributes(self, plan: SpawnPlan) -> int:
        actions, temporary = _file_actions(plan.descriptors)
        own_umask = os.umask(CHILD_UMASK)
        neutral = self._protected and self._set_oom(_NEUTRAL)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._owner_nofile)
            if plan.cwd != "/":
                os.chdir(plan.cwd)
            return os.posix_spawn(
                plan.executable,
                plan.argv,
                plan.env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=_ALL_SIGNALS,
            )
        finally:
            if plan.cwd != "/":
                os.chdir("/")
            resource.setrlimit(resource.RLIMIT_NOFILE, self._own_nofile)
            if neutral:
                self._set_oom(_PROTECTED)
            os.umask(own_umask)
            for fd in temporary:
                os.close(fd)

    def _set_oom(self, value: bytes) -> bool:
        try:
            os.pwrite(self._oom_fd, value, 0)
        except PermissionError:
            # Without CAP_SYS_RESOURCE it can't go below what somebody with that right has set last, or 0.
            return False
        return True


def _file_actions(descriptors: Mapping[int, int]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """dup2 actions, and duplicates that were needed because a source lies where a target goes."""
    top = max(descriptors)
    actions = []
    temporary: list[int] = []
    for target, source in descriptors.items():
        while source <= top:
            source = os.dup(source)
            temporary.append(source)
        actions.append((os.POSIX_SPAWN_DUP2, source, target))
    return actions, temporary
