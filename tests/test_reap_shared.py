"""`reap` where a shared ledger has the runs with a key, too: another host may have come back for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from testkit.drivers import Driver, kill_both
from testkit.postgres import Server
from testkit.watchers import wait_until_written

from qx_supervisor import local, reap
from qx_supervisor.watcher.ledger import Ledger
from qx_supervisor.watcher.ledger.postgres import SharedLedger

KEYED = """
result = run(isa(), backend(), shots=64, on_status=tell, key="step", grace=0.01)
say("result", result.job_id)
"""


@pytest.fixture
def shared_url_is_set(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("QX_LEDGER", shared_url)
    monkeypatch.setenv("QX_LEASE_SECONDS", "1")
    return shared_url


def lose(driver: Driver) -> None:
    """Driver and watcher die together, when the ledgers have the job."""
    wait_until_written(driver)
    kill_both(driver)


def fates_until(wanted: str, ibm: local.Service) -> list[str]:
    """What `reap` says, again and again, for a grace may not have passed the first time."""
    said: list[str] = []
    while wanted not in said and len(said) < 50:
        said += [told.fate for told in reap(ibm.service())]
    return said


def test_what_another_host_has_taken_up_is_left_to_it(
    ibm: local.Service, fork: Any, shared_url_is_set: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ibm.hold("queued")
    first = fork(KEYED)
    job = first.queued()
    lose(first)
    with monkeypatch.context() as there:
        there.setenv("QX_STATE_DIR", str(state.with_name("another-host")))
        second = fork(KEYED)
    assert second.line("taken up again ")[0] == job
    found = [told.fate for _ in range(3) for told in reap(ibm.service())]
    assert set(found) <= {"in grace"}
    assert ibm.job(job).cancel_requests == 0
    with Ledger.open(state) as book:
        assert [row.state for row in book.rows()] == ["done"]
    ibm.hold(None)
    assert second.line("result ") == [job]
    assert second.end() == 0, second.errors


def test_what_nobody_took_up_is_cancelled_in_both(ibm: local.Service, fork: Any, shared_url_is_set: str) -> None:
    ibm.hold("queued")
    driver = fork(KEYED)
    job = driver.queued()
    lose(driver)
    assert fates_until("cancelled", ibm)[-1] == "cancelled"
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)
    with SharedLedger.open(shared_url_is_set) as book:
        assert [row.state for row in book.rows()] == ["cancelled"]


@pytest.mark.long
def test_whoever_began_to_cancel_has_died_too(ibm: local.Service, fork: Any, shared_url_is_set: str) -> None:
    """While that one's lease lasts it may be at it still; then its claim counts no more."""
    ibm.hold("queued")
    driver = fork(KEYED)
    job = driver.queued()
    lose(driver)
    with psycopg.connect(shared_url_is_set, autocommit=True) as database:
        # As its watcher does, when the grace has passed.
        gone = "jsonb_build_object('host', host, 'boot', boot, 'pid_ns', pid_ns, 'pid', watcher_pid, 'start_ticks', 1)"
        database.execute(f"UPDATE qx_runs SET state = 'pending', claimed_by = {gone}")
        lease = "UPDATE qx_holders SET lease_until = clock_timestamp() + interval '%s s'"
        database.execute(lease.replace("%s", "600"))
        assert fates_until("pending", ibm)[-1] == "pending"
        assert ibm.job(job).cancel_requests == 0
        database.execute(lease.replace("%s", "0"))
    assert fates_until("cancelled", ibm)[-1] == "cancelled"
    assert ibm.job(job).cancel_requests == 1


@pytest.mark.long
def test_while_the_database_is_away_it_is_not_touched(
    ibm: local.Service, fork: Any, shared_url_is_set: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ibm.hold("queued")
    driver = fork(KEYED)
    job = driver.queued()
    lose(driver)
    with monkeypatch.context() as away:
        away.setenv("QX_LEDGER", "postgresql://nobody@127.0.0.1:1/none")
        assert fates_until("pending", ibm)[-1] == "pending"
        away.delenv("QX_LEDGER")
        [told] = reap(ibm.service())
        assert (told.fate, "QX_LEDGER" in told.detail) == ("pending", True)
    assert ibm.job(job).cancel_requests == 0
    assert fates_until("cancelled", ibm)[-1] == "cancelled"
