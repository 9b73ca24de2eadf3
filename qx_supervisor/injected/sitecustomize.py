"""Imported by every Python that `qx-supervisor exec` leads to, older ones and those of other environments among them.

So this file is written for all of them, Python 2 included. It must never keep a program from starting.
"""

import os
import sys

_folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - Python 2 has no pathlib

if sys.version_info >= (3, 8):  # noqa: UP036 - the driver's Python, not ours
    try:
        __import__("qx_import_hook").install()
    except Exception as _error:  # noqa: BLE001
        sys.stderr.write("qx-supervisor: the jobs of this program are not guarded: %r\n" % (_error,))  # noqa: UP031

# What follows is as if this folder were not there: the user's own sitecustomize is next on the path. The folder stays
# in PYTHONPATH, for the processes that this one starts.
sys.path[:] = [_entry for _entry in sys.path if os.path.abspath(_entry) != _folder]  # noqa: PTH100
_this = sys.modules.pop("sitecustomize", None)
try:
    import sitecustomize  # type: ignore  # noqa
except ImportError as _error:
    if getattr(_error, "name", "sitecustomize") != "sitecustomize":
        raise
finally:
    if _this is not None:
        sys.modules.setdefault("sitecustomize", _this)
