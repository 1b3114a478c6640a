"""The legal order of state changes, as a table [L39]."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman.errors import InternalError
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.order import ORDER, OrderChecker, Phase

# The grammar of the specification, one letter a state: c create, s start, r restore, p pause, u resume, o oom,
# + start-process, - exit-process, x exit, t restart. Pauses alternate; a run may end paused.
LETTERS = {
    State.CREATE: "c",
    State.START: "s",
    State.RESTORE: "r",
    State.PAUSE: "p",
    State.RESUME: "u",
    State.OOM: "o",
    State.START_PROCESS: "+",
    State.EXIT_PROCESS: "-",
    State.EXIT: "x",
    State.RESTART: "t",
}
_QUIET = "[o+-]*"
_STARTED = f"s{_QUIET}(p{_QUIET}u{_QUIET})*(p{_QUIET})?"
_RESTORED = f"r{_QUIET}(u{_QUIET})?(p{_QUIET}u{_QUIET})*(p{_QUIET})?"
_RUN = f"({_STARTED}|{_RESTORED})"
GRAMMAR = re.compile(f"c?(x|{_RUN}(t{_RUN})*(x|tx))")


def events(word: str) -> list[StateInfo]:
    """Events with consistent numbers for a word of the grammar; execs are paired by the order of their letters."""
    states = {letter: state for state, letter in LETTERS.items()}
    told: list[StateInfo] = []
    generation, running = 0, 0
    for seq, letter in enumerate(word, 1):
        process, pid = "init", 0 if letter in "c" else 100
        if letter in "sr":
            generation += 1
        if letter == "+":
            running += 1
            process, pid = f"x{running}", 200 + running
        if letter == "-":
            process, pid = f"x{running}", 200 + running
            running -= 1
        told.append(
            StateInfo(
                state=states[letter],
                container_id="c1",
                generation=max(generation, 1),
                seq=seq,
                process_id=process,
                pid=pid,
            )
        )
    return told


def accepts(word: str) -> bool:
    checker = OrderChecker("c1")
    try:
        for info in events(word):
            checker.accept(info)
    except InternalError:
        return False
    return checker.is_ended


@pytest.mark.parametrize(
    "word",
    ["x", "cx", "sx", "csx", "rx", "stx", "stsx", "strx", "s+-x", "spux", "spx", "spo+-ux", "sotsotsx", "rux", "rpux"],
)
def test_L39_legal_words_are_accepted(word: str) -> None:
    assert GRAMMAR.fullmatch(word)
    assert accepts(word)


@pytest.mark.parametrize(
    "word",
    ["", "s", "t", "tx", "ssx", "xx", "sxx", "spp", "sux", "sttx", "stpx", "scx", "ccx", "p", "s+x", "s-x", "cc"],
)
def test_L39_illegal_words_are_refused(word: str) -> None:
    assert not accepts(word)


@given(st.text(alphabet="csrpuo+-xt", max_size=10))
def test_L39_the_table_is_the_grammar(word: str) -> None:
    """Beyond the grammar the checker wants every exec's start and end paired within its run."""
    depth = 0
    paired = True
    for letter in word:
        depth += {"+": 1, "-": -1}.get(letter, 0)
        if depth < 0 or (letter in "xt" and depth):
            paired = False
            break
    if "r" in word:
        return  # execs of a restored run may end without a start that this engine has told
    assert accepts(word) == (bool(GRAMMAR.fullmatch(word)) and paired)


def test_L39_every_phase_is_in_the_table() -> None:
    assert set(ORDER) == set(Phase)


def change(info: StateInfo, **fields: object) -> StateInfo:
    return msgspec.structs.replace(info, **fields)


@pytest.mark.parametrize(
    ("word", "index", "fields"),
    [
        ("sx", 1, {"seq": 3}),
        ("sx", 1, {"seq": 1}),
        ("sx", 0, {"seq": 2}),
        ("sx", 1, {"pid": 7}),
        ("sx", 1, {"container_id": "c2"}),
        ("sx", 1, {"generation": 0}),
        ("stsx", 2, {"generation": 1}),
        ("sx", 1, {"exit_code": -1}),
        ("sx", 1, {"exit_code": 0, "exit_code_known": False}),
        ("s+-x", 2, {"pid": 7}),
        ("s+-x", 2, {"process_id": "other"}),
        ("s+-x", 1, {"process_id": "init"}),
    ],
)
def test_L39_wrong_numbers_are_refused_and_change_nothing(word: str, index: int, fields: dict[str, object]) -> None:
    checker = OrderChecker("c1")
    told = events(word)
    for info in told[:index]:
        checker.accept(info)
    phase = checker.phase
    with pytest.raises(InternalError):
        checker.accept(change(told[index], **fields))
    assert checker.phase is phase
    for info in told[index:]:
        checker.accept(info)
    assert checker.is_ended


def test_L39_state_info_is_immutable() -> None:
    (info,) = events("x")
    with pytest.raises(AttributeError):
        info.exit_code = 3  # type: ignore[misc]


def test_L39_states_are_those_of_the_specification() -> None:
    assert [str(state) for state in State] == [
        "create",
        "start",
        "restore",
        "pause",
        "resume",
        "oom",
        "start-process",
        "exit-process",
        "exit",
        "restart",
    ]
    assert set(StateInfo.__struct_fields__) >= {
        "state",
        "container_id",
        "generation",
        "seq",
        "process_id",
        "pid",
        "exit_code",
        "exit_code_known",
        "signal",
        "reason",
        "update_pending",
        "oom_killed",
        "drained",
        "started_at",
        "finished_at",
        "error",
    }
