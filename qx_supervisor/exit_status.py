"""The exit status of this program, determined in an `atexit` callback, where Python does not tell it.

Zero is reported only on proof: the program's outermost frame has returned, or a `SystemExit` with code 0 has left it.
From Python 3.12 on `sys.monitoring` reports exceptions that leave a frame. Before, only the status given to `sys.exit`
is known (`injected/qx_sys_exit.py`), and that of `raise SystemExit(0)` is not.
"""

from __future__ import annotations

import dis
import os
import sys
import threading
from types import CodeType, FrameType
from typing import Any

_RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap}

_outermost: FrameType | None = None  # of the main thread


def watch() -> None:
    """Find the outermost frame and follow it. Called while the program runs, in any thread."""
    global _outermost  # noqa: PLW0603 - there is one program
    if _outermost is not None:
        return
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - the only access to another thread's frames
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    if frame is not None and _is_the_programs(frame):
        _outermost = frame
        if sys.version_info >= (3, 12):
            _monitor_exits()


def status() -> tuple[int | None, str]:
    """The exit status, or None if it can't be known, and the reason in words."""
    if hasattr(sys, "ps1") or sys.flags.interactive or sys.flags.inspect or os.environ.get("PYTHONINSPECT"):
        return None, "an interactive Python does not tell its exit status"
    if not _can_write():
        return 120, "exit status 120"  # as the interpreter is about to find out
    last = getattr(sys, "last_type", None)  # set by the interpreter when it prints an uncaught exception
    if last is not None:
        return 1, f"ended by {last.__name__}"
    if _outermost is None:
        return None, "Python does not tell its exit status here"
    if _has_returned(_outermost):
        return 0, "exit status 0"
    found = _from_exit()
    if found is None:
        return None, "Python before 3.12 does not tell the exit status of `raise SystemExit`; use sys.exit"
    return found, f"exit status {found}"


def _is_the_programs(frame: FrameType) -> bool:
    """Whether the program ends with this frame; at its start, the outermost frame is one of the interpreter's."""
    module = "runpy" if frame.f_code.co_name == "_run_module_as_main" else "__main__"  # python -m, or a folder
    return frame.f_globals is vars(sys.modules[module])


def _can_write() -> bool:
    stream = sys.stdout
    try:
        if stream is not None and not stream.closed:
            stream.flush()
    except AttributeError:
        return True  # the program has replaced it
    except (OSError, ValueError):
        return False
    return True


def _has_returned(frame: FrameType) -> bool:
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] in _RETURNS


if sys.version_info >= (3, 12):
    _codes: list[Any] = []  # of the SystemExit that left the outermost frame

    def _from_exit() -> int | None:
        if not _codes:
            return None
        code = _codes[-1]
        return 0 if code is None else code & 0xFF if isinstance(code, int) else 1

    def _monitor_exits() -> None:
        events = sys.monitoring
        for tool in (4, 3):  # ids that are not reserved for a kind of tool
            if events.get_tool(tool) is None:
                events.use_tool_id(tool, "qx_supervisor")
                events.register_callback(tool, events.events.PY_UNWIND, _unwound)
                events.set_events(tool, events.events.PY_UNWIND)
                return

    def _unwound(_code: CodeType, _offset: int, error: BaseException) -> None:
        if isinstance(error, SystemExit) and sys._getframe().f_back is _outermost:  # noqa: SLF001 - as above
            _codes.append(error.code)

else:

    def _from_exit() -> int | None:
        found: int | None = getattr(sys.modules.get("qx_sys_exit"), "status", None)
        return found
