"""The panels: on a real terminal, as lines, and what they say."""

from __future__ import annotations

import dataclasses
import gc
import io
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, SamplerPubResult
from rich.console import Console
from testkit.drivers import assert_cancelled_once
from testkit.processes import DEADLINE, wait_for_end
from testkit.terminals import Terminal
from testkit.watchers import watchers_of

from qx_supervisor import JobCancelled, RunResult, RunTimeout, Timeline
from qx_supervisor.cli.waiting import JobView
from qx_supervisor.job_cost import JobCost
from qx_supervisor.panel import batch, notebook
from qx_supervisor.panel.batch import Batch
from qx_supervisor.panel.notebook import as_html
from qx_supervisor.panel.plain import Plain
from qx_supervisor.panel.terminal import batch_summary, block, ended, summary, table
from qx_supervisor.panel.view import View, duration, when
from qx_supervisor.pub_results import LARGE, expectation_lines, histogram
from qx_supervisor.status import Status
from qx_supervisor.timeline import Stopwatch, rough
from qx_supervisor.watcher.facts import Figures


@pytest.fixture
def terminal(write_script: Callable[[str], Path]) -> Iterator[Callable[..., Terminal]]:
    """Starts a driver on a terminal of its own."""
    made: list[Terminal] = []

    def start(code: str, *, patience: float = DEADLINE, **more: object) -> Terminal:
        # The panel's thread may not have its turn for half a second.
        patient = f"import qx_supervisor.panel.screen\nqx_supervisor.panel.screen.SETTLE_TIMEOUT = {patience}\n"
        script = write_script(patient + textwrap.dedent(code))
        made.append(Terminal([sys.executable, str(script)], **more))
        return made[-1]

    yield start
    for each in made:
        each.close()
        for watcher in watchers_of(each):
            wait_for_end(watcher)


# A real terminal --------------------------------------------------------------------------------------------------


def test_a_run_to_its_result(ibm, terminal, tmp_path):
    """The block says all there is to know; what stays is a summary; stdout has what the program wrote."""
    ibm.tell(queue_position=3, starts_in=1, qpu_seconds_estimated=4.25, qpu_seconds=3.5)
    ibm.hold("queued")
    out = tmp_path / "stdout"
    shown = terminal(
        """
        import qx_supervisor.job_cost
        qx_supervisor.job_cost.WAIT_SECONDS = 60.0  # for the word what it cost
        sys.stderr.write("not a whole line")
        result = run(bell(), "ibm_brisbane", service=service(), shots=4096)
        print(sum(result.counts.values()), result.qpu_seconds)
        """,
        stdout=out,
    )
    # The last row too: what is drawn may come in pieces.
    wanted = ("position 3", "4.25 s estimated", "Ctrl-C cancels")
    text = shown.until(lambda text: all(each in text for each in wanted))
    [job] = ibm.jobs()
    [watcher] = watchers_of(shown)
    assert job.id in text
    assert "ibm_brisbane" in text
    assert re.search(r"state +. queued", text)
    assert re.search(r"queue +position 3, start (\d{4}-\d\d-\d\d )?\d\d:\d\d", text)
    assert re.search(r"shots +4096", text)
    assert re.search(r"time +\d:\d\d in this state, \d:\d\d in all", text)
    assert "4.25 s estimated, charge pending" in text
    assert f"watched by pid {watcher.pid} · Ctrl-C cancels" in text
    ibm.hold(None)
    assert shown.end() == 0
    lines = shown.text.splitlines()
    assert lines[0] == "not a whole line"
    assert lines[1] == f"✔ done · job {job.id} · ibm_brisbane · 4096 shots"
    assert re.fullmatch(r"  \d:\d\d in all · transpiled .+ s, queued .+, ran .+ s · QPU 3.5 s charged", lines[2])
    bars = [line.split() for line in lines if "█" in line]
    assert [bar[0] for bar in bars] == ["00", "11"]
    assert sum(int(bar[2]) for bar in bars) == 4096
    assert "watched by" not in shown.text, "the block is gone"
    assert out.read_text() == "4096 3.5\n"


@pytest.mark.long
def test_beside_what_the_program_writes_itself(ibm, terminal):
    """Bars move above the block, prints pass in their order, and nothing of the block is left between them."""
    ibm.hold("queued")
    shown = terminal(
        """
        import rich
        from tqdm import tqdm
        mine, backend = service(), "ibm_brisbane"
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        for number in tqdm(range(2)):
            run(bell(), backend, service=mine, shots=16)
        signal.sigwait({signal.SIGUSR1})
        queued = threading.Semaphore(0)
        def note(status):
            if status.state == "queued":
                queued.release()
        runs = [submit(bell(), backend, service=mine, shots=16, panel="auto", on_status=note) for _ in range(3)]
        for _ in runs:
            queued.acquire()
        for number in range(5):
            print("line", number)
            print("error", number, file=sys.stderr)
        rich.print("[bold]rich[/bold] too")
        print("half a ", end="", flush=True)
        signal.sigwait({signal.SIGUSR1})
        print("line")
        for each in runs:
            each.result()
        """,
        columns=100,
    )
    shown.until(lambda text: "0/2" in text and "Ctrl-C cancels" in text)
    ibm.hold(None)
    shown.until(lambda text: "2/2" in text and "Ctrl-C" not in text)
    ibm.hold("queued")
    shown.process.send_signal(signal.SIGUSR1)
    text = shown.until(lambda text: "half a" in text and "0 of 3 done · 3 queued" in text)
    rows = text.splitlines()
    unfinished = [job for job in ibm.jobs() if not job.is_final]
    for job in unfinished:
        [row] = [row for row in rows if job.id in row]
        assert row.startswith("queued"), "the whole id, beside its state"
    assert rows.index("half a") < rows.index(next(row for row in rows if unfinished[0].id in row))
    ibm.hold(None)
    shown.process.send_signal(signal.SIGUSR1)
    assert shown.end() == 0
    rows = [row for row in shown.text.splitlines() if row and " in all · " not in row]
    written = [row for row in rows if not row.startswith(("✔", "  0", "  1"))]
    assert [row for row in written if "it/s" in row or "s/it" in row] == [row for row in written if "2/2" in row]
    asked = [f"{kind} {number}" for number in range(5) for kind in ("line", "error")]
    assert [row for row in written if row.split()[0] in ("line", "error")] == asked
    assert "half a line" in written
    assert "rich too" in written
    assert sum(row.startswith("✔ done") for row in shown.text.splitlines()) == 5
    assert not re.search("[╭╰│]|of 3 done|in state", shown.text)


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 12)])
@pytest.mark.long
def test_several_runs_on_a_small_terminal(ibm, terminal, columns, lines):
    """Their labels and keys are whole, how many are done is said, and each leaves one line."""
    ibm.hold("queued")
    shown = terminal(
        """
        backend = service().backend("ibm_brisbane")
        runs = [
            submit([bell()] * 3, backend, shots=16, label=f"step {n}", key=f"key-{n}", panel="auto") for n in range(5)
        ]
        for each in runs:
            each.result()
        """,
        columns=columns,
        lines=lines,
    )
    text = shown.until(lambda text: "0 of 5 done · 5 queued" in text and "watched by" in text)
    rows = [row for row in text.splitlines() if row.startswith("queued")]
    assert sorted(re.search(r"(step \d) +(key-\d)", row).groups() for row in rows) == [
        (f"step {number}", f"key-{number}") for number in range(5)
    ]
    assert "3 PUBs" in " ".join(text.split())
    ibm.hold(None)
    assert shown.end() == 0
    assert len(shown.text.splitlines()) == 5
    names = [re.search(r"step \d", row)[0] for row in shown.text.splitlines() if row.startswith("✔")]
    assert sorted(names) == [f"step {number}" for number in range(5)]


@pytest.mark.long
def test_a_log_handler_from_before_the_run(ibm, terminal):
    """It keeps the stream that it began with; its lines stand above the block all the same, and it has that again."""
    ibm.hold("queued")  # else it may be over before anybody sees it queued
    shown = terminal(
        """
        import logging
        logging.basicConfig(format="log %(message)s")
        original = logging.root.handlers[0].stream
        def note(status):
            if status.state in ("queued", "submitted"):
                logging.warning(status.state)
        run(bell(), "ibm_brisbane", service=service(), shots=16, on_status=note)
        print("original", logging.root.handlers[0].stream is original)
        """
    )
    shown.until("log queued")
    ibm.hold(None)
    assert shown.end() == 0
    rows = [row for row in shown.text.splitlines() if row.startswith(("log", "original", "✔"))]
    assert [row.split(" · ")[0] for row in rows] == ["log submitted", "log queued", "✔ done", "original True"]
    assert "╭" not in shown.text


@pytest.mark.long
def test_in_the_background_of_a_shell(ibm, terminal, write_script):
    """The terminal is the shell's, and who types there."""
    script = write_script('run(bell(), "ibm_brisbane", service=service(), shots=16)')
    shown = terminal(
        f"""
        import subprocess
        subprocess.run(["bash", "-c", f"set -m; {{sys.executable}} {script} & wait"], check=True)
        """,
        columns=200,
    )
    assert shown.end() == 0
    assert "qx: done · job" in shown.text
    assert "╭".encode() not in shown.raw


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("", "the program ends, and with it a run that is not over (job {job}): cancelled"),
        ("going.detach()", ""),
    ],
)
@pytest.mark.short_only("-the*")
def test_a_program_that_ends_with_a_run_in_flight(ibm, fork, how, said):
    ibm.hold("queued")
    driver = fork(
        f"""
        queued = threading.Event()
        def note(status):
            if status.state == "queued":
                queued.set()
        going = submit(bell(), "ibm_brisbane", service=service(), shots=16, on_status=note)
        queued.wait()
        {how}
        """
    )
    assert driver.end() == 0
    [job] = ibm.jobs()
    assert said.format(job=job.id) in driver.errors.decode()
    assert bool(said) == bool(driver.errors)
    if said:
        assert ibm.wait_job(job.id, "Cancelled").cancel_requests == 1


def test_ctrl_c_on_the_keyboard(ibm, terminal):
    ibm.hold("queued")
    shown = terminal('run(bell(), "ibm_brisbane", service=service(), shots=16)', columns=120)
    shown.until("queued")
    [job] = ibm.jobs()
    shown.type("\x03")
    assert shown.end() == -2
    assert_cancelled_once(ibm, job.id)
    assert f"✘ interrupted · job {job.id}" in shown.text
    assert "interrupted by SIGINT" in shown.text
    assert "╭" not in shown.text


@pytest.mark.long
def test_trouble_is_shown(ibm, terminal):
    """A lost connection is a state; a warning of the library's is written above the block, and stays."""
    lost = {"method": "GET", "path": "/api/v1/jobs/*", "times": 10000, "drop_connection": True}
    ibm.hold("queued")
    shown = terminal(
        """
        def fault(status):
            if status.state == "queued":
                raise ValueError
        run(bell(), "ibm_brisbane", service=service(), shots=16, on_status=fault, poll_interval=0.1)
        """
    )
    shown.until(lambda text: "queued" in text and "warning: on_status raised ValueError" in text)
    ibm.scenario({"http_faults": [lost]})
    shown.until("connection lost, retrying")
    ibm.scenario({})
    ibm.hold(None)
    assert shown.end() == 0
    assert "warning: on_status raised ValueError" in shown.text
    assert "✔ done" in shown.text


@pytest.mark.long
@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "a dumb terminal"])
def test_terminals_that_get_lines(ibm, terminal, environment):
    shown = terminal('run(bell(), "ibm_brisbane", service=service(), shots=16)', environment=environment, columns=200)
    assert shown.end() == 0
    assert b"\x1b" not in shown.raw
    lines = shown.text.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d qx: ", line) for line in lines), lines


@pytest.mark.long
def test_inside_a_live_display_of_the_users(ibm, terminal):
    """Two of them would draw over each other: the run is told in lines, which stand above the other."""
    shown = terminal(
        """
        from rich.live import Live
        from rich.text import Text
        with Live(Text("the user's own")):
            run(bell(), "ibm_brisbane", service=service(), shots=16)
        """,
        columns=200,
    )
    assert shown.end() == 0
    lines = shown.text.splitlines()
    assert lines[-1] == "the user's own"
    assert lines.count("the user's own") == 1
    assert sum(" qx: done · job" in line for line in lines) == 1


@pytest.mark.long
def test_a_forked_child_draws_nothing(ibm, terminal):
    """What is on the screen is the parent's; the child's streams are as they were."""
    ibm.hold("queued")
    shown = terminal(
        """
        original = sys.stdout
        def fork(status):
            if status.state == "queued" and not os.fork():
                print("child", sys.stdout is original, flush=True)
                os._exit(0)
        run(bell(), "ibm_brisbane", service=service(), shots=16, on_status=fork)
        os.wait()
        print("parent", sys.stdout is original)
        """
    )
    shown.until_written(b"child True")
    shown.until("queued")
    ibm.hold(None)
    assert shown.end() == 0
    assert "parent True" in shown.text


STOP, GO_ON = "\x13", "\x11"  # Ctrl-S, Ctrl-Q


@pytest.mark.long
def test_a_terminal_that_was_stopped(ibm, terminal):
    """Nothing waits for it: a watcher that dies is followed by another, and a signal is answered."""
    ibm.hold("queued")
    shown = terminal('run(bell(), "ibm_brisbane", service=service(), shots=16)', columns=120, patience=0.5)
    shown.until("queued")
    [job] = ibm.jobs()
    shown.type(STOP)
    [watcher] = watchers_of(shown)
    watcher.kill()
    ended = ibm.cursor()
    wait_for_end(watcher)
    while not watchers_of(shown):
        ibm.wait_for("GET", f"/api/v1/jobs/{job.id}", after=ended)
        ended = ibm.cursor()
    shown.process.send_signal(signal.SIGTERM)
    assert ibm.wait_job(job.id, "Cancelled").cancel_requests == 1
    shown.type(GO_ON)
    assert shown.end() == 143
    assert "✘ interrupted" in shown.text
    assert "╭" not in shown.text.split("✘")[1]


@pytest.mark.long
def test_a_program_that_ends_on_a_stopped_terminal(ibm, terminal):
    """Its end does not wait, and the watcher does its work."""
    ibm.hold("queued")
    shown = terminal(
        """
        run_ = submit(bell(), "ibm_brisbane", service=service(), shots=16, panel="auto")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.sigwait({signal.SIGUSR1})
        """,
        patience=0.5,
    )
    shown.until("queued")
    [job] = ibm.jobs()
    shown.type(STOP)
    shown.process.send_signal(signal.SIGUSR1)
    assert ibm.wait_job(job.id, "Cancelled").cancel_requests == 1
    shown.type(GO_ON)
    shown.end()


@pytest.mark.long
def test_a_submitted_runs_summary_is_there_before_its_result(ibm, terminal):
    shown = terminal(
        """
        submit(bell(), "ibm_brisbane", service=service(), shots=20000, panel="auto").result()
        print("after it")
        """,
        columns=120,
    )
    assert shown.end() == 0
    lines = shown.text.splitlines()
    assert lines[0].startswith("✔ done")
    assert lines[-1] == "after it"


@pytest.mark.long
def test_streams_are_left_as_they_were(ibm, terminal):
    """Also where the program puts its own in their places meanwhile, again and again, and a status comes at the end."""
    shown = terminal(
        """
        import contextlib, io
        original, mine = sys.stdout, service()
        for _ in range(3):
            with contextlib.redirect_stdout(io.StringIO()):
                run(bell(), "ibm_brisbane", service=mine, shots=16)
            going = submit(bell(), "ibm_brisbane", service=mine, shots=16, panel="auto")
            going.result()
        print("original", sys.stdout is original)
        """,
        columns=120,
    )
    assert shown.end() == 0
    assert "original True" in shown.text


@pytest.mark.long
def test_two_programs_on_one_terminal(ibm, terminal, write_script):
    """One draws, the other one writes lines."""
    child = write_script('run(bell(), "ibm_brisbane", service=service(), shots=16)')
    ibm.hold("queued")
    shown = terminal(
        f"""
        import subprocess
        def begin(status):
            if status.state == "queued" and not started:
                started.append(subprocess.Popen([sys.executable, {str(child)!r}]))
        started = []
        run(bell(), "ibm_brisbane", service=service(), shots=16, on_status=begin)
        started[0].wait()
        """,
        columns=200,
    )
    shown.until_written(b"qx: queued")
    shown.until("│ state")
    ibm.hold(None)
    assert shown.end() == 0
    assert shown.raw.count("✔ done".encode()) == 1
    assert shown.raw.count("qx: done ·".encode()) == 1


# Lines, and the log -----------------------------------------------------------------------------------------------


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_a_line_a_minute(capsys):
    clock = Clock()
    panel = Plain(View(clock=clock))
    panel.tick()
    assert capsys.readouterr().err == ""
    panel.show(Status("poll", "queued", "d1", "ibm_brisbane", watcher=7, time=clock.now))
    assert capsys.readouterr().err.endswith("qx: queued · job d1 · watched by pid 7\n")
    for _ in range(150):
        clock.now += 1
        panel.tick()
        panel.show(Status("poll", "queued", "d1", "ibm_brisbane", watcher=7, time=clock.now, queue_position=4))
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(
        "qx: still queued · job d1 · 1:00 in this state, 1:00 in all · position 4, start – · watched by pid 7"
    )
    assert "2:00 in this state" in second
    panel.show(Status("poll", "running", "d1", "ibm_brisbane", watcher=8, time=clock.now))
    assert capsys.readouterr().err.endswith("qx: running · job d1 · watched by pid 8\n")


@pytest.mark.long
def test_warnings_go_to_whoever_has_set_up_logging(ibm, start):
    """Beside a panel they are shown; with `QX_LOG_LEVEL`, or handlers of the program's own, they are theirs, once."""
    code = """
        import logging
        def fault(status):
            if status.state == "done":
                raise ValueError
        mine = service()
        run(bell(), "ibm_brisbane", service=mine, shots=16, on_status=fault)
        logging.basicConfig(format="own %(message)s")
        run(bell(), "ibm_brisbane", service=mine, shots=16, on_status=fault)
        run(bell(), "ibm_brisbane", service=mine, shots=16, on_status=fault, panel=None)
        """
    driver = start(code)
    assert driver.end() == 0
    said = [line for line in driver.errors.decode().splitlines() if "on_status raised" in line]
    assert " qx: warning: on_status raised ValueError" in said[0]
    assert said[1:] == ["own on_status raised ValueError; the run goes on"] * 2


# What they say ----------------------------------------------------------------------------------------------------


def rendered(content: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system="standard")
    console.print(content)
    return console.file.getvalue()


def viewed(**more: object) -> View:
    clock = Clock()
    view = View("Ctrl-C cancels", clock=clock)
    told = {"watcher": 7, "time": clock.now, "url": "https://quantum.cloud.ibm.com/jobs/d1a2b3c4d5e6f7g8h9i0"} | more
    view.see(Status("poll", "queued", "d1a2b3c4d5e6f7g8h9i0", "ibm_brisbane", **told))
    return view


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_jobs_id_is_whole_and_leads_to_its_page(width):
    for content in (block(viewed()), table([viewed(), viewed()], 20), summary(viewed(), with_results=False)):
        text = rendered(content, width)
        assert "\x1b]8;" in text
        assert "https://quantum.cloud.ibm.com/jobs/d1a2b3c4d5e6f7g8h9i0" in text
        bare = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", text)
        assert "d1a2b3c4d5e6f7g8h9i0" in re.sub(r"[\s│]", "", bare)


def test_a_table_says_what_all_have_in_common_once():
    views = [viewed(shots=100), viewed(shots=100), viewed(shots=100)]
    text = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", rendered(table(views, 20), 100))
    assert text.splitlines()[-1] == (
        "0 of 3 done · 3 queued · ibm_brisbane · 100 shots · watched by pid 7 · Ctrl-C cancels"
    )
    assert "…" not in text


@pytest.mark.parametrize("bad", ["\x1b[2J", "\x9b2J", "\x1b]52;c;AAAA\x07", "\r", "[/x]"])
def test_what_the_service_says_commands_no_terminal(bad, capsys):
    view = viewed(detail=f"a{bad}b")
    other = View(clock=Clock())
    other.see(Status("poll", f"q{bad}", f"d{bad}", f"ibm{bad}", detail=bad, watcher=7))
    failed = viewed()
    failed.end(RunTimeout("timeout", f"a{bad}b", "d1"))
    for content in (block(view), block(other), table([view, other], 20), summary(failed, with_results=True)):
        assert bad not in rendered(content).replace("\x1b]8;", "") or bad == "[/x]"
    Plain(View()).show(Status("poll", f"q{bad}", f"d{bad}", detail=bad))
    said = capsys.readouterr().err
    assert bad not in said or bad == "[/x]"


def test_a_table_has_room():
    views = [viewed() for _ in range(50)]
    lines = rendered(table(views, 10)).splitlines()
    assert len(lines) <= 10
    assert "43 not shown" in " ".join(lines)


def several(number: int, **more: object) -> list[View]:
    """Runs with labels and keys, of 40 PUBs each."""
    made = []
    for each in range(1, number + 1):
        view = View("Ctrl-C cancels", clock=Clock())
        told = {"watcher": 7, "shots": 4096, "label": f"vqe step {each}", "key": f"step-{each}", "pubs": 40} | more
        view.see(Status("poll", "queued", f"d1a2b3c4d5e6f7g8h9{each:02}", "ibm_brisbane", **told))
        made.append(view)
    return made


def bare(content: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(content)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(("columns", "lines"), [(80, 22), (40, 10)])
def test_a_row_has_the_label_and_the_key(columns, lines):
    """Where there is no room for all, these and the state stay; what all have in common is said once."""
    shown = bare(table(several(13), lines), columns)
    assert len(shown) <= lines
    assert max(map(len, shown)) <= columns
    assert {"state", "label", "key", "time"} <= set(shown[0].split())
    assert re.match(r"queued +.*vqe step 1 +step-1 +0:00", shown[1])
    below = " ".join(shown[shown.index(next(line for line in shown if line.startswith("0 of 13 done"))) :])
    assert "0 of 13 done · 13 queued · ibm_brisbane · 40 PUBs · 4096 shots" in below
    assert below.endswith("watched by pid 7 · Ctrl-C cancels")


@pytest.mark.parametrize("words", [{}, {"detail": "ibm_brisbane is paused " * 3}], ids=["short", "long"])
def test_a_block_fits_a_small_screen(words):
    [view] = several(1, queue_position=3, qpu_seconds_estimated=4.25, **words)
    shown = bare(block(view, 10), 40)
    assert len(shown) <= 10
    assert max(map(len, shown)) == 40
    text = " ".join(" ".join(shown).replace("│", " ").split())
    for wanted in ("queued", "watched by pid 7 · Ctrl-C cancels", "0:00 in this state"):
        assert wanted in text
    whole = " ".join(bare(block(view), 80))
    for name, value in (("label", "vqe step 1"), ("key", "step-1"), ("PUBs", "40"), ("shots", "4096")):
        assert re.search(rf"{name} +{value}", whole)


@pytest.mark.parametrize(
    ("columns", "said"),
    [(80, "✔ done · vqe step 1 · step-1 · job {job} · 0:00"), (40, "✔ vqe step 1 · {job:.17}… · 0:00")],
)
def test_one_of_several_that_has_ended_has_one_line(columns, said):
    good, bad = several(2)
    good.end(result_of(counted({"0": 1})))
    [line] = bare(ended(good), columns)
    assert line.startswith(said.format(job=good.job_id))
    assert len(line) <= columns
    bad.end(RunTimeout("timeout", "no result within 5 s, so the job was cancelled", bad.job_id))
    line, *reason = bare(ended(bad), columns)
    assert line.startswith("✘ RunTimeout · ")
    assert " ".join(" ".join(reason).split()) == "no result within 5 s, so the job was cancelled"


@pytest.mark.parametrize("columns", [80, 40, 24])
def test_what_tells_runs_apart_is_seen_however_narrow_it_is(columns):
    """Labels that differ at their end are cut in the middle, in the lines of runs that have ended and in the table."""
    views = several(2, label="hubbard 6x6, trotter depth 12, angle", key="")
    for number, view in enumerate(views):
        view.see(dataclasses.replace(view.status, label=f"{view.label} {number}"))
    lines = bare(table(views, 10), columns)[1:3]
    for view in views:
        view.end(result_of(counted({"0": 1})))
        lines += bare(ended(view), columns)
    assert len(lines) == 4
    assert max(map(len, lines)) <= columns
    for line, number in zip(lines, "0101", strict=True):
        assert re.search(rf"hub.* {number} ", line), line


def test_a_run_of_several_jobs_names_them_when_it_is_done():
    view = View(clock=Clock())
    view.see(Status("results", "done", None, "ibm_brisbane", watcher=7, pubs=2, label="sweep", is_embedded=True))
    cost = JobCost(Figures(4.0, 3.2))
    whole = result_of(counted({"0": 1}), counted({"1": 1})).primitive_result
    view.end(RunResult(whole, "d1", "ibm_brisbane", cost, jobs=(("d1", 1), ("d2", 1))))
    assert view.summary().startswith("done · 2 jobs · sweep · ibm_brisbane (embedded service) · 2 PUBs · ")
    assert view.summary().endswith("QPU 3.2 s charged")
    assert bare(summary(view, with_results=False), 80)[0].startswith("✔ done · 2 jobs · sweep")
    assert re.search("jobs<.*d1<.*, .*d2<.*QPU<.*3.2 s charged", as_html(view))


def test_a_run_of_several_jobs_is_told_with_its_cost_among_others_too():
    clock = Clock()
    together = Batch(clock, wall=clock)
    [single] = several(1, qpu_seconds=2.0)
    split = View(clock=clock)
    split.see(Status("results", "done", None, "ibm_brisbane", watcher=7, label="sweep"))
    simulated = View(clock=clock)
    simulated.see(Status("poll", "running", "d9", "aer_simulator", "unguarded"))
    for view in (single, split, simulated):
        together.begin(view)
    cost = JobCost(Figures(4.0, 3.2))
    whole = result_of(counted({"0": 1}), counted({"1": 1})).primitive_result
    single.end(result_of(counted({"0": 1})))
    split.end(RunResult(whole, "d1", "ibm_brisbane", cost, jobs=(("d1", 1), ("d2", 1))))
    simulated.end(result_of(counted({"0": 1})))
    for view in (single, split, simulated):
        together.end(view)
    assert together.summary().endswith("QPU 5.2 s charged")
    assert bare(ended(split), 80) == ["✔ done · sweep · 2 jobs · 0:00 · QPU 3.2 s charged"]
    assert bare(ended(split), 40) == ["✔ sweep · 2 jobs · 0:00"]
    rows = re.findall("<tr.*?</tr>", notebook.table([single, split, simulated], together))
    assert ["2 jobs" in row for row in rows] == ["sweep" in row for row in rows]
    assert ["3.2 s charged" in row for row in rows] == ["sweep" in row for row in rows]
    assert not any("pending" in row for row in rows)


def test_what_is_simulated_here_has_no_charge():
    view = View(clock=Clock())
    view.see(Status("poll", "running", "d9", "aer_simulator", "unguarded"))
    for shown in (block(view), table([view], 20)):
        assert "pending" not in " ".join(bare(shown, 200))
    assert "pending" not in as_html(view)


def test_how_many_are_done_and_how_long_the_others_take():
    """Told by the pace from the first end on, once three have ended; a late one slows it."""
    clock = Clock()
    together = Batch(clock, wall=clock)
    views = several(20)
    for view in views:
        together.begin(view)
    assert together.words() == ["0 of 20 done", "20 queued"]
    for number, view in enumerate(views[:7]):
        clock.now += 600 if not number else 21
        view.end(result_of(counted({"0": 1})) if number else RunTimeout("timeout", "late", view.job_id))
        together.end(view)
        together.end(view)  # a second time changes nothing
        assert bool(together.left()) is (number >= 2)
    assert together.words() == ["6 of 20 done, 1 failed", "about 5 min left", "13 queued"]
    clock.now += 300
    assert together.left() == "about 12 min left"
    assert not together.is_large
    assert not together.is_over


def test_the_service_knows_better_how_long_it_takes():
    clock = Clock()
    together = Batch(clock, wall=clock)
    first, second = several(2, estimated_start=clock.now + 600, qpu_seconds_estimated=60.0)
    together.begin(first)
    together.begin(second)
    assert together.left() == "about 11 min left"
    second.see(Status("poll", "queued", "d2", "ibm_brisbane"))
    assert together.left() == "", "of this one it says nothing"
    second.see(Status("poll", "running", "d2", "ibm_brisbane"))
    assert together.left() == "about 11 min left"


def test_a_large_batch_is_summed_up():
    clock = Clock()
    together = Batch(clock, wall=clock)
    views = several(21, qpu_seconds=2.0)
    for view in views:
        together.begin(view)
    assert together.is_large
    for view in views[1:]:
        view.end(result_of(counted({"0": 1})))
        together.end(view)
    clock.now += 150
    views[0].end(RunTimeout("timeout", "late", "d1"))
    together.end(views[0])
    assert bare(batch_summary(together), 80) == ["✘ 20 of 21 done, 1 failed · 2 min in all · QPU 42 s charged"]


def test_jobs_that_are_waited_for_no_more_are_no_failures():
    """After a Ctrl-C, or the --timeout, of `qx-supervisor wait`."""
    together = Batch(Clock(), wall=Clock())
    views = [JobView(shows_results=False) for _ in range(3)]
    for number, view in enumerate(views):
        view.see(Status("poll", "queued", f"d{number}", "ibm_brisbane"))
        together.begin(view)
    for view, outcome in zip(views, (JobCancelled("job", "gone", "d0"), KeyboardInterrupt()), strict=False):
        view.end(outcome)
        together.end(view)
    assert together.words() == ["0 of 3 done, 1 failed, 1 goes on", "1 queued"]
    views[2].end(RunTimeout("timeout", "job d2 is not over after 1 s; it goes on", "d2"))
    together.end(views[2])
    assert bare(batch_summary(together), 80) == [
        "✘ 0 of 3 done, 1 failed, 2 go on · <0.1 s in all · QPU 0 s charged, 1 pending"
    ]
    views[2].began = views[2].ended or 0.0
    assert bare(ended(views[2]), 80) == ["… goes on · job d2 · 0:00 · QPU pending"]


def test_runs_at_the_same_time_are_a_batch_and_others_are_not():
    first, second, third = several(3)
    batch.begin(first)
    batch.begin(second)
    assert batch.of(first) is batch.of(second)
    assert batch.of(first).total == 2
    for view in (first, second):
        view.end(RunTimeout("timeout", "late", view.job_id))
        batch.of(view).end(view)
    batch.begin(third)
    assert batch.of(third) is not batch.of(first)
    assert batch.of(third).total == 1
    del third  # a run whose panel nobody closes any more is not waited for
    gc.collect()
    batch.begin(first)
    assert batch.of(first).total == 1
    batch.of(first).end(first)


def test_a_log_has_one_line_a_minute_about_all(capsys):
    views = several(3)
    clock = Clock()
    for view in views:
        view.clock = clock
        batch.begin(view)
    panels = [Plain(view) for view in views]
    for number, panel in enumerate(panels):
        panel.show(Status("poll", "queued", f"d{number}", "ibm_brisbane", watcher=7, key=f"step-{number}", pubs=40))
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("qx: queued · job d0 · key step-0 · 40 PUBs · watched by pid 7")
    for _ in range(61):
        clock.now += 1
        for panel in panels:
            panel.tick()
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("qx: still 0 of 3 done · 3 queued · watched by pid 7")
    panels[0].close(result_of(counted({"0": 1})))
    assert capsys.readouterr().err.rstrip().endswith(" · 1 of 3 done")
    for panel in panels[1:]:
        panel.close(RunTimeout("timeout", "late", "d1"))
    assert capsys.readouterr().err.rstrip().endswith("qx: 1 of 3 done, 2 failed")


def test_the_parts_of_a_run():
    """The service's times count, where it has any; what is lost on the way belongs to the part it happened in."""
    clock = Clock()
    stopwatch = Stopwatch(clock)
    states = [
        ("backend", "connecting", 3),
        ("transpile", "transpiling", 2),
        ("submit", "submitting", 1),
        ("poll", "queued", 100),
        ("poll", "connection lost, retrying", 80),
        ("poll", "queued", 0),
        ("poll", "running", 8),
        ("results", "fetching results", 1),
    ]
    for stage, state, length in states:
        stopwatch.see(stage, state)
        clock.now += length
    assert stopwatch.timeline == (2.0, 180.0, 8.0)
    assert str(stopwatch.timeline) == "transpiled 2 s, queued 3 min, ran 8 s"
    corrected = stopwatch.timeline.corrected(Figures(queued=1000.0, ran=1170.5, ended=1176.5))
    assert str(corrected) == "transpiled 2 s, queued 3 min, ran 6 s"
    assert stopwatch.timeline.corrected(Figures(ended=5.0)) == stopwatch.timeline
    assert str(Timeline()) == ""
    assert str(Timeline(queued=-0.0, ran=9000.0)) == "queued <0.1 s, ran 2 h 30 min"


@pytest.mark.parametrize(
    ("length", "said"),
    [(0.44, "0.4 s"), (9.96, "10 s"), (99.6, "2 min"), (6000, "1 h 40 min"), (7200, "2 h"), (190800, "2 d 5 h")],
)
def test_rough_durations(length, said):
    assert rough(length) == said


def test_unprotected_runs_stand_out():
    assert "NOT WATCHED" in rendered(block(viewed(watcher=None)))
    assert "1 NOT WATCHED" in rendered(table([viewed(), viewed(watcher=None)], 20))


def test_a_pub_that_there_is_not():
    with pytest.raises(IndexError, match=r"^there is no PUB 9: the result has one PUB, number 0$"):
        result_of(counted({"0": 1})).job_id_of(9)
    with pytest.raises(IndexError, match=r"^there is no PUB 2: the result has 2 PUBs, numbers 0 to 1$"):
        result_of(counted({"0": 1}), counted({"0": 1})).job_id_of(2)


def result_of(*pubs: object) -> RunResult:
    return RunResult(PrimitiveResult([SamplerPubResult(pub) for pub in pubs]), "d1", "ibm_brisbane")


def counted(bits: dict[str, int]) -> DataBin:
    return DataBin(meas=BitArray.from_counts(bits))


def test_a_histogram_has_the_most_frequent_outcomes():
    counts = {f"{number:04b}": number for number in range(1, 13)}
    bars, more = histogram(result_of(counted(counts), counted({"0": 1})))
    assert [(bar.name, bar.count) for bar in bars] == [(f"{number:04b}", number) for number in range(5, 13)]
    assert bars[-1].length == 1.0
    assert bars[0].share == pytest.approx(5 / 78)
    assert more == "4 other outcomes, 12.8 % (PUB 0 of 2)"


def test_long_bit_strings_leave_room_for_the_counts():
    view = viewed()
    view.end(result_of(counted({"01" * 50: 7, "10" * 50: 9})))
    text = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", rendered(summary(view, with_results=True)))
    assert re.search(r"01010101010…10101010101 +█+\S* +7 +43.8 %", text)


def test_what_is_too_large_to_count_at_a_glance_is_not_counted():
    assert histogram(result_of(counted({"0": LARGE + 1}))) == ([], "")


def test_an_estimators_values():
    data = DataBin(evs=np.array([0.5, -1.0]), stds=np.array([0.01, 0.0]), shape=(2,))
    assert expectation_lines(result_of(data)) == ["⟨O[0]⟩ = 0.5 ± 0.01", "⟨O[1]⟩ = -1 ± 0"]
    one = DataBin(evs=np.array(0.25), stds=np.array(0.125))
    assert expectation_lines(result_of(one)) == ["⟨O⟩ = 0.25 ± 0.12"]
    assert expectation_lines(result_of(one, one)) == ["⟨O[0]⟩ = 0.25 ± 0.12", "⟨O[1]⟩ = 0.25 ± 0.12"]
    many = DataBin(evs=np.zeros(50), stds=np.zeros(50), shape=(50,))
    assert expectation_lines(result_of(many))[-1] == "…"
    assert expectation_lines(result_of(counted({"0": 1}))) == []


def test_an_error_is_summed_up_with_its_reason():
    view = viewed()
    view.end(RunTimeout("timeout", "no result within 5 s, so the job was cancelled", "d1a2b3c4d5e6f7g8h9i0"))
    text = rendered(summary(view, with_results=True))
    assert "✘ RunTimeout" in text
    assert "no result within 5 s, so the job was cancelled" in text


@pytest.mark.parametrize(
    ("length", "said"),
    [(0.9, "0:00"), (75, "1:15"), (3725, "1:02:05"), (90061, "1 d 1:01:01"), (-3, "0:00")],
)
def test_durations(length, said):
    assert duration(length) == said


def test_moments():
    assert when(None, 0) == "–"
    assert re.fullmatch(r"\d\d:\d\d", when(1_000_000.0, 1_000_060.0))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", when(1_000_000.0 + 3 * 86400, 1_000_000.0))


def test_a_run_that_was_taken_up_says_so():
    view = View()
    view.see(Status("poll", "queued", "d1", "ibm_brisbane", watcher=7, taken_up=True))
    assert view.protection() == "taken up again, watched by pid 7"
    console = Console(file=io.StringIO(), width=80)
    console.print(block(view))
    assert "taken up again, watched by pid 7" in console.file.getvalue()
    assert "taken up again, watched by pid 7" in as_html(view)


def test_a_job_that_may_wait_without_end_is_seen_to():
    """One of many is ranked first, and what it waits for is said below them all."""
    views = [View() for _ in range(12)]
    for number, view in enumerate(views):
        why = "ibm_brisbane is paused" if number == 9 else ""
        view.see(Status("poll", "queued", f"d{number}", "ibm_brisbane", why))
    assert [view.tone for view in views].count("warning") == 1
    shown = Console(width=100, file=io.StringIO(), record=True)
    shown.print(table(views, 12))
    lines = shown.export_text().splitlines()
    assert "d9" in lines[1]
    assert lines[-2].strip() == "ibm_brisbane is paused"
    assert len(lines) <= 12
