"""The panels: on a real terminal, as lines, and what they say."""

from __future__ import annotations

import io
import re
import signal
import subprocess
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

from qx_supervisor import RunResult, RunTimeout
from qx_supervisor.panel.notebook import as_html
from qx_supervisor.panel.plain import Plain
from qx_supervisor.panel.terminal import block, summary, table
from qx_supervisor.panel.view import View, duration, when
from qx_supervisor.pub_results import LARGE, expectation_lines, histogram
from qx_supervisor.status import Status


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
        import qx_supervisor.flight.polling
        qx_supervisor.flight.polling.COST_SECONDS = 60.0  # for the word what it cost
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
    assert re.fullmatch(r"  \d:\d\d in all · QPU 3.5 s charged", lines[2])
    bars = [line.split() for line in lines if "█" in line]
    assert [bar[0] for bar in bars] == ["00", "11"]
    assert sum(int(bar[2]) for bar in bars) == 4096
    assert "watched by" not in shown.text, "the block is gone"
    assert out.read_text() == "4096 3.5\n"


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
    text = shown.until(lambda text: "half a" in text and "3 runs: 3 queued" in text)
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
    assert not re.search("[╭╰│]|runs:|in state", shown.text)


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


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "a dumb terminal"])
@pytest.mark.short_only("NO_COLOR")
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


@pytest.mark.parametrize(
    ("level", "said"),
    [("", ""), ("info", "INFO: heard"), ("warning", ""), ("LOUD", "WARNING: QX_LOG_LEVEL is 'LOUD'; give one of")],
)
def test_the_log_level_of_the_environment(monkeypatch, level, said):
    monkeypatch.setenv("QX_LOG_LEVEL", level)
    code = "import logging, qx_supervisor; logging.getLogger('qx_supervisor').info('heard')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert said in done.stderr
    assert bool(said) == bool(done.stderr)


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
    text = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", rendered(table(views, 20)))
    assert text.splitlines()[-1] == "3 runs: 3 queued · ibm_brisbane · 100 shots · watched by pid 7 · Ctrl-C cancels"
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


def test_unprotected_runs_stand_out():
    assert "NOT WATCHED" in rendered(block(viewed(watcher=None)))
    assert "1 NOT WATCHED" in rendered(table([viewed(), viewed(watcher=None)], 20))


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
