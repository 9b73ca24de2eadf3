"""Hooks in Qiskit's client that report what a driver does, for `exec`."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .. import forks
from ..distribution import please_report
from . import internals
from .connections import own_connections
from .post import HOOKED, Posting, Submission, ask_about_all, hook_services, hooking, install_hooks, is_hooked

logger = logging.getLogger("qx_supervisor")


class Adopter(Protocol):
    """Guards what a driver does with Qiskit. A request is not sent if the call before it raises."""

    def submission(self, client: Any, posting: Posting, session_guard: Submission | None) -> Submission:
        """Called for the POST of a job, to a session that `guard` guards by `session_guard`, or to none."""

    def seen(self, job_id: str, reply: Any) -> None:
        """The driver has read the state of a job."""

    def cancelling(self, job_id: str) -> None:
        """The driver is about to ask for the cancel of a job."""

    def cancelled(self, job_id: str) -> None:
        """The cancel was accepted."""

    def deleted(self, job_id: str) -> None:
        """The driver has deleted a job."""

    def opening(self, client: Any) -> None:
        """The driver is about to open a session."""

    def opened(self, client: Any, session_id: str) -> None:
        """The driver has opened a session."""

    def closed(self, session_id: str, *, dropped: bool) -> None:
        """The driver has closed a session; if `dropped`, its queued jobs are cancelled."""


_clients: weakref.WeakSet[Any] = weakref.WeakSet()


def be_adopted(adopter: Adopter) -> None:
    """Install the hooks, permanently. Call it again after the client has been reloaded.

    The hooks make no requests: a job's state is known from the driver's own requests.
    """
    kind = internals.find("RuntimeClient")
    install_hooks()
    with hooking:
        ask_about_all(adopter.submission)
        if is_hooked(kind.job_get):
            return
        # So that `_own_all_connections` reaches clients whose driver calls no other hook.
        _around(kind, "__init__", after=lambda client, _, *__, **___: _made(client))
        _around(kind, "job_get", after=lambda _, reply, job_id, *__, **___: adopter.seen(job_id, reply))
        _around(kind, "jobs_get", after=lambda _, reply, *__, **___: _seen_all(adopter, reply))
        _around(
            kind,
            "job_cancel",
            before=lambda _, job_id: adopter.cancelling(job_id),
            after=lambda _, __, job_id: adopter.cancelled(job_id),
        )
        _around(kind, "job_delete", after=lambda _, __, job_id: adopter.deleted(job_id))
        _around(
            kind,
            "create_session",
            before=lambda client, *_, **__: adopter.opening(client),
            after=lambda client, reply, *_, **__: adopter.opened(client, str(reply["id"])),
        )
        _around(kind, "close_session", after=lambda _, __, session_id: adopter.closed(session_id, dropped=False))
        _around(kind, "cancel_session", after=lambda _, __, session_id: adopter.closed(session_id, dropped=True))


def _around(
    kind: type, name: str, *, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """Call `before` with the arguments of a method of the client, and `after` with its reply too."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def hooked(client: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(client, *args, **kwargs)
        reply = method(client, *args, **kwargs)
        if after is not None:
            try:
                after(client, reply, *args, **kwargs)
            except Exception:  # the driver gets its reply all the same
                logger.exception("a fault in qx_supervisor, which goes on; %s", please_report())
        return reply

    setattr(hooked, HOOKED, True)
    setattr(kind, name, hooked)


def _made(client: Any) -> None:
    _clients.add(client)
    hook_services()


def _seen_all(adopter: Adopter, reply: Any) -> None:
    for job in reply["jobs"]:
        adopter.seen(job["id"], job)


def _own_all_connections() -> None:
    """In a forked child: its requests need their own connections, or it reads its parent's answers."""
    own_connections(list(_clients))


forks.reset_in_child(_own_all_connections)  # after the reset of `connections`
