"""The logger `qx_supervisor`, silent unless the program or `QX_LOG_LEVEL` enables it.

Programs that set up logging themselves get records as from any library; what a record is about is in its attributes
`event`, `run`, `job`, `label` and `fields`. For others `QX_LOG_LEVEL` writes lines to stderr, and `QX_LOG_FORMAT` says
in which of the forms that an `Event` has.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from . import settings
from .watcher.events import Event, Level

logger = logging.getLogger("qx_supervisor")


def _spare_threads() -> None:
    """Have what a handler or a filter of the program's raises be shown, as `logging` shows its own, and end nothing.

    It would end the thread that guards all runs, or one of those that carry them out.
    """
    handle = logger.handle

    def handle_and_go_on(record: logging.LogRecord) -> None:
        try:
            handle(record)
        except Exception:  # noqa: BLE001 - see above
            if logging.raiseExceptions:
                with contextlib.suppress(Exception):
                    traceback.print_exc()

    logger.handle = handle_and_go_on  # type: ignore[method-assign]


_spare_threads()

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

ABOUT = ("event", "run", "job", "label")
"""The attributes of a record that say what it is about; `fields` has what else is known."""


class RunLogger(_Adapter):
    """The logger, for what is about one run.

    Args:
        about: Says which run that is: some of `ABOUT`.
    """

    def __init__(self, about: Callable[[], Mapping[str, object]]) -> None:
        super().__init__(logger, {})
        self._about = about

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add what the run is to what is said of it."""
        kwargs["extra"] = {**self._about(), **kwargs.get("extra", {})}
        return msg, kwargs


def event_of(record: logging.LogRecord) -> Event:
    """The event that a record describes."""
    event, run, job, label = (str(getattr(record, name, None) or "") for name in ABOUT)
    fields = dict(getattr(record, "fields", None) or {})
    if record.exc_info and record.exc_info[0] is not None:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    message = record.getMessage()
    if event == "status":  # its words have the job and the label too, for programs that show nothing else
        message = " · ".join(str(fields[name]) for name in ("state", "detail") if name in fields)
    return Event(event or "message", _level(record.levelno), message, run, job, label, fields, record.created)


class Formatter(logging.Formatter):
    """Formats a record as its event is.

    Args:
        form: "text" or "json".
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self._is_json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The line, or with a traceback the lines."""
        event = event_of(record)
        if self._is_json:
            return event.as_json()
        if "exception" in event.fields:
            event = event._replace(message=f"{event.message}\n{event.fields['exception']}")
        return event.as_text()


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`, and passes records on to handlers of the program that write elsewhere.

    Those that write to the terminal too would write each line twice.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (AttributeError, OSError, ValueError):
            pass  # no stderr, or a closed one
        for handler in _above():
            if record.levelno >= handler.level and not _is_terminals(handler):
                handler.handle(record)


def _above() -> Iterator[logging.Handler]:
    """The handlers to which records of the logger go if it propagates."""
    above = logger.parent
    while above is not None:
        yield from tuple(above.handlers)
        above = above.parent if above.propagate else None


def _is_terminals(handler: logging.Handler) -> bool:
    """Whether a handler writes to stdout or stderr; rich's has the stream in its console."""
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    return stream is not None and stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)


def _level(number: int) -> Level:
    if number < logging.INFO:
        return "DEBUG"
    if number < logging.WARNING:
        return "INFO"
    if number < logging.ERROR:
        return "WARNING"
    return "ERROR" if number < logging.CRITICAL else "CRITICAL"


def write_to_stderr(level: str, form: str) -> Callable[[], None]:
    """Write the log to stderr.

    Args:
        level: From which level on.
        form: "text" or "json".

    Returns:
        What makes the logger as it was.
    """
    before = logger.propagate, logger.level
    handler = _Stderr()
    handler.setFormatter(Formatter(form))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level)

    def undo() -> None:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])

    return undo


def set_up() -> None:
    """Add the logger's handlers; called once, at import."""
    logger.addHandler(logging.NullHandler())
    level, form = settings.log_level(), settings.log_format()
    if not level and not form:
        return
    write_to_stderr(level if level in settings.LOG_LEVELS else "WARNING" if level else "INFO", form)
    for name, value, allowed in (
        (settings.LOG_LEVEL, level, settings.LOG_LEVELS),
        (settings.LOG_FORMAT, form, settings.LOG_FORMATS),
    ):
        if value and value not in allowed:
            logger.warning("%s is %r; give one of %s", name, value, ", ".join(allowed))
