"""What clients can ask for, one method each. `fds` came with the request: a verb takes out of it what it keeps."""

from __future__ import annotations

import os
from _collections_abc import Callable
from _stat import S_ISSOCK

from . import cgroup, requests, stats, wire
from .channel import close_all
from .jobs import Jobs
from .leases import Lease
from .mailboxes import Mailbox
from .output import drains_of
from .peer import Peer, exit_values
from .requests import Refused, SpawnRequest
from .table import Row

_SIGKILL = 9
_PAGE_BYTES = wire.MESSAGE_BYTES - 1024
_PAGE_JOBS = 256
# For those who only look.
_HARMLESS = (wire.LIST, wire.PING, wire.STATS, wire.EXIT_OF, wire.LEASE_OF)


class Verbs:
    """Answers requests about `jobs`; `leave` ends the keeper, `upgrade` makes another program of it."""

    def __init__(
        self,
        jobs: Jobs,
        own_cgroup: bool,
        leave: Callable[[], None],
        upgrade: Callable[[Peer, int, list[str], str], None],
    ) -> None:
        self._jobs = jobs
        self._own_cgroup = own_cgroup
        self._leave = leave
        self._become = upgrade
        self._verbs: dict[int, Callable[[Peer, int, dict[str, object], list[int]], None]] = {
            wire.SPAWN: self._spawn,
            wire.ABORT: self._abort,
            wire.LIST: self._list,
            wire.EXIT_OF: self._exit_of,
            wire.FETCH: self._fetch,
            wire.CLOSE: self._close_held,
            wire.ACKNOWLEDGE: self._acknowledge,
            wire.LEASE: self._lease,
            wire.RELEASE: self._release,
            wire.RENEW: self._renew,
            wire.LEASE_OF: self._lease_of,
            wire.UPGRADE: self._upgrade,
            wire.DRAINS: self._drains,
            wire.MAILBOX: self._mailbox,
            wire.MAILBOX_OF: self._mailbox_of,
            wire.REGISTER: self._register,
            wire.PING: self._ping,
            wire.STATS: self._stats,
            wire.SHUTDOWN: self._shutdown,
        }

    def handle(self, peer: Peer, verb: int, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Do it and answer. Raises: Refused, OSError, PeerLost."""
        handler = self._verbs.get(verb)
        if handler is None:
            raise Refused(requests.UNSUPPORTED, f"keeper does not support verb {verb}")
        if not peer.is_engine and verb not in _HARMLESS:
            raise Refused(requests.STATE, f"verb {verb} is for the engine only")
        handler(peer, request, body, fds)

    def _spawn(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        self._jobs.spawn(peer, request, SpawnRequest(body, fds), fds)

    def _abort(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """End a runtime call that is under way, whose own answer follows as that of one whose time was over; or what
        it has left, for who has no descriptor of that.
        """
        job = requests.job_key(body)
        for call in self._jobs.calls.values():
            if call.row is not None and call.row.job == job:
                call.kill()
        row = self._jobs.table.get(job)
        if row is not None and row.pid is not None and self._jobs.table.running(row.pid) is row:
            os.kill(row.pid, _SIGKILL)  # not reaped, so still this process
        peer.send(wire.OK, request, {})

    def _ping(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        peer.send(wire.OK, request, {})

    def _stats(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        rss_bytes, private_bytes = stats.memory()
        answer: dict[str, object] = {
            "pid": os.getpid(),
            "rss_bytes": rss_bytes,
            "private_bytes": private_bytes,
            "jobs": len(self._jobs.table),
            "descriptors": stats.descriptors(),
            "version": wire.VERSION,
            "own_cgroup": self._own_cgroup,
        }
        peer.send(wire.OK, request, answer)

    def _register(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        name = requests.text(body, "name")
        if not name or "/" in name or len(fds) != 1:
            raise Refused(requests.INVALID, f"binary {name[:40]!r}: must be a name without '/' and one descriptor")
        self._jobs.register(name, fds[0])
        fds.clear()
        peer.send(wire.OK, request, {})

    def _shutdown(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        if self._jobs.any and body.get("force") is not True:
            raise Refused(requests.STATE, f"keeper has {len(self._jobs.table)} jobs: end them first")
        self._leave()
        peer.send(wire.OK, request, {})

    def _upgrade(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Its answer follows, of the new program, or from here that there is none."""
        argv = requests.texts(body, "argv")
        if len(argv) < 2 or not argv[0].startswith("/"):
            raise Refused(requests.INVALID, "argv: must be an absolute path and the arguments that name the program")
        self._become(peer, request, argv, requests.text(body, "build"))

    def _lease(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        name = requests.lease_name(body)
        until, gone_until = requests.moment(body, "until"), requests.moment(body, "gone_until")
        grace_s = requests.moment(body, "grace_s")
        remove = requests.paths(body, "remove")
        groups = requests.paths(body, "groups")
        if len(fds) > 1 or (not fds and until is None and grace_s is None):
            raise Refused(requests.INVALID, f"lease {name}: needs the owner's pidfd, a connection, or an end")
        for group in groups:
            if not cgroup.is_a_container(group):
                raise Refused(requests.INVALID, f"lease {name}: group {group[:80]!r} is not of a container")
        if self._jobs.leases.full and not self._jobs.leases.holds(name):
            raise Refused(requests.LIMIT, f"lease {name}: too many leases")
        given = fds[0] if fds else None
        if grace_s is None:
            lease = Lease(name, given, until, remove, groups)
        else:
            lease = Lease(name, None, until, remove, groups, grace_s, _socket(name, given), gone_until)
        self._jobs.leases.grant(lease)
        fds.clear()
        peer.send(wire.OK, request, {})

    def _renew(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Set another end (`until`, None for no end), take another connection, or both."""
        name = requests.lease_name(body)
        until = requests.moment(body, "until")
        if len(fds) > 1 or not (fds or "until" in body):
            raise Refused(requests.INVALID, f"lease {name}: needs an end or one connection")
        lease = self._jobs.leases.get(name)
        if lease is None:
            raise Refused(requests.STATE, f"lease {name} is over")
        if fds:
            if lease.grace_s is None:
                raise Refused(requests.STATE, f"lease {name} is not one of a connection")
            connection = _socket(name, fds[0])
            assert connection is not None
            self._jobs.leases.reconnect(lease, connection)
            fds.clear()
        if "until" in body:
            self._jobs.leases.set_until(lease, until)
        peer.send(wire.OK, request, {})

    def _lease_of(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """How one stands; a duplicate of its connection goes along."""
        name = requests.lease_name(body)
        lease = self._jobs.leases.get(name)
        if lease is None:
            peer.send(wire.OK, request, {"holds": False, "over": name in self._jobs.leases.over, "gone_until": None})
            return
        duplicates = [os.dup(lease.connection)] if lease.connection is not None else []
        peer.send(wire.OK, request, {"holds": True, "over": False, "gone_until": lease.gone_until}, duplicates)

    def _drains(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Those of the job whose output goes into this directory."""
        directory = requests.text(body, "directory")
        rows = [row for row in self._jobs.table.rows() if row.segments is not None and row.segments[0] == directory]
        if not rows:
            raise Refused(requests.NOT_FOUND, f"keeper has no job that writes to {directory[:80]!r}")
        peer.send(wire.OK, request, {}, drains_of(rows[-1]))

    def _mailbox(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Keep the socket that came along under a name; without one, let go of what there is."""
        name = requests.mailbox_name(body)
        boxes = self._jobs.mailboxes
        if len(fds) > 1 or (fds and not S_ISSOCK(os.fstat(fds[0]).st_mode)):
            raise Refused(requests.INVALID, f"mailbox {name}: needs one socket")
        if not fds:
            boxes.remove(name)
        elif boxes.full and boxes.get(name) is None:
            raise Refused(requests.LIMIT, f"mailbox {name}: too many mailboxes")
        else:
            # Or one that has nothing to say would hold up the loop.
            os.set_blocking(fds[0], False)
            boxes.put(Mailbox(name, fds[0]))
            fds.clear()
        peer.send(wire.OK, request, {})

    def _mailbox_of(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """A duplicate of one, with what was said while nobody else read it."""
        box = self._jobs.mailboxes.get(requests.mailbox_name(body))
        if box is None:
            peer.send(wire.OK, request, {"ready_ns": 0, "stopping": False, "status": None})
            return
        said: dict[str, object] = {"ready_ns": box.ready_ns, "stopping": box.stopping, "status": box.status}
        peer.send(wire.OK, request, said, [os.dup(box.fd)])

    def _release(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        self._jobs.leases.release(requests.lease_name(body))
        peer.send(wire.OK, request, {})

    def _list(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Rows after serial `after`, as many as fit into one message; `more` says whether there are others.

        With `of`: those whose key begins so. An engine of an earlier release does not say it.
        """
        page: list[object] = []
        size = 0
        last = requests.number(body, "after")
        more = False
        for row in self._jobs.table.after(last, requests.text(body, "of") if "of" in body else ""):
            exit = exit_values(row) if row.exited else None
            entry = [row.job, row.pid, row.start_time, exit, row.recipe, row.meta, list(row.held)]
            size += len(wire.encode(entry))
            if page and (size > _PAGE_BYTES or len(page) == _PAGE_JOBS):
                more = True
                break
            page.append(entry)
            last = row.serial
        peer.send(wire.OK, request, {"jobs": page, "last": last, "more": more})

    def _exit_of(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        row = self._row(body)
        peer.send(wire.OK, request, {"exit": exit_values(row) if row.exited else None})

    def _fetch(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        held = self._row(body).held
        duplicates: list[int] = []
        try:
            for fd in held.values():
                duplicates.append(os.dup(fd))
        except OSError:
            close_all(duplicates)
            raise
        peer.send(wire.OK, request, {"names": list(held)}, duplicates)

    def _close_held(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        row = self._row(body)
        names = requests.names(body)
        missing = [name for name in names if name not in row.held]
        if missing:
            raise Refused(requests.NOT_FOUND, f"job {row.job} holds no {missing[0][:40]!r}")
        for name in set(names):
            os.close(row.held.pop(name))
        peer.send(wire.OK, request, {})

    def _acknowledge(self, peer: Peer, request: int, body: dict[str, object], fds: list[int]) -> None:
        """Has no answer. Only an exit that was told can be acknowledged: one that was not is never lost."""
        row = self._jobs.table.get(requests.job_key(body))
        if row is not None and row.exited:
            self._jobs.forget(row)

    def _row(self, body: dict[str, object]) -> Row:
        job = requests.job_key(body)
        row = self._jobs.table.get(job)
        if row is None:
            raise Refused(requests.NOT_FOUND, f"keeper has no job {job}")
        return row


def _socket(name: str, fd: int | None) -> int | None:
    if fd is not None and not S_ISSOCK(os.fstat(fd).st_mode):
        raise Refused(requests.INVALID, f"lease {name}: its connection is not a socket")
    return fd
