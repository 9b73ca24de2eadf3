"""What a call asks for, checked before anything is done.

Bad input is refused here, or later before the submission, with a `ConfigError` that names the fault and the next step.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import numbers
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from . import service
from .about import check_label
from .budget import Budget, as_budget, budgets_now
from .errors import ConfigError
from .pubs import Kind, coerce, copied
from .status import Status

USER_TAGS = 5
"""Of the eight tags that IBM Quantum allows a job, three are this package's."""

TAG_LENGTH = 86
KEY_LENGTH = 200

SPLIT_KEY_LENGTH = 180
"""Of a run that is split: the parts' keys are made of it."""

SHORTEST_POLL = 0.1
"""Seconds; the official client's floor."""


@dataclass(frozen=True)
class Request:
    """A checked call.

    Attributes:
        pubs: Qiskit's `SamplerPub`s or `EstimatorPub`s; of an executor its program, of a noise learner what it takes.
        kind: What executes them.
        primitive: The user's own primitive object, or None.
        label: The user's words for it, or "".
        budgets: The program's own budgets that it counts for.
        is_list: Whether the call named a list of circuits or PUBs, if only of one: then the result has lists.
        initial_layout: The physical qubit of each qubit of the circuits, or None.
        retries: How often a job that failed for IBM Quantum's reasons is submitted again.
        split: The most PUBs that a job gets; None: all in one.
        instance: The instance of the saved account, by its CRN or name; None: the saved one.
        attached: The id of a job that is there already: it is waited for, and nothing is submitted.
    """

    pubs: list[Any]
    kind: Kind
    primitive: Any
    backend: Any
    service: Any
    shots: int | None
    options: Any
    optimization_level: int
    seed_transpiler: int | None
    on_status: Callable[[Status], Any] | None
    timeout: float | None
    running_timeout: float | None
    poll_interval: float | None
    tags: tuple[str, ...]
    max_execution_time: int | None
    on_unprotected: Literal["raise", "warn"]
    key: str | None = None
    grace: float = 0.0
    keep_on_sigterm: bool = False
    label: str = ""
    is_list: bool | None = False
    budgets: tuple[Budget, ...] = ()
    initial_layout: tuple[int, ...] | None = None
    pass_manager: Any = None
    precision: float | None = None
    retries: int = 0
    split: int | None = None
    instance: str | None = None
    attached: str = ""

    @property
    def parts(self) -> int:
        """The number of jobs that it is submitted as."""
        return -(-len(self.pubs) // (self.split or len(self.pubs) or 1))

    @property
    def has_pubs(self) -> bool:
        """Whether it is for a sampler or an estimator, whose circuits may be transpiled."""
        return self.kind in ("sampler", "estimator")

    @property
    def width(self) -> int:
        """The number of qubits of the widest circuit; 0 where the primitive has a backend, so that none is chosen."""
        return max(int(pub.circuit.num_qubits) for pub in self.pubs) if self.has_pubs else 0


def check(given: Mapping[str, Any]) -> Request:
    """Check a call's arguments.

    Args:
        given: What `run` takes, by name, without the panel.

    Raises:
        ConfigError: If the call can't be carried out.
    """
    fields = {**_DEFAULTS, **given}
    budgets = [fields.pop("budget"), _take_from_primitive(fields)]
    kind, own = _kind(fields["primitive"])
    shots, key, grace = fields["shots"], fields["key"], fields["grace"]
    if own is not None and fields["options"] is not None:
        raise _refuse("options= is for a primitive that is made here; set them on your own primitive object")
    if own is not None and kind == "estimator" and shots is not None:
        raise _refuse("shots= is for a primitive that is made here; set options.default_shots on your own estimator")
    is_program = kind in ("executor", "noise-learner")
    if is_program:
        _check_program(type(own).__name__, kind, fields)
    if own is None:
        check_defaults(fields["options"])
    elif service.class_of(kind, own, None)[0] == "qiskit_ibm_runtime":  # 0 is exact in Aer's
        check_defaults(getattr(own, "options", None))
    fields |= _check_waiting(fields)
    shots = _whole(shots, "shots", 1)
    _whole(fields["max_execution_time"], "max_execution_time", 1)
    _whole(fields["seed_transpiler"], "seed_transpiler", 0)
    _whole(fields["retries"], "retries", 0)
    _whole(fields["split"], "split", 1)
    check_precision(fields["precision"], kind, shots)
    _check_instance(fields["instance"])
    level = _check_transpiling(fields)
    _check_key(key, grace, keep_on_sigterm=fields["keep_on_sigterm"])
    if is_program:
        pubs, is_list = service.programs.coerce(fields["pubs"], own)
    else:
        pubs, is_list = coerce(fields["pubs"], kind, shots, fields["precision"])
    checked = {"pubs": pubs, "shots": shots, "primitive": own, "grace": float(grace)}
    checked["tags"] = check_tags(fields["tags"])
    checked["label"] = check_label(fields["label"])
    checked["budgets"] = budgets_now(*budgets)
    checked["optimization_level"] = level
    checked["initial_layout"] = _check_layout(fields["initial_layout"], pubs)
    request = Request(**{**fields, **checked}, kind=kind, is_list=is_list)
    _check_split(request)
    return request


def frozen(request: Request) -> Request:
    """A request that does not change with what its call was given, for a run that is not waited for.

    Raises:
        ConfigError: It is for a session on this machine that is closed.
    """
    session = service.local_session(request.backend, request.primitive)
    return dataclasses.replace(
        request,
        backend=session if session is not None and request.primitive is None else request.backend,
        pubs=copied(request.pubs) if request.has_pubs else request.pubs,
        options=copy.deepcopy(request.options),
        primitive=service.with_own_options(request.primitive, session),
    )


_DEFAULTS = {
    "keep_on_sigterm": False,  # which `submit` does not take
    "label": None,
    "budget": None,
    "initial_layout": None,
    "pass_manager": None,
    "precision": None,
    "retries": 0,
    "split": None,
    "instance": None,
}

_OF_EACH_JOB = ("label", "timeout", "running_timeout", "poll_interval", "on_status")
_OF_TRANSPILING = ("optimization_level", "seed_transpiler")


def _take_from_primitive(fields: dict[str, Any]) -> Budget | None:
    """Have the call mean what one of `qx_supervisor.primitives` says of each of its jobs, where it says nothing itself.

    Tags count beside the call's own. `on_unprotected` is the call's: no job goes unguarded that it did not allow.

    Returns:
        The primitive's budget, which counts beside the call's own.
    """
    how = getattr(fields["primitive"], "qx_how", None)
    if how is None:
        return None
    fields["tags"] = tuple(dict.fromkeys((*how["tags"], *check_tags(fields["tags"]))))
    names = _OF_EACH_JOB if fields["pass_manager"] is not None else (*_OF_EACH_JOB, *_OF_TRANSPILING)
    for name in names:
        if fields[name] is None:
            fields[name] = how[name]
    budget: Budget | None = how["budget"]
    return budget


_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{3,127}")


def check_attached(given: Mapping[str, Any]) -> Request:
    """Check the arguments of `attach`.

    Args:
        given: What `attach` takes, by name, without the panel.

    Raises:
        ConfigError: It can't be carried out.
    """
    job = given["job_id"]
    if not isinstance(job, str):
        has_id = callable(getattr(job, "job_id", None))
        hint = "; give its job_id()" if has_id else "; give the id that job_id() returns"
        raise _refuse(f"job_id must be a string, not {type(job).__name__}{hint}")
    if job.startswith(("qxs-", "qxd-", "qxk-")):
        raise _refuse(f"{job} is a tag, and not a job's id; qx-supervisor ps lists ids beside tags")
    if not _JOB_ID.fullmatch(job):
        raise _refuse(f"{job!r} can't be a job's id; qx-supervisor ps --all lists the ids of this machine's jobs")
    nothing = dict.fromkeys(("primitive", "backend", "shots", "options", "seed_transpiler", "max_execution_time"))
    fields = {name: value for name, value in given.items() if name != "job_id"}
    fields |= _check_waiting(fields)
    _check_instance(fields["instance"])
    fields["label"] = check_label(fields["label"])
    return Request(
        **{**nothing, **fields}, pubs=[], kind="sampler", optimization_level=_LEVEL, tags=(), is_list=None, attached=job
    )


def check_each_job(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check what a primitive is told of the jobs that it will submit.

    Args:
        fields: What `run` takes of it, by name.

    Returns:
        The same, for each job. An amount becomes one budget, for all of them together.

    Raises:
        ConfigError: None of them could be submitted.
    """
    waiting = _check_waiting(fields)
    _whole(fields["seed_transpiler"], "seed_transpiler", 0)
    _check_level(fields["optimization_level"])
    budget = fields["budget"]
    return {
        **fields,
        **waiting,
        "tags": check_tags(fields["tags"]),
        "label": check_label(fields["label"]) or None,
        "budget": None if budget is None else as_budget(budget),
    }


def check_defaults(options: Any) -> None:
    """Check what a primitive's options say of PUBs that say nothing themselves: Qiskit takes any number of shots.

    Raises:
        ConfigError: They are out of range.
    """
    said = options.get if isinstance(options, Mapping) else functools.partial(getattr, options)
    shots, precision = said("default_shots", None), said("default_precision", None)
    if isinstance(shots, numbers.Real):  # nothing else is a number: it is not set, or Qiskit refuses it
        _whole(shots, "default_shots", 1)
    if isinstance(precision, numbers.Real):
        _check_standard_error(precision, "default_precision")


def _check_waiting(fields: Mapping[str, Any]) -> dict[str, float | None]:
    """Check how a run is to be watched and waited for; returns what of that is in seconds."""
    on_status = fields["on_status"]
    if callable(on_status) is (on_status is None):
        raise _refuse(f"on_status must be callable, not {type(on_status).__name__}")
    if fields["on_unprotected"] not in ("raise", "warn"):
        raise _refuse(f'on_unprotected must be "raise" or "warn", not {fields["on_unprotected"]!r}')
    least = {"timeout": 0.0, "running_timeout": 0.0, "poll_interval": SHORTEST_POLL}
    return {name: _seconds(fields[name], name, bound) for name, bound in least.items()}


_LEVEL = 1
"""The transpiler's level where the call names none."""


def _check_transpiling(fields: Mapping[str, Any]) -> int:
    """Check how circuits are to be transpiled; returns the level."""
    level, manager = fields["optimization_level"], fields["pass_manager"]
    _check_level(level)
    if manager is None:
        return _LEVEL if level is None else level
    from qiskit.transpiler import PassManager

    if not isinstance(manager, PassManager):
        raise _refuse(
            "pass_manager must be one of Qiskit's, as generate_preset_pass_manager(backend=...) returns it, not "
            f"{type(manager).__name__}"
        )
    beside = [name for name in ("optimization_level", "seed_transpiler", "initial_layout") if fields[name] is not None]
    if beside:
        raise _refuse(
            f"{beside[0]}= and pass_manager= contradict each other, since a pass manager has settings of its own; omit "
            f"one of them, or give {beside[0]} to generate_preset_pass_manager"
        )
    if fields["key"] is not None:
        raise _refuse(
            "a run with a key must be recognized when the program is restarted, and a pass manager can't be; transpile "
            "the circuits before, with pass_manager.run(circuits), or omit one of key= and pass_manager="
        )
    return _LEVEL


def _check_level(level: Any) -> None:
    if level is not None and (type(level) is not int or not 0 <= level <= 3):
        raise _refuse(f"optimization_level must be 0, 1, 2 or 3, not {level!r}")


def _check_layout(given: Any, pubs: list[Any]) -> tuple[int, ...] | None:
    """The initial layout, if it fits all circuits."""
    if given is None:
        return None
    try:
        places = tuple(operator.index(place) for place in given)
    except (TypeError, LookupError):  # a Layout looks 0, 1, 2 ... up, and has not all of them
        raise _refuse(
            "initial_layout must be the numbers of physical qubits, one for each qubit of the circuit, such as "
            f"[4, 5, 6], not {type(given).__name__}; of a Layout: [layout[qubit] for qubit in circuit.qubits]"
        ) from None
    if any(place < 0 for place in places) or len(set(places)) < len(places):
        raise _refuse(f"initial_layout must name each physical qubit once, by a number of at least 0, not {given!r}")
    for index, pub in enumerate(pubs):
        which = f" (number {index})" if len(pubs) > 1 else ""
        if pub.circuit.layout is not None:
            raise _refuse(
                f"initial_layout= is for a circuit that is not transpiled yet, and this one{which} is; omit "
                "initial_layout=, or give the circuit as it was before"
            )
        if pub.circuit.num_qubits != len(places):
            raise _refuse(
                f"initial_layout has {len(places)} places, and the circuit{which} {pub.circuit.num_qubits} qubits; "
                "give a place for each, and circuits of other widths to a run of their own"
            )
    return places


_OF_PUBS = ("precision", "key", "split", "initial_layout", "pass_manager", "optimization_level", "seed_transpiler")


def _check_program(name: str, kind: Kind, fields: Mapping[str, Any]) -> None:
    """Check that nothing is asked of an executor or a noise learner that is about PUBs."""
    if fields["shots"] is not None:
        instead = "QuantumProgram(shots=...)" if kind == "executor" else "the options shots_per_randomization"
        raise _refuse(f"shots= is for samplers and estimators; a job of {name} has those of {instead}")
    given = [each for each in _OF_PUBS if fields[each] is not None]
    if given:
        raise _refuse(f"{given[0]}= is for samplers and estimators; omit it for {name}, which runs what it is given")


def check_precision(precision: Any, kind: Kind, shots: Any) -> None:
    """Check a precision.

    Raises:
        ConfigError: It is none, or not for this.
    """
    if precision is None:
        return
    if kind == "sampler":
        raise _refuse("precision= is for an estimator, and this is a sampler; give shots=")
    if shots is not None:
        raise _refuse("shots= and precision= both say how often an estimator's circuits are executed; omit one of them")
    _check_standard_error(precision, "precision")


def _check_standard_error(value: Any, name: str) -> None:
    if not _is_number(value) or not 0 < float(value) < float("inf"):
        raise _refuse(f"{name} must be a number above 0, the wanted standard error, not {value!r}")


def _check_instance(instance: Any) -> None:
    if instance is not None and (not isinstance(instance, str) or not instance.strip()):
        raise _refuse(f"instance must be the CRN or the name of an instance, not {instance!r}")


def _check_split(request: Request) -> None:
    """Check that the parts of a split run don't get in each other's way."""
    if request.parts < 2:
        return
    if request.key is not None and len(request.key) > SPLIT_KEY_LENGTH:
        raise _refuse(
            f"the key of a run with split= must have {SPLIT_KEY_LENGTH} characters or fewer, since each part gets one "
            f"made of it; this has {len(request.key)}"
        )
    is_bounded = request.max_execution_time is not None or request.running_timeout is not None
    if request.budgets and request.primitive is None and request.options is None and not is_bounded:
        raise _refuse(
            f"split={request.split} submits {request.parts} jobs at once, and the first would hold all that is left of "
            "the budget; give each its share with max_execution_time="
        )


def _check_key(key: Any, grace: Any, *, keep_on_sigterm: Any) -> None:
    if key is not None and (not isinstance(key, str) or not key.strip()):
        raise _refuse(f"key must be a string that is not empty, not {key!r}")
    if key is not None and (len(key) > KEY_LENGTH or not key.isprintable()):
        raise _refuse(f"key must have {KEY_LENGTH} characters or fewer, all of them printable; this has {len(key)}")
    if not _is_number(grace) or not 0 <= grace < float("inf"):
        raise _refuse(f"grace must be a number of seconds of at least 0, not {grace!r}")
    if not isinstance(keep_on_sigterm, bool):
        raise _refuse(f"keep_on_sigterm must be True or False, not {keep_on_sigterm!r}")
    if key is None and (grace or keep_on_sigterm):
        raise _refuse("grace and keep_on_sigterm are for a run that can be taken up again; give it a key= too")
    if keep_on_sigterm and not grace:
        raise _refuse("keep_on_sigterm=True keeps the job for the seconds of grace=, and that is 0; give grace= too")


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The user's tags, if they fit.

    Raises:
        ConfigError: If they do not.
    """
    if isinstance(tags, str):
        raise _refuse(f"tags must be several strings, not one; write tags=[{tags!r}]")
    try:
        found = tuple(tags)
    except TypeError:
        raise _refuse(f"tags must be strings in a list or tuple, not {type(tags).__name__}") from None
    for tag in found:
        if not isinstance(tag, str) or not tag:
            raise _refuse(f"a tag must be a string that is not empty, not {tag!r}")
        if len(tag) > TAG_LENGTH:
            raise _refuse(f"the tag {tag[:20]!r}… has {len(tag)} characters, and IBM Quantum allows {TAG_LENGTH}")
    if len(found) > USER_TAGS:
        raise _refuse(
            f"{len(found)} tags are too many: IBM Quantum allows a job 8, and 3 of them are needed to find it again; "
            f"leave {USER_TAGS} or fewer (those on a primitive's options count)"
        )
    return found


def _kind(primitive: Any) -> tuple[Kind, Any]:
    from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2

    primitive = getattr(primitive, "qx_primitive", primitive)  # one of `qx_supervisor.primitives`: what submits for it
    if primitive in ("sampler", "estimator"):
        return primitive, None
    if isinstance(primitive, BaseSamplerV2):
        return "sampler", primitive
    if isinstance(primitive, BaseEstimatorV2):
        return "estimator", primitive
    kind = service.programs.kind_of(primitive)
    if kind is not None:
        return kind, primitive
    given = repr(primitive) if isinstance(primitive, str) else type(primitive).__name__
    raise _refuse(f'primitive must be "sampler", "estimator" or a primitive object (version 2), not {given}')


def _whole(value: Any, name: str, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise _refuse(f"{name} must be a whole number of at least {least}, not {value!r}")
    return operator.index(value)  # one of NumPy's is no JSON


def _seconds(value: Any, name: str, least: float) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not least <= value < float("inf") or value == 0:
        bound = f"of at least {least}" if least else "above 0"
        raise _refuse(f"{name} must be a number of seconds {bound}, not {value!r}")
    return float(value)  # one of NumPy's is no JSON


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _refuse(reason: str) -> ConfigError:
    return ConfigError("config", reason)
