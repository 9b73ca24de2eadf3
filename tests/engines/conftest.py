"""The program that a module's tests share, and the check that they leave nothing but that behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from testkit import drivers, zygote
from testkit.leaks import children, descriptors, is_left
from testkit.processes import DEADLINE, wait_for_end
from testkit.watchers import titles

from qx_supervisor import local
from qx_supervisor.watcher.host_identity import is_running

from .host import Host


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine starts processes, each of which imports Qiskit, and a library submits a dozen jobs."""
    for module in (drivers, zygote):
        monkeypatch.setattr(module, "DEADLINE", 5 * DEADLINE)


@pytest.fixture(scope="module")
def shared_host(
    request: pytest.FixtureRequest, running_service: local.Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """The module's `PROGRAM`, running."""
    made = Host(running_service, tmp_path_factory.mktemp("host"), request.module.PROGRAM)
    yield made
    made.end()


@pytest.fixture
def host(ibm: local.Service, shared_host: Host) -> Host:
    """The same, with the service as new."""
    shared_host.begin()
    return shared_host


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, state: Path) -> Iterator[None]:
    """As for all tests, but the processes of a module's host stay for the next test."""
    host = request.getfixturevalue("shared_host") if "host" in request.fixturenames else None
    open_before = descriptors()
    before = children()
    yield
    for watcher, title in list(titles()):
        is_over = not is_running(*astuple(title.driver))
        if title.is_in(state) or (host and title.is_in(host.state) and is_over):
            wait_for_end(watcher)
    # In this order: an engine may start a process at any moment, which is then among the host's a moment later.
    now = children()
    kept = before | (set(host.family()) if host else set())
    left = [process for process in now - kept if is_left(process)]
    assert not left, f"processes left behind: {left}"
    assert descriptors() <= open_before, "descriptors left behind"
    assert not list(Path("/tmp").glob(f"qx-*-{os.getpid()}*"))
