"""Installs `qx_supervisor.adopt` when Qiskit's client has been imported, so that the program's jobs are guarded.

A finder on `sys.meta_path` leaves the import to the other finders, and only has the module's own loader call back once
the module has been executed: at its first import, in any thread, and at every `importlib.reload`. In a program that
never imports Qiskit's client, nothing else happens.

If jobs can't be guarded, for instance in a Python without `qx_supervisor`, the client refuses to submit any, and
nothing else. This file runs in any Python from 3.8 on, and imports only modules that load fast.
"""

import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PACKAGE = "qiskit_ibm_runtime"
CLASS = "RuntimeClient"
"""What sends the client's requests. Its releases have it in one module or another."""

_adopt: "Any" = None  # the module `qx_supervisor.adopt`, once it is needed
_refused = False


def is_of_client(name: str) -> bool:
    """Whether a module may be the one that has the class."""
    return name.startswith(f"{PACKAGE}.api.")


class Finder:
    """Finds the client's modules as the other finders do, and follows their execution."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """The spec of one of the client's modules; None for any other module."""
        if name != PACKAGE and not is_of_client(name):
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if find is None or finder is self else find(name, path, target)
            if spec is not None:
                _follow(spec.loader, name)
                return spec
        return None


def _follow(loader: "Any", name: str) -> None:
    # Only this loader object is patched, which was made for this import: it still gives access to source and resources.
    execute = getattr(loader, "exec_module", None)
    if execute is None:  # of a folder without an `__init__.py`, in which nothing is executed
        return

    def exec_module(module: "Any") -> None:
        execute(module)
        if module.__name__ == name:
            _executed(module)

    loader.exec_module = exec_module


def _executed(module: "Any") -> None:
    global _adopt  # noqa: PLW0603 - the import system holds the module's lock
    try:
        if module.__name__ == PACKAGE:
            if _adopt is not None:
                _adopt.imported()
            elif not _refused:
                _refuse("this version of qiskit-ibm-runtime is not known; `qx-supervisor doctor` says which is")
            return
        kind = getattr(module, CLASS, None)
        if kind is None or kind.__module__ != module.__name__:
            return
        from qx_supervisor import adopt

        adopt.install()
        _adopt = adopt
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "qx_supervisor":
            reason = f"qx_supervisor is not installed there; run {sys.executable} -m pip install qx-supervisor"
        else:
            reason = f"qx_supervisor can't be imported: {error}"
        _refuse(reason)
    except Exception as error:  # noqa: BLE001 - whatever it is, the program goes on
        _refuse(f"{type(error).__name__}: {error}")


def _refuse(reason: str) -> None:
    """Make the client refuse every submission, and say why."""
    global _refused  # noqa: PLW0603 - as above
    _refused = True
    text = f"jobs of {sys.executable} can't be guarded: {reason}"
    # The embedded service takes the account's place by the same code, so without it they would go to IBM Quantum.
    if os.environ.get("QX_ON_UNPROTECTED") == "warn" and os.environ.get("QX_LOCAL", "0") in ("", "0"):
        _say(f"{text}. They are submitted all the same")
        return

    def program_run(*_: object, **__: object) -> object:
        raise RuntimeError(f"nothing was submitted: {text}; `qx-supervisor exec --on-unprotected warn` submits")

    kinds = [getattr(module, CLASS, None) for name, module in list(sys.modules.items()) if name.startswith(PACKAGE)]
    for kind in kinds:
        if kind is not None:
            kind.program_run = program_run
    if not any(kinds):
        raise ImportError(f"{PACKAGE} is not imported: {text}")  # there is nothing else to refuse
    _say(f"{text}. None is submitted")


def _say(text: str) -> None:
    try:
        sys.stderr.write(f"qx-supervisor: {text}\n")
    except (AttributeError, OSError, ValueError):
        pass


def _at_exit() -> None:
    if _adopt is not None:
        _adopt.at_exit()


def install() -> None:
    """Install the finder."""
    # Registered first, called last: the program's own exit callbacks may still wait for its jobs.
    atexit.register(_at_exit)
    sys.meta_path.insert(0, Finder())
    if os.environ.get("QX_KEEP_ON_EXIT") and sys.version_info < (3, 12):
        __import__("qx_sys_exit").install()
