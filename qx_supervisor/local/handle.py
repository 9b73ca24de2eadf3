"""The handle of a running service: a test controls, inspects and stops the service with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ..errors import QxError
from ..watcher.process_handle import ProcessHandle
from . import registry
from .records import INSTANCE, Job, JournalEntry

if TYPE_CHECKING:
    from qiskit_ibm_runtime import QiskitRuntimeService

_HOST = "127.0.0.1"
_TIMEOUT = 60.0  # seconds for a control request: the first ones wait for the engine to load
_KILL_AFTER = 5.0  # seconds from SIGTERM to SIGKILL


class ServiceError(QxError):
    """The embedded service could not be started, or refused a control request."""


class Service:
    """A running embedded service. It may be used in any thread, and by any number of processes at once.

    As a context manager the handle that ``start()`` returned stops the service at the end of the block; one that was
    found does not, as other programs may use the service. Otherwise the service runs until ``stop()``, even after the
    process that started it has ended.

    Attributes:
        pid: Its process.
        port: Its port on 127.0.0.1.
        url: Its address.
    """

    def __init__(self, pid: int, port: int, *, output: int | None = None, stops: bool = False) -> None:
        """Connect to a service.

        Args:
            pid: Its process, which must be running.
            port: Its port.
            output: A descriptor on which the process writes why its engine could not be loaded. The handle closes it.
            stops: Whether the end of a ``with`` block stops it.
        """
        self.pid = pid
        self.port = port
        self.url = f"http://{_HOST}:{port}"
        self._process = ProcessHandle(pid)
        self._output = output
        self._stops = stops
        self._release = weakref.finalize(self, _close, self._process, output)

    def __repr__(self) -> str:
        return f"<Service pid {self.pid} at {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stops:
            self.stop()

    def service(
        self,
        token: str = "local-key",  # noqa: S107 - any key will do
        instance: str | None = INSTANCE,
        *,
        tls: bool = False,
    ) -> QiskitRuntimeService:
        """Connect Qiskit's client.

        The first call in a process imports ``qiskit_ibm_runtime``, which takes about two seconds. ``NO_PROXY`` in this
        process's environment is extended permanently, see ``client.connect``.

        Args:
            token: The client's API key. Every key is accepted, unless ``auth`` says otherwise.
            instance: The name of the instance to use, one of those that the service was started with. None: all.
            tls: Whether it connects over TLS. Then ``REQUESTS_CA_BUNDLE`` must name a file with ``authority()`` in it.

        Returns:
            The service object, which works like one of the real service.
        """
        from .client import connect

        self.health()
        return connect(self.port, token, instance=instance, tls=tls)

    def health(self) -> None:
        """Wait until the service has loaded its engine, and answers without delay.

        Raises:
            ServiceError: The engine could not be loaded; the message has the reason.
        """
        self._call("health")

    def authority(self) -> str:
        """The certificate of its certificate authority, in PEM form. Its port speaks TLS as well as plain HTTP."""
        made: str = self._call("authority")
        return made

    # Requests

    def cursor(self) -> int:
        """The ``seq`` of the latest request, 0 if there was none; for use as ``after``."""
        seq: int = self._call("cursor")
        return seq

    def journal(self, after: int = 0, method: str | None = None, path: str | None = None) -> list[JournalEntry]:
        """The requests that have arrived, oldest first.

        Args:
            after: Only those with a higher ``seq``.
            method: Only this HTTP method.
            path: Only paths that match this ``fnmatch`` pattern; a ``*`` spans slashes too.
        """
        return _entries(self._call("journal", after=after, method=method, path=path))

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
        """Wait until requests have arrived; those that arrived before the call count.

        Args:
            method: HTTP method, None for any.
            path: ``fnmatch`` pattern of the path, None for any.
            count: How many.
            after: Count only those with a higher ``seq``.
            timeout: Seconds.
            answered: Also wait until they have been answered, or their connection dropped.

        Returns:
            All matching entries, at least ``count``.

        Raises:
            TimeoutError: They did not arrive in time.
        """
        reply = self._call(
            "wait-for", timeout=timeout, method=method, path=path, count=count, after=after, answered=answered
        )
        entries = _entries(reply["entries"])
        if not reply["complete"]:
            raise TimeoutError(f"{len(entries)} of {count} requests {method} {path} within {timeout} s")
        return entries

    # Jobs

    def jobs(self) -> list[Job]:
        """Every job, oldest first."""
        return [Job(**job) for job in self._call("jobs", ids=None)]

    def job(self, id: str) -> Job:  # noqa: A002 - the field's name for it
        """One job.

        Raises:
            KeyError: There is no such job.
        """
        found = self._call("jobs", ids=[id])
        if not found:
            raise KeyError(id)
        return Job(**found[0])

    def wait_job(self, id: str, *statuses: str, timeout: float = 60.0) -> Job:  # noqa: A002
        """Wait until a job has one of the statuses.

        Args:
            id: The job's id.
            statuses: Queued, Running, Completed, Failed, Cancelled. None given: any of the last three.
            timeout: Seconds.

        Returns:
            The job.

        Raises:
            TimeoutError: It did not get there in time.
            ServiceError: There is no such job.
        """
        reply = self._call("wait-job", timeout=timeout, job_id=id, statuses=statuses)
        job = Job(**reply["job"])
        if not reply["complete"]:
            raise TimeoutError(f"job {id} is {job.status} after {timeout} s, not {' or '.join(statuses) or 'final'}")
        return job

    def wait_idle(self, timeout: float = 60.0) -> list[Job]:
        """Wait until every job is final.

        Returns:
            All jobs.

        Raises:
            TimeoutError: Some job is not final in time.
        """
        reply = self._call("wait-idle", timeout=timeout)
        jobs = [Job(**job) for job in reply["jobs"]]
        if not reply["complete"]:
            raise TimeoutError(f"{sum(not job.is_final for job in jobs)} jobs are not final after {timeout} s")
        return jobs

    # What is to happen

    def scenario(self, scenario: dict[str, Any]) -> None:
        """Install a scenario in localqpu's JSON form: ``http_faults``, ``next_jobs``, ``queue``, ``backends``, ...

        A delay in phase ``before`` precedes the handling of the request; one in phase ``after`` precedes its answer.

        Raises:
            ServiceError: The scenario is malformed, or names an unknown backend.
        """
        self._call("scenario", scenario=scenario)

    def hold(self, where: Literal["queued", "running"] | None, cancel_lag: float | None = 0.0) -> None:
        """Hold jobs in a state, or release them. Each call sets both.

        Args:
            where: ``"queued"``: no job leaves the queue. ``"running"``: jobs start running, and never end by
                themselves. None: jobs end normally, those held until now too.
            cancel_lag: Seconds from a cancel's answer to its effect. None: it is accepted without effect, as at IBM
                when it is too late.
        """
        self._call("hold", where=where, cancel_lag=cancel_lag)

    def tell(
        self,
        *,
        queue_position: int | None = None,
        starts_in: float | None = None,
        qpu_seconds_estimated: float | None = None,
        qpu_seconds: float | None = 0.0,
    ) -> None:
        """Set what the service reports of a job's place in the queue and its cost. Each call sets all four.

        Args:
            queue_position: The place of a queued job, 1 for the next. None: not reported, as mostly at IBM.
            starts_in: Seconds until a queued job is expected to start, or None.
            qpu_seconds_estimated: QPU seconds that a job is expected to take, instead of those of the rule of
                ``charge``, or None.
            qpu_seconds: QPU seconds that a job which has run is charged, besides those of the rule. None: the charge
                stays pending.
        """
        self._call(
            "tell",
            queue_position=queue_position,
            starts_in=starts_in,
            qpu_seconds_estimated=qpu_seconds_estimated,
            qpu_seconds=qpu_seconds,
        )

    def charge(
        self,
        *,
        fixed: float = 0.0,
        per_shot: float = 0.0,
        estimate: float | None = 1.0,
        speed: float | None = None,
        pending: float | None = 0.0,
    ) -> None:
        """Set what jobs cost. A job is charged the QPU time that it has taken by its end, whatever ends it.

        One that takes more than its maximum execution time is ended there, as at IBM: it is cancelled with the code
        1305. The time of all jobs of an instance counts against its usage limit (``usage`` in ``scenario``), at which
        queued jobs stay in the queue. Each call sets everything.

        Args:
            fixed: QPU seconds that each job takes that is submitted from now on.
            per_shot: QPU seconds that it takes for each shot besides.
            estimate: The service's estimate, as a multiple of that. None: it gives none.
            speed: QPU seconds that pass per second in a running job. None: none pass until ``spend`` is called, and
                those that the job still needs pass at its end, at once.
            pending: Seconds after a job's end for which its charge is pending. None: for ever.

        Raises:
            ServiceError: One of them is below 0.
        """
        self._call("charge", fixed=fixed, per_shot=per_shot, estimate=estimate, speed=speed, pending=pending)

    def spend(self, seconds: float, *ids: str) -> None:
        """Let QPU time pass in running jobs, held ones too, which it ends at their maximum execution time.

        Args:
            seconds: How much.
            ids: In which jobs; none given: in all that run.
        """
        self._call("spend", seconds=seconds, ids=ids)

    def auth(self, *, reject_tokens: bool) -> None:
        """Refuse to issue access tokens, as for a revoked API key, or issue them again."""
        self._call("auth", reject_tokens=reject_tokens)

    def expire_tokens(self) -> None:
        """Answer 401 to every access token issued so far, until a reset. New tokens are valid."""
        self._call("expire-tokens")

    def token_lifetime(self, seconds: int) -> None:
        """Set the lifetime of the access tokens that are issued from now on."""
        self._call("token-lifetime", seconds=seconds)

    def reset(self) -> None:
        """Forget jobs, sessions, scenario, holds and journal. Clients stay connected, and their tokens are valid."""
        self._call("reset")

    def stop(self) -> None:
        """Stop the service and wait for its end. Does nothing if it has ended already."""
        if not self._release.alive:
            return
        for signum, timeout in ((signal.SIGTERM, _KILL_AFTER), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                self._process.send(signum)
            if self._process.ends_within(timeout):
                break
        self._process.reap()
        registry.forget(self.pid)
        self._release()

    def _call(self, name: str, /, *, timeout: float | None = None, **arguments: object) -> Any:
        """Make a control request, on a connection of its own: that is safe in threads and after a fork."""
        if timeout is not None:
            arguments["timeout"] = timeout
        # The service itself ends a wait in time; here, only a service that hangs is given up.
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=_TIMEOUT + (timeout or 0.0))
        with contextlib.closing(connection):
            try:
                connection.request("POST", f"/_qx/{name}", json.dumps(arguments))
                response = connection.getresponse()
                answer = json.loads(response.read())
            except (ConnectionError, http.client.HTTPException) as error:
                raise ServiceError(f"{self!r} does not answer. {self._last_words()}".rstrip()) from error
        if response.status >= 400:
            raise ServiceError(answer["errors"][0]["message"])
        return answer

    def _last_words(self) -> str:
        """What the process wrote before it ended, or ""."""
        if self._output is None or not self._release.alive or not self._process.ends_within(1.0):
            return ""
        return os.read(self._output, 65536).decode(errors="replace").strip()


def _entries(entries: list[dict[str, Any]]) -> list[JournalEntry]:
    return [JournalEntry(**entry) for entry in entries]


def _close(process: ProcessHandle, output: int | None) -> None:
    process.close()
    if output is not None:
        os.close(output)
