"""The messages between a driver and its watcher: their types, their form on the wire, and their version.

Each message is one JSON object. It travels over a `multiprocess.Pipe()` connection, a socket pair on which every
message arrives whole. Credentials cross here and nowhere else: never argv, environment, disk, log, exception or `repr`.

A driver starts the watcher that is installed. If qx-supervisor was upgraded, or downgraded, since the driver started,
that is another release's. So the start order, the watcher's hello and every message name the version of this protocol.
The driver's order says which version it speaks. The hello says which one will be spoken: that one, or the watcher's own
if it is lower. Whoever does not speak it refuses. Within a version a message that is not known, or has a field that is
not known, is refused: to ignore it could mean that a job is not guarded as its driver believes.
"""
# Annotations are read at run time here, so they are not postponed. The messages are named tuples, not dataclasses,
# because a watcher makes all these classes as it starts, and a named tuple takes a third of the time.

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, NamedTuple, NotRequired, Self, TypedDict, TypeVar

from .facts import NOTHING, About, By, End, Figures, RunOutcome

VERSION = 3
"""The version of this protocol. Raise it with every message or field that is added, removed or changes its meaning."""

OLDEST_VERSION = 1
"""The oldest version that is still spoken. Version 1 names no version, and is otherwise as 2 is. Version 3 has added
`Notify`, and what is told to those who read the ledger: `about`, `end` and `JobFigures`, of which who speaks an earlier
one is not told; and `Reserve`, without which no budget is kept."""

SWEEP_WINDOW = 120.0
"""The sweep window: seconds after the last moment at which a POST could have left, in which it may still make a job.

The default of `QX_SWEEP_WINDOW`. That moment is when the driver said `Posted`, or died."""

Outcome = Literal["cancelled", "finished", "gone", "unconfirmed"]
"""How a cancel ended.

- cancelled: the job was cancelled
- finished: it was final already, or finished all the same
- gone: there is no such job, and its id was not the service's own but one that somebody typed
- unconfirmed: nobody knows
"""


class ProtocolError(ValueError):
    """A message that is not of the agreed form. Its text names the fault and quotes no value, which may be secret.

    Attributes:
        seq: The message's number, or 0 if it could not be read.
    """

    def __init__(self, text: str, seq: object = 0) -> None:
        super().__init__(text)
        self.seq = seq if type(seq) is int else 0


class VersionError(ProtocolError):
    """The other side speaks a version of this protocol that is not spoken here."""

    def __init__(self, version: object, seq: object = 0) -> None:
        theirs = f"version {version}" if type(version) is int else "an unknown version"
        super().__init__(
            f"the other side speaks {theirs} of the protocol between driver and watcher, and this one speaks "
            f"{OLDEST_VERSION} to {VERSION}: qx-supervisor was replaced while the program ran; restart the program",
            seq,
        )


# What a driver tells when it starts a watcher ----------------------------------------------------------------------


class Door(TypedDict):
    """Where drivers come to a watcher that they share."""

    listener: int  # the descriptor of the socket
    socket: str  # its path
    lock: str  # the path of the lock under which it is made and removed
    linger: float  # seconds that the watcher stays without a driver


class Order(TypedDict):
    """The start order, a JSON object: `sys.argv[1]` of `boot.py`. It stands in no command line (`launch`)."""

    protocol: NotRequired[int]  # version 1 names none
    pid: int  # the driver's
    start_ticks: int
    path: list[str]  # the folders that have the watcher's packages
    state: str  # the state directory, or ""
    sweep_window: float
    lease_seconds: float
    title: NotRequired[str]  # its command line, as `ps` shows it
    # Of a watcher that the driver itself starts: the descriptors that it inherits.
    connection: NotRequired[int]
    pidfd: NotRequired[int | None]
    lock: NotRequired[int | None]  # the memory of its `RobustLock`
    door: NotRequired[Door]  # of one that drivers share: the driver above has only started it
    address: NotRequired[str]  # of one that systemd starts: the socket at which the driver waits


class CallerOrder(TypedDict):
    """What a driver says first to such a watcher, with some descriptors."""

    protocol: int
    pid: int
    start_ticks: int
    sweep_window: float
    word: str  # for all connections of one process: a later one replaces an earlier one that broke
    passed: tuple[str, ...]  # which descriptors come along: "pidfd", "lock"


def decode_caller_order(data: bytes) -> CallerOrder:
    """What a driver says first.

    Raises:
        ProtocolError: If it is something else.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(content, dict):
        raise ProtocolError("not an object")
    found: CallerOrder = _read_fields("order", content, CallerOrder.__annotations__)
    return found


@dataclass(frozen=True)
class Credentials:
    """How one service is reached, as the driver's own `QiskitRuntimeService` reaches it.

    Attributes:
        endpoint: REST base URL, after the service's `url_resolver`, for instance
        "https://quantum.cloud.ibm.com/api/v1".
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

    def to_json(self) -> dict[str, object]:
        """The object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read credentials from a message.

        Raises:
            ProtocolError: If a field is missing, unknown, or of the wrong type.
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
    """A driver's lease on a run that has a key.

    Attributes:
        key: The name that the user gave the run.
        fingerprint: What is submitted, in short.
        grace: The grace period, in seconds.
        holder: What tells this call of this driver from any other.
    """

    key: str
    fingerprint: str
    grace: float
    holder: str

    def to_json(self) -> dict[str, object]:
        """The object that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a lease from a message.

        Raises:
            ProtocolError: If a field is missing, unknown, or of the wrong type.
        """
        wanted = {"key": str, "fingerprint": str, "grace": float, "holder": str}
        if not isinstance(value, dict) or {name: type(each) for name, each in value.items()} != wanted:
            raise ProtocolError("lease: not an object with the agreed fields")
        if not value["key"] or not value["holder"] or not 0 <= value["grace"] < float("inf"):
            raise ProtocolError("lease: a field has no use")
        return cls(**value)


# From the driver ----------------------------------------------------------------------------------------------------


class UseLedger(NamedTuple):
    """Write to the shared ledger too. The first message, where there is one."""

    url: str

    def __repr__(self) -> str:
        return "UseLedger()"  # the URL may hold a password


class Notify(NamedTuple):
    """Who is to be told how runs end. It comes before any run, where anybody is to be told."""

    targets: tuple[str, ...]  # webhooks' URLs, "mailto:" with an address, "exec:" with a command's path
    after: float  # seconds that a run must have lasted for its end to be told
    sendmail: str  # the path of sendmail, or ""

    def __repr__(self) -> str:
        return "Notify()"  # whoever knows a webhook's URL can write there


class Arm(NamedTuple):
    """The credentials of an account. Acknowledged when the watcher has a token."""

    account: str
    credentials: Credentials


class Intent(NamedTuple):
    """A POST is about to leave."""

    run: str
    account: str
    tag: str
    driver: str  # the tag of all jobs of this driver, or ""
    lease: Lease | None
    about: About = NOTHING


class TakeLease(NamedTuple):
    """Take the lease on a key. Answered with a `LeaseAnswer`; if that is "granted", the run is guarded from then on."""

    run: str
    account: str
    tag: str
    driver: str
    lease: Lease
    instances: tuple[str, ...]  # that this driver can use, by CRN
    about: About = NOTHING


class GuardSession(NamedTuple):
    """An intent for a whole session, of which the driver is the owner or not."""

    run: str
    account: str
    tag: str
    session: str
    owner: bool
    about: About = NOTHING


class OpenedSession(NamedTuple):
    """The driver has opened a session: it is to take no more jobs once the driver is dead.

    The jobs in it are guarded one by one.
    """

    run: str
    account: str
    tag: str
    session: str
    about: About = NOTHING


class JobKnown(NamedTuple):
    """A POST was answered: the job's id."""

    run: str
    job: str


class Reserve(NamedTuple):
    """Reserve QPU time for a POST of a run, if any budget is for it. Answered with a `ReserveAnswer`."""

    run: str
    account: str
    label: str
    post: str  # a word for the POST: asked again, it is not reserved twice
    most: int  # the seconds that its job would have otherwise
    least: int
    budgets: dict[str, float]  # the program's own: the seconds of each, by its name


class Posted(NamedTuple):
    """No more POST of the run leaves. Clean: each was answered at the first try, so that no job is unknown."""

    run: str
    clean: bool


class Resubmit(NamedTuple):
    """The jobs under a key have ended: another one will be submitted."""

    run: str
    outcomes: dict[str, str]


class LetGo(NamedTuple):
    """Nobody waits for a run with a key any more: its grace period begins."""

    run: str


class Cancelling(NamedTuple):
    """The driver is about to request the cancel itself. The end that it then has: why it is cancelled."""

    run: str
    end: End | None = None


class HandOver(NamedTuple):
    """The driver leaves the cancel to the watcher. The end that it then has: why it is cancelled."""

    run: str
    end: End | None = None


class StandDown(NamedTuple):
    """The run is over: forget it."""

    run: str
    end: End | None = None


class JobFigures(NamedTuple):
    """What the driver has read of a job's cost and times. The run may be over."""

    run: str
    job: str
    figures: Figures


class Bye(NamedTuple):
    """May the watcher leave?"""


class Inspect(NamedTuple):
    """What does the watcher know of itself? For tests. Answered with an `Inspection`."""


RunMessage = JobKnown | Posted | Resubmit | LetGo | Cancelling | HandOver | StandDown
"""About a run that is guarded already."""

FromDriver = (
    UseLedger
    | Notify
    | Arm
    | Intent
    | TakeLease
    | GuardSession
    | OpenedSession
    | Reserve
    | RunMessage
    | JobFigures
    | Bye
    | Inspect
)

# From the watcher ---------------------------------------------------------------------------------------------------

Event = Literal[
    # of a job, or, but for "unconfirmed", of a run
    "cancelled",
    "finished",
    "gone",
    "unconfirmed",
    "pending",  # the run's jobs could not all be cancelled: that is left to the ledger
    "done",
    "lost",  # another has the run's lease
    # of the watcher
    "token refused",
    "ledger lost",
    "shared ledger away",
    "shared ledger back",
    "fault",
]


class Ack(NamedTuple):
    """The answer to a message, with what was asked for: a `LeaseAnswer`, an `Inspection`, or nothing."""

    content: Mapping[str, object]


class Nack(NamedTuple):
    """A message is refused."""

    reason: str


class Report(NamedTuple):
    """Something happened: to a job, to a run, or to the watcher."""

    event: Event
    run: str = ""
    job: str = ""
    detail: str = ""


FromWatcher = Ack | Nack | Report


class Hello(NamedTuple):
    """The watcher's first message: it runs.

    Attributes:
        version: The version of the protocol that will be spoken.
        pid: The watcher's process id.
        start_ticks: Its start, in clock ticks since boot.
    """

    version: int
    pid: int
    start_ticks: int | None


class LeaseAnswer(TypedDict):
    """What the ledger says of a key.

    answer: See `watcher.ledger.rules.Answer`. The rest describes the run under the key; pid and host are its holder's.
    """

    answer: str
    run: str
    tag: str
    driver: str
    instance: str
    jobs: dict[str, str]
    answered: bool
    is_new: bool
    is_seen: bool
    seconds_left: float
    lease_until: float | None
    since: float | None  # seconds since the run was let go of
    pid: int
    host: str


class ReserveAnswer(TypedDict):
    """How much QPU time a job may take, or which budget has not enough left for it."""

    seconds: int | None  # None: no budget is for the run, or it is refused, or this is not known
    trouble: str  # why the ledger can't say; or, if it is refused, that the run is over in it
    is_limited: bool  # with trouble: there are standing budgets, as far as is known
    is_refused: bool
    words: str  # what a message calls the budget that has the least left, or ""; its figures were so before
    limit: float
    spent: float
    reserved: float
    pending: float  # the part of that which waits for nothing but its charge
    ends_in: float | None  # seconds until its next period begins
    largest: dict[str, float]  # the labels, or programs, whose runs count the most


class Inspection(TypedDict):
    """What a watcher knows of itself: its own user can't look into a process that is not dumpable."""

    pid: int
    ppid: int
    sid: int
    cwd: str
    descriptors: dict[str, str]
    modules: list[str]
    environment: list[str]  # the names
    pss_kb: int
    dumpable: int | None  # as prctl(2) says; None where it is not asked
    runs: dict[str, list[str]]  # run → its jobs


# The wire -----------------------------------------------------------------------------------------------------------

# The names on the wire never change, whatever becomes of the names of classes. Those of fields are the same in both.
_FROM_DRIVER: dict[str, type[FromDriver]] = {
    "ledger": UseLedger,
    "notify": Notify,
    "arm": Arm,
    "intent": Intent,
    "claim": TakeLease,
    "session": GuardSession,
    "opened": OpenedSession,
    "reserve": Reserve,
    "job": JobKnown,
    "posted": Posted,
    "anew": Resubmit,
    "let go": LetGo,
    "cancelling": Cancelling,
    "cancel": HandOver,
    "done": StandDown,
    "figures": JobFigures,
    "bye": Bye,
    "inspect": Inspect,
}
_FROM_WATCHER: dict[str, type[Nack | Report]] = {"nack": Nack, "report": Report}
_KINDS = {each: kind for kind, each in (*_FROM_DRIVER.items(), *_FROM_WATCHER.items(), ("ack", Ack))}

# What version 3 has added to messages, as it is where an earlier one is spoken.
_ADDED: dict[str, object] = {"about": NOTHING, "end": None}

T = TypeVar("T")


def is_understood(message: FromDriver, version: int) -> bool:
    """Whether a message exists in a version of the protocol."""
    return version >= 3 or not isinstance(message, Notify | JobFigures | Reserve)


def encode(message: FromDriver | FromWatcher, seq: int, version: int = VERSION) -> bytes:
    """A message as the bytes that travel.

    Args:
        message: The message.
        seq: Its number, or that of the message it answers.
        version: The version of the protocol that the other side speaks.
    """
    if isinstance(message, Ack):
        return _dump("ack", seq, version, message.content)
    content = {name: _to_json(value) for name, value in message._asdict().items() if version >= 3 or name not in _ADDED}
    return _dump(_KINDS[type(message)], seq, version, content)


def encode_hello(hello: Hello) -> bytes:
    """A hello as the bytes that travel: to a driver of version 1 it was the acknowledgement of no message."""
    return _dump("ack", 0, hello.version, {"pid": hello.pid, "start_ticks": hello.start_ticks})


def decode_from_driver(data: bytes) -> tuple[int, FromDriver]:
    """A message of the driver's, and its number.

    Raises:
        ProtocolError: If it is none.
    """
    raw = _load(data)
    return raw.seq, _read(raw, _FROM_DRIVER)


def decode_from_watcher(data: bytes) -> tuple[int, FromWatcher]:
    """A message of the watcher's, and its number.

    Raises:
        ProtocolError: If it is none.
    """
    raw = _load(data)
    return raw.seq, Ack(raw.content) if raw.kind == "ack" else _read(raw, _FROM_WATCHER)


def decode_hello(data: bytes) -> Hello | Nack:
    """A watcher's first message.

    Raises:
        VersionError: If it is of a version that is not spoken here.
        ProtocolError: If it is no such message.
    """
    raw = _load(data)
    if raw.kind == "nack":
        return Nack(str(raw.content.get("reason")))
    return Hello(raw.version, **_read_fields("hello", raw.content, {"pid": int, "start_ticks": int | None}))


def lease_answer(ack: Ack) -> LeaseAnswer:
    """What the answer to a `TakeLease` says.

    Raises:
        ProtocolError: If it says something else.
    """
    found: LeaseAnswer = _read_fields("claim", ack.content, LeaseAnswer.__annotations__)
    return found


def reserve_answer(ack: Ack) -> ReserveAnswer:
    """What the answer to a `Reserve` says.

    Raises:
        ProtocolError: If it says something else.
    """
    found: ReserveAnswer = _read_fields("reserve", ack.content, ReserveAnswer.__annotations__)
    return found


def version_to_speak(asked: object) -> int:
    """The version to speak with a driver that asked for this one.

    Raises:
        VersionError: If that is spoken no more.
    """
    if type(asked) is not int or asked < OLDEST_VERSION:
        raise VersionError(asked)
    return min(asked, VERSION)


class _Raw(NamedTuple):
    """A message whose fields have not been read."""

    kind: str
    seq: int
    version: int
    content: dict[str, object]


def _dump(kind: str, seq: int, version: int, content: Mapping[str, object]) -> bytes:
    named = {"protocol": version} if version > 1 else {}
    return json.dumps({"kind": kind, "seq": seq, **named, **content}, separators=(",", ":")).encode()


def _to_json(value: object) -> object:
    if isinstance(value, Credentials | Lease):
        return value.to_json()
    if isinstance(value, About | End | Figures):
        return value._asdict()
    return {} if value is None else value  # None: no lease, no end


def _load(data: bytes) -> _Raw:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ProtocolError("not JSON") from None
    if not isinstance(content, dict):
        raise ProtocolError("not an object")
    kind, seq, version = content.pop("kind", None), content.pop("seq", None), content.pop("protocol", 1)
    if kind not in _KINDS.values():
        raise ProtocolError("unknown kind", seq)
    if type(seq) is not int:
        raise ProtocolError(f"{kind}: no seq")
    if type(version) is not int or not OLDEST_VERSION <= version <= VERSION:
        raise VersionError(version, seq)
    return _Raw(kind, seq, version, content)


def _read(raw: _Raw, kinds: Mapping[str, type[T]]) -> T:
    made = kinds.get(raw.kind)
    if made is None or (made in (Notify, JobFigures, Reserve) and raw.version < 3):
        raise ProtocolError("unknown kind", raw.seq)
    fields = made.__annotations__
    added = {name: value for name, value in _ADDED.items() if name in fields and raw.version < 3}
    wanted = {name: of for name, of in fields.items() if name not in added}
    if not raw.content.keys() <= wanted.keys():
        raise ProtocolError(f"{raw.kind}: it has an unknown field", raw.seq)
    try:
        return made(**_read_fields(raw.kind, raw.content, wanted), **added)
    except ProtocolError as error:
        error.seq = raw.seq
        raise


def _read_fields(kind: str, content: Mapping[str, object], wanted: Mapping[str, Any]) -> Any:
    """Some fields, each of the type that is wanted."""
    return {name: _READERS[of](f"{kind}: {name}", content.get(name, _MISSING)) for name, of in wanted.items()}


_MISSING = object()


def _is(*types: type) -> Callable[[str, object], object]:
    names = " or ".join(each.__name__ for each in types)

    def read(what: str, value: object) -> object:
        if type(value) not in types:
            raise ProtocolError(f"{what} is not of type {names}")
        return value

    return read


def _strings(what: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ProtocolError(f"{what} is not a list of strings")
    return value


def _table(what: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ProtocolError(f"{what} is not a table of strings")
    return value


def _seconds(what: str, value: object) -> dict[str, float]:
    if not isinstance(value, dict) or not all(
        type(each) in (float, int) and 0 <= each < float("inf") for each in value.values()
    ):
        raise ProtocolError(f"{what} is not a table of seconds")
    return value


def _facts(what: str, value: object, kind: type[About | End | Figures]) -> Any:
    wanted = kind.__annotations__
    if not isinstance(value, dict) or not value.keys() <= wanted.keys():
        raise ProtocolError(f"{what} is not an object with the agreed fields")
    return kind(**_read_fields(what, value, wanted))


def _made_by(make: Callable[[object], T]) -> Callable[[str, object], T]:
    def read(what: str, value: object) -> T:
        try:
            return make(value)
        except ProtocolError as error:
            raise ProtocolError(f"{what}: {error}") from None

    return read


# How a field is read from JSON, by its type.
_READERS: dict[Any, Callable[[str, Any], object]] = {
    str: _is(str),
    bool: _is(bool),
    int: _is(int),
    float: _is(float, int),
    int | None: _is(int, NoneType),
    float | None: _is(float, int, NoneType),
    Event: _is(str),
    tuple[str, ...]: lambda what, value: tuple(_strings(what, value)),
    dict[str, str]: _table,
    dict[str, float]: _seconds,
    Credentials: _made_by(Credentials.from_json),
    Lease: _made_by(Lease.from_json),
    Lease | None: _made_by(lambda value: None if value == {} else Lease.from_json(value)),
    About: lambda what, value: _facts(what, value, About),
    End | None: lambda what, value: None if value == {} else _facts(what, value, End),
    Figures: lambda what, value: _facts(what, value, Figures),
    RunOutcome: _is(str),
    By: _is(str),
}
