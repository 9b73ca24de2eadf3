"""The watcher: the process that outlives a driver, and cancels its jobs.

`watcher/boot.py` starts it in a clean interpreter. It imports neither `qx_supervisor` nor Qiskit. Its modules import
each other relatively, so that the package works under any name: the process loads it by location, whatever else on the
path is called `watcher`.

`protocol`        the messages between driver and watcher
`process_state`   whether a process will ever run its own code again
`robust_lock`     a lock that opens when the thread that holds it ends
`driver_process`  whether the driver still lives
`policy`          event → actions: a pure state machine
`remote`          the part of IBM Quantum's REST interface that a cancel needs
`cancel`          one cancel, from the first request to the proof that the job is final
`record`          writes the ledger
`loop`            the process: one event loop, which does what the policy decides
"""
