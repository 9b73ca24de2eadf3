"""Runs that are begun and not waited for at once: `submit`, the `Run` that it returns, threads, and asyncio."""

from __future__ import annotations

import signal
import sys
import textwrap

import pytest
from testkit.drivers import RUN, assert_cancelled_once, end
from testkit.processes import Process, wait_for_end
from testkit.watchers import watchers_of

SUBMIT = "submit(isa(), backend(), shots=64, on_status=tell)"

TOOLS = """
import asyncio
loud = threading.Event()
def announce(status, state="queued"):
    tell(status)
    if status.state == state:
        loud.set()
def begin(state="queued", **more):
    # Begin a run, and return when its job has come to a state.
    loud.clear()
    def note(status):
        announce(status, state)
    made = submit(isa(), backend(), shots=64, on_status=note, **more)
    loud.wait()
    return made
async def begun(**more):
    return await asyncio.to_thread(begin, **more)
def one():
    # A circuit that need not be transpiled: that hangs in a child of a process that has transpiled.
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.measure_all()
    return circuit
"""

CANCEL = "/api/v1/jobs/*/cancel"


@pytest.fixture
def program(fork):
    """Starts a program in a fork, with `begin()` and `begun()`."""
    return lambda code: fork(TOOLS + textwrap.dedent(code))


# Run --------------------------------------------------------------------------------------------------------------


def test_a_run_from_its_beginning_to_its_result(ibm, program):
    ibm.hold("queued")
    driver = program(
        """
        made = begin()
        assert not made.done()
        assert made.status().state == "queued", made.status()
        assert made.job_id == made.status().job_id
        assert repr(made) == f"Run(state='queued', job_id={made.job_id!r})", made
        try:
            made.result(timeout=0.2)
        except TimeoutError as error:
            say("late", error)
        calls = []
        over = threading.Event()
        def call(run):
            calls.append(run)
            over.set()
        made.add_done_callback(call)
        ibm.hold(None)
        result = made.result(timeout=60)
        assert made.done()
        assert (result.job_id, sum(result.counts.values())) == (made.job_id, 64)
        over.wait()
        made.add_done_callback(call)  # at once
        assert calls == [made, made]
        assert made.result() is result
        assert made.cancel() == "confirmed"  # there is nothing to cancel any more
        assert made.result() is result
        assert made.status().state == "done", made.status()
        """
    )
    assert " ".join(driver.line("late ")) == "the run is not over after 0.2 s; its job goes on"
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)
    assert driver.errors == b""  # `submit` shows nothing


def test_cancel(ibm, program):
    ibm.hold("queued")
    driver = program(
        """
        made = begin()
        assert made.cancel() == "confirmed"
        assert made.done()
        assert made.cancel() == "confirmed"
        try:
            made.result()
        except JobCancelled as error:
            say("caught", error.job_id, error.stage, error)
        """
    )
    job = driver.queued()
    assert driver.line("caught ") == f"{job} job cancelled by this program (job {job})".split()
    assert end(driver) == 0, driver.errors
    assert_cancelled_once(ibm, job)


def test_cancel_before_anything_is_submitted(ibm, program):
    ibm.scenario({"http_faults": [{"method": "GET", "path": "/api/v1/backends/*", "delay_seconds": 1}]})
    driver = program(
        f"""
        made = {SUBMIT}
        assert made.job_id is None
        assert made.cancel() == "nothing to cancel"
        try:
            made.result()
        except JobCancelled as error:
            say("caught", error.job_id)
        for thread in threading.enumerate():
            if thread.name.startswith("qx-run"):
                thread.join()
        """
    )
    assert driver.line("caught ") == ["None"]
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(method="POST", path="/api/v1/jobs*")


def test_cancel_from_four_threads_at_once(ibm, program):
    ibm.hold("running")
    driver = program(
        """
        from concurrent.futures import ThreadPoolExecutor
        made = begin("running")
        with ThreadPoolExecutor(4) as pool:
            say("outcomes", *pool.map(lambda _: made.cancel(), range(4)))
        """
    )
    job = driver.line("running ")[0]
    assert driver.line("outcomes ") == ["confirmed"] * 4
    assert end(driver) == 0, driver.errors
    assert_cancelled_once(ibm, job)


def test_errors_come_out_of_result(ibm, program):
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "no luck"}]})
    driver = program(
        """
        for change in ({}, {"timeout": 1}, {"backend": "nowhere"}):
            made = submit(bell(), **{"backend": "ibm_brisbane", "service": service(), **change})
            try:
                made.result()
            except RunError as error:
                say("caught", type(error).__name__, error.stage, error.job_id == made.job_id)
            ibm.hold("queued")
        try:
            submit("no circuit")
        except ConfigError:
            say("refused")
        """
    )
    assert driver.line("caught ") == ["JobFailed", "job", "True"]
    assert driver.line("caught ") == ["RunTimeout", "timeout", "True"]
    assert driver.line("caught ") == ["ConfigError", "backend", "True"]
    driver.line("refused")
    assert driver.end() == 0, driver.errors


@pytest.mark.parametrize("where", ["queued", "running"])
@pytest.mark.short_only("queued")
def test_detached_the_job_outlives_its_driver(ibm, program, where):
    ibm.hold(where)
    driver = program(
        f"""
        made = begin("{where}")
        made.detach()
        say("detached")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    driver.line("detached")
    watchers = watchers_of(driver)
    assert driver.end() == -signal.SIGKILL
    for watcher in watchers:
        wait_for_end(watcher)
    [job] = ibm.jobs()
    ibm.hold(None)
    assert ibm.wait_job(job.id).status == "Completed"
    assert ibm.job(job.id).cancel_requests == 0


def test_detached_before_it_is_submitted(ibm, program):
    """The run was let go while its id was unknown: its job is let go as soon as it has one."""
    ibm.hold("queued")
    driver = program(
        """
        from qx_supervisor import service as q
        to_isa, gate = q.to_isa, threading.Event()
        def slowly(*args, **options):
            gate.wait()
            return to_isa(*args, **options)
        q.to_isa = slowly
        made = submit(isa(), backend(), on_status=announce)
        made.detach()
        gate.set()
        loud.wait()
        say("guarded", *__import__("qx_supervisor.link").link.link._runs)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    job = driver.queued()
    assert driver.line("guarded") == []
    watchers = watchers_of(driver)
    assert driver.end() == -signal.SIGKILL
    for watcher in watchers:
        wait_for_end(watcher)
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Queued", 0)


def test_a_detached_run_still_has_its_result(ibm, program):
    ibm.hold("queued")
    driver = program(
        """
        made = begin()
        made.detach()
        ibm.hold(None)
        say("counts", sum(made.result().counts.values()))
        """
    )
    assert driver.line("counts ") == ["64"]
    assert end(driver) == 0
    assert not ibm.journal(path=CANCEL)


def test_ctrl_c_in_the_users_own_code_leaves_the_job_alone(ibm, program):
    """`submit` and `Run.result()` install no handlers: the job runs on, guarded, until the process ends."""
    ibm.hold("queued")
    driver = program(
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        made = begin()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
        try:
            say("waiting")
            made.result()
        except KeyboardInterrupt as error:
            say("caught", type(error).__name__, made.done())
        signal.sigwait({signal.SIGUSR1})
        """
    )
    job = driver.queued()
    driver.line("waiting")
    driver.send(signal.SIGINT)
    assert driver.line("caught ") == ["KeyboardInterrupt", "False"]
    assert not ibm.journal(path=CANCEL)
    driver.send(signal.SIGUSR1)
    assert end(driver) == 0
    assert_cancelled_once(ibm, job)


def test_ctrl_c_while_result_waits_ends_as_ever(ibm, program):
    """A plain KeyboardInterrupt, a line that says what becomes of the job, and the watcher cancels after the death."""
    ibm.hold("queued")
    driver = program('made = begin()\nsay("waiting")\nmade.result()')
    job = driver.queued()
    driver.line("waiting")
    driver.send(signal.SIGINT)
    assert end(driver) == -signal.SIGINT
    *_, error, said = driver.errors.decode().splitlines()
    assert error == "KeyboardInterrupt"
    assert said.startswith("qx: the program ends, and with it a run that is not over (job ")
    assert_cancelled_once(ibm, job)


# Threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_four_threads_one_of_which_fails(ibm, program):
    """`run` works off the main thread; each gets what belongs to its own circuit."""
    driver = program(
        """
        from concurrent.futures import ThreadPoolExecutor
        def ones(number):
            circuit = QuantumCircuit(4)
            for qubit in range(4):
                if number >> qubit & 1:
                    circuit.x(qubit)
            circuit.measure_all()
            return circuit
        ready = threading.Barrier(4)
        def work(number):
            ready.wait()
            backend = "ibm_brisbane" if number != 3 else "ibm_brisbone"
            return run(ones(number), backend, service=mine, shots=64, panel=None).counts
        mine = service()
        with ThreadPoolExecutor(4) as pool:
            futures = {number: pool.submit(work, number) for number in (3, 5, 9, 14)}
        for number, future in futures.items():
            say(number, type(future.exception()).__name__ if future.exception() else future.result())
        """
    )
    assert driver.line("3 ") == ["ConfigError"]
    for number in (5, 9, 14):
        assert driver.line(f"{number} ") == [f"{{'{number:04b}':", "64}"]
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_a_run_goes_on_when_the_main_thread_has_ended(ibm, program):
    """Python 3.12.0 to 3.12.2 starts no thread then: those that it needs are there, and another run is refused."""
    ibm.hold("queued")
    driver = program(
        """
        mine = service()
        queued = threading.Event()
        def note(status):
            if status.state == "queued":
                queued.set()
        def work():
            say("result", *run(bell(), "ibm_brisbane", service=mine, shots=8, panel=None, on_status=note).counts)
            try:
                run(bell(), "ibm_brisbane", service=mine, shots=8, panel=None)
            except ConfigError as error:
                say("refused", error)
            else:
                say("another")
        threading.Thread(target=work).start()
        queued.wait()
        say("main ends")
        """
    )
    driver.line("main ends")
    ibm.hold(None)
    assert set(driver.line("result ")) <= {"00", "11"}
    assert end(driver) == 0
    told = driver.lines[-1]
    # As Python 3.12 was before gh-113964 was mended.
    is_refused = (3, 12) <= sys.version_info < (3, 12, 3)
    assert "main thread has ended" in told if is_refused else told == "another"


def test_sigkill_with_four_runs_in_flight(ibm, program):
    ibm.hold("queued")
    driver = program(
        """
        mine = service()
        def work():
            run(bell(), "ibm_brisbane", service=mine, panel=None, on_status=tell)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        """
    )
    jobs = [driver.queued() for _ in range(4)]
    assert len(watchers_of(driver)) == 1
    [watcher] = watchers_of(driver)
    driver.kill()
    wait_for_end(watcher)
    assert_cancelled_once(ibm, *jobs)


def test_ctrl_c_ends_the_run_of_the_main_thread_only(ibm, program):
    """The other thread's job goes on, and the program ends when that thread does, as any Python program."""
    ibm.hold("queued")
    driver = program(
        f"""
        def work():
            result = run(isa(), backend(), shots=64, panel=None, on_status=announce)
            say("counts", sum(result.counts.values()))
        threading.Thread(target=work).start()
        loud.wait()
        say("main")
        {RUN}
        """
    )
    spared = driver.queued()
    driver.line("main")
    job = driver.queued()
    driver.send(signal.SIGINT)
    driver.line("cancelled ")
    ibm.hold(None)
    assert driver.line("counts ") == ["64"]
    assert end(driver) == -signal.SIGINT
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Cancelled", 1)
    assert (ibm.job(spared).status, ibm.job(spared).cancel_requests) == ("Completed", 0)


# asyncio ----------------------------------------------------------------------------------------------------------


def test_await(ibm, program):
    driver = program(
        """
        async def main():
            ticks = 0
            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.01)
            ticking = asyncio.create_task(tick())
            result = await submit(isa(), backend(), shots=64)
            ticking.cancel()
            say("counts", sum(result.counts.values()), ticks > 10)
        asyncio.run(main(), debug=True)
        """
    )
    assert driver.line("counts ") == ["64", "True"]
    assert end(driver) == 0, driver.errors


def test_gather(ibm, program):
    ibm.scenario({"next_jobs": [{"outcome": "failed", "reason": "no luck"}]})
    driver = program(
        """
        async def main():
            mine = service()
            runs = [submit(bell(), "ibm_brisbane", service=mine, shots=shots) for shots in (16, 32, 64)]
            found = await asyncio.gather(*runs, return_exceptions=True)
            for run, shots in zip(runs, (16, 32, 64)):
                one = found[runs.index(run)]
                say("one", one.__class__.__name__ if isinstance(one, JobFailed) else sum(one.counts.values()) == shots)
        asyncio.run(main())
        """
    )
    assert sorted(driver.line("one ")[0] for _ in range(3)) == ["JobFailed", "True", "True"]
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)


@pytest.mark.parametrize(
    "wait",
    [
        "task = asyncio.ensure_future(made); await asyncio.sleep(0); task.cancel(); await task",
        "await asyncio.wait_for(made, 0.1)",
        "await in_time(made)",
    ],
)
@pytest.mark.short_only("task*")
def test_cancelling_the_task_cancels_the_job(ibm, program, wait):
    """And by the time that the task has ended, the job is cancelled."""
    ibm.hold("queued")
    driver = program(
        f"""
        async def in_time(made):
            async with asyncio.timeout(0.1):
                await made
        async def main():
            made = await begun()
            try:
                {wait}
            except (asyncio.CancelledError, TimeoutError) as error:
                say("caught", type(error).__name__, ibm.job(made.job_id).status, made.done())
        asyncio.run(main())
        """
    )
    job = driver.queued()
    assert driver.line("caught ")[1:] == ["Cancelled", "True"]
    assert end(driver) == 0, driver.errors
    assert_cancelled_once(ibm, job)


def test_shielded_the_job_goes_on(ibm, program):
    ibm.hold("queued")
    driver = program(
        """
        async def main():
            made = await begun()
            try:
                await asyncio.wait_for(asyncio.shield(made), 0.1)
            except TimeoutError:
                say("late", ibm.job(made.job_id).status)
            ibm.hold(None)
            say("counts", sum((await made).counts.values()))
        asyncio.run(main())
        """
    )
    assert driver.line("late ") == ["Queued"]
    assert driver.line("counts ") == ["64"]
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)


def test_detached_a_cancelled_task_leaves_the_job(ibm, program):
    ibm.hold("queued")
    driver = program(
        """
        async def main():
            made = await begun()
            made.detach()
            try:
                await asyncio.wait_for(made, 0.1)
            except TimeoutError:
                say("late", ibm.job(made.job_id).status)
        asyncio.run(main())
        """
    )
    assert driver.line("late ") == ["Queued"]
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)


def test_ctrl_c_while_a_run_is_awaited(ibm, program):
    """asyncio cancels its main task, and that cancels the job, before the program ends."""
    ibm.hold("queued")
    driver = program(
        """
        async def main():
            made = await begun()
            say("waiting")
            try:
                await made
            finally:
                say("finally", ibm.job(made.job_id).status)
        asyncio.run(main())
        """
    )
    job = driver.queued()
    driver.line("waiting")
    driver.send(signal.SIGINT)
    assert driver.line("finally ") == ["Cancelled"]
    assert end(driver) == -signal.SIGINT
    assert_cancelled_once(ibm, job)


def test_second_ctrl_c_while_an_awaited_run_is_cancelled(ibm, program):
    """It ends the program at once, and the watcher sees to the job."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"method": "POST", "path": CANCEL, "delay_seconds": 60}]})
    driver = program(
        """
        async def main():
            made = await begun()
            say("waiting")
            await made
        asyncio.run(main())
        """
    )
    job = driver.queued()
    driver.line("waiting")
    driver.send(signal.SIGINT)
    ibm.wait_for("POST", CANCEL)
    driver.send(signal.SIGINT)
    assert end(driver) == -signal.SIGINT
    first, second = ibm.journal(path=CANCEL)
    assert (first.answered, second.status) == (None, 204)
    assert ibm.job(job).status == "Cancelled"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.short_only("2")
def test_run_inside_a_coroutine(ibm, program, number):
    """It blocks the loop, as it must, and a signal ends it as everywhere."""
    ibm.hold("queued")
    driver = program(
        f"""
        async def main():
            try:
                {RUN}
            except Exception:
                say("swallowed")
        asyncio.run(main())
        """
    )
    job = driver.queued()
    driver.send(number)
    assert end(driver) == (-signal.SIGINT if number == signal.SIGINT else 143)
    assert "swallowed" not in driver.lines
    assert_cancelled_once(ibm, job)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.short_only("15")
def test_handlers_of_the_event_loop(ibm, program, number):
    """`loop.add_signal_handler`: a signal during a blocking run reaches them too, and so does every later one."""
    ibm.hold("queued")
    driver = program(
        f"""
        async def main():
            loop = asyncio.get_running_loop()
            called = asyncio.Queue()
            loop.add_signal_handler(signal.{number.name}, called.put_nowait, "called")
            wakeup = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(wakeup)
            handler = signal.getsignal(signal.{number.name})
            try:
                {RUN}
            except Interrupted as error:
                say("caught", error.signum, error.cancel)
            assert signal.getsignal(signal.{number.name}) is handler
            assert signal.set_wakeup_fd(wakeup) == wakeup
            say("during", await called.get())
            os.kill(os.getpid(), signal.{number.name})
            say("after", await called.get())
            ibm.hold(None)
            {RUN}
            os.kill(os.getpid(), signal.{number.name})
            say("again", await called.get(), called.empty())
        asyncio.run(main())
        """
    )
    job = driver.queued()
    driver.send(number)
    assert driver.line("caught ") == [str(int(number)), "confirmed"]
    assert driver.line("during ") == ["called"]
    assert driver.line("after ") == ["called"]
    assert driver.line("again ") == ["called", "True"]
    assert end(driver) == 0, driver.errors
    assert ibm.job(job).cancel_requests == 1


def test_handlers_of_the_event_loop_while_a_run_is_awaited(ibm, program):
    """The application's way to stop: its handler decides, and nothing of ours stands in its way."""
    ibm.hold("queued")
    driver = program(
        """
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            made = await begun()
            waiting = asyncio.ensure_future(made)
            say("waiting")
            await stop.wait()
            say("stopping", made.done())
            waiting.cancel()
            await asyncio.wait([waiting])
        asyncio.run(main())
        """
    )
    job = driver.queued()
    driver.line("waiting")
    driver.send(signal.SIGTERM)
    assert driver.line("stopping ") == ["False"]
    assert end(driver) == 0, driver.errors
    assert_cancelled_once(ibm, job)


def test_an_awaited_run_whose_loop_is_gone(ibm, program):
    """Its end finds nobody that waits, and says nothing."""
    ibm.hold("queued")
    driver = program(
        """
        async def main():
            global made
            made = await begun()
            asyncio.ensure_future(made).cancel()  # before it has begun to wait
            shielded = asyncio.shield(made)
        asyncio.run(main())
        say("status", made.status().state)
        """
    )
    job = driver.queued()
    driver.line("status ")
    assert end(driver) == 0
    assert driver.errors == b""
    assert ibm.job(job).status == "Cancelled"


# Forked children --------------------------------------------------------------------------------------------------


def test_a_run_belongs_to_the_process_that_made_it(ibm, program):
    ibm.hold("queued")
    driver = program(
        """
        import pickle
        made = begin()
        uses = {
            "job_id": lambda: made.job_id,
            "status": made.status,
            "done": made.done,
            "result": made.result,
            "cancel": made.cancel,
            "detach": made.detach,
            "add_done_callback": lambda: made.add_done_callback(print),
            "await": lambda: asyncio.run(made._wait()),
        }
        child = os.fork()
        if not child:
            for name, use in uses.items():
                try:
                    use()
                except QxError as error:
                    assert str(pickle.loads(pickle.dumps(error))) == str(error)
                    say("refused", name)
            say("repr", repr(made))
            os._exit(0)
        os.waitpid(child, 0)
        ibm.hold(None)
        say("counts", sum(made.result().counts.values()))
        """
    )
    assert {driver.line("refused ")[0] for _ in range(8)} == {
        "job_id", "status", "done", "result", "cancel", "detach", "add_done_callback", "await",
    }  # fmt: skip
    driver.line("repr Run(state='queued'")
    assert driver.line("counts ") == ["64"]
    assert end(driver) == 0, driver.errors
    assert not ibm.journal(path=CANCEL)


@pytest.mark.long
def test_a_forked_child_has_runs_and_a_watcher_of_its_own(ibm, program):
    """With the service object of its parent; and on one connection each would read the other's answers."""
    ibm.hold("queued")
    driver = program(
        """
        mine = service()
        def go(tag):
            loud.clear()
            made = submit(one(), "ibm_brisbane", service=mine, tags=[tag], poll_interval=0.1, on_status=announce)
            loud.wait()
            say(tag, os.getpid(), made.job_id)
            return made
        made = go("parent")
        child = os.fork()
        if not child:
            go("child").result()
        say("reaped", os.waitpid(child, 0)[1], made.status().state)
        ibm.hold(None)
        made.result()
        """
    )
    job = driver.line("parent ")[1]
    child, childs = driver.line("child ")
    [watcher], [childs_watcher] = watchers_of(driver), watchers_of(Process(child))
    assert watcher != childs_watcher
    for polled in (job, childs):
        ibm.wait_for("GET", f"/api/v1/jobs/{polled}", count=10)
    Process(child).kill()
    assert driver.line("reaped ") == ["9", "queued"]
    wait_for_end(childs_watcher)
    assert (ibm.job(childs).status, ibm.job(childs).cancel_requests) == ("Cancelled", 1)
    assert end(driver) == 0, driver.errors
    assert (ibm.job(job).status, ibm.job(job).cancel_requests) == ("Completed", 0)
    parents = {entry.connection for entry in ibm.journal(path=f"/api/v1/jobs/{job}*")}
    assert not parents & {entry.connection for entry in ibm.journal(path=f"/api/v1/jobs/{childs}*")}


@pytest.mark.long
def test_a_forked_child_and_its_parent_run_side_by_side(ibm, program):
    driver = program(
        """
        mine = service()
        def work():
            return [run(one(), "ibm_brisbane", service=mine, shots=8, panel=None, poll_interval=0.1) for _ in range(3)]
        work()
        child = os.fork()
        ended = work()
        assert len({result.job_id for result in ended}) == 3
        if not child:
            os._exit(0)
        say("ended", os.waitpid(child, 0)[1])
        """
    )
    assert driver.line("ended ") == ["0"]
    assert end(driver) == 0, driver.errors
    assert [job.status for job in ibm.jobs()] == ["Completed"] * 9
