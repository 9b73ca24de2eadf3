"""Children that are detached from this program: without its terminal's signals, and with little of its environment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Sequence

from .watcher import system

# What a watcher gets of the driver's environment: how to reach the service, and where the user's files are. Never its
# QISKIT_IBM_*, which include a key; nor its other QX_*, because users who come from Qx have a key in QX_IBM_API_KEY.
_ALLOWED = re.compile(
    r"""(https?|no|all|ftp)_proxy | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE | SSL_CERT_(FILE|DIR) | LD_LIBRARY_PATH
    | LANG | LC_[A-Z]+ | TZ | HOME | XDG_[A-Z_]+ | IAM_URL | QX_PORTABLE""",
    re.VERBOSE | re.IGNORECASE,
)


_PATHS = {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "", "SSL_CERT_FILE": "", "SSL_CERT_DIR": os.pathsep}
"""Variables that name files, each with what is between two of them."""


def environment() -> dict[str, str]:
    """The part of this process's environment that a watcher gets, whose current folder is another one."""
    allowed = {name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name)}
    for name in _PATHS.keys() & allowed.keys():
        paths = allowed[name].split(_PATHS[name]) if _PATHS[name] else [allowed[name]]
        allowed[name] = _PATHS[name].join(os.path.abspath(path) if path else "" for path in paths)  # noqa: PTH100
    return allowed


def title_words(title: str) -> list[str]:
    """What the end of a watcher's command line shows of it; on Linux a watcher replaces the whole line by its title."""
    return [] if system.HAS_LINUX else title.split()


def above_streams(descriptor: int) -> int:
    """A copy above the standard streams, which a driver may have closed: the child opens its own there."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


def spawn(
    command: Sequence[str],
    env: dict[str, str],
    *,
    passed: Sequence[int] = (),
    errors: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own.

    Args:
        command: The command.
        env: Its environment.
        passed: The descriptors that it inherits.
        errors: Where its stderr goes: `subprocess.DEVNULL` or `subprocess.PIPE`.

    Raises:
        OSError: If it can't be started.
    """
    # A Ctrl-C at the terminal reaches the whole foreground group. Blocked, it can't end the child before that has a
    # session of its own.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=passed,
            cwd="/",
            env=env,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def end(child: subprocess.Popen[bytes]) -> None:
    """End what `spawn` has started, and what that has started in its session since.

    The child must not have been waited for before: until then its number is no other session's.
    """
    if child.returncode is not None:
        return
    with contextlib.suppress(ChildProcessError, ProcessLookupError):  # the program itself may wait for all its children
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
