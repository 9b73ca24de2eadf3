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
from qx_supervisor.watcher.protocol import (
    Credentials,
    Lease,
    ProtocolError,
    check_lease,
    decode_from_caller,
    decode_from_watcher,
    encode,
)

SECRETS = {"api_key": "key-5f3c", "token": "eyJ0b2tlbg", "proxies": {"http": "http://me:pass-77@proxy:3128"}}
CREDENTIALS = Credentials("https://x.test/api/v1", "crn:v1:x", "https://iam.test", token_expires=1e9, **SECRETS)
SHOWN = ("key-5f3c", "eyJ0b2tlbg", "pass-77")

CONTENT = {str: st.text(), bool: st.booleans(), dict: st.just(CREDENTIALS.to_json()), list: st.just(["x"])}
DIRECTIONS = [(protocol._FROM_CALLER, decode_from_caller), (protocol._FROM_WATCHER, decode_from_watcher)]
KINDS = [(kind, fields, decode) for kinds, decode in DIRECTIONS for kind, fields in kinds.items()]

quick = settings(max_examples=50, database=None, deadline=None)


@pytest.mark.parametrize(("kind", "fields", "decode"), KINDS)
@quick
@given(data=st.data(), seq=st.integers())
def test_what_is_said_arrives(kind, fields, decode, data, seq):
    content = {name: data.draw(CONTENT[wanted]) for name, wanted in fields.items()}
    assert decode(encode(kind, seq, **content)) == {"kind": kind, "seq": seq, **content}


@pytest.mark.parametrize(("kind", "fields", "decode"), KINDS)
def test_a_field_that_is_missing_or_of_another_type_is_refused(kind, fields, decode):
    whole = {
        "kind": kind,
        "seq": 3,
        **{name: {str: "x", bool: True, dict: {}, list: ["y"]}[of] for name, of in fields.items()},
    }
    decode(json.dumps(whole).encode())
    for name in set(whole) - {"kind"}:
        others = [None, 1.5, [], "another", {}, True, 7]
        wanted = int if name == "seq" else fields[name]
        without = {key: value for key, value in whole.items() if key != name}
        for changed in (without, *({**whole, name: value} for value in others if type(value) is not wanted)):
            with pytest.raises(ProtocolError, match=kind):
                decode(json.dumps(changed).encode())


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
@pytest.mark.parametrize("decode", [decode_from_caller, decode_from_watcher])
def test_no_message(data, decode):
    with pytest.raises(ProtocolError):
        decode(data)


@quick
@given(st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_whatever_comes_there_is_no_other_error(data):
    for decode in (decode_from_caller, decode_from_watcher):
        with pytest.raises(ProtocolError):
            decode(data)


def test_the_two_directions_are_apart():
    with pytest.raises(ProtocolError, match="unknown kind"):
        decode_from_caller(encode("ack", 1))
    with pytest.raises(ProtocolError, match="unknown kind"):
        decode_from_watcher(encode("done", 1, run="r"))


# Credentials ----------------------------------------------------------------------------------------------------


def test_credentials_arrive():
    data = encode("arm", 1, account="a", credentials=CREDENTIALS.to_json())
    assert Credentials.from_json(decode_from_caller(data)["credentials"]) == CREDENTIALS


def test_credentials_need_no_more_than_where_and_whose():
    least = {"endpoint": "e", "instance": "i", "iam_url": "u", "api_key": "k"}
    rest = {"token": "", "token_expires": 0.0, "verify": True, "proxies": None}
    assert asdict(Credentials.from_json(least)) == least | rest


def test_credentials_are_not_shown():
    assert not [secret for secret in SHOWN if secret in f"{CREDENTIALS!r} {CREDENTIALS} {[CREDENTIALS]}"]
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
                decode_from_caller(data)
            # The JSON error, which quotes the whole document, is not the cause and is not printed.
            assert "key-5f3c" not in "".join(traceback.format_exception(caught.value)).partition("ProtocolError")[2]
            assert caught.value.__suppress_context__ or caught.value.__context__ is None


# Leases ---------------------------------------------------------------------------------------------------------

LEASE = Lease("key-5f3c", "eyJ0b2tlbg", 600.0, "pass-77")
CLAIM = {"kind": "claim", "seq": 1, "run": "r", "account": "a", "tag": "t", "driver": "d", "lease": LEASE.to_json()}


def test_a_lease_arrives():
    data = encode("claim", 1, run="r", account="a", tag="t", driver="d", lease=LEASE.to_json(), instances=["crn:1"])
    message = decode_from_caller(data)
    check_lease(message)
    assert Lease.from_json(message["lease"]) == LEASE
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
    message = {**CLAIM, **inside}
    decode_from_caller(json.dumps(message).encode())  # of the right types on the outside
    with pytest.raises(ProtocolError, match=r"claim|lease") as caught:
        check_lease(message)
    assert not [secret for secret in SHOWN if secret in str(caught.value)]


@pytest.mark.parametrize("outcomes", [{"j": 3}, {"j": None}, {"j": ["key-5f3c"]}, {"j": "cancelled", "k": {}}], ids=str)
def test_outcomes_that_are_no_words_are_refused_unquoted(outcomes):
    message = decode_from_caller(encode("anew", 1, run="r", outcomes=outcomes))
    with pytest.raises(ProtocolError, match="anew") as caught:
        check_lease(message)
    assert "key-5f3c" not in str(caught.value)


@pytest.mark.parametrize("lease", [{"key": "k"}, {**LEASE.to_json(), "grace": float("inf")}], ids=str)
def test_an_intent_may_have_no_lease_and_no_half_of_one(lease):
    intent = {"kind": "intent", "seq": 1, "run": "r", "account": "a", "tag": "t", "driver": "d"}
    check_lease({**intent, "lease": {}})
    check_lease({**intent, "lease": LEASE.to_json()})
    with pytest.raises(ProtocolError, match="lease"):
        check_lease({**intent, "lease": lease})


def test_messages_without_a_key_have_nothing_to_check():
    check_lease({"kind": "done", "seq": 1, "run": "r"})
    check_lease({"kind": "anew", "seq": 1, "run": "r", "outcomes": {"j": "cancelled"}})
    check_lease({**CLAIM, "instances": ["crn:1", "crn:2"]})
