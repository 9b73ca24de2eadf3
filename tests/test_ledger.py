"""The ledger: what a row says, who may judge it, and that nothing gets out of a broken file but a sentence."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from platformdirs.macos import MacOS
from testkit.ledgers import A_PLACE, Clock, line, make_row, tell

from qx_supervisor.watcher import host_identity
from qx_supervisor.watcher.facts import Figures
from qx_supervisor.watcher.host_identity import HostIdentity, Process, is_running, start_ticks, this_host, this_process
from qx_supervisor.watcher.ledger import (
    FINAL,
    UNFINISHED,
    Budget,
    Ledger,
    LedgerError,
    ReservationWish,
    RunState,
    judge,
    rules,
    schema,
    sqlite,
    state_directory,
    store,
)
from qx_supervisor.watcher.ledger import file as files
from qx_supervisor.watcher.ledger.row import safe_detail, safe_endpoint

ROOT = Path(__file__).parent.parent

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# Tools ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def ledger(state: Path) -> Iterator[Ledger]:
    with Ledger.open(state) as ledger:
        yield ledger


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a tmpfs of a size; unmounted at the end of the test."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        target = tmp_path / f"mount{len(mounted)}"
        target.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", target], check=False, capture_output=True
        )
        if made.returncode:
            pytest.skip("can't mount here")
        mounted.append(target)
        return target

    yield mount
    for target in mounted:
        subprocess.run(["umount", target], check=True)


@pytest.fixture
def on_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCAL_FILE_SYSTEMS", frozenset())


def pragma(ledger: Ledger, name: str) -> object:
    return ledger._database.execute(f"PRAGMA {name}").fetchone()[0]


# Where a process is ---------------------------------------------------------------------------------------------


def test_a_place_sees_its_own_processes() -> None:
    place = this_host()
    assert place.view_of(place) == "same"
    assert place.boot
    assert place.pid_ns == Path("/proc/self/ns/pid").stat().st_ino
    assert place.host == socket.gethostname()


@pytest.mark.parametrize(
    ("mine", "other", "view"),
    [
        (A_PLACE, A_PLACE, "same"),
        (A_PLACE, HostIdentity("m" * 32, "renamed", "boot", 7), "same"),
        (HostIdentity("", "host", "boot", 7), HostIdentity("", "host", "boot", 7), "same"),
        (A_PLACE, HostIdentity("m" * 32, "host", "boot", 8), "elsewhere"),
        (A_PLACE, HostIdentity("n" * 32, "host", "boot", 7), "elsewhere"),
        (A_PLACE, HostIdentity("m" * 32, "host", "earlier", 7), "rebooted"),
        (A_PLACE, HostIdentity("m" * 32, "host", "earlier", 8), "rebooted"),
        (A_PLACE, HostIdentity("m" * 32, "host", "earlier", 0), "rebooted"),
        (A_PLACE, HostIdentity("m" * 32, "copy", "earlier", 7), "elsewhere"),
        (A_PLACE, HostIdentity("n" * 32, "host", "earlier", 7), "elsewhere"),
        (HostIdentity("", "host", "boot", 7), HostIdentity("", "host", "earlier", 7), "elsewhere"),
        (HostIdentity("m" * 32, "host", "boot", 0), HostIdentity("m" * 32, "host", "boot", 0), "elsewhere"),
        (HostIdentity("m" * 32, "host", "", 7), HostIdentity("m" * 32, "host", "", 7), "elsewhere"),
        (A_PLACE, HostIdentity("m" * 32, "host", "", 7), "elsewhere"),
    ],
)
def test_view(mine: HostIdentity, other: HostIdentity, view: str) -> None:
    assert mine.view_of(other) == view
    assert other.view_of(mine) == view


@pytest.mark.parametrize(
    ("contents", "machine"),
    [
        (["0123456789abcdef0123456789abcdef\n", None], "0123456789abcdef0123456789abcdef"),
        (["", "fedcba9876543210fedcba9876543210\n"], "fedcba9876543210fedcba9876543210"),
        (["uninitialized\n", None], ""),
        (["0" * 32, None], ""),
        ([None, None], ""),
        (["not an id of a machine, but 32 ..", "\xff"], ""),
    ],
)
def test_machine_id(contents: list[str | None], machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        if content is not None:
            path.write_bytes(content.encode("latin-1"))
    monkeypatch.setattr(host_identity, "MACHINE_ID_FILES", tuple(paths))
    assert this_host().machine == machine


PRINT_PLACE = """
import dataclasses, json
from qx_supervisor.watcher.host_identity import this_host
print(json.dumps(dataclasses.asdict(this_host())), flush=True)
input()
"""


def unshare(*options: str) -> tuple[str, ...]:
    command = ("unshare", *options)
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("can't unshare here")
    return command


def test_another_pid_namespace_is_elsewhere(child: Callable[..., subprocess.Popen[str]]) -> None:
    prefix = unshare("--pid", "--fork", "--mount-proc", "--kill-child")
    other = HostIdentity(**json.loads(line(child(PRINT_PLACE, prefix=prefix))))
    assert other.pid_ns != 0
    assert this_host().view_of(other) == "elsewhere"
    # Its pid 1 is not the one that runs here.
    assert judge(make_row(host_identity=other, pid=1, start_ticks=start_ticks(1)), this_host()) == "elsewhere"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--pid", "--fork", "--kill-child"), id="proc of the namespace around it"),
        pytest.param(("--time", "--boottime", "1000", "--fork", "--kill-child"), id="shifted start times"),
    ],
)
def test_where_pids_or_start_times_mislead_nothing_is_judged(
    options: tuple[str, ...], child: Callable[..., subprocess.Popen[str]]
) -> None:
    other = HostIdentity(**json.loads(line(child(PRINT_PLACE, prefix=unshare(*options)))))
    assert other.pid_ns == 0
    assert this_host().view_of(other) == "elsewhere"
    assert other.view_of(other) == "elsewhere"


def test_a_process_runs_until_it_is_gone(child: Callable[..., subprocess.Popen[str]]) -> None:
    process = child("print('up', flush=True); input()")
    line(process)
    ticks = start_ticks(process.pid)
    assert ticks is not None
    assert is_running(process.pid, ticks)
    assert is_running(process.pid, None)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(process.pid) == ticks, "a zombie still has its pid"
    assert not is_running(process.pid, ticks)
    process.wait()
    assert start_ticks(process.pid) is None
    assert not is_running(process.pid, ticks)
    assert not is_running(process.pid, None)


def test_a_reused_pid_is_another_process() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    assert is_running(os.getpid(), ticks)
    assert not is_running(os.getpid(), ticks - 1)


@pytest.mark.parametrize("pid", [0, -1, pytest.param(-os.getpid(), id="own group"), 2**40])
def test_numbers_that_are_no_pid(pid: int) -> None:
    assert not is_running(pid, None)


def test_a_process_whose_main_thread_has_ended_runs(child: Callable[..., subprocess.Popen[str]]) -> None:
    program = """
import ctypes, os, platform, sys, threading
def work():
    while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z':
        os.sched_yield()
    print('main thread ended', flush=True)
    sys.stdin.readline()
    os._exit(0)
threading.Thread(target=work).start()
exit_of_a_thread = {'x86_64': 60, 'aarch64': 93}[platform.machine()]
ctypes.CDLL(None).syscall(exit_of_a_thread, 0)
"""
    process = child(program)
    line(process)
    assert is_running(process.pid, start_ticks(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(process.pid, start_ticks(process.pid))


def test_a_command_name_can_look_like_the_end_of_a_name(child: Callable[..., subprocess.Popen[str]]) -> None:
    process = child("open('/proc/self/comm', 'w').write(') Z 1 2 3'); print('renamed', flush=True); input()")
    before = start_ticks(process.pid)
    line(process)
    assert b") Z 1 2 3" in Path(f"/proc/{process.pid}/stat").read_bytes()
    assert start_ticks(process.pid) == before
    assert is_running(process.pid, before)


def test_a_process_that_linux_hides_in_proc_counts_as_running(
    monkeypatch: pytest.MonkeyPatch, child: Callable[..., subprocess.Popen[str]]
) -> None:
    process = child("print('up', flush=True); input()")
    line(process)
    usual = os.open

    def hide(path: str, *arguments: int, **more: int) -> int:
        if str(path).startswith(f"/proc/{process.pid}"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return usual(path, *arguments, **more)

    monkeypatch.setattr(os, "open", hide)
    assert is_running(process.pid, 1)
    process.kill()
    process.wait()
    assert not is_running(process.pid, 1)


# Judging --------------------------------------------------------------------------------------------------------

DRIVER, WATCHER = 100, 200


@pytest.mark.parametrize(("running", "liveness"), [({WATCHER}, "orphan"), ({DRIVER, WATCHER}, "live")])
def test_what_is_to_be_swept_again_is_left_by_its_watcher(running: set[int], liveness: str) -> None:
    """It may live on for other drivers."""
    row = make_row(
        host_identity=A_PLACE,
        pid=DRIVER,
        start_ticks=DRIVER * 10,
        watcher_pid=WATCHER,
        watcher_start_ticks=WATCHER * 10,
        state="pending",
        sweep_until=1e9,
    )
    assert judge(row, A_PLACE, lambda pid, _: pid in running) == liveness


def test_a_row_is_an_orphan_when_its_driver_and_its_watcher_are_dead(
    ledger: Ledger, child: Callable[..., subprocess.Popen[str]]
) -> None:
    driver, guard = child("print('up', flush=True); input()"), child("print('up', flush=True); input()")
    line(driver)
    line(guard)
    ledger.write(
        make_row(
            pid=driver.pid,
            start_ticks=start_ticks(driver.pid),
            watcher_pid=guard.pid,
            watcher_start_ticks=start_ticks(guard.pid),
        )
    )
    (row,) = ledger.rows(UNFINISHED)
    assert judge(row, ledger.host_identity) == "live"
    driver.kill()
    driver.wait()
    assert judge(row, ledger.host_identity) == "ending"
    guard.kill()
    os.waitid(os.P_PID, guard.pid, os.WEXITED | os.WNOWAIT)
    assert judge(row, ledger.host_identity) == "orphan", "its watcher is a zombie"


# The file -------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_or_write_it(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with Ledger.open(tmp_path / "a" / "b" / "state") as ledger:
            ledger.write(make_row())
            names = {path.name: mode(path) for path in (tmp_path / "a" / "b" / "state").iterdir()}
    finally:
        os.umask(umask)
    assert names == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm"), 0o600)
    assert [mode(tmp_path / path) for path in ("a", "a/b", "a/b/state")] == [0o700] * 3


def test_a_file_that_others_can_read_is_closed_to_them(state: Path) -> None:
    Ledger.open(state).close()
    (state / "ledger.db").chmod(0o644)
    Ledger.open(state).close()
    assert mode(state / "ledger.db") == 0o600


def test_a_second_opening_leaves_the_locks_of_the_first_alone(
    state: Path, child: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Closing any descriptor of a file drops all of the process's POSIX locks on it.
    with Ledger.open(state) as ledger, ledger.batch():
        ledger.write(make_row())
        Ledger.open(state).close()
        other = child(
            """
import sys
from qx_supervisor.watcher.ledger import Ledger, LedgerError, sqlite
sqlite.BUSY_SECONDS = 0.01
with Ledger.open(sys.argv[1]) as ledger:
    try:
        ledger.forget(0)
    except LedgerError as error:
        print(error)
""",
            state,
        )
        assert "is locked by another process" in line(other)


def test_a_directory_that_others_can_write_to_is_refused(state: Path) -> None:
    state.mkdir()
    state.chmod(0o770)
    with pytest.raises(LedgerError, match="others can write to it"):
        Ledger.open(state)
    assert not list(state.iterdir())


@needs_root
def test_what_belongs_to_another_user_is_refused(state: Path) -> None:
    Ledger.open(state).close()
    os.chown(state / "ledger.db", 12345, 12345)
    with pytest.raises(LedgerError, match="belongs to another user"):
        Ledger.open(state)
    (state / "ledger.db").unlink()
    os.chown(state, 12345, 12345)
    with pytest.raises(LedgerError, match="belongs to another user"):
        Ledger.open(state)
    assert not list(state.iterdir())


def test_a_link_in_its_place_is_refused(state: Path, tmp_path: Path) -> None:
    state.mkdir(0o700)
    (tmp_path / "elsewhere").touch()
    (state / "ledger.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="not a regular file"):
        Ledger.open(state)
    assert (tmp_path / "elsewhere").read_bytes() == b""


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "state", Path("/proc/nothing"), Path("/proc")):
        with pytest.raises(LedgerError, match=r"^The ledger (can't be|is not) kept in /"):
            Ledger.open(directory)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone" / "state")
    with pytest.raises(LedgerError, match="can't be kept"):
        Ledger.open(tmp_path / "dangling")


@needs_root
def test_a_file_system_that_is_read_only(mount: Callable[..., Path]) -> None:
    target = mount("1m")
    Ledger.open(target / "state").close()
    subprocess.run(["mount", "-o", "remount,ro", target], check=True)
    with pytest.raises(LedgerError, match="can't be written to"):
        Ledger.open(target / "state")
    with pytest.raises(LedgerError, match="can't be kept"):
        Ledger.open(target / "other")


@needs_root
def test_a_disk_that_becomes_full(mount: Callable[..., Path]) -> None:
    target = mount("256k")
    with Ledger.open(target / "state") as ledger:
        written = 0
        with pytest.raises(LedgerError, match="the disk is full"):
            while True:
                ledger.write(make_row(f"run{written}", detail="word " * 50))
                written += 1
        assert written
        assert len(ledger.rows()) == written, "what it said is written stays"
        (row, *_) = ledger.rows(limit=1)
        assert row.run == f"run{written - 1}"
    with pytest.raises(LedgerError):
        (target / "state" / "more").write_bytes(b"")
        Ledger.open(mount("4k") / "state")


def test_a_file_that_may_not_grow(state: Path, child: Callable[..., subprocess.Popen[str]]) -> None:
    program = """
import resource, sys
from qx_supervisor.watcher.ledger import Ledger, LedgerError, Row
from qx_supervisor.watcher.host_identity import this_host
with Ledger.open(sys.argv[1]) as ledger:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        for number in range(10_000):
            ledger.write(Row(run=f"r{number}", host_identity=this_host(), pid=1, start_ticks=1))
    except LedgerError as error:
        print(error, flush=True)
"""
    assert re.fullmatch(r"The ledger /.*ledger\.db can't be .*\.", line(child(program, state)))


@pytest.mark.parametrize("content", [b"\0" * 100, b"hello" * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_damaged(state: Path, content: bytes) -> None:
    state.mkdir(0o700)
    (state / "ledger.db").write_bytes(content)
    with pytest.raises(LedgerError, match=r"is damaged: move it away, and a new one is made\.$"):
        Ledger.open(state)
    assert (state / "ledger.db").read_bytes() == content


def test_damage_that_is_found_late(state: Path) -> None:
    with Ledger.open(state) as ledger:
        ledger.write(*(make_row(f"run{number}") for number in range(500)))
    path = state / "ledger.db"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with Ledger.open(state) as ledger:
        uses: list[Callable[[], object]] = [
            lambda: ledger.write(make_row()),
            ledger.rows,
            lambda: ledger.job_outcome("run1", "job", ""),
        ]
        for use in uses:
            with pytest.raises(LedgerError, match="is damaged"):
                use()


def test_a_file_of_another_program(state: Path) -> None:
    state.mkdir(0o700)
    for version in (0, 1):
        with contextlib.closing(sqlite3.connect(state / "ledger.db")) as other:
            other.executescript(f"CREATE TABLE IF NOT EXISTS theirs (x); PRAGMA user_version = {version}")
        before = (state / "ledger.db").read_bytes()
        with pytest.raises(LedgerError, match="is not a ledger"):
            Ledger.open(state)
        assert (state / "ledger.db").read_bytes() == before


def test_a_newer_file_is_left_as_it_is(state: Path) -> None:
    Ledger.open(state).close()
    with contextlib.closing(sqlite3.connect(state / "ledger.db")) as newer:
        newer.executescript("PRAGMA journal_mode = DELETE; PRAGMA user_version = 1000")
    before = (state / "ledger.db").read_bytes()
    with pytest.raises(LedgerError, match="written by a newer qx_supervisor"):
        Ledger.open(state)
    assert (state / "ledger.db").read_bytes() == before


def test_an_older_file_is_migrated_with_its_rows(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(state) as older:
        older.write(make_row(jobs={"j1": "", "j2": "cancelled"}))
        before = older.rows()
        later = (*schema.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN extra TEXT NOT NULL DEFAULT 'new'",))
        monkeypatch.setattr(schema, "MIGRATIONS", later)
        for _ in range(2):
            with Ledger.open(state) as ledger:
                assert pragma(ledger, "user_version") == len(later)
                assert ledger.rows() == before
                assert ledger._database.execute("SELECT extra FROM runs").fetchone()[0] == "new"
        # A watcher of the version before has it open still.
        older.write(make_row("r2"))
        older.finish("r1", "done")
        assert [row.run for row in older.rows()] == ["r2", "r1"]


EARLIER = """
INSERT INTO runs (run, endpoint, instance, session_owner, answered, machine, host, boot, pid_ns, pid, state, detail,
                  created_at, updated_at) VALUES (:run, 'e', 'i', 0, 1, 'm', 'h', 'b', 7, 8, 'guarded', '', 1, 1)
ON CONFLICT (run) DO UPDATE SET state = 'done'
"""
"""As an earlier release writes a row: it knows fewer columns."""


def test_columns_are_added_beside_a_writer_of_an_earlier_release(state: Path) -> None:
    """It may open the file again: its version is what that release has made."""
    state.mkdir(mode=0o700)
    older = sqlite3.connect(state / "ledger.db", isolation_level=None)
    (state / "ledger.db").chmod(0o600)
    for statement in itertools.chain(*schema.MIGRATIONS):
        older.execute(statement)
    older.execute("PRAGMA user_version = 2")
    assert "outcome" not in {each[1] for each in older.execute("PRAGMA table_info(runs)")}
    older.execute(EARLIER, {"run": "r1"})
    older.execute("INSERT INTO jobs (run, job, outcome) VALUES ('r1', 'j1', '')")
    with Ledger.open(state) as ledger:
        [row] = ledger.rows()
        assert (row.outcome, row.label, row.tags, row.began_at, row.figures) == ("", "", (), None, {})
        ledger.job_figures("r1", "j1", Figures(charged=1.0))
        ledger.write(make_row("r3", label="new"))
        for run in ("r1", "r2", "r3"):
            older.execute(EARLIER, {"run": run})
        assert {row.run: (row.state, row.charged, row.label) for row in ledger.rows()} == {
            "r1": ("done", 1.0, ""),
            "r2": ("guarded", None, ""),
            "r3": ("done", None, "new"),
        }
        assert pragma(ledger, "user_version") == 2
    older.close()


def test_a_migration_that_fails_changes_nothing(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(state) as ledger:
        ledger.write(make_row())
        version = pragma(ledger, "user_version")
    later = (*schema.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN extra TEXT", "ALTER TABLE nothing ADD COLUMN x"))
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", later)
        with pytest.raises(LedgerError, match="can't be used"):
            Ledger.open(state)
    with Ledger.open(state) as ledger:
        assert pragma(ledger, "user_version") == version
        assert [row.run for row in ledger.rows()] == ["r1"]


MAKE_AND_WRITE = """
import os, sys
from qx_supervisor.watcher.ledger import Ledger, Row, sqlite
from qx_supervisor.watcher.host_identity import this_host
sqlite.BUSY_SECONDS = 60.0  # the disk may be slow
print('ready', flush=True)
sys.stdin.readline()
with Ledger.open(sys.argv[1]) as ledger:
    ledger.write(Row(run=sys.argv[2], host_identity=this_host(), pid=os.getpid(), start_ticks=None))
print('written', flush=True)
"""


@pytest.mark.long
def test_many_processes_make_it_at_once(tmp_path: Path, child: Callable[..., subprocess.Popen[str]]) -> None:
    for attempt in range(3):
        state = tmp_path / str(attempt)
        children = [child(MAKE_AND_WRITE, state, f"run{number}") for number in range(6)]
        for process in children:
            line(process)
        for process in children:
            tell(process, "go")
        assert [line(process) for process in children] == ["written"] * 6
        with Ledger.open(state) as ledger:
            assert {row.run for row in ledger.rows()} == {f"run{number}" for number in range(6)}


HOLD_THE_LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print('held', flush=True)
sys.stdin.readline()
database.execute("COMMIT")
print('given back', flush=True)
sys.stdin.readline()
"""


def test_a_file_that_is_locked(
    state: Path, child: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with Ledger.open(state) as ledger:
        ledger.write(make_row())
        holder = child(HOLD_THE_LOCK, ledger.path)
        line(holder)
        with pytest.raises(LedgerError, match="is locked by another process"):
            ledger.write(make_row("r2"))
        assert [row.run for row in ledger.rows()] == ["r1"], "readers do not wait"
        tell(holder, "give back")
        line(holder)
        ledger.write(make_row("r2"))


@pytest.mark.usefixtures("on_network")
def test_a_file_that_is_locked_while_it_is_opened(
    state: Path, child: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    Ledger.open(state).close()
    (path,) = state.glob("*.db")
    line(child(HOLD_THE_LOCK, path))
    with pytest.raises(LedgerError, match="is locked by another process"):
        Ledger.open(state)


def test_a_file_that_is_deleted_in_use(state: Path) -> None:
    with Ledger.open(state) as ledger:
        ledger.write(make_row())
        ledger.path.unlink()
        with pytest.raises(LedgerError, match="was deleted or replaced"):
            ledger.write(make_row("r2"))
        with Ledger.open(state) as replacement:
            assert replacement.rows() == []
            with pytest.raises(LedgerError, match="was deleted or replaced"):
                ledger.job_outcome("r1", "j1", "")


def test_a_ledger_that_is_closed(state: Path) -> None:
    ledger = Ledger.open(state)
    ledger.close()
    ledger.close()
    uses: list[Callable[[], object]] = [
        ledger.rows,
        lambda: ledger.write(make_row()),
        lambda: ledger.finish("r1", "done"),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match="closed"):
            use()


# Local and network file systems


def test_the_type_of_a_file_system(tmp_path: Path) -> None:
    types = {"ext2/ext3": 0xEF53, "tmpfs": 0x01021994, "proc": 0x9FA0, "sysfs": 0x62656572, "overlayfs": 0x794C7630}
    for directory in (Path("/proc"), Path("/sys"), Path("/dev/shm"), tmp_path):
        name = subprocess.run(["stat", "-f", "-c", "%T", directory], check=True, capture_output=True, text=True).stdout
        if name.strip() in types:
            assert files._file_system(directory) == types[name.strip()]
    assert files._file_system(tmp_path / "nothing") == 0
    assert 0x9FA0 not in files.LOCAL_FILE_SYSTEMS


def test_a_local_file_has_a_write_ahead_log(ledger: Ledger) -> None:
    assert ledger.path.name == "ledger.db"
    assert pragma(ledger, "journal_mode") == "wal"
    full, normal = 2, 1
    assert pragma(ledger, "synchronous") == full
    ledger.write(make_row())
    assert pragma(ledger, "synchronous") == full
    ledger.job_outcome("r1", "j1", "")
    assert pragma(ledger, "synchronous") == normal
    ledger.finish("r1", "done", durable=True)
    assert pragma(ledger, "synchronous") == full
    ledger.finish("r1", "done")
    assert pragma(ledger, "synchronous") == normal
    with ledger.batch():
        ledger.job_outcome("r1", "j2", "")
    assert pragma(ledger, "synchronous") == full


@pytest.mark.usefixtures("on_network")
def test_on_a_network_file_system_every_host_has_a_file(state: Path) -> None:
    first, second = HostIdentity("m" * 32, "a/../b c", "boot", 7), HostIdentity("m" * 32, "login-1.example", "boot", 7)
    with Ledger.open(state, first) as one, Ledger.open(state, second) as other:
        assert (one.path.name, other.path.name) == ("ledger-a_.._b_c.db", "ledger-login-1.example.db")
        one.write(make_row())
        one.job_outcome("r1", "j1", "")
        assert pragma(one, "journal_mode") == "truncate"
        assert pragma(one, "synchronous") == 2, "a rollback journal is safe with every synchronization only"
        assert other.rows() == []
        assert one.rows()[0].jobs == {"j1": ""}
    assert {mode(path) for path in state.iterdir()} == {0o600}


@pytest.mark.usefixtures("on_network")
def test_a_container_on_a_network_file_system_has_no_machine(state: Path) -> None:
    container = A_PLACE
    node = HostIdentity("m" * 32, "host", "boot", host_identity.INITIAL_PID_NAMESPACE)
    with Ledger.open(state, container) as ledger:
        assert ledger.host_identity == HostIdentity("", "host", "boot", 7)
        earlier = HostIdentity("", "host", "earlier", 7)
        assert judge(make_row(host_identity=earlier), ledger.host_identity) == "elsewhere"
    with Ledger.open(state, node) as ledger:
        assert ledger.host_identity == node


# Rows -----------------------------------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "host_identity": A_PLACE,
    "pid": 10,
    "start_ticks": 11,
    "watcher_pid": 20,
    "watcher_start_ticks": 21,
    "tag": "qxs-r1",
    "driver_tag": "qxd-1",
    "endpoint": "https://quantum.cloud.ibm.com/api/v1",
    "instance": "crn:v1:bluemix:public:quantum-computing:us-east:a/0123456789abcdef0123456789abcdef:"
    "01234567-89ab-cdef-0123-456789abcdef::",
    "jobs": {"j1": "", "j2": "cancelled"},
    "session": "s1",
    "session_owner": True,
    "state": "pending",
    "detail": "no answer",
    "sweep_until": 99.5,
    "answered": True,
}


def test_the_life_of_a_run(state: Path) -> None:
    clock = Clock()
    with Ledger.open(state, clock=clock) as ledger:
        ledger.write(make_row(), make_row("r2"))
        clock.now = 1001.0
        ledger.job_outcome("r1", "j1", "")
        ledger.write(make_row(session="s1", session_owner=False, watcher_pid=7, watcher_start_ticks=8))
        ledger.job_outcome("r1", "j1", "cancelled")
        ledger.job_outcome("r1", "j1", "")  # heard again: its outcome stays
        ledger.job_outcome("r1", "j0", "duplicate, cancelled")  # found by a sweep
        ledger.finish("r1", "pending", "no answer", sweep_until=87400.0)
        row = ledger.row("r1")
        assert row is not None
        assert row.jobs == {"j0": "duplicate, cancelled", "j1": "cancelled"}
        assert (row.session, row.session_owner) == ("s1", False)
        assert (row.watcher_pid, row.watcher_start_ticks) == (7, 8)
        assert (row.state, row.detail, row.sweep_until) == ("pending", "no answer", 87400.0)
        assert (row.created_at, row.updated_at) == (1000.0, 1001.0)
        ledger.finish("r1", "cancelled")
        row = ledger.row("r1")
        assert row is not None
        assert (row.state, row.detail, row.sweep_until) == ("cancelled", "", None)
        assert [row.run for row in ledger.rows(UNFINISHED)] == ["r2"]


def test_a_run_that_is_not_there_can_not_be_claimed(ledger: Ledger) -> None:
    assert not ledger.claim("r1", this_process())
    ledger.release("r1", this_process())


def test_an_intent_of_many_rows_is_one_write(ledger: Ledger) -> None:
    with pytest.raises(LedgerError):
        ledger.write(make_row("r1"), make_row("r2", pid=2**70))
    assert ledger.rows() == []
    with pytest.raises(LedgerError):
        ledger.row("\udcff")
    ledger.write(*(make_row(f"r{number}", jobs={"j": ""}) for number in range(100)))
    assert len(ledger.rows()) == 100


def test_forgetting_is_done_in_slices(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FORGET_AT_ONCE", 3)
    with Ledger.open(state) as ledger:
        ledger.write(*(make_row(f"r{number}", state="done") for number in range(8)))
        assert [ledger.forget(-1.0) for _ in range(4)] == [3, 3, 2, 0]


def plans(ledger: Ledger, use: Callable[[], object]) -> list[str]:
    """How SQLite does what a use of the ledger asks of it, a line a step."""
    statements: list[str] = []
    ledger._database.set_trace_callback(statements.append)
    use()
    ledger._database.set_trace_callback(None)
    return [
        step["detail"].replace(" TABLE ", " ")  # as older versions say
        for statement in statements
        if statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")
        for step in ledger._database.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]


def test_no_use_of_it_reads_all_its_rows(ledger: Ledger) -> None:
    me = this_process(ledger.host_identity)
    ledger.write(make_row(), make_row("r2"))
    wish = ReservationWish(run="r1", post="p", instance="", label="", most=1, own=[Budget(name="b", seconds=9)])
    uses: dict[str, Callable[[], object]] = {
        "intent": lambda: ledger.write(make_row("r3", jobs={"j1": ""})),
        "again": lambda: ledger.write(make_row("r3", jobs={"j1": "", "j2": ""})),
        "job": lambda: ledger.job_outcome("r1", "j1", ""),
        "finish": lambda: ledger.finish("r2", "done"),
        "unfinished": lambda: ledger.rows(UNFINISHED),
        "row": lambda: ledger.row("r1"),
        "claim": lambda: ledger.claim("r1", me),
        "release": lambda: ledger.release("r1", me),
        "forget": lambda: ledger.forget(-1.0),
        "reserve": lambda: ledger.reserve(wish),
    }
    found = {name: plans(ledger, use) for name, use in uses.items()}
    assert found["unfinished"][0] == "SEARCH runs USING INDEX unfinished (state=?)"
    assert "SEARCH runs USING INDEX finished (updated_at<?)" in found["forget"]
    assert found["row"][0] == "SEARCH runs USING INDEX sqlite_autoindex_runs_1 (run=?)"
    scans = {step for steps in found.values() for step in steps if step.startswith("SCAN")}
    # Indices of those alone that are open, or standing.
    assert scans <= {"SCAN reservations USING INDEX reservations_open", "SCAN budgets USING INDEX standing"}
    # The newest rows of a long ledger: along the row ids, no sorting.
    assert plans(ledger, lambda: ledger.rows(limit=20))[0] == "SCAN runs"
    assert not any("TEMP B-TREE" in step for step in plans(ledger, lambda: ledger.rows(limit=20)))


# Death ----------------------------------------------------------------------------------------------------------

WRITE_AND_WAIT = """
import sys
from qx_supervisor.watcher.ledger import Ledger, Row
from qx_supervisor.watcher.host_identity import this_host
ledger = Ledger.open(sys.argv[1])
ledger.write(Row(run="r1", host_identity=this_host(), pid=1, start_ticks=1, tag="qxs-r1"))
ledger.job_outcome("r1", "j1", "")
with ledger.batch():
    ledger.job_outcome("r1", "j2", "")
    print("written", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("is_local", [True, False])
def test_what_is_written_survives_a_kill(
    is_local: bool, state: Path, child: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = WRITE_AND_WAIT
    if not is_local:
        monkeypatch.setattr(files, "LOCAL_FILE_SYSTEMS", frozenset())
        program = "from qx_supervisor.watcher.ledger import file; file.LOCAL_FILE_SYSTEMS = frozenset()" + program
    writer = child(program, state)
    line(writer)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    with Ledger.open(state) as ledger:
        (row,) = ledger.rows(UNFINISHED)
        assert (row.run, row.tag, row.jobs) == ("r1", "qxs-r1", {"j1": ""})
        ledger.finish("r1", "cancelled")


def test_an_intent_survives_a_kill_at_any_moment(state: Path, child: Callable[..., subprocess.Popen[str]]) -> None:
    program = """
import sys
from qx_supervisor.watcher.ledger import Ledger, Row
from qx_supervisor.watcher.host_identity import this_host
ledger, place = Ledger.open(sys.argv[1]), this_host()
for number in range(100_000):
    ledger.write(Row(run=f"{sys.argv[2]}-{number}", host_identity=place, pid=1, start_ticks=1))
    print(number, flush=True)
"""
    for attempt in range(5):
        writer = child(program, state, str(attempt))
        for _ in range(attempt * 7 + 1):
            line(writer)
        writer.kill()
        assert writer.stdout is not None
        rest = writer.stdout.read().split("\n")  # `communicate` would miss what was read ahead
        acknowledged = max([attempt * 7, *(int(number) for number in rest[:-1])])
        with Ledger.open(state) as ledger:
            runs = {row.run for row in ledger.rows()}
        assert {f"{attempt}-{number}" for number in range(acknowledged + 1)} <= runs
        assert f"{attempt}-{acknowledged + 2}" not in runs


# Claiming -------------------------------------------------------------------------------------------------------

CLAIM_ALL = """
import json, sys
from qx_supervisor.watcher.ledger import UNFINISHED, Ledger, sqlite
from qx_supervisor.watcher.host_identity import this_process
sqlite.BUSY_SECONDS = 60.0  # the disk may be slow
with Ledger.open(sys.argv[1]) as ledger:
    me = this_process(ledger.host_identity)
    runs = sorted(row.run for row in ledger.rows(UNFINISHED))
    print("ready", flush=True)
    sys.stdin.readline()
    won = [run for run in runs if ledger.claim(run, me)]
    print(json.dumps(won), flush=True)
    sys.stdin.readline()
"""


def test_of_many_reapers_one_gets_a_row(state: Path, child: Callable[..., subprocess.Popen[str]]) -> None:
    with Ledger.open(state) as ledger:
        runs = {f"r{number:03}" for number in range(300)}
        ledger.write(*(make_row(run) for run in runs))
        reapers = [child(CLAIM_ALL, state) for _ in range(3)]
        for reaper in reapers:
            line(reaper)
        for reaper in reapers:
            tell(reaper, "go")
        won = [json.loads(line(reaper)) for reaper in reapers]
        assert sorted(run for each in won for run in each) == sorted(runs)
        for reaper, each in zip(reapers, won, strict=True):
            holder = Process(ledger.host_identity, reaper.pid, start_ticks(reaper.pid))
            assert all(row.claimed_by == holder for row in ledger.rows() if row.run in each)


def test_the_claim_of_a_dead_process_is_taken_over_once(
    state: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    with Ledger.open(state) as ledger:
        ledger.write(make_row())
        reaper = child(CLAIM_ALL, state)
        line(reaper)
        tell(reaper, "go")
        assert line(reaper) == '["r1"]'
        me = this_process(ledger.host_identity)
        assert not ledger.claim("r1", me)
        reaper.kill()
        os.waitid(os.P_PID, reaper.pid, os.WEXITED | os.WNOWAIT)
        assert ledger.claim("r1", me), "its holder is a zombie"
        assert not ledger.claim("r1", me), "another thread of this process has it"
        row = ledger.row("r1")
        assert row is not None
        assert row.claimed_by == me


def test_claims_of_other_places(state: Path) -> None:
    clock = Clock()
    with Ledger.open(state, A_PLACE, clock=clock) as ledger:
        ledger.write(make_row(host_identity=A_PLACE))
        me = Process(A_PLACE, 1, 1)

        def claim() -> bool:
            return ledger.claim("r1", me, is_running=lambda *_: True)

        ledger._database.execute("UPDATE runs SET claimed_by = 'nonsense'")
        assert ledger.claim("r1", Process(HostIdentity("m" * 32, "host", "earlier", 7), 1, 1))
        assert claim(), "its holder ended with an earlier boot"
        ledger.release("r1", me)
        assert ledger.claim("r1", Process(HostIdentity("n" * 32, "host", "boot", 7), 1, 1))
        assert not claim()
        clock.now += rules.CLAIM_SECONDS - 1
        assert not claim()
        clock.now += 1
        assert claim(), "its holder can't be seen, and was silent for too long"


def test_a_claim_can_be_given_back_by_its_holder_only(ledger: Ledger) -> None:
    me = this_process(ledger.host_identity)
    other = Process(ledger.host_identity, os.getppid(), start_ticks(os.getppid()))
    ledger.write(make_row())
    assert ledger.claim("r1", other)
    ledger.release("r1", me)
    assert not ledger.claim("r1", me)
    ledger.release("r1", other)
    row = ledger.row("r1")
    assert row is not None
    assert (row.claimed_by, row.claimed_at) == (None, None)
    assert ledger.claim("r1", me)


def test_a_claim_is_written_as_earlier_versions_read_it(state: Path) -> None:
    with Ledger.open(state, A_PLACE) as ledger:
        ledger.write(make_row())
        assert ledger.claim("r1", Process(A_PLACE, 8, 80))
        [(claim,)] = ledger._database.execute("SELECT claimed_by FROM runs")
    host = {"boot": "boot", "host": "host", "machine": "m" * 32, "pid_ns": 7}
    assert claim == json.dumps({"pid": 8, "place": host, "start_ticks": 80})


@pytest.mark.parametrize("state_", sorted(FINAL))
def test_a_final_row_cannot_be_claimed(ledger: Ledger, state_: RunState) -> None:
    ledger.write(make_row())
    ledger.finish("r1", state_)
    assert not ledger.claim("r1", this_process(ledger.host_identity))


# Secrets --------------------------------------------------------------------------------------------------------

KEYS = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=44, max_size=44)


@given(before=st.text(), key=KEYS, after=st.text())
def test_a_detail_holds_no_api_key(before: str, key: str, after: str) -> None:
    detail = safe_detail(f"{before} {key} {after}")
    assert key not in detail
    assert len(detail) <= 300
    assert "\n" not in detail


@pytest.mark.parametrize(
    ("detail", "safe"),
    [
        ("401: eyJhbGciOi.eyJpYW0.c2ln refused", "401: [left out] refused"),
        ("{'Authorization': 'Bearer abc123'}", "{'Authorization': 'Bearer [left out]'}"),
        ("authorization: apikey abc123, no", "authorization: apikey [left out], no"),
        ("POST /token?apikey=abc123&x=1", "POST /token?apikey=[left out]&x=1"),
        ("the token has\n expired", "the token has expired"),
        (
            "qxs-01234567-89ab-cdef-0123-456789abcdef: job d1a2b3c4d5e6f7g8h9i0 of ibm_brisbane is running",
            "qxs-01234567-89ab-cdef-0123-456789abcdef: job d1a2b3c4d5e6f7g8h9i0 of ibm_brisbane is running",
        ),
        ("\udcff", "?"),
        ("", ""),
    ],
)
def test_a_detail_without_its_secrets(detail: str, safe: str) -> None:
    assert safe_detail(detail) == safe


@pytest.mark.parametrize(
    ("endpoint", "safe"),
    [
        ("https://quantum.cloud.ibm.com/api/v1", "https://quantum.cloud.ibm.com/api/v1"),
        ("http://127.0.0.1:8123", "http://127.0.0.1:8123"),
        ("https://user:secret@host/api", "https://host/api"),
        ("https://token@host", "https://host"),
        ("https://host/api?apikey=secret#secret", "https://host/api"),
        ("https://host/a@b", "https://host/a@b"),
    ],
)
def test_an_endpoint_without_its_secrets(endpoint: str, safe: str) -> None:
    assert safe_endpoint(endpoint) == safe


def test_no_file_of_it_holds_a_secret(state: Path) -> None:
    token = "0123456789-TheKeyOfAnAccountAtIBMCloud_abcdef"
    with Ledger.open(state) as ledger:
        ledger.write(make_row(endpoint=f"https://me:{token}@host/api?x={token}", detail=f"tried {token}"))
        ledger.job_outcome("r1", "j1", f"refused: Bearer {token}")
        ledger.finish("r1", "pending", f"GET /jobs: apikey {token}")
        contents = [path.read_bytes() for path in state.iterdir()]
        assert len(contents) == 3
        assert not any(token.encode() in content for content in contents)


# Where it is ----------------------------------------------------------------------------------------------------


def test_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("QX_STATE_DIR", raising=False)
    assert state_directory() == tmp_path / ".local/state/qx_supervisor"
    monkeypatch.setenv("QX_STATE_DIR", "")
    assert state_directory() == tmp_path / ".local/state/qx_supervisor"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert state_directory() == tmp_path / "xdg/qx_supervisor"
    monkeypatch.setenv("QX_STATE_DIR", "~/mine")
    assert state_directory() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QX_STATE_DIR", "here")
    assert state_directory() == tmp_path / "here"


def test_a_mac_keeps_it_in_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QX_STATE_DIR", raising=False)
    monkeypatch.setattr(platformdirs, "PlatformDirs", MacOS)
    assert state_directory() == Path.home() / "Library/Application Support/qx_supervisor"


@needs_root
def test_a_user_without_a_home(child: Callable[..., subprocess.Popen[str]]) -> None:
    program = """
import os
for name in ("HOME", "XDG_STATE_HOME", "QX_STATE_DIR"):
    os.environ.pop(name, None)
import platformdirs
from qx_supervisor.watcher.ledger import LedgerError, state_directory
os.setuid(2_000_000_000)
try:
    state_directory()
except LedgerError as error:
    print(error, flush=True)
"""
    assert line(child(program)) == "There is no home directory for the ledger: set QX_STATE_DIR to a directory."


def test_it_works_under_another_name_and_imports_little(
    state: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    program = """
import sys
before = set(sys.modules)  # more than nothing where coverage is measured
import importlib.util
folder = sys.argv[2]
sys.path[:] = [path for path in sys.path if path.rstrip("/") != folder.rpartition("/")[0]]
spec = importlib.util.spec_from_file_location("other", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["other"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from other.ledger import Ledger
Ledger.open(sys.argv[1]).close()
print(*sorted({name.partition(".")[0] for name in sys.modules if name not in before}), flush=True)
"""
    loaded = set(line(child(program, state, ROOT / "watcher")).split())
    assert "other" in loaded
    heavy = {"watcher", "qx_supervisor", "platformdirs", "psutil", "requests", "asyncio", "socket", "subprocess"}
    assert not loaded & heavy
