"""The services that jobs are guarded on, each with its token and its connections.

Callers with the same credentials, in every field but the token, share one: a token is renewed once and not by each, and
there are a few connections and not a few for each. Nothing is shared by those that differ in anything.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Protocol

from .loop import Loop
from .protocol import Credentials
from .remote import CONNECTIONS, Refused, RemoteError, watcher_remote
from .workers import Lane, Workers

TOKEN_MARGIN = 720.0
"""A token with less than this left, a fifth of its hour, is renewed: so a refusal is noticed while the driver lives."""

TOKEN_RETRY = 60.0

MOST_CONNECTIONS = 16
"""To one service, however many callers share them."""


class User(Protocol):
    """Who uses an account."""

    @property
    def has_runs(self) -> bool:
        """Whether anything is guarded for it."""

    def token_refused(self, trouble: str) -> None:
        """The token service refuses the key; called in the loop."""


class Account:
    """A service that jobs are guarded on.

    Args:
        credentials: How it is reached.
        loop: The watcher's loop.
        workers: The watcher's threads.
    """

    def __init__(self, credentials: Credentials, loop: Loop, workers: Workers) -> None:
        self.credentials = credentials
        self.remote, self._token = watcher_remote(credentials, MOST_CONNECTIONS)
        self.lane = Lane(workers, CONNECTIONS)
        self.users: set[User] = set()
        self._loop = loop
        self._warming = threading.Lock()
        self._is_warm = False
        self._is_renewed = False  # its token is being renewed in good time
        self._told: set[User] = set()  # who knows that the token service refuses

    def join(self, user: User, credentials: Credentials) -> None:
        """Another user, or the same again: a better token is used from now on."""
        self.users.add(user)
        self._fit_lane()
        self._told.discard(user)
        self._token.offer(credentials)

    def leave(self, user: User) -> None:
        """A user needs it no more."""
        self.users.discard(user)
        self._told.discard(user)
        self._fit_lane()

    def _fit_lane(self) -> None:
        self.lane.width = min(MOST_CONNECTIONS, CONNECTIONS * max(1, len(self.users)))

    def prepare(self) -> str:
        """See that the service can be reached, with a token; returns what stands in the way, or "". Called by a thread.

        From then on nothing is read from a file that somebody may delete. Nothing is requested but a token, if there is
        none.
        """
        problem = ""
        try:
            self.remote.open()  # a watcher that can't is no guard, and the driver has to hear of that
            self._token.header()  # the acknowledgement waits for it, so that no cancel has to
        except RemoteError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - the driver waits for an answer
            # Its text may quote a proxy's password.
            what = f": {error.name}" if isinstance(error, ImportError) and error.name else ""
            problem = f"the service can't be reached ({type(error).__name__}{what})"
        self._loop.post(self._renew_in_good_time)
        return problem

    def keep_warm(self) -> None:
        """Keep a connection to the service open. Called by a thread, while the driver goes on."""
        with self._warming:
            if not self._is_warm:
                self.remote.keep_warm()
                self._is_warm = True

    def _renew_in_good_time(self) -> None:
        if not self._is_renewed:
            self._is_renewed = True
            self._wait_for_renewal()

    def _wait_for_renewal(self) -> None:
        pause = max(TOKEN_RETRY, self._token.seconds_left() - TOKEN_MARGIN)
        self._loop.after(pause, lambda: self.lane.submit(self, self._renew))

    def _renew(self) -> None:
        """Renew the token in good time, so that a key that was revoked is noticed while the driver lives."""
        if any(user.has_runs for user in tuple(self.users)) and self._token.seconds_left() <= TOKEN_MARGIN:
            try:
                self._token.renew()
                self._loop.post(self._told.clear)
            except Refused as error:
                trouble = str(error)
                self._loop.post(lambda: self._tell_refused(trouble))
            except RemoteError:
                pass  # tried again in a minute, and by a cancel itself
        self._loop.post(self._go_on)

    def _go_on(self) -> None:
        if self.users:
            self._wait_for_renewal()
        else:
            self._is_renewed = False

    def _tell_refused(self, trouble: str) -> None:
        for user in self.users - self._told:
            self._told.add(user)
            user.token_refused(trouble)


class Accounts:
    """All accounts of a watcher.

    Args:
        loop: The watcher's loop.
        workers: The watcher's threads.
    """

    def __init__(self, loop: Loop, workers: Workers) -> None:
        self._loop = loop
        self._workers = workers
        self._known: dict[Hashable, Account] = {}

    def join(self, user: User, credentials: Credentials) -> Account:
        """The account of some credentials, from now on this user's too."""
        key = _sameness(credentials)
        account = self._known.get(key)
        if account is None:
            account = self._known[key] = Account(credentials, self._loop, self._workers)
        account.join(user, credentials)
        return account

    def leave(self, user: User, account: Account) -> None:
        """A user needs an account no more; without users it is forgotten."""
        account.leave(user)
        if not account.users:
            self._known.pop(_sameness(account.credentials), None)  # a KeyError would name the key


def _sameness(how: Credentials) -> Hashable:
    """What must be equal for two credentials to be the same: all but the token."""
    proxies = None if how.proxies is None else tuple(sorted(how.proxies.items()))
    return how.endpoint, how.instance, how.iam_url, how.api_key, how.verify, proxies
