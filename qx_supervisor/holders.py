"""Who guards a job already: whether it may be attached, by what the ledgers know.

Two drivers that guard one job would each have it cancelled at its death, and so the one takes it from the other.

Of two that want it at the same moment one gets it: a driver looks, and writes that the job is its own, in one
transaction of the local ledger. The watcher would write it too late: it may have to be started first. In the shared
ledger it does so once its watcher has written the run there, by which the watcher's lease is on it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from . import settings, shared_ledger
from .errors import ConfigError
from .link import link, logger
from .tags import tags_of
from .watcher import host_identity, ledger, remote
from .watcher.facts import End

if TYPE_CHECKING:
    from .watcher.ledger.postgres import SharedLedger

WRITTEN_SECONDS = 5.0
"""How long the watcher may take to write a run that it has acknowledged: a disk may be slow. `attach` has returned by
then; the run's own thread waits."""

LOOK_SECONDS = 0.05


@contextlib.contextmanager
def taking(job: str, state: remote.JobState, run: ledger.Row) -> Iterator[Callable[[], None]]:
    """Make sure that nobody else will cancel a job that this process is about to guard; in the block it does so.

    Others see from here on that the job is this process's. What a driver left behind that died together with its
    watcher is claimed, so that nobody reaps it meanwhile. After the block the job is not its any more.

    Args:
        job: The job's id.
        state: What the service says of it.
        run: The run that is to guard it, as its driver knows it.

    Yields:
        A function to be called when the watcher has written the run, and does not know the job: it has other hosts see
        that the job is this process's, or raises the same.

    Raises:
        ConfigError: Another driver guards it, or somebody is about to cancel it.
    """
    is_shared = _check_shared(job, state)
    book: ledger.Ledger | None = None
    claimed: list[ledger.Row] = []
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as claims:
        try:
            book = stack.enter_context(ledger.Ledger.open(ledger.state_directory()))
            left = _take(book, job, state, run)
            # A row that no watcher has made its own would stay, and whoever reaps would cancel a job that was let go.
            stack.callback(_withdraw, book, run.run)
            claimed = _claim(book, left, job, claims)
        except ledger.LedgerError as error:
            logger.warning("whether another program guards job %s is not known: %s", job, error)
        yield functools.partial(_take_shared, job, state, run.run) if is_shared else lambda: None
        if book is None:
            return
        with contextlib.suppress(ledger.LedgerError):
            for row in claimed:
                book.job_outcome(row.run, job, "kept")
                if row.answered and set(row.jobs) == {job}:  # else others may turn up, for whoever reaps
                    book.finish(row.run, "done", end=End("detached", reason=f"attached by process {os.getpid()}"))
            claims.close()
            _wait_until_written(book, run.run)


def _take(book: ledger.Ledger, job: str, state: remote.JobState, run: ledger.Row) -> list[ledger.Row]:
    """Write that the job is this process's; returns what others left behind that may have it cancelled."""
    me = host_identity.this_process(book.host_identity)
    with book.batch(durable=False):
        left = [row for row in _rows(book, job, state) if not _is_mine(row, me) and _is_left(book, row, job)]
        book.write(replace(run, host_identity=book.host_identity), durable=False)
    return left


def _claim(book: ledger.Ledger, left: list[ledger.Row], job: str, claims: contextlib.ExitStack) -> list[ledger.Row]:
    """Claim what others left behind, until the stack ends."""
    me = host_identity.this_process(book.host_identity)
    claimed = [row for row in left if book.claim(row.run, me)]
    for row in claimed:
        claims.callback(book.release, row.run, me)
    if len(claimed) < len(left):
        raise _cancelling(job, "another process")
    return claimed


def _wait_until_written(book: ledger.Ledger, run: str) -> None:
    """Wait until the watcher has written a run, if there is one that guards it."""
    end = time.monotonic() + WRITTEN_SECONDS
    while link.is_guarded(run) and time.monotonic() < end:
        row = book.row(run)
        if row is None or row.watcher_pid is not None:
            return
        time.sleep(LOOK_SECONDS)


def _withdraw(book: ledger.Ledger, run: str) -> None:
    with contextlib.suppress(ledger.LedgerError):
        book.withdraw(run)


def _rows(book: ledger.Store, job: str, state: remote.JobState) -> list[ledger.Row]:
    """The runs that may have the job cancelled: by its id, by its tag if that is not known, or with all its session."""
    tags, session = tags_of(state), state.reply.get("session_id")

    def may_cancel(row: ledger.Row) -> bool:
        is_its = job in row.jobs or row.tag in tags
        return (is_its and row.jobs.get(job, "") in ledger.OPEN_OUTCOMES) or bool(
            session and row.session_owner and row.session == session
        )

    return [row for row in book.rows(ledger.UNFINISHED) if may_cancel(row)]


def _is_mine(row: ledger.Row, me: host_identity.Process) -> bool:
    return (row.pid, row.start_ticks) == (me.pid, me.start_ticks) and row.host_identity == me.host_identity


def _is_left(book: ledger.Ledger, row: ledger.Row, job: str) -> bool:
    """Whether it is nobody's any more, and reaped unless this process claims it.

    Raises:
        ConfigError: It is somebody's.
    """
    liveness = ledger.judge(row, book.host_identity)
    if liveness in ("live", "elsewhere"):
        raise _held(row, job, is_seen=liveness == "live")
    if row.key is not None:
        raise ConfigError(
            "config",
            f"job {job} is kept for a driver that comes back with the key {row.key!r}; run again with that key, which "
            "takes it up",
            job,
        )
    if liveness == "ending":
        raise _cancelling(job, f"the watcher of its driver, process {row.pid}, which has died,")
    if row.is_shared:  # and no claim here keeps a reaper on another host away
        raise _cancelling(job, f"its driver, process {row.pid}, has died with its watcher, and a reaper")
    if row.session_owner:
        raise _cancelling(
            job, f"its session is process {row.pid}'s, which has died with its watcher, and whoever reaps"
        )
    return True


def _held(row: ledger.Row, job: str, *, is_seen: bool) -> ConfigError:
    who = f"process {row.pid}{f' ({row.program})' if row.program else ''} on {row.host_identity.host}"
    lives = "which lives" if is_seen else "which can't be seen from here"
    return ConfigError(
        "config",
        f"job {job} is guarded by {who}, {lives}, and is cancelled when that ends; wait there for it, or have that "
        "program detach() it first",
        job,
    )


def _cancelling(job: str, who: str) -> ConfigError:
    return ConfigError("config", f"{who} is cancelling job {job}; submit it again", job)


def _check_shared(job: str, state: remote.JobState) -> bool:
    """Check that no driver on another host guards the job; returns whether there is a shared ledger that knows."""
    if not settings.ledger_url():
        return False
    try:
        with shared_ledger.opened() as book:
            _check_hosts(book, job, state)
    except ledger.LedgerError as error:
        logger.warning("whether another host guards job %s is not known: the shared ledger is away (%s)", job, error)
        return False
    return True


def _take_shared(job: str, state: remote.JobState, run: str) -> None:
    """Write to the shared ledger that the job is this process's, unless a driver on another host has it by now."""
    try:
        with shared_ledger.opened() as book, book.batch():
            book.lock_job(job)
            _check_hosts(book, job, state)
            book.add_job(run, job)
    except ledger.LedgerError as error:  # as the watcher says too
        logger.debug("other hosts do not learn yet that job %s is guarded here: %s", job, error)


def _check_hosts(book: SharedLedger, job: str, state: remote.JobState) -> None:
    now, here = book.clock(), book.host_identity
    for row in _rows(book, job, state):
        if row.host_identity == here:
            continue  # the local ledger knows more
        if ledger.judge_by_lease(row, now) == "live":
            raise _held(row, job, is_seen=True)
        raise _cancelling(job, f"process {row.pid} on {row.host_identity.host} has ended, and a reaper")
