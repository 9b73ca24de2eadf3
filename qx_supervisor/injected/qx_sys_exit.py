"""Which exit status `sys.exit` gave a program, in a Python before 3.12.

The interpreter reads the code of a `SystemExit` that nobody has caught, and then ends; it tells nobody. But it reads an
attribute: of what this `sys.exit` raises, that is a property, which is read with no Python frame below when the
interpreter itself reads it. A `SystemExit` that the program raises by itself can't be seen so.
"""

import _thread
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

status: "int | None" = None
"""The status with which this program is about to end by `sys.exit`, or None."""


_plain: "Any" = vars(SystemExit)["code"]
_main = _thread.get_ident()


class _Exit(SystemExit):
    @property
    def code(self) -> "Any":
        code = _plain.__get__(self)
        if sys._getframe().f_back is None and _thread.get_ident() == _main:  # noqa: SLF001
            _end(code)
        return code

    @code.setter
    def code(self, value: object) -> None:
        _plain.__set__(self, value)

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
    """Have `sys.exit` raise what tells."""
    _exit.__name__ = _exit.__qualname__ = "exit"
    sys.exit = _exit
