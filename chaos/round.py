"""One round: a root, engines one after the other, a plan carried out, and the reckoning."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos.builds import Builds
from chaos.host import Host, descendants, fill, signal_checked
from chaos.judge import check_box, check_events, check_follower
from chaos.ledger import Box, Ledger
from chaos.life import READY_S, Answer, Died, Life
from chaos.plan import Plan, Step
from chaos.programs import FINITE, exec_script, read_runs, script

__all__ = ["Round"]

VERB_S = 60.0  # after which a verb that has not ended never will
SETTLE_S = 60.0
CLOSE_S = 45.0
SMALL_DISK = "size=48m,mode=700"
_CGROUP = re.compile(rb"/lighterman/([0-9a-f]{32})")
_libc = ctypes.CDLL(None, use_errno=True)


class Round:
    """Made with a plan; `play` carries it out and leaves nothing behind."""

    def __init__(self, plan: Plan, ledger: Ledger, keep: bool) -> None:
        self.plan = plan
        self.ledger = ledger
        self.work = Path(tempfile.mkdtemp(prefix="lm-chaos-", dir="/var/tmp"))
        self.root = self.work / "root"
        self.host = Host(self.root)
        self._builds = Builds(self.work)
        self._keep = keep
        self._life: Life | None = None
        self._lives = 0
        self._beginning: asyncio.Task[None] | None = None
        self._host_is_up = asyncio.Lock()  # held by who begins an engine there, or takes it down
        self._slots: dict[int, Box] = {}
        self._names: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: set[asyncio.Task[None]] = set()
        self._readers: dict[str, Process] = {}
        self._reader_locks: dict[str, asyncio.Lock] = {}
        self._stopped: set[int] = set()
        self._disturbed_until = 0.0
        self._ids: set[str] = set()
        self._calm = False
        self._closed = False  # whether an engine was closed in order, which ends its runs

    # ---- the whole of it ----

    async def play(self) -> None:
        """Raises: nothing that a round can cause; what is wrong is in the ledger."""
        try:
            await self._prepare()
            await self._begin(0.0)
            for step in self.plan.steps:
                await asyncio.sleep(step.after_s)
                if step.fault:
                    self._spawn(self._fault(step.fault, step), self._faults)
                self._spawn(self._verb(step.verb, step))
            await self._calm_down()
            await self._reckon()
        finally:
            await self._clean_up()

    async def _prepare(self) -> None:
        self.root.mkdir(mode=0o700)
        (self.work / "truth").mkdir()
        if self.plan.small_disk:
            _mount_tmpfs(self.root)
        if self.plan.can_hang:
            real = shutil.which(self.plan.runtime)
            (self.work / "bin").mkdir()
            wrapper = self.work / "bin" / self.plan.runtime
            wrapper.write_text(f'#!/bin/sh\nwhile [ -e {self.work}/hang ]; do sleep 0.05; done\nexec {real} "$@"\n')
            wrapper.chmod(0o755)

    def _spawn(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]] | None = None) -> None:
        among = self._tasks if among is None else among
        task = asyncio.get_running_loop().create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failed := task.exception()) is not None and not isinstance(failed, Died):
            self.ledger.violation(f"the chaos program itself failed: {failed!r}")

    # ---- engines ----

    async def _begin(self, after_s: float) -> None:
        """A new engine; one that can't begin on a full disk tries again."""
        await asyncio.sleep(after_s)
        tried: list[str] = []
        while len(tried) < 12:
            self._lives += 1
            began = time.monotonic()
            path = f"{self.work}/bin:{os.environ['PATH']}"
            log, build = self.work / "engine.log", self._builds.current
            async with self._host_is_up:
                life = await Life.begin(self.root, self.plan.runtime, log, path, build)
                self._life = life
            try:
                answer = await asyncio.wait_for(asyncio.shield(life.ready), READY_S)
            except Died:
                # Who is killed while it begins, however often, has not failed.
                if life.process.returncode != -signal.SIGKILL:
                    tried.append(f"{time.monotonic() - began:.1f} s, died of {life.process.returncode}")
                    self.ledger.violation(f"an engine ended at its start: {life.process.returncode}")
                    await asyncio.sleep(0.5)
                continue
            except TimeoutError:
                tried.append(f"{time.monotonic() - began:.1f} s, not ready")
                self.ledger.violation(f"an engine was not ready after {READY_S:g} s")
                life.kill()
                await life.wait_end()
                continue
            if "ok" in answer:
                self.ledger.engine_ended()  # of the one before it, at the latest now
                return
            tried.append(f"{time.monotonic() - began:.1f} s, {answer['error']}")
            self.ledger.refusals[f"engine: {answer['error']}"] += 1
            if time.monotonic() > self._disturbed_until:
                self.ledger.violation(f"an engine did not start: {answer['error']}: {answer['text']}")
            await life.wait_end()
            await asyncio.sleep(0.3)
        self.ledger.violation(f"no engine starts any more: {'; '.join(tried)}")

    def _begin_later(self, after_s: float) -> None:
        if self._beginning is None or self._beginning.done():
            self._beginning = asyncio.get_running_loop().create_task(self._begin(after_s))
            self._beginning.add_done_callback(self._done)

    async def _kill_engine(self) -> None:
        life = self._life
        if life is None or life.ended:
            return
        self.ledger.engine_ended()
        life.kill()
        await life.wait_end()
        self.ledger.engine_ended()
        # What the owner's death ends by a lease is ended by a signal.
        for box in self.ledger.boxes.values():
            box.may_be_killed = box.may_be_killed or box.lease is not None

    async def _ready_life(self, patience_s: float) -> Life | None:
        until = time.monotonic() + patience_s
        while not self._calm and time.monotonic() < until:
            if self._life is not None and self._life.is_ready and not self._life.ended:
                return self._life
            await asyncio.sleep(0.02)
        return None

    # ---- verbs ----

    async def _verb(self, verb: str, step: Step) -> None:
        life = await self._ready_life(4 * step.dice[0])
        if life is None:
            return
        if verb == "run":
            await self._run(life, step)
            return
        box = self._slots.get(step.slot)
        if box is None:
            await self._create(life, step)
        elif box.created:
            await getattr(self, f"_{verb}")(life, step, box)

    async def _ask(self, life: Life, verb: str, **words: Any) -> Answer | None:
        """None where the engine died before it answered."""
        try:
            answer = await life.ask(verb, **words)
        except Died:
            self.ledger.answers[f"{verb}: engine died"] += 1
            return None
        if "error" in answer:
            self.ledger.refusals[f"{verb}: {answer['error']}"] += 1
            if not answer["typed"]:
                self.ledger.violation(f"{verb} {words.get('name', '')}: {answer['error']}: {answer['text']}")
        else:
            self.ledger.answers[verb] += 1
        return answer

    async def _create(self, life: Life, step: Step, _box: Box | None = None) -> None:
        if _box is not None:
            await self._start(life, step, _box)
            return
        number = self._names[step.slot] = self._names.get(step.slot, 0) + 1
        name = f"c{step.slot}-{number}"
        lease = "process" if step.dice[1] < 0.1 else None
        box = Box(name=name, slot=step.slot, kind=step.kind, code=step.code, policy=step.policy, lease=lease)
        self.ledger.boxes[name] = self._slots[step.slot] = box
        (self.work / "truth" / name).mkdir()
        answer = await self._ask(
            life,
            "create",
            name=name,
            script=script(step.kind, step.code, step.lines),
            lease=lease,
            policy=step.policy,
            truth=str(self.work / "truth" / name),
        )
        if answer is None or "error" in answer:
            del self._slots[step.slot]
            return
        box.id, box.created = answer["ok"]["id"], True
        self._ids.add(answer["ok"]["id"])
        if step.dice[0] < 0.95:
            await self._start(life, step, box)

    async def _start(self, life: Life, step: Step, box: Box) -> None:
        box.starts += 1
        box.stopped = None
        box.starting += 1
        try:
            await self._ask(life, "start", name=box.name)
        finally:
            box.starting -= 1

    async def _restart(self, life: Life, step: Step, box: Box) -> None:
        box.starts += 1
        box.stopped, box.may_be_killed = None, True
        box.starting += 1
        try:
            await self._ask(life, "restart", name=box.name, grace_s=step.dice[1] * 0.5)
        finally:
            box.starting -= 1

    async def _stop(self, life: Life, step: Step, box: Box) -> None:
        box.may_be_killed = True
        alone, starts = not box.starting, box.starts
        answer = await self._ask(life, "stop", name=box.name, grace_s=0 if step.dice[1] < 0.3 else step.dice[2])
        if answer is not None and alone and box.starts == starts and isinstance(answer.get("ok"), dict):
            exit = answer["ok"]
            # Of one that had ended by itself nobody has promised that no policy starts it.
            if "not_started" not in exit and exit.get("reason") == "stop":
                box.stopped = exit.get("generation", 1)

    async def _kill(self, life: Life, step: Step, box: Box) -> None:
        number = 9 if step.dice[1] < 0.6 else 15
        box.may_be_killed = box.may_be_killed or number == 9
        await self._ask(life, "kill", name=box.name, signal=number)

    async def _pause(self, life: Life, step: Step, box: Box) -> None:
        await self._ask(life, "pause", name=box.name)

    async def _resume(self, life: Life, step: Step, box: Box) -> None:
        await self._ask(life, "resume", name=box.name)

    async def _policy(self, life: Life, step: Step, box: Box) -> None:
        if step.policy != "no":
            box.policy = step.policy
        await self._ask(life, "policy", name=box.name, policy=step.policy)

    async def _logs(self, life: Life, step: Step, box: Box) -> None:
        await self._ask(life, "logs", name=box.name)

    async def _wait(self, life: Life, step: Step, box: Box) -> None:
        answer = await self._ask(life, "wait", name=box.name)
        if answer is not None and "ok" in answer:
            box.waits.append(answer["ok"])

    async def _remove(self, life: Life, step: Step, box: Box) -> None:
        force = step.dice[1] < 0.7
        box.may_be_killed = box.may_be_killed or force
        box.remove_asked = True
        answer = await self._ask(life, "remove", name=box.name, force=force)
        if answer is not None and "ok" in answer:
            box.removed = True
            if self._slots.get(step.slot) is box:
                del self._slots[step.slot]

    async def _exec(self, life: Life, step: Step, box: Box) -> None:
        count = min(step.lines, 200)
        answer = await self._ask(life, "exec", name=box.name, script=exec_script(step.code, count))
        if answer is not None and "ok" in answer:
            self._check_result("exec", box.name, step.code, count, answer["ok"], killed=True)

    async def _run(self, life: Life, step: Step) -> None:
        # A name that is used again and again must be free at once, also for an engine that comes back in between.
        name = f"r{step.slot % 3}" if step.dice[1] < 0.5 else None
        answer = await self._ask(life, "run", script=exec_script(step.code, step.lines), name=name)
        if answer is not None and "ok" in answer:
            self._check_result(
                "run", "", step.code, step.lines, answer["ok"], killed=bool(self.ledger.faults["kill init"])
            )

    def _check_result(self, verb: str, name: str, code: int, lines: int, got: Answer, *, killed: bool) -> None:
        exit, wanted = got["exit"], "".join(f"x {number}\n" for number in range(lines))
        if exit.get("code") is not None:
            if exit["code"] != code:
                self.ledger.violation(f"{verb} {name}: code {exit['code']} instead of {code}")
            elif got["stdout"] != wanted:
                self.ledger.violation(f"{verb} {name}: {len(got['stdout'])} bytes of output instead of {len(wanted)}")
        elif exit.get("signal") is not None:
            killed = killed or (exit.get("reason") == "removed" and self._closed)
            if exit["signal"] != 9 or not killed:
                self.ledger.violation(f"{verb} {name}: ended by signal {exit['signal']} ({exit.get('reason')})")
        elif not self.ledger.keeper_ends:
            self.ledger.violation(f"{verb} {name}: its end is not known: {exit}")
        elif exit.get("unknown") is not None:
            self.ledger.unknowns += 1

    async def _follow(self, life: Life, step: Step, box: Box) -> None:
        socket = self.work / f"{box.name}.sock"
        async with self._reader_locks.setdefault(box.name, asyncio.Lock()):
            await self._begin_reader(box.name, socket)
        await self._ask(life, "follow", name=box.name, socket=str(socket))

    async def _begin_reader(self, name: str, socket: Path) -> None:
        reader = self._readers.get(name)
        if reader is None or reader.returncode is not None:
            for old in (socket, self.work / f"{name}.followed"):
                with suppress(FileNotFoundError):
                    old.unlink()
            reader = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(Path(__file__).with_name("reader_process.py")),
                str(socket),
                str(self.work / f"{name}.followed"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            self._readers[name] = reader
            assert reader.stdout is not None
            await reader.stdout.readline()

    # ---- faults ----

    async def _fault(self, kind: str, step: Step) -> None:
        act = getattr(self, f"_fault_{kind.replace(' ', '_')}")
        if await act(step):
            self.ledger.faults[kind] += 1

    async def _fault_kill_engine(self, step: Step) -> bool:
        if self._life is None or self._life.ended:
            return False
        await self._kill_engine()
        if step.dice[2] < 0.25:
            await asyncio.to_thread(self._builds.new)
        self._begin_later(step.dice[0] * 0.5)
        return True

    async def _fault_upgrade_keeper(self, step: Step) -> bool:
        life = self._life
        if life is None or not life.is_ready or life.ended:
            return False
        answer = await self._ask(life, "upgrade", build=await asyncio.to_thread(self._builds.new))
        return answer is not None and "error" not in answer

    async def _fault_upgrade(self, step: Step) -> bool:
        life = self._life
        if life is None or not life.is_ready or life.ended:
            return False
        self.ledger.engine_ended()
        self._closed = True
        for box in self.ledger.boxes.values():
            if box.lease is not None:
                box.may_be_killed = box.remove_asked = True
        try:
            closing = asyncio.get_running_loop().create_task(life.ask("close"))
            await asyncio.wait_for(closing, CLOSE_S)
        except Died:
            pass
        except TimeoutError:
            self.ledger.violation(f"an engine was not closed after {CLOSE_S:g} s")
            life.kill()
        await life.wait_end()
        self.ledger.engine_ended()
        # The old keeper, under load, and a new engine, which makes it its own.
        await asyncio.to_thread(self._builds.new)
        self._begin_later(step.dice[0] * 0.3)
        return True

    async def _fault_kill_keeper(self, step: Step) -> bool:
        keepers = self.host.keepers()
        self._disturbed_until = max(self._disturbed_until, time.monotonic() + 2)
        self.ledger.keeper_ended()
        killed = [signal_checked(pid, signal.SIGKILL) for pid in keepers]
        self.ledger.keeper_ended()
        return any(killed)

    async def _fault_kill_both(self, step: Step) -> bool:
        life = self._life
        if life is None or life.ended:
            return False
        keepers = self.host.keepers()
        self._disturbed_until = max(self._disturbed_until, time.monotonic() + 2)
        self.ledger.keeper_ended()
        life.kill()
        for pid in keepers:
            signal_checked(pid, signal.SIGKILL)
        self.ledger.keeper_ended()
        await self._kill_engine()
        await life.wait_end()
        self.ledger.engine_ended()
        for box in self.ledger.boxes.values():
            box.may_be_killed = box.may_be_killed or box.lease is not None
        self._begin_later(step.dice[0] * 0.5)
        return bool(keepers)

    async def _fault_reboot(self, step: Step) -> bool:
        """As it looks afterwards: nothing runs, RUN is gone, the boot id is another one."""
        life = self._life
        if life is None or life.ended:
            return False
        self._disturbed_until = max(self._disturbed_until, time.monotonic() + 5)
        async with self._host_is_up:
            self.ledger.keeper_ended()
            await self._kill_engine()
            # What ends in between only the keeper knows.
            await asyncio.sleep(step.dice[1] * 0.3)
            for box in self.ledger.boxes.values():
                box.may_be_killed = True
                box.stopped = None  # `always` starts again what was stopped [L32]
            await asyncio.to_thread(self._end_all)
            await asyncio.to_thread(shutil.rmtree, self.host.run, ignore_errors=True)
            is_told = await asyncio.to_thread(self.host.forget_boot)
            self.ledger.keeper_ended()
            self.ledger.engine_ended()
        self._begin_later(step.dice[0] * 0.5)
        return is_told

    async def _fault_kill_runtime(self, step: Step) -> bool:
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            calls = self.host.runtime_calls()
            if calls:
                await asyncio.sleep(step.dice[0] ** 2 * 0.02)
                pid, words = calls[int(step.dice[1] * len(calls))]
                for box in self.ledger.boxes.values():
                    if box.id is not None and box.id.encode() in words:
                        box.may_be_killed = True
                return signal_checked(pid, signal.SIGKILL, words)
            await asyncio.sleep(0.002)
        return False

    async def _fault_kill_init(self, step: Step) -> bool:
        boxes = [box for box in self._slots.values() if box.id is not None]
        while boxes:
            box = boxes.pop(int(step.dice[1] * len(boxes)))
            assert box.id is not None
            pid = self.host.init_of(box.id)
            if pid is not None:
                box.may_be_killed = True
                return signal_checked(pid, signal.SIGKILL)
        return False

    async def _fault_stop_reader(self, step: Step) -> bool:
        running = [reader for reader in self._readers.values() if reader.returncode is None]
        if not running:
            return False
        return await self._stopped_for(running[int(step.dice[1] * len(running))].pid, 0.2 + 2 * step.dice[2])

    async def _fault_kill_reader(self, step: Step) -> bool:
        running = [reader for reader in self._readers.values() if reader.returncode is None]
        if not running:
            return False
        reader = running[int(step.dice[1] * len(running))]
        os.kill(reader.pid, signal.SIGKILL)
        await reader.wait()
        return True

    async def _fault_stop_engine(self, step: Step) -> bool:
        life = self._life
        if life is None or life.ended:
            return False
        return await self._stopped_for(life.process.pid, step.dice[2])

    async def _fault_stop_keeper(self, step: Step) -> bool:
        keepers = self.host.keepers()
        return bool(keepers) and await self._stopped_for(keepers[0], step.dice[2])

    async def _stopped_for(self, pid: int, for_s: float) -> bool:
        if pid in self._stopped or not signal_checked(pid, signal.SIGSTOP):
            return False
        self._stopped.add(pid)
        try:
            await asyncio.sleep(for_s)
        finally:
            self._stopped.discard(pid)
            signal_checked(pid, signal.SIGCONT)
        return True

    async def _fault_fill_disk(self, step: Step) -> bool:
        ballast = self.root / "ballast"
        if ballast.exists():
            return False
        self._disturbed_until = time.monotonic() + 10
        try:
            await asyncio.to_thread(fill, ballast)
            await asyncio.sleep(0.2 + 1.5 * step.dice[2])
        finally:
            ballast.unlink()
        return True

    async def _fault_hang_runtime(self, step: Step) -> bool:
        hang = self.work / "hang"
        if hang.exists():
            return False
        self._disturbed_until = time.monotonic() + 15
        hang.touch()
        # Whether a call was caught by it depends on what is asked meanwhile: half of them outlive the limit of a call.
        try:
            await asyncio.sleep(0.5 + 8 * step.dice[2])
        finally:
            hang.unlink()
            for box in self.ledger.boxes.values():
                box.may_be_killed = True
        return True

    # ---- the reckoning ----

    async def _calm_down(self) -> None:
        """No further faults; what was asked and can be answered is answered."""
        self._disturbed_until = max(self._disturbed_until, time.monotonic() + 1)
        await self._until(lambda: not self._faults, CLOSE_S + 5)
        await self._until(lambda: self._beginning is None or self._beginning.done(), READY_S)
        if await self._ready_life(READY_S) is None:
            self.ledger.violation("no engine at the end of the round")
        # Who still waits for an engine waits in vain.
        self._calm = True
        until = time.monotonic() + VERB_S
        while (life := self._life) is not None and (late := self._unanswered(life)):
            if time.monotonic() > until:
                self.ledger.violation(f"not answered after {VERB_S:g} s: {', '.join(late)}")
                life.say_where()
                break
            await asyncio.sleep(0.05)

    @staticmethod
    def _unanswered(life: Life) -> list[str]:
        return [verb for verb, _, _ in life.pending.values() if not verb.startswith("wait ")]

    async def _until(self, condition: Any, limit_s: float) -> bool:
        until = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _reckon(self) -> None:
        """A fresh engine takes over, by force or in order; it is asked about everything."""
        if self._lives % 2:
            await self._kill_engine()
            await self._begin(0.0)
        life = self._life
        if life is None or not life.is_ready or life.ended:
            self.ledger.violation("no engine for the reckoning")
            return
        try:
            await asyncio.wait_for(self._settle(life), 2 * SETTLE_S)
            await asyncio.wait_for(self._compare(life), 2 * SETTLE_S)
            await asyncio.wait_for(self._take_down(life), 2 * SETTLE_S)
        except TimeoutError:
            self.ledger.violation(f"the reckoning hangs; pending: {[entry[0] for entry in life.pending.values()]}")
            life.say_where()
            await asyncio.sleep(1)
        except Died:
            self.ledger.violation(f"the engine ended by itself: {life.process.returncode}")

    async def _settle(self, life: Life) -> None:
        listed = (await life.ask("list"))["ok"]
        there = {entry["name"]: entry for entry in listed}
        for box in self.ledger.boxes.values():
            if box.created and box.lease is None and not box.remove_asked and box.name not in there:
                self.ledger.violation(f"{box.name}: is not there any more, and nobody removed it")
            if box.removed and box.name in there:
                self.ledger.violation(f"{box.name}: was removed, and is there")
        await asyncio.gather(*(self._settle_one(life, entry) for entry in listed))

    async def _settle_one(self, life: Life, entry: dict[str, Any]) -> None:
        name = entry["name"]
        box = self.ledger.boxes.get(name)
        if entry["status"] == "paused":
            await self._ask(life, "resume", name=name)
        if box is not None and box.kind in FINITE and entry["status"] in ("running", "paused"):
            waiting = asyncio.ensure_future(life.ask("wait", name=name))
            limit_s = SETTLE_S if box.policy == "no" else 2
            done, _ = await asyncio.wait((waiting,), timeout=limit_s)
            if done and "ok" in waiting.result():
                box.waits.append(waiting.result()["ok"])
            elif not done and box.policy == "no" and box.starts:
                self.ledger.violation(f"{name} ({box.kind}): has not ended after {SETTLE_S:g} s: {entry}")
        if box is not None:
            box.may_be_killed = True
        answer = await self._ask(life, "stop", name=name, grace_s=0.5)
        if answer is None or "error" in answer:
            self.ledger.violation(f"{name}: can't be stopped: {answer and answer['text']}")

    async def _compare(self, life: Life) -> None:
        now = time.time()
        events = (await life.ask("events"))["ok"]
        check_events(events, self.ledger)
        self._ids.update(event["container"] for event in events if "container" in event)
        by_name: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            by_name.setdefault(event["name"], []).append(event)
        for entry in (await life.ask("list"))["ok"]:
            box = self.ledger.boxes.get(entry["name"])
            if box is None:
                continue  # of a `run` whose engine was killed: removed below, and on the list of what is left
            answer = await self._ask(life, "logs", name=box.name)
            if answer is None or "error" in answer:
                self.ledger.violation(f"{box.name}: its log can't be read: {answer and answer['text']}")
                continue
            truth = read_runs(self.work / "truth" / box.name)
            own = by_name.get(box.name, [])
            check_box(box, own, entry["status"], entry["exit"], answer["ok"], truth, now, self.ledger)
            followed = self._followed(box)
            if followed and not self.ledger.lost_both(0, now):
                check_follower(box, followed, answer["ok"], self.ledger)

    def _followed(self, box: Box) -> list[list[Any]]:
        try:
            lines = (self.work / f"{box.name}.followed").read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        # A reader that was killed may have left half a line.
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    async def _take_down(self, life: Life) -> None:
        listed = (await life.ask("list"))["ok"]
        await asyncio.gather(*(self._take_down_one(life, entry) for entry in listed))
        left = (await life.ask("list"))["ok"]
        if left:
            self.ledger.violation(f"still there after their removal: {[entry['name'] for entry in left]}")
        for keeper in self.host.keepers():
            self._check_descriptors(keeper)
        await asyncio.wait_for(life.ask("close"), CLOSE_S)
        await life.wait_end()
        if life.process.returncode:
            self.ledger.violation(f"the last engine ended with {life.process.returncode}")
        if not await self._until(lambda: not self.host.left(self._ids), 25):
            left = self.host.left(self._ids)
            # One container has a cgroup in each of a dozen hierarchies.
            for what in left[:8]:
                self.ledger.violation(f"left behind: {what!r:.160}")
            if len(left) > 8:
                self.ledger.violation(f"left behind: {len(left) - 8} more")
        self._check_complaints()

    async def _take_down_one(self, life: Life, entry: dict[str, Any]) -> None:
        answer = await self._ask(life, "remove", name=entry["id"], force=True)
        if answer is None or "error" in answer:
            self.ledger.violation(f"{entry['name']}: can't be removed: {answer and answer['text']}")
        if entry["exit"] is None or entry["status"] != "exited":
            return
        waited = await asyncio.wait_for(life.ask("wait", name=entry["id"]), 10)
        told = waited.get("ok")
        if told is None or any(told.get(key) != entry["exit"].get(key) for key in ("code", "signal", "unknown")):
            self.ledger.violation(f"{entry['name']}: wait after its removal answers {waited}, not {entry['exit']}")

    def _check_descriptors(self, keeper: int) -> None:
        """Everything was removed: what a keeper still holds of containers it will hold for ever."""
        held = []
        for number in os.listdir(f"/proc/{keeper}/fd"):
            with suppress(OSError):
                held.append(os.readlink(f"/proc/{keeper}/fd/{number}"))
        pipes = sum(one.startswith("pipe:") for one in held)
        others = [one for one in held if "/containers/" in one or "overlay" in one or one == "/"]
        terminals = [one for one in held if "ptmx" in one]
        if pipes > 2 or others or terminals:
            self.ledger.violation(f"the keeper still holds {pipes} pipe ends, {others + terminals}")

    def _check_complaints(self) -> None:
        """A traceback in a log is a defect, whatever came of it."""
        for path in (self.work / "engine.log", self.host.run / "keeper.log"):
            with suppress(FileNotFoundError):
                text = path.read_text(errors="replace")
                for found in re.finditer(r"^Traceback.*?^(?=\S)(?!Traceback)([^\n]*)", text, re.DOTALL | re.MULTILINE):
                    self.ledger.violation(f"{path.name} has a traceback: {found[1][:300]}")
                    break

    # ---- the end ----

    async def _clean_up(self) -> None:
        """Whatever has happened, nothing of the round stays."""
        tasks = [*self._tasks, *self._faults, *([self._beginning] if self._beginning is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for flag in (self.work / "hang", self.root / "ballast"):
            with suppress(FileNotFoundError):
                flag.unlink()
        for pid in self._stopped.copy():
            signal_checked(pid, signal.SIGCONT)
        if self._life is not None:
            self._life.kill()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._life.wait_end(), 10)
        for reader in self._readers.values():
            if reader.returncode is None:
                os.kill(reader.pid, signal.SIGKILL)
                await reader.wait()
        await asyncio.to_thread(self._sweep)

    def _end_all(self) -> None:
        """Every process of the root, and the cgroups. Blocking."""
        with suppress(FileNotFoundError):
            self._ids.update(os.listdir(self.root / "containers"))
        with suppress(FileNotFoundError):
            self._ids.update(os.listdir(self.host.run / "bundles"))
        calls: set[int] = set()
        for _ in range(50):
            for pid in self.host.keepers():
                # Known before they are nobody's.
                calls.update(descendants(pid))
                signal_checked(pid, signal.SIGKILL)
            calls = {pid for pid in calls if signal_checked(pid, signal.SIGKILL)}
            pids = [*self.host.processes(self._ids), *calls]
            for pid in pids:
                signal_checked(pid, signal.SIGKILL)
            if not pids and not self.host.keepers():
                break
            _thaw(self.host.groups(self._ids))
            time.sleep(0.1)
        for group in self.host.groups(self._ids):
            for path, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(path)

    def _sweep(self) -> None:
        self._end_all()
        if self._keep and self.ledger.problems:
            if self.plan.small_disk:
                # Its mount goes with this program.
                shutil.copytree(self.root, self.work / "small-disk", symlinks=True, dirs_exist_ok=True)
            print(f"kept: {self.work} and {self.host.run}", file=sys.stderr, flush=True)
            return
        if self.plan.small_disk:
            _libc.umount2(str(self.root).encode(), 2)
        shutil.rmtree(self.host.run, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)


def _thaw(groups: list[Path]) -> None:
    for group in groups:
        for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with suppress(OSError):
                if (group / name).exists():
                    (group / name).write_text(word)


def _mount_tmpfs(path: Path) -> None:
    if _libc.mount(b"chaos", str(path).encode(), b"tmpfs", 0, SMALL_DISK.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
