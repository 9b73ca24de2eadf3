"""The watcher as a process: where it lives, what it holds, what ends it and what does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import astuple
from pathlib import Path

import psutil
import pytest
from testkit.drivers import RUN
from testkit.processes import wait_for_end
from testkit.watchers import titles

from qx_supervisor.launch import ledger_word
from qx_supervisor.watcher import system

INSPECT = """
from qx_supervisor.link import link
import json
say("watcher", json.dumps(link.inspect()))
"""

HELD = """
queued = threading.Event()
def note(status):
    tell(status)
    if status.state == "queued":
        queued.set()
held = submit(isa(), backend(), on_status=note)
assert queued.wait(60)
"""
"""A run that is begun and in the queue."""


def test_where_it_lives_and_what_it_holds(ibm, fork, state, monkeypatch):
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "a-secret-of-the-environment")
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    ibm.hold("queued")
    driver = fork(
        """
        import socket
        kept = open(__file__), socket.socket(), *os.pipe()
        for item in kept:
            os.set_inheritable(item if isinstance(item, int) else item.fileno(), True)
        say("pipe", os.readlink(f"/proc/self/fd/{kept[2]}"))
        """
        + HELD.replace("\n", "\n        ")
        + INSPECT.replace("\n", "\n        ")
        + "\n        signal.pause()"
    )
    seen = json.loads(" ".join(driver.line("watcher ")))
    watcher = psutil.Process(seen["pid"])
    title = ["qx-watcher", *map(str, astuple(driver.identity)), ledger_word(str(state))]
    if system.HAS_LINUX:
        assert watcher.name() == "qx-watcher"
        assert watcher.cmdline() == title
    else:
        assert watcher.cmdline()[-4:] == title
    assert seen["sid"] == seen["pid"] != os.getsid(driver.pid)
    assert seen["ppid"] not in (driver.pid, os.getpid())
    assert watcher.pid not in [child.pid for child in psutil.Process(driver.pid).children(recursive=True)]
    assert psutil.Process(driver.pid).children() == []  # and no zombie is left of its start
    assert seen["cwd"] == "/"
    assert [seen["descriptors"][number] for number in "012"] == ["/dev/null"] * 3
    assert driver.line("pipe ")[0] not in seen["descriptors"].values()
    seeing_it = ("anon_inode:[pidfd]", f"/proc/{driver.pid}/status")
    ours = ("socket:", "pipe:", *seeing_it, str(state), sys.prefix, sys.base_prefix)  # its threads may load modules
    foreign = {
        target for number, target in seen["descriptors"].items() if number not in "012" and not target.startswith(ours)
    }
    assert foreign <= {""}  # the listing's own descriptor
    sockets = [target for target in seen["descriptors"].values() if target.startswith("socket:")]
    # The pipe, both ends of what its threads wake it with, and the connection to the service once that is open.
    assert 3 <= len(sockets) <= 4
    packages = {name.partition(".")[0] for name in seen["modules"]}
    assert not packages & {"qiskit", "qiskit_ibm_runtime", "qiskit_aer", "numpy", "rich", "qx_supervisor"}
    assert "QISKIT_IBM_TOKEN" not in seen["environment"]
    assert "SOMETHING_ELSE" not in seen["environment"]
    assert seen["pss_kb"] < 60_000
    limits = Path(f"/proc/{watcher.pid}/limits").read_text().splitlines()
    (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]
    assert seen["dumpable"] == (0 if system.HAS_LINUX else None)
    driver.kill()
    wait_for_end(watcher)


REFUSES = """
import ctypes
class Filter(ctypes.Structure):  # bpf(2): load the call's number; is it one of these? then EPERM
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.POINTER(Filter))]
first, second = {"x86_64": (160, 302), "aarch64": (164, 261)}[os.uname().machine]  # setrlimit, prlimit64
steps = (0x20, 0, 0, 0), (0x15, 1, 0, first), (0x15, 0, 1, second), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)
filters = (Filter * 5)(*(Filter(*step) for step in steps))
c = ctypes.CDLL(None, use_errno=True)
assert c.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert c.prctl(22, 2, ctypes.byref(Program(5, filters))) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
import resource
try:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (OSError, ValueError) as error:
    say("refused", type(error).__name__)
"""
"""As systemd's SystemCallFilter=~@resources."""


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="it knows the calls' numbers of these only")
def test_where_no_limit_can_be_set(ibm, fork):
    ibm.hold("queued")
    driver = fork(REFUSES + HELD + INSPECT + "signal.pause()")
    driver.line("refused ")
    assert json.loads(" ".join(driver.line("watcher ")))["dumpable"] == (0 if system.HAS_LINUX else None)
    watcher = driver.watcher()
    driver.kill()
    wait_for_end(watcher)
    assert [(job.status, job.cancel_requests) for job in ibm.jobs()] == [("Cancelled", 1)]


def may_lower_scores() -> bool:
    """Whether this process may lower any OOM score: capabilities(7), CAP_SYS_RESOURCE."""
    [effective] = re.findall(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(effective, 16) >> 24 & 1)


@pytest.mark.parametrize("keeps_right", [True, False])
@pytest.mark.short_only("True")
def test_linux_the_oom_killer_chooses_others(fork, keeps_right):
    """Whoever may not lower it any more can do so as far as someone who may has set it, here to 300."""
    if not keeps_right and not may_lower_scores():
        pytest.skip("the right to lower scores is needed for a score that can't be lowered to 0")
    # prctl(2), PR_CAPBSET_DROP: from the next exec on, which is the watcher's.
    drop = "" if keeps_right else "import ctypes; assert ctypes.CDLL(None).prctl(24, 24, 0, 0, 0) == 0"
    driver = fork(
        f"""
        for score in ("300", "1000") if {not keeps_right} else ("1000",):
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(score)
        {drop}
        from qx_supervisor.link import link
        link.prepare()
        say("pid", link.inspect()["pid"])
        signal.pause()
        """
    )
    watcher = psutil.Process(*map(int, driver.line("pid ")))
    expected = (-1000 if may_lower_scores() else 0) if keeps_right else 300
    assert Path(f"/proc/{watcher.pid}/oom_score_adj").read_text() == f"{expected}\n"
    driver.kill()
    wait_for_end(watcher)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM])
def test_signals_do_not_end_a_watcher_that_guards(ibm, fork, number):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    watcher.send_signal(number)
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)


def test_a_sigterm_ends_one_that_guards_nothing(ibm, fork):
    driver = fork(RUN + "\nsay('over')\nsignal.pause()")
    driver.line("over")
    watcher = driver.watcher()
    watcher.send_signal(signal.SIGHUP)
    watcher.send_signal(signal.SIGTERM)
    wait_for_end(watcher)
    driver.kill()


def test_malformed_messages_disarm_nothing(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        HELD
        + """
import logging
logging.basicConfig(level=logging.WARNING)
from qx_supervisor.link import link
for junk in (b"", b"junk", b"[]", b"{}", b'{"kind":"done"}', b'{"kind":"done","seq":1}', b"[" * 100000,
             b'{"kind":"done","seq":1,"run":7}', b'{"kind":"done","seq":1,"run":"another"}', bytes(range(256))):
    link._process.connection.send_bytes(junk)
say("guarded", *link.inspect()["runs"].values())
signal.pause()
"""
    )
    driver.line("guarded ")
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    assert b"the watcher refused a message" in driver.errors


def test_a_done_just_before_the_death_wins(ibm, fork):
    drivers = [fork(RUN + "\nos.kill(os.getpid(), signal.SIGKILL)") for _ in range(6)]
    for driver in drivers:
        assert driver.end() == -signal.SIGKILL
    assert not ibm.journal(path="*/cancel")
    assert [job.status for job in ibm.jobs()] == ["Completed"] * 6


def test_killed_in_flight_another_one_takes_over(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        "import logging\nlogging.basicConfig(level=logging.WARNING)\n"
        + HELD
        + """
from qx_supervisor.link import link
first = link.watcher_pid
os.kill(first, signal.SIGKILL)
while True:
    try:
        seen = link.inspect()
    except WatcherError:  # it died while it was asked
        continue
    if seen["pid"] != first:
        break
say("protected", seen["pid"], *seen["runs"].values())
signal.pause()
"""
    )
    job = driver.queued()
    second, guarded = driver.line("protected ")
    assert guarded == f"['{job}']"
    watcher = driver.watcher()
    assert watcher.pid == int(second)
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    wait_for_end(watcher)
    assert b"starting another one" in driver.errors


@pytest.mark.long
def test_killed_while_the_driver_cancels_the_next_one_cancels_at_once(ibm, fork):
    """It waits for no grace period, though the driver is killed before its own request has left."""
    ibm.hold("queued")
    driver = fork(
        """
        from qx_supervisor.link import link
        queued = threading.Event()
        held = submit(isa(), backend(), key="step", grace=600, poll_interval=3600,
                      on_status=lambda status: status.state == "queued" and queued.set())
        assert queued.wait(60)
        first, run_id = link.watcher_pid, held._flight.core.run_id
        link.cancelling(run_id)
        os.kill(first, signal.SIGKILL)
        with link._changed:
            link._changed.wait_for(lambda: link.watcher_pid not in (None, first))
        say("queued", held.job_id)
        signal.pause()
        """
    )
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_killed_in_flight_the_run_goes_on(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    driver.queued()
    driver.watcher().kill()
    ibm.hold(None)
    assert driver.end() == 0, driver.errors
    assert not ibm.journal(path="*/cancel")


@pytest.mark.long
def test_killed_while_idle_the_next_run_starts_one(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        f"""
        ibm.hold(None)
        {RUN}
        from qx_supervisor.link import link
        os.kill(link.watcher_pid, signal.SIGKILL)
        ibm.hold("queued")
        {RUN}
        """
    )
    driver.line("submitted ")  # the first run's, which may be over before anybody sees it queued
    job = driver.line("submitted ")[0]
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
def test_killed_again_and_again_ends_in_a_warning(ibm, fork):
    """It never loops: after a few deaths in a minute no other one is started, and the run goes on."""
    driver = fork(
        """
        import logging
        logging.basicConfig(level=logging.WARNING)
        from qx_supervisor import launch, link as links
        real, started = links.launch, []
        def doomed(begun=None):
            process = real(begun)
            started.append(process.pid)
            if queued.is_set():
                os.kill(process.pid, signal.SIGKILL)
            return process
        links.launch = doomed
        gave_up = threading.Event()
        class Hear(logging.Handler):
            def emit(self, record):
                if "not protected any more" in record.getMessage():
                    gave_up.set()
        logging.getLogger("qx_supervisor").addHandler(Hear())
        ibm.hold("queued")
        """
        + HELD.replace("\n", "\n        ")
        + """
        os.kill(started[0], signal.SIGKILL)
        assert gave_up.wait(60)
        ibm.hold(None)
        say("started", len(started), held.result().counts)
        """
    )
    assert int(driver.line("started ")[0]) == 4
    assert driver.end() == 0, driver.errors
    assert not ibm.journal(path="*/cancel")


def test_a_stopped_watcher_is_an_error_before_the_submission(ibm, fork):
    driver = fork(
        """
        from qx_supervisor import link as links
        links.ANSWER_SECONDS = 0.2
        real = links.launch
        def stopped(begun=None):
            process = real(begun)
            os.kill(process.pid, signal.SIGSTOP)
            return process
        links.launch = stopped
        try:
            run(isa(), backend(), panel=None)
        except WatcherError as error:
            say("refused", error)
        os.kill(links.link.watcher_pid, signal.SIGCONT)
        """
    )
    assert "did not answer" in " ".join(driver.line("refused "))
    assert driver.end() == 0, driver.errors
    assert not ibm.journal(method="POST", path="/api/v1/jobs")


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="a /proc of one's own needs root")
def test_linux_stopped_where_proc_hides_it_from_its_driver(ibm, start, state):
    """It is replaced all the same; here without the capability by which root sees what is hidden."""
    ibm.hold("queued")
    hidden = 'mount -t proc -o hidepid=2,gid=65534 none /proc && exec setpriv --bounding-set -sys_ptrace "$@"'
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "sh", "-c", hidden, "sh"]
    driver = start(
        HELD
        + """
from qx_supervisor import link as links
from qx_supervisor.watcher.host_identity import start_ticks
links.SEND_SECONDS = 0.1
first = links.link.watcher_pid
say("hidden", start_ticks(first) is None)
os.kill(first, signal.SIGSTOP)
while links.link.watcher_pid == first:
    links.link.cancelling(held._flight.core.run_id)
with links.link._changed:
    links.link._changed.wait_for(lambda: links.link.watcher_pid is not None)
say("replaced")
signal.pause()
""",
        wrap=lambda command: [*alone, *command],
    )
    assert driver.line("hidden ") == ["True"]
    driver.line("replaced")
    [watcher] = [process for process, title in titles() if title.is_in(state)]
    watcher.suspend()  # it would learn of the death before it is killed with the namespace
    driver.kill()
    wait_for_end(watcher)


def test_stopped_in_flight_it_acts_when_it_goes_on(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    watcher = driver.watcher()
    watcher.suspend()
    driver.kill()
    assert ibm.job(job).cancel_requests == 0
    watcher.resume()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_a_stopped_driver_is_not_dead(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    driver.send(signal.SIGSTOP)
    ibm.hold(None)
    assert ibm.wait_job(job).status == "Completed"
    driver.send(signal.SIGCONT)
    assert driver.end() == 0, driver.errors
    assert not ibm.journal(path="*/cancel")


def test_after_exec_the_job_is_watched_until_that_process_ends(ibm, fork):
    ibm.hold("queued")
    # Not `read`: stdin is /dev/null, and the program would end at once.
    driver = fork(HELD + 'os.execv("/bin/sh", ["sh", "-c", "echo other program; exec sleep 600"])')
    job = driver.queued()
    driver.line("other program")
    assert ibm.job(job).cancel_requests == 0
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_a_daemonising_drivers_run_ends_with_the_process_that_made_it(ibm, fork):
    ibm.hold("queued")
    driver = fork(
        HELD
        + """
reader, writer = os.pipe()
if os.fork():
    os._exit(0)
os.setsid()
os.close(writer)
os.read(reader, 1)
os._exit(0)
"""
    )
    job = driver.queued()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
    assert driver.end() == 0


def test_a_closed_range_of_descriptors_is_no_death(ibm, fork):
    """What daemonising code does: the pipe to the watcher is gone, and the process lives."""
    ibm.hold("queued")
    driver = fork(
        """
        submitted = threading.Event()
        held = submit(isa(), backend(), poll_interval=3600,
                      on_status=lambda s: (tell(s), s.state == "queued" and submitted.set()))
        assert submitted.wait(60)
        os.closerange(3, 4096)
        say("closed")
        signal.pause()
        """
    )
    job = driver.queued()
    driver.line("closed")
    assert ibm.job(job).cancel_requests == 0
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
def test_its_descriptors_taken_by_files(ibm, fork, tmp_path):
    """The driver's own files come under the numbers of the pipe and the pidfd: not a byte is written there."""
    ibm.hold("queued")
    driver = fork(
        f"""
        submitted = threading.Event()
        held = submit(isa(), backend(), poll_interval=3600,
                      on_status=lambda s: (tell(s), s.state == "queued" and submitted.set()))
        assert submitted.wait(60)
        out = os.dup2(1, 900)
        def say(*words):
            os.write(out, (" ".join(map(str, words)) + "\\n").encode())
        os.closerange(3, 800)
        for number in range(400):
            os.open({str(tmp_path)!r} + f"/{{number}}", os.O_CREAT | os.O_RDWR)
        import contextlib
        from qx_supervisor import QxError
        from qx_supervisor.link import link
        with contextlib.suppress(QxError):
            link.inspect()  # that it can't be told ends the watcher, and there is another one
        say("inspected", link.inspect()["pid"])
        say("sizes", *{{os.stat(f"{tmp_path}/{{number}}").st_size for number in range(400)}})
        signal.pause()
        """
    )
    job = driver.queued()
    driver.line("inspected ")
    assert driver.line("sizes ") == ["0"]
    assert ibm.job(job).cancel_requests == 0
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


@pytest.mark.long
def test_foreign_packages_of_its_names_do_not_reach_it(ibm, start, tmp_path, monkeypatch):
    """A script's folder and PYTHONPATH hold a `watcher` of their own; the driver and its watcher take theirs."""
    shadows = tmp_path / "shadows"
    (shadows / "watcher").mkdir(parents=True)
    (shadows / "watcher" / "__init__.py").write_text("raise SystemExit('the wrong watcher')")
    (tmp_path / "watcher.py").write_text("raise SystemExit('the wrong watcher')")
    monkeypatch.setenv("PYTHONPATH", str(shadows))
    ibm.hold("queued")
    driver = start(RUN, cwd=shadows)
    job = driver.queued()
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_it_leaves_a_minute_after_the_last_run(ibm, fork):
    """Here after a moment; the next run gets another one."""
    driver = fork(
        f"""
        from qx_supervisor import link as links
        links.LINGER_SECONDS = 0.2
        {RUN}
        watcher = os.pidfd_open(links.link.watcher_pid)
        import select
        assert select.select([watcher], [], [], 60)[0]
        say("left", links.link.watcher_pid)
        ibm.hold("queued")
        {RUN}
        """
    )
    driver.line("left ")
    driver.line("submitted ")  # the first run's, which may be over before anybody sees it queued
    job = driver.line("submitted ")[0]
    driver.kill()
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1


def test_an_expired_token_is_renewed_at_the_cancel(ibm, fork):
    ibm.hold("queued")
    driver = fork(RUN.replace("on_status", "poll_interval=3600, on_status"))
    job = driver.queued()
    ibm.expire_tokens()
    driver.kill()
    ibm.wait_job(job, "Cancelled")
    answers = [entry.status for entry in ibm.journal(path=f"*/{job}/cancel")]
    assert answers[-1] == 204
    assert set(answers[:-1]) <= {401}


def test_the_post_in_flight_at_the_death(ibm, fork):
    """The job appears after its driver's death; it is found by its tag."""
    ibm.hold("queued")
    ibm.scenario({"http_faults": [{"path": "/api/v1/jobs", "method": "POST", "delay_seconds": 1.0}]})
    driver = fork(RUN)
    ibm.wait_for("POST", "/api/v1/jobs")
    driver.kill()
    ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    (job,) = ibm.jobs()
    assert ibm.wait_job(job.id, "Cancelled").cancel_requests == 1
