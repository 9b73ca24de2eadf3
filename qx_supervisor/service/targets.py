"""Finds the target of a run: the requested backend, session or batch. Also what `guard` is to guard."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import settings
from ..errors import ConfigError, RunError
from ..spelling import did_you_mean
from ..watcher import remote
from . import accounts, embedded, internals
from .access import account_name, address, clients_of, remote_of
from .connections import own_connections
from .failures import describe
from .instances import UNKNOWN, client_at, client_of_job, instance_of_session, private_copy, reassign
from .post import install_hooks
from .simulators import check_computes_here

MOST_NAMES = 20
"""How many backends are listed beside the one that was meant: the local service has sixty."""


@dataclass(frozen=True)
class Target:
    """The target of a run.

    Attributes:
        backend: Qiskit's backend object.
        mode: An open `Session` or `Batch`, or None.
        client: The official REST client of the backend's instance; None for a local backend.
    """

    backend: Any
    mode: Any
    client: Any

    @property
    def name(self) -> str:
        """The backend's name."""
        return str(self.backend.name)

    @property
    def is_local(self) -> bool:
        """Whether it is simulated in this process, so that there is nothing to guard."""
        return self.client is None

    @property
    def is_embedded(self) -> bool:
        """Whether the embedded service has taken IBM's place, because `QX_LOCAL` asks for it."""
        return embedded.is_its(self.client)

    @property
    def in_session(self) -> bool:
        """Whether the job runs in a session or batch."""
        return self.mode is not None

    @property
    def is_dedicated(self) -> bool:
        """Whether the job runs in a session that is charged for all the time that it is open, as no batch is."""
        from qiskit_ibm_runtime import Batch

        return self.mode is not None and not isinstance(self.mode, Batch)


def find_target(backend: Any, service: Any, primitive: Any, width: int, instance: str | None = None) -> Target:
    """Find the target of a run.

    Args:
        backend: A name, a backend object, a `Session` or `Batch`, or None.
        service: A `QiskitRuntimeService`, or None for the saved account.
        primitive: A primitive object of the user's, or None.
        width: The number of qubits of the widest circuit.
        instance: The instance of the saved account, by its CRN or name; None: the saved one.

    Raises:
        RunError: There is no such target, or the arguments contradict each other; or Qiskit's client can't be used.
    """
    settings.uses_local()  # so that a mistake in it is named, whatever it is not needed for here
    _check_is_service(service)
    internals.check()
    target = _find(backend, service, primitive, width, instance)
    what = "primitive" if primitive is not None else "backend" if target.mode is None else "session"
    if service is not None:
        _check_service(service, target, what)
    is_saved_account = what == "backend" and service is None and (backend is None or isinstance(backend, str))
    if instance is not None and not is_saved_account:
        its = getattr(target.backend, "service", None)
        accounts.check_instance(instance, its, target.client, "service" if service is not None else what)
    return target


def in_batch(target: Target) -> Target:
    """Open a batch on a target's backend; returns the target inside."""
    from qiskit_ibm_runtime import Batch

    return Target(target.backend, Batch(backend=target.backend), target.client)


def _check_is_service(service: Any) -> None:
    if service is not None and not hasattr(service, "least_busy"):
        hint = "; give its .service()" if hasattr(service, "service") else ""
        raise ConfigError("config", f"service must be a QiskitRuntimeService, not {type(service).__name__}{hint}")


@dataclass(frozen=True)
class NamedBackend:
    """What is known of the backend of a job that was submitted elsewhere."""

    name: str


def find_job(
    job: str,
    service: Any,
    instance: str | None,
    ask: Callable[[remote.Remote, Callable[[], remote.JobState]], remote.JobState],
) -> tuple[Target, remote.JobState]:
    """Find a job that is there already.

    Args:
        job: Its id.
        service: A `QiskitRuntimeService`, or None for the saved account.
        instance: The instance of the saved account, by its CRN or name; None: the saved one.
        ask: Asks an instance a question, as `poller.ask` does.

    Returns:
        Its target and its state.

    Raises:
        ConfigError: There is no such job.
        RunError: There is no account, or it can't be used.
        RemoteError: The service can't be asked.
    """
    _check_is_service(service)
    internals.check()
    found = accounts.default_service(instance) if service is None else service
    clients = clients_of(found)
    if service is not None and instance is not None:
        accounts.check_instance(instance, found, clients[0] if len(clients) == 1 else None, "service")
    own_connections(clients)
    for client in clients:
        there = remote_of(client)
        try:
            state = ask(there, functools.partial(there.job, job))
        except remote.RemoteError as error:
            if error.status not in UNKNOWN:
                raise
            continue
        mode = state.reply.get("session_id") or None
        return Target(NamedBackend(str(state.reply.get("backend") or "")), mode, client), state
    whose = "the saved account" if service is None else "the given service"
    where = ", ".join(address(client)[1] for client in clients)
    asked = f"the instance {where}" if len(clients) == 1 else f"any of the {len(clients)} instances {where}"
    step = "give the instance that it was submitted to, with instance= or service=" if clients else "give service="
    raise ConfigError("config", f"there is no job {job} at {asked} of {whose}; check the id, or {step}")


def _check_service(service: Any, target: Target, what: str) -> None:
    """Check that a target belongs to the given service.

    Raises:
        ConfigError: It belongs to another account or instance.
    """
    if target.is_local or account_name(target.client) in {account_name(client) for client in clients_of(service)}:
        return
    raise ConfigError(
        "config",
        f"the {what} on {target.name}, at the instance {address(target.client)[1]}, belongs to another service than "
        f"the one in service=; omit service=, or make the {what} with that service",
    )


def _find(backend: Any, service: Any, primitive: Any, width: int, instance: str | None) -> Target:
    from qiskit.providers import BackendV2
    from qiskit_ibm_runtime import IBMBackend, Session

    if primitive is not None:
        if backend is not None:
            raise ConfigError("config", "the primitive object already has its backend; omit backend=")
        backend = internals.mode_of(primitive)
        if backend is None:
            raise ConfigError("config", f"{type(primitive).__name__} has no backend; make it with mode=...")
    # Inside `with Session(...)` it is the session, as for Qiskit's primitives.
    session = internals.find("get_cm_session")() if primitive is None else None
    if backend is None:
        backend = session
    if isinstance(backend, Session):
        _check_open(backend)
        return _on_service(internals.backend_of(backend), backend, primitive)
    if isinstance(backend, IBMBackend):
        return _inside(session, backend)
    if isinstance(backend, BackendV2):
        return _on_service(backend, None, primitive)
    if backend is not None and not isinstance(backend, str):
        raise _not_a_backend(backend)
    if backend == "":  # Qiskit would take any
        raise ConfigError("config", "the backend's name is empty; give a name, or None to have one chosen")
    if service is None:
        service = accounts.default_service(instance) if session is None else session.service
    own_connections(clients_of(service))
    private = private_copy(service)
    found = _by_name(private, backend) if backend is not None else _least_busy(private, width)
    reassign(found, private, service)
    return _inside(session, found, by_name=True)


def local_session(backend: Any, primitive: Any) -> Any:
    """A copy of the session or batch that a call is in, if that is local; None otherwise.

    For a run that begins after the call: by then the `with` block may be over, which closes no copy. A local session
    has no effect but that.

    Args:
        backend: What the call names as backend.
        primitive: The primitive object of the call's own, or None.

    Raises:
        ConfigError: It is closed already.
    """
    session = internals.mode_of(primitive) if primitive is not None else backend
    if session is None and primitive is None:
        session = internals.session_around()
    if not internals.is_a(session, "Session", "Batch") or internals.is_a(internals.backend_of(session), "IBMBackend"):
        return None
    _check_open(session)
    return copy.copy(session)


def _check_open(session: Any) -> None:
    if internals.is_open(session):
        return
    if session is internals.session_around():  # as of the call, whose context a run's thread has
        raise ConfigError(
            "config",
            f"the session {session.session_id} was closed before this run was submitted; open a new one, and have what "
            "submit() returns wait_for_job() before the `with` block ends",
        )
    raise ConfigError("config", f"the session {session.session_id} is closed; open a new one")


def target_of_primitive(mode: Any, name: str) -> Target:
    """The target of a primitive that is made with a backend, session or batch, or in a `with` block.

    Raises:
        ConfigError: It is none of these, it is closed, or it is not known to compute here.
    """
    if mode is None and internals.find("get_cm_session")() is None:
        raise ConfigError(
            "config", f"{name} needs a backend object, an open Session or a Batch; give one of them as mode="
        )
    if isinstance(mode, str):
        raise ConfigError("config", f"{name} needs a backend object, not its name; give service.backend({mode!r})")
    return _find(mode, None, None, 0, None)


def backend_asked_for(backend: Any, primitive: Any) -> tuple[Any, ...] | None:
    """The name and options of the requested backend, known without a request; None for the least busy one.

    A session or batch counts as its backend.

    Raises:
        ConfigError: It is not a backend.
    """
    from qiskit.providers import BackendV2
    from qiskit_ibm_runtime import IBMBackend, Session

    if primitive is not None:
        backend = internals.mode_of(primitive)
    elif backend is None:
        backend = internals.find("get_cm_session")()
    if isinstance(backend, Session):
        backend = internals.backend_of(backend)
    if isinstance(backend, IBMBackend):
        fractional = getattr(backend.options, "use_fractional_gates", False)
        more = (fractional, internals.calibration_of(backend))
        return (backend.name,) if more == (False, None) else (backend.name, *more)
    if isinstance(backend, BackendV2):
        return (backend.name,)
    if backend is not None and not isinstance(backend, str):
        raise _not_a_backend(backend)
    return None if backend is None else (backend,)


def _not_a_backend(backend: Any) -> ConfigError:
    return ConfigError(
        "config", f"backend must be a name, a backend object, a Session or a Batch, not {type(backend).__name__}"
    )


def _inside(session: Any, backend: Any, *, by_name: bool = False) -> Target:
    """The target for a backend, outside or inside a `with Session(...)`."""
    outside = _on_service(backend, None)
    if session is None:
        return outside
    inside = _on_service(internals.backend_of(session), session)
    where = ""
    if backend.name != session.backend():
        where = f"on {session.backend()}, and not on {backend.name}"
    elif not by_name and not _same_account(inside, outside):  # a name fits every instance
        where = f"at its own instance of {backend.name}, and not at the backend's"
    if where:
        raise ConfigError(
            "config",
            f"inside this `with` everything runs in the session {where}; omit backend=, or call run outside",
        )
    return inside


def _same_account(one: Target, other: Target) -> bool:
    if one.is_local or other.is_local:
        return one.is_local and other.is_local
    return account_name(one.client) == account_name(other.client)


def _on_service(backend: Any, mode: Any, primitive: Any = None) -> Target:
    """The target for a backend object, with the client of its instance or of its session's instance.

    Raises:
        ConfigError: It is neither IBM Quantum's nor known to compute here, or its service has no such instance.
    """
    from qiskit_ibm_runtime import IBMBackend

    if not isinstance(backend, IBMBackend):
        check_computes_here(backend, primitive)
        return Target(backend, mode, None)
    service, instance = backend.service, internals.instance_of(backend)
    if mode is not None and mode.session_id:
        instance = instance_of_session(service, mode.session_id, instance)
    client = client_at(service, instance)
    if client is None:
        raise ConfigError(
            "config",
            f"the service of the backend {backend.name} has no instance {instance}; get the backend again from it",
        )
    internals.check_connected(client)
    own_connections([client])
    return Target(backend, mode, client)


def _by_name(service: Any, name: str) -> Any:
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    try:
        return service.backend(name)
    except QiskitBackendNotFoundError:
        known = internals.backend_names(service)
        if name in known or not known:  # the client hides every failure to read it
            raise RunError(
                "backend", f"the backend {name!r} could not be read; the log of qiskit_ibm_runtime says why"
            ) from None
        there_are = ", ".join(sorted(known))
        meant = did_you_mean(name, known)
        if any(embedded.is_its(client) for client in clients_of(service)):
            it_has, other = (f"{meant} It has", "NAME") if meant else ("it has", name)
            raise ConfigError(
                "backend",
                f"the embedded service has no backend {name!r}; {it_has} only {there_are}; to have it offer others: "
                f"qx-supervisor local stop, and then qx-supervisor local start --backend {other}",
            ) from None
        if meant and len(known) <= MOST_NAMES:
            meant += f" There are: {there_are}"
        raise ConfigError(
            "backend", f"there is no backend {name!r} for this account; {meant or f'there are: {there_are}'}"
        ) from None
    except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
        raise RunError("backend", f"the backend {name!r} could not be read: {describe(error)}") from None


def _least_busy(service: Any, width: int) -> Any:
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    try:
        internals.refresh_queues(service)
        return service.least_busy(min_num_qubits=width)
    except QiskitBackendNotFoundError:
        raise ConfigError(
            "backend", f"no backend of this account is online and has {width} qubits; see service.backends()"
        ) from None
    except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
        raise RunError("backend", f"the backends could not be listed: {describe(error)}") from None


def instances_near(target: Target) -> list[str]:
    """The instances of a target's service: a restarted driver may choose another one."""
    clients = clients_of(getattr(target.backend, "service", None))
    return [address(client)[1] for client in clients]


@dataclass(frozen=True)
class Guardable:
    """A job or a session that `guard` can guard.

    Attributes:
        client: The official REST client for its instance.
        session_id: The session's or batch's id, or "".
        job_id: The job's id, or "".
    """

    client: Any
    session_id: str = ""
    job_id: str = ""


def what_to_guard(target: Any) -> Guardable | None:
    """The job or session to guard, or None if it is local.

    Raises:
        ConfigError: It can't be guarded.
    """
    from qiskit_ibm_runtime import RuntimeJobV2, Session

    internals.check()
    install_hooks()  # from now on the program's own jobs go to the requested instance
    if isinstance(target, Session):
        if not internals.is_open(target):
            raise ConfigError("config", f"the session {target.session_id} is closed; there is nothing to guard")
        place = _on_service(internals.backend_of(target), target)
        if place.is_local or not target.session_id:
            return None
        return Guardable(place.client, session_id=target.session_id)
    if isinstance(target, RuntimeJobV2):
        return Guardable(client_of_job(target), job_id=target.job_id())
    if isinstance(target, internals.find("LocalRuntimeJob")):
        check_computes_here(target.backend())
        return None
    raise ConfigError("config", f"a job, a Session or a Batch can be guarded, not {type(target).__name__}")
