"""This installation's `watcher`, whatever else has that name.

A user's folder may well hold a `watcher.py`, and the folder of a script comes first on its path. So the package beside
this one is taken by location: under its own name if that name leads there, else under a name inside this package.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

FOLDER = Path(__file__).resolve().parent.parent / "watcher"


def _leads_here(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module without a spec, such as a script run as __main__
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == FOLDER / "__init__.py"


def _package() -> str:
    if _leads_here("watcher"):
        return "watcher"
    name = "qx_supervisor._watcher"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        assert spec is not None and spec.loader is not None  # noqa: PT018 - a file's spec has a loader
        package = importlib.util.module_from_spec(spec)
        sys.modules[name] = package
        spec.loader.exec_module(package)
    return name


if TYPE_CHECKING:
    from watcher import cancel, host_identity, ledger, protocol, remote, service_messages
    from watcher.ledger.postgres import SharedLedger
else:
    _name = _package()

    def _module(part: str) -> ModuleType:
        return importlib.import_module(f"{_name}.{part}")

    cancel, host_identity, ledger, protocol, remote, service_messages = map(
        _module, ("cancel", "host_identity", "ledger", "protocol", "remote", "service_messages")
    )


def shared_ledger() -> type[SharedLedger]:
    """The ledger of many hosts; only where it is installed what it needs."""
    found: type[SharedLedger] = importlib.import_module(f"{ledger.__name__}.postgres").SharedLedger
    return found


__all__ = ["FOLDER", "cancel", "host_identity", "ledger", "protocol", "remote", "service_messages", "shared_ledger"]
