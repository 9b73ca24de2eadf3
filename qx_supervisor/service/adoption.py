"""What a driver that knows nothing of us does with Qiskit's client."""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .connections import own_connections
from .post import HOOKED, Submission, hook_services, hooking, install_hooks, is_hooked, keep_all

logger = logging.getLogger("qx_supervisor")


class Adopter(Protocol):
    """Guards all that a driver does with Qiskit itself. What it raises before a request keeps that from leaving."""

    def submission(self, client: Any, tags: int, session_id: str, keeper: Submission | None) -> Submission:
        """For a POST of a job that has so many tags, to a session or "", and that `guard` has this keeper for."""

    def seen(self, job_id: str, reply: Any) -> None:
        """The driver has read the state of a job."""

    def cancelling(self, job_id: str) -> None:
        """The driver is about to ask for the cancel of a job."""

    def cancelled(self, job_id: str) -> None:
        """That was accepted."""

    def deleted(self, job_id: str) -> None:
        """The driver has deleted a job."""

    def opening(self, client: Any) -> None:
        """The driver is about to open a session."""

    def opened(self, client: Any, session_id: str) -> None:
        """It has."""

    def closed(self, session_id: str, *, dropped: bool) -> None:
        """The driver has closed a session. Dropped: with the jobs that were queued in it."""


_clients: weakref.WeakSet[Any] = weakref.WeakSet()


def be_adopted(adopter: Adopter) -> None:
    """Have the client tell `adopter` what it does, for good; called again, also a client that was loaded anew.

    It makes no request of its own: what is known of a job is what the driver itself asks for.
    """
    from qiskit_ibm_runtime.api.client import RuntimeClient

    install_hooks()
    with hooking:
        keep_all(adopter.submission)
        if is_hooked(RuntimeClient.job_get):
            return
        # Where nothing of ours is called for, the driver makes its requests with the parent's connections otherwise.
        _around(RuntimeClient, "__init__", after=lambda client, _, *__, **___: _made(client))
        _around(RuntimeClient, "job_get", after=lambda _, reply, job_id, *__, **___: adopter.seen(job_id, reply))
        _around(RuntimeClient, "jobs_get", after=lambda _, reply, *__, **___: _seen_all(adopter, reply))
        _around(
            RuntimeClient,
            "job_cancel",
            before=lambda _, job_id: adopter.cancelling(job_id),
            after=lambda _, __, job_id: adopter.cancelled(job_id),
        )
        _around(RuntimeClient, "job_delete", after=lambda _, __, job_id: adopter.deleted(job_id))
        _around(
            RuntimeClient,
            "create_session",
            before=lambda client, *_, **__: adopter.opening(client),
            after=lambda client, reply, *_, **__: adopter.opened(client, str(reply["id"])),
        )
        _around(
            RuntimeClient, "close_session", after=lambda _, __, session_id: adopter.closed(session_id, dropped=False)
        )
        _around(
            RuntimeClient, "cancel_session", after=lambda _, __, session_id: adopter.closed(session_id, dropped=True)
        )


def _around(
    kind: type, name: str, *, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """Have a method of the client's tell what it is called with before, and that with its reply after."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def telling(client: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(client, *args, **kwargs)
        reply = method(client, *args, **kwargs)
        if after is not None:
            try:
                after(client, reply, *args, **kwargs)
            except Exception:  # the driver has its reply
                logger.exception("a fault in qx_supervisor, which goes on; please report it")
        return reply

    setattr(telling, HOOKED, True)
    setattr(kind, name, telling)


def _made(client: Any) -> None:
    _clients.add(client)
    hook_services()


def _seen_all(adopter: Adopter, reply: Any) -> None:
    for job in reply["jobs"]:
        adopter.seen(job["id"], job)


def _own_all_connections() -> None:
    """In a forked child of an adopted driver: its requests must not be answered with its parent's."""
    own_connections(list(_clients))


os.register_at_fork(after_in_child=_own_all_connections)  # after what `connections` does
