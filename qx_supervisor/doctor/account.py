"""Checks the account, the connection to the service, sessions, the quota, and the clock.

The findings contain no secrets.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from .. import guarded, open_sessions, quota, service, settings
from ..errors import ConfigError, RunError
from ..open_sessions import OpenSession
from ..poller import ask
from ..quota import WHERE, Quota
from ..watcher import ledger, remote
from .finding import Finding

T = TypeVar("T")

SECONDS = 10.0
"""Seconds to wait for the service."""

CLOCK = 60.0
"""Seconds by which the clock may be wrong. Tokens expire by it."""

NO_TAG = "qxs-doctor"
"""A tag that no job has: looking for it is a cheap request."""


def check() -> Iterator[Finding]:
    """Check the account, the service and the clock."""
    try:
        uses_local = settings.uses_local()
    except ConfigError:  # which `machine` has found
        return
    if uses_local:
        yield Finding("account", "ok", "QX_LOCAL is set: the embedded service takes its place, and no QPU runs a job")
        yield from _service()
        return
    if found := service.saved_accounts.fault():
        text, _, next_step = found.partition("; ")
        yield Finding("account", "fault", text, next_step)
        return
    try:
        account = service.accounts.saved_account()
    except Exception as error:  # noqa: BLE001 - the file may contain anything, and none of it is quoted
        yield Finding(
            "account",
            "fault",
            f"the saved account can't be read ({type(error).__name__})",
            "save it again: QiskitRuntimeService.save_account(token=..., instance=..., overwrite=True)",
        )
        return
    if account is None:
        yield Finding(
            "account",
            "warning",
            "no IBM Quantum account is saved, so neither the service nor the clock is checked",
            "qx-supervisor login; the embedded service needs none",
        )
        return
    where = "QISKIT_IBM_TOKEN" if account.source == "environment" else "the account file"
    text = f"{account.channel}, from {where}, instance {redacted(account.instance)}"
    yield Finding("account", "ok", f"{text}; its key is not shown")
    yield from _service()


def redacted(instance: str) -> str:
    """An abbreviated instance, enough to tell it from the user's others."""
    if not instance:
        return "not chosen"
    if not instance.startswith("crn:"):
        return f"{instance[:2]}…"
    parts = [*instance.split(":"), *[""] * 8]
    return f"crn:…:{parts[5]}:…{parts[7][-4:]}"


def _service() -> Iterator[Finding]:
    began = time.monotonic()
    try:
        clients, left = _in_time(_ask)
    except TimeoutError:
        yield Finding("service", "fault", f"no answer within {SECONDS:g} s", "check the network and its proxy")
        return
    except RunError as error:
        yield Finding("service", "fault", error.reason.rstrip("."), "check the API key, the instance and the network")
        return
    except remote.RemoteError as error:
        yield Finding("service", "fault", str(error), "try again; https://status.quantum.cloud.ibm.com reports faults")
        return
    endpoint = service.address(clients[0])[0]
    yield Finding("service", "ok", f"{ledger.safe_endpoint(endpoint)} answers; {time.monotonic() - began:.1f} s in all")
    # Jobs can do without, and the state directory has a finding of its own.
    with contextlib.suppress(TimeoutError, remote.RemoteError, ledger.LedgerError, RunError):
        yield from _sessions(_in_time(lambda: _open_sessions(clients)))
    yield _quota(left)
    yield _clock(clients[0])


def _in_time(ask: Callable[[], T]) -> T:
    """Ask something, and wait for the answer for a while.

    Raises:
        TimeoutError: There is none in time.
    """
    found: Future[T] = Future()

    def work() -> None:
        try:
            found.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - it is raised in the other thread
            found.set_exception(error)

    # A daemon thread, since a request of the official client has no timeout and can't be cancelled.
    threading.Thread(target=work, name="qx-doctor", daemon=True).start()
    return found.result(SECONDS)


def _ask() -> tuple[list[Any], Quota | None]:
    """Connect as `run` does, and make a cheap request; returns the clients, and what the first instance has left."""
    clients = service.clients_of(service.accounts.default_service())
    api = service.remote_of(clients[0])
    ask(api, lambda: api.unfinished(tag=NO_TAG))
    try:
        return clients, quota.read(api)
    except remote.RemoteError:  # jobs can do without
        return clients, None


def _open_sessions(clients: list[Any]) -> list[OpenSession]:
    """The user's open sessions, in all instances."""
    guards = guarded.read()
    return [each for one in clients for each in open_sessions.read(service.remote_of(one), guards, mine=True)]


def _sessions(open_ones: list[OpenSession]) -> Iterator[Finding]:
    """Name the sessions that nobody seems to need any more."""
    for each in open_ones:
        if each.is_left_open:
            parts = [f"{each.mode} {each.id} on {each.backend} is {each.state}, and no job in it is unfinished"]
            if each.idle_since is not None:
                parts.append(f"since {max(0.0, time.time() - each.idle_since) / 60:.0f} min")
            whose = "no running program is known here that guards it"
            text = f"{' '.join(parts)}; {whose}"
            yield Finding("sessions", "warning", text, f"qx-supervisor sessions --close {each.id}")
    if open_ones and not any(each.is_left_open for each in open_ones):
        yield Finding("sessions", "ok", f"{len(open_ones)} open, none left idle by a program that is gone")


def _quota(left: Quota | None) -> Finding:
    if left is None or not left.words():
        text = "the service does not tell what the instance has left"
        return Finding("quota", "warning", text, WHERE)
    if left.is_used_up:
        return Finding("quota", "warning", f"no time is left, and jobs wait: {left.words()}", WHERE)
    if left.is_low():
        return Finding("quota", "warning", f"little time is left: {left.words()}", WHERE)
    return Finding("quota", "ok", left.words())


def _clock(client: Any) -> Finding:
    theirs = service.server_clock(client, SECONDS / 2)
    if theirs is None:
        return Finding("clock", "warning", "the service does not tell its time", "compare the clock by hand: date -u")
    ahead = time.time() - theirs
    if abs(ahead) > CLOCK:
        text = f"this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the service"
        return Finding("clock", "warning", f"{text}, and tokens expire by the clock", "timedatectl set-ntp true")
    return Finding("clock", "ok", "agrees with the service's")
