"""Forks drivers from a process that has imported Qiskit and is connected, so that a test need not wait for either.

A forked child falls out of the serving loop and runs the script at the top level of `__main__`, so that an uncaught
exception, an exit code and a death are the interpreter's own. This process has never transpiled, so nothing of Qiskit's
thread pools is forked; it has no connection open, and a child asks for a token of its own. One request a message on the
socket, with the child's stdout and stderr as descriptors. What a child finds here is the module `qx_warm`: the
service's `port`, a `service` that is connected to it, and a `backend` of it whose target is built.

Arguments: the descriptor of the socket; the port of the embedded service, if there is one to connect to.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import socket
import sys
import types
from collections.abc import Iterable
from typing import Any

signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for who started it

import qiskit  # noqa: E402, F401

import qx_supervisor.local.client  # noqa: E402
from qx_supervisor.service import internals  # noqa: E402
from qx_supervisor.watcher.host_identity import start_ticks  # noqa: E402

for _kind in ("sampler", "estimator"):
    internals.primitive_class(_kind)  # imported now
faulthandler.enable()  # a driver that crashes says where
_control = socket.socket(fileno=int(sys.argv[1]))


def _warm(port: int) -> None:
    """Connect, and build the backend's target: three quarters of what a driver costs."""
    warm: Any = types.ModuleType("qx_warm")
    warm.port = port
    warm.service = qx_supervisor.local.client.connect(port, "local-key")
    warm.backend = warm.service.backend("ibm_brisbane")
    assert warm.backend.target.num_qubits
    for client in _clients(warm):
        client._session.close()
    sys.modules["qx_warm"] = warm


def _clients(warm: Any) -> Iterable[Any]:
    return {id(each): each for each in (warm.service._active_api_client, *warm.service._api_clients.values())}.values()


def _begin_anew(warm: Any) -> None:
    """In a child: a token of its own, as every driver has, since a test may void what there was before it."""
    for client in _clients(warm):
        tokens = client._session.auth.tm
        tokens.access_token, tokens.expire_time, tokens.request_time = None, 0, 0


def _serve() -> str:
    """Fork on request and report every child's end; returns in the child only, with its script."""
    children: dict[int, tuple[int, int]] = {}  # pidfd → number and pid
    while True:
        for ready in select.select([_control.fileno(), *children], [], [])[0]:
            if ready != _control.fileno():
                number, pid = children.pop(ready)
                os.close(ready)
                _control.send(json.dumps({"ended": number, "status": os.waitpid(pid, 0)[1]}).encode())
                continue
            data, descriptors, _, _ = socket.recv_fds(_control, 65536, 2)
            if not data:
                os._exit(0)
            order = json.loads(data)
            pid = os.fork()
            if pid == 0:
                _control.close()
                for pidfd in children:
                    os.close(pidfd)
                for number, descriptor in enumerate(descriptors, 1):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                os.environ.clear()
                os.environ.update(order["environment"])
                return str(order["script"])
            for descriptor in descriptors:
                os.close(descriptor)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = order["child"], pid
            started = {"started": order["child"], "pid": pid, "start_ticks": start_ticks(pid)}
            socket.send_fds(_control, [json.dumps(started).encode()], [pidfd])


if len(sys.argv) > 2:
    _warm(int(sys.argv[2]))
# Else a child's end, which looks at all there is, copies every page of it: half a second of CPU.
gc.collect()
gc.freeze()
__file__ = _serve()
if "qx_warm" in sys.modules:
    _begin_anew(sys.modules["qx_warm"])
sys.argv = [__file__]
with open(__file__) as _file:  # noqa: PTH123
    _code = compile(_file.read(), __file__, "exec")
exec(_code)
