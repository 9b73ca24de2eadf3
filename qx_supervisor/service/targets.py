"""Finds the target of a run: the requested backend, session or batch. Also what `guard` is to guard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, RunError
from . import accounts
from .access import account_name, address, clients_of
from .connections import own_connections
from .failures import describe
from .instances import client_at, client_of_job, instance_of_session, private_copy, reassign
from .post import install_hooks
from .simulators import check_computes_here


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
    def in_session(self) -> bool:
        """Whether the job runs in a session or batch."""
        return self.mode is not None


def find_target(backend: Any, service: Any, primitive: Any, width: int) -> Target:
    """Find the target of a run.

    Args:
        backend: A name, a backend object, a `Session` or `Batch`, or None.
        service: A `QiskitRuntimeService`, or None for the saved account.
        primitive: A primitive object of the user's, or None.
        width: The number of qubits of the widest circuit.

    Raises:
        RunError: There is no such target, or the arguments contradict each other.
    """
    if service is not None and not hasattr(service, "least_busy"):
        hint = "; give its .service()" if hasattr(service, "service") else ""
        raise ConfigError("config", f"service must be a QiskitRuntimeService, not {type(service).__name__}{hint}")
    target = _find(backend, service, primitive, width)
    if service is not None:
        what = "primitive" if primitive is not None else "backend" if target.mode is None else "session"
        _check_service(service, target, what)
    return target


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


def _find(backend: Any, service: Any, primitive: Any, width: int) -> Target:
    from qiskit.providers import BackendV2
    from qiskit_ibm_runtime import IBMBackend, Session
    from qiskit_ibm_runtime.utils.default_session import get_cm_session

    if primitive is not None:
        if backend is not None:
            raise ConfigError("config", "the primitive object already has its backend; omit backend=")
        backend = getattr(primitive, "_mode", None) or getattr(primitive, "_backend", None)
        if backend is None:
            raise ConfigError("config", f"{type(primitive).__name__} has no backend; make it with mode=...")
    session = get_cm_session() if primitive is None else None  # inside `with Session(...)`, as Qiskit's primitives do
    if backend is None:
        backend = session
    if isinstance(backend, Session):
        if not getattr(backend, "_active", True):
            raise ConfigError("config", f"the session {backend.session_id} is closed; open a new one")
        return _on_service(backend._backend, backend, primitive)
    if isinstance(backend, IBMBackend):
        return _inside(session, backend)
    if isinstance(backend, BackendV2):
        return _on_service(backend, None, primitive)
    if backend is not None and not isinstance(backend, str):
        raise _not_a_backend(backend)
    if backend == "":  # Qiskit would take any
        raise ConfigError("config", "the backend's name is empty; give a name, or None to have one chosen")
    if service is None:
        service = accounts.default_service() if session is None else session.service
    own_connections(clients_of(service))
    private = private_copy(service)
    found = _by_name(private, backend) if backend is not None else _least_busy(private, width)
    reassign(found, private, service)
    return _inside(session, found, by_name=True)


def backend_asked_for(backend: Any, primitive: Any) -> tuple[Any, ...] | None:
    """The name and options of the requested backend, known without a request; None for the least busy one.

    A session or batch counts as its backend.

    Raises:
        ConfigError: It is not a backend.
    """
    from qiskit.providers import BackendV2
    from qiskit_ibm_runtime import IBMBackend, Session
    from qiskit_ibm_runtime.utils.default_session import get_cm_session

    if primitive is not None:
        backend = getattr(primitive, "_mode", None) or getattr(primitive, "_backend", None)
    elif backend is None:
        backend = get_cm_session()
    if isinstance(backend, Session):
        backend = backend._backend
    if isinstance(backend, IBMBackend):
        fractional = getattr(backend.options, "use_fractional_gates", False)
        more = (fractional, backend.calibration_id)
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
    inside = _on_service(session._backend, session)
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
    service, instance = backend.service, backend._instance
    if mode is not None and mode.session_id:
        instance = instance_of_session(service, mode.session_id, instance)
    client = client_at(service, instance)
    if client is None:
        raise ConfigError(
            "config",
            f"the service of the backend {backend.name} has no instance {instance}; get the backend again from it",
        )
    own_connections([client])
    return Target(backend, mode, client)


def _by_name(service: Any, name: str) -> Any:
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    try:
        return service.backend(name)
    except QiskitBackendNotFoundError:
        known = _backend_names(service)
        if name in known or not known:  # the client hides every failure to read it
            raise RunError(
                "backend", f"the backend {name!r} could not be read; the log of qiskit_ibm_runtime says why"
            ) from None
        import difflib

        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
        raise ConfigError("backend", f"there is no backend {name!r} for this account; {hint}") from None
    except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
        raise RunError("backend", f"the backend {name!r} could not be read: {describe(error)}") from None


def _backend_names(service: Any) -> list[str]:
    try:
        return [name for _, found in service._resolve_cloud_instances(None) for name, mock in found if not mock]
    except AttributeError:  # a local service
        return [backend.name for backend in service.backends()]


def _least_busy(service: Any, width: int) -> Any:
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    try:
        # With a default instance the client would compare the queues as they were when it was created.
        if getattr(service, "_default_instance", False):
            service._discover_backends_from_instance(service._account.instance)
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
    from qiskit_ibm_runtime.fake_provider.local_runtime_job import LocalRuntimeJob

    install_hooks()  # from now on the program's own jobs go to the requested instance
    if isinstance(target, Session):
        if not target._active:
            raise ConfigError("config", f"the session {target.session_id} is closed; there is nothing to guard")
        place = _on_service(target._backend, target)
        if place.is_local or not target.session_id:
            return None
        return Guardable(place.client, session_id=target.session_id)
    if isinstance(target, RuntimeJobV2):
        return Guardable(client_of_job(target), job_id=target.job_id())
    if isinstance(target, LocalRuntimeJob):
        check_computes_here(target.backend())
        return None
    raise ConfigError("config", f"a job, a Session or a Batch can be guarded, not {type(target).__name__}")
