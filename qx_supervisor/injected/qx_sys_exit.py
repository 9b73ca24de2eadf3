"""The status that a program passed to `sys.exit`, before Python 3.12.

The interpreter reads the attribute `code` of an uncaught `SystemExit`, and then ends. In the exception that this
`sys.exit` raises, `code` is a property: if no Python frame is below its getter, the interpreter itself reads it. A
`SystemExit` that the program raises by itself goes unnoticed.
"""

import _thread
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

status: "int | None" = None
"""The status with which `sys.exit` is about to end this program, or None."""


_code: "Any" = vars(SystemExit)["code"]
_main = _thread.get_ident()


class _Exit(SystemExit):
    @property
    def code(self) -> "Any":
        code = _code.__get__(self)
        if sys._getframe().f_back is None and _thread.get_ident() == _main:  # noqa: SLF001
            _end(code)
        return code

    @code.setter
    def code(self, value: object) -> None:
        _code.__set__(self, value)

    def __reduce__(self) -> "Any":
        return SystemExit, self.args


_Exit.__name__ = _Exit.__qualname__ = "SystemExit"
_Exit.__module__ = "builtins"


def _end(code: object) -> None:
    global status  # noqa: PLW0603 - there is one program
    status = 0 if code is None else code & 0xFF if isinstance(code, int) else 1


def _exit(status: object = None, /) -> "NoReturn":
    """Exit the interpreter by raising SystemExit(status)."""
    raise _Exit(*(() if status is None else status if isinstance(status, tuple) else (status,)))


def install() -> None:
    """Replace `sys.exit`."""
    _exit.__name__ = _exit.__qualname__ = "exit"
    sys.exit = _exit
