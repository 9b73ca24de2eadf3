"""The state file of the registered service, by which other programs on the machine find it.

A process is identified by its pid and its start, as the watcher identifies a driver: a pid may be reused, and a start
time by the wall clock changes when the clock is set. Both say something only in one PID namespace of one boot, and a
home directory may be shared by hosts and containers. So each of them has a file of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..watcher import host_identity, process_state


@dataclass(frozen=True)
class Registration:
    """The process and port of a registered service."""

    pid: int
    start_ticks: int
    port: int

    @property
    def is_alive(self) -> bool:
        """Whether this process is still running."""
        return process_state.judge(self.pid, self.start_ticks) in ("alive", "unknown")


def claim(pid: int, port: int) -> None:
    """Register a service.

    Raises:
        SystemExit: Another registered service is running on this host.
    """
    path = _state_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ticks = process_state.start_ticks(pid)
    descriptor, draft = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"pid": pid, "start_ticks": ticks, "port": port}, file)
    try:
        while True:
            with contextlib.suppress(FileExistsError):
                # A link, not a rename: if two start at once, one must fail.
                os.link(draft, path)
                return
            if (other := current()) is not None:
                raise SystemExit(f"a registered service is running already: pid {other.pid}, port {other.port}")
    finally:
        Path(draft).unlink()


def current() -> Registration | None:
    """The registered service of this host if it is running. Otherwise its file is removed."""
    path = _state_file()
    try:
        registration = Registration(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        path.unlink(missing_ok=True)
        return None
    if registration.is_alive:
        return registration
    path.unlink(missing_ok=True)
    return None


def forget(pid: int) -> None:
    """Remove the registration of a process, unless another has registered since."""
    path = _state_file()
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text(encoding="utf-8")).get("pid") == pid:
            path.unlink()


def state_directory(chosen: str) -> Path:
    """The directory that `QX_STATE_DIR` names. A "~" may be left in it: there is no shell in units and containers."""
    return Path(os.path.expanduser(chosen)).absolute()  # noqa: PTH111 - where there is no home, that raises nothing


def _state_file() -> Path:
    folder = os.environ.get("QX_STATE_DIR")
    if not folder:
        import platformdirs

        folder = platformdirs.user_state_dir("qx_supervisor")
    where = host_identity.this_host()
    identity = f"{where.machine} {where.boot} {where.pid_ns}"
    return state_directory(folder) / f"local-service-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.json"
