"""Two hosts, each with a driver and its watcher: one driver killed, a link cut, a host lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hosts
import pytest
from conftest import RUN, assert_cancelled_once, wait_for_end

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


def test_a_host_is_lost(ibm, start, network):
    """Driver and watcher are gone at one time, and no other host judges what they left."""
    ibm.hold("queued")
    port = network.offer(ibm.port)
    host = network.host()
    driver = start(host.prelude(port) + RUN, wrap=host.wrap)
    job = driver.queued()
    watcher = driver.watcher()
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
