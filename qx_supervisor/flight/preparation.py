"""What a run does before its POST: the target, the account, the key, the circuits and the primitive."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import uuid
from collections.abc import Callable
from typing import Any

from .. import resume, service, threads
from ..errors import Stage, SubmitError
from ..link import CredentialsSource, Guarded, link
from ..reap import reap_in_background
from ..request import Request, check_tags
from ..result import RunResult
from ..settings import sweep_window
from ..tags import driver_of, driver_tag, key_tag, run_tag
from ..watcher import protocol
from . import machine as m
from .core import Core, Stopped
from .outages import despite_outages
from .submission import Submission


def prepare_and_submit(core: Core, submission: Submission) -> RunResult | str:
    """Do what comes before the POST, and the POST.

    Returns:
        The tag of the driver that has submitted the job; of a local backend, the result.
    """
    request = core.request
    core.stop_if_wished()
    core.say("backend", "connecting")

    patiently = functools.partial(despite_outages, core, submission)
    target = core.target = patiently("backend", core.find_target)
    core.say("backend", "chosen", f"{target.name} of the embedded service" if target.is_embedded else target.name)
    if not target.is_local:
        account = service.account_name(target.client)
        source = functools.partial(service.credentials, target.client)
        if not link.is_armed(account):
            submission.armed = threads.announcing.begin(lambda: link.arm(account, source))
        if request.key is not None:
            earlier = _take_up(core, submission, request.key, account, source)
            if earlier is not None:
                return earlier
    pubs = _transpiled(core, patiently)
    if not target.is_local and request.has_pubs:
        service.check_angles(pubs, target)
        if core.together is not None:
            target = core.target = patiently("submit", functools.partial(core.together.in_batch, target))
            core.stop_if_wished()
    primitive = request.primitive
    if primitive is None:
        primitive = service.make_primitive(request.kind, target, request.options, request.shots)
    core.user_tags = check_tags((*service.tags_of(primitive), *request.tags))
    core.stop_if_wished()
    if target.is_local:
        return _run_locally(core, primitive, pubs)
    core.say("submit", "preparing")
    submission.announce(account, source)  # while the client prepares
    core.stop_if_wished()  # the end may have been wished just before
    try:
        job = patiently(
            "submit",
            lambda: service.submit(primitive, pubs, request.kind, request.shots, submission, backend=target.backend),
        )
        if core.job_id is not None:
            core.decoders = service.decoders_of(job)
    except Exception:
        if core.job_id is None:
            raise
        core.log.debug("the job %s is submitted, and the client failed then", core.job_id, exc_info=True)
    finally:
        reap_in_background(target.client)  # not before: it would compete for the interpreter
    if submission.second is not None:
        raise submission.second
    if core.job_id is None:
        raise SubmitError(
            "submit",
            f"{type(primitive).__name__} submitted no job by Qiskit's client, so none is guarded or waited for; if "
            "it submitted one in another way, look after that one yourself, or run it with a primitive of Qiskit's",
        )
    _forget_circuits(core)
    return driver_tag()


def _transpiled(core: Core, patiently: Callable[[Stage, Callable[[], Any]], Any]) -> list[Any]:
    """The PUBs as the target can execute them."""
    request, target = core.request, core.place
    if not request.has_pubs:
        return request.pubs
    how = service.Transpiling(
        request.optimization_level,
        request.seed_transpiler,
        request.initial_layout,
        request.pass_manager,
        service.takes_few_rotations(target, request.kind, request.primitive, request.options),
        service.isa_circuits_of(request.primitive),
    )
    foreign: list[int] = patiently(
        "backend", lambda: service.not_isa(request.pubs, target, few_rotations=how.few_rotations)
    )
    if how.is_wanted:
        foreign = list(range(len(request.pubs)))
    if not foreign:
        return request.pubs
    core.say("transpile", "transpiling", f"for {target.name}")
    found: list[Any] = patiently("transpile", lambda: service.to_isa(request.pubs, foreign, target, request.kind, how))
    return found


def _run_locally(core: Core, primitive: Any, pubs: list[Any]) -> RunResult:
    core.say("submit", "simulating", "on this machine, unguarded")
    # Parts take turns: a simulator of the user's need not be safe to use from several threads.
    with contextlib.nullcontext() if core.together is None else core.together.turn:
        core.stop_if_wished()
        job = service.programs.call(primitive, pubs, core.request.kind, core.request.shots)
        found = job.result()
    core.say("results", "done")
    seen = core.stopwatch.timeline
    return RunResult(found, job.job_id(), core.place.name, is_list=core.request.is_list, seen=seen)


def _forget_circuits(core: Core) -> None:
    """Let go of the circuits: a thousand jobs in flight don't need them."""
    core.request = dataclasses.replace(
        core.request, pubs=[], primitive=None, options=None, backend=None, service=None, pass_manager=None
    )


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
    guarded = Guarded(core.run_id, account, tag, submission.hear, driver_tag(), lease=lease, about=core.about())
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
    where = service.mode_of(request.primitive) or request.backend
    if service.is_a(where, "Session", "Batch"):
        where = service.backend_of(where)
    if where is None or isinstance(where, str):
        return not service.is_a(request.service, "QiskitRuntimeLocalService")
    module = type(where).__module__
    return module.startswith("qiskit_ibm_runtime.") and not module.startswith("qiskit_ibm_runtime.fake_provider")
