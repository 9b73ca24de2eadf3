"""Two hosts, each with a driver and its watcher: one driver killed, a link cut, a host lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit import hosts
from testkit.drivers import RUN, Driver, assert_cancelled_once
from testkit.processes import DEADLINE, wait_for_end
from testkit.watchers import wait_until_written

from qx_supervisor import reap

pytestmark = pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not())


CONNECT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as connection:
    print(connection.getsockname()[0])
"""


@pytest.fixture
def network() -> Iterator[hosts.Network]:
    with hosts.Network() as made:
        yield made


@pytest.mark.long
def test_a_driver_on_one_host_is_killed(ibm, start, network):
    """Its watcher, on the same host, cancels its job, and no other's."""
    ibm.hold("queued")
    port = network.offer(ibm.port)
    a, b = network.host(), network.host()
    here, there = (start(host.prelude(port) + RUN, wrap=host.wrap) for host in (a, b))
    job, other = here.queued(), there.queued()
    watchers = [here.watcher(), there.watcher()]
    assert set(a.pids()) == {here.pid, watchers[0].pid}
    assert set(b.pids()) == {there.pid, watchers[1].pid}
    assert here.kill() == -signal.SIGKILL
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watchers[0])
    assert [each.status for each in ibm.jobs() if each.id == other] == ["Queued"]
    there.kill()
    assert ibm.wait_job(other, "Cancelled").cancel_requests == 1
    wait_for_end(watchers[1])


@pytest.mark.long
def test_a_link_is_cut_and_the_driver_killed(ibm, start, network):
    """The watcher tries in vain, and again, and cancels when the link is back."""
    ibm.hold("queued")
    port = network.offer(ibm.port)
    host = network.host()
    driver = start(host.prelude(port) + RUN, wrap=host.wrap)
    job = driver.queued()
    watcher = driver.watcher()
    with host.tries_in_vain() as seen:
        host.cut()
        assert driver.kill() == -signal.SIGKILL
        assert any("FAILED" in line for line in seen.stdout)
        assert [each.cancel_requests for each in ibm.jobs()] == [0]
        host.mend()
        assert ibm.wait_job(job, "Cancelled", timeout=60).cancel_requests == 1
        seen.terminate()
    wait_for_end(watcher)


@pytest.mark.long
def test_a_link_is_cut_and_mended_while_the_driver_lives(ibm, start, network):
    """It goes on, and nothing is cancelled."""
    ibm.hold("queued")
    port = network.offer(ibm.port)
    host = network.host()
    driver = start(f"{host.prelude(port)}say('counts', *{RUN}.counts)", wrap=host.wrap)
    driver.queued()
    watcher = driver.watcher()
    with host.tries_in_vain() as seen:
        host.cut()
        assert any("FAILED" in line for line in seen.stdout)
        host.mend()
        seen.terminate()
    ibm.hold(None)
    driver.line("counts ")
    assert driver.end() == 0, driver.errors
    wait_for_end(watcher)
    assert [(each.status, each.cancel_requests) for each in ibm.jobs()] == [("Completed", 0)]


@pytest.mark.long
def test_a_host_is_lost(ibm, start, network):
    """Driver and watcher are gone at one time, and no other host judges what they left."""
    ibm.hold("queued")
    port = network.offer(ibm.port)
    host = network.host()
    driver = start(host.prelude(port) + RUN, wrap=host.wrap)
    job = driver.queued()
    watcher = driver.watcher()
    wait_until_written(driver)
    host.kill()
    assert driver.end() == -signal.SIGKILL
    wait_for_end(watcher)
    assert host.pids() == []
    [left] = reap(ibm.service())
    assert (left.fate, left.host, left.jobs) == ("elsewhere", host.name, (job,))
    assert [each.cancel_requests for each in ibm.jobs()] == [0]
    host.mend()  # it is back, booted or not: what was there knows its own
    reaper = start(
        f"{host.prelude(port)}for reaped in reap(service()):\n    say('reaped', reaped.fate, *reaped.jobs)",
        wrap=host.wrap,
    )
    assert reaper.end() == 0, reaper.errors
    assert reaper.lines == [f"reaped cancelled {job}"]
    assert_cancelled_once(ibm, job)


REAPER = """
import qx_supervisor.service as services
services.accounts.every_service = lambda: [service()]
from qx_supervisor.cli import main
main(["reaper"])
"""


@pytest.fixture
def on(ibm, start, network, postgres, shared_url):
    """Starts a program on a host; the service, and a ledger for all hosts, are at the end of its link."""
    port, database = network.offer(ibm.port), network.offer(postgres.port)

    def begin(host: hosts.Host, code: str) -> Driver:
        url = shared_url.replace(f"127.0.0.1:{postgres.port}", f"{host.gateway}:{database}")
        return start(host.prelude(port) + code, wrap=host.wrap, env={**os.environ, "QX_LEDGER": url})

    return begin


def test_a_host_is_lost_and_another_one_reaps(ibm, network, on, shared_url, monkeypatch):
    """The ledger is a database that both reach, over their links."""
    ibm.hold("queued")
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")
    a, b = network.host(), network.host()
    driver, reaper = on(a, RUN), on(b, REAPER)
    job = driver.queued()
    watcher = driver.watcher()
    _wait_until_known(shared_url)
    a.kill()
    assert driver.end() == -signal.SIGKILL
    wait_for_end(watcher)
    assert ibm.wait_job(job, "Cancelled", timeout=60).cancel_requests == 1
    reaper.send(signal.SIGTERM)
    assert reaper.end() == 0, reaper.errors
    assert_cancelled_once(ibm, job)


KEYED = """
try:
    step = run(bell(), "ibm_brisbane", service=service(), shots=64, on_status=tell, key="step", grace=60)
    say("got", step.job_id)
except ConfigError as error:
    say("refused", error.reason)
"""


@pytest.fixture
def keyed(ibm, network, on, shared_url, monkeypatch):
    """A driver on a host holds a key, and the ledger knows of its job: host, driver, job."""
    ibm.hold("queued")
    monkeypatch.setenv("QX_LEASE_SECONDS", "3")
    host = network.host()
    driver = on(host, KEYED)
    job = driver.queued()
    _wait_until_known(shared_url)
    return host, driver, job


@pytest.mark.long
def test_a_key_is_held_by_a_driver_on_another_host(ibm, network, on, keyed):
    """That can't be seen there; its lease is renewed, and that can."""
    a, first, job = keyed
    second = on(network.host(), KEYED)
    said = " ".join(second.line("refused "))
    assert f"the key 'step' is held by process {first.pid} on {a.name}, which lives" in said
    assert second.end() == 0, second.errors
    ibm.hold(None)
    assert first.line("got ") == [job]
    assert first.end() == 0, first.errors
    assert [(each.id, each.cancel_requests) for each in ibm.jobs()] == [(job, 0)]


@pytest.mark.long
def test_a_key_is_taken_up_from_a_host_that_was_cut_off(ibm, network, on, keyed):
    """When that is back, its driver has lost the lease. The job was not cancelled, so it goes on, and both get it."""
    a, first, job = keyed
    a.cut()
    second = on(network.host(), KEYED)
    assert second.line("taken up again ")[0] == job
    a.mend()
    ibm.hold(None)
    for driver in (second, first):
        assert driver.line("got ") == [job]
        assert driver.end() == 0, driver.errors
    assert [(each.id, each.cancel_requests) for each in ibm.jobs()] == [(job, 0)]


def _wait_until_known(url: str) -> None:
    """Wait until the job of the only run is in the database, and its submission answered."""
    from qx_supervisor.watcher.ledger.postgres import SharedLedger  # needs what the extra brings

    book = SharedLedger.open(url)
    try:
        end = time.monotonic() + DEADLINE
        while not any(held.row.jobs and held.row.answered for held in book.held()):
            assert time.monotonic() < end, "the database does not hear of the job"
    finally:
        book.close()


def test_hosts_reach_each_other_and_what_is_offered_only(network, ibm):
    a, b = network.host(), network.host()
    ids = {Path("/etc/machine-id").read_text(), *(_said(host, "cat", "/etc/machine-id") for host in (a, b))}
    assert len(ids) == 3
    assert _said(a, "hostname") == "qx-host-1\n"
    port = network.offer(ibm.port)
    assert _said(a, sys.executable, "-c", CONNECT, a.gateway, str(port)) == f"{a.address}\n"
    assert _said(a, sys.executable, "-c", CONNECT, b.gateway, str(port)) == f"{a.address}\n"
    assert "refused" in _said(a, sys.executable, "-c", CONNECT, "127.0.0.1", str(ibm.port))
    assert "refused" in _said(a, sys.executable, "-c", CONNECT, b.address, str(ibm.port))


def _said(host: hosts.Host, *command: str) -> str:
    done = subprocess.run(host.wrap(list(command)), capture_output=True, text=True, check=False, timeout=60)
    return done.stdout or done.stderr
