"""The public names are one list that is true, and the error tree is drawn as it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import lighterman
from lighterman import errors

# The modules that a user may import by name; whatever else has a list must have a true one too.
NAMED = (
    "errors",
    "spec",
    "clock",
    "engine",
    "sync",
    "testing",
    "runtimes.base",
    "runtimes.options",
    "lifecycle.events",
    "supervisor.backend",
    "supervisor.client",
    "supervisor.streams",
)

# Read so, a package without the list fails its tests and not the collection of all of them.
PUBLIC: list[str] = list(vars(lighterman).get("__all__", ()))


# What can only be imported on Windows; tests/hcs runs it there.
WINDOWS_ONLY = ("lighterman.runtimes.hcs.std_windows",)


def _modules() -> list[str]:
    found = (module.name for module in pkgutil.walk_packages(lighterman.__path__, "lighterman."))
    skipped = () if sys.platform == "win32" else WINDOWS_ONLY
    return [name for name in found if not name.endswith("__main__") and name not in skipped]


@pytest.mark.parametrize("name", _modules())
def test_all_holds_existing_names_only(name: str) -> None:
    module = importlib.import_module(name)
    names: list[str] = getattr(module, "__all__", [])
    assert len(names) == len(set(names)), "a name stands twice"
    assert not [each for each in names if not hasattr(module, each)]
    assert not [each for each in names if each.startswith("_")]


@pytest.mark.parametrize("name", NAMED)
def test_module_for_users_lists_its_names(name: str) -> None:
    assert importlib.import_module(f"lighterman.{name}").__all__


# ---- lighterman itself -------------------------------------------------------------------------------------------


def test_dir_and_all_agree() -> None:
    # A submodule becomes an attribute by being imported; that makes no name public.
    named = {name for name in dir(lighterman) if not name.startswith("_")}
    assert set(PUBLIC) == {each for each in named if each in PUBLIC or not inspect.ismodule(getattr(lighterman, each))}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there(name: str) -> None:
    assert getattr(lighterman, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        lighterman.no_such_name  # noqa: B018


def test_promised_names_are_public() -> None:
    promised = {"Engine", "Client", "LightermanError", "UsageError", "RuntimeFailed"}
    assert promised <= set(PUBLIC)


def test_star_import_works_in_a_fresh_interpreter() -> None:
    program = "from lighterman import *; assert Engine and Client and LightermanError"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


# ---- the error tree ----------------------------------------------------------------------------------------------


def _classes() -> dict[str, type]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.LightermanError)
    }


def _drawn() -> dict[str, str | None]:
    """Class name -> its parent's name, from the indentation of the tree in the docstring."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.split()
        if not line.startswith("    ") or not words:
            continue
        indent = len(line) - len(line.lstrip())
        above = [(depth, name) for depth, name in above if depth < indent]
        parents[words[0]] = above[-1][1] if above else None
        above.append((indent, words[0]))
    return parents


def test_error_tree_is_drawn_as_it_is() -> None:
    actual = {
        name: None if value is errors.LightermanError else value.__bases__[0].__name__
        for name, value in _classes().items()
    }
    assert _drawn() == actual


def test_every_error_is_exported() -> None:
    assert set(errors.__all__) == set(_classes())
    assert set(errors.__all__) <= set(PUBLIC)
