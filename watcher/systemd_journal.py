"""Entries in the systemd journal, by its native protocol: one datagram of fields for each entry.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL is all there is to it. systemd's own module for Python needs a compiler and
libsystemd.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct

from .events import Event

SOCKET = "/run/systemd/journal/socket"

IDENTIFIER = "qx-watcher"
"""`journalctl -t` finds the entries by it."""

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
"""syslog(3)."""


def send(events: list[Event], path: str = SOCKET) -> None:
    """Write entries; where there is no journal, or it takes none at the moment, nothing happens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        out.connect(path)
        for event in events:
            out.send(entry(event))


def entry(event: Event) -> bytes:
    """The datagram of an entry."""
    ours = {"event": event.name, "run": event.run, "job": event.job, "label": event.label, **event.fields}
    fields: dict[str, object] = {
        "MESSAGE": event.message,
        "PRIORITY": PRIORITIES[event.level],
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        **{f"QX_{re.sub('[^A-Z0-9]', '_', name.upper())}": value for name, value in ours.items()},
    }
    return b"".join(_field(name, _text(value)) for name, value in fields.items() if value not in ("", None))


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
