"""Syslog messages in the form of RFC 5424, over a unix datagram socket or UDP (RFC 5426)."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from collections.abc import Sequence

from lighterman.errors import InvalidSpec
from lighterman.logs.reader import LogRecord
from lighterman.logs.sinks.base import LogSource, text_of
from lighterman.logs.sinks.datagrams import DatagramOutlet
from lighterman.spec import SyslogSink

__all__ = ["SyslogOutlet", "syslog_address"]

_SEVERITY = {"stdout": 6, "stderr": 3}
# RFC 5426 wants 2048 to be taken, RFC 5424 nothing more than that; common daemons take 8 KiB.
_MESSAGE_BYTES = 8192
# RFC 5424, 6.2.5: printable ASCII without the space, at most so many.
_APP_NAME_CHARS = 48
_HOSTNAME_CHARS = 255


def syslog_address(text: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """An absolute path, or `udp://IP:PORT` (IPv6 in brackets). Raises: InvalidSpec."""
    if text.startswith("/") and "\0" not in text:
        return socket.AF_UNIX, text
    scheme, _, place = text.partition("://")
    host, _, port = place.rpartition(":")
    if scheme == "udp" and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        try:
            # A name would have to be looked up, which can take for ever.
            ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        except ValueError:
            ip = None
        if ip is not None:
            return (socket.AF_INET if ip.version == 4 else socket.AF_INET6), (str(ip), int(port))
    raise InvalidSpec(f"syslog address {text!r:.140}: must be the path of a socket as /dev/log, or udp://127.0.0.1:514")


class SyslogOutlet(DatagramOutlet):
    """See `SyslogSink`."""

    kind = "syslog"

    def __init__(self, sink: SyslogSink, source: LogSource) -> None:
        """Raises: InvalidSpec."""
        super().__init__(*syslog_address(sink.address))
        self._facility = sink.facility
        self._head = f"{_printable(socket.gethostname(), _HOSTNAME_CHARS)} " + _printable(
            sink.identifier or source.name, _APP_NAME_CHARS
        )
        # 32473 is the number that RFC 5612 keeps for those who have none of their own.
        self._source = (
            f'container@32473 id="{source.id}" name="{_escaped(source.name)}" image="{_escaped(source.image)}"'
        )

    def messages(self, record: LogRecord) -> Sequence[bytes]:
        """As `DatagramOutlet.messages`; a long line is several of them."""
        priority = self._facility * 8 + _SEVERITY[record.stream]
        when = datetime.datetime.fromtimestamp(record.time, datetime.UTC).isoformat(timespec="microseconds")
        lost = f' lost="{record.lost}"' if record.lost else ""
        head = f"<{priority}>1 {when} {self._head} - {record.stream} [{self._source}{lost}] ".encode()
        text = text_of(record)
        room = max(_MESSAGE_BYTES - len(head), 1)
        return [head + text[at : at + room] for at in range(0, max(len(text), 1), room)]


def _printable(text: str, limit: int) -> str:
    return "".join(char if "!" <= char <= "~" else "_" for char in text)[:limit] or "-"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
