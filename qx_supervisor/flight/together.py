"""What the parts of a split run have together: the target that one of them has found, and the batch that holds them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
import uuid

from .. import service
from ..about import of_this_program
from ..errors import ConfigError, WatcherError
from ..link import Guarded, link
from ..poller import ask
from ..request import Request
from ..tags import run_tag
from ..watcher import remote
from ..watcher.facts import End

logger = logging.getLogger("qx_supervisor")

HAND_OVER_SECONDS = 1.0
"""How long the watcher may take to take over the closing of the batch."""


class Together:
    """What the parts of a run have together. Safe to use from any thread.

    Args:
        request: The whole run.

    Attributes:
        turn: Held by the part that runs on this machine, one at a time.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._lock = threading.Lock()
        self._target: service.Target | None = None
        self._inside: service.Target | None = None
        self._guarded: Guarded | None = None
        self._is_closed = False
        self.turn = threading.Lock()

    def target(self) -> service.Target:
        """The target of all parts.

        Raises:
            RunError: There is none.
        """
        with self._lock:
            if self._target is None:
                self._target = find_target(self._request)
                self._request = dataclasses.replace(self._request, pubs=[])  # the parts have the circuits
            return self._target

    def in_batch(self, target: service.Target) -> service.Target:
        """The target inside a batch, which the first part to come opens; inside the user's own session or batch as is.

        Raises:
            ConfigError: The parts can't be put in a batch.
            WatcherError: No watcher can see to its end.
        """
        if target.in_session:
            return target
        if self._request.primitive is not None:
            raise ConfigError(
                "config",
                f"split={self._request.split} submits its jobs in a batch, and the primitive object was made for a "
                "backend; make it with mode=Batch(backend), or give its options to options=",
            )
        with self._lock:
            if self._is_closed:  # the run is over, and the part is about to see that
                return target
            if self._inside is None:
                inside = service.in_batch(target)
                self._guard(inside)
                self._inside = inside
            return self._inside

    def _guard(self, inside: service.Target) -> None:
        """Have the watcher close the batch, should this process die. Its jobs are guarded by themselves."""
        session = inside.mode.session_id
        if not session:  # a simulator of the service's has none
            return
        run = uuid.uuid4().hex
        self._guarded = Guarded(
            run,
            service.account_name(inside.client),
            run_tag(run),
            report=lambda _: None,
            session=session,
            opened=True,
            about=of_this_program(self._request.label)._replace(backend=inside.name),
        )
        try:
            link.announce(self._guarded, functools.partial(service.credentials, inside.client))
        except WatcherError as error:
            if self._request.on_unprotected == "raise":
                link.stand_down(run)
                with contextlib.suppress(remote.RemoteError):
                    service.remote_of(inside.client).end_session(session)
                raise
            logger.warning("the batch %s is not protected: %s", session, error.reason)

    def close(self) -> None:
        """Close the batch: nothing more is submitted. What can't be asked of the service now is left to the watcher."""
        with self._lock:
            guarded, inside = self._guarded, self._inside
            self._guarded, self._is_closed = None, True
        if guarded is None or inside is None:
            return
        there = service.remote_of(inside.client)
        try:
            ask(there, functools.partial(there.end_session, guarded.session))
        except remote.RemoteError as error:
            if not link.hand_over(guarded.run, HAND_OVER_SECONDS, End("finished")):
                logger.warning("the batch %s could not be closed: %s", guarded.session, error)
            return
        link.stand_down(guarded.run, end=End("finished"))


def find_target(request: Request) -> service.Target:
    """Find the target that a call names.

    Raises:
        RunError: There is none.
    """
    return service.find_target(request.backend, request.service, request.primitive, request.width, request.instance)
