"""What is logged: one description of an event, and its two forms, a line of text and a JSON object.

The driver's log, the watcher's log file and the systemd journal have their lines from here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

RUN_LENGTH = 8
"""How much of a run's id a line of text has; the JSON object has all of it."""


class Event(NamedTuple):
    """Something that happened.

    Attributes:
        name: Which kind of event it is, by a name that stays: see docs/logs.md.
        level: How much it matters.
        message: A sentence, without a secret.
        run: The run's id, or "".
        job: The job's id, or "".
        label: The user's words for the run, or "".
        fields: What else is known, by name.
        time: When, in seconds since the epoch.
    """

    name: str
    level: Level
    message: str
    run: str = ""
    job: str = ""
    label: str = ""
    fields: Mapping[str, object] = {}
    time: float = 0.0

    def as_text(self) -> str:
        """One line, or one for each line of the message: every line says when, and what it is about."""
        run, job, label = (_word(each) or "-" for each in (self.run[:RUN_LENGTH], self.job, self.label))
        head = f"{moment(self.time)} {self.level} run={run} job={job} label={label}"
        return "\n".join(f"{head}: {_printable(line)}" for line in self.message.splitlines() or [""])

    def as_json(self) -> str:
        """One JSON object, on one line."""
        return json.dumps(
            {
                "time": moment(self.time),
                "level": self.level,
                "event": self.name,
                "message": self.message,
                "run": self.run or None,
                "job": self.job or None,
                "label": self.label or None,
                **self.fields,
            },
            ensure_ascii=False,
            default=str,
        )

    def cleaned(self, clean: Callable[[str], str]) -> Event:
        """The same, with all texts but the names cleaned."""
        return self._replace(message=clean(self.message), label=clean(self.label), fields=cleaned(self.fields, clean))


def cleaned(fields: Mapping[str, object], clean: Callable[[str], str]) -> dict[str, object]:
    """Fields with all texts in them cleaned."""
    return {name: clean(value) if isinstance(value, str) else value for name, value in fields.items()}


def moment(seconds: float) -> str:
    """A time, as ISO 8601 has it, in the local time zone, which it names."""
    zone = time.strftime("%z", time.localtime(seconds))
    whole = int(seconds // 1)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(whole))
    return f"{text}.{int((seconds - whole) * 1000):03d}{zone[:3]}:{zone[3:]}"


def read(lines: Iterator[str]) -> Iterator[dict[str, object]]:
    """The objects of a log; what is no object is left out: a line that a full disk has cut short."""
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("message"), str):
            yield found


def from_object(found: Mapping[str, object]) -> Event:
    """The event that an object of a log describes."""
    known = {"time", "level", "event", "message", "run", "job", "label"}
    level: Level = next((each for each in _LEVELS if each == found.get("level")), "INFO")
    return Event(
        str(found.get("event") or ""),
        level,
        str(found["message"]),
        str(found.get("run") or ""),
        str(found.get("job") or ""),
        str(found.get("label") or ""),
        {name: value for name, value in found.items() if name not in known},
        _seconds(str(found.get("time"))),
    )


_LEVELS: tuple[Level, ...] = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _printable(line: str) -> str:
    return line if line.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


def _word(text: str) -> str:
    """A text as one word: quoted where it is none."""
    is_word = text.isprintable() and " " not in text
    return text if is_word else _printable(json.dumps(text, ensure_ascii=False))


def _seconds(moment: str) -> float:
    import datetime  # only a reader needs it

    try:
        return datetime.datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0
