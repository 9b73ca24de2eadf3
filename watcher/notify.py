"""Notices: to a webhook, by mail, or to a command.

A notice delays nothing: each is sent by a thread of its own, which tries for some seconds. What it is sent to may be a
secret (whoever knows the URL of a webhook can write there), so no message here quotes it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from .events import cleaned
from .protocol import Notify
from .witness import Notice

SECONDS = 8.0
"""How long a notice is tried to be sent."""

END_SECONDS = SECONDS + 1.0
"""How long the watcher's end waits for that."""

PAUSES = (0.5, 1.5)
"""Seconds between tries."""

GATHERED_SECONDS = 0.5
"""How long notices are gathered: runs that end together make one."""

MOST_AT_ONCE = 8
"""Threads that send, of all drivers; beyond that notices are lost, and the log says so."""

MOST_LINES = 20
"""Of one notice: of what else happened at the same time only the number is told."""

SENDMAIL = ("/usr/sbin/sendmail", "/usr/lib/sendmail")
"""Where it is, if `QX_SENDMAIL` does not say so. It is never looked for in PATH: anyone could put one there."""


class Undeliverable(Exception):
    """A notice can't be sent; the text has no secret."""


def load() -> None:
    """Load what sending takes, before it is needed: the driver's environment may be gone by then."""
    import subprocess  # noqa: F401
    from email.message import EmailMessage

    import requests  # noqa: F401

    EmailMessage()


class Sender:
    """Sends the notices of one driver.

    Args:
        complain: Called, in any thread, with why a notice could not be sent.
    """

    def __init__(self, complain: Callable[[str], object]) -> None:
        self._complain = complain
        self._lock = threading.Lock()
        self._gathered: list[Notice] = []

    def send(self, how: Notify, notices: list[Notice], at_work: Threads) -> None:
        """Send notices; returns at once."""
        with self._lock:
            is_first = not self._gathered
            self._gathered += notices
        if is_first and not at_work.do(lambda: self._deliver(how)):
            with self._lock:
                self._gathered = []
            self._complain("a notice was lost: too many are being sent")

    def _deliver(self, how: Notify) -> None:
        deadline = time.monotonic() + SECONDS
        time.sleep(GATHERED_SECONDS)
        with self._lock:
            gathered, self._gathered = self._gathered, []
        left = list(enumerate(how.targets, 1))
        trouble: dict[int, str] = {}
        for pause in (*PAUSES, None):
            for number, target in left[:]:
                try:
                    deliver(target, gathered, how.sendmail, max(0.1, deadline - time.monotonic()))
                    left.remove((number, target))
                except Undeliverable as error:
                    trouble[number] = str(error)
                except Exception as error:  # noqa: BLE001 - its text may quote the target
                    trouble[number] = type(error).__name__
            if not left or pause is None or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        for number, _ in left:
            self._complain(f"target {number} of QX_NOTIFY could not be told: {trouble[number]}")


class Threads:
    """The threads that send; those of a watcher's drivers are counted together."""

    def __init__(self) -> None:
        self._running: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def do(self, work: Callable[[], object]) -> bool:
        """Have a thread do something; returns whether there is one."""

        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._running.discard(threading.current_thread())

        thread = threading.Thread(target=run, daemon=True)
        with self._lock:
            if len(self._running) >= MOST_AT_ONCE:
                return False
            self._running.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no thread can be had
            with self._lock:
                self._running.discard(thread)
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Wait until all are done, or for some seconds."""
        deadline = time.monotonic() + seconds
        with self._lock:
            running = list(self._running)
        for thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))


class Message(NamedTuple):
    """Notices as one message."""

    text: str
    notices: list[Notice]

    def body(self) -> bytes:
        """The JSON object that webhooks and commands get; Slack and Mattermost show its `text`."""
        # To Slack, "<!channel>" calls everybody: https://docs.slack.dev/messaging/formatting-message-text
        escaped = self.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        notices = [{"kind": each.kind, "text": each.text, **each.fields} for each in self.notices]
        return json.dumps({"text": escaped, "notices": notices}).encode()


def message_of(notices: list[Notice]) -> Message:
    """One message of notices, without what looks like a secret."""
    from .ledger.row import safe_detail

    notices = [Notice(each.kind, safe_detail(each.text), cleaned(each.fields, safe_detail)) for each in notices]
    shown, others = notices[:MOST_LINES], len(notices) - MOST_LINES
    lines = [f"qx-supervisor: {each.text}" for each in shown]
    if others > 0:
        lines.append(f"qx-supervisor: and {others} more")
    return Message("\n".join(lines), shown)


def deliver(target: str, notices: list[Notice], sendmail: str, seconds: float) -> None:
    """Tell one target.

    Args:
        target: A webhook's URL, `mailto:` with an address, or `exec:` with the path of a command.
        notices: What is told.
        sendmail: The path of sendmail, or "".
        seconds: How long that may take.

    Raises:
        Undeliverable: It could not be told.
    """
    message = message_of(notices)
    kind, _, rest = target.partition(":")
    if kind == "mailto":
        _mail(rest, message, sendmail, seconds)
    elif kind == "exec":
        _run([rest], message.body() + b"\n", seconds)
    else:
        _post(target, message, seconds)


def _post(url: str, message: Message, seconds: float) -> None:
    import requests

    try:
        answer = requests.post(
            url,
            data=message.body(),
            headers={"Content-Type": "application/json"},
            timeout=(min(3.0, seconds), min(5.0, seconds)),
            allow_redirects=False,
            auth=lambda request: request,  # else the password that ~/.netrc has for the host would be sent
        )
    except requests.RequestException as error:
        raise Undeliverable(type(error).__name__) from None  # its text has the URL
    if not 200 <= answer.status_code < 300:
        raise Undeliverable(f"it answered {answer.status_code}")


def _mail(address: str, message: Message, sendmail: str, seconds: float) -> None:
    from email.message import EmailMessage

    program = sendmail or next((each for each in SENDMAIL if os.access(each, os.X_OK)), "")
    if not program:
        raise Undeliverable("there is no sendmail; QX_SENDMAIL may say where it is")
    mail = EmailMessage()
    mail["To"] = address
    first = message.text.splitlines()[0]
    mail["Subject"] = first if len(first) <= 150 else f"{first[:149]}…"
    mail.set_content(message.text + "\n")
    _run([program, "-i", "-t"], bytes(mail), seconds)


def _run(command: list[str], given: bytes, seconds: float) -> None:
    import subprocess

    try:
        done = subprocess.run(
            command,
            input=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise Undeliverable("the command took too long, and was killed") from None
    except OSError as error:
        raise Undeliverable(f"the command could not be started: {error.strerror}") from None
    if done.returncode:
        raise Undeliverable(f"the command ended with {done.returncode}")
