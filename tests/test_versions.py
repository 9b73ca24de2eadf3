"""A driver and a watcher of different releases: qx-supervisor was replaced while the driver ran, and its watcher died.

What the other release says was recorded: these are its own bytes, of version 1 of the protocol.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from multiprocess.connection import Connection
from testkit.processes import DEADLINE, until

from qx_supervisor import WatcherError, launch, local
from qx_supervisor.link import Guarded, Link
from qx_supervisor.watcher import protocol
from qx_supervisor.watcher.facts import About, End, Figures
from qx_supervisor.watcher.host_identity import pidfd_of, start_ticks
from qx_supervisor.watcher.ledger import Ledger, Row
from qx_supervisor.watcher.remote import watcher_remote

ACCOUNT = "a0"


def credentials(ibm: local.Service) -> protocol.Credentials:
    return protocol.Credentials(f"{ibm.url}/api/v1", "crn:v1:x", ibm.url, "local-key")


# An earlier driver, this watcher ----------------------------------------------------------------------------------


class EarlierDriver:
    """A process that can be killed, and what it says to the watcher that it has started."""

    def __init__(self, state: Path, **order: Any) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        ours, theirs = socket.socketpair()
        pidfd = pidfd_of(self.process.pid)
        passed = (theirs.fileno(), *(() if pidfd is None else (pidfd,)))
        whole = {
            "pid": self.process.pid,
            "start_ticks": start_ticks(self.process.pid),
            "path": launch._package_folders(),
            "state": str(state),
            "sweep_window": 0.5,
            "lease_seconds": 30.0,
            "connection": theirs.fileno(),
            "pidfd": pidfd,
            **order,
        }
        command = [sys.executable, "-I", "-S", str(launch.BOOT), json.dumps(whole)]
        subprocess.run(command, pass_fds=passed, check=True)
        theirs.close()
        if pidfd is not None:
            os.close(pidfd)
        self.connection = Connection(ours.detach())

    def hears(self) -> Any:
        assert self.connection.poll(DEADLINE)
        return json.loads(self.connection.recv_bytes())

    def says(self, data: str) -> None:
        self.connection.send_bytes(data.encode())

    def die(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def driver(state: Path) -> Iterator[EarlierDriver]:
    made = EarlierDriver(state)
    yield made
    made.die()
    made.connection.close()


def test_an_earlier_driver_is_understood(ibm: local.Service, driver: EarlierDriver) -> None:
    """Its job is guarded: its messages name no version, and it is answered in their form."""
    ibm.hold("queued")
    how = credentials(ibm)
    remote, token = watcher_remote(how)
    body = {"program_id": "executor", "backend": "ibm_brisbane", "params": {}, "tags": ["qxs-r"]}
    header = {"Authorization": token.header()}
    reply = remote.open().post(f"{how.endpoint}/jobs", json=body, headers=header, timeout=DEADLINE)
    job = reply.json()["id"]
    remote.open().close()

    hello = driver.hears()
    assert (hello.keys(), hello["kind"], hello["seq"]) == ({"kind", "seq", "pid", "start_ticks"}, "ack", 0)
    given = json.dumps(how.to_json())
    driver.says(f'{{"kind":"arm","seq":1,"account":"a0","credentials":{given}}}')
    assert driver.hears() == {"kind": "ack", "seq": 1}
    driver.says('{"kind":"intent","seq":2,"run":"r","account":"a0","tag":"qxs-r","driver":"","lease":{}}')
    assert driver.hears() == {"kind": "ack", "seq": 2}
    driver.says(f'{{"kind":"job","seq":3,"run":"r","job":"{job}"}}')
    driver.says('{"kind":"posted","seq":4,"run":"r","clean":true}')
    driver.says('{"kind":"inspect","seq":5}')
    assert driver.hears()["runs"] == {"r": [job]}
    driver.die()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_what_an_earlier_driver_says_and_this_watcher_does_not_know_is_refused(driver: EarlierDriver) -> None:
    driver.hears()
    driver.says('{"kind":"pause","seq":1,"run":"r"}')
    assert driver.hears() == {"kind": "nack", "seq": 1, "reason": "unknown kind"}
    driver.says('{"kind":"done","seq":2,"run":"r","only_if":"idle"}')
    assert driver.hears() == {"kind": "nack", "seq": 2, "reason": "done: it has an unknown field"}
    driver.says('{"kind":"done","seq":3,"protocol":4,"run":"r"}')
    refused = driver.hears()
    assert (refused["kind"], refused["seq"]) == ("nack", 3)
    assert "the other side speaks version 4 of the protocol" in refused["reason"]


def test_a_later_driver_is_told_which_version_will_be_spoken(state: Path) -> None:
    later = EarlierDriver(state, protocol=7)
    assert later.hears()["protocol"] == protocol.VERSION
    later.die()
    later.connection.close()


@pytest.mark.parametrize("asked", [0, "2", None])
def test_a_driver_whose_version_is_not_spoken_is_refused(state: Path, asked: object) -> None:
    other = EarlierDriver(state, protocol=asked)
    refused = other.hears()
    assert (refused["kind"], refused["seq"]) == ("nack", 0)
    assert refused["reason"].endswith("qx-supervisor was replaced while the program ran; restart the program")
    with pytest.raises(EOFError):  # and the watcher has ended
        other.hears()
    other.die()
    other.connection.close()


# This driver, an earlier watcher ----------------------------------------------------------------------------------

EARLIER_WATCHER = """
import json, os, struct, sys

order = json.loads(sys.argv[1])
if os.fork():
    os._exit(0)
os.setsid()
stream = os.fdopen(order["connection"], "r+b", buffering=0)

def say(text):
    stream.write(struct.pack("!i", len(text)) + text.encode())

heard = open(__file__ + ".heard", "ab", buffering=0)
say(HELLO % os.getpid())
while size := stream.read(4):
    data = stream.read(struct.unpack("!i", size)[0])
    heard.write(data + b"\\n")
    message = json.loads(data)
    if message["kind"] in ("arm", "intent", "cancel", "bye"):
        say('{"kind":"ack","seq":%d}' % message["seq"])
"""
"""What an installed `boot.py` may be: it says a hello, acknowledges, and writes down what it hears."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs another watcher."""
    made: list[Link] = []

    def install(hello: str) -> tuple[Link, Path]:
        boot = tmp_path / "boot.py"
        boot.write_text(f"HELLO = {hello!r}\n{EARLIER_WATCHER}")
        monkeypatch.setattr(launch, "BOOT", tmp_path / "boot.py")
        made.append(Link())
        return made[-1], tmp_path / "boot.py.heard"

    yield install
    for link in made:
        thread, process = link._thread, link._process
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)
        if thread is not None:
            thread.join(DEADLINE)


def test_an_earlier_watcher_is_understood(ibm: local.Service, installed: Any) -> None:
    """It is spoken to in its own version, which names none."""
    link, file = installed('{"kind":"ack","seq":0,"pid":%d,"start_ticks":null}')
    how = credentials(ibm)
    reports: list[protocol.Report] = []
    guarded = Guarded("r", ACCOUNT, "qxs-r", reports.append, "qxd-1")
    link.announce(guarded, lambda *, fetch=True: how)
    link.job("r", "j")
    link.posted("r", clean=False)
    link.cancelling("r")
    assert link.hand_over("r", DEADLINE)
    link.stand_down("r")
    assert link._process is not None
    assert link._process.version == 1
    link._question(protocol.Bye(), DEADLINE).answered.wait(DEADLINE)
    given = json.dumps(how.to_json(), separators=(",", ":"))
    assert file.read_text().splitlines() == [
        f'{{"kind":"arm","seq":1,"account":"a0","credentials":{given}}}',
        '{"kind":"intent","seq":2,"run":"r","account":"a0","tag":"qxs-r","driver":"qxd-1","lease":{}}',
        '{"kind":"job","seq":3,"run":"r","job":"j"}',
        '{"kind":"posted","seq":4,"run":"r","clean":false}',
        '{"kind":"cancelling","seq":5,"run":"r"}',
        '{"kind":"cancel","seq":6,"run":"r"}',
        '{"kind":"done","seq":7,"run":"r"}',
        '{"kind":"bye","seq":8}',
    ]


def test_a_watcher_of_version_2_is_told_nothing_that_it_does_not_know(ibm: local.Service, installed: Any) -> None:
    """What is for those who read the ledger is left away, and the figures of a job are not sent."""
    link, file = installed('{"kind":"ack","seq":0,"protocol":2,"pid":%d,"start_ticks":null}')
    how, end = credentials(ibm), End("cancelled", "signal", 15)
    guarded = Guarded("r", ACCOUNT, "qxs-r", print, "qxd-1", about=About(label="mine"))
    link.announce(guarded, lambda *, fetch=True: how)
    link.job("r", "j")
    link.figures("r", "j", Figures(estimated=2.0))
    link.cancelling("r", end)
    link.stand_down("r", end=end)
    link.figures("r", "j", Figures(charged=1.0))
    link._question(protocol.Bye(), DEADLINE).answered.wait(DEADLINE)
    assert file.read_text().splitlines()[1:] == [
        '{"kind":"intent","seq":2,"protocol":2,"run":"r","account":"a0","tag":"qxs-r","driver":"qxd-1","lease":{}}',
        '{"kind":"job","seq":3,"protocol":2,"run":"r","job":"j"}',
        '{"kind":"cancelling","seq":4,"protocol":2,"run":"r"}',
        '{"kind":"done","seq":5,"protocol":2,"run":"r"}',
        '{"kind":"bye","seq":6,"protocol":2}',
    ]


def test_a_driver_of_version_2_is_understood(ibm: local.Service, state: Path) -> None:
    """It does not say how its run ended; the row says that it is over."""
    earlier = EarlierDriver(state, protocol=2)
    assert earlier.hears()["protocol"] == 2
    given = json.dumps(credentials(ibm).to_json())
    earlier.says(f'{{"kind":"arm","seq":1,"protocol":2,"account":"a0","credentials":{given}}}')
    earlier.hears()
    earlier.says('{"kind":"intent","seq":2,"protocol":2,"run":"r","account":"a0","tag":"qxs-r","driver":"","lease":{}}')
    assert earlier.hears() == {"kind": "ack", "seq": 2, "protocol": 2}
    earlier.says('{"kind":"done","seq":3,"protocol":2,"run":"r"}')
    earlier.says('{"kind":"done","seq":4,"protocol":2,"run":"r","end":{}}')
    assert earlier.hears()["reason"] == "done: it has an unknown field"
    earlier.die()
    earlier.connection.close()

    def row() -> Row | None:
        with Ledger.open(state) as book:
            return book.row("r")

    found = until(row, lambda row: row is not None and row.state == "done")
    assert found is not None
    assert (found.outcome, found.label) == ("", "")


def test_a_watcher_whose_version_is_not_spoken_is_refused(ibm: local.Service, installed: Any) -> None:
    link, file = installed('{"kind":"ack","seq":0,"protocol":4,"pid":%d,"start_ticks":null}')
    how = credentials(ibm)
    with pytest.raises(WatcherError) as caught:
        link.arm(ACCOUNT, lambda *, fetch=True: how)
    assert caught.value.reason == (
        "the installed watcher can't be used: the other side speaks version 4 of the protocol between driver and "
        "watcher, and this one speaks 1 to 3: qx-supervisor was replaced while the program ran; restart the program"
    )
    assert file.read_bytes() == b""  # no credentials went to it


def test_a_later_watcher_that_refuses_says_why(ibm: local.Service, installed: Any) -> None:
    reason = "it speaks only 5 to 6 (process %d): restart the program"
    link, _ = installed('{"kind":"nack","seq":0,"protocol":1,"reason":"' + reason + '"}')
    how = credentials(ibm)
    with pytest.raises(WatcherError, match="could not be started: it speaks only 5 to 6"):
        link.arm(ACCOUNT, lambda *, fetch=True: how)


def test_a_report_of_an_unknown_event_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    link = Link()
    data = b'{"kind":"report","seq":0,"event":"moved","run":"r","job":"","detail":""}'
    link._receive(*protocol.decode_from_watcher(data))
    assert caplog.messages == ["the watcher reported an event that this process does not know: moved"]


def test_an_answer_that_is_not_understood_grants_no_key(ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    link, how = Link(), credentials(ibm)
    monkeypatch.setattr(link, "_arm", lambda *_: None)
    monkeypatch.setattr(link, "_question", lambda *_: None)
    monkeypatch.setattr(link, "_await", lambda *_: protocol.Ack({"answer": "granted", "run": "r"}))
    guarded = Guarded("r", ACCOUNT, "qxs-r", print, lease=protocol.Lease("k", "f", 60.0, "h"))
    with pytest.raises(WatcherError, match="the watcher's answer is refused: claim: tag is not of type str"):
        link.take_lease(guarded, lambda *, fetch=True: how, [])
    assert not link.all_guarded()
