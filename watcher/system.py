"""What this system has for a watcher, found out once.

A watcher needs POSIX and psutil. What only Linux has makes it quicker and surer: pidfds, robust locks, /proc as the
kernel's own word, prctl(2). Each module in which that makes a difference asks here, and has both ways behind one
contract. `QX_PORTABLE` takes Linux's own away on Linux, so that the other way can be tested where there is no Mac.
"""

from __future__ import annotations

import contextlib
import os
import sys

PORTABLE = "QX_PORTABLE"
"""A test aid: set to anything, what only Linux has is not used. A watcher inherits it."""

HAS_LINUX = sys.platform.startswith("linux") and not os.environ.get(PORTABLE)
"""Whether what only Linux has is used. `boot` has this rule too, for it runs before it can import anything."""

MOST_FILES = 10240
"""How many descriptors are asked for where there is no limit: macOS refuses more (`OPEN_MAX` of setrlimit(2))."""

IS_WINDOWS = sys.platform.startswith("win")


def why_no_watcher() -> str:
    """Why no watcher can run on this system, and what to do; "" if one can."""
    if IS_WINDOWS:
        return (
            "nothing can be guarded on Windows itself; run the program in WSL 2, where it is guarded as on Linux "
            "(`wsl --install`)"
        )
    if os.name != "posix":
        return f"nothing can be guarded on this platform ({sys.platform}); run the program on Linux or macOS"
    return ""


def allow_most_files() -> None:
    """Let this process have as many descriptors as it may: one that serves many needs more than the usual 1,024."""
    import resource  # Windows has none

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = MOST_FILES if most == resource.RLIM_INFINITY else most
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
