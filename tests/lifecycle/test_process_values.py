"""Environment, command line, console: what a process is given, as values [L08, L09, L18]."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman.lifecycle.console import needs_backspace_swap, swap_backspace
from lighterman.spec import Spec, split_environment


def test_L08_split_at_the_first_equals() -> None:
    assert split_environment(["A=1", "B=x=y=z", "C=", "D= "]) == {"A": "1", "B": "x=y=z", "C": "", "D": " "}


@pytest.mark.parametrize("entry", ["NOEQUALS", "", "=value"])
def test_L08_unusable_entry_is_dropped_with_a_warning(entry: str) -> None:
    with pytest.warns(RuntimeWarning, match="dropped"):
        assert split_environment(["A=1", entry]) == {"A": "1"}


def test_L08_good_entries_give_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    split_environment(["A=1", "B=2"])
    assert not recwarn.list


def test_L09_command_line_of_the_document_is_kept() -> None:
    line = subprocess.list2cmdline(["C:\\Program Files\\app.exe", 'a "quoted" word', "", "tail\\"])
    spec = Spec.from_oci({"process": {"commandLine": line, "cwd": "C:\\"}})
    assert spec.process.command_line == line


def test_L09_arguments_with_blanks_and_quotes_stay_one_each() -> None:
    args = ["a b", 'c"d', "", "\\"]
    assert Spec.from_oci({"process": {"args": args, "cwd": "/"}}).process.args == tuple(args)


@pytest.mark.parametrize(
    ("os_build", "terminal", "needed"),
    [(None, True, False), (10586, True, True), (14349, True, True), (14350, True, False), (14349, False, False)],
)
def test_L18_only_with_a_terminal_of_an_old_image(os_build: int | None, terminal: bool, needed: bool) -> None:
    assert needs_backspace_swap(os_build, terminal=terminal) == needed


@given(st.binary())
def test_L18_swapping_is_its_own_inverse_and_touches_two_bytes(data: bytes) -> None:
    swapped = swap_backspace(data)
    assert swap_backspace(swapped) == data
    assert all(one == other for one, other in zip(data, swapped, strict=True) if one not in b"\x08\x7f")
    assert swapped.count(b"\x08") == data.count(b"\x7f")
