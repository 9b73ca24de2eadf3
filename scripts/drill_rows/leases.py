"""Hosts that are lost, or cut off, and a ledger in PostgreSQL that all of them have: what lives is judged by leases.

A host is a set of namespaces with a link of its own to the database and to the service; what runs on it is killed all
at one time. The reapers are on no host that is lost. A cancel that comes while a lease lasts, or its grace, counts as
false, whoever is dead: the driver is held to have given up when both are over, by the database's clock.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from testkit import hosts, postgres
from testkit.drivers import Driver
from testkit.processes import DEADLINE
from testkit.watchers import watchers_of

from qx_supervisor.watcher.ledger.postgres import SharedLedger

from . import clocks, code
from .attempt import Try
from .kills import CANCELLED
from .lane import Lane
from .row import Row, Steps

LEASE = 2.0
"""Seconds that a lease lasts in these rows: six of them at a time on two cores must be able to renew it."""

GRACE = 60.0
"""Seconds of grace for what is to be taken up: longer than that can take."""


class Site:
    """What some tries of a row share: a database, a wire with hosts on it, and reapers that are there all the while.

    Attributes:
        server: The PostgreSQL server.
    """

    def __init__(self, lane: Lane, reapers: int, *, wrong_clock: bool) -> None:
        self.server = lane.server()
        self._lane = lane
        self._url = self.server.database()
        self._book: Any = None
        lane.at_row_end.callback(self.close_book)
        self._network: hosts.Network | None = None
        self._offered: tuple[int, int] = (0, 0)
        self._reapers: list[Driver] = []
        lane.before_look.callback(self._end_reapers)
        for number in range(reapers):
            # Of several, one has the wrong clock.
            program = code.LEDGER.format(ledger=self._url, lease=LEASE) + code.REAPER
            state, is_wrong = self._folder(f"reaper{number}"), wrong_clock and number == 0
            self._reapers.append(lane.fork(program, "drill-reaper", state, wrong_clock=is_wrong))

    def _folder(self, name: str) -> Path:
        return self._lane.folder / self._url.rpartition("/")[2] / name

    # Hosts

    def host(self) -> hosts.Host:
        """A host more."""
        if self._network is None:
            self._network = self._lane.at_row_end.enter_context(hosts.Network())
            self._offered = self._network.offer(self._lane.ibm.port), self._network.offer(self.server.port)
        return self._network.host()

    def start(self, one: Try, host: hosts.Host | None, program: str, *, wrong_clock: bool = False) -> Driver:
        """Start a try's driver, on a host or, with None, beside the reapers."""
        if host is None:
            return one.start(code.LEDGER.format(ledger=self._url, lease=LEASE) + program, self._folder("here"))
        service, database = self._offered
        url = self._url.replace(f"127.0.0.1:{self.server.port}", f"{host.gateway}:{database}")
        there = code.ON_HOST.format(namespaces=host.namespaces(), port=service, gateway=host.gateway)
        ledger = code.LEDGER.format(ledger=url, lease=LEASE)
        return one.start(there + ledger + program, self._folder(host.name), wrong_clock=wrong_clock)

    # What the database says

    def wait(self, host: str, is_so: Callable[[list[Any]], object]) -> list[Any]:
        """Wait until a host's runs are as they should be. The database tells nobody; it is asked again and again."""
        end = time.monotonic() + DEADLINE
        while True:
            found = [held for held in self._opened().held() if held.row.host_identity.host == host]
            if is_so(found):
                return found
            assert time.monotonic() < end, f"the ledger has {found}"
            time.sleep(0.02)

    def wait_final(self, host: str) -> list[Any]:
        """Wait until nothing is left to be done for a host's runs; returns them."""
        return self.wait(host, lambda found: all(held.judgement == "final" for held in found))

    def lease_end(self, host: str) -> int:
        """When the last lease of a host's watchers runs out, or ran out, in ns of the monotonic clock."""
        import psycopg

        before = time.monotonic_ns()
        with psycopg.connect(self._url) as database:
            [left] = database.execute(
                "SELECT max(extract(epoch FROM lease_until - clock_timestamp())::float8) FROM qx_holders "
                "WHERE kind = 'watcher' AND host = %s",
                (host,),
            ).fetchone() or (None,)
        return before + int(1e9 * (left or 0.0))

    def _opened(self) -> Any:
        if self._book is None:
            self._book = SharedLedger.open(self._url)
        return self._book

    def close_book(self) -> None:
        """Let go of the database."""
        book, self._book = self._book, None
        if book is not None:
            book.close()

    # The end

    def _end_reapers(self) -> None:
        claims: Counter[str] = Counter()
        for reaper in self._reapers:
            reaper.send(signal.SIGTERM)
            returncode = reaper.end()
            said = reaper.errors.decode()
            if returncode != 0 or "fault in here" in said:
                self._lane.row_troubles.append(f"a reaper ended with {returncode}: {said}")
            claimed = [line for line in said.splitlines() if " claimed: its lease" in line]
            claims.update(line.split(" run ")[1].split()[0] for line in claimed)
        twice = [run for run, count in claims.items() if count > 1]
        if twice:
            self._lane.row_troubles.append(f"leases that were had twice: {twice}")


_sites: WeakKeyDictionary[Lane, Site] = WeakKeyDictionary()


def site_of(one: Try, *, reapers: int = 2, wrong_clock: bool = False) -> Site:
    """The site of a try and of those before and after it in the same row."""
    if one.lane not in _sites:
        one.lane.at_row_end.callback(_sites.pop, one.lane, None)
        _sites[one.lane] = Site(one.lane, reapers, wrong_clock=wrong_clock)
    return _sites[one.lane]


def _keyed(one: Try, grace: float) -> str:
    return code.KEYED.format(key=one.tag, grace=grace)


def lose(one: Try, host: hosts.Host, driver: Driver | None = None) -> None:
    """All that runs on a host, the driver and its watcher, ends at one time, and its link too."""
    one.gives_up()
    host.kill()
    (driver or one.driver).end()


def _wait_for_the_reapers(one: Try, site: Site, host: hosts.Host, grace: float) -> None:
    """Wait until a host's runs are dealt with; what was asked for before their lease and grace were over is false."""
    found = site.wait_final(host.name)
    one.seen.gave_up = site.lease_end(host.name) + int(1e9 * grace)
    left = [job for job in one.made() if one.ibm.job(job).status != "Cancelled"]
    if left:
        one.seen.troubles.append(f"the ledger is done with {found}, and {left} are not cancelled")


# A host is lost ----------------------------------------------------------------------------------------------------


def _host_lost(one: Try, *, wrong_clock: bool = False) -> Steps:
    site = site_of(one, wrong_clock=wrong_clock)
    host = site.host()
    grace = one.random.choice((0.0, 1.0))
    driver = site.start(one, host, _keyed(one, grace) if grace else code.DRIVE, wrong_clock=wrong_clock)
    driver.line("submitting")
    if wrong_clock:
        assert abs(float(driver.line("clock ")[0]) - time.time()) > 3000
        assert [one.lane.shows_wrong_clock(watcher) for watcher in watchers_of(driver)] == [True]
    if one.random.random() < 0.5:
        one.sleep(0.1)
    else:
        one.queued()
        one.sleep(LEASE)
    lose(one, host)
    yield LEASE + grace
    _wait_for_the_reapers(one, site, host, grace)


def _host_lost_with_a_key(one: Try, *, wrong_clock: bool = False) -> None:
    site = site_of(one, wrong_clock=wrong_clock)
    program = _keyed(one, GRACE)
    with contextlib.nullcontext() if one.random.random() < 0.5 else one.let_go():
        for losses in range(one.random.choice((1, 1, 2))):
            host = site.host()
            site.start(one, host, program, wrong_clock=wrong_clock and not losses).line("connecting")
            one.sleep(1.2 + losses * LEASE)  # from the second one on, they wait for a lease first
            lose(one, host)
    with one.let_go():
        site.start(one, site.host(), program).line("result ")
        one.driver.end()
    _executed_once(one)


def _executed_once(one: Try) -> None:
    one.seen.gave_up = None  # somebody came back each time
    made = one.made()
    if len(made) != 1:
        one.seen.troubles.append(f"the key was executed {len(made)} times: {made}")


# A host is cut off -------------------------------------------------------------------------------------------------


def _cut_off_and_back_in_time(one: Try) -> None:
    site = site_of(one)
    host = site.host()
    site.start(one, host, code.DRIVE)
    one.queued()
    one.sleep(LEASE / 3)
    host.cut()
    time.sleep(LEASE / 4)  # what was lost is sent again after twice that: a renewal is in time still
    host.mend()
    time.sleep(1.5 * LEASE)
    with one.let_go():
        one.driver.end()


def _cut_off_for_good(one: Try) -> None:
    """Until a reaper has cancelled; then it is back."""
    site = site_of(one)
    host = site.host()
    driver = site.start(one, host, code.DRIVE)
    one.queued()
    one.sleep(LEASE / 3)
    host.cut()
    _wait_for_the_reapers(one, site, host, 0.0)
    host.mend()
    _, error, *_ = driver.line("raised ")
    assert error == "JobCancelled", error
    driver.end()


def _cut_off_about_as_long_as_a_lease(one: Try) -> None:
    """Whether a reaper or the watcher is first is open, and one of the two is."""
    site = site_of(one)
    host = site.host()
    driver = site.start(one, host, code.DRIVE)
    one.queued()
    one.sleep(LEASE / 3)
    host.cut()
    time.sleep(LEASE * one.random.uniform(0.5, 1.5))
    ends = site.lease_end(host.name)
    host.mend()
    site.wait(host.name, lambda found: found and all(held.judgement in ("live", "final") for held in found))
    with one.let_go():
        driver.end()
    raised = [line.split()[2] for line in driver.lines if line.startswith("raised ")]
    if raised:
        assert raised == ["JobCancelled"], raised
        one.seen.gave_up = ends


def _cut_off_in_its_grace(one: Try) -> None:
    site = site_of(one)
    host = site.host()
    driver = site.start(one, host, _keyed(one, GRACE))
    one.queued()
    one.sleep(LEASE / 3)
    host.cut()
    time.sleep(LEASE * one.random.uniform(1.2, 2.0))
    host.mend()
    site.wait(host.name, lambda found: found and all(held.judgement == "live" for held in found))
    with one.let_go():
        driver.end()


# The database is away ----------------------------------------------------------------------------------------------


def _database_killed(one: Try) -> None:
    site = site_of(one)
    driver = site.start(one, None, code.DRIVE)
    driver.line("connecting")
    one.sleep(1.2)
    site.close_book()
    site.server.kill()
    ends_without = one.random.random() < 0.5
    try:
        with one.let_go() if ends_without else contextlib.nullcontext():
            one.sleep(2 * LEASE)
    finally:
        site.server.start()
    if not ends_without:
        time.sleep(1.5 * LEASE)
    with one.let_go():
        driver.end()


# Who is first ------------------------------------------------------------------------------------------------------


def _reapers_and_a_driver_race(one: Try) -> None:
    site = site_of(one, reapers=3)
    host = site.host()
    program = _keyed(one, 0.0)
    lost = site.start(one, host, program)
    one.queued()
    site.wait(host.name, lambda found: found and all(held.row.jobs and held.row.answered for held in found))
    first = one.made()
    driver = site.start(one, site.host(), code.READY + program)
    driver.line("ready")
    lose(one, host, lost)
    one.sleep(1.5 * LEASE)
    driver.send(signal.SIGUSR1)
    last = driver.queued()
    with one.let_go():
        driver.end()
    one.seen.gave_up = None
    made = one.made()
    if made not in (first, [*first, last]):
        one.seen.troubles.append(f"the key was executed {len(made)} times: {made}")


# Rows --------------------------------------------------------------------------------------------------------------


def no_database() -> str:
    """Why there is no PostgreSQL here, or ""."""
    try:
        postgres.programs()
    except postgres.Missing as missing:
        return str(missing)
    return ""


def no_hosts() -> str:
    """Why no host with a database can be made here, or ""."""
    return no_database() or hosts.why_not()


def no_wrong_clock() -> str:
    """Why no host can have a wrong clock here, or ""."""
    return no_hosts() or clocks.obstacle()


BY_A_REAPER = f"{CANCELLED}, by a reaper, and not before the lease and its grace are over"
TAKEN_UP = "taken up after the lease: one execution; its result is fetched; never asked to stop"
GOES_ON = "never asked to stop; the result comes"

ROWS = [
    Row("a host is lost", BY_A_REAPER, _host_lost, 2, obstacle=no_hosts),
    Row(
        "with a key: its host is lost, started again on another host, up to twice",
        TAKEN_UP,
        _host_lost_with_a_key,
        3,
        outcome="result",
        obstacle=no_hosts,
    ),
    Row(
        "a host is cut off, and back before its lease ends",
        GOES_ON,
        _cut_off_and_back_in_time,
        outcome="result",
        obstacle=no_hosts,
    ),
    Row(
        "a host is cut off, and back when its job is cancelled",
        f"{BY_A_REAPER}; JobCancelled",
        _cut_off_for_good,
        obstacle=no_hosts,
    ),
    Row(
        "a host is cut off, and back at about the end of its lease",
        f"the result comes, or JobCancelled: {CANCELLED}, and not before the lease is over",
        _cut_off_about_as_long_as_a_lease,
        obstacle=no_hosts,
    ),
    Row(
        "with a key: its host is cut off, and back in its grace",
        GOES_ON,
        _cut_off_in_its_grace,
        outcome="result",
        obstacle=no_hosts,
    ),
    Row(
        "the database is killed and started again, reapers running",
        GOES_ON,
        _database_killed,
        outcome="result",
        obstacle=no_database,
    ),
    Row(
        "with a key: three reapers and the driver, started again, race for its lease",
        "one of them has it: the job is taken up, or it is cancelled, by one request, and executed anew",
        _reapers_and_a_driver_race,
        2,
        outcome="result",
        obstacle=no_hosts,
    ),
    Row(
        "a host whose clock is an hour off is lost",
        BY_A_REAPER,
        lambda one: _host_lost(one, wrong_clock=True),
        obstacle=no_wrong_clock,
    ),
    Row(
        "with a key: a host whose clock is an hour off is lost, started again on another host",
        TAKEN_UP,
        lambda one: _host_lost_with_a_key(one, wrong_clock=True),
        outcome="result",
        obstacle=no_wrong_clock,
    ),
]
