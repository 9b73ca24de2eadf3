"""What the watcher writes down of a death, and where an administrator reads it: its log file, the journal, `log`."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testkit.drivers import RUN
from testkit.processes import wait_for_end
from testkit.watchers import wait_for_watchers

from qx_supervisor.cli.log import Tail
from qx_supervisor.watcher import log_file, seen_process, system, systemd_journal
from qx_supervisor.watcher import policy as p
from qx_supervisor.watcher import protocol as say
from qx_supervisor.watcher.events import Event
from qx_supervisor.watcher.facts import About, End, Figures
from qx_supervisor.watcher.host_identity import start_ticks
from qx_supervisor.watcher.witness import Notice, Witness

HOST = os.uname().nodename


def logged(state: Path) -> list[dict[str, Any]]:
    return list(Tail(state).new())


def died(driver):
    """Wait until its watcher has done everything."""
    watcher = driver.watcher()
    driver.kill()
    wait_for_end(watcher)


# A death, as the log has it ------------------------------------------------------------------------------------------


def test_who_died_of_what_what_was_cancelled_and_how_long_it_took(ibm, fork, state):
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    died(driver)
    first, *others, last = logged(state)
    assert first["event"] == "driver died"
    how, status = ("was killed (SIGKILL)", signal.SIGKILL) if system.HAS_LINUX else ("died", None)
    assert first["message"].endswith(f"(pid {driver.pid}) on host {HOST} {how}: 1 run in flight")
    assert (first.get("wait_status"), first["jobs"], first["level"]) == (status, [job], "WARNING")
    assert [(each["event"], each["job"]) for each in others] == [("job cancelled", job), ("run cancelled", None)]
    assert len({each["run"] for each in others}) == 1
    assert 0 < others[0]["seconds"] < 60
    assert last["event"] == "all resolved"
    assert (last["cancelled"], last["unresolved"]) == (1, 0)
    assert {each["driver"] for each in logged(state)} == {driver.pid}
    [path] = log_file.files(state)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.long
@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os._exit(3)", "exited with code 3"),
        ("signal.raise_signal(signal.SIGSEGV)", "died of SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)"),
    ],
)
def test_linux_how_it_ended(ibm, fork, state, end, words):
    ibm.hold("queued")
    driver = fork(
        f"""
        def tell_and_die(status):
            tell(status)
            if status.state == "queued":
                {end}
        run(isa(), backend(), on_status=tell_and_die)
        """
    )
    driver.queued()
    driver.end()
    wait_for_watchers(driver)
    assert f" {words}, 1 job cancelled" in logged(state)[-1]["message"]


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 15),
    reason="this kernel does not tell of what was waited for",
)
def test_linux_how_it_ended_is_known_of_a_process_that_was_waited_for(ibm, fork, state):
    ibm.hold("queued")
    driver = fork(RUN)
    driver.queued()
    watcher = driver.watcher()
    watcher.suspend()
    assert driver.kill() == -signal.SIGKILL
    assert not Path(f"/proc/{driver.pid}").exists()
    watcher.resume()
    wait_for_end(watcher)
    assert " was killed (SIGKILL): 1 run in flight" in logged(state)[0]["message"]


def test_a_program_that_ends_with_nothing_in_flight_is_not_logged(ibm, fork, state):
    driver = fork("run(bell(), 'ibm_brisbane', service=service(), shots=16, on_status=tell)")
    assert driver.end() == 0
    wait_for_watchers(driver)
    assert "submitted" in [line.split()[0] for line in driver.lines]
    assert logged(state) == []


def test_a_log_that_can_not_be_written_costs_nothing_else(ibm, fork, state):
    Path(log_file.path_of(str(state), HOST)).mkdir(parents=True)
    state.chmod(0o700)
    ibm.hold("queued")
    driver = fork(RUN)
    job = driver.queued()
    died(driver)
    assert ibm.job(job).cancel_requests == 1
    assert ibm.job(job).status == "Cancelled"


@pytest.mark.long
def test_an_administrator_asks_by_run_job_or_pid(ibm, fork, state):
    ibm.hold("queued")
    drivers = [fork(RUN), fork(RUN)]
    jobs = [driver.queued() for driver in drivers]
    for driver in drivers:
        died(driver)
    lines = logged(state)
    [run] = {each["run"] for each in lines if each["driver"] == drivers[0].pid and each["run"]}
    command = [sys.executable, "-m", "qx_supervisor", "log"]
    said = []
    for what in (jobs[0], run, run[:8], str(drivers[0].pid)):
        done = subprocess.run([*command, what], capture_output=True, text=True, check=True)
        said.append(done.stdout.splitlines())
    assert said[0] == said[1] == said[2] == said[3]
    assert [re.sub(r".*: ", "", line) for line in said[0][1:3]] == ["cancelled", "nothing of it runs any more"]
    assert all(f"run={run[:8]}" in line for line in said[0][1:3])
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == lines
    done = subprocess.run([*command, "d0"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"qx-supervisor: nothing is logged of d0 in {state}: watchers log what they do after a program's death; "
        "qx-supervisor ps --all lists all runs\n"
    )


def numbered(number: int) -> str:
    return Event("test", "INFO", f"line {number}", time=float(number)).as_json() + "\n"


def test_each_line_is_seen_once_however_often_files_are_renamed_and_removed(tmp_path, monkeypatch):
    """A file system may give a new file the inode of the one that was just removed."""
    monkeypatch.setattr(log_file, "LARGEST", 2000)
    path, tail, seen = log_file.path_of(str(tmp_path), HOST), Tail(tmp_path), []
    for number in range(400):
        log_file.append(path, numbered(number))
        seen += [line["message"] for line in tail.new()]
    assert seen == [f"line {number}" for number in range(400)]
    assert len(tail._read) <= 2 + log_file.KEPT


def test_another_file_with_the_same_inode_is_read_from_its_beginning(tmp_path):
    path, tail = Path(log_file.path_of(str(tmp_path), HOST)), Tail(tmp_path)
    path.write_text(numbered(1) + numbered(2))
    assert len(list(tail.new())) == 2
    inode = path.stat().st_ino
    path.write_text(numbered(3))
    assert path.stat().st_ino == inode
    assert [line["message"] for line in tail.new()] == ["line 3"]


def test_a_follower_keeps_the_latest_lines_only(call, state, monkeypatch):
    from qx_supervisor import QxError
    from qx_supervisor.cli import log

    state.mkdir(exist_ok=True)
    path, numbers, kept, choose = log_file.path_of(str(state), HOST), iter(range(20)), [], log.chosen

    def write_one(_: float) -> None:
        try:
            log_file.append(path, numbered(next(numbers)))
        except StopIteration:
            raise QxError("enough") from None

    monkeypatch.setattr(log, "MOST_LINES", 5)
    monkeypatch.setattr(log, "chosen", lambda what, lines: kept.append(len(lines)) or choose(what, lines))
    monkeypatch.setattr(log, "time", SimpleNamespace(sleep=write_one))
    _, lines, said = call("log", "--follow")
    assert "enough" in said
    assert [line.rpartition(": ")[2] for line in lines] == [f"line {number}" for number in range(20)]
    assert max(kept) == 5


def test_a_file_that_one_look_misses_is_not_read_twice(tmp_path, monkeypatch):
    """It is renamed between the listing and the reading."""
    path, tail = log_file.path_of(str(tmp_path), HOST), Tail(tmp_path)
    log_file.append(path, numbered(1))
    assert len(list(tail.new())) == 1
    with monkeypatch.context() as patched:
        patched.setattr(log_file, "files", lambda _: [])
        assert list(tail.new()) == []
    log_file.append(path, numbered(2))
    assert [line["message"] for line in tail.new()] == ["line 2"]


def test_the_log_is_followed_over_a_renaming(state):
    state.mkdir(mode=0o700)
    path = log_file.path_of(str(state), "h")
    line = Event("job cancelled", "INFO", "one", fields={"driver": 7, "host": "h"}, time=1e9)
    log_file.append(path, line.as_json() + "\n")
    command = [sys.executable, "-m", "qx_supervisor", "log", "7", "--follow"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as following:
        try:
            assert following.stdout is not None
            assert following.stdout.readline().endswith(": one\n")
            log_file.append(path, line._replace(message="two").as_json() + "\n")
            log_file._rename(path)
            log_file.append(path, line._replace(message="three").as_json() + "\n")
            log_file.append(path, line._replace(message="four", fields={"driver": 8}).as_json() + "\n")
            log_file.append(path, line._replace(message="five").as_json() + "\n")
            assert [following.stdout.readline().rpartition(": ")[2] for _ in range(3)] == ["two\n", "three\n", "five\n"]
        finally:  # or it would be waited for without end
            following.send_signal(signal.SIGINT)
    assert following.returncode == -signal.SIGINT


# The file ------------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from qx_supervisor.watcher import log_file
log_file.LARGEST, log_file.KEPT = int(sys.argv[3]), int(sys.argv[4])
for number in range(200):
    log_file.append(sys.argv[1], f"{sys.argv[2]} {number} {'x' * 150}\\n")
"""


def write_at_once(path: Path, largest: int, kept: int) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(name), str(largest), str(kept)])
        for name in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4


@pytest.mark.long
def test_several_write_at_once_and_no_line_is_lost_or_torn(tmp_path):
    write_at_once(Path(log_file.path_of(str(tmp_path), "h")), largest=20_000, kept=1000)
    files = log_file.files(tmp_path)
    assert len(files) > 5
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) <= 20_000
    assert min(sizes[:-1]) > 19_500  # each was renamed once, and full
    found = [line.split() for path in files for line in path.read_text().splitlines()]
    assert sorted((int(name), int(number)) for name, number, _ in found) == [
        (name, number) for name in range(4) for number in range(200)
    ]
    for name in "0123":  # in the order in which they were written
        assert [int(each[1]) for each in found if each[0] == name] == list(range(200))


def test_the_files_are_bounded(tmp_path):
    write_at_once(Path(log_file.path_of(str(tmp_path), "h")), largest=5_000, kept=3)
    files = log_file.files(tmp_path)
    assert len(files) == 4
    assert sum(path.stat().st_size for path in files) <= 4 * 5_000


def test_a_stopped_holder_of_the_lock_costs_the_renaming_only(tmp_path, monkeypatch):
    path = log_file.path_of(str(tmp_path), "h")
    monkeypatch.setattr(log_file, "LARGEST", 10)
    monkeypatch.setattr(log_file, "LOCK_SECONDS", 0.05)
    log_file.append(path, "one, and more\n")
    with Path(path).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        log_file.append(path, "two\n")
        assert Path(path).read_text() == "one, and more\ntwo\n"
    log_file.append(path, "three\n")
    assert Path(path).read_text() == "three\n"


def test_a_file_that_is_renamed_while_its_lock_is_waited_for_is_left_alone(tmp_path, monkeypatch):
    path = log_file.path_of(str(tmp_path), "h")
    log_file.append(path, "one\n")
    real, waits = log_file._lock, iter([True])

    def lock(descriptor):
        if next(waits, False):
            log_file._rename(path)  # as another process does
        return real(descriptor)

    monkeypatch.setattr(log_file, "_lock", lock)
    log_file.append(path, "two\n")
    assert (Path(f"{path}.1").read_text(), Path(path).read_text()) == ("one\n", "two\n")


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "none", tmp_path], check=True)
    try:
        path = log_file.path_of(str(tmp_path), "h")
        written = 0
        with pytest.raises(OSError):  # noqa: PT011 - cut short, or no space
            while True:
                log_file.append(path, f"{written:04d}{'x' * 1000}\n")
                written += 1
        assert written > 5
        assert [int(line[:4]) for line in Path(path).read_text().splitlines()] == list(range(written))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_nothing_is_written_to_what_is_no_file_of_ours(tmp_path, what):
    path = Path(log_file.path_of(str(tmp_path), "h"))
    target = tmp_path / "target"
    if what == "link":
        target.touch()
        path.symlink_to(target)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError):  # noqa: PT011
        log_file.append(str(path), "line\n")
    assert not target.exists() or target.read_text() == ""


# How a process has ended ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_pidfd", [True, False])
@pytest.mark.parametrize(("code", "words"), [("exit 5", "exited with code 5"), ("kill -11 $$", "died of SIGSEGV")])
def test_linux_what_the_kernel_tells_of_an_end(code, words, by_pidfd):
    child = subprocess.Popen(["sh", "-c", f"read _; {code}"], stdin=subprocess.PIPE)
    pidfd, ticks = os.pidfd_open(child.pid), start_ticks(child.pid)
    try:
        assert ticks is not None
        asked = pidfd if by_pidfd else None
        assert seen_process.wait_status_of(child.pid, ticks, asked) is None
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert seen_process.in_words(seen_process.wait_status_of(child.pid, ticks, asked)) == words
        assert seen_process.wait_status_of(child.pid, ticks + 1, None) is None
        child.wait()
        known = seen_process.wait_status_of(child.pid, ticks, asked)
        assert known is None if not by_pidfd else seen_process.in_words(known) in (words, "died")  # from Linux 6.15 on
    finally:
        os.close(pidfd)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["python", "-W", "error", "/a/b/driver.py", "--token", "secret"], "driver.py"),
        (["python", "-m", "package.module", "secret"], "package.module"),
        (["python", "-c", "secret"], "python -c"),
        (["python", "-"], "python"),
        (["./program", "secret"], "program"),
    ],
)
def test_a_programs_name_has_nothing_of_its_arguments(command, name):
    assert seen_process.name_of(command) == name


# The journal ---------------------------------------------------------------------------------------------------------


def fields_of(datagram: bytes) -> dict[str, str]:
    """Reads an entry as systemd's journal does: https://systemd.io/JOURNAL_NATIVE_PROTOCOL."""
    found = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", datagram[:8])
            value, datagram = datagram[8 : 8 + length], datagram[9 + length :]
        found[name.decode()] = value.decode()
    return found


def test_an_entry_of_the_journal(tmp_path):
    path = str(tmp_path / "socket")
    event = Event("job cancelled", "WARNING", "two\nlines=1", "r1", "d1", "a label", {"driver": 7, "jobs": ["a", "b"]})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        systemd_journal.send([event, event], path)
        first, second = journal.recv(65536), journal.recv(65536)
    assert first == second
    assert fields_of(first) == {
        "MESSAGE": "two\nlines=1",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "qx-watcher",
        "QX_EVENT": "job cancelled",
        "QX_RUN": "r1",
        "QX_JOB": "d1",
        "QX_LABEL": "a label",
        "QX_DRIVER": "7",
        "QX_JOBS": "a b",
    }
    systemd_journal.send([event], path)  # it is gone


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="a journal of one's own needs root")
def test_a_death_is_in_the_journal(ibm, start, state, tmp_path):
    folder = tmp_path / "journal"
    folder.mkdir()
    mounts = (
        "mount -t tmpfs none /run/systemd && mkdir /run/systemd/journal && "
        f'mount --bind {folder} /run/systemd/journal && exec "$@"'
    )
    ibm.hold("queued")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(folder / "socket"))
        driver = start(RUN, wrap=lambda command: ["unshare", "--mount", "sh", "-c", mounts, "sh", *command])
        job = driver.queued()
        died(driver)
        journal.setblocking(False)
        entries = []
        while True:
            try:
                entries.append(fields_of(journal.recv(65536)))
            except BlockingIOError:
                break
    assert [each["QX_EVENT"] for each in entries] == [each["event"] for each in logged(state)]
    assert [each["QX_JOB"] for each in entries if "QX_JOB" in each] == [job]


# The witness, which tells what was decided ---------------------------------------------------------------------------

CREDENTIALS = say.Credentials("https://x.test", "crn", "https://iam.test", "key")
ARMED = (p.Received(1, say.Arm("a", CREDENTIALS)), p.Prepared("a"))


def intent(run: str, label: str = "") -> p.Received:
    return p.Received(2, say.Intent(run, "a", f"tag-{run}", "", None, About(label=label)))


def submitted(run: str, label: str = "") -> tuple[p.Event, ...]:
    return (
        intent(run, label),
        p.Received(0, say.JobKnown(run, f"job-{run}")),
        p.Received(0, say.Posted(run, clean=True)),
    )


class World:
    """A policy and its witness."""

    def __init__(self, *events: p.Event) -> None:
        self.policy = p.Policy(2.0)
        self.witness = Witness(7, "h")
        self.witness.program = "driver.py"
        self.now = 0.0
        self.told: list[Event | Notice] = []
        self.happen(*ARMED, *events)

    def happen(self, *events: p.Event) -> None:
        for event in events:
            self.told += self.witness.saw(event, self.policy.handle(event), self.now)

    @property
    def notices(self) -> list[Notice]:
        return [each for each in self.told if isinstance(each, Notice)]

    @property
    def events(self) -> list[tuple[str, str, str]]:
        return [(each.name, each.run, each.job) for each in self.told if isinstance(each, Event)]


def test_several_runs_that_die_together_make_one_notice_with_what_was_charged():
    world = World(*submitted("r", "vqe step 17"), *submitted("s"), *submitted("t"))
    world.witness.learn_wait_status(signal.SIGKILL)
    world.now = 10.0
    world.happen(p.DriverDied())
    world.now = 12.5
    for run in "rst":
        world.happen(p.CancelEnded(run, f"job-{run}", "cancelled"))
        world.happen(p.SweepEnded(run, ()))
    assert world.notices == []
    for run, seconds in (("r", 5.0), ("s", 7.0), ("t", 0.0)):
        world.happen(p.FiguresRead(run, f"job-{run}", Figures(charged=seconds)))
    [notice] = world.notices
    assert notice.text == "driver.py (pid 7) on host h was killed (SIGKILL), 3 jobs cancelled, 12 s charged"
    assert notice.kind == "death"
    assert notice.fields["seconds"] == 2.5
    assert world.events[0] == ("driver died", "", "")
    assert ("job cancelled", "r", "job-r") in world.events
    assert {each.label for each in world.told if isinstance(each, Event) and each.run == "r"} == {"vqe step 17"}


def test_a_death_that_takes_long_is_told_of_before_it_is_over_and_again_if_there_is_news():
    world = World(*submitted("r"), *submitted("s"))
    world.happen(p.DriverDied(), p.CancelEnded("r", "job-r", "cancelled"), p.SweepEnded("r", ()))
    world.told += world.witness.tell_of_death(60.0)
    world.told += world.witness.tell_of_death(60.0)
    [early] = world.notices
    assert early.text == "driver.py (pid 7) on host h died, 1 job cancelled, 1 run still looked after"
    world.happen(p.FiguresRead("r", "job-r", Figures(charged=2.0)))
    world.happen(p.CancelEnded("s", "job-s", "unconfirmed", "503"), p.SweepEnded("s", ()))
    world.happen(p.FiguresRead("s", "job-s", Figures(charged=1.0)))
    [_, late] = world.notices
    assert late.text.endswith(" died, 1 job cancelled, 1 could not be cancelled yet, 2 s charged so far")
    assert ("run pending", "s", "") in world.events


def test_the_end_of_a_long_run_and_every_failure_are_told_of():
    world = World(*submitted("r", "vqe"), *submitted("s"), *submitted("t"))
    world.now = 59.0
    world.happen(p.Received(0, say.StandDown("r", End("finished"))))
    assert world.notices == []
    world.happen(p.Received(0, say.StandDown("s", End("failed", "IBM", None, "1517: no such gate"))))
    world.now = 61.0
    world.happen(p.Received(0, say.JobFigures("t", "job-t", Figures(charged=3.0))))
    world.happen(p.Received(0, say.StandDown("t", End("cancelled", "signal", signal.SIGTERM))))
    world.told += world.witness.tell_of_ends(is_late=True)
    assert [(each.kind, each.text) for each in reversed(world.notices)] == [
        ("failure", "run s of driver.py (pid 7) on host h failed: 1517: no such gate; after 59 s"),
        ("end", "run t of driver.py (pid 7) on host h cancelled: SIGTERM; after 61 s, 3 s charged"),
    ]
    assert world.notices[1].fields["jobs"] == ["job-s"]
    assert world.events == []
    assert not world.witness._charges


def test_a_run_with_a_label_is_told_of_by_it():
    world = World(*submitted("r" * 32, "vqe step 17"))
    world.now = 61.0
    world.happen(p.Received(0, say.StandDown("r" * 32, End("finished"))))
    assert world.notices == []
    world.happen(p.Received(0, say.JobFigures("r" * 32, f"job-{'r' * 32}", Figures(charged=2.0))))
    [notice] = world.notices
    assert notice.text.endswith("finished; after 61 s, 2 s charged")
    assert notice.text.startswith("run rrrrrrrr (vqe step 17) of driver.py")
    assert notice.fields["label"] == "vqe step 17"


def test_a_job_that_only_its_tag_led_to_is_told_of():
    world = World(intent("r"))
    world.happen(p.DriverDied(), p.SweepEnded("r", ("late",)), p.CancelEnded("r", "late", "cancelled"))
    assert [each for each in world.events if each[2]] == [("job found", "r", "late"), ("job cancelled", "r", "late")]
