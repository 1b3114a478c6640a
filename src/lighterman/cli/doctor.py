"""`lighterman doctor`: what this host offers, what is missing, and the command that mends it."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("doctor", help="Show what this host offers, what is missing, and the command that mends it.")
@click.option("--root", metavar="DIR", help="The engine's state, where it is not the usual one.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(root: str | None, as_json: bool) -> int:
    """Returns 1 if something is missing that containers need."""
    import msgspec

    from lighterman.doctor import examine, render

    findings = examine(root)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    else:
        click.echo(render(findings), nl=False)
    return 1 if any(finding.status == "missing" for finding in findings) else 0
