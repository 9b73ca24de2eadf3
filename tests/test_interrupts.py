"""A signal comes while `run` waits: its job is cancelled once, that is confirmed, and the program ends as it should."""

from __future__ import annotations

import os
import signal
import textwrap
import time

import pytest
from testkit.drivers import RUN, assert_cancelled_once, end
from testkit.processes import Process, wait_for_end
from testkit.watchers import wait_for_watchers

from qx_supervisor import local

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

ENDS = {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143, signal.SIGHUP: 129}
"""How a program ends that does not catch it."""

CATCH = """
from qx_supervisor.flight import flight
flight.HAND_OVER_SECONDS = 30.0  # a loaded machine may be silent for a second
try:
    {run}
except BaseException as error:
    kinds = (Exception, KeyboardInterrupt, SystemExit, Interrupted)
    kinds = [kind.__name__ for kind in kinds if isinstance(error, kind)]
    say("caught", error.job_id, error.signum, error.cancel.replace(" ", "-"), getattr(error, "code", "-"), *kinds)
"""

TOOLS = """
def join():
    # Our threads have done all that they will ever do, but for what the caller does.
    from qx_supervisor import threads
    for thread in threading.enumerate():
        if thread.name.startswith("qx-run"):
            thread.join()
    for each in (threads.announcing, threads.asking, threads.ending):
        with each._changed:
            while each._work or each._idle < each._threads:
                each._changed.wait(0.01)
def slow_down(place, name, word=None):
    # Have a function of ours wait for `gate`, at a place where a signal is to find it.
    function, gate = getattr(place, name), threading.Event()
    def slowly(*args, **options):
        if word:
            say(word)
        gate.wait()
        return function(*args, **options)
    setattr(place, name, slowly)
    return gate
"""

POST = "/api/v1/jobs"
CANCEL = "/api/v1/jobs/*/cancel"


def script(*parts: str) -> str:
    """A driver's script, of parts that are indented each in its own way."""
    return "\n".join(map(textwrap.dedent, (TOOLS, *parts)))


TRANSPILED = RUN.replace("isa()", "bell()")


def caught(run: str = RUN) -> str:
    """A script that says what it caught, and goes on."""
    return CATCH.format(run=run)


def fault(ibm: local.Service, path: str, times: int = 1, **what: object) -> None:
    ibm.scenario({"http_faults": [{"method": "POST", "path": path, "times": times, **what}]})


# What the caller gets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["queued", "running"])
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.short_only("2-queued", "15-running", "1-queued")
def test_cancelled_once_confirmed_and_raised(ibm, fork, number, where):
    ibm.hold(where)
    driver = fork(caught())
    job = driver.line(f"{where} ")[0]
    watcher = driver.watcher()
    driver.send(number)
    kinds = ["KeyboardInterrupt", "Interrupted"] if number == signal.SIGINT else ["SystemExit", "Interrupted"]
    code = "-" if number == signal.SIGINT else str(128 + number)
    assert driver.line("caught ") == [job, str(int(number)), "confirmed", code, *kinds]
    assert ibm.job(job).status == "Cancelled"  # already: it was confirmed before `run` raised
    assert driver.end() == 0, driver.errors
    wait_for_end(watcher)
    assert_cancelled_once(ibm, job)
    assert b"cancelling, confirming" in driver.errors


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.short_only("15")
def test_except_exception_swallows_nothing(ibm, fork, number):
    """And uncaught, it ends the program as the signal says."""
    ibm.hold("queued")
    driver = fork(
        f"""
        try:
            {RUN}
        except Exception:
            say("swallowed")
        """
    )
    job = driver.queued()
    driver.send(number)
    assert end(driver) == ENDS[number]
    assert "swallowed" not in driver.lines
    said = f"Interrupted: interrupted by SIGINT; job {job}: cancelled, and confirmed".encode()
    assert (said in driver.errors) is (number == signal.SIGINT)  # Python prints nothing of a SystemExit
    assert_cancelled_once(ibm, job)


def test_try_run_lets_it_through(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN.replace("run(", "try_run("))
    job = driver.queued()
    driver.send(signal.SIGTERM)
    assert end(driver) == 143
    assert_cancelled_once(ibm, job)


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "(KeyboardInterrupt, SystemExit)"])
@pytest.mark.short_only("KeyboardInterrupt")
def test_code_that_knows_nothing_of_interrupted_catches_it(ibm, fork, kind):
    ibm.hold("queued")
    driver = fork(
        f"""
        try:
            {RUN}
        except {kind} as error:
            say("caught", type(error).__name__, error.signum)
        """
    )
    driver.queued()
    driver.send(signal.SIGINT)
    assert driver.line("caught ") == ["Interrupted", "2"]
    assert driver.end() == 0


# How the program ends ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_uncaught_ctrl_c_ends_as_python_ends(ibm, start, monkeypatch):
    """Threads are joined, what was registered at exit runs, buffers are flushed; then a real death by SIGINT."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    first = """
import atexit, os, runpy, sys
atexit.register(os.write, 1, b"atexit before\\n")
runpy.run_path(sys.argv[1], {"atexit": atexit}, "__main__")
"""
    ibm.hold("queued")
    driver = start(
        f"""
        atexit.register(say, "atexit after")
        def linger():
            threading.main_thread().join()  # returns when the main thread shuts down, as `threading` means it
            say("thread joined")
        threading.Thread(target=linger).start()
        atexit.register(print, "buffered, printed first")
        {RUN}
        """,
        wrap=lambda command: [command[0], "-c", first, command[1]],
    )
    job = driver.queued()
    driver.send(signal.SIGINT)
    assert end(driver) == -signal.SIGINT
    assert driver.lines[-4:] == ["thread joined", "atexit after", "atexit before", "buffered, printed first"]
    assert b"Traceback" in driver.errors
    assert b"Interrupted: interrupted by SIGINT" in driver.errors
    assert_cancelled_once(ibm, job)


def test_more_ctrl_cs_while_threads_are_joined(ibm, fork):
    """They end the joining, as they do without us; what was registered at exit runs, and the end is the same."""
    ibm.hold("queued")
    driver = fork(
        f"""
        import atexit
        at_exit = threading.Event()
        atexit.register(at_exit.set)
        atexit.register(say, "atexit")
        def linger():
            threading.main_thread().join()
            while not at_exit.wait(0.05):  # one Ctrl-C may come just before the main thread sleeps, which wakes nobody
                os.kill(os.getpid(), signal.SIGINT)
            signal.sigwait({{signal.SIGUSR1}})
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
        threading.Thread(target=linger).start()
        {RUN}
        """
    )
    driver.queued()
    driver.send(signal.SIGINT)
    driver.line("atexit")
    assert end(driver) == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.short_only("15")
def test_uncaught_termination_runs_the_exit_functions(ibm, fork, number):
    ibm.hold("queued")
    driver = fork(
        f"""
        import atexit
        atexit.register(say, "atexit")
        try:
            {RUN}
        finally:
            say("finally")
        """
    )
    driver.queued()
    driver.send(number)
    assert driver.end() == 128 + number
    assert driver.lines[-2:] == ["finally", "atexit"]
    assert b"Traceback" not in driver.errors


@pytest.mark.long
def test_ctrl_c_ends_the_shell_loop_around_it(ibm, start):
    ibm.hold("queued")

    def looped(command: list[str]) -> list[str]:
        return ["bash", "-c", f'for i in 1 2 3; do {" ".join(command)}; echo "after $?"; done']

    driver = start(f'say("pid", os.getpid())\n{RUN}', wrap=looped, process_group=0)
    inner = Process(driver.line("pid ")[0])
    job = driver.queued()
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.end() == -signal.SIGINT  # bash's own: it saw a child die of the Ctrl-C that it got too
    assert not any(line.startswith("after") for line in driver.lines)
    wait_for_watchers(inner)
    assert_cancelled_once(ibm, job)


# Handlers ---------------------------------------------------------------------------------------------------------


def test_the_earlier_handlers_come_back(ibm, fork):
    """After a result, an error, a timeout and an interrupt; and what the user put in meanwhile stays."""
    ibm.scenario({"next_jobs": [{"outcome": "completed"}, {"outcome": "failed"}]})
    driver = fork(
        f"""
        def mine(number, frame):
            pass
        signal.signal(signal.SIGHUP, mine)
        def handlers():
            return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        before = handlers()
        assert before == [signal.default_int_handler, signal.SIG_DFL, mine]
        {RUN}
        assert handlers() == before
        try:
            {RUN}
        except JobFailed:
            assert handlers() == before
        try:
            run(bell(), "no_such_backend", service=service())
        except ConfigError:
            assert handlers() == before
        ibm.hold("queued")
        try:
            {RUN.replace("on_status", "timeout=1, on_status")}
        except RunTimeout:
            assert handlers() == before
        say("ready")
        def interrupt(status):
            during.append(handlers())
            if status.state == "queued":
                os.kill(os.getpid(), signal.SIGINT)
        during = []
        try:
            {RUN.replace("=tell", "=interrupt")}
        except Interrupted:
            assert handlers() == before
        assert len({{str(item) for item in during}}) == 1 and len(set(during[0])) == 1, during
        def replace(status):
            if status.state == "queued":
                signal.signal(signal.SIGTERM, mine)
                os.kill(os.getpid(), signal.SIGINT)
        try:
            {RUN.replace("=tell", "=replace")}
        except Interrupted:
            assert handlers() == [before[0], mine, mine]
        """
    )
    assert driver.end() == 0, driver.errors


@pytest.mark.parametrize("code", ["sys.exit(7)", "raise KeyError"])
@pytest.mark.short_only("sys.exit*")
def test_on_status_that_ends_the_program(ibm, fork, code):
    """What is no `Exception` in it is meant to end the program: the job is cancelled first. What is one, is logged."""
    ibm.hold("queued")
    driver = fork(
        f"""
        import logging
        logging.basicConfig(level=logging.WARNING)
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        def stop(status):
            tell(status)
            if status.state == "queued":
                {code}
        try:
            {RUN.replace("=tell", "=stop")}
        finally:
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
        """
    )
    job = driver.queued()
    if code == "raise KeyError":
        ibm.hold(None)
        assert driver.end() == 0
        assert b"on_status raised KeyError; the run goes on" in driver.errors
        assert not ibm.journal(path=CANCEL)
    else:
        assert end(driver) == 7
        assert_cancelled_once(ibm, job)


def test_nohup(ibm, start):
    ibm.hold("queued")
    code = f"result = {RUN}\nsay('counts', sum(result.counts.values()))"
    driver = start(code, wrap=lambda command: ["nohup", *command])
    driver.queued()
    driver.send(signal.SIGHUP)
    ibm.hold(None)
    assert driver.line("counts ") == ["64"]
    assert driver.end() == 0
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_background_of_a_shell(ibm, start):
    """A shell without job control starts `command &` with SIGINT ignored: the Ctrl-C is not for it."""
    ibm.hold("queued")

    def in_background(command: list[str]) -> list[str]:
        # The shell itself must outlive the signal, but `trap ''` would have the job inherit that: it is to be the
        # shell's own doing.
        return ["bash", "-c", f"{' '.join(command)} & trap : INT; wait $!; wait $!"]

    driver = start(
        f"""
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        result = {RUN}
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        say("counts", sum(result.counts.values()))
        """,
        wrap=in_background,
        process_group=0,
    )
    driver.queued()
    os.killpg(driver.pid, signal.SIGINT)
    ibm.hold(None)
    assert driver.line("counts ") == ["64"]
    assert driver.end() == 0
    assert not ibm.journal(path=CANCEL)


# A handler of the user's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "code", "words"),
    [
        ("pass", 143, ["Interrupted", "15", "confirmed"]),
        ("raise ValueError('mine')", 1, ["ValueError", "None", "None"]),
        ("sys.exit(7)", 7, ["SystemExit", "None", "None"]),
    ],
)
@pytest.mark.short_only("pass-*")
def test_own_handler_runs_after_the_cancel(ibm, fork, then, code, words):
    """If it returns, `Interrupted` is raised; if it raises, that propagates."""
    ibm.hold("queued")
    driver = fork(
        f"""
        def own(number, frame):
            say("own", number, time.monotonic_ns(), ibm.jobs()[0].status)
            {then}
        signal.signal(signal.SIGTERM, own)
        try:
            {RUN}
        except BaseException as error:
            say("caught", type(error).__name__, getattr(error, "signum", None), getattr(error, "cancel", None))
            assert signal.getsignal(signal.SIGTERM) is own
            raise
        """
    )
    job = driver.queued()
    driver.send(signal.SIGTERM)
    assert driver.line("caught ") == words
    assert end(driver) == code
    assert_cancelled_once(ibm, job)
    [(number, called, status)] = [line.split()[1:] for line in driver.lines if line.startswith("own ")]
    assert (number, status) == ("15", "Cancelled")
    [request] = ibm.journal(path=CANCEL)
    assert request.answered is not None
    assert request.answered < int(called)


def test_own_handler_that_returns_to_work(ibm, fork):
    """The usual pattern of a service: a flag to stop. The program learns of the end of its run all the same."""
    ibm.hold("queued")
    driver = fork(
        f"""
        stop = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: stop.set())
        while not stop.is_set():
            try:
                {RUN}
            except Interrupted as error:
                say("caught", error.cancel, stop.is_set())
        """
    )
    job = driver.queued()
    driver.send(signal.SIGINT)
    assert driver.line("caught ") == ["confirmed", "True"]
    assert driver.end() == 0
    assert_cancelled_once(ibm, job)


@pytest.mark.long
def test_sigterm_made_a_ctrl_c(ibm, fork):
    """`signal(SIGTERM, default_int_handler)` asks for a KeyboardInterrupt on SIGTERM."""
    ibm.hold("queued")
    driver = fork(
        f"""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            {RUN}
        except KeyboardInterrupt:
            say("caught")
        """
    )
    job = driver.queued()
    driver.send(signal.SIGTERM)
    driver.line("caught")
    assert end(driver) == 0
    assert_cancelled_once(ibm, job)


@pytest.mark.long
def test_own_handler_that_raises_after_a_hand_over(ibm, fork):
    """It ends the run as quickly as the hand-over itself: nothing waits for the request that hangs."""
    ibm.hold("queued")
    fault(ibm, CANCEL, delay_seconds=20)
    driver = fork(
        f"""
        def own(number, frame):
            raise ValueError
        signal.signal(signal.SIGTERM, own)
        try:
            {RUN}
        except ValueError:
            say("caught")
        """
    )
    job = driver.queued()
    driver.send(signal.SIGTERM)
    ibm.wait_for("POST", CANCEL)
    driver.send(signal.SIGTERM)
    driver.line("caught")
    assert ibm.journal(path=CANCEL)[0].answered is None
    driver.end()
    ibm.wait_job(job, "Cancelled")


def test_a_signal_as_the_result_arrives_is_not_lost(ibm, fork):
    """The run is over when the loop could see it: the earlier handler gets it, and the result is returned."""
    driver = fork(
        script(
            f"""
            got = []
            signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
            signal.signal(signal.SIGHUP, lambda number, frame: got.append(number))
            def signal_at_the_end(status):
                if status.state == "done":
                    join()
                    os.kill(os.getpid(), signal.SIGTERM)
                    os.kill(os.getpid(), signal.SIGHUP)
            result = {RUN.replace("=tell", "=signal_at_the_end")}
            say("got", *sorted(got), sum(result.counts.values()))
            """
        )
    )
    assert driver.line("got ") == ["1", "15", "64"]
    assert driver.end() == 0
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_late_signals_reach_every_handler_though_the_first_raises(ibm, fork):
    driver = fork(
        script(
            f"""
            def hang_up(number, frame):
                raise ValueError("hang up")
            signal.signal(signal.SIGHUP, hang_up)
            def signal_at_the_end(status):
                if status.state == "done":
                    join()
                    os.kill(os.getpid(), signal.SIGHUP)
                    os.kill(os.getpid(), signal.SIGINT)
            try:
                {RUN.replace("=tell", "=signal_at_the_end")}
            except KeyboardInterrupt as error:
                say("caught", repr(error.__context__))
            """
        )
    )
    assert driver.line("caught ") == ["ValueError('hang", "up')"]
    assert driver.end() == 0


@pytest.mark.long
def test_a_handler_put_in_during_the_run_that_calls_what_it_found(ibm, fork):
    """Libraries do that. What it found is ours, and after the run it leads on to what was there before."""
    driver = fork(
        f"""
        def chain(status):
            if status.state == "submitted":  # it may be over before anybody sees it queued
                for number in (signal.SIGTERM, signal.SIGHUP):
                    found = signal.getsignal(number)
                    signal.signal(number, lambda *args, found=found: (say("chained", args[0]), found(*args)))
        signal.signal(signal.SIGHUP, lambda number, frame: say("own", number))
        {RUN.replace("=tell", "=chain")}
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        """
    )
    assert driver.end() == -signal.SIGTERM
    assert driver.lines == ["chained 1", "own 1", "chained 15"]


# Before there is a job id -----------------------------------------------------------------------------------------


def test_while_it_connects(ibm, fork):
    """There is nothing to cancel, and no POST ever leaves."""
    ibm.scenario({"http_faults": [{"method": "GET", "path": "/api/v1/backends/*", "delay_seconds": 1}]})
    driver = fork(script(caught(), "join()"))
    ibm.wait_for("GET", "/api/v1/backends/*")
    driver.send(signal.SIGINT)
    assert driver.line("caught ")[:3] == ["None", "2", "nothing-to-cancel"]
    assert end(driver) == 0
    assert not ibm.journal(method="POST", path="/api/v1/*")
    assert not ibm.jobs()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.short_only("2")
def test_while_it_transpiles(ibm, fork, number):
    driver = fork(
        script(
            """
            from qx_supervisor import service as q
            gate = slow_down(q, "to_isa", "at-work")
            """,
            caught(TRANSPILED),
            "gate.set()\njoin()",
        )
    )
    driver.line("at-work")
    driver.send(number)
    assert driver.line("caught ")[:3] == ["None", str(int(number)), "nothing-to-cancel"]
    assert end(driver) == 0
    assert not ibm.journal(path=POST)


@pytest.mark.long
def test_two_signals_while_it_transpiles(ibm, fork):
    """The second one hands over what is to be cancelled, and nothing is."""
    driver = fork(
        script(
            """
            from qx_supervisor import service as q
            gate = slow_down(q, "to_isa")
            def interrupt(status):
                if status.state == "transpiling":
                    os.kill(os.getpid(), signal.SIGINT)
                    os.kill(os.getpid(), signal.SIGTERM)
            """,
            caught(TRANSPILED.replace("=tell", "=interrupt")),
            "gate.set()\njoin()",
        )
    )
    assert driver.line("caught ")[:3] == ["None", "2", "nothing-to-cancel"]
    assert end(driver) == 0
    assert not ibm.journal(path=POST)


def test_while_the_watcher_is_told(ibm, fork):
    """The intent that was on its way is taken back: the watcher is left with nothing to guard."""
    driver = fork(
        script(
            """
            from qx_supervisor.link import link
            link.announce_early = lambda *_: None  # as in a process whose watcher is not there yet
            gate = slow_down(link, "announce", "announcing")
            """,
            caught(),
            """
            gate.set()
            join()
            say("guarded", *link.inspect()["runs"])
            """,
        )
    )
    driver.line("announcing")
    driver.send(signal.SIGINT)
    assert driver.line("caught ")[:3] == ["None", "2", "nothing-to-cancel"]
    assert driver.line("guarded") == []
    assert end(driver) == 0
    assert not ibm.journal(path=POST)


def test_while_it_waits_for_a_rate_limit(ibm, fork):
    fault(ibm, POST, status=429, retry_after=600)
    driver = fork(script(caught(), "join()"))
    driver.line("rate limited, waiting")
    driver.send(signal.SIGTERM)
    assert driver.line("caught ")[:3] == ["None", "15", "nothing-to-cancel"]
    assert end(driver) == 0
    assert len(ibm.journal(path=POST)) == 1
    assert not ibm.jobs()


@pytest.mark.parametrize("phase", ["before", "after"])
@pytest.mark.short_only("after")
def test_while_the_post_is_in_flight(ibm, fork, phase):
    """It can't be called back: its answer is waited for, and the job that it made is cancelled."""
    ibm.hold("queued")
    fault(ibm, POST, delay_seconds=1, phase=phase)
    driver = fork(caught())
    ibm.wait_for("POST", POST)
    driver.send(signal.SIGINT)
    job, number, outcome = driver.line("caught ")[:3]
    assert (number, outcome) == ("2", "confirmed")
    assert end(driver) == 0
    assert_cancelled_once(ibm, job)


def test_second_signal_while_the_post_is_in_flight(ibm, fork, monkeypatch):
    """The watcher finds the job by its tag when it appears, after the driver has gone."""
    monkeypatch.setenv("QX_SWEEP_WINDOW", "6")
    ibm.hold("queued")
    fault(ibm, POST, delay_seconds=4)
    driver = fork(caught())
    ibm.wait_for("POST", POST)
    os.kill(ibm.pid, signal.SIGSTOP)  # it makes no job while it is stopped
    try:
        driver.send(signal.SIGINT)
        driver.send(signal.SIGTERM)
        assert driver.line("caught ")[:3] == ["None", "2", "handed-over"]
        assert driver.end() == 0
        gone = time.monotonic_ns()
    finally:
        os.kill(ibm.pid, signal.SIGCONT)
    wait_for_watchers(driver)
    [job] = ibm.jobs()
    assert job.created > gone
    assert (job.status, job.cancel_requests) == ("Cancelled", 1)


def test_the_watcher_is_handed_the_post_of_a_driver_that_lives_on(ibm, fork):
    ibm.hold("queued")
    fault(ibm, POST, delay_seconds=2)
    driver = fork(script(caught(), 'join()\nsay("joined")\nsignal.pause()'))
    ibm.wait_for("POST", POST)
    driver.send(signal.SIGINT)
    driver.send(signal.SIGTERM)
    assert driver.line("caught ")[:3] == ["None", "2", "handed-over"]
    driver.line("joined")
    [job] = ibm.jobs()
    ibm.wait_job(job.id, "Cancelled")
    driver.kill()
    assert_cancelled_once(ibm, job.id)


# A second signal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.short_only("2")
def test_second_signal_while_the_cancel_hangs(ibm, fork, number):
    """`Interrupted` comes at once, and the watcher cancels."""
    ibm.hold("queued")
    fault(ibm, CANCEL, delay_seconds=20)
    driver = fork(caught())
    job = driver.queued()
    driver.send(number)
    ibm.wait_for("POST", CANCEL)
    driver.send(number)
    assert driver.line("caught ")[:3] == [job, str(int(number)), "handed-over"]
    first = ibm.journal(path=CANCEL)[0]
    assert first.answered is None
    assert end(driver) == 0
    ibm.wait_job(job, "Cancelled")
    requests = ibm.journal(path=CANCEL)
    assert len(requests) == 2  # the driver's, that hangs, and the watcher's
    assert requests[0].connection != requests[1].connection


@pytest.mark.long
def test_second_signal_while_the_cancel_is_refused(ibm, fork):
    ibm.hold("queued")
    fault(ibm, CANCEL, times=1000, status=503)
    driver = fork(RUN)
    job = driver.queued()
    driver.send(signal.SIGINT)
    ibm.wait_for("POST", CANCEL, answered=True)
    driver.send(signal.SIGINT)
    watcher = driver.watcher()
    assert driver.end() == -signal.SIGINT
    assert f"job {job}: the watcher is cancelling it".encode() in driver.errors
    assert not ibm.job(job).is_final  # the driver is gone before
    ibm.scenario({})
    wait_for_end(watcher)
    assert ibm.job(job).status == "Cancelled"
    *refused, last = [entry.status for entry in ibm.journal(path=CANCEL)]
    assert (set(refused), last) == ({503}, 204)


@pytest.mark.long
def test_second_signal_while_the_cancel_is_not_confirmed(ibm, fork):
    """204 is no proof: the job still runs."""
    ibm.hold("running", cancel_lag=8)
    driver = fork(caught())
    job = driver.line("running ")[0]
    driver.send(signal.SIGTERM)
    ibm.wait_for("POST", CANCEL, answered=True)
    driver.send(signal.SIGTERM)
    assert driver.line("caught ")[:3] == [job, "15", "handed-over"]
    assert ibm.job(job).status == "Running"
    assert end(driver) == 0
    assert ibm.job(job).status == "Cancelled"
    assert len(ibm.journal(path=CANCEL)) == 2


@pytest.mark.long
def test_a_slow_confirmation_is_waited_for(ibm, fork):
    ibm.hold("running", cancel_lag=1.5)
    driver = fork(caught())
    job = driver.line("running ")[0]
    driver.send(signal.SIGTERM)
    assert driver.line("caught ")[:3] == [job, "15", "confirmed"]
    assert end(driver) == 0
    assert_cancelled_once(ibm, job)


def test_no_confirmation_within_ten_seconds(ibm, fork):
    ibm.hold("running", cancel_lag=16)
    driver = fork(caught())
    job = driver.line("running ")[0]
    driver.send(signal.SIGHUP)
    assert driver.line("caught ")[:3] == [job, "1", "handed-over"]
    assert ibm.job(job).status == "Running"
    assert end(driver) == 0
    assert ibm.job(job).status == "Cancelled"


# Timeouts ---------------------------------------------------------------------------------------------------------

TIMED_OUT = """
from qx_supervisor import threads
alarms, after = [], threads.ending.after
def keep(seconds, work):
    alarms.append(work)
    return after(seconds, work)
threads.ending.after = keep
signal.signal(signal.SIGUSR1, lambda *_: threads.ending.do(alarms[0]))  # the time is up when the test says so
try:
    {run}
except RunTimeout as error:
    say("caught", error.stage, error.job_id, error)
"""


def timed_out(seconds: float) -> str:
    return TIMED_OUT.format(run=RUN.replace("on_status", f"timeout={seconds}, on_status"))


@pytest.mark.parametrize("where", ["queued", "running"])
@pytest.mark.short_only("queued")
def test_timeout(ibm, fork, where):
    ibm.hold(where)
    driver = fork(timed_out(3600))
    job = driver.line(f"{where} ")[0]
    driver.send(signal.SIGUSR1)
    said = f"timeout {job} no result within 3600 s, so the job was cancelled (job {job})"
    assert driver.line("caught ") == said.split()
    assert end(driver) == 0
    assert_cancelled_once(ibm, job)


def test_timeout_before_anything_is_submitted(ibm, fork):
    ibm.scenario({"http_faults": [{"method": "GET", "path": "/api/v1/backends/*", "delay_seconds": 2}]})
    driver = fork(script(timed_out(0.2), "join()"))
    words = "timeout None no result within 0.2 s, and nothing had been submitted"
    assert driver.line("caught ") == words.split()
    assert end(driver) == 0
    assert not ibm.journal(path=POST)


@pytest.mark.long
def test_timeout_while_the_post_is_in_flight(ibm, fork):
    ibm.hold("queued")
    fault(ibm, POST, delay_seconds=4)
    driver = fork(timed_out(3600))
    ibm.wait_for("POST", POST)
    driver.send(signal.SIGUSR1)
    stage, job = driver.line("caught ")[:2]
    assert stage == "timeout"
    assert end(driver) == 0
    assert_cancelled_once(ibm, job)


# The panel --------------------------------------------------------------------------------------------------------


def test_the_panel_writes_to_stderr_only(ibm, fork):
    driver = fork(RUN.replace(", on_status=tell", ""))
    assert driver.end() == 0
    assert driver.lines == []
    lines = driver.errors.decode().splitlines()
    [job] = ibm.jobs()
    assert all(" qx: " in line for line in lines), lines
    assert any(f"submitted · job {job.id}" in line for line in lines)
    assert sum("watched by pid" in line for line in lines) == 1
    assert f"qx: done · job {job.id} · ibm_brisbane · 64 shots · " in lines[-1]


@pytest.mark.parametrize(
    ("before", "more"),
    [
        ("", "panel=None"),
        ("sys.stderr.close()", "panel='plain'"),
        ("sys.stderr = None", "panel='auto'"),
    ],
)
@pytest.mark.long
def test_a_panel_that_shows_nothing(ibm, fork, before, more):
    driver = fork(f"{before}\nresult = {RUN.replace('on_status', f'{more}, on_status')}\nsay('counts', *result.counts)")
    assert set(driver.line("counts ")) <= {"00", "11"}
    assert driver.end() == 0
    assert driver.errors == b""


def test_on_status_is_called_in_the_thread_of_the_caller(ibm, fork):
    driver = fork(
        f"""
        threads = set()
        def note(status):
            threads.add(threading.current_thread().name)
        def in_a_thread():
            {RUN.replace("=tell", "=note")}
        {RUN.replace("=tell", "=note")}
        thread = threading.Thread(target=in_a_thread, name="mine")
        thread.start()
        thread.join()
        say("threads", *sorted(threads))
        """
    )
    assert driver.line("threads ") == ["MainThread", "mine"]
    assert driver.end() == 0
