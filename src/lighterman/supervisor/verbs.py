"""The verbs that one container's owner carries out in their order, while it watches for the exit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from lighterman.errors import AlreadyStopped
from lighterman.flag import Flag
from lighterman.supervisor.answers import fail, succeed
from lighterman.supervisor.delivery import Spawn
from lighterman.supervisor.run import Run

__all__ = ["VerbQueue"]

Act = Callable[[Run], Awaitable[None]]


class VerbQueue:
    """`ask` is for who wants something, `serve` for the owner; a verb that hangs does not hide the exit."""

    def __init__(self, container_id: str, watch: Spawn) -> None:
        self._container_id = container_id
        self._watch = watch
        self._waiting: list[tuple[Act, asyncio.Future[None]]] = []
        self._poke = Flag()

    async def ask(self, act: Act) -> None:
        """Have it done in its turn, even if cancelled. Raises: AlreadyStopped if the run ends before that."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((act, done))
        self._poke.set()
        await asyncio.shield(done)

    def poke(self) -> None:
        """Let `serve` look again whether the run has ended."""
        self._poke.set()

    async def serve(self, run: Run) -> None:
        """Carry out what is asked for, until the exit of the init process is observed; then refuse the rest."""
        while not run.ended:
            await self._poke.wait()
            self._poke.clear()
            while self._waiting and not run.ended:
                act, done = self._waiting.pop(0)
                await self._carry_out(run, act, done)
        self.refuse()

    def refuse(self) -> None:
        """Whoever still waits hears that it has ended."""
        while self._waiting:
            _, done = self._waiting.pop(0)
            fail(done, self._ended())

    async def _carry_out(self, run: Run, act: Act, done: asyncio.Future[None]) -> None:
        assert run.init is not None

        async def carry_out() -> None:
            try:
                await act(run)
            except Exception as failed:  # noqa: BLE001  belongs to who asked
                fail(done, failed)
            else:
                succeed(done)

        verb = self._watch(carry_out(), f"verb of {self._container_id}")
        # Cancelled, perhaps before its first step.
        verb.add_done_callback(lambda _: fail(done, self._ended()))
        exited = asyncio.ensure_future(run.init.exited.wait())
        try:
            await asyncio.wait((verb, exited), return_when=asyncio.FIRST_COMPLETED)
        finally:
            exited.cancel()
            verb.cancel()

    def _ended(self) -> AlreadyStopped:
        return AlreadyStopped(f"container {self._container_id} ended meanwhile", container=self._container_id)
