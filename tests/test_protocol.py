"""What the two processes say: it arrives as it was said, and what is not of the agreed form is refused, unquoted."""

from __future__ import annotations

import json
import pickle
import traceback
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qx_supervisor.watcher import protocol
from qx_supervisor.watcher.facts import About, End, Figures
from qx_supervisor.watcher.protocol import (
    Ack,
    Arm,
    Bye,
    Cancelling,
    Credentials,
    GuardSession,
    HandOver,
    Hello,
    Inspect,
    Intent,
    JobKnown,
    Lease,
    LetGo,
    Nack,
    OpenedSession,
    Posted,
    ProtocolError,
    Report,
    Resubmit,
    StandDown,
    TakeLease,
    UseLedger,
    VersionError,
    decode_from_driver,
    decode_from_watcher,
    decode_hello,
    encode,
    encode_hello,
    is_understood,
)

SECRETS = {"api_key": "key-5f3c", "token": "eyJ0b2tlbg", "proxies": {"http": "http://me:pass-77@proxy:3128"}}
CREDENTIALS = Credentials("https://x.test/api/v1", "crn:v1:x", "https://iam.test", token_expires=1e9, **SECRETS)
SHOWN = ("key-5f3c", "eyJ0b2tlbg", "pass-77")

ABOUT = About("ibm_x", "sampler", 2, None, "vqe ☂", ("a", "b"), "driver.py", "python driver.py", 1e9)
END = End("cancelled", "signal", 15, "because")
FIGURES = Figures(1.5, None, 1e9, None, 2e9)

LEASE = Lease("key-5f3c", "eyJ0b2tlbg", 600.0, "pass-77")

# For a type of a field: what it may be in a message, and what that is as JSON.
VALUES = {
    str: st.text(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    protocol.Event: st.sampled_from(["cancelled", "lost", "fault"]),
    tuple[str, ...]: st.lists(st.text()).map(tuple),
    int: st.integers(),
    dict[str, str]: st.dictionaries(st.text(), st.text()),
    dict[str, float]: st.dictionaries(st.text(), st.floats(0, 1e9)),
    Credentials: st.just(CREDENTIALS),
    Lease: st.just(LEASE),
    Lease | None: st.sampled_from([None, LEASE]),
    About: st.just(ABOUT),
    End | None: st.sampled_from([None, END]),
    Figures: st.just(FIGURES),
}
JSON = {
    str: "x",
    bool: True,
    float: 60.0,
    protocol.Event: "lost",
    tuple[str, ...]: ["y"],
    int: 7,
    dict[str, str]: {},
    dict[str, float]: {"b": 1.5},
    Credentials: CREDENTIALS.to_json(),
    Lease: LEASE.to_json(),
    Lease | None: {},
    About: ABOUT._asdict(),
    End | None: {},
    Figures: FIGURES._asdict(),
}
DIRECTIONS = [(protocol._FROM_DRIVER, decode_from_driver), (protocol._FROM_WATCHER, decode_from_watcher)]
KINDS = [(kind, made, decode) for kinds, decode in DIRECTIONS for kind, made in kinds.items()]

quick = settings(max_examples=50, database=None, deadline=None)


@pytest.mark.parametrize(("kind", "made", "decode"), KINDS)
@pytest.mark.parametrize("version", [1, 2, 3])
@quick
@given(data=st.data(), seq=st.integers())
def test_what_is_said_arrives(kind, made, decode, version, data, seq):
    message = made(**{name: data.draw(VALUES[of]) for name, of in made.__annotations__.items()})
    wire = encode(message, seq, version)
    if not is_understood(message, version):
        with pytest.raises(ProtocolError, match="unknown kind"):
            decode(wire)
        return
    if version < 3:  # what that version does not know is left away
        message = message._replace(**{name: each for name, each in protocol._ADDED.items() if name in message._fields})
    assert decode(wire) == (seq, message)
    assert type(decode(wire)[1]) is made
    assert json.loads(wire)["kind"] == kind


def fits(value, wanted):
    if wanted is float:
        return type(value) in (int, float)
    return type(value) is wanted and wanted not in (list, dict)


@pytest.mark.parametrize(("kind", "made", "decode"), KINDS)
def test_a_field_that_is_missing_unknown_or_of_another_type_is_refused(kind, made, decode):
    fields = made.__annotations__
    whole = {"kind": kind, "seq": 3, "protocol": 3, **{name: JSON[of] for name, of in fields.items()}}
    decode(json.dumps(whole).encode())
    for name in set(whole) - {"kind", "protocol"}:
        others = [None, 1.5, [3], "another", {"z": -3}, True, 7]
        wanted = int if name == "seq" else type(JSON[fields[name]])
        without = {key: value for key, value in whole.items() if key != name}
        for changed in (
            without,
            *({**whole, name: value} for value in others if not fits(value, wanted)),
        ):
            with pytest.raises(ProtocolError, match=kind) as caught:
                decode(json.dumps(changed).encode())
            assert caught.value.seq == (0 if name == "seq" else 3)  # so that its sender hears of it
    with pytest.raises(ProtocolError, match=f"{kind}: it has an unknown field"):
        decode(json.dumps({**whole, "later": True}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff\xfe",
        b"{",
        b"nonsense",
        b"[" * 200_000,
        b'{"kind":' * 100_000,
        b"9" * 100_000,
        b'"' + b"x" * 10_000_000 + b'"',
        b"null",
        b"[]",
        b"3",
        b"{}",
        b'{"kind": null, "seq": 1}',
        b'{"kind": [], "seq": 1}',
        b'{"kind": {"kind": "done"}, "seq": 1}',
        b'{"kind": "Done", "seq": 1, "run": "r"}',
        b'{"kind": "done", "run": "r"}',
        b'{"kind": "done", "seq": true, "run": "r"}',
        b'{"kind": "done", "seq": 1.0, "run": "r"}',
        b'{"kind": "done", "seq": "1", "run": "r"}',
        b'{"kind": "done", "seq": 1, "run": "r"}}',
        b'{"kind": "done", "seq": 1, "run": "r"}{"kind": "done", "seq": 1, "run": "r"}',
    ],
    ids=lambda data: f"{data[:24]!r} of {len(data)}",
)
@pytest.mark.parametrize("decode", [decode_from_driver, decode_from_watcher, decode_hello])
def test_no_message(data, decode):
    with pytest.raises(ProtocolError):
        decode(data)


@quick
@given(st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_whatever_comes_there_is_no_other_error(data):
    for decode in (decode_from_driver, decode_from_watcher, decode_hello):
        with pytest.raises(ProtocolError):
            decode(data)


def test_the_two_directions_are_apart():
    with pytest.raises(ProtocolError, match="unknown kind"):
        decode_from_driver(encode(Ack({}), 1))
    with pytest.raises(ProtocolError, match="unknown kind"):
        decode_from_watcher(encode(StandDown("r"), 1))


# Credentials ----------------------------------------------------------------------------------------------------


def test_credentials_arrive():
    assert decode_from_driver(encode(Arm("a", CREDENTIALS), 1)) == (1, Arm("a", CREDENTIALS))


def test_credentials_need_no_more_than_where_and_whose():
    least = {"endpoint": "e", "instance": "i", "iam_url": "u", "api_key": "k"}
    rest = {"token": "", "token_expires": 0.0, "verify": True, "proxies": None}
    assert asdict(Credentials.from_json(least)) == least | rest


def test_credentials_are_not_shown():
    shown = f"{CREDENTIALS!r} {CREDENTIALS} {[CREDENTIALS]} {Arm('a', CREDENTIALS)}"
    assert not [secret for secret in SHOWN if secret in shown]
    assert "pass-77" not in repr(UseLedger("postgresql://me:pass-77@there/qx"))
    assert "https://x.test/api/v1" in repr(CREDENTIALS)
    assert pickle.loads(pickle.dumps(CREDENTIALS)) == CREDENTIALS


WRONG = {
    "endpoint": [None, "", 3, ["key-5f3c"]],
    "instance": [None, "", 3],
    "iam_url": [None, "", 3],
    "api_key": [None, "", 3, {"key-5f3c": "key-5f3c"}],
    "token": [None, 3, ["eyJ0b2tlbg"]],
    "token_expires": [None, "eyJ0b2tlbg", [], True],
    "verify": [None, "eyJ0b2tlbg", 1],
    "proxies": ["http://me:pass-77@proxy", ["pass-77"], {"http": 3}, {"http": ["pass-77"]}, 3],
    "key-5f3c": ["eyJ0b2tlbg"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_credentials_of_another_form_are_refused_unquoted(name, value):
    with pytest.raises(ProtocolError, match="credentials") as caught:
        Credentials.from_json({**CREDENTIALS.to_json(), name: value})
    shown = "".join(traceback.format_exception_only(caught.value))
    assert not [secret for secret in SHOWN if secret in shown]
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", [None, [], "key-5f3c", 3])
def test_credentials_are_an_object(value):
    with pytest.raises(ProtocolError, match="not an object"):
        Credentials.from_json(value)


def test_errors_quote_no_value():
    """Whatever of a message is wrong, the text says which field, and not what stood there."""
    for whole in (
        {"kind": "arm", "seq": "key-5f3c", "account": "a", "credentials": {}},
        {"kind": "arm", "seq": 1, "account": "a", "credentials": "key-5f3c"},
        {"kind": "key-5f3c", "seq": 1},
        {"kind": "done", "seq": 1, "run": ["key-5f3c"]},
        ["key-5f3c"],
    ):
        for data in (json.dumps(whole).encode(), json.dumps(whole).encode()[:-1]):
            with pytest.raises(ProtocolError) as caught:
                decode_from_driver(data)
            # The JSON error, which quotes the whole document, is not the cause and is not printed.
            assert "key-5f3c" not in "".join(traceback.format_exception(caught.value)).partition("ProtocolError")[2]
            assert caught.value.__suppress_context__ or caught.value.__context__ is None


# Leases ---------------------------------------------------------------------------------------------------------

CLAIM = {
    "kind": "claim",
    "seq": 1,
    "run": "r",
    "account": "a",
    "tag": "t",
    "driver": "d",
    "lease": LEASE.to_json(),
    "instances": ["crn:1"],
}
INTENT = {"kind": "intent", "seq": 1, "run": "r", "account": "a", "tag": "t", "driver": "d"}


def test_a_lease_arrives():
    wanted = TakeLease("r", "a", "t", "d", LEASE, ("crn:1",))
    assert decode_from_driver(encode(wanted, 1)) == (1, wanted)
    assert decode_from_driver(json.dumps(CLAIM).encode()) == (1, wanted)
    assert Lease.from_json({**LEASE.to_json(), "grace": 0.0, "fingerprint": ""}).grace == 0


WRONG_LEASE = {
    "key": [None, "", 3, ["key-5f3c"]],
    "fingerprint": [None, 3, ["eyJ0b2tlbg"]],
    "grace": [None, 600, "key-5f3c", True, -0.1, float("inf"), float("-inf"), float("nan")],
    "holder": [None, "", 3, {"pass-77": "pass-77"}],
    "key-5f3c": ["pass-77"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, each in WRONG_LEASE.items() for value in each])
def test_a_lease_of_another_form_is_refused_unquoted(name, value):
    with pytest.raises(ProtocolError, match="lease") as caught:
        Lease.from_json({**LEASE.to_json(), name: value})
    shown = "".join(traceback.format_exception_only(caught.value))
    assert not [secret for secret in SHOWN if secret in shown]
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["key", "fingerprint", "grace", "holder"])
def test_a_lease_is_whole(name):
    with pytest.raises(ProtocolError, match="lease"):
        Lease.from_json({key: value for key, value in LEASE.to_json().items() if key != name})


@pytest.mark.parametrize("value", [None, {}, [], "key-5f3c", 3])
def test_a_lease_is_an_object(value):
    with pytest.raises(ProtocolError, match="lease: not an object"):
        Lease.from_json(value)


@pytest.mark.parametrize(
    "inside",
    [
        {"instances": ["crn:1", 3]},
        {"instances": [None]},
        {"instances": [["key-5f3c"]]},
        {"instances": [], "lease": {}},  # a claim is of a key
        {"instances": [], "lease": {**LEASE.to_json(), "grace": -1.0}},
        {"instances": [], "lease": {**LEASE.to_json(), "holder": ""}},
        {"instances": [], "lease": {"key-5f3c": "pass-77"}},
    ],
    ids=str,
)
def test_a_claim_with_something_else_inside_is_refused_unquoted(inside):
    with pytest.raises(ProtocolError, match=r"claim|lease") as caught:
        decode_from_driver(json.dumps({**CLAIM, **inside}).encode())
    assert not [secret for secret in SHOWN if secret in str(caught.value)]


@pytest.mark.parametrize("outcomes", [{"j": 3}, {"j": None}, {"j": ["key-5f3c"]}, {"j": "cancelled", "k": {}}], ids=str)
def test_outcomes_that_are_no_words_are_refused_unquoted(outcomes):
    with pytest.raises(ProtocolError, match="anew") as caught:
        decode_from_driver(encode(Resubmit("r", outcomes), 1))
    assert "key-5f3c" not in str(caught.value)


@pytest.mark.parametrize("lease", [{"key": "k"}, {**LEASE.to_json(), "grace": float("inf")}], ids=str)
def test_an_intent_may_have_no_lease_and_no_half_of_one(lease):
    for said, wanted in (({}, None), (LEASE.to_json(), LEASE)):
        assert decode_from_driver(json.dumps({**INTENT, "lease": said}).encode())[1].lease == wanted
    with pytest.raises(ProtocolError, match="lease"):
        decode_from_driver(json.dumps({**INTENT, "lease": lease}).encode())


# Answers --------------------------------------------------------------------------------------------------------

ANSWER = {
    "answer": "granted",
    "run": "r",
    "tag": "t",
    "driver": "",
    "instance": "crn:1",
    "jobs": {"j": "cancelled"},
    "answered": True,
    "is_new": False,
    "is_seen": False,
    "seconds_left": 0.0,
    "lease_until": 1e9,
    "since": None,
    "pid": 7,
    "host": "here",
}


def test_an_answer_has_what_was_asked_for():
    seq, ack = decode_from_watcher(encode(Ack(ANSWER), 3))
    assert (seq, protocol.lease_answer(ack)) == (3, ANSWER)
    for name in ANSWER:
        for changed in ({**ANSWER, name: {"z": [object]}}, {**ANSWER, name: "eyJ0b2tlbg" if name == "pid" else 1j}):
            with pytest.raises(ProtocolError, match=name) as caught:
                protocol.lease_answer(Ack(changed))
            assert "eyJ0b2tlbg" not in str(caught.value)
        with pytest.raises(ProtocolError, match=name):
            protocol.lease_answer(Ack({key: value for key, value in ANSWER.items() if key != name}))


# Versions -------------------------------------------------------------------------------------------------------

RECORDED = {
    b'{"kind":"ledger","seq":1,"url":"postgresql://there/qx"}': UseLedger("postgresql://there/qx"),
    b'{"kind":"arm","seq":1,"account":"a0","credentials":{"endpoint":"https://x.test/api/v1","instance":"crn:v1:x",'
    b'"iam_url":"https://iam.test","api_key":"key-5f3c","token":"eyJ0b2tlbg","token_expires":1000000000.0,'
    b'"verify":true,"proxies":{"http":"http://me:pass-77@proxy:3128"}}}': Arm("a0", CREDENTIALS),
    b'{"kind":"intent","seq":1,"run":"r","account":"a0","tag":"qxs-r","driver":"qxd-1","lease":{}}': Intent(
        "r", "a0", "qxs-r", "qxd-1", None
    ),
    b'{"kind":"intent","seq":1,"run":"r","account":"a0","tag":"qxs-r","driver":"","lease":{"key":"key-5f3c",'
    b'"fingerprint":"eyJ0b2tlbg","grace":600.0,"holder":"pass-77"}}': Intent("r", "a0", "qxs-r", "", LEASE),
    b'{"kind":"claim","seq":1,"run":"r","account":"a0","tag":"qxs-r","driver":"qxd-1","lease":{"key":"key-5f3c",'
    b'"fingerprint":"eyJ0b2tlbg","grace":600.0,"holder":"pass-77"},"instances":["crn:1"]}': TakeLease(
        "r", "a0", "qxs-r", "qxd-1", LEASE, ("crn:1",)
    ),
    b'{"kind":"session","seq":1,"run":"r","account":"a0","tag":"t","session":"s","owner":true}': GuardSession(
        "r", "a0", "t", "s", True
    ),
    b'{"kind":"opened","seq":1,"run":"r","account":"a0","tag":"t","session":"s"}': OpenedSession("r", "a0", "t", "s"),
    b'{"kind":"job","seq":1,"run":"r","job":"j"}': JobKnown("r", "j"),
    b'{"kind":"posted","seq":1,"run":"r","clean":true}': Posted("r", True),
    b'{"kind":"anew","seq":1,"run":"r","outcomes":{"j":"cancelled"}}': Resubmit("r", {"j": "cancelled"}),
    b'{"kind":"let go","seq":1,"run":"r"}': LetGo("r"),
    b'{"kind":"cancelling","seq":1,"run":"r"}': Cancelling("r"),
    b'{"kind":"cancel","seq":1,"run":"r"}': HandOver("r"),
    b'{"kind":"done","seq":1,"run":"r"}': StandDown("r"),
    b'{"kind":"bye","seq":1}': Bye(),
    b'{"kind":"inspect","seq":1}': Inspect(),
    b'{"kind":"ack","seq":1}': Ack({}),
    b'{"kind":"nack","seq":1,"reason":"leaving"}': Nack("leaving"),
    b'{"kind":"report","seq":1,"event":"cancelled","run":"r","job":"j","detail":""}': Report("cancelled", "r", "j"),
}
"""Each message of version 1, as that version's own code encoded it."""


@pytest.mark.parametrize(("data", "message"), RECORDED.items(), ids=lambda each: type(each).__name__)
def test_version_1_is_understood_and_spoken(data, message):
    """A driver and a watcher of different releases meet where qx-supervisor is replaced while the driver runs."""
    assert encode(message, 1, version=1) == data
    decode = decode_from_watcher if isinstance(message, Ack | Nack | Report) else decode_from_driver
    assert decode(data) == (1, message)
    assert type(decode(data)[1]) is type(message)


def test_every_message_of_version_1_was_recorded():
    late = {"figures", "notify", "reserve"}
    assert {json.loads(data)["kind"] for data in RECORDED} == set(protocol._KINDS.values()) - late


def test_a_hello_of_version_1():
    recorded = b'{"kind":"ack","seq":0,"pid":4711,"start_ticks":99}'
    assert decode_hello(recorded) == Hello(1, 4711, 99)
    assert encode_hello(Hello(1, 4711, 99)) == recorded
    assert decode_hello(b'{"kind":"nack","seq":0,"reason":"ModuleNotFoundError: psutil"}') == Nack(
        "ModuleNotFoundError: psutil"
    )


def test_each_message_names_its_version():
    assert json.loads(encode(StandDown("r"), 1)) == {"kind": "done", "seq": 1, "protocol": 3, "run": "r", "end": {}}
    assert json.loads(encode(StandDown("r", END), 1, 2)) == {"kind": "done", "seq": 1, "protocol": 2, "run": "r"}
    assert decode_hello(encode_hello(Hello(2, 4711, None))) == Hello(2, 4711, None)


def test_what_a_later_version_has_added_is_unknown_in_an_earlier_one():
    with pytest.raises(ProtocolError, match="done: it has an unknown field"):
        decode_from_driver(b'{"kind":"done","seq":1,"protocol":2,"run":"r","end":{}}')
    with pytest.raises(ProtocolError, match="done: end is not an object with the agreed fields"):
        decode_from_driver(b'{"kind":"done","seq":1,"protocol":3,"run":"r","end":{"key-5f3c":"x"}}')


@pytest.mark.parametrize("version", [0, 4, -1, True, 2.0, "2", None, ["key-5f3c"]], ids=str)
def test_a_version_that_is_not_spoken_is_refused(version):
    done = json.dumps({"kind": "done", "seq": 7, "protocol": version, "run": "r"}).encode()
    hello = json.dumps({"kind": "ack", "seq": 0, "protocol": version, "pid": 1, "start_ticks": 2}).encode()
    for decode, data in ((decode_from_driver, done), (decode_hello, hello), (decode_from_watcher, hello)):
        with pytest.raises(VersionError, match=r"1 to 3.*; restart the program") as caught:
            decode(data)
        assert "key-5f3c" not in str(caught.value)
    with pytest.raises(VersionError) as caught:
        decode_from_driver(done)
    assert caught.value.seq == 7


def test_the_version_that_both_speak():
    assert [protocol.version_to_speak(asked) for asked in (1, 2, 3, 99)] == [1, 2, 3, 3]
    for asked in (0, -1, True, 1.0, "2", None):
        with pytest.raises(VersionError):
            protocol.version_to_speak(asked)
