"""An engine to be killed: `RUN JOBS PUMP ACTION`. It starts JOBS writers and says so.

With PUMP 1 it moves their output into segments, as an engine does. ACTION is `stay` (until it is killed), `fork` (that,
and a child has all that it has open) or `leave`.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path

from keeper_support import LINES, PATH, PERL, RUNTIME

from lighterman.keeper.client import Job, KeeperClient, SegmentPlan
from lighterman.keeper.segments import SegmentWriter

SCRIPT = f"""
i=0
while [ $i -lt {LINES} ]; do
  echo "out $i"
  echo "err $i" >&2
  i=$((i+1))
done
exit CODE
"""


def code_of(number: int) -> int:
    return number % 200 + 1


async def start(keeper: KeeperClient, run: Path, number: int, null: int) -> tuple[int, int]:
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    name = f"j{number}"
    pid_file = str(run / f"{name}.pid")
    script = SCRIPT.replace("CODE", str(code_of(number)))
    await keeper.spawn(
        Job(
            job=name,
            argv=(*RUNTIME, pid_file, script),
            executable=PERL,
            env={"PATH": PATH},
            stdio=(null, out_w, err_w),
            pid_file=pid_file,
            hold={"stdout": out_r, "stderr": err_r},
            segments=SegmentPlan(str(run / "logs" / name), 10_000_000, 5),
            timeout_s=30,
        )
    )
    os.close(out_w)
    os.close(err_w)
    return out_r, err_r


def pump(run: Path, pipes: list[tuple[int, int]]) -> None:
    """Move a little at a time, for ever."""
    poll = select.poll()
    sources = {}
    for number, ends in enumerate(pipes):
        writer = SegmentWriter(str(run / "logs" / f"j{number}"), 10_000_000, 5)
        for stream, fd in enumerate(ends, 1):
            sources[fd] = (writer, stream)
            poll.register(fd, select.POLLIN)
    while sources:
        for fd, _ in poll.poll():
            writer, stream = sources[fd]
            try:
                moved = writer.splice(stream, fd, 997)
            except BlockingIOError:
                continue
            if moved == 0:
                poll.unregister(fd)
                del sources[fd]


async def main() -> None:
    run, jobs, pumps, action = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4]
    keeper = await KeeperClient.start_or_connect(str(run), str(run), idle_s=30)
    null = os.open(os.devnull, os.O_RDWR)
    pipes = [await start(keeper, run, number, null) for number in range(jobs)]
    if action == "fork" and os.fork() == 0:
        signal.pause()
    print(keeper.pid, flush=True)
    if pumps:
        await asyncio.to_thread(pump, run, pipes)
    if action != "leave":
        await asyncio.Event().wait()
    await keeper.close()


if __name__ == "__main__":
    asyncio.run(main())
