"""What the installed distribution says of itself: its version, how its extras are installed, where to report faults."""

from __future__ import annotations

import functools

NAME = "qx-supervisor"


@functools.cache
def version() -> str:
    """The version that is installed; "unknown" where the package is not installed, but imported from its source."""
    from importlib import metadata  # takes 20 ms, which is not needed where nobody asks

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "unknown"


def extra(name: str) -> str:
    """How an extra is installed, in words."""
    return f"pip install '{NAME}[{name}]' (in a checkout: '.[{name}]')"


@functools.cache
def please_report() -> str:
    """What follows the description of a fault of this library: "please report it", with the address if there is one."""
    from importlib import metadata

    try:
        links = metadata.metadata(NAME).get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        links = []
    for link in links:
        label, _, address = link.partition(", ")
        if label.strip().lower() in ("issues", "bug tracker"):
            return f"please report it at {address.strip()}"
    return "please report it"
