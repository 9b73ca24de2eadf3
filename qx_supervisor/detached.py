"""Children that are detached from this program: without its terminal's signals, and with little of its environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence

_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

# What a watcher gets of the driver's environment: how to reach the service, and where the user's files are. Never its
# QISKIT_IBM_*, which include a key; nor its QX_*, because users who come from Qx have a key in QX_IBM_API_KEY.
_ALLOWED = re.compile(
    r"""(https?|no|all|ftp)_proxy | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE | SSL_CERT_(FILE|DIR) | LD_LIBRARY_PATH
    | LANG | LC_[A-Z]+ | TZ | HOME | XDG_[A-Z_]+ | IAM_URL""",
    re.VERBOSE | re.IGNORECASE,
)


def environment() -> dict[str, str]:
    """The part of this process's environment that a watcher gets."""
    return {name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name)}


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
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
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
