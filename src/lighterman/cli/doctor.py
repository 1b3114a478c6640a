"""`lighterman doctor`: what this host offers, what is missing, and the command that mends it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lighterman.comparison import Difference
    from lighterman.engine import Engine
    from lighterman.roots import StateRoot

__all__ = ["command"]


class _Compared(NamedTuple):
    """Attributes: left: the differences that there are now. mended: those that there were. failed: why not all are."""

    left: Sequence[Difference] = ()
    mended: Sequence[Difference] = ()
    failed: str | None = None


@click.command("doctor", help="Show what this host offers, what is missing, and the command that mends it.")
@click.option("--root", metavar="DIR", help="The engine's state, where it is not the usual one.")
@click.option("--repair", is_flag=True, help="With --root: make its books true again, as the next engine would.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(root: str | None, repair: bool, as_json: bool) -> int:
    """Returns 1 if something is missing that containers need, or a difference is left."""
    import msgspec

    from lighterman.doctor import examine, render
    from lighterman.errors import InvalidSpec

    if repair and root is None:
        raise InvalidSpec("--repair needs --root DIR: a private root has nothing to mend")
    findings = examine(root)
    # A root that no engine has used yet has no store to compare.
    is_compared = root is not None and os.path.exists(os.path.join(root, "state.db"))
    compared = _compare(root, repair) if root is not None and is_compared else _Compared()
    if as_json:
        all_of_it: dict[str, object] = {"findings": findings, "differences": compared.left, "mended": compared.mended}
        if compared.failed is not None:
            all_of_it["failed"] = compared.failed
        click.echo(msgspec.json.format(msgspec.json.encode(all_of_it), indent=2))
    else:
        click.echo(render(findings), nl=False)
        for word, differences in (("mended", compared.mended), ("left" if repair else "differs", compared.left)):
            for difference in differences:
                click.echo(f"{word:8}  {difference.container[:12]}: {difference.text}")
        if compared.failed is not None:
            click.echo(f"failed    {compared.failed}")
        elif is_compared and not compared.left:
            click.echo(f"ok        the store of {root} says what the keeper and the kernel say")
    wrong = compared.left or compared.failed is not None
    return 1 if wrong or any(finding.status == "missing" for finding in findings) else 0


def _compare(root: str, repair: bool) -> _Compared:
    import asyncio

    return asyncio.run(_look_and_mend(root) if repair else _look(root))


async def _look(root: str) -> _Compared:
    from lighterman.comparison import compare

    held = _hold(root)
    try:
        return _Compared(left=await compare(held.root))
    finally:
        held.give_back()


async def _look_and_mend(root: str) -> _Compared:
    """Coming back is the repair; what no engine looks for is taken away here. Then all is looked at again."""
    from lighterman.comparison import remove_cgroups
    from lighterman.engine import Engine
    from lighterman.errors import LightermanError
    from lighterman.threads import in_thread

    found = (await _look(root)).left
    if not found:
        return _Compared()
    failed = None
    try:
        async with Engine(root=root) as engine:
            await _settled(engine)
    except LightermanError as refused:
        failed = f"no engine can come back: {refused}"
    left = (await _look(root)).left
    if failed is None and any(difference.about == "cgroup" for difference in left):
        held = _hold(root)
        try:
            await in_thread(remove_cgroups, held.root, left)
        finally:
            held.give_back()
        left = (await _look(root)).left
    still = {(difference.container, difference.about) for difference in left}
    mended = [difference for difference in found if (difference.container, difference.about) not in still]
    return _Compared(left=left, mended=mended, failed=failed)


async def _settled(engine: Engine) -> None:
    """What has ended while no engine was there is told a moment after its start: it must not be closed before."""
    import asyncio

    from lighterman import limits
    from lighterman.cli.at_root import is_alive, settled
    from lighterman.errors import InvalidState

    for container in await engine.containers():
        await settled(engine, container)
        for process in await container.execs():
            if process.pid and not is_alive(process.pid):
                # Bounded, as that is: on a full disk it is told much later. What can't be told is seen afterwards.
                with contextlib.suppress(TimeoutError, InvalidState):
                    async with asyncio.timeout(limits.DRAIN_S):
                        await process.wait()


class _Held(NamedTuple):
    root: StateRoot
    had_run: bool

    def give_back(self) -> None:
        """Also the empty directory that the lock's taking has made, where the host was started again since."""
        if not self.had_run:
            with contextlib.suppress(OSError):
                os.rmdir(self.root.run)
        self.root.release()


def _hold(path: str) -> _Held:
    """Lock a root, so that nothing moves. Raises: RootLocked, StoreError."""
    from lighterman.roots import StateRoot

    root = StateRoot.of(path)
    had_run = os.path.isdir(root.run)
    root.acquire()
    return _Held(root, had_run)
