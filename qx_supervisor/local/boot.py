"""Starts the server in a clean interpreter, as a script: ``python -I boot.py SETTINGS``.

It is run by its path and isolated, so that neither the starter's folder nor its environment affects imports: a user's
``random.py`` or ``queue.py`` must not be imported here. The package is found beside this file; its parent is replaced
by an empty module, as the service needs nothing of it. The settings have the folders of the starter's localqpu and
Qiskit, which go to the end of the path.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path


def boot(settings: dict[str, object]) -> None:
    """Make the package importable, and run the server."""
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
