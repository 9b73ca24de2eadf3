"""A signal comes while `run` waits: the job is cancelled once, that is confirmed, and the program ends as Python's would."""

from __future__ import annotations

import os
import signal

import pytest
from conftest import RUN, Driver, wait_for_end, watchers_of

from qx_supervisor import local

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

ENDS = {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143, signal.SIGHUP: 129}
"""How a program ends that does not catch it."""

CATCH = """
try:
    {run}
except BaseException as error:
    kinds = [kind.__name__ for kind in (Exception, KeyboardInterrupt, SystemExit, Interrupted) if isinstance(error, kind)]
    say("caught", error.job_id, error.signum, error.cancel.replace(" ", "-"), getattr(error, "code", "-"), *kinds)
"""

JOIN = """
for thread in threading.enumerate():
    if thread.name.startswith("qx-run"):
        thread.join()
"""
"""The run's own thread has done all that it will ever do."""

POST = "/api/v1/jobs"
CANCEL = "/api/v1/jobs/*/cancel"


def caught(run: str = RUN) -> str:
    """A script that says what it caught, and goes on."""
    return CATCH.format(run=run)


def end(driver: Driver) -> int:
    """The driver's return code, once its watcher has ended too: no request can come any more."""
    watcher = driver.watcher()
    code = driver.end()
    wait_for_end(watcher)
    return code


def fault(ibm: local.Service, path: str, times: int = 1, **what: object) -> None:
    ibm.scenario({"http_faults": [{"method": "POST", "path": path, "times": times, **what}]})


def assert_cancelled_once(ibm: local.Service, job: str) -> None:
    assert [(made.id, made.status, made.cancel_requests) for made in ibm.jobs()] == [(job, "Cancelled", 1)]


# What the caller gets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["queued", "running"])
@pytest.mark.parametrize("number", SIGNALS)
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


def test_uncaught_ctrl_c_ends_as_python_ends(ibm, start):
    """Threads are joined, what was registered at exit runs, buffers are flushed; then a real death by SIGINT."""
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
        wrap=lambda command: [
            command[0],
            "-c",
            "import atexit, os, runpy, sys; atexit.register(os.write, 1, b'atexit before\\n');"
            "runpy.run_path(sys.argv[1], {'atexit': atexit}, '__main__')",
            command[1],
        ],
    )
    job = driver.queued()
    driver.send(signal.SIGINT)
    assert end(driver) == -signal.SIGINT
    assert driver.lines[-4:] == ["thread joined", "atexit after", "atexit before", "buffered, printed first"]
    assert b"Traceback" in driver.errors
    assert b"Interrupted: interrupted by SIGINT" in driver.errors
    assert_cancelled_once(ibm, job)


def test_a_second_ctrl_c_while_threads_are_joined(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        f"""
        import atexit
        atexit.register(say, "atexit")
        def linger():
            threading.main_thread().join()
            say("lingering")
            signal.sigwait({{signal.SIGUSR1}})
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
        threading.Thread(target=linger).start()
        {RUN}
        """
    )
    driver.queued()
    driver.send(signal.SIGINT)
    driver.line("lingering")
    driver.send(signal.SIGINT)
    driver.line("atexit")
    assert driver.end() == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
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


def test_ctrl_c_ends_the_shell_loop_around_it(ibm, start):
    ibm.hold("queued")

    def looped(command: list[str]) -> list[str]:
        return ["bash", "-c", f'for i in 1 2 3; do {" ".join(command)}; echo "after $?"; done']

    driver = start(f'say("pid", os.getpid())\n{RUN}', wrap=looped, process_group=0)
    pid = int(driver.line("pid ")[0])
    job = driver.queued()
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.end() == -signal.SIGINT  # bash's own: it saw a child die of the Ctrl-C that it got too
    assert not any(line.startswith("after") for line in driver.lines)
    for watcher in watchers_of(pid):
        wait_for_end(watcher)
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
    driver = start(f"result = {RUN}\nsay('counts', sum(result.counts.values()))", wrap=lambda command: ["nohup", *command])
    driver.queued()
    driver.send(signal.SIGHUP)
    ibm.hold(None)
    assert driver.line("counts ") == ["64"]
    assert driver.end() == 0
    assert not ibm.journal(path=CANCEL)


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
