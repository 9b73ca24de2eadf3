"""The watcher: the other process, which cancels a driver's jobs when the driver dies.

It is started by `watcher/boot.py` in a clean interpreter and imports neither `qx_supervisor` nor Qiskit. Its modules
import each other relatively, so that the package works under any name: the process loads it by location, and another
package called `watcher` on the path does it no harm.

`protocol`  what the two processes say to each other
`parent`    whether the caller still lives
`policy`    what follows from what: a pure state machine
`remote`    IBM Quantum's REST interface, as much of it as a cancel needs
`cancel`    one cancel, from the first request to the proof that the job is final
`loop`      the process itself: one wait, and what the policy orders
"""
