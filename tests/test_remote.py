"""A wrong answer of the service's costs no job of another run, and ends no effort."""

from __future__ import annotations

import time
from typing import Any

import pytest

from qx_supervisor.watcher.cancel import Cancellation
from qx_supervisor.watcher.protocol import Credentials
from qx_supervisor.watcher.remote import PAGE, JobState, Remote, retry_after

NOWHERE = Credentials("http://127.0.0.1:9", "crn", "http://127.0.0.1:9", "key")


class Answers(Remote):
    """A service that gives the same answer to every request."""

    def __init__(self, reply: dict[str, Any]) -> None:
        super().__init__(NOWHERE, lambda: "Bearer token", lambda: None)
        self.reply = reply
        self.asked: list[str] = []

    def _request(self, method: str, path: str, *_: Any, **__: Any) -> Any:
        self.asked.append(f"{method} {path}")
        return self

    def json(self) -> dict[str, Any]:
        return self.reply

    status_code = 200


def job(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "state": {"status": "Queued"}, **more}


def test_a_filter_that_is_ignored_finds_no_job_of_another_run():
    service = Answers({"jobs": [job("mine", tags=["qxs-1"]), job("other", tags=["qxs-2"]), job("plain", tags=[])]})
    assert service.unfinished(tag="qxs-1") == ("mine",)
    service.reply = {"jobs": [job("mine", session_id="s1"), job("other", session_id="s2")]}
    assert service.unfinished(session="s1") == ("mine",)


def test_a_list_without_tags_is_believed():
    assert Answers({"jobs": [job("mine")]}).unfinished(tag="qxs-1") == ("mine",)


def test_all_jobs_of_an_account_are_never_asked_for():
    with pytest.raises(ValueError, match="neither"):
        Answers({"jobs": [job("any")]}).unfinished()


def test_a_page_that_repeats_itself_ends_the_listing():
    service = Answers({"jobs": [job(f"job{i}", tags=["qxs-1"]) for i in range(PAGE)]})
    assert len(service.unfinished(tag="qxs-1")) == PAGE
    assert len(service.asked) == 2


def test_an_answer_that_can_not_be_understood_ends_no_cancel():
    service = Answers({"state": "Cancelled"})
    assert not JobState.from_reply(service.reply).is_final
    service.json = lambda: {"state": {"status": ["?"]}, "id": object()}  # type: ignore[method-assign]
    service.cancel = lambda _: 1 / 0  # type: ignore[assignment, method-assign]
    cancellation = Cancellation("job", service, time.monotonic)
    assert isinstance(cancellation.step(), float)
    assert "ZeroDivisionError" in cancellation.trouble


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("soon", None), ("7", 7.0), ("-7", 0.0), ("inf", 3600.0), ("1e300", 3600.0)],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds
