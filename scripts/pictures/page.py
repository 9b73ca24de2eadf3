"""The page in a browser.

Runs of drivers that finished, failed, were sent SIGTERM, and were killed: three with `kill -9`, whose watchers
cancelled, and one together with its watcher, an orphan until somebody reaps. What is over is moved back by some days in
the ledger, as it would be in a week of work; the rest is as the drivers left it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from testkit.browser import chromium
from testkit.drivers import PRELUDE, Driver, kill_both
from testkit.processes import until
from testkit.watchers import wait_for_watchers, wait_until_written
from testkit.zygote import Zygote

from qx_supervisor import local
from qx_supervisor.log_tail import Tail
from qx_supervisor.page import Address, Page
from qx_supervisor.page.ledgers import ThisMachine
from qx_supervisor.watcher.events import from_object, moment
from qx_supervisor.watcher.ledger import FINAL, Ledger, Row, standing

DAY = 86400.0

STEPS = """
for step in range({number}):
    run(isa(), backend(), shots=1024, label=f"{label} step {{step}}", on_status=tell, panel=None)
"""

MANY = """
runs = [submit(isa(), backend(), shots=4096, label=f"{label} {{n}}", on_status=tell) for n in range({number})]
for each in runs:
    each.result()
"""

FAILING = """
for n in range(3):
    try:
        run(isa(), backend(), shots=512, label="depth test", panel=None)
    except JobFailed:
        pass
"""


@contextlib.contextmanager
def state() -> Iterator[Path]:
    """A state directory of this picture's own."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"QX_STATE_DIR": f"{folder}/state", "QX_SWEEP_WINDOW": "2", "TZ": "UTC"}
        try:
            yield Path(folder)
        finally:
            os.environ.clear()
            os.environ.update(before)


class Scene:
    """The drivers."""

    def __init__(self, ibm: local.Service, folder: Path) -> None:
        self.ibm = ibm
        self.folder = folder
        self.zygote = Zygote(ibm.port)
        self.drivers: list[Driver] = []

    def start(self, name: str, code: str) -> Driver:
        """Start a driver."""
        script = self.folder / name
        script.write_text(PRELUDE.format(pid=self.ibm.pid, port=self.ibm.port) + code)
        self.drivers.append(Driver(self.zygote.fork(script)))
        return self.drivers[-1]

    def play(self) -> None:
        """Have them live and die."""
        for name, label, number, seconds in (("vqe.py", "vqe", 14, 2.4), ("qaoa.py", "qaoa", 9, 5.1)):
            self.ibm.tell(qpu_seconds=seconds)
            assert self.start(name, STEPS.format(label=label, number=number)).end() == 0
        self.ibm.scenario({"next_jobs": 3 * [{"outcome": "failed", "reason": "the circuit is too deep"}]})
        assert self.start("depth.py", FAILING).end() == 0
        self.ibm.scenario({})
        self.ibm.hold("running")
        told = self.start("tomography.py", STEPS.format(label="tomography", number=1))
        told.line("running ")
        told.send(signal.SIGTERM)
        told.end()
        for name, number, seconds in (("sweep.py", 4, 3.2), ("train.py", 2, 7.5), ("sweep.py", 3, 1.1)):
            self.ibm.tell(qpu_seconds=seconds)
            killed = self.start(name, MANY.format(label=name.removesuffix(".py"), number=number))
            for _ in range(number):
                killed.line("running ")
            wait_until_written(killed)
            killed.kill()
            wait_for_watchers(killed)
        self.ibm.hold("queued")
        self.start("vqe.py", STEPS.format(label="vqe", number=1)).queued()
        self.start("qaoa.py", MANY.format(label="qaoa layer", number=3)).queued()
        lost = self.start("anneal.py", STEPS.format(label="anneal", number=1))  # the last: the next would reap it
        lost.queued()
        wait_until_written(lost)
        kill_both(lost)

    def close(self) -> None:
        """End those that live."""
        self.ibm.hold(None)
        for driver in self.drivers:
            driver.kill()
            wait_for_watchers(driver)
            driver.clear()
        self.zygote.close()


def move(folder: Path) -> None:
    """Move what is over back by some days."""
    with Ledger.open(folder) as book:
        rows = until(book.rows, lambda found: all(row.charged is not None for row in found if row.state in FINAL))
    over = [row for row in rows if row.state in FINAL]
    drivers = sorted({row.pid for row in over})
    back = {pid: DAY * (0.3 + 5.6 * i / len(drivers)) for i, pid in enumerate(reversed(drivers))}

    def seconds(row: Row) -> float:
        """A driver that is alone for days; what died together stays together."""
        place = [each.run for each in over if each.pid == row.pid].index(row.run)
        return back[row.pid] + (0.0 if row.ended_by == "watcher" else place * 9100.0)

    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as database, database:
        # They were forked, and have the command line of what they were forked from.
        database.execute("UPDATE runs SET command = 'python ' || program")
        for row in over:
            for table, columns in (
                ("runs", ("began_at", "created_at", "updated_at", "ended_at", "let_go_at")),
                ("jobs", ("queued", "ran", "ended")),
            ):
                changes = ", ".join(f"{column} = {column} - ?" for column in columns)
                database.execute(
                    f"UPDATE {table} SET {changes} WHERE run = ?", (*len(columns) * [seconds(row)], row.run)
                )
    lines = list(Tail(folder).new())
    [log] = folder.glob("watcher-*.log")
    with log.open("w") as file:
        for line in lines:
            at = from_object(line).time - back.get(line["driver"], 0.0)
            file.write(json.dumps(line | {"time": moment(at)}) + "\n")


def draw(folder: Path) -> list[Path]:
    """Draw the page, in light and in dark colours, and a death in it."""
    made = []
    with state() as scratch, local.start() as ibm, chromium() as browser, contextlib.ExitStack() as ends:
        scene = Scene(ibm, scratch)
        ends.callback(scene.close)
        scene.play()
        move(scratch / "state")
        with Ledger.open(scratch / "state") as book:
            book.set_budget(standing(600.0, "month", "", ""))
        page = Page(Address.parse("127.0.0.1:0"))
        page.start(ThisMachine(), price=(1.60, "USD"))
        ends.callback(page.stop)
        for name, scheme, query in (
            ("page-light", "light", ""),
            ("page-dark", "dark", ""),
            ("page-death", "light", "?tab=deaths&by=watcher"),
        ):
            tab = browser.new_page(
                color_scheme="dark" if scheme == "dark" else "light",
                viewport={"width": 1280, "height": 940},
                device_scale_factor=1.5,
                timezone_id="UTC",
            )
            tab.goto(page.address.url + query)
            tab.locator("#live[data-state=live]").wait_for()
            tab.locator("#table tbody tr").first.wait_for()
            if query:
                tab.locator("#table tbody tr").first.click()
                tab.locator("#tab-runs[aria-selected=true]").wait_for()
                tab.keyboard.press("g")
                tab.keyboard.press("Enter")
                tab.locator("#log li").first.wait_for()
            made.append(folder / f"{name}.png")
            tab.screenshot(path=made[-1])
            tab.close()
    return made
