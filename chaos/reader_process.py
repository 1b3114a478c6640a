"""A reader of one container's log, to be stopped and killed: `SOCKET FILE`.

Engines come one after the other: each is told the cursor of the last record that was had, and sends what follows,
which is appended to FILE.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import BinaryIO, cast


def main(path: str, file: str) -> None:
    cursor = [0, 0]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(4)
    os.write(1, b"ready\n")
    with open(file, "ab", buffering=0) as out:
        while True:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(json.dumps(cursor).encode() + b"\n")
                lines = cast("BinaryIO", peer.makefile("rb"))
                while True:
                    line = _line(lines)
                    if not line.endswith(b"\n"):
                        break  # the engine has gone, in the middle of a record or between two
                    cursor = json.loads(line)[1:3]
                    out.write(line)


def _line(lines: BinaryIO) -> bytes:
    try:
        return lines.readline()
    except OSError:
        return b""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
