"""Run as a script: ``python -I boot.py SETTINGS``. Starts the server in a clean interpreter.

Run by its path, isolated, so that neither the starter's folder nor its environment decides what is imported: a user's
``random.py`` or ``queue.py`` must not end up in here. The package is found beside this file, and its parent is replaced
by an empty one, since the service needs nothing of it. Where the starter has localqpu and Qiskit comes in the settings,
behind everything else on the path.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path


def boot(settings: dict[str, object]) -> None:
    """Make the package importable, and serve."""
    path = settings.pop("path")
    if isinstance(path, list):
        sys.path.extend(path)
    parent = types.ModuleType("qx_supervisor")
    parent.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["qx_supervisor"] = parent

    from qx_supervisor.local.server import main

    main(**settings)  # type: ignore[arg-type]


if __name__ == "__main__":
    boot(json.loads(sys.argv[1]))
