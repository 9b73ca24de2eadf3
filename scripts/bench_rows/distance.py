"""From the death of a driver to the cancel of its job, over TLS, at a service that is a round trip of 100 ms away.

A relay makes the distance: it holds back all that passes for half a round trip, in each direction. Unlike tc-netem(8),
it needs neither root nor a module of the kernel. The connection to the relay itself takes no time, which makes no
difference to a request on a connection that is open.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from qx_supervisor import local

from .programs import started, tick
from .table import OURS, Measure

ROUND_TRIP = 0.1
"""Seconds."""

RUN = """
from qx_supervisor import run
far = connect(int(sys.argv[3]), "local-key", tls=True)
def tell(status):
    if status.state == "queued":
        print(status.job_id, flush=True)
run(circuit, "ibm_brisbane", service=far, panel=None, on_status=tell)
"""


def kill_to_cancel(ibm: local.Service, folder: Path, tries: int) -> Measure:
    """Milliseconds from the kernel's word of a death to the arrival of the cancel request."""
    authority = folder / "authority.pem"
    authority.write_text(ibm.authority())
    ibm.hold("queued")
    with _relay(ibm.port) as port:
        values = [_kill(ibm, folder, authority, port) for _ in range(tries)]
    ibm.hold(None)
    made = Measure("death → cancel request over TLS, 100 ms of round trip", "ms", {OURS: values}, "≤ 0.6 round trips")
    trips = made.median() / 1000 / ROUND_TRIP
    return made.judge(f"{trips:.2f} round trips", is_met=trips <= 0.6)


def _kill(ibm: local.Service, folder: Path, authority: Path, port: int) -> float:
    with started(ibm, RUN, folder, port, variables={"REQUESTS_CA_BUNDLE": str(authority)}) as driver:
        [job] = driver.line()
        time.sleep(1)  # its watcher opens its connection, in a few round trips
        pidfd = os.pidfd_open(driver.process.pid)
        driver.process.kill()
        select.select([pidfd], [], [])
        seen = time.monotonic_ns()
        os.close(pidfd)
        driver.process.wait()
        [arrived] = ibm.wait_for("POST", f"/api/v1/jobs/{job}/cancel")
        ibm.wait_job(job, "Cancelled")
    tick()
    return (arrived.arrived - seen) / 1e6


@contextlib.contextmanager
def _relay(target: int) -> Iterator[int]:
    """A port from which the service is far away."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        threading.Thread(target=_accept, args=(listener, target), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, target: int) -> None:
    with contextlib.suppress(OSError):  # it is closed
        while True:
            near = listener.accept()[0]
            far = socket.create_connection(("127.0.0.1", target))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for ways in ((near, far), (far, near)):
                threading.Thread(target=_carry, args=ways, daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            time.sleep(ROUND_TRIP / 2)
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
