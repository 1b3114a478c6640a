"""The protocol's encoding: exact both ways, bounded, and one error whatever comes in."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighterman import limits
from lighterman.keeper import wire

# Without lone surrogates: what os.fsdecode makes has a test of its own.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | st.binary(max_size=40) | TEXTS
UNHURRIED = settings(deadline=None)  # a busy host is slow for all
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth(item) for item in inner), default=0)


@UNHURRIED
@given(VALUES)
def test_round_trip(value: object) -> None:
    if depth(value) > wire.MAX_DEPTH:
        with pytest.raises(wire.WireError):
            wire.encode(value)
    else:
        decoded = wire.decode(wire.encode(value))
        assert decoded == value
        assert repr(decoded) == repr(value)  # True is not 1


@UNHURRIED
@given(st.binary(max_size=200))
def test_any_bytes_decode_or_give_the_one_error(data: bytes) -> None:
    try:
        value = wire.decode(data)
    except wire.WireError:
        return
    # NaN is the one value that is not equal to itself.
    assert repr(wire.decode(wire.encode(value))) == repr(value)


@UNHURRIED
@given(VALUES.filter(lambda value: depth(value) <= wire.MAX_DEPTH), st.data())
def test_damage_never_raises_anything_else(value: object, data: st.DataObject) -> None:
    message = bytearray(wire.encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    for damaged in (bytes(message), bytes(message[:cut])):
        try:
            wire.decode(damaged)
        except wire.WireError:
            continue


@UNHURRIED
@given(st.binary(max_size=40))
def test_bytes_of_a_path_survive_as_text(data: bytes) -> None:
    import os

    decoded = wire.decode(wire.encode(os.fsdecode(data)))
    assert isinstance(decoded, str)
    assert os.fsencode(decoded) == data


def test_nan_and_infinity_are_values() -> None:
    assert math.isnan(wire.decode(wire.encode(math.nan)))  # type: ignore[arg-type]
    assert wire.decode(wire.encode(-math.inf)) == -math.inf


@pytest.mark.parametrize("value", [object(), {1: 2}, 2**63, -(2**63) - 1, "\ud800", {"a": {1}}, bytearray(b"x")])
def test_what_has_no_encoding_is_refused(value: object) -> None:
    with pytest.raises(wire.WireError):
        wire.encode(value)


def test_a_huge_count_makes_nothing() -> None:
    for tag in (b"l", b"d", b"s", b"b"):
        with pytest.raises(wire.WireError):
            wire.decode(tag + struct.pack(">I", 2**32 - 1))


def test_a_key_given_twice_is_refused() -> None:
    key = struct.pack(">I", 1) + b"k"
    with pytest.raises(wire.WireError):
        wire.decode(b"d" + struct.pack(">I", 2) + key + b"N" + key + b"T")


def test_nesting_and_number_of_values_are_bounded() -> None:
    with pytest.raises(wire.WireError):
        wire.decode((b"l" + struct.pack(">I", 1)) * 5000 + b"N")
    with pytest.raises(wire.WireError):
        wire.decode(b"l" + struct.pack(">I", wire.MAX_VALUES) + b"N" * wire.MAX_VALUES)


def test_a_message_has_its_header_and_its_bound() -> None:
    message = wire.pack(wire.PING, 7, {"a": 1})
    assert wire.unpack_header(message) == (wire.VERSION, wire.PING, 7)
    assert wire.unpack_body(message) == {"a": 1}
    with pytest.raises(wire.TooLong):
        wire.pack(wire.PING, 7, {"a": b"x" * wire.MESSAGE_BYTES})
    with pytest.raises(wire.WireError):
        wire.unpack_header(message[:7])
    with pytest.raises(wire.WireError):
        wire.unpack_body(message[:8] + wire.encode([1]))


def test_the_bound_is_the_packages() -> None:
    assert wire.MESSAGE_BYTES == limits.KEEPER_MESSAGE_BYTES


@pytest.mark.parametrize("key", ["a", "0", "abc.def_1:exec-2", "x" * 201])
def test_good_jobs(key: str) -> None:
    assert wire.valid_job(key)


@pytest.mark.parametrize("key", ["", ".a", "-a", "_a", "a/b", "a b", "a\n", "é", "x" * 202, "a\0"])
def test_bad_jobs(key: str) -> None:
    assert not wire.valid_job(key)
