"""The callers of a watcher: what one of them brings about costs neither its own runs nor the others anything."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from qx_supervisor.watcher import protocol
from qx_supervisor.watcher.caller import MESSAGES_A_TURN
from qx_supervisor.watcher.callers import Callers
from qx_supervisor.watcher.driver_process import DriverIdentity, DriverProcess
from qx_supervisor.watcher.frames import Frames
from qx_supervisor.watcher.host_identity import start_ticks


@pytest.fixture
def callers(tmp_path: Path) -> Iterator[Callers]:
    before = signal.getsignal(signal.SIGTERM)
    made = Callers(str(tmp_path), 30.0)
    made.when_empty = made.loop.stop
    yield made
    signal.signal(signal.SIGTERM, before)
    for caller in list(made._all):
        caller.forget()
    made._ledgers.close(60)
    made.loop._wake_reader.close()
    made.loop._wake_writer.close()


def add(callers: Callers) -> tuple[Frames, DriverProcess]:
    """A driver, which is this process: its end of the connection, and how it is seen."""
    ours, theirs = socket.socketpair()
    driver = DriverProcess(DriverIdentity(os.getpid(), start_ticks(os.getpid()) or 0), os.pidfd_open(os.getpid()))
    callers.add(Frames(theirs), driver, version=protocol.VERSION, sweep_window=1.0)
    return Frames(ours), driver


def test_a_driver_that_does_not_read_is_not_waited_for() -> None:
    """By its socket, and not by a flag of each call: macOS does not heed that in send(2)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = Frames(ours)
        assert not os.get_blocking(ours.fileno())
        while not frames.has_unsent:
            frames.send(bytes(1000))
        assert not frames.read()


def test_a_fault_at_one_message_costs_the_next_ones_nothing(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a later turn, for which it has called itself: it must do so again."""
    faulty, last = MESSAGES_A_TURN + 8, 4 * MESSAGES_A_TURN
    decode = protocol.decode_from_driver

    def decode_or_fail(data: bytes) -> tuple[int, protocol.FromDriver]:
        seq, message = decode(data)
        if seq == faulty:
            raise RuntimeError("can't start new thread")
        return seq, message

    monkeypatch.setattr(protocol, "decode_from_driver", decode_or_fail)
    ours, _ = add(callers)
    heard = []

    def hear() -> None:
        try:
            ours.read()
        except EOFError:
            return
        while (data := ours.next()) is not None:
            heard.append(json.loads(data))

    callers.loop.watch(ours.fileno(), hear)
    said = [json.dumps({"kind": "done", "seq": seq, "run": "another"}).encode() for seq in range(last)]
    said.append(json.dumps({"kind": "bye", "seq": last}).encode())
    os.write(ours.fileno(), b"".join(struct.pack("!i", len(each)) + each for each in said))
    callers.loop.after(60, callers.loop.stop)
    callers.loop.run()
    ours.close()
    assert [(each["kind"], each["seq"]) for each in heard[1:]] == [("report", 0), ("ack", last)]


def test_a_driver_that_cannot_be_looked_at_hides_no_other(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def look(driver: DriverProcess) -> bool:
        looked.append(driver)
        raise ValueError("what /proc says can't be read")

    monkeypatch.setattr(DriverProcess, "poll_finds_dead", look)
    (first, one), (second, other) = add(callers), add(callers)
    callers._poll()
    assert looked == [one, other]
    first.close()
    second.close()
