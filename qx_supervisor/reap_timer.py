"""A timer that runs `reap` every few minutes, for the machines on which driver and watcher may die together.

Where a user manager of systemd runs, it is a timer of the user's. Elsewhere it is a line for the user's crontab, which
is printed and not installed: a crontab is the user's own text. Neither contains a secret, so `reap` uses the saved
account there, and what may hold a password does not go with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from . import ancestry, detached, settings
from .errors import QxError
from .systemd_launch import runtime_directory
from .watcher import ledger

NAME = "qx-supervisor-reap"
TIMER = f"{NAME}.timer"

SERVICE_TEXT = """\
# Written by `qx-supervisor reap --install-timer`; `qx-supervisor reap --remove-timer` removes it.
[Unit]
Description=Cancels on IBM Quantum what dead programs left behind with their watchers

[Service]
Type=oneshot
{environment}ExecStart={command}
# Not everything could be resolved yet: the next time it may.
SuccessExitStatus=6
# While it hangs, the timer would start no other.
TimeoutStartSec=30min
NoNewPrivileges=yes
UMask=0077
"""

TIMER_TEXT = """\
# Written by `qx-supervisor reap --install-timer`; `qx-supervisor reap --remove-timer` removes it.
[Unit]
Description=Reaps every {minutes} minutes what dead programs left behind with their watchers

[Timer]
# What a machine left when it lost its power is reaped when it is back.
OnStartupSec=1min
OnUnitInactiveSec={minutes}min

[Install]
WantedBy=timers.target
"""

# How IBM Quantum is reached, and how Python starts. A proxy's address may hold a password: see `left_out`.
_GOES_ALONG = re.compile(
    r"(https?|no|all|ftp)_proxy|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_(FILE|DIR)|IAM_URL|LD_LIBRARY_PATH",
    re.IGNORECASE,
)


def command(options: Sequence[str]) -> list[str]:
    """What the timer runs.

    Args:
        options: Those of `reap`.
    """
    # -P: not from the working directory, which is the home.
    return [sys.executable, "-P", "-m", "qx_supervisor", "reap", *options]


def environment() -> dict[str, str]:
    """What of this process's environment the timer's `reap` needs, without secrets.

    Raises:
        QxError: A value can't stand in a unit or a crontab.
    """
    found = {name: value for name, value in detached.environment().items() if _GOES_ALONG.fullmatch(name)}
    for name in left_out():
        found.pop(name, None)
    if os.environ.get(settings.STATE_DIR) or os.environ.get("XDG_STATE_HOME"):
        found[settings.STATE_DIR] = str(ledger.state_directory())
    if window := os.environ.get(settings.SWEEP_WINDOW):
        found[settings.SWEEP_WINDOW] = window
    if path := os.environ.get("PYTHONPATH"):
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(each) for each in path.split(os.pathsep) if each)  # noqa: PTH100 - links stay
    for name, value in found.items():
        if "\n" in value:
            raise QxError(f"{name} has a line break, which no timer can be given; set it without one, and try again")
    return found


def left_out() -> list[str]:
    """The variables that the timer's `reap` could use, and that may hold a secret: it does not see them."""
    return sorted(name for name, value in detached.environment().items() if "proxy" in name.lower() and "@" in value)


def has_manager() -> bool:
    """Whether a user manager of systemd runs, which can have the timer."""
    return runtime_directory() is not None


def lingers() -> bool:
    """Whether the user manager runs also while the user is not logged in."""
    import pwd

    # loginctl enable-linger makes this file, and logind has it from there.
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return Path("/var/lib/systemd/linger", name).exists()


def install(minutes: int, options: Sequence[str]) -> list[Path]:
    """Write the units, and start the timer; also where it is installed already.

    Args:
        minutes: The pause between two `reap`s.
        options: Those of `reap`.

    Returns:
        The files.

    Raises:
        QxError: If the files can't be written, or systemd refuses.
    """
    given = "".join(f"Environment={_word(f'{name}={value}')}\n" for name, value in environment().items())
    # systemd expands variables in a command, but not in an assignment.
    words = " ".join(_word(each).replace("$", "$$") for each in command(options))
    service, timer = files()
    try:
        service.parent.mkdir(parents=True, exist_ok=True)
        _write(service, SERVICE_TEXT.format(environment=given, command=words))
        _write(timer, TIMER_TEXT.format(minutes=minutes))
    except OSError as error:
        raise QxError(f"the timer can't be written to {service.parent}: {error.strerror}; make it writable") from None
    _systemctl("daemon-reload")
    _systemctl("enable", TIMER)
    _systemctl("restart", TIMER)  # also one that runs with an earlier text
    return [service, timer]


def remove() -> list[Path]:
    """Stop the timer, and remove its files.

    Returns:
        The files that were there.

    Raises:
        QxError: If they can't be removed, or systemd refuses.
    """
    found = [path for path in files() if path.exists()]
    if found and has_manager():
        with contextlib.suppress(QxError):  # it may have been stopped, or never been known
            _systemctl("stop", TIMER)
    try:
        for path in (*found, found[0].parent / "timers.target.wants" / TIMER) if found else ():
            path.unlink(missing_ok=True)
    except OSError as error:
        raise QxError(f"the timer can't be removed: {error.filename}: {error.strerror}; remove it yourself") from None
    if found and has_manager():
        _systemctl("daemon-reload")
    return found


def state() -> Literal["none", "running", "stopped"]:
    """Whether the timer is installed, and runs."""
    try:
        if not files()[1].exists():
            return "none"
    except QxError:  # there is no home, and nothing in it
        return "none"
    with contextlib.suppress(QxError):
        if has_manager() and _systemctl("is-active", TIMER):
            return "running"
    return "stopped"


def files() -> tuple[Path, Path]:
    """Where the service and its timer are written down.

    Raises:
        QxError: There is no home directory.
    """
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    try:
        folder = Path(config).expanduser() / "systemd" / "user"
    except RuntimeError:
        raise QxError("there is no home directory for the timer; set HOME, and try again") from None
    return folder / f"{NAME}.service", folder / TIMER


def crontab_line(minutes: int, options: Sequence[str]) -> str:
    """A line of crontab(5) that does what the timer does.

    Raises:
        QxError: If there is no use for one here, or a value can't stand in it.
    """
    if ancestry.is_in_pid_namespace():
        raise QxError(
            "a timer in this container would end with it, as the watcher does; let a reaper elsewhere know of the "
            f"jobs instead ({settings.LEDGER}, qx-supervisor reaper)"
        )
    when = f"*/{minutes} * * * *" if minutes < 60 else f"0 */{minutes // 60} * * *"
    given = (f"{name}={shlex.quote(value)}" for name, value in environment().items())
    line = " ".join((*given, shlex.join(command(options)), ">/dev/null 2>&1"))
    return f"{when} {line}".replace("%", "\\%")  # cron takes a bare one for a line break


def _word(text: str) -> str:
    """A word of a unit file: quoted, and without specifiers."""
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%"))


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(f"{path.suffix}.new")
    draft.write_text(text, errors="surrogateescape")
    draft.replace(path)


def _systemctl(*words: str) -> str:
    folder = runtime_directory()
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0"}
    try:
        done = subprocess.run(
            ["systemctl", "--user", *words], env=env, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise QxError(f"systemctl --user can't be asked ({error}); look at `systemctl --user status`") from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        hint = "; does systemd know of XDG_CONFIG_HOME? If not, unset it" if os.environ.get("XDG_CONFIG_HOME") else ""
        raise QxError(f"systemctl --user {' '.join(words)} failed: {reason}{hint}")
    return done.stdout.strip()
