"""The watcher's way to the service: over TLS, warm when it is needed, and with no file once it is armed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import idna
import multiprocess
import psutil
import pytest
import requests
import trustme
import urllib3
from testkit.drivers import RUN, TELL_WATCHERS, assert_cancelled_once, end
from testkit.gate import Gate
from testkit.pages import CHECKOUT
from testkit.processes import DEADLINE, Process, until, wait_for_end
from testkit.watchers import wait_until_written

from qx_supervisor import detached, local
from qx_supervisor.local.records import INSTANCE, crn
from qx_supervisor.watcher.cancel import cancel
from qx_supervisor.watcher.connections import LONGEST_PAUSE, SHORTEST_PAUSE, _Kept
from qx_supervisor.watcher.ledger import Ledger
from qx_supervisor.watcher.ledger.postgres import SharedLedger
from qx_supervisor.watcher.protocol import Credentials
from qx_supervisor.watcher.remote import Remote, Token, Transient, watcher_remote

CANCEL = "/api/v1/jobs/*/cancel"
TOKEN = "/identity/token"

OVER_TLS = """
def service(token="local-key"):
    return connect({port}, token, tls=True)
"""

GUARDED = """
say("installed", sys.modules["qx_supervisor"].__file__)
run(isa(), service().backend("ibm_brisbane"), shots=64, on_status=tell)
"""


@pytest.fixture
def authority(ibm: local.Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the certificate of the service's authority, which all programs trust, as a user has it."""
    file = tmp_path / "authority.pem"
    file.write_text(ibm.authority())
    for name in ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    return file


def credentials(ibm: local.Service, way: str, port: int = 0, **changes: Any) -> Credentials:
    """The service over TLS, directly or through a proxy's tunnel, with a good token."""
    port = port or ibm.port
    directly = f"https://127.0.0.1:{port}"
    urls = {"direct": (directly, directly), "proxy": ("https://localqpu.test", "https://iam.localqpu.test")}
    endpoint, iam = urls[way]
    proxies = {"https": f"http://127.0.0.1:{port}"} if way == "proxy" else None
    fields = {"endpoint": f"{endpoint}/api/v1", "iam_url": iam, "api_key": "key", "proxies": proxies}
    fields |= {"instance": crn(INSTANCE)}
    plain = Token(Credentials(**fields | {"iam_url": ibm.url, "proxies": None}))
    fields |= {"token": plain.header().removeprefix("Bearer "), "token_expires": time.time() + 3600}
    plain._connections.open().close()
    return Credentials(**fields | changes)


@contextlib.contextmanager
def account(*arguments: Any, **changes: Any) -> Iterator[tuple[Remote, Token]]:
    """How a watcher reaches the service."""
    there, token = watcher_remote(credentials(*arguments, **changes))
    yield there, token
    with contextlib.suppress(Transient):
        there.open().close()


WAYS = pytest.mark.parametrize("way", ["direct", "proxy"])


# Warm


@WAYS
def test_the_first_request_goes_over_the_warm_connection(ibm: local.Service, authority: Path, way: str) -> None:
    with account(ibm, way) as (there, _):
        way_there = there._connections
        before = ibm.cursor()
        assert way_there.connect(opens=False) is None
        descriptor = way_there.connect(opens=True)
        assert descriptor is not None
        # A server sends its session tickets after the handshake. For urllib3 alone, they are a connection's end.
        assert select.select([descriptor], [], [], DEADLINE)[0]
        assert way_there.connect(opens=False) == descriptor
        there.usage()
        assert way_there.connect(opens=False) == descriptor
        tunnels = [entry.connection for entry in ibm.journal(after=before, method="CONNECT")]
        [asked] = ibm.journal(after=before, path="/api/v1/*")
        assert tunnels == ([asked.connection] if way == "proxy" else [])


KEEPS_WARM = """
import json, sys
from qx_supervisor.watcher import connections
from qx_supervisor.watcher.ledger import Ledger
from qx_supervisor.watcher.ledger.postgres import SharedLedger
from qx_supervisor.watcher.protocol import Credentials
from qx_supervisor.watcher.remote import watcher_remote
connections.SHORTEST_PAUSE = 0.0
there, _ = watcher_remote(Credentials.from_json(json.loads(sys.stdin.readline())))
there.keep_warm()
sys.stdin.readline()
there.usage()
"""


def test_a_connection_that_the_service_closes_is_opened_again(
    ibm: local.Service, authority: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    with Gate(ibm.port) as gate:
        how = credentials(ibm, "proxy", gate.port).to_json()
        before = ibm.cursor()
        program = child(KEEPS_WARM)
        assert program.stdin is not None
        print(json.dumps(how), file=program.stdin, flush=True)
        ibm.wait_for("CONNECT", "*", after=before)
        gate.close()
        gate.open()
        tunnels = ibm.wait_for("CONNECT", "*", after=before, count=2)
        program.communicate("\n", DEADLINE)
        assert program.returncode == 0
        [asked] = ibm.journal(after=before, path="/api/v1/*")
        # The first may have been closed before the handshake was over, and then there was a third.
        assert asked.connection in [tunnel.connection for tunnel in ibm.journal(after=before, method="CONNECT")[1:]]
        assert tunnels[0].connection != asked.connection


def test_how_often_it_is_opened() -> None:
    """At once when it has lasted; ever more rarely where it does not last, or can't be opened."""
    opened: list[float] = []

    class There:
        is_in_use = False
        is_open = works = True

        def connect(self, *, opens: bool) -> int | None:
            if opens:
                opened.append(now)
                self.is_open = self.works
                if not self.works:
                    raise OSError
            return 7 if self.is_open else None

    there = There()
    there.is_open = False
    kept = _Kept(weakref.ref(there))  # type: ignore[arg-type]
    now = 1000.0
    kept.look(now)
    assert (opened, kept.descriptor, kept.look_at) == ([1000.0], 7, math.inf)
    now += 1  # something has arrived, and it is open still: a ticket
    kept.look(now)
    assert (opened, kept.descriptor, kept.look_at) == ([1000.0], 7, math.inf)
    now = 1000 + SHORTEST_PAUSE
    there.is_open = False
    kept.look(now)
    assert opened[1:] == [now]
    pauses = []
    for there.works in (True, True, False, False, False, False, False):
        there.is_open = False  # at once
        kept.look(now)
        assert kept.descriptor is None
        pauses.append(kept.look_at - opened[-1])
        now = kept.look_at
        kept.look(now)
        assert opened[-1] == now
    assert pauses == sorted(pauses)
    assert pauses[:3] == [SHORTEST_PAUSE, 2 * SHORTEST_PAUSE, 4 * SHORTEST_PAUSE]
    assert max(pauses) == LONGEST_PAUSE
    there.works, there.is_in_use, tries = True, True, len(opened)
    now = kept.look_at
    kept.look(now)  # a request is under way: it has a connection, and another one would be too many
    assert len(opened) == tries
    assert kept.look_at > now


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_connection_that_is_closed_as_the_cancel_is_sent(ibm: local.Service, authority: Path, phase: str) -> None:
    """The next one is opened at once; and a cancel that had reached the service is not requested again."""
    pauses: list[float] = []
    ibm.hold("queued")
    with account(ibm, "direct") as (there, token):
        body = {"program_id": "executor", "backend": "ibm_brisbane", "params": {}, "tags": []}
        url = f"https://127.0.0.1:{ibm.port}/api/v1/jobs"
        reply = there.open().post(url, json=body, headers={"Authorization": token.header()}, timeout=DEADLINE)
        job = reply.json()["id"]
        there._connections.connect(opens=True)
        ibm.scenario({"http_faults": [{"path": CANCEL, "method": "POST", "drop_connection": True, "phase": phase}]})

        def wait(seconds: float) -> bool:
            pauses.append(seconds)
            return False

        assert cancel(job, there, time.monotonic, wait) == ("cancelled", "")
    assert pauses[0] == 0.0
    assert ibm.job(job).cancel_requests == (2 if phase == "before" else 1)


# Without files


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("trusts", ["bundle", "folder", "packages", "nobody"])
@WAYS
def test_no_file_is_read_once_it_is_open(
    ibm: local.Service, authority: Path, monkeypatch: pytest.MonkeyPatch, trusts: str, way: str
) -> None:
    if trusts == "folder":
        folder = authority.parent / "authorities"
        folder.mkdir()
        authority.rename(folder / "any.pem")
        (folder / "README").write_text("no certificate")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder))
    elif trusts != "bundle":
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        monkeypatch.setattr(certifi, "where", lambda: str(authority))
    with account(ibm, way, verify=trusts != "nobody") as (there, token):
        there.open()
        shutil.rmtree(authority.parent)
        there.usage()
        there.open().close()  # whatever is open
        there.usage()
        token.renew()
    if trusts != "nobody":
        with account(ibm, way) as (another, _):  # armed later, with the same certificates
            another.usage()


def test_certificates_that_were_never_there(ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    how = credentials(ibm, "direct")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/none.pem")
    there, token = watcher_remote(how)
    for ask in (there.open, there.usage, token.renew):
        with pytest.raises(Transient, match="FileNotFoundError"):
            ask()


IN_THE_FOLDER = """
os.environ["REQUESTS_CA_BUNDLE"] = "authority.pem"
os.chdir({folder!r})
run(isa(), service().backend("ibm_brisbane"), shots=64, on_status=tell)
"""


@pytest.mark.long
def test_certificates_in_the_current_folder(ibm: local.Service, fork: Any, authority: Path) -> None:
    """The watcher is in another one."""
    ibm.hold("queued")
    driver = fork(OVER_TLS.format(port=ibm.port) + IN_THE_FOLDER.format(folder=str(authority.parent)))
    job = driver.queued()
    driver.kill()
    ibm.wait_job(job, "Cancelled")
    assert_cancelled_once(ibm, job)


def test_files_that_a_watcher_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"REQUESTS_CA_BUNDLE": "a:b.pem", "CURL_CA_BUNDLE": "", "SSL_CERT_FILE": "/c.pem", "SSL_CERT_DIR": "d:/e"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    got = detached.environment()
    assert [got[name] for name in given] == [f"{tmp_path}/a:b.pem", "", "/c.pem", f"{tmp_path}/d:/e"]


WITHOUT_CERTIFICATES = """
from qx_supervisor import WatcherError
from qx_supervisor.link import Guarded, link
from qx_supervisor.watcher.protocol import Credentials
file = os.environ["REQUESTS_CA_BUNDLE"] = os.path.realpath("bundle.pem")
how = Credentials("https://127.0.0.1:9/api/v1", "crn", "https://127.0.0.1:9", "key", token="t", token_expires=2e9)
def announce(run):
    try:
        link.announce(Guarded(run, "a", run, print), lambda **_: how)
        say("guarded", run)
    except WatcherError as error:
        say("refused", error.reason)
open(file, "w").close()
announce("early")
with open(file, "w") as out:
    out.write({certificate!r})
announce("first")
os.unlink(file)
with link._changed:
    os.kill(first := link.watcher_pid, 9)
    link._changed.wait_for(lambda: link._process is not None and link.watcher_pid != first)
say("runs", *link.inspect()["runs"])
announce("second")
link.stand_down("first")
say("over")
"""


def test_a_watcher_without_certificates_is_no_guard(ibm: local.Service, fork: Any, tmp_path: Path) -> None:
    """It acknowledges nothing new; what a driver tells again it guards all the same, for they may come back."""
    driver = fork(f"os.chdir({str(tmp_path)!r})" + WITHOUT_CERTIFICATES.format(certificate=ibm.authority()))
    refused = "the CA certificates can't be read: "
    assert " ".join(driver.line("refused ")).startswith(f"{refused}[X509: NO_CERTIFICATE_OR_CRL_FOUND]")
    assert driver.line("guarded ") == ["first"]
    assert driver.line("runs ") == ["first"]
    assert " ".join(driver.line("refused ")) == f"{refused}{tmp_path}/bundle.pem (FileNotFoundError)"
    driver.line("over")
    driver.kill()


@WAYS
def test_who_is_not_trusted_learns_nothing(
    ibm: local.Service, monkeypatch: pytest.MonkeyPatch, way: str, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_text(trustme.CA().cert_pem.bytes().decode())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(stranger))
    with account(ibm, way) as (there, token):
        before = ibm.cursor()
        for ask in (there.usage, token.renew):
            with pytest.raises(Transient, match="SSLError"):
                ask()
        assert {entry.method for entry in ibm.journal(after=before)} <= {"CONNECT"}


PACKAGES = (psutil, multiprocess, requests, urllib3, idna, certifi)


def install(package: Any, folder: Path) -> None:
    source = Path(str(package.__file__)).parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("tests"))


def environment_in(folder: Path) -> None:
    """Install there what a watcher uses; the rest of the driver's packages stays where it is."""
    for package in PACKAGES:
        install(package, folder)
    for name in ("qx_supervisor", "watcher"):
        shutil.copytree(CHECKOUT / name, folder / name, symlinks=True)


def unused(ibm: local.Service) -> set[int]:
    """The connections to the API that were opened, and on which nothing has been requested."""
    entries = ibm.journal()
    opened = {entry.connection for entry in entries if entry.path == "localqpu.test:443"}
    return opened - {entry.connection for entry in entries if entry.method != "CONNECT"}


@pytest.mark.long
@pytest.mark.parametrize("token", ["good", "renewed"])
def test_an_environment_that_is_deleted(
    ibm: local.Service, start: Any, authority: Path, tmp_path: Path, token: str
) -> None:
    """The packages, the certificates and this package are gone when the driver is killed; a connection is open."""
    folder = tmp_path / "environment"
    environment_in(folder)
    bundle = folder / "certifi" / "cacert.pem"
    authority.rename(bundle)
    ibm.hold("queued")
    if token == "renewed":
        ibm.token_lifetime(2)
    driver = start(
        OVER_TLS.format(port=ibm.port) + TELL_WATCHERS + GUARDED,
        env={**os.environ, "PYTHONPATH": str(folder), "REQUESTS_CA_BUNDLE": str(bundle)},
    )
    job = driver.queued()
    wait_until_written(driver)
    ibm.token_lifetime(3600)
    assert driver.line("installed ") == [str(folder / "qx_supervisor" / "__init__.py")]
    watcher = Process(driver.line("watcher ")[0])
    if token == "renewed":
        passed = (time.monotonic_ns() - ibm.journal(path=TOKEN)[-1].arrived) / 1e9
        time.sleep(max(0.0, 2.0 - passed))  # time itself makes the watcher's token expire
    until(lambda: unused(ibm), lambda found: found)
    before = {entry.connection for entry in ibm.journal()}
    shutil.rmtree(folder)
    driver.send(signal.SIGKILL)
    killed = time.monotonic_ns()
    [asked] = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel", answered=True)
    assert asked.status == 204
    assert asked.arrived - killed < 1e9
    assert asked.connection in before
    wait_for_end(watcher)
    driver.end()
    assert_cancelled_once(ibm, job)


@pytest.mark.long
def test_packages_in_a_folder_each(ibm: local.Service, start: Any, tmp_path: Path) -> None:
    """As in Spack, or where the system has some of them; and an older one of a package is in another's folder."""
    ibm.hold("queued")
    folders = [tmp_path / package.__name__ for package in reversed(PACKAGES)]
    for package, folder in zip(reversed(PACKAGES), folders, strict=True):
        install(package, folder)
    (tmp_path / "psutil" / "urllib3.py").write_text("raise ImportError")
    driver = start(RUN, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, CHECKOUT)))})
    job = driver.queued()
    driver.kill()
    ibm.wait_job(job, "Cancelled")
    assert_cancelled_once(ibm, job)


def test_a_watcher_without_its_packages_is_no_guard(fork: Any) -> None:
    driver = fork("""
    from qx_supervisor import WatcherError, launch
    launch._package_folders = list
    try:
        run(isa(), backend())
    except WatcherError as error:
        say("refused", error)
    """)
    said = " ".join(driver.line("refused "))
    # Another thread may import it at the same moment: what remains is then a package without it.
    assert re.search(r" the service can't be reached \((ModuleNotFoundError: requests|ImportError: watcher)\)", said)
    driver.kill()


INTERRUPTED = """
try:
    run(isa(), service().backend("ibm_brisbane"), shots=64, on_status=tell)
except Interrupted as interrupted:
    say("interrupted", interrupted.cancel)
"""


@pytest.mark.long
def test_a_driver_that_is_interrupted_cancels_over_tls(ibm: local.Service, start: Any, authority: Path) -> None:
    ibm.hold("queued")
    driver = start(OVER_TLS.format(port=ibm.port) + INTERRUPTED)
    job = driver.queued()
    driver.send(signal.SIGINT)
    assert driver.line("interrupted ") == ["confirmed"]
    assert end(driver) == 0
    assert_cancelled_once(ibm, job)


HANDED_OVER = """
from qx_supervisor.link import link
def modules():
    return set(link.inspect()["modules"])
held = submit(isa(), service().backend("ibm_brisbane"), on_status=tell)
sys.stdin.readline()
while not {"watcher.transport", "psutil"} <= (before := modules()):
    time.sleep(0.01)
assert link.hand_over(held._flight.core.run_id, 60)
sys.stdin.readline()
assert not link.inspect()["runs"]
say("later", *sorted(modules() - before))
"""


@pytest.mark.long
@pytest.mark.parametrize("ledgers", ["local", "shared"])
def test_all_modules_are_loaded_once_it_is_armed(
    ibm: local.Service, start: Any, authority: Path, state: Path, request: pytest.FixtureRequest, ledgers: str
) -> None:
    """Whatever a cancel needs: a new token, a new connection, a new connection to the database."""
    variables = {}
    if ledgers == "shared":
        postgres = request.getfixturevalue("postgres")
        variables["QX_LEDGER"] = postgres.database()
    ibm.hold("queued")
    driver = start(OVER_TLS.format(port=ibm.port) + HANDED_OVER, env={**os.environ, **variables}, stdin=subprocess.PIPE)
    job = driver.queued()
    wait_until_written(driver)
    if ledgers == "shared":
        postgres.kill()
        postgres.start()
    ibm.expire_tokens()
    once = {"path": CANCEL, "method": "POST", "times": 1}
    late = {"path": "/api/v1/jobs", "method": "GET", "status": 503, "times": 1}
    ibm.scenario({"http_faults": [{**once, "drop_connection": True}, {**once, "status": 429, "retry_after": 0}, late]})
    driver.process.stdin.write(b"\n")
    driver.process.stdin.flush()
    ibm.wait_job(job, "Cancelled")
    with Ledger.open(state) as book:
        until(book.rows, lambda rows: [row.state for row in rows] == ["cancelled"])
    if ledgers == "shared":
        with SharedLedger.open(variables["QX_LEDGER"]) as shared:
            until(shared.rows, lambda rows: [row.state for row in rows] == ["cancelled"])
    driver.process.stdin.write(b"\n")
    driver.process.stdin.flush()
    assert driver.line("later") == []
    driver.kill()
