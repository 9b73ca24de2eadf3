"""The instance that is asked for, where a service has several.

Qiskit's client has one active instance for each service. Whatever any thread asks moves it on, and a job goes to
wherever another thread was just looking. And its current primitives name a backend only, so that their job goes to the
first instance that has one of this name. What is asked for is known all the same: a backend's object says its
instance. So what is looked for and submitted is looked for and submitted by a copy of the service that nobody else has,
and that stays where it was put.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from .access import clients_of
from .connections import own_connections

_chosen: ContextVar[Any] = ContextVar("qx_backend", default=None)
_known: dict[str, str] = {}  # the instances of sessions and jobs, by their ids

_MOST_KNOWN = 10_000
_UNKNOWN = (400, 403, 404)
"""The statuses of an answer of an instance that has no such job or session."""


@contextlib.contextmanager
def submitting_to(backend: Any) -> Iterator[None]:
    """What the block submits is for this very object, where the client names it and its instance only."""
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def alone(service: Any) -> Any:
    """A copy of a service whose active instance no other thread moves; what is no service, as it is."""
    from qiskit_ibm_runtime.qiskit_runtime_service import QiskitRuntimeService

    if not isinstance(service, QiskitRuntimeService):
        return service
    own = copy.copy(service)
    kind: Any = type(service)
    own.__class__ = _staying(kind)
    return own


@functools.lru_cache(maxsize=8)
def _staying(kind: Any) -> Any:
    """A kind of service that looks for a backend at `at_instance`, if nobody says where."""

    def backend(self: Any, name: str, instance: str | None = None, **options: Any) -> Any:
        return kind.backend(self, name, instance=instance or self.at_instance, **options)

    return type(kind.__name__, (kind,), {"backend": backend, "at_instance": None, "__module__": kind.__module__})


def give_back(thing: Any, own: Any, service: Any) -> None:
    """Have what a copy of a service has made be the service's own."""
    if getattr(thing, "_service", None) is own:
        thing._service = service


def client_at(service: Any, instance: str | None) -> Any:
    """The official REST client of an instance; None where the service has none for it."""
    return getattr(service, "_api_clients", {}).get(instance)


def at_its_instance(run: Callable[..., Any]) -> Callable[..., Any]:
    """Around the method by which the client submits: the job goes to the instance that was asked for.

    That is the one of the backend's object, or the one whose name comes beside the backend's; in a session, the one
    that has the session.
    """

    @functools.wraps(run)
    def submit(service: Any, program_id: str, inputs: Any, options: Any = None, *args: Any, **kwargs: Any) -> Any:
        backend, instance = _asked_for(options)
        if kwargs.get("session_id"):
            instance = instance_of_session(service, kwargs["session_id"], instance)
        client = client_at(service, instance)
        if client is None or backend is None:
            return run(service, program_id, inputs, options, *args, **kwargs)  # the client itself refuses it
        own = alone(service)
        own._active_api_client, own.at_instance = client, instance
        made = _backend_at(own, backend, str(instance))
        give_back(made, own, service)
        job = run(own, program_id, inputs, _with_backend(options, made), *args, **kwargs)
        give_back(job, own, service)
        give_back(getattr(job, "_backend", None), own, service)
        if _chosen.get() is None:
            service._active_api_client = client  # as the client does it, in the program's own thread
        return job

    return submit


def _asked_for(options: Any) -> tuple[Any, str | None]:
    """The backend, its name or None; and the instance."""
    if isinstance(options, Mapping):
        backend, instance = options.get("backend"), options.get("instance")
    else:
        backend, instance = getattr(options, "backend", None), getattr(options, "instance", None)
    return backend, getattr(backend, "_instance", None) or instance


def _backend_at(own: Any, asked: Any, instance: str) -> Any:
    """The backend at an instance, for one that is asked for by its name, or by the object of another instance."""
    fractional: bool | None = False
    calibration = None
    if isinstance(asked, str):
        chosen = _chosen.get()
        if chosen is not None and chosen.name == asked and getattr(chosen, "_instance", None) == instance:
            return chosen
    elif asked._instance == asked._api_client._instance == instance:
        return asked
    else:
        fractional, calibration = getattr(asked.options, "use_fractional_gates", False), asked.calibration_id
        asked = asked.name
    return own._create_backend_obj(
        asked, instance=instance, use_fractional_gates=fractional, calibration_id=calibration
    )


def _with_backend(options: Any, backend: Any) -> Any:
    if isinstance(options, Mapping):
        return {**options, "backend": backend, "instance": backend._instance}
    same = copy.copy(options)
    same.backend, same.instance = backend, backend._instance
    return same


# Sessions and jobs


def noting(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Around a method of the client's whose answer is a session or a job: it is at the instance that answers."""

    @functools.wraps(ask)
    def telling(client: Any, *args: Any, **kwargs: Any) -> Any:
        reply = ask(client, *args, **kwargs)
        with contextlib.suppress(KeyError, TypeError):
            _note(client, reply["id"])
        return reply

    return telling


def _note(client: Any, id_: str) -> None:
    if client._instance is not None:
        _known[id_] = client._instance
    if len(_known) > _MOST_KNOWN:
        with contextlib.suppress(RuntimeError):  # another thread notes one at this moment
            _known.pop(next(iter(_known)), None)


def instance_of_session(service: Any, session: str, asked: str | None) -> str | None:
    """The instance that has a session: Qiskit's `from_id` may give it the backend of another.

    Args:
        service: The session's service.
        session: The session's id.
        asked: The instance of its backend: what is taken where nobody else is known to have it.
    """
    clients = clients_of(service)
    if session not in _known and len(clients) > 1:
        found = _who_has(clients, client_at(service, asked), lambda client: client.session_details(session))
        if found is None:
            return asked
        _note(found, session)
    known = _known.get(session)
    return known if client_at(service, known) is not None else asked


def client_of_job(job: Any) -> Any:
    """The official REST client of the instance that has a job of Qiskit's: other threads may have misled its own."""
    known = client_at(job._service, _known.get(job.job_id()))
    clients = clients_of(job._service)
    if known is not None or len(clients) < 2:
        return known or job._api_client
    return _who_has(clients, job._api_client, lambda client: client.job_get(job.job_id())) or job._api_client


def _who_has(clients: list[Any], first: Any, ask: Callable[[Any], object]) -> Any:
    """The client whose instance knows of something; None if that can't be found out now."""
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError

    own_connections(clients)
    for client in sorted(clients, key=lambda each: each is not first):
        try:
            ask(client)
        except RequestsApiError as error:
            if error.status_code not in _UNKNOWN:
                return None
        except Exception:  # noqa: BLE001 - the client raises of many kinds
            return None
        else:
            return client
    return None
