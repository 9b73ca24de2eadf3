"""The tags by which a job is found again: its run's own, its driver's, its key's."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable

from .watcher import remote

_driver_tag = (0, "")


def driver_tag() -> str:
    """The tag of all jobs of this process; a forked child is another driver."""
    global _driver_tag  # noqa: PLW0603 - one per process
    if _driver_tag[0] != os.getpid():
        _driver_tag = (os.getpid(), f"qxd-{uuid.uuid4().hex}")
    return _driver_tag[1]


def run_tag(run: str, fingerprint: str = "") -> str:
    """The tag that no other run's jobs have; with a key it tells what was submitted where no ledger does."""
    return f"qxs-{run}-{fingerprint}" if fingerprint else f"qxs-{run}"


def key_tag(key: str) -> str:
    """The tag of all jobs of a key. A key may be long, and is nobody else's business."""
    return f"qxk-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def tags_of(state: remote.JobState) -> list[str]:
    """The tags of a job."""
    tags = state.reply.get("tags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def fingerprint_in(tags: Iterable[str]) -> str:
    """What was submitted, by the tags of a job with a key; "" if they don't tell."""
    found = [tag.rpartition("-")[2] for tag in tags if tag.startswith("qxs-") and tag.count("-") == 2]
    return found[0] if found else ""


def driver_of(state: remote.JobState) -> str:
    """The tag of the driver that submitted a job, or ""."""
    return next((tag for tag in tags_of(state) if tag.startswith("qxd-")), "")
