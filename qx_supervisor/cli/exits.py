"""How a command ends: with an exit code, a sentence on stderr, or by the signal that it was sent."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import click

from ..errors import ConfigError, Interrupted, JobCancelled, QxError, RunError, RunTimeout
from ..watcher import ledger, remote
from . import output

DONE = 0
FAILED = 1
USAGE = 2
CANCELLED = 3
AUTH = 4
TIMEOUT = 5
UNCONFIRMED = 6

_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())  # click 8.2: its message is the help text

tracebacks = False
"""Whether `--debug` was given."""


class UnknownJob(QxError):
    """There is no such job, or the argument can't be a job's id."""


def conclude(work: Callable[[], object]) -> int:
    """Run a command, report an error, and return the exit code.

    Args:
        work: The command. It returns the exit code, or anything else for 0.

    Returns:
        The exit code. After a signal this function does not return: the process dies of the signal.
    """
    global tracebacks  # noqa: PLW0603 - set by an option, which may stand anywhere on the command line
    tracebacks = False
    try:
        code = work()
        return code if type(code) is int else DONE
    except click.exceptions.Exit as end:
        return end.exit_code
    except Interrupted as error:
        tell(error)
        die(error.signum)
    except (KeyboardInterrupt, click.Abort):
        die(signal.SIGINT)
    except Exception as error:  # noqa: BLE001 - every error is reported as a sentence
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            output.close()  # the reader has closed the pipe
            return DONE
        tell(error)
        return code_of(error)


def code_of(error: BaseException) -> int:
    """Return the exit code for an error."""
    match error:
        case click.ClickException():
            return error.exit_code
        case RunError(stage="auth") | remote.Refused():
            return AUTH
        case ConfigError() | UnknownJob():
            return USAGE
        case JobCancelled():
            return CANCELLED
        case RunTimeout():
            return TIMEOUT
    return FAILED


def die(number: int) -> NoReturn:
    """Die of a signal, so that a loop in a shell stops."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError):  # SIGKILL has no other
        signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the signal does not end process 1 of a container


def tell(error: BaseException) -> None:
    """Report an error as a sentence, with its traceback after `--debug`."""
    if tracebacks:
        traceback.print_exception(error)
    if isinstance(error, click.UsageError) and isinstance(error, _NO_ARGUMENTS):
        error.show()
        return
    output.say(_sentence(error))


def _sentence(error: BaseException) -> str:
    if isinstance(error, click.UsageError):
        text = error.format_message().rstrip(".")
        return f"{text}; see {error.ctx.command_path} --help" if error.ctx is not None else text
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, remote.Refused):
        return f"the service does not accept this account ({error}); check its API key and instance"
    if isinstance(error, remote.RemoteError):
        return f"the service could not be asked ({error}); try again in a while"
    if isinstance(error, QxError | Interrupted | ledger.LedgerError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    told = " ".join(str(error).split())
    return f"{type(error).__name__}: {told}; --debug shows where"
