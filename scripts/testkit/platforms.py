"""Other platforms, as far as they can be had here: their modules, calls and constants are taken away.

A program begins with one of these preludes. First it imports what it will need as it is here, since what other packages
do on another platform is not the question. Then this package is forgotten, and its next import finds what that platform
has.
"""

from __future__ import annotations

ALL_MODULES = """
import importlib, pkgutil

def modules():
    scripts = "__main__", "injected", "local.boot", "watcher.boot"  # they are run by their path and never imported
    optional = "page", "reaper", "watcher.ledger.postgres"
    for found in pkgutil.walk_packages(qx_supervisor.__path__, "qx_supervisor."):
        if not found.name.removeprefix("qx_supervisor.").startswith((*scripts, *optional)):
            yield importlib.import_module(found.name)

for each in modules():
    pass
import qiskit_ibm_runtime.fake_provider, qiskit_aer, click.shell_completion, psutil, rich.console
"""
"""To be imported first: `modules()`, and what they need, now or when they are called."""

_FORGET = """
for name in [name for name in sys.modules if name.partition(".")[0] == "qx_supervisor"]:
    del sys.modules[name]

def take_away(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

import os, select, signal, socket

def forbid(event, arguments):
    # No folder of that name, to whoever asks.
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.addaudithook(forbid)
take_away(os, "eventfd", "memfd_create", "pidfd_open", "P_PIDFD", "EFD_CLOEXEC", "EFD_NONBLOCK", "MFD_CLOEXEC")
take_away(signal, "pidfd_send_signal")
take_away(socket, "MSG_NOSIGNAL", "MSG_CMSG_CLOEXEC", "SO_PEERCRED", "TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_QUICKACK")
take_away(select, "epoll")
"""

_MACOS = """
sys.platform = "darwin"
import qx_supervisor
"""

_WINDOWS = """
for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None  # an import fails
take_away(
    os, "fork", "forkpty", "register_at_fork", "geteuid", "getuid", "getegid", "getgid", "getsid", "setsid", "killpg",
    "getpgid", "getpgrp", "tcgetpgrp", "mkfifo", "mknod", "uname", "statvfs", "sysconf", "ttyname", "sched_yield",
    "sched_getaffinity", "waitid", "WNOHANG", "WNOWAIT", "WEXITED", "P_PID", "set_blocking", "getloadavg",
    "O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK",
)
take_away(
    signal, "SIGHUP", "SIGKILL", "SIGQUIT", "SIGPIPE", "SIGALRM", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGUSR1",
    "SIGUSR2", "SIGWINCH", "SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "pthread_sigmask", "pthread_kill", "sigpending",
    "sigwait", "siginterrupt", "setitimer", "alarm", "pause",
)
take_away(socket, "AF_UNIX", "MSG_DONTWAIT", "recv_fds", "send_fds")
take_away(select, "poll")

def socketpair():
    # As the standard library makes one there.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]

socket.socketpair = socketpair
sys.platform = "win32"
import qx_supervisor
"""


def macos(first: str = ALL_MODULES) -> str:
    """A prelude: what Linux alone has is gone.

    Args:
        first: What is imported before.
    """
    return f"import sys\nimport qx_supervisor\n{first}{_FORGET}{_MACOS}"


def windows(first: str = ALL_MODULES) -> str:
    """A prelude: what POSIX has is gone, too. `os.name` stays: by it the standard library chooses how files are called.

    Args:
        first: What is imported before.
    """
    return f"import sys\nimport qx_supervisor\n{first}{_FORGET}{_WINDOWS}"
