"""Notices: sent by the watcher, to a webhook, by mail and to a command, and never at a job's cost."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import psutil
import pytest
from testkit.drivers import RUN, TELL_WATCHERS
from testkit.processes import DEADLINE, wait_for_end
from testkit.watchers import wait_for_watchers
from testkit.webhooks import Webhook

from qx_supervisor import WatcherError, settings
from qx_supervisor.cli.log import Tail
from qx_supervisor.watcher import notify, system
from qx_supervisor.watcher.protocol import Notify
from qx_supervisor.watcher.witness import Notice

HOST = os.uname().nodename

THREE = """
    queued = threading.Semaphore(0)
    def note(status):
        tell(status)
        if status.state == "queued":
            queued.release()
    mine = service()
    held = [submit(isa(), mine.backend("ibm_brisbane"), on_status=note) for _ in range(3)]
    for _ in held:
        queued.acquire()
    say("all")
    threading.Event().wait()
"""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], Path]:
    """Makes a program of a shell's commands."""

    def make(name: str, commands: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{commands}\n")
        path.chmod(0o700)
        return path

    return make


@pytest.fixture
def ask_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the drivers that are started from now on ask for."""

    def ask(*targets: str, **more: str) -> None:
        monkeypatch.setenv("QX_NOTIFY", " ".join(targets))
        for name, value in more.items():
            monkeypatch.setenv(name, value)

    return ask


@pytest.mark.long
def test_runs_that_die_together_make_one_notice(ibm, start, ask_for, webhook):
    ask_for(f"{webhook.url}/services/T0/B0/secret")
    ibm.hold("queued")
    driver = start(THREE)
    driver.line("all")
    watcher = driver.watcher()
    driver.kill()
    path, body = webhook.next()
    wait_for_end(watcher)
    assert webhook.received.empty()
    assert path == "/services/T0/B0/secret"
    end = "was killed (SIGKILL)" if system.HAS_LINUX else "died"
    text = f"driver0.py (pid {driver.pid}) on host {HOST} {end}, 3 jobs cancelled, 0 s charged"
    assert body["text"] == f"qx-supervisor: {text}"
    [notice] = body["notices"]
    assert (notice["kind"], notice["text"], notice["cancelled"], notice["charged"]) == ("death", text, 3, 0)


@pytest.mark.long
def test_every_kind_of_target_and_no_secret_anywhere(ibm, start, ask_for, webhook, script, tmp_path, state):
    mail, told = tmp_path / "mail", tmp_path / "told"
    sendmail = script("sendmail", f'echo "$@" > {mail}.words; cat > {mail}')
    command = script("command", f"cat > {told}")
    secret = "T0aVeryS3cretWord"
    ask_for(f"{webhook.url}/{secret}", "mailto:ops@example.org", f"exec:{command}", QX_SENDMAIL=str(sendmail))
    ibm.hold("queued")
    driver = start(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    environment = Path(f"/proc/{watcher.pid}/environ")
    arguments = Path(f"/proc/{watcher.pid}/cmdline").read_bytes()
    assert secret.encode() not in arguments
    if os.access(environment, os.R_OK):  # as root
        assert secret.encode() not in environment.read_bytes()
    driver.kill()
    _, body = webhook.next()
    wait_for_end(watcher)
    assert json.loads(told.read_bytes()) == body
    letter = message_from_bytes(mail.read_bytes(), policy=default)
    assert letter["To"] == "ops@example.org"
    assert letter["Subject"] == body["text"]
    assert letter.get_content() == body["text"] + "\n"
    assert Path(f"{mail}.words").read_text() == "-i -t\n"
    assert stat.S_IMODE(told.stat().st_mode) == 0o600
    assert ibm.job(job).cancel_requests == 1
    assert [path for path in state.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()] == []
    assert secret not in driver.errors.decode()


@pytest.mark.parametrize("fault", ["refused", "silent", "404"])
def test_what_can_not_be_told_delays_no_cancel_and_the_watchers_end_by_seconds(
    ibm, fork, ask_for, webhook, state, fault
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if fault == "silent":
            silent.listen()  # it takes connections, and never answers
        webhook.answer = 404
        url = webhook.url if fault == "404" else f"http://127.0.0.1:{silent.getsockname()[1]}"
        ask_for(f"{url}/T0aVeryS3cretWord")
        ibm.hold("queued")
        driver = fork(RUN)
        job = driver.queued()
        watcher = driver.watcher()
        killed = time.monotonic()
        driver.kill()
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
        cancelled = time.monotonic() - killed
        wait_for_end(watcher)
        ended = time.monotonic() - killed
    lines = list(Tail(state).new())
    [lost] = [line for line in lines if line["event"] == "notice lost"]
    assert lost["message"].startswith("target 1 of QX_NOTIFY could not be told: ")
    assert [line for line in lines if "S3cret" in str(line)] == []
    [said] = [line for line in lines if line["event"] == "job cancelled"]
    assert lines.index(said) < lines.index(lost)
    assert ended < notify.SECONDS + cancelled + 20  # a busy machine
    if fault == "404":
        assert webhook.asked == len(notify.PAUSES) + 1


def test_a_living_programs_long_runs_are_told_of_when_they_end(ibm, fork, ask_for, webhook):
    ask_for(webhook.url, QX_NOTIFY_AFTER="0.001")
    driver = fork(
        """
        mine = service()
        for _ in range(2):
            run(bell(), mine.backend("ibm_brisbane"), shots=16, on_status=tell)
        say("over")
        sys.stdin.read()
        """
    )
    driver.line("over")
    found = []
    while sum(len(each["notices"]) for each in found) < 2:
        found.append(webhook.next()[1])
    notices = [notice for each in found for notice in each["notices"]]
    assert [each["kind"] for each in notices] == ["end", "end"]
    assert len({each["run"] for each in notices}) == 2
    assert {each["driver"] for each in notices} == {driver.pid}
    driver.kill()
    wait_for_watchers(driver)
    assert webhook.received.empty()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of sockets: the drivers of the test share a watcher."""
    with tempfile.TemporaryDirectory(prefix="qx-node-") as base:  # pytest's own path is too long for a socket
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        monkeypatch.setenv("QX_WATCHER_PLACEMENT", "node")
        yield


@pytest.mark.long
@pytest.mark.usefixtures("runtime")
def test_drivers_that_share_a_watcher_are_told_of_by_their_own_settings(ibm, fork, ask_for, webhook, monkeypatch):
    ibm.hold("queued")
    drivers = []
    for path in ("/one", "/two", ""):
        if path:
            ask_for(webhook.url + path)
        else:
            monkeypatch.delenv("QX_NOTIFY")
        soon = "from qx_supervisor import node_launch\nnode_launch.LINGER_SECONDS = 0.2\n"
        drivers.append(fork(soon + TELL_WATCHERS + RUN))
        drivers[-1].queued()
    [watcher] = {psutil.Process(int(driver.line("watcher ")[0])) for driver in drivers}
    for driver in drivers:
        driver.kill()
    wait_for_end(watcher)
    told = dict(webhook.next() for _ in range(2))
    assert {path: body["notices"][0]["driver"] for path, body in told.items()} == {
        "/one": drivers[0].pid,
        "/two": drivers[1].pid,
    }
    assert webhook.received.empty()


# How it is asked for, and sent ---------------------------------------------------------------------------------------


def test_nobody_is_told_unless_asked_for(monkeypatch):
    monkeypatch.delenv("QX_NOTIFY", raising=False)
    assert settings.notify() is None


def test_several_targets(monkeypatch):
    monkeypatch.setenv("QX_NOTIFY", " https://h/T0,x  mailto:a@b exec:/bin/true\n")
    monkeypatch.setenv("QX_NOTIFY_AFTER", "5")
    assert settings.notify() == Notify(("https://h/T0,x", "mailto:a@b", "exec:/bin/true"), 5.0, "")
    assert "h/T0" not in repr(settings.notify())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QX_NOTIFY", "hooks.slack.com/S3cret"),
        ("QX_NOTIFY", "https://h/x exec:relative/S3cret"),
        ("QX_NOTIFY", "mailto:S3cret"),
        ("QX_NOTIFY", "mailto:S3cret@h,c@d"),
        ("QX_NOTIFY", "ftp://h/S3cret"),
        ("QX_NOTIFY_AFTER", "soon"),
        ("QX_SENDMAIL", "sendmail"),
    ],
)
def test_a_mistake_is_named_before_anything_is_submitted_and_quotes_no_secret(monkeypatch, name, value):
    monkeypatch.setenv("QX_NOTIFY", "https://h/S3cret")
    monkeypatch.setenv(name, value)
    with pytest.raises(WatcherError) as caught:
        settings.notify()
    assert name in caught.value.reason
    assert "S3cret" not in caught.value.reason


NOTICES = [Notice("end", f"<!channel> run {number} & more", {"run": str(number)}) for number in range(30)]


def test_many_notices_are_one_message_that_calls_nobody(webhook):
    notify.deliver(webhook.url, NOTICES, "", 5.0)
    _, body = webhook.next()
    lines = body["text"].splitlines()
    assert lines[0] == "qx-supervisor: &lt;!channel&gt; run 0 &amp; more"
    assert (len(lines), lines[-1]) == (notify.MOST_LINES + 1, "qx-supervisor: and 10 more")
    assert body["notices"][0] == {"kind": "end", "text": "<!channel> run 0 & more", "run": "0"}


def test_what_happens_at_one_moment_is_one_message(webhook):
    sender, at_work = notify.Sender(pytest.fail), notify.Threads()
    for each in NOTICES[:3]:
        sender.send(Notify((webhook.url,), 60.0, ""), [each], at_work)
    assert [each["run"] for each in webhook.next()[1]["notices"]] == ["0", "1", "2"]
    at_work.wait(DEADLINE)
    assert webhook.received.empty()


@pytest.mark.parametrize(
    ("target", "trouble"),
    [
        ("exec:/no/such", "the command could not be started: No such file or directory"),
        ("exec:/bin/false", "the command ended with 1"),
        ("exec:/bin/cat", ""),
        ("http://127.0.0.1:1/S3cret", "ConnectionError"),
        ("http://[S3cret", "InvalidURL"),
    ],
)
def test_why_a_target_could_not_be_told(target, trouble):
    if not trouble:
        notify.deliver(target, NOTICES, "", 5.0)
        return
    with pytest.raises(notify.Undeliverable) as caught:
        notify.deliver(target, NOTICES, "", 5.0)
    assert str(caught.value) == trouble
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_command_that_hangs_is_killed(script, tmp_path):
    pids = tmp_path / "pid"
    with pytest.raises(notify.Undeliverable, match="took too long"):
        notify.deliver(f"exec:{script('hangs', f'echo $$ > {pids}; exec sleep 60')}", NOTICES, "", 0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)


def test_without_sendmail_mail_says_what_to_set(monkeypatch):
    monkeypatch.setattr(notify, "SENDMAIL", ("/no/such",))
    with pytest.raises(notify.Undeliverable, match="QX_SENDMAIL"):
        notify.deliver("mailto:a@b", NOTICES, "", 5.0)
