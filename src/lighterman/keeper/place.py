"""Where a keeper lives, and as what: the same over an exec of its own."""

from __future__ import annotations


class Place:
    """A run directory, its state directory, and what was asked of the keeper.

    Attributes:
        build: names the program, for engines with another one. run_fd, lock: descriptors that it keeps.
    """

    __slots__ = ("build", "idle_s", "lock", "run_dir", "run_fd", "state_dir")

    def __init__(self, run_dir: str, state_dir: str, idle_s: float, build: str, run_fd: int, lock: int) -> None:
        self.run_dir = run_dir
        self.state_dir = state_dir
        self.idle_s = idle_s
        self.build = build
        self.run_fd = run_fd
        self.lock = lock

    @property
    def arguments(self) -> list[str]:
        """Of the command line, without the build."""
        return [self.run_dir, self.state_dir, str(self.idle_s)]
