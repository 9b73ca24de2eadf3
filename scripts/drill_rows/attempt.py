"""One try of a row: its driver, and what is done to it."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from testkit.drivers import Driver
from testkit.processes import DEADLINE, ends

from . import code
from .judge import TrySeen
from .lane import Lane, Stopped


class Try:
    """One try.

    Attributes:
        tag: The tag that its jobs have.
        seen: What is seen of it.
        driver: Its driver.
        random: What is left to chance.
        cursor: Where the service's journal was when it began.
    """

    def __init__(self, lane: Lane, name: str, seed: str) -> None:
        self.lane = lane
        self.ibm = lane.ibm
        self.tag = f"drill-{name}"
        self.seen = TrySeen()
        self.random = random.Random(seed)
        self._driver: Driver | None = None
        self.cursor = self.ibm.cursor()

    @property
    def driver(self) -> Driver:
        """Its driver."""
        assert self._driver is not None
        return self._driver

    # How it goes on

    def carry_out(self, attempt: Callable[[Try], Iterator[float] | None]) -> Iterator[float] | None:
        """Begin; what is returned is to be advanced."""
        steps: list[Iterator[float] | None] = []
        self._guarded(lambda: steps.append(attempt(self)))
        return steps[0] if steps else None

    def advance(self, steps: Iterator[float]) -> float | None:
        """Take a try on to its next pause; returns when that is over, None at the end."""
        pauses: list[float] = []
        self._guarded(lambda: pauses.extend(seconds for seconds in [next(steps, -1.0)] if seconds >= 0))
        return time.monotonic() + pauses[0] if pauses else None

    def _guarded(self, deed: Callable[[], Any]) -> None:
        """Do something; what goes wrong is the try's trouble, and not the end of the drill."""
        try:
            deed()
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            if self.lane.stopping.is_set():
                raise Stopped from None
            self.seen.troubles.append(f"{type(error).__name__}: {error}")
            if self._driver is not None and self._driver.process.poll() is None:
                self.kill()

    def conclude(self, *, has_result: bool) -> None:
        """Note what the driver said. Its watcher has ended by now.

        Args:
            has_result: Whether it should have come to its result.
        """
        driver = self._driver
        if driver is None:
            return
        if driver.process.poll() is None:
            self.seen.troubles.append("the driver still runs")
            self.kill()
        for line in driver.lines:
            word, *rest = line.split(" ")
            if word == "result":
                self.seen.kept.add(rest[0])
            elif word == "raised":
                if self.seen.gave_up is None:
                    self.seen.gave_up = int(rest[0])
                if has_result:
                    self.seen.troubles.append(f"the driver failed: {line}")
            elif word in ("submitted", "queued", "running"):
                self.seen.held.add(rest[0])
        self.seen.log = f"{driver.lines} {driver.errors.decode(errors='replace')}".strip()
        if has_result and not self.seen.kept:
            self.seen.troubles.append("the driver has no result")

    # What rows do

    def start(self, program: str = code.DRIVE, state: Path | None = None, *, wrong_clock: bool = False) -> Driver:
        """Start the driver, by a clock that is an hour off if that is asked for."""
        self._driver = self.lane.fork(program, self.tag, state, wrong_clock=wrong_clock)
        return self._driver

    def sleep(self, seconds: float) -> None:
        """Wait for a random time, at most so many seconds."""
        time.sleep(self.random.uniform(0.0, seconds))

    def signal(self, number: int) -> None:
        """Send the driver a signal."""
        self.driver.send(number)

    def gives_up(self) -> None:
        """From now on the driver does not want its job any more."""
        if self.seen.gave_up is None:
            self.seen.gave_up = time.monotonic_ns()

    def kill(self) -> None:
        """SIGKILL, and the driver's end."""
        self.kill_only()
        self.driver.end()

    def kill_only(self) -> None:
        """SIGKILL."""
        first = self.seen.gave_up is None
        self.gives_up()
        self.driver.send(signal.SIGKILL)
        # Its end comes before the end of its output, if a child of it has that open.
        if first and ends(self.driver.pidfd, DEADLINE):
            self.seen.ended = time.monotonic_ns()

    def dies(self, returncode: int) -> None:
        """Wait for the end that the driver announces by "dying" and the time."""
        self.seen.gave_up = int(self.driver.line("dying ")[0])
        ended = self.driver.end()
        assert ended == returncode, f"the driver ended with {ended}"

    @contextlib.contextmanager
    def let_go(self) -> Iterator[None]:
        """Let jobs go for a while."""
        self.ibm.hold(None)
        try:
            yield
        finally:
            self.ibm.hold("queued")

    def queued(self) -> str:
        """Wait until its job is queued; returns the job's id."""
        return self.driver.queued()

    def faults(self, *faults: dict[str, Any]) -> None:
        """Have the service make these faults, and no others."""
        self.ibm.scenario({"http_faults": list(faults)})

    def post_arrives(self) -> None:
        """Wait until its POST is at the service."""
        self.ibm.wait_for("POST", "/api/v1/jobs", after=self.cursor, timeout=DEADLINE)

    def made(self) -> list[str]:
        """The jobs that were made for it until now."""
        posts = self.ibm.journal(self.cursor, "POST", "/api/v1/jobs")
        return [post.job_id for post in posts if post.job_id and self.tag in post.tags]

    def watcher(self) -> psutil.Process:
        """Its watcher, told by a driver that runs `code.TELL_WATCHERS`."""
        return psutil.Process(int(self.driver.line("watcher ")[0]))
