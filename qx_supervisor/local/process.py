"""Starts the service as its own process, and finds a registered one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..distribution import extra
from ..watcher import system
from . import registry
from .bounds import Bounds
from .handle import Service, ServiceError
from .records import INSTANCE

LINGER = 10.0
"""A ``linger`` for a service that is started for one run. A watcher connects again sooner than that."""

BOUNDS = Bounds()
"""What a job may take unless something else is said: enough for most programs, on a machine with two cores."""

_INSTALL = f"{extra('local')}, or name a Python that has it in QX_LOCAL_PYTHON"

# Packages that the server imports. It gets their folders as a setting, because it runs without PYTHONPATH and the
# user's site-packages, where they may be.
_NEEDED = (
    *("localqpu", "qiskit_ibm_runtime", "qiskit", "qiskit_aer", "platformdirs", "psutil"),
    *("trustme", "cryptography", "cffi", "idna"),  # for TLS
)


def start(
    *,
    backends: Sequence[str] = ("ibm_brisbane",),
    instances: Sequence[str] = (INSTANCE,),
    port: int = 0,
    register: bool = False,
    linger: float | None = None,
    idle: float | None = None,
    python: str | os.PathLike[str] | None = None,
    max_shots: int = BOUNDS.shots,
    max_qubits: int = BOUNDS.qubits,
    max_memory: int = BOUNDS.memory,
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
        python: The Python to run it with, by path or name: one of an environment that has localqpu, which this
            process's need not have. None: the one that ``QX_LOCAL_PYTHON`` names, else this process's own.
        idle: If not None, the service is shared: it ends by itself when for ``idle`` seconds it has had no connection
            and no unfinished job, and nothing else of this program's ends it.
        max_shots: How many shots a job may have, over all its circuits and sets of parameter values.
        max_qubits: How many qubits a job may have that are entangled with one another, as far as its gates can
            entangle them. They are simulated exactly, and each may double the time.
        max_memory: How many bytes the simulation of a job may take.

    Returns:
        The handle; as a context manager it stops the service, unless that is shared.

    Raises:
        ImportError: It would run with this process's Python, and localqpu is not installed there.
        ServiceError: It did not start: an unknown backend, an instance named twice, a bound below 1, a port in use,
            another registered service that is running, or a platform on which it can't run; no such Python, or one
            without localqpu.
    """
    if system.IS_WINDOWS:
        raise ServiceError("The embedded service does not run on Windows itself: use it in WSL 2 (`wsl --install`)")
    other = _other_python(python)
    if not other and importlib.util.find_spec("localqpu") is None:
        raise ImportError(f"The embedded service needs localqpu: {_INSTALL}", name="localqpu")
    if isinstance(instances, str) or not instances or len({*instances}) < len(instances):
        raise ServiceError(f"The instances must be named, each by another name, in a list: not {instances!r}")
    try:
        bounds = asdict(Bounds(max_shots, max_qubits, max_memory))
    except ValueError as error:
        raise ServiceError(f"The embedded service was not started: {error}") from None
    settings: dict[str, object] = {"port": port, "backends": list(backends), "register": register}
    settings |= {"instances": list(instances), "starter": os.getpid(), "linger": linger}
    settings |= {"idle": idle, "detached": idle is not None, "runs": "server", "bounds": bounds}
    settings["path"] = None if other else _folders()  # modules of this Python are not for another
    command = [other or _own_python(), "-I", str(Path(__file__).with_name("boot.py")), json.dumps(settings)]
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
            pid, bound = _where(read)
            if idle is not None:
                process.wait()  # it has left the service to itself
        except BaseException:
            process.kill()
            process.wait()
            raise
    except BaseException:
        os.close(read)
        raise
    # From here on its handle is used. A Popen object that is garbage-collected would warn that the process still runs.
    process.returncode = 0
    return Service(pid, bound, output=read, stops=idle is None)


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
        # Checked again now that there is a handle: the process may have ended, and its pid been reused.
        if registration.is_alive:
            return service
    return None


def can_start() -> bool:
    """Whether ``start`` has a Python that may have localqpu: this one has it, or ``QX_LOCAL_PYTHON`` names another."""
    from ..settings import local_python

    return bool(local_python()) or importlib.util.find_spec("localqpu") is not None


def _other_python(asked: str | os.PathLike[str] | None) -> str:
    """The path of the Python that is asked for, here or by the environment; "" if none is.

    Raises:
        ServiceError: There is none.
    """
    from ..settings import LOCAL_PYTHON, local_python  # not at the top: the service's process, too, imports this module

    wanted = local_python() if asked is None else os.fspath(asked)
    if not wanted:
        return ""
    found = shutil.which(Path(wanted).expanduser())
    if found is None:
        raise ServiceError(
            f"There is no Python {wanted!r} to run the embedded service: give one of an environment that has localqpu, "
            f"such as /path/of/it/bin/python, as python=... or in {LOCAL_PYTHON}"
        )
    return str(Path(found).absolute())  # not resolved: by the link that it is, it knows its environment


def _own_python() -> str:
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
        environment["QX_STATE_DIR"] = str(registry.state_directory(folder))  # the service's working directory is /
    return environment


def _where(descriptor: int) -> tuple[int, int]:
    """Wait for the line with the pid and the port. What is written before it goes into the error message."""
    written = b""
    while not (match := re.search(rb"^pid (\d+) port (\d+)\n", written, re.MULTILINE)):
        # Byte by byte: what follows the line is read later, if the engine can't be loaded.
        byte = os.read(descriptor, 1)
        if not byte:
            reason = written.decode(errors="replace").strip() or "no reason given"
            raise ServiceError(f"The embedded service did not start: {reason}")
        written += byte
    return int(match[1]), int(match[2])
