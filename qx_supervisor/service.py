"""Qiskit's client for IBM Quantum: the only file that touches `qiskit_ibm_runtime`.

Public interfaces of it are used where there are any. Where there are none, what is used is named here, once, against
the pinned minor version: the client's REST session (address, token manager, proxies), the two functions through which
every POST of a job passes, and the decoders of a job's results.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from .errors import ConfigError, RunError
from .ours import ledger, protocol, remote

logger = logging.getLogger("qx_supervisor")


class Submission(Protocol):
    """What a run wants to know of, and say to, its own submission."""

    tags: tuple[str, ...]
    max_execution_time: int | None
    waits_for_rate_limit: bool

    def before_post(self) -> None:
        """Called before the POST leaves; what it raises keeps the POST from leaving."""

    def before_retry(self) -> None:
        """Called before the client sends the POST once more after a 5xx answer; may raise likewise."""

    def rate_limited(self, seconds: float | None) -> None:
        """Called after a 429, which makes no job; returns when the POST may leave again, or raises."""

    def posted(self, job_id: str) -> None:
        """Called with the new job's id, before anything else can go wrong."""

    def after_post(self, *, ambiguous: bool) -> None:
        """Called at the end of it all. Ambiguous: it failed, and may have made a job all the same."""


TAGS = 8
"""The most that IBM Quantum allows a job."""


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


# Accounts, backends -----------------------------------------------------------------------------------------------

_default_lock = threading.Lock()
_default: tuple[Any, Any] | None = None  # what it was made from, the service


def default_service(instance: str | None = None) -> Any:
    """The user's saved account, as a `QiskitRuntimeService`; made once, and anew when the saved accounts change.

    Args:
        instance: The instance to use, instead of the saved one.

    Raises:
        RunError: If there is none, or if it can't be used.
    """
    import qiskit_ibm_runtime
    from qiskit_ibm_runtime.accounts import AccountNotFoundError
    from qiskit_ibm_runtime.accounts.management import _DEFAULT_ACCOUNT_CONFIG_JSON_FILE

    global _default  # noqa: PLW0603 - one per process, under a lock
    saved = Path(_DEFAULT_ACCOUNT_CONFIG_JSON_FILE)
    stamp = saved.stat().st_mtime_ns if saved.exists() else 0
    environment = tuple(sorted(kv for kv in os.environ.items() if kv[0].startswith("QISKIT_IBM")))
    made_from = (os.getpid(), stamp, environment, instance)
    with _default_lock:
        if _default is None or _default[0] != made_from:
            try:
                _default = (made_from, qiskit_ibm_runtime.QiskitRuntimeService(instance=instance))
            except AccountNotFoundError:
                raise ConfigError(
                    "config",
                    "no IBM Quantum account is saved; save one with QiskitRuntimeService.save_account(token=..., "
                    "instance=...), or pass service=...",
                ) from None
            except Exception as error:  # noqa: BLE001 - the client raises of many kinds
                if _is_unreachable(error):
                    raise RunError(
                        "backend", "IBM Quantum can't be reached; check the network and its proxy, and try again"
                    ) from None
                raise RunError("auth", f"the saved IBM Quantum account can't be used: {describe(error)}") from None
        return _default[1]


def every_service() -> list[Any]:
    """The default account, and all others that are saved, each as a `QiskitRuntimeService`.

    Raises:
        RunError: If there is none, or if the default one can't be used.
    """
    import qiskit_ibm_runtime
    from qiskit_ibm_runtime.accounts import AccountManager

    services = [default_service()]
    known = {address(client) for client in clients_of(services[0])}
    for name in AccountManager.list():
        try:
            service = qiskit_ibm_runtime.QiskitRuntimeService(name=name)
        except Exception as error:  # noqa: BLE001 - the client raises of many kinds
            logger.warning("the saved account %r can't be used: %s", name, describe(error))
            continue
        found = {address(client) for client in clients_of(service)}
        if not found <= known:
            services.append(service)
            known |= found
    return services


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether a failure of the client's began with a connection that could not be made, or broke."""
    import requests

    while error is not None and not isinstance(error, requests.ConnectionError | requests.Timeout):
        error = error.__cause__ or error.__context__
    return error is not None


@dataclass(frozen=True)
class Account:
    """What may be shown of the user's account: its key is not in it.

    Attributes:
        source: "environment" or "file".
        channel: The channel.
        url: IBM Cloud's address, as the account has it.
        instance: The instance's CRN or name, or "" where none is chosen.
    """

    source: str
    channel: str
    url: str
    instance: str


def saved_account() -> Account | None:
    """The account that `default_service` would use, without asking anybody; None if there is none."""
    from qiskit_ibm_runtime.accounts import AccountManager, AccountNotFoundError

    try:
        found = AccountManager.get()
    except AccountNotFoundError:
        return None
    source = "environment" if os.environ.get("QISKIT_IBM_TOKEN") else "file"
    return Account(source, found.channel, found.url, found.instance or "")


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
    service = service if service is not None else default_service()
    if not hasattr(service, "least_busy"):
        hint = "; give its .service()" if hasattr(service, "service") else ""
        raise ConfigError("config", f"service must be a QiskitRuntimeService, not {type(service).__name__}{hint}")
    _own_connections(clients_of(service))
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
    _own_connections([client])
    return Target(backend, mode, client)


_forked = False
_owned: weakref.WeakSet[Any] = weakref.WeakSet()


def _own_connections(clients: list[Any]) -> None:
    """In a forked child, give clients that may be the parent's connections of their own.

    On a connection that both have, each reads the other's answers.
    """
    for client in clients:
        if _forked and client not in _owned:
            _owned.add(client)
            for adapter in client._session.adapters.values():
                adapter.__setstate__(adapter.__getstate__())  # as `requests` does for one that was pickled


def _begin_anew() -> None:
    global _forked  # noqa: PLW0603 - what it says is true of the process
    _forked = True
    _owned.clear()
    for lock in (_default_lock, _naming, _hooking):  # a thread that is not here may have held it
        lock._at_fork_reinit()  # type: ignore[attr-defined]


os.register_at_fork(after_in_child=_begin_anew)


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


# Credentials ------------------------------------------------------------------------------------------------------

_remotes: weakref.WeakKeyDictionary[Any, remote.Remote] = weakref.WeakKeyDictionary()
_accounts: dict[tuple[str, ...], str] = {}
_naming = threading.Lock()


def account_name(client: Any) -> str:
    """A name for the client's account and the way to it, the same for the same, that tells nothing of them."""
    session, auth = client._session, client._session.auth
    way = (auth.tm.url, repr(session.proxies), repr(session.verify))
    with _naming:
        return _accounts.setdefault((session.base_url, auth.crn or "", auth.api_key, *way), f"a{len(_accounts)}")


def job_url(client: Any, job_id: str) -> str:
    """A job's page, for people; "" where the service is not IBM's own."""
    host = urlsplit(client._session.base_url).hostname or ""
    return f"https://quantum.cloud.ibm.com/jobs/{job_id}" if host.endswith("cloud.ibm.com") else ""


def clients_of(service: Any) -> list[Any]:
    """The official REST clients of a service, one per instance."""
    return list(getattr(service, "_api_clients", {}).values())


def address(client: Any) -> tuple[str, str]:
    """A client's endpoint, as the ledger writes it down, and its instance."""
    session = client._session
    return ledger.safe_endpoint(session.base_url), session.auth.crn or ""


def instances_near(target: Target) -> list[str]:
    """The instances of the service that a backend was found with: another one may be chosen the next time."""
    clients = clients_of(getattr(target.backend, "service", None))
    return [address(client)[1] for client in clients]


def credentials(client: Any, *, fetch: bool = True) -> protocol.Credentials:
    """How the client reaches its service, with a token that is valid now, or "" where there is none to be had.

    Args:
        client: The official REST client.
        fetch: Whether to fetch a token where there is none. That may take a minute.
    """
    session = client._session
    manager = session.auth.tm
    try:
        token = _token(manager) if fetch or _is_good(manager) else ""
    except Exception:  # noqa: BLE001 - the watcher tries by itself, and says why it can't
        token = ""
    return protocol.Credentials(
        endpoint=session.base_url,
        instance=session.auth.crn or "",
        iam_url=manager.url,
        api_key=session.auth.api_key,
        token=token,
        token_expires=float(manager.expire_time if token else 0),
        verify=bool(session.verify),
        proxies=dict(session.proxies) or None,
    )


_fetching = threading.Lock()


def _token(manager: Any) -> str:
    if not _is_good(manager):
        with _fetching:  # one fetches: a thousand runs may find it expired at the same moment
            if not _is_good(manager):
                # Not get_token(): for a minute after a failure that one only waits.
                manager._save_token_info(manager.request_token())
    return str(manager.access_token)


def _is_good(manager: Any) -> bool:
    return bool(manager.access_token) and manager.expire_time > time.time() + 60


# A forked child must not write on its parent's connections, nor wait for one of its parent's threads.
os.register_at_fork(after_in_child=_remotes.clear)
os.register_at_fork(after_in_child=_fetching._at_fork_reinit)  # type: ignore[attr-defined]


def remote_of(client: Any) -> remote.Remote:
    """The service as `watcher.remote` speaks to it, with the token of the user's own service."""
    known = _remotes.get(client)
    if known is None:
        auth = client._session.auth
        how = protocol.Credentials(
            endpoint=client._session.base_url,
            instance=auth.crn or "",
            iam_url=auth.tm.url,
            api_key="",
            verify=bool(client._session.verify),
            proxies=dict(client._session.proxies) or None,
        )
        known = remote.Remote(how, functools.partial(_authorization, auth), functools.partial(_renew, auth))
        _remotes[client] = known
    return known


def server_clock(client: Any, seconds: float) -> float | None:
    """The time at the service, in seconds since the epoch, to a second; None where it does not tell within so many."""
    import email.utils

    import requests

    session = client._session
    try:
        asked = time.time()
        reply = requests.head(
            session.base_url, timeout=seconds, proxies=session.proxies, verify=session.verify, allow_redirects=False
        )
        took = time.time() - asked
        then = email.utils.parsedate_to_datetime(reply.headers.get("Date", ""))
    except (requests.RequestException, OSError, ValueError):
        return None
    return then.timestamp() + took / 2


def _authorization(auth: Any) -> str:
    import ibm_cloud_sdk_core

    try:
        return f"Bearer {_token(auth.tm)}"
    except ibm_cloud_sdk_core.ApiException as error:
        code = error.status_code or 0
        message = f"the token service answered {code}"
        if 400 <= code < 500 and code != 429:
            raise remote.Refused(message, code) from None
        raise remote.Transient(message, code) from None
    except Exception as error:  # noqa: BLE001 - IBM's library stumbles over answers of another form, too
        raise remote.Transient(f"the token service could not be asked ({type(error).__name__})") from None


def _renew(auth: Any) -> None:
    auth.tm.expire_time = auth.tm.request_time = 0
    _authorization(auth)


# Circuits ---------------------------------------------------------------------------------------------------------


def not_isa(pubs: Sequence[Any], target: Target) -> list[int]:
    """Which PUBs have a circuit that the backend can't execute as it stands.

    Raises:
        ConfigError: If a circuit is wider than the backend.
    """
    from qiskit_ibm_runtime.utils.utils import is_isa_circuit

    backend = target.backend
    for pub in pubs:
        if backend.num_qubits is not None and pub.circuit.num_qubits > backend.num_qubits:
            raise ConfigError(
                "backend",
                f"a circuit has {pub.circuit.num_qubits} qubits, and {target.name} has {backend.num_qubits}; choose a "
                "wider backend, or none to have one chosen",
            )
    return [i for i, pub in enumerate(pubs) if is_isa_circuit(pub.circuit, backend.target)]


def to_isa(
    pubs: Sequence[Any], foreign: list[int], target: Target, kind: str, *, level: int, seed: int | None
) -> list[Any]:
    """Transpile the circuits of some PUBs for a backend.

    Args:
        pubs: Coerced PUBs.
        foreign: The indices of those to transpile.
        target: Where they go.
        kind: "sampler" or "estimator".
        level: The transpiler's optimization level.
        seed: The transpiler's seed, or None.

    Raises:
        RunError: If the transpiler fails.
    """
    from qiskit.transpiler import generate_preset_pass_manager

    try:
        manager = generate_preset_pass_manager(optimization_level=level, backend=target.backend, seed_transpiler=seed)
        transpiled = manager.run([pubs[i].circuit for i in foreign])
    except Exception as error:
        raise RunError(
            "transpile", f"the circuit could not be transpiled for {target.name}: {describe(error)}"
        ) from error
    made = list(pubs)
    for i, circuit in zip(foreign, transpiled, strict=True):
        made[i] = _with_circuit(pubs[i], circuit, kind)
    return made


def _with_circuit(pub: Any, circuit: Any, kind: str) -> Any:
    """The same PUB with its circuit transpiled."""
    from qiskit.primitives.containers.bindings_array import BindingsArray
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub

    # The transpiler may remove a parameter, such as a rotation right before its measurement.
    left = {parameter.name for parameter in circuit.parameters}
    values = pub.parameter_values
    data = {}
    for names, array in values.data.items():
        kept = [i for i, name in enumerate(names) if name in left]
        if kept:
            data[tuple(names[i] for i in kept)] = array[..., kept]
    bindings = BindingsArray(data, shape=values.shape)
    if kind == "sampler":
        return SamplerPub(circuit, bindings, pub.shots)
    return EstimatorPub(circuit, pub.observables.apply_layout(circuit.layout), bindings, pub.precision)


# Primitives -------------------------------------------------------------------------------------------------------


def make_primitive(kind: str, target: Target, options: Any, shots: int | None) -> Any:
    """Qiskit's current primitive of a kind, or the deprecated one for options of the deprecated type.

    Raises:
        ConfigError: If the options are not of the primitive's.
    """
    name = "Sampler" if kind == "sampler" else "Estimator"
    if _is_deprecated(options):
        import qiskit_ibm_runtime

        made = getattr(qiskit_ibm_runtime, f"{name}V2")
    else:
        module = __import__(f"qiskit_ibm_runtime.executor_{kind}", fromlist=[name])
        made = getattr(module, name)
    try:
        primitive = made(mode=target.mode or target.backend, options=options)
        if kind == "estimator" and shots is not None:
            primitive.options.default_shots = shots
    except (TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        raise ConfigError("config", f"the options do not fit {name}: {describe(error)}") from None
    return primitive


def _is_deprecated(options: Any) -> bool:
    return type(options).__module__.startswith("qiskit_ibm_runtime.options.")


def class_of(kind: str, primitive: Any, options: Any) -> tuple[str, str]:
    """The package and the name of the primitive's class that a run will use, the user's own or one made here."""
    if primitive is not None:
        return type(primitive).__module__.partition(".")[0], type(primitive).__name__
    return "qiskit_ibm_runtime", kind.capitalize() + ("V2" if _is_deprecated(options) else "")


def parts_of(item: Any) -> Any:
    """What an object of the client's that may be among a primitive's options is made of; None for anything else."""
    from qiskit_ibm_runtime.options.utils import UnsetType
    from qiskit_ibm_runtime.results.noise_learner import LayerError, NoiseLearnerResult, PauliLindbladError

    if isinstance(item, NoiseLearnerResult):
        return list(item.data)
    if isinstance(item, LayerError):
        return item.circuit, list(item.qubits), item.error
    if isinstance(item, PauliLindbladError):
        return item.generators, item.rates
    return () if isinstance(item, UnsetType) else None


def tags_of(primitive: Any) -> list[str]:
    """The tags that a primitive's options put on its jobs."""
    options = getattr(primitive, "options", None)
    environment = getattr(options, "environment", None)
    return list(getattr(environment, "job_tags", None) or [])


def submit(primitive: Any, pubs: list[Any], kind: str, shots: int | None, submission: Submission) -> Any:
    """Run a primitive on the service, with the submission's tags put on its POST.

    Returns:
        Qiskit's job.
    """
    _install_hooks()
    token = _submission.set(submission)
    try:
        return primitive.run(pubs, shots=shots) if kind == "sampler" else primitive.run(pubs)
    finally:
        _submission.reset(token)


def run_local(primitive: Any, pubs: list[Any], kind: str, shots: int | None) -> Any:
    """Run a primitive in Qiskit's local testing mode; returns Qiskit's job."""
    return primitive.run(pubs, shots=shots) if kind == "sampler" else primitive.run(pubs)


def decoders_of(job: Any) -> Sequence[Any]:
    """What `job.result()` decodes the job's results with; the job itself need not be kept for that."""
    decoders: Sequence[Any] = job._result_decoders
    return decoders


def decoders_for(job: Mapping[str, Any]) -> Sequence[Any]:
    """What the results of a job are decoded with that was not submitted here, by what the service tells of it."""
    from qiskit_ibm_runtime.decoders.defaults import DEFAULT_DECODERS
    from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder

    program = job.get("program")
    return DEFAULT_DECODERS.get(program.get("id", "") if isinstance(program, dict) else "") or [ResultDecoder]


def decode(decoders: Sequence[Any], text: str) -> Any:
    """A job's results, decoded as `job.result()` decodes them, but fetched by us, with a read timeout and retries."""
    decoded: Any = text
    for decoder in decoders:
        if decoder.is_applicable(decoded):
            decoded = decoder.decode(decoded)
    return decoded


def is_ambiguous(error: BaseException) -> bool:
    """Whether a failed POST may have made a job all the same: anything but a refusal by the service."""
    seen = _api_error(error)
    if seen is None:
        return not is_unauthorized(error)
    return not 400 <= seen.status_code < 500


def is_unauthorized(error: BaseException) -> bool:
    """Whether the service did not accept the account's credentials."""
    from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

    return isinstance(error, IBMNotAuthorizedError)


def describe(error: BaseException) -> str:
    """An error of the client's in one line."""
    # A QiskitError's str() is a repr.
    message = getattr(error, "message", None)
    text = " ".join((message if isinstance(message, str) else str(error)).split())
    return text if len(text) <= 500 else text[:499] + "…"


def _api_error(error: BaseException | None) -> Any:
    from qiskit_ibm_runtime.api.exceptions import RequestsApiError

    while error is not None and not isinstance(error, RequestsApiError):
        error = error.__cause__ or error.__context__
    return error


# What the user made with Qiskit itself ----------------------------------------------------------------------------


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


_sessions: dict[str, Submission] = {}


def watch_session(session_id: str, keeper: Submission) -> None:
    """Have the client ask `keeper` about every POST to a session that asks nobody else."""
    _install_hooks()
    _sessions[session_id] = keeper


def unwatch_session(session_id: str) -> None:
    """The opposite of `watch_session`."""
    _sessions.pop(session_id, None)


# The POST ---------------------------------------------------------------------------------------------------------

_submission: ContextVar[Submission | None] = ContextVar("qx_submission", default=None)
_hooking = threading.Lock()


def _install_hooks() -> None:
    """Have the client ask the submission that is under way in this thread, if there is one, about its POST.

    Tags are put on here and never written to the user's primitive, whose options may be shared by threads; and the
    job's id is known here before anything else of the client can fail.
    """
    from qiskit_ibm_runtime.api.client import RuntimeClient
    from qiskit_ibm_runtime.api.session import PostForcelistRetry

    with _hooking:  # once per class: `importlib.reload` makes new ones
        if not _is_hooked(RuntimeClient.program_run):
            RuntimeClient.program_run = _asking(RuntimeClient.program_run)
        if not _is_hooked(PostForcelistRetry.increment):
            PostForcelistRetry.increment = _asking_before_retry(PostForcelistRetry.increment)


_HOOKED = "__qx_hooked__"


def _is_hooked(method: Callable[..., Any]) -> bool:
    return hasattr(method, _HOOKED)


def _asking(program_run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(program_run)
    def asking(client: Any, *args: Any, **kwargs: Any) -> Any:
        submission = _submission.get()
        if submission is not None:
            return _post(submission, functools.partial(program_run, client, *args), kwargs)
        keeper = _sessions.get(kwargs.get("session_id") or "")
        if _adopter is not None:
            tags = len(kwargs.get("job_tags") or ())
            keeper = _adopter.submission(client, tags, kwargs.get("session_id") or "", keeper)
        if keeper is None:
            return program_run(client, *args, **kwargs)
        token = _submission.set(keeper)
        try:
            return _post(keeper, functools.partial(program_run, client, *args), kwargs)
        finally:
            _submission.reset(token)

    setattr(asking, _HOOKED, True)
    return asking


def _post(submission: Submission, program_run: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    tags = [*(kwargs.get("job_tags") or []), *submission.tags]
    if len(tags) <= TAGS:  # a job of plain Qiskit's may have all eight; it is known by its session, or its id
        kwargs["job_tags"] = tags
    if submission.max_execution_time is not None:
        kwargs["max_execution_time"] = submission.max_execution_time
    submission.before_post()
    ambiguous = True
    try:
        while True:
            try:
                reply = program_run(**kwargs)
            except Exception as error:
                refusal = _api_error(error)
                if refusal is None or refusal.status_code != 429 or not submission.waits_for_rate_limit:
                    ambiguous = is_ambiguous(error)
                    raise
                submission.rate_limited(_retry_after(refusal))
            else:
                submission.posted(str(reply["id"]))
                ambiguous = False
                return reply
    finally:
        submission.after_post(ambiguous=ambiguous)


def _asking_before_retry(increment: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(increment)
    def asking(retry: Any, method: Any = None, url: Any = None, *args: Any, **kwargs: Any) -> Any:
        more = increment(retry, method, url, *args, **kwargs)  # raises where there is to be no other try
        submission = _submission.get()
        if submission is not None and str(method).upper() == "POST":
            submission.before_retry()
        return more

    setattr(asking, _HOOKED, True)
    return asking


def _retry_after(error: BaseException) -> float | None:
    response = getattr(error.__cause__ or error.__context__, "response", None)
    return remote.retry_after(response.headers.get("Retry-After")) if response is not None else None


# What a driver that knows nothing of us does with Qiskit ----------------------------------------------------------


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


_adopter: Adopter | None = None
_clients: weakref.WeakSet[Any] = weakref.WeakSet()


def be_adopted(adopter: Adopter) -> None:
    """Have the client tell `adopter` what it does, for good; called again, also a client that was loaded anew.

    It makes no request of its own: what is known of a job is what the driver itself asks for.
    """
    from qiskit_ibm_runtime.api.client import RuntimeClient

    global _adopter  # noqa: PLW0603 - one per process
    _install_hooks()
    with _hooking:
        _adopter = adopter
        if _is_hooked(RuntimeClient.job_get):
            return
        # Where nothing of ours is called for, the driver makes its requests with the parent's connections otherwise.
        _around(RuntimeClient, "__init__", after=lambda client, _, *__, **___: _clients.add(client))
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

    setattr(telling, _HOOKED, True)
    setattr(kind, name, telling)


def _seen_all(adopter: Adopter, reply: Any) -> None:
    for job in reply["jobs"]:
        adopter.seen(job["id"], job)


def _own_all_connections() -> None:
    """In a forked child of an adopted driver: its requests must not be answered with its parent's."""
    _own_connections(list(_clients))


os.register_at_fork(after_in_child=_own_all_connections)  # after `_begin_anew`
