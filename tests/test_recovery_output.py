"""What runs wrote of which nobody was told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from lighterman.entry import Entry
from lighterman.logs.pump import OutputPump
from lighterman.record import Record
from lighterman.settling import drop_output
from lighterman.spec import ContainerSpec


async def test_output_of_every_later_run_goes(tmp_path: Path) -> None:
    """Each try of a run that can't be made has taken a number; the runs to come will bear these."""
    pump = OutputPump(asyncio.get_running_loop())
    record = Record(id="a" * 32, name="box", spec=ContainerSpec(image="busybox", argv=("true",)), created_at=1.0)
    entry = Entry(record, pump, tmp_path)
    await drop_output(entry, 1)  # nothing has been written yet
    for name in ("1", "2", "3", "10", "state"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    await drop_output(entry, 2)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["1", "state"]
    await pump.close()
