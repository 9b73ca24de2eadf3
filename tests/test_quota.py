"""What an instance has left of its QPU time: how it is read, how often, and who is told."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import pytest
from testkit.circuits import BACKEND, ones
from testkit.client import ASKS_FOR_THE_USAGE
from testkit.runs import Running

from qx_supervisor import local, quota, submit
from qx_supervisor.panel.notebook import as_html
from qx_supervisor.panel.terminal import block, table
from qx_supervisor.panel.view import View
from qx_supervisor.quota import Quota
from qx_supervisor.status import Status

USAGE = "/api/v1/instances/usage"
FOREVER = "2100-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("usage", "known", "left"),
    [
        ({}, Quota(), None),
        (
            {
                "usage_consumed_seconds": 12,
                "usage_limit_seconds": 60,
                "usage_allocation_seconds": 120,
                "usage_limit_reached": False,
                "usage_period": {"start_time": "2026-01-01T00:00:00Z", "end_time": FOREVER},
            },
            Quota(12.0, 60.0, 4102444800.0),
            48.0,
        ),
        ({"usage_consumed_seconds": 12, "usage_allocation_seconds": 120}, Quota(12.0, 120.0), 108.0),
        ({"usage_consumed_seconds": 130, "usage_limit_seconds": 120}, Quota(130.0, 120.0), 0.0),
        ({"usage_consumed_seconds": 12}, Quota(12.0), None),
        # All of the account's time is used up by its other instances.
        ({"usage_consumed_seconds": 1, "usage_limit_seconds": 2, "usage_limit_reached": True}, None, 0.0),
        ({"usage_consumed_seconds": "12", "usage_limit_seconds": True, "usage_period": "month"}, Quota(), None),
        ({"usage_limit_reached": "no", "usage_period": {"end_time": "soon"}}, Quota(), None),
    ],
)
def test_what_the_service_tells(usage: dict[str, Any], known: Quota | None, left: float | None) -> None:
    read = Quota.read(usage)
    assert read.left == left
    assert known is None or read == known


def test_when_it_is_low() -> None:
    assert [Quota(used, 600.0).is_low() for used in (0, 540, 541, 700)] == [False, False, True, True]
    assert [Quota(100.0, 600.0).is_low(wanted) for wanted in (None, 500, 501)] == [False, False, True]
    assert not Quota(100.0).is_low(1e6)
    assert Quota(is_used_up=True).is_low()


def test_in_words() -> None:
    period = time.strftime("%Y-%m-%d %H:%M", time.localtime(4102444800.0))
    told = Quota(570.0, 600.0, 4102444800.0)
    assert told.words() == f"570 s of 600 s are used, 30 s are left, its period ends at {period}"
    assert Quota(570.0, 600.0, 1.0).words() == "570 s of 600 s are used, 30 s are left"  # a period that is over
    assert Quota(12.3456, 3_600_000.0).words() == "12.3 s of 3600000 s are used, 3599988 s are left"
    assert Quota(570.0).words() == "570 s are used, and no limit is told"
    assert Quota().words() == told.used_up() == ""
    assert Quota(is_used_up=True).used_up().startswith("the instance has used up its time (see https://")


def test_what_is_known_of_an_instance_goes_with_it() -> None:
    class Api:
        def usage(self) -> dict[str, Any]:
            return {"usage_consumed_seconds": 1}

    api: Any = Api()
    assert quota.read(api) == quota.latest(api) == Quota(1.0)
    gone = weakref.ref(api)
    del api
    gc.collect()
    assert gone() is None
    assert not quota._known
    assert not quota._due


@pytest.fixture
def running(ibm: local.Service, service: Any) -> Running:
    return Running(service)


def test_the_panel_tells_it_where_it_is_low_and_asks_once_for_all_runs(
    ibm: local.Service, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request for any number of runs; Qiskit's client, since 0.44, makes one of its own at each submission."""
    ibm.scenario({"usage": {"limit_seconds": 600, "consumed_seconds": 560}})
    ibm.hold("queued")
    told = threading.Event()

    def look(status: Status) -> None:
        if status.quota is not None:
            told.set()

    runs = [running(panel="plain", on_status=look) for _ in range(3)]
    assert told.wait(60)
    ibm.hold(None)
    for each in runs:
        each.result(60)
    assert len(ibm.journal(path=USAGE)) == (len(runs) if ASKS_FOR_THE_USAGE else 0) + 1
    assert "quota: 560 s of 600 s are used, 40 s are left, its period ends at 2" in capsys.readouterr().err


def test_low_is_less_than_the_job_is_expected_to_take(
    ibm: local.Service, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "READ_AGAIN", 0.05)
    ibm.scenario({"usage": {"limit_seconds": 600, "consumed_seconds": 300}})
    ibm.hold("queued")
    ibm.charge(fixed=301.0)
    seen: dict[bool, threading.Event] = {True: threading.Event(), False: threading.Event()}

    def look(status: Status) -> None:
        if status.state == "queued":
            seen[status.quota is not None].set()

    held = submit(ones(), BACKEND, service=service, shots=16, poll_interval=0.1, panel="plain", on_status=look)
    assert seen[True].wait(60)
    assert held.status().quota == Quota(300.0, 600.0, held.status().quota.ends)
    seen[False].clear()
    ibm.scenario({"usage": {"limit_seconds": 600, "consumed_seconds": 0}})
    assert seen[False].wait(60)  # time has come back
    held.cancel()


def test_nobody_who_sees_no_panel_asks(ibm: local.Service, running: Running) -> None:
    running(panel=None).result(60)
    assert len(ibm.journal(path=USAGE)) == (1 if ASKS_FOR_THE_USAGE else 0)  # of Qiskit's client


def test_every_panel_shows_it() -> None:
    from rich.console import Console

    view = View()
    view.see(Status("poll", "queued", "d1", backend=BACKEND, quota=Quota(560.0, 600.0)))
    console = Console(width=120)
    for content in (block(view), table([view, view], 20)):
        with console.capture() as captured:
            console.print(content)
        assert "560 s of 600 s are used, 40 s are left" in captured.get()
    assert "560 s of 600 s are used, 40 s are left" in as_html(view)
    used_up = Quota(600.0, 600.0, is_used_up=True)
    view.see(Status("poll", "queued", "d1", backend=BACKEND, detail=used_up.used_up(), quota=used_up))
    assert view.quota() == ""  # it is said as the reason for which the job waits
