"""Forks drivers from a process that has imported Qiskit, so that a test need not wait three seconds for each.

A forked child falls out of the serving loop and runs the script at the top level of `__main__`, so that an uncaught
exception, an exit code and a death are the interpreter's own. This process has never transpiled, so nothing of Qiskit's
thread pools is forked. One request a message on the socket, with the child's stdout and stderr as descriptors.
"""

import json
import os
import select
import signal
import socket
import sys

signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for who started it

import qiskit  # noqa: E402, F401
import qiskit_ibm_runtime.executor_estimator  # noqa: E402
import qiskit_ibm_runtime.executor_sampler  # noqa: E402, F401

import qx_supervisor.local.client  # noqa: E402, F401

_control = socket.socket(fileno=int(sys.argv[1]))


def _serve():
    """Fork on request and report every child's end; returns in the child only, with its script."""
    children = {}  # pidfd → pid
    while True:
        for ready in select.select([_control, *children], [], [])[0]:
            if ready is not _control:
                pid = children.pop(ready)
                os.close(ready)
                _control.send(json.dumps({"ended": pid, "status": os.waitpid(pid, 0)[1]}).encode())
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
                return order["script"]
            for descriptor in descriptors:
                os.close(descriptor)
            children[os.pidfd_open(pid)] = pid
            _control.send(json.dumps({"started": pid}).encode())


__file__ = _serve()
sys.argv = [__file__]
with open(__file__) as _file:  # noqa: PTH123
    _code = compile(_file.read(), __file__, "exec")
exec(_code)
