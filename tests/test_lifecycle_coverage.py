"""Every rule of the lifecycle has a test that bears its number."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RULES = [f"L{number:02}" for number in range(1, 41)]


def names() -> set[str]:
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_L"):
                found.add(node.name)
    return found


NAMES = names()


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_a_test(rule: str) -> None:
    assert [name for name in NAMES if name.startswith(f"test_{rule}_")]


def test_no_test_names_a_rule_that_is_not_there() -> None:
    assert not [name for name in NAMES if name.removeprefix("test_").partition("_")[0] not in RULES]
