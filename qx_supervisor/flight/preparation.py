"""What a run does before its POST: the target, the account, the key, the circuits and the primitive."""

from __future__ import annotations

import dataclasses
import functools
import logging
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from .. import resume, service, threads
from ..backoff import Backoff
from ..errors import Stage, SubmitError, WatcherError
from ..link import CredentialsSource, Guarded, link
from ..reap import reap_in_background
from ..request import Request, check_tags
from ..result import RunResult
from ..settings import sweep_window
from ..tags import driver_of, driver_tag, key_tag, run_tag
from ..watcher import protocol
from . import machine as m
from .core import Core, Stopped
from .submission import Submission

logger = logging.getLogger("qx_supervisor")

T = TypeVar("T")


def prepare_and_submit(core: Core, submission: Submission) -> RunResult | str:
    """Do what comes before the POST, and the POST.

    Returns:
        The tag of the driver that has submitted the job; of a local backend, the result.
    """
    request = core.request
    core.stop_if_wished()
    core.say("backend", "connecting")

    def despite_outages(stage: Stage, work: Callable[[], T]) -> T:
        return _despite_outages(core, submission, stage, work)

    target = core.target = despite_outages(
        "backend", lambda: service.find_target(request.backend, request.service, request.primitive, request.width)
    )
    core.say("backend", "chosen", target.name)
    if not target.is_local:
        account = service.account_name(target.client)
        source = functools.partial(service.credentials, target.client)
        if not link.is_armed(account):
            submission.armed = threads.announcing.begin(lambda: link.arm(account, source))
        if request.key is not None:
            earlier = _take_up(core, submission, request.key, account, source)
            if earlier is not None:
                return earlier
    pubs = request.pubs
    foreign = despite_outages("backend", lambda: service.not_isa(pubs, target))
    if foreign:
        core.say("transpile", "transpiling", f"for {target.name}")
        level, seed = request.optimization_level, request.seed_transpiler
        pubs = despite_outages(
            "transpile", lambda: service.to_isa(request.pubs, foreign, target, request.kind, level=level, seed=seed)
        )
    if not target.is_local:
        service.check_angles(pubs, target)
    primitive = request.primitive
    if primitive is None:
        primitive = service.make_primitive(request.kind, target, request.options, request.shots)
    check_tags((*service.tags_of(primitive), *request.tags))
    core.stop_if_wished()
    if target.is_local:
        return _run_locally(core, primitive, pubs)
    core.say("submit", "preparing")
    submission.announce(account, source)  # while the client prepares
    core.stop_if_wished()  # the end may have been wished just before
    try:
        job = despite_outages(
            "submit",
            lambda: service.submit(primitive, pubs, request.kind, request.shots, submission, backend=target.backend),
        )
        if core.job_id is not None:
            core.decoders = service.decoders_of(job)
    except Exception:
        if core.job_id is None:
            raise
        logger.debug("the job %s is submitted, and the client failed then", core.job_id, exc_info=True)
    finally:
        reap_in_background(target.client)  # not before: it would compete for the interpreter
    if core.job_id is None:
        raise SubmitError(
            "submit",
            f"{type(primitive).__name__} submitted no job by Qiskit's client, so none is guarded or waited for; if "
            "it submitted one in another way, look after that one yourself, or run it with a primitive of Qiskit's",
        )
    _forget_circuits(core)
    return driver_tag()


def _despite_outages(core: Core, submission: Submission, stage: Stage, work: Callable[[], T]) -> T:
    """Do what comes before the POST, again and again while nobody answers: nothing is lost by that."""
    noticed: list[Exception] = []

    def once() -> T:
        nonlocal noticed
        with service.noticing() as noticed:
            return work()

    def passing(error: Exception) -> Exception:
        if core.machine.phase != "preparing" or core.job_id is not None or isinstance(error, WatcherError):
            return error
        return service.outage(error, noticed) or error

    backoff = submission.backoff = Backoff(stage, None, core.say)
    return backoff.until_answered(once, core.sleep, passing)


def _run_locally(core: Core, primitive: Any, pubs: list[Any]) -> RunResult:
    core.say("submit", "simulating", "on this machine, unguarded")
    job = service.run_local(primitive, pubs, core.request.kind, core.request.shots)
    result = RunResult(job.result(), job.job_id(), core.place.name, is_list=core.request.is_list)
    core.say("results", "done")
    return result


def _forget_circuits(core: Core) -> None:
    """Let go of the circuits: a thousand jobs in flight don't need them."""
    core.request = dataclasses.replace(core.request, pubs=[], primitive=None, options=None, backend=None, service=None)


def _take_up(core: Core, submission: Submission, key: str, account: str, source: CredentialsSource) -> str | None:
    """Take the lease on a key, and the job that was submitted with it before, if there is one to go on with.

    Returns:
        The tag of the driver that submitted it, or None.
    """
    from ..fingerprint import fingerprint

    core.say("submit", "asking for the key", key)
    mark = fingerprint(core.request)
    lease = protocol.Lease(key, mark, core.request.grace, uuid.uuid4().hex)
    tag = run_tag(core.run_id, mark)
    guarded = Guarded(core.run_id, account, tag, submission.hear, driver_tag(), lease=lease)
    near = service.instances_near(core.place)

    def claim() -> protocol.LeaseAnswer:
        armed, submission.armed = submission.armed, None
        if armed is not None:
            armed.result()
        return resume.claim(guarded, source, near, core.say, core.sleep)

    found = core.despite_token_outages(claim)
    # What the key had before is this run's now; the watcher knows.
    core.run_id, core.tag = guarded.run, guarded.tag
    core.tags = (*core.request.tags, core.tag, driver_tag(), key_tag(key))
    core.keyed, core.is_protected = guarded, True
    search = resume.Search(core.there, guarded, found, sweep_window(), core.say, core.sleep)
    try:
        if core.handle(m.Granted(search.is_in_doubt)):
            raise Stopped
        job = search.job()
    except BaseException:
        core.handle(m.SearchFailed())
        raise
    if job is None:
        core.posts_before = search.outcomes
        core.handle(m.NoneLeft())
        return None
    core.is_taken_up = True
    core.handle(m.TakenUp(str(job.reply["id"]), found["answered"]))
    core.say("submit", "taken up again", f"submitted before with the key {key}")
    core.decoders = service.decoders_for(job.reply)
    _forget_circuits(core)
    reap_in_background(core.place.client)
    return driver_of(job) or driver_tag()


def may_be_remote(request: Request) -> bool:
    """Whether the target may be IBM Quantum's: a first guess, before `qiskit_ibm_runtime` is imported."""
    where = getattr(request.primitive, "_mode", None) or getattr(request.primitive, "_backend", None) or request.backend
    if type(where).__module__ in ("qiskit_ibm_runtime.session", "qiskit_ibm_runtime.batch"):
        where = where._backend  # noqa: SLF001 - no public name gives the object
    if where is None or isinstance(where, str):
        return not getattr(request.service, "is_local", False)
    module = type(where).__module__
    return module.startswith("qiskit_ibm_runtime.") and not module.startswith("qiskit_ibm_runtime.fake_provider")
