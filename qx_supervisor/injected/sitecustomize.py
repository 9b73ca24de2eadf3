"""Imported by every Python that `qx-supervisor exec` leads to, of any version and environment, Python 2 included.

It must never keep a program from starting.
"""

import os
import sys

_folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - Python 2 has no pathlib

if sys.version_info >= (3, 8):  # noqa: UP036 - the driver's Python, not ours
    try:
        __import__("qx_import_hook").install()
    except Exception as _error:  # noqa: BLE001
        sys.stderr.write("qx-supervisor: the jobs of this program are not guarded: %r\n" % (_error,))  # noqa: UP031

# From here on this folder is hidden, and the user's own sitecustomize is imported. The folder stays in PYTHONPATH, for
# the processes that this one starts.
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
