"""For every test: a true reason where real containers can't run, and nothing of ours left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from support import Snapshot, leaked_since, snapshot, why_not_host, why_not_real

# A keeper without containers stays a minute for the next engine; here that would look like a leak. Read by `limits` at
# its import, so before any test's.
assert "lighterman.limits" not in sys.modules
os.environ.setdefault("LIGHTERMAN_KEEPER_IDLE_S", "2")

from lighterman.threads import let_go  # noqa: E402

# A shell's background jobs have it ignored, and so would the programs that are tested: no Ctrl-C would end them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BEFORE: pytest.StashKey[Snapshot] = pytest.StashKey()
LEFT: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for needs in item.iter_markers("needs"):
            elsewhere = why_not_host(*needs.args)
            if elsewhere is not None:
                item.add_marker(pytest.mark.skip(reason=elsewhere))
    reason = why_not_real()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=["crun", "runc"])
def real_runtime(request: pytest.FixtureRequest) -> str:
    """The name of each OCI runtime that is installed here, one after the other."""
    name = str(request.param)
    reason = why_not_real(name)
    if reason is not None:
        pytest.skip(reason)
    return name


# ---- nothing is left ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nothing_left_by_this_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each real test: its processes, mounts, cgroups and directories are gone, or it is named."""
    if request.node.get_closest_marker("real") is None:
        yield
        return
    before = snapshot()
    yield
    left = leaked_since(before)
    assert not left, "this test left behind:\n  " + "\n  ".join(left)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEFORE] = snapshot(own=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the whole run, the test process's own descriptors and threads included: what is left fails the run."""
    before = session.config.stash.get(BEFORE, None)
    if before is None:
        return
    # The idle ones of a test without an engine, which would have ended them.
    let_go()
    # What only a cycle holds, a failed connection's traceback say: nothing runs any more that would collect it.
    gc.collect()
    left = session.config.stash[LEFT] = leaked_since(before)
    if (cache := getattr(session.config, "cache", None)) is not None:
        cache.set("lighterman/left-behind", left)  # for .ci/run
    if left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = config.stash.get(LEFT, [])
    if left:
        terminalreporter.section("LEFT BEHIND BY THIS TEST RUN", red=True)
        for line in left:
            terminalreporter.write_line(line, red=True)
