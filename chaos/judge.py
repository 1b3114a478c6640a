"""The comparison: what the engine says of each container against what its program and its killers know."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from chaos.ledger import Box, Ledger
from chaos.programs import Run
from lighterman.errors import InternalError
from lighterman.lifecycle.events import State, StateInfo
from lighterman.lifecycle.order import OrderChecker, Phase

__all__ = ["check_box", "check_events", "check_follower", "join"]

_LINE = re.compile(rb"([0-9a-f-]{36}) ([oe]) (\d+)")
Event = dict[str, Any]
Record = list[Any]
Output = dict[tuple[int, str], bytes]


# ---- events ------------------------------------------------------------------------------------------------------


def check_events(events: Sequence[Event], ledger: Ledger) -> None:
    """Strictly ascending numbers; a legal order for each container; each exec's end once."""
    last = 0
    by_container: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["seq"] <= last:
            ledger.violation(f"event {event['seq']} after {last}")
        last = event["seq"]
        if event["kind"] == "gap":
            ledger.violation(f"events are missing before {event['seq']}")
        by_container[event.get("container", "")].append(event)
    for own in by_container.values():
        _check_order(own, ledger)
        _check_execs(own, ledger)


def _check_order(events: Sequence[Event], ledger: Ledger) -> None:
    checker = OrderChecker(events[0]["container"])
    count, removed, ended_generation, pid = 0, False, 0, 0
    for event in events:
        kind, name = event["kind"], event["name"]
        if removed:
            ledger.violation(f"{name}: {kind} after its remove")
        if kind == "remove":
            removed = True
            continue
        if kind == "create":
            if event is not events[0]:
                ledger.violation(f"{name}: create is not its first event")
            continue
        # A new engine has a new beginning, and so has a start after an end, if only one that failed.
        if kind == "restore" and checker.phase not in (Phase.NEW, Phase.RESTARTING):
            if checker.phase is Phase.ENDED:
                ledger.violation(f"{name}: restore after exit in: {' '.join(map(_shown, events))}")
            checker, count = OrderChecker(event["container"]), 0
        elif checker.phase is Phase.ENDED and (kind == "start" or "not_started" in (event.get("exit") or {})):
            checker, count = OrderChecker(event["container"]), 0
        elif kind in ("exit", "restart") and "unknown" in (event.get("exit") or {}) and not event.get("pid"):
            # Of what could not be found any more there was no pid to tell.
            event = {**event, "pid": pid}
        pid = event.get("pid", 0) if kind in ("start", "restore") else pid
        count += 1
        generation = event.get("generation", 0)
        if kind in ("start", "restore") and generation <= ended_generation:
            ledger.violation(f"{name}: {kind} of generation {generation}, which has ended")
        if kind in ("exit", "restart"):
            ended_generation = max(ended_generation, generation)
        try:
            checker.accept(_info(event, count))
        except InternalError as illegal:
            ledger.violation(f"{name}: {illegal} in: {' '.join(map(_shown, events))}")
            return


def _shown(event: Event) -> str:
    """`KIND/GENERATION`, with what tells two of the same apart."""
    told = f"{event['kind']}/{event.get('generation', 0)} at {event['time']:.3f}"
    more = [str(event[key]) for key in ("process", "reason", "exit") if event.get(key)]
    return f"[{told}{': ' if more else ''}{', '.join(more)}]"


def _info(event: Event, seq: int) -> StateInfo:
    exit = event.get("exit") or {}
    known = "code" in exit or "signal" in exit
    return StateInfo(
        state=State(event["kind"]),
        container_id=event["container"],
        generation=event.get("generation", 0),
        seq=seq,
        process_id=event.get("process", "init"),
        pid=event.get("pid", 0),
        exit_code=(exit.get("code", 128 + exit.get("signal", 0)) if known else -1),
        exit_code_known=known,
    )


def _check_execs(events: Sequence[Event], ledger: Ledger) -> None:
    started: dict[str, Event] = {}
    ended: set[str] = set()
    for event in events:
        process = event.get("process", "init")
        if event["kind"] == "start-process":
            if process in started:
                ledger.violation(f"{event['name']}: exec {process} starts twice")
            started[process] = event
        elif event["kind"] == "exit-process":
            if process in ended:
                ledger.violation(f"{event['name']}: exec {process} ends twice")
            ended.add(process)
            # The generation is in the time of its start and its end.
    for process, event in started.items():
        if process not in ended and not ledger.lost_keeper(event["time"], event["time"] + 3600):
            ledger.violation(f"{event['name']}: the end of exec {process} was never told")


# ---- one container -----------------------------------------------------------------------------------------------


def join(records: Sequence[Record]) -> tuple[Output, int]:
    """The output of each run and stream, and how many bytes are said to be missing."""
    output: dict[tuple[int, str], list[bytes]] = defaultdict(list)
    lost = 0
    for stream, generation, _, missing, data in records:
        output[generation, stream].append(base64.b64decode(data))
        lost += missing
    return {key: b"".join(pieces) for key, pieces in output.items()}, lost


def check_box(
    box: Box,
    events: Sequence[Event],
    status: str,
    exit: Mapping[str, Any] | None,
    records: Sequence[Record],
    truth: Mapping[str, Run],
    now: float,
    ledger: Ledger,
) -> None:
    """Its exits, its output, its restarts."""
    output, lost = join(records)
    if lost:
        ledger.violation(f"{box.name}: its log says that {lost} bytes are lost")
    runs = _runs(events, now)
    said_by: dict[int, str] = {}
    for (generation, stream), data in output.items():
        run = runs.get(generation)
        began, ended = (run[0], run[1]) if run else (0.0, now)
        strict = not ledger.lost_both(began, ended) and run is not None
        id = _check_lines(box, generation, stream, data, truth, ledger, strict, said_by.get(generation))
        if id is not None:
            said_by[generation] = id
    if len(set(said_by.values())) != len(said_by):
        ledger.violation(f"{box.name}: one run's output stands in two generations: {said_by}")
    for generation, (began, ended, end) in runs.items():
        ledger.runs += 1
        mine = truth.get(said_by.get(generation, ""))
        if end is not None:
            ledger.exits += 1
            found = len(ledger.problems)
            _check_exit(box, generation, end, mine, began, ended, ledger)
            if len(ledger.problems) > found:
                ledger.problems[-1] += _all_that_is_known(box, end, truth, said_by, began)
        if mine is not None and not ledger.lost_both(began, ended):
            _check_complete(box, generation, mine, output, end, ledger)
    unsaid = set(truth) - set(said_by.values())
    untold = len(runs) - len([generation for generation in runs if generation in said_by])
    noted = [truth[id] for id in unsaid if sum(truth[id].lines.values())]
    if noted and not ledger.keeper_ends and untold >= 1:
        ledger.violation(f"{box.name}: the output of {len(noted)} runs is lost: {noted[:2]}")
    last = max((generation for generation, run in runs.items() if run[2] is not None), default=None)
    if last is not None and exit is not None and "not_started" not in exit:
        told = runs[last][2]
        if told is not None and _how(told) != _how(exit):
            ledger.violation(f"{box.name}: its record says {_how(exit)}, its event {_how(told)}")
    for answer in box.waits:
        run = runs.get(answer.get("generation", 1))
        true = answer.get("code") == box.code or (answer.get("signal") == 9 and box.may_be_killed)
        if run is not None and run[2] is not None and "unknown" in run[2] and true:
            continue  # true, and lost with both, on a full disk, before it could be written down
        if "not_started" not in answer and (run is None or run[2] is None or _how(run[2]) != _how(answer)):
            ledger.violation(f"{box.name}: wait answered {_how(answer)}, its event says {run and run[2]}")
    if box.stopped is not None and runs and max(runs) > box.stopped:
        ledger.violation(f"{box.name}: was stopped in run {box.stopped} and ran again as {max(runs)} ({box.policy})")
    if status in ("running", "paused", "restarting"):
        ledger.violation(f"{box.name}: is {status} at the end of the round")
    open_runs = [generation for generation, run in runs.items() if run[2] is None]
    if open_runs and status == "exited":
        ledger.violation(f"{box.name}: the end of its runs {open_runs} was never told")


def _runs(events: Sequence[Event], now: float) -> dict[int, tuple[float, float, Mapping[str, Any] | None]]:
    """Of each run that was told to start: from when to when, and how it ended."""
    runs: dict[int, tuple[float, float, Mapping[str, Any] | None]] = {}
    for event in events:
        generation = event.get("generation", 0)
        if event["kind"] in ("start", "restore") and generation not in runs:
            runs[generation] = (event["time"], now, None)
        elif event["kind"] in ("exit", "restart"):
            began = runs[generation][0] if generation in runs else event["time"]
            exit = event.get("exit") or {}
            if "not_started" not in exit:
                if generation in runs and runs[generation][2] is not None and event["kind"] == "exit":
                    continue  # a wait for a restart that was cut short tells the same end again
                runs[generation] = (min(began, exit.get("started_at") or began), event["time"], exit)
    return runs


def _all_that_is_known(
    box: Box, exit: Mapping[str, Any], truth: Mapping[str, Run], said_by: Mapping[int, str], began: float
) -> str:
    noted = [(run.id[:8], run.lines, run.code, round(run.noted_at - began, 3)) for run in truth.values()]
    said = {generation: id[:8] for generation, id in said_by.items()}
    return f"; code of its program {box.code}, its runs noted {noted}, in the log {said}, exit {dict(exit)}"


def _how(exit: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(exit.get(key) for key in ("generation", "code", "signal", "unknown")) if exit else ()


def _check_exit(
    box: Box, generation: int, exit: Mapping[str, Any], run: Run | None, began: float, ended: float, ledger: Ledger
) -> None:
    code, signal, unknown = exit.get("code"), exit.get("signal"), exit.get("unknown")
    where = f"{box.name} ({box.kind}, run {generation})"
    if run is not None and run.noted_at > ended + 0.5:
        ledger.violation(f"{where}: was told to have ended {run.noted_at - ended:.1f} s before it wrote its last line")
    if [code, signal, unknown].count(None) != 2:
        ledger.violation(f"{where}: code {code}, signal {signal}, unknown {unknown!r}")
    if unknown is not None:
        ledger.unknowns += 1
        # Who has a process's pidfd is told its code by the kernel, keeper or no keeper.
        if not ledger.lost_both(began, ended):
            ledger.violation(f"{where}: its end is unknown ({unknown}) though engine or keeper was there all the time")
    elif code is not None:
        if run is None and not ledger.lost_both(began, ended):
            ledger.violation(f"{where}: code {code}, but no output of a run that ended")
        elif run is not None and run.code != code:
            ledger.violation(f"{where}: code {code}, but its program was to end with {run.code}")
    elif signal != 9:
        ledger.violation(f"{where}: ended by signal {signal}, which nobody sent")
    elif not box.may_be_killed:
        ledger.violation(f"{where}: killed, and nobody asked for it (reason {exit.get('reason')})")


def _check_lines(
    box: Box,
    generation: int,
    stream: str,
    data: bytes,
    truth: Mapping[str, Run],
    ledger: Ledger,
    strict: bool,
    known: str | None,
) -> str | None:
    """Numbered lines of one run, from 0 on, each once; returns the run's id."""
    where = f"{box.name} ({box.kind}, run {generation}, {stream})"
    id, expected = known, 0
    for line in data.splitlines(keepends=True):
        found = _LINE.fullmatch(line.rstrip(b"\n"))
        if found is None or not line.endswith(b"\n"):
            if strict:
                ledger.violation(f"{where}: line {line[:80]!r} is not one of its program's")
            return id
        of = found[1].decode()
        if id is not None and of != id:
            ledger.violation(f"{where}: lines of two runs, {id} and {of}")
            return id
        id = of
        number = int(found[3])
        if number != expected:
            ledger.violation(f"{where}: line {number} where {expected} was to come")
            return id
        expected += 1
    ledger.lines += expected
    if id is not None and id not in truth:
        ledger.violation(f"{where}: output of a run {id} that nobody knows")
    return id


def _check_complete(
    box: Box, generation: int, run: Run, output: Output, exit: Mapping[str, Any] | None, ledger: Ledger
) -> None:
    """All that it noted is there; of one that was killed one line more may be."""
    for stream, noted in run.lines.items():
        there = output.get((generation, stream), b"").count(b"\n")
        more = 0 if run.code is not None else 1
        if not noted <= there <= noted + more:
            ledger.violation(
                f"{box.name} ({box.kind}, run {generation}, {stream}): {there} lines in the log, {noted} were written"
            )


def check_follower(box: Box, followed: Sequence[Record], records: Sequence[Record], ledger: Ledger) -> None:
    """What a reader got over several engines is the beginning of what there is."""
    got, _ = join(followed)
    whole, _ = join(records)
    place = (0, 0)
    for record in followed:
        if (record[1], record[2]) <= place:
            ledger.violation(f"{box.name}: a reader got {record[1:3]} after {place}")
            return
        place = (record[1], record[2])
    newest = max((generation for generation, _ in got), default=0)
    for key, data in got.items():
        all_of_it = whole.get(key, b"")
        if not all_of_it.startswith(data):
            ledger.violation(f"{box.name}: a reader of run {key} got {len(data)} bytes that are not what was written")
        elif key[0] < newest and data != all_of_it:
            ledger.violation(f"{box.name}: a reader of run {key} got {len(data)} bytes of {len(all_of_it)}")
