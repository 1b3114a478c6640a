"""`lighterman doctor`: what this host offers, what is missing, and the command that mends it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lighterman.comparison import Difference

__all__ = ["command"]


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
    compared = root is not None and os.path.exists(os.path.join(root, "state.db"))
    differences = _compare(root, repair) if root is not None and compared else []
    if as_json:
        both = {"findings": findings, "differences": differences}
        click.echo(msgspec.json.format(msgspec.json.encode(both), indent=2))
    else:
        click.echo(render(findings), nl=False)
        for difference in differences:
            click.echo(f"{'mended' if repair else 'differs':8}  {difference.container[:12]}: {difference.text}")
        if compared and not differences:
            click.echo(f"ok        the store of {root} says what the keeper and the kernel say")
    left = bool(differences) and not repair
    return 1 if left or any(finding.status == "missing" for finding in findings) else 0


def _compare(root: str, repair: bool) -> list[Difference]:
    import asyncio

    from lighterman.comparison import compare
    from lighterman.engine import Engine
    from lighterman.roots import StateRoot

    async def look() -> list[Difference]:
        held = StateRoot.of(root)
        held.acquire()
        try:
            differences = await compare(held)
        finally:
            held.release()
        if repair and differences:
            async with Engine(root=root):
                pass  # coming back is the repair
        return differences

    return asyncio.run(look())
