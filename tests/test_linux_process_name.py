"""Tools that end programs by name or by command line: they are meant for the driver, and miss its watcher.

The real tools, in a PID namespace, outside which they see and reach nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from testkit.drivers import RUN, assert_cancelled_once
from testkit.watchers import titles

import qx_supervisor

ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]

SHELL = 'tool=$1; shift; "$@" & read _; eval "$tool"; wait; echo over; read _'
"""Starts a driver, runs a tool when it is told to, and stays: with it, the first process there, all others end."""

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="unshare --pid needs root")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder, with a virtual environment in it."""
    environment = tmp_path / "project" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    ours = str(Path(qx_supervisor.__file__).parent.parent)
    needed = [ours, *(path for path in sys.path if path.endswith("-packages"))]
    (packages / "needed.pth").write_text("\n".join(needed))
    return environment.parent


@pytest.mark.parametrize(
    "tool",
    [
        "killall -9 python",
        "pkill -9 python",
        "pkill -9 -f {project}",
        "pkill -9 -f python",
        "pkill -9 -f {script}",
        "kill -9 $(pidof python)",
        # A loop over /proc, as of psutil.process_iter, which compares the name, the command line or both.
        "cd /proc; for each in [0-9]*; do grep -qe python -e project $each/comm $each/cmdline && kill -9 $each; done",
    ],
)
@pytest.mark.short_only("pkill -9 -f {project}")
def test_what_finds_the_driver_misses_its_watcher(ibm, start, project, tool):
    for needed in {"killall", "pkill", "pidof"} & set(re.findall(r"\w+", tool)):
        if not shutil.which(needed):
            pytest.skip(f"{needed} is not installed")
    ibm.hold("queued")

    def wrap(command: list[str]) -> list[str]:
        words = tool.format(project=project, script=command[1])
        return [*ALONE, "sh", "-c", SHELL, "sh", words, str(project / ".venv" / "bin" / "python"), *command[1:]]

    driver = start(RUN, wrap=wrap, stdin=subprocess.PIPE, env={**os.environ, "QX_STATE_DIR": str(project / "state")})
    job = driver.queued()
    driver.process.stdin.write(b"now\n")
    driver.process.stdin.flush()
    driver.line("over")
    ibm.wait_job(job, "Cancelled")
    assert_cancelled_once(ibm, job)
    driver.process.stdin.close()
    driver.process.stdin = None
    driver.end()
    assert not [each for each, title in titles() if title.is_in(project / "state")]
