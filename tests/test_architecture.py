"""Who may import whom, enforced by reading every import in `src`, those inside functions too.

The rules are the tables below; a room is a package or a module, and a rule for a room holds for all that lies in it.
"""

from __future__ import annotations

import ast
import functools
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "lighterman"

# ---- the rules ---------------------------------------------------------------------------------------------------

# Top to bottom: a lower room never imports a higher one, and rooms of one level leave each other alone.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("cli", "engine_api", "cri", "testing"),
    ("sync", "__init__"),
    ("engine", "container", "doctor", "comparison"),
    ("watches", "leases", "windows_leases", "windows_recovery"),
    ("recovery", "execs"),
    ("settling",),
    ("books", "capture"),
    ("entry",),
    ("asking", "lease", "stdin", "linux_host", "windows_host", "journal", "notify"),
    ("linux_jobs",),
    ("host",),
    ("supervisor",),
    ("lifecycle",),
    ("runtimes",),
    ("keeper", "images", "network", "volumes", "logs", "store"),
    (
        "arguments",
        "spec",
        "checks",
        "errors",
        "ends",
        "limits",
        "clock",
        "disks",
        "flag",
        "loop_thread",
        "quantities",
        "record",
        "results",
        "roots",
        "scarcity",
        "signal_names",
        "threads",
        "trees",
    ),
)

# The exceptions; values and their helpers at the bottom may use each other.
EXCEPTIONS: tuple[tuple[str, str], ...] = (
    ("logs", "keeper.segments"),  # one format on disk, written by both
    ("logs", "keeper.files"),  # how files of ours are opened
    ("store", "keeper.files"),
    ("roots", "keeper.files"),
    ("engine", "container"),  # two halves of one face
    ("container", "engine"),
    ("windows_recovery", "engine"),
    ("recovery", "engine"),  # for type checkers only: it is handed the engine
    ("record", "lifecycle.status"),  # the status is a word, and a row holds it
    ("__init__", "sync"),
    *((one, other) for one in LEVELS[-1] for other in LEVELS[-1] if one != other),
)

# Rooms that may import of ours only what stands here (and themselves).
ONLY: dict[str, tuple[str, ...]] = {
    "lifecycle": ("spec", "checks", "errors", "limits", "signal_names"),
    "testing": ("supervisor", "runtimes", "lifecycle", "clock", "spec", "checks", "errors", "limits"),
}

# Where only a part of a room may be imported: (importer, room) -> parts.
PARTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("supervisor", "runtimes"): ("runtimes.base", "runtimes.options"),
}

# What a room must not import, ours or not.
NEVER: dict[str, tuple[str, ...]] = {
    "lifecycle": ("asyncio", "os", "time", "random", "sqlite3", "logging", "datetime", "threading", "socket"),
    "runtimes": ("lighterman.store",),
    "runtimes.oci": ("lighterman.runtimes.hcs",),
    "runtimes.hcs": ("lighterman.runtimes.oci",),
}

# What only some rooms may import.
RESERVED: dict[str, tuple[str, ...]] = {
    "sqlite3": ("store",),
    "click": ("cli",),
    "lighterman.engine": ("cli", "sync", "testing", "__init__", "container", "recovery", "windows_recovery"),
}

# The keeper's program runs outside of the package, under this name: what it reaches from here, by the imports of its
# siblings, is the standard library and itself. The other modules beside it are the engine's side.
KEEPER_PROGRAM = "keeper.__main__"
KEEPER_ALIAS = "lighterman_keeper"


def violations(importer: str, imported: str) -> Iterator[str]:
    """What is wrong with `importer` ("runtimes.oci.bundle") importing `imported` ("lighterman.spec", "os"), if any."""
    if importer in _keeper_program():
        if not _in(imported, "lighterman.keeper") and imported.partition(".")[0] not in sys.stdlib_module_names:
            yield "the keeper's program imports only the standard library and its siblings"
        return
    for room, names in NEVER.items():
        if _in(importer, room) and any(_in(imported, name) for name in names):
            yield f"{room} must not import it"
    for name, rooms in RESERVED.items():
        if _in(imported, name) and not any(_in(importer, room) for room in (*rooms, name.partition(".")[2])):
            yield f"only {', '.join(rooms)} may import it"
    if imported == "lighterman":
        imported = "lighterman.__init__"
    if not imported.startswith("lighterman."):
        return

    ours = imported.removeprefix("lighterman.")
    mine, other = importer.partition(".")[0], ours.partition(".")[0]
    if mine == other:
        return
    for room, allowed in ONLY.items():
        if _in(importer, room) and other not in allowed:
            yield f"{room} imports of ours only {', '.join(allowed)}"
    for (room, target), parts in PARTS.items():
        if _in(importer, room) and _in(ours, target) and not any(_in(ours, part) for part in parts):
            yield f"{room} imports of {target} only {', '.join(parts)}"
    if any(_in(importer, one) and _in(ours, target) for one, target in EXCEPTIONS):
        return
    if _level(mine) > _level(other):
        yield f"{mine} is below {other}"
    if _level(mine) == _level(other):
        yield f"{mine} and {other} are of one level"


def _in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def _level(room: str) -> int:
    for number, rooms in enumerate(LEVELS):
        if room in rooms:
            return number
    raise AssertionError(f"{room} has no level: add it to LEVELS, and say in ARCHITECTURE.md what it is for")


# ---- reading imports ---------------------------------------------------------------------------------------------


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of each import in `source`, a module directly inside `package` ("lighterman.cli")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, _real_name(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = _real_name(".".join([*parent, *([node.module] if node.module else [])]))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def _real_name(name: str) -> str:
    return "lighterman.keeper" + name.removeprefix(KEEPER_ALIAS) if _in(name, KEEPER_ALIAS) else name


def _is_module(name: str) -> bool:
    if not name.startswith("lighterman."):
        return False
    path = SRC.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").exists()


@functools.cache
def _keeper_program() -> frozenset[str]:
    reached: set[str] = set()
    waiting = {KEEPER_PROGRAM}
    while waiting:
        module = waiting.pop()
        path = SRC.joinpath(*module.split(".")).with_suffix(".py")
        if module not in reached and path.exists():
            reached.add(module)
            waiting |= {name.removeprefix("lighterman.") for _, name in imports(path.read_text(), _package(path))}
    return frozenset(reached)


def _modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def _name(path: Path) -> str:
    """`src/lighterman/runtimes/oci/bundle.py` -> "runtimes.oci.bundle"; a package is "runtimes.oci.__init__"."""
    return ".".join(path.relative_to(SRC).with_suffix("").parts)


def _package(path: Path) -> str:
    return ".".join(("lighterman", *path.relative_to(SRC).parent.parts))


# ---- the tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_follow_the_rules(path: Path) -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line}: imports {imported}: {why}"
        for line, imported in imports(path.read_text(), _package(path))
        for why in violations(_name(path), imported)
    ]
    assert not broken, "\n" + "\n".join(broken)


def test_third_party_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {requirement.partition(">")[0] for requirement in project["dependencies"]}
    for path in _modules():
        for line, imported in imports(path.read_text(), _package(path)):
            top = imported.partition(".")[0]
            known = sys.stdlib_module_names | declared | {"lighterman"}
            assert top in known, f"{path.relative_to(ROOT)}:{line}: {imported} is not a dependency in pyproject.toml"


def test_keeper_program_is_more_than_its_first_file() -> None:
    assert {"keeper.__main__", "keeper.server", "keeper.wire", "keeper.segments"} <= _keeper_program()


def test_keeper_program_names_its_siblings_without_the_package() -> None:
    for module in sorted(_keeper_program()):
        path = SRC.joinpath(*module.split(".")).with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            assert not [name for name in names if _in(name, "lighterman")], path.relative_to(ROOT)


def test_supervisor_knows_no_platform() -> None:
    for path in sorted((SRC / "supervisor").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked = f"{node.value.id}.{node.attr}"
                assert asked not in ("sys.platform", "os.name"), f"{path.relative_to(ROOT)}:{node.lineno}: {asked}"


def test_nobody_asks_which_version_the_cgroups_have() -> None:
    """But `runtimes/oci/cgroups`, and the keeper's program, which may not import it and has a copy of the question."""
    copies = {"keeper.scope", "keeper.cgroup"}
    for path in _modules():
        if _in(_name(path), "runtimes.oci.cgroups") or _name(path) in copies:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            asks = isinstance(node, ast.Constant) and "cgroup.controllers" in str(node.value)
            if isinstance(node, ast.Compare | ast.Subscript):
                asks = any(isinstance(part, ast.Attribute) and part.attr == "layout" for part in ast.walk(node))
            assert not asks, (
                f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: belongs into runtimes/oci/cgroups/host.py"
            )


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("lifecycle.restart", "asyncio"),
        ("lifecycle.restart", "os.path"),
        ("lifecycle.status", "lighterman.runtimes.base"),
        ("lifecycle.status", "lighterman.clock"),
        ("supervisor.container", "lighterman.runtimes.oci"),
        ("supervisor.container", "lighterman.runtimes.oci.runtime"),
        ("supervisor.container", "lighterman.engine"),
        ("runtimes.oci.runtime", "lighterman.runtimes.hcs"),
        ("runtimes.oci.runtime", "lighterman.store.memory"),
        ("runtimes.oci.runtime", "lighterman.supervisor.client"),
        ("runtimes.hcs", "lighterman.runtimes.oci.runtime"),
        ("keeper.server", "lighterman.errors"),
        ("keeper.server", "msgspec"),
        ("store.sqlite", "lighterman.logs.reader"),
        ("images.builtin", "sqlite3"),
        ("logs.reader", "lighterman.keeper.client"),
        ("spec", "lighterman.runtimes.base"),
        ("engine", "lighterman.cli.run"),
        ("engine", "lighterman"),
        ("engine", "click"),
        ("testing.fault", "lighterman.engine"),
        ("cli.run", "lighterman.testing"),
    ],
)
def test_forbidden_import_is_caught(importer: str, imported: str) -> None:
    assert list(violations(importer, imported))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("cli.run", "lighterman.engine"),
        ("cli.run", "click"),
        ("cli.run", "lighterman"),
        ("sync", "lighterman.engine"),
        ("engine", "lighterman.runtimes.oci.runtime"),
        ("supervisor.container", "lighterman.runtimes.options"),
        ("logs.reader", "lighterman.keeper.segments"),
        ("runtimes.oci.runtime", "lighterman.keeper.client"),
        ("store.sqlite", "sqlite3"),
        ("spec", "lighterman.errors"),
        ("keeper.client", "lighterman.errors"),
        ("keeper.server", "selectors"),
        ("keeper.server", "lighterman.keeper.wire"),
    ],
)
def test_allowed_import_passes(importer: str, imported: str) -> None:
    assert not list(violations(importer, imported))


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import os.path
from lighterman import spec, Engine
from . import events
from ..spec import User

def late():
    from lighterman.runtimes import base
    importlib.import_module("lighterman.engine")
"""
    assert [name for _, name in sorted(imports(source, "lighterman.lifecycle"))] == [
        "os.path",
        "lighterman",
        "lighterman.spec",
        "lighterman.lifecycle.events",
        "lighterman.spec",
        "lighterman.runtimes.base",
        "lighterman.engine",
    ]
