"""The full-screen view of `top`: the runs in a list, the chosen one in detail below, and the keys at the bottom.

It needs no mouse and no colour. Two threads read, the one the ledger, the other the service; none of their waits keeps
the keyboard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.screen import ModalScreen
from textual.widgets import Footer, OptionList, Static
from textual.widgets.option_list import Option

from ..errors import QxError
from ..text_width import one_line
from ..watcher import cancel, remote
from . import rows, table
from .fullscreen import BY_SIGNAL, PASSED_ON
from .snapshot import LEDGER_SECONDS, LedgerReader, Listing, ServiceReader, Shown, Snapshot

SHOWN = ("PROGRAM", "STATE", "JOB", "SERVICE", "AGE", "BACKEND", "COST", "LABEL")
RANKED = {"STATE": 9, "PROGRAM": 13, "LABEL": 12, "JOB": 20, "AGE": 4, "SERVICE": 7, "COST": 8, "BACKEND": 12}
"""The columns, with the widths that they need, those first that the narrowest terminal has: at 40 columns three are
left, at 80 all but the last two. The details have the rest."""

GIVES = ("BACKEND", "PROGRAM", "LABEL", "JOB")
"""What is cut short where the terminal is too narrow still."""

NARROW = 60
"""Columns below which words are left out."""

MARKS = {True: "> ", False: "  "}
"""Before the chosen run, which is to be seen without colours too."""

STYLES = {"live": "green", "ending": "yellow", "waiting": "yellow", "orphan": "bold red", "failed": "red"}

CANCEL_SECONDS = 60.0
"""Seconds after which a cancel that is not confirmed is given up."""

LARGEST_SHARE = 0.1
"""The share of the time that may be spent on reading the ledger, where it has a thousand runs."""


def ranked(room: int, *, has_labels: bool) -> dict[str, int]:
    """The columns with the widths that they need.

    Args:
        room: How many characters a line may have.
        has_labels: Whether a run has one. If none has, that column is left out, and a run is known by its job: on a
            narrow terminal by the beginning of its id.
    """
    if has_labels:
        return RANKED
    needed = {name: width for name, width in RANKED.items() if name != "LABEL"}
    left = room - needed["STATE"] - needed["PROGRAM"] - 2 * len(table.GAP)
    return {**needed, "JOB": max(table.LEAST, min(left, needed["JOB"]))}


class Question(ModalScreen[bool]):
    """Asks whether to go on; y and n answer.

    Args:
        lines: What is asked.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def compose(self) -> ComposeResult:
        """Lay it out."""
        with Vertical(id="question", classes="narrow" if self.app.size.width < NARROW else ""):
            yield Static(Text("\n".join(map(one_line, self._lines))))
            yield Static(Text("\ny  yes     n  no", style="bold"))

    def action_answer(self, answer: bool) -> None:
        """Take an answer."""
        self.dismiss(answer)


class Top(App[int]):
    """The view.

    Args:
        reader: Reads the ledger.
        service: Asks the service; None: it is not asked until something is to be cancelled.
        canceller: Cancels with this account.
        interval: Seconds between two lists of the service's.
        place: Whose runs are shown: a host's name, or "all hosts".
    """

    CSS = """
    Screen { layout: vertical; }
    #head, #columns { height: 1; }
    #said { height: auto; min-height: 1; max-height: 3; }
    #columns { text-style: bold; }
    #runs { height: 1fr; border: none; padding: 0; background: transparent; scrollbar-size: 0 0; }
    #runs > .option-list--option { padding: 0; }
    #runs > .option-list--option-highlighted { background: transparent; }
    #runs:focus { border: none; background: transparent; }
    #detail { height: auto; max-height: 12; border-top: solid gray; display: none; }
    Question { align: center middle; }
    #question { width: auto; max-width: 100%; height: auto; border: solid gray; padding: 1 2; }
    #question Static { width: auto; max-width: 70; }
    #question.narrow { width: 100%; padding: 0 1; }
    #question.narrow Static { width: 100%; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c,delete", "cancel", "Cancel", key_display="c"),
        Binding("d,enter", "detail", "Details", key_display="d", priority=True),
        Binding("r", "refresh", "Refresh"),
        Binding("q", "leave", "Quit"),
        Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
    ]

    def __init__(
        self,
        reader: LedgerReader,
        service: ServiceReader | None,
        canceller: ServiceReader,
        *,
        interval: float,
        place: str,
    ) -> None:
        super().__init__(ansi_color=True)  # the terminal's own colours, and none at all with NO_COLOR
        self._reader = reader
        self._service = service
        self._canceller = canceller
        self._interval = interval
        self._place = place
        self._snapshot = Snapshot()
        self._listing = Listing(words="the service has not been asked yet" if service else "")
        self._chosen = ""  # the run
        self._ids: list[str] = []
        self._prompts: list[Text] = []
        self._is_over = threading.Event()
        self._wanted = threading.Event()

    def compose(self) -> ComposeResult:
        """Lay out the view."""
        yield Static(id="head")
        yield Static(id="columns")
        yield OptionList(id="runs", markup=False)
        yield Static(id="detail")
        yield Static(id="said")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to read, and end in good order at a signal."""
        loop = asyncio.get_running_loop()
        for number in PASSED_ON:
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread
                loop.add_signal_handler(number, self._end_by, number)
        self.query_one("#runs").focus()
        threading.Thread(target=self._read_ledger, name="qx-top-ledger", daemon=True).start()
        if self._service is not None:
            threading.Thread(target=self._read_service, name="qx-top-service", daemon=True).start()

    def on_unmount(self) -> None:
        """End the threads."""
        self._is_over.set()
        self._wanted.set()

    def _end_by(self, number: int) -> None:
        """End because of a signal."""
        # Once the parent is killed, a shell has the terminal, and has set it up for itself: that is to stay. What this
        # process writes still, to leave the other screen, is not to stop it in the background.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        driver: Any = self._driver
        with contextlib.suppress(OSError, AttributeError):
            if os.tcgetpgrp(driver.fileno) != os.getpgrp():
                driver.attrs_before = None
        self.exit(BY_SIGNAL + number)

    # The threads

    def _read_ledger(self) -> None:
        while not self._is_over.is_set():
            began = time.monotonic()
            snapshot = self._reader.read()
            took = time.monotonic() - began
            self._tell(lambda snapshot=snapshot: self._see(snapshot))  # type: ignore[misc]
            self._wanted.wait(max(LEDGER_SECONDS, took / LARGEST_SHARE))
            self._wanted.clear()
        self._reader.close()

    def _read_service(self) -> None:
        assert self._service is not None
        while not self._is_over.is_set():
            listing = self._service.read()
            self._tell(lambda listing=listing: self._hear(listing))  # type: ignore[misc]
            self._is_over.wait(self._interval)

    def _tell(self, act: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError, NoMatches):  # it has ended meanwhile, or is about to
            self.call_from_thread(act)

    def _cancel(self, jobs: list[str]) -> None:
        """Cancel jobs, in a thread of their own."""
        words = []
        for job in jobs:
            try:
                words.append(f"{job} {self._cancel_one(job)}")
            except (QxError, remote.RemoteError) as error:
                words.append(f"{job}: {error}")
        self._tell(lambda: self._say("; ".join(words)))
        self._wanted.set()

    def _cancel_one(self, job: str) -> str:
        end = time.monotonic() + CANCEL_SECONDS

        def wait(pause: float) -> bool:
            return self._is_over.wait(min(pause, max(0.0, end - time.monotonic()))) or time.monotonic() >= end

        outcome, trouble = "gone", ""
        for there in self._canceller.remotes():
            outcome, trouble = cancel.cancel(job, there, time.monotonic, wait, is_patient=True, given=False)
            if outcome != "gone":
                break
        match outcome:
            case "cancelled":
                return "is cancelled"
            case "finished":
                return "was over already, or finished all the same"
            case "gone":
                return "is none of this account's; cancel it with qx-supervisor cancel --instance"
        return f"may go on: its cancel could not be confirmed ({trouble})"

    # What is shown

    def _see(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._draw()

    def _hear(self, listing: Listing) -> None:
        if listing.words and not listing.states:  # what was known is old, and not to be believed for ever
            self._say(listing.words)
        self._listing = listing
        self._draw()

    def _say(self, text: str) -> None:
        self.query_one("#said", Static).update(Text(one_line(text)))

    def on_resize(self) -> None:
        """Draw anew, for another width."""
        self._draw()

    def _draw(self) -> None:
        runs = self._snapshot.runs
        width = max(20, self.size.width)
        room = width - len(MARKS[False])
        has_labels = not runs or any(each.row.label for each in runs)
        columns = table.chosen(SHOWN, ranked(room, has_labels=has_labels), room)
        header, *lines = table.lines(columns, [self._cells(each) for each in runs], room, GIVES)
        self.query_one("#head", Static).update(Text(self._head(), no_wrap=True, overflow="ellipsis"))
        self.query_one("#columns", Static).update(Text(MARKS[False] + header, no_wrap=True))
        shown = self.query_one("#runs", OptionList)
        ids = [each.row.run for each in runs]
        if self._chosen not in ids:
            self._chosen = ids[min(shown.highlighted or 0, len(ids) - 1)] if ids else ""
        at = len(MARKS[False]) + header.index("STATE")
        prompts = [self._line(each, line, at) for each, line in zip(runs, lines, strict=True)]
        if ids == self._ids:
            for index, prompt in enumerate(prompts):
                if prompt != self._prompts[index]:  # of a thousand runs a few change
                    shown.replace_option_prompt_at_index(index, prompt)
        else:
            self._ids = ids
            shown.clear_options()
            shown.add_options([Option(prompt, id=run) for prompt, run in zip(prompts, ids, strict=True)])
        self._prompts = prompts
        if self._chosen:
            shown.highlighted = ids.index(self._chosen)
        self._draw_detail()

    def _line(self, shown: Shown, line: str, state_at: int) -> Text:
        text = Text(MARKS[shown.row.run == self._chosen] + line, no_wrap=True)
        if text.plain.startswith(MARKS[True]):
            text.stylize("bold")
        if style := STYLES.get(shown.state):
            text.stylize(style, state_at, state_at + len(shown.state))
        return text

    def _cells(self, shown: Shown) -> dict[str, str]:
        row = shown.row
        cells = rows.cells(row, shown.state, self._snapshot.now)
        states = [self._listing.states[job] for job in row.jobs if job in self._listing.states]
        where = str(row.pid) if self._place != "all hosts" else f"{row.host_identity.host}:{row.pid}"
        return {
            **cells,
            "PROGRAM": f"{where} {row.program}".strip(),
            "SERVICE": "" if shown.is_over else "/".join(dict.fromkeys(states)),
            "JOB": cells["JOB"] or ("" if shown.is_over else "(none yet)"),
        }

    def _head(self) -> str:
        runs = self._snapshot.runs
        drivers = len({each.driver for each in runs if each.state == "live"})
        counts = Counter(each.state for each in runs)
        place = self._place if self.size.width < NARROW else f"qx-supervisor top, {self._place}"
        parts = [
            f"{place}: {drivers} {'program' if drivers == 1 else 'programs'}",
            ", ".join(f"{number} {state}" for state, number in counts.items()) or "nothing is guarded",
            time.strftime("%H:%M:%S"),
        ]
        trouble = self._snapshot.trouble  # first: what is last is cut off
        return "  ".join(map(one_line, [*([f"the ledger can't be read: {trouble}"] if trouble else []), *parts]))

    def _draw_detail(self) -> None:
        detail = self.query_one("#detail", Static)
        shown = self._run()
        if not detail.display or shown is None:
            return
        row, cells = shown.row, self._cells(shown)
        found = (
            ("jobs", ", ".join(f"{job} {outcome}".strip() for job, outcome in row.jobs.items())),
            ("session", row.session or ""),
            ("service", cells["SERVICE"]),
            ("age", cells["AGE"]),
            ("backend, QPU", ", ".join(filter(None, (row.backend, cells["COST"])))),
            ("driver", f"{row.host_identity.host}:{row.pid}, watched by pid {row.watcher_pid or '–'}"),
            ("command", row.command),
            ("label, tags", ", ".join(filter(None, (row.label, *row.tags)))),
            ("run", row.run + (f", key {row.key}" if row.key else "")),
            ("ended by", rows.who_ended(row)),
            ("why", row.detail or row.reason),
        )
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")  # an id is to be copied whole
        for name, value in found:
            if value:
                grid.add_row(name, Text(one_line(value)))
        detail.update(grid)

    # What is done

    def _run(self) -> Shown | None:
        return next((each for each in self._snapshot.runs if each.row.run == self._chosen), None)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Follow the keyboard."""
        if event.option_id and event.option_id != self._chosen and event.option_id in self._ids:
            self._chosen = event.option_id
            self._draw()

    def action_move(self, by: int) -> None:
        """Choose the next run, or the one before."""
        shown = self.query_one("#runs", OptionList)
        if by > 0:
            shown.action_cursor_down()
        else:
            shown.action_cursor_up()

    def action_detail(self) -> None:
        """Show or hide what is known of the chosen run."""
        detail = self.query_one("#detail", Static)
        detail.display = not detail.display
        self._draw_detail()

    def action_refresh(self) -> None:
        """Read the ledger now."""
        self._wanted.set()

    def action_leave(self) -> None:
        """End."""
        self.exit(0)

    def action_cancel(self) -> None:
        """Ask, and cancel the jobs of the chosen run."""
        shown = self._run()
        if shown is None:
            self._say("there is no run to cancel")
        elif shown.is_over:
            self._say("that run is over")
        elif not shown.jobs:
            why = "it guards a session: qx-supervisor sessions --close" if shown.row.session else "it has no job yet"
            self._say(f"nothing to cancel: {why}")
        else:
            jobs = shown.jobs
            of = shown.row.program or f"pid {shown.row.pid}"
            of += f", {shown.row.label}" if shown.row.label else ""
            lines = [f"Cancel {'the job' if len(jobs) == 1 else f'{len(jobs)} jobs'} of {of}?", *jobs[:5]]
            lines += [f"and {len(jobs) - 5} more"] if len(jobs) > 5 else []
            lines += ["Its program runs, and will be told that its job was cancelled."] if shown.state == "live" else []
            self.push_screen(Question(lines), lambda answer: self._go_on(jobs, answer=answer))

    def _go_on(self, jobs: list[str], *, answer: bool | None) -> None:
        if not answer:
            self._say("nothing was cancelled")
            return
        self._say(f"cancelling {', '.join(jobs)} …")
        threading.Thread(target=self._cancel, args=(jobs,), name="qx-top-cancel", daemon=True).start()
