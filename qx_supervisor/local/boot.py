"""Starts the server, or a simulator of its, in a clean interpreter, as a script: ``python -I boot.py SETTINGS``.

It is run by its path and isolated, so that neither the starter's folder nor its environment affects imports: a user's
``random.py`` or ``queue.py`` must not be imported here. The package is found beside this file; its parent is replaced
by an empty module, as the service needs nothing of it. The settings have the folders of the starter's localqpu and
Qiskit, which go to the end of the path; or none, if this Python is of another environment, which has its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

NEEDED = {"localqpu": "localqpu >= 0.3.0, < 0.4", "trustme": "trustme >= 1.2"}
"""What an environment must have, as a module and as pip installs it. A test compares it with `setup.cfg`."""


def check_environment() -> None:
    """End, and say why, if the service can't run here.

    Raises:
        SystemExit: So it is.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - the Python that somebody named
        sys.exit(f"it needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}; name another")
    missing = [needed for name, needed in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        wanted = " ".join(f"'{each}'" for each in missing)
        sys.exit(f"something is not installed there; {sys.executable} -m pip install {wanted}")


def boot(settings: dict[str, object]) -> None:
    """Make the package importable, and run the module that the settings name."""
    if settings.pop("detached") and os.fork():
        os._exit(0)  # so that the service is no child of the starter, which may wait for all that it has
    path = settings.pop("path")
    if isinstance(path, list):
        sys.path.extend(path)
    else:
        check_environment()
    parent = types.ModuleType("qx_supervisor")
    parent.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["qx_supervisor"] = parent

    module = importlib.import_module(f"qx_supervisor.local.{settings.pop('runs')}")
    module.main(**settings)


if __name__ == "__main__":
    boot(json.loads(sys.argv[1]))
