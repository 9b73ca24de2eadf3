"""What `attach` does before its job is polled: finding it, making sure that it is nobody else's, guarding it."""

from __future__ import annotations

import functools

from .. import holders, service
from ..backoff import REFUSED_SECONDS
from ..poller import ask
from ..reap import reap_in_background
from ..tags import driver_of, driver_tag
from ..watcher import host_identity, ledger, remote
from . import machine as m
from .core import Core, Stopped
from .outages import despite_outages
from .submission import Submission


def attach(core: Core, submission: Submission) -> str:
    """Find the job, and have the watcher guard it.

    Returns:
        The tag of the driver that has submitted it.
    """
    request = core.request
    core.stop_if_wished()
    core.say("backend", "connecting")
    core.target, state = despite_outages(
        core,
        submission,
        "backend",
        lambda: service.find_job(request.attached, request.service, request.instance, ask),
        believes=REFUSED_SECONDS,
    )
    core.program = _program(state)
    core.is_taken_up = True
    core.decoders = service.decoders_for(state.reply)
    client = core.place.client
    if state.is_final:
        _take(core, is_guarded=False)
    else:
        with holders.taking(request.attached, state, _row(core)) as take_shared:
            submission.announce(service.account_name(client), functools.partial(service.credentials, client))
            submission.await_acknowledgement()
            take_shared()
            _take(core, is_guarded=True)
    core.say("poll", "attached", f"submitted before, to {core.place.name}")
    reap_in_background(client)
    return driver_of(state) or driver_tag()


def _row(core: Core) -> ledger.Row:
    """The run, as this process writes it to the local ledger: no watcher knows of it yet."""
    me = host_identity.this_process()
    endpoint, instance = service.address(core.place.client)
    return ledger.Row(
        run=core.run_id,
        host_identity=me.host_identity,
        pid=me.pid,
        start_ticks=me.start_ticks,
        tag=core.tag,
        endpoint=endpoint,
        instance=instance,
        jobs={core.request.attached: ""},
        answered=True,
        **core.about()._asdict(),
    )


def _take(core: Core, *, is_guarded: bool) -> None:
    if m.Stop() in core.handle(m.Attached(core.request.attached, is_guarded)):
        raise Stopped


def _program(state: remote.JobState) -> str:
    """What executes it: "sampler", "estimator", "executor", or another of IBM Quantum's programs."""
    program = state.reply.get("program")
    return str(program.get("id") or "") if isinstance(program, dict) else ""
