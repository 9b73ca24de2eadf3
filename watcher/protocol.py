"""What the caller and its watcher say to each other: one JSON object a message.

They travel over a `multiprocess.Pipe()` connection, a socket pair on which every message arrives whole. Credentials
cross here and nowhere else: never argv, environment, disk, log, exception or `repr`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

SWEEP_WINDOW = 120.0
"""The sweep window: seconds after the last moment at which a POST could have left, in which it may still make a job.

The default of `QX_SWEEP_WINDOW`. That moment is when the driver said `posted`, or died."""

Outcome = Literal["cancelled", "finished", "gone", "unconfirmed"]
"""How a cancel ended.

- cancelled: the job was cancelled
- finished: it was final already, or finished all the same
- gone: there is no such job, and its id was not the service's own but one that somebody typed
- unconfirmed: nobody knows
"""

Message = dict[str, Any]


class ProtocolError(ValueError):
    """A message that is not of the agreed form. Its text names the fault and quotes no value, which may be secret."""


@dataclass(frozen=True)
class Credentials:
    """How one service is reached, as the driver's own `QiskitRuntimeService` reaches it.

    Attributes:
        endpoint: REST base URL, after the service's `url_resolver`, for instance "https://quantum.cloud.ibm.com/api/v1".
        instance: The instance's CRN, sent as `Service-CRN`.
        iam_url: Base URL of the token service.
        api_key: The IBM Cloud API key.
        token: A bearer token that is valid now, or "".
        token_expires: When it expires, in seconds since the epoch, or 0.
        verify: Whether TLS certificates are verified.
        proxies: Proxy URLs by scheme, as `requests` takes them; they may hold a password.
    """

    endpoint: str
    instance: str
    iam_url: str
    api_key: str = field(repr=False)
    token: str = field(default="", repr=False)
    token_expires: float = 0.0
    verify: bool = True
    proxies: dict[str, str] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Credentials:
        """Read credentials from a message.

        Raises:
            ProtocolError: If a field is missing or not of its type.
        """
        if not isinstance(value, dict) or not set(value) <= {item.name for item in fields(cls)}:
            raise ProtocolError("credentials: not an object with the agreed fields")
        for name in ("endpoint", "instance", "iam_url", "api_key"):
            if not isinstance(value.get(name), str) or not value[name]:
                raise ProtocolError(f"credentials: {name} is missing")
        made = cls(**value)
        proxies = {} if made.proxies is None else made.proxies
        for name, fits in (
            ("token", isinstance(made.token, str)),
            ("token_expires", type(made.token_expires) in (int, float)),
            ("verify", isinstance(made.verify, bool)),
            ("proxies", isinstance(proxies, dict) and all(isinstance(url, str) for url in proxies.values())),
        ):
            if not fits:
                raise ProtocolError(f"credentials: {name} is not of its type")
        return made


@dataclass(frozen=True)
class Lease:
    """What a driver says of a run that has a key, and that it may take up again.

    Attributes:
        key: The name that the user gave the run.
        fingerprint: What is submitted, in short.
        grace: Seconds that its jobs are left alone after the driver's death.
        holder: What tells this call of this driver from any other.
    """

    key: str
    fingerprint: str
    grace: float
    holder: str

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Lease:
        """Read a lease from a message.

        Raises:
            ProtocolError: If a field is missing or not of its type.
        """
        wanted = {"key": str, "fingerprint": str, "grace": float, "holder": str}
        if not isinstance(value, dict) or {name: type(each) for name, each in value.items()} != wanted:
            raise ProtocolError("lease: not an object with the agreed fields")
        if not value["key"] or not value["holder"] or not 0 <= value["grace"] < float("inf"):
            raise ProtocolError("lease: a field has no use")
        return cls(**value)


# Kind → its fields and their types. Every message has a `seq` too, which the answer quotes.
_FROM_CALLER: dict[str, dict[str, type]] = {
    "ledger": {"url": str},  # the first message, where there is a ledger of many hosts; its URL may hold a password
    "arm": {"account": str, "credentials": dict},  # credentials, answered when a token is held
    # A POST is about to leave. driver: the tag of all jobs of this driver, or "" where it has none. lease: {} without a
    # key.
    "intent": {"run": str, "account": str, "tag": str, "driver": str, "lease": dict},
    # May this driver have the key? Answered with what the ledger says. If so, it is the caller's from here on.
    "claim": {"run": str, "account": str, "tag": str, "driver": str, "lease": dict, "instances": list},
    "anew": {"run": str, "outcomes": dict},  # what became of the key's jobs: another one will be submitted
    "let go": {"run": str},  # nobody waits for it any more; its grace begins
    "job": {"run": str, "job": str},  # its answer came: the job's id
    "session": {"run": str, "account": str, "tag": str, "session": str, "owner": bool},  # an intent for a whole session
    # The driver has opened a session: when it dies, that takes no more jobs. Those in it are guarded one by one.
    "opened": {"run": str, "account": str, "tag": str, "session": str},
    "posted": {"run": str, "clean": bool},  # no POST of it leaves any more; clean: each was answered, at the first try
    "cancelling": {"run": str},  # the caller is about to ask for the cancel itself
    "done": {"run": str},  # stand down
    "cancel": {"run": str},  # the caller hands the cancel over
    "bye": {},  # may the watcher leave?
    "inspect": {},  # what the watcher knows of itself, for tests and for `doctor`
}
_FROM_WATCHER: dict[str, dict[str, type]] = {
    "ack": {},
    "nack": {"reason": str},
    "report": {"event": str, "run": str, "job": str, "detail": str},
}


def encode(kind: str, seq: int, **content: Any) -> bytes:
    """One message as the bytes that travel."""
    return json.dumps({"kind": kind, "seq": seq, **content}, separators=(",", ":")).encode()


def decode_from_caller(data: bytes) -> Message:
    """A message of the caller's.

    Raises:
        ProtocolError: If it is none.
    """
    return _decode(data, _FROM_CALLER)


def decode_from_watcher(data: bytes) -> Message:
    """A message of the watcher's.

    Raises:
        ProtocolError: If it is none.
    """
    return _decode(data, _FROM_WATCHER)


def _decode(data: bytes, kinds: dict[str, dict[str, type]]) -> Message:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(message, dict):
        raise ProtocolError("not an object")
    kind = message.get("kind")
    expected = kinds.get(kind) if isinstance(kind, str) else None
    if expected is None:
        raise ProtocolError("unknown kind")
    if type(message.get("seq")) is not int:
        raise ProtocolError(f"{kind}: no seq")
    for name, wanted in expected.items():
        if type(message.get(name)) is not wanted:
            raise ProtocolError(f"{kind}: {name} is not of type {wanted.__name__}")
    return message


def check_lease(message: Message) -> None:
    """Check what a message about a run with a key has inside.

    Raises:
        ProtocolError: If it can't be used.
    """
    kind = message["kind"]
    for each in (message.get("instances", ()), message.get("outcomes", {})):
        words = [*each, *(each.values() if isinstance(each, dict) else ())]
        if not all(isinstance(word, str) for word in words):
            raise ProtocolError(f"{kind}: a list or table of strings holds something else")
    if message.get("lease") or kind == "claim":
        Lease.from_json(message["lease"])
