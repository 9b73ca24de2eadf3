"""One cancel, from the first request to the proof: against the embedded service, with every fault it can make."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from qx_supervisor import local
from qx_supervisor.watcher import cancel as cancelling
from qx_supervisor.watcher import remote as remotes
from qx_supervisor.watcher.cancel import ASK_AGAIN, Again, Cancellation, Done, SessionClosing, cancel
from qx_supervisor.watcher.protocol import Credentials
from qx_supervisor.watcher.remote import (
    CONNECTIONS,
    LONGEST_RETRY_AFTER,
    JobState,
    Refused,
    Remote,
    RemoteError,
    Token,
    Transient,
    retry_after,
    watcher_remote,
)

JOBS = "/api/v1/jobs"
CANCEL = "/api/v1/jobs/*/cancel"
READ = "/api/v1/jobs/" + "[0-9a-z]" * 20
IAM = "/identity/token"

KEY, PASSWORD = "key-5f3c-of-the-user", "pass-77-of-the-proxy"


class Bench:
    """An account on the embedded service, a job's worth of requests at a time."""

    def __init__(self, ibm: local.Service, **changes: Any) -> None:
        self.ibm = ibm
        fields = {"endpoint": f"{ibm.url}/api/v1", "instance": "crn:v1:x", "iam_url": ibm.url, "api_key": KEY}
        self.credentials = Credentials(**fields | changes)
        self.remote, self.token = watcher_remote(self.credentials)

    def submit(self, *tags: str, session: str = "") -> str:
        """A job that is good for anything but running."""
        body = {"program_id": "executor", "backend": "ibm_brisbane", "params": {}, "tags": tags}
        headers = {"Authorization": self.token.header()}
        if session:
            body["session_id"] = session
        reply = self.remote.open().post(f"{self.credentials.endpoint}/jobs", json=body, headers=headers, timeout=30)
        return str(reply.json()["id"])

    def faults(self, *faults: dict[str, Any]) -> None:
        self.ibm.scenario({"http_faults": list(faults)})

    def requests(self, method: str, path: str) -> list[int | None]:
        """How they were answered; None for a dropped connection."""
        return [entry.status for entry in self.ibm.journal(method=method, path=path)]


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self, limit: float = cancelling.GIVE_UP) -> None:
        self.now = 1000.0
        self.end = self.now + limit
        self.pauses: list[float] = []
        self.meanwhile: Callable[[int], object] = lambda number: None

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.meanwhile(len(self.pauses))
        self.now += seconds
        return self.now > self.end


@pytest.fixture
def bench(ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ibm.hold("queued")
    return Bench(ibm)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cancelled_once(bench: Bench, job: str) -> bool:
    found = bench.ibm.job(job)
    return (found.status, found.cancel_requests) == ("Cancelled", 1)


# A cancel that goes well ----------------------------------------------------------------------------------------


def test_a_queued_job(bench, clock):
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert cancelled_once(bench, job)
    assert clock.pauses == []


def test_it_is_confirmed_by_reading(bench, clock):
    """204 comes at once, and the job goes on for a while."""
    bench.ibm.hold("queued", cancel_lag=0.3)
    job = bench.submit()
    clock.meanwhile = lambda number: number == 4 and bench.ibm.wait_job(job, "Cancelled")
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert cancelled_once(bench, job)
    read = bench.ibm.journal(method="GET", path=f"{JOBS}/{job}")
    ended = bench.ibm.job(job).ended
    assert ended is not None
    assert read[-1].answered > ended
    assert clock.pauses == sorted(clock.pauses)  # it looks less and less often


def test_it_finished_all_the_same(bench, clock):
    """The cancel was accepted, and the job was quicker."""
    job = bench.submit()
    bench.faults({"path": f"{JOBS}/{job}/cancel", "method": "POST", "status": 204})  # and nothing is done about it
    clock.meanwhile = lambda number: number == 2 and (bench.ibm.hold(None), bench.ibm.wait_job(job, "Failed"))
    assert cancel(job, bench.remote, clock, clock.wait) == ("finished", "")
    assert bench.requests("POST", CANCEL) == [204]


def test_a_job_that_is_final_already(bench, clock):
    bench.ibm.hold(None)
    job = bench.submit()
    bench.ibm.wait_job(job, "Failed")
    assert cancel(job, bench.remote, clock, clock.wait) == ("finished", "")
    assert bench.requests("POST", CANCEL) == [409]
    assert clock.pauses == []


def test_a_job_that_is_cancelled_already(bench, clock):
    job = bench.submit()
    assert bench.remote.cancel(job) == 204
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert bench.requests("POST", CANCEL) == [204, 409]


def test_an_id_that_somebody_typed(bench, clock):
    assert cancel("nosuchjob", bench.remote, clock, clock.wait, given=False) == ("gone", "")
    assert bench.requests("POST", CANCEL) == [404]
    assert bench.requests("GET", READ) == []


def test_an_id_that_the_service_gave_and_does_not_know(bench, clock):
    """It was asked at the wrong place, or somebody on the way answers: that is no proof. One request asks for it."""
    outcome, trouble = cancel("nosuchjob", bench.remote, clock, clock.wait)
    assert (outcome, "wrong instance" in trouble) == ("unconfirmed", True)
    assert bench.requests("POST", CANCEL) == [404]
    assert set(bench.requests("GET", f"{JOBS}/nosuchjob")) == {404}
    assert sum(clock.pauses) >= cancelling.GIVE_UP
    assert len(clock.pauses) < 60  # growing ones


def test_where_nothing_else_is_to_be_expected_it_ends_soon(bench, clock):
    outcome, trouble = cancel("nosuchjob", bench.remote, clock, clock.wait, unknown=3)
    assert (outcome, "was deleted" in trouble) == ("unconfirmed", True)
    assert len(clock.pauses) == 2


@pytest.mark.parametrize("path", [CANCEL, READ], ids=["cancel", "read"])
def test_a_404_that_passes(bench, clock, path):
    """A gateway that has lost its way for a minute."""
    job = bench.submit()
    bench.faults({"path": path, "status": 404, "times": 3})
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert bench.ibm.job(job).status == "Cancelled"


# Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 302])
@pytest.mark.parametrize("path", [CANCEL, READ], ids=["cancel", "read"])
def test_a_passing_fault_is_outlasted(bench, clock, path, status):
    job = bench.submit()
    bench.faults({"path": path, "status": status, "times": 4})
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert cancelled_once(bench, job) or path == CANCEL
    assert bench.requests("POST", CANCEL).count(204) == 1
    assert len(clock.pauses) == 4
    for number, pause in enumerate(clock.pauses):
        assert 0.25 * 2**number / 2 <= pause <= 0.25 * 2**number


def test_pauses_are_spread_and_have_a_limit(bench):
    paused = []
    for _ in range(3):
        clock = Clock()
        bench.faults({"path": CANCEL, "status": 503, "times": 1000})
        job = bench.submit()
        assert cancel(job, bench.remote, clock, clock.wait)[0] == "unconfirmed"
        paused.append(clock.pauses)
        assert 15.0 <= max(clock.pauses) <= 30.0
        assert clock.now - 1000 > cancelling.GIVE_UP
        assert len(clock.pauses) < 80
    assert len({tuple(pauses) for pauses in paused}) == 3


def test_who_gives_up_says_why(bench):
    clock = Clock(limit=5)
    bench.faults({"path": CANCEL, "status": 503, "times": 1000})
    outcome, trouble = cancel(bench.submit(), bench.remote, clock, clock.wait)
    assert outcome == "unconfirmed"
    assert "503" in trouble
    bench.ibm.hold("queued", cancel_lag=60)
    bench.faults()
    clock = Clock(limit=5)
    assert cancel(bench.submit(), bench.remote, clock, clock.wait) == ("unconfirmed", "the job is not final yet")


@pytest.mark.parametrize("path", [CANCEL, READ], ids=["cancel", "read"])
def test_retry_after_is_honoured(bench, clock, path):
    bench.faults({"path": path, "status": 429, "retry_after": 17, "times": 3})
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert len(clock.pauses) == 3
    assert min(clock.pauses) >= 17


def test_dropped_before_it_was_heard(bench, clock):
    """The job is looked at, and then the cancel asked for once more: the one that was heard."""
    bench.faults({"path": CANCEL, "method": "POST", "drop_connection": True, "times": 3})
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    made = [f"{entry.method} {entry.status}" for entry in bench.ibm.journal(path=f"{JOBS}/{job}*")]
    assert made == ["POST None", "GET 200"] * 3 + ["POST 204", "GET 200"]


def test_a_lost_answer_is_not_asked_for_twice(bench, clock):
    """The job is cancelled, and the answer is lost: it looks before it asks again, and need not ask."""
    bench.faults({"path": CANCEL, "method": "POST", "drop_connection": True, "phase": "after"})
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert cancelled_once(bench, job)


LOOK_FAILS = [{"status": 503}, {"status": 429}, {"status": 401}, {"drop_connection": True}]


@pytest.mark.parametrize("trouble", LOOK_FAILS, ids=str)
def test_a_lost_answer_and_a_look_that_fails(bench, clock, trouble):
    """It stays in doubt until it has seen the job."""
    bench.faults(
        {"path": CANCEL, "method": "POST", "drop_connection": True, "phase": "after"},
        {"path": READ, "method": "GET", "times": 2, **trouble},
    )
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert cancelled_once(bench, job)


def test_an_answer_that_does_not_come(bench, clock, monkeypatch):
    monkeypatch.setattr(remotes, "READ_TIMEOUT", 0.1)
    bench.faults({"path": CANCEL, "method": "POST", "delay_seconds": 60, "phase": "after"})
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert cancelled_once(bench, job)


def test_asked_again_after_a_minute(bench, clock):
    """The cancel was accepted, and nothing came of it."""
    bench.ibm.hold("queued", cancel_lag=60)
    job = bench.submit()

    def look(number: int) -> None:
        if clock.now - 1000 > 2.5 * ASK_AGAIN:
            clock.end = clock.now  # enough

    clock.meanwhile = look
    assert cancel(job, bench.remote, clock, clock.wait) == ("unconfirmed", "the job is not final yet")
    assert bench.requests("POST", CANCEL) == [204, 204, 204]


def test_somebody_else_asked(bench, clock):
    """Who died while it was cancelling: it is looked at first."""
    job = bench.submit()
    bench.remote.cancel(job)
    assert Cancellation(job, bench.remote, clock, asked=True).step() == Done("cancelled")
    assert cancelled_once(bench, job)


def test_somebody_else_was_about_to_ask(bench, clock):
    job = bench.submit()
    operation = Cancellation(job, bench.remote, clock, asked=True)
    while isinstance(step := operation.step(), Again):
        clock.wait(step.after)
    assert step == Done("cancelled")
    assert 1.0 <= clock.now - 1000 < 3.0
    assert cancelled_once(bench, job)


def test_refused_for_good(bench, clock):
    """403, say: nobody knows how long, so it is tried as long as anything else."""
    bench.faults({"path": CANCEL, "method": "POST", "status": 403, "times": 5})
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert len(clock.pauses) == 5


# Tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_that_is_void(bench, clock):
    job = bench.submit()
    stale = Bench(bench.ibm, token="eyJ.not.good", token_expires=time.time() + 3000)
    asked = len(bench.requests("POST", IAM))
    assert cancel(job, stale.remote, clock, clock.wait) == ("cancelled", "")
    assert bench.requests("POST", CANCEL) == [401, 204]
    assert len(bench.requests("POST", IAM)) == asked + 1
    assert clock.pauses == [0.0]  # at once


def test_a_token_that_is_void_again_and_again(bench, clock):
    """The service refuses every token for a while: it is asked with pauses, and each time with another one."""
    bench.faults({"path": CANCEL, "method": "POST", "status": 401, "times": 5})
    job = bench.submit()
    assert cancel(job, bench.remote, clock, clock.wait) == ("cancelled", "")
    assert len(bench.requests("POST", IAM)) == 1 + 5
    assert clock.pauses[0] == 0
    assert min(clock.pauses[1:]) > 0.1


@pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 429}, {"drop_connection": True}], ids=str)
def test_the_token_service_is_down(bench, clock, trouble):
    job = bench.submit()
    stale = Bench(bench.ibm, token="eyJ.not.good", token_expires=time.time() + 3000)
    bench.faults({"path": IAM, "method": "POST", "times": 30, **trouble})
    clock.meanwhile = lambda number: number == 3 and bench.faults()
    assert cancel(job, stale.remote, clock, clock.wait) == ("cancelled", "")
    assert bench.requests("POST", CANCEL) == [401] * 4 + [204]
    assert min(clock.pauses[:3]) > 0.1


def test_the_key_is_refused_for_a_while(bench, clock):
    job = bench.submit()
    stale = Bench(bench.ibm)  # with no token at all
    bench.ibm.auth(reject_tokens=True)
    clock.meanwhile = lambda number: number == 3 and bench.ibm.auth(reject_tokens=False)
    assert cancel(job, stale.remote, clock, clock.wait) == ("cancelled", "")
    assert cancelled_once(bench, job)


class TestToken:
    def test_the_one_that_is_handed_over_is_used_first(self, bench):
        mine = Token(Bench(bench.ibm, token="eyJ.mine", token_expires=time.time() + 3600).credentials)
        assert mine.header() == "Bearer eyJ.mine"
        assert 3590 < mine.seconds_left() <= 3600
        assert bench.requests("POST", IAM) == []

    @pytest.mark.parametrize("handed", [{}, {"token": "eyJ.old", "token_expires": 1.0}, {"token": "eyJ.undated"}])
    def test_one_is_fetched_where_there_is_none_that_is_good(self, bench, handed):
        mine = Token(Bench(bench.ibm, **handed).credentials)
        assert mine.seconds_left() <= 0
        header = mine.header()
        assert header.startswith("Bearer eyJ")
        assert "old" not in header
        assert mine.header() == header
        assert len(bench.requests("POST", IAM)) == 1
        assert mine.seconds_left() > 3000

    def test_refused(self, bench):
        bench.ibm.auth(reject_tokens=True)
        with pytest.raises(Refused, match="400") as caught:
            Token(bench.credentials).header()
        assert KEY not in f"{caught.value!r}"
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("trouble", [{"status": 500}, {"status": 429}, {"drop_connection": True}], ids=str)
    def test_could_not_be_asked(self, bench, trouble):
        bench.faults({"path": IAM, "method": "POST", "times": 30, **trouble})
        with pytest.raises(Transient) as caught:
            Token(bench.credentials).header()
        assert KEY not in f"{caught.value!r}"

    @pytest.mark.parametrize("status", [200, 400, 500])
    def test_an_answer_of_no_known_form(self, scripted, status):
        service, base = scripted
        service.status = status
        for shape in (*SHAPES, '{"access_token": ""}', '{"access_token": 3}', '{"errors": ["x"]}', '{"errors": [3]}'):
            service.reply = shape
            with pytest.raises(RemoteError) as caught:
                Token(Credentials(base, "crn", base, KEY)).header()
            assert type(caught.value) in (Transient, Refused)

    def test_the_clocks_differ(self, scripted):
        """Its expiry is in the past, by our clock: it is good for an hour all the same, and is fetched once."""
        service, base = scripted
        service.reply = json.dumps({"access_token": "eyJ.one", "expires_in": 3600, "expiration": time.time() - 7200})
        mine = Token(Credentials(base, "crn", base, KEY))
        assert [mine.header() for _ in range(3)] == ["Bearer eyJ.one"] * 3
        assert len(service.seen) == 1
        assert 3590 < mine.seconds_left() <= 3600

    @pytest.mark.parametrize("lifetime", [None, 0, -5, "3600", 1e30, True])
    def test_a_lifetime_of_no_known_form(self, scripted, lifetime):
        service, base = scripted
        service.reply = json.dumps({"access_token": "eyJ.one", "expires_in": lifetime})
        mine = Token(Credentials(base, "crn", base, KEY))
        assert mine.header() == "Bearer eyJ.one"
        assert 0 < mine.seconds_left() <= 600

    def test_many_threads_that_find_it_expired_fetch_one(self, bench):
        mine = Token(bench.credentials)
        with ThreadPoolExecutor(8) as pool:
            headers = set(pool.map(lambda _: mine.header(), range(32)))
        assert len(headers) == 1
        assert len(bench.requests("POST", IAM)) == 1

    def test_it_is_not_shown(self, bench):
        handed = Bench(bench.ibm, token="eyJ.mine", token_expires=time.time() + 3600)
        assert "eyJ" not in f"{handed.token!r} {handed.remote!r} {vars(handed.remote)}"
        assert KEY not in f"{handed.token!r} {handed.remote!r} {vars(handed.remote)}"


# Requests -------------------------------------------------------------------------------------------------------


class TestRemote:
    @pytest.mark.parametrize(
        ("fault", "kind", "status"),
        [
            ({"status": 400}, RemoteError, 400),
            ({"status": 403}, RemoteError, 403),
            ({"status": 404}, RemoteError, 404),
            ({"status": 401}, Refused, 401),
            ({"status": 408}, Transient, 408),
            ({"status": 500}, Transient, 500),
            ({"status": 307}, Transient, 307),
            ({"drop_connection": True}, Transient, 0),
            ({"drop_connection": True, "phase": "after"}, Transient, 0),
        ],
        ids=str,
    )
    def test_errors(self, bench, fault, kind, status):
        job = bench.submit()
        bench.faults({"path": READ, **fault})
        with pytest.raises(RemoteError) as caught:
            bench.remote.job(job)
        assert type(caught.value) is kind
        assert caught.value.status == status
        assert caught.value.__cause__ is None
        assert "Bearer" not in f"{caught.value!r}"

    def test_nobody_there(self, bench):
        bench.remote._endpoint = "http://127.0.0.1:1/api/v1"
        with pytest.raises(Transient) as caught:
            bench.remote.job("j")
        assert caught.value.status == 0

    def test_a_proxy_that_is_not_there_and_its_password(self, bench):
        far = Bench(
            bench.ibm,
            endpoint="http://service.test/api/v1",
            token="eyJ.mine",
            token_expires=time.time() + 3600,
            proxies={"http": f"http://me:{PASSWORD}@127.0.0.1:1", "https": f"http://me:{PASSWORD}@127.0.0.1:1"},
        )
        for ask in (lambda: far.remote.job("j"), far.token.renew):
            with pytest.raises(Transient) as caught:
                ask()
            assert PASSWORD not in f"{caught.value} {caught.value!r}"
        assert PASSWORD not in repr(far.remote)

    def test_through_a_proxy(self, bench):
        """As the embedded service is reached: under a name that does not resolve, with itself as the proxy."""
        proxy = {"http": bench.ibm.url, "https": bench.ibm.url}
        far = Bench(bench.ibm, endpoint="http://service.test/api/v1", iam_url="http://iam.test", proxies=proxy)
        assert far.remote.job(bench.submit()).status == "Queued"

    def test_states(self, bench):
        job = bench.submit()
        state = bench.remote.job(job)
        assert (state.status, state.is_final, state.is_cancelled) == ("Queued", False, False)
        bench.remote.cancel(job)
        state = bench.remote.job(job)
        assert (state.is_final, state.is_cancelled, state.is_completed) == (True, True, False)
        bench.ibm.hold(None)
        job = bench.submit()
        bench.ibm.wait_job(job, "Failed")
        state = bench.remote.job(job)
        assert (state.is_final, state.is_cancelled, state.is_completed) == (True, False, False)
        assert state.code
        assert state.reason

    @pytest.mark.parametrize(
        ("status", "final", "cancelled"),
        [
            ("Queued", False, False),
            ("Running", False, False),
            ("In progress", False, False),
            ("", False, False),
            ("Completed", True, False),
            ("COMPLETED", True, False),
            ("Failed", True, False),
            ("Cancelled", True, True),
            ("Cancelled - Ran too long", True, True),
            ("cancelled", True, True),
        ],
    )
    def test_words_for_states(self, status, final, cancelled):
        for reply in ({"state": {"status": status}}, {"status": status}):
            state = JobState.from_reply(reply)
            assert (state.is_final, state.is_cancelled) == (final, cancelled)

    def test_connections_are_few_and_used_again(self, bench):
        jobs = [bench.submit() for _ in range(20)]
        with ThreadPoolExecutor(20) as pool:
            assert set(pool.map(bench.remote.cancel, jobs)) == {204}
        assert len({entry.connection for entry in bench.ibm.journal(path=f"{JOBS}*")}) <= CONNECTIONS

    def test_a_session_is_closed(self, bench, clock):
        headers = {"Authorization": bench.token.header()}
        url = f"{bench.credentials.endpoint}/sessions"
        reply = requests.post(url, json={"backend": "ibm_brisbane"}, headers=headers, timeout=30)
        session = reply.json()["id"]
        job, other = bench.submit("t", session=session), bench.submit("t")
        assert bench.remote.unfinished(session=session) == (job,)
        assert set(bench.remote.unfinished(tag="t")) == {job, other}
        bench.faults({"path": "*/close", "status": 503, "times": 2})
        operation = SessionClosing(session, bench.remote)
        while isinstance(step := operation.step(), Again):
            clock.wait(step.after)
        assert (step, len(clock.pauses)) == (Done("finished"), 2)
        assert bench.ibm.job(job).status == "Cancelled"
        assert bench.ibm.job(other).status == "Queued"
        assert isinstance(SessionClosing(session, bench.remote).step(), Done)  # again

    def test_a_session_that_it_does_not_know_is_not_closed(self, bench, clock):
        """It gave the id: it was asked at the wrong place, or somebody on the way answers."""
        reply = bench.remote.open().post(
            f"{bench.credentials.endpoint}/sessions",
            json={"backend": "ibm_brisbane", "mode": "dedicated"},
            headers={"Authorization": bench.remote._authorization()},
        )
        session = reply.json()["id"]
        elsewhere = SessionClosing("nosuchsession", bench.remote)
        assert isinstance(elsewhere.step(), Again)
        assert "404" in elsewhere.trouble
        bench.faults({"path": "/api/v1/sessions/*/close", "method": "DELETE", "status": 404, "times": 3})
        operation = SessionClosing(session, bench.remote)
        assert isinstance(operation.step(), Again)
        assert "it is open" in operation.trouble
        bench.remote.end_session(session)  # closed meanwhile
        assert operation.step() == Done("finished")

    def test_unfinished_over_several_pages(self, bench):
        mine = [bench.submit("mine", "driver") for _ in range(2 * remotes.PAGE + 7)]
        bench.submit("another", "driver")
        final = mine[::50]
        for job in final:
            bench.remote.cancel(job)
        assert set(bench.remote.unfinished(tag="mine")) == set(mine) - set(final)
        assert len(set(bench.remote.unfinished(tag="driver"))) == len(mine) - len(final) + 1
        assert bench.remote.unfinished(tag="nobody's") == ()

    def test_a_full_page_is_followed_by_another_look(self, bench, monkeypatch):
        monkeypatch.setattr(remotes, "PAGE", 3)
        mine = [bench.submit("mine") for _ in range(6)]
        cursor = bench.ibm.cursor()
        assert set(bench.remote.unfinished(tag="mine")) == set(mine)
        assert [entry.query["offset"] for entry in bench.ibm.journal(after=cursor)] == [["0"], ["3"], ["6"]]

    def test_a_list_that_shrinks_between_two_pages_ends(self, bench, monkeypatch):
        monkeypatch.setattr(remotes, "PAGE", 2)
        mine = [bench.submit("mine") for _ in range(6)]
        ask = Remote._request

        def and_cancel_one(self: Remote, *args: Any, **kwargs: Any) -> Any:
            reply = ask(self, *args, **kwargs)
            if mine and args[1] == "/jobs":
                ask(self, "POST", f"/jobs/{mine.pop()}/cancel")
            return reply

        monkeypatch.setattr(Remote, "_request", and_cancel_one)
        assert bench.remote.unfinished(tag="mine")
        while bench.remote.unfinished(tag="mine"):
            pass
        assert not mine

    def test_what_is_sent(self, scripted):
        service, base = scripted
        far = Remote(Credentials(f"{base}/api/v1/", "crn:v1:x", base, KEY), lambda: "Bearer eyJ.mine", lambda: None)
        service.reply = json.dumps({"state": {"status": "Queued"}})
        far.job("j1")
        far.cancel("j1")
        service.reply = json.dumps({"jobs": []})
        far.unfinished(tag="t/ü&x")
        assert [request[0] for request in service.seen] == [
            "GET /api/v1/jobs/j1?exclude_params=true",
            "POST /api/v1/jobs/j1/cancel",
            "GET /api/v1/jobs?exclude_params=true&limit=200&offset=0&pending=true&tags=t%2F%C3%BC%26x",
        ]
        for _, headers in service.seen:
            assert headers["Authorization"] == "Bearer eyJ.mine"
            assert headers["Service-CRN"] == "crn:v1:x"
            assert KEY not in str(headers)


SHAPES = [
    "",
    "<html>log in</html>",
    "[]",
    "null",
    "3",
    '"Cancelled"',
    "[" * 100_000,
    "{}",
    '{"state": "Cancelled"}',
    '{"state": []}',
    '{"state": ["Cancelled"]}',
    '{"state": {"status": {"status": "Cancelled"}}}',
    '{"state": {"status": null}}',
    '{"state": {"status": "Queued", "reason": {}, "reason_code": []}}',
    '{"status": 7}',
    '{"jobs": {}}',
    '{"jobs": {"a": 1}}',
    '{"jobs": "abc"}',
    '{"jobs": 7}',
    '{"jobs": [null]}',
    '{"jobs": ["j"]}',
    '{"jobs": [{}]}',
    '{"jobs": [{"id": null}]}',
    '{"jobs": [{"id": ["j"], "tags": ["t"]}]}',
    '{"jobs": [{"id": "j", "tags": "t", "state": "Queued"}]}',
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[:40] or "empty")
def test_an_answer_of_no_known_form_is_never_taken_for_an_end(scripted, clock, shape):
    """A gateway's page, or another version's object: a cancel goes on, and a listing fails or is believed."""
    service, base = scripted
    service.reply = shape
    far = Remote(Credentials(base, "crn", base, KEY), lambda: "Bearer eyJ.mine", lambda: None)
    operation = Cancellation("j", far, clock)
    for _ in range(3):
        assert isinstance(operation.step(), Again)
    try:
        found = far.unfinished(tag="t")
    except RemoteError:
        return
    assert all(isinstance(job, str) for job in found)


class Script(http.server.BaseHTTPRequestHandler):
    """Gives one and the same answer, and keeps what it was asked."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        owner: Any = self.server
        owner.seen.append((f"{self.command} {self.path}", dict(self.headers)))
        body = owner.reply.encode()
        self.send_response(owner.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, str]]:
    """A server that gives the answer that is put into `reply`, and its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Script)
    server.daemon_threads = True
    server.status, server.reply, server.seen = 200, "{}", []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


# Retry-After ----------------------------------------------------------------------------------------------------


def test_retry_after_as_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=100)
    for text in (format_datetime(soon, usegmt=True), format_datetime(soon)):
        seconds = retry_after(text)
        assert seconds is not None
        assert 90 < seconds <= 100
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") == LONGEST_RETRY_AFTER


@pytest.mark.long
@settings(max_examples=150, database=None, deadline=None)
@given(
    st.text()
    | st.floats().map(str)
    | st.integers().map(str)
    | st.datetimes().map(format_datetime)
    | st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d ([+-]\d{1,9}|GMT|X)\Z")
)
def test_retry_after_as_anything(text):
    seconds = retry_after(text)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER
