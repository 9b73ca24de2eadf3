"""The POST of a job: whoever guards it is asked right before it leaves, and told right after."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from .. import forks
from ..watcher import remote
from . import client_warnings, internals, programs
from .failures import api_error, is_ambiguous, is_late, unsent
from .instances import at_its_instance, noting, submitting_to


class Submission(Protocol):
    """What a run wants to know of, and say to, its own submission."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that are put on the job."""

    def posting_at(self, client: Any) -> None:
        """Called first, with the official REST client by which the POST will leave: its instance gets the job."""

    def before_post(self, asked: int | None) -> int | None:
        """Called before the POST leaves; what it raises keeps the POST from leaving.

        Args:
            asked: The maximum execution time that the primitive asks for, in seconds.

        Returns:
            The one that is posted.
        """

    def before_retry(self) -> None:
        """Called before the client sends once more a POST that may have left; may raise likewise."""

    def posted(self, job_id: str) -> None:
        """Called with the new job's id, before anything else can go wrong."""

    def after_post(self, *, ambiguous: bool) -> None:
        """Called at the end of it all. Ambiguous: it failed, and may have made a job all the same."""


class PatientSubmission(Submission):
    """A submission that sees to failures itself. Of any other, the client's errors are raised as they are."""

    def after_post(self, *, ambiguous: bool) -> None:
        """Do nothing: whoever is patient has seen how it went."""

    def advised(self, message: str) -> None:
        """Called with what the client warns of before the POST."""
        raise NotImplementedError

    def put_off(self, status: int, seconds: float | None) -> None:
        """Called after an answer that puts the POST off; returns when it may leave again, or raises."""
        raise NotImplementedError

    def unanswered(self, error: Exception) -> str | None:
        """Called after a POST that came to no job's id.

        Returns:
            The id of the job that it has made all the same; None to send it again.

        Raises:
            Exception: The error itself, where that is the end.
        """
        raise NotImplementedError


class Posting(NamedTuple):
    """A job that the client is about to submit.

    Attributes:
        backend: The backend's name, or "".
        program: What it is to the service: "sampler", "estimator", "executor".
        tags: Its own tags.
        session_id: Its session, or "".
    """

    backend: str
    program: str
    tags: tuple[str, ...]
    session_id: str


PUT_OFF = (423, 425, 429)
"""Answers by which no job was made, nor refused for good: the backend is reserved for others, it is too early, or there
were too many."""

TAGS = 8
"""The most that IBM Quantum allows a job."""

noticed: ContextVar[list[Exception] | None] = ContextVar("qx_noticed", default=None)
"""The failures of the client's requests, in a context that collects them and retries by itself: see `outages`."""

_submission: ContextVar[Submission | None] = ContextVar("qx_submission", default=None)
_sessions: dict[str, tuple[Submission, ...]] = {}
"""Whom `watch_session` named for each session: blocks that guard one may be nested, or in several threads."""
_submission_of_all: Callable[[Any, Posting, Submission | None], Submission] | None = None

hooking = forks.make_lock()
"""Held while methods of the client's are replaced."""

_watching = forks.make_lock()
"""Held while `_sessions` changes."""

HOOKED = "__qx_hooked__"
"""The attribute that marks a method of the client's as replaced."""


def submit(
    primitive: Any, inputs: list[Any], kind: str, shots: int | None, submission: Submission, *, backend: Any
) -> Any:
    """Run a primitive on a backend of the service, with the submission's tags put on its POST.

    Returns:
        Qiskit's job.
    """
    install_hooks()
    token = _submission.set(submission)
    try:
        with submitting_to(backend):
            return programs.call(primitive, inputs, kind, shots)
    finally:
        _submission.reset(token)


def watch_session(session_id: str, submission: Submission) -> None:
    """Have the client ask `submission` too about every POST to a session that is none of `submit`'s."""
    install_hooks()
    with _watching:
        _sessions[session_id] = (*_sessions.get(session_id, ()), submission)


def unwatch_session(session_id: str, submission: Submission) -> None:
    """The opposite of `watch_session`; it may have been called before."""
    with _watching:
        left = tuple(each for each in _sessions.get(session_id, ()) if each is not submission)
        if left:
            _sessions[session_id] = left
        else:
            _sessions.pop(session_id, None)


class _All:
    """Several submissions as one: each is told of the POST, and its tags are put on the job."""

    def __init__(self, submissions: tuple[Submission, ...]) -> None:
        self._submissions = submissions
        self.tags = tuple(tag for each in submissions for tag in each.tags)

    def posting_at(self, client: Any) -> None:
        for each in self._submissions:
            each.posting_at(client)

    def before_post(self, asked: int | None) -> int | None:
        for each in self._submissions:
            asked = each.before_post(asked)
        return asked

    def before_retry(self) -> None:
        for each in self._submissions:
            each.before_retry()

    def posted(self, job_id: str) -> None:
        for each in self._submissions:
            each.posted(job_id)

    def after_post(self, *, ambiguous: bool) -> None:
        for each in self._submissions:
            each.after_post(ambiguous=ambiguous)


def _watcher_of(session_id: str) -> Submission | None:
    """Whom `watch_session` named for a session, all of them as one."""
    named = _sessions.get(session_id, ())
    if len(named) > 1:
        return _All(named)
    return named[0] if named else None


def ask_about_all(submission_of: Callable[[Any, Posting, Submission | None], Submission]) -> None:
    """Have the client ask about every POST that is none of `submit`'s.

    Args:
        submission_of: Gives whom to ask, for a client, a job, and whom `watch_session` named for its session.
    """
    global _submission_of_all  # noqa: PLW0603 - one per process
    _submission_of_all = submission_of


def install_hooks() -> None:
    """Have the client ask the submission that is under way in this thread, if there is one, about its POST.

    Tags are put on here and never written to the user's primitive, whose options may be shared by threads; and the
    job's id is known here before anything else of the client can fail.
    """
    client, retry = internals.find("RuntimeClient"), internals.find("PostForcelistRetry")
    with hooking:  # once per class: `importlib.reload` makes new ones
        if not is_hooked(client.program_run):
            client.program_run = _asking(noting(client.program_run))
        if not is_hooked(retry.increment):
            retry.increment = _asking_before_retry(retry.increment)
        for name in ("create_session", "session_details"):
            if not is_hooked(getattr(client, name)):
                setattr(client, name, _hooked(noting(getattr(client, name))))
    hook_services()


def hook_services() -> None:
    """Have services submit to the instance that was asked for, and no warning of theirs end a submission of ours.

    For a driver that is adopted the client's classes are hooked while they are being loaded. The service's may not be
    there yet then, but it is as soon as a service makes its first client.
    """
    module = internals.loaded_service_module()
    if module is not None:
        kind = module.QiskitRuntimeService
        with hooking:
            client_warnings.keep_from_ending(_advised)
            if not is_hooked(kind._run):
                kind._run = _hooked(at_its_instance(kind._run))


def _advised(message: str) -> bool:
    submission = _submission.get()
    # A run of ours; whoever is asked about the POST alone is not known yet.
    if not isinstance(submission, PatientSubmission):
        return False
    submission.advised(message)
    return True


def is_hooked(method: Callable[..., Any]) -> bool:
    """Whether a method of the client's has been replaced."""
    return hasattr(method, HOOKED)


def _hooked(method: Callable[..., Any]) -> Callable[..., Any]:
    setattr(method, HOOKED, True)
    return method


def _asking(program_run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(program_run)
    def asking(client: Any, *args: Any, **kwargs: Any) -> Any:
        submission = _submission.get()
        if submission is not None:
            return _post(submission, client, functools.partial(program_run, client, *args), kwargs)
        submission = _watcher_of(kwargs.get("session_id") or "")
        if _submission_of_all is not None:
            internals.check()  # not sooner: where that was installed, the client was being loaded
            internals.check_connected(client)
            posting = Posting(
                backend=str(kwargs.get("backend_name") or ""),
                program=str(kwargs.get("program_id") or ""),
                tags=tuple(kwargs.get("job_tags") or ()),
                session_id=kwargs.get("session_id") or "",
            )
            submission = _submission_of_all(client, posting, submission)
        if submission is None:
            return program_run(client, *args, **kwargs)
        token = _submission.set(submission)
        try:
            return _post(submission, client, functools.partial(program_run, client, *args), kwargs)
        finally:
            _submission.reset(token)

    return _hooked(asking)


def _post(submission: Submission, client: Any, program_run: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    submission.posting_at(client)
    tags = [*(kwargs.get("job_tags") or []), *submission.tags]
    if len(tags) <= TAGS:  # a job of plain Qiskit's may have all eight; it is known by its session, or its id
        kwargs["job_tags"] = tags
    kwargs["max_execution_time"] = submission.before_post(kwargs.get("max_execution_time"))
    ambiguous = True
    try:
        while True:
            try:
                reply = program_run(**kwargs)
                job_id = str(reply["id"])
            except Exception as error:
                refusal = api_error(error)
                if not isinstance(submission, PatientSubmission):
                    ambiguous = is_ambiguous(error)
                    raise
                if refusal is not None and refusal.status_code in PUT_OFF:
                    submission.put_off(refusal.status_code, _retry_after(refusal))
                    continue
                found = submission.unanswered(error)
                if found is None:
                    continue
                reply, job_id = {"id": found, "backend": kwargs.get("backend_name")}, found
            submission.posted(job_id)
            ambiguous = False
            return reply
    finally:
        submission.after_post(ambiguous=ambiguous)


def _asking_before_retry(increment: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(increment)
    def asking(retry: Any, method: Any = None, url: Any = None, *args: Any, **kwargs: Any) -> Any:
        submission = _submission.get() if str(method).upper() == "POST" else None
        error = kwargs.get("error")
        may_have_left = not isinstance(error, Exception) or not unsent(error)
        if noticed.get() is not None and isinstance(error, Exception) and is_late(error):
            raise error  # half a minute was waited for it: the user is to hear of that before it is asked again
        if isinstance(submission, PatientSubmission) and error is not None and may_have_left:
            raise error  # sent again without a look, it may make a second job
        more = increment(retry, method, url, *args, **kwargs)  # raises where there is to be no other try
        if submission is not None and may_have_left:
            try:
                submission.before_retry()
            except BaseException:
                if (response := kwargs.get("response")) is not None:
                    response.drain_conn()  # as urllib3 does where it gives up: the connection is of use to others
                raise
        return more

    return _hooked(asking)


def _retry_after(error: BaseException) -> float | None:
    response = getattr(error.__cause__ or error.__context__, "response", None)
    return remote.retry_after(response.headers.get("Retry-After")) if response is not None else None
