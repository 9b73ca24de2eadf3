"""What the shared ledger costs a run, and what it can carry: arming, renewals, and leases that have run out.

The PostgreSQL here is on the same two cores as all else, and waits for its disk at each commit.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from testkit.postgres import Server

from qx_supervisor import local
from qx_supervisor.watcher import host_identity, ledger
from qx_supervisor.watcher.ledger.postgres import SharedLedger

from .ledger import arm
from .programs import Program, environment, started, tick
from .table import OURS, Measure

WITHOUT = f"{OURS}, without"
LEASE_SECONDS = 30.0
"""What drivers and reapers have by default."""

PROCESSES = 8
"""Clients that renew at a time, each for many drivers in turn; beyond this the two cores gain nothing."""

DELAY = 0.02
"""Seconds that the service takes for each answer, as one far away does."""

RENEWS = """
import json, os, sys, time
from qx_supervisor.watcher import ledger, host_identity
from qx_supervisor.watcher.ledger.postgres import SharedLedger
drivers, runs = map(int, sys.argv[1:])
where = host_identity.this_host()
books = [SharedLedger.open(os.environ["QX_LEDGER"], lease_seconds=30.0) for _ in range(drivers)]
for book in books:
    book.renew()
    book.write(*(
        ledger.Row(run=f"{book.id}-{number}", host_identity=where, pid=1, start_ticks=1, tag="t", endpoint="https://x")
        for number in range(runs)
    ))
print("ready", flush=True)
end = time.monotonic() + float(sys.stdin.readline())
took, had_run_out = [], 0
while True:
    for book in books:
        began = time.monotonic()
        if began >= end and took:
            print(json.dumps(took), had_run_out, flush=True)
            sys.exit()
        had_run_out += book.renew()
        took.append(round(1e3 * (time.monotonic() - began), 3))
"""

MAKES = """
import threading, requests
import qx_supervisor.service as services
sent = []
send = requests.Session.send
def keep(self, prepared, **more):
    if prepared.method == "POST" and prepared.url.endswith("/jobs"):
        sent.append((prepared, more))
    return send(self, prepared, **more)
requests.Session.send = keep
official(make_isa()).cancel()
[(first, more)] = sent
print(*services.address(services.clients_of(service)[0]), flush=True)
session, body = requests.Session(), json.loads(first.body)
for number in range(int(sys.argv[3])):
    again = first.copy()
    again.prepare_body(json.dumps(body | {"tags": [f"qxs-bench-{number}"]}), None)
    print(send(session, again, **more).json()["id"], flush=True)
"""
"""Submits so many jobs, each as the official client has submitted the first, but for its tag."""

REAPS = """
import logging, os, sys
import psycopg, psutil, requests, ibm_cloud_sdk_core
from qx_supervisor.local.client import connect
import qx_supervisor.service as services
import qx_supervisor.reaper
from qx_supervisor.cli import main
at_hand = [connect(int(sys.argv[1]), "local-key")]
services.accounts.every_service = lambda: at_hand
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(["reaper", "--once"]))
"""

CLAIMS = """
import os, sys, time
from qx_supervisor.watcher.ledger.postgres import SharedLedger
book = SharedLedger.open(os.environ["QX_LEDGER"], kind="reaper", lease_seconds=30.0)
book.renew()
print("ready", flush=True)
sys.stdin.readline()
count = 0
while found := book.due([tuple(sys.argv[1:3])], 0.0, 4e9, 64):
    for row in found:
        assert book.finish(row.run, "cancelled")
    count += len(found)
print(count, time.monotonic_ns(), flush=True)
"""


@contextlib.contextmanager
def _server() -> Iterator[Server]:
    server = Server(is_durable=True)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def _client(code: str, url: str, *words: object, **more: Any) -> Iterator[Program]:
    """A program that says when it is ready."""
    variables = environment() | {"QX_LEDGER": url, "QX_LEASE_SECONDS": str(LEASE_SECONDS)}
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=variables, **streams | more) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


# A run ------------------------------------------------------------------------------------------------------------


def arming(ibm: local.Service, folder: Path, tries: int) -> list[Measure]:
    """Milliseconds from an intent to its acknowledgement, with PostgreSQL and without."""
    calls: dict[str, list[float]] = {WITHOUT: [], OURS: []}
    with _server() as server:
        url = server.database()
        for turn in range(3):
            for whose, variables in {WITHOUT: {}, OURS: {"QX_LEDGER": url}}.items():
                place_of_it = folder / f"{turn} {whose}"
                place_of_it.mkdir()
                calls[whose] += arm(ibm, place_of_it, tries // 3, variables)
                tick()
    made = Measure("announcing a run, with PostgreSQL too", "ms", calls, "≤ 10 ms more")
    more = made.median() - made.median(WITHOUT)
    return [made.judge(f"{more:+.2f} ms", is_met=more <= 10)]


# Many drivers ------------------------------------------------------------------------------------------------------


def renewals(drivers: int, runs: int, seconds: float) -> list[Measure]:
    """How many leases can be renewed in a second."""
    rates: list[float] = []
    took: list[float] = []
    lost = 0
    with _server() as server, contextlib.ExitStack() as stack:
        url = server.database()
        each = [drivers // PROCESSES] * PROCESSES
        programs = [stack.enter_context(_client(RENEWS, url, number, runs)) for number in each]
        for program in programs:
            assert program.line() == ["ready"]
        for program in programs:
            program.tell(seconds)
        for program in programs:
            *values, count = program.line()
            part = [float(value.strip("[,]")) for value in values]
            took += part
            rates.append(len(part) / seconds)
            lost += int(count)
        tick()
    needed = sum(each) / (LEASE_SECONDS / 3)
    name = f"{sum(each):,} drivers with {runs} runs each"
    rate = Measure(f"renewals per second, {name}", "/s", {OURS: [sum(rates)]}, f"≥ {needed:.0f}: a third of 30 s each")
    rate.judge(f"{sum(rates) / needed:.0f} × what they need", is_met=sum(rates) >= needed and not lost)
    rate.notes.append(
        f"{sum(each):,} connections, in {PROCESSES} processes, each of which renews one lease after the other; "
        f"{lost} leases had run out; a lease is renewed by one statement, however many runs it holds"
    )
    return [rate, Measure(f"one renewal, {PROCESSES} at a time, {name}", "ms", {OURS: took})]


# Leases that have run out -------------------------------------------------------------------------------------------


def reaped(ibm: local.Service, folder: Path, leases: int, reapers: tuple[int, ...]) -> list[Measure]:
    """Seconds until so many leases that have run out are dealt with, by the command, and by the database alone."""
    values: dict[str, list[float]] = {}
    notes: list[str] = []
    claims: dict[str, list[float]] = {}
    most = reapers[-1]
    twice = 0
    with _server() as server:
        for number in reapers:
            whose = OURS if number == most else f"{OURS}, {number} reaper{'s' * (number > 1)}"
            seconds, note, had_twice = _reap(ibm, folder, server, leases, number)
            values[whose] = [seconds]
            twice += had_twice
            notes.append(note)
            claims[whose] = [_claim(server, leases, number)]
            tick()
    made = Measure(f"{leases:,} expired leases reaped, by {most} reapers", "s", values, "≤ 0.6 × with 2; none twice")
    first, second, *_ = (each[0] for each in values.values())
    ratio = second / first
    made.judge(f"{ratio:.2f} × with the second; {twice} leases twice", is_met=ratio <= 0.6 and not twice)
    made.notes += notes
    rate = Measure(f"claimed and recorded in the database alone, by {most} at a time", "/s", claims)
    return [made, rate]


def _reap(ibm: local.Service, folder: Path, server: Server, leases: int, reapers: int) -> tuple[float, str, int]:
    """Seconds from the first request to the last; what was busy meanwhile; how many leases were had twice."""
    ibm.reset()
    ibm.hold("queued")
    with started(ibm, MAKES, folder, leases) as maker:
        account = tuple(maker.line())
        jobs = [maker.line()[0] for _ in range(leases)]
    url = server.database()
    _leave_behind(url, account, jobs)
    ibm.scenario({"http_faults": [{"path": "/api/v1/*", "delay_seconds": DELAY, "times": 100 * leases}]})
    logs = [folder / f"reaper{number}.log" for number in range(reapers)]
    cursor = ibm.cursor()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(log.open("w")) for log in logs]
        programs = [stack.enter_context(_client(REAPS, url, ibm.port, stderr=file)) for file in files]
        for program in programs:
            assert program.line() == ["ready"]
        before = _spent(ibm, server)
        spent = -sum(_of(psutil.Process(program.process.pid)) for program in programs)
        for program in programs:
            program.tell()
        for program in programs:
            _, status, used = os.wait4(program.process.pid, 0)
            program.process.returncode = os.waitstatus_to_exitcode(status)
            assert program.process.returncode == 0, program.process.returncode
            spent += used.ru_utime + used.ru_stime
    requests = ibm.journal(cursor, path="/api/v1/jobs*")
    times = [(entry.arrived, entry.answered) for entry in requests if entry.answered is not None]
    seconds = (max(answered for _, answered in times) - min(arrived for arrived, _ in times)) / 1e9
    service, database = (after - was for was, after in zip(before, _spent(ibm, server), strict=True))
    left = [job for job in ibm.jobs() if job.status != "Cancelled" or job.cancel_requests != 1]
    assert not left, left[:3]
    claimed = Counter(
        line.split(" run ")[1].split()[0]
        for log in logs
        for line in log.read_text().splitlines()
        if " claimed: its lease" in line
    )
    assert len(claimed) == leases, len(claimed)
    users = {"the reapers": spent, "the service": service, "the database": database}
    busy = ", ".join(f"{who} {share / seconds:.0%}" for who, share in users.items())
    note = f"{reapers} at work: {len(times):,} requests, each {DELAY * 1e3:.0f} ms late; of one core used: {busy}"
    return seconds, note, sum(count > 1 for count in claimed.values())


def _leave_behind(url: str, account: tuple[str, ...], jobs: list[str]) -> None:
    """Write runs of drivers that are gone, ten each, and wait until their leases have run out."""
    endpoint, instance = account
    with SharedLedger.open(url, lease_seconds=1.0) as book:
        for start in range(0, len(jobs), 10):
            book.id = secrets.token_hex(12)  # another driver's watcher
            book.renew()
            rows = [
                ledger.Row(
                    run=f"bench-{number}",
                    host_identity=host_identity.this_host(),
                    pid=1,
                    start_ticks=1,
                    tag=f"qxs-bench-{number}",
                    endpoint=endpoint,
                    instance=instance,
                    jobs={job: ""},
                    answered=True,
                )
                for number, job in enumerate(jobs[start : start + 10], start)
            ]
            book.write(*rows)
        while book.longest_lease() == 0 or any(held.seconds_left > 0 for held in book.held(limit=1)):
            time.sleep(0.1)


def _spent(ibm: local.Service, server: Server) -> tuple[float, float]:
    """Seconds of the processor that the service and the database have used, with connections that have ended."""
    database = server.process
    ended = database.cpu_times()
    at_work = sum(_of(process) for process in (database, *database.children()))
    return _of(psutil.Process(ibm.pid)), at_work + ended.children_user + ended.children_system


def _of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _claim(server: Server, leases: int, clients: int) -> float:
    """Leases that were claimed and recorded in a second, without a service."""
    url = server.database()
    account = ("https://x", "crn")
    _leave_behind(url, account, [f"job-{number}" for number in range(leases)])
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(_client(CLAIMS, url, *account)) for _ in range(clients)]
        for program in programs:
            assert program.line() == ["ready"]
        began = time.monotonic_ns()
        for program in programs:
            program.tell()
        said = [program.line() for program in programs]
    assert sum(int(count) for count, _ in said) == leases, said
    return leases / (max(int(ended) for _, ended in said) - began) * 1e9
