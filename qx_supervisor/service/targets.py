"""Where a run goes: the backend, session or batch that was asked for, and what of the user's own can be guarded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, RunError
from . import accounts
from .access import address, clients_of
from .connections import own_connections
from .failures import describe


@dataclass(frozen=True)
class Target:
    """Where a run goes.

    Attributes:
        backend: Qiskit's backend object.
        mode: An open `Session` or `Batch`, or None.
        client: The official client's REST client for the backend's instance; None for a local backend.
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
        """Whether it is simulated in this process, with nothing to guard."""
        return self.client is None

    @property
    def in_session(self) -> bool:
        """Whether the job runs in a session or batch."""
        return self.mode is not None


def find_target(backend: Any, service: Any, primitive: Any, width: int) -> Target:
    """Find where a run is to go.

    Args:
        backend: A name, a backend object, a `Session` or `Batch`, or None.
        service: A `QiskitRuntimeService`, or None for the saved account.
        primitive: A primitive object of the user's, or None.
        width: The number of qubits that the widest circuit has.

    Raises:
        RunError: If there is no such place.
    """
    from qiskit.providers import BackendV2
    from qiskit_ibm_runtime import IBMBackend, Session
    from qiskit_ibm_runtime.utils.default_session import get_cm_session

    if primitive is not None:
        if backend is not None:
            raise ConfigError("config", "the primitive object already has its backend; leave backend= away")
        backend = getattr(primitive, "_mode", None) or getattr(primitive, "_backend", None)
        if backend is None:
            raise ConfigError("config", f"{type(primitive).__name__} has no backend; make it with mode=...")
    session = get_cm_session() if primitive is None else None  # inside `with Session(...)`, as Qiskit's primitives do
    if backend is None:
        backend = session
    if isinstance(backend, Session):
        if not getattr(backend, "_active", True):
            raise ConfigError("config", f"the session {backend.session_id} is closed; open a new one")
        return _on_service(backend._backend, backend)
    if isinstance(backend, IBMBackend):
        return _inside(session, backend)
    if isinstance(backend, BackendV2):
        return Target(backend, None, None)
    if backend is not None and not isinstance(backend, str):
        raise _not_a_backend(backend)
    if backend == "":  # which Qiskit takes for any
        raise ConfigError("config", "the backend's name is empty; give a name, or None to have one chosen")
    service = service if service is not None else accounts.default_service()
    if not hasattr(service, "least_busy"):
        hint = "; give its .service()" if hasattr(service, "service") else ""
        raise ConfigError("config", f"service must be a QiskitRuntimeService, not {type(service).__name__}{hint}")
    own_connections(clients_of(service))
    return _inside(session, _by_name(service, backend) if backend is not None else _least_busy(service, width))


def backend_asked_for(backend: Any, primitive: Any) -> tuple[Any, ...] | None:
    """What names the backend that a call asks for, before anything is asked of the service; None for the least busy.

    A session or batch counts as its backend. To the name comes what else was asked for with it.

    Raises:
        ConfigError: If it is no backend.
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


def _inside(session: Any, backend: Any) -> Target:
    """A backend that was named, inside a `with Session(...)` or not."""
    if session is None:
        return _on_service(backend, None)
    if backend.name != session.backend():
        raise ConfigError(
            "config",
            f"inside this `with` everything runs in the session on {session.backend()}, and not on {backend.name}; "
            "leave backend= away, or call run outside",
        )
    return _on_service(session._backend, session)


def _on_service(backend: Any, mode: Any) -> Target:
    from qiskit_ibm_runtime import IBMBackend

    if not isinstance(backend, IBMBackend):
        return Target(backend, mode, None)
    service = backend.service
    client = service._api_clients.get(backend._instance) or service._active_api_client
    own_connections([client])
    return Target(backend, mode, client)


def _by_name(service: Any, name: str) -> Any:
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    try:
        return service.backend(name)
    except QiskitBackendNotFoundError:
        known = _backend_names(service)
        if name in known or not known:  # the client swallows every failure to read it
            raise RunError(
                "backend", f"the backend {name!r} could not be read; the log of qiskit_ibm_runtime says why"
            ) from None
        import difflib

        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
        raise ConfigError("backend", f"there is no backend {name!r} for this account; {hint}") from None
    except Exception as error:  # noqa: BLE001 - the client raises of many kinds
        raise RunError("backend", f"the backend {name!r} could not be read: {describe(error)}") from None


def _backend_names(service: Any) -> list[str]:
    try:
        return [name for _, found in service._resolve_cloud_instances(None) for name, mock in found if not mock]
    except AttributeError:  # a local service
        return [backend.name for backend in service.backends()]


def _least_busy(service: Any, width: int) -> Any:
    from qiskit.providers.exceptions import QiskitBackendNotFoundError

    try:
        # With a default instance the client would choose by the queues as they were when it was made.
        if getattr(service, "_default_instance", False):
            service._discover_backends_from_instance(service._account.instance)
        return service.least_busy(min_num_qubits=width)
    except QiskitBackendNotFoundError:
        raise ConfigError(
            "backend", f"no backend of this account is online and has {width} qubits; see service.backends()"
        ) from None
    except Exception as error:  # noqa: BLE001 - the client raises of many kinds
        raise RunError("backend", f"the backends could not be listed: {describe(error)}") from None


def instances_near(target: Target) -> list[str]:
    """The instances of the service that a backend was found with: another one may be chosen the next time."""
    clients = clients_of(getattr(target.backend, "service", None))
    return [address(client)[1] for client in clients]


@dataclass(frozen=True)
class Guardable:
    """A job or a session of the user's.

    Attributes:
        client: The official REST client for its instance.
        session_id: The session's or batch's id, or "".
        job_id: The job's id, or "".
    """

    client: Any
    session_id: str = ""
    job_id: str = ""


def what_to_guard(target: Any) -> Guardable | None:
    """What is to be guarded of a target, or None where it runs locally.

    Raises:
        ConfigError: If it can't be guarded.
    """
    from qiskit_ibm_runtime import IBMBackend, RuntimeJobV2, Session
    from qiskit_ibm_runtime.fake_provider.local_runtime_job import LocalRuntimeJob

    if isinstance(target, Session):
        if not target._active:
            raise ConfigError("config", f"the session {target.session_id} is closed; there is nothing to guard")
        if not isinstance(target._backend, IBMBackend) or not target.session_id:
            return None
        return Guardable(_on_service(target._backend, None).client, session_id=target.session_id)
    if isinstance(target, RuntimeJobV2):
        return Guardable(target._api_client, job_id=target.job_id())
    if isinstance(target, LocalRuntimeJob):
        return None
    raise ConfigError("config", f"a job, a Session or a Batch can be guarded, not {type(target).__name__}")
