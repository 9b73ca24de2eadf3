"""What a watcher is started in: an interpreter, and never a program that has Python in it; what is silent is ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from testkit.drivers import PRELUDE, RUN, Driver, assert_cancelled_once
from testkit.processes import Process, wait_for_end

from qx_supervisor import WatcherError, interpreter, launch
from qx_supervisor.watcher import host_identity

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's Python is installed in a folder with two names, and runs outside any environment."""
    made = tmp_path / "base" / "bin"
    made.mkdir(parents=True)
    for name in ("python3", f"python{VERSION}{sys.abiflags}"):
        (made / name).symlink_to("/bin/true")
    for name in ("prefix", "base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(made.parent))
    monkeypatch.setattr(sys, "executable", str(made / "python3"))
    monkeypatch.setattr(sys, "_base_executable", str(made / "python3"))
    return made


def test_without_a_view_of_itself_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """In /proc of another PID namespace its pid is another process's, whose death would cancel its jobs."""
    monkeypatch.setattr(host_identity, "sees_itself", lambda: False)
    with pytest.raises(WatcherError, match="PID namespace"):
        launch.start()


def test_the_running_interpreter_is_taken(base: Path) -> None:
    assert interpreter.find() == str(base / "python3")


@pytest.mark.parametrize("name", ["python", "python3.13t", "python3.11d", "python3-dbg", "pypy3"])
def test_another_one_that_the_program_names_is_taken(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A script that sets something up first, say."""
    script = tmp_path / name
    script.write_text('#!/bin/sh\nexec python3 "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert interpreter.find() == str(script)


def test_of_a_virtual_environment_the_one_it_was_made_of_is_taken(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = tmp_path / "project" / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to("/bin/true")
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    assert interpreter.find() == str(base / "python3")
    (base / "python3").unlink()  # it was removed, or upgraded
    assert interpreter.find() == str(environment / "bin" / "python")


@pytest.mark.parametrize("host", ["uwsgi", "pvpython", "python-editor", "", None, "no/such/python"])
def test_a_program_that_has_python_in_it_is_not_taken(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None
) -> None:
    for name in filter(None, [host]):
        if "/" not in name:
            (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setattr(sys, "executable", str(tmp_path / host) if host else host)
    monkeypatch.setattr(sys, "_base_executable", sys.executable)
    assert interpreter.find() == str(base / f"python{VERSION}{sys.abiflags}")
    (base / f"python{VERSION}{sys.abiflags}").unlink()
    with pytest.raises(WatcherError, match=f"sys.executable names none .* set sys.executable to a Python {VERSION}"):
        interpreter.find()


HOST = """
#include <Python.h>
#include <stdio.h>
int main(int argc, char **argv) {
  FILE *log = fopen(LOG, "a"); fputs("started\\n", log); fclose(log);
  if (argc > 1 && argv[1][0] == '-') return 7;
  PyConfig config; PyConfig_InitPythonConfig(&config);
  PyConfig_SetBytesString(&config, &config.executable, argv[0]);
  PyConfig_SetBytesString(&config, &config.home, HOME);
  Py_InitializeFromConfig(&config); PyConfig_Clear(&config);
  int status = PyRun_SimpleFile(fopen(argv[1], "r"), argv[1]); Py_FinalizeEx(); return status != 0;
}
"""


@pytest.fixture
def host(tmp_path: Path) -> tuple[Path, Path]:
    """A program that has Python in it, and a file with a line for each start of it."""
    config = Path(sys.base_exec_prefix, "bin", f"python{VERSION}-config")
    if not config.exists():
        pytest.skip(f"no {config}, which says how to put Python into a program")
    flags = subprocess.run([config, "--includes", "--ldflags", "--embed"], capture_output=True, text=True, check=True)
    source, program, log = tmp_path / "host.c", tmp_path / "host", tmp_path / "log"
    source.write_text(HOST)
    defined = [f'-DLOG="{log}"', f'-DHOME="{sys.base_prefix}"', f"-Wl,-rpath,{sysconfig.get_config_var('LIBDIR')}"]
    subprocess.run(["cc", "-O1", *defined, "-o", program, source, *shlex.split(flags.stdout)], check=True)
    return program, log


@pytest.mark.long
def test_a_run_in_a_program_that_has_python_in_it(ibm, host, tmp_path):
    program, log = host
    script = tmp_path / "script.py"
    paths = f"import sys\nsys.argv = ['']\nsys.path += {sys.path!r}\n"
    script.write_text(paths + PRELUDE.format(pid=ibm.pid, port=ibm.port) + f"say('host', sys.executable)\n{RUN}")
    ibm.hold("queued")
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    driver = Driver(subprocess.Popen([str(program), str(script)], **streams))
    try:
        assert driver.line("host ") == [str(program)]
        job = driver.queued()
        watcher = driver.watcher()
        assert driver.kill() == -signal.SIGKILL
        wait_for_end(watcher)
    finally:
        driver.clear()
    assert_cancelled_once(ibm, job)
    assert log.read_text().splitlines() == ["started"]


# What does not answer ---------------------------------------------------------------------------------------------


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fifo to which whatever is started writes its pids; and a driver with little patience."""
    monkeypatch.setattr(launch, "START_SECONDS", 0.5)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    return fifo


PROGRAM = """#!/bin/sh
sleep 1000 &
echo $$ $! >{fifo}
wait
"""

BOOT = """
import os, signal
if os.fork():
    os._exit(0)
open({fifo!r}, "w").write(str(os.getpid()))
signal.pause()
"""


@pytest.mark.parametrize("which", ["another program", "a watcher that hangs"])
def test_what_does_not_answer_is_ended(
    silent: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    if which == "another program":
        program = tmp_path / "python"
        program.write_text(PROGRAM.format(fifo=silent))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
    else:
        boot = tmp_path / "boot.py"
        boot.write_text(BOOT.format(fifo=str(silent)))
        monkeypatch.setattr(launch, "BOOT", boot)
    begun = launch.start("here")
    processes = [Process(pid) for pid in silent.read_text().split()]
    assert processes
    with pytest.raises(WatcherError, match="the watcher did not answer within"):
        launch.launch(begun)
    for process in processes:
        wait_for_end(process)
