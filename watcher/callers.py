"""All callers of a watcher: one beside its driver, or many on a node.

What is done once for all of them is done here: the look at every driver once a second, in one wake-up, and the renewals
of all leases, in one transaction.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from . import notify
from .accounts import Accounts
from .book import LEDGER_SECONDS, Ledgers
from .caller import Caller, Means
from .driver_process import DriverProcess
from .frames import Frames
from .host_identity import start_ticks
from .log import Log
from .loop import Loop
from .protocol import Hello, encode_hello
from .workers import Lane, Workers

POLL_SECONDS = 1.0


class Callers:
    """The callers, and the loop that they share.

    Args:
        state: The directory of the ledger.
        lease_seconds: How long a lease lasts unless it is renewed.

    Attributes:
        loop: The loop.
        is_dismissed: Whether a SIGTERM came when nothing was guarded.
        when_empty: Called when the last caller has left.
    """

    def __init__(self, state: str, lease_seconds: float) -> None:
        self.loop = Loop()
        workers = Workers()
        self._ledgers = Ledgers(state, lease_seconds)
        self._log = Log(state, self._ledgers.watcher.host_identity.host)
        self._notices = notify.Threads()
        accounts = Accounts(self.loop, workers)
        self._means = Means(self.loop, workers, accounts, self._ledgers, self._log, self._notices)
        self._all: dict[Caller, None] = {}
        self._terms = 0  # SIGTERMs that came and have not been handled
        self.is_dismissed = False
        self.when_empty: Callable[[], object] = self.loop.stop
        self.loop.when_fault = self._tell_fault
        signal.signal(signal.SIGTERM, lambda *_: self._terminated())

    def __len__(self) -> int:
        return len(self._all)

    def add(
        self,
        connection: Frames,
        driver: DriverProcess,
        *,
        version: int,
        sweep_window: float,
        earlier: Caller | None = None,
    ) -> Caller:
        """Say hello to a driver, and watch it from now on; see `Caller` for the arguments."""
        me = os.getpid()
        with contextlib.suppress(OSError):  # it has died meanwhile, as will be seen
            connection.send(encode_hello(Hello(version, me, start_ticks(me))))
        caller = Caller(
            connection,
            driver,
            self._means,
            version=version,
            sweep_window=sweep_window,
            ended=self._ended,
            earlier=earlier,
        )
        self._all[caller] = None
        caller.begin()
        return caller

    def run(self) -> None:
        """Watch until `loop.stop`."""
        sys.setswitchinterval(0.0005)  # so that no other thread's import delays a cancel
        Lane(self._means.workers, 1).submit(self, _load_http)
        self.loop.after(self._ledgers.lease_seconds / 3, self._renew_leases)
        self.loop.after(POLL_SECONDS, self._poll)
        self.loop.run()

    def leave(self) -> None:
        """Let the ledgers write what is pending, which may take a while if the database is away.

        A SIGTERM ends that, also one that came when the loop had ended already.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.is_dismissed |= self._terms > 0
        self._ledgers.close(LEDGER_SECONDS)
        self._notices.wait(LEDGER_SECONDS if self.is_dismissed else notify.END_SECONDS)
        self._log.close(LEDGER_SECONDS)
        if not self.is_dismissed:
            self._ledgers.wait_for_shared()

    def _ended(self, caller: Caller) -> None:
        del self._all[caller]
        if not self._all:
            self.when_empty()

    def _tell_fault(self, error: Exception) -> None:
        for caller in list(self._all):
            caller.tell_fault(error)

    def _poll(self) -> None:
        self.loop.after(POLL_SECONDS, self._poll)
        for caller in list(self._all):
            try:
                caller.poll()
            except Exception as error:  # noqa: BLE001 - the others' deaths must be seen all the same
                self._tell_fault(error)

    def _renew_leases(self) -> None:
        self.loop.after(self._ledgers.lease_seconds / 3, self._renew_leases)
        if holders := [holder for caller in list(self._all) for holder in caller.leases_to_renew()]:
            self._ledgers.renew(holders)

    def _terminated(self) -> None:
        self._terms += 1
        self.loop.post(self._terminate)

    def _terminate(self) -> None:
        self._terms -= 1
        for caller in list(self._all):
            caller.terminate()
        self.is_dismissed |= not any(caller.has_runs for caller in self._all)
        if not self._all:
            self.when_empty()


def _load_http() -> None:
    from . import transport  # noqa: F401 - while the driver transpiles
