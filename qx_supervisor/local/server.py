"""The HTTP server.

Python's ``http.server`` parses requests. The rest is tuned for measuring milliseconds: connections are kept alive, a
thousand may open at once, a small reply is sent in one segment at once, and the time of arrival is taken before the
request is parsed.

It listens on the loopback only, and speaks TLS with a client that begins with it. As the proxy of Qiskit's client (see
``client``) it handles all requests itself and forwards none. It is itself the other end of a tunnel to the invented
host, and refuses all others, so that client can't reach the real service.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from ..watcher import system
from ..watcher.process_handle import ProcessHandle
from . import control, records, registry
from .bounds import Bounds
from .messages import Call, Reply, problem
from .pages import page_of
from .records import JournalEntry, instance_of
from .state import State

HOST = "127.0.0.1"

_SPARE = 16  # threads waiting for a connection

_NOT_ACCEPTED_SECONDS = 0.1  # after which a connection that could not be accepted is tried again

_TLS_HANDSHAKE = b"\x16"  # the first byte of a ClientHello, and of no HTTP request

_CANCEL = re.compile(r"/api/v1/jobs/([^/]+)/cancel")


class _Server:
    """One thread per connection, started in advance.

    A thread that is started when a connection arrives runs 0.3 ms later, at times 4 ms, which would falsify the time of
    arrival. So some threads wait in ``accept``.
    """

    def __init__(self, port: int, state: State) -> None:
        # With http.server's backlog of 5, a burst of clients waits a second for its second SYN.
        self._listener = socket.create_server((HOST, port), backlog=1024)
        self._lock = threading.Lock()
        self._waiting = 0
        self.port: int = self._listener.getsockname()[1]
        self.state = state
        self.connections = itertools.count(1)
        self._open = 0  # connections
        self._changed = time.monotonic()  # when a connection was opened or closed last

    def serve(self) -> None:
        """Start to accept connections."""
        for _ in range(_SPARE):
            self._add_thread()

    def _add_thread(self) -> None:
        with self._lock:
            self._waiting += 1
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        """Thread body: serve connections, one after the other, until enough other threads wait."""
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError:  # no descriptor is left, most likely: a thread that ended here would stay counted
                if self._listener.fileno() == -1:  # closed
                    return
                time.sleep(_NOT_ACCEPTED_SECONDS)
                continue
            with self._lock:
                self._count(+1)
                self._waiting -= 1
                scarce = self._waiting < _SPARE // 2
            if scarce:
                self._add_thread()
            with connection:
                # A client that goes away is no error: tests kill clients.
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    if connection.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
                        self.serve_tls(connection, address, next(self.connections))
                    else:
                        _Handler(connection, address, self)
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._count(-1)
                if self._waiting >= _SPARE:
                    return
                self._waiting += 1

    def serve_tls(self, connection: socket.socket, address: Any, number: int) -> None:
        """Serve a connection whose client begins with TLS."""
        with self.state.tls.context().wrap_socket(connection, server_side=True) as secured:
            _Handler(secured, address, self, number)

    def _count(self, change: int) -> None:
        self._open += change
        self._changed = time.monotonic()

    def wait_until_idle(self, seconds: float, is_busy: Callable[[], bool] = lambda: False) -> None:
        """Wait until there has been no connection for n seconds, counted from now on, and it is not busy otherwise."""
        began = time.monotonic()
        while True:
            is_needed = is_busy()
            with self._lock:
                is_needed = is_needed or self._open > 0
                remaining = seconds if is_needed else max(self._changed, began) + seconds - time.monotonic()
            if remaining <= 0:
                return
            time.sleep(remaining)


class _Handler(BaseHTTPRequestHandler):
    """One connection.

    Args:
        connection: The connection.
        address: The client's.
        server: The server.
        number: The number of the TCP connection, which may have been in use before TLS.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # Buffered, so that a small reply is sent in one segment. Of several, each after the first would wait 40 ms for the
    # client's delayed acknowledgement.
    wbufsize: ClassVar[int] = -1
    server: _Server  # type: ignore[assignment]

    def __init__(self, connection: socket.socket, address: Any, server: _Server, number: int = 0) -> None:
        self._connection = number or next(server.connections)
        self._arrived = 0
        super().__init__(connection, address, server)  # type: ignore[arg-type]

    def parse_request(self) -> bool:
        """Take the time of arrival: the request line has just been read."""
        self._arrived = time.monotonic_ns()
        return super().parse_request()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Write no log, as there is the journal."""

    def _serve(self) -> None:
        """Handle one request."""
        url = urlsplit(self.path)  # absolute in a request to a proxy
        path, query = url.path or "/", parse_qs(url.query, keep_blank_values=True)
        state = self.server.state
        if path.startswith(control.PREFIX):
            body = self._read_body()
            if body is not None:
                self._send(control.answer(state, path, body))
            return
        ended = state.ended  # taken before a test can see the request and reset the service
        # Read before the entry is visible: a test that sees it may kill the client.
        body = self._read_body()
        entry = state.journal.arrive(
            arrived=self._arrived,
            connection=self._connection,
            method=self.command,
            path=path,
            query=query,
            instance=instance_of(self.headers.get("Service-CRN")),
        )
        reply = self._reply(entry, query, body, ended)
        state.journal.answer(entry, None if reply is None else reply.status)
        if reply is None:
            self.close_connection = True
            return
        try:
            self._send(reply)
        except ConnectionError:
            state.journal.add(entry, fault="client gone")
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def do_CONNECT(self) -> None:
        """Be the other end of a tunnel to the invented host, and refuse others, which would lead to the network."""
        journal = self.server.state.journal
        entry = journal.arrive(
            arrived=self._arrived, connection=self._connection, method="CONNECT", path=self.path, query={}
        )
        host = self.path.rpartition(":")[0]
        if f".{host}".endswith(f".{records.HOST}"):
            journal.answer(entry, 200)
            self.close_connection = True
            self.send_response_only(200)
            self.end_headers()
            self.wfile.flush()
            self.server.serve_tls(self.connection, self.client_address, self._connection)
            return
        journal.add(entry, fault="tunnel refused")
        journal.answer(entry, 405)
        self.close_connection = True
        self._send(problem(405, f"The embedded service opens no tunnel to {self.path}."))

    def _reply(
        self, entry: JournalEntry, query: dict[str, list[str]], body: bytes | None, ended: threading.Event
    ) -> Reply | None:
        """Handle a request, with the scenario's fault if there is one; None to drop the connection."""
        state, journal = self.server.state, self.server.state.journal
        engine = state.engine
        if cancelled := _CANCEL.fullmatch(entry.path):
            engine.jobs.count_cancel_request(cancelled[1])
        if body is None:
            journal.add(entry, fault="incomplete body")
            return None
        is_submission = entry.method == "POST" and entry.path == "/api/v1/jobs"
        if is_submission:
            journal.add(entry, tags=_tags(body))
        fault = engine.fault_for(entry)
        if fault is not None:
            journal.add(entry, fault=fault.describe())
        before = fault is not None and fault.phase == "before"
        if before:
            ended.wait(fault.delay_seconds)
        if ended.is_set():
            return None
        if before and fault.is_failure:
            return _injected(fault)
        authorization = self.headers.get("Authorization")
        reply = engine.handle(Call(entry.method, entry.path, query, body, authorization, entry.instance))
        if is_submission and reply.status == 200:
            journal.add(entry, job_id=json.loads(reply.payload)["id"])
        if fault is None or before:
            return reply
        # Phase "after": the request has been handled (a job made, say), and its answer is late, lost or replaced.
        if ended.wait(fault.delay_seconds):
            return None
        return _injected(fault, reply) if fault.is_failure else reply

    def _read_body(self) -> bytes | None:
        """The body; None if the client has died meanwhile, or sends it in an unsupported form."""
        raw = self.headers.get("Content-Length", "0")
        if raw.isdigit() and "Transfer-Encoding" not in self.headers:
            # Headers and body arrive in two segments, and urllib3 does not disable Nagle's algorithm for a proxy: the
            # body would wait for the acknowledgement of the headers, which the kernel delays by 40 ms.
            if sys.platform.startswith("linux"):
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            with contextlib.suppress(ConnectionError):
                body = self.rfile.read(int(raw))
                if len(body) == int(raw):
                    return body
        self.close_connection = True
        return None

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        if reply.status != 204:
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.payload)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.payload)
        self.wfile.flush()


def _injected(fault: Any, reply: Reply | None = None) -> Reply | None:
    """The answer of a fault instead of the true one; None to drop the connection."""
    if fault.drop_connection:
        return None
    page = page_of(fault, reply)
    return page or problem(fault.status, fault.message or "Injected by the scenario.", retry_after=fault.retry_after)


def _tags(body: bytes) -> list[str]:
    """The tags of a submission. If it can't be read, the route will refuse it."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        return [str(tag) for tag in json.loads(body).get("tags") or ()]
    return []


def main(
    *,
    port: int,
    backends: Sequence[str],
    instances: Sequence[str],
    register: bool,
    starter: int,
    linger: float | None,
    idle: float | None,
    bounds: dict[str, int],
) -> None:
    """Serve until the process is ended.

    It writes ``pid N port N`` to standard output when it accepts connections, long before the engine is loaded, so that
    the starter can import Qiskit meanwhile. Then it closes standard output. If the engine can't be loaded, it writes
    the reason and ends.

    Args:
        port: Where to listen; 0 for a free port.
        backends: Names of the backends, which every instance has.
        instances: Names of the instances.
        register: Whether `find` finds it.
        starter: The process that starts it.
        linger: Seconds without a connection, after the starter's end, after which it ends; None: it does not.
        idle: Seconds without a connection or an unfinished job after which it ends; None: it does not.
        bounds: What a job may take, as in `Bounds`.
    """
    _restore_signals()
    system.allow_most_files()
    _check_backends(backends)
    state = State()
    try:
        server = _Server(port, state)
    except OSError as error:
        sys.exit(f"port {port} can't be had: {error.strerror}")
    if register:
        registry.claim(os.getpid(), server.port)
    server.serve()
    print(f"pid {os.getpid()} port {server.port}", flush=True)  # noqa: T201 - the handshake
    try:
        from .engine import Engine

        engine = Engine(backends, state.tokens, instances, Bounds(**bounds))
    except BaseException:  # noqa: BLE001 - the process ends here, and the starter reads the reason
        traceback.print_exc()
        if register:
            registry.forget(os.getpid())
        os._exit(1)
    _close_output()
    # A garbage collection visits every object: after Qiskit's import, that would delay arrivals by 50 ms.
    gc.collect()
    gc.freeze()
    # A simulating thread may delay an arrival for this long. The default is 5 ms.
    sys.setswitchinterval(0.0005)
    state.install(engine)
    if idle is not None:
        server.wait_until_idle(idle, engine.jobs.has_unfinished)
    elif linger is not None:
        _wait_for_end(starter)
        server.wait_until_idle(linger)
    else:
        threading.Event().wait()
    registry.forget(os.getpid())


def _wait_for_end(starter: int) -> None:
    """Wait for the end of the starter."""
    with contextlib.suppress(ProcessLookupError), contextlib.closing(ProcessHandle(starter)) as process:
        if os.getppid() == starter:  # else it has ended, and its pid may have been reused
            process.ends_within(None)


def _restore_signals() -> None:
    """End on SIGTERM only, and not on a terminal's signals, whatever the starter ignored or blocked."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _check_backends(backends: Sequence[str]) -> None:
    """Refuse an unknown backend at once, without importing Qiskit, which takes seconds."""
    spec = importlib.util.find_spec("qiskit_ibm_runtime")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        sys.exit("qiskit-ibm-runtime is not installed")
    snapshots = Path(folders[0]).glob("fake_provider/backends/*/conf_*.json")
    known = {f"ibm_{path.stem.removeprefix('conf_')}" for path in snapshots}
    unknown = sorted(set(backends) - known)
    if unknown or not backends:
        sys.exit(f"no such backend: {', '.join(unknown) or '(none named)'}; there are {', '.join(sorted(known))}")


def _close_output() -> None:
    """Close the pipe to the starter, which may have ended, or may wait for the end of the stream."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)
