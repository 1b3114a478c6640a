"""The keeper becomes another program: same process, same children, same descriptors, by an exec of itself.

The new program is tried out before, with the very state that it is going to get: what can't be imported or understood
shows there, and nothing has happened. An exec that the kernel refuses has no effect either.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
from _collections_abc import Callable

from . import handover, requests
from .handover import State
from .jobs import Jobs
from .peer import Peer
from .requests import Refused
from .spawning import SpawnPlan

CHECK = "--check"
RESUME = "--resume"
CHECK_FD = 3
_CHECK_S = 30.0
# Those with handlers, which an exec sets back: blocked, they wait for the new program's.
SIGNALS = (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)


class Upgrade:
    """One at a time.

    Attributes:
        is_due: the new program was tried out: `become` is to be called, where no handler is under way.
        asker: whose request it is, None if that client is gone; `request` is its number.
    """

    def __init__(
        self, jobs: Jobs, arguments: list[str], state: Callable[[], State], refuse: Callable[[Peer, int, str], None]
    ) -> None:
        """`state` collects what is handed over, `refuse` sends an error; `arguments` as the new program gets them."""
        self._jobs = jobs
        self._arguments = arguments
        self._state = state
        self._refuse = refuse
        self._argv: list[str] | None = None
        self.build = ""
        self.is_due = False
        self.asker: Peer | None = None
        self.request = 0

    def ask(self, peer: Peer, request: int, argv: list[str], build: str) -> None:
        """Try a program out, and then become it. Raises: Refused, OSError."""
        if self._argv is not None:
            raise Refused(requests.STATE, "another upgrade is under way")
        state = handover.write(self._state().records())
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            descriptors = {0: null, 1: null, 2: 2, CHECK_FD: state}
            plan = SpawnPlan(argv[0], [*argv, CHECK], dict(os.environ), "/", descriptors, None, "")
            self._jobs.run_aside(plan, _CHECK_S, self._tried)
        finally:
            os.close(null)
            os.close(state)
        self._argv, self.build, self.asker, self.request = argv, build, peer, request

    def disown(self, peer: Peer) -> None:
        """Nobody waits for the answer any more."""
        if self.asker is peer:
            self.asker = None

    def become(self) -> None:
        """Exec; returns only if that fails."""
        self.is_due = False
        assert self._argv is not None
        self._jobs.stand_still()
        try:
            self._exec(self._argv)
        except OSError as error:
            why = f"{self._argv[0]}: {error.strerror}"
        finally:
            self._jobs.go_on()
        self._give_up(why)

    def _exec(self, argv: list[str]) -> None:
        records = self._state().records()
        fd = handover.write(records)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
        try:
            handover.let_through(records, True)
            os.execv(argv[0], [*argv, *self._arguments, self.build, RESUME, str(fd)])
        finally:
            # Not reached by who succeeds.
            handover.let_through(records, False)
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, SIGNALS)
            os.close(fd)

    def _tried(self, status: int) -> None:
        if status == 0:
            self.is_due = True
        else:
            self._give_up(f"the other program does not take over (wait status {status}), see the keeper's log")

    def _give_up(self, why: str) -> None:
        self._argv, asker, self.asker = None, self.asker, None
        if asker is not None:
            self._refuse(asker, self.request, why)
