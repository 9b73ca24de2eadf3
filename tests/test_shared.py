"""Drivers that write to a ledger of many hosts, too: what it says when they die, and what happens when it is away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import DEADLINE, RUN, Driver, wait_for_end
from postgres import Server

from qx_supervisor import local
from watcher.ledger.postgres import Held, SharedLedger

LEASE = 1.0


@pytest.fixture
def shared(postgres: Server, shared_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """Drivers that are started in the test write to it."""
    monkeypatch.setenv("QX_LEDGER", shared_url)
    monkeypatch.setenv("QX_LEASE_SECONDS", str(LEASE))
    made = Shared(postgres, shared_url)
    yield made
    made.close()


class Shared:
    """What a test knows of the shared ledger."""

    def __init__(self, postgres: Server, url: str) -> None:
        self.postgres = postgres
        self.url = url
        self._book: SharedLedger | None = None

    @property
    def book(self) -> SharedLedger:
        if self._book is None:
            self._book = SharedLedger.open(self.url)
        return self._book

    def wait(self, is_so: Callable[[list[Held]], object]) -> list[Held]:
        """Wait until the runs in it are as they should be; it tells nobody, so it is asked again and again."""
        end = time.monotonic() + DEADLINE
        while True:
            found = self.book.held()
            if is_so(found):
                return found
            assert time.monotonic() < end, found
            time.sleep(0.01)

    def close(self) -> None:
        if self._book is not None:
            with contextlib.suppress(Exception):
                self._book.close()
            self._book = None


def lose_host(driver: Driver) -> None:
    """Driver and watcher die together, as with their host."""
    watcher = driver.watcher()
    driver.send(signal.SIGSTOP)
    watcher.send_signal(signal.SIGKILL)
    wait_for_end(watcher)
    driver.kill()


LOGGED = "import logging\nlogging.basicConfig(level=logging.INFO, format='%(name)s %(message)s')\n"


def test_a_run_from_its_intent_to_its_end(ibm: local.Service, fork: Any, shared: Shared) -> None:
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    [held] = shared.wait(lambda found: found and found[0].row.jobs)
    assert held.judgement == "live"
    assert (held.row.pid, list(held.row.jobs), held.holder.host) == (driver.pid, [job], os.uname().nodename)
    ibm.hold(None)
    assert driver.end() == 0, driver.errors
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    assert held.row.state == "done"


def test_a_driver_is_killed_and_its_watcher_says_so(ibm: local.Service, fork: Any, shared: Shared) -> None:
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    assert (held.row.state, dict(held.row.jobs)) == ("cancelled", {job: "cancelled"})
    assert held.row.let_go_at is not None


# Reapers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def reaper(ibm: local.Service, shared: Shared, start: Any) -> Callable[..., Driver]:
    """Starts reapers, with the embedded service for an account."""

    def begin(*options: str, **how: Any) -> Driver:
        code = f"""
        import qx_supervisor.service as services
        services.every_service = lambda: [service()]
        from qx_supervisor.cli import main
        main(["reaper", *{list(options)!r}])
        """
        return start(code, stderr=subprocess.STDOUT, **how)

    return begin


def test_a_host_is_lost_and_a_reaper_cancels_once(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.jobs and found[0].row.answered)
    lose_host(driver)
    reaping = reaper()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    assert (held.row.state, dict(held.row.jobs), held.holder.kind) == ("cancelled", {job: "cancelled"}, "reaper")
    reaping.send(signal.SIGTERM)
    assert reaping.end() == 0, reaping.lines
    assert ibm.job(job).cancel_requests == 1


def test_two_reapers_race(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    ibm.hold("queued")
    drivers = [fork(RUN) for _ in range(3)]
    jobs = [driver.queued() for driver in drivers]
    shared.wait(lambda found: len(found) == 3 and all(each.row.answered for each in found))
    reapers = [reaper(), reaper(), reaper()]
    for each in reapers:
        each.line("")  # it reaps
    for driver in drivers:
        lose_host(driver)
    shared.wait(lambda found: all(each.judgement == "final" for each in found))
    for each in reapers:
        each.send(signal.SIGTERM)
        assert each.end() == 0
    assert [ibm.job(job).cancel_requests for job in jobs] == [1] * 3


def test_what_lives_is_never_reaped(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    reaping = reaper("--once")
    assert reaping.end() == 0, reaping.lines
    assert ibm.job(job).cancel_requests == 0
    ibm.hold(None)
    assert driver.end() == 0
