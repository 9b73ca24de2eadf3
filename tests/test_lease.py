"""Leases: who may have a key, and that of many who want it at once exactly one gets it.

The judgement is a table. The races are between real processes on one file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testkit.ledgers import A_PLACE, Clock, line, make_row, tell

from qx_supervisor import ConfigError, backoff, resume, tags
from qx_supervisor.link import Guarded
from qx_supervisor.watcher.host_identity import HostIdentity, Process, start_ticks, this_process
from qx_supervisor.watcher.ledger import FINAL, UNFINISHED, Ledger, Row, Wish, schema
from qx_supervisor.watcher.ledger.rules import CLAIM_LEASE_SECONDS, LEASE_SECONDS, may_take
from qx_supervisor.watcher.protocol import Lease
from qx_supervisor.watcher.remote import JobState, RemoteError

Child = Callable[..., subprocess.Popen[str]]

ELSEWHERE = HostIdentity("n" * 32, "other", "another boot", 7)
REBOOTED = HostIdentity(A_PLACE.machine, A_PLACE.host, "an earlier boot", 7)
DRIVER, WATCHER, REAPER = 100, 200, 300


def a_row(**values: Any) -> Row:
    """The row of a key whose driver runs beside the judge, and which has a job."""
    given: dict[str, Any] = {
        "run": "r1",
        "host_identity": A_PLACE,
        "pid": DRIVER,
        "start_ticks": DRIVER * 10,
        "watcher_pid": WATCHER,
        "watcher_start_ticks": WATCHER * 10,
        "tag": "qxs-r1-f",
        "endpoint": "https://x.test/api/v1",
        "instance": "crn:1",
        "key": "k",
        "fingerprint": "f",
        "grace": 60.0,
        "holder": "h1",
        "jobs": {"j1": ""},
        "lease_until": 1030.0,
    }
    return Row(**given | values)


def a_wish(holder: str = "h2", *, instances: tuple[str, ...] = (), **values: Any) -> Wish:
    """What a driver wishes that has a run of its own ready."""
    new = {"run": f"run of {holder}", "pid": 7, "start_ticks": 70, "jobs": {}, "lease_until": None, "answered": True}
    return Wish(row=a_row(**{**new, "holder": holder, **values}), instances=instances)


# The judgement --------------------------------------------------------------------------------------------------


def claimed(place: HostIdentity = A_PLACE) -> Process:
    return Process(place, REAPER, REAPER * 10)


ALL = {DRIVER, WATCHER, REAPER}


@pytest.mark.parametrize(
    ("values", "running", "answer"),
    [
        # Its driver can be seen.
        ({}, ALL, "held"),
        ({}, {DRIVER}, "held"),
        ({}, {WATCHER}, "granted"),
        ({}, set(), "granted"),
        ({"lease_until": 900.0}, {DRIVER}, "held"),
        ({"lease_until": None}, {DRIVER}, "held"),
        ({"lease_until": 9000.0}, set(), "granted"),
        ({"host_identity": REBOOTED}, ALL, "granted"),
        # It can't be.
        ({"host_identity": ELSEWHERE}, ALL, "held"),
        ({"host_identity": ELSEWHERE}, set(), "held"),
        ({"host_identity": ELSEWHERE, "lease_until": 1000.0}, ALL, "granted"),
        ({"host_identity": ELSEWHERE, "lease_until": 999.0}, ALL, "granted"),
        ({"host_identity": ELSEWHERE, "lease_until": None}, ALL, "granted"),
        ({"host_identity": HostIdentity(A_PLACE.machine, A_PLACE.host, A_PLACE.boot, 8)}, set(), "held"),
        # It let go.
        ({"let_go_at": 990.0}, ALL, "granted"),
        ({"let_go_at": 990.0, "host_identity": ELSEWHERE}, ALL, "granted"),
        ({"let_go_at": 0.0}, ALL, "granted"),
        # Somebody cancels.
        ({"claimed_by": claimed()}, {REAPER}, "busy"),
        ({"claimed_by": claimed()}, ALL, "busy"),
        ({"claimed_by": claimed(), "let_go_at": 990.0}, {REAPER}, "busy"),
        ({"claimed_by": claimed(), "state": "pending"}, {REAPER}, "busy"),
        ({"claimed_by": claimed(), "lease_until": 900.0}, {REAPER}, "busy"),
        ({"claimed_by": claimed()}, set(), "granted"),
        ({"claimed_by": claimed()}, {DRIVER}, "held"),
        ({"claimed_by": claimed(REBOOTED)}, {REAPER}, "granted"),
        ({"claimed_by": claimed(ELSEWHERE), "let_go_at": 990.0}, set(), "busy"),
        ({"claimed_by": claimed(ELSEWHERE), "let_go_at": 990.0, "lease_until": 1000.0}, {REAPER}, "granted"),
        # It is over.
        *[({"state": state}, ALL, "granted") for state in sorted(FINAL)],
        *[({"state": state, "claimed_by": claimed()}, ALL, "granted") for state in sorted(FINAL)],
        ({"state": "pending"}, {DRIVER}, "held"),
        ({"state": "pending"}, set(), "granted"),
        # It is for something else.
        ({"fingerprint": "g"}, ALL, "differs"),
        ({"fingerprint": "g"}, set(), "differs"),
        ({"fingerprint": "g", "state": "done"}, set(), "differs"),
        ({"fingerprint": "g", "claimed_by": claimed()}, {REAPER}, "differs"),
        ({"fingerprint": "g", "jobs": {}}, set(), "differs"),  # one may have been submitted
        ({"fingerprint": "g", "answered": True}, set(), "differs"),
        ({"fingerprint": "g", "jobs": {}, "answered": True}, set(), "granted"),
        ({"fingerprint": "g", "jobs": {}, "answered": True}, {DRIVER}, "held"),
        ({"fingerprint": "g", "jobs": {}, "answered": True, "state": "done"}, ALL, "granted"),
        # It is its own: asked twice, for the first answer was lost with a watcher.
        ({"holder": "h2"}, ALL, "granted"),
        ({"holder": "h2", "fingerprint": "g"}, ALL, "granted"),
    ],
)
def test_who_may_have_a_key(values: dict[str, Any], running: set[int], answer: str) -> None:
    def runs(pid: int, ticks: int | None) -> bool:
        assert ticks == pid * 10
        return pid in running

    row = a_row(**values)
    ruling = may_take(row, a_wish(), A_PLACE, runs, 1000.0)
    assert (ruling.answer if ruling else "granted") == answer
    if ruling is not None:
        assert ruling.row == row
        assert not ruling.is_new


def test_a_holder_that_is_not_seen_has_its_lease_and_no_more() -> None:
    seen = may_take(a_row(lease_until=900.0), a_wish(), A_PLACE, lambda *_: True, 1000.0)
    unseen = may_take(a_row(host_identity=ELSEWHERE, lease_until=1012.5), a_wish(), A_PLACE, lambda *_: True, 1000.0)
    assert seen is not None
    assert unseen is not None
    assert (seen.is_seen, seen.seconds_left) == (True, 0.0)
    assert (unseen.is_seen, unseen.seconds_left) == (False, 12.5)


# The file -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(state: Path, clock: Clock) -> Any:
    with Ledger.open(state, A_PLACE, clock=clock) as opened:
        yield opened


def nobody(*_: object) -> bool:
    return False


def everybody(*_: object) -> bool:
    return True


def the_row(book: Ledger, run: str = "run of h1") -> Row:
    found = book.row(run)
    assert found is not None
    return found


def test_a_lease_is_renewed_by_its_holder_until_it_is_let_go(book: Ledger, clock: Clock) -> None:
    book.take(a_wish("h1"))
    clock.now = 1020.0
    book.renew(["h9"])
    assert the_row(book).lease_until == 1000.0 + LEASE_SECONDS
    book.renew(["h9", "h1"])
    assert the_row(book).lease_until == 1020.0 + LEASE_SECONDS
    book.let_go("run of h1", "h1")
    clock.now = 1030.0
    book.renew(["h1"])
    assert the_row(book).lease_until == 1020.0 + LEASE_SECONDS


def test_a_driver_elsewhere_holds_it_for_as_long_as_it_renews_it(book: Ledger, clock: Clock) -> None:
    book.take(a_wish("h1", host_identity=ELSEWHERE))
    clock.now += LEASE_SECONDS - 1
    assert book.take(a_wish("h2")).seconds_left == 1.0
    book.renew(["h1"])
    clock.now += LEASE_SECONDS - 1
    assert book.take(a_wish("h2")).answer == "held"
    clock.now += 1
    assert book.take(a_wish("h2")).answer == "granted"


def test_who_cancels_has_a_longer_lease_than_a_driver(book: Ledger) -> None:
    book.take(a_wish("h1"))
    assert the_row(book).lease_until == 1000.0 + LEASE_SECONDS
    assert book.contest("run of h1", "h1", claimed())
    book.write(a_row(run="run of h1", state="pending"))
    assert the_row(book).lease_until == 1000.0 + CLAIM_LEASE_SECONDS


def test_a_reaper_and_a_driver_that_comes_back(book: Ledger) -> None:
    book.take(a_wish("h1"))
    assert book.claim("run of h1", claimed(), is_running=nobody)
    assert book.take(a_wish("h2"), is_running=lambda pid, _: pid == REAPER).answer == "busy"
    book.release("run of h1", claimed())
    assert book.take(a_wish("h2"), is_running=nobody).answer == "granted"
    # What the reaper had still to say is of no matter.
    book.finish("run of h1", "cancelled", holder="h1")
    assert (the_row(book).state, the_row(book).holder) == ("guarded", "h2")


# Instances


# Older files


def test_the_rows_of_a_first_version_are_kept(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.mkdir(mode=0o700)
    path = state / "ledger.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as older:
        for statement in schema.MIGRATIONS[0]:
            older.execute(statement)
        older.execute("PRAGMA user_version = 1")
        columns = (
            "run, tag, endpoint, instance, session_owner, answered, machine, host, boot, pid_ns, pid, state, detail, "
            "created_at, updated_at"
        )
        values = "'qxs', 'e', 'i', 0, 0, 'm', 'h', 'b', 7, 5, 'guarded', '', 1, 1"
        for run in ("r1", "r2"):
            older.execute(
                f"INSERT INTO runs ({columns}) VALUES (?, {values})",
                (run,),
            )
        older.execute("INSERT INTO jobs VALUES ('r1', 'j1', '')")
    path.chmod(0o600)
    with Ledger.open(state) as ledger:
        second, first = ledger.rows(UNFINISHED)
        assert (first.run, dict(first.jobs), second.run) == ("r1", {"j1": ""}, "r2")
        for row in (first, second):
            assert (row.key, row.fingerprint, row.grace, row.holder, row.epoch) == (None, "", 0.0, "", 0)
            assert (row.lease_until, row.let_go_at) == (None, None)
        # They go on as ever, with no holder; and a key is taken beside them.
        ledger.write(replace(first, jobs={"j2": ""}))
        ledger.finish("r2", "done")
        assert ledger.take(a_wish("h1")).is_new
        assert [row.state for row in ledger.rows()] == ["guarded", "done", "guarded"]
    # A watcher of the version before has it open still: its statements know no key.
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as older:
        older.execute(f"INSERT INTO runs ({columns}) VALUES ('r3', {values})")
    with Ledger.open(state) as ledger:
        assert ledger.rows()[0].key is None


# Races ----------------------------------------------------------------------------------------------------------

RACER = """
import json, os, sys
from qx_supervisor.watcher.ledger import Ledger, Row, Wish, sqlite
from qx_supervisor.watcher.host_identity import Process, this_process, start_ticks
sqlite.BUSY_SECONDS = 60.0  # the disk may be slow
with Ledger.open(sys.argv[1]) as ledger:
    me = this_process(ledger.host_identity)
    def wish(key, holder, **values):
        return Wish(row=Row(run=f"{key} of {holder}", host_identity=me.host_identity, pid=me.pid,
        start_ticks=me.start_ticks,
            tag="t", endpoint="e", instance="i", answered=True, key=key, fingerprint="f", grace=1.0, holder=holder))
    print("ready", flush=True)
    for order in sys.stdin:
        what, key = order.split()
        if what == "take":
            print(ledger.take(wish(key, str(me.pid))).answer, flush=True)
        if what == "contest":
            print(ledger.contest(f"{key} of dead", "dead", me), flush=True)
        if what == "all":
            print(json.dumps([ledger.take(wish(f"{key}{n}", str(me.pid))).answer for n in range(25)]), flush=True)
"""


def started(children: list[subprocess.Popen[str]]) -> None:
    for process in children:
        assert line(process) == "ready"


def test_of_eight_processes_that_want_a_key_one_gets_it(state: Path, child: Child) -> None:
    Ledger.open(state).close()
    racers = [child(RACER, state) for _ in range(8)]
    started(racers)
    for racer in racers:
        tell(racer, "all k")
    answers = [json.loads(line(racer)) for racer in racers]
    with Ledger.open(state) as ledger:
        rows = {row.key: row for row in ledger.rows()}
    assert len(rows) == 25
    for number in range(25):
        each = [answer[number] for answer in answers]
        assert sorted(each) == ["granted"] + ["held"] * 7
        winner = racers[each.index("granted")]
        assert rows[f"k{number}"].holder == str(winner.pid)
        assert rows[f"k{number}"].epoch == 0


@pytest.mark.long
def test_a_key_of_a_dead_driver_goes_to_one_of_many(state: Path, child: Child) -> None:
    racers = [child(RACER, state) for _ in range(8)]
    started(racers)
    first, *others = racers
    tell(first, "all k")
    assert json.loads(line(first)) == ["granted"] * 25
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    for racer in others:
        tell(racer, "all k")
    answers = [json.loads(line(racer)) for racer in others]
    for each in zip(*answers, strict=True):
        assert sorted(each) == ["granted"] + ["held"] * 6
    with Ledger.open(state) as ledger:
        assert {row.epoch for row in ledger.rows()} == {1}


def test_the_watcher_of_the_dead_and_a_driver_that_comes_back(state: Path, child: Child) -> None:
    """Two hundred times, at the same moment: one of the two wins, and the other is told so."""
    races = 200
    with Ledger.open(state) as ledger:
        dead = {"endpoint": "e", "instance": "i", "fingerprint": "f", "holder": "dead", "start_ticks": 1}
        for number in range(races):
            ledger.write(make_row(f"k{number} of dead", key=f"k{number}", grace=1.0, **dead))
        guard, driver = child(RACER, state), child(RACER, state)
        started([guard, driver])
        ended = []
        for number in range(races):
            both = [(guard, f"contest k{number}"), (driver, f"take k{number}")]
            for process, order in both if number % 2 else reversed(both):
                tell(process, order)
            ended.append((line(guard), line(driver)))
            row = the_row(ledger, f"k{number} of dead")
            if ended[-1] == ("True", "busy"):
                assert (row.holder, row.state) == ("dead", "pending")
                assert row.claimed_by == Process(ledger.host_identity, guard.pid, start_ticks(guard.pid))
            else:
                assert ended[-1] == ("False", "granted")
                assert (row.holder, row.state, row.claimed_by) == (str(driver.pid), "guarded", None)
        assert len(set(ended)) == 2, "one of them was always the first: that is no race"


TAKE_AND_DIE = """
import os, signal, sys
from qx_supervisor.watcher.ledger import Ledger, Row, Wish
from qx_supervisor.watcher.host_identity import this_process
ledger = Ledger.open(sys.argv[1])
me = this_process(ledger.host_identity)
row = Row(run="r", host_identity=me.host_identity, pid=me.pid,
        start_ticks=me.start_ticks, tag="t", endpoint="e", instance="i",
    key="k", fingerprint="f", grace=1.0, holder="h")
ledger.take(Wish(row=row))
if sys.argv[2] == "let go":
    ledger.let_go("r", "h")
if sys.argv[2] == "contest":
    ledger.contest("r", "h", me)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("what", ["take", "let go", "contest"])
def test_what_was_said_survives_a_kill(state: Path, child: Child, what: str) -> None:
    process = child(TAKE_AND_DIE, state, what)
    assert process.wait() == -signal.SIGKILL
    with Ledger.open(state) as ledger:
        row = the_row(ledger, "r")
        assert (row.holder, row.state) == ("h", "pending" if what == "contest" else "guarded")
        assert (row.let_go_at is None) == (what == "take")
        assert (row.claimed_by is not None) == (what == "contest")
        # The dead holds nothing, neither the lease nor the claim.
        assert ledger.take(replace_holder(ledger, row)).answer == "granted"


def replace_holder(ledger: Ledger, row: Row) -> Wish:
    me = this_process(ledger.host_identity)
    return Wish(row=replace(row, run="another", holder="h2", pid=me.pid, start_ticks=me.start_ticks))


@pytest.mark.parametrize("what", ["take", "let_go", "contest"])
def test_what_others_go_by_is_on_disk_when_the_call_returns(book: Ledger, what: str) -> None:
    """A power failure can't be had here: what is seen is that SQLite is told to synchronize."""
    book.take(a_wish("h1"))
    book.job_outcome("run of h1", "j1", "")
    assert book._database.execute("PRAGMA synchronous").fetchone()[0] == 1  # NORMAL
    match what:
        case "take":
            book.take(a_wish("h2"), is_running=nobody)
        case "let_go":
            book.let_go("run of h1", "h1")
        case "contest":
            book.contest("run of h1", "h1", claimed())
    assert book._database.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


# The choice among jobs ------------------------------------------------------------------------------------------

KEY_TAG = tags.key_tag("k")
MINE = tags.run_tag("r1", "f")


class There:
    """What the service has under the key, look by look; the last one again and again."""

    renewals = 0

    def __init__(self, *looks: dict[str, JobState], single: dict[str, JobState] | None = None) -> None:
        self.looks = list(looks)
        self.single = single or {}
        self.read: list[str] = []

    def tagged(self, tag: str) -> dict[str, JobState]:
        assert tag == KEY_TAG
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def job(self, job: str) -> JobState:
        self.read.append(job)
        if job not in self.single:
            raise RemoteError("no such job", 404)
        return self.single[job]


def job(name: str, status: str, created: int = 1, tags: tuple[str, ...] = (MINE,)) -> tuple[str, JobState]:
    reply = {"id": name, "created": f"2026-01-01T00:00:{created:02}Z", "tags": ["mine", KEY_TAG, *tags]}
    return name, JobState(status, "", None, reply)


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[resume.Search, list[float]]]:
    """Makes a search whose sleep is a clock's."""
    now = SimpleNamespace(value=50.0)
    for module in (resume, backoff):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.value))

    def make(there: There, known: dict[str, str] | None = None, **found: Any) -> tuple[resume.Search, list[float]]:
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            now.value += seconds

        lease = Lease("k", "f", 60.0, "h")
        guarded = Guarded("r1", "a", MINE, lambda _: None, lease=lease)
        had = {"jobs": known or {}, "answered": True, "since": None, **found}
        search = resume.Search(there, guarded, had, 120.0, lambda *_: None, sleep)  # type: ignore[arg-type]
        return search, slept

    return make


Look = Callable[..., tuple[resume.Search, list[float]]]
ELSE = tags.run_tag("r2", "f")


@pytest.mark.parametrize(
    ("jobs", "known", "chosen"),
    [
        ([], (), None),
        ([job("a", "Queued")], (), "a"),
        ([job("a", "Running")], (), "a"),
        ([job("a", "Completed")], (), "a"),
        ([job("a", "Failed"), job("b", "Cancelled"), job("c", "Cancelled - Ran too long")], (), None),
        # Completed before running before queued, whatever their age.
        ([job("a", "Queued", 1), job("b", "Running", 2), job("c", "Completed", 3)], (), "c"),
        ([job("a", "Queued", 1), job("b", "Running", 2), job("c", "Failed", 3)], (), "b"),
        ([job("a", "queued", 1), job("b", "RUNNING", 2)], (), "b"),
        # Of the same kind, those that the ledger knows; of these, the oldest.
        ([job("a", "Queued", 2), job("b", "Queued", 1)], (), "b"),
        ([job("a", "Queued", 2), job("b", "Queued", 1)], ("a",), "a"),
        ([job("a", "Queued", 3), job("b", "Queued", 2), job("c", "Queued", 1)], ("a", "b"), "b"),
        ([job("a", "Completed", 2), job("b", "Completed", 1)], ("a",), "a"),
        ([job("a", "Running", 2), job("b", "Running", 1)], ("a",), "a"),
        ([job("a", "Queued", 1), job("b", "Running", 2)], ("a",), "b"),
        # Of another run with the same key: the ledger was lost, or is another host's.
        ([job("a", "Completed", 1, (ELSE,))], (), "a"),
        ([job("a", "Failed", 1, (ELSE,)), job("b", "Queued", 2)], (), "b"),
        ([job("a", "Queued", 1, (ELSE,)), job("b", "Completed", 2)], (), "b"),
        ([job("a", "Queued", 1, (ELSE,))], ("a",), "a"),  # the ledger knows it, and so it is this run's
    ],
)
def test_the_job_to_go_on_with(look: Look, jobs: list[Any], known: tuple[str, ...], chosen: str | None) -> None:
    search, slept = look(There(dict(jobs)), dict.fromkeys(known, ""))
    found = search.job()
    assert (found.reply["id"] if found else None) == chosen
    assert not slept


@pytest.mark.parametrize("status", ["Queued", "Running"])
def test_a_job_in_flight_that_nobody_here_knows_is_not_touched(look: Look, status: str) -> None:
    search, _ = look(There(dict([job("a", status, 1, (ELSE,)), job("b", "Running", 2)])))
    with pytest.raises(ConfigError, match=r"job a of the key 'k' is in flight, and its driver is not known") as caught:
        search.job()
    assert caught.value.job_id == "a"


@pytest.mark.parametrize("status", ["Queued", "Completed", "Failed"])
@pytest.mark.parametrize("tags", [(tags.run_tag("r2", "g"),), (), ("qxs-odd",)])
def test_a_job_of_another_submission_is_refused(look: Look, status: str, tags: tuple[str, ...]) -> None:
    """By its tags, which are all that is known; what can't be known to be the same is not taken for it."""
    search, _ = look(There(dict([job("a", status, 1, tags), job("b", "Completed", 2)])))
    with pytest.raises(ConfigError, match=r"the key 'k' stands for another submission \(job a\)"):
        search.job()


def test_what_became_of_the_others_is_told(look: Look) -> None:
    jobs = [job("a", "Cancelled"), job("b", "Failed"), job("c", "Queued"), job("d", "Failed", 1, (ELSE,))]
    search, _ = look(There(dict(jobs)))
    assert search.job() is not None
    assert search.outcomes == {"a": "cancelled", "b": "finished"}


def test_a_job_that_the_list_lacks_is_read_by_itself(look: Look) -> None:
    there = There({}, single=dict([job("a", "Running")]))
    known = {"a": "", "b": "", "c": "cancelled", "d": "gone", "e": "unconfirmed"}
    search, _ = look(there, known)
    found = search.job()
    assert found is not None
    assert found.reply["id"] == "a"
    assert there.read == ["a", "b", "e"]


@pytest.mark.parametrize(("answered", "since", "seconds"), [
    (True, None, 0.0), (False, None, 120.0), (False, 100.0, 20.0), (False, 119.5, 0.5), (False, 500.0, 0.0),
])  # fmt: skip
def test_a_submission_on_its_way_is_looked_for_while_it_may_arrive(
    look: Look, answered: bool, since: float | None, seconds: float
) -> None:
    search, slept = look(There({}), answered=answered, since=since)
    assert search.is_in_doubt is not answered
    assert search.job() is None
    assert sum(slept) == pytest.approx(seconds)
    assert all(pause > 0 for pause in slept)
    assert max(slept, default=0) <= 15.0


def test_one_that_arrives_ends_the_search(look: Look) -> None:
    search, slept = look(There({}, {}, dict([job("a", "Queued")])), answered=False)
    found = search.job()
    assert found is not None
    assert slept == [0.25, 0.5]


def test_there_is_a_last_look_when_the_time_is_over(look: Look) -> None:
    there = There({}, {}, dict([job("a", "Queued")]))
    search, slept = look(there, answered=False, since=119.5)
    found = search.job()
    assert found is not None
    assert slept == [0.25, 0.25]


@pytest.mark.parametrize(
    ("known", "answered", "is_in_doubt"),
    [
        ({}, True, False),
        ({}, False, True),
        ({"a": ""}, True, True),
        ({"a": "unconfirmed"}, True, True),
        ({"a": "cancelled", "b": "gone", "c": "finished"}, True, False),
        ({"a": "cancelled", "b": ""}, True, True),
    ],
)
def test_whether_there_may_be_a_job(look: Look, known: dict[str, str], answered: bool, is_in_doubt: bool) -> None:
    assert look(There({}), known, answered=answered)[0].is_in_doubt is is_in_doubt


def test_tags_tell_the_submission_and_its_driver() -> None:
    assert len(KEY_TAG) <= 86
    assert tags.key_tag("l") != KEY_TAG
    assert "k" not in tags.key_tag("k").removeprefix("qxk-")
    assert tags.fingerprint_in(["mine", KEY_TAG, MINE]) == "f"
    assert tags.fingerprint_in(["mine", "qxs-1-2-3", "qxs-1"]) == ""
    assert tags.driver_of(job("a", "Queued", tags=(MINE, "qxd-5"))[1]) == "qxd-5"
    assert tags.driver_of(job("a", "Queued")[1]) == ""
