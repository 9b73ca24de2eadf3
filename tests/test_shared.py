"""Drivers that write to a shared ledger, too: what it says when they die, and what happens when it is away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from testkit.circuits import BACKEND, ones
from testkit.client import Sampler
from testkit.drivers import LETS_GO, RUN, Driver, kill_both
from testkit.postgres import Cable, Server
from testkit.processes import until, wait_for_end

from qx_supervisor import local
from qx_supervisor.cli import main
from qx_supervisor.doctor import hosts, machine
from qx_supervisor.watcher.host_identity import HostIdentity
from qx_supervisor.watcher.ledger import Row
from qx_supervisor.watcher.ledger.postgres import Held, SharedLedger

LEASE = 1.0

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ledger.md"


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
        return until(self.book.held, is_so)

    def close(self) -> None:
        if self._book is not None:
            with contextlib.suppress(Exception):
                self._book.close()
            self._book = None


KEYED = 'run(isa(), backend(), shots=64, on_status=tell, key="step", grace=60)'

LOGGED = "import logging\nlogging.basicConfig(level=logging.INFO, format='%(name)s %(message)s')\n"


def test_a_run_from_its_intent_to_its_end(
    ibm: local.Service, fork: Any, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QX_LEASE_SECONDS", "30")  # nothing runs out here
    monkeypatch.setenv("QX_LEDGER", f"{shared.url}\n")  # as a secret has it that was made of a file
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
def reaper(ibm: local.Service, shared: Shared, start: Any, fork: Any) -> Callable[..., Driver]:
    """Starts reapers, with the embedded service for an account; what they log is on stdout."""

    def begin(*options: str, before: str = "", **how: Any) -> Driver:
        code = f"""
        os.dup2(1, 2)
        {before}
        import qx_supervisor.service as services
        services.accounts.every_service = lambda: [service()]
        from qx_supervisor.cli import main
        main(["reaper", *{list(options)!r}])
        """
        return start(code, **how) if how else fork(code)

    return begin


def lose_one(ibm: local.Service, fork: Any, shared: Shared) -> str:
    """Have a driver and its watcher die at one time, when the ledger knows of their job; returns the job."""
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.jobs and found[0].row.answered)
    kill_both(driver)
    return str(job)


@pytest.mark.long
def test_a_reaper_that_stumbles_puts_its_claim_back(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """Else nobody would look at the run again for as long as that reaper lives."""
    job = lose_one(ibm, fork, shared)
    stumbling = reaper(before="import qx_supervisor.reaper.work as work; work.resolve = lambda *_, **__: 1 // 0")
    [held] = shared.wait(lambda found: found[0].judgement == "pending")
    assert (held.row.claimed_by, ibm.job(job).cancel_requests) == (None, 0)
    stumbling.send(signal.SIGTERM)
    assert stumbling.end() == 0
    assert any("given up for now, by a fault in here" in line for line in stumbling.lines)


def test_a_host_is_lost_and_a_reaper_cancels_once(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    job = lose_one(ibm, fork, shared)
    reaping = reaper()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    assert (held.row.state, dict(held.row.jobs), held.holder.kind) == ("cancelled", {job: "cancelled"}, "reaper")
    reaping.send(signal.SIGTERM)
    assert reaping.end() == 0, reaping.lines
    assert ibm.job(job).cancel_requests == 1


@pytest.fixture
def as_the_page_says(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A role and a database, made by the statements of the documentation, under names of the test's; its URL."""
    [statements] = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    made = statements.replace(" qx", " walk").replace("'...'", "'hush'").split(";")
    with psycopg.connect(postgres.url(), autocommit=True) as database:
        for each in made[:-1]:
            database.execute(each)
    monkeypatch.setenv("QX_LEDGER", f"postgresql://walk:hush@127.0.0.1:{postgres.port}/walk")
    yield os.environ["QX_LEDGER"]
    with psycopg.connect(postgres.url(), autocommit=True) as database:
        database.execute("DROP DATABASE walk WITH (FORCE)")
        database.execute("DROP ROLE walk")


@pytest.mark.long
def test_the_steps_of_the_page(
    ibm: local.Service,
    fork: Any,
    shared: Shared,
    as_the_page_says: str,
    reaper: Callable[..., Driver],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From an empty server to a lost driver's job that is cancelled, by a role that owns one database and no more."""
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    with contextlib.closing(Shared(shared.postgres, as_the_page_says)) as walked:
        walked.wait(lambda found: found and found[0].row.answered)
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["ps", "--all-hosts"])
        assert f"{os.uname().nodename}:{driver.pid}" in capsys.readouterr().out
        kill_both(driver)
        walked.wait(lambda found: found[0].judgement == "orphan")
        once = reaper("--once")
        assert once.end() == 0, once.lines
        assert ibm.job(job).cancel_requests == 1
        [held] = walked.book.held()
        assert (held.judgement, held.row.state) == ("final", "cancelled")


@pytest.mark.long
def test_two_reapers_race(ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]) -> None:
    ibm.hold("queued")
    drivers = [fork(RUN) for _ in range(3)]
    jobs = [driver.queued() for driver in drivers]
    shared.wait(lambda found: len(found) == 3 and all(each.row.answered for each in found))
    reapers = [reaper(), reaper(), reaper()]
    for each in reapers:
        each.line("")  # it reaps
    for driver in drivers:
        kill_both(driver)
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


@pytest.mark.parametrize("comes_back", [False, True])
@pytest.mark.long
def test_a_reaper_that_stands_still_in_the_middle_is_followed_by_another(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver], comes_back: bool
) -> None:
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs/*/cancel", "delay_seconds": 5.0, "phase": "after"}]})
    job = lose_one(ibm, fork, shared)
    first = reaper()
    ibm.wait_for("POST", "*/cancel")
    first.send(signal.SIGSTOP)
    second = reaper()
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    if comes_back:  # what it would write now is refused
        first.send(signal.SIGCONT)
        first.send(signal.SIGTERM)
        assert first.end() == 0
    else:
        first.kill()
    second.send(signal.SIGTERM)
    assert second.end() == 0
    assert ibm.job(job).status == "Cancelled"
    assert ibm.job(job).cancel_requests == 1  # the second one has looked first
    assert replace(shared.book.held()[0].row, lease_until=0.0) == replace(held.row, lease_until=0.0)
    assert (held.row.state, held.row.epoch, dict(held.row.jobs)) == ("cancelled", 3, {job: "cancelled"})


@pytest.mark.long
def test_a_reaper_says_that_it_has_cancelled_and_what_that_cost(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    ibm.tell(qpu_seconds=7.5)
    ibm.hold("running")
    driver = fork(RUN)
    driver.line("running ")
    shared.wait(lambda found: found and found[0].row.jobs and found[0].row.answered)
    kill_both(driver)
    shared.wait(lambda found: found[0].judgement == "orphan")
    once = reaper("--once")
    assert once.end() == 0, once.lines
    [held] = shared.book.held()
    row = held.row
    assert (row.outcome, row.ended_by, row.backend, row.charged) == ("cancelled", "reaper", "ibm_brisbane", 7.5)


@pytest.mark.long
def test_a_driver_that_is_dead_is_ending_in_the_list_of_all_hosts(
    ibm: local.Service, fork: Any, shared: Shared, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QX_LEASE_SECONDS", "30")  # nothing runs out here
    ibm.hold("queued", cancel_lag=3600.0)
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    driver.kill()
    ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
    shared.wait(lambda found: found[0].judgement == "ending")
    main(["ps", "--all-hosts", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["holder"]["kind"]) == ("ending", "watcher")
    ibm.hold(None, cancel_lag=0.0)
    ibm.service().job(job).cancel()
    wait_for_end(watcher)
    [held] = shared.book.held()
    assert (held.row.outcome, held.row.ended_by) == ("cancelled", "watcher")


@pytest.mark.long
def test_a_reaper_stops_cleanly_in_the_middle(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """The service can't be asked: what is claimed is released at once, for the next reaper."""
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs/*/cancel", "method": "POST", "status": 503, "times": 1000}]})
    kill_both(driver)
    reaping = reaper()
    ibm.wait_for("POST", "*/cancel")
    reaping.send(signal.SIGINT)
    assert reaping.end() == 0, reaping.lines
    [held] = shared.book.held()
    assert (held.judgement, held.row.claimed_by) == ("orphan", None)
    ibm.scenario({})
    once = reaper("--once")
    assert once.end() == 0, once.lines
    assert ibm.job(job).status == "Cancelled"


def test_the_id_was_not_known_on_a_host_that_is_lost(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """Its POST makes a job after the death: that is found by its tag, for as long as one may turn up."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "delay_seconds": 1.0}]})
    driver = fork(RUN)
    ibm.wait_for("POST", "/api/v1/jobs")
    kill_both(driver)
    ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    [job] = ibm.jobs()
    reaping = reaper()
    assert ibm.wait_job(job.id, "Cancelled").cancel_requests == 1
    shared.wait(lambda found: found[0].judgement == "final")
    reaping.send(signal.SIGTERM)
    assert reaping.end() == 0


@pytest.mark.long
def test_another_account_is_left_alone(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    job = lose_one(ibm, fork, shared)
    with psycopg.connect(shared.url, autocommit=True) as database:
        database.execute("UPDATE qx_runs SET instance = 'crn:v1:another'")
    shared.wait(lambda found: found[0].judgement == "orphan")
    reaping = reaper()
    while "another account" not in " ".join(reaping.line("")):
        pass
    reaping.send(signal.SIGTERM)
    assert reaping.end() == 0
    assert sum("another account" in line for line in reaping.lines) == 1
    assert ibm.job(job).cancel_requests == 0


def test_metrics(ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    reaping = reaper("--metrics", str(port))
    reaping.line("")
    kill_both(driver)
    shared.wait(lambda found: found[0].judgement == "final")
    said = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    reaping.send(signal.SIGTERM)
    assert reaping.end() == 0
    assert ibm.job(job).status == "Cancelled"
    numbers = dict(line.rsplit(" ", 1) for line in said.splitlines() if not line.startswith("#"))
    assert numbers["qx_database_up"] == "1.0"
    assert numbers["qx_leases_claimed_total"] == "1.0"
    assert numbers["qx_jobs_cancelled_total"] == "1.0"
    assert float(numbers["qx_claim_seconds_count"]) > 0


# The database is away ---------------------------------------------------------------------------------------------


def test_the_database_is_killed_in_mid_run(ibm: local.Service, fork: Any, shared: Shared) -> None:
    """One warning, and the run returns its result; what it came to is in the ledger when that is back."""
    ibm.hold("queued")
    driver = fork(LOGGED + RUN + '\nsay("result")\nsignal.pause()')
    driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    shared.close()
    shared.postgres.kill()
    try:
        ibm.hold(None)
        driver.line("result")
    finally:
        shared.postgres.start()
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    assert held.row.state == "done"
    driver.kill()
    assert driver.errors.decode().count("the shared ledger is away") == 1


@pytest.mark.long
def test_the_database_was_restarted_while_nobody_asked_it(ibm: local.Service, fork: Any, shared: Shared) -> None:
    """The idle connection is broken. That is nothing to warn of, and the next run is written all the same."""
    driver = fork(
        f"""
        import logging
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
        {RUN}
        say("idle", link.inspect()["pss_kb"])
        signal.sigwait({{signal.SIGUSR1}})
        {RUN}
        """.replace("import logging\n", "import logging\n        from qx_supervisor.link import link\n", 1)
    )
    driver.line("idle")
    shared.wait(lambda found: found and found[0].row.state == "done")
    shared.close()
    shared.postgres.stop()
    shared.postgres.start()
    driver.send(signal.SIGUSR1)
    assert driver.end() == 0, driver.errors
    shared.wait(lambda found: [each.row.state for each in found] == ["done", "done"])
    assert "shared ledger" not in driver.errors.decode()


@pytest.mark.long
def test_a_key_is_taken_up_while_the_database_is_away(ibm: local.Service, fork: Any, shared: Shared) -> None:
    """On the same machine, whose own ledger knows of it. The database hears of all that when it is back."""
    ibm.hold("queued")
    first = fork(LOGGED + KEYED)
    job = first.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    shared.close()
    shared.postgres.kill()
    try:
        first.kill()
        second = fork(f"{LOGGED}say('counts', *{KEYED}.counts)")
        assert second.line("taken up again ")[0] == job
        ibm.hold(None)
        second.line("counts ")
    finally:
        shared.postgres.start()
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    assert (held.row.key, held.row.state, dict(held.row.jobs).keys()) == ("step", "done", {job})
    assert second.end() == 0, second.errors
    assert second.errors.decode().count("the shared ledger is away") == 1
    assert [(each.id, each.cancel_requests) for each in ibm.jobs()] == [(job, 0)]


@pytest.mark.long
def test_a_new_key_while_the_database_is_away(
    ibm: local.Service, fork: Any, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs a warning, and not the run."""
    shared.postgres.kill()
    try:
        driver = fork(f"{LOGGED}say('counts', *{KEYED}.counts)\nsignal.pause()")
        driver.line("counts ")
    finally:
        shared.postgres.start()
    [held] = shared.wait(lambda found: found and found[0].judgement == "final")
    assert (held.row.key, held.row.state) == ("step", "done")
    driver.kill()
    assert driver.errors.decode().count("the shared ledger is away") == 1
    assert [each.cancel_requests for each in ibm.jobs()] == [0]


@pytest.mark.parametrize("first", ["driver", "watcher"])
@pytest.mark.short_only("driver")
def test_no_database_from_the_beginning(
    ibm: local.Service, fork: Any, shared: Shared, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Its watcher waits for the database until a SIGTERM comes, whenever it comes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("QX_LEDGER", f"postgresql://me:hush@127.0.0.1:{port}/x")
    driver = fork(f"{LOGGED}\n{RUN}\n{RUN}\nsay('result')\nsignal.pause()")
    driver.line("result")
    watcher = driver.watcher()
    if first == "watcher":
        watcher.terminate()
        wait_for_end(watcher)
        driver.kill()
    else:
        driver.kill()
        watcher.terminate()
        wait_for_end(watcher)
    said = driver.errors.decode()
    assert said.count("the shared ledger is away") == 1
    assert "the connection is refused" in said
    assert "hush" not in said


@pytest.mark.long
def test_a_database_that_does_not_answer_holds_up_one_run_for_a_second(
    ibm: local.Service, fork: Any, shared: Shared
) -> None:
    """Its packets go nowhere. The first announcement waits a second for it, and the next ones do not."""
    cable = Cable(shared.postgres.port)
    os.environ["QX_LEDGER"] = cable.leads_to(shared.url)  # the fixture's monkeypatch puts it back
    try:
        driver = fork(
            LOGGED
            + f"""
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
{RUN}
say("ready")
signal.sigwait({{signal.SIGUSR1}})
for number in range(4):
    began = time.monotonic()
    run(isa(), backend(), shots=16)
    say("took", time.monotonic() - began)
"""
        )
        driver.line("ready")
        watcher = driver.watcher()
        cable.cut()
        driver.send(signal.SIGUSR1)
        took = [float(driver.line("took ")[0]) for _ in range(4)]
        assert driver.end() == 0, driver.errors
        assert took[0] - min(took) < 15.0  # and not for as long as the network would
        assert driver.errors.decode().count("the shared ledger is away") == 1
        cable.mend()
        shared.wait(lambda found: len(found) == 5 and all(each.judgement == "final" for each in found))
        wait_for_end(watcher)  # it has to hear, over the cable, that all is written
    finally:
        cable.close()


TOLD_FIRST = """
from qx_supervisor.flight.conclusion import Conclusion
told = threading.Event()
class Heard(logging.Handler):
    def emit(self, record):
        if "lease lost" in record.getMessage():
            told.set()
logging.getLogger("qx_supervisor").addHandler(Heard())
def conclude_when_told(self, conclude=Conclusion.conclude):
    assert told.wait(60)
    conclude(self)
Conclusion.conclude = conclude_when_told
"""
"""The lines that have a driver hear of its lost lease before it sees what became of its job: either may come first."""


def test_a_host_is_cut_off_and_comes_back(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """Its lease runs out and a reaper cancels. Its driver is told so, and who did it."""
    cable = Cable(shared.postgres.port)
    os.environ["QX_LEDGER"] = cable.leads_to(shared.url)
    try:
        ibm.hold("queued")
        trying = RUN.replace("run(", "try_run(")
        driver = fork(f'{LOGGED}{TOLD_FIRST}outcome = {trying}\nsay("outcome", repr(outcome.error))')
        job = driver.queued()
        shared.wait(lambda found: found and found[0].row.answered)
        watcher = driver.watcher()
        os.environ["QX_LEDGER"] = shared.url
        reaping = reaper()
        cable.cut()
        assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
        shared.wait(lambda found: found[0].judgement == "final")
        cable.mend()
        said = " ".join(driver.line("outcome "))
        assert driver.end() == 0, driver.errors
        assert "JobCancelled" in said
        assert "this host had lost its lease on it: its lease in the shared ledger ran out, and a reaper " in said
        assert f"has taken it (its pid is {reaping.pid} on {os.uname().nodename})" in said
        reaping.send(signal.SIGTERM)
        assert reaping.end() == 0
        [held] = shared.book.held()
        assert (held.row.state, held.holder.kind) == ("cancelled", "reaper")  # and not what the old host would write
        assert ibm.job(job).cancel_requests == 1
        wait_for_end(watcher)
    finally:
        cable.close()


@pytest.mark.parametrize("key", ["step", None])
@pytest.mark.short_only("step")
def test_a_lease_that_is_lost_before_the_submission(
    ibm: local.Service, fork: Any, shared: Shared, key: str | None
) -> None:
    """While it had to wait. With a key nothing is submitted, for another driver may have; without one it is guarded."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"method": "POST", "path": "/api/v1/jobs", "status": 429, "times": 1}]})
    driver = fork(
        f"""
        from qx_supervisor.flight.core import Core
        lost = threading.Event()
        Core.sleep = lambda self, seconds: lost.wait()
        def note(status):
            say(status.state, status.job_id)
            if "lease lost" in status.detail:
                lost.set()
        try:
            run(isa(), backend(), on_status=note, panel=None, key={key!r})
        except SubmitError as error:
            say("refused", error.reason)
        """
    )
    driver.line("rate limited, waiting ")
    shared.wait(lambda found: found)
    shared.book.renew()
    with psycopg.connect(shared.url, autocommit=True) as database:
        taken = "UPDATE qx_runs SET held_by = %s, holder = 'another', epoch = epoch + 1"
        database.execute(taken, (shared.book.id,))
        database.execute("UPDATE qx_holders SET lease_until = clock_timestamp() - interval '1 s'")
    if key is not None:
        said = " ".join(driver.line("refused "))
        assert "not submitted here: its lease in the shared ledger ran out, and another driver has taken it" in said
        assert driver.end() == 0, driver.errors
        assert ibm.jobs() == []
        return
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
def test_a_lease_that_ran_out_and_that_nobody_took_goes_on(ibm: local.Service, fork: Any, shared: Shared) -> None:
    cable = Cable(shared.postgres.port)
    os.environ["QX_LEDGER"] = cable.leads_to(shared.url)
    try:
        ibm.hold("queued")
        driver = fork(LOGGED + RUN)
        driver.queued()
        shared.wait(lambda found: found and found[0].row.answered)
        watcher = driver.watcher()
        cable.cut()
        shared.wait(lambda found: found[0].judgement == "orphan")
        cable.mend()
        shared.wait(lambda found: found[0].judgement == "live")
        ibm.hold(None)
        assert driver.end() == 0, driver.errors
        shared.wait(lambda found: found[0].row.state == "done")
        assert "lost" not in driver.errors.decode()
        wait_for_end(watcher)
    finally:
        cable.close()


@pytest.mark.long
def test_a_database_that_was_away_costs_no_living_driver_its_job(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is back, all leases have run out. A reaper that is there already waits until they can be renewed."""
    monkeypatch.setenv("QX_LEASE_SECONDS", "3")  # two of these seconds are for a slow machine
    ibm.hold("queued")
    drivers = [fork(LOGGED + RUN) for _ in range(3)]
    jobs = [driver.queued() for driver in drivers]
    shared.wait(lambda found: len(found) == 3 and all(each.row.answered for each in found))
    reaping = reaper()
    reaping.line("")
    for is_frozen in (False, True):
        shared.close()
        if is_frozen:
            shared.postgres.freeze()
        else:
            shared.postgres.kill()
        ended = time.monotonic() + 4.0  # longer than a lease, and less than an answer may take
        while time.monotonic() < ended:  # time must pass here: it is what makes leases run out
            time.sleep(0.1)
        if is_frozen:
            shared.postgres.thaw()
        else:
            shared.postgres.start()
        shared.wait(lambda found: all(each.judgement == "live" for each in found))
    assert [ibm.job(job).cancel_requests for job in jobs] == [0] * 3
    reaping.send(signal.SIGTERM)
    assert reaping.end() == 0
    assert not [line for line in reaping.lines if "claimed" in line]
    ibm.hold(None)
    for driver in drivers:
        assert driver.end() == 0, driver.errors
    shared.wait(lambda found: all(each.row.state == "done" for each in found))


@pytest.mark.long
def test_a_job_that_was_let_go_while_the_database_was_away(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """The driver is gone by then. Its watcher stays until the ledger knows: else a reaper would cancel the job."""
    ibm.hold("queued")
    driver = fork(LETS_GO)
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    watcher = driver.watcher()
    shared.close()
    shared.postgres.kill()
    try:
        driver.send(signal.SIGUSR1)
        assert driver.end() == 0, driver.errors
        assert watcher.is_running()
    finally:
        shared.postgres.start()
    reaping = reaper("--once")
    assert reaping.end() == 0, reaping.lines
    shared.wait(lambda found: found[0].row.state == "done")
    wait_for_end(watcher)
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_a_watcher_that_was_told_to_leave_writes_what_it_owes(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """Its driver lives on, says goodbye after an idle minute, here after a moment, and leaves it the time."""
    ibm.hold("queued")
    driver = fork(
        f"""
from qx_supervisor import link as links
links.LINGER_SECONDS = 0.2
{LETS_GO}
with links.link._changed:
    links.link._changed.wait_for(lambda: links.link.watcher_pid is None)
say("alone")
signal.pause()
        """
    )
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    watcher = driver.watcher()
    shared.close()
    shared.postgres.kill()
    try:
        driver.send(signal.SIGUSR1)
        driver.line("alone")
    finally:
        shared.postgres.start()
    wait_for_end(watcher)
    [held] = shared.book.held()
    assert (held.row.state, held.row.outcome) == ("done", "detached")
    driver.kill()
    assert reaper("--once").end() == 0
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_a_job_that_was_let_go_while_there_was_no_watcher(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """Nobody could be told, so the driver itself has to write it down, here too."""
    ibm.hold("queued")
    driver = fork(LETS_GO + "os._exit(0)")
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    watcher = driver.watcher()
    driver.send(signal.SIGSTOP)
    watcher.send_signal(signal.SIGKILL)
    wait_for_end(watcher)
    driver.send(signal.SIGUSR1)
    driver.send(signal.SIGCONT)
    assert driver.end() == 0
    assert reaper("--once").end() == 0
    assert ibm.job(job).cancel_requests == 0
    [held] = shared.book.held()
    assert held.row.state == "done"


@pytest.mark.long
def test_a_job_that_was_let_go_just_before_its_host_was_lost(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    """The watcher, which is stopped here, could not write it down."""
    ibm.hold("queued")
    driver = fork(LETS_GO + 'say("detached")\nsignal.pause()')
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    driver.watcher().suspend()
    driver.send(signal.SIGUSR1)
    driver.line("detached")
    kill_both(driver)
    assert reaper("--once").end() == 0
    assert ibm.job(job).cancel_requests == 0
    [held] = shared.book.held()
    assert (held.row.state, held.row.outcome) == ("done", "detached")


# Keys, clocks, secrets --------------------------------------------------------------------------------------------


def test_another_host_takes_a_key_up(
    ibm: local.Service, fork: Any, shared: Shared, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state directories are two, as two hosts' are: only the shared ledger knows of both."""
    ibm.hold("queued")
    first = fork(KEYED)
    job = first.queued()
    first.kill()
    shared.wait(lambda found: found and found[0].judgement == "waiting")
    monkeypatch.setenv("QX_STATE_DIR", str(state.with_name("another-host")))
    second = fork(KEYED + '\nsay("result")')
    assert second.queued() == job
    monkeypatch.undo()
    ibm.hold(None)
    second.line("result")
    assert second.end() == 0, second.errors
    assert [each.id for each in ibm.jobs()] == [job]
    assert ibm.job(job).cancel_requests == 0


ATTACHED = """
try:
    attached = attach({job!r}, service=service(), on_status=tell)
    say("attached it", attached.job_id)
    attached.result()
except QxError as error:
    say("refused", type(error).__name__, error)
"""

HOLDS_STILL = """
from qx_supervisor.flight import attachment
from qx_supervisor.flight.submission import Submission
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
step = {where}
def hold_still(*given, **named):
    say("holds still")
    signal.sigwait({{signal.SIGUSR1}})
    step(*given, **named)
{where} = hold_still
"""


@pytest.mark.long
def test_a_job_that_another_host_attaches_at_the_same_moment_is_left_to_it(
    ibm: local.Service, fork: Any, shared: Shared, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QX_LEASE_SECONDS", "30")  # nothing runs out here
    ibm.hold("queued")
    assert not shared.book.held()  # its tables are there
    job = Sampler(mode=service.backend(BACKEND)).run([ones()], shots=16).job_id()
    driver = fork(HOLDS_STILL.format(where="Submission.announce") + ATTACHED.format(job=job))
    driver.line("holds still")  # it has looked, and nobody had the job
    there = HostIdentity("", "there", "boot-there", 1)
    with SharedLedger.open(shared.url, where=there) as other:
        other.renew()
        other.write(Row(run="theirs", host_identity=there, pid=7, start_ticks=70, jobs={job: ""}))
        driver.send(signal.SIGUSR1)
        said = " ".join(driver.line("refused "))
        assert said.startswith(f"ConfigError job {job} is guarded by process 7 on there, which lives, ")
    driver.end()
    [ours] = [held.row for held in shared.wait(lambda found: len(found) > 1) if held.row.run != "theirs"]
    assert ours.state == "done"
    assert ibm.job(job).cancel_requests == 0


@pytest.mark.long
def test_other_hosts_see_that_a_job_is_attached_before_it_counts_as_such(
    ibm: local.Service, fork: Any, shared: Shared, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QX_LEASE_SECONDS", "30")
    ibm.hold("queued")
    assert not shared.book.held()  # its tables are there
    job = Sampler(mode=service.backend(BACKEND)).run([ones()], shots=16).job_id()
    driver = fork(HOLDS_STILL.format(where="attachment._take") + ATTACHED.format(job=job))
    driver.line("holds still")
    [held] = shared.book.held()
    assert (held.row.jobs, held.judgement) == ({job: ""}, "live")
    driver.send(signal.SIGUSR1)
    driver.line("attached it ")
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    [held] = shared.wait(lambda found: found[0].judgement == "final")
    assert (held.row.state, held.row.jobs) == ("cancelled", {job: "cancelled"})


def test_the_grace_passes_and_nobody_came(ibm: local.Service, fork: Any, shared: Shared) -> None:
    ibm.hold("queued")
    driver = fork(KEYED.replace("grace=60", "grace=0.5"))
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    shared.wait(lambda found: found[0].row.state == "cancelled")


@pytest.mark.long
def test_a_lost_hosts_grace_is_waited_for(
    ibm: local.Service, fork: Any, shared: Shared, reaper: Callable[..., Driver]
) -> None:
    ibm.hold("queued")
    driver = fork(KEYED)
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    kill_both(driver)
    shared.wait(lambda found: found[0].judgement == "waiting")
    assert reaper("--once").end() == 0
    assert ibm.job(job).cancel_requests == 0
    with psycopg.connect(shared.url, autocommit=True) as database:
        database.execute("UPDATE qx_runs SET grace = 0")
    assert reaper("--once").end() == 0
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_no_driver_package_for_it(ibm: local.Service, fork: Any, shared: Shared) -> None:
    driver = fork(
        f"""
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name == "psycopg" else find(name, *more)
        try:
            {RUN}
        except WatcherError as error:
            say("refused", error.reason)
        """
    )
    assert "pip install 'qx-supervisor[postgres]' (in a checkout" in " ".join(driver.line("refused "))
    assert driver.end() == 0
    assert ibm.jobs() == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("QX_LEDGER", "mysql://me:hush@there/x", "QX_LEDGER must begin with postgresql://"),
        ("QX_LEASE_SECONDS", "soon", "QX_LEASE_SECONDS is 'soon'"),
        ("QX_LEASE_SECONDS", "0", "QX_LEASE_SECONDS is '0'"),
    ],
)
@pytest.mark.short_only("QX_LEASE_SECONDS-soon*")
def test_a_setting_that_can_not_be(
    ibm: local.Service, fork: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    driver = fork(f"try:\n    {RUN}\nexcept WatcherError as error:\n    say('refused', error.reason)")
    assert says in " ".join(driver.line("refused "))
    assert driver.end() == 0
    assert "hush" not in " ".join(driver.lines)
    assert ibm.jobs() == []


def test_a_password_is_not_taken_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("postgresql://me:hush@there/x", "postgresql://there/x?password=hush"):
        with pytest.raises(SystemExit) as caught:
            main(["reaper", "--ledger", url])
        assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "set QX_LEDGER instead" in said
    assert "hush" not in said


@pytest.mark.long
def test_a_password_from_the_users_own_file(
    ibm: local.Service,
    fork: Any,
    shared: Shared,
    reaper: Callable[..., Driver],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Then the URL has none, and may be on a command line."""
    file = tmp_path / ".pgpass"
    file.write_text(f"127.0.0.1:{shared.postgres.port}:*:*:{shared.postgres.password}\n")
    file.chmod(0o600)
    bare = shared.url.replace(f":{shared.postgres.password}@", "@")
    assert bare != shared.url
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QX_LEDGER", bare)
    job = lose_one(ibm, fork, shared)
    shared.wait(lambda found: found[0].judgement == "orphan")
    monkeypatch.setenv("QX_LEDGER", "")
    main(["ps", "--all-hosts", "--ledger", bare], standalone_mode=False)
    assert job in capsys.readouterr().out
    monkeypatch.setenv("QX_LEDGER", "")
    assert reaper("--once", "--ledger", bare).end() == 0
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_ps_of_all_hosts_and_doctor(
    ibm: local.Service, fork: Any, shared: Shared, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QX_LEASE_SECONDS", "30")  # nothing runs out here
    ibm.hold("queued")
    driver = fork(KEYED)
    job = driver.queued()
    shared.wait(lambda found: found and found[0].row.answered)
    main(["ps", "--all-hosts", "--wide"], standalone_mode=False)
    header, line = capsys.readouterr().out.splitlines()
    told = dict(zip(header.split(), re.split("  +", line), strict=True))
    host = os.uname().nodename
    assert (told["STATE"], told["HOST"], told["JOB"]) == ("live", f"{host}:{driver.pid}", job)
    assert told["LEASE"].startswith(f"watcher {host}:{driver.watcher().pid}, ")
    assert "QX_LEDGER=…" in machine._settings().text
    assert shared.postgres.password not in machine._settings().text
    [finding] = hosts.check()
    assert finding.verdict == "ok"
    assert "1 leases renewed" in finding.text
    watcher = driver.watcher()
    driver.kill()
    shared.wait(lambda found: found[0].judgement == "waiting")
    main(["ps", "--all-hosts", "--json"], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["key"], told["holder"]["kind"]) == ("waiting", "step", "watcher")
    assert 0 < told["grace_left"] <= 60
    watcher.kill()  # it would wait for a minute
    wait_for_end(watcher)
