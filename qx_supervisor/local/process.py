"""Starts the service as its own process, and finds a registered one."""

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
"""A ``linger`` for a service that is started for one run. A watcher connects again sooner than that."""

_INSTALL = "pip install '.[local]' in a checkout of qx_supervisor"

# Packages that the server imports. It gets their folders as a setting, because it runs without PYTHONPATH and the
# user's site-packages, where they may be.
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

    This returns in a fraction of a second, when the service accepts connections. Its engine loads while the calling
    process imports Qiskit; requests wait for it. The service outlives the calling process unless it is stopped.

    Args:
        backends: The backends it offers, of those that ``qiskit_ibm_runtime.fake_provider`` has snapshots of.
        instances: Names of the account's instances. Each has all backends, under the same names, but its own jobs and
            sessions.
        port: Port on 127.0.0.1; 0 for a free one.
        register: Write a state file, by which ``find`` finds it. Only one service at a time can be registered.
        linger: If not None, the service ends by itself when the calling process has ended, and has then had no
            connection for ``linger`` seconds. A watcher that cleans up stays connected until it is done.

    Returns:
        The handle; as a context manager it stops the service.

    Raises:
        ImportError: localqpu is not installed.
        ServiceError: It did not start: an unknown backend, an instance named twice, a port in use, or another
            registered service that is running.
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
                start_new_session=True,  # Ctrl-C in the terminal must not reach it
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
    # From here on its pidfd is used. A Popen object that is garbage-collected would warn that the process still runs.
    process.returncode = 0
    return Service(process.pid, bound, output=read)


def find() -> Service | None:
    """Find the registered service.

    Returns:
        Its handle, or None. The state file of a service that has ended is removed.
    """
    registration = registry.current()
    if registration is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        service = Service(registration.pid, registration.port)
        # Checked again now that the handle has a pidfd: the process may have ended, and its pid been reused.
        if registration.is_alive:
            return service
    return None


def _interpreter() -> str:
    if not sys.executable:
        raise ServiceError("There is no Python interpreter to run the embedded service: sys.executable is empty")
    return sys.executable


def _folders() -> list[str]:
    """The folders of the needed packages, each once."""
    folders: dict[str, None] = {}
    for name in _NEEDED:
        spec = importlib.util.find_spec(name)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folders[str(Path(location).resolve().parent)] = None
    return list(folders)


def _environment() -> dict[str, str]:
    """This process's environment without IBM credentials, which the service does not need."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QISKIT_IBM_")}
    # Circuits here are small, and a thread pool per simulation would slow down what is being tested.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if folder := environment.get("QX_STATE_DIR"):
        environment["QX_STATE_DIR"] = str(Path(folder).absolute())  # the service's working directory is /
    return environment


def _bound_port(descriptor: int) -> int:
    """Wait for the line with the port. What is written before it goes into the error message."""
    written = b""
    while not (match := re.search(rb"^port (\d+)\n", written, re.MULTILINE)):
        # Byte by byte: what follows the line is read later, if the engine can't be loaded.
        byte = os.read(descriptor, 1)
        if not byte:
            reason = written.decode(errors="replace").strip() or "no reason given"
            raise ServiceError(f"The embedded service did not start: {reason}")
        written += byte
    return int(match[1])
