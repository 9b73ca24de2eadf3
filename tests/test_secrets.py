"""The API key and the tokens are where they must be, in the memory of two processes, and nowhere else."""

from __future__ import annotations

import json
import re
import resource
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from testkit.circuits import BACKEND, ones
from testkit.drivers import RUN
from testkit.postgres import Server
from testkit.processes import wait_for_end
from testkit.watchers import wait_for_watchers
from testkit.webhooks import Webhook

from qx_supervisor import local, submit
from qx_supervisor import service as ours
from qx_supervisor.cli.log import Tail
from qx_supervisor.launch import BOOT
from qx_supervisor.link import Guarded, Link, link
from qx_supervisor.watcher import protocol, remote
from qx_supervisor.watcher.ledger.postgres import SharedLedger

CANCEL = "/api/v1/jobs/*/cancel"

TOKEN = "eyJhbGciOiAiSFMyNTYiLCAidHlwIjogIkpXVCJ9"
"""How every access token of the embedded service begins: the header of a JWT."""

LIFE = """
import logging, secrets, traceback
from qx_supervisor import results_fetch
from qx_supervisor.link import link
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
results_fetch.RESULTS_SECONDS = 0.0  # instead of ten minutes
key = "sentinel-" + secrets.token_hex(20)
say("key", key)

class Line(logging.Handler):
    def emit(self, record):
        say("log", record.name, repr(self.format(record)))

logging.basicConfig(level=logging.DEBUG, handlers=[Line()])
logging.captureWarnings(True)
here = service(key)
kinds = set()

def fail(scenario, **arguments):
    ibm.scenario(scenario)
    try:
        run(bell(), **{"backend": "ibm_brisbane", "service": here, "shots": 16} | arguments)
    except QxError as error:
        kinds.add(f"{type(error).__name__}-{error.stage}")
        traceback.print_exc()
        logging.getLogger("driver").exception("it failed: %r", error)
        say("error", repr(error), repr(error.__cause__), repr(error.__context__), vars(error))

def fault(method, path, **way):
    return {"http_faults": [{"method": method, "path": path, **way}]}

fail({}, backend="ibm_nowhere")
fail({}, options={"dynamical_decoupling": {"enable": "certainly"}})
fail(fault("POST", "/api/v1/jobs", status=403, message="no such plan"))
fail(fault("POST", "/api/v1/jobs", status=401))
fail(fault("POST", "/api/v1/jobs", status=500) | {"next_jobs": [{"outcome": "failed", "reason": "bad"}]})
fail(fault("GET", "/api/v1/jobs/*/results", status=404))
fail(fault("GET", "/api/v1/jobs/" + 20 * "[0-9a-z]", status=404))  # it is asked again, and has its result
fail(fault("GET", "/api/v1/backends/*/status", status=401))
ibm.expire_tokens()
ibm.auth(reject_tokens=True)
fail({}, backend="ibm_other")
try:
    service(key)
except Exception:
    traceback.print_exc()
ibm.auth(reject_tokens=False)
here = service(key)
sys.frozen = True
os.kill(link.watcher_pid, signal.SIGKILL)
with link._changed:
    link._changed.wait_for(lambda: link.watcher_pid is None)
fail({})
del sys.frozen
say("failed", *sorted(kinds))

queued = threading.Event()
def watched(status):
    say("status", repr(status), status)
    if status.state == "queued":
        queued.set()
ibm.scenario({})
ibm.hold("queued")
held = submit(bell(), "ibm_brisbane", service=here, on_status=watched, panel="plain")
queued.wait()
say("shown", held, held._flight, held.status(), link, link._process, vars(held))
say("armed", held.job_id)
signal.sigwait({signal.SIGUSR1})
first = link.watcher_pid
os.kill(first, signal.SIGKILL)
with link._changed:
    link._changed.wait_for(lambda: link.watcher_pid not in (None, first))
say("again", link.inspect()["pid"])
signal.sigwait({signal.SIGUSR1})
"""


def shown_by_processes(secret: str, among: Iterable[int] | None = None) -> list[str]:
    """The command lines and environments in which a secret stands, of some processes or of all."""
    found = []
    for folder in Path("/proc").glob("[0-9]*") if among is None else (Path(f"/proc/{pid}") for pid in among):
        for file in (folder / "cmdline", folder / "environ"):
            try:
                data = file.read_bytes()
            except OSError:  # it has ended, or it is another user's
                continue
            if secret.encode() in data:
                found.append(str(file))
    return found


def files_with(folder: Path, *secret: str) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files for text in secret if text.encode() in file.read_bytes()]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


def test_a_whole_life(
    ibm: local.Service, fork: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhook: Webhook
) -> None:
    """Errors of many kinds with all logs on; a watcher armed, killed and replaced; the driver killed."""
    hook = secrets.token_hex(20)
    monkeypatch.setenv("QX_NOTIFY", f"{webhook.url}/{hook} {webhook.url.replace('http', 'https')}/{hook}")
    for name in ("HOME", "TMPDIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    driver = fork(LIFE)
    [key] = driver.line("key ")
    assert driver.line("failed ") == [
        "ConfigError-backend",
        "ConfigError-config",
        "JobFailed-job",
        "RunError-backend",
        "RunError-results",
        "SubmitError-auth",
        "SubmitError-submit",
        "WatcherError-submit",
    ]
    [job] = driver.line("armed ")
    first = driver.watcher()
    assert first.rlimit(resource.RLIMIT_CORE) == (0, 0)

    def nothing_is_shown(watcher: psutil.Process) -> bool:
        # The key is this test's alone; all tokens of embedded services begin alike, those of other tests too.
        return not shown_by_processes(key) and not shown_by_processes(TOKEN, among=(driver.pid, watcher.pid))

    assert nothing_is_shown(first)
    driver.send(10)  # SIGUSR1: it kills its watcher
    assert driver.line("again ") != [str(first.pid)]
    second = driver.watcher()
    assert nothing_is_shown(second)
    ibm.scenario({"http_faults": [{"path": CANCEL, "delay_seconds": 1.0, "phase": "after"}]})
    driver.kill()
    ibm.wait_for("POST", CANCEL)
    assert second.is_running()
    assert nothing_is_shown(second)
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    shown = [shown for shown in shown_by_processes(hook) if shown != f"/proc/{driver.pid}/environ"]
    assert not [place for place in shown if f"/proc/{second.pid}/" in place]  # the drivers' own have it from the test
    assert not [place for place in shown if place.endswith("/cmdline")]
    wait_for_end(second)

    noticed = []
    while not webhook.received.empty():
        noticed.append(webhook.next()[1])
    assert [each["kind"] for each in noticed[-1]["notices"]][-1] == "death"
    assert key not in str(noticed)
    assert TOKEN not in str(noticed)
    assert not files_with(tmp_path, key, TOKEN, hook)
    logged = [line["event"] for line in Tail(tmp_path / "state").new()]
    assert {"driver died", "job cancelled", "notice lost"} <= set(logged)  # one target speaks no TLS
    said = [line for line in (*driver.lines, *driver.errors.decode().splitlines()) if not line.startswith("key ")]
    assert [line for line in said if line.startswith("log qx_supervisor ")]
    assert [line for line in said if line.startswith("log urllib3")]
    assert len([line for line in said if line.startswith("Traceback")]) >= 10
    assert [line for line in said if key in line or TOKEN in line or hook in line] == []


@pytest.fixture
def key() -> str:
    return f"sentinel-{secrets.token_hex(20)}"


def test_a_key_in_the_drivers_environment(
    ibm: local.Service, fork: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user put it there. It goes no further."""
    for name in ("QISKIT_IBM_TOKEN", "QX_IBM_API_KEY", "MY_KEY"):
        monkeypatch.setenv(name, key)
    ibm.hold("queued")
    driver = fork(RUN)
    driver.queued()
    watcher = driver.watcher()
    assert driver.pid != watcher.pid
    shown = shown_by_processes(key)
    assert not [file for file in shown if f"/{watcher.pid}/" in file]
    assert "HOME" in watcher.environ()
    driver.kill()
    ibm.wait_idle()


LEDGER_LIFE = """
import logging
from qx_supervisor.link import link
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

class Line(logging.Handler):
    def emit(self, record):
        say("log", record.name, repr(self.format(record)))

logging.basicConfig(level=logging.DEBUG, handlers=[Line()])
queued = threading.Event()
def watched(status):
    if status.state == "queued":
        queued.set()
held = submit(bell(), "ibm_brisbane", service=service(), on_status=watched)
queued.wait()
say("shown", held, link, link._process, vars(link), vars(held))
say("armed", held.job_id)
signal.sigwait({signal.SIGUSR1})
first = link.watcher_pid
os.kill(first, signal.SIGKILL)
with link._changed:
    link._changed.wait_for(lambda: link.watcher_pid not in (None, first))
say("again", link.inspect()["pid"])
signal.sigwait({signal.SIGUSR1})
"""


def test_the_password_of_the_shared_ledger(
    ibm: local.Service, fork: Any, postgres: Server, shared_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the driver's environment, where the user put it, and goes no further than the watcher's memory."""
    for name in ("HOME", "TMPDIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("QX_LEDGER", shared_url)
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")
    secret = postgres.password
    ibm.hold("queued")
    driver = fork(LEDGER_LIFE)
    [job] = driver.line("armed ")

    def shown_by_others() -> list[str]:
        return [file for file in shown_by_processes(secret) if f"/{driver.pid}/" not in file]

    assert not shown_by_others()
    postgres.kill()  # it is told of, in words of ours
    try:
        driver.line('log qx_supervisor "WARNING:qx_supervisor:the shared ledger is away')
        driver.send(10)  # SIGUSR1: it kills its watcher
        driver.line("again ")
        assert not shown_by_others()
    finally:
        postgres.start()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_watchers(driver)
    assert not files_with(tmp_path, secret)
    said = [*driver.lines, *driver.errors.decode().splitlines()]
    assert [line for line in said if secret in line] == []
    with SharedLedger.open(shared_url) as book:
        [held] = book.held()
        assert held.row.state == "cancelled"
        assert secret not in repr((book, held, book._database))
    with psycopg.connect(shared_url) as database:
        stored = database.execute("SELECT r::text FROM qx_runs r UNION ALL SELECT h::text FROM qx_holders h").fetchall()
    assert stored
    assert [text for [text] in stored if secret in text] == []


def test_what_shows_itself(ibm: local.Service, key: str) -> None:
    client = ibm.service(key)._active_api_client
    credentials = ours.credentials(client)
    assert credentials.api_key == key
    assert credentials.token.startswith(TOKEN)
    there, token = remote.watcher_remote(credentials)
    ibm.hold("queued")
    held = submit(ones(), BACKEND, service=ibm.service(key))
    [entry] = ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    flight = held._flight
    shown = [
        credentials,
        there,
        token,
        ours.remote_of(client),
        held,
        flight,
        flight.core,
        flight.core.request,
        flight.core.target,
    ]
    shown += [link, link._process, Guarded("run", "a0", "tag", print), ours.account_name(client), vars(held)]
    shown += [link._runs, link._sources, ours.access._remotes, Link()]
    for item in shown:
        for text in (repr(item), str(item), f"{item}"):
            assert key not in text, type(item)
            assert TOKEN not in text, type(item)
    assert held.cancel() == "confirmed"
    assert ibm.job(str(entry.job_id)).status == "Cancelled"


@pytest.mark.parametrize(
    "damage",
    [
        lambda message: {**message, "credentials": message["credentials"]["api_key"]},
        lambda message: {**message, "kind": message["credentials"]["api_key"]},
        lambda message: {**message, "account": [message["credentials"]["api_key"]]},
        lambda message: {**message, "seq": message["credentials"]["api_key"]},
        lambda message: {**message, "credentials": {**message["credentials"], message["credentials"]["api_key"]: 1}},
        lambda message: {**message, "credentials": {**message["credentials"], "endpoint": 3}},
    ],
)
def test_a_malformed_message_is_not_quoted(key: str, damage: Any) -> None:
    credentials = protocol.Credentials("http://there", "crn", "http://iam", key)
    message = json.loads(protocol.encode(protocol.Arm("a0", credentials), 1))
    raw = json.dumps(damage(message)).encode()
    for data in (raw, raw[:-9]):
        with pytest.raises(protocol.ProtocolError) as caught:
            protocol.decode_from_driver(data)
        assert key not in repr(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or key not in repr(caught.value.__context__)


def test_what_the_way_there_says_is_not_quoted(key: str) -> None:
    """A proxy's password, and the header that was refused."""
    credentials = protocol.Credentials(
        "http://localhost:9/api", "crn", "http://localhost:9", key, proxies={"http": f"http://me:{key}@127.0.0.1:9"}
    )
    there, token = remote.watcher_remote(credentials)
    for ask in (token.renew, token.header, lambda: there.job("d1"), lambda: there.cancel("d1")):
        with pytest.raises(remote.Transient) as caught:
            ask()
        assert key not in repr(caught.value)
        assert key not in repr(credentials)
        assert caught.value.__suppress_context__
    there.open().close()


def test_linux_the_watcher_leaves_no_core_and_can_not_be_looked_into() -> None:
    """prctl(2): 3 is PR_GET_DUMPABLE."""
    code = "import ctypes, boot; boot._make_undumpable(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", code], cwd=BOOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    boot = BOOT.read_text()
    assert len(re.findall(r"^ +_make_undumpable\(\)", boot, re.MULTILINE)) == 2  # beside its driver, and outside
