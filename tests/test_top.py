"""`qx-supervisor top`, on a real terminal, with real drivers; and that the terminal is given back, whatever ends it."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator

import psutil
import pytest
from testkit.circuits import BACKEND
from testkit.drivers import RUN, assert_cancelled_once
from testkit.ledgers import make_row
from testkit.processes import wait_for_end
from testkit.terminals import Terminal

from qx_supervisor.cli import snapshot
from qx_supervisor.cli.snapshot import LedgerReader, ServiceReader
from qx_supervisor.watcher import host_identity, ledger

pytest.importorskip("textual", reason="the extra top is not installed")

JOBS = "/api/v1/jobs"
COMMAND = [sys.executable, "-m", "qx_supervisor", "top"]
LABELLED = RUN.replace("shots=64", "shots=64, label='vqe step 17'")
BACK = b"\x1b[?1049l"
"""What leaves the other screen."""

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)(?:;\d+)*m")

Show = Callable[..., Terminal]


@pytest.fixture
def show() -> Iterator[Show]:
    """Starts `top` on a terminal of its own, 80 by 24."""
    shown: list[Terminal] = []

    def start(*words: str, command: list[str] | None = None, **options: object) -> Terminal:
        options = {"columns": 80, "lines": 24} | options
        shown.append(Terminal(command or [*COMMAND, *words], **options))
        return shown[-1]

    yield start
    for each in shown:
        family = (
            [psutil.Process(each.process.pid), *psutil.Process(each.process.pid).children(recursive=True)]
            if (each.process.poll() is None)
            else []
        )
        each.close()
        for process in family[1:]:
            wait_for_end(process)


def is_as_before(shown: Terminal) -> bool:
    """Whether the terminal has its echo and its lines, and shows what it showed before."""
    flags = termios.tcgetattr(shown._master)[3]
    on = shown.raw.rfind(b"\x1b[?1049h") < shown.raw.rfind(BACK)
    cursor = shown.raw.rfind(b"\x1b[?25l") < shown.raw.rfind(b"\x1b[?25h")
    return bool(flags & termios.ECHO and flags & termios.ICANON and on and cursor)


def row_of(text: str, job: str) -> str:
    return next((line for line in text.splitlines() if job in line), "")


def app_of(shown: Terminal) -> psutil.Process:
    """The child that draws."""
    [child] = psutil.Process(shown.process.pid).children()
    return child


# What it shows


def test_a_driver_that_is_killed(here, fork, show):
    """Its row says so; nobody asks the service but the driver and its watcher."""
    here.hold("queued")
    driver = fork(LABELLED)
    job = driver.queued()
    shown = show("--no-service")
    text = shown.until(lambda text: job in text)
    row = row_of(text, job)
    assert f"{driver.pid}" in row
    assert "live" in row
    assert "1 program  1 live" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    driver.kill()
    shown.until(lambda text: "cancelled" in row_of(text, job))
    shown.type("d")
    shown.until(lambda text: "ended by     watcher" in text)
    shown.type("q")
    assert shown.end() == 0
    assert is_as_before(shown)
    assert_cancelled_once(here, job)


@pytest.mark.long
def test_a_long_id_stays_in_one_line(here, fork, show):
    """The embedded service's sessions have ids of 29 characters."""
    driver = fork(
        """
        from qiskit_ibm_runtime import Session
        with Session(backend()) as session, guard(session):
            say("open", session.session_id)
            threading.Event().wait()
        """
    )
    [session] = driver.line("open ")
    shown = show("--no-service")
    text = shown.until(lambda text: session in text and "Quit" in text)
    at = next(i for i, line in enumerate(text.splitlines()) if session in line)
    row, below = text.splitlines()[at : at + 2]
    assert " live " in row
    assert below.strip() == ""
    assert max(len(line) for line in text.splitlines()) <= 80
    shown.resize(40)  # no room for it, but among the details
    shown.until(lambda text: session not in text and "Quit" in text)
    shown.type("d")
    shown.until(lambda text: session in "".join(text.split()))  # all of it
    shown.type("q")
    assert shown.end() == 0
    driver.kill()


@pytest.mark.long
def test_the_state_at_the_service_by_one_list_per_interval(here, fork, service, show):
    """However many jobs there are."""
    here.hold("queued")
    driver = fork(
        """
        mine = backend()
        queued = threading.Semaphore(0)
        def note(status):
            if status.state == "queued":
                queued.release()
        runs = [submit(isa(), mine, shots=1, on_status=note, label=f"number {n}") for n in range(15)]
        for _ in runs:
            queued.acquire()
        say("all", os.getpid())
        threading.Event().wait()
        """
    )
    driver.line("all ")
    shown = show("--local", "--interval", "1", columns=120)
    shown.until(lambda text: text.count("queued") >= 15)
    driver.send(signal.SIGSTOP)  # it asks too
    after = here.cursor()
    here.wait_for("GET", JOBS, count=4, after=after)
    asked = here.journal(after)
    shown.type("q")
    assert shown.end() == 0
    assert {entry.path for entry in asked if entry.method == "GET"} == {JOBS}
    arrived = [entry.arrived for entry in asked]
    assert all(later - earlier > 0.5e9 for earlier, later in itertools.pairwise(arrived))
    driver.send(signal.SIGCONT)
    driver.kill()
    here.wait_idle()


@pytest.mark.long
def test_cancel_asks(here, fork, show):
    here.hold("queued")
    driver = fork(LABELLED)
    job = driver.queued()
    shown = show("--local")
    shown.until(lambda text: "queued" in row_of(text, job))
    shown.type("c")
    text = shown.until("y  yes     n  no")
    assert job in text
    assert "Its program runs" in text
    shown.type("n")
    shown.until("nothing was cancelled")
    shown.type("c")
    shown.until("y  yes     n  no")
    assert here.job(job).cancel_requests == 0
    shown.type("y")
    shown.until(f"{job} is cancelled")
    shown.until(lambda text: "cancelled" in row_of(text, job))
    shown.type("c")
    shown.until("that run is over")
    shown.type("q")
    assert shown.end() == 0
    assert driver.end() != 0
    assert_cancelled_once(here, job)


@pytest.mark.long
def test_the_keyboard_chooses_among_runs(here, fork, show):
    here.hold("queued")
    first, second = fork(LABELLED), fork(LABELLED)
    jobs = {driver.queued(): driver for driver in (first, second)}
    shown = show("--no-service")
    text = shown.until(lambda text: all(job in text for job in jobs))
    lines = text.splitlines()
    top = next(job for job in jobs if row_of(text, job).startswith("> "))
    [other] = jobs.keys() - {top}
    assert lines.index(row_of(text, top)) < lines.index(row_of(text, other))
    for key, job in (("j", other), ("k", top), ("\x1b[B", other), ("\x1b[A", top), ("\x1b[F", other)):
        shown.type(key)
        shown.until(lambda text, job=job: row_of(text, job).startswith("> "))
    jobs[other].kill()
    shown.until(lambda text: "cancelled" in row_of(text, other))
    assert row_of(shown.text, other).startswith("> ")
    shown.type("q")
    assert shown.end() == 0
    jobs[top].kill()
    here.wait_idle()


@pytest.mark.long
def test_another_width(here, fork, show):
    here.hold("queued")
    driver = fork(LABELLED)
    job = driver.queued()
    shown = show("--no-service", columns=130)
    program = shown.until(lambda text: job in text and BACKEND in text).splitlines()[2].split()[2]
    assert len(program) > 3
    for columns, seen, unseen in ((80, job, BACKEND), (40, "vqe step 17", job)):
        shown.resize(columns)
        text = shown.until(lambda text, seen=seen, unseen=unseen: seen in text and unseen not in text)
        row = row_of(text, "vqe step 17")
        assert program[:6] in row
        assert " live " in row
        assert max(len(line) for line in text.splitlines()) <= columns
    shown.type("d")  # what has no column is among the details
    shown.until(lambda text: job in text and BACKEND in text)
    shown.type("d")
    shown.resize(130)
    shown.until(lambda text: BACKEND in row_of(text, job))
    shown.type("q")
    assert shown.end() == 0
    driver.kill()
    here.wait_idle()


@pytest.mark.long
def test_runs_without_labels_are_known_by_their_jobs_on_a_narrow_screen_too(here, fork, show):
    here.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    shown = show("--no-service", columns=40)
    text = shown.until(lambda text: job[:12] in text and "Quit" in text)
    assert "LABEL" not in text
    assert str(driver.pid) in row_of(text, job[:12])
    assert " live " in row_of(text, job[:12])
    assert max(len(line) for line in text.splitlines()) <= 40
    shown.type("d")
    shown.until(lambda text: re.search(r"^age +\d+s", text, re.MULTILINE))
    shown.type("q")
    assert shown.end() == 0
    driver.kill()
    here.wait_idle()


@pytest.mark.long
def test_without_colours(here, fork, show):
    here.hold("queued")
    driver = fork(LABELLED)
    job = driver.queued()
    for environment, is_coloured in ({"NO_COLOR": "1"}, False), ({}, True):
        shown = show("--no-service", environment=environment)
        text = shown.until(lambda text: job in text)
        assert row_of(text, job).startswith("> ")  # the chosen one is seen without them
        shown.type("q")
        assert shown.end() == 0
        assert bool([found for found in COLOUR.findall(shown.raw) if b"39" not in found and b"49" not in found]) is (
            is_coloured
        )
    driver.kill()
    here.wait_idle()


@pytest.mark.long
def test_all_hosts(here, fork, show, shared_url, monkeypatch):
    monkeypatch.setenv("QX_LEDGER", shared_url)
    here.hold("queued")
    driver = fork(f"os.environ['QX_LEDGER'] = {shared_url!r}\n{LABELLED}")
    job = driver.queued()
    shown = show("--no-service", "--all-hosts", columns=140)
    text = shown.until(lambda text: job in text)
    assert f"{os.uname().nodename}:{driver.pid}" in row_of(text, job)
    assert "top, all hosts: 1 program" in text
    driver.kill()
    shown.until(lambda text: "cancelled" in row_of(text, job))
    shown.type("q")
    assert shown.end() == 0


# The terminal is given back


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_ends_it_in_good_order(show, number):
    shown = show("--no-service")
    shown.until("nothing is guarded")
    shown.process.send_signal(number)
    assert shown.end() == -number
    assert is_as_before(shown)


@pytest.mark.long
def test_what_draws_is_killed(show):
    shown = show("--no-service")
    shown.until("nothing is guarded")
    app_of(shown).kill()
    assert shown.end() == -signal.SIGKILL
    assert is_as_before(shown)


@pytest.mark.long
def test_the_command_is_killed(show):
    """A shell has the terminal then; the child ends, though nobody tells it."""
    shell = f"{' '.join(COMMAND)} --no-service; echo gone; read line; echo $line"
    shown = show(command=["bash", "-c", shell])
    shown.until("nothing is guarded")
    [top] = psutil.Process(shown.process.pid).children()
    [app] = top.children()
    top.kill()
    shown.until_written(b"gone")  # what draws may do so once more, over it
    wait_for_end(app)
    shown.type("a line\n")
    assert shown.end() == 0
    assert is_as_before(shown)
    assert "a line" in shown.text


STUCK = """
import signal, threading
from qx_supervisor.cli import fullscreen

def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("begun", flush=True)
    threading.Event().wait()

fullscreen.PATIENCE = 0.2
fullscreen.run(work)
"""


@pytest.mark.long
def test_the_command_is_killed_and_what_draws_can_not_end(show):
    """As where the terminal is gone as well: it does not stay for ever."""
    shown = show(command=[sys.executable, "-c", STUCK])
    shown.until("begun")
    app = app_of(shown)
    shown.process.kill()
    wait_for_end(app)


@pytest.mark.long
@pytest.mark.parametrize("leave", ["\x03", "\x11"], ids=["ctrl-c", "ctrl-q"])
def test_left_by_the_keyboard(show, leave):
    shown = show("--no-service")
    shown.until("nothing is guarded")
    shown.type(leave)
    assert shown.end() == 0
    assert is_as_before(shown)


@pytest.mark.long
def test_suspended_and_continued(show):
    """Ctrl-Z gives the terminal to the shell; `fg` draws anew."""
    shown = show(command=["bash", "--norc", "--noprofile", "-i"], environment={"PS1": "shell> "})
    shown.until("shell>")
    shown.type(f"{' '.join(COMMAND)} --no-service\n")
    shown.until("nothing is guarded")
    shown.type("\x1a")
    shown.until("Stopped")
    shown.type("echo $((40 + 2))\n")
    shown.until(lambda text: "\n42" in text)
    drawn = len(shown.raw)
    shown.type("fg\n")
    shown._until(lambda: b"nothing is guarded" in shown.raw[drawn:], "drawn anew")
    left = len(shown.raw)
    shown.type("q")
    shown._until(lambda: b"shell> " in shown.raw[left:], "the shell")
    assert shown.raw.rfind(b"\x1b[?1049h") < shown.raw.rfind(BACK)
    shown.type("echo $((50 + 1)); stty -a | grep -ow -e -icanon -e -echo; exit\n")
    assert shown.end() == 1  # grep has found neither
    assert b"51" in shown.raw[left:]


# Where it can't be


def test_wrong_use(call, here, monkeypatch):
    before = here.cursor()
    code, lines, said = call("top")
    assert (code, lines) == (2, [])
    assert said == "qx-supervisor: top is for a terminal; in a script, take ps --json; see qx-supervisor top --help\n"
    assert call("top", "--interval", "0")[0] == 2
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "textual" else real(name))
    code, _, said = call("top")
    assert code == 2
    assert said.startswith("qx-supervisor: top needs the package textual: pip install 'qx-supervisor[top]'; ")
    assert here.cursor() == before


@pytest.mark.long
@pytest.mark.parametrize(
    "words, environment, code, said",
    [
        (["--local"], {}, 1, "no embedded service is running"),
        (["--all-hosts"], {}, 2, "no shared ledger is named; set QX_LEDGER"),
        ([], {"TERM": "dumb"}, 2, "this terminal can't show a full screen (TERM); take ps --watch"),
        (["--local", "--instance", "x"], {}, 2, "leave --instance away"),
    ],
)
def test_refused_before_the_screen_is_taken_over(show, words, environment, code, said):
    shown = show(*words, environment=environment, columns=160)
    assert shown.end() == code
    assert said in shown.text
    assert b"\x1b[?1049h" not in shown.raw


# How it reads


def test_what_a_program_says_is_shown_and_not_obeyed():
    from rich.console import Console
    from textual.widgets import Static

    from qx_supervisor.cli.top_app import Question, Top

    strange = "it \x1b]0;failed\x07\nat \x9b31mtwo"
    row = make_row("r1", command=strange, program=strange, label=strange, tags=(strange,), jobs={"d1a2": ""})
    found = snapshot.Snapshot([snapshot.Shown(row, "live")], strange)

    class Reader:
        def read(self):
            return found

        def close(self):
            pass

    def texts(top):
        console = Console(width=200, color_system=None)
        for each in top.screen.query(Static):
            with console.capture() as drawn:
                console.print(each.content)
            yield drawn.get()

    async def look():
        top = Top(Reader(), None, Reader(), interval=60.0, place="node7")
        async with top.run_test() as pilot:
            top._see(found)
            await pilot.press("d")
            top._say(strange)
            shown = list(texts(top))
            await pilot.press("c")
            assert isinstance(top.screen, Question)
            return shown + list(texts(top))

    shown = asyncio.run(look())
    assert sum("it ]0;failed at 31mtwo" in text for text in shown) >= 4
    assert all(text.replace("\n", "").isprintable() for text in shown)


def test_a_driver_is_looked_at_once_per_reading(state, monkeypatch):
    """However many runs it has; and a run that ends while it is shown is shown for a while."""
    here = host_identity.this_host()
    ticks = host_identity.start_ticks(os.getpid())

    def row(number: int, **more: object) -> ledger.Row:
        known = {"run": f"run{number}", "host_identity": here, "pid": os.getpid(), "start_ticks": ticks}
        return ledger.Row(**known | {"jobs": {f"job{number}": ""}} | more)

    looked = []
    real = host_identity.is_running
    monkeypatch.setattr(host_identity, "is_running", lambda *process: looked.append(process) or real(*process))
    reader = LedgerReader(all_hosts=False)
    with ledger.Ledger.open(state) as book:
        book.write(*(row(number) for number in range(50)))
        seen = reader.read()
        assert (len(seen.runs), {each.state for each in seen.runs}, seen.trouble) == (50, {"live"}, "")
        assert len(looked) == 1
        book.write(row(7, state="done", outcome="finished", jobs={"job7": "finished"}))
        seen = reader.read()
        assert len(seen.runs) == 50
        [over] = [each for each in seen.runs if each.is_over]
        assert (over.row.run, over.state, over.jobs) == ("run7", "finished", [])
        book.write(row(8, state="pending", jobs={"job8": "unconfirmed", "other8": "finished"}))
        [pending] = [each for each in reader.read().runs if each.row.run == "run8"]
        assert pending.jobs == ["job8"]  # that of which nobody knows is what somebody may have to cancel
        monkeypatch.setattr(snapshot, "KEPT_SECONDS", 0.0)
        assert len(reader.read().runs) == 49
    reader.close()


def test_a_ledger_that_can_not_be_read(state):
    reader = LedgerReader(all_hosts=False)
    assert reader.read().trouble == ""
    reader.close()
    for file in state.glob("ledger*"):
        file.unlink()
    (state / "ledger.db").mkdir()
    assert "not a regular file" in reader.read().trouble
    (state / "ledger.db").rmdir()
    assert reader.read().trouble == ""
    reader.close()


def test_an_account_that_can_not_be_used():
    from qx_supervisor import RunError

    def refuse():
        raise RunError("auth", "no account")

    found = ServiceReader(refuse).read()
    assert (dict(found.states), found.words) == ({}, "no account")


@pytest.mark.long
def test_help_needs_neither_textual_nor_qiskit():
    code = "import sys\nfrom qx_supervisor.cli import main\ntry:\n main(['top', '--help'])\nfinally:\n"
    code += " assert not {'textual', 'qiskit', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
