"""Starting the service as a process of its own, and finding the one that runs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import registry
from .handle import Service, ServiceError
from .records import INSTANCE

LINGER = 10.0
"""Seconds for ``linger``, for a service that is started for one run: a watcher asks it sooner than that."""

_INSTALL = "pip install '.[local]' in a checkout of qx_supervisor"

# Packages that the server imports. Where they are is told to it, since it runs without PYTHONPATH and the user's own
# site-packages, where they may well be.
_NEEDED = ("localqpu", "qiskit_ibm_runtime", "qiskit", "qiskit_aer", "platformdirs")


def start(
    *,
    backends: Sequence[str] = ("ibm_brisbane",),
    instances: Sequence[str] = (INSTANCE,),
    port: int = 0,
    register: bool = False,
    linger: float | None = None,
) -> Service:
    """Start the embedded service.

    It takes connections when this returns, in a fraction of a second, and loads its engine while the caller imports
    Qiskit; requests wait for that. It outlives the caller unless it is stopped.

    Args:
        backends: The backends it offers, of those that ``qiskit_ibm_runtime.fake_provider`` has snapshots of.
        instances: Names of the account's instances. Each has all the backends, under the same names, and knows of no
            job and no session that is another's.
        port: Port on 127.0.0.1; 0 for a free one.
        register: Write a state file, by which ``find`` finds it. One service at a time can be registered.
        linger: If not None, it ends by itself when the calling process has ended and after that nobody has been
            connected for so many seconds. A watcher that cleans up after the caller is connected until it is done.

    Returns:
        The handle; as a context manager it stops the service.

    Raises:
        ImportError: localqpu is not installed.
        ServiceError: It did not start: an unknown backend, an instance named twice, a port in use, a registered one
            that runs already.
    """
    if importlib.util.find_spec("localqpu") is None:
        raise ImportError(f"The embedded service needs localqpu: {_INSTALL}", name="localqpu")
    if isinstance(instances, str) or not instances or len({*instances}) < len(instances):
        raise ServiceError(f"The instances must be named, each by another name, in a list: not {instances!r}")
    settings: dict[str, object] = {"port": port, "backends": list(backends), "register": register, "path": _folders()}
    settings |= {"instances": list(instances), "starter": os.getpid(), "linger": linger}
    command = [_interpreter(), "-I", str(Path(__file__).with_name("boot.py")), json.dumps(settings)]
    read, write = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # a Ctrl-C in the caller's terminal is not for it
            )
        finally:
            os.close(write)
        try:
            bound = _bound_port(read)
        except BaseException:
            process.kill()
            process.wait()
            raise
    except BaseException:
        os.close(read)
        raise
    # From here on it is waited for by its pidfd. Popen would warn, when it is collected, of a process that still runs,
    # and running on is what it is for.
    process.returncode = 0
    return Service(process.pid, bound, output=read)


def find() -> Service | None:
    """Find the registered service.

    Returns:
        A handle of it; None if there is none. A state file left by one that has ended is removed.
    """
    registration = registry.current()
    if registration is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        service = Service(registration.pid, registration.port)
        # Asked again now that the handle holds the process: it may have ended, and its pid have been given away.
        if registration.is_alive:
            return service
    return None


def _interpreter() -> str:
    if not sys.executable:
        raise ServiceError("There is no Python interpreter to run the embedded service: sys.executable is empty")
    return sys.executable


def _folders() -> list[str]:
    """The folders that hold the needed packages, each once."""
    folders: dict[str, None] = {}
    for name in _NEEDED:
        spec = importlib.util.find_spec(name)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folders[str(Path(location).resolve().parent)] = None
    return list(folders)


def _environment() -> dict[str, str]:
    """The caller's environment without its IBM credentials, for which the service has no use."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QISKIT_IBM_")}
    # Circuits here are small, and a thread pool per simulation would take every core from what is being tested.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if folder := environment.get("QX_STATE_DIR"):
        environment["QX_STATE_DIR"] = str(Path(folder).absolute())  # its working directory is another
    return environment


def _bound_port(descriptor: int) -> int:
    """Wait for the line that names the port; whatever else is written before it is for the error message."""
    written = b""
    while not (match := re.search(rb"^port (\d+)\n", written, re.MULTILINE)):
        # Byte by byte, for a dozen of them: what comes after the line is left to be read if the engine can't be loaded.
        byte = os.read(descriptor, 1)
        if not byte:
            reason = written.decode(errors="replace").strip() or "no reason given"
            raise ServiceError(f"The embedded service did not start: {reason}")
        written += byte
    return int(match[1])
