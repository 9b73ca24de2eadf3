"""The account, the way to the service, and the clock. What is shown of the account is no secret."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from .. import service
from ..errors import RunError
from ..poller import ask
from ..watcher import ledger, remote
from .finding import Finding

SECONDS = 10.0
"""How long the service is waited for."""

CLOCK = 60.0
"""Seconds by which the clock may be wrong: tokens expire by it."""

NO_TAG = "qxs-doctor"
"""No job has this tag: to look for it is a request that costs little."""


def check() -> Iterator[Finding]:
    """Look at the account, and ask its service."""
    if found := service.saved_accounts.fault():
        text, _, next_step = found.partition("; ")
        yield Finding("account", "fault", text, next_step)
        return
    try:
        account = service.accounts.saved_account()
    except Exception as error:  # noqa: BLE001 - whatever is in the file; and none of it is quoted
        yield Finding(
            "account",
            "fault",
            f"the saved account can't be read ({type(error).__name__})",
            "save it anew: QiskitRuntimeService.save_account(token=..., instance=..., overwrite=True)",
        )
        return
    if account is None:
        yield Finding(
            "account",
            "warning",
            "no IBM Quantum account is saved, so neither the service nor the clock is checked",
            "QiskitRuntimeService.save_account(token=..., instance=...); the embedded service needs none",
        )
        return
    where = "QISKIT_IBM_TOKEN" if account.source == "environment" else "the account file"
    text = f"{account.channel}, from {where}, instance {redacted(account.instance)}"
    yield Finding("account", "ok", f"{text}; its key is not shown")
    yield from _service()


def redacted(instance: str) -> str:
    """As much of an instance as tells it from the user's others."""
    if not instance:
        return "not chosen"
    if not instance.startswith("crn:"):
        return f"{instance[:2]}…"
    parts = [*instance.split(":"), *[""] * 8]
    return f"crn:…:{parts[5]}:…{parts[7][-4:]}"


def _service() -> Iterator[Finding]:
    began = time.monotonic()
    found: Future[Any] = Future()

    def connect() -> None:
        try:
            found.set_result(_ask())
        except BaseException as error:  # noqa: BLE001 - it is told in the other thread
            found.set_exception(error)

    # A thread that is left behind: nobody can end a request of the official client, which has no time limit.
    threading.Thread(target=connect, name="qx-doctor", daemon=True).start()
    try:
        client = found.result(SECONDS)
    except TimeoutError:
        yield Finding("service", "fault", f"no answer within {SECONDS:g} s", "check the network and its proxy")
        return
    except RunError as error:
        yield Finding("service", "fault", error.reason.rstrip("."), "check the API key, the instance and the network")
        return
    except remote.RemoteError as error:
        yield Finding("service", "fault", str(error), "try again; https://status.quantum.cloud.ibm.com tells of faults")
        return
    endpoint = service.address(client)[0]
    yield Finding("service", "ok", f"{ledger.safe_endpoint(endpoint)} answers; {time.monotonic() - began:.1f} s in all")
    yield _clock(client)


def _ask() -> Any:
    """Connect as `run` does, and ask one cheap question; returns the client."""
    client = service.clients_of(service.accounts.default_service())[0]
    there = service.remote_of(client)
    ask(there, lambda: there.unfinished(tag=NO_TAG))
    return client


def _clock(client: Any) -> Finding:
    theirs = service.server_clock(client, SECONDS / 2)
    if theirs is None:
        return Finding("clock", "warning", "the service does not tell the time", "compare the clock by hand: date -u")
    ahead = time.time() - theirs
    if abs(ahead) > CLOCK:
        text = f"this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the service"
        return Finding("clock", "warning", f"{text}, and tokens expire by the clock", "timedatectl set-ntp true")
    return Finding("clock", "ok", "agrees with the service's")
