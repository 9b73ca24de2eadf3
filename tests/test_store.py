"""The contract of a ledger, which both fulfil: the local one in SQLite, and the shared one in a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from testkit.ledgers import make_row

from qx_supervisor.watcher.facts import End, Figures
from qx_supervisor.watcher.host_identity import HostIdentity, Process
from qx_supervisor.watcher.ledger import FINAL, UNFINISHED, Ledger, LedgerError, Row, Store, Wish
from qx_supervisor.watcher.ledger.columns import ADDED, COLUMNS, IN_POSTGRES, IN_SQLITE, JOB_COLUMNS
from qx_supervisor.watcher.ledger.postgres import SharedLedger

HERE = HostIdentity("m" * 32, "host", "boot", 7)
ELSEWHERE = HostIdentity("n" * 32, "other", "another boot", 7)

Opener = Callable[[], Store]


@pytest.fixture(params=["local", "shared"])
def opener(request: pytest.FixtureRequest, state: Path) -> Opener:
    """Opens the ledger once more, as another process on the same machine does."""
    url = "" if request.param == "local" else request.getfixturevalue("shared_url")

    def begin() -> Store:
        book: Store = SharedLedger.open(url, where=HERE) if url else Ledger.open(state, HERE)
        book.renew()
        return book

    return begin


@pytest.fixture
def opened(opener: Opener) -> Iterator[Opener]:
    """The same, and each is closed at the end of the test."""
    made: list[Store] = []

    def begin() -> Store:
        made.append(opener())
        return made[-1]

    yield begin
    for each in made:
        each.close()


@pytest.fixture
def book(opened: Opener) -> Store:
    return opened()


def dead(*_: object) -> bool:
    return False


def alive(*_: object) -> bool:
    return True


def a_row(run: str = "r1", **values: Any) -> Row:
    given: dict[str, Any] = {
        "host_identity": HERE,
        "pid": 7,
        "start_ticks": 70,
        "endpoint": "https://x",
        "instance": "crn:1",
    }
    return make_row(run, **given | {"tag": f"qxs-{run}"} | values)


def keyed(run: str, holder: str, **values: Any) -> Row:
    return a_row(run, **{"key": "k", "fingerprint": "f", "holder": holder, "answered": True} | values)


def wish(run: str, holder: str, **values: Any) -> Wish:
    return Wish(row=keyed(run, holder, **values))


def the(book: Store, run: str = "r1") -> Row:
    found = book.row(run)
    assert found is not None
    return found


ME = Process(HERE, 8, 80)


# Reading and writing ------------------------------------------------------------------------------------------------


def test_a_row_comes_back_as_it_was_written(book: Store) -> None:
    written = keyed(
        "r1",
        "h",
        watcher_pid=8,
        watcher_start_ticks=80,
        driver_tag="qxd-1",
        jobs={"j1": "", "j2": "cancelled"},
        session="s1",
        session_owner=True,
        detail="it holds é and ☂",
        grace=12.5,
        backend="ibm_brisbane",
        primitive="sampler",
        pubs=2,
        shots=4096,
        label="vqe ☂",
        tags=("a", "é"),
        program="driver.py",
        command="python driver.py",
        outcome="cancelled",
        ended_by="signal",
        signum=2,
        reason="because",
    )
    assert book.write(written) == {"r1"}
    found = the(book)
    # What each of the two adds: who has the lease and until when, and its own times.
    added = {name: getattr(found, name) for name in ("held_by", "epoch", "lease_until", "created_at", "updated_at")}
    assert found == replace(written, **added, host_identity=book.host_identity)
    assert found.lease_until == pytest.approx(book.clock() + book.lease_seconds, abs=5)
    assert found.created_at == pytest.approx(found.updated_at, abs=0.001)  # microseconds, as floats
    assert found.updated_at == pytest.approx(book.clock(), abs=5)
    assert book.rows() == [found]
    assert book.row("r2") is None


def test_what_no_column_can_hold_costs_nothing(book: Store) -> None:
    """A file name that is not UTF-8, a job that the service names so, and more shots than IBM Quantum would execute."""
    words = {"program": "d\udce9mo.py", "label": "a\0b"}
    assert book.write(a_row(shots=10**20, pubs=2**63 - 1, **words, jobs={"j\udce9\0": "x\0"})) == {"r1"}
    found = the(book)
    assert (found.program, found.label, found.shots, found.pubs) == ("d?mo.py", "ab", None, 2**63 - 1)
    assert found.jobs == {"j?": "x"}
    assert book.job_outcome("r1", "j\udce9", "cancelled")
    assert the(book).jobs == {"j?": "cancelled"}
    assert book.take(wish("r2", "h1")).answer == "granted"
    assert book.take(wish("r3", "h1", **words)).row.program == "d?mo.py"


def test_what_is_over_stays_over(book: Store) -> None:
    """Its driver may have written that, and its watcher be late with what was before."""
    book.write(a_row())
    book.finish("r1", "done", end=End("detached", "program"))
    assert book.write(a_row(jobs={"late": ""})) == set()
    assert (the(book).state, the(book).outcome) == ("done", "detached")
    assert book.write(a_row(state="done", outcome="detached")) == {"r1"}


def test_what_is_known_of_a_run_stays_known(book: Store) -> None:
    book.write(a_row(jobs={"j1": "cancelled", "j2": ""}, session="s1", session_owner=True, driver_tag="qxd-1"))
    first = the(book)
    book.write(a_row(tag=None, jobs={"j1": "", "j3": ""}, watcher_pid=9, state="done", detail="it said so"))
    row = the(book)
    assert row.jobs == {"j1": "cancelled", "j2": "", "j3": ""}
    assert (row.tag, row.driver_tag, row.session, row.session_owner) == ("qxs-r1", "qxd-1", "s1", True)
    assert (row.watcher_pid, row.state, row.detail) == (9, "done", "it said so")
    assert row.created_at == first.created_at
    assert row.updated_at > first.updated_at


def test_rows_come_newest_first_by_state_and_limit(book: Store) -> None:
    for number, state in enumerate(("guarded", "pending", "done", "cancelled", "expired", "guarded")):
        book.write(a_row(f"r{number}", state=state))

    def runs(*arguments: Any) -> str:
        return "".join(row.run[1:] for row in book.rows(*arguments))

    assert (runs(), runs(UNFINISHED), runs(FINAL)) == ("543210", "510", "432")
    assert (runs(["done", "guarded"]), runs([]), runs(None, 2), runs(UNFINISHED, 2)) == ("520", "", "54", "51")


def test_a_batch_is_one_write(book: Store, opened: Opener) -> None:
    other = opened()
    with pytest.raises(KeyError), book.batch():
        book.write(a_row())
        assert [row.run for row in book.rows()] == ["r1"]
        raise KeyError
    assert other.rows() == []
    with book.batch():
        book.write(a_row("r1"))
        book.write(a_row("r2"))
        assert other.rows() == []
    assert {row.run for row in other.rows()} == {"r1", "r2"}


def test_no_secret_is_written(book: Store) -> None:
    book.write(a_row(endpoint="https://me:hush@x/api?apikey=hush", detail="token=hush", jobs={"j1": "bearer hush"}))
    book.job_outcome("r1", "j2", "apikey hush")
    assert "hush" not in repr(the(book))
    book.finish("r1", "done", "password=hush")
    assert "hush" not in repr(the(book))


def test_a_run_that_is_not_there(book: Store) -> None:
    uses: list[Callable[[], object]] = [
        lambda: book.job_outcome("r1", "j1", ""),
        lambda: book.job_outcome("r1", "j1", "cancelled", holder="h1"),
        lambda: book.finish("r1", "done"),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match=r"has no run r1\.$"):
            use()
    assert not book.contest("r1", "h1", ME)


def test_old_rows_are_forgotten_and_unfinished_ones_kept(book: Store) -> None:
    book.write(*(a_row(state, state=state, jobs={"j": ""}) for state in sorted(UNFINISHED | FINAL)))
    assert book.forget(1000.0) == 0
    assert book.forget(-1000.0) == 3
    assert {row.run for row in book.rows()} == UNFINISHED
    book.write(a_row("done"))
    assert the(book, "done").jobs == {}, "a row's jobs go with it"


# Keys ---------------------------------------------------------------------------------------------------------------


def test_a_key_is_taken_once(opener: Opener) -> None:
    gate = threading.Barrier(4, timeout=60)

    def take(number: int) -> str:
        with opener() as book:
            gate.wait()
            return book.take(wish(f"r{number}", f"h{number}"), is_running=alive).answer

    opener().close()
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(4))) == ["granted", "held", "held", "held"]


def test_who_takes_a_key_goes_on_with_its_run(book: Store, opened: Opener) -> None:
    new = book.take(wish("r1", "h1"), is_running=alive)
    assert (new.answer, new.is_new, new.row.run) == ("granted", True, "r1")
    jobs = {"j1": "kept", "j2": "cancelled", "j3": "", "j4": "unconfirmed"}
    book.write(keyed("r1", "h1", jobs=jobs, answered=False))
    other = opened()
    held = other.take(wish("r2", "h2"), is_running=alive)
    assert (held.answer, held.is_seen, held.row.run) == ("held", True, "r1")
    later = replace(HERE, boot="a later boot")
    asked = wish("r2", "h2", host_identity=later, pid=8, start_ticks=80, watcher_pid=9, grace=5.0)
    ruling = other.take(asked, is_running=dead)
    assert (ruling.answer, ruling.is_new, ruling.let_go_at) == ("granted", False, None)
    row = the(other)
    assert [each.run for each in other.rows()] == ["r1"]
    assert row.tag == "qxs-r1"
    assert row.jobs == ruling.row.jobs == jobs | {"j1": ""}
    assert (row.host_identity.boot, row.pid, row.start_ticks, row.watcher_pid) == (later.boot, 8, 80, 9)
    assert (row.holder, row.grace, row.state) == ("h2", 5.0, "guarded")
    assert row.epoch == new.row.epoch + 1
    assert not row.answered


def test_a_former_holder_writes_nothing(book: Store, opened: Opener) -> None:
    book.take(wish("r1", "h1"))
    other = opened()
    assert other.take(wish("r2", "h2"), is_running=dead).answer == "granted"
    before = the(book)
    assert book.write(keyed("r1", "h1", state="done", jobs={"late": ""})) == set()
    assert not book.finish("r1", "done", holder="h1")
    assert not book.job_outcome("r1", "late", "cancelled", holder="h1")
    assert not book.contest("r1", "h1", ME)
    assert not book.holds("r1", "h1")
    book.let_go("r1", "h1")
    book.renew(["h1"])
    assert the(book) == before
    assert other.holds("r1", "h2")
    assert other.job_outcome("r1", "j9", "finished", holder="h2")
    assert the(other).jobs == {"j9": "finished"}


def test_asked_twice_a_lease_does_not_change_hands(book: Store) -> None:
    first = book.take(wish("r1", "h1")).row.epoch
    assert book.take(wish("r1", "h1"), is_running=alive).row.epoch == first


def test_another_submission_and_another_instance(book: Store, opened: Opener) -> None:
    book.take(wish("r1", "h1"))
    book.write(keyed("r1", "h1", jobs={"j": ""}))
    other = opened()
    assert other.take(wish("r2", "h2", fingerprint="g"), is_running=dead).answer == "differs"
    asked = replace(wish("r2", "h2", instance="crn:2"), instances=("crn:2", "crn:1"))
    found = other.take(asked, is_running=dead)
    assert (found.answer, found.row.instance, found.row.holder) == ("other instance", "crn:1", "h1")
    # To a driver that can't use that instance the key is another's, of another account.
    assert other.take(wish("r3", "h3", instance="crn:2"), is_running=dead).is_new
    its_own = replace(wish("r4", "h4", instance="crn:2"), instances=("crn:1", "crn:2"))
    assert other.take(its_own, is_running=dead).row.run == "r3", "of two, its own instance comes first"
    assert other.take(wish("r5", "h5", endpoint="https://y"), is_running=alive).is_new, "another service's"


def test_what_is_over_is_taken_from_a_driver_that_is_alive(book: Store, opened: Opener) -> None:
    other = opened()
    for number, (state, answered) in enumerate({"done": True, "cancelled": True, "expired": False}.items()):
        run, key = f"r{number}", f"k{number}"
        book.take(wish(run, "h1", key=key))
        book.write(keyed(run, "h1", key=key, answered=False, state=state, detail="because"))
        ruling = other.take(wish("new", "h2", key=key), is_running=alive)
        assert (ruling.answer, ruling.row.answered, ruling.row.state) == ("granted", answered, "guarded")
        assert ruling.row.detail == ""


def test_let_go_it_is_free_and_says_since_when(book: Store, opened: Opener) -> None:
    book.take(wish("r1", "h1"))
    book.write(keyed("r1", "h1", let_go_at=time.time() - 5))
    book.write(keyed("r1", "h1", let_go_at=time.time()))  # it counts from the first time
    book.let_go("r1", "h1")
    ruling = opened().take(wish("r2", "h2"), is_running=alive)
    assert ruling.answer == "granted"
    assert ruling.let_go_at == pytest.approx(time.time() - 5, abs=2)
    assert ruling.row.let_go_at is None


def test_won_once_more_to_cancel_it_is_busy(book: Store, opened: Opener) -> None:
    book.take(wish("r1", "h1"))
    assert book.contest("r1", "h1", ME)
    assert book.contest("r1", "h1", ME), "asked again, for the first answer was lost"
    book.write(keyed("r1", "h1", state="pending", jobs={"j": "cancelled"}, let_go_at=time.time()))
    row = the(book)
    assert (row.state, row.claimed_by) == ("pending", replace(ME, host_identity=book.host_identity))
    other = opened()
    assert other.take(wish("r2", "h2"), is_running=alive).answer == "busy"
    book.write(keyed("r1", "h1", state="cancelled", jobs={"j": "cancelled"}))
    assert the(book).claimed_by is None
    assert other.take(wish("r2", "h2"), is_running=alive).answer == "granted"


def test_a_key_is_free_when_its_cancel_was_given_up(book: Store, opened: Opener) -> None:
    """Its driver is alive, has handed the cancel over, and the service could not be reached: it may try once more."""
    book.take(wish("r1", "h1"))
    assert book.contest("r1", "h1", ME)
    given_up = {"state": "pending", "sweep_until": time.time() + 86400, "let_go_at": time.time(), "answered": False}
    book.write(keyed("r1", "h1", **given_up))
    ruling = opened().take(wish("r2", "h2"), is_running=alive)
    assert (ruling.answer, ruling.row.answered) == ("granted", False)
    assert ruling.let_go_at == pytest.approx(time.time(), abs=5)


def test_there_is_nothing_to_win_of_what_is_over(book: Store) -> None:
    book.take(wish("r1", "h1"))
    for state in sorted(FINAL):
        book.write(keyed("r1", "h1", state=state))
        assert not book.contest("r1", "h1", ME)
        assert the(book).state == state


def test_a_contest_that_was_lost_in_the_other_ledger_is_undone(book: Store, opened: Opener) -> None:
    book.take(wish("r1", "h1"))
    book.contest("r1", "h1", ME)
    book.undo_contest("r1", "h1")
    row = the(book)
    assert (row.state, row.claimed_by, row.claimed_at) == ("guarded", None, None)
    assert opened().take(wish("r2", "h2"), is_running=dead).answer == "granted"


def test_one_of_a_watcher_and_a_driver_that_comes_back_wins(opener: Opener) -> None:
    """At the same moment, again and again."""
    gate = threading.Barrier(2, timeout=60)
    races = 10

    def contests() -> list[bool]:
        with opener() as book:
            won = []
            for number in range(races):
                book.take(wish(f"r{number}", "h1", key=f"k{number}"))
                gate.wait()
                won.append(book.contest(f"r{number}", "h1", ME))
            return won

    def takes() -> list[str]:
        with opener() as book:
            answers = []
            for number in range(races):
                gate.wait()
                asked = wish(f"n{number}", "h2", key=f"k{number}")
                answers.append(book.take(asked, is_running=lambda pid, _: pid == ME.pid).answer)
            return answers

    opener().close()
    with ThreadPoolExecutor(2) as pool:
        won, answers = pool.submit(contests), pool.submit(takes)
        assert set(zip(won.result(), answers.result(), strict=True)) <= {(True, "busy"), (False, "granted")}


def test_what_was_granted_elsewhere_is_entered(book: Store) -> None:
    assert book.enter(keyed("r1", "h1", jobs={"j": ""}))
    row = the(book)
    assert (row.run, row.key, row.holder, row.jobs) == ("r1", "k", "h1", {"j": ""})
    assert book.holds("r1", "h1")


# What a job cost ----------------------------------------------------------------------------------------------------


def test_figures_of_a_job_are_written_bit_by_bit_and_stay(book: Store) -> None:
    book.write(a_row(jobs={"j1": "", "j2": ""}))
    book.job_figures("r1", "j1", Figures(estimated=2.0, queued=5.5))
    book.job_figures("r1", "j1", Figures(charged=1.25))
    book.job_figures("r1", "j3", Figures(charged=9.0))  # nobody has such a job
    book.job_figures("r1", "j2", Figures())
    book.write(a_row(jobs={"j1": "cancelled", "j2": ""}))
    row = the(book)
    assert row.figures == {"j1": Figures(2.0, 1.25, 5.5)}
    assert (row.estimated, row.charged, row.uncharged) == (2.0, 1.25, ["j2"])


def test_whoever_reads_a_charge_may_write_it(opened: Opener) -> None:
    """It decides nothing: the run may be another's, or over."""
    first, second = opened(), opened()
    first.write(a_row(jobs={"j1": ""}, state="done"))
    second.job_figures("r1", "j1", Figures(charged=1.25))
    assert the(first).charged == 1.25


def test_runs_with_a_charge_that_is_not_known(book: Store) -> None:
    book.write(a_row("r1", jobs={"j1": ""}), a_row("r2", jobs={"j2": "", "j3": ""}), a_row("r3", jobs={"j4": "gone"}))
    book.write(a_row("r4"), a_row("r5", jobs={"j5": "finished"}), a_row("r6", jobs={"j6": ""}))
    for number in (2, 3, 4, 5, 6):
        book.finish(f"r{number}", "done")
    book.job_figures("r2", "j2", Figures(charged=1.0))
    book.job_figures("r6", "j6", Figures(charged=0.0))
    assert sorted(row.run for row in book.uncharged(3600.0, 9)) == ["r2", "r5"]
    assert len(book.uncharged(3600.0, 1)) == 1
    assert book.uncharged(-1.0, 9) == []


def test_how_a_run_ended_is_forgotten_when_its_key_is_taken_again(book: Store) -> None:
    book.take(wish("r1", "h1", label="first"))
    end = End("cancelled", "signal", 15, "token=hush because")
    book.finish("r1", "done", holder="h1", end=end)
    row = the(book)
    assert (row.outcome, row.ended_by, row.signum) == ("cancelled", "signal", 15)
    assert row.reason == "token=[left out] because"
    assert row.ended_at == pytest.approx(book.clock(), abs=5)
    book.take(wish("r2", "h2", label="second", began_at=time.time() - 5), is_running=dead)
    row = the(book)
    assert (row.outcome, row.ended_by, row.signum, row.reason, row.ended_at) == ("", "", None, "", None)
    assert row.label == "second"
    assert row.began_at == pytest.approx(book.clock() - 5, abs=5)


# The columns --------------------------------------------------------------------------------------------------------


def test_the_tables_are_those_that_were_released() -> None:
    """Older versions have them open: a type, or a name, never changes.

    A new column is a decision: what it may hold, and that it is no secret.
    """
    assert {column.since for column in COLUMNS} == {1, 2, ADDED}
    assert [f"{column.name} {column.sqlite}" for column in IN_SQLITE if column.since == 1] == [
        line.strip()
        for line in """
        run TEXT PRIMARY KEY NOT NULL
        tag TEXT
        driver_tag TEXT
        endpoint TEXT NOT NULL
        instance TEXT NOT NULL
        session_owner INTEGER NOT NULL
        session TEXT
        answered INTEGER NOT NULL
        machine TEXT NOT NULL
        host TEXT NOT NULL
        boot TEXT NOT NULL
        pid_ns INTEGER NOT NULL
        pid INTEGER NOT NULL
        start_ticks INTEGER
        watcher_pid INTEGER
        watcher_start_ticks INTEGER
        state TEXT NOT NULL
        detail TEXT NOT NULL
        sweep_until REAL
        claimed_by TEXT
        claimed_at REAL
        created_at REAL NOT NULL
        updated_at REAL NOT NULL
        """.strip().splitlines()
    ]
    assert [f"{column.name} {column.sqlite}" for column in IN_SQLITE if column.since == 2] == [
        "key TEXT",
        "fingerprint TEXT NOT NULL DEFAULT ''",
        "grace REAL NOT NULL DEFAULT 0",
        "holder TEXT NOT NULL DEFAULT ''",
        "epoch INTEGER NOT NULL DEFAULT 0",
        "lease_until REAL",
        "let_go_at REAL",
        "is_shared INTEGER NOT NULL DEFAULT 0",
    ]
    assert [f"{column.name} {column.sqlite} | {column.postgres}" for column in COLUMNS if column.since == ADDED] == [
        line.strip()
        for line in """
        backend TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        primitive TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        pubs INTEGER | bigint
        shots INTEGER | bigint
        label TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        tags TEXT NOT NULL DEFAULT '[]' | text NOT NULL DEFAULT '[]'
        program TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        command TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        began_at REAL | timestamptz
        outcome TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        ended_by TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        signum INTEGER | bigint
        reason TEXT NOT NULL DEFAULT '' | text NOT NULL DEFAULT ''
        ended_at REAL | timestamptz
        """.strip().splitlines()
    ]
    assert {(column.sqlite, column.postgres) for column in JOB_COLUMNS} == {("REAL", "double precision")}
    assert [column.name for column in JOB_COLUMNS] == ["estimated", "charged", "queued", "ran", "ended"]
    released = [column for column in IN_POSTGRES if column.since < ADDED]
    assert sorted(f"{column.name} {column.postgres}" for column in released) == sorted(
        line.strip()
        for line in """
        run text PRIMARY KEY
        held_by text NOT NULL
        epoch bigint NOT NULL
        tag text
        driver_tag text
        endpoint text NOT NULL
        instance text NOT NULL
        session text
        session_owner boolean NOT NULL
        answered boolean NOT NULL
        host text NOT NULL
        boot text NOT NULL
        pid_ns bigint NOT NULL
        pid bigint NOT NULL
        start_ticks bigint
        watcher_pid bigint
        watcher_start_ticks bigint
        state text NOT NULL
        detail text NOT NULL
        sweep_until timestamptz
        retry_at timestamptz
        claimed_by jsonb
        claimed_at timestamptz
        key text
        fingerprint text NOT NULL
        grace double precision NOT NULL
        holder text NOT NULL
        let_go_at timestamptz
        created_at timestamptz NOT NULL
        updated_at timestamptz NOT NULL
        """.strip().splitlines()
    )


def test_every_column_is_of_a_ledger_and_of_a_row() -> None:
    assert all(column.sqlite or column.postgres for column in COLUMNS)
    row = a_row()
    assert all(hasattr(row, column.name) or hasattr(row.host_identity, column.name) for column in COLUMNS)
