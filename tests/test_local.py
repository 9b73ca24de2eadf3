"""The embedded service, as the real Qiskit client, a test and a bare socket see it.

One server for the module, reset before each test; the few tests that are about processes start their own.
"""

import contextlib
import dataclasses
import errno
import http.client
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from testkit.processes import DEADLINE, Process, wait_for_end

from qx_supervisor import local
from qx_supervisor.local import process as processes
from qx_supervisor.local import registry
from qx_supervisor.local.charges import shots_of
from qx_supervisor.watcher import host_identity, ledger, process_state, system

pytest.importorskip("localqpu")

API_KEY = "an-api-key-that-must-not-be-seen"
HELD = {"program_id": "executor", "backend": "ibm_brisbane", "params": {}}  # a job good for anything but running


@pytest.fixture(scope="module")
def server() -> Iterator[local.Service]:
    with local.start() as ibm:
        yield ibm


@pytest.fixture(scope="module")
def service(server: local.Service) -> Any:
    return server.service(API_KEY)


@pytest.fixture(scope="module")
def bell(service: Any) -> Any:
    from qiskit import QuantumCircuit, transpile

    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return transpile(circuit, service.backend("ibm_brisbane"), optimization_level=1)


@pytest.fixture
def ibm(server: local.Service) -> local.Service:
    server.reset()
    return server


@pytest.fixture
def submit(service: Any, bell: Any) -> Any:
    from qiskit_ibm_runtime.executor_sampler import Sampler

    def submit(*tags: str, mode: Any = None) -> Any:
        sampler = Sampler(mode=mode or service.backend("ibm_brisbane"))
        sampler.options.environment.job_tags = list(tags)
        return sampler.run([bell], shots=256)

    return submit


class Client:
    """A bare HTTP client on one connection, for what Qiskit's client would hide."""

    def __init__(self, ibm: local.Service, *, authorized: bool = True) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", ibm.port, timeout=60)
        self.token = self.send("POST", "/identity/token", f"apikey={API_KEY}")[2]["access_token"] if authorized else ""

    def send(self, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        headers = {"Authorization": f"Bearer {self.token}"} if hasattr(self, "token") else {}
        self.connection.request(method, path, body if isinstance(body, str) else json.dumps(body), headers)
        answer = self.connection.getresponse()
        payload = answer.read()
        return answer.status, answer.headers, json.loads(payload) if payload else None

    def post_job(self, *tags: str, **fields: Any) -> str:
        status, _, body = self.send("POST", "/api/v1/jobs", {**HELD, "tags": tags, **fields})
        assert status == 200, body
        return body["id"]


@pytest.fixture
def client(ibm: local.Service) -> Iterator[Client]:
    client = Client(ibm)
    with contextlib.closing(client.connection):
        yield client


class TestJobs:
    def test_a_bell_job_gives_bell_counts(self, ibm: local.Service, submit: Any) -> None:
        job = submit("mine")
        counts = job.result()[0].data.meas.get_counts()
        assert set(counts) <= {"00", "11"}
        assert sum(counts.values()) == 256
        [record] = ibm.jobs()
        assert (record.id, record.status, record.tags) == (job.job_id(), "Completed", ["mine"])
        assert (record.backend, record.program_id, record.session_id) == ("ibm_brisbane", "executor", None)
        assert record.is_final
        assert record.ended is not None
        assert record.created < record.ended < time.monotonic_ns()

    @pytest.mark.long
    def test_an_estimator_runs_too(self, ibm: local.Service, service: Any, bell: Any) -> None:
        from qiskit.quantum_info import SparsePauliOp
        from qiskit_ibm_runtime.executor_estimator import Estimator

        isa = bell.remove_final_measurements(inplace=False)
        observable = SparsePauliOp("ZZ").apply_layout(isa.layout)
        job = Estimator(mode=service.backend("ibm_brisbane")).run([(isa, observable)])
        assert job.result()[0].data.evs == pytest.approx(1.0, abs=0.1)
        assert ibm.job(job.job_id()).status == "Completed"

    def test_an_orphan_runs_although_nobody_reads_it(self, ibm: local.Service, submit: Any) -> None:
        job_id = submit().job_id()
        assert ibm.wait_job(job_id).status == "Completed"
        assert ibm.wait_idle()[0].id == job_id
        assert not ibm.journal(method="GET", path=f"/api/v1/jobs/{job_id}*")

    def test_the_list_filters_and_pages(self, ibm: local.Service, service: Any, client: Client) -> None:
        ibm.hold("queued")
        ids = [client.post_job("all", f"n{number}") for number in range(230)]
        client.send("POST", f"/api/v1/jobs/{ids[0]}/cancel")

        def listed(query: str) -> tuple[int, list[str]]:
            status, _, page = client.send("GET", f"/api/v1/jobs?{query}")
            assert status == 200
            return page["count"], [job["id"] for job in page["jobs"]]

        assert listed("limit=200&tags=all") == (230, ids[:29:-1])
        assert listed("limit=200&offset=200&tags=all") == (230, ids[29::-1])
        assert listed("limit=200&offset=200&tags=all&pending=true&sort=ASC") == (229, ids[201:])
        assert listed("pending=false") == (1, ids[:1])
        assert listed("tags=all&tags=n7") == (1, [ids[7]])
        assert listed("tags=n8&tags=n7") == (0, [])
        assert listed("backend=ibm_elsewhere") == (0, [])
        assert listed("created_after=2100-01-01T00:00:00Z") == (0, [])
        assert client.send("GET", "/api/v1/jobs?limit=many")[0] == 400
        # One through Qiskit's client, which spends 20 ms on each job of a list.
        assert [job.job_id() for job in service.jobs(job_tags=["all", "n7"])] == [ids[7]]

    @pytest.mark.long
    def test_what_the_scenario_plans_for_a_job_happens(self, ibm: local.Service, client: Client) -> None:
        planned = {"outcome": "cancelled", "reason": "ran too long", "reason_code": 1305}
        ibm.scenario({"next_jobs": [planned, {"outcome": "failed"}]})
        cancelled, failed = ibm.wait_job(client.post_job()), ibm.wait_job(client.post_job())
        assert (cancelled.status, cancelled.reason, failed.status) == ("Cancelled", "ran too long", "Failed")
        state = client.send("GET", f"/api/v1/jobs/{cancelled.id}")[2]["state"]
        assert state["reason_code"] == 1305

    @pytest.mark.long
    def test_input_that_cannot_be_run_fails_the_job(self, ibm: local.Service, client: Client) -> None:
        job = ibm.wait_job(client.post_job())
        assert job.status == "Failed"
        assert job.reason

    def test_an_unknown_job_is_not_found(self, ibm: local.Service, client: Client) -> None:
        for method, path in [("GET", "/api/v1/jobs/none"), ("POST", "/api/v1/jobs/none/cancel")]:
            status, _, body = client.send(method, path)
            assert (status, body["errors"][0]["message"]) == (404, "Job none not found.")
        with pytest.raises(KeyError):
            ibm.job("none")
        with pytest.raises(local.ServiceError, match="no job none"):
            ibm.wait_job("none")


class TestGates:
    def test_held_in_the_queue_until_let_go(self, ibm: local.Service, submit: Any) -> None:
        ibm.hold("queued")
        job_id = submit().job_id()
        with pytest.raises(TimeoutError, match="is Queued after"):
            ibm.wait_job(job_id, "Running", "Completed", timeout=0.1)
        ibm.hold(None)
        assert ibm.wait_job(job_id).status == "Completed"

    def test_held_as_running_until_let_go(self, ibm: local.Service, submit: Any) -> None:
        ibm.hold("running")
        job = submit()
        ibm.wait_job(job.job_id(), "Running")
        assert job.status() == "RUNNING"
        with pytest.raises(TimeoutError, match="is Running after"):
            ibm.wait_job(job.job_id(), timeout=0.1)
        ibm.hold(None)
        assert sum(job.result()[0].data.meas.get_counts().values()) == 256

    @pytest.mark.parametrize(("where", "status"), [("queued", "Queued"), ("running", "Running")])
    def test_a_held_job_is_cancelled_at_once(self, ibm: local.Service, submit: Any, where: Any, status: str) -> None:
        ibm.hold(where)
        job = submit()
        ibm.wait_job(job.job_id(), status)
        job.cancel()
        record = ibm.job(job.job_id())
        assert (record.status, record.cancel_requests) == ("Cancelled", 1)
        [entry] = ibm.journal(path=f"/api/v1/jobs/{record.id}/cancel")
        assert entry.status == 204
        assert entry.answered is not None
        assert record.ended is not None
        assert entry.arrived < record.ended < entry.answered
        # ... and is not taken up again when the gate opens.
        ibm.hold(None)
        ibm.wait_job(submit().job_id(), "Completed")
        assert ibm.job(record.id) == record

    def test_a_cancel_may_take_time_to_come_true(self, ibm: local.Service, client: Client) -> None:
        ibm.hold("running", cancel_lag=2.0)
        job_id = client.post_job()
        ibm.wait_job(job_id, "Running")
        assert client.send("POST", f"/api/v1/jobs/{job_id}/cancel")[0] == 204
        assert client.send("POST", f"/api/v1/jobs/{job_id}/cancel")[0] == 204  # neither is final yet
        job = ibm.wait_job(job_id)
        assert (job.status, job.cancel_requests) == ("Cancelled", 2)
        assert job.ended is not None
        assert job.ended - ibm.journal(path="*/cancel")[0].arrived > 2e9
        assert client.send("POST", f"/api/v1/jobs/{job_id}/cancel")[0] == 409
        assert ibm.job(job_id).cancel_requests == 3

    def test_hundreds_are_held_as_running(self, ibm: local.Service, client: Client) -> None:
        ibm.hold("running")
        ids = [client.post_job() for _ in range(300)]
        ibm.wait_job(ids[-1], "Running")
        assert {job.status for job in ibm.jobs()} == {"Running"}
        for job_id in ids:
            client.send("POST", f"/api/v1/jobs/{job_id}/cancel")
        assert {(job.status, job.cancel_requests) for job in ibm.wait_idle()} == {("Cancelled", 1)}

    def test_an_unknown_gate_is_refused(self, ibm: local.Service) -> None:
        with pytest.raises(local.ServiceError, match="hold is null"):
            ibm.hold("completed")  # type: ignore[arg-type]


class TestCharges:
    """What a job costs is known to the tests to the second, so that a budget can be held against it."""

    def metrics(self, client: Client, job_id: str) -> dict[str, Any]:
        usage: dict[str, Any] = client.send("GET", f"/api/v1/jobs/{job_id}/metrics")[2]["usage"]
        return usage

    def test_a_job_is_charged_by_the_rule_and_estimated_before(self, ibm: local.Service, submit: Any) -> None:
        ibm.charge(fixed=2.0, per_shot=0.01, estimate=1.5)
        job = submit()
        assert job.usage_estimation == {"quantum_seconds": pytest.approx(1.5 * 4.56)}
        job.result()
        assert job.usage() == ibm.job(job.job_id()).qpu_seconds == pytest.approx(2.0 + 0.01 * 256)
        ibm.charge(pending=None)
        assert job.usage() == 0  # Qiskit's word for "pending"
        assert job.usage(partial=True) == pytest.approx(4.56)

    @pytest.mark.parametrize("held", [True, False])
    def test_a_job_that_takes_more_than_it_may_is_ended_there(
        self, ibm: local.Service, service: Any, bell: Any, held: bool
    ) -> None:
        from qiskit_ibm_runtime.exceptions import RuntimeJobMaxTimeoutError
        from qiskit_ibm_runtime.executor_sampler import Sampler

        if held:
            ibm.hold("running")
        ibm.charge(fixed=8.0)
        sampler = Sampler(mode=service.backend("ibm_brisbane"), options={"max_execution_time": 7})
        job = sampler.run([bell], shots=1)
        if held:
            ibm.wait_job(job.job_id(), "Running")
            ibm.spend(6.5)
            assert (ibm.job(job.job_id()).status, ibm.job(job.job_id()).qpu_seconds) == ("Running", 6.5)
            ibm.spend(6.5, job.job_id())
        ended = ibm.wait_job(job.job_id())
        assert (ended.status, ended.max_execution_time, ended.qpu_seconds, job.usage()) == ("Cancelled", 7, 7, 7)
        with pytest.raises(RuntimeJobMaxTimeoutError):
            job.result()

    def test_qpu_time_passes_while_a_job_runs_and_a_cancelled_one_is_charged_it(
        self, ibm: local.Service, submit: Any, client: Client
    ) -> None:
        """By the clock, a thousand times as fast; until a cancel, the job's end, or its bound."""
        ibm.charge(fixed=0.5, speed=1000.0)
        assert ibm.wait_job(submit().job_id()).qpu_seconds == 0.5
        ibm.hold("running")
        cancelled, bounded = client.post_job(), client.post_job(cost=50)
        assert ibm.wait_job(bounded).qpu_seconds == 50
        client.send("POST", f"/api/v1/jobs/{cancelled}/cancel")
        spent = ibm.job(cancelled).qpu_seconds
        assert 0 < spent < 10_800
        assert self.metrics(client, cancelled)["qpu_charge_time_seconds"] == spent
        consumed = client.send("GET", "/api/v1/instances/usage")[2]["usage_consumed_seconds"]
        assert consumed == pytest.approx(sum(job.qpu_seconds for job in ibm.jobs()))

    def test_a_charge_is_pending_for_a_while(self, ibm: local.Service, client: Client) -> None:
        ibm.hold("running")
        ibm.charge(pending=3600.0)
        job_id = client.post_job()
        ibm.wait_job(job_id, "Running")
        ibm.spend(3.0)
        assert self.metrics(client, job_id) == {"status": "pending", "qpu_charge_time_seconds": 3.0}
        client.send("POST", f"/api/v1/jobs/{job_id}/cancel")
        assert self.metrics(client, job_id)["status"] == "pending"
        ibm.charge(pending=0.0)
        assert self.metrics(client, job_id) == {
            "status": "final",
            "quantum_seconds": 3.0,
            "qpu_charge_time_seconds": 3.0,
        }

    @pytest.mark.filterwarnings("ignore:.*usage limit:UserWarning")
    def test_an_instance_that_has_used_up_its_time_queues_jobs(
        self, ibm: local.Service, service: Any, submit: Any
    ) -> None:
        ibm.scenario({"usage": {"limit_seconds": 10, "consumed_seconds": 3}})
        ibm.charge(fixed=7.0)
        first = submit()
        first.result()
        usage = service.usage()
        assert (usage["usage_consumed_seconds"], usage["usage_remaining_seconds"]) == (10, 0)
        assert usage["usage_limit_reached"] is True
        second = submit()
        with pytest.raises(TimeoutError, match="is Queued after"):
            ibm.wait_job(second.job_id(), "Running", "Completed", timeout=0.1)
        ibm.scenario({"usage": {"limit_seconds": 20, "consumed_seconds": 3}})
        assert ibm.wait_job(second.job_id()).status == "Completed"

    def test_what_makes_no_sense_is_refused(self, ibm: local.Service, client: Client) -> None:
        with pytest.raises(local.ServiceError, match="speed must be a number of at least 0, not -1"):
            ibm.charge(speed=-1)
        for cost in (0, -5, 1.5, "9", True):
            status, _, body = client.send("POST", "/api/v1/jobs", {**HELD, "cost": cost})
            assert (status, body["errors"][0]["code"]) == (400, 1208)
        assert ibm.jobs() == []

    @pytest.mark.parametrize(
        ("params", "shots"),
        [
            ({}, 0),
            ({"quantum_program": {"shots": 9}}, 0),
            ({"pubs": [["…", [], 30], ["…", [], None], ["…"]], "options": {"default_shots": 100}}, 230),
            ({"pubs": [["…"]]}, 4096),
            (
                {
                    "quantum_program": {
                        "shots": 10,
                        "items": [
                            {"item_type": "circuit", "circuit_arguments": {"shape": [2, 3, 5]}},
                            {"item_type": "samplex", "shape": [4, 5]},
                        ],
                    }
                },
                10 * (6 + 20),
            ),
        ],
    )
    def test_shots_of_a_job(self, params: dict[str, Any], shots: int) -> None:
        assert shots_of(params) == shots


class TestSessions:
    @pytest.fixture
    def running_and_queued(self, ibm: local.Service, service: Any, submit: Any) -> tuple[Any, Any, Any]:
        from qiskit_ibm_runtime import Session

        session = Session(service.backend("ibm_brisbane"))
        ibm.hold("running")
        running = submit(mode=session)
        ibm.wait_job(running.job_id(), "Running")
        ibm.hold("queued")
        return session, running, submit(mode=session)

    def test_cancelling_it_spares_the_running_job(self, ibm: local.Service, running_and_queued: Any) -> None:
        session, running, queued = running_and_queued
        session.cancel()
        assert ibm.job(queued.job_id()).status == "Cancelled"
        assert ibm.job(running.job_id()).status == "Running"
        assert ibm.job(running.job_id()).session_id == session.session_id
        assert session.status() == "Closed"
        ibm.hold(None)
        assert ibm.wait_job(running.job_id()).status == "Completed"

    def test_closing_it_lets_all_jobs_run(self, ibm: local.Service, running_and_queued: Any) -> None:
        session, running, queued = running_and_queued
        session.close()
        ibm.hold(None)
        assert {job.status for job in ibm.wait_idle()} == {"Completed"}
        assert {job.id for job in ibm.jobs()} == {running.job_id(), queued.job_id()}

    def test_a_closed_one_takes_no_job(self, ibm: local.Service, client: Client) -> None:
        session_id = client.send("POST", "/api/v1/sessions", {"backend": "ibm_brisbane"})[2]["id"]
        ibm.hold("queued")
        client.post_job(session_id=session_id)
        assert client.send("DELETE", f"/api/v1/sessions/{session_id}/close")[0] == 204
        assert client.send("POST", "/api/v1/jobs", {**HELD, "session_id": session_id})[0] == 409
        assert client.send("DELETE", "/api/v1/sessions/none/close")[0] == 404
        assert [job.status for job in ibm.jobs()] == ["Cancelled"]


class TestJournal:
    def test_a_request_is_there_on_arrival_with_all_but_its_secrets(
        self, ibm: local.Service, service: Any, submit: Any, client: Client
    ) -> None:
        before = time.monotonic_ns()
        cursor = ibm.cursor()
        job = submit("one", "two")
        service.jobs(limit=7, job_tags=["one"], session_id=None)
        [post] = ibm.wait_for("POST", "/api/v1/jobs", after=cursor, answered=True)
        assert (post.status, post.fault, post.tags, post.job_id) == (200, None, ["one", "two"], job.job_id())
        assert post.answered is not None
        assert before < post.arrived < post.answered < time.monotonic_ns()
        [listing] = ibm.journal(after=post.seq, path="/api/v1/jobs")
        assert (listing.query["tags"], listing.query["limit"]) == (["one"], ["7"])
        seqs = [entry.seq for entry in ibm.journal()]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        assert ibm.cursor() == seqs[-1]

        client.send("GET", f"/api/v1/jobs?access_token={client.token}&limit=1")
        shown = json.dumps([asdict(entry) for entry in ibm.journal()])
        assert ibm.journal(path="/identity/token")
        secrets = [API_KEY, client.token, service._active_api_client._session.auth.tm.access_token]
        assert not [secret for secret in secrets if secret in shown]

    def test_a_connection_is_used_again(self, ibm: local.Service, client: Client) -> None:
        client.send("GET", "/api/v1/backends")
        client.send("DELETE", "/api/v1/jobs/none")
        token, first, second = ibm.journal()
        assert token.connection == first.connection == second.connection
        with contextlib.closing(Client(ibm).connection):
            assert ibm.journal()[-1].connection != token.connection

    def test_waiting_is_for_arrivals_or_answers_and_has_an_end(self, ibm: local.Service, client: Client) -> None:
        ibm.scenario({"http_faults": [{"path": "/api/v1/backends", "delay_seconds": 60}]})
        request = threading.Thread(target=_ignoring_errors(client.send), args=("GET", "/api/v1/backends"))
        request.start()
        [entry] = ibm.wait_for("GET", "/api/v1/back*")
        assert (entry.status, entry.answered) == (None, None)
        with pytest.raises(TimeoutError, match="0 of 1 requests"):
            ibm.wait_for("GET", "/api/v1/back*", timeout=0.05, answered=True)
        with pytest.raises(TimeoutError, match="1 of 2 requests"):
            ibm.wait_for("GET", "/api/v1/back*", count=2, timeout=0.05)
        ibm.reset()
        request.join(30)

    def test_control_requests_leave_no_trace(self, ibm: local.Service) -> None:
        ibm.health()
        ibm.hold(None)
        assert ibm.journal() == []

    def test_requests_in_proxy_form_and_tunnels(self, ibm: local.Service, client: Client) -> None:
        assert client.send("GET", "http://localqpu.test/api/v1/backends?x=1")[0] == 200
        assert ibm.journal()[-1].path == "/api/v1/backends"
        with socket.create_connection(("127.0.0.1", ibm.port), timeout=30) as bare:
            bare.sendall(b"CONNECT iam.cloud.ibm.com:443 HTTP/1.1\r\n\r\n")
            assert bare.makefile("rb").readline().startswith(b"HTTP/1.1 405 ")
        tunnel = ibm.journal()[-1]
        assert (tunnel.method, tunnel.path, tunnel.status) == ("CONNECT", "iam.cloud.ibm.com:443", 405)

    def test_a_client_that_dies_in_mid_request_submits_nothing(self, ibm: local.Service) -> None:
        with socket.create_connection(("127.0.0.1", ibm.port), timeout=30) as bare:
            bare.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{")
        [entry] = ibm.wait_for("POST", "/api/v1/jobs", answered=True)
        assert (entry.status, entry.fault) == (None, "incomplete body")
        assert ibm.jobs() == []


class TestFaults:
    def test_a_status_with_retry_after(self, ibm: local.Service, client: Client) -> None:
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "status": 429, "retry_after": 3}]})
        status, headers, body = client.send("POST", "/api/v1/jobs", HELD)
        assert (status, headers["Retry-After"]) == (429, "3")
        assert body["errors"][0]["message"]
        assert ibm.jobs() == []
        assert ibm.journal()[-1].fault == "status 429 (before)"
        client.post_job()

    def test_a_dropped_connection(self, ibm: local.Service, client: Client) -> None:
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "drop_connection": True}]})
        with pytest.raises(http.client.RemoteDisconnected):
            client.send("POST", "/api/v1/jobs", HELD)
        [entry] = ibm.wait_for("POST", "/api/v1/jobs", answered=True)
        assert (entry.status, entry.fault, entry.job_id) == (None, "drop_connection", None)
        assert ibm.jobs() == []

    def test_a_lost_answer(self, ibm: local.Service, client: Client) -> None:
        ibm.hold("queued")
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "drop_connection": True, "phase": "after"}]})
        with pytest.raises(http.client.RemoteDisconnected):
            client.send("POST", "/api/v1/jobs", {**HELD, "tags": ["lost"]})
        [job] = ibm.jobs()
        [entry] = ibm.journal(path="/api/v1/jobs")
        assert (job.tags, entry.job_id, entry.status) == (["lost"], job.id, None)

    def test_qiskit_submits_again_what_was_answered_badly(self, ibm: local.Service, submit: Any) -> None:
        ibm.hold("queued")
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "status": 503, "phase": "after"}]})
        known = submit("twice").job_id()
        first, second = ibm.jobs()
        assert (first.tags, second.tags, second.id) == (["twice"], ["twice"], known)

    @pytest.mark.parametrize("phase", ["before", "after"])
    def test_a_delay(self, ibm: local.Service, client: Client, phase: str) -> None:
        ibm.hold("queued")
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "delay_seconds": 0.2, "phase": phase}]})
        job = ibm.job(client.post_job())
        [entry] = ibm.journal(path="/api/v1/jobs")
        assert entry.answered is not None
        assert entry.answered - entry.arrived > 0.2e9
        # Handled late, or answered late: the two ways to lose sight of a submission.
        assert (job.created - entry.arrived > 0.2e9) == (phase == "before")
        assert (entry.answered - job.created > 0.2e9) == (phase == "after")

    def test_a_delayed_job_does_not_survive_a_reset(self, ibm: local.Service, client: Client) -> None:
        ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "delay_seconds": 60}]})
        request = threading.Thread(target=_ignoring_errors(client.send), args=("POST", "/api/v1/jobs", HELD))
        request.start()
        ibm.wait_for("POST", "/api/v1/jobs")
        ibm.reset()
        request.join(30)
        assert not request.is_alive()
        assert ibm.jobs() == []

    def test_a_faulty_scenario_is_refused(self, ibm: local.Service) -> None:
        with pytest.raises(local.ServiceError, match="http_faults"):
            ibm.scenario({"http_faults": [{"path": "/api/v1/jobs"}]})

    def test_a_cancel_is_counted_whatever_became_of_it(self, ibm: local.Service, client: Client) -> None:
        ibm.hold("queued")
        job_id = client.post_job()
        ibm.scenario({"http_faults": [{"path": "*/cancel", "status": 500}]})
        assert client.send("POST", f"/api/v1/jobs/{job_id}/cancel")[0] == 500
        assert (ibm.job(job_id).status, ibm.job(job_id).cancel_requests) == ("Queued", 1)


class TestTokens:
    def test_without_one_nothing_is_told(self, ibm: local.Service) -> None:
        stranger = Client(ibm, authorized=False)
        with contextlib.closing(stranger.connection):
            for stranger.token in ("", "forged"):
                status, _, body = stranger.send("GET", "/api/v1/jobs")
                assert (status, body["errors"][0]["code"]) == (401, 401)

    def test_expired_ones_are_refused_and_new_ones_are_not(self, ibm: local.Service) -> None:
        from qiskit_ibm_runtime.exceptions import IBMNotAuthorizedError

        service = ibm.service()
        ibm.expire_tokens()
        with pytest.raises(IBMNotAuthorizedError):
            service.jobs()
        assert ibm.journal()[-1].status == 401
        with contextlib.closing((client := Client(ibm)).connection):
            assert client.send("GET", "/api/v1/jobs")[0] == 200

    def test_none_are_issued_for_a_revoked_key(self, ibm: local.Service, client: Client) -> None:
        ibm.auth(reject_tokens=True)
        status, _, body = client.send("POST", "/identity/token", "apikey=revoked")
        assert (status, body["errorCode"]) == (400, "BXNIM0415E")
        ibm.auth(reject_tokens=False)
        assert client.send("POST", "/identity/token", "apikey=good")[0] == 200

    def test_their_lifetime_can_be_short(self, ibm: local.Service, client: Client) -> None:
        ibm.token_lifetime(0)
        _, _, body = client.send("POST", "/identity/token", "apikey=good")
        assert body["expires_in"] == 0
        client.token = body["access_token"]
        assert client.send("GET", "/api/v1/jobs")[0] == 401


class TestClient:
    def test_the_environment_is_left_as_it_was(self, ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IAM_URL", "http://iam.invalid")
        monkeypatch.setenv("NO_PROXY", "intranet")
        monkeypatch.delenv("no_proxy", raising=False)
        ibm.service()
        assert os.environ["IAM_URL"] == "http://iam.invalid"
        assert os.environ["NO_PROXY"] == "intranet,localqpu.test"
        assert "no_proxy" not in os.environ
        monkeypatch.delenv("IAM_URL")
        ibm.service()
        assert "IAM_URL" not in os.environ

    def test_a_proxy_of_the_environment_is_bypassed(
        self, ibm: local.Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
            assert ibm.service().jobs() == []
            assert not select.select([nobody], [], [], 0)[0], "the proxy was asked"
        assert caplog.records == []


class Exhausted:
    """A listener with no descriptor for the first connections."""

    def __init__(self, listener: socket.socket, failures: int) -> None:
        self.listener = listener
        self.failures = iter(range(failures))
        self.fileno = listener.fileno

    def accept(self) -> Any:
        if next(self.failures, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return self.listener.accept()


@pytest.mark.long
def test_as_many_clients_are_served_once_there_are_descriptors_again() -> None:
    from qx_supervisor.local import server as module
    from qx_supervisor.local.state import State

    served = module._Server(0, State())
    listener = served._listener
    served._listener = Exhausted(listener, failures=2 * module._SPARE)
    with contextlib.ExitStack() as clients:
        clients.callback(listener.close)
        clients.callback(listener.shutdown, socket.SHUT_RDWR)  # threads that wait in `accept` end
        served.serve()
        for _ in range(2 * module._SPARE):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", served.port), DEADLINE))
            client.sendall(b"BREW / HTTP/1.1\r\n\r\n")  # which needs no engine
            assert client.recv(12) == b"HTTP/1.1 501"


class TestProcess:
    @pytest.mark.long
    def test_it_may_have_as_many_descriptors_as_linux_allows(self) -> None:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        try:
            with local.start() as ibm:
                allowed = psutil.Process(ibm.pid).rlimit(psutil.RLIMIT_NOFILE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert allowed == (system.MOST_FILES if hard == resource.RLIM_INFINITY else hard, hard)

    def test_it_outlives_a_killed_starter_and_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QX_STATE_DIR", str(tmp_path / "state"))
        state_file = registry._state_file()
        assert state_file.parent == tmp_path / "state"
        # Modules that the service imports and the starter doesn't: none of them may be taken from the user's folder.
        for name in ("queue", "jwt"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
        starter = (
            "import os, signal;"
            "from qx_supervisor import local;"
            "print(local.start(register=True).pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        )
        root = str(Path(local.__file__).parents[2])
        ended = subprocess.run(
            [sys.executable, "-c", starter],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])},
            stdout=subprocess.PIPE,  # read to its end: the service does not keep it open
            timeout=60,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL
        process = Process(ended.stdout)
        pid = process.pid
        try:
            ibm = local.find()
            assert ibm is not None
            assert ibm.pid == pid
            assert state_file.stat().st_mode & 0o777 == 0o600
            with pytest.raises(local.ServiceError, match=f"running already: pid {pid}, port {ibm.port}"):
                local.start(register=True)
            ibm.health()
            assert os.getsid(pid) == pid
            assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
            descriptors = {Path(f"/proc/{pid}/fd/{number}").readlink() for number in "012"}
            assert descriptors == {Path(os.devnull)}
            started = process_state.start_ticks(pid)
            ibm.stop()
            assert process_state.judge(pid, started) in ("ended", "gone")
            assert not state_file.exists()
            assert local.find() is None
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for_end(process)

    def test_a_stale_state_file_is_forgotten(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QX_STATE_DIR", str(tmp_path))
        state_file = registry._state_file()
        assert local.find() is None
        for content in (
            json.dumps({"pid": os.getpid(), "start_ticks": 1, "port": 1}),  # this pid, but another process
            json.dumps({"pid": 2**22 + 1, "start_ticks": 1, "port": 1}),  # above any pid
            "torn",
        ):
            state_file.write_text(content)
            assert local.find() is None
            assert not state_file.exists()

    @pytest.mark.parametrize("other", [{"machine": "0" * 31 + "1"}, {"boot": "another"}, {"pid_ns": 1}])
    def test_hosts_that_share_a_home_directory(
        self, other: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each has its own service, and leaves the other's alone: a pid of another host or container means nothing."""
        monkeypatch.setenv("QX_STATE_DIR", str(tmp_path))
        here = host_identity.this_host()
        registry.claim(os.getpid(), 1)
        with monkeypatch.context() as there:
            there.setattr(host_identity, "this_host", lambda: dataclasses.replace(here, **other))
            assert registry.current() is None
            registry.claim(os.getpid(), 2)
            assert registry.current().port == 2
        assert registry.current().port == 1
        registry.forget(os.getpid())
        assert registry.current() is None
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_home_directory_that_no_shell_has_filled_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("QX_STATE_DIR", "~/state")
        assert registry._state_file().parent == ledger.state_directory()
        assert processes._environment()["QX_STATE_DIR"] == str(tmp_path / "state")

    def test_stopping_reaps_it_and_may_be_repeated(self) -> None:
        ibm = local.start()  # stopped while it loads its engine
        ibm.stop()
        ibm.stop()
        assert not Path(f"/proc/{ibm.pid}").exists()
        with pytest.raises(local.ServiceError, match="does not answer"):
            ibm.jobs()

    def test_it_says_why_it_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(local.ServiceError, match=r"no such backend: ibm_nowhere; there are .*ibm_brisbane"):
            local.start(backends=["ibm_nowhere"])
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(local.ServiceError, match="Address already in use"),
        ):
            local.start(port=taken.getsockname()[1])
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
        with pytest.raises(ImportError, match=r"pip install 'qx-supervisor\[local\]' \(in a checkout: '\.\[local\]'\)"):
            local.start()

    def test_it_says_why_its_engine_cannot_be_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sabotage = "import runpy, sys; sys.modules['localqpu'] = None; sys.argv.pop(0)"
        run = f"{sabotage}; runpy.run_path(sys.argv[0], run_name='__main__')"
        interpreter = tmp_path / "python"
        interpreter.write_text(f'#!/bin/sh\nshift; exec {sys.executable} -I -c "{run}" "$@"\n')
        interpreter.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(interpreter))
        with local.start() as ibm, pytest.raises(local.ServiceError, match="'localqpu' is not a package"):
            ibm.health()


def _ignoring_errors(send: Any) -> Any:
    def ignoring(*arguments: Any) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            send(*arguments)

    return ignoring
