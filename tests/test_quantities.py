from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman.errors import InvalidSpec
from lighterman.quantities import MAX_BYTES, parse_cpus, parse_duration, parse_size, parse_swap_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1b", 1),
        ("1B", 1),
        ("1k", 1024),
        ("1kb", 1024),
        ("1KiB", 1024),
        ("256M", 256 * 2**20),
        ("256 m", 256 * 2**20),
        ("1.5g", 3 * 2**29),
        ("0.1k", 102),
        ("2T", 2 * 2**40),
        (str(MAX_BYTES), MAX_BYTES),
        (12345, 12345),
        (MAX_BYTES, MAX_BYTES),
    ],
)
def test_size_of_dockers_notation(text: str | int, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "b", "m", "-1", "-1m", "+1m", "1x", "1mm", "1e3", "0x10", "1,5m", "1.m", ".5m", "1 m b", "nan", "inf",
        "1\n", "\u0661", "1\x00", "9223372036854775808", "8192p", "9" * 5000, -1, MAX_BYTES + 1, pytest.param(10**5000, id="huge"), 1.5, True,  # noqa: E501
        None, b"1m",
    ],
)  # fmt: skip
def test_size_that_cannot_be_is_refused_with_its_value(text: Any) -> None:
    with pytest.raises(InvalidSpec, match=r"^size .*: must be") as refused:
        parse_size(text)
    assert len(str(refused.value)) < 160


@given(st.integers(0, MAX_BYTES))
def test_size_of_a_plain_number_is_itself(count: int) -> None:
    assert parse_size(str(count)) == parse_size(count) == count


@given(st.text(max_size=60))
def test_size_of_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        count = parse_size(text)
    except InvalidSpec:
        return
    assert 0 <= count <= MAX_BYTES


def test_swap_size_takes_minus_one_for_no_limit() -> None:
    assert parse_swap_size("-1") == parse_swap_size(-1) == -1
    assert parse_swap_size("1g") == 2**30
    with pytest.raises(InvalidSpec):
        parse_swap_size("-2")


@pytest.mark.parametrize(
    ("given_cpus", "count"),
    [("1.5", 1.5), (1.5, 1.5), (2, 2.0), ("2", 2.0), ("0", 0.0), (".5", 0.5), ("1.", 1.0), ("0.000000001", 1e-9)],
)
def test_cpus_of_a_number_or_its_text(given_cpus: str | float, count: float) -> None:
    assert parse_cpus(given_cpus) == count


@pytest.mark.parametrize(
    "cpus",
    [
        "", ".", "-1", "1e3", "nan", "inf", "1,5", "two", "1\n", "0.0000000001", "9" * 30, "9" * 5000,
        -0.5, math.nan, math.inf, -math.inf, 1e300, pytest.param(10**5000, id="huge"), True, None,
    ],
)  # fmt: skip
def test_cpus_that_cannot_be_are_refused_with_their_value(cpus: Any) -> None:
    with pytest.raises(InvalidSpec, match=r"^cpus .*: must "):
        parse_cpus(cpus)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1.5", 1.5), ("90s", 90), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("1h2m3s4ms", 3723.004)],
)
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "-1s", "1 s", "1d", "1s2", "1e3", "nan", "inf", "\u0663s", "1" * 50])
def test_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="duration"):
        parse_duration(text)
