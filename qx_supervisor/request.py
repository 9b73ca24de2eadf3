"""What a call asks for, checked before anything is done.

Bad input is refused here, or later before the submission, with a `ConfigError` that names the fault and the next step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError
from .pubs import Kind, coerce
from .status import Status

USER_TAGS = 5
"""Of the eight tags that IBM Quantum allows a job, three are this package's."""

TAG_LENGTH = 86
KEY_LENGTH = 200

SHORTEST_POLL = 0.1
"""Seconds; the official client's floor."""


@dataclass(frozen=True)
class Request:
    """A checked call.

    Attributes:
        pubs: Qiskit's `SamplerPub`s or `EstimatorPub`s.
        kind: Which of the two.
        primitive: The user's own primitive object, or None.
        is_list: Whether the call named a list of circuits or PUBs, if only of one: then the result has lists.
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
    poll_interval: float | None
    tags: tuple[str, ...]
    max_execution_time: int | None
    on_unprotected: Literal["raise", "warn"]
    key: str | None = None
    grace: float = 0.0
    keep_on_sigterm: bool = False
    is_list: bool = False

    @property
    def width(self) -> int:
        """The number of qubits of the widest circuit."""
        return max(int(pub.circuit.num_qubits) for pub in self.pubs)


def check(given: Mapping[str, Any]) -> Request:
    """Check a call's arguments.

    Args:
        given: What `run` takes, by name, without the panel.

    Raises:
        ConfigError: If the call can't be carried out.
    """
    if not sys.platform.startswith("linux"):
        raise _refuse(f"this platform ({sys.platform}) is not supported; run the driver on Linux (WSL 2 will do)")
    fields = {**_DEFAULTS, **given}
    kind, own = _kind(fields["primitive"])
    shots, on_status, key, grace = fields["shots"], fields["on_status"], fields["key"], fields["grace"]
    if own is not None and fields["options"] is not None:
        raise _refuse("options= is for a primitive that is made here; set them on your own primitive object")
    if own is not None and kind == "estimator" and shots is not None:
        raise _refuse("shots= is for a primitive that is made here; set options.default_shots on your own estimator")
    if callable(on_status) is (on_status is None):
        raise _refuse(f"on_status must be callable, not {type(on_status).__name__}")
    if fields["on_unprotected"] not in ("raise", "warn"):
        raise _refuse(f'on_unprotected must be "raise" or "warn", not {fields["on_unprotected"]!r}')
    _whole(shots, "shots", 1)
    _whole(fields["max_execution_time"], "max_execution_time", 1)
    level = fields["optimization_level"]
    if type(level) is not int or not 0 <= level <= 3:
        raise _refuse(f"optimization_level must be 0, 1, 2 or 3, not {level!r}")
    _whole(fields["seed_transpiler"], "seed_transpiler", 0)
    _seconds(fields["timeout"], "timeout", 0.0)
    _seconds(fields["poll_interval"], "poll_interval", SHORTEST_POLL)
    _check_key(key, grace, keep_on_sigterm=fields["keep_on_sigterm"])
    pubs, is_list = coerce(fields["pubs"], kind, shots)
    checked = {"pubs": pubs, "primitive": own, "tags": check_tags(fields["tags"]), "grace": float(grace)}
    return Request(**{**fields, **checked}, kind=kind, is_list=is_list)


_DEFAULTS = {"keep_on_sigterm": False}  # `submit` does not take it


def _check_key(key: Any, grace: Any, *, keep_on_sigterm: Any) -> None:
    if key is not None and (not isinstance(key, str) or not key.strip()):
        raise _refuse(f"key must be a string that is not empty, not {key!r}")
    if key is not None and (len(key) > KEY_LENGTH or not key.isprintable()):
        raise _refuse(f"key must have {KEY_LENGTH} characters or fewer, all of them printable; this has {len(key)}")
    if isinstance(grace, bool) or not isinstance(grace, int | float) or not 0 <= grace < float("inf"):
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

    if primitive in ("sampler", "estimator"):
        return primitive, None
    if isinstance(primitive, BaseSamplerV2):
        return "sampler", primitive
    if isinstance(primitive, BaseEstimatorV2):
        return "estimator", primitive
    given = repr(primitive) if isinstance(primitive, str) else type(primitive).__name__
    raise _refuse(f'primitive must be "sampler", "estimator" or a primitive object (version 2), not {given}')


def _whole(value: Any, name: str, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise _refuse(f"{name} must be a whole number of at least {least}, not {value!r}")


def _seconds(value: Any, name: str, least: float) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value < float("inf") or value == 0:
        bound = f"of at least {least}" if least else "above 0"
        raise _refuse(f"{name} must be a number of seconds {bound}, not {value!r}")


def _refuse(reason: str) -> ConfigError:
    return ConfigError("config", reason)
