"""The pauses between attempts, and the search for what may turn up: pure, with a clock that a pause moves."""

import itertools

import pytest

from qx_supervisor import backoff
from qx_supervisor.watcher import remote


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `sleep` moves; `slept` has every pause."""

    class Clock:
        def __init__(self):
            self.now, self.slept = 1000.0, []

        def sleep(self, seconds):
            self.slept.append(seconds)
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(backoff.time, "monotonic", lambda: made.now)
    return made


def first(pauses, number):
    return list(itertools.islice(pauses, number))


def test_pauses_double_up_to_the_longest_and_begin_anew():
    assert first(backoff.UNANSWERED, 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert first(backoff.UNANSWERED, 2) == [0.5, 1]
    assert first(backoff.EARLIER_JOB, 8) == [0.25, 0.5, 1, 2, 4, 8, 15, 15]
    assert first(backoff.LOST_ANSWER, 7) == [0.25, 0.5, 1, 2, 4, 5, 5]


def test_a_question_is_asked_again_with_growing_pauses_and_no_sooner_than_it_is_told(clock):
    said = []
    asking = backoff.Backoff("poll", "job", lambda *words: said.append(words[1]))
    lost = remote.Transient("no answer")
    assert [asking.failed(lost), asking.failed(remote.Transient("later", 429, 7.0)), asking.failed(lost)] == [0.5, 7, 2]
    asking.answered()
    assert asking.failed(lost) == 0.5, "an answer begins the pauses anew"
    assert said == ["connection lost, retrying", "connection back", "connection lost, retrying"]


def test_a_search_ends_with_what_it_finds(clock):
    answers = iter(["", "", "found"])
    assert backoff.look_until(1010.0, lambda: next(answers), backoff.Pauses(1.0, 3.0), clock.sleep) == "found"
    assert clock.slept == [1, 2]


def test_a_search_looks_once_more_when_its_time_has_passed(clock):
    looked, left = [], []

    def look():
        looked.append(clock.now)
        return ""

    assert backoff.look_until(1010.0, look, backoff.Pauses(1.0, 4.0), clock.sleep, left.append) == ""
    assert looked == [1000, 1001, 1003, 1007, 1010]
    assert left == [10, 9, 7, 3]


def test_a_search_whose_time_has_passed_looks_once(clock):
    looked = []
    backoff.look_until(900.0, lambda: looked.append(1), backoff.Pauses(1.0, 4.0), clock.sleep)
    assert looked == [1]
    assert not clock.slept
