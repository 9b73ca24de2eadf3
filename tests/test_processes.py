"""Drivers that are started in unusual ways, and drivers with processes of their own: pools, forks, daemons."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from testkit.drivers import RUN, assert_cancelled_once, end
from testkit.processes import Process, wait_for_end, wait_for_state
from testkit.watchers import watchers_of

CANCEL = "/api/v1/jobs/*/cancel"


# The ways to start ------------------------------------------------------------------------------------------------


def from_stdin(command: list[str]) -> list[str]:
    return ["bash", "-c", f"exec {command[0]} < {command[1]}"]


def as_text(command: list[str]) -> list[str]:
    return [command[0], "-c", Path(command[1]).read_text()]


def as_module(command: list[str]) -> list[str]:
    folder = Path(command[1]).parent
    package = folder / "experiment"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(Path(command[1]).read_text())
    return ["bash", "-c", f"cd {folder} && exec {command[0]} -m experiment"]


def strict(command: list[str]) -> list[str]:
    """Without assertions and the user's packages, and with hash seeds and warnings of its own."""
    return [command[0], "-OO", "-s", "-B", "-R", "-W", "error::DeprecationWarning:__main__", *command[1:]]


@pytest.mark.parametrize("way", [from_stdin, as_text, as_module, strict])
@pytest.mark.short_only("from_stdin")
def test_started_so_and_killed(ibm, start, way):
    """A plain script, without an `if __name__ == "__main__"`: the watcher never runs it again."""
    ibm.hold("queued")
    driver = start(f'say("begun", os.getpid())\n{RUN}', wrap=way)
    driver.line("begun ")
    job = driver.queued()
    [watcher] = watchers_of(driver)
    assert driver.kill() == -signal.SIGKILL
    wait_for_end(watcher)
    assert_cancelled_once(ibm, job)
    assert not any(line.startswith("begun") for line in driver.lines[1:])


@pytest.mark.long
def test_foreign_modules_of_the_watchers_name(ibm, start, tmp_path):
    """In the folder of the script, in the working directory and on PYTHONPATH: the watcher is ours all the same."""
    ibm.hold("queued")
    poison = "import os\nos.write(1, b'poisoned %s\\n' % __name__.encode())\n"
    for place in ("", "cwd", "path"):
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        (folder / "watcher.py").write_text(poison)
        (folder / "sitecustomize.py").write_text(poison)
    (tmp_path / "cwd" / "watcher.py").unlink()
    (tmp_path / "cwd" / "watcher").mkdir()
    (tmp_path / "cwd" / "watcher" / "__init__.py").write_text(poison)
    for name in ("psutil", "loop", "policy", "json", "struct"):
        (tmp_path / "cwd" / f"{name}.py").write_text(poison)

    path = [str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])]
    driver = start(
        f"""
        from qx_supervisor.link import link
        import watcher
        say("foreign", watcher.__file__)
        def look(status):
            tell(status)
            if status.state == "queued":
                say("modules", *(name for name in link.inspect()["modules"] if name.startswith("watcher")))
        {RUN.replace("=tell", "=look")}
        """,
        cwd=tmp_path / "cwd",
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path)),
    )
    assert driver.line("foreign ") == [str(tmp_path / "watcher.py")]
    job = driver.queued()
    modules = driver.line("modules ")
    assert {"watcher.policy", "watcher.cancel", "watcher.remote"} <= set(modules)
    [watcher] = watchers_of(driver)
    driver.kill()
    wait_for_end(watcher)
    assert_cancelled_once(ibm, job)
    poisoned = [line for line in driver.lines if line.startswith("poisoned")]
    assert poisoned == ["poisoned sitecustomize", "poisoned watcher"]  # the driver's own


@pytest.mark.long
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_started_with_closed_streams(ibm, start, closed):
    ibm.hold("queued")
    driver = start(
        RUN.replace(", on_status=tell", ""),
        wrap=lambda command: ["bash", "-c", f"exec {' '.join(command)} {closed}"],
    )
    [request] = ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    [watcher] = watchers_of(driver)
    assert driver.kill() == -signal.SIGKILL
    wait_for_end(watcher)
    assert_cancelled_once(ibm, request.job_id)


def test_the_lowest_descriptors_are_free(ibm, fork):
    """What the watcher is given must not be put under its own streams."""
    driver = fork(
        """
        os.dup2(1, 200)
        os.closerange(0, 100)
        from qx_supervisor.link import link
        link.prepare()
        os.write(200, b"watcher %d\\n" % link.inspect()["pid"])
        os.write(200, b"connection %d\\n" % link._process.connection.fileno())
        os._exit(0)  # without a flush of what its streams may have kept
        """
    )
    driver.line("watcher ")
    assert int(*driver.line("connection ")) > 2  # where nothing is written that is meant for stdout or stderr
    assert end(driver) == 0


def test_daemonized(ibm, start):
    """The classic double fork, which closes every descriptor it finds, also the watcher's, before the first run."""
    ibm.hold("queued")
    driver = start(
        f"""
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        out = os.dup(1)
        os.dup2(out, 200)
        os.closerange(0, 200)
        os.open(os.devnull, os.O_RDWR), os.dup(0), os.dup(0)
        def say(*words):
            os.write(200, (" ".join(map(str, words)) + "\\n").encode())
        def tell(status):
            say(status.state, status.job_id, os.getpid())
        {RUN}
        """
    )
    job, pid = driver.line("queued ")
    [watcher] = watchers_of(Process(pid))
    Process(pid).kill()
    wait_for_end(watcher)
    assert_cancelled_once(ibm, job)
    driver.end()


@pytest.mark.long
def test_daemonized_with_a_run_in_flight(ibm, fork):
    """The run dies with the process that had begun it; the daemon that is left has runs of its own."""
    ibm.hold("queued")
    driver = fork(
        """
        def one():
            circuit = QuantumCircuit(1)
            circuit.x(0)
            circuit.measure_all()
            return circuit
        def begin():
            queued = threading.Event()
            def note(status):
                if status.state == "queued":
                    say("queued", status.job_id, os.getpid())
                    queued.set()
            made = submit(one(), "ibm_brisbane", service=mine, on_status=note)
            queued.wait()
            return made
        mine = service()
        first = begin()
        if os.fork():
            os._exit(0)
        os.setsid()
        second = begin()
        signal.pause()
        """
    )
    first = driver.queued()
    assert ibm.wait_job(first, "Cancelled").cancel_requests == 1
    second, pid = driver.line("queued ")
    assert not ibm.job(second).is_final
    [watcher] = watchers_of(Process(pid))
    Process(pid).kill()
    wait_for_end(watcher)
    driver.end()
    assert_cancelled_once(ibm, first, second)


def test_its_leading_thread_has_exited(ibm, fork):
    """The process works on in another thread, though its state is that of a zombie: it is not dead."""
    ibm.hold("queued")
    driver = fork(
        f"""
        import ctypes
        def work():
            {RUN}
            say("ended")
            os._exit(0)
        threading.Thread(target=work).start()
        ctypes.CDLL(None).pthread_exit(None)
        """
    )
    job = driver.queued()
    wait_for_state(psutil.Process(driver.pid), psutil.STATUS_ZOMBIE)
    ibm.wait_for("GET", f"/api/v1/jobs/{job}", count=5)  # two seconds: the watcher's poll has looked
    assert not ibm.journal(path=CANCEL)
    ibm.hold(None)
    driver.line("ended")
    assert end(driver) == 0
    assert not ibm.journal(path=CANCEL)


# Children that are forked while `run` waits -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("childs", "code"),
    [
        ("sys.exit(7)", 7),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("return", 1),
    ],
)
@pytest.mark.short_only("return*", "sys.exit*")
def test_a_child_that_on_status_forked(ibm, fork, childs, code):
    """It has a copy of the run, and ends in its own way, but the job is its parent's."""
    ibm.hold("queued")
    driver = fork(
        f"""
        def fork(status):
            tell(status)
            if status.state == "queued":
                child = os.fork()
                if not child:
                    {childs}
                say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        result = {RUN.replace("=tell", "=fork")}
        say("counts", sum(result.counts.values()))
        """
    )
    driver.queued()
    assert driver.line("ended ") == [str(int(code))]
    ibm.hold(None)
    assert driver.line("counts ") == ["64"]
    assert end(driver) == 0, driver.errors
    if childs == "return":
        assert f"QxError: this run belongs to process {driver.pid}".encode() in driver.errors
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_a_child_that_another_thread_forked(ibm, fork):
    """While the main thread waits in `run`, with handlers in place: the child's signals are its own again."""
    ibm.hold("queued")
    driver = fork(
        f"""
        gate = threading.Event()
        def fork():
            gate.wait()
            child = os.fork()
            if not child:
                signal.pause()
            os.kill(child, signal.SIGTERM)
            say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        threading.Thread(target=fork).start()
        def note(status):
            tell(status)
            if status.state == "queued":
                gate.set()
        {RUN.replace("=tell", "=note")}
        """
    )
    job = driver.queued()
    assert driver.line("ended ") == ["-15"]
    driver.send(signal.SIGTERM)
    assert end(driver) == 143
    assert_cancelled_once(ibm, job)


def test_a_child_forked_while_a_run_is_awaited(ibm, fork):
    """Its copy of the event loop cancels its tasks as it ends; the job is its parent's."""
    ibm.hold("queued")
    driver = fork(
        """
        import asyncio, selectors
        async def main():
            queued = asyncio.Event()
            loop = asyncio.get_running_loop()
            def note(status):
                tell(status)
                if status.state == "queued":
                    loop.call_soon_threadsafe(queued.set)
            made = submit(isa(), backend(), on_status=note)
            waiting = asyncio.ensure_future(made)
            await queued.wait()
            child = os.fork()
            if not child:
                sys.exit(7)
            say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            await waiting
        # Not epoll, whose registrations the child's end would take from its parent too.
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            runner.run(main())
        """
    )
    driver.queued()
    assert driver.line("ended ") == ["7"]
    ibm.hold(None)
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)


def test_a_child_forked_in_a_guarded_block(ibm, fork):
    """It leaves the block by an exception; what is guarded is its parent's."""
    ibm.hold("queued")
    driver = fork(
        """
        from qiskit.transpiler import generate_preset_pass_manager
        from qx_supervisor import guard
        job = Sampler(mode=backend()).run([isa()])
        with guard(job):
            child = os.fork()
            if not child:
                sys.exit(7)
            say("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert driver.line("ended ") == ["7"]
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)


# Pools ------------------------------------------------------------------------------------------------------------

POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
def one():
    # A circuit that need not be transpiled: that hangs in a child of a process that has transpiled.
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.measure_all()
    return circuit
def work(backend="ibm_brisbane", **more):
    def note(status):
        if status.state == "submitted":  # it may be over before anybody sees it queued
            say("queued", status.job_id, os.getpid())
    result = run(one(), backend, service=service(), shots=8, panel=None, on_status=note, **more)
    return result.job_id, result.counts
"""

ERRORS = """
with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("{context}")) as pool:
    def attempt(*args, **more):
        future = pool.submit(work, *args, **more)
        error = future.exception()
        if error is None:
            say("got", *future.result()[1])
        else:
            say("got", type(error).__name__, *map(str, error.args))
    ibm.scenario({{"next_jobs": [{{"outcome": "failed", "reason": "luck"}}, {{"outcome": "completed"}}]}})
    attempt("nowhere")
    attempt()
    attempt()
    ibm.hold("queued")
    attempt(timeout=4)
    attempt()
    ibm.hold(None)
    attempt()
    ibm.hold("queued")
    attempt()
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.short_only("fork")
def test_errors_come_through_a_pool(ibm, fork, start, context):
    """Each is pickled and raised in the parent whole, and none breaks the pool, but for the end of its worker."""
    code = ERRORS.format(context=context)
    if context == "spawn":  # its workers import the script
        driver = start(POOL + "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in code.splitlines()))
    else:
        driver = fork(POOL + code)
    words = driver.line("got ")
    assert words[:4] == ["ConfigError", "backend", "there", "is"]
    failed, worker = driver.line("queued ")
    assert driver.line("got ") == f"JobFailed job the job failed at IBM Quantum: luck {failed}".split()
    assert driver.line("queued ")[1] == worker
    assert driver.line("got ") == ["1"]
    late, same = driver.line("queued ")
    assert same == worker
    words = driver.line("got ")
    assert (words[0], words[-1]) == ("RunTimeout", late)
    job, same = driver.line("queued ")
    assert same == worker
    Process(worker).send_signal(signal.SIGINT)
    assert driver.line("got ") == ["Interrupted", job, "2", "confirmed"]
    assert driver.line("queued ")[1] == worker
    assert driver.line("got ") == ["1"]
    last, same = driver.line("queued ")
    assert same == worker
    Process(worker).terminate()  # as `terminate()` does, which waits for its end
    assert driver.line("got ")[0] == "BrokenProcessPool"
    assert driver.end() == 0, driver.errors
    cancelled = {made.id: made.cancel_requests for made in ibm.jobs() if made.cancel_requests}
    assert cancelled == {late: 1, job: 1, last: 1}


def test_a_killed_worker_of_a_pool(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        POOL
        + """
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    futures = [pool.submit(work) for _ in range(2)]
    for future in futures:
        say("got", type(future.exception()).__name__)
"""
    )
    (first, worker), (second, other) = driver.line("queued "), driver.line("queued ")
    [watcher], [others] = watchers_of(Process(worker)), watchers_of(Process(other))
    Process(worker).kill()
    assert driver.line("got ") == ["BrokenProcessPool"]
    wait_for_end(watcher)
    driver.end()
    wait_for_end(others)  # the pool ends its other worker with a SIGTERM
    assert_cancelled_once(ibm, first, second)


@pytest.mark.long
def test_ctrl_c_at_the_terminal_of_a_pool(ibm, fork):
    """It reaches all of the group: every worker cancels its own."""
    ibm.hold("queued")
    driver = fork(
        POOL
        + """
os.setpgid(0, 0)
with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
    for future in [pool.submit(work) for _ in range(3)]:
        future.exception()
"""
    )
    found = [driver.line("queued ") for _ in range(3)]
    watchers = [watcher for _, worker in found for watcher in watchers_of(Process(worker))]
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.end() == -signal.SIGINT
    for watcher in watchers:
        wait_for_end(watcher)
    assert len(watchers) == 3
    assert_cancelled_once(ibm, *(job for job, _ in found))


@pytest.mark.parametrize("library", ["multiprocessing", "multiprocess"])
@pytest.mark.short_only("multiprocess")
def test_a_pool_beside_a_run(ibm, fork, library):
    """Its forked workers hold the parent's end of everything; neither their ends nor their errors touch the run."""
    ibm.hold("queued")
    driver = fork(
        f"""
        import {library} as library
        def square(number):
            if number == 3:
                raise ValueError("three")
            return number * number
        def compute(status):
            tell(status)
            if status.state == "queued":
                with library.get_context("fork").Pool(2) as pool:
                    say("squares", *pool.map(square, [1, 2, 4]))
                    try:
                        pool.map(square, [3])
                    except ValueError as error:
                        say("error", error)
                child = library.get_context("fork").Process(target=os.kill, args=(0, 0))
                child.start()
                child.join()
                say("pooled", child.exitcode)
        result = {RUN.replace("=tell", "=compute")}
        say("counts", sum(result.counts.values()))
        """
    )
    job = driver.queued()
    assert driver.line("squares ") == ["1", "4", "16"]
    assert driver.line("error ") == ["three"]
    assert driver.line("pooled ") == ["0"]
    ibm.hold(None)
    assert driver.line("counts ") == ["64"]
    assert end(driver) == 0, driver.errors
    assert ibm.job(job).cancel_requests == 0


def test_subprocesses_of_the_driver_outlive_it(ibm, fork):
    """They inherit nothing that would keep the watcher from seeing the death, and nothing of the watcher's."""
    ibm.hold("queued")
    driver = fork(
        f"""
        import subprocess
        def spawn(status):
            if status.state == "queued":
                child = subprocess.Popen(["sleep", "600"], close_fds=False, start_new_session=True)
                say("child", child.pid)
            tell(status)
        {RUN.replace("=tell", "=spawn")}
        """
    )
    child = Process(driver.line("child ")[0])
    job = driver.queued()
    opened = set()
    for item in Path(f"/proc/{child.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it opens and closes files as it starts
            opened.add(str(item.readlink()))
    assert not any("pidfd" in target or "ledger" in target for target in opened)
    [watcher] = watchers_of(driver)
    signal.pidfd_send_signal(driver.pidfd, signal.SIGKILL)
    wait_for_end(watcher)
    assert_cancelled_once(ibm, job)
    child.kill()
    driver.end()


@pytest.mark.long
def test_a_driver_started_by_a_driver(ibm, fork, write_script):
    """Each has its own watcher; the inner one's death is its own."""
    ibm.hold("queued")
    inner = write_script(RUN.replace("=tell", "=lambda status: say('inner', status.state, status.job_id, os.getpid())"))
    driver = fork(
        f"""
        import subprocess
        def begin_another(status):
            tell(status)
            if status.state == "queued":
                say("ended", subprocess.Popen([sys.executable, {str(inner)!r}]).wait())
        {RUN.replace("=tell", "=begin_another")}
        """
    )
    job = driver.queued()
    inner, pid = driver.line("inner queued ")
    [watcher], [inners] = watchers_of(driver), watchers_of(Process(pid))
    Process(pid).kill()
    wait_for_end(inners)
    assert driver.line("ended ") == ["-9"]
    assert (ibm.job(inner).status, ibm.job(inner).cancel_requests) == ("Cancelled", 1)
    assert not ibm.job(job).is_final
    driver.kill()
    wait_for_end(watcher)
    assert_cancelled_once(ibm, job, inner)


@pytest.mark.long
def test_warnings_of_the_python_that_runs_us(ibm, start):
    """None is ours: no file left open, no deprecated call."""
    driver = start(RUN, wrap=lambda command: [sys.executable, "-W", "default", *command[1:]])
    assert end(driver) == 0
    ours = [line for line in driver.errors.decode().splitlines() if "qx_supervisor" in line or "watcher" in line]
    assert [line for line in ours if " qx: " not in line] == []
