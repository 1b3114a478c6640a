"""journald's native protocol (systemd, "Native Journal Protocol"): fields in a datagram, or in a sealed memory file."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence

from lighterman.logs.reader import LogRecord
from lighterman.logs.sinks.base import LogSource, text_of
from lighterman.logs.sinks.datagrams import DatagramOutlet
from lighterman.spec import JournaldSink

__all__ = ["JournaldOutlet", "journal_entry"]

_PRIORITY = {"stdout": 6, "stderr": 3}  # informational, error: as docker's journald driver has it
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def journal_entry(fields: dict[str, bytes]) -> bytes:
    """One entry. A value with a newline, or that is no text, goes with its length before it."""
    out = bytearray()
    for name, value in fields.items():
        key = name.encode("ascii")
        if all(byte >= 0x20 or byte == 0x09 for byte in value):
            out += key + b"=" + value + b"\n"
        else:
            out += key + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return bytes(out)


class JournaldOutlet(DatagramOutlet):
    """See `JournaldSink`."""

    kind = "journald"

    def __init__(self, sink: JournaldSink, source: LogSource) -> None:
        super().__init__(socket.AF_UNIX, sink.path)
        self._fields = {
            "SYSLOG_IDENTIFIER": (sink.identifier or source.name).encode(),
            "CONTAINER_ID": source.id[:12].encode(),
            "CONTAINER_ID_FULL": source.id.encode(),
            "CONTAINER_NAME": source.name.encode(),
            "IMAGE_NAME": source.image.encode(),
        }

    def messages(self, record: LogRecord) -> Sequence[bytes]:
        """As `DatagramOutlet.messages`."""
        cursor = record.cursor
        fields = {
            "MESSAGE": text_of(record),
            "PRIORITY": b"%d" % _PRIORITY[record.stream],
            "SYSLOG_TIMESTAMP": b"%.6f" % record.time,
            "CONTAINER_STREAM": record.stream.encode(),
            # Who reads the journal can tell an entry that was sent twice by it.
            "CONTAINER_LOG_CURSOR": b"%d:%d:%d:%d" % (cursor.generation, cursor.offset, cursor.stdout, cursor.stderr),
            **self._fields,
        }
        if record.partial:
            fields["CONTAINER_PARTIAL_MESSAGE"] = b"true"
        if record.lost:
            fields["CONTAINER_LOST_BYTES"] = b"%d" % record.lost
        return (journal_entry(fields),)

    async def send_large(self, opened: socket.socket, message: bytes, failed: OSError) -> None:
        """As `DatagramOutlet.send_large`: journald maps a sealed file instead."""
        memory = os.memfd_create("lighterman-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            written = 0
            while written < len(message):
                written += os.write(memory, message[written:])
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            await self.when_writable(opened, lambda: socket.send_fds(opened, [b""], [memory]))
        finally:
            os.close(memory)
