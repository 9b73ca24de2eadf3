"""The handle of a running service: what a test tells it and asks of it, and how it is stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlencode

from ..descriptors import is_readable
from ..errors import QxError
from . import registry
from .records import INSTANCE, Job, JournalEntry

if TYPE_CHECKING:
    from qiskit_ibm_runtime import QiskitRuntimeService

_HOST = "127.0.0.1"
_PATIENCE = 60.0  # seconds for an ordinary control request: the first ones wait for the engine to load
_GRACE = 5.0  # seconds from SIGTERM to SIGKILL


class ServiceError(QxError):
    """The embedded service could not be started, or refused a control request."""


class Service:
    """A running embedded service. It may be used from any thread, and by any number of processes at once.

    As a context manager it stops the service at the end of the block. Otherwise the service lives on, beyond the
    process that started it, until ``stop()``.

    Attributes:
        pid: Its process.
        port: Its port on 127.0.0.1.
        url: Its address.
    """

    def __init__(self, pid: int, port: int, *, output: int | None = None) -> None:
        """Take hold of a process.

        Args:
            pid: The process, known to run.
            port: Where it listens.
            output: Descriptor on which the process says why its engine could not be loaded; owned from here on.
        """
        self.pid = pid
        self.port = port
        self.url = f"http://{_HOST}:{port}"
        # Signals go to this descriptor, so never to another process that was given the same pid later.
        self._pidfd = os.pidfd_open(pid)
        self._output = output
        self._release = weakref.finalize(self, _close, self._pidfd, output)

    def __repr__(self) -> str:
        return f"<Service pid {self.pid} at {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def service(
        self,
        token: str = "local-key",  # noqa: S107 - any key will do
        instance: str | None = INSTANCE,
    ) -> QiskitRuntimeService:
        """Connect Qiskit's client.

        The first call in a process imports ``qiskit_ibm_runtime``, some two seconds. ``NO_PROXY`` in the environment of
        this process stays extended by a made-up host, see ``client.connect``.

        Args:
            token: The API key that the client presents. Every key is taken, unless ``auth`` says otherwise.
            instance: The name of the instance to use, of those that it was started with. None: the client uses all.

        Returns:
            The service object, with which anything can be done that can be done with the real one.
        """
        from .client import connect

        self.health()
        return connect(self.port, token, instance=instance)

    def health(self) -> None:
        """Wait until the service has loaded its engine, and so answers without delay.

        Raises:
            ServiceError: It could not be loaded; the message has the reason.
        """
        self._control("GET", "health")

    # Requests

    def cursor(self) -> int:
        """The ``seq`` of the latest request, 0 if there was none: what to pass as ``after``."""
        seq: int = self._control("GET", "cursor")["seq"]
        return seq

    def journal(self, after: int = 0, method: str | None = None, path: str | None = None) -> list[JournalEntry]:
        """The requests that have arrived, oldest first.

        Args:
            after: Only those with a higher ``seq``.
            method: Only this HTTP method.
            path: Only paths that match this ``fnmatch`` pattern; a ``*`` spans slashes too.
        """
        return _entries(self._control("GET", "journal", after=after, method=method, path=path))

    def wait_for(
        self,
        method: str | None,
        path: str | None,
        *,
        count: int = 1,
        after: int = 0,
        timeout: float = 60.0,
        answered: bool = False,
    ) -> list[JournalEntry]:
        """Wait until requests have arrived, those that came before the call included.

        Args:
            method: HTTP method, None for any.
            path: ``fnmatch`` pattern of the path, None for any.
            count: How many.
            after: Count only those with a higher ``seq``.
            timeout: Seconds.
            answered: Wait until they have been answered too, or their connection dropped.

        Returns:
            All that match, at least ``count``.

        Raises:
            TimeoutError: They did not come in time.
        """
        status, body = self._exchange(
            "GET",
            "wait",
            timeout=timeout,
            method=method,
            path=path,
            count=count,
            after=after,
            answered=int(answered),
        )
        entries = _entries(_accepted(status, body, but=408))
        if status == 408:
            raise TimeoutError(f"{len(entries)} of {count} requests {method} {path} within {timeout} s")
        return entries

    # Jobs

    def jobs(self) -> list[Job]:
        """Every job, oldest first."""
        return [Job(**job) for job in self._control("GET", "jobs")["jobs"]]

    def job(self, id: str) -> Job:  # noqa: A002 - the field's name for it
        """One job.

        Raises:
            KeyError: There is none of that id.
        """
        found = self._control("GET", "jobs", id=id)["jobs"]
        if not found:
            raise KeyError(id)
        return Job(**found[0])

    def wait_job(self, id: str, *statuses: str, timeout: float = 60.0) -> Job:  # noqa: A002
        """Wait until a job has come to one of the statuses.

        Args:
            id: Job id.
            statuses: Queued, Running, Completed, Failed, Cancelled; none: any of the last three.
            timeout: Seconds.

        Returns:
            The job as it is then.

        Raises:
            TimeoutError: It did not come to that in time.
            ServiceError: There is no such job.
        """
        status, body = self._exchange("GET", "wait-job", timeout=timeout, id=id, status=",".join(statuses) or "final")
        job = Job(**_accepted(status, body, but=408)["job"])
        if status == 408:
            raise TimeoutError(f"job {id} is {job.status} after {timeout} s, not {' or '.join(statuses) or 'final'}")
        return job

    def wait_idle(self, timeout: float = 60.0) -> list[Job]:
        """Wait until every job is final.

        Returns:
            All jobs.

        Raises:
            TimeoutError: Some are not, in time.
        """
        status, body = self._exchange("GET", "wait-idle", timeout=timeout)
        jobs = [Job(**job) for job in _accepted(status, body, but=408)["jobs"]]
        if status == 408:
            raise TimeoutError(f"{sum(not job.is_final for job in jobs)} jobs are not final after {timeout} s")
        return jobs

    # What is to happen

    def scenario(self, scenario: dict[str, Any]) -> None:
        """Install a scenario in localqpu's JSON form: ``http_faults``, ``next_jobs``, ``queue``, ``backends``, ...

        A delay in phase ``before`` comes before the request is handled, in phase ``after`` between its handling and
        its answer.

        Raises:
            ServiceError: It is not well-formed, or names an unknown backend.
        """
        self._control("PUT", "scenario", scenario)

    def hold(self, where: Literal["queued", "running"] | None, cancel_lag: float | None = 0.0) -> None:
        """Hold jobs where they are, or let them go.

        Args:
            where: ``"queued"``: no job leaves the queue. ``"running"``: jobs leave it, run, and never end by
                themselves. None: jobs end as they should, those held until now too.
            cancel_lag: Seconds from a cancel's answer to its effect; None: it is accepted and has none, as at IBM where
                it comes too late. Each call sets both.
        """
        self._control("PUT", "hold", {"hold": where, "cancel_lag": cancel_lag})

    def tell(
        self,
        *,
        queue_position: int | None = None,
        starts_in: float | None = None,
        qpu_seconds_estimated: float | None = None,
        qpu_seconds: float | None = 0.0,
    ) -> None:
        """Set what the service tells of a job's place in the queue and its cost. Each call sets all four.

        Args:
            queue_position: The place of a queued job, 1 for the next. None: not told, as at IBM in most cases.
            starts_in: Seconds until a queued job is expected to start, or None.
            qpu_seconds_estimated: QPU seconds that a job is expected to take, or None.
            qpu_seconds: QPU seconds that a completed job is charged. None: that stays pending.
        """
        told = {"queue_position": queue_position, "starts_in": starts_in}
        cost = {"qpu_seconds_estimated": qpu_seconds_estimated, "qpu_seconds": qpu_seconds}
        self._control("PUT", "tell", told | cost)

    def auth(self, *, reject_tokens: bool) -> None:
        """Refuse to issue access tokens, as for a revoked API key, or stop refusing."""
        self._control("PUT", "auth", {"reject_tokens": reject_tokens})

    def expire_tokens(self) -> None:
        """Answer 401 to every access token that has been issued so far, until a reset. New ones are good."""
        self._control("POST", "expire-tokens")

    def token_lifetime(self, seconds: int) -> None:
        """Set how long the access tokens that are issued from now on live."""
        self._control("PUT", "token-lifetime", {"seconds": seconds})

    def reset(self) -> None:
        """Back to the start: no jobs, sessions, scenario, holds, journal. Clients stay connected, tokens good."""
        self._control("POST", "reset")

    def stop(self) -> None:
        """End the service and wait until it has ended. Does nothing if it has already."""
        if not self._release.alive:
            return
        for signum, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)
            if is_readable(self._pidfd, patience):
                break
        with contextlib.suppress(ChildProcessError):  # somebody else's child, or reaped already
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        registry.forget(self.pid)
        self._release()

    def _control(self, method: str, route: str, body: object = None, /, **query: object) -> Any:
        return _accepted(*self._exchange(method, route, body, timeout=None, **query))

    def _exchange(
        self, method: str, route: str, body: object = None, /, *, timeout: float | None, **query: object
    ) -> tuple[int, Any]:
        """One control request on a connection of its own, which makes it safe in threads and after a fork."""
        fields = {name: value for name, value in {**query, "timeout": timeout}.items() if value is not None}
        # The service ends a wait by itself; only one that hangs is given up here.
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=_PATIENCE + (timeout or 0.0))
        with contextlib.closing(connection):
            try:
                payload = None if body is None else json.dumps(body)
                connection.request(method, f"/_qx/{route}?{urlencode(fields)}", payload)
                response = connection.getresponse()
                answer = response.read()
            except (ConnectionError, http.client.HTTPException) as error:
                raise ServiceError(f"{self!r} does not answer. {self._last_words()}".rstrip()) from error
        return response.status, json.loads(answer or b"null")

    def _last_words(self) -> str:
        """What the process wrote before it ended."""
        if self._output is None or not self._release.alive or not is_readable(self._pidfd, 1.0):
            return ""
        return os.read(self._output, 65536).decode(errors="replace").strip()


def _accepted(status: int, body: Any, but: int | None = None) -> Any:
    if status >= 400 and status != but:
        raise ServiceError(body["errors"][0]["message"])
    return body


def _entries(body: Any) -> list[JournalEntry]:
    return [JournalEntry(**entry) for entry in body["entries"]]


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
