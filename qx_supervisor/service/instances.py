"""Submits to the requested instance, if a service has several.

Qiskit's client has one active instance per service object. A request of any thread may change it, so a job may go to
the instance that another thread has just used. Also, the client's current primitives only name the backend, so a job
goes to the first instance that has a backend of that name. But a backend object knows its instance. So backends are
looked up, and jobs submitted, with a private copy of the service whose active instance is fixed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from . import internals
from .access import clients_of
from .connections import own_connections

_chosen: ContextVar[Any] = ContextVar("qx_backend", default=None)
_known: dict[str, str] = {}  # the instances of sessions and jobs, by id

_MOST_KNOWN = 10_000
UNKNOWN = (400, 403, 404)
"""HTTP statuses of an instance that does not have a job or session."""


@contextlib.contextmanager
def submitting_to(backend: Any) -> Iterator[None]:
    """In this block, jobs for the name and instance of this backend are submitted with this very object."""
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def private_copy(service: Any) -> Any:
    """A copy of a service with an active instance of its own; anything else is returned as it is."""
    if not isinstance(service, internals.find("QiskitRuntimeService")):
        return service
    private = copy.copy(service)
    kind: Any = type(service)
    private.__class__ = _pinned(kind)
    return private


@functools.lru_cache(maxsize=8)
def _pinned(kind: Any) -> Any:
    """A subclass of a service class that looks for backends at `at_instance` by default."""

    def backend(self: Any, name: str, instance: str | None = None, **options: Any) -> Any:
        return kind.backend(self, name, instance=instance or self.at_instance, **options)

    return type(kind.__name__, (kind,), {"backend": backend, "at_instance": None, "__module__": kind.__module__})


def reassign(thing: Any, private: Any, service: Any) -> None:
    """Make an object that a copy of a service has created belong to the service."""
    if internals.service_of(thing) is private:
        internals.give_to(thing, service)


def client_at(service: Any, instance: str | None) -> Any:
    """The official REST client of an instance, or None."""
    return None if instance is None else internals.clients_by_instance(service).get(instance)


def at_its_instance(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the method by which the client submits, so that the job goes to the requested instance.

    That is the instance of the backend object or, beside a backend's name, the named one; in a session, the instance
    that has the session.
    """

    @functools.wraps(run)
    def submit(service: Any, program_id: str, inputs: Any, options: Any = None, *args: Any, **kwargs: Any) -> Any:
        backend, instance = _asked_for(options)
        if kwargs.get("session_id"):
            instance = instance_of_session(service, kwargs["session_id"], instance)
        client = client_at(service, instance)
        if client is None or backend is None:
            return run(service, program_id, inputs, options, *args, **kwargs)  # the client refuses it
        private = private_copy(service)
        internals.activate(private, client)
        private.at_instance = instance
        pinned = _backend_at(private, backend, str(instance))
        reassign(pinned, private, service)
        job = run(private, program_id, inputs, _with_backend(options, pinned), *args, **kwargs)
        reassign(job, private, service)
        reassign(internals.backend_of(job), private, service)
        if _chosen.get() is None:
            internals.activate(service, client)  # as the client itself does
        return job

    return submit


def _asked_for(options: Any) -> tuple[Any, str | None]:
    """The requested backend or its name, or None; and the requested instance."""
    if isinstance(options, Mapping):
        backend, instance = options.get("backend"), options.get("instance")
    else:
        backend, instance = getattr(options, "backend", None), getattr(options, "instance", None)
    return backend, internals.instance_of(backend) or instance


def _backend_at(private: Any, requested: Any, instance: str) -> Any:
    """The backend object at an instance, for a backend's name or for an object of any instance."""
    like = None
    if isinstance(requested, str):
        chosen = _chosen.get()
        if chosen is not None and chosen.name == requested and internals.instance_of(chosen) == instance:
            return chosen
    elif internals.is_consistent(requested, instance):
        return requested
    else:
        like, requested = requested, requested.name
    return internals.make_backend(private, requested, instance, like)


def _with_backend(options: Any, backend: Any) -> Any:
    if isinstance(options, Mapping):
        return {**options, "backend": backend, "instance": internals.instance_of(backend)}
    same = copy.copy(options)
    same.backend, same.instance = backend, internals.instance_of(backend)
    return same


# Sessions and jobs


def noting(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of the client that returns a session or job, to note the instance that has it."""

    @functools.wraps(ask)
    def hooked(client: Any, *args: Any, **kwargs: Any) -> Any:
        reply = ask(client, *args, **kwargs)
        with contextlib.suppress(KeyError, TypeError):
            _note(client, reply["id"])
        return reply

    return hooked


def _note(client: Any, id_: str) -> None:
    instance = internals.instance_of(client)
    if instance is not None:
        _known[id_] = instance
    if len(_known) > _MOST_KNOWN:
        with contextlib.suppress(RuntimeError):  # another thread changes the dict at this moment
            _known.pop(next(iter(_known)), None)


def instance_of_session(service: Any, session: str, requested: str | None) -> str | None:
    """The instance that has a session. Qiskit's `from_id` may give a session the backend of another instance.

    Args:
        service: The session's service.
        session: The session's id.
        requested: The instance of its backend, which is returned if no other is known to have the session.
    """
    clients = clients_of(service)
    if session not in _known and len(clients) > 1:
        found = _who_has(clients, client_at(service, requested), lambda client: client.session_details(session))
        if found is None:
            return requested
        _note(found, session)
    known = _known.get(session)
    return known if client_at(service, known) is not None else requested


def client_of_job(job: Any) -> Any:
    """The official REST client of the instance that has a job; the job's own may be another instance's."""
    service, own = internals.service_of(job), internals.client_of(job)
    known = client_at(service, _known.get(job.job_id()))
    clients = clients_of(service)
    if known is not None or len(clients) < 2:
        return known or own
    return _who_has(clients, own, lambda client: client.job_get(job.job_id())) or own


def _who_has(clients: list[Any], first: Any, ask: Callable[[Any], object]) -> Any:
    """The first client for which `ask` succeeds; None if none does, or if a request fails otherwise."""
    own_connections(clients)
    for client in sorted(clients, key=lambda each: each is not first):
        try:
            ask(client)
        except internals.find("RequestsApiError") as error:
            if error.status_code not in UNKNOWN:
                return None
        except Exception:  # noqa: BLE001 - the client raises many kinds of errors
            return None
        else:
            return client
    return None
