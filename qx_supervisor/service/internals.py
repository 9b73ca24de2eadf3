"""What of Qiskit's client is not public: the only module that names it.

Its releases have moved, renamed and rebuilt much of it. So everything here is found by what it can do, and nothing by
the version's number: a name is looked for wherever it has been, and an attribute or a parameter that some releases lack
is asked for before it is used. `check` does that for all of it, once and before anything is submitted. So a release
that nobody has tried is used if all is there, and else refused, rather than half of a submission.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .. import forks
from ..errors import ConfigError

logger = logging.getLogger("qx_supervisor")

PACKAGE = "qiskit_ibm_runtime"

OLDEST = "0.41.0"
"""The oldest that is used. 0.40, the first with the channel `ibm_quantum_platform`, speaks a version of the service's
interface, of 2024, in which backends are listed by their names alone; since 0.41 clients speak that of May 2025."""

NEWEST = "0.51.0"
"""The last one that was tried: see `docs/versions.md`."""

_PLACES = {
    "RuntimeClient": ("api.client", "api.clients.runtime"),
    "RetrySession": ("api.session",),
    "PostForcelistRetry": ("api.session",),
    "RequestsApiError": ("api.exceptions",),
    "QiskitRuntimeService": ("qiskit_runtime_service",),
    "warnings": ("qiskit_runtime_service",),
    "get_cm_session": ("utils.default_session",),
    "is_isa_circuit": ("utils.utils",),
    "is_valid_rzz_pub": ("utils.utils",),
    "DEFAULT_DECODERS": ("decoders.defaults", "constants"),
    "ResultDecoder": ("decoders.result_decoder", "utils.result_decoder"),
    "LocalRuntimeJob": ("fake_provider.local_runtime_job",),
    "UnsetType": ("options.utils",),
    "NoiseLearnerResult": ("results.noise_learner", "utils.noise_learner_result"),
    "LayerError": ("results.noise_learner", "utils.noise_learner_result"),
    "PauliLindbladError": ("results.noise_learner", "utils.noise_learner_result"),
    "AccountManager": ("accounts",),
    "AccountNotFoundError": ("accounts",),
    "_DEFAULT_ACCOUNT_CONFIG_JSON_FILE": ("accounts.management",),
}
"""Names, and the modules in which they may be, the latest first."""

_METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "RuntimeClient": {
        "program_run": ("program_id", "backend_name", "session_id", "job_tags", "max_execution_time"),
        "job_get": ("job_id",),
        "jobs_get": (),
        "job_cancel": ("job_id",),
        "job_delete": ("job_id",),
        "create_session": (),
        "close_session": ("session_id",),
        "cancel_session": ("session_id",),
        "session_details": ("session_id",),
    },
    "RetrySession": {"request": ("method", "url")},
    "PostForcelistRetry": {"increment": ("method", "url", "error")},
    "QiskitRuntimeService": {
        "_run": ("program_id", "inputs", "options", "session_id"),
        "_create_backend_obj": ("backend_name", "instance", "use_fractional_gates"),
        "_resolve_cloud_instances": ("instance",),
        "_discover_backends_from_instance": ("instance",),
        "backend": ("name", "instance"),
        "least_busy": ("min_num_qubits",),
    },
}
"""Methods that are called or replaced, with the parameters that matter."""

_ATTRIBUTES = (
    "_instance",
    "_session.adapters",
    "_session.base_url",
    "_session.proxies",
    "_session.verify",
    "_session.auth.api_key",
    "_session.auth.crn",
    "_session.auth.tm.access_token",
    "_session.auth.tm.expire_time",
    "_session.auth.tm.request_time",
    "_session.auth.tm.request_token",
    "_session.auth.tm.url",
    "_session.auth.tm._save_token_info",
)
"""What a `RuntimeClient` that is connected must have."""

ASKING = (
    "qiskit_ibm_runtime.api",
    "qiskit_ibm_runtime.base_runtime_job",
    "qiskit_ibm_runtime.decoders",
    "qiskit_ibm_runtime.json",
    "qiskit_ibm_runtime.qiskit_runtime_service",
    "qiskit_ibm_runtime.runtime_job_v2",
    "qiskit_ibm_runtime.utils.estimator_result_decoder",
    "qiskit_ibm_runtime.utils.json",
    "qiskit_ibm_runtime.utils.noise_learner_result_decoder",
    "qiskit_ibm_runtime.utils.result_decoder",
    "qiskit_ibm_runtime.utils.runner_result",
    "qiskit_ibm_runtime.utils.sampler_result_decoder",
)
"""The client's modules, of any release, that send requests to the service and read its answers."""


class _Lacking(Exception):
    """The client has no such thing."""


def find(name: str) -> Any:
    """What the client has under this name, one of those above, now: a reload of its modules makes other classes."""
    try:
        return _find(name)
    except _Lacking:
        raise _unsuitable([name]) from None


def _find(name: str) -> Any:
    for place in _PLACES[name]:
        module = f"{PACKAGE}.{place}"
        try:
            return getattr(importlib.import_module(module), name)
        except AttributeError:
            continue
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # the module is there, and something else is not
                raise
    raise _Lacking(name)


# The check ----------------------------------------------------------------------------------------------------------

_checking = forks.make_lock()
_checked: set[Any] = set()


def check() -> None:
    """Check, once, that the installed client has all that is needed, before anything is submitted.

    Raises:
        ConfigError: It has not; the message has the command that installs one that has.
    """
    kind = find("RuntimeClient")
    if kind in _checked:
        return
    with _checking:
        if kind in _checked:
            return
        if lacking := _lacking():
            raise _unsuitable(lacking)
        if is_untried():
            logger.warning(
                "qiskit-ibm-runtime %s is newer than %s, the newest that qx_supervisor was tried with; it has all that "
                "is needed, and is used",
                version(),
                NEWEST,
            )
        _checked.add(kind)


def check_connected(client: Any) -> None:
    """Check, once, that a `RuntimeClient` that is connected has what is read of it.

    Raises:
        ConfigError: It has not.
    """
    kind = type(client), type(getattr(client, "_session", None))
    if kind not in _checked:
        if lacking := [f"RuntimeClient.{path}" for path in _ATTRIBUTES if not _has(client, path)]:
            raise _unsuitable(lacking)
        _checked.add(kind)


def _lacking() -> list[str]:
    found = []
    for name in _PLACES:
        try:
            thing = _find(name)
        except _Lacking:
            found.append(name)
            continue
        for method, parameters in _METHODS.get(name, {}).items():
            if not callable(getattr(thing, method, None)):
                found.append(f"{name}.{method}")
                continue
            found += [f"{name}.{method}({each})" for each in parameters if not _takes(getattr(thing, method), each)]
    return found


def _takes(function: Callable[..., Any], parameter: str) -> bool:
    known = inspect.signature(function).parameters.values()
    return any(each.name == parameter or each.kind is each.VAR_KEYWORD for each in known)


def _has(thing: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


def _unsuitable(lacking: Sequence[str]) -> ConfigError:
    return ConfigError(
        "config",
        f"qiskit-ibm-runtime {version()} has no {' and no '.join(lacking)}, which qx_supervisor needs, so nothing was "
        f"submitted; install one that works: {install_command()}",
    )


def install_command() -> str:
    """The command that installs a client that works."""
    return f"{sys.executable} -m pip install 'qiskit-ibm-runtime=={NEWEST}'"


def version() -> str:
    """The installed client's version."""
    return str(getattr(importlib.import_module(PACKAGE), "__version__", "of an unknown version"))


def is_untried() -> bool:
    """Whether the installed client is newer than any that was tried."""
    return _numbers(version()) > _numbers(NEWEST)


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else (sys.maxsize,)


# Modules, while the client is being loaded --------------------------------------------------------------------------


def loaded_service_module() -> Any:
    """The module of `QiskitRuntimeService`; None as long as the class is not there.

    It is not imported here: it imports the module of `RuntimeClient`, and that may be the one that is being loaded.
    """
    module = sys.modules.get(f"{PACKAGE}.qiskit_runtime_service")
    return module if hasattr(module, "QiskitRuntimeService") else None


# Services, clients, instances ---------------------------------------------------------------------------------------


def session_of(client: Any) -> Any:
    """A client's REST session: address, token manager, proxies."""
    return client._session


def clients_by_instance(service: Any) -> dict[str, Any]:
    """The official REST clients of a service, by their instances; none of a local service."""
    found: dict[str, Any] = getattr(service, "_api_clients", {})
    return found


def instance_of(thing: Any) -> str | None:
    """The instance of a client or a backend; None if it has none."""
    own: str | None = getattr(thing, "_instance", None)
    return own


def client_of(thing: Any) -> Any:
    """The REST client with which a backend or a job asks."""
    return thing._api_client


def is_consistent(backend: Any, instance: str) -> bool:
    """Whether a backend is one of an instance, and asks by its client."""
    return instance_of(backend) == instance == instance_of(client_of(backend))


def service_of(thing: Any) -> Any:
    """The service of a backend or a job; None if it has none."""
    return getattr(thing, "_service", None)


def give_to(thing: Any, service: Any) -> None:
    """Make a backend or a job belong to a service."""
    thing._service = service


def activate(service: Any, client: Any) -> None:
    """Make a client the service's active one."""
    service._active_api_client = client


def make_backend(service: Any, name: str, instance: str, like: Any) -> Any:
    """A backend object for the active client of a service.

    Args:
        service: The service.
        name: The backend's name.
        instance: The instance of the active client.
        like: A backend whose calibration and gates it is to have, or None.
    """
    make = service._create_backend_obj
    more = {"use_fractional_gates": getattr(like.options, "use_fractional_gates", False) if like is not None else False}
    if calibration_of(like) is not None:
        more["calibration_id"] = calibration_of(like)
    return make(name, instance=instance, **more)


def calibration_of(backend: Any) -> Any:
    """The calibration that a backend was asked for with, or None. Before 0.43 there is no such choice."""
    return getattr(backend, "calibration_id", None)


def backend_names(service: Any) -> list[str]:
    """The names of a service's backends, without requests where they are known. Some releases list mocks too."""
    try:
        found = [each for _, names in service._resolve_cloud_instances(None) for each in names]
    except AttributeError:  # a local service
        return [backend.name for backend in service.backends()]
    pairs = [(each, False) if isinstance(each, str) else each for each in found]
    return [str(name) for name, is_mock in pairs if not is_mock]


def refresh_queues(service: Any) -> None:
    """Have `least_busy` compare the queues of now: with a default instance, of when the service was created."""
    if getattr(service, "_default_instance", False):
        service._discover_backends_from_instance(service._account.instance)


# Sessions, primitives, jobs -----------------------------------------------------------------------------------------


def mode_of(primitive: Any) -> Any:
    """The session or batch, else the backend, that a primitive was made for; None for any other object."""
    return getattr(primitive, "_mode", None) or getattr(primitive, "_backend", None)


def with_own_options(primitive: Any, session: Any) -> Any:
    """A copy of a primitive with a copy of its options, and in another session unless that is None."""
    made = copy.copy(primitive)
    if session is not None:
        made._mode = session
    name = "_options" if "_options" in vars(primitive) else "options"  # the older ones have a property of that name
    setattr(made, name, copy.deepcopy(primitive.options))
    return made


def session_around() -> Any:
    """The session or batch in whose `with` block this is; None if there is none."""
    return find("get_cm_session")() if PACKAGE in sys.modules else None  # else nobody can have made one


def backend_of(thing: Any) -> Any:
    """The backend object of a session or a job."""
    return getattr(thing, "_backend", None)


def is_open(session: Any) -> bool:
    """Whether a session takes jobs."""
    return bool(getattr(session, "_active", True))


def is_a(thing: Any, *names: str) -> bool:
    """Whether it is of a class of the client's with one of these names, in whichever of its modules that is.

    It imports nothing: whoever has such an object has imported its module.
    """
    kinds = type(thing).__mro__
    return any(kind.__name__ in names and kind.__module__.partition(".")[0] == PACKAGE for kind in kinds)


def are_deprecated_options(options: Any) -> bool:
    """Whether options are those of `SamplerV2` and `EstimatorV2`."""
    return type(options).__module__.startswith(f"{PACKAGE}.options.")


def has_current_primitives() -> bool:
    """Whether there are `executor_sampler.Sampler` and its like, for which `SamplerV2` is deprecated."""
    return _executor_primitive("sampler") is not None and _executor_primitive("estimator") is not None


def primitive_class(kind: str, *, deprecated: bool = False) -> Any:
    """The client's class of primitives.

    Args:
        kind: "sampler" or "estimator".
        deprecated: That of the two in which such a client deprecates it. An older one has no other.
    """
    if not deprecated and has_current_primitives():
        return _executor_primitive(kind)
    return getattr(importlib.import_module(PACKAGE), f"{kind.capitalize()}V2")


@functools.lru_cache(maxsize=2)
def _executor_primitive(kind: str) -> Any:
    # Before 0.50 the module is there, for trials, and its class goes by another name.
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.executor_{kind}"), kind.capitalize(), None)
    except ModuleNotFoundError:
        return None


def decoders_of(job: Any) -> Sequence[Any]:
    """The decoders of a job's results, each for the output of the one before."""
    several: Sequence[Any] | None = getattr(job, "_result_decoders", None)
    return [job._final_result_decoder] if several is None else several


def decoders_for(program: str) -> Sequence[Any]:
    """The decoders for the results of a program."""
    table = find("DEFAULT_DECODERS")
    known = table.get(program)
    if known is None:
        return [find("ResultDecoder")]
    if not isinstance(known, Sequence):
        return [known]
    # The older table, in another place, has pairs: the first is for interim results, which are no more.
    return known if f"{PACKAGE}.decoders.defaults" in sys.modules else known[-1:]


def decode(decoders: Sequence[Any], text: str) -> Any:
    """Decode a job's results as `job.result()` does."""
    decoded: Any = text
    for decoder in decoders:
        if not hasattr(decoder, "is_applicable") or decoder.is_applicable(decoded):
            decoded = decoder.decode(decoded)
    return decoded
