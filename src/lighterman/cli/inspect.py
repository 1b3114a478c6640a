"""`lighterman inspect`: all that is known of containers of a root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lighterman.cli.at_root import at_root, find, root_option

if TYPE_CHECKING:
    from lighterman.container import Container
    from lighterman.engine import Engine

__all__ = ["command"]


@click.command(
    "inspect", help="Show all that is known of containers, as a JSON array in the order of their names here."
)
@root_option
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
def command(root: str, names: tuple[str, ...]) -> int:
    """Returns the exit code."""
    import msgspec

    from lighterman.cli.failures import failed
    from lighterman.errors import LightermanError, NotFound

    async def look(engine: Engine) -> tuple[int, list[dict[str, Any]]]:
        code, found = 0, []
        for name in names:
            try:
                container = await find(engine, name)
                if container.status == "removed":
                    raise NotFound(f"container {name} was removed", container=container.id)
                found.append(await _known(container))
            except LightermanError as wrong:
                code = failed(wrong)
        return code, found

    code, found = at_root(root, look)
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    return code


async def _known(container: Container) -> dict[str, Any]:
    """By the names that they have in Python, see `lighterman.Container`."""
    return {
        "id": container.id,
        "name": container.name,
        "status": container.status,
        "pid": container.pid,
        "generation": container.generation,
        "runtime": container.runtime,
        "created_at": container.created_at,
        "started_at": container.started_at,
        "exit": _plain(container.exit),
        "health": _plain(container.health),
        "is_ready": container.is_ready,
        "status_text": container.status_text,
        "lease": _plain(container.lease),
        "execs": [
            {"id": process.id, "pid": process.pid, "exit": _plain(process.exit)} for process in await container.execs()
        ],
        "checkpoints": await container.checkpoints(),
        "log_state": _plain(container.log_state),
        "spec": _plain(container.spec),
    }


def _plain(value: Any) -> Any:
    """Every field of a value, those too that have their default: who reads it need not know which are left out."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        fields = {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        return fields if config.tag is None else {config.tag_field: config.tag, **fields}
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
